"""What the generated images are worth as data: do they follow their mask, are they copies, do they differ.

Images: (H, W) or (C, H, W), arrays or CPU tensors in any range; correlation ignores brightness and contrast.
"""

from itertools import islice

import numpy as np
import torch
from torch.nn import functional

from emit.evaluation.metrics import kind_of, score_overlap

EXACT = 1 - 1e-5  # the correlation of two equal images, less what float32 sums may lose


def mask_fidelity(images, masks, segment, classes):
    """Compare the mask each image was asked to follow with what a segmenter finds in it.

    segment: callable, image -> integer labels (H, W).  classes: names, background first.
    Returns one dict for each image and foreground class: image (its index), class, kind, dice, iou, precision, recall,
    with the asked mask as the target; `metrics.summarise` takes them. The segmenter's own errors count as the image's.
    """
    rows = []
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        found, asked = np.asarray(segment(image)), np.asarray(mask)
        if found.shape != asked.shape:
            raise ValueError(f"image {index}: the segmenter gave {found.shape}, the mask is {asked.shape}")
        for label, name in enumerate(classes[1:], start=1):
            a, b = found == label, asked == label
            rows.append({"image": index, "class": name, "kind": kind_of(a, b)} | score_overlap(a, b))
    return rows


def keep_faithful(rows, threshold):
    """Return, in order, the indices of the images whose worst class has a Dice of at least `threshold`."""
    worst = {}
    for row in rows:
        worst[row["image"]] = min(row["dice"], worst.get(row["image"], 1.0))
    return [index for index, dice in worst.items() if dice >= threshold]


def thumbnails(images, side):
    """Return (N, side * side) float32 grey thumbnails, each of zero mean and unit length: products are correlations.

    Channels are averaged and the image is area-averaged to side x side; `side` = its own side leaves it as it is.
    A constant image, or one with less than 1e-6 of its range left, becomes zeros and correlates 0 with everything.
    """
    rows = []
    for image in images:
        grey = torch.as_tensor(image, dtype=torch.float64)
        grey = grey.mean(dim=0) if grey.ndim == 3 else grey
        flat = functional.interpolate(grey[None, None], size=(side, side), mode="area").flatten()
        scale = flat.abs().max()
        flat = flat - flat.mean()
        length = flat.norm()
        rows.append((flat / length if length > 1e-6 * scale else torch.zeros_like(flat)).float())
    return torch.stack(rows).numpy() if rows else np.zeros((0, side * side), np.float32)


def find_nearest(queries, images, side, chunk=256):
    """Return for each query image (index, correlation) of the most correlated of `images`, as two arrays.

    `images` may be any iterable, even a lazy one of a million: it is read once, `chunk` thumbnails at a time.
    """
    queries, images = thumbnails(queries, side), iter(images)
    best, where, start = np.full(len(queries), -np.inf), np.full(len(queries), -1), 0
    while batch := list(islice(images, chunk)):
        correlation = queries @ thumbnails(batch, side).T
        top = correlation.argmax(axis=1)
        value = correlation[np.arange(len(queries)), top]
        where = np.where(value > best, start + top, where)
        best, start = np.maximum(value, best), start + len(batch)
    if start == 0:
        raise ValueError("there are no images to search")
    return where, best


def find_copies(generated, training, held_out, side, quantile=0.99):
    """Ask whether generated images lie nearer to the training images than real unseen images do.

    held_out: real, of patients not in training.  Use side 32 for shifted or noisy copies, the full side for exact ones.
    Returns nearest, correlation, flagged (each (N,)), held_out (its M correlations), threshold, closer.
    threshold: a quantile of held_out's correlations; near 1 says that held_out itself repeats training images.
    flagged: above it (images like unseen ones would be at a rate of about 1 - quantile), or an exact copy.
    closer: chance that a generated image is nearer to training than a held-out one (ties half); 0.5 = no nearer.
    """
    nearest, correlation = find_nearest(generated, training, side)
    _, real = find_nearest(held_out, training, side)
    threshold = float(np.quantile(real, quantile))
    above = (correlation[:, None] > real).mean() + (correlation[:, None] == real).mean() / 2
    return {
        "nearest": nearest,
        "correlation": correlation,
        "flagged": (correlation > threshold) | (correlation > EXACT),
        "held_out": real,
        "threshold": threshold,
        "closer": float(above),
    }


def describe_generated(images, sources, training, held_out, side=32):
    """Describe a fold's generated images beside real ones: how near to training images, how different among themselves.

    images: N images; sources: the number in `training` of the case that each was made from; held_out: unseen real images.
    Returns images (N), correlation and held_out (medians of the nearest training image's correlation), highest, flagged
    (how many `find_copies` flags), own_source (share whose nearest is their source: they follow its edges), diversity
    (mean over cases of `measure_diversity`; None where each case has one image).
    """
    found = find_copies(images, training, held_out, side)
    by_source = {}
    for image, source in zip(images, sources, strict=True):
        by_source.setdefault(source, []).append(image)
    several = [measure_diversity(samples, side) for samples in by_source.values() if len(samples) > 1]
    return {
        "images": len(images),
        "correlation": float(np.median(found["correlation"])),
        "highest": float(found["correlation"].max()),
        "held_out": float(np.median(found["held_out"])),
        "flagged": int(found["flagged"].sum()),
        "own_source": float((found["nearest"] == np.asarray(sources)).mean()),
        "diversity": float(np.mean(several)) if several else None,
    }


def measure_diversity(samples, side):
    """Mean of 1 - correlation over all pairs of the n >= 2 samples of one case: 0 = all alike, 1 = unrelated."""
    rows = thumbnails(samples, side).astype(np.float64)
    if len(rows) < 2:
        raise ValueError("diversity needs at least two samples")
    products = rows @ rows.T
    pairs = len(rows) * (len(rows) - 1)
    return float(1 - (products.sum() - np.trace(products)) / pairs)
