"""Stage 3: segmenters on every arm, cross-validated: same steps, same images per step, one code path.

Every fold has a training, a validation and a test part; the weights are chosen on validation and the test part is read
once. Cases are scored on their native grid against the original mask, volumes as a whole. Writes for each arm, fold and
seed segmenter.safetensors, predictions.npz and scores.json; for all of them table, statistics, figures and report.html.
Sets of --test, which no fold touches, are scored by every segmenter: the same files in <out>/test_<folder>.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from emit import errors
from emit.arms import ARMS, choose_arms
from emit.checkpoints.writer import save
from emit.claims import claim, share
from emit.compat import DEVIATIONS, read_compat
from emit.data.augment import augment, merge
from emit.data.cache import TrainingImages
from emit.dataset import inherit_set, open_set, write_set
from emit.evaluation.fidelity import describe_generated
from emit.evaluation.folds import name_tests, open_folds, open_sets
from emit.evaluation.illustrate import run_folder
from emit.evaluation.judge import keep_best
from emit.evaluation.metrics import KINDS, SCORES
from emit.evaluation.report import find_deviations, write_report
from emit.evaluation.scoring import find_labels, predict, save_labels, score, validate
from emit.evaluation.sweep import SWEEPS, plan_runs, write_sweep
from emit.files import read_json, write_json
from emit.ledger import Ledger, join
from emit.networks.segmenter import Segmenter, SegmenterConfig, dice_ce_loss
from emit.seeds import seed_from
from emit.training import distributed
from emit.training.loop import Run, check_run, read_lines, write_lines
from emit.training.settings import RunSettings, parse, save_config, setting

ROW = {"case": str | int, "class": str, "kind": Literal[*KINDS], "unit": Literal["px", "mm"], "tolerance": float}
ROW |= {"predicted": range(2**40), "target": range(2**40)} | dict.fromkeys(SCORES, float)  # of scores.json, and whose it is


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Stage 3 of EMIT-Diff: the comparison. A labelled set and generated images in; table, statistics, figures out."""

    data: Path | None = setting(None, "[choice] as --generated", help="labelled images, or emit.dataset's folder", may_change=True)
    generated: Path | None = setting(None, "[choice] none: real arms only", help="output folder of emit.generate")
    keep_best: float = setting(1.0, "[choice] all", help="share of generated images used; a judge chooses", above=0, high=1)
    oracle: Path | None = setting(None, "[choice] none", help="further labelled images, for the oracle arms", may_change=True)
    test: tuple[Path, ...] = setting((), "[choice] the folds alone", help="other labelled sets to be judged on", may_change=True)
    out: Path = setting(source="[choice] your folder", help="the run folder, new or with --resume")
    size: int = setting(64, "[choice] CPU minutes; [authors' code]: 384", paper=384, help="pixels a side, of square images", low=16)
    real_cases: int | None = setting(None, "[paper] all there are", help="training cases per fold, drawn by the seed", low=1)
    arms: tuple[str, ...] = setting(("all",), "[choice] every arm", help="all, paper, or names: " + ", ".join(ARMS))
    seeds: int = setting(1, "[choice] the demo's minutes", paper=3, help="repetitions with other weights, order and draws", low=1)
    variant: Literal["attention", "plain", "residual"] = setting("attention", "[paper]", help="kind of U-Net")
    channels: tuple[int, ...] = setting(
        (8, 16, 32, 64), "[choice] minutes; [authors' code]: six stages", paper=(16, 32, 64, 128, 128, 256), help="widths", low=1
    )
    steps: int = setting(150, "[choice] seconds; [paper]: 100 epochs", paper=2000, help="steps, the same in every arm", low=1)
    batch: int = setting(8, "[authors' code]", help="images per step, the same in every arm", low=1)
    lr: float = setting(3e-3, "[choice] few steps; [authors' code]: 1e-3", paper=1e-3, help="learning rate of AdamW", above=0)
    warmup: int = setting(10, "[choice] stable start", help="steps of linear warm-up", low=0)
    schedule: Literal["cosine", "constant"] = setting("cosine", "[choice] few steps", help="learning rate after it")
    ema: float = setting(0.0, "[authors' code]: none", help="decay of the weight average, 0 for none", low=0, below=1)
    accumulate: ClassVar[int] = 1  # no setting: batch norm sees one forward pass, so a batch in parts would be another
    alpha: float = setting(0.6, "[paper]", help="share of real patches (patch merging) or images (mixing)", low=0, high=1)
    patches: int = setting(6, "[paper] 384 / 64", help="patches per side", low=1)
    n: int | None = setting(None, "[paper] all there are", help="generated images used per case", low=1)
    select_every: int = setting(
        25, "[choice] few steps; [authors' code]: every epoch", paper=100, help="steps between looks at validation", low=1
    )
    tolerance: float = setting(2.0, "[choice] about a contour's width", help="of NSD, in mm, or pixels without spacing", low=0)
    compat: tuple[str, ...] = setting((), "[authors' code]", help="diffboost, or diffboost:" + ",".join(DEVIATIONS["train_seg.py"]))
    sweep: tuple[str, ...] = setting((), "[choice] none", help="NAME=V,V,...: a comparison for each; " + ", ".join(SWEEPS))

    @property
    def deviations(self):
        """The names of emit.compat.DEVIATIONS that are on."""
        return read_compat(self.compat, "train_seg.py")


