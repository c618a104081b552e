"""HED against the published names, a separate functional computation, hand-computed numbers, and toy images."""

import math

import pytest
import torch
import torch.nn.functional as F

from emit.networks.hed import HED, HEDv11, class_balanced_loss, hed_loss

TINY = (3, 4, 5, 6, 7)  # five different widths, so that a swapped stage cannot fit
VGG = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width and number of convolutions of each stage


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def conv_shapes(prefix, out_channels, in_channels, kernel):
    return {f"{prefix}.weight": (out_channels, in_channels, kernel, kernel), f"{prefix}.bias": (out_channels,)}


def randomised(model, seed):
    """Give every parameter a random value, so that no zero or symmetric start hides a fault."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() or 1
        parameter.data = torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5
    return model


def random_image(batch, height, width, seed):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_names_and_shapes_of_network_bsds500():
    expected = conv_shapes("moduleCombine.0", 1, 5, 1)
    in_channels = 3
    for stage, (name, (width, depth)) in enumerate(zip(("One", "Two", "Thr", "Fou", "Fiv"), VGG, strict=True)):
        for index in range(depth):
            position = 2 * index + (stage > 0)  # after a pooling, every second layer is a ReLU
            expected |= conv_shapes(f"moduleVgg{name}.{position}", width, in_channels, 3)
            in_channels = width
        expected |= conv_shapes(f"moduleScore{name}", 1, width, 1)
    with torch.device("meta"):
        model = HED()
    assert len(expected) == 38 and shapes(model) == expected
    # VGG-16's convolutions have 14,714,688 parameters; scores: 1472 + 5; fusion: 6
    assert sum(parameter.numel() for parameter in model.parameters()) == 14_714_688 + 1477 + 6


def test_names_and_shapes_of_controlnet_hed():
    expected = {"norm": (1, 3, 1, 1)}
    in_channels = 3
    for stage, (width, depth) in enumerate(VGG, start=1):
        for index in range(depth):
            expected |= conv_shapes(f"block{stage}.convs.{index}", width, in_channels, 3)
            in_channels = width
        expected |= conv_shapes(f"block{stage}.projection", 1, width, 1)
    with torch.device("meta"):
        model = HEDv11()
    assert len(expected) == 37 and shapes(model) == expected


def functional_sides(h, stages, scores):
    """Five side logits from lists of (weight, bias), with functions only."""
    size, sides = h.shape[-2:], []
    for stage, (convolutions, score) in enumerate(zip(stages, scores, strict=True)):
        if stage:
            h = F.max_pool2d(h, kernel_size=2, stride=2)
        for weight, bias in convolutions:
            h = F.conv2d(h, weight, bias, padding=1).clamp(min=0)
        sides.append(F.interpolate(F.conv2d(h, *score), size=size, mode="bilinear", align_corners=False))
    return sides


def functional_bsds(image, model):
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    stages, scores = [], []
    for name, positions in (("One", "02"), ("Two", "13"), ("Thr", "135"), ("Fou", "135"), ("Fiv", "135")):
        prefixes = [f"moduleVgg{name}.{position}" for position in positions]
        stages.append([(state[f"{prefix}.weight"], state[f"{prefix}.bias"]) for prefix in prefixes])
        scores.append((state[f"moduleScore{name}.weight"], state[f"moduleScore{name}.bias"]))
    red, green, blue = ((image.double() + 1) / 2 * 255).unbind(1)
    bgr = torch.stack([blue - 104.00698793, green - 116.66876762, red - 122.67891434], dim=1)
    sides = functional_sides(bgr, stages, scores)
    weight, bias = state["moduleCombine.0.weight"].flatten(), state["moduleCombine.0.bias"]
    return [*sides, sum(w * side for w, side in zip(weight, sides, strict=True)) + bias]


def functional_v11(image, model):
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    stages, scores = [], []
    for stage, depth in enumerate((2, 2, 3, 3, 3), start=1):
        prefixes = [f"block{stage}.convs.{index}" for index in range(depth)]
        stages.append([(state[f"{prefix}.weight"], state[f"{prefix}.bias"]) for prefix in prefixes])
        scores.append((state[f"block{stage}.projection.weight"], state[f"block{stage}.projection.bias"]))
    sides = functional_sides((image.double() + 1) / 2 * 255 - state["norm"], stages, scores)
    return [*sides, sum(sides) / 5]


@pytest.mark.parametrize("build, reference", [(HED, functional_bsds), (HEDv11, functional_v11)])
@pytest.mark.parametrize("height, width", [(16, 16), (17, 31), (45, 38)])
def test_logits_equal_a_functional_computation(build, reference, height, width):
    model = randomised(build(TINY), seed=1)
    image = random_image(2, height, width, seed=2)
    with torch.no_grad():
        logits, probability = model.logits(image), model(image)
    expected = reference(image, model)
    assert len(logits) == 6
    for ours, theirs in zip(logits, expected, strict=True):
        assert ours.shape == (2, 1, height, width) and ours.dtype == torch.float32
        # float32 against float64 through 13 convolutions: a few hundred roundings of 6e-8
        assert (ours - theirs).abs().max() < 2e-5 * theirs.square().mean().sqrt()
    # logits reach some hundreds here, and the sigmoid's slope is at most 1/4
    assert (probability - torch.sigmoid(expected[-1])).abs().max() < 0.25 * 2e-5 * expected[-1].abs().max() + 1e-7


def test_pixels_that_reach_the_first_convolution():
    image = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 16, 16)  # 255 red, 127.5 green, 0 blue
    seen = []
    bsds, v11 = HED(TINY), HEDv11(TINY)
    v11.norm.data = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    for layer in (bsds.moduleVggOne[0], v11.block1.convs[0]):
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, :, 5, 7].tolist()))
    bsds(image), v11(image)
    # 1e-4: float32 at 255 is spaced by 1.5e-5
    assert seen[0] == pytest.approx([0 - 104.00698793, 127.5 - 116.66876762, 255 - 122.67891434], abs=1e-4)
    assert seen[1] == pytest.approx([255 - 1, 127.5 - 2, 0 - 3], abs=1e-4)


def test_too_small_an_image_is_refused():
    with pytest.raises(ValueError, match="at least 16"):
        HED(TINY)(torch.zeros(1, 3, 15, 40))


@pytest.mark.parametrize("build", [HED, HEDv11])
def test_start_from_scratch(build):
    torch.manual_seed(0)
    model = build((8, 16, 32, 32, 32))
    assert torch.equal(model(random_image(1, 20, 20, seed=3)), torch.full((1, 1, 20, 20), 0.5))
    convolutions = [p for p in model.parameters() if p.dim() == 4 and p.shape[-1] == 3]
    assert len(convolutions) == 13
    for weight in convolutions:
        spread = math.sqrt(2 / (9 * weight.shape[1]))
        # the sample deviation of n normals spreads by 1 / sqrt(2 n); 5 of these never happen by chance
        assert abs(weight.std().item() / spread - 1) < 5 / math.sqrt(2 * weight.numel())
    if build is HED:
        assert model.moduleCombine[0].weight.flatten().tolist() == pytest.approx([0.2] * 5)


HAND_Y = [[1.0, 0.0], [0.0, 0.0]]
HAND_LOGIT = [[0.0, math.log(3)], [-math.log(3), 0.0]]  # p = 1/2, 3/4, 1/4, 1/2;  beta = 3/4
HAND_LOSS = (0.75 * math.log(2) + 0.25 * (math.log(4) + math.log(4 / 3) + math.log(2))) / 4  # 0.27791


def as_map(rows):
    return torch.tensor(rows).view(1, 1, 2, 2)


HAND_PLAIN = (2 * math.log(2) + math.log(4) + math.log(4 / 3)) / 4  # the same p, every pixel once


def test_sides_are_balanced_and_the_fusion_is_plain():
    logit, y, zero = as_map(HAND_LOGIT), as_map(HAND_Y), torch.zeros(1, 1, 2, 2)
    # Of a logit of 0 every pixel costs log 2: balanced (0.75 + 3 * 0.25) / 4 of it, plain the whole.
    side, fusion = 1.5 / 4 * math.log(2), math.log(2)
    assert hed_loss([logit] * 5 + [zero], y).item() == pytest.approx(5 * HAND_LOSS + fusion, rel=1e-6)
    assert hed_loss([zero] * 5 + [logit], y).item() == pytest.approx(5 * side + HAND_PLAIN, rel=1e-6)


def test_side_loss_by_hand_balances_each_image_and_is_zero_without_boundary():
    logit, y = as_map(HAND_LOGIT), as_map(HAND_Y)
    assert class_balanced_loss(logit, y).item() == pytest.approx(HAND_LOSS, rel=1e-6)  # float32
    other = as_map([[1.0, 1.0], [1.0, 0.0]])  # beta = 1/4; p = 1/2, 3/4, 1/4 on the boundary, 1/2 off it
    other_loss = (0.25 * (math.log(2) + math.log(4 / 3) + math.log(4)) + 0.75 * math.log(2)) / 4
    both = class_balanced_loss(torch.cat([logit, logit]), torch.cat([y, other]))
    assert both.item() == pytest.approx((HAND_LOSS + other_loss) / 2, rel=1e-6)
    assert class_balanced_loss(logit, torch.zeros_like(y)).item() == 0


def test_side_loss_of_soft_labels():
    y, p = [[0.5, 0.0], [0.25, 0.25]], [[0.5, 0.75], [0.25, 0.5]]
    beta, loss = 1 - (0.5 + 0.25 + 0.25) / 4, 0.0
    for row in range(2):
        for column in range(2):
            soft, chance = y[row][column], p[row][column]
            loss -= beta * soft * math.log(chance) + (1 - beta) * (1 - soft) * math.log(1 - chance)
    assert class_balanced_loss(as_map(HAND_LOGIT), as_map(y)).item() == pytest.approx(loss / 4, rel=1e-6)


def test_loss_is_finite_at_extreme_logits_in_half_precision_and_refuses_other_shapes():
    logit, y = as_map([[-1e4, 1e4], [0.0, 0.0]]), as_map(HAND_Y)
    balanced = (0.75 * 1e4 + 0.25 * (1e4 + 2 * math.log(2))) / 4
    plain = (2e4 + 2 * math.log(2)) / 4
    loss = hed_loss([logit.half()] * 6, y)  # 1e4 is a whole number in half precision
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(5 * balanced + plain, rel=1e-6)
    with pytest.raises(ValueError, match="shaped"):
        hed_loss([logit] * 6, y[:, 0])


def discs_and_squares(count, size, seed):
    """Draw one disc and one square of random grey per image, noise of deviation 0.15; and their boundary pixels."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    images, boundaries = [], []
    for _ in range(count):
        label = torch.zeros(size, size, dtype=torch.int64)
        for shape in (1, 2):
            row, column, radius = torch.rand(3, generator=generator).tolist()
            dy, dx = rows - size * (0.2 + 0.6 * row), columns - size * (0.2 + 0.6 * column)
            distance = (dy**2 + dx**2).sqrt() if shape == 1 else torch.maximum(dy.abs(), dx.abs())
            label[distance < size * (0.1 + 0.15 * radius)] = shape
        grey = (torch.rand(3, generator=generator) * 1.4 - 0.7)[label]
        images.append((grey + 0.15 * torch.randn(size, size, generator=generator)).expand(3, -1, -1))
        boundary = torch.zeros(size, size)
        boundary[1:] += label[1:] != label[:-1]
        boundary[:, 1:] += label[:, 1:] != label[:, :-1]
        boundaries.append(boundary.clamp(max=1)[None])
    return torch.stack(images), torch.stack(boundaries)


def average_precision(probability, boundary):
    hit = boundary.flatten()[probability.flatten().argsort(descending=True)]
    precision = hit.cumsum(0) / torch.arange(1, len(hit) + 1)
    return ((precision * hit).sum() / hit.sum()).item()


def test_learns_from_scratch_within_100_steps():
    torch.manual_seed(0)
    model = HED((8, 16, 32, 32, 32))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(100):
        image, boundary = discs_and_squares(4, 64, seed=step)
        loss = hed_loss(model.logits(image), boundary)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert all(parameter.grad.any() for parameter in model.parameters())
    image, boundary = discs_and_squares(16, 64, seed=1000)
    with torch.no_grad():
        # chance is the share of boundary pixels, 0.037; five seeds gave 0.39 to 0.47
        assert average_precision(model(image), boundary) > 0.3
