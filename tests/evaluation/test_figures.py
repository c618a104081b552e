"""Figures: what is drawn equals what was given, no text covers another, files are small PNGs."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from emit.evaluation import figures

DEEP = "generated first+deepstack"  # the longest name of an arm
STAMP = "published deviations on: diffboost:select_on_test|no_shuffle|fake_pixel|mix_logits"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, open, to look into them after they were saved."""
    opened, close = [], figures.plt.close
    monkeypatch.setattr(figures.plt, "close", opened.append)
    yield opened
    for figure in opened:
        close(figure)


def disc(size=32, row=16, radius=8):
    y, x = np.mgrid[:size, :size]
    return ((y - row) ** 2 + (x - 16) ** 2 <= radius**2).astype(np.uint8)


def contours(path, predictions, classes=("background", "lesion"), target=None, stamp="", label="benign/benign (12)"):
    target = disc() if target is None else target
    image = np.linspace(-1, 1, target.size, dtype=np.float32).reshape(target.shape)
    found = {arm: (prediction, 0.5) for arm, prediction in predictions.items()}
    example = {"image": image, "target": target, "aspect": 1.0, "found": found}
    labels = [f"{p}th percentile\n{label}" for p in (10, 50, 90)]
    figures.save_contours(path, [{**example, "label": label} for label in labels], classes, stamp)


def paired(path, arms, stamp=""):
    figures.save_paired(path, {arm: np.random.default_rng(i).random(40) for i, arm in enumerate(arms)}, stamp)


def curves(path, arms, stamp="", quantity="training loss"):
    by_arm = {arm: [([24, 49], [0.5, 0.25]), ([24, 49], [0.7, 0.35])] for arm in arms}
    figures.save_curves(path, {quantity: by_arm, "validation Dice": by_arm}, stamp)


def sweep(path, arm=DEEP, stamp="", label="generated images per case"):
    means, spreads = {"baseline": [0.5] * 3, arm: [0.5, 0.6, 0.625]}, {"baseline": [0.1] * 3, arm: [0.05, 0.1, 0.2]}
    figures.save_sweep(path, [1, 2.5, 50], means, spreads, label, stamp)


def generated(path, stamp="", prompt="US, breast, malignant mass with posterior shadow, low contrast"):
    noise = np.random.default_rng(0).uniform(-1, 1, (64, 64))
    column = {"original": (noise, disc(64)), "edge": np.abs(noise), "samples": [(noise, disc(64))] * 3, "prompt": prompt}
    figures.save_generated(path, [column] * 6, stamp)


DRAWINGS = {
    "contours": lambda path: contours(path, {"baseline": disc(row=18), "mirror": disc(), "ours": disc(), DEEP: disc()}),
    "paired": lambda path: paired(path, ["baseline", *(DEEP[: 25 - i] for i in range(8))]),
    "paired, stamped": lambda path: paired(path, ["baseline", DEEP], STAMP),
    "curves": lambda path: curves(path, ("baseline", DEEP, "ours"), STAMP),
    "sweep": lambda path: sweep(path, stamp=STAMP),
    "generated": lambda path: generated(path, STAMP),
}
ODD = {  # every word that a figure can be given
    "rows": lambda path, word: figures.save_rows(path, {word: np.zeros((1, 4, 4))}, titles=[word]),
    "contours": lambda path, word: contours(path, {word: disc()}, ("background", word, word), stamp=word, label=word),
    "paired": lambda path, word: paired(path, (word, word + "2"), word),
    "curves": lambda path, word: curves(path, [word], word, word),
    "sweep": lambda path, word: sweep(path, word, word, word),
    "generated": lambda path, word: generated(path, word, prompt=word),
}


def visible_texts(figure):
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axis in figure.axes:
        texts += [axis.title, *axis.texts]
        if axis.axison:
            texts += [axis.xaxis.label, axis.yaxis.label]
            for line in (axis.xaxis, axis.yaxis):  # ticks beyond the view exist and are not drawn
                low, high = line.get_view_interval()
                texts += [tick.label1 for tick in line.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in texts if text.get_text().strip() and text.get_visible()]


@pytest.mark.parametrize("name", DRAWINGS)
def test_file_is_small_and_no_text_covers_another(name, drawn, tmp_path):
    path = tmp_path / "figures" / "figure.png"
    DRAWINGS[name](path)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and 100 < image.width < 1400 and 100 < image.height < 1400
    assert path.stat().st_size < 200_000  # the page must travel by mail
    (figure,) = drawn
    frame = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent()) for text in visible_texts(figure)]
    for text, box in boxes:  # 1 pixel: glyphs are laid out on whole pixels
        assert box.x0 > frame.x0 - 1 and box.x1 < frame.x1 + 1 and box.y0 > frame.y0 - 1, f"{text!r} leaves the figure"
    for (one, a), (other, b) in combinations(boxes, 2):
        width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert width < 1 or height < 1, f"{one!r} covers {other!r}"
    for legend in figure.legends:
        assert not any(legend.get_window_extent().overlaps(axis.bbox) for axis in figure.axes)


@pytest.mark.parametrize("word", ["$x$ $\\frac", "\u6f22\u5b57 \U0001f600"], ids=["formula", "not in the font"])
@pytest.mark.parametrize("name", ODD)
def test_text_is_drawn_as_it_stands(name, word, drawn, tmp_path):
    ODD[name](tmp_path / "figure.png", word)  # a formula raised, a lacking character warned
    given = [text for text in visible_texts(drawn[0]) if word in text.get_text()]
    assert given and not any(text.get_parse_math() for text in given)


