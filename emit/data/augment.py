"""The classical arms that generated images are compared with, and the merging of generated with real images.

Every arm is a function of a batch: (image (B, C, H, W) in [-1, 1], mask (B, H, W), rng) -> image, mask. Each sample has
its own draw, from the generator rng alone. The geometric arms fill with -1 and label 0. The ranges of the eight single
arms are the paper's, with probability 1 (Mirror: 1/2 for each axis). Brightness and noise may leave [-1, 1]: nothing is
normalised back, which would undo them.
"""

import torch
from torch.nn import functional as F

from emit.data.geometry import draw_uniform, similarity, warp
from emit.errors import InputError

# ---- pure functions of images and one parameter per sample (B,)


def scale_contrast(image, factor):
    """mean + factor (x - mean), clamped to the image's own range, as in batchgenerators. factor: (B,)."""
    mean = image.mean((2, 3), keepdim=True)
    return (mean + _column(factor) * (image - mean)).clamp(*_range(image))


def apply_gamma(image, gamma):
    """low + (high - low) ((x - low) / (high - low))^gamma, low and high being the image's own extremes. gamma: (B,)."""
    low, high = _range(image)
    spread = (high - low).clamp(min=1e-7)
    return low + (high - low) * ((image - low) / spread).pow(_column(gamma))


def add_noise(image, deviation, rng):
    """Add white Gaussian noise of standard deviation (B,)."""
    return image + _column(deviation) * _draw_normal(image.shape, image, rng)


def lower_resolution(image, zoom):
    """Sample zoom times as many rows and columns (nearest), then resize back (bilinear). zoom: (B,) in (0, 1].

    No filter before the sampling, as in nnU-Net, so fine structure aliases as it does between thick, sparse samples.
    """
    height, width = image.shape[-2:]
    lowered = torch.empty_like(image)
    rows, columns = (torch.round(zoom * n).clamp(min=1).long() for n in (height, width))
    for size in torch.unique(torch.stack([rows, columns], dim=1), dim=0):  # samples that share a size, in one call
        chosen = (rows == size[0]) & (columns == size[1])
        small = F.interpolate(image[chosen], size.tolist(), mode="nearest-exact")
        lowered[chosen] = F.interpolate(small, (height, width), mode="bilinear", align_corners=False)
    return lowered


def blur(image, sigma):
    """Gaussian blur with sigma (B,) in pixels; the kernel is cut at the border and normalised to 1."""
    rows, columns = (_gaussian(n, sigma) for n in image.shape[-2:])
    rows, columns = (kernel / kernel.sum(-1, keepdim=True) for kernel in (rows, columns))
    return rows @ image @ columns.transpose(-1, -2)  # (H, H) (H, W) (W, W): a Gaussian is separable


def draw_displacement(image, amplitude, sigma, rng):
    """Draw elastic displacements (B, H, W, 2) in pixels: white noise, smoothed.

    amplitude: standard deviation of each component at every pixel; sigma: of the Gaussian smoothing; (B,), in pixels.
    """
    rows, columns = (_gaussian(n, sigma) for n in image.shape[-2:])
    rows, columns = (kernel / kernel.norm(dim=-1, keepdim=True) for kernel in (rows, columns))  # keeps variance 1
    noise = _draw_normal((len(image), 2, *image.shape[-2:]), image, rng)
    return (_column(amplitude) * (rows @ noise @ columns.transpose(-1, -2))).permute(0, 2, 3, 1)  # -> (B, H, W, 2)


# ---- the eight single arms


def unchanged(image, mask, rng):
    """Baseline: change nothing."""
    return image, mask


def contrast(image, mask, rng):
    """Contrast factor U(0.75, 1.25)."""
    return scale_contrast(image, draw_uniform(0.75, 1.25, image, rng)), mask


def gamma(image, mask, rng):
    """Gamma U(0.7, 1.5)."""
    return apply_gamma(image, draw_uniform(0.7, 1.5, image, rng)), mask


def brightness(image, mask, rng):
    """Add one draw of N(0, 0.5^2) to the whole image. Not clamped: a clamp would undo part of it."""
    return image + 0.5 * _draw_normal((len(image), 1, 1, 1), image, rng), mask


def noise(image, mask, rng):
    """Add Gaussian noise of variance U(0, 0.05)."""
    return add_noise(image, draw_uniform(0.0, 0.05, image, rng).sqrt(), rng), mask


