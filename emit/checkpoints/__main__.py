"""Look into a checkpoint, or write it in another layout.

python -m emit.checkpoints inspect FILE
python -m emit.checkpoints export FILE --to diffusers FOLDER
python -m emit.checkpoints export FILE --to single FILE2
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from emit.checkpoints import read, write_diffusers, write_single
from emit.checkpoints.configs import KINDS
from emit.errors import run
from emit.files import sha256
from emit.ledger import open_ledger


def inspect(checkpoint):
    """Print what a checkpoint holds."""
    prediction = {"unknown": "not stated: --prediction eps or v"}.get(checkpoint.prediction, checkpoint.prediction)
    print(f"layout      {checkpoint.layout}\nversion     {checkpoint.version}\nnumbers     {checkpoint.dtype}")
    print(f"prediction  {prediction}")
    for part, tensors in checkpoint.parts.items():
        parameters = sum(tensor.numel() for tensor in tensors.values())
        print(f"part        {part}: {len(tensors)} tensors, {parameters:,} parameters")
    if checkpoint.ema is not None:
        taken = "their moving average (--ema)" if checkpoint.ema else "as trained; --ema takes their moving average"
        print(f"weights     {taken}")
    for part in [part for part in KINDS if part in checkpoint.config]:
        public, own = json.loads(json.dumps([asdict(KINDS[part]()), checkpoint.config[part]]))  # JSON knows no tuples
        differ = ", ".join(f"{name} {value}" for name, value in own.items() if public[name] != value)
        print(f"sizes       {part}: Stable Diffusion 1.5's{' but ' * bool(differ)}{differ}")
    shown = ", ".join(checkpoint.dropped[:14]) + ", ..." * (len(checkpoint.dropped) > 14)
    print(f"dropped     {len(checkpoint.dropped)}{': ' * bool(shown)}{shown}")
    for file in checkpoint.files:
        print(f"sha256      {sha256(file)}  {file}")
    for entry in checkpoint.header.get("ancestry", []):
        print(f"ancestry    {entry['stage']}: {entry['cases']:,} cases")
    for source in checkpoint.header.get("made_from", []):
        print(f"made from   {source['file']}")


def export(source, checkpoint, layout, target):
    """Write a checkpoint's parts in a layout, with its header, its ledger and, under "made_from", its files."""
    ledger = open_ledger(source, checkpoint.header)
    made_from = [{"file": file.name, "sha256": sha256(file)} for file in checkpoint.files]
    header = {**checkpoint.header, "made_from": [*checkpoint.header.get("made_from", []), *made_from]}
    if layout == "single":
        write_single(target, checkpoint.parts, {**header, "config": checkpoint.config})
        left = []
    else:
        left = write_diffusers(target, checkpoint.parts, checkpoint.config, header)
    ledger.write(target.parent if layout == "single" else target)
    print(f"{target}: {', '.join(part for part in checkpoint.parts if part not in left)}")
    if left:
        print(f"left out, for want of a place in this layout: {', '.join(left)}")


def main():
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser("python -m emit.checkpoints", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=("inspect", "export"))
    parser.add_argument("file", type=Path, help="a file or a diffusers folder")
    parser.add_argument("--to", nargs=2, metavar=("LAYOUT", "TARGET"), help="diffusers FOLDER or single FILE to write")
    parser.add_argument("--ema", action="store_true", help="take the UNet's moving average (model_ema.*)")
    parser.add_argument("--prediction", choices=("eps", "v"), help="what the UNet predicts, if the file does not say")
    arguments = parser.parse_args()
    layout, target = arguments.to or (None, None)
    if (layout in ("diffusers", "single")) != (arguments.command == "export"):
        parser.error("export takes FILE --to diffusers FOLDER or --to single FILE2; inspect takes FILE alone")
    checkpoint = read(arguments.file, arguments.ema, arguments.prediction)
    if arguments.command == "inspect":
        inspect(checkpoint)
    else:
        export(arguments.file, checkpoint, layout, Path(target))


if __name__ == "__main__":
    run(main, again=None)
