"""The folder of generated images of one fold: fold<k>/images, masks, edges (PNG), manifest.jsonl and ledger.json.

A line of the manifest is written after its three files and holds what is needed to make the image again. A line of
left_out.jsonl (no file: there is none) names an image that is missing on purpose, and why. Written by the generator, read
by stage 3 and by the report.
"""

import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from emit import ledger
from emit.data.cache import Memo
from emit.data.images import decode
from emit.errors import InputError
from emit.files import write_bytes
from emit.training.loop import read_lines

KINDS = ("images", "masks", "edges")
LINE = {"file": str, "case": str, "index": range(10**4), "prompt": str | list, "size": range(2**16)}  # what is read of one
LINE |= {"sha256": dict.fromkeys(KINDS, str), "compat": list[str] | None, "weights": (None, dict[str, str])}
CLIPPED = 0.95  # [choice] share of black and white pixels from which a picture is no picture


def to_bytes(image):
    """Turn an image in [-1, 1] into 0..255."""
    return (image * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def side_by_side(*images: torch.Tensor) -> Image.Image:
    """Lay images (1, C, H, W) in [-1, 1] side by side, in grey, as a picture that a notebook shows and `.show()` opens."""
    return Image.fromarray(to_bytes(torch.cat([image[0].mean(dim=0).detach() for image in images], dim=1)))


def find_fault(image: torch.Tensor) -> str | None:
    """Say why an image of any shape in [-1, 1] is no picture, None where it is one."""
    if not image.isfinite().all():
        return "holds NaN or infinity"
    levels = to_bytes(image)
    if np.ptp(levels) <= 2:  # [choice] rounding alone makes two levels out of one grey
        return f"is grey level {levels.max()} everywhere"
    clipped = float(np.isin(levels, (0, 255)).mean())
    return f"is black or white on {clipped:.0%} of its area" if clipped >= CLIPPED else None


def save_pictures(folder, name, image, mask, edge):
    """Write an image's three 8-bit PNG files; return the heads of their SHA-256, by kind."""
    digests = {}
    for kind, array in zip(KINDS, (image, mask, edge), strict=True):
        memory = io.BytesIO()
        Image.fromarray(array).save(memory, "PNG")
        digests[kind] = _digest(memory.getvalue())
        write_bytes(folder / kind / name, memory.getvalue())
    return digests


def _digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


def read_manifest(folder: Path) -> list[dict]:
    """Return the lines of a fold's manifest as dicts ([]: none yet), without a last line that a kill cut off."""
    path = Path(folder) / "manifest.jsonl"
    lines = read_lines(path, kind=LINE)
    bad = [name for name, count in Counter(line["file"] for line in lines).items() if count > 1 or Path(name).name != name]
    if bad:
        raise InputError(f"{path}: {bad[0]} is twice in it, or no file of this folder; remove its line, and it is made again")
    return lines


def read_left_out(folder: Path, within: int = 10**4) -> dict[tuple, dict]:
    """Return {(case, index): line} of the images, with an index below `within`, that were left out, as they were no pictures."""
    lines = read_lines(Path(folder) / "left_out.jsonl", kind={"case": str, "index": range(10**4), "fault": str})
    return {(line["case"], line["index"]): line for line in lines if line["index"] < within}


def is_whole(folder, line):
    """Tell whether the three files of a line are there as they were written."""
    files = {kind: Path(folder) / kind / line["file"] for kind in KINDS}
    return all(file.is_file() and _digest(file.read_bytes()) == line["sha256"][kind] for kind, file in files.items())


class Generated:
    """The generated images of one fold: of each case the first `limit`, or all."""

    def __init__(self, folder: Path, limit: int | None = None):
        self.folder, self.manifest = Path(folder), Path(folder) / "manifest.jsonl"
        self.lines = [line for line in read_manifest(folder) if limit is None or line["index"] < limit]
        if not self.lines:
            raise InputError(f"{self.manifest}: is missing or empty; run python -m emit.generate for this fold first")
        self._refuse_gaps(read_left_out(folder) if limit is None else read_left_out(folder, limit))
        for line in self.lines:
            if not is_whole(folder, line):
                raise InputError(f"{self.folder}: {line['file']} is missing or changed; run emit.generate --resume")
        self._use(range(len(self.lines)))
        self.ledger = ledger.read(self.folder / "ledger.json")
        self.pictures = Memo(self._read)

    def _refuse_gaps(self, left_out):
        """Refuse a set that lacks an image without a reason, as one whose making was broken off, or all of a case."""
        there = {(line["case"], line["index"]) for line in self.lines}
        listed, cases = there | left_out.keys(), {case for case, _ in there}
        for index in range(1 + max(index for _, index in listed)):
            for case in sorted({case for case, _ in listed}):
                if (case, index) not in listed:
                    raise InputError(f"{self.manifest}: image {index} of case {case} is missing; run emit.generate --resume")
                if case not in cases:
                    words = f"every image of case {case} was left out; run emit.generate --resume with a higher --n"
                    raise InputError(f"{self.folder}: {words}")

    def draw(self, cases: list[str], rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw one generated image for each case id: images (B, 1, S, S) in [-1, 1] and their own masks (B, S, S)."""
        missing = [case for case in cases if case not in self.by_case]
        if missing:
            raise InputError(f"{self.folder}: holds no image for case {missing[0]}; generate with the same splits")
        draws = torch.rand(len(cases), generator=rng).tolist()
        chosen = zip((self.by_case[case] for case in cases), draws, strict=True)
        pictures = self.pictures([numbers[int(draw * len(numbers))] for numbers, draw in chosen])  # (B, 2, S, S)
        return pictures[:, :1], pictures[:, 1].long()

    def keep(self, scores, share: float) -> list[int]:
        """Use `share` of each case's images from now on, those with the highest scores, at least one; return which.

        Ranked within a case: hard cases keep as many as easy ones. Of equals the first.
        """
        kept = []
        for numbers in self.by_case.values():
            ranked = sorted(numbers, key=lambda number: -scores[number])
            kept += ranked[: max(1, round(share * len(ranked)))]
        self._use(sorted(kept))
        return self.numbers

    def _use(self, numbers):
        self.numbers, self.by_case = list(numbers), {}
        for number in self.numbers:
            self.by_case.setdefault(self.lines[number]["case"], []).append(number)

    def pairs(self):
        """Yield (case id, image (1, 1, S, S), mask (S, S)) of every generated image in use."""
        for number in self.numbers:
            image, mask = self.pictures([number])[0]
            yield self.lines[number]["case"], image[None, None], mask.numpy().astype(np.uint8)

    def _read(self, numbers):
        (number,) = numbers
        image, mask = (decode(self.folder / kind / self.lines[number]["file"]) for kind in ("images", "masks"))
        return torch.as_tensor(np.stack([image / 127.5 - 1, mask])).float()[None]  # (1, 2, S, S)
