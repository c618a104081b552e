"""The arms of the comparison: what each one changes, in a line. Steps, images per step and everything else are equal."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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


def real_from(start, count, size, progress, settings, rng):
    """Take generated images until the share `start` of the steps is done, and real ones after it."""
    return torch.full((count, 1, 1, 1), progress >= start)


all_real, generated_first, none_real = (partial(real_from, start) for start in (0, 0.5, 1))


@dataclass(frozen=True)
class Arm:
    """What one arm changes."""

    augmentation: str = "baseline"  # its name in emit.data.augment
    real: Callable = all_real  # which pixels stay real
    source: str = ""  # of the others: "generated" images, an "oracle" (further labelled ones), "" (the real image once more)


SINGLES = ("contrast", "gamma", "brightness", "noise", "resolution", "mirror", "rotate", "scale")
USES = {"ours": by_patch, "mixed": by_image, "generated first": generated_first, "generated only": none_real}
ORACLES = {"oracle": by_patch, "oracle mixed": by_image, "oracle first": generated_first, "oracle only": none_real}
STACKS = ("baseline", "deepstack", "nnunet")
ARMS = {name: Arm(name) for name in ("baseline", *SINGLES, "deepstack", "nnunet")} | {"copies": Arm(real=by_patch)}
ARMS |= {  # ours, ours+deepstack, ours+nnunet, mixed, ...
    name + (f"+{stack}" if stack != "baseline" else ""): Arm(stack, real, source)
    for source, uses in (("generated", USES), ("oracle", ORACLES))
    for name, real in uses.items()
    for stack in STACKS
}
PAPER = ("baseline", *SINGLES, "deepstack", "ours", "ours+deepstack")
CLASSICAL = (*SINGLES, "deepstack", "nnunet")


def choose_arms(names, generated, oracle=None):
    """Return the names of the arms asked for, the baseline first; "paper" and "all" leave out those that lack their images.

    generated, oracle: the images' folders, or None. InputError for an unknown name, and where a named arm lacks its images.
    """
    sets = {"paper": PAPER, "all": tuple(ARMS)}
    wanted = [arm for name in names for arm in sets.get(name, (name,))]
    unknown = [name for name in wanted if name not in ARMS]
    if unknown:
        raise InputError(f"--arms: {unknown[0]} is unknown; choose from paper, all, {', '.join(ARMS)}")
    folders = {"": "none needed", "generated": generated, "oracle": oracle}
    for name in names:
        if name not in sets and folders[ARMS[name].source] is None:
            raise InputError(f"--{ARMS[name].source}: is missing, and the arm {name} reads its images; give the folder")
    return list(dict.fromkeys(("baseline", *(name for name in wanted if folders[ARMS[name].source] is not None))))
