"""What stages 1 and 2 give the networks at each step, what they train, what they leave alone, what they keep; the generator."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import train_finetune
import train_pretrain
from emit import generate
from emit.data.cache import TrainingImages
from emit.data.cases import Case
from emit.data.edges import make_hint
from emit.data.geometry import LINEAR, fit
from emit.dataset import LabelledSet, SetSettings
from emit.errors import InputError
from emit.model import EmitDiff, demo_sizes, find_edges
from emit.networks.discriminator import Discriminator
from emit.networks.vae import Posterior
from emit.probes import choose_fixed

SIZE, COUNT, SCALE, DROPOUT = 16, 8, 0.5, 0.25
RUN = {"size": SIZE, "batch": 8, "steps": 8, "warmup": 0, "ema": 0.9, "lr": 1e-2, "schedule": "constant", "seed": 3}
RUN |= {"caption_dropout": DROPOUT, "out": Path("run")}


def level_of(number):
    return -0.6 + 0.2 * number


def make_case(number):
    """Return a case that shows a square, off the centre, of a level of its own on black; the mask is the square."""
    image, mask = np.full((SIZE, SIZE), -1.0, np.float32), np.zeros((SIZE, SIZE), np.uint8)
    image[4:12, 6:14], mask[4:12, 6:14] = level_of(number), 1
    name = f"case {number}"
    return Case(name, name, f"prompt {number}", "", f"pictures/{number}.png", lambda path: (image, mask))


CASES = [make_case(number) for number in range(COUNT)]


class PixelVAE(nn.Module):
    """The mean is every fourth pixel, the deviation 0.01: latents show which picture they are of."""

    def __init__(self):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.ones(())), SCALE

    def encode(self, image):
        mean = self.weight * image[:, :1, ::4, ::4].expand(-1, 4, -1, -1)
        return Posterior(mean, torch.full_like(mean, 2 * np.log(0.01)), self.scale)


class PixelHED(nn.Module):
    """The edge of a picture in [-1, 1] is the picture in [0, 1]."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image):
        return self.weight * (image[:, :1] + 1) / 2

    def logits(self, image):
        return self.weight * image[:, :1]


class Spy(EmitDiff):
    """The demo's networks behind a PixelVAE; `seen` holds what each call of `losses` was given, and the weights' sum."""

    def __init__(self):
        super().__init__(demo_sizes(64))
        self.vae, self.seen = PixelVAE(), []

    def losses(self, z_0, t, eps, prompts, hint=None):
        loss = super().losses(z_0, t, eps, prompts, hint)
        given = SimpleNamespace(z_0=z_0, t=t, eps=eps, prompts=prompts, hint=hint, loss=loss.detach())
        given.trains, given.weights = loss.requires_grad, weigh(self)
        self.seen.append(given)
        return loss


def weigh(module):
    return sum(parameter.detach().double().abs().sum().item() for parameter in module.parameters())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Spy()


def cases_of(z_0):
    """Return the numbers of the cases that latents show: the brightest of them, as the squares differ in level."""
    return ((z_0.amax(dim=(1, 2, 3)) / SCALE + 0.6) / 0.2).round().int().tolist()


def check_inputs(steps):
    """Every case is shown, scaled, with its own prompt or, at the dropout rate, the empty one."""
    numbers = [number for step in steps for number in cases_of(step.z_0)]
    prompts = [prompt for step in steps for prompt in step.prompts]
    assert set(numbers) == set(range(COUNT)) and len(numbers) == 64
    assert all(prompt in ("", f"prompt {number}") for prompt, number in zip(prompts, numbers, strict=True))
    assert abs(prompts.count("") - 64 * DROPOUT) < 4 * (64 * DROPOUT * (1 - DROPOUT)) ** 0.5  # four deviations
    noise = torch.cat([step.z_0 - step.z_0.mean(1, keepdim=True) for step in steps])
    assert noise.std().item() == pytest.approx(SCALE * 0.01 * 0.75**0.5, rel=0.1)  # about the mean of 4 channels; 4096


