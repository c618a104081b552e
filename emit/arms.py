"""The arms of the comparison: what each one changes, in a line. Steps, images per step and everything else are equal."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from emit.data.augment import draw_patches
from emit.data.cache import Memo
from emit.data.images import decode
from emit.errors import InputError
from emit.ledger import find_leaks


def all_real(count, size, progress, settings, rng):
    """Take every pixel from the real image."""
    return torch.ones(count, 1, 1, 1, dtype=torch.bool)


def by_patch(count, size, progress, settings, rng):
    """Take a share alpha of the patches from the real image, the others from the generated one  (paper, Algorithm 1)."""
    patch = size // settings.patches
    while size % patch:
        patch -= 1
    return draw_patches(count, (size, size), settings.alpha, patch, rng)


def by_image(count, size, progress, settings, rng):
    """Take a share alpha of the images real, the others generated."""
    return (torch.rand(count, generator=rng) < settings.alpha)[:, None, None, None]


def none_real(count, size, progress, settings, rng):
    """Take every image generated."""
    return ~all_real(count, size, progress, settings, rng)


def generated_first(count, size, progress, settings, rng):
    """Take generated images for the first half of the steps, real ones after it."""
    return (
        all_real(count, size, progress, settings, rng)
        if progress >= 0.5
        else none_real(count, size, progress, settings, rng)
    )


@dataclass(frozen=True)
class Arm:
    """augmentation: name in augment.ARMS.  real: which pixels stay real.  copies: copies of real images as "generated"."""

    augmentation: str = "baseline"
    real: object = all_real
    copies: bool = False

    @property
    def needs_generated(self):
        """Whether the arm reads generated images."""
        return self.real is not all_real and not self.copies

    def depends_on(self, name):
        """Whether a setting that a sweep varies can change the arm."""
        if name in ("n", "guidance", "strength"):
            return self.needs_generated
        return name == "real_cases" or (name == "alpha" and self.real in (by_patch, by_image)) or (
            name == "patches" and self.real is by_patch
        )


NAMED = 10  # leaked cases that an error spells out
SINGLES = ("contrast", "gamma", "brightness", "noise", "resolution", "mirror", "rotate", "scale")
ARMS = {
    "baseline": Arm(),
    **{name: Arm(name) for name in SINGLES},
    "deepstack": Arm("deepstack"),
    "ours": Arm(real=by_patch),
    "ours+deepstack": Arm("deepstack", by_patch),
    "nnunet": Arm("nnunet"),
    "ours+nnunet": Arm("nnunet", by_patch),
    "mixed": Arm(real=by_image),
    "generated only": Arm(real=none_real),
    "generated first": Arm(real=generated_first),
    "generated first+deepstack": Arm("deepstack", generated_first),
    "copies": Arm(real=by_patch, copies=True),
}
PAPER = ("baseline", *SINGLES, "deepstack", "ours", "ours+deepstack")
CLASSICAL = (*SINGLES, "deepstack", "nnunet")


def choose_arms(names, generated):
    """Return the names of the arms asked for: "paper", "all" or a list; the baseline comes first, always."""
    wanted = {("paper",): PAPER, ("all",): tuple(ARMS)}.get(tuple(names), tuple(names))
    unknown = [name for name in wanted if name not in ARMS]
    if unknown:
        raise InputError(f"--arms: {unknown[0]} is unknown; choose from paper, all, {', '.join(ARMS)}")
    if generated is None and any(ARMS[name].needs_generated for name in wanted):
        if names not in (("paper",), ("all",)):
            raise InputError(
                "--generated: is required by arms with generated images; give emit.generate's output folder"
            )
        wanted = [name for name in wanted if not ARMS[name].needs_generated]
    return list(dict.fromkeys(("baseline", *wanted)))


class Generated:
    """The generated images of one fold, by case.  images(case ids, rng): one random image of each, (B, 1, S, S)."""

    def __init__(self, folder, size, limit=None):
        self.folder = Path(folder)
        self.manifest = manifest = self.folder / "manifest.jsonl"
        if not manifest.exists():
            raise InputError(f"{manifest}: is missing; run python -m emit.generate for this fold first")
        self.lines = [json.loads(line) for line in manifest.read_text().splitlines()]
        self.by_case = {}
        for number, line in enumerate(self.lines):
            if line["size"] != size:
                raise InputError(
                    f"{manifest}: images are {line['size']} pixels wide, not {size}; give --size {line['size']}"
                )
            if limit is None or line["index"] < limit:
                self.by_case.setdefault(line["case"], []).append(number)
        if not (self.folder / "ledger.json").exists():
            raise InputError(f"{self.folder / 'ledger.json'}: is missing, so leaks cannot be ruled out; generate this fold anew")
        self.ledger = json.loads((self.folder / "ledger.json").read_text())
        self.pictures = Memo(self._read)

    def images(self, cases, rng):
        """Draw one generated image for each case id."""
        missing = [case for case in cases if case not in self.by_case]
        if missing:
            raise InputError(f"{self.folder}: holds no image for case {missing[0]}; generate with the same splits")
        chosen = [self.by_case[case] for case in cases]
        draws = torch.rand(len(cases), generator=rng).tolist()
        return self.pictures([numbers[int(draw * len(numbers))] for numbers, draw in zip(chosen, draws, strict=True)])

    def pairs(self):
        """Yield (case id, image (1, 1, S, S), mask (S, S)) of every generated image that is used."""
        for number in sorted(n for numbers in self.by_case.values() for n in numbers):
            line = self.lines[number]
            yield line["case"], self.pictures([number]), decode(self.folder / "masks" / line["file"])

    def refuse_leaks(self, cases):
        """Raise InputError where a test case was seen by the model that made the images, or by one of its ancestors."""
        leaks = find_leaks(self.ledger, cases)
        if leaks:
            named = ", ".join(f"{case} in {stage} as {name}" for case, stage, name in leaks[:NAMED])
            more = f" and {len(leaks) - NAMED} more" if len(leaks) > NAMED else ""
            raise InputError(
                f"{self.folder}: test cases were seen by the generator or what it came from: {named}{more}; "
                "train without the test cases, on the same splits"
            )

    def refuse_others(self, cases):
        """Raise InputError where the generator was fine-tuned on the fold with more cases than these, which it so sees."""
        known = {case.id for case in cases}
        more = [case for case in self.by_case if case not in known]
        if more:
            raise InputError(
                f"{self.folder}: holds images of {len(more)} training cases that this run leaves out, {more[0]} among them; "
                "fine-tune and generate with the same --real-cases and splits"
            )

    def _read(self, numbers):
        files = [self.folder / "images" / self.lines[number]["file"] for number in numbers]
        pictures = [torch.as_tensor(decode(file) / 127.5 - 1, dtype=torch.float32) for file in files]
        return torch.stack([(p.mean(-1) if p.ndim == 3 else p)[None] for p in pictures])  # colour: made with --no-grey
