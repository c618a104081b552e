"""The four commands in order, a few steps each, on small phantoms: what one writes, the next reads."""

import csv
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import train_finetune
import train_pretrain
import train_seg
from emit import dataset, generate
from emit.data.cache import TrainingImages
from emit.data.cases import read_cases
from emit.data.images import decode
from emit.data.phantom import write_busi, write_phantoms
from emit.dataset import open_set
from emit.errors import InputError
from emit.ledger import Ledger, join
from emit.ledger import read as read_ledger
from tests.helpers import call

MODEL = ["--model", "pre/model.safetensors", "--hed", "pre/hed.safetensors"]
LABELLED = ["--data", "set", "--size", 32]
TISSUE = ["--tissue", "phantoms/radiology_ai"]
SHORT = ["--steps", 4, "--batch", 4, "--warmup", 1, "--select-every", 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run the four commands once; size 32, steps enough to run every line."""
    folder = tmp_path_factory.mktemp("run")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    write_phantoms(folder / "phantoms", size=32, pretrain=18, busi=18, patients=2)
    write_busi(folder / "more", size=32, seed=1, count=6)
    data = ["--data", folder / "phantoms" / "radiology_ai", "--boundaries", folder / "phantoms" / "boundaries"]
    steps = [f"--{part}{name}=2" for part in ("vae-", "hed-", "unet-", "") for name in ("steps", "batch")]
    call(dataset, "--data", folder / "phantoms" / "BUSI", "--folds", 2, "--out", folder / "set")
    call(train_pretrain, *data, "--out", folder / "pre", "--size", 32, "--warmup", 1, *steps)
    call(train_finetune, *LABELLED, *MODEL, "--out", folder / "fine", "--steps", 2, "--batch", 2, "--warmup", 1)
    made = ["--finetuned", folder / "fine", "--out", folder / "made", "--n", 2, "--steps", 2, *TISSUE]
    call(generate, *MODEL, *made)  # how the set is read is told by the fine-tuning
    arms = ["--arms", "baseline,mirror,ours,copies,oracle", "--oracle", folder / "more", "--keep-best", 0.8, *SHORT]
    call(train_seg, "--generated", folder / "made", "--out", folder / "seg", *arms)
    patch.undo()
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_every_run_has_its_curves_and_every_case_is_scored_once_in_every_arm(folder):
    runs = [path.parent for path in folder.rglob("state.pt")]
    assert len(runs) == 4 + 2 + 5 * 2 + 2 * 2 and all((run / "curves.png").exists() for run in runs)
    with open(folder / "seg" / "per_case.csv") as file:
        rows = list(csv.DictReader(file))
    for arm in ("baseline", "mirror", "ours", "copies", "oracle"):
        assert len({row["case"] for row in rows if row["arm"] == arm}) == 18 == sum(row["arm"] == arm for row in rows)


def test_the_manifest_makes_an_image_again(folder):
    before = (folder / "made" / "fold0" / "manifest.jsonl").read_text().splitlines()
    line = json.loads(before[-1])
    assert {"file", "case", "prompt", "seed", "sampling", "weights", "source", "hint", "vary", "tissue"} <= line.keys()
    again = ["--finetuned", folder / "fine", "--out", folder / "again", "--n", 2, "--steps", 2, "--batch", 3, *TISSUE]
    call(generate, *MODEL, "--fold", 0, *again)
    lines = (folder / "again" / "fold0" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(a)["seed"] for a in lines] == [json.loads(b)["seed"] for b in before]
    differences = []
    for entry in map(json.loads, lines):
        one, two = (decode(folder / name / "fold0" / "images" / entry["file"]) for name in ("made", "again"))
        differences.append(abs(one.astype(int) - two.astype(int)).max())
    assert max(differences) <= 1  # other batch, other order of float32 sums: one grey level where rounding turns


@pytest.fixture
def verify(monkeypatch, capsys):
    """Return a function: the words after `verify` -> exit code and what is printed of each fold."""
    monkeypatch.setattr(generate.errors, "run", lambda main, again: main())

    def call_verify(*words):
        try:
            call(generate, "verify", *words)
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        return code, capsys.readouterr().out.splitlines()

    return call_verify


def test_all_images_are_made_again_bit_for_bit(folder, verify):
    counts = [len((folder / "made" / name / "manifest.jsonl").read_text().splitlines()) for name in ("fold0", "fold1")]
    words = "{0}: {1} of {1} images made again, {1} equal, largest difference 0 grey levels".format
    assert verify("made") == (0, [words(f"made/fold{fold}", count) for fold, count in enumerate(counts)])
    moved = folder / "moved"
    for name in ("pre", "fine", "phantoms"):
        shutil.copytree(folder / name, moved / name)
    config = moved / "made" / "config.json"
    shutil.copytree(folder / "made", config.parent)
    config.write_text(config.read_text().replace('"pre/', '"gone/').replace(str(folder / "fine"), "gone"))
    flags = ["--model", moved / "pre" / "model.safetensors", "--hed", moved / "pre" / "hed.safetensors"]
    flags += ["--finetuned", moved / "fine", "--data", moved / "phantoms" / "BUSI"]
    flags += ["--tissue", moved / "phantoms" / "radiology_ai"]
    assert verify(config.parent, "--fold", 1, *flags, "--number", 3) == (
        0,
        [words(moved / "made" / "fold1", counts[1])],
    )  # a batch of 32 is all of them
    with pytest.raises(InputError, match=r"gone/model.safetensors: cannot be read .*check the path"):
        verify(config.parent)
    with pytest.raises(InputError, match=r"fine/config.json: is damaged, or of another version"):
        verify("fine")
    with pytest.raises(InputError, match=r"--out: is required"):
        verify("--fold", 1)


def test_an_image_or_weights_that_are_others_are_told(folder, verify, tmp_path):
    made = shutil.copytree(folder / "made", tmp_path / "made")
    name = json.loads((made / "fold0" / "manifest.jsonl").read_text().splitlines()[3])["file"]
    (made / "fold0" / "masks" / name).unlink()
    code, said = verify(made, "--fold", 0)
    assert code == 1 and said[0].endswith(f"largest difference 255 grey levels, such as {name}")
    other = folder / "fine" / "fold1" / "controlnet.safetensors"
    for flag in ("--model", "--hed"):
        with pytest.raises(InputError, match=rf"controlnet.safetensors: is another {flag[2:]} than .*_000.png of made/fold0"):
            verify("made", flag, other)


def test_every_image_has_its_own_shape_in_another_pictures_tissue(folder):
    made = folder / "made" / "fold0"
    lines = [json.loads(text) for text in (made / "manifest.jsonl").read_text().splitlines()]
    masks = {line["file"]: decode(made / "masks" / line["file"]) for line in lines if not line["case"].startswith("normal")}
    assert len({mask.tobytes() for mask in masks.values()}) == len(masks)  # no two of a case are alike
    assert {line["tissue"] for line in lines} == {"US/breast/normal/us0002_0", "US/breast/normal/us0002_1"}
    seen = read_ledger(made / "ledger.json").find(read_cases(folder / "phantoms" / "radiology_ai").cases)
    assert {(line["tissue"], "tissue") for line in lines} <= {*seen}
    with pytest.raises(InputError, match=r"^pre: "):
        call(generate, *MODEL, "--finetuned", "fine", "--out", "none", "--tissue", "pre")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hint": "mask"}, "gives edges, and the hint is mask"),
        ({"prompt": "US, breast"}, "needs prompts of modality, organ and finding"),
        ({"prompt": "US, breast, normal"}, "is for lesions, and benign/benign .1., US, breast, normal, is labelled"),
        ({"prompt": "US, thyroid, benign"}, "holds no picture of US, thyroid, normal"),
    ],
)
def test_tissue_that_would_lie_is_refused(folder, change, message):
    labelled = open_set(folder / "fine")
    prompt = change.pop("prompt", None)
    cases = [replace(case, prompt=prompt or case.prompt) for case in labelled.cases]
    settings = SimpleNamespace(tissue=folder / "phantoms" / "radiology_ai")
    assert generate.open_tissue(settings, labelled).cases
    with pytest.raises(InputError, match=f"^--tissue: .*{message}"):
        generate.open_tissue(settings, replace(labelled, cases=cases, **change))


def test_the_judge_says_what_it_left_out(folder):
    summary = json.loads((folder / "seg" / "summary.json").read_text())
    judged = [sentence for sentence in summary["beside_real"]["sentences"] if sentence.startswith("Judged, fold")]
    assert len(judged) == 2 and all("generated images are used" in sentence for sentence in judged)


@pytest.mark.parametrize("words", [["--oracle", "phantoms/BUSI"], ["--oracle", "more", "--test", "more"]])
def test_an_oracle_that_holds_a_test_case_is_refused(folder, words):
    with pytest.raises(InputError, match="oracle"):
        call(train_seg, "--data", "set", "--out", "none", "--arms", "oracle", "--size", 32, *words)


def test_only_training_cases_are_generated_and_on_the_ledger(folder):
    splits = json.loads((folder / "made" / "splits.json").read_text())
    for fold, split in enumerate(splits):
        lines = (folder / "made" / f"fold{fold}" / "manifest.jsonl").read_text().splitlines()
        assert {json.loads(line)["case"] for line in lines} == set(split["train"])
        cases = {case.id: case for case in read_cases(folder / "phantoms" / "BUSI").cases}
        ledger = read_ledger(folder / "made" / f"fold{fold}" / "ledger.json")
        stages = [entry["stage"] for entry in ledger.entries]
        assert sorted(stages) == [f"fine-tuning, fold {fold}", "hed", "pre-training", "tissue"]
        assert ledger.find([cases[name] for name in split["test"]]) == []
        seen = {name for name, _ in ledger.find([cases[name] for name in split["train"]])}
        assert seen <= set(split["train"]) and len(seen) >= 2  # two steps of two


def test_a_flag_that_contradicts_an_earlier_program_is_refused_by_name(folder):
    made = [*MODEL, "--finetuned", folder / "fine", "--out", folder / "contradicts"]
    seg = ["--generated", folder / "made", "--out", folder / "contradicts"]
    for module, words in ((generate, made), (train_seg, seg)):
        for flag, value in (("--size", 64), ("--real-cases", 3), ("--hint", "mask")):
            with pytest.raises(InputError, match=rf"{flag}: is .*, and .*set.json says |unrecognized arguments: {flag}"):
                call(module, *words, flag, value)
    assert not (folder / "contradicts").exists()


@pytest.mark.parametrize("module", [generate, train_seg])
def test_several_processes_are_refused_until_they_share_the_work(folder, monkeypatch, module):
    monkeypatch.setenv("WORLD_SIZE", "2")
    source = [*MODEL, "--finetuned", folder / "fine"] if module is generate else ["--generated", folder / "made"]
    with pytest.raises(InputError, match="cannot share its work yet; start it as one process"):
        call(module, *source, "--out", folder / "several")
    assert not (folder / "several").exists()


def state_of(folder):
    """Return {file: (bytes, time of the last change)}, but for locks, which name who looked last."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_used_folders_are_refused_and_nothing_changes(folder):
    files = state_of(folder / "seg")
    with pytest.raises(InputError):
        call(train_seg, *LABELLED, *SHORT, "--out", folder / "seg", "--arms", "baseline")
    assert files == state_of(folder / "seg")


def test_a_finished_fold_is_left_alone(folder):
    """Another process may have a generator at work on it: with other threads its last bits would be others."""
    files = state_of(folder / "fine" / "fold0")
    words = [*LABELLED, *MODEL, "--out", folder / "fine", "--steps", 2, "--batch", 2, "--warmup", 1]
    call(train_finetune, *words, "--resume")
    assert files == state_of(folder / "fine" / "fold0")


def test_a_test_case_that_the_generator_saw_stops_the_comparison(folder):
    """Planted in fold 1's ledger under another name: refused by its content, before anything is written."""
    leaky = folder / "leaky"
    shutil.copytree(folder / "made", leaky)
    path = leaky / "fold1" / "ledger.json"
    splits = json.loads((leaky / "splits.json").read_text())
    case = next(c for c in read_cases(folder / "phantoms" / "BUSI").cases if c.id == splits[1]["test"][0])
    pictures = TrainingImages([replace(case, id="harmless")], 32)
    pictures.read([0])
    planted = join([read_ledger(path), Ledger().add("pre-training", pictures.hashes)])
    planted.write(leaky)
    path.write_text(json.dumps(planted.header))
    with pytest.raises(InputError, match=re.escape(case.id)):
        call(train_seg, *LABELLED, "--generated", leaky, "--out", folder / "leaked", "--arms", "ours", *SHORT)
    assert not (folder / "leaked").exists()


def test_a_used_generator_folder_is_refused_unchanged_and_resumes_with_the_same_settings_alone(folder):
    out = folder / "used"
    shutil.copytree(folder / "made", out)
    files = state_of(out)
    command = [*MODEL, "--finetuned", folder / "fine", "--out", out, "--steps", 2, *TISSUE]
    changes = {"already holds": ["--compat", "diffboost"], "--guidance was": ["--resume", "--guidance", 3]}
    for words, change in changes.items():
        with pytest.raises(InputError, match=words):
            call(generate, *command, "--n", 2, *change)
        assert files == state_of(out)
    manifest = out / "fold1" / "manifest.jsonl"
    manifest.write_bytes(files[manifest][0][:-20])  # a kill cut the last line
    for n in (2, 1):  # a smaller number takes nothing away
        call(generate, *command, "--n", n, "--resume")
        assert manifest.read_bytes() == files[manifest][0]


def test_fewer_real_cases_than_the_generator_saw_are_refused(folder):
    """Else the arms with generated images would know cases that the others do not."""
    words = ["--generated", folder / "made", "--out", folder / "fewer", *SHORT]
    with pytest.raises(InputError, match=r"^--real-cases: is 3, and .* says none"):
        call(train_seg, *words, "--real-cases", 3)
    with pytest.raises(InputError, match=r"real_cases_3: is not a folder"):
        call(train_seg, *words, "--sweep", "real_cases=3")


def read_weights(folder, arm):
    """Return what the arm learned in fold 0; scores after so few steps are all alike."""
    return torch.load(folder / arm / "fold0_seed0" / "state.pt", weights_only=True)["weights"]


def are_equal(some, others):
    return all(torch.equal(tensor, others[name]) for name, tensor in some.items())


def test_copies_of_real_images_in_the_place_of_generated_ones_change_nothing(folder):
    """Merging by patches adds nothing of its own: with copies it is the baseline, to the last bit, so all settings are shared."""
    baseline, copies, ours = (read_weights(folder / "seg", arm) for arm in ("baseline", "copies", "ours"))
    assert are_equal(baseline, copies) and not are_equal(baseline, ours)


def test_validation_is_logged_for_the_learning_curves(folder):
    for arm in ("baseline", "ours"):
        lines = (folder / "seg" / arm / "fold1_seed0" / "validation.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 3]
        assert all(0 <= json.loads(line)["dice"] <= 1 for line in lines)
    assert (folder / "seg" / "figures" / "curves.png").exists()
    summary = json.loads((folder / "seg" / "summary.json").read_text())
    assert summary["fidelity"]["scores"]["lesion"]["cases"] == sum(f["images"] for f in summary["beside_real"]["folds"]) > 0


def test_a_sweep_over_the_generators_settings_reaches_the_segmenter(folder):
    made = ["--finetuned", folder / "fine", "--out", folder / "swept", "--n", 1, "--steps", 2]
    call(generate, *MODEL, *made, "--sweep", "strength=0,1", "--compat", "diffboost:one_seed")
    out = folder / "swept_seg"
    sweep = ["--sweep", "strength=0,1", "--arms", "baseline,ours", *SHORT]
    call(train_seg, *LABELLED, "--generated", folder / "swept", "--out", out, *sweep, "--device", "auto")
    assert json.loads((out / "sweep.json").read_text())["values"] == ["0", "1"]
    without, full = out / "strength_0", out / "strength_1"
    first, second = (place / "baseline" / "fold1_seed0" for place in (without, full))
    scores = [json.loads((place / "scores.json").read_text()) for place in (first, second)]
    assert scores[0]["rows"] == scores[1]["rows"]
    assert not are_equal(read_weights(without, "ours"), read_weights(full, "ours"))
    assert (out / "sweep.png").exists() and "published deviations on: one_seed" in (full / "report.html").read_text()
    lines = (folder / "swept" / "strength_0" / "fold0" / "manifest.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["sampling"]["strength"] == 0 and json.loads(lines[0])["compat"] == ["one_seed"]
    assert len({json.loads(line)["seed"] for line in lines}) == 1


def test_a_sweep_judges_each_values_own_generated_images(folder):
    """The baseline's segmenter reads one image per case in the first run, two in the second."""
    out, words = folder / "counted", ["--arms", "baseline", "--sweep", "n=1,2"]
    call(train_seg, "--generated", folder / "made", "--out", out, *words, *SHORT)
    one, two = (json.loads((out / f"n_{n}" / "baseline" / "fold1_seed0" / "scores.json").read_text()) for n in (1, 2))
    assert one["rows"] == two["rows"] and 0 < 2 * len(one["fidelity"]) == len(two["fidelity"])


def test_a_sweep_over_real_cases_trains_every_arm_anew(folder):
    out = folder / "fewer"
    call(train_seg, *LABELLED, "--out", out, "--arms", "mirror", *SHORT, "--sweep", "real_cases=2,5")
    assert all((out / f"real_cases_{n}" / "baseline" / "fold0_seed0" / "segmenter.safetensors").exists() for n in (2, 5))


@pytest.mark.parametrize(
    ("module", "words", "flag"),
    [
        (train_seg, ["--patches", 0], "--patches"),
        (train_seg, ["--seeds", 0], "--seeds"),
        (train_seg, ["--sweep", "real_cases=3,400"], "--real-cases"),
        (generate, ["--method", "ddpm", "--eta", 1], "--eta"),
        (generate, ["--eta", 2], "--eta"),
        (generate, ["--steps", 1001], "--steps"),
        (generate, ["--spacing", "leading", "--steps", 1000], "--spacing"),
        (generate, ["--n", 0], "--n"),
    ],
)
def test_numbers_that_cannot_be_are_refused_at_once(folder, module, words, flag):
    given = [*MODEL, "--finetuned", folder / "fine"] if module is generate else LABELLED
    with pytest.raises(InputError, match=rf"^{flag}[: ]"):
        call(module, *given, "--out", folder / "refused", *words)
    assert not (folder / "refused").exists()