def check_trained(module, before, trained):
    """The parts named changed, everything else is bit-equal and has no gradient; return what is frozen."""
    changed = {name.split(".")[0] for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained
    frozen = [p for name, p in module.named_parameters() if name.split(".")[0] not in trained]
    assert all(p.grad is None for p in frozen)
    return frozen


def check_average(folder, modules):
    """The modules hold the average of the weights, not the last ones."""
    state = torch.load(folder / "state.pt", weights_only=True)
    values = {f"{name}.{key}": p for name, module in modules.items() for key, p in module.named_parameters()}
    assert values.keys() == state["weights"].keys()
    assert all(torch.equal(values[name], mean) for name, mean in zip(state["weights"], state["ema"], strict=True))
    assert not all(torch.equal(values[name], last) for name, last in state["weights"].items())


def read_log(folder):
    (line,) = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return line


def copy_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


# ---- stage 1


@pytest.fixture
def settings(tmp_path):
    own = {f"{part}_{name}": RUN[name] for part in ("vae", "hed", "unet") for name in ("batch", "steps")}
    own |= {"vae_lr": RUN["lr"], "unet_lr": RUN["lr"]}
    return train_pretrain.Settings(**RUN | own | {"out": tmp_path, "data": Path("pictures"), "kl_weight": 0.5, "sample_every": 4})


@pytest.mark.parametrize("part", ["unet", "controlnet"])
def test_stage_1_trains_its_part_on_the_right_conditions(model, part, settings, monkeypatch):
    sampled = []
    monkeypatch.setattr(train_pretrain, "save_samples", lambda *given: sampled.append((given[3].name, weigh(model))))
    pictures, before = TrainingImages(CASES, SIZE), copy_of(model)

    def hints(batch):
        return make_hint("hed", None, (batch.image + 1) / 2, 2)

    train_pretrain.train_diffusion(model, part, pictures, model.latent_memo(), hints, settings)
    trained = ("unet", "text") if part == "unet" else ("controlnet",)
    frozen = check_trained(model, before, set(trained))
    check_inputs(model.seen)
    if part == "unet":
        assert all(step.hint is None for step in model.seen)
    else:
        assert not any(parameter.requires_grad for parameter in frozen)
        for step in model.seen:  # 0.02: eight deviations of the latents' noise
            assert torch.allclose(step.hint[:, :1, ::4, ::4], (step.z_0.mean(1, keepdim=True) / SCALE + 1) / 2, atol=0.02)
    check_average(settings.out / part, {name: getattr(model, name) for name in trained})
    line = read_log(settings.out / part)
    assert line["loss"] == pytest.approx(np.mean([step.loss.mean().item() for step in model.seen]), rel=1e-5)
    assert [name for name, _ in sampled] == [f"{part}_000004.png", f"{part}_000008.png"]
    assert sampled[1][1] == weigh(model) and sampled[0][1] != model.seen[4].weights  # drawn with the average


@pytest.mark.parametrize("sharp", [0.0, 0.5])
def test_the_autoencoder_is_scaled_as_it_is_saved(sharp, settings, monkeypatch):
    """The loss is what the log says: L1 + w KL, and from ADVERSARY_FROM of the steps on the adversary's two terms as well."""
    torch.manual_seed(0)
    model, pictures, seen = EmitDiff(demo_sizes(64)), TrainingImages(CASES, SIZE), []
    settings, critics, shown, before = replace(settings, sharp=sharp), [], [], copy_of(model)
    encode, decode = model.vae.encode, model.vae.decode
    monkeypatch.setattr(model.vae, "encode", lambda image: seen.append([image, encode(image)]) or seen[-1][1])
    monkeypatch.setattr(model.vae, "decode", lambda z: seen[-1].append(decode(z)) or seen[-1][2])

    def build(*sizes):
        critics.append(Discriminator(*sizes))
        critics[0].register_forward_pre_hook(lambda _, given: shown.append(given[0].requires_grad))
        return critics[0]

    monkeypatch.setattr(train_pretrain, "Discriminator", build)
    monkeypatch.setattr(train_pretrain, "adaptive_weight", lambda *losses: torch.tensor(0.25))
    train_pretrain.train_autoencoder(model, pictures, settings)
    check_trained(model, before, {"vae"})
    check_average(settings.out / "vae", {"vae": model.vae} | ({"discriminator": critics[0]} if sharp else {}))
    steps = [step for step in seen if len(step) == 3]
    l1 = np.mean([(image - found).abs().mean().item() for image, _, found in steps])
    kl = np.mean([(posterior.kl() / (3 * SIZE * SIZE)).mean().item() for _, posterior, _ in steps])  # nats per number
    line = read_log(settings.out / "vae")
    loss = l1 + 0.5 * kl
    assert shown == (4 * [True, False, False] if sharp else [])  # its own loss teaches the autoencoder nothing
    if sharp:
        share = np.mean(np.arange(8) >= train_pretrain.ADVERSARY_FROM * 8)
        assert 0 < share < 1 and line["weight"] == 0.5 * 0.25
        loss += share * (line["weight"] * line["adversarial"] + line["discriminator"] / 100)
    assert (line["l1"], line["kl"], line["loss"]) == pytest.approx((l1, kl, loss), rel=1e-5)  # float32 sums
    with torch.no_grad():
        means = torch.cat([encode(pictures.image([i]).expand(-1, 3, -1, -1)).mean for i in range(COUNT)])
    assert model.vae.scale * means.std().item() == pytest.approx(1, rel=1e-5)


def test_hed_learns_each_pictures_own_boundary(settings, tmp_path, monkeypatch):
    settings = replace(settings, boundaries=tmp_path)
    for number in range(COUNT):
        Image.fromarray(np.full((SIZE, SIZE), 30 * number, np.uint8)).save(tmp_path / f"{number}.png")
    seen = []
    monkeypatch.setattr(train_pretrain, "hed_loss", lambda *given: seen.append(given) or given[0].mean())
    hed = PixelHED()
    train_pretrain.train_hed(hed, TrainingImages(CASES, SIZE), settings)
    check_average(tmp_path / "hed", {"hed": hed})
    assert len(seen) == 8
    logits, boundary = seen[0]  # the weight is still 1
    numbers = cases_of(SCALE * logits.detach())
    expected = torch.tensor(numbers) * 30 / 255
    assert boundary.shape == (8, 1, SIZE, SIZE) and sorted(numbers) == list(range(COUNT))
    assert torch.allclose(boundary, expected.view(-1, 1, 1, 1).expand_as(boundary))
    (tmp_path / "5.png").unlink()
    with pytest.raises(InputError, match=r"5.png: "):
        train_pretrain.train_hed(PixelHED(), TrainingImages(CASES, SIZE), replace(settings, out=tmp_path / "b"))


# ---- stage 2


@pytest.fixture
def fine_tune(model, tmp_path):
    """Return a function of settings: the result of train_fold on CASES, and what the losses were given."""

    def run(**change):
        change = RUN | {"data": Path("set"), "model": Path("m"), "hed": Path("h"), "hed_size": SIZE, "out": tmp_path} | change
        settings = train_finetune.Settings(**change)
        result = train_finetune.train_fold(model, hed, CASES, ("background", "lesion"), settings, tmp_path / "fold0")
        steps, probes = ([given for given in model.seen if given.trains == trains] for trains in (True, False))
        return result, steps, probes

    hed = PixelHED()
    return run


@pytest.mark.parametrize(
    ("hint", "warp"),
    [
        ("hed", {"vary": 0.0, "degrees": 40.0, "crop": (1.0, 1.0)}),
        ("mask", {"vary": 0.0, "degrees": 0.0, "crop": (0.75, 0.8)}),
        ("hed+contour", {"vary": 0.0, "degrees": 0.0, "crop": (1.0, 1.0)}),
        ("hed", {"vary": 0.5}),
        ("mask", {"vary": 0.5}),
    ],
)
def test_stage_2_warps_image_edge_and_mask_together(model, fine_tune, hint, warp):
    before = copy_of(model)
    _, steps, _ = fine_tune(hint=hint, **warp)
    frozen = check_trained(model, before, {"controlnet"})
    assert not any(parameter.requires_grad for parameter in frozen)
    check_inputs(steps)
    pictures = TrainingImages(CASES, SIZE)
    for step in steps:
        numbers, shown = cases_of(step.z_0), step.z_0.mean(1, keepdim=True) / SCALE
        image, mask = pictures.read(numbers)
        moved = ((shown - image[:, :, ::4, ::4]).abs() > 0.1).flatten(1).any(1).float().mean()
        given = step.hint[:, :1, ::4, ::4]
        if hint == "hed":
            assert moved > 0 and torch.allclose(given, (shown + 1) / 2, atol=0.02)  # eight deviations of the noise
        elif hint == "mask":
            middle = torch.tensor([(level_of(number) - 1) / 2 for number in numbers]).view(-1, 1, 1, 1)
            assert moved > 0 and ((shown > middle).float() == given).float().mean() > 0.95  # linear against nearest
        else:
            expected = make_hint(hint, mask, (image + 1) / 2, 2)
            assert moved == 0 and torch.allclose(step.hint, expected, atol=1e-5)  # float32 positions


def test_stage_2_probes_fixed_cases_with_the_average_it_keeps(model, fine_tune, tmp_path):
    (pictures, hints, losses, _), steps, probes = fine_tune(hint="hed", vary=0.5, probe_every=4)
    check_average(tmp_path / "fold0", {"controlnet": model.controlnet})
    names = ("hint_true", "hint_zero", "hint_other", "prompt_wrong", "prompt_empty")
    assert len(steps) == 8 and len(probes) == 15  # after 4 steps, after 8, and at the end
    for first, later in zip(probes[:5] * 2, probes[5:], strict=True):
        assert first.prompts == later.prompts
        assert all(torch.equal(getattr(first, name), getattr(later, name)) for name in ("z_0", "hint", "t", "eps"))
    true, zero, other, wrong, empty = probes[10:]
    numbers, different = choose_fixed([case.prompt for case in CASES], 3)
    assert cases_of(true.z_0) == numbers and wrong.prompts == different and empty.prompts == [""] * COUNT
    for probe in (true, zero, other):
        assert probe.prompts == [f"prompt {number}" for number in numbers]
    shown = true.z_0.mean(1, keepdim=True) / SCALE
    assert torch.allclose(true.hint[:, :1, ::4, ::4], (shown + 1) / 2, atol=0.02)  # eight deviations of the noise
    assert not zero.hint.any() and torch.equal(other.hint, true.hint.roll(1, 0))
    assert {name: losses[name] for name in names} == {
        name: probe.loss.mean().item() for name, probe in zip(names, probes[10:], strict=True)
    }
    assert {probe.weights for probe in probes[10:]} == {weigh(model)} != {probe.weights for probe in probes[5:10]}
    logged = np.mean([probes[at].loss.mean().item() for at in (0, 5)])
    assert read_log(tmp_path / "fold0")["hint_true"] == pytest.approx(logged, rel=1e-6)
    batch = pictures.batch(numbers)
    assert pictures.cases == CASES and torch.equal(hints(batch), make_hint("hed", None, (batch.image + 1) / 2, 2))


# ---- the generator


class HalfVAE(nn.Module):
    """Loses half of every pixel."""

    def encode(self, image):
        return SimpleNamespace(mode=lambda: image / 2)

    def decode(self, z):
        return z


class Framing(nn.Module):
    """A generator that draws the case itself, with a white frame around it; what HED sees of the frame it takes for an edge."""

    def __init__(self, picture):
        super().__init__()
        self.weight, self.picture, self.vae = nn.Parameter(torch.ones(())), torch.as_tensor(picture), HalfVAE()

    def generate(self, prompts, hint, seeds, size, *_):
        return fit(self.picture, size, LINEAR, 1.0).expand(len(prompts), 3, size, size)


def generator_of(folder, cases, size, view, **change):
    """Return the labelled set of some cases and settings of the generator."""
    labelled = LabelledSet(cases, ("background", "lesion"), [], SetSettings(data=folder), size, "hed", view)
    return labelled, generate.Settings(model=folder, finetuned=folder, hed=folder, out=folder, **change)


def generate_one(folder, picture, mask, hed, view=32, **change):
    """Generate one image of a case and return its line of the manifest."""
    (folder / "case.png").touch()
    case = Case("one", "one", "prompt", "", str(folder / "case.png"), lambda path: (picture, mask))
    labelled, settings = generator_of(folder, [case], 32, view, n=1, vary=0.0, **change)
    generate.generate_fold(Framing(picture), hed, [case], labelled, settings, {}, folder)
    (line,) = map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())
    return line


