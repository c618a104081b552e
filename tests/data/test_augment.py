import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from emit.data import augment as augmentation
from emit.data.augment import AUGMENTATIONS, INTENSITIES, NNUNET_INTENSITY, augment, draw_displacement, draw_patches, merge, smooth


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform(low, high, count, seed=0):
    """What the arm's first draw must have been."""
    return low + (high - low) * torch.rand(count, generator=rng(seed))


def column(*values):
    """Amounts for the samples of a batch, as the transforms draw them."""
    return torch.tensor(values)[:, None, None, None]


@pytest.fixture
def fix(monkeypatch):
    """fix(a, b, ...): the samples of a batch get these amounts instead of draws."""
    return lambda *amounts: monkeypatch.setattr(augmentation, "draw_uniform", lambda *_: torch.tensor(amounts))


def scene(count, size=64, amplitude=0.8):
    """Smooth texture in [-amplitude, amplitude] and a label map of three labels, one a disc off the centre."""
    noise = np.random.default_rng(0).normal(size=(count, size, size))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2))
    smooth = amplitude * smooth / np.abs(smooth).max(axis=(1, 2), keepdims=True)
    rows, columns = np.mgrid[:size, :size]
    mask = 1 * (np.hypot(rows - size * 0.5, columns - size * 0.7) < size / 8) + 2 * (rows > size * 0.8)
    return torch.tensor(smooth, dtype=torch.float32)[:, None], torch.tensor(mask).expand(count, size, size).clone()


def landmark(count, size=65, offset=20):
    """A spot `offset` px right of the centre, as an image from -1 to 1 and as a mask of label 2."""
    rows, columns = np.mgrid[:size, :size] - size // 2
    spot = torch.tensor(np.exp(-(rows**2 + (columns - offset) ** 2) / (2 * 3.0**2)), dtype=torch.float32)
    mask = 2 * (spot > 0.1).long()
    return (2 * spot - 1).expand(count, 1, size, size), mask.expand(count, size, size)


def offsets(planes):
    """Centroids (up, right) of non-negative planes, in px from the centre."""
    middle = planes.shape[-1] // 2
    centres = np.array([ndimage.center_of_mass(plane) for plane in planes.double().numpy()])
    return middle - centres[:, 0], centres[:, 1] - middle


# ---- every arm


@pytest.mark.parametrize("arm", AUGMENTATIONS)
def test_every_arm_repeats_varies_and_keeps_labels(arm):
    image, mask = scene(24)
    before = image.clone(), mask.clone()
    new_image, new_mask = augment(image, mask, arm, rng())
    assert all(map(torch.equal, (new_image, new_mask), augment(image, mask, arm, rng())))
    assert torch.equal(image, before[0]) and torch.equal(mask, before[1])  # the input is not written to
    assert new_image.shape == image.shape and new_image.dtype == torch.float32 and torch.isfinite(new_image).all()
    assert new_mask.dtype == torch.int64 and set(new_mask.unique().tolist()) == {0, 1, 2}
    change = (new_image - image).abs().mean((1, 2, 3))
    if arm == "baseline":
        assert torch.equal(new_image, image) and torch.equal(new_mask, mask)
        return
    # mirror leaves 1/4 as they are, the stacks fewer; of 24 more than half change but for probability 1e-2 (seed fixed)
    assert (change > 1e-3).float().mean() > 0.5
    assert not torch.equal(augment(image, mask, arm, rng(1))[0], new_image)
    if arm in INTENSITIES:
        assert torch.equal(new_mask, mask) and (change > 1e-3).float().mean() > 0.8


@pytest.mark.parametrize("arm", [arm for arm in AUGMENTATIONS if arm != "baseline"])
def test_samples_draw_separately_and_do_not_see_each_other(arm):
    image, mask = scene(1)
    image, mask = image.repeat(16, 1, 1, 1), mask.repeat(16, 1, 1)
    same, _ = augment(image, mask, arm, rng(2))
    distinct = {tuple(plane.flatten().mul(1e4).round().tolist()) for plane in same}
    assert len(distinct) >= (3 if arm == "mirror" else 8)  # mirror has four outcomes
    other = image.clone()
    other[1:] = -other[1:].flip(-2) * 0.5
    mixed, _ = augment(other, mask, arm, rng(2))
    # 1e-6: another batch may be summed in another order
    assert torch.allclose(mixed[0], same[0], atol=1e-6)


