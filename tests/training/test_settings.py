"""The command line: every field is a flag, every value has a source, what is wrong is one line."""

import hashlib
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import pytest
import torch

import emit
import train_pretrain
from emit.errors import InputError
from emit.training import distributed
from emit.training.settings import Limited, RunSettings, code_version, expand_sweep, parse, save_config, setting

CASES = ["a", "b"]


@dataclass(frozen=True, kw_only=True)
class Settings(Limited):
    """Learn something small."""

    data: Path = setting(source="[choice] your folder", help="the images")
    vae: Path | None = setting(None, "[choice] trained here", help="weights, 100 % of them")
    lr: float = setting(1e-3, "[choice] short run; [paper]: 1e-5", paper=1e-5, help="learning rate", above=0)
    count: int = setting(2, "[paper]", help="a number", low=1, high=9)
    share: float | None = setting(None, "[paper]", help="a share", low=0, below=1)
    widths: tuple[int, ...] = setting((8, 16), "[choice] small", help="widths", low=4)
    arms: tuple[str, ...] = setting((), "[choice] none", help="arms")
    schedule: Literal["constant", "cosine"] = setting("constant", "[authors' code]", help="learning rate over time")
    ema: bool = setting(True, "[SD 1.5]", paper=False, help="average the weights")
    sweep: tuple[str, ...] = setting((), "[choice] none", help="NAME=V,V")
    out: Path = setting(Path("runs"), "[choice] your folder", help="run folder")
    resume: bool = setting(False, "[choice] explicit", help="go on", may_change=True)


def read(*words):
    return parse(Settings, ["--data", "x", *words])


def test_presets_flags_and_types():
    demo, paper = read(), read("--preset", "paper")
    assert (demo.lr, demo.ema, paper.lr, paper.ema) == (1e-3, True, 1e-5, False)
    words = ["--vae", "v", "--lr=2", "--count", "3", "--share", "0.5", "--widths", "4, 5", "--arms", "a,b", "--no-ema"]
    found = read(*words, "--schedule", "cosine", "--resume", "--preset", "paper")
    assert (found.vae, found.lr, found.count, found.share, found.widths) == (Path("v"), 2.0, 3, 0.5, (4, 5))
    assert (found.arms, found.ema, found.schedule, found.resume) == (("a", "b"), False, "cosine", True)
    assert read("--vae", "none", "--share=None", "--arms", "").vae is None
    assert read("--arms", "a,b", "--arms", "c").arms == ("a", "b", "c")  # given twice: both


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "fast"], "--lr: 'fast' is not float"),
        (["--lr", "nan"], "--lr: 'nan' is not float"),
        (["--count", "2.5"], "--count: '2.5' is not int"),
        (["--widths", "4,x"], "--widths: 'x' is not int"),
        (["--schedule", "cos"], "--schedule: 'cos' is not constant|cosine"),
        (["--vae", ""], "--vae: '' is not path"),
        (["--sched", "cosine"], "unrecognized arguments: --sched cosine"),  # no abbreviations
        (["--lr"], "--lr: expected one argument"),
        (["--preset", "best"], "--preset: invalid choice"),
        (["extra"], "unrecognized arguments: extra"),
        (["--lr", "0"], "--lr: is 0.0; give more than 0"),
        (["--count", "10"], "--count: is 10; give at least 1 and at most 9"),
        (["--widths", "9" * 20], "--widths: is 99999999999999999999; give at most 2147483647"),
        (["--share", "1"], "--share: is 1.0; give at least 0 and less than 1"),
        (["--widths", "8,3"], "--widths: is 3; give at least 4"),
        (["--widths="], "--widths: is empty; give at least one number"),
    ],
)
def test_wrong_flags_are_one_line_errors(words, message):
    with pytest.raises(InputError) as raised:
        read(*words)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_a_required_setting_and_limits_hold_without_a_command_line():
    with pytest.raises(InputError, match="--data: is required"):
        parse(Settings, ["--lr", "1"])
    with pytest.raises(InputError, match="--steps: is 0; give at least 1"):
        RunSettings(steps=0)
    with pytest.raises(InputError, match="--count: is 0"):
        replace(read(), count=0)