def test_a_bent_frame_is_no_edge_and_bent_noise_stays_noise(tmp_path):
    wide = np.random.default_rng(0).normal(0, 0.2, (16, 32)).astype(np.float32).clip(-1, 1)
    images = TrainingImages([Case("wide", "wide", "", "", "", lambda path: (wide, None))], 32, 32)
    jobs = [generate.Job(0, index, "", 0, None) for index in range(20)]
    labelled, settings = generator_of(tmp_path, images.cases, 32, 32)
    own = generate.look_at(images, Framing(wide), PixelHED(), labelled, settings)
    _, _, frames, texture = generate.make_conditions(own, None, images.cases, jobs, labelled, settings)
    assert len({frame.sum().item() for frame in frames}) > 5  # tilted and bent
    inside = texture[:, 0][~frames & (texture[:, 0] > -0.45)]
    assert inside.std() == pytest.approx(0.1, abs=0.01)  # half of 0.2; bilinear sampling leaves two thirds of it
    edges = find_edges(PixelHED(), texture.masked_fill(frames[:, None], np.nan), 32)
    assert edges.isfinite().all() and not edges[:, 0][frames].any() and (edges[:, 0][~frames] > 0).all()


@pytest.mark.parametrize("side", [32, 64])
def test_the_agreement_of_edges_counts_no_frame(tmp_path, side):
    picture, hed = np.full((16, 32), -0.9, np.float32), PixelHED()
    picture[4:12, 6:14] = 0.9
    hed.forward = lambda image: (image[:, :1] + 1.5) / 3  # black is an edge, too
    line = generate_one(tmp_path, picture, (picture > 0).astype(np.uint8), hed, side, texture=0.0)
    assert (line["edge_agreement"], line["hed_size"], line["hint"]) == (1.0, side, "hed")
    edge = np.asarray(Image.open(tmp_path / "edges" / line["file"])) / 255
    assert not edge[:7].any() and not edge[25:].any()
    # one grey level; where the view has twice the size, a triangle softens what is not flat
    assert np.abs(edge[8:24] - (picture + 1.5) / 3)[2:-2].max() < (0.003 if side == 32 else 0.4)