def resolution(image, mask, rng):
    """Lower the resolution to U(0.5, 1) of rows and columns alike [choice: nnU-Net's range; the paper names none]."""
    return lower_resolution(image, draw_uniform(0.5, 1.0, image, rng)), mask


def mirror(image, mask, rng):
    """Flip left-right and up-down, each with probability 1/2."""
    for axis in (-1, -2):
        flipped = draw_uniform(0.0, 1.0, image, rng) < 0.5  # (B,), drawn for each axis
        image = torch.where(flipped[:, None, None, None], image.flip(axis), image)
        mask = torch.where(flipped[:, None, None], mask.flip(axis), mask)
    return image, mask


def rotate(image, mask, rng):
    """Rotate by U(-5, 5) degrees about the centre."""
    angle = draw_uniform(-5.0, 5.0, image, rng)
    return _warp_both(image, mask, similarity(angle, torch.ones_like(angle)))


def scale(image, mask, rng):
    """Enlarge what is seen by U(0.95, 1.05) about the centre."""
    factor = draw_uniform(0.95, 1.05, image, rng)
    return _warp_both(image, mask, similarity(torch.zeros_like(factor), 1 / factor))  # a smaller window enlarges


# ---- the two stacks


def deep_stack(image, mask, rng):
    """DeepStack: elastic, rotation, scale, gamma, mirror, as in nnU-Net version 1, where the paper's ranges come from.

    Elastic p 0.2: smoothing sigma U(9, 13) px and displacement U(0, 3.6) px rms on 384 px, in proportion on other sizes
    (2D default there: alpha up to 200 on uniform noise). Rotation p 0.2: U(-15, 15) degrees. Scale p 0.2: window
    U(0.85, 1.25), above 1 the content shrinks. Gamma p 0.3: U(0.7, 1.5), mean and deviation restored. Mirror p 1/2 for
    each axis. The paper gives the ranges of scale and gamma only; the rest is [choice: nnU-Net's].
    """
    image, mask = _warp_sometimes(image, mask, rng, degrees=15.0, window=(0.85, 1.25), elastic=True)
    image = _sometimes(0.3, _keep_statistics_gamma, image, rng)
    return mirror(image, mask, rng)


# (probability, transform) on images of mean 0 and deviation 1: the defaults of nnU-Net v2's trainer (nnunetv2 2.8.1,
# batchgeneratorsv2 0.3.6). Blur and low resolution: its 0.2 and 0.25 times its 0.5 for each channel. What it calls
# noise variance (0, 0.1) it uses as a standard deviation, and so do we here.
NNUNET_INTENSITY = (
    (0.1, lambda image, rng: add_noise(image, draw_uniform(0.0, 0.1, image, rng), rng)),
    (0.1, lambda image, rng: blur(image, draw_uniform(0.5, 1.0, image, rng))),
    (0.15, lambda image, rng: image * _column(draw_uniform(0.75, 1.25, image, rng))),
    (0.15, lambda image, rng: scale_contrast(image, draw_uniform(0.75, 1.25, image, rng))),
    (0.125, lambda image, rng: lower_resolution(image, draw_uniform(0.5, 1.0, image, rng))),
    (0.1, lambda image, rng: -_keep_statistics_gamma(-image, rng)),  # acts on the bright end
    (0.3, lambda image, rng: _keep_statistics_gamma(image, rng)),
)


def nnunet_like(image, mask, rng):
    """The stack of nnU-Net v2: warp, NNUNET_INTENSITY, mirror; probabilities and ranges are its 2D defaults (2.8.1).

    Rotation p 0.2: U(-180, 180) degrees; scale p 0.2: window U(0.7, 1.4), above 1 the content shrinks; no elastic.
    Intensities are standardised per image before and put back after. Departures: gamma is drawn uniformly (there above
    or below 1 with equal probability); the outside is filled with -1 (there with the mean).
    """
    image, mask = _warp_sometimes(image, mask, rng, degrees=180.0, window=(0.7, 1.4), elastic=False)
    mean, deviation = _statistics(image)
    standard = (image - mean) / deviation
    for probability, transform in NNUNET_INTENSITY:
        standard = _sometimes(probability, transform, standard, rng)
    return mirror(standard * deviation + mean, mask, rng)


