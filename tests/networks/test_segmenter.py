"""The segmenter against a functional computation, and its loss against brute force."""

import math

import pytest
import torch
import torch.nn.functional as F

from emit.networks.segmenter import Segmenter, SegmenterConfig, dice_ce_loss

TINY = (3, 5, 6)
VARIANTS = ("plain", "attention", "residual")


def randomised(config, seed):
    """Build a segmenter in evaluation mode with random weights and random batch statistics."""
    model, generator = Segmenter(config).eval(), torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(tensor[0].numel(), 1) ** 0.5)
    return model


def random_image(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Functional:
    """The whole segmenter in float64 with functions only, from its state dict."""

    def __init__(self, model):
        self.state = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def conv(self, x, name, **arguments):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), **arguments)

    def conv_norm(self, x, name, **arguments):
        mean, var, scale, shift = (
            self.state[f"{name}.1.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (self.conv(x, f"{name}.0", **arguments) - mean) / (var + 1e-5).sqrt() * scale + shift

    def block(self, x, name, depth, stride=1):
        h = self.conv_norm(x, f"{name}.layers.0", stride=stride, padding=1)
        if depth == 2:
            h = self.conv_norm(h.clamp(min=0), f"{name}.layers.2", padding=1)
        if f"{name}.shortcut.0.weight" in self.state:
            h = h + self.conv_norm(x, f"{name}.shortcut", stride=stride)
        return h.clamp(min=0)

    def gate(self, x, g, name):
        hidden = self.conv(x, f"{name}.W_x", stride=2) + self.conv(g, f"{name}.W_g")
        alpha = 1 / (1 + (-self.conv(hidden.clamp(min=0), f"{name}.psi")).exp())
        return x * F.interpolate(alpha, scale_factor=2, mode="bilinear", align_corners=False)

    def up(self, x, name):
        weight, (batch, _, height, width) = self.state[f"{name}.weight"], x.shape
        pixels = torch.einsum("bchw,cdij->bdhiwj", x, weight).reshape(batch, -1, 2 * height, 2 * width)
        return pixels + self.state[f"{name}.bias"][:, None, None]

    def three_levels(self, image):
        fine = self.block(image, "encoder.0", 2)
        middle = self.block(fine, "encoder.1", 2, stride=2)
        deep = self.block(middle, "encoder.2", 2, stride=2)
        gated = "gates.0.psi.bias" in self.state
        skip = self.gate(middle, deep, "gates.0") if gated else middle
        h = self.block(torch.cat([self.up(deep, "up.0"), skip], 1), "decoder.0", 1)
        skip = self.gate(fine, h, "gates.1") if gated else fine
        h = self.block(torch.cat([self.up(h, "up.1"), skip], 1), "decoder.1", 1)
        return self.conv(h, "head")


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_a_functional_computation(variant):
    model = randomised(SegmenterConfig(in_channels=2, classes=4, channels=TINY, variant=variant), seed=1)
    image = random_image(2, 2, 12, 20)
    logits = model(image)
    logits.sum().backward()  # what is computed in place has a gradient
    expected = Functional(model).three_levels(image.double())
    names = "\n".join(model.state_dict())  # the functional form follows the names, so they must be the variant's
    assert ("gates" in names, "shortcut" in names) == (variant == "attention", variant == "residual")
    assert logits.shape == (2, 4, 12, 20)
    # float32 against float64 through some 20 layers: a few hundred roundings of 6e-8
    assert (logits.detach() - expected).abs().max() < 2e-5 * expected.square().mean().sqrt()


@pytest.mark.parametrize("variant", VARIANTS)
def test_sides_that_the_strides_do_not_divide(variant):
    model = randomised(SegmenterConfig(channels=TINY, variant=variant), seed=2)
    image = random_image(1, 1, 13, 18)
    rows, columns = torch.arange(16).clamp(max=12), torch.arange(20).clamp(max=17)  # the border repeated
    padded = image[:, :, rows][:, :, :, columns]
    with torch.no_grad():
        logits, whole = model(image), model(padded)
    assert logits.shape == (1, 2, 13, 18)
    assert torch.equal(logits, whole[..., :13, :18])


def test_the_paper_preset_on_its_smallest_image():
    model = Segmenter(SegmenterConfig()).eval()
    assert [block.layers[0][0].out_channels for block in model.encoder] == [16, 32, 64, 128, 128, 256]
    assert len(model.gates) == 5 and model(torch.zeros(1, 1, 1, 1)).shape == (1, 2, 1, 1)
    assert all(torch.sigmoid(gate.psi.bias).item() == pytest.approx(0.8808, abs=1e-4) for gate in model.gates)  # almost open


def brute_force_loss(logits, mask):
    """Loop over pixels in Python floats; an absent class and the background are left out of the Dice mean."""
    classes, labels = logits.shape[1], mask.flatten().tolist()
    scores = logits.double().movedim(1, -1).reshape(-1, classes).tolist()
    probabilities = [[math.exp(s) / sum(map(math.exp, row)) for s in row] for row in scores]
    pixels = list(zip(probabilities, labels, strict=True))
    dice = []
    for label in range(1, classes):
        if label in labels:
            overlap = sum(p[label] for p, y in pixels if y == label)
            dice.append(2 * overlap / (sum(p[label] for p in probabilities) + labels.count(label)))
    dice_loss = 1 - sum(dice) / len(dice) if dice else 0.0
    return dice_loss - sum(math.log(p[y]) for p, y in pixels) / len(pixels)


def random_logits(seed, classes=4):
    return 2 * torch.randn(2, classes, 5, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("present", [(0, 1, 2, 3), (0, 1, 3), (1, 2), (0,), (3,)])
def test_loss_equals_brute_force(present):
    choice = torch.randint(len(present), (2, 5, 6), generator=torch.Generator().manual_seed(5))
    logits, mask = random_logits(6), torch.tensor(present)[choice]
    # 2e-6: float32 sums of 60 terms
    assert dice_ce_loss(logits, mask).item() == pytest.approx(brute_force_loss(logits, mask), rel=2e-6)


def test_loss_is_computed_in_float32():
    logits, mask = random_logits(8).bfloat16(), torch.ones(2, 5, 6, dtype=torch.int64)
    loss = dice_ce_loss(logits, mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(brute_force_loss(logits, mask), rel=2e-6)


def test_certain_and_absent_classes_keep_loss_and_gradient_finite():
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 0] = 1e4  # probability of classes 1 and 2 exactly 0
    logits.requires_grad_()
    perfect = dice_ce_loss(logits, torch.zeros(1, 2, 2, dtype=torch.int64))
    perfect.backward()
    assert perfect.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))
    wrong = dice_ce_loss(logits, torch.ones(1, 2, 2, dtype=torch.int64))
    assert wrong.item() == pytest.approx(1 + 1e4, rel=1e-6)  # Dice 0 and cross-entropy 1e4
