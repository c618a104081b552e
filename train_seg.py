"""Stage 3: segmenters on every arm, cross-validated: same steps, same images per step, one code path.

Every fold has a training, a validation and a test part; the weights are chosen on validation and the test part is read
once. Cases are scored on their native grid against the original mask, volumes as a whole.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from emit import errors
from emit.arms import ARMS, CLASSICAL, Generated, choose_arms
from emit.compat import HABITS, foreign, read_compat
from emit.data.augment import augment, merge
from emit.data.cache import Pictures
from emit.data.geometry import unfit
from emit.data.splits import select, write_splits
from emit.evaluation.fidelity import describe_generated, mask_fidelity
from emit.evaluation.illustrate import run_folder
from emit.evaluation.metrics import score_case, score_overlap
from emit.evaluation.report import find_habits, write_report, write_sweep
from emit.files import write_atomic
from emit.networks.segmenter import Segmenter, SegmenterConfig, dice_ce_loss
from emit.seeds import seed_from
from emit.training import distributed
from emit.training.config import parse, save_config, setting, vary
from emit.training.dataset import DataSettings, choose_training, open_data
from emit.training.loop import Run

SWEEPS = {  # what --sweep takes, and the axis of its figure
    "n": "generated images per case",
    "alpha": "share of real patches",
    "patches": "patches per side",
    "real_cases": "real training cases",
    "guidance": "guidance weight",
    "strength": "control strength",
}

OF_IMAGES = ("n", "guidance", "strength")  # without --generated they change nothing
OF_FOLDERS = ("guidance", "strength", "real_cases")  # each value has its own images, in <generated>/NAME_VALUE


@dataclass(frozen=True, kw_only=True)
class Settings(DataSettings):
    """Stage 3 of EMIT-Diff: the comparison. A labelled set and generated images in; table, statistics, figures out."""

    generated: Path | None = setting(None, "[choice] none: real arms only", help="output folder of emit.generate")
    out: Path = setting(source="[choice] your folder", help="the run folder, new or with --resume")
    arms: tuple[str, ...] = setting(
        ("all",), "[choice] every arm; [paper]: --arms paper", help="all, paper, or names: " + ", ".join(ARMS)
    )
    seeds: int = setting(
        1, "[choice] the demo's minutes", paper=3, help="repetitions with other weights, order and draws", low=1
    )
    variant: Literal["attention", "plain", "residual"] = setting("attention", "[paper]", help="kind of U-Net")
    channels: tuple[int, ...] = setting(
        (8, 16, 32, 64), "[choice] small images; [authors' code]: six stages", paper=(16, 32, 64, 128, 128, 256), help="widths"
    )
    steps: int = setting(150, "[choice] seconds; [paper]: 100 epochs", paper=2000, help="steps, the same in every arm", low=1)
    batch: int = setting(8, "[authors' code]", help="images per step, the same in every arm", low=1)
    lr: float = setting(3e-3, "[choice] few steps; [authors' code]: 1e-3", paper=1e-3, help="learning rate of AdamW", above=0)
    warmup: int = setting(10, "[choice] stable start", help="steps of linear warm-up", low=0)
    schedule: Literal["cosine", "constant"] = setting("cosine", "[choice] few steps", help="learning rate after it")
    clip: float | None = setting(1.0, "[choice] no step runs away", help="largest gradient norm", above=0)
    weight_decay: float = setting(0.01, "[choice] AdamW's own", help="of AdamW", low=0)
    alpha: float = setting(0.6, "[paper]", help="share of real patches (patch merging) or images (mixing)", low=0, high=1)
    patches: int = setting(6, "[paper] 384 / 64", help="patches per side; the size is rounded down to divide the image", low=1)
    n: int | None = setting(None, "[paper] all there are", help="generated images used per case", low=1)
    select_every: int = setting(
        25, "[choice] few steps; [authors' code]: every epoch", paper=100, help="steps between looks at validation", low=1
    )
    tolerance: float = setting(2.0, "[choice] about a contour's width", help="of NSD, in mm, or pixels without spacing", low=0)
    level: float = setting(0.05, "[choice] convention", help="level of tests and intervals", above=0, below=1)
    compat: tuple[str, ...] = setting(
        (), "[authors' code]", help="diffboost, or diffboost:" + ",".join(HABITS["train_seg.py"])
    )
    sweep: tuple[str, ...] = setting(
        (), "[choice] none", help="NAME=V,V,...: the comparison once for each value, and a figure; " + ", ".join(SWEEPS)
    )
    device: str = setting("cpu", "[choice] demo machine", paper="cuda", help="torch device", may_change=True)
    resume: bool = setting(False, "[choice] explicit", help="go on with the run in --out", may_change=True)


def build_segmenter(classes, settings):
    """Return a new segmenter of the settings' sizes, on their device."""
    config = SegmenterConfig(1, len(classes), settings.channels, variant=settings.variant)
    return Segmenter(config).to(settings.device)


