"""The figures: rows of images, contours against ground truth, arms compared. Everything is drawn without a display.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart. `stamp` is printed in red over a figure: the
published deviations that are on. Text is drawn as it stands: no formulas, a frame for a character that the font lacks.
"""

import io
import warnings
from contextlib import contextmanager
from textwrap import fill

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from PIL import Image

from emit.files import write_atomic

BLUE, VERMILION, YELLOW, GREY = "#0072B2", "#D55E00", "#F0E442", "#8C8C8C"
ORDER = ("#000000", BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # of arms in one panel
TRUTH, FOUND = YELLOW, "#56B4E9"  # contours, on grey images
STROKES = ("-", "--", ":", "-.")  # of classes
STYLE = {"font.size": 8, "axes.titlesize": 8, "text.parse_math": False}  # "$x$" in a prompt is no formula
STYLE |= dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False)
STYLE |= dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6)


@contextmanager
def costing_nothing(path):
    """Within this context a figure that fails costs no result: one line names it and the cause."""
    try:
        yield
    except Exception as error:
        print(f"{path}: not drawn ({type(error).__name__}: {' '.join(str(error).split())})")


def save_rows(path, rows, titles=()) -> None:
    """Save a grid of grey images: rows = {label: images (B, H, W) or (B, 1, H, W) in [-1, 1], or in [0, 1]}; column titles."""
    columns = max(len(images) for images in rows.values())
    with _draw(path, len(rows), columns, (1.1 * columns + 0.9, 1.12 * len(rows) + 0.3), bare=True) as (_, axes):
        for line, (label, images) in zip(axes, rows.items(), strict=True):
            images = np.asarray(images, dtype=np.float32).reshape(len(images), *np.shape(images)[-2:])
            for axis, image in zip(line, images, strict=False):
                _show(axis, image, low=0 if images.min() >= 0 else -1)
            line[0].set_ylabel(label)
        for axis, title in zip(axes[0], titles, strict=False):
            axis.set_title(title, fontsize=5)


def save_contours(path, examples, classes, stamp: str = "") -> None:
    """Save contours of the ground truth, alone in the first column, and of each arm's prediction: a row per example.

    examples: dicts of label; image (H, W) in [-1, 1]; target (H, W) labels; aspect, the pixel's height / width; found,
    {arm: (prediction (H, W), Dice)}.
    """
    columns = 1 + len(examples[0]["found"])
    heights = [example["aspect"] * example["image"].shape[0] / example["image"].shape[1] for example in examples]
    size = 1.3 * columns + 0.4, sum(1.3 * height + 0.15 for height in heights) + 0.5
    with _draw(path, len(examples), columns, size, stamp, bare=True, height_ratios=heights) as (figure, axes):
        for line, example in zip(axes, examples, strict=True):
            for axis in line:
                _show(axis, example["image"], aspect=example["aspect"])
                _outline(axis, example["target"], TRUTH)
            for axis, (prediction, dice) in zip(line[1:], example["found"].values(), strict=True):
                _outline(axis, prediction, FOUND)
                axis.set_title(f"Dice {dice:.3f}", fontsize=7, pad=2)
            line[0].set_ylabel(example["label"])
        for axis, name in zip(axes[0], ["ground truth", *examples[0]["found"]], strict=True):
            axis.set_title(f"{fill(name, 14)}\n{axis.get_title()}".strip(), fontsize=7, pad=2)
        keys = [Line2D([], [], color=TRUTH, label="ground truth"), Line2D([], [], color=FOUND, label="prediction")]
        for i, name in enumerate(classes[1:] if len(classes) > 2 else ()):
            keys.append(Line2D([], [], color="black", linestyle=STROKES[i % len(STROKES)], label=name))
        frame = {"frameon": True, "facecolor": "#BBBBBB", "edgecolor": "none"}
        figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), fontsize=7, **frame)