AUGMENTATIONS = {
    "baseline": unchanged,
    "contrast": contrast,
    "gamma": gamma,
    "brightness": brightness,
    "noise": noise,
    "resolution": resolution,
    "mirror": mirror,
    "rotate": rotate,
    "scale": scale,
    "deepstack": deep_stack,
    "nnunet": nnunet_like,
}


def augment(image, mask, name, rng):
    """Apply one of AUGMENTATIONS to a batch: image (B, C, H, W) in [-1, 1], mask (B, H, W)."""
    if name not in AUGMENTATIONS:
        raise InputError(f"augmentation {name}: is unknown; choose from {', '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[name](image, mask, rng)


# ---- real and generated in one image


def draw_patches(count, size, alpha, cells, rng):
    """Draw m (B, 1, H, W), true where real: U(0, 1) < alpha on cells x cells, resized to H x W   (paper, Algorithm 1).

    size = (H, W). Nearest neighbour: 6 cells on 384 pixels are patches of 64, on 64 pixels patches of 10 or 11. alpha = 1
    is real only, 0 generated only.
    """
    real = torch.rand(count, 1, cells, cells, generator=rng) < alpha
    return F.interpolate(real.float(), size, mode="nearest-exact").bool()  # (B, 1, cells, cells) -> (B, 1, H, W)


def merge(real, generated, real_here):
    """m real + (1 - m) generated, both (B, C, H, W), m boolean as of draw_patches: inputs are mixed   (paper, Algorithm 1)."""
    return torch.where(real_here, real, generated)


# ---- parts


def _warp_sometimes(image, mask, rng, degrees, window, elastic):
    """Rotate, scale and, if elastic, bend, each with probability 0.2, in one resampling; the rest stays untouched."""
    rotated, scaled, bent = (draw_uniform(0.0, 1.0, image, rng) < 0.2 for _ in range(3))
    bent = bent & elastic
    angle = torch.where(rotated, draw_uniform(-degrees, degrees, image, rng), 0.0)
    matrix = similarity(angle, torch.where(scaled, draw_uniform(*window, image, rng), 1.0))
    moved = rotated | scaled | bent
    if not moved.any():
        return image, mask
    displacement = None
    if elastic:
        width = image.shape[-1]
        amplitude = bent * draw_uniform(0.0, 3.6 / 384, image, rng) * width
        sigma = draw_uniform(9 / 384, 13 / 384, image, rng) * width
        displacement = draw_displacement(image[moved], amplitude[moved], sigma[moved], rng)
    image, mask = image.clone(), mask.clone()
    image[moved], mask[moved] = _warp_both(image[moved], mask[moved], matrix[moved], displacement)
    return image, mask


def _warp_both(image, mask, matrix, displacement=None):
    warped = warp(image, matrix, "bilinear", -1.0, displacement)
    return warped, warp(mask[:, None], matrix, "nearest", 0, displacement)[:, 0]  # (B, H, W) as one channel


def _sometimes(probability, transform, image, rng):
    """Apply transform(image, rng) to each sample with that probability."""
    chosen = draw_uniform(0.0, 1.0, image, rng) < probability
    if not chosen.any():
        return image
    image = image.clone()
    image[chosen] = transform(image[chosen], rng)
    return image


def _keep_statistics_gamma(image, rng):
    """Gamma U(0.7, 1.5), then the mean and deviation from before."""
    changed = apply_gamma(image, draw_uniform(0.7, 1.5, image, rng))
    (mean, deviation), (new_mean, new_deviation) = _statistics(image), _statistics(changed)
    return (changed - new_mean) / new_deviation * deviation + mean


def _statistics(image):
    return image.mean((2, 3), keepdim=True), image.std((2, 3), keepdim=True).clamp(min=1e-6)


def _range(image):
    return image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)


def _gaussian(length, sigma):
    """Kernel values exp(-(i - j)^2 / (2 sigma^2)): (B, 1, length, length), not normalised."""
    position = torch.arange(length, device=sigma.device, dtype=sigma.dtype)
    return torch.exp(-((position[:, None] - position) ** 2) / (2 * _column(sigma) ** 2))


def _draw_normal(shape, like, rng):
    return torch.randn(shape, generator=rng).to(like.device)


def _column(values):
    return values[:, None, None, None]
