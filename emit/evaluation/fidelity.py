"""What the generated images are worth as data: do they follow their mask, are they copies, do they differ.

Images: (H, W) or (C, H, W), arrays or CPU tensors in any range; correlation ignores brightness and contrast.
"""

from itertools import islice

import numpy as np

from emit.data.similarity import thumbnails
from emit.evaluation.metrics import kind_of, score_overlap

EXACT = 1 - 1e-5  # the correlation of two equal images, less what float32 sums may lose


def mask_fidelity(images, masks, segment, classes) -> list[dict]:
    """Compare the mask each image was asked to follow with what a segmenter finds in it.

    segment: callable, image -> integer labels (H, W).  classes: names, background first.
    Returns for each image and foreground class image (its index), class, kind, dice, iou, precision, recall, with the
    asked mask as the target, as `metrics.summarise` takes them. The segmenter's own errors count as the image's.
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


def find_nearest(queries, images, side: int, chunk: int = 256) -> tuple[np.ndarray, np.ndarray]:
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


def flag_copies(correlation, held_out, quantile: float = 0.99) -> np.ndarray:
    """Say of N generated images which are exact copies, or nearer to the training images than nearly all unseen ones.

    correlation (N,), held_out (M,): with the nearest training image, of generated images and of real ones of patients not
    in training. Images like unseen ones are flagged at a rate of about 1 - quantile.
    """
    return (correlation > np.quantile(held_out, quantile)) | (correlation > EXACT)


def describe_generated(images, sources, training, held_out, side: int = 32) -> dict:
    """Describe a fold's generated images beside real ones: how near to training images, how different among themselves.

    images: N; sources: the number in `training` of the case that each was made from; held_out: unseen real images.
    side: of the thumbnails, 32 for shifted or noisy copies, the images' own for exact ones alone. Returns images (N);
    correlation, held_out (medians of the nearest training image's correlation); highest; flagged (number of copies);
    own_source (share whose nearest is their source: they follow its edges); diversity (mean over cases; None: no pairs).
    """
    nearest, correlation = find_nearest(images, training, side)
    _, unseen = find_nearest(held_out, training, side)
    by_source = {}
    for image, source in zip(images, sources, strict=True):
        by_source.setdefault(source, []).append(image)
    several = [measure_diversity(samples, side) for samples in by_source.values() if len(samples) > 1]
    return {
        "images": len(images),
        "correlation": float(np.median(correlation)),
        "highest": float(correlation.max()),
        "held_out": float(np.median(unseen)),
        "flagged": int(flag_copies(correlation, unseen).sum()),
        "own_source": float((nearest == np.asarray(sources)).mean()),
        "diversity": float(np.mean(several)) if several else None,
    }


def measure_diversity(samples, side: int) -> float:
    """Mean of 1 - correlation over all pairs of the n >= 2 samples of one case: 0 = all alike, 1 = unrelated."""
    rows = thumbnails(samples, side).astype(np.float64)
    if len(rows) < 2:
        raise ValueError("diversity needs at least two samples")
    return float(1 - (rows @ rows.T)[np.triu_indices(len(rows), 1)].mean())