# ---- intensities


def test_contrast_scales_deviations_about_the_mean_within_the_own_range(fix):
    image, mask = scene(32)
    image[:, :, 0, 0], image[:, :, 0, 1] = -1.0, 1.0  # wide range, so that nothing else is clamped
    factor = uniform(0.75, 1.25, 32)
    mean = image.mean((2, 3), keepdim=True)
    ratio = ((augment(image, mask, "contrast", rng())[0] - mean) / (image - mean))[:, 0, 5:, 5:]
    inner = (image - mean)[:, 0, 5:, 5:].abs() > 0.05
    for got, chosen, wanted in zip(ratio, inner, factor, strict=True):
        assert torch.allclose(got[chosen], wanted, atol=1e-4)  # rounding of 1e-7 over deviations above 0.05
    fix(1.25)
    stretched, _ = augment(image, mask, "contrast", None)
    assert stretched.min() == -1 and stretched.max() == 1


def test_gamma_keeps_end_points_and_follows_the_power(fix):
    image, mask = scene(32)
    result, _ = augment(image, mask, "gamma", rng())
    for before, after, gamma in zip(image, result, uniform(0.7, 1.5, 32), strict=True):
        low, high = before.min().item(), before.max().item()
        assert [after.min().item(), after.max().item()] == pytest.approx([low, high], abs=1e-6)
        expected = low + (high - low) * ((before.double() - low) / (high - low)) ** gamma.double()
        assert (after - expected).abs().max() < 2e-6  # float32: a few roundings of values below 2
    flat = torch.full((1, 1, 4, 4), 0.3)
    fix(0.7)
    assert torch.allclose(augment(flat, None, "gamma", None)[0], flat)


def test_brightness_moves_the_mean_by_its_draw_and_nothing_else():
    image, mask = scene(400, size=16)
    shift = augment(image, mask, "brightness", rng())[0] - image
    draw = shift.mean((1, 2, 3))
    assert torch.allclose(shift, draw[:, None, None, None].expand_as(shift), atol=1e-6)
    # N(0, 0.5^2), 400 draws: mean within 4 x 0.5 / 20, deviation within 4 x 0.5 / sqrt(800)
    assert abs(draw.mean()) < 0.1 and abs(draw.std() - 0.5) < 0.07
    assert (image.abs() < 1).all() and ((image + shift).abs() > 1).any()  # may leave [-1, 1]: not clamped


def test_noise_has_the_variance_it_drew():
    image, mask = scene(40, size=96)
    added = augment(image, mask, "noise", rng())[0] - image
    variance = uniform(0.0, 0.05, 40)
    # of 96^2 normal draws: relative deviation sqrt(2 / 9216) = 0.0147; 4.5 of them
    assert ((added.var((1, 2, 3)) / variance - 1).abs() < 0.067).all()
    assert (added.mean((1, 2, 3)).abs() < 4.5 * (variance / 9216).sqrt()).all()


def test_resolution_by_hand(fix):
    step = torch.arange(8.0).expand(1, 1, 8, 8)
    # half the columns: nearest takes 1, 3, 5, 7; bilinear at (j + 0.5) / 2 - 0.5, held at the ends
    expected = torch.tensor([1, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7])
    fix(0.5, 1.0)
    both, _ = augment(torch.cat([step, step]), None, "resolution", None)
    assert torch.allclose(both[0, 0], expected.expand(8, 8)) and torch.equal(both[1], step[0])


def test_resolution_keeps_half_to_all(fix):
    image, zoom = scene(24)[0], uniform(0.5, 1.0, 24)
    drawn, _ = augment(image, None, "resolution", rng())
    fix(*zoom.tolist())
    assert torch.equal(drawn, augment(image, None, "resolution", None)[0])


def test_smoothing_is_scipys_gaussian_away_from_the_border():
    image = torch.randn(2, 1, 40, 30, generator=rng(1))
    result = smooth(image, column(0.5, 1.7))
    for before, after, sigma in zip(image[:, 0], result[:, 0], (0.5, 1.7), strict=True):
        expected = ndimage.gaussian_filter(before.double().numpy(), sigma, truncate=8)
        assert np.abs(after.numpy() - expected)[10:-10, 10:-10].max() < 1e-5  # float32 sums; tails below 1e-7
    constant = torch.full((1, 1, 9, 9), 0.4)
    assert torch.allclose(smooth(constant, column(2.0)), constant)


