"""The whole method on phantoms: prints and runs the four commands in order.     python -m emit.demo [FOLDER]

FOLDER: new, or one where an earlier demo was stopped, which goes on (default runs/demo). Everything is the scripts' `demo`
preset: phantom anatomy of 64 pixels in the public folder layouts, minutes on two cores.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from emit import errors
from emit.claims import claim
from emit.data.phantom import write_phantoms

ARMS = "baseline,deepstack,ours,ours+deepstack,mixed,mixed+deepstack,oracle mixed+deepstack"  # patches, whole images
CORES = os.cpu_count() or 1


def commands(folder):
    """Return the four commands of a whole run, as lists of words, on the phantoms in folder/phantoms."""
    phantoms, pretrained, generated = folder / "phantoms", folder / "pretrain", folder / "generated"
    model = ["--model", pretrained / "model.safetensors", "--hed", pretrained / "hed.safetensors"]
    pictures, fresh = phantoms / "radiology_ai", ["--test", phantoms / "BUSI_test", "--oracle", phantoms / "BUSI_oracle"]
    lines = [
        ["train_pretrain.py", "--data", pictures, "--boundaries", phantoms / "boundaries", "--out", pretrained],
        ["train_finetune.py", "--data", phantoms / "BUSI", *model, "--out", folder / "finetune"],
        ["-m", "emit.generate", *model, "--finetuned", folder / "finetune", "--tissue", pictures, "--out", generated],
        ["train_seg.py", "--generated", generated, *fresh, "--arms", ARMS, "--out", folder / "seg"],
    ]
    return [[sys.executable, *map(str, line), "--resume"] for line in lines]


def call(command, processes, log):
    """Run one command in so many processes and wait for their ends; what stops the demo stops them, after they have saved.

    The first prints here, the others into the file `log`. With several, each has its share of the cores.
    """
    threads = {"OMP_NUM_THREADS": str(CORES // processes)} if processes > 1 else {}
    place = {"cwd": Path(__file__).resolve().parents[1], "start_new_session": True}  # the demo alone gets a Ctrl-C
    children = []
    try:
        with open(log, "a") as file:
            for where in [{}, *[{"stdout": file, "stderr": file}] * (processes - 1)]:
                children.append(subprocess.Popen(command, env=os.environ | threads, **place, **where))
        codes = [child.wait() for child in children]
    except errors.Stopped as stopped:
        for child in children:
            child.send_signal(stopped.args[0])
        for child in children:
            child.wait()
        raise
    if any(codes):
        name = " ".join(command[1:3]) if command[1] == "-m" else command[1]
        raise errors.InputError(f"{name}: stopped; what it printed {'here' if codes[0] else f'in {log}'} says why")


def main():
    """Write the phantoms, then run each command; stop at the first that fails."""
    parser = argparse.ArgumentParser("python -m emit.demo", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/demo"))
    folder = parser.parse_args().folder.resolve()
    phantoms, began = folder / "phantoms", time.monotonic()
    found = {path.name for path in folder.glob("*")}
    if found - {".phantoms.tmp", ".lock"} and not phantoms.is_dir():
        raise errors.InputError(f"{folder}: already holds something that is no demo; give another folder")
    with claim(folder):
        if not phantoms.is_dir():
            write_phantoms(phantoms, fresh=300)
        for number, command in enumerate(commands(folder)):
            processes = min(CORES, 3) if number else 1  # of stage 1 the parts follow each other; then come three folds
            at_once = f"    # {processes} at once" if processes > 1 else ""
            print("\n$ " + shlex.join(["python", *command[1:]]) + at_once, flush=True)
            start = time.monotonic()
            call(command, processes, folder / "others.log")
            print(f"[{time.monotonic() - start:.0f} s]", flush=True)
    print(f"\nAll done in {(time.monotonic() - began) / 60:.1f} minutes. See {folder / 'seg' / 'report.html'}")


if __name__ == "__main__":
    errors.run(main, again="")
