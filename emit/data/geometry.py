"""Where pixels go: onto the square that the networks see, back to the native grid, and through random affine warps.

Positions are offsets in pixels from the image centre, x right and y down; a pixel's value sits at the pixel's centre.
"""

import torch
from torch.nn import functional as F

NEAREST, LINEAR = 0, 1


def fit(array, size, order, fill):
    """Letterbox: pad to a square with `fill`, centred (an odd row or column goes to the end), resize to (size, size).

    array: (H, W) or (C, H, W), numpy or tensor; returns a tensor. order: NEAREST keeps labels and dtype; LINEAR is
    antialiased bilinear. fill: nan marks every pixel that is not wholly of the picture.
    """
    tensor = torch.as_tensor(array)
    height, width = tensor.shape[-2:]
    side, top, left = _square(height, width)
    padding = (left, side - width - left, top, side - height - top)
    planes = F.pad(tensor.reshape(1, -1, height, width), padding, value=fill)  # (1, C, side, side)
    if order == NEAREST:
        resized = F.interpolate(planes.float(), (size, size), mode="nearest-exact").to(tensor.dtype)
    else:
        resized = resize(planes if planes.is_floating_point() else planes.float(), size)
    return resized.reshape(*tensor.shape[:-2], size, size)


def unfit(logits, shape):
    """Take logits (..., K, size, size) back to the native grid (..., K, H, W), shape = (H, W): the inverse of a LINEAR fit."""
    height, width = shape
    side, top, left = _square(height, width)
    size = logits.shape[-1]
    square = resize(logits.reshape(1, -1, size, size), side)[..., top : top + height, left : left + width]
    return square.reshape(*logits.shape[:-2], height, width)


def resize(planes, size):
    """Resize (B, C, H, W), antialiased bilinear, to size: (H, W), or one number for a square."""
    return F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)


def draw_uniform(low, high, like, rng):
    """Draw U(low, high) from the CPU generator rng, once for each row of `like` and onto its device: (B,)."""
    return (low + (high - low) * torch.rand(len(like), generator=rng)).to(like.device)


def similarity(degrees, window):
    """Matrix window * R(degrees), (B, 2, 3), for warp: the content turns counter-clockwise and shrinks; both (B,)."""
    angle = torch.deg2rad(degrees)
    cosine, sine = window * torch.cos(angle), window * torch.sin(angle)
    zero = torch.zeros_like(cosine)
    return torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).reshape(-1, 2, 3)


def warp(tensor, matrix, mode, fill, displacement=None):
    """Resample (B, C, H, W): output position p reads the input at matrix (p, 1) + displacement(p), `fill` outside.

    fill: a number, or None for the picture mirrored at its border.
    matrix: (B, 2, 3), positions in pixels from the centre. displacement: (B, H, W, 2) in pixels, (x, y), or None.
    mode: "bilinear" or "nearest". The dtype is kept; labels pass through float32 exactly up to 2^24.
    """
    height, width = tensor.shape[-2:]
    half = torch.tensor([width / 2, height / 2], device=matrix.device)
    theta = matrix * torch.cat([half, half.new_ones(1)]) / half[:, None]  # pixels -> affine_grid's [-1, 1]
    grid = F.affine_grid(theta, (len(tensor), 1, height, width), align_corners=False)  # (B, H, W, 2)
    if displacement is not None:
        grid = grid + displacement / half
    padding, fill = ("reflection", 0) if fill is None else ("zeros", fill)
    sampled = F.grid_sample(tensor.to(grid.dtype) - fill, grid, mode, padding, align_corners=False)
    return (sampled + fill).to(tensor.dtype)  # moved by fill and back, as grid_sample fills with 0 alone


def warp_pair(image, mask, matrix, displacement=None):
    """Warp image (B, C, H, W), bilinear, filled with -1, and mask (B, H, W), nearest, 0."""
    warped = warp(image, matrix, "bilinear", -1.0, displacement)
    return warped, warp(mask[:, None], matrix, "nearest", 0, displacement)[:, 0]  # (B, H, W) as one channel


def random_warp(image, edge, mask, rng, degrees=20.0, window=(0.75, 1.05)):
    """Turn by U(-degrees, degrees), centre-crop or pad to U(window) of the side, resize back: one draw for all three.

    Defaults: the authors' fine-tuning. edge (B, 1, H, W): bilinear, filled with 0; image and mask as of warp_pair.
    """
    matrix = similarity(draw_uniform(-degrees, degrees, image, rng), draw_uniform(*window, image, rng))
    image, mask = warp_pair(image, mask, matrix)
    return image, warp(edge, matrix, "bilinear", 0.0), mask


def _square(height, width):
    side = max(height, width)
    return side, (side - height) // 2, (side - width) // 2