def count_pixels(path, colour):
    """Count pixels near a colour: 60 of 442, as lines are blended with what is under them."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(float)
    return int((np.linalg.norm(pixels - 255 * np.array(to_rgb(colour)), axis=-1) < 60).sum())


def test_contours_lie_on_the_borders(drawn, tmp_path):
    target, prediction = np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8)
    target[10:20, 5:25], prediction[0:8, 12:20] = 1, 1  # the prediction touches the image's border
    contours(tmp_path / "figure.png", {"baseline": prediction}, target=target)
    truth, both = drawn[0].axes[:2]
    spans = [line.get_datalim(axis.transData).extents for axis in (truth, both) for line in axis.collections]
    # A pixel's centre has whole coordinates, so the border between 0 and 1 is half a pixel outside the mask.
    assert spans[0] == pytest.approx([4.5, 9.5, 24.5, 19.5]) and spans[1] == pytest.approx(spans[0])
    assert spans[2] == pytest.approx([11.5, -0.5, 19.5, 7.5])
    assert len(spans) == 3


def test_contours_of_nothing_and_of_several_classes(drawn, tmp_path):
    empty = np.zeros((32, 32), np.uint8)
    contours(tmp_path / "empty.png", {"baseline": empty}, target=empty)
    assert not any(axis.collections for axis in drawn[0].axes)
    labels = disc() + disc(radius=4)
    contours(tmp_path / "classes.png", {"baseline": labels}, ("background", "PZ", "TZ"), labels)
    assert [text.get_text() for text in drawn[1].legends[0].get_texts()] == ["ground truth", "prediction", "PZ", "TZ"]
    dashes = {tuple(collection.get_linestyle()[0][1] or ()) for collection in drawn[1].axes[0].collections}
    assert len(dashes) == 2


def test_paired_lines_join_the_same_case(drawn, tmp_path):
    scores = {"baseline": np.array([0.25, 0.5, 0.75, 0.5]), "ours": np.array([0.5, 0.25, 0.75, 0.625])}
    figures.save_paired(tmp_path / "figure.png", scores)
    axis = drawn[0].axes[0]
    ends = {tuple(line.get_ydata()): line.get_color() for line in axis.lines if tuple(line.get_xdata()) == (0.2, 0.8)}
    gains = {(0.25, 0.5): figures.BLUE, (0.5, 0.625): figures.BLUE}
    assert ends == gains | {(0.5, 0.25): figures.VERMILION, (0.75, 0.75): figures.GREY}
    assert axis.get_title() == "ours\n+0.031, 2 of 4 up"  # (0.25 - 0.25 + 0 + 0.125) / 4
    assert [line.get_ydata()[0] for line in axis.lines if line.get_linewidth() == 1.6] == [0.5, 0.5625]  # medians


def test_curves_are_mean_and_range_over_common_steps(drawn, tmp_path):
    runs = [([24, 49, 74], [0.5, 0.25, 0.1]), ([24, 49], [0.75, 0.75])]
    figures.save_curves(tmp_path / "figure.png", {"loss": {"ours": runs}})
    (line,), (band,) = drawn[0].axes[0].lines, drawn[0].axes[0].collections
    assert line.get_xdata().tolist() == [24, 49] and line.get_ydata().tolist() == [0.625, 0.5]
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert corners == {(24, 0.5), (24, 0.75), (49, 0.25), (49, 0.75)}


def test_sweep_shows_means_and_bars(drawn, tmp_path):
    sweep(tmp_path / "figure.png")
    axis = drawn[0].axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2.5", "50"]
    middle = axis.containers[1]
    assert middle.lines[0].get_ydata().tolist() == [0.5, 0.6, 0.625]
    bars = [segment[:, 1].tolist() for segment in middle.lines[2][0].get_segments()]
    assert np.allclose(bars, [[0.45, 0.55], [0.5, 0.7], [0.425, 0.825]])


def test_quantised_colours_stay_apart_and_the_stamp_is_red(tmp_path):
    contours(tmp_path / "figure.png", {"baseline": disc(row=20)})
    contours(tmp_path / "stamped.png", {"baseline": disc(row=20)}, stamp=STAMP)
    assert count_pixels(tmp_path / "figure.png", "#B00000") == 0 < 100 < count_pixels(tmp_path / "stamped.png", "#B00000")
    assert min(count_pixels(tmp_path / "figure.png", colour) for colour in (figures.TRUTH, figures.FOUND)) > 200
    grey = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB")).astype(int)[40:60, 60:160]
    assert np.ptp(grey, axis=-1).max() <= 8  # an image without contours stays grey


def test_rows_keep_the_scale_of_each_row(drawn, tmp_path):
    rows = {"image": np.full((2, 1, 4, 4), -0.5), "edge": np.full((1, 4, 4), 0.25)}
    figures.save_rows(tmp_path / "figure.png", rows, titles=("a", "b"))
    shown = [axis.images[0] for axis in drawn[0].axes if axis.images]
    assert [image.get_clim() for image in shown] == [(-1, 1), (-1, 1), (0, 1)]
    assert float(shown[0].get_array()[0, 0]) == -0.5 and float(shown[2].get_array()[0, 0]) == 0.25
