"""Copies and look-alikes are found under any name, format, depth and size."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from emit.data.cases import Case, read_cases
from emit.data.similarity import content_hash, join_near_duplicates, look, thumbnails


def make_picture(seed, size=(48, 64)):
    """A smooth random picture: noise at 8 x 8 enlarged, so that thumbnails of two seeds do not correlate."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
    return np.asarray(Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC))


def save_tree(root, pictures):
    (root / "US" / "gb").mkdir(parents=True)
    for name, image in pictures.items():
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(root / "US" / "gb" / name)
    return {case.id.split("/")[-1]: case for case in read_cases(root).cases}


def join(cases, threshold=0.9):
    return join_near_duplicates(cases, {case.id: look(case) for case in cases}, threshold)


def test_content_hash_is_the_head_of_the_sha256_of_shape_and_grey_levels():
    levels = bytes([0, 1, 127, 128, 254, 255])
    image = np.frombuffer(levels, np.uint8).reshape(2, 3).astype(np.float32) / 127.5 - 1
    expected = int(hashlib.sha256(b"(2, 3)" + levels).hexdigest()[:16], 16)
    for shift in (0, 1e-3, -1e-3):  # an eighth of a level
        assert content_hash(image + shift) == expected


def test_content_hash_sees_through_name_format_and_depth(tmp_path):
    picture = make_picture(0)
    other = picture.copy()
    other[20, 30] ^= 1
    cases = save_tree(tmp_path, {
        "a.png": picture, "b.tif": picture, "c.bmp": picture, "d.png": Image.fromarray(picture).convert("RGBA"),
        "e.png": picture.astype(np.uint16) * 257, "f.png": picture // 2 * 2 + 1, "g.png": other, "h.png": picture.T,
    })  # fmt: skip
    assert len({content_hash(cases[name].image) for name in "abcde"}) == 1
    assert len({content_hash(cases[name].image) for name in "afgh"}) == 4


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (8, 20), (30, 50)])
def test_thumbnail_products_are_correlations_of_block_means(size):
    """Rows of the average: pixel i counts where it overlaps bin j, from floor(j n / 8) to ceil((j + 1) n / 8)."""
    rng = np.random.default_rng(0)
    pair = rng.normal(size=(2, 3, *size)) * [[[[5]]], [[[0.1]]]] + 7

    def average(n):
        bins = np.array([[j * n // 8 <= i < -(-(j + 1) * n // 8) for i in range(n)] for j in range(8)])
        return bins / bins.sum(axis=1, keepdims=True)

    expected = np.corrcoef((average(size[0]) @ pair.mean(axis=1) @ average(size[1]).T).reshape(2, -1))
    for images in (pair, torch.tensor(pair), pair.mean(axis=1)):
        small = thumbnails(images, 8)
        assert small.shape == (2, 64) and small.dtype == np.float32
        np.testing.assert_allclose(small @ small.T, expected, atol=1e-6)  # float32 sums of 64 products


def test_constant_and_missing_images_have_empty_thumbnails():
    assert not thumbnails([np.full((32, 32), 0.7)], 32).any()  # although the mean of 1024 times 0.7 is off by 1e-16
    assert thumbnails([], 8).shape == (0, 64)


def test_near_duplicates_are_found_and_chained(tmp_path):
    a, b, c = (make_picture(seed).astype(float) for seed in range(3))
    noise = np.random.default_rng(9).normal(0, 4, a.shape)
    dark = [np.random.default_rng(seed).random((48, 64)) ** 40 * 255 for seed in (10, 11)]  # unlike, but for the dark
    pictures = {
        "dark.png": dark[0], "dark_too.png": dark[1],
        "a.png": a, "a_copy.png": a, "a_noisy.png": a + noise, "a_dark.png": a * 0.7 + 20,
        "a_small.png": np.asarray(Image.fromarray(a.astype(np.uint8)).resize((40, 30))).astype(float),
        "b.png": b, "b_next.png": 0.75 * b + 0.25 * c, "b_far.png": 0.5 * b + 0.5 * c, "c.png": c,
        "blank.png": a * 0, "white.png": a * 0 + 255,
    }  # fmt: skip
    cases = save_tree(tmp_path, {name: np.clip(np.rint(image), 0, 255).astype(np.uint8)
                                 for name, image in pictures.items()})  # fmt: skip
    groups = {case.id: case.group for case in join(list(cases.values()))}
    parts = {}
    for name, group in groups.items():
        parts.setdefault(group, set()).add(name.removeprefix("US/gb/"))
    # corr(b, 3b/4 + c/4) = 0.95, corr(3b/4 + c/4, b/2 + c/2) = 0.89 for uncorrelated b and c of equal variance
    assert sorted(map(sorted, parts.values())) == [
        ["a", "a_copy", "a_dark", "a_noisy", "a_small"], ["b", "b_next"], ["b_far"], ["blank"], ["c"],
        ["dark"], ["dark_too"], ["white"],
    ]  # fmt: skip
    assert groups["US/gb/a_small"] == "US/gb/a"
    chained = join([cases[name] for name in ("b", "b_next", "b_far", "c")], threshold=0.6)
    assert len({case.group for case in chained}) == 1  # b and c are now joined through b_far


def test_near_duplicates_join_whole_groups():
    a, b, c = (make_picture(seed).astype(np.float32) / 128 - 1 for seed in range(3))
    owners = (("p3/0", a), ("p2/0", a.copy()), ("p2/1", b), ("p1/0", b.copy()), ("p4/0", c))
    cases = [Case(name, name[:2], "", "", name, lambda path, image=image: (image, None)) for name, image in owners]
    assert [case.group for case in join(cases)] == ["p1", "p1", "p1", "p1", "p4"]
