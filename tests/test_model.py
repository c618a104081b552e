"""EmitDiff as a whole: guidance, seeds, both predictions, captions, latents, files, and one step at full size."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from emit import checkpoints
from emit.checkpoints.sizes import PUBLIC
from emit.data.cache import Batch
from emit.errors import InputError
from emit.model import EmitDiff, Sampling, drop_captions, find_edges, hed_side, load_hed, to_grey
from emit.networks.hed import HED, HEDv11
from tests.golden.files import SD1, SIZES, read_model, write_original

PLAIN = Sampling(steps=2, guidance=3.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The small version-1 model with golden weights: nothing in it is zero."""
    return read_model(write_original(tmp_path_factory.mktemp("model"), "sd1"), "sd1")


@pytest.fixture(scope="module")
def hints():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("guided", ["text", "text+hint"])
def test_generate_is_guided_ddim_written_out(model, hints, guided):
    """Two trailing steps, 999 -> 499 -> clean, with each prediction made alone, by the printed formulas."""
    alpha_bar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    hint, scale = hints[:1], 0.7
    text, negative = (model.text(model.text.tokenize([prompt])) for prompt in ("MRI of the liver", "blurred"))
    z = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(11)).double()
    for t, ab_prev in ((999, alpha_bar[499]), (499, torch.tensor(1.0))):
        eps = []
        for context in (negative, text):
            args = z.float(), torch.tensor([t]), context
            control = [scale * residual for residual in model.controlnet(*args, hint)]
            dropped = guided == "text+hint" and context is negative
            eps.append(model.unet(*args, () if dropped else control).double())
        eps_hat = eps[0] + 3.0 * (eps[1] - eps[0])
        z_0 = (z - (1 - alpha_bar[t]).sqrt() * eps_hat) / alpha_bar[t].sqrt()
        z = ab_prev.sqrt() * z_0 + (1 - ab_prev).sqrt() * eps_hat
    expected = model.vae.decode(z.float()).clamp(-1, 1)
    sampling = replace(PLAIN, strength=scale, guided=guided)
    found = model.generate(["MRI of the liver"], hint, [11], 32, sampling, negative="blurred")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # float32 rounding through two steps and a decoder
    unguided = model.generate(["MRI of the liver"], hint, [11], 32, replace(sampling, guidance=1))
    assert (unguided - expected).abs().max() > 0.05


@pytest.mark.parametrize("sampling", [PLAIN, replace(PLAIN, method="ddpm"), replace(PLAIN, eta=0.5, guidance=1.0)])
def test_an_image_does_not_depend_on_its_batch(model, hints, sampling):
    """Only rounding differs between batch sizes: 1e-6 per network call, magnified over two steps and the decoder."""
    prompts, seeds = ["CT", "MRI of the knee", "ultrasound"], [3, 2**62 + 1, 5]
    together = model.generate(prompts, hints, seeds, 32, sampling)
    turned = model.generate(prompts[::-1], hints.flip(0), seeds[::-1], 32, sampling).flip(0)
    alone = torch.cat([model.generate([prompts[i]], hints[i : i + 1], [seeds[i]], 32, sampling) for i in range(len(seeds))])
    assert (together - turned).abs().max() < 1e-4 and (together - alone).abs().max() < 1e-4
    other = model.generate(prompts, hints, [3, 4, 5], 32, sampling)
    assert (together - other)[1].abs().max() > 0.05 and (together - other)[[0, 2]].abs().max() < 1e-4


class Equivalent:
    """Stands for network_output: the same opinion, told as eps or as v = (eps - sqrt(1 - ab) z_t) / sqrt(ab)."""

    def __init__(self, model):
        self.v, self.schedule = model.sizes.prediction == "v", model.schedule

    def __call__(self, z_t, t, context, hint=None, scales=None):
        eps = torch.tanh(z_t) + context.mean(dim=(1, 2)).view(-1, 1, 1, 1)
        ab = self.schedule.at(t).float()
        return (eps - (1 - ab).sqrt() * z_t) / ab.sqrt() if self.v else eps