def open_labelled(settings):
    """Return the labelled set: that of the generated images where there are some. Refuse settings that cannot be."""
    check_run(settings.out, settings)
    if settings.patches > settings.size:
        raise errors.InputError(f"--patches: is {settings.patches}, more than the {settings.size} pixels; give fewer")
    of_images = read_compat({*settings.compat} - {"diffboost"}, "emit.generate")
    for missing in sorted({*of_images} - {*find_deviations(settings)}):
        raise errors.InputError(f"--compat: {missing} is emit.generate's, and not that of {settings.generated}; generate anew")
    if settings.generated is not None:
        labelled = open_set(settings.generated, settings.data)
        if labelled.real_cases != settings.real_cases:
            words = f"were made with --real-cases {labelled.real_cases}, not {settings.real_cases}"
            raise errors.InputError(f"{settings.generated}: its images {words}; generate them anew")
        return labelled
    if settings.keep_best < 1:
        raise errors.InputError("--keep-best: is of generated images; give --generated")
    if settings.data is None:
        raise errors.InputError("--data: is required where there is no --generated; give the labelled images")
    return replace(open_set(settings.data), real_cases=settings.real_cases, size=settings.size, seed=settings.seed)


def train_segmenter(arm, fold, settings, folder, seed):
    """Train one segmenter; return it with the weights that did best on the validation part (no such part: the last)."""
    training, validation = (TrainingImages(cases, settings.size) for cases in (fold.training, fold.validation))
    source = getattr(fold, arm.source) if arm.source else None
    torch.manual_seed(seed)  # of the initial weights
    config = SegmenterConfig(1, len(fold.labelled.classes), settings.channels, variant=settings.variant)
    network = Segmenter(config).to(settings.device)
    options = {"shuffle": "no_shuffle" not in settings.deviations, "log_every": settings.select_every}
    run = Run(folder, {"segmenter": network}, replace(settings, seed=seed), name=f"{folder.parent.name}/{folder.name}", **options)
    selected, log = folder / "segmenter.safetensors", folder / "validation.jsonl"
    header = {"config": asdict(config), "classes": fold.labelled.classes, "size": settings.size, "reading": fold.labelled.reading}
    # A step writes the selected weights, the line, and state.pt at its end. What is newer than state.pt is forgotten
    # here and done again, to the same bits: so a kill between any two writes changes nothing.
    lines = read_lines(log, run.done, {"step": int, "dice": float})
    for step, batch in run.steps(training):
        image, mask, other, other_mask = batch.image, batch.mask, batch.image, batch.mask  # (B, 1, S, S), (B, S, S), twice
        real = arm.real(len(image), settings.size, step / settings.steps, settings, run.rng)  # (B, 1, S or 1, S or 1)
        if arm.source:
            other, other_mask = source.draw([case.id for case in batch.cases], run.rng)
        mask = torch.where(real[:, 0], mask, other_mask)  # labels come from where the pixels do
        image, mask, other, real = (tensor.to(run.device) for tensor in (image, mask, other, real))
        mix_logits = "mix_logits" in settings.deviations  # two forward passes, one augmentation for both
        pair = torch.cat([image, other], dim=1) if mix_logits else merge(image, other, real)  # (B, 2 or 1, S, S)
        pair, mask = augment(pair, mask, arm.augmentation, run.rng)
        with run.autocast():
            if mix_logits:
                logits = torch.where(real, network(pair[:, :1]), network(pair[:, 1:]))  # (B, K, S, S)
            else:
                logits = network(pair)  # (B, K, S, S)
        run.update(dice_ce_loss(logits, mask))
        if run.due(settings.select_every) or run.done == settings.steps:
            with run.ema_weights():
                if fold.validation:
                    lines.append({"step": step, "dice": validate(network, validation)})
                if not lines or lines[-1]["dice"] == max(line["dice"] for line in lines):  # of equals the latest
                    save(selected, network.state_dict(), header)
            write_lines(log, lines)
    try:
        network.load_state_dict(load_file(selected))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise errors.InputError(f"{selected}: is missing or damaged; remove {folder}, so that it is trained anew") from error
    for number in range(len(fold.validation)):  # not read again where this run has read them
        validation.read([number])
    ledger = Ledger().add(f"segmentation, fold {fold.number}", torch.cat([training.hashes, validation.hashes]))
    ledger = join([ledger, source.ledger]) if arm.source else ledger
    with claim(folder.parent, wait=True):
        ledger.write(folder.parent)
    save(selected, network.state_dict(), header | ledger.header)
    return network.eval()


