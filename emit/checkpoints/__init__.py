"""Public Stable Diffusion files in, public files out.

recognise.py says what a file is, names.py renames its tensors, sizes.py and configs.py know their sizes, reader.py,
safe_pickle.py and keras.py read it, writer.py writes it. `python -m emit.checkpoints inspect FILE` looks into one.
"""

from emit.checkpoints.reader import Checkpoint, fill, read
from emit.checkpoints.sizes import NETWORKS, SD1, SD2
from emit.checkpoints.writer import write_diffusers, write_single

__all__ = ["NETWORKS", "SD1", "SD2", "Checkpoint", "fill", "read", "write_diffusers", "write_single"]