def test_the_texture_is_in_the_picture(tmp_path):
    picture = np.linspace(-0.5, 0.5, 32 * 32, dtype=np.float32).reshape(32, 32)
    line = generate_one(tmp_path, picture, np.ones((32, 32), np.uint8), PixelHED())
    pixels = np.asarray(Image.open(tmp_path / "images" / line["file"])) / 127.5 - 1
    assert np.abs(pixels - 1.5 * picture).max() < 1 / 127  # of 8 bits


def test_a_line_of_a_case_that_is_gone_is_dropped(tmp_path):
    picture, mask = np.linspace(-0.5, 0.5, 32 * 32, dtype=np.float32).reshape(32, 32), np.ones((32, 32), np.uint8)
    line = generate_one(tmp_path, picture, mask, PixelHED())
    with open(tmp_path / "manifest.jsonl", "a") as file:
        file.write(json.dumps(line | {"case": "gone", "file": "gone_000.png"}) + "\n")
    for kind in ("images", "masks", "edges"):
        (tmp_path / kind / "gone_000.png").write_bytes((tmp_path / kind / line["file"]).read_bytes())
    assert generate_one(tmp_path, picture, mask, PixelHED()) == line  # the one line that is left


@pytest.fixture
def conditions(tmp_path):
    """Return a function (jobs, tissue, settings) of what the ControlNet and the picture are given."""

    def make(jobs, tissue=None, **change):
        labelled, settings = generator_of(tmp_path, CASES, SIZE, SIZE, **change)
        jobs, looks = [generate.Job(case, index, "", 0, 1) for case, index in jobs], [None, None]
        for place, images in enumerate((TrainingImages(CASES, SIZE, SIZE), tissue)):
            looks[place] = images and generate.look_at(images, Framing(CASES[0].image), PixelHED(), labelled, settings)
        return generate.make_conditions(*looks, CASES, jobs, labelled, settings)

    return make


