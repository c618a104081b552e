"""The classical arms that generated images are compared with, and the merging of generated with real images.

Images (B, C, H, W) in [-1, 1], masks (B, H, W); outside are -1 and label 0. Each sample has its own draw, from the generator
rng alone. The ranges of the eight single arms are the paper's, with probability 1. Brightness and noise may leave [-1, 1]:
nothing is clamped or normalised back, which would undo part of them.
"""

import torch
from torch.nn import functional as F

from emit.data.geometry import draw_uniform, similarity, warp_pair

# ---- intensities: (image, rng) -> image


def contrast(image, rng):
    """mean + U(0.75, 1.25) (x - mean), clamped to the image's own range, as in batchgenerators."""
    mean = image.mean((2, 3), keepdim=True)
    return (mean + _draw(0.75, 1.25, image, rng) * (image - mean)).clamp(*_range(image))


def gamma(image, rng):
    """low + (high - low) ((x - low) / (high - low))^U(0.7, 1.5), low and high being the image's own extremes."""
    low, high = _range(image)
    return low + (high - low) * ((image - low) / (high - low).clamp(min=1e-7)).pow(_draw(0.7, 1.5, image, rng))


def gamma_keeping_statistics(image, rng):
    """Gamma U(0.7, 1.5), then the mean and deviation from before."""
    changed = gamma(image, rng)
    (mean, deviation), (new_mean, new_deviation) = _statistics(image), _statistics(changed)
    return (changed - new_mean) / new_deviation * deviation + mean


def brightness(image, rng):
    """Add one draw of N(0, 0.5^2) to the whole image."""
    return image + 0.5 * _draw_normal((len(image), 1, 1, 1), image, rng)


def noise(image, rng):
    """Add Gaussian noise of variance U(0, 0.05)."""
    return image + _draw(0.0, 0.05, image, rng).sqrt() * _draw_normal(image.shape, image, rng)


def resolution(image, rng):
    """Keep U(0.5, 1) of rows and columns alike (nearest, unfiltered), then resize back (bilinear) [choice: as nnU-Net]."""
    shape, lowered = torch.tensor(image.shape[-2:]), torch.empty_like(image)
    for row, zoom in enumerate(draw_uniform(0.5, 1.0, image, rng).cpu()):
        size = (zoom * shape).round().clamp(min=1).int().tolist()
        small = F.interpolate(image[row : row + 1], size, mode="nearest-exact")
        lowered[row] = F.interpolate(small, image.shape[-2:], mode="bilinear", align_corners=False)[0]
    return lowered


# ---- geometry and the two stacks: (image, mask, rng) -> image, mask


def unchanged(image, mask, rng):
    """Baseline: change nothing."""
    return image, mask


def mirror(image, mask, rng):
    """Flip left-right and up-down, each with probability 1/2."""
    for axis in (-1, -2):
        flipped = _draw(0.0, 1.0, image, rng) < 0.5  # (B, 1, 1, 1), drawn for each axis
        image = torch.where(flipped, image.flip(axis), image)
        mask = torch.where(flipped[:, 0], mask.flip(axis), mask)
    return image, mask


def rotate(image, mask, rng):
    """Rotate by U(-5, 5) degrees about the centre."""
    angle = draw_uniform(-5.0, 5.0, image, rng)
    return warp_pair(image, mask, similarity(angle, torch.ones_like(angle)))


def scale(image, mask, rng):
    """Enlarge what is seen by U(0.95, 1.05) about the centre."""
    factor = draw_uniform(0.95, 1.05, image, rng)
    return warp_pair(image, mask, similarity(torch.zeros_like(factor), 1 / factor))  # a smaller window enlarges


def deep_stack(image, mask, rng):
    """DeepStack: elastic, rotation, scale, gamma, mirror, as in nnU-Net version 1, where the paper's ranges come from.

    Elastic: smoothing sigma U(9, 13) px, displacement U(0, 3.6) px rms on 384 px, in proportion on other sizes. The paper
    gives the ranges of scale (above 1 the content shrinks) and gamma only; the rest is [choice: nnU-Net's].
    """
    image, mask = _warp_sometimes(image, mask, rng, degrees=15.0, window=(0.85, 1.25), elastic=True)
    return mirror(_sometimes(0.3, gamma_keeping_statistics, image, rng), mask, rng)


# (probability, transform) on images of mean 0 and deviation 1: the defaults of nnU-Net v2's trainer (nnunetv2 2.8.1,
# batchgeneratorsv2 0.3.6). Blur and low resolution: its 0.2 and 0.25 times its 0.5 for each channel. What it calls
# noise variance (0, 0.1) it uses as a standard deviation, and so do we here.
NNUNET_INTENSITY = (
    (0.1, lambda image, rng: image + _draw(0.0, 0.1, image, rng) * _draw_normal(image.shape, image, rng)),
    (0.1, lambda image, rng: smooth(image, _draw(0.5, 1.0, image, rng))),
    (0.15, lambda image, rng: image * _draw(0.75, 1.25, image, rng)),
    (0.15, contrast),
    (0.125, resolution),
    (0.1, lambda image, rng: -gamma_keeping_statistics(-image, rng)),  # acts on the bright end
    (0.3, gamma_keeping_statistics),
)