def run_arm(name, fold, seed, settings):
    """Train and score one segmenter; return, for every test set, {"rows": of its scores, "fidelity": of the generated images}."""
    folders = {test: run_folder(settings.out / test, name, fold.number, seed) for test in fold.tests}
    if all((folder / "scores.json").exists() for folder in folders.values()):
        row = ROW | {"arm": Literal[name], "fold": range(fold.number, fold.number + 1), "seed": range(seed, seed + 1)}
        return {test: read_json(folder / "scores.json", {"rows": [row], "fidelity": [row]}) for test, folder in folders.items()}
    number = seed_from(settings.seed, "segmenter", fold.number, seed)  # the same weights and order in every arm
    network = train_segmenter(ARMS[name], fold, settings, folders[""], number)
    found, where = {}, {"arm": name, "fold": fold.number, "seed": seed}
    for test, cases in fold.tests.items():
        predictions = predict(network, cases, settings.size)
        save_labels(folders[test] / "predictions.npz", predictions)
        rows = score(predictions, fold.labelled.classes, settings.tolerance, "fake_pixel" in settings.deviations)
        found[test] = {"rows": [where | row for row in rows], "fidelity": []}
    if name == "baseline" and fold.generated is not None:  # does its segmenter find the mask that was asked for?
        pairs = enumerate(fold.generated.pairs())
        asked = {number: (find_labels(network, image), mask, None) for number, (_, image, mask) in pairs}
        fidelity = score(asked, fold.labelled.classes, settings.tolerance)
        found[""]["fidelity"] = [where | row for row in fidelity]
    for test, folder in folders.items():  # written last
        write_json(folder / "scores.json", found[test])
    return found


def run_comparison(settings, sets, folds):
    """Train and score every arm on every fold and seed, then write a report for every test set; return the first one's results."""
    arms, labelled = choose_arms(settings.arms, settings.generated, settings.oracle), sets[""]
    with_images = [fold for fold in folds if fold.generated is not None]
    inputs = {f"fold{fold.number}": fold.generated.manifest for fold in with_images} | name_tests(settings)
    inputs |= {"oracle": settings.oracle}
    with claim(settings.out, wait=True):
        save_config(settings.out, settings, inputs, labelled.about.data, labelled.names)
        write_set(settings.out, labelled)
    given, settings = settings, replace(settings, resume=True)  # another process may have begun a part

    def work(job):
        name, fold, seed = job
        with claim(run_folder(settings.out, name, fold.number, seed)):
            return run_arm(name, fold, seed, settings)

    judged = share(with_images, lambda fold: keep_best(fold, settings, train_segmenter)) if settings.keep_best < 1 else []
    jobs = [(name, fold, seed) for fold in folds for seed in range(settings.seeds) for name in arms]
    found = share(jobs, work)
    fidelity = [row for one in found for row in one[""]["fidelity"]]
    beside_real, results = [], []
    for fold in with_images:  # the test images are those that nothing has seen
        unseen = next(filter(None, fold.tests.values()))
        training, unseen = (TrainingImages(cases, settings.size) for cases in (fold.training, unseen))
        found_here = describe_generated(fold.generated.pairs(), training, unseen)
        beside_real.append(found_here | {"tissue": "tissue" in fold.generated.lines[0]})
    with claim(settings.out, wait=True):
        for test, one in sets.items():
            rows = [row for scores in found for row in scores[test]["rows"]]
            if rows:
                results.append(write_report(replace(given, out=given.out / test), one, rows, fidelity, beside_real, judged))
    return results[0]


def main():
    """Compare the arms, once for each value of a sweep."""
    settings = parse(Settings, inherit=inherit_set)
    settings = replace(settings, device=str(distributed.start(settings.device, alone=True)))
    swept, runs = plan_runs(settings)
    sets = {value: open_sets(run, open_labelled(run)) for value, run in runs.items()}
    if len({tuple(found[""].splits) for found in sets.values()}) > 1:
        raise errors.InputError(f"--sweep {swept}: the folders of its values have different splits; make all from one set")
    folds = {value: open_folds(run, sets[value]) for value, run in runs.items()}  # what is refused stops here
    results = {value: run_comparison(run, sets[value], folds[value]) for value, run in runs.items()}
    if swept:
        with claim(settings.out, wait=True):
            write_sweep(settings.out, swept, results)


if __name__ == "__main__":
    errors.run(main)