def save_paired(path, scores, stamp: str = "") -> None:
    """Save a panel per arm: box plots of the first arm (the baseline) and of this one, and a line for each case.

    scores: {arm: Dice of each case, in one order}.
    """
    (baseline, start), *others = scores.items()
    columns = min(5, len(others))
    rows = -(-len(others) // columns)
    opacity = float(np.clip(15 / len(start), 0.06, 0.6))
    style = {"showfliers": False, "manage_ticks": False, "medianprops": {"color": "black", "linewidth": 1.6}}
    with _draw(path, rows, columns, (1.45 * columns + 0.6, 1.75 * rows + 0.3), stamp, sharey=True) as (_, axes):
        for place, (axis, (arm, end)) in enumerate(zip(axes.flat, others, strict=False)):
            gain = np.round(end - start, 9)
            for sign, colour in ((0, GREY), (-1, VERMILION), (1, BLUE)):
                chosen = np.sign(gain) == sign
                axis.plot([0.2, 0.8], [start[chosen], end[chosen]], color=colour, alpha=opacity, linewidth=0.7)
            axis.boxplot([start, end], positions=[0, 1], widths=0.28, **style)
            axis.set_title(f"{fill(arm, 26)}\n{gain.mean():+.3f}, {np.count_nonzero(gain > 0)} of {len(start)} up", fontsize=7)
            axis.set_xticks([0, 1], [baseline, "arm"] if place + columns >= len(others) else ["", ""])
            axis.set_xlim(-0.35, 1.35)
        for axis in axes.flat[len(others) :]:
            axis.axis("off")
        for axis in axes[:, 0]:
            axis.set_ylabel("Dice per case")


def save_curves(path, curves, stamp: str = "") -> None:
    """Save learning curves: a panel per quantity, a line per arm, the mean of its runs at common steps; the band is their range.

    curves: {quantity: {arm: [(steps, values) of each run]}}.
    """
    with _draw(path, 1, len(curves), (2.9 * len(curves) + 1.3, 2.5), stamp) as (figure, axes):
        arms = dict.fromkeys(arm for by_arm in curves.values() for arm in by_arm)
        colours = {arm: ORDER[i % len(ORDER)] for i, arm in enumerate(arms)}
        for axis, (quantity, by_arm) in zip(axes[0], curves.items(), strict=True):
            for arm, runs in by_arm.items():
                by_step = [dict(zip(*run, strict=True)) for run in runs]
                steps = sorted(set(by_step[0]).intersection(*by_step))
                values = np.array([[run[step] for step in steps] for run in by_step])
                marker = "." if len(steps) == 1 else None  # a line of one point is not seen
                axis.plot(steps, values.mean(0), color=colours[arm], linewidth=1.2, marker=marker)
                axis.fill_between(steps, values.min(0), values.max(0), color=colours[arm], alpha=0.15, linewidth=0)
            axis.set(xlabel="step", ylabel=quantity)
        keys = [Line2D([], [], color=colour, label=fill(arm, 18)) for arm, colour in colours.items()]
        figure.legend(handles=keys, loc="outside center right", fontsize=7)


def save_sweep(path, xs, means, errors, label: str, stamp: str = "") -> None:
    """Save Dice against one setting, `label`: xs its values; means, errors (half the bar's length): {arm: one for each x}."""
    style = {"marker": "o", "markersize": 3.5, "linewidth": 1.2, "elinewidth": 0.8, "capsize": 2}
    with _draw(path, 1, 1, (4.2, 2.6), stamp) as (figure, ((axis,),)):
        for number, (arm, values) in enumerate(means.items()):
            shifted = np.arange(len(xs)) + 0.08 * (number - (len(means) - 1) / 2)  # so that no bar covers another
            axis.errorbar(shifted, values, errors[arm], label=arm, color=ORDER[number % len(ORDER)], **style)
        axis.set_xticks(range(len(xs)), xs)
        axis.set(xlabel=label, ylabel="Dice")
        figure.legend(loc="outside center right", fontsize=7)


def save_generated(path, columns, stamp: str = "") -> None:
    """Save generated images below their case: a column per case, each image with its own label's outline.

    columns: dicts of prompt; edge (S, S) in [0, 1]; original, (image (S, S) in [-1, 1], mask (S, S)), and samples, a list of it.
    """
    labels = "original", "edge", *(f"sample {i}" for i in range(max(len(column["samples"]) for column in columns)))
    size = 1.05 * len(columns) + 0.4, 1.05 * len(labels) + 0.4
    with _draw(path, len(labels), len(columns), size, stamp, bare=True) as (_, axes):
        for line, column in zip(axes.T, columns, strict=True):
            _show(line[1], column["edge"], low=0)
            for axis, (image, mask) in zip((line[0], *line[2:]), (column["original"], *column["samples"]), strict=False):
                _show(axis, image)
                _outline(axis, mask, TRUTH)
            line[0].set_title(fill(column["prompt"], 22), fontsize=6)
        for axis, label in zip(axes[:, 0], labels, strict=True):
            axis.set_ylabel(label)


@contextmanager
def _draw(path, rows, columns, size, stamp="", bare=False, **options):
    """Open a figure of rows x columns axes, bare ones for images; on leaving, save it small: in at most 256 colours."""
    options |= {"figsize": size, "dpi": 120, "layout": "constrained", "squeeze": False}
    options |= {"subplot_kw": {"xticks": [], "yticks": [], "frame_on": False}} if bare else {}
    with plt.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure, axes = plt.subplots(rows, columns, **options)
        try:
            yield figure, axes
            if stamp:
                figure.suptitle(fill(stamp, int(14 * size[0])), fontsize=7, color="#B00000")
            memory = io.BytesIO()
            figure.savefig(memory)
        finally:
            plt.close(figure)
    image = Image.open(memory).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    write_atomic(path, lambda temporary: image.save(temporary, "PNG", optimize=True))


def _show(axis, image, low=-1, **options):
    axis.imshow(image, cmap="gray", vmin=low, vmax=1, interpolation="nearest", **options)


def _outline(axis, labels, colour):
    """Draw the border of each class but 0; a mask that touches the image's border is closed there."""
    y, x = (np.arange(-1, side + 1) for side in labels.shape)
    for label in np.unique(labels[labels > 0]):
        style = {"colors": colour, "linewidths": 0.9, "linestyles": STROKES[(label - 1) % len(STROKES)]}
        axis.contour(x, y, np.pad(labels, 1) == label, [0.5], **style)
    axis.set(xlim=(-0.5, labels.shape[1] - 0.5), ylim=(labels.shape[0] - 0.5, -0.5))
