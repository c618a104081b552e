"""The arms of the comparison: what each one changes, in a line. Steps, images per step and everything else are equal."""

from dataclasses import dataclass

import torch

from emit.data.augment import draw_patches
from emit.errors import InputError

# ---- which pixels of a batch stay real: boolean, (B, 1, S, S) or (B, 1, 1, 1); progress: share of the steps done


def by_patch(count, size, progress, settings, rng):
    """Take a share alpha of the patches from the real image, the others from the generated one  (paper, Algorithm 1)."""
    return draw_patches(count, (size, size), settings.alpha, settings.patches, rng)


def by_image(count, size, progress, settings, rng):
    """Take a share alpha of the images real, the others generated."""
    return torch.rand(count, 1, 1, 1, generator=rng) < settings.alpha


def real_from(start):
    """Return the choice of generated images until the share `start` of the steps is done, and of real ones after it."""

    def choose(count, size, progress, settings, rng):
        return torch.full((count, 1, 1, 1), progress >= start)

    return choose


all_real, generated_first, none_real = real_from(0), real_from(0.5), real_from(1)


@dataclass(frozen=True)
class Arm:
    """augmentation: its name in emit.data.augment.  real: which pixels stay real.  copies: real images as "generated"."""

    augmentation: str = "baseline"
    real: object = all_real
    copies: bool = False

    @property
    def needs_generated(self):
        """Whether the arm reads generated images."""
        return self.real is not all_real and not self.copies


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
    """Return the names of the arms asked for: a list, where "paper" and "all" are sets; the baseline comes first, always.

    generated: the folder of generated images. Without one (None) "paper" and "all" leave out the arms that read them.
    Raises InputError for an unknown name, and where a named arm lacks its generated images.
    """
    sets = {"paper": PAPER, "all": tuple(ARMS)}
    wanted = [arm for name in names for arm in sets.get(name, (name,))]
    unknown = [name for name in wanted if name not in ARMS]
    if unknown:
        raise InputError(f"--arms: {unknown[0]} is unknown; choose from paper, all, {', '.join(ARMS)}")
    possible = [name for name in wanted if generated is not None or not ARMS[name].needs_generated]
    if any(name not in sets and name not in possible for name in names):
        raise InputError("--generated: is missing, and arms read generated images; give emit.generate's output folder")
    return list(dict.fromkeys(("baseline", *possible)))
