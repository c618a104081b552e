import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from emit.data.geometry import LINEAR, NEAREST, fit, random_warp, similarity, unfit, warp


def spot(height, width, row, column, sigma=2.0):
    rows, columns = np.mgrid[:height, :width]
    return torch.tensor(np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * sigma**2)), dtype=torch.float32)


def centroid(plane):
    return np.array(ndimage.center_of_mass(plane.double().numpy()))


def test_fit_pads_to_the_centre_with_the_stated_value():
    array = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]], dtype=np.uint8)
    padded = fit(array, 4, NEAREST, fill=0)
    assert padded.dtype == torch.uint8
    assert padded.tolist() == [*array.tolist(), [0, 0, 0, 0]]  # the odd row goes to the end
    tall = fit(torch.ones(1, 4, 2), 4, LINEAR, fill=-1.0)
    assert tall.tolist() == [[[-1.0, 1.0, 1.0, -1.0]] * 4]


def test_fit_repeats_and_picks_labels_at_pixel_centres():
    labels = torch.arange(9).reshape(3, 3)
    assert torch.equal(fit(labels, 9, NEAREST, 0), labels.repeat_interleave(3, 0).repeat_interleave(3, 1))
    centres = torch.tensor([[10, 13, 16], [37, 40, 43], [64, 67, 70]])
    assert torch.equal(fit(torch.arange(81).reshape(9, 9), 3, NEAREST, 0), centres)


@pytest.mark.parametrize("size", [5, 12, 31])
def test_fit_is_the_triangle_filter(size):
    """Brute force: weight max(0, 1 - |distance| / support), where the support grows with the reduction."""
    image = np.random.default_rng(0).normal(size=(12, 12))
    step = 12 / size
    support = max(step, 1.0)
    weights = np.array([[max(0.0, 1 - abs(i + 0.5 - (j + 0.5) * step) / support) for i in range(12)] for j in range(size)])
    weights /= weights.sum(axis=1, keepdims=True)
    expected = weights @ image @ weights.T
    # 5e-6: float32 positions up to 12 are rounded by 1e-6, times differences between neighbours of up to 4
    assert np.abs(fit(image.astype(np.float32), size, LINEAR, -1.0).numpy() - expected).max() < 5e-6


@pytest.mark.parametrize(("shape", "size"), [((90, 131), 64), ((40, 31), 64), ((100, 60), 100)])
def test_positions_follow_the_half_pixel_rule(shape, size):
    height, width = shape
    row, column = height * 0.4, width * 0.6
    side = max(shape)
    image = spot(height, width, row, column, sigma=3.0)
    fitted = fit(image, size, LINEAR, 0.0)
    pad = np.array([(side - height) // 2, (side - width) // 2])
    expected = (np.array([row, column]) + pad + 0.5) * size / side - 0.5
    # 0.02 px: the spot is sampled at sigma >= 1.5 px and cut where it is below 1e-4
    assert np.abs(centroid(fitted) - expected).max() < 0.02
    back = unfit(fitted[None], shape)
    assert np.abs(centroid(back[0]) - [row, column]).max() < 0.02


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_warp_by_quarter_turns_and_whole_pixels_is_exact(mode):
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    turned = warp(image, similarity(torch.tensor([90.0, -90.0]), torch.ones(2)), mode, 0.0)
    # 1e-5: coordinates are rounded to 1e-6 px, times differences of order one
    assert torch.allclose(turned[0], torch.rot90(image[0], 1, (1, 2)), atol=1e-5)
    assert torch.allclose(turned[1], torch.rot90(image[1], -1, (1, 2)), atol=1e-5)
    shift = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]).expand(2, 2, 3)  # reads 2 right and 1 up
    expected = torch.full_like(image, -1.0)
    expected[:, :, 1:, :-2] = image[:, :, :-1, 2:]
    assert torch.allclose(warp(image, shift, mode, -1.0), expected, atol=1e-5)
    displacement = torch.tensor([2.0, -1.0]).expand(2, 8, 8, 2)
    unmoved = similarity(torch.zeros(2), torch.ones(2))
    assert torch.allclose(warp(image, unmoved, mode, -1.0, displacement), expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "offset", "sigma", "degrees", "window"), [
    ((64, 64), 12, 2.0, 30.0, 1.0), ((64, 64), 12, 2.0, -20.0, 0.8), ((64, 64), 12, 2.0, 0.0, 1.25),
    ((64, 64), 12, 2.0, 12.0, 1.05), ((20, 40), 7, 1.0, 90.0, 1.0),  # in pixels, whatever width and height are
])  # fmt: skip
def test_similarity_turns_and_shrinks(shape, offset, sigma, degrees, window):
    """The spot right of the centre goes to offset / window (cos, sin), counter-clockwise: up; its area / window^2."""
    row, column = (np.array(shape) - 1) / 2
    image = spot(*shape, row, column + offset, sigma)[None, None]
    moved = warp(image, similarity(torch.tensor([degrees]), torch.tensor([window])), "bilinear", 0.0)[0, 0]
    angle, radius = math.radians(degrees), offset / window
    expected = [row - radius * math.sin(angle), column + radius * math.cos(angle)]
    assert np.abs(centroid(moved) - expected).max() < 0.02  # interpolation of a spot of sigma 1 or 2
    assert abs(moved.sum() / image.sum() * window**2 - 1) < 0.01