def test_without_new_shapes_a_case_is_its_own_condition(conditions):
    image, mask = TrainingImages(CASES, SIZE).read([3, 5])
    hint, masks, frames, texture = conditions([(3, 0), (5, 0)], vary=0.0)
    assert torch.allclose(hint, (image + 1).expand(-1, 3, -1, -1) / 2) and torch.equal(masks, mask) and not frames.any()
    assert torch.allclose(texture, image / 2)
    assert torch.equal(conditions([(3, 0)], vary=0.0, texture=0.5)[3], image[:1] / 4)
    assert not conditions([(3, 0)], vary=0.0, texture=0.0)[3].any()


def test_case_and_index_alone_decide_a_shape_and_texture_moves_with_it(conditions):
    hint, masks, _, texture = conditions([(3, 0), (3, 1), (5, 0)])
    assert not torch.equal(hint[0], hint[1]) and not torch.equal(masks[0], masks[1])
    alone = conditions([(3, 1)])
    assert torch.equal(alone[0][0], hint[1]) and torch.equal(alone[1][0], masks[1])
    # Both are linear in the image, which is flat but for one step; there nearest and bilinear differ.
    assert ((texture - (2 * hint[:, :1] - 1) / 2).abs() < 1e-5).float().mean() > 0.8


def test_tissue_gives_its_edges_and_texture_and_takes_the_lesion_with_its_own(conditions):
    wide = Case("wide", "wide", "", "", "", lambda path: (np.full((SIZE // 4, SIZE), 0.2, np.float32), None))
    tissue = TrainingImages([CASES[0], wide], SIZE, SIZE)  # letterboxed: a frame above and below
    hint, masks, frames, texture = conditions([(3, 0)], tissue, vary=0.0)
    assert frames[0, :6].all() and frames[0, 10:].all() and not frames[0, 6:10].any()
    own = TrainingImages(CASES, SIZE).read([3])[1]
    assert torch.equal(masks[0, 6:10], own[0, 6:10]) and own[0][frames[0]].any() and not masks[0][frames[0]].any()
    assert torch.allclose(hint[0, 0, 6:10, 0], torch.tensor(0.6)) and torch.allclose(texture[0, 0, 6:10, 0], torch.tensor(0.1))
    lesion = masks[0] > 0
    assert torch.allclose(hint[0, 0][lesion], torch.tensor((level_of(3) + 1) / 2))
    assert torch.allclose(texture[0, 0][lesion], torch.tensor(level_of(3) / 2))  # it keeps its own