def nnunet_like(image, mask, rng):
    """The stack of nnU-Net v2: warp, NNUNET_INTENSITY, mirror; probabilities and ranges are its 2D defaults (2.8.1).

    Intensities are standardised per image before and put back after. Departures: gamma is drawn uniformly (there above
    or below 1 with equal probability); the outside is filled with -1 (there with the mean).
    """
    image, mask = _warp_sometimes(image, mask, rng, degrees=180.0, window=(0.7, 1.4), elastic=False)
    mean, deviation = _statistics(image)
    standard = (image - mean) / deviation
    for probability, transform in NNUNET_INTENSITY:
        standard = _sometimes(probability, transform, standard, rng)
    return mirror(standard * deviation + mean, mask, rng)


INTENSITIES = {
    "contrast": contrast, "gamma": gamma, "brightness": brightness, "noise": noise, "resolution": resolution,
}  # fmt: skip
AUGMENTATIONS = INTENSITIES | {
    "baseline": unchanged, "mirror": mirror, "rotate": rotate, "scale": scale, "deepstack": deep_stack, "nnunet": nnunet_like,
}  # fmt: skip


def augment(image, mask, name, rng):
    """Apply one of AUGMENTATIONS to a batch: image (B, C, H, W) in [-1, 1], mask (B, H, W)."""
    if name in INTENSITIES:
        return INTENSITIES[name](image, rng), mask
    return AUGMENTATIONS[name](image, mask, rng)


# ---- real and generated in one image


def draw_patches(count, size, alpha, cells, rng):
    """Draw m (B, 1, H, W), true where real: U(0, 1) < alpha on cells x cells, resized to size (H, W)   (paper, Algorithm 1)."""
    real = torch.rand(count, 1, cells, cells, generator=rng) < alpha
    return F.interpolate(real.float(), size, mode="nearest-exact").bool()  # (B, 1, cells, cells) -> (B, 1, H, W)


def merge(real, generated, real_here):
    """m real + (1 - m) generated, both (B, C, H, W), m boolean as of draw_patches: inputs are mixed   (paper, Algorithm 1)."""
    return torch.where(real_here, real, generated)


# ---- parts


def smooth(image, sigma, norm=torch.sum):
    """Filter with Gaussians of sigma (B, 1, 1, 1) in pixels, cut at the border. torch.norm keeps the variance of white noise."""
    filters = []
    for length in image.shape[-2:]:
        position = torch.arange(length, device=image.device, dtype=image.dtype)
        kernel = torch.exp(-((position[:, None] - position) ** 2) / (2 * sigma**2))
        filters.append(kernel / norm(kernel, dim=-1, keepdim=True))
    rows, columns = filters
    return rows @ image @ columns.transpose(-1, -2)  # (H, H) (H, W) (W, W): a Gaussian is separable


def draw_displacement(image, amplitude, sigma, rng):
    """Draw (B, H, W, 2): white noise, smoothed with sigma to deviation `amplitude`; all in pixels, (B, 1, 1, 1)."""
    noise = _draw_normal((len(image), 2, *image.shape[-2:]), image, rng)
    return (amplitude * smooth(noise, sigma, torch.norm)).permute(0, 2, 3, 1)  # (B, 2, H, W) -> (B, H, W, 2)


def _warp_sometimes(image, mask, rng, degrees, window, elastic):
    """Rotate, scale and, if elastic, bend, each with probability 0.2, in one resampling; the rest stays untouched."""
    rotated, scaled, bent = (draw_uniform(0.0, 1.0, image, rng) < 0.2 for _ in range(3))
    angle = torch.where(rotated, draw_uniform(-degrees, degrees, image, rng), 0.0)
    matrix = similarity(angle, torch.where(scaled, draw_uniform(*window, image, rng), 1.0))
    moved = rotated | scaled | (bent & elastic)
    if not moved.any():
        return image, mask
    displacement = None
    if elastic:
        width = image.shape[-1]
        amplitude = bent[:, None, None, None] * _draw(0.0, 3.6 / 384, image, rng) * width
        sigma = _draw(9 / 384, 13 / 384, image, rng) * width
        displacement = draw_displacement(image[moved], amplitude[moved], sigma[moved], rng)
    image, mask = image.clone(), mask.clone()
    image[moved], mask[moved] = warp_pair(image[moved], mask[moved], matrix[moved], displacement)
    return image, mask


def _sometimes(probability, transform, image, rng):
    """Apply transform(image, rng) to each sample with that probability."""
    chosen = draw_uniform(0.0, 1.0, image, rng) < probability
    if not chosen.any():
        return image
    image = image.clone()
    image[chosen] = transform(image[chosen], rng)
    return image


def _statistics(image):
    return image.mean((2, 3), keepdim=True), image.std((2, 3), keepdim=True).clamp(min=1e-6)


def _range(image):
    return image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)


def _draw(low, high, image, rng):
    return draw_uniform(low, high, image, rng)[:, None, None, None]


def _draw_normal(shape, like, rng):
    return torch.randn(shape, generator=rng).to(like.device)