def train_segmenter(arm, parts, generated, classes, settings, compat, folder, seed):
    """Train one segmenter; return it with the weights that did best on the validation part."""
    training, validation = (Pictures(part, settings.size) for part in parts[:2])
    torch.manual_seed(seed)  # of the initial weights
    network = build_segmenter(classes, settings)
    run = Run(
        folder,
        {"segmenter": network},
        lr=settings.lr,
        steps=settings.steps,
        batch=settings.batch,
        seed=seed,
        warmup=settings.warmup,
        schedule=settings.schedule,
        clip=settings.clip,
        weight_decay=settings.weight_decay,
        shuffle="no_shuffle" not in compat,
        log_every=settings.select_every,
        save_every=settings.steps,
        resume=settings.resume,
        name=f"{folder.parent.name}/{folder.name}",
    )
    best = -1.0
    if run.done == 0:
        write_atomic(folder / "validation.jsonl", lambda temporary: temporary.write_text(""))
    for step, indices in run.steps(training):
        image, mask = training.image(indices), training.mask(indices)
        real = arm.real(len(image), settings.size, step / settings.steps, settings, run.rng)
        other = generated.images([training.cases[i].id for i in indices], run.rng) if arm.needs_generated else image
        if "mix_logits" in compat:
            logits, mask = mix_logits(network, arm, image, other, real, mask, run.rng)
        else:
            image, mask = augment(merge(image, other, real), mask, arm.augmentation, run.rng)
            logits = network(image.to(run.device))
        run.update(dice_ce_loss(logits, mask.to(run.device)))
        if run.due(settings.select_every) or run.done == settings.steps:
            dice = validate(network, validation, run.device)
            with open(folder / "validation.jsonl", "a") as file:
                file.write(json.dumps({"step": step, "dice": dice}) + "\n")
            if dice >= best:
                best = dice
                write_atomic(folder / "best.pt", lambda temporary: torch.save(network.state_dict(), temporary))
    network.load_state_dict(torch.load(folder / "best.pt", weights_only=True))
    return network.eval()


def mix_logits(network, arm, image, other, real, mask, rng):
    """Mix what two forward passes find, as the authors' code does, not the inputs; same augmentation for both."""
    device = next(network.parameters()).device
    again = rng.clone_state()
    image, warped = augment(image, mask, arm.augmentation, rng)
    other, _ = augment(other, mask, arm.augmentation, again)
    return torch.where(real.to(device), network(image.to(device)), network(other.to(device))), warped


@torch.no_grad()
def validate(network, pictures, device):
    """Return the mean Dice over the validation cases and classes at training size; volumes count whole, as in the test."""
    network.eval()
    whole = {}
    for i, case in enumerate(pictures.cases):
        found = network(pictures.image([i]).to(device)).argmax(1)[0].cpu().numpy()
        whole.setdefault(case.volume or case.id, []).append((found, pictures.mask([i])[0].numpy()))
    network.train()
    pairs = [map(np.stack, zip(*slices, strict=True)) for slices in whole.values()]
    labels = range(1, network.config.classes)
    scores = [score_overlap(found == label, mask == label)["dice"] for found, mask in pairs for label in labels]
    return float(np.mean(scores)) if scores else 0.0


