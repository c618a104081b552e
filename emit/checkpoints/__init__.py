"""Public Stable Diffusion files in, public files out.

tables.py lists every tensor in both namings, formats.py recognises files, reader.py, folder.py and safe_pickle.py read
them, writer.py and configs.py write them. `python -m emit.checkpoints inspect FILE` looks into one.
"""

from emit.checkpoints.folder import read
from emit.checkpoints.reader import Checkpoint, fill
from emit.checkpoints.writer import write_diffusers, write_single

__all__ = ["Checkpoint", "fill", "read", "write_diffusers", "write_single"]
