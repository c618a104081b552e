"""Public Stable Diffusion files in, public files out.

recognise.py says what a file is, names.py renames its tensors, reader.py and safe_pickle.py read it, writer.py and
configs.py write it. `python -m emit.checkpoints inspect FILE` looks into one.
"""

from emit.checkpoints.names import NETWORKS
from emit.checkpoints.reader import Checkpoint, fill, read
from emit.checkpoints.writer import write_diffusers, write_single

__all__ = ["NETWORKS", "Checkpoint", "fill", "read", "write_diffusers", "write_single"]
