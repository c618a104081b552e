"""Our networks against diffusers, transformers and a functional HED: stored outputs, weights through public files.

Errors are the largest absolute difference over the reference's rms, in float32. Two independent implementations of a
network differ by rounding alone, below 1e-5 here; the limits leave a factor of ten, and the smallest fault known
(a norm's eps, on the quiet weights) costs a hundred times more. How the references were made: tests/golden/make_golden.py.
"""

import json
import runpy
import sys

import pytest
import torch

from emit import checkpoints
from emit.networks.hed import HED, HEDv11
from tests.golden.files import HERE, SIZES, error, original, read_golden, read_model, write_diffusers, write_original

NETWORK, TEXT, DECODER = 5e-5, 2e-5, 1e-4
WRITERS = {"original": write_original, "diffusers": write_diffusers}
PROMPTS = ["Ultrasound of a breast, malignant lesion!", "word " * 90, "CT " * 75, "1.5 T, 3D FLAIR (axial)", "it's 5%"]
MODELS = [("sd1", "original"), ("sd1", "diffusers"), ("sd2", "original"), ("sd2", "diffusers"), ("quiet", "original")]


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def golden(request, tmp_path_factory):
    """A model read from files of a public layout, and its kind."""
    kind, layout = request.param
    folder = tmp_path_factory.mktemp("files")
    return read_model(WRITERS[layout](folder, kind), kind), kind


@pytest.fixture
def report(request):
    """A function that asserts an error below a limit and prints it (pytest -rP shows the numbers)."""

    def check(name, ours, reference, limit):
        found = error(ours, reference)
        print(f"{request.node.callspec.id} {name}: {found:.1e}")
        assert found < limit, name

    return check


def test_unet_and_controlnet(golden, report):
    model, kind = golden
    stored, _ = read_golden(f"unet_{kind}")
    z_t, t, context, hint = (stored[name] for name in ("z_t", "t", "context", "hint"))
    report("unet", model.unet(z_t, t, context), stored["eps"], NETWORK)
    residuals = model.controlnet(z_t, t, context, hint)
    assert len(residuals) == len(stored["scales"])
    for i, residual in enumerate(residuals):
        report(f"residual {i}", residual[:1], stored[f"residual_{i}"], NETWORK)
    controlled = model.network_output(z_t, t, context, hint, stored["scales"].tolist())
    report("controlled", controlled, stored["eps_controlled"], NETWORK)


def test_autoencoder(golden, report):
    model, kind = golden
    stored, _ = read_golden("vae_quiet" if kind == "quiet" else "vae_sd1")
    posterior = model.vae.encode(stored["image"])
    report("mean", posterior.mean, stored["mean"], NETWORK)
    report("log-variance", posterior.log_variance, stored["log_variance"], NETWORK)
    report("decoded", model.vae.decode(stored["z"] * 0.18215), stored["decoded"], DECODER)


def test_text(golden, report):
    model, kind = golden
    stored, _ = read_golden("text_sd1" if kind == "quiet" else f"text_{kind}")
    report("states", model.text(stored["ids"]), stored["states"], TEXT)


@pytest.mark.parametrize(("kind", "network"), [("hed", HED), ("hed_v11", HEDv11)])
def test_hed(kind, network, tmp_path, report):
    stored, rows = read_golden(kind)
    path = tmp_path / "hed.pth"
    torch.save(original(kind, rows[kind]), path)
    hed = checkpoints.fill(network((4, 6, 8, 10, 12)), checkpoints.read(path).parts[kind], path, kind)
    with torch.no_grad():
        logits = torch.cat(hed.logits(stored["image"]))
        report("logits", logits, stored["logits"], NETWORK)
        report("edge", hed(stored["image"]), stored["edge"], NETWORK)


@pytest.mark.filterwarnings("ignore")  # of the other packages
@pytest.mark.parametrize("kind", ["sd1", "sd2", "quiet"])
def test_exports_load_in_diffusers(kind, tmp_path, monkeypatch, report):
    """Our own file, exported by the command line, gives the same numbers in diffusers and transformers."""
    reason = "an export is loaded by diffusers itself: pip install -r tests/golden/requirements-golden.txt"
    diffusers = pytest.importorskip("diffusers", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    (tmp_path / "public").mkdir()
    model = read_model(write_original(tmp_path / "public", kind), kind)
    model.save(tmp_path / "own.safetensors")
    folder = tmp_path / "export"
    arguments = ["export", str(tmp_path / "own.safetensors"), "--to", "diffusers", str(folder)]
    monkeypatch.setattr(sys, "argv", ["emit.checkpoints", *arguments])
    runpy.run_module("emit.checkpoints", run_name="__main__")
    stored, _ = read_golden(f"unet_{kind}")
    args = stored["z_t"], stored["t"], stored["context"]
    with torch.no_grad():
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
        report("export unet", unet(*args, return_dict=False)[0], model.unet(*args), NETWORK)
        controlnet = diffusers.ControlNetModel.from_pretrained(folder / "controlnet")
        down, middle = controlnet(*args, stored["hint"], return_dict=False)
        for theirs, ours in zip([*down, middle], model.controlnet(*args, stored["hint"]), strict=True):
            report("export residual", theirs, ours, NETWORK)
        vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
        stored, _ = read_golden("vae_quiet" if kind == "quiet" else "vae_sd1")
        z = vae.config.scaling_factor * vae.encode(stored["image"]).latent_dist.mean
        report("export encode", z, model.vae.encode(stored["image"]).mode(), NETWORK)
        decoded = vae.decode(stored["z"] / vae.config.scaling_factor).sample
        report("export decode", decoded, model.vae.decode(stored["z"]), DECODER)
        text = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
        ids = read_golden("text_sd2" if kind == "sd2" else "text_sd1")[0]["ids"]
        report("export text", text(input_ids=ids).last_hidden_state, model.text(ids), TEXT)
    bpe = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    prompts = [*PROMPTS, *(prompt for prompt in json.loads((HERE / "tokens.json").read_text()) if "<|" not in prompt)]
    ids = bpe(prompts, padding="max_length", max_length=bpe.model_max_length, truncation=True)["input_ids"]
    assert ids == model.text.tokenize(prompts).tolist()
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    assert scheduler.config.prediction_type == {"eps": "epsilon", "v": "v_prediction"}[SIZES[kind].prediction]