@torch.no_grad()
def predict(network, cases, size, device):
    """Segment each case on its native grid: {volume or case id: (prediction, target, spacing)}; volumes are stacked."""
    pictures, found = Pictures(cases, size), {}
    for i, case in enumerate(cases):
        target = case.mask
        logits = unfit(network(pictures.image([i]).to(device))[0].cpu(), target.shape)
        found.setdefault(case.volume or case.id, []).append((case, logits.argmax(0).numpy(), target))
    whole = {}
    for name, slices in found.items():
        slices.sort(key=lambda entry: entry[0].index)
        case, prediction, target = slices[0]
        spacing = case.spacing
        if case.volume is not None:
            prediction, target = (np.stack([entry[k] for entry in slices]) for k in (1, 2))
            spacing = None if spacing is None else (case.thickness, *spacing)
        whole[name] = prediction, target, spacing
    return whole


def score_fold(network, cases, classes, settings, compat, folder):
    """Score the test cases: (rows, rows under the fake-pixel policy), one row per case and class; keep the predictions."""
    rows, fake = [], []
    found = predict(network, cases, settings.size, settings.device)
    kept = {name: prediction.astype(np.uint8) for name, (prediction, _, _) in found.items()}
    write_atomic(folder / "predictions.npz", lambda temporary: save_arrays(temporary, kept))
    for name, (prediction, target, spacing) in found.items():
        for kept, pixel in ((rows, "fake_pixel" in compat), (fake, True)):
            scored = score_case(prediction, target, classes, spacing, settings.tolerance, fake_pixel=pixel)
            kept += [{"case": name, **row} for row in scored]
    return rows, fake


def save_arrays(path, arrays):
    """Write named arrays to one compressed file."""
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


@torch.no_grad()
def measure_fidelity(network, generated, classes, device):
    """Return one row per generated image: does the baseline's segmenter find the mask that was asked for?"""
    _, images, masks = zip(*generated.pairs(), strict=True)
    return mask_fidelity(images, masks, lambda image: network(image.to(device)).argmax(1)[0].cpu().numpy(), classes)


def run_arm(name, fold, seed, cases, split, generated, settings, compat, known=None):
    """Train and score one (arm, fold, seed); return its rows. known: the folder of a run that did the very same.

    A resumed run reads the scores that it has.
    """
    folder = run_folder(settings.out, name, fold, seed)
    scores = folder / "scores.json"
    if scores.exists() and settings.resume:
        return json.loads(scores.read_text())
    where = {"arm": name, "fold": fold, "seed": seed}
    if known is not None:
        same = run_folder(known, name, fold, seed)
        shutil.copytree(same, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("state.pt", "scores.json"))
        found = json.loads((same / "scores.json").read_text())
        network = build_segmenter(cases.classes, settings).eval()
        network.load_state_dict(torch.load(folder / "best.pt", weights_only=True))
    else:
        training = choose_training(cases, split, settings)
        validation, test = (select(cases.cases, ids) for ids in (split.validation, split.test))
        if "select_on_test" in compat:
            validation = test
        number = seed_from(settings.seed, "segmenter", fold, seed)  # the same weights and order in every arm
        parts = (training, validation)
        network = train_segmenter(ARMS[name], parts, generated, cases.classes, settings, compat, folder, number)
        rows, fake = score_fold(network, test, cases.classes, settings, compat, folder)
        found = {"rows": [where | row for row in rows], "fake_pixel_rows": [where | row for row in fake]}
    if name == "baseline" and generated is not None:  # also of a known run, whose generated images were others
        found["fidelity"] = [where | row for row in measure_fidelity(network, generated, cases.classes, settings.device)]
    write_atomic(scores, lambda temporary: temporary.write_text(json.dumps(found)))
    return found