def landmarks(count):
    image = spot(64, 64, 31.5, 45.5)
    mask = (image > 0.5).long()
    return (2 * image - 1).expand(count, 3, 64, 64), image.expand(count, 1, 64, 64), mask.expand(count, 64, 64)


def test_random_warp_moves_image_edge_and_mask_alike():
    image, edge, mask = random_warp(*landmarks(300), torch.Generator().manual_seed(1))
    assert torch.allclose(image, (2 * edge - 1).expand_as(image), atol=1e-5)  # fills -1 and 0 correspond
    assert mask.dtype == torch.int64 and set(mask.unique().tolist()) == {0, 1}
    angles, windows = [], []
    for plane, labels in zip(edge[:, 0], mask, strict=True):
        up, right = (31.5 - centroid(plane)) * [1, -1]
        angles.append(math.degrees(math.atan2(up, right)))
        windows.append(14 / math.hypot(up, right))
        # a nearest-neighbour disc of some 17 pixels: 0.5 px at worst
        assert np.abs(centroid(labels) - centroid(plane)).max() < 0.5
    angles, windows = np.array(angles), np.array(windows)
    # U(-20, 20) and U(0.75, 1.05): all inside (0.1 degree, 0.003: centroid error 0.02 px at 14 px), and of 300
    # independent draws some in the last 3 % at either end (else with probability 1e-4 each)
    assert -20.1 < angles.min() < -18.8 and 18.8 < angles.max() < 20.1
    assert 0.747 < windows.min() < 0.759 and 1.041 < windows.max() < 1.053
    assert abs(np.corrcoef(angles, windows)[0, 1]) < 0.2  # independent: 3.5 standard errors of 1 / sqrt(300)


def test_random_warp_fills_and_repeats():
    ones = torch.ones(4, 1, 32, 32)
    draw = torch.Generator().manual_seed(3)
    image, edge, mask = random_warp(ones * 0.5, ones, ones[:, 0].long() * 2, draw, degrees=20.0, window=(1.05, 1.05))
    assert torch.all(image[:, :, 0, 0] == -1) and torch.all(edge[:, :, 0, 0] == 0) and torch.all(mask[:, 0, 0] == 0)
    assert torch.allclose(image[:, :, 16, 16], torch.tensor(0.5)) and torch.all(mask[:, 16, 16] == 2)
    first, second = (random_warp(*landmarks(4), torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(map(torch.equal, first, second))
