"""Settings: flags, presets, help, config.json."""

import hashlib
import json
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch

from emit.errors import InputError
from emit.training.config import ROOT, code_version, parse, save_config, setting, vary


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Learn something small."""

    data: Path = setting(source="[choice] yours", help="the images")
    vae: Path | None = setting(None, "[SD 1.5]", help="autoencoder weights")
    lr: float = setting(1e-3, "[choice] a short run", paper=1e-5, help="learning rate")
    batch_size: int = setting(8, "[choice] a laptop", paper=384, help="images in a step")
    batch_seed: int = setting(0, "[choice] any", help="seed")
    phrase: str = setting("plain", "[paper]", help="appearance")
    arms: tuple[str, ...] = setting(("none", "stack"), "[paper]", help="arms")
    window: tuple[float, float] | None = setting(None, "[choice] whole range", help="HU from, to")
    schedule: Literal["constant", "cosine"] = setting("constant", "[authors' code]", help="learning rate over time")
    ema: bool = setting(True, "[SD 1.5]", paper=False, help="average the weights")
    resume: bool = setting(False, "[choice] explicit", help="go on", may_change=True)


FIELDS = ["data", "vae", "lr", "batch-size", "batch-seed", "phrase", "arms", "window", "schedule", "ema", "resume"]


def test_defaults_are_the_demo_preset():
    settings = parse(Settings, ["--data", "x"])
    assert settings == parse(Settings, ["--preset", "demo", "--data", "x"])
    assert (settings.data, settings.vae, settings.lr, settings.batch_size) == (Path("x"), None, 1e-3, 8)
    assert (settings.arms, settings.window, settings.ema, settings.resume) == (("none", "stack"), None, True, False)
    with pytest.raises(FrozenInstanceError):
        settings.lr = 1.0


def test_paper_preset_changes_what_the_paper_says_and_yields_to_flags():
    settings = parse(Settings, ["--lr", "0.5", "--data", "x", "--preset", "paper"])
    assert settings == replace(parse(Settings, ["--data", "x"]), lr=0.5, batch_size=384, ema=False)


@pytest.mark.parametrize(
    "words, name, value",
    [
        (["--batch-size", "12"], "batch_size", 12),
        (["--batch-size=-12"], "batch_size", -12),
        (["--lr", "1e-6"], "lr", 1e-6),
        (["--lr", "3"], "lr", 3.0),
        (["--phrase", "a, b = c"], "phrase", "a, b = c"),
        (["--phrase=a=b"], "phrase", "a=b"),
        (["--vae", "v.safetensors"], "vae", Path("v.safetensors")),
        (["--vae", "none"], "vae", None),
        (["--arms", "a, b,c"], "arms", ("a", "b", "c")),
        (["--arms", ""], "arms", ()),
        (["--window", "-160,240"], "window", (-160.0, 240.0)),
        (["--schedule", "cosine"], "schedule", "cosine"),
        (["--no-ema"], "ema", False),
        (["--resume"], "resume", True),
    ],
)
def test_flags_of_every_type(words, name, value):
    settings = parse(Settings, ["--data", "x", *words])
    assert getattr(settings, name) == value
    assert type(getattr(settings, name)) is type(value)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--lrr", "1"], "--lrr: unknown setting; did you mean --lr?"),
        (["--batch", "1"], "--batch: unknown setting; did you mean --batch-size?"),  # abbreviated
        (["--s", "cosine"], "--s: unknown setting; did you mean --schedule?"),
        (["--batch_size", "1"], "--batch_size: unknown setting; did you mean --batch-size?"),
        (["--no-emma"], "--no-emma: unknown setting; did you mean --no-ema?"),
        (["--xylophone", "1"], "--xylophone: unknown setting; see --help"),
        (["--no-lr"], "--no-lr: unknown setting"),
        (["cosine"], "cosine: is no flag; write --setting value (see --help)"),
        (["--lr", "1", "--lr", "1"], "--lr: given twice; give it once"),
        (["--ema", "--no-ema"], "--no-ema: given twice; give it once"),
        (["--preset", "demo", "--preset", "paper"], "--preset: given twice; give it once"),
        (["--lr"], "--lr: needs a value; write --lr float"),
        (["--lr", "--resume"], "--lr: needs a value; write --lr float"),
        (["--lr", "fast"], "--lr: 'fast' is not float; write --lr float"),
        (["--lr", "nan"], "--lr: 'nan' is not float"),
        (["--batch-size", "1.5"], "--batch-size: '1.5' is not int; write --batch-size int"),
        (["--window", "1"], "--window: '1' has 1 values; give 2, separated by commas"),
        (["--window", "1,x"], "--window: 'x' is not float"),
        (["--schedule", "cosin"], "--schedule: 'cosin' is not one of constant, cosine; did you mean cosine?"),
        (["--schedule", "9"], "--schedule: '9' is not one of constant, cosine; choose one of constant, cosine"),
        (["--preset", "papers"], "--preset: 'papers' is not one of demo, paper; did you mean paper?"),
        (["--resume", "true"], "true: is no flag"),
        (["--resume=true"], "--resume: takes no value; write --resume or --no-resume"),
        (["--vae", ""], "--vae: '' is not path"),
    ],
)
def test_wrong_flags_are_one_line_errors(words, message):
    with pytest.raises(InputError) as raised:
        parse(Settings, ["--data", "x", *words])
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_required_setting():
    with pytest.raises(InputError, match="--data: is required"):
        parse(Settings, ["--lr", "1"])


def test_help_shows_every_setting_with_both_values_and_source(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Settings, ["--lr", "1", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("--")}
    assert list(lines) == ["--preset", *(f"--{name}" for name in FIELDS)]
    assert lines["--lr"].split()[1:5] == ["float", "0.001", "1e-05", "[choice]"]
    assert lines["--data"].split()[1:4] == ["path", "required", "required"]
    assert lines["--ema"].split()[1:4] == ["flag", "true", "false"]
    assert lines["--arms"].split()[1:4] == ["str,...", "none,stack", "none,stack"]
    assert lines["--window"].split()[1:3] == ["float,float|none", "none"]
    assert lines["--schedule"].endswith("[authors' code]: learning rate over time")
    assert "Learn something small." in text
    starts = {line.index(mark) for line in lines.values() for mark in ["["] if mark in line}
    assert len(starts) == 1  # the sources stand in one column


@pytest.mark.parametrize("source", ["", "paper", "[choice]", "somewhere [paper]"])
def test_a_setting_needs_a_source(source):
    with pytest.raises(ValueError, match="must start with one of"):
        setting(1, source)


CASES = [SimpleNamespace(id="a"), SimpleNamespace(id="b")]


def test_config_json_holds_settings_versions_and_fingerprints(tmp_path):
    weights = tmp_path / "vae.safetensors"
    weights.write_bytes(b"weights")
    settings = parse(Settings, ["--data", "x", "--preset", "paper", "--window", "-1,2"])
    save_config(tmp_path / "run", settings, {"vae": weights, "unet": None}, CASES)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    digest = hashlib.sha256(b"weights").hexdigest()
    ids = hashlib.sha256(b"a\nb").hexdigest()
    data = {"path": "x", "sha256": ids, "cases": 2}
    assert config["inputs"] == {"vae": {"path": str(weights), "sha256": digest}, "data": data}
    assert config["torch"] == torch.__version__
    assert config["code"] == code_version() and set(config["code"]) == {"version", "commit", "changed"}
    assert f'version = "{config["code"]["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert config["settings"] == {
        "data": "x",
        "vae": None,
        "lr": 1e-5,
        "batch_size": 384,
        "batch_seed": 0,
        "phrase": "plain",
        "arms": ["none", "stack"],
        "window": [-1.0, 2.0],
        "schedule": "constant",
        "ema": False,
        "resume": False,
    }


def test_a_trained_folder_keeps_its_settings(tmp_path):
    first = parse(Settings, ["--data", "x"])
    save_config(tmp_path, first, {}, CASES)
    save_config(tmp_path, replace(first, lr=2.0), {}, CASES)  # nothing is trained yet: a corrected setting is fine
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "state.pt").write_bytes(b"")
    save_config(tmp_path, replace(first, lr=2.0, resume=True), {}, CASES)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"config.json: --lr was 2.0 and is now 0.001; resume with"):
        save_config(tmp_path, replace(first, resume=True), {}, CASES)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_moved_folder_is_resumed_and_other_cases_are_refused(tmp_path):
    weights = tmp_path / "vae.safetensors"
    weights.write_bytes(b"same")
    settings = parse(Settings, ["--data", "x", "--vae", str(weights)])
    save_config(tmp_path, settings, {"vae": weights}, CASES)
    (tmp_path / "state.pt").write_bytes(b"")
    moved = weights.rename(tmp_path / "moved.safetensors")
    settings = replace(settings, data=tmp_path, vae=moved)
    save_config(tmp_path, settings, {"vae": moved}, CASES[::-1])
    with pytest.raises(InputError, match="--data changed since the first run"):
        save_config(tmp_path, settings, {"vae": moved}, CASES[:1])


def test_what_an_earlier_program_wrote_holds_and_a_contradiction_is_refused_by_name():
    inherit = lambda given: ({"lr": 0.5, "arms": ("stack",)}, "run/dataset.json")  # noqa: E731
    for words in ([], ["--lr", "0.5"], ["--preset", "paper"]):
        settings = parse(Settings, ["--data", "x", *words], inherit)
        assert (settings.lr, settings.arms) == (0.5, ("stack",))
    with pytest.raises(InputError, match=r"^--lr: is 1.0, and run/dataset.json says 0.5; leave it out"):
        parse(Settings, ["--data", "x", "--lr", "1"], inherit)


def test_a_trained_folder_keeps_its_input_files(tmp_path):
    weights, images = tmp_path / "vae.safetensors", tmp_path / "manifest.jsonl"
    weights.write_bytes(b"first"), images.write_bytes(b"first")
    settings, run = parse(Settings, ["--data", "x", "--vae", str(weights)]), tmp_path / "run"
    save_config(run, settings, {"vae": weights, "fold0": images}, CASES)
    weights.write_bytes(b"second")
    save_config(run, settings, {"vae": weights, "fold0": images}, CASES)  # nothing is trained yet
    (run / "state.pt").write_bytes(b"")
    save_config(run, replace(settings, resume=True), {"vae": weights, "fold0": images}, CASES)
    before = (run / "config.json").read_bytes()
    for file, name in ((weights, "--vae"), (images, "fold0")):  # by its flag, where it has one
        kept = file.read_bytes()
        file.write_bytes(b"third")
        with pytest.raises(InputError, match=rf"config.json: {name} changed since the first run; .*{file.name} or choose"):
            save_config(run, replace(settings, resume=True), {"vae": weights, "fold0": images}, CASES)
        file.write_bytes(kept)
    assert (run / "config.json").read_bytes() == before


@dataclass(frozen=True, kw_only=True)
class Limited:
    """A number of every kind of limit."""

    out: Path = setting(Path("run"), "[choice] yours", help="folder")
    folds: int = setting(3, "[paper]", help="folds", low=2)
    lr: float = setting(1e-3, "[choice] a short run", paper=0.0, help="learning rate", above=0)
    share: float | None = setting(None, "[choice] none", help="share", low=0, high=1)
    ema: tuple[float, ...] = setting((0.5, 0.9), "[choice] two", help="decays", low=0, below=1)
    sweep: tuple[str, ...] = setting((), "[choice] none", help="what to vary")


@pytest.mark.parametrize("words", [["--folds", "2"], ["--lr=1e-30"], ["--share", "0"], ["--share", "1"], ["--ema", "0"]])
def test_limits_that_are_kept(words):
    parse(Limited, words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", "1"], "--folds: is 1; give at least 2"),
        (["--lr", "0"], "--lr: is 0.0; give more than 0"),
        (["--preset", "paper"], "--lr: is 0.0; give more than 0"),
        (["--share=-0.1"], "--share: is -0.1; give at least 0 and at most 1"),
        (["--share", "1.1"], "--share: is 1.1; give at least 0 and at most 1"),
        (["--ema", "0.5,1"], "--ema: is 1.0; give at least 0 and less than 1"),
    ],
)
def test_numbers_outside_their_limits_are_refused(words, message):
    with pytest.raises(InputError) as raised:
        parse(Limited, words)
    assert str(raised.value) == message


def test_a_sweep_keeps_to_the_limits():
    with pytest.raises(InputError, match=r"^--sweep folds: is 1; give at least 2$"):
        vary(Limited(sweep=("folds=2", "1")), ("folds",))


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What `vary` needs, and two settings to vary."""

    out: Path = setting(Path("run"), "[choice] yours", help="folder")
    alpha: float = setting(0.6, "[paper]", help="share")
    real_cases: int | None = setting(None, "[paper]", help="cases")
    sweep: tuple[str, ...] = setting((), "[choice] none", help="what to vary")


