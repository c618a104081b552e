"""The figures: rows of images, contours against ground truth, arms compared. Everything is drawn without a display."""

import matplotlib

matplotlib.use("Agg")
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np


def save_rows(path, rows, titles=(), caption=""):
    """Save a grid of images: rows = {label: images (B, H, W) or (B, 1, H, W)}, grey; each image on its own scale of the row.

    titles: one per column. caption: one line under the grid, such as the settings that made it.
    """
    columns = max(len(images) for images in rows.values())
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(1.1 * columns + 0.9, 1.12 * len(rows) + 0.3), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        images = np.asarray(images, dtype=np.float32).reshape(len(images), *np.shape(images)[-2:])
        low, high = (0, 1) if images.min() >= 0 else (-1, 1)
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        line[0].text(-0.06, 0.5, label, rotation=90, ha="right", va="center", transform=line[0].transAxes, fontsize=7)
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=5)
    figure.supxlabel(caption, fontsize=6)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