def test_v_prediction_is_eps_prediction_in_other_words(model, monkeypatch):
    """eps - eps_hat = sqrt(ab) (v - v_hat) at one z_t, so the losses are in proportion ab; the images are the same."""
    found = {}
    for prediction in ("eps", "v"):
        other = EmitDiff(replace(SD1, prediction=prediction))
        other.vae, other.text, other.unet = model.vae, model.text, model.unet
        monkeypatch.setattr(other, "network_output", Equivalent(other))
        t = torch.tensor([3, 500, 900])
        z_0, eps = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        image = other.generate(["CT", "MRI"], None, [1, 2], 32, replace(PLAIN, steps=5))
        eps_hat = other.predict(z_0, t, other.contexts(["CT", "", "CT"]))
        found[prediction] = other.losses(z_0, t, eps, ["CT", "", "CT"]), image, eps_hat, other.schedule.at(t).flatten().float()
    (loss_eps, image_eps, eps_hat, ab), (loss_v, image_v, eps_hat_v, _) = found["eps"], found["v"]
    torch.testing.assert_close(loss_eps, ab * loss_v, rtol=1e-3, atol=0)  # 1 / ab reaches 80 at t = 900
    torch.testing.assert_close(eps_hat, eps_hat_v, rtol=0, atol=1e-5)  # float32 with 1 / sqrt(ab) = 10
    torch.testing.assert_close(image_eps, image_v, rtol=0, atol=2e-3)  # 1 / sqrt(ab) is 15 at t = 999


def test_the_loss_is_the_mean_square_of_the_noise(monkeypatch):
    other = EmitDiff(SD1)
    monkeypatch.setattr(other, "network_output", lambda z_t, *_: torch.zeros_like(z_t))
    z_0, eps = torch.zeros(2, 4, 8, 8), torch.cat([torch.ones(1, 4, 8, 8), torch.full((1, 4, 8, 8), 3.0)])
    assert other.losses(z_0, torch.tensor([0, 999]), eps, ["", ""]).tolist() == [1, 9]


def test_drawn_timesteps_are_uniform_and_noise_is_normal():
    other = EmitDiff(SD1)
    t, eps = other.draw(torch.zeros(40_000, 1, 2, 2), torch.Generator().manual_seed(0))
    assert (t.min(), t.max()) == (0, 999)  # either is missed with probability 4e-18
    counts = torch.bincount(t // 100, minlength=10).double()
    assert ((counts - 4000) ** 2 / 4000).sum() < 33.7  # chi-squared with 9 degrees, probability 1e-4
    assert abs(eps.mean().item()) < 5 / 160_000**0.5 and abs(eps.var().item() - 1) < 5 * (2 / 160_000) ** 0.5  # 5 sigma


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_captions_are_dropped_at_the_rate(rate):
    prompts = [str(i) for i in range(10_000)]
    dropped = drop_captions(prompts, rate, torch.Generator().manual_seed(0))
    count = dropped.count("")
    assert abs(count - 10_000 * rate) <= 5 * (10_000 * rate * (1 - rate)) ** 0.5  # binomial, 5 sigma
    assert all(after in ("", before) for before, after in zip(prompts, dropped, strict=True))


def test_latents_are_drawn_from_the_posterior_encoded_once(model, monkeypatch):
    """4000 draws: mean within 6 standard errors in every cell, standard deviation within 6 of its own (1 / sqrt 2n)."""
    encoded, encode, draws, rng = [], model.vae.encode, 4000, torch.Generator().manual_seed(0)
    monkeypatch.setattr(model.vae, "encode", lambda image: (encoded.append(len(image)), encode(image))[1])
    indices = [1, 0, 1]
    image = torch.tensor(indices).view(-1, 1, 1, 1) * 0.3 + torch.zeros(1, 1, 32, 32)
    latents = model.latent_memo()
    drawn = torch.stack([latents(Batch(indices, [], image, None), rng) for _ in range(draws)])
    assert encoded == [1, 1]  # once each and alone, though asked for 12,000 times
    posterior = encode(image.expand(-1, 3, -1, -1))
    mean, std = 0.18215 * posterior.mean, 0.18215 * (posterior.log_variance / 2).exp()
    assert ((drawn.mean(0) - mean).abs() < 6 * std / draws**0.5).all()
    assert ((drawn.std(0) / std - 1).abs() < 6 / (2 * draws) ** 0.5).all()
    assert not torch.equal(drawn[:, 0], drawn[:, 2])  # the same picture twice in a batch has two noises


def test_what_leaves_the_network_in_bf16_is_float32(model, hints):
    """So sampling computes in float32: eight bits of a coefficient would be off by 2.4 % at 20 steps, 166 % at 1000."""
    asked, seen = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), []
    handle = model.unet.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        context = model.contexts(["CT"])
        eps_hat = model.predict(asked, torch.tensor([5]), context, hints[:1])
        image = model.generate(["CT"], hints[:1], [0], 32, PLAIN)
    handle.remove()
    assert set(seen) == {torch.bfloat16} and eps_hat.dtype == image.dtype == torch.float32


