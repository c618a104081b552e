"""The whole method on phantoms: prints and runs the four commands in order.     python -m emit.demo [FOLDER]

Everything is the scripts' `demo` preset: phantom anatomy of 64 pixels in the public folder layouts, minutes on two cores.
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

from emit import errors
from emit.data.phantom import write_phantoms


def commands(folder):
    """Return the four commands of a whole run, as lists of words, on the phantoms in folder/phantoms."""
    phantoms, pretrained = folder / "phantoms", folder / "pretrain"
    python = [sys.executable]
    labelled = ["--data", phantoms / "BUSI"]
    model = ["--model", pretrained / "model.safetensors", "--hed", pretrained / "hed.safetensors"]
    data = ["--data", phantoms / "radiology_ai", "--boundaries", phantoms / "boundaries"]
    lines = [
        ["train_pretrain.py", *data, "--out", pretrained],
        ["train_finetune.py", *labelled, *model, "--out", folder / "finetune"],
        ["-m", "emit.generate", *labelled, *model, "--finetuned", folder / "finetune", "--out", folder / "generated"],
        ["train_seg.py", *labelled, "--generated", folder / "generated", "--arms", "paper", "--out", folder / "seg"],
    ]
    return [[*python, *map(str, line)] for line in lines]


def main():
    """Write the phantoms, then run each command; stop at the first that fails."""
    if len(sys.argv) > 2 or any(word.startswith("-") for word in sys.argv[1:]):
        raise errors.InputError(
            f"{sys.argv[1]}: the demo takes one optional argument, a new folder (default runs/demo)"
        )
    folder = Path(sys.argv[1] if len(sys.argv) == 2 else "runs/demo").resolve()
    if folder.exists() and any(folder.iterdir()):
        raise errors.InputError(f"{folder}: already holds something; give another folder")
    began = time.monotonic()
    write_phantoms(folder / "phantoms")
    for command in commands(folder):
        print("\n$ " + shlex.join(["python", *command[1:]]), flush=True)
        start = time.monotonic()
        if subprocess.run(command, cwd=Path(__file__).resolve().parents[1]).returncode:
            raise errors.InputError(f"{command[1]}: stopped; what it printed says why")
        print(f"[{time.monotonic() - start:.0f} s]", flush=True)
    print(f"\nAll done in {(time.monotonic() - began) / 60:.1f} minutes. See {folder / 'seg' / 'report.html'}")


if __name__ == "__main__":
    errors.run(main)