def test_help_says_first_what_a_flag_does_and_last_where_its_value_comes_from(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Settings, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0 and "Learn something small." in text
    assert "--lr FLOAT learning rate (0.001, paper 1e-05) [choice] short run; [paper]: 1e-5" in text.replace("float", "FLOAT")
    assert "weights, 100 % of them (none) [choice] trained here" in text and "--ema, --no-ema" in text
    assert all(f"--{f.name.replace('_', '-')}" in text for f in fields(Settings))
    with pytest.raises(SystemExit):
        parse(train_pretrain.Settings, ["--help"])
    run, own = (capsys.readouterr().out.split("The training run")[1]).split("This program")
    assert "--lr" in run and "0.003" in run and "--data" in own and "--lr" not in own


def test_what_an_earlier_program_wrote_holds_and_a_contradiction_is_refused_by_name():
    inherit = lambda given: ({"lr": 0.5, "arms": ("stack",)}, "run/dataset.json")  # noqa: E731
    for words in ([], ["--lr", "0.5"], ["--preset", "paper"]):
        settings = parse(Settings, ["--data", "x", *words], inherit)
        assert (settings.lr, settings.arms) == (0.5, ("stack",))
    with pytest.raises(InputError, match=r"^--lr: is 1.0, and run/dataset.json says 0.5; leave it out"):
        parse(Settings, ["--data", "x", "--lr", "1"], inherit)


# ---- config.json


def test_config_json_holds_settings_versions_and_fingerprints(tmp_path):
    weights = tmp_path / "vae.safetensors"
    weights.write_bytes(b"weights")
    settings = read("--preset", "paper", "--arms", "b,a")
    save_config(tmp_path / "run", settings, {"vae": weights, "unet": None}, "x", CASES)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    data = {"path": "x", "sha256": hashlib.sha256(b"a\nb").hexdigest()}
    vae = {"path": str(weights), "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert config["inputs"] == {"vae": vae, "data": data} and config["torch"] == torch.__version__
    assert config["code"] == code_version() and config["code"]["version"] == emit.__version__
    plain = {"data": "x", "vae": None, "lr": 1e-5, "widths": [8, 16], "arms": ["b", "a"], "ema": False, "out": "runs"}
    assert (
        config["settings"].keys() == {f.name for f in fields(Settings)} | {"processes"}
        and plain.items() <= config["settings"].items()
    )


def start(folder, settings, inputs):
    """Write a config of a run that has begun."""
    save_config(folder, settings, inputs, "x", CASES)
    (folder / "unet").mkdir(exist_ok=True)
    (folder / "unet" / "state.pt").touch()


def test_a_run_that_has_begun_keeps_its_settings(tmp_path, monkeypatch):
    first = read("--resume")
    save_config(tmp_path, first, {}, "x", CASES)
    start(tmp_path, replace(first, lr=2.0), {})  # nothing was trained before: a corrected setting is fine
    save_config(tmp_path, replace(first, lr=2.0), {}, "x", CASES)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"config.json: --lr was 2.0 and is now 0.001; resume with"):
        save_config(tmp_path, first, {}, "x", CASES)
    with pytest.raises(InputError, match="already holds a run; go on with --resume or choose another folder"):
        save_config(tmp_path, replace(first, lr=2.0, resume=False), {}, "x", CASES)
    (tmp_path / "unet" / "state.pt").unlink()
    monkeypatch.setattr("emit.training.settings.is_any_held", lambda folder: folder == tmp_path)  # no state yet, but one at work
    with pytest.raises(InputError, match=r"config.json: --lr was 2.0 and is now 0.001"):
        save_config(tmp_path, first, {}, "x", CASES)
    with pytest.raises(InputError, match="already holds a run"):
        save_config(tmp_path, replace(first, lr=2.0, resume=False), {}, "x", CASES)
    monkeypatch.setattr(distributed, "ranks", lambda: 2)
    with pytest.raises(InputError, match=r"config.json: --processes was 1 and is now 2"):
        save_config(tmp_path, replace(first, lr=2.0), {}, "x", CASES)
    assert (tmp_path / "config.json").read_bytes() == before
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json: cannot be read .No such file or directory.; copy it"):
        save_config(tmp_path, first, {}, "x", CASES)


def test_a_run_that_has_begun_keeps_its_files_and_cases_but_may_move(tmp_path):
    weights = tmp_path / "vae.safetensors"
    weights.write_bytes(b"first")
    settings = read("--resume", "--vae", str(weights))
    start(tmp_path, settings, {"vae": weights, "fold0": weights})
    moved = weights.rename(tmp_path / "moved.safetensors")
    settings = replace(settings, data=tmp_path, vae=moved, out=tmp_path)
    save_config(tmp_path, settings, {"vae": moved, "fold0": moved}, "y", CASES[::-1])
    with pytest.raises(InputError, match="--data changed since the first run"):
        save_config(tmp_path, settings, {"vae": moved}, "x", CASES[:1])
    moved.write_bytes(b"second")
    for name, words in (("vae", "--vae"), ("fold0", "fold0")):  # by its flag, where it has one
        with pytest.raises(InputError, match=rf"config.json: {words} changed since the first run"):
            save_config(tmp_path, settings, {name: moved}, "x", CASES)


def test_a_later_call_keeps_what_an_earlier_one_was_made_from(tmp_path):
    """The generator's folds are made one by one: their ControlNets are all compared."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1"), two.write_bytes(b"2")
    start(tmp_path, read("--resume"), {"fold0": one})
    save_config(tmp_path, read("--resume"), {"fold1": two}, "x", CASES)
    one.write_bytes(b"other")
    with pytest.raises(InputError, match="fold0 changed since the first run"):
        save_config(tmp_path, read("--resume"), {"fold0": one}, "x", CASES)


# ---- sweeps


def test_a_sweep_is_one_run_for_each_value():
    runs = expand_sweep(read("--sweep", "count=1,5"), ("count", "strength"))
    assert {value: (run.count, run.out, run.sweep) for value, run in runs.items()} == {
        1: (1, Path("runs/count_1"), ()), 5: (5, Path("runs/count_5"), ()),
    }  # fmt: skip
    names = [run.out.name for run in expand_sweep(read("--sweep", "strength=0,0.5"), ("strength",)).values()]
    assert names == ["strength_0", "strength_0.5"]
    assert list(expand_sweep(read(), ("count",))) == [None]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("count", "is not NAME=VALUE"),
        ("lr=1", "NAME is one of count"),
        ("count=1,x", "--sweep count: 'x' is not int"),
        ("count=1,10", "--count: is 10; give at least 1 and at most 9"),
        ("count=1,01", "--sweep count: 01 is given twice"),
    ],
)
def test_wrong_sweeps(words, message):
    with pytest.raises(InputError, match=message):
        expand_sweep(read("--sweep", words), ("count",))


SOURCES = ("[paper]", "[authors' code]", "[SD 1.5]", "[choice] ")
MOST = {"train_pretrain": 32, "train_finetune": 34, "emit.generate": 27, "train_seg": 30}
MOST |= {"emit.sample": 25, "emit.predict": 6, "emit.dataset": 18}


@pytest.mark.parametrize("program, most", MOST.items())
def test_programs_have_no_more_flags_than_a_person_reads(program, most):
    declared = fields(__import__(program, fromlist=["Settings"]).Settings)
    assert len(declared) <= most
    for f in declared:  # each has a source, and a demo value that is not the paper's does not claim to be
        assert f.metadata["source"].startswith(SOURCES), f.name
        assert f.metadata["paper"] == f.default or f.metadata["source"].startswith("[choice] "), f.name