def test_an_overflow_is_nan_and_not_white(model, hints, monkeypatch):
    monkeypatch.setattr(model.vae, "decode", lambda z: torch.full((1, 3, 32, 32), math.inf))
    assert model.generate(["CT"], hints[:1], [0], 32, PLAIN).isnan().all()


def test_to_grey_by_hand():
    image = torch.tensor([1.0, -0.5, 0.25]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert torch.equal(to_grey(image), torch.full((1, 1, 2, 2), 0.25))


def test_each_prompt_keeps_its_own_context_and_a_mixture_is_the_weighted_sum_of_its_texts_states(model):
    prompts = ["CT", "darker", "CT", "", ((0.75, "CT"), (0.25, "darker"))]
    ct, darker, empty = (model.text.encode([prompt])[0] for prompt in ("CT", "darker", ""))
    for context, expected in zip(model.contexts(prompts), (ct, darker, ct, empty, 0.75 * ct + 0.25 * darker), strict=True):
        torch.testing.assert_close(context, expected, rtol=0, atol=2e-6)  # batch rounding


@pytest.fixture
def saved(model, tmp_path):
    """The model's own file; the autoencoder's scale is a measured one, not the preset's."""
    model.vae.scale = 0.37
    model.save(tmp_path / "model.safetensors", {"step": 7})
    yield tmp_path / "model.safetensors"
    model.vae.scale = SD1.vae.scale


def test_save_and_load_give_the_same_model(model, saved, hints):
    loaded, (header,) = EmitDiff.load(saved)
    assert loaded.sizes == replace(SD1, vae=replace(SD1.vae, scale=0.37))
    assert (loaded.vae.scale, header["step"]) == (0.37, 7)
    theirs = model.state_dict()
    assert loaded.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.state_dict().items())
    images = [net.generate(["CT"], hints[:1], [1], 32, PLAIN) for net in (model, loaded)]
    assert (images[0] - images[1]).abs().max() < 1e-4  # weights from a file lie elsewhere in memory: other sums


def test_a_missing_part_is_an_input_error(model, tmp_path):
    model.save(tmp_path / "half.safetensors", parts=("unet", "vae"))
    with pytest.raises(InputError, match=r"half\.safetensors: holds unet, vae but no text; give a whole model"):
        EmitDiff.load(tmp_path / "half.safetensors")


def test_a_missing_controlnet_starts_without_effect_and_one_of_its_own_file_counts(model, saved, tmp_path, hints):
    model.save(tmp_path / "rest.safetensors", parts=("vae", "text", "unet"))
    new, _ = EmitDiff.load(tmp_path / "rest.safetensors")
    assert torch.equal(new.controlnet.middle_block[0].in_layers[2].weight, model.unet.middle_block[0].in_layers[2].weight)
    with torch.no_grad():
        images = [new.generate(["CT"], hint, [1], 32, PLAIN) for hint in (hints[:1], None)]
    assert torch.equal(*images)
    model.save(tmp_path / "control.safetensors", parts=("controlnet",))
    whole, headers = EmitDiff.load(tmp_path / "rest.safetensors", tmp_path / "control.safetensors")
    assert len(headers) == 2
    images = [net.generate(["CT"], hints[:1], [1], 32, PLAIN) for net in (model, whole)]
    assert (images[0] - images[1]).abs().max() < 1e-4  # as above