def test_a_sweep_is_one_run_per_value():
    assert vary(Swept(), ("alpha",)) == {None: Swept()}
    runs = vary(parse(Swept, ["--sweep", "alpha=0.2,1"]), ("alpha",))
    assert runs == {0.2: Swept(alpha=0.2, out=Path("run/alpha_0.2")), 1.0: Swept(alpha=1.0, out=Path("run/alpha_1"))}
    runs = vary(parse(Swept, ["--sweep=real-cases=8,none"]), ("real_cases",))
    assert [run.real_cases for run in runs.values()] == [8, None] and list(runs) == [8, None]


def test_a_sweep_of_what_is_no_setting_changes_the_folder_alone():
    runs = vary(Swept(sweep=("guidance=1", "2.5")), ("guidance",))
    assert runs == {"1": Swept(out=Path("run/guidance_1")), "2.5": Swept(out=Path("run/guidance_2.5"))}


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        (("alpha",), "is not NAME=VALUE"),
        (("lr=1",), "NAME is one of alpha"),
        (("alpha=0.5", "x"), "'x' is not float"),
        (("alpha=0.5", "0.50"), "given twice"),
    ],
)
def test_bad_sweeps_are_refused(sweep, words):
    with pytest.raises(InputError, match=f"--sweep.*{words}"):
        vary(Swept(sweep=sweep), ("alpha",))