# ---- geometry


MIRRORS = ([], [-1], [-2], [-1, -2])


def mirrored(mask, reference):
    """Return the axes that a mask was mirrored along; None where it was warped."""
    return next((axes for axes in MIRRORS if torch.equal(mask.flip(axes), reference)), None)


def test_mirror_flips_exactly_and_the_mask_follows():
    image, _ = scene(400, size=16)
    mask = torch.arange(256).reshape(16, 16).expand(400, 16, 16)
    new_image, new_mask = augment(image, mask, "mirror", rng())
    found = [mirrored(one, mask[0]) for one in new_mask]
    assert all(torch.equal(new, old.flip(axes)) for new, old, axes in zip(new_image, image, found, strict=True))
    for axes in MIRRORS:  # a quarter each, within four deviations
        assert abs(found.count(axes) - 100) < 4 * math.sqrt(400 * 0.25 * 0.75)


def test_rotate_turns_counter_clockwise_by_its_draw():
    image, _ = augment(*landmark(40), "rotate", rng())
    wanted = uniform(-5.0, 5.0, 40).numpy()
    up, right = offsets((image[:, 0] + 1).clamp(min=0))
    # at 20 px, interpolation of the image 0.03 px: 0.1 degree
    assert np.abs(np.degrees(np.arctan2(up, right)) - wanted).max() < 0.1
    assert np.abs(np.hypot(up, right) - 20).max() < 0.5
    assert wanted.min() < -4 and wanted.max() > 4


def test_scale_enlarges_by_its_draw():
    image, _ = augment(*landmark(40), "scale", rng())
    up, right = offsets((image[:, 0] + 1).clamp(min=0))
    assert np.abs(up).max() < 0.03 and np.abs(right - 20 * uniform(0.95, 1.05, 40).numpy()).max() < 0.03


# ---- stacks


def test_displacements_have_their_amplitude_everywhere_and_are_smooth():
    image = torch.zeros(3000, 1, 12, 16)
    field = draw_displacement(image, column(2.0), column(3.0), rng())
    assert field.shape == (3000, 12, 16, 2)
    # deviation of 3000 draws: relative error 1 / sqrt(6000) = 0.013; the largest of 384 stays below 4.5 of them
    assert (field.std(0) / 2.0 - 1).abs().max() < 0.06
    # two Gaussians d apart overlap by exp(-d^2 / (4 sigma^2)), d = 4; what the border cuts off is within the tolerance
    middle, beside = field[:, 6, 6, 0], field[:, 6, 10, 0]
    assert abs((middle * beside).mean() / 4 - math.exp(-16 / 36)) < 0.06
    assert abs((field[..., 0] * field[..., 1]).mean() / 4) < 0.06  # the two components are independent


