"""The report: numbers against hand computation, files that can be read back, a page that needs nothing else."""

import base64
import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emit.data.cases import Case
from emit.data.similarity import content_hash
from emit.data.splits import Split
from emit.dataset import LabelledSet, SetSettings
from emit.evaluation import illustrate
from emit.evaluation.report import compute, find_deviations, make_tables, write_report
from emit.evaluation.statistics import holm
from emit.evaluation.sweep import write_sweep
from emit.ledger import Ledger
from train_seg import Settings

SIZE, COUNT = 16, 8
NAMES = tuple(f"benign/b{i}" for i in range(COUNT))


def load(number):
    """A picture and its mask of (number + 2)^2 pixels."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[2 : 4 + number, 2 : 4 + number] = 1
    return np.linspace(-1, 1, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE) * (1 - number / 20), mask


def folds():
    return [Split(NAMES[4:7], NAMES[7:], NAMES[:4]), Split(NAMES[:3], NAMES[3:4], NAMES[4:])]


def case_set(classes=("background", "lesion")):
    cases = [Case(n, n, "US, breast", "benign", n, lambda path, i=i: load(i)) for i, n in enumerate(NAMES)]
    return LabelledSet(cases, classes, folds(), SetSettings(data=Path("somewhere/BUSI")))


def row(arm, number, dice, seed=0, **other):
    fixed = {"arm": arm, "fold": number // 4, "seed": seed, "case": NAMES[number], "class": "lesion", "dice": dice}
    scores = {"iou": dice / 2, "precision": dice, "recall": dice, "hd95": 1.0 + number, "assd": 0.5, "nsd": dice}
    origin = {"kind": "both present", "predicted": 9, "target": 9, "unit": "px", "tolerance": 2.0}
    return fixed | scores | origin | other


def rows_of(gains, seeds=1):
    """Baseline 0.50, 0.51, ...; the gain of an arm grows by 0.001 per case, so that no two differences are equal."""
    return [
        row(arm, i, 0.5 + 0.01 * i + (gain + 0.001 * i if gain else 0) + 0.02 * seed, seed)
        for seed in range(seeds)
        for arm, gain in gains.items()
        for i in range(COUNT)
    ]


def write(folder, rows, cases=None, fidelity=(), beside_real=(), **options):
    options = {"data": Path("somewhere/BUSI <1> & 2")} | options
    write_report(Settings(out=folder, **options), cases or case_set(), rows, fidelity, beside_real)
    summary = json.loads((folder / "summary.json").read_text(), parse_constant=pytest.fail)
    return summary, (folder / "report.html").read_text(encoding="utf-8")


def add_runs(folder, arms, seeds):
    """The files that train_seg.py leaves in each run's folder."""
    for arm in arms:
        for fold, split in enumerate(folds()):
            for seed in range(seeds):
                place = folder / arm.replace(" ", "_") / f"fold{fold}_seed{seed}"
                place.mkdir(parents=True)
                np.savez_compressed(place / "predictions.npz", **{n: load(NAMES.index(n))[1] for n in split.test})
                (place / "log.jsonl").write_text('{"step": 24, "loss": 0.5}\n{"step": 49, "loss": 0.25}\n')
                (place / "validation.jsonl").write_text('{"step": 24, "dice": 0.5}\n{"step": 49, "dice": 0.75}\n')


