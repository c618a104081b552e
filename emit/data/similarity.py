"""Which pictures are the same, or look alike: content hashes, thumbnails, groups of near-duplicates."""

import dataclasses
import hashlib
from collections import namedtuple

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


Look = namedtuple("Look", ["hash", "thumbnail", "shape", "classes"])


def look(case):
    """Read a case. Returns content hash, 0 for one grey level; thumbnail, None of a slice; (H, W); classes in its mask but 0."""
    image, mask = case.load()
    small = thumbnails([image], SIDE)[0] if case.volume is None else None
    classes = () if mask is None else np.flatnonzero(np.bincount(mask.ravel()))
    return Look(content_hash(image) if np.ptp(image) else 0, small, image.shape, frozenset(map(int, classes)) - {0})


def find_alike(looks, threshold):
    """Return places (i, j), i < j, in a list of Looks: of one content, then of thumbnails that correlate above the threshold.

    Blank pictures are like nobody, and slices have no thumbnails.
    """
    first, pairs = {}, []
    for j, one in enumerate(looks):
        if one.hash and first.setdefault(one.hash, j) < j:
            pairs.append((first[one.hash], j))
    small = np.array([one.thumbnail for one in looks if threshold < 1 and one.thumbnail is not None])  # (N, SIDE * SIDE)
    for start in range(0, len(small), ROWS):
        near = np.argwhere(small[start : start + ROWS] @ small.T > threshold)
        pairs += [(start + i, j) for i, j in near if start + i < j]
    return pairs


def join_near_duplicates(cases, looks, threshold=0.9):
    """Return the cases regrouped: those of one group, and those that `find_alike` pairs, share a group. looks: {id: Look}.

    Meant for sets without patients: slices of two patients at one level look alike as well.
    """
    links, first = find_alike([looks[case.id] for case in cases], threshold), {}
    links += [(first.setdefault(case.group, i), i) for i, case in enumerate(cases)]
    rows, columns = np.array(links, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(cases), len(cases)))
    _, component = connected_components(graph, directed=False)
    names = {}
    for case, number in zip(cases, component, strict=True):
        names[number] = min(names.get(number, case.group), case.group)
    return [dataclasses.replace(case, group=names[number]) for case, number in zip(cases, component, strict=True)]
