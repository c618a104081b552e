"""Which pictures are the same, or look alike: content hashes, thumbnails, groups of near-duplicates."""

import dataclasses
import hashlib

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.nn import functional as F

SIDE = 32  # pixels of a thumbnail; near-duplicates correlate above 0.9 at this size [choice]
ROWS = 2048  # thumbnails compared with all others at a time


def content_hash(image):
    """Return the head of the SHA-256 of a picture (H, W) in [-1, 1], as 256 grey levels, and its shape: an int below 2**64."""
    levels = np.floor((image.astype(np.float64) + 1) * 127.5 + 0.501).astype(np.uint8)  # .501, as ties hang on rounding
    return int(hashlib.sha256(f"{image.shape}".encode() + levels.tobytes()).hexdigest()[:16], 16)


def thumbnails(images, side):
    """Return (N, side * side) float32 grey area averages, each of zero mean and unit length: products are correlations.

    images: arrays or CPU tensors, (H, W) or (C, H, W), in any range; a constant one becomes zeros.
    """
    rows = []
    for image in images:
        grey = torch.as_tensor(image, dtype=torch.float64)
        grey = grey.mean(dim=0) if grey.ndim == 3 else grey
        flat = F.interpolate(grey[None, None], size=(side, side), mode="area").flatten()
        scale = flat.abs().max()
        flat = flat - flat.mean()
        length = flat.norm()
        rows.append((flat / length if length > 1e-6 * scale else torch.zeros_like(flat)).float())
    return torch.stack(rows).numpy() if rows else np.zeros((0, side * side), np.float32)


def join_near_duplicates(cases, threshold=0.9):
    """Return the cases regrouped: those of one group, of one picture, or of look-alike pictures share a group.

    Alike: the same content hash, or 32 x 32 thumbnails that correlate above the threshold; blank pictures link nobody.
    Meant for sets without patients: slices of two patients at one level look alike as well.
    """
    small = np.zeros((len(cases), SIDE * SIDE), np.float32)
    links, first = [], {}
    for i, case in enumerate(cases):
        image = case.image
        small[i] = thumbnails([image], SIDE)
        for key in (case.group, content_hash(image)) if np.ptp(image) else (case.group,):
            links.append((first.setdefault(key, i), i))
    for start in range(0, len(cases), ROWS):
        near = np.argwhere(small[start : start + ROWS] @ small.T > threshold)
        links += [(start + i, j) for i, j in near if start + i < j]
    rows, columns = np.array(links, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(cases), len(cases)))
    _, component = connected_components(graph, directed=False)
    names = {}
    for case, number in zip(cases, component, strict=True):
        names[number] = min(names.get(number, case.group), case.group)
    return [dataclasses.replace(case, group=names[number]) for case, number in zip(cases, component, strict=True)]
