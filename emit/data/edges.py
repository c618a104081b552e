"""What the ControlNet sees: edge maps out of masks, other hints, and how well a generated image follows its edge."""

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

# Real part: horizontal differences; imaginary part: vertical ones, as the complex kernel [[-3-3j, -10j, 3-3j], ...].
SCHARR = torch.tensor([
    [[-3.0, 0.0, 3.0], [-10.0, 0.0, 10.0], [-3.0, 0.0, 3.0]],
    [[-3.0, -10.0, -3.0], [0.0, 0.0, 0.0], [3.0, 10.0, 3.0]],
])  # fmt: skip


def contour(mask):
    """min(|Scharr * y|, 1) of a label map: mask (B, H, W) -> (B, 1, H, W) of zeros and ones      (authors' code).

    The line is two pixels wide, one on each side of the boundary. The image's frame is no contour.
    """
    labels = F.pad(mask[:, None].float(), (1, 1, 1, 1), mode="replicate")  # (B, H, W) -> (B, 1, H + 2, W + 2)
    gradient = F.conv2d(labels, SCHARR.to(labels.device)[:, None])  # (B, 2, H, W)
    return gradient.norm(dim=1, keepdim=True).clamp(max=1.0)  # of whole labels the norm is 0 or at least 1


def edge_condition(edge, mask):
    """clip(HED + contour, 0, 1), (B, 1, H, W) = clip(255 HED + 255 min(|Scharr * y|, 1), 0, 255) / 255  (authors' code)."""
    return (edge + contour(mask)).clamp(0.0, 1.0)


def mask_map(mask, classes):
    """Labels 0..classes-1 as grey levels: y / (classes - 1), (B, H, W) -> (B, 1, H, W) in [0, 1]."""
    return mask[:, None].float() / max(classes - 1, 1)


def box_map(mask, classes):
    """Frames, one pixel wide, around every connected component (8 neighbours), at the grey levels of mask_map."""
    boxes = torch.zeros_like(mask_map(mask, classes))
    for canvas, labels in zip(boxes[:, 0], mask.cpu().numpy(), strict=True):
        for label in range(1, classes):
            components, _ = ndimage.label(labels == label, structure=np.ones((3, 3)))
            for box in ndimage.find_objects(components):
                frame = canvas[box]
                for side in (frame[0], frame[-1], frame[:, 0], frame[:, -1]):
                    side.clamp_(min=label / (classes - 1))  # where frames cross, the higher label wins
    return boxes


# name -> function of (mask, HED edge, number of classes)
HINTS = {
    "hed": lambda mask, edge, classes: edge,
    "hed+contour": lambda mask, edge, classes: edge_condition(edge, mask),
    "contour": lambda mask, edge, classes: contour(mask),
    "mask": lambda mask, edge, classes: mask_map(mask, classes),
    "box": lambda mask, edge, classes: box_map(mask, classes),
}


def make_hint(kind, mask, edge, classes):
    """Build the ControlNet's hint (B, 3, H, W) in [0, 1], three equal channels, of a kind in HINTS.

    mask (B, H, W) with labels 0..classes-1; edge: HED's (B, 1, H, W) in [0, 1]. What a kind does not read may be None.
    """
    return HINTS[kind](mask, edge, classes).repeat(1, 3, 1, 1)


def edge_agreement(edge, reference, threshold=0.5, tolerance=1):
    """F1 of edge pixels, per sample: how well `edge` (of a generated image) follows `reference` (its hint).

    P: share of edge pixels with a reference pixel within `tolerance` rows and columns; R: the reverse. edge, reference:
    (B, 1, H, W) in [0, 1], an edge where >= threshold. Returns (B,): 1 if both are empty, 0 if one is.
    """
    edge, reference = (edge >= threshold).float(), (reference >= threshold).float()
    precise, recalled = _share_near(edge, reference, tolerance), _share_near(reference, edge, tolerance)  # (B,)
    f1 = 2 * precise * recalled / (precise + recalled).clamp(min=1e-12)
    both_empty = (edge.sum((1, 2, 3)) == 0) & (reference.sum((1, 2, 3)) == 0)
    return torch.where(both_empty, 1.0, f1)


def _share_near(pixels, others, radius):
    near = F.max_pool2d(others, 2 * radius + 1, stride=1, padding=radius)
    return (pixels * near).sum((1, 2, 3)) / pixels.sum((1, 2, 3)).clamp(min=1)
