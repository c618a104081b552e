"""Look into a checkpoint, tell what made it, or write it in another layout.

python -m emit.checkpoints inspect FILE
python -m emit.checkpoints lineage FILE --card CARD.md
python -m emit.checkpoints export FILE --to diffusers FOLDER
python -m emit.checkpoints export FILE --to single FILE2
"""

import argparse
from pathlib import Path

from emit.checkpoints import Checkpoint, read, write_diffusers, write_single
from emit.checkpoints.reader import read_tensors
from emit.checkpoints.sizes import version_of
from emit.errors import run
from emit.files import sha256, write_text
from emit.ledger import open_ledger
from emit.lineage import describe_lineage


def inspect(source: Path, checkpoint: Checkpoint) -> None:
    """Print what a file or folder holds."""
    print(f"version     {version_of(checkpoint.sizes)}")
    print(f"prediction  {checkpoint.prediction or 'not stated: --prediction eps or v'}")
    for part, tensors in checkpoint.parts.items():
        parameters = sum(tensor.numel() for tensor in tensors.values())
        dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
        print(f"part        {part}: {len(tensors)} tensors, {parameters:,} parameters, {', '.join(dtypes)}")
        print(f"sizes       {checkpoint.sizes[part]}")
    if checkpoint.ema is not None:
        taken = "their moving average (--ema)" if checkpoint.ema else "as trained; --ema takes their moving average"
        print(f"weights     {taken}")
    shown = ", ".join(checkpoint.dropped[:14]) + ", ..." * (len(checkpoint.dropped) > 14)
    print(f"dropped     {len(checkpoint.dropped)}{': ' * bool(shown)}{shown}")
    print(f"sha256      {sha256(source)}")
    for entry in checkpoint.header.get("ancestry", []):
        print(f"ancestry    {entry['stage']}: {entry['cases']:,} cases")


def export(source: Path, checkpoint: Checkpoint, layout: str, target: Path) -> None:
    """Write a checkpoint's parts in a layout, with its header and its ledger."""
    ledger = open_ledger(source, checkpoint.header)
    if layout == "single":
        write_single(target, checkpoint.parts, {**checkpoint.header, "config": checkpoint.config})
    else:
        write_diffusers(target, checkpoint.parts, checkpoint.config, checkpoint.header)
    ledger.write(target.parent if layout == "single" else target)
    print(f"{target}: {', '.join(checkpoint.parts)}")


def main():
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser("python -m emit.checkpoints", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=("inspect", "lineage", "export"))
    parser.add_argument("file", type=Path, help="a file or a diffusers folder")
    parser.add_argument("--to", nargs=2, metavar=("LAYOUT", "TARGET"), help="diffusers FOLDER or single FILE to write")
    parser.add_argument("--card", type=Path, help="file to write lineage to, as a model card in Markdown")
    parser.add_argument("--ema", action="store_true", help="take the UNet's moving average (model_ema.*)")
    parser.add_argument("--prediction", choices=("eps", "v"), help="what the UNet predicts, if the file does not say")
    arguments = parser.parse_args()
    layout, target = arguments.to or (None, None)
    if arguments.command == "lineage" and not arguments.to:
        text = describe_lineage(arguments.file)
        if arguments.card:
            write_text(arguments.card, text)
        return print(text, end="")
    header = read_tensors(arguments.file)[1] if arguments.file.suffix == ".safetensors" else {}
    if (layout in ("diffusers", "single")) != (arguments.command == "export") or arguments.card:
        parser.error("export takes FILE --to diffusers FOLDER or --to single FILE2; lineage FILE --card OUT; inspect FILE alone")
    if arguments.command == "inspect" and "classes" in header:  # stage 3's, which is no part of Stable Diffusion
        return print(*(f"{name:<11} {header[name]}" for name in sorted(header)), sep="\n")
    checkpoint = read(arguments.file, arguments.ema, arguments.prediction)
    if arguments.command == "inspect":
        inspect(arguments.file, checkpoint)
    else:
        export(arguments.file, checkpoint, layout, Path(target))


if __name__ == "__main__":
    run(main, again=None)
