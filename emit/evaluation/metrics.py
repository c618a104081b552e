"""How well a predicted mask agrees with the true one: per case and class, at native geometry, and summarised.

An empty mask has no overlap and no surface, so a rule decides what it scores. Every case counts: both present -> scored;
both empty -> overlaps and NSD 1, distances 0; exactly one empty ("missed" or "false alarm") -> overlaps and NSD 0,
distances infinite. docs/metrics.md says what other codes do with the same cases.
"""

import numpy as np
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import cKDTree

OVERLAPS = ("dice", "iou", "precision", "recall")
DISTANCES = ("hd95", "assd")
SCORES = (*OVERLAPS, "nsd", *DISTANCES)
KINDS = ("both present", "both empty", "missed", "false alarm")


def score_case(prediction, target, classes, spacing, tolerance: float, fake_pixel: bool = False) -> list[dict]:
    """Score one case: one dict for each foreground class, holding SCORES and where they come from.

    prediction, target: integer arrays (H, W) or (D, H, W) of labels 0..K-1.  classes: K names, background first.
    spacing: mm along each axis (None: pixels), also the unit of NSD's tolerance.
    fake_pixel: as the public DiffBoost code, every empty mask gets one pixel at its centre before it is scored.
    """
    if prediction.shape != target.shape or target.ndim != len(spacing or target.shape):
        raise ValueError(f"prediction {prediction.shape}, target {target.shape} and spacing {spacing} do not fit")
    lowest, highest = min(prediction.min(), target.min()), max(prediction.max(), target.max())
    if not 0 <= lowest <= highest < len(classes):
        raise ValueError(f"labels {lowest} to {highest} for {len(classes)} classes")
    rows = []
    for label, name in enumerate(classes[1:], start=1):
        a, b = prediction == label, target == label
        row = {"class": name, "kind": kind_of(a, b), "predicted": int(a.sum()), "target": int(b.sum())}
        row |= {"unit": "px" if spacing is None else "mm", "tolerance": tolerance}
        if fake_pixel:
            for mask in (a, b):  # ours: they were made above
                mask[tuple(side // 2 for side in mask.shape)] |= not mask.any()
        rows.append(row | score_overlap(a, b) | score_boundary(a, b, spacing, tolerance))
    return rows


def kind_of(prediction, target) -> str:
    """Say which of two boolean masks is empty: one of KINDS."""
    kinds = {(True, True): KINDS[0], (False, False): KINDS[1], (False, True): KINDS[2], (True, False): KINDS[3]}
    return kinds[bool(prediction.any()), bool(target.any())]


def score_overlap(prediction, target) -> dict[str, float]:
    """Dice 2 TP / (2 TP + FP + FN), IoU TP / (TP + FP + FN), precision TP / (TP + FP), recall TP / (TP + FN) of boolean masks."""
    kind = kind_of(prediction, target)
    if kind != "both present":
        return dict.fromkeys(OVERLAPS, float(kind == "both empty"))
    hits, found, wanted = (int(np.count_nonzero(m)) for m in (prediction & target, prediction, target))
    values = 2 * hits / (found + wanted), hits / (found + wanted - hits), hits / found, hits / wanted
    return dict(zip(OVERLAPS, values, strict=True))


def score_boundary(prediction, target, spacing, tolerance: float) -> dict[str, float]:
    """HD95, ASSD and NSD from the distances of each surface voxel's centre to the nearest of the other mask, pooled.

    HD95: 95th percentile (linear interpolation), as MedPy; MONAI takes the larger of the two directions' percentiles.
    ASSD: mean, as MedPy and MONAI.  NSD: share no farther than `tolerance`, as MONAI's by default; DeepMind's weighs by area.
    """
    kind = kind_of(prediction, target)
    if kind != "both present":
        empty = kind == "both empty"
        return {"nsd": float(empty)} | dict.fromkeys(DISTANCES, 0.0 if empty else float("inf"))
    box = find_objects((prediction | target).astype(np.uint8))[0]  # holds both surfaces
    scale = 1 if spacing is None else np.asarray(spacing, dtype=float)
    a, b = (np.argwhere(find_surface(mask[box])) * scale for mask in (prediction, target))  # (points, axes)
    pooled = np.concatenate([cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]])
    within = pooled <= tolerance * (1 + 1e-9)  # 3 voxels of 0.1 mm are 0.30000000000000004 mm, and within 0.3 mm
    return {"nsd": float(within.mean()), "hd95": float(np.percentile(pooled, 95)), "assd": float(pooled.mean())}


def find_surface(mask) -> np.ndarray:
    """Keep the foreground voxels that erosion with the cross (4 neighbours in 2D, 6 in 3D) removes, as MedPy and MONAI."""
    return mask & ~binary_erosion(mask)  # beyond the image is background


def summarise(rows) -> dict[str, dict]:
    """Summarise the rows of many cases: {class: {"cases", one count for each of KINDS, "scores": {score: numbers}}}.

    numbers: mean, median, spread and infinite, how many values are. With one missed lesion a distance's mean is infinite
    and its spread nan; its median orders arms.
    """
    summary = {}
    for name in dict.fromkeys(row["class"] for row in rows):
        mine = [row for row in rows if row["class"] == name]
        entry = {"cases": len(mine)} | {kind: sum(row["kind"] == kind for row in mine) for kind in KINDS} | {"scores": {}}
        for key in (key for key in SCORES if key in mine[0]):
            values = np.array([row[key] for row in mine], dtype=float)
            numbers = {"mean": float(values.mean()), "median": float(np.median(values)), "spread": measure_spread(values)}
            entry["scores"][key] = numbers | {"infinite": int(np.isinf(values).sum())}
        summary[name] = entry
    return summary


def measure_spread(values) -> float:
    """Return the standard deviation (n - 1) of an array; nan of one value, or where one is infinite."""
    return float(values.std(ddof=1)) if len(values) > 1 and np.isfinite(values).all() else float("nan")