def test_of_a_controlnets_file_the_controlnet_alone_is_taken(model, saved, tmp_path):
    """Also where it is a whole model: every other weight stays the base's, and no header of it gets lost."""
    base, other = model.state_dict(), EmitDiff(SD1)
    ancestry = [{"stage": "other", "cases": 1, "hashes": 64 * "0"}]
    other.save(tmp_path / "other.safetensors", {"ancestry": ancestry})
    loaded, headers = EmitDiff.load(saved, tmp_path / "other.safetensors")
    assert [header.get("ancestry") for header in headers] == [None, ancestry]
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, (other.state_dict() if name.startswith("controlnet.") else base)[name]), name
    assert loaded.vae.scale == 0.37


def test_a_controlnet_that_is_missing_or_does_not_fit_is_refused(model, saved, tmp_path, monkeypatch):
    path = tmp_path / "control.safetensors"
    model.save(path, parts=("unet", "vae", "text"))
    with pytest.raises(InputError, match=r"control\.safetensors: holds unet, vae, text but no ControlNet; give one"):
        EmitDiff.load(saved, path)
    wide = replace(SD1, unet=replace(SD1.unet, model_channels=64))
    deaf = replace(SD1, unet=replace(SD1.unet, heads=4))  # does not show in any shape
    other = EmitDiff(wide)
    for whole, sizes in ((other, wide), (model, deaf), (model, replace(SD1, prediction="v"))):
        monkeypatch.setattr(whole, "sizes", sizes)
        whole.save(path, parts=["controlnet"])
        with pytest.raises(InputError, match=r"control\.safetensors: its ControlNet belongs to another UNet"):
            EmitDiff.load(saved, path)
    monkeypatch.setitem(PUBLIC, "sd1", {"unet": wide.unet})  # a public file, without a header
    save_file({f"control_model.{n}": t for n, t in other.controlnet.state_dict().items()}, path)
    with pytest.raises(InputError, match=r"control\.safetensors: controlnet does not fit: .*size mismatch"):
        EmitDiff.load(saved, path)


def test_what_the_unet_predicts_is_known_or_refused(saved, tmp_path):
    with pytest.raises(InputError, match=r"model\.safetensors: its header says eps, --prediction is v; give"):
        EmitDiff.load(saved, prediction="v")
    assert EmitDiff.load(saved, prediction="eps")[0].sizes.prediction == "eps"
    (tmp_path / "public").mkdir()
    path = write_original(tmp_path / "public", "sd2")[0]
    with pytest.raises(InputError, match=r"model\.safetensors: does not say what its UNet predicts; .*--prediction eps or v"):
        EmitDiff.load(path)
    for prediction in ("eps", "v"):
        assert EmitDiff.load(path, prediction=prediction)[0].sizes == replace(SIZES["sd2"], prediction=prediction)


