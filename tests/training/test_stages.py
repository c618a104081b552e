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

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = ["--data", "nowhere", "--out", "run", "--boundaries", "nowhere"]
FINETUNE = ["--data", "nowhere", "--out", "run", "--model", "nowhere", "--hed", "nowhere"]


def call(monkeypatch, module, *words):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
    module.main()


@pytest.mark.parametrize(("module", "words"), [(train_pretrain, PRETRAIN), (train_finetune, FINETUNE)])
def test_no_gpu_is_a_one_line_error(module, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda: this machine has no usable GPU"):
        call(monkeypatch, module, *words, "--device", "cuda")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--unet-steps", "20"], r"run/unet: warmup must be from 0 to steps - 1"),
        (["--accumulate", "3"], r"run/unet: batch must be a multiple of accumulate x processes = 3"),
        (["--vae-steps", "0"], r"--vae-steps: is 0, and no weights are given; give steps, or --vae or --weights"),
        (["--preset", "paper", "--device", "cpu"], r"--hed-steps: is 0, .* or --hed"),
        (["--vae", "a", "--weights", "b"], "--vae: --weights holds an autoencoder already"),
        (["--batch", "0"], "--batch: is 0; give at least 1"),
        (["--vae-lr", "0"], "--vae-lr: is 0.0; give more than 0"),
        (["--caption-dropout", "1.5"], "--caption-dropout: is 1.5; give at least 0 and at most 1"),
    ],
)
def test_stage_1_refuses_before_any_part_is_trained(words, message, monkeypatch):
    with pytest.raises(InputError, match=message):
        call(monkeypatch, train_pretrain, *PRETRAIN, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--crop", "1.2,1.05"], "--crop: is 1.2,1.05; give the smaller share, then the larger"),
        (["--crop", "0,1"], "--crop: is 0.0; give more than 0"),
        (["--degrees", "200"], "--degrees: is 200.0; give at least 0 and at most 180"),
        (["--caption-dropout=-0.1"], "--caption-dropout: is -0.1; give at least 0"),
        (["--lr", "0"], "--lr: is 0.0; give more than 0"),
        (["--steps", "0"], "--steps: is 0; give at least 1"),
    ],
)
def test_stage_2_refuses_what_makes_no_sense(words, message, monkeypatch):
    with pytest.raises(InputError, match=message):
        call(monkeypatch, train_finetune, *FINETUNE, *words)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, size=32, pretrain=6, busi=8, patients=1)
    return folder


def data_of(phantoms, out):
    return ["--data", phantoms / "radiology_ai", "--boundaries", phantoms / "boundaries", "--out", out]


def test_stage_1_refuses_a_size_before_it_writes(phantoms, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"--size: is 60, .* give 56 or 64"):
        call(monkeypatch, train_pretrain, *data_of(phantoms, tmp_path / "run"), "--size", "60")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("preset", "schedule"), [("demo", "cosine"), ("paper", "constant")])
def test_the_settings_of_the_optimiser_reach_the_run(preset, schedule, tmp_path):
    words = ["--data", "x", "--out", str(tmp_path), "--ema", "0.5", "--preset", preset, "--accumulate", "2"]
    settings = parse(train_pretrain.Settings, words)
    for part, lr, accumulate in (("vae", 2e-3, 1), ("unet", 2e-3, 2), ("controlnet", settings.lr, 2)):
        steps = {f"{part}_steps": 30} if part != "controlnet" else {}
        run = train_pretrain.open_run(replace(settings, **steps), part, {"m": torch.nn.Linear(1, 1)})
        found = [run.settings[name] for name in ("schedule", "ema", "lr", "accumulate")]
        assert found == [schedule, 0.5, lr, accumulate]


def test_an_autoencoder_of_another_run(tmp_path):
    torch.manual_seed(0)
    model, other = EmitDiff(demo_sizes(64)), EmitDiff(demo_sizes(64))
    model.vae.scale = 0.25
    model.save(tmp_path / "model.safetensors", {"ancestry": ["a"]})
    header = train_pretrain.fill_vae(other.vae, tmp_path / "model.safetensors")
    assert header["ancestry"] == ["a"] and other.vae.scale == 0.25
    assert all(torch.equal(value, other.vae.state_dict()[name]) for name, value in model.vae.state_dict().items())
    model.save(tmp_path / "controlnet.safetensors", {}, ["controlnet"])
    for vae, name in ((EmitDiff(demo_sizes(128)).vae, "model"), (other.vae, "controlnet")):
        with pytest.raises(InputError, match=rf"{name}.safetensors: holds no autoencoder of the demo's sizes"):
            train_pretrain.fill_vae(vae, tmp_path / f"{name}.safetensors")


def run_two(script, *words):
    """Run a script in two processes that form a group, as under torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / script, *map(str, words)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [{**os.environ, **group, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    children = [subprocess.Popen(command, env=environment, **options) for environment in ranks]
    ends = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0, 0], ends
    return [printed for printed, _ in ends]


@pytest.mark.slow
def test_two_processes_train_one_model(phantoms, tmp_path):
    pre, fine = tmp_path / "pre", tmp_path / "fine"
    steps = [f"--{part}{name}=2" for part in ("vae-", "hed-", "unet-", "") for name in ("steps", "batch")]
    words = ["--size", 32, "--warmup", 1]
    run_two("train_pretrain.py", *data_of(phantoms, pre), *words, *steps, "--sample-every", 2)
    model = ["--model", pre / "model.safetensors", "--hed", pre / "hed.safetensors", "--out", fine]
    words += ["--data", phantoms / "BUSI", "--fold", 1, "--steps", 2, "--batch", 2, "--schedule", "cosine"]
    printed = run_two("train_finetune.py", *model, *words)
    for folder in (pre / "vae", pre / "hed", pre / "unet", pre / "controlnet", fine / "fold1"):
        state = torch.load(folder / "state.pt", weights_only=True)
        assert (state["step"], state["settings"]["ranks"]) == (2, 2)
        assert len((folder / "log.jsonl").read_text().splitlines()) == 1
    assert state["settings"]["schedule"] == "cosine"
    assert printed[0].startswith(f"{fine / 'fold1'}: hint_true ") and printed[1] == ""
    assert (pre / "samples" / "final.png").exists() and (pre / "samples" / "unet_000002.png").exists()
    assert (fine / "fold1" / "controlnet.safetensors").exists() and len(json.loads((fine / "splits.json").read_text())) == 3
