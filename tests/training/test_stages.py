"""Stages 1 and 2 refuse before they train, and share their work under torchrun; tests/test_scripts.py runs them whole."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train_finetune
import train_pretrain
from emit.data.phantom import write_phantoms
from emit.errors import InputError
from emit.model import EmitDiff, demo_sizes
from emit.training.settings import parse
from tests.helpers import call

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = ["--data", "nowhere", "--out", "run", "--boundaries", "nowhere"]
FINETUNE = ["--data", "nowhere", "--out", "run", "--model", "nowhere", "--hed", "nowhere"]


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        (train_pretrain, ["--unet-steps", "20"], r"run/unet: warmup must be from 0 to steps - 1"),
        (train_pretrain, ["--accumulate", "3"], r"run/unet: batch must be a multiple of accumulate x processes = 3"),
        (train_pretrain, ["--vae-steps", "0"], r"--vae-steps: is 0, and no weights are given; give steps, or --weights"),
        (train_pretrain, ["--preset", "paper", "--device", "cpu"], r"--hed-steps: is 0, .* or --hed"),
        (train_finetune, ["--device", "cuda"], "--device cuda: cannot be used here"),
        (train_finetune, ["--crop", "1.2,1.05"], "--crop: is 1.2,1.05; give the smaller share, then the larger"),
        (train_finetune, ["--degrees", "200"], "--degrees: is 200.0; give at least 0 and at most 180"),
    ],
)
def test_both_stages_refuse_before_they_train(module, words, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=message):
        call(module, *(PRETRAIN if module is train_pretrain else FINETUNE), *words)


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory):
    """Write phantoms; return the flags of stage 1 that name them."""
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, size=32, pretrain=6, busi=8, patients=1)
    return ["--data", folder / "radiology_ai", "--boundaries", folder / "boundaries"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "60"], r"--size: is 60; give a multiple of 8"),
        (["--boundaries", ROOT], "png: is missing; --boundaries needs one picture for each image of --data"),
    ],
)
def test_stage_1_refuses_before_it_writes(stage_1, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        call(train_pretrain, *stage_1, "--out", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("preset", "schedule"), [("demo", "cosine"), ("paper", "constant")])
def test_the_settings_of_the_optimiser_reach_each_part(preset, schedule, tmp_path):
    words = ["--data", "x", "--out", str(tmp_path), "--ema", "0.5", "--preset", preset, "--accumulate", "2"]
    settings = replace(parse(train_pretrain.Settings, words), vae_steps=30, unet_steps=30)
    for part, lr, accumulate in (("vae", 2e-3, 1), ("unet", 2e-3, 2), ("controlnet", settings.lr, 2)):
        own = train_pretrain.settings_of(settings, part)
        assert (own.schedule, own.ema, own.lr, own.accumulate) == (schedule, 0.5, lr, accumulate)


def test_an_autoencoder_of_another_run(tmp_path):
    torch.manual_seed(0)
    model = EmitDiff(demo_sizes(64))
    model.vae.scale = 0.25
    model.save(tmp_path / "model.safetensors")
    model.save(tmp_path / "controlnet.safetensors", {}, ["controlnet"])
    settings = train_pretrain.Settings(data=tmp_path, out=tmp_path, vae=tmp_path / "model.safetensors")
    _, other, _, _ = train_pretrain.open_networks(settings)
    assert other.vae.scale == 0.25
    assert all(torch.equal(value, other.vae.state_dict()[name]) for name, value in model.vae.state_dict().items())
    with pytest.raises(InputError, match=r"model.safetensors: holds no autoencoder of the demo's sizes"):
        train_pretrain.open_networks(replace(settings, size=128))
    with pytest.raises(InputError, match=r"controlnet.safetensors: holds no autoencoder"):
        train_pretrain.open_networks(replace(settings, vae=tmp_path / "controlnet.safetensors"))


def launch(count, script, *words):
    """Run a script in processes that form a group, as torchrun does; return what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    group |= {**os.environ, **group, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / script, *map(str, words)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    children = [subprocess.Popen(command, env=environment, **options) for environment in ranks]
    ends = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0] * count, ends
    return [printed for printed, _ in ends]


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path):
    for count in (1, 2):
        launch(count, "tests/training/child.py", tmp_path / str(count))
    one, two = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in "12")
    assert one["step"] == two["step"] == 6
    assert one["weights"]["network.never"] == two["weights"]["network.never"] == 1  # no gradient, so no decay either
    assert one["weights"]["network.rare"] != 1
    for part in ("weights", "ema"):
        # Sums in another order: relative error about 1e-6 in a gradient, times lr 0.01 for each of 6 steps.
        torch.testing.assert_close(one[part], two[part], rtol=0, atol=1e-6)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in "12"]
    assert [len(log) for log in logs] == [6, 6]  # rank 1 wrote nothing
    for alone, shared in zip(*[map(json.loads, log) for log in logs], strict=True):
        for name in ("loss", "gradient_norm"):  # AdamW after clipping would forgive a sum in place of a mean
            assert alone[name] == pytest.approx(shared[name], rel=1e-5)


@pytest.mark.slow
def test_two_processes_train_one_model(stage_1, tmp_path):
    pre, fine = tmp_path / "pre", tmp_path / "fine"
    steps = [f"--{part}{name}=2" for part in ("vae-", "hed-", "unet-", "") for name in ("steps", "batch")]
    words = ["--size", 32, "--warmup", 1]
    launch(2, "train_pretrain.py", *stage_1, "--out", pre, *words, *steps, "--sample-every", 2)
    model = ["--model", pre / "model.safetensors", "--hed", pre / "hed.safetensors", "--out", fine]
    words += ["--data", stage_1[1].parent / "BUSI", "--fold", 1, "--steps", 2, "--batch", 2, "--schedule", "cosine"]
    printed = launch(2, "train_finetune.py", *model, *words)
    for folder in (pre / "vae", pre / "hed", pre / "unet", pre / "controlnet", fine / "fold1"):
        state = torch.load(folder / "state.pt", weights_only=True)
        assert state["step"] == 2 and len((folder / "log.jsonl").read_text().splitlines()) == 1
    config = json.loads((fine / "config.json").read_text())["settings"]
    assert (config["schedule"], config["processes"]) == ("cosine", 2)
    assert printed[0].startswith(f"{fine / 'fold1'}: hint_true ") and printed[1] == ""
    assert (pre / "samples" / "final.png").exists() and (pre / "samples" / "unet_000002.png").exists()
    assert (fine / "fold1" / "controlnet.safetensors").exists() and len(json.loads((fine / "splits.json").read_text())) == 3