def look_for_copies(generated, cases, split, settings):
    """Describe a fold's generated images beside the training images of their own fold and the unseen test images."""
    training = choose_training(cases, split, settings)
    seen, unseen = (Pictures(part, settings.size) for part in (training, select(cases.cases, split.test)))
    number = {case.id: place for place, case in enumerate(training)}
    kept = [(number[case], image[0, 0]) for case, image, _ in generated.pairs() if case in number]
    sources, images = zip(*kept, strict=True)
    real = ([pictures.image([i])[0, 0] for i in range(len(pictures))] for pictures in (seen, unseen))
    return describe_generated(images, sources, *real)


def open_generated(settings, cases, splits):
    """Return each fold's generated images (None: there are none), after looking for leaks and for cases not chosen here."""
    if settings.generated is None:
        return [None] * len(splits)
    generated = [Generated(settings.generated / f"fold{f}", settings.size, settings.n) for f in range(len(splits))]
    for source, split in zip(generated, splits, strict=True):
        source.refuse_leaks(select(cases.cases, split.test))
        source.refuse_others(choose_training(cases, split, settings))
    return generated


def compare(settings, cases, splits, generated, compat, known=None, known_arms=()):
    """Train and score every arm on every fold and seed, then write the report; return its results.

    known: the folder of an earlier run, whose scores hold for known_arms as well.
    """
    manifests = {f"fold{fold}": source.manifest for fold, source in enumerate(generated) if source is not None}
    save_config(settings.out, settings, manifests)
    write_splits(settings.out / "splits.json", splits)
    found = {"rows": [], "fake_pixel_rows": [], "fidelity": []}
    for fold, split in enumerate(splits):
        for seed in range(settings.seeds):
            for name in choose_arms(settings.arms, settings.generated):
                earlier = known if name in known_arms else None
                one = run_arm(name, fold, seed, cases, split, generated[fold], settings, compat, earlier)
                for table, rows in found.items():
                    rows += one.get(table, [])
    if settings.generated is not None:
        pairs = zip(generated, splits, strict=True)
        found["beside_real"] = [look_for_copies(source, cases, split, settings) for source, split in pairs]
    return write_report(settings.out, cases=cases, splits=splits, settings=settings, classical=CLASSICAL, **found)


def main():
    """Compare the arms, once for each value of a sweep."""
    settings = parse(Settings)
    settings = replace(settings, device=str(distributed.start(settings.device)))
    compat = read_compat(settings.compat, "train_seg.py")
    name = settings.sweep[0].partition("=")[0].replace("-", "_") if settings.sweep else None
    runs = vary(settings, tuple(SWEEPS))
    if name in OF_IMAGES and settings.generated is None:
        raise errors.InputError(f"--sweep {name}: is of generated images; give --generated")
    if name in OF_FOLDERS and settings.generated is not None:
        runs = {v: replace(run, generated=run.generated / run.out.name) for v, run in runs.items()}
    if settings.patches > settings.size:
        raise errors.InputError(f"--patches: is {settings.patches}, more than the {settings.size} pixels; give fewer")
    for run in runs.values():
        missing = set(foreign(settings.compat, "train_seg.py")) - set(find_habits(run))
        if missing:
            name = sorted(missing)[0]
            raise errors.InputError(f"--compat: {name} is emit.generate's, and {run.generated} was not made with it; generate anew")
    cases, splits = open_data(settings)
    for run in runs.values():  # too many real cases stop here, before the first value is trained
        [choose_training(cases, split, run) for split in splits]
    arms = choose_arms(settings.arms, settings.generated)
    generated = {value: open_generated(run, cases, splits) for value, run in runs.items()}
    untouched = [arm for arm in arms if not ARMS[arm].depends_on(name)]
    results, first = {}, None
    for value, run in runs.items():
        results[value] = compare(run, cases, splits, generated[value], compat, first, untouched)
        first = first or run.out
    if name is not None:
        write_sweep(settings.out, results, SWEEPS[name])


if __name__ == "__main__":
    errors.run(main)
