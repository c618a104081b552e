"""HED's input, start and loss by hand; its numbers are in test_golden.py."""

import math

import pytest
import torch

from emit.networks.hed import HED, HEDv11, class_balanced_loss, hed_loss

TINY = (3, 4, 5, 6, 7)  # five different widths, so that a swapped stage cannot fit


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


@pytest.mark.parametrize("build", [HED, HEDv11])
def test_sides_from_16_pixels_on(build):
    model = build(TINY)
    for height, width in ((16, 16), (17, 31), (45, 38)):
        assert [logit.shape for logit in model.logits(torch.zeros(2, 3, height, width))] == 6 * [(2, 1, height, width)]


@pytest.mark.parametrize("build", [HED, HEDv11])
def test_start_from_scratch(build):
    torch.manual_seed(0)
    model = build((8, 16, 32, 32, 32))
    assert torch.equal(model(2 * torch.rand(1, 3, 20, 20) - 1), torch.full((1, 1, 20, 20), 0.5))
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
HAND_PLAIN = (2 * math.log(2) + math.log(4) + math.log(4 / 3)) / 4  # the same p, every pixel once


def as_map(rows):
    return torch.tensor(rows).view(1, 1, 2, 2)


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
    with pytest.raises(ValueError, match="must be the same"):
        hed_loss([logit] * 6, y[:, :, :1])
