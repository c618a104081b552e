"""New anatomy under an old label: the edges and the mask of a case are bent together, or put into another picture's tissue.

Not in the paper, whose generated images all repeat their case's outline. Edges (B, 1, S, S) in [0, 1]; masks (B, S, S)
with labels; frames (B, S, S) boolean, true where a square picture is padding. Row b is drawn by the generator rngs[b] alone.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from emit.data.augment import draw_displacement
from emit.data.geometry import similarity, warp

# Ranges at strength 1 [choice]: wide enough that the nearest training image is mostly another case's (docs/findings.md)
DEGREES, ZOOM, SHIFT, BEND, WIDTH = 15.0, 0.25, 0.15, 0.03, 1 / 8  # ZOOM: of log size; the last three are shares of the side
RIM = 3  # pixels around a label whose edges go with it [choice]: HED's lines are that wide


def bend(planes: Tensor, labels: Tensor, rngs: list[torch.Generator], strength: float) -> tuple[Tensor, Tensor]:
    """Flip left-right, turn, resize, shift and bend planes (B, C, S, S), bilinear, and labels (B, L, S, S), nearest, alike.

    Position p reads A p + shift + u(p): A turns by U(-15, 15) degrees and zooms by exp U(-0.25, 0.25); shift U(-0.15, 0.15) S
    along each axis; u is smooth noise of 0.03 S rms, sigma S / 8; all in proportion to the strength. Mirrored at the border.
    """
    side, rows = planes.shape[-1], []
    for plane, label, rng in zip(planes[:, None], labels[:, None], rngs, strict=True):  # (1, C, S, S), (1, L, S, S)
        turn, zoom, right, down, flip = (2 * torch.rand(5, generator=rng) - 1).tolist()
        matrix = similarity(torch.tensor([strength * DEGREES * turn]), torch.tensor([strength * ZOOM * zoom]).exp())  # (1, 2, 3)
        matrix[0, :, 2] = strength * SHIFT * side * torch.tensor([right, down])
        matrix[0, :, 0] *= 1 if flip < 0 else -1
        amplitude, sigma = (share * side * torch.ones(1, 1, 1, 1) for share in (strength * BEND, WIDTH))
        offset = draw_displacement(plane, amplitude, sigma, rng)  # (1, S, S, 2)
        rows.append((warp(plane, matrix, "bilinear", None, offset)[0], warp(label, matrix, "nearest", None, offset)[0]))
    return tuple(map(torch.stack, zip(*rows, strict=True)))


def transplant(edge: Tensor, mask: Tensor, tissue: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Put the labelled objects and the edges around them into other edges, `tissue`; no label reaches into the frame of these."""
    mask = mask.masked_fill(frame, 0)
    near = F.max_pool2d((mask > 0).float()[:, None], 2 * RIM + 1, stride=1, padding=RIM) > 0  # (B, 1, S, S)
    return torch.where(near, edge, tissue), mask