def test_a_choice_between_weights_and_their_average_is_printed(model, saved, capsys):
    EmitDiff.load(saved)
    assert capsys.readouterr() == ("", "")
    with safe_open(saved, "pt") as opened:
        tensors, metadata = {name: opened.get_tensor(name) + 0 for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    averages = {name.replace(".", ""): tensor + 1 for name, tensor in model.unet.state_dict().items()}
    save_file({**tensors, **{f"model_ema.diffusion_model{n}": t for n, t in averages.items()}}, saved, metadata)
    loaded, _ = EmitDiff.load(saved)
    assert torch.equal(loaded.unet.out[2].bias, model.unet.out[2].bias)
    command = f"python -m emit.checkpoints export {saved} --ema --to single FILE2"
    words = f"{saved}: the trained weights were taken, not their moving average; {command} gives it\n"
    assert capsys.readouterr() == ("", words)


@pytest.mark.parametrize(("part", "network"), [("hed", HED), ("hed_v11", HEDv11)])
def test_edge_detectors_of_any_size_are_recognised(part, network, tmp_path, saved):
    hed, path = network((2, 3, 4, 5, 6)), tmp_path / "hed.safetensors"
    checkpoints.write_single(path, {part: hed.state_dict()}, {"trained": "here"})
    loaded, header = load_hed(path)
    image = torch.rand(2, 1, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert type(loaded) is network and header == {"trained": "here", "format": 2}
    with torch.no_grad():
        assert torch.equal(find_edges(loaded, image), hed(torch.cat([image] * 3, dim=1)))
    with pytest.raises(InputError, match=r"model\.safetensors: holds .*, not HED"):
        load_hed(saved)


class Watching(HED):
    """A HED whose scores are not zero; `shapes` holds the inputs' shapes."""

    def __init__(self):
        super().__init__((2, 3, 4, 5, 6))
        torch.manual_seed(0)
        self.shapes = []
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.1)

    def forward(self, image):
        self.shapes.append(tuple(image.shape))
        return super().forward(image)


def test_hed_sees_what_is_inside_the_frame_alone():
    hed = Watching()
    image = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image[[0, 2], :, :20], image[[0, 2], :, 52:] = math.nan, math.nan
    image[3] = math.nan  # nothing is left of it
    edges = find_edges(hed, image)
    assert sorted(hed.shapes) == [(1, 3, 64, 64), (2, 3, 32, 64)]
    with torch.no_grad():
        inside, whole = hed(image[[0, 2], :, 20:52].expand(-1, 3, -1, -1)), hed(image[1:2].expand(-1, 3, -1, -1))
    assert whole.std() > 0.02 and torch.equal(edges[1:2], whole)  # as without any frame
    assert torch.equal(edges[[0, 2], :, 20:52], inside)
    assert not edges[[0, 2], :, :20].any() and not edges[[0, 2], :, 52:].any() and not edges[3].any()


def test_hed_sees_the_side_that_is_asked_for_and_its_edges_come_back():
    hed, image = Watching(), torch.full((1, 1, 64, 64), math.nan)
    rows, columns = torch.arange(64.0)[:, None], torch.arange(64.0)
    image[0, 0, 20:52] = torch.sin(rows / 8 + columns / 11)[20:52]
    small, large = find_edges(hed, image), find_edges(hed, image, side=256)
    assert hed.shapes == [(1, 3, 32, 64), (1, 3, 128, 256)] and large.shape == small.shape == (1, 1, 64, 64)
    assert large[0, 0, 20:52].min() > 0 and not large[0, 0, :20].any() and not large[0, 0, 52:].any()
    shrunk = find_edges(hed, image, size=32)
    assert torch.allclose(shrunk, torch.nn.functional.avg_pool2d(small, 2), atol=0.1)  # a triangle, not a box
    assert shrunk.shape == (1, 1, 32, 32) and not shrunk[0, 0, :9].any()
    image[0, 0, 22:] = math.nan
    assert find_edges(hed, image, side=32).shape == (1, 1, 64, 64) and hed.shapes[-1] == (1, 3, 16, 32)  # 16: HED's least


def test_the_side_that_hed_sees_follows_what_it_was_trained_on():
    ours = {"ancestry": [{"stage": "hed"}]}
    assert [hed_side(header, size) for header in ({}, {"config": {}}, ours) for size in (64, 384)] == [256, 384, 256, 384, 64, 384]


FULL_SIZE = """
import json, resource, time, torch
from emit.model import SD15, EmitDiff, Sampling
model = EmitDiff(SD15).requires_grad_(False)
start = time.perf_counter()
image = model.generate(["MRI"], torch.zeros(1, 3, 256, 256), [0], 256, Sampling(steps=1, guidance=1.0))
seconds = time.perf_counter() - start
assert image.shape == (1, 3, 256, 256) and image.isfinite().all()
unit = 1 if __import__("sys").platform == "darwin" else 1024
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30]))
"""


@pytest.mark.slow
def test_one_step_at_full_size_fits_into_10_gib():
    """Text, ControlNet, UNet and decoder of Stable Diffusion 1.5 on random float32 weights, 256 x 256."""
    root = Path(__file__).resolve().parents[1]
    child = subprocess.run([sys.executable, "-c", FULL_SIZE], cwd=root, capture_output=True, text=True, timeout=600)
    assert child.returncode == 0, child.stderr
    seconds, gibibytes = json.loads(child.stdout)
    print(f"one step at 256 x 256: {seconds:.1f} s, peak memory {gibibytes:.1f} GiB")
    assert gibibytes < 10
