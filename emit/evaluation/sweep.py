"""--sweep NAME=V,V,...: the whole comparison once for each value, in <out>/NAME_V, and a figure of what the values change."""

import math
from dataclasses import replace

from emit.errors import InputError
from emit.evaluation.figures import costing_nothing, save_sweep
from emit.files import write_json
from emit.training.settings import expand_sweep

SWEEPS = {  # name: axis of the figure, whether it is of generated images, whether each value has its own: <generated>/NAME_V
    "n": ("generated images per case", True, False),
    "alpha": ("share of real patches", False, False),
    "patches": ("patches per side", False, False),
    "real_cases": ("real training cases", False, True),
    "guidance": ("guidance weight", True, True),
    "strength": ("control strength", True, True),
}


def plan_runs(settings) -> tuple[str | None, dict]:
    """Return (what is swept, {value: settings of its run}); without a sweep (None, {None: settings})."""
    runs = expand_sweep(settings, tuple(SWEEPS))
    if not settings.sweep:
        return None, runs
    name = settings.sweep[0].partition("=")[0].replace("-", "_")
    _, of_images, own_images = SWEEPS[name]
    if of_images and settings.generated is None:
        raise InputError(f"--sweep {name}: is of generated images; give --generated")
    if own_images and settings.generated is not None:
        runs = {value: replace(run, generated=run.generated / run.out.name) for value, run in runs.items()}
    return name, runs


def write_sweep(folder, name, results) -> None:
    """Write sweep.json and sweep.png: each arm's mean Dice against the setting `name`, and its standard error over cases.

    results: {value: what write_report returned}. Arms share their cases: bars that overlap do not mean "no difference".
    """
    runs, means, errors = list(results.values()), {}, {}
    for arm in runs[0]["arms"]:
        means[arm] = [run["arms"][arm]["dice"]["mean"] for run in runs]
        errors[arm] = [run["arms"][arm]["dice"]["case_spread"] / math.sqrt(run["cases"]) for run in runs]
    label, values = SWEEPS[name][0], list(results)
    write_json(folder / "sweep.json", {"label": label, "values": values, "mean_dice": means, "standard_error": errors}, indent=1)
    with costing_nothing(folder / "sweep.png"):
        save_sweep(folder / "sweep.png", values, means, errors, label, runs[0]["stamp"])
