"""New shapes: edges, mask and frame move together, each row by its own draw; a lesion moves with its rim alone."""

import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from emit.data.edges import contour
from emit.data.shapes import RIM, bend, transplant
from emit.seeds import generator

SIDE = 64


def make_discs(count=4):
    """Return count rows of a disc off the centre: its contour as edge (B, 1, S, S), mask (B, S, S), frame: 4 columns left."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    mask = ((x - 26) ** 2 + (y - 36) ** 2 < 100).long().expand(count, -1, -1).clone()
    return contour(mask), mask, (x < 4).expand(count, -1, -1).clone()


def bent(edge, mask, frame, rngs, strength):
    planes, labels = bend(edge, torch.stack([mask, frame], dim=1), rngs, strength)
    return planes, labels[:, 0], labels[:, 1] > 0


def draw(count, index=0):
    return [generator("shape", row, index) for row in range(count)]


def test_edge_mask_and_frame_move_together():
    edge, mask, frame = bent(*make_discs(16), draw(16), 1.0)
    assert edge.shape == (16, 1, SIDE, SIDE) and mask.unique().tolist() == [0, 1] and frame.dtype == torch.bool
    # The new mask's contour lies on the warped one: nearest and bilinear sampling differ by a pixel at most
    near = F.max_pool2d(edge, 3, stride=1, padding=1)
    found = contour(mask) > 0
    assert (near[found] > 0.2).float().mean() > 0.99
    assert frame.any() and not frame.all() and (frame.float().mean() < 0.3)


def test_each_row_has_its_own_shape_which_its_generator_alone_decides():
    together, mask, _ = bent(*make_discs(3), draw(3), 1.0)
    assert len({tuple(one.flatten().tolist()) for one in mask}) == 3
    alone = bent(*make_discs(1), [generator("shape", 2, 0)], 1.0)
    assert torch.equal(together[2], alone[0][0]) and torch.equal(mask[2], alone[1][0])


def test_shapes_turn_grow_shift_flip_and_bend_as_far_as_stated():
    """Moments of 300 warped discs: U(-0.25, 0.25) in log radius has deviation 0.144; area is twice that in log."""
    count = 300
    _, mask, _ = bent(*make_discs(count), draw(count), 1.0)
    areas, centres = [], []
    for one in mask.numpy():
        labels, number = ndimage.label(one)
        sizes = ndimage.sum(one, labels, range(1, number + 1))
        areas.append(sizes.max())  # what is mirrored at the border is smaller
        centres.append(ndimage.center_of_mass(labels == sizes.argmax() + 1))
    areas, centres = torch.tensor(areas).log(), torch.tensor(centres)  # rows, columns
    # deviation of log area 0.289, widened by the bending; standard error of a deviation: 1 / sqrt(600) = 4 %
    assert 0.26 < areas.std() < 0.42
    left, right = (centres[:, 1] < 31.5).float().mean(), (centres[:, 1] > 31.5).float().mean()
    assert left > 0.25 and right > 0.25  # flipped or not; the shift takes some across the middle
    assert 4.5 < centres[:, 0].std() < 8.5  # shift U(-9.6, 9.6): 5.5; turning about the centre and bending add


def test_half_the_strength_moves_half_as_far():
    _, mask, frame = make_discs(1)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    shifts = []
    for strength in (0.05, 0.1):  # small: the map is linear in it
        ramp = torch.stack([x, y]).float()[:, None] / SIDE  # two "edges": the coordinates themselves
        moved, _, _ = bent(ramp, mask.expand(2, -1, -1), frame.expand(2, -1, -1), [generator("half"), generator("half")], strength)
        shifts.append((moved - (ramp.flip(-1) if moved[0, 0, 32, 8] > 0.5 else ramp))[:, :, 20:44, 20:44])
    assert torch.allclose(2 * shifts[0], shifts[1], atol=0.004) and shifts[1].abs().max() > 0.005


def test_a_transplant_takes_the_lesion_and_its_rim_alone():
    edge, mask, _ = make_discs(2)
    edge, tissue, frame = torch.full_like(edge, 0.25), torch.full_like(edge, 0.75), torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    mask[1] = 0
    frame[0, :, :20] = True
    found, kept = transplant(edge, mask, tissue, frame)
    assert not kept[0, :, :20].any() and torch.equal(kept[0, :, 20:], mask[0, :, 20:])
    near = torch.as_tensor(ndimage.binary_dilation(kept[0].numpy(), torch.ones(2 * RIM + 1, 2 * RIM + 1).numpy()))
    assert torch.equal(found[0, 0] == 0.25, near) and torch.equal(found[0, 0] == 0.75, ~near)
    assert (found[1] == 0.75).all() and not kept[1].any()  # of a normal case nothing is left but the other picture


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_labels_stay_labels(strength):
    edge, mask, frame = make_discs(8)
    _, found, _ = bent(edge, 3 * mask, frame, draw(8, 1), strength)
    assert set(found.unique().tolist()) == {0, 3} and found.dtype == mask.dtype