@pytest.mark.parametrize(("arm", "still"), [("deepstack", 0.8**3), ("nnunet", 0.8**2)])
def test_stacks_warp_as_often_as_stated(arm, still):
    rows, columns = np.mgrid[:64, :64]
    mask = torch.tensor((rows // 3) * 22 + columns // 3).expand(600, 64, 64)  # fine enough to betray every warp
    image = torch.linspace(-1, 1, 4096).reshape(1, 1, 64, 64).expand(600, 1, 64, 64)
    _, new_mask = augment(image, mask, arm, rng())
    axes = [mirrored(one, mask[0]) for one in new_mask]
    # binomial: deviation 0.02; four of them, and some elastic draws are below a pixel
    share = sum(one is not None for one in axes) / 600
    assert still - 0.08 < share < still + 0.08 + (0.03 if arm == "deepstack" else 0.0)
    for one in MIRRORS:  # each a quarter, within four deviations of sqrt(0.25 x 0.75 / 300)
        assert abs(axes.count(one) / (600 * share) - 0.25) < 0.1


@pytest.mark.parametrize("arm", ["deepstack", "nnunet"])
def test_stacks_move_image_and_mask_together(arm):
    """The image is the mask's smooth indicator, so half its height must stay on the mask's rim."""
    rows, columns = np.mgrid[:64, :64]
    distance = torch.tensor(14 - np.hypot(rows - 30, columns - 38), dtype=torch.float32)
    mask = (distance > 0).long().expand(64, 64, 64).clone()
    image = (distance / 14).clamp(-1, 1).expand(64, 1, 64, 64).clone()
    new_image, new_mask = augment(image, mask, arm, rng(4))
    moved = 0
    for plane, labels in zip(new_image[:, 0].numpy(), new_mask.numpy(), strict=True):
        inside = plane >= np.sort(plane, axis=None)[-labels.sum()]  # as many of the brightest pixels
        overlap = 2 * (inside & (labels == 1)).sum() / (inside.sum() + labels.sum())
        assert overlap > 0.9  # noise may swap pixels on the rim; an image and mask moved differently fall below 0.7
        moved += mirrored(torch.tensor(labels), mask[0]) is None
    assert moved > 10


def test_nnunet_intensities_keep_their_statistics():
    """On standardised images: what each transform may change, in the order of NNUNET_INTENSITY."""
    image = scene(64)[0]
    image = (image - image.mean((2, 3), keepdim=True)) / image.std((2, 3), keepdim=True)
    noise, blurred, bright, contrasted, low, inverted, gamma = (f(image, rng()) for _, f in NNUNET_INTENSITY)
    sigma = uniform(0.0, 0.1, 64)
    assert torch.allclose((noise - image).std((1, 2, 3)), sigma, rtol=0.06, atol=1e-6)  # 5 x 1 / sqrt(2 x 4096)
    assert (blurred.std((1, 2, 3)) < image.std((1, 2, 3))).all()
    assert torch.allclose(bright, image * uniform(0.75, 1.25, 64)[:, None, None, None], atol=1e-6)
    assert (contrasted.amax((1, 2, 3)) <= image.amax((1, 2, 3)) + 1e-6).all() and not torch.equal(contrasted, image)
    assert not torch.equal(low, image)
    for changed in (gamma, inverted):
        # mean 0 and deviation 1 come back up to float32 sums of 4096 terms
        assert changed.mean((1, 2, 3)).abs().max() < 1e-5 and (changed.std((1, 2, 3)) - 1).abs().max() < 1e-5
    power = uniform(0.7, 1.5, 64)
    skew = (gamma**3).mean((1, 2, 3)) - (image**3).mean((1, 2, 3))
    assert (skew[power > 1.1] > 0).all() and (skew[power < 0.9] < 0).all()  # a power above 1 stretches the bright end
    skew = (inverted**3).mean((1, 2, 3)) - (image**3).mean((1, 2, 3))
    assert (skew[power > 1.1] < 0).all() and (skew[power < 0.9] > 0).all()  # and the dark end when inverted


def test_nnunet_returns_to_the_images_own_intensities():
    image, mask = scene(200, amplitude=0.1)
    image = image + 0.6
    result, _ = augment(image, mask, "nnunet", rng(6))
    difference = result.flatten(1).sort()[0] - image.flatten(1).sort()[0]  # sorted: blind to a mirror
    untouched = (difference.abs().amax(1) < 1e-5).sum().item()
    # nothing but a mirror: 0.8^2 x 0.9 x 0.9 x 0.85^2 x 0.875 x 0.9 x 0.7 = 0.207; binomial deviation 0.029
    assert abs(untouched / 200 - 0.207) < 0.115


# ---- merging


@pytest.mark.parametrize("shape", [(12, 12), (6, 12), (11, 13)])
def test_merge_is_algorithm_1(shape):
    real, generated = torch.randn(2, 5, 3, *shape, generator=rng(1))
    merged = merge(real, generated, draw_patches(5, shape, 0.6, 3, rng(7)))
    cells = torch.rand(5, 1, 3, 3, generator=rng(7))
    rows, columns = (((torch.arange(side) + 0.5) * 3 / side).long() for side in shape)  # nearest
    assert torch.equal(merged, torch.where(cells[:, :, rows][..., columns] < 0.6, real, generated))


@pytest.mark.parametrize("cells", [5, 6, 7, 8, 64])
def test_the_grid_has_as_many_patches_as_are_asked_for(cells):
    """On 64 pixels too, whatever divides them: patches are equally wide but for one pixel."""
    drawn = draw_patches(200, (64, 64), 0.5, cells, rng())[:, 0]
    edges = (drawn[:, 1:] != drawn[:, :-1]).any(0).any(-1).nonzero()[:, 0] + 1  # a row where one begins
    widths = torch.diff(torch.tensor([0, *edges.tolist(), 64]))
    assert len(widths) == cells and widths.max() - widths.min() <= 1