def add_generated(folder):
    cases = case_set().cases
    for fold, split in enumerate(folds()):
        place, lines = folder / f"fold{fold}", []
        for case in (case for case in cases if case.id in split.train):
            for index in range(2):
                line = {"file": f"{case.id[-2:]}_{index}.png", "case": case.id, "index": index, "size": SIZE}
                lines.append(line | {"prompt": case.prompt, "sha256": dict.fromkeys(("images", "edges", "masks"), "")})
                for kind in ("images", "edges", "masks"):
                    (place / kind).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(case.mask).save(place / kind / line["file"])
        (place / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        write_ledger(place, split.train)


def write_ledger(place, seen):
    """Write what a fold's generator has seen; None: its weights have no ledger."""
    ledger = Ledger()
    if seen is not None:
        hashes = [content_hash(case.image) for case in case_set().cases if case.id in seen]
        ledger = ledger.add("finetuning", np.array(hashes, np.uint64))
    ledger.write(place)
    (place / "ledger.json").write_text(json.dumps(ledger.header))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run with everything: four arms, two seeds, predictions, logs, generated images, a compat switch, a lost case."""
    folder = tmp_path_factory.mktemp("run")
    arms = {"baseline": 0.0, "mirror": 0.05, "ours": 0.1, "generated only": -0.02}
    rows = rows_of(arms, seeds=2)
    add_runs(folder / "seg", arms, 2)
    add_generated(folder / "generated")
    options = {"compat": ("diffboost:select_on_test",), "generated": folder / "generated"}
    summary, page = write(folder / "seg", rows, **options)
    return folder / "seg", rows, summary, page


def test_numbers_equal_hand_computation(full):
    _, _, summary, _ = full
    # Baseline: 0.50 + 0.01 i, i = 0..7, and 0.02 more under the second seed: mean 0.535 + 0.01.
    # Standard deviation (n - 1) of 0..7 is sqrt(6); that of two seeds 0.02 apart is 0.02 / sqrt(2).
    baseline = summary["arms"]["baseline"]["dice"]
    assert baseline["mean"] == pytest.approx(0.545, abs=1e-12)
    assert baseline["case_spread"] == pytest.approx(0.01 * 6**0.5, abs=1e-12)
    assert baseline["seed_spread"] == pytest.approx(0.02 / 2**0.5, abs=1e-12)
    scores = summary["arms"]["ours"]["scores"]["all classes"]["scores"]
    assert scores["iou"]["mean"] == pytest.approx((0.545 + 0.1035) / 2, abs=1e-12)
    assert scores["hd95"]["mean"] == 4.5
    found = {(c["arm"], c["reference"]): c for c in summary["comparisons"]}
    # Gains: 0.1 + 0.001 i, mean 0.1035; losses: -0.02 + 0.001 i, mean -0.0165.
    differences = {pair: c["difference"] for pair, c in found.items()}
    wanted = {("ours", "baseline"): 0.1035, ("generated only", "baseline"): -0.0165, ("mirror", "baseline"): 0.0535}
    assert differences == pytest.approx(wanted, abs=1e-12)
    # The means of the two folds lie 0.004 apart: error 0.002, 1 degree of freedom, whose t has p = 2 / pi atan(1 / |t|).
    for pair, difference in wanted.items():
        assert found[pair]["p"] == pytest.approx(2 / np.pi * np.arctan(0.002 / abs(difference)), rel=1e-6)
        reach = 0.002 * 12.7062  # the 97.5 % quantile; that of 80 % is tan(0.3 pi)
        assert (found[pair]["low"], found[pair]["high"]) == pytest.approx((difference - reach, difference + reach), abs=1e-7)
        assert found[pair]["detectable"] == pytest.approx(reach + 0.002 * np.tan(0.3 * np.pi), abs=1e-7)
    # Holm: 2 comparisons in the first family, 1 in the second.
    assert found["ours", "baseline"]["p_adjusted"] == pytest.approx(2 * found["ours", "baseline"]["p"])
    assert found["mirror", "baseline"]["p_adjusted"] == pytest.approx(found["mirror", "baseline"]["p"])
    sentence, other = summary["conclusion"]
    assert other.startswith("generated only against baseline") and sentence.startswith(
        "ours against baseline: detectable gain (mean difference in Dice +0.1035"
    )
    assert "8 cases, folds x seeds 2 x 2; the interval speaks for new cases and for new trainings" in sentence
    assert summary["best_classical"] == "mirror" and summary["generated_arms"] == ["ours", "generated only"]
    assert summary["settings"]["compat"] == ["diffboost:select_on_test"] and summary["settings"]["tolerance"] == 2.0


def test_families_of_comparisons():
    gains = {"baseline": 0.0, "gamma": 0.03, "deepstack": 0.05, "mixed": 0.02, "ours+deepstack": 0.08, "ours+nnunet": 0.01}
    found = compute(rows_of(gains | {"copies": 0.01, "oracle+deepstack": 0.12}), case_set().cases)
    pairs = [(c["arm"], c["reference"]) for c in found["comparisons"]]
    # Each generated arm against the baseline and, if it was run, the arm of its augmentation. Copies and oracles hold no
    # generated image: against the latter only, in the other family.
    generated = [("mixed", "baseline"), *(("ours+deepstack", other) for other in ("baseline", "deepstack"))]
    generated.append(("ours+nnunet", "baseline"))
    others = [("gamma", "baseline"), ("deepstack", "baseline"), ("copies", "baseline"), ("oracle+deepstack", "deepstack")]
    assert pairs == [*generated, *others] and found["best_classical"] == "deepstack"
    assert found["generated_arms"] == ["mixed", "ours+deepstack", "ours+nnunet"]
    for family in (found["comparisons"][:4], found["comparisons"][4:]):
        assert [c["p_adjusted"] for c in family] == holm([c["p"] for c in family])
    main = {line[0]: line[2:5] for line in make_tables(found)["main"]}
    assert main["oracle+deepstack"] == main["baseline"] == ["", "", ""] and main["copies"][0] == "+0.0135"
    # Headroom: 0.07 in each case, of which 0.03 are reached. There is no arm "oracle mixed" for "mixed", and no "nnunet".
    (headroom,) = found["headroom"]
    assert (headroom["arm"], headroom["reference"], headroom["oracle"]) == ("ours+deepstack", "deepstack", "oracle+deepstack")
    assert headroom["share"] == pytest.approx(3 / 7) and headroom["low"] == pytest.approx(3 / 7, abs=1e-6)
    assert [s.split(":")[0] for s in found["conclusion"][:-1]] == [" against ".join(pair) for pair in generated]
    assert found["conclusion"][-1] == headroom["sentence"]
    found = compute(rows_of({"baseline": 0.0, "oracle": 0.2, "oracle mixed": 0.1, "mixed": 0.05}), case_set().cases)
    assert found["headroom"][0]["oracle"] == "oracle mixed"


def test_csv_gives_every_row_back(tmp_path):
    rows = rows_of({"baseline": 0.0, "ours": 0.1}, seeds=2)
    rows[3] |= {"hd95": float("inf")}
    write(tmp_path, rows)
    with open(tmp_path / "per_case.csv", newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    for line, origin in zip(read, rows, strict=True):
        assert {key: type(origin[key])(line[key]) for key in origin} == origin  # bitwise, as repr of a float is exact


def test_page_stands_alone_and_says_everything(full):
    folder, _, summary, page = full
    assert "http" not in page and "<script" not in page and "<link" not in page and "url(" not in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == page.count("<img") == page.count("src=") == 4
    inside = [base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources]
    names = ("paired", "contours", "generated", "curves")
    assert inside == [(folder / "figures" / f"{name}.png").read_bytes() for name in names]
    texts = "diffboost:select_on_test", "Learning curves", "<td>finetuning: 3 cases</td>"
    assert all(text in page for text in (*summary["conclusion"], *summary["arms"], *texts))
    assert "somewhere/BUSI &lt;1&gt; &amp; 2" in page and "<1>" not in page
    assert "<h2>Comparisons</h2>" in page and "is unknown and" not in page
    assert "all that the ledger of its generator lists, and not found" in page
    assert "3 in 3 groups" in page and "the scores are too good" in page
    assert '<meta name="viewport"' in page


def test_a_generator_without_a_ledger_is_unknown(tmp_path):
    add_generated(tmp_path / "generated")
    write_ledger(tmp_path / "generated" / "fold1", None)
    _, page = write(tmp_path, rows_of({"baseline": 0.0}), generated=tmp_path / "generated")
    assert page.count("<td>unknown</td></tr>") == page.count("<td>finetuning: 3 cases</td></tr>") == 1
    assert page.index("is unknown and cannot be checked") < page.index("all that the ledger of its generator lists")
    write_ledger(tmp_path / "generated" / "fold0", None)
    _, page = write(tmp_path, rows_of({"baseline": 0.0}), generated=tmp_path / "generated")
    assert "cannot be checked" in page and "not found" not in page


def test_more_missed_lesions_do_not_look_better(tmp_path, capsys):
    # The baseline misses the three lesions that are hardest to outline, ours one: of the finite distances the mean would
    # be 3.0 (of 1..5) against 4.0 (of 1..7), in favour of the baseline. Mirror misses more than half.
    rows = rows_of({"baseline": 0.0, "ours": 0.1, "mirror": 0.05})
    missed = {"kind": "missed", "dice": 0.0, "hd95": float("inf"), "assd": float("inf"), "nsd": 0.0, "predicted": 0}
    for number in (5, 6, 7, COUNT + 7, *range(2 * COUNT, 2 * COUNT + 5)):
        rows[number] |= missed
    summary, page = write(tmp_path, rows)
    printed = capsys.readouterr().out
    for arm, infinite, median in (("baseline", 3, 4.5), ("ours", 1, 4.5), ("mirror", 5, None)):  # JSON has no infinity
        found = summary["arms"][arm]["scores"]["all classes"]["scores"]["hd95"]
        assert (found["median"], found["infinite"], found["mean"]) == (median, infinite, None)  # of 1..8 or infinite
        cell = f"{4.5 if median else float('inf'):.2f} ({infinite} inf)"
        assert re.search(rf"^{arm} .* {re.escape(cell)} ", printed, re.M) and f"<td>{cell}</td>" in page
        assert re.search(rf"^{arm} +{COUNT - infinite} +0 +{infinite} +0 +8$", printed, re.M)


def test_numbers_are_written_before_anything_is_drawn_and_a_failing_figure_is_left_out(tmp_path, monkeypatch, capsys):
    seen = []

    def fail(*_, **__):
        seen.extend(file.name for file in tmp_path.iterdir())
        seen.append(capsys.readouterr().out)
        raise RuntimeError("no font")

    rows = rows_of({"baseline": 0.0, "ours": 0.1})
    add_runs(tmp_path, ("baseline", "ours"), 1)
    monkeypatch.setattr("emit.evaluation.illustrate.save_paired", fail)
    (tmp_path / "ours" / "fold0_seed0" / "predictions.npz").write_bytes(b"cut off")
    summary, page = write(tmp_path, rows)
    assert {"per_case.csv", "summary.json"} <= set(seen) and "report.html" not in seen
    assert "\nours " in seen[-1] and summary["conclusion"][0] in seen[-1]  # the table and the conclusion were printed
    assert page.count("<img") == 1 and "Learning curves" in page  # the third figure is drawn
    words = capsys.readouterr().out
    assert "paired.png: not drawn (RuntimeError: no font)" in words and "contours.png: not drawn (" in words


def test_curves_of_runs_without_validation(tmp_path):
    add_runs(tmp_path, ("baseline", "ours"), 1)
    (tmp_path / "ours" / "fold0_seed0" / "validation.jsonl").write_text("")
    (tmp_path / "ours" / "fold1_seed0" / "validation.jsonl").unlink()
    (tmp_path / "baseline" / "fold0_seed0" / "validation.jsonl").write_text('{"step": 24}\n{"step": 49, "dice": 0.5}\n')
    curves = illustrate.collect_curves(tmp_path, ["baseline", "ours"])
    assert list(curves["validation Dice"]) == ["baseline"] and len(curves["training loss"]["ours"]) == 2
    assert curves["validation Dice"]["baseline"][0] == ((49,), (0.5,))
    for path in tmp_path.glob("baseline/*/validation.jsonl"):
        path.unlink()
    assert list(illustrate.collect_curves(tmp_path, ["baseline", "ours"])) == ["training loss"]


def test_lone_baseline_and_one_seed(tmp_path, capsys):
    summary, page = write(tmp_path, rows_of({"baseline": 0.0}))
    assert summary["comparisons"] == [] and summary["best_classical"] is None and summary["seeds"] == 1
    assert summary["arms"]["baseline"]["dice"]["seed_spread"] is None
    assert summary["conclusion"][0].startswith("No arm with generated images was run")
    assert "nothing is concluded" in page and "nothing is concluded" in capsys.readouterr().out
    assert "published deviations" not in page and page.count("<img") == 0 and "<td>no generator</td>" in page
    assert "between seeds" not in page and "1 seed;" in page and "Comparisons" not in page
    assert "so there was no generator to check" in page and "not found" not in page and "cannot be checked" not in page
    fidelity = [row("baseline", 0, 0.5)]
    _, page = write(tmp_path, [row("baseline", 0, 0.5)], fidelity=fidelity, test=(Path("other"),))  # one case: no spread
    assert "<td>0.5000 ± -</td>" in page and "Dice 0.500 ± -." in page and "nan" not in re.sub("src=.*", "", page)
    assert "Every case of a --test set was looked for" in page


def test_compat_is_stamped_everywhere(tmp_path, capsys):
    _, page = write(tmp_path, rows_of({"baseline": 0.0, "ours": 0.1}), compat=("diffboost",))
    stamp = "published deviations on: fake_pixel, mix_logits, no_shuffle, select_on_test"  # "diffboost" to train_seg.py
    assert f'<p class="stamp">{stamp}</p>' in page and stamp in capsys.readouterr().out
    pixels = np.asarray(Image.open(tmp_path / "figures" / "paired.png").convert("RGB")).astype(int)
    assert (np.abs(pixels - (0xB0, 0, 0)).sum(-1) < 60).any()  # red


def test_the_generators_deviations_are_stamped_too(tmp_path):
    settings = Settings(out=tmp_path, generated=tmp_path, compat=("no_shuffle",))
    add_generated(tmp_path)
    path = tmp_path / "fold0" / "manifest.jsonl"
    lines = [json.dumps(json.loads(line) | {"compat": ["one_seed"]}) for line in path.read_text().splitlines()]
    path.write_text("\n".join([*lines, ""]))
    assert find_deviations(settings) == ["no_shuffle", "one_seed"]


def test_a_sweep_is_written_and_drawn(tmp_path, monkeypatch, capsys):
    results = {}
    for alpha, gain in ((0.2, 0.1), (0.6, 0.2)):
        results[alpha] = write_report(Settings(out=tmp_path / str(alpha)), case_set(), rows_of({"baseline": 0.0, "ours": gain}))
    write_sweep(tmp_path, "alpha", results)
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert found["values"] == [0.2, 0.6] and found["label"] == "share of real patches"
    # Baseline: 0.50, 0.51, ..., 0.57; mean 0.535, n = 8, deviation 0.01 sqrt 6, so the error is 0.01 sqrt(6 / 8).
    assert found["mean_dice"]["baseline"] == pytest.approx([0.535] * 2, abs=1e-12)
    assert found["mean_dice"]["ours"] == pytest.approx([0.535 + 0.1035, 0.535 + 0.2035], abs=1e-12)
    assert found["standard_error"]["baseline"] == pytest.approx([0.01 * 0.75**0.5] * 2, abs=1e-12)
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    monkeypatch.setattr("emit.evaluation.sweep.save_sweep", lambda *_, **__: [][0])
    write_sweep(tmp_path, "alpha", results)
    assert "sweep.png: not drawn (IndexError" in capsys.readouterr().out


def test_fidelity_and_nearness_to_training_images_are_reported(tmp_path):
    fixed = {"fold": 0, "class": "lesion", "kind": "both present", "iou": 0.5, "precision": 0.5, "recall": 0.5}
    fidelity = [fixed | {"case": i % 2, "dice": dice} for i, dice in enumerate((0.25, 0.75, 0.25, 0.75))]  # 2 seeds
    beside = {"images": 9, "correlation": 0.5, "highest": 0.75, "held_out": 0.25, "flagged": 3}
    beside |= {"own_source": 2 / 3, "texture": 0.875, "tissue": False}
    beside_real = [beside | {"diversity": 0.125}, beside | {"diversity": None, "tissue": True}]
    summary, page = write(tmp_path, rows_of({"baseline": 0.0}), None, fidelity, beside_real)
    assert "in 2 generated images with Dice 0.500 ± 0.289." in page  # sqrt(4 * 0.25^2 / 3) = 0.289
    first, second = summary["beside_real"]["sentences"]
    assert "9 generated images at 0.50 in the median and 0.75 at most" in first
    assert "Finest octave: 0.88 of the real images' power" in first
    assert "Diversity within a case 0.12" in first and "Diversity" not in second
    assert "--tissue" in second and "--tissue" not in first and "for 67%; 3 are nearer" in second and "Copies, fold 1" in page


def test_classes_are_averaged_per_case(tmp_path):
    steps = {"PZ": 0, "TZ": 0.02}
    rows = [row("baseline", i, 0.5 + step * i) | {"class": name} for i in range(COUNT) for name, step in steps.items()]
    summary, page = write(tmp_path, rows, cases=case_set(("background", "PZ", "TZ")))
    described = summary["arms"]["baseline"]
    assert described["dice"]["mean"] == pytest.approx((0.5 + 0.57) / 2, abs=1e-12)
    assert described["dice"]["case_spread"] == pytest.approx(0.01 * 6**0.5, abs=1e-12)
    assert described["scores"]["TZ"]["scores"]["dice"]["mean"] == pytest.approx(0.57, abs=1e-12)
    assert described["scores"]["all classes"]["cases"] == 16 and summary["classes"] == ["PZ", "TZ"]
    assert "<h2>Classes</h2>" in page


def test_patients_are_the_units(tmp_path):
    base = case_set()
    cases = replace(base, cases=[replace(case, group=f"patient{i // 2}") for i, case in enumerate(base.cases)])
    summary, page = write(tmp_path, rows_of({"baseline": 0.0, "ours": 0.1}), cases=cases)
    (comparison,) = summary["comparisons"]
    assert comparison["units"] == 4 and comparison["cases"] == 8 and summary["groups"] == 4
    assert "too few cases to tell" in summary["conclusion"][0] and "8 cases in 4 groups" in page


def test_percentiles_pick_by_rank():
    scores = {f"case{i:02d}": i / 100 for i in reversed(range(21))}  # rank p (n - 1) / 100: 2, 10, 18
    assert illustrate.choose_percentiles(scores) == {"case02": 10, "case10": 50, "case18": 90}
    assert illustrate.choose_percentiles({"b": 0.5, "a": 0.5, "c": 0.1}) == {"c": 10, "a": 50, "b": 90}
    assert illustrate.choose_percentiles({}) == {}


def test_contours_show_the_slice_and_the_prediction_of_that_slice(tmp_path):
    masks, image = np.zeros((3, 4, 6), np.uint8), np.zeros((4, 6), np.float32)
    masks[1, 1:3, 1:5], masks[2, 1, 1] = 1, 1
    slices = [
        Case(f"v/{k}", "v", "CT", "", "v", lambda path, k=k: (image + k / 4, masks[k]), (2.0, 1.0), 3.0, "v", k)
        for k in (2, 0, 1)  # not in their order
    ]
    place = tmp_path / "baseline" / "fold0_seed0"
    place.mkdir(parents=True)
    np.savez_compressed(place / "predictions.npz", v=np.arange(3)[:, None, None] + masks * 0)
    rows = [row("baseline", 0, 0.75) | {"case": "v"}]
    (example,) = illustrate.collect_examples(tmp_path, ["baseline"], rows, slices)
    prediction, dice = example["found"]["baseline"]
    assert example["label"] == "90th percentile\nv/1" and example["aspect"] == 2.0 and dice == 0.75
    assert (example["target"] == masks[1]).all() and (example["image"] == 0.25).all() and (prediction == 1).all()


def test_a_prompt_that_is_a_mixture_is_drawn_as_text(tmp_path):
    add_generated(tmp_path)
    path = tmp_path / "fold0" / "manifest.jsonl"
    lines = [json.loads(line) | {"prompt": [[0.95, "gray, sketch"], [0.05, "US"]]} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = illustrate.collect_generated(tmp_path / "fold0", case_set().cases)
    assert [column["prompt"] for column in columns] == ["0.95 gray, sketch + 0.05 US"] * 3
