import numpy as np
import pytest
import torch
from scipy import signal

from emit.data.edges import HINTS, box_map, contour, edge_agreement, edge_condition, make_hint, mask_map


def scharr(labels):
    """min(|Scharr * y|, 1) by scipy with the complex kernel; "symm" repeats the outermost row, which is replication."""
    kernel = np.array([[-3 - 3j, -10j, 3 - 3j], [-10, 0, 10], [-3 + 3j, 10j, 3 + 3j]])
    return np.minimum(np.abs(signal.convolve2d(labels.numpy(), kernel, mode="same", boundary="symm")), 1)


def lines(*columns):
    """Images (B, 1, 12, 12) with one vertical line in the given column each; None is an empty image."""
    image = torch.zeros(len(columns), 1, 12, 12)
    for plane, column in zip(image, columns, strict=True):
        if column is not None:
            plane[0, :, column] = 1.0
    return image


def test_contour_of_a_square_is_two_pixels_wide_for_each_class():
    ring = torch.zeros(8, 8)
    ring[1:7, 1:7], ring[3:5, 3:5] = 1, 0
    mask = torch.zeros(2, 8, 8, dtype=torch.int64)
    mask[0, 2:6, 2:6] = 1
    mask[1, 2:6, 2:6] = 2
    assert torch.equal(contour(mask), torch.stack([ring, ring])[:, None])


def test_contour_is_the_complex_scharr():
    draw = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 3, (4, 9, 11), generator=draw)
    soft = 0.1 * torch.rand(4, 9, 11, generator=draw)  # stays below 1, so that the weights show
    for labels, ours in zip([*mask, *soft], [*contour(mask)[:, 0], *contour(soft)[:, 0]], strict=True):
        assert np.abs(ours.numpy() - scharr(labels)).max() < 1e-6  # float32 sums below 4


def test_edge_condition_is_the_clipped_sum_on_bytes():
    draw = torch.Generator().manual_seed(0)
    hed = torch.rand(2, 1, 9, 9, generator=draw)
    mask = torch.zeros(2, 9, 9, dtype=torch.int64)
    mask[:, 3:7, 2:6] = 2
    expected = np.clip(255 * hed[:, 0].double().numpy() + 255 * scharr(mask[0]), 0, 255) / 255
    # one float32 rounding of values up to 2
    assert np.abs(edge_condition(hed, mask)[:, 0].numpy() - expected).max() < 2e-7


def test_mask_map_spaces_labels_evenly():
    mask = torch.tensor([[[0, 1], [2, 3]]])
    assert torch.allclose(mask_map(mask, 4), torch.tensor([[[[0, 1 / 3], [2 / 3, 1]]]]))


def test_boxes_frame_each_component():
    mask = ["1000000", "1110000", "0101000", "0000020", "0000202", "0000020", "1000000"]
    frames = ["1111000", "1001000", "1111000", "0000222", "0000202", "0000222", "1000000"]
    mask, frames = (torch.tensor([[int(pixel) for pixel in row] for row in rows]) for rows in (mask, frames))
    both = torch.stack([mask, torch.zeros_like(mask)])
    assert torch.equal(box_map(both, 3), torch.stack([frames / 2, torch.zeros(7, 7)])[:, None])


def test_crossing_boxes_keep_the_higher_label():
    mask = torch.zeros(1, 6, 6, dtype=torch.int64)
    mask[0, 1, 0:4] = mask[0, 1:4, 0] = 2  # box rows 1-3, columns 0-3
    mask[0, 3, 2:6] = 1  # box row 3, columns 2-5
    assert box_map(mask, 3)[0, 0, 3].tolist() == [1, 1, 1, 1, 0.5, 0.5]


def test_hints_have_three_equal_channels_in_range():
    draw = torch.Generator().manual_seed(0)
    edge = torch.rand(2, 1, 8, 8, generator=draw)
    mask = torch.zeros(2, 8, 8, dtype=torch.int64)
    mask[:, 2:5, 3:6] = 1
    expected = {"hed": edge, "hed+contour": edge_condition(edge, mask), "contour": contour(mask)}
    expected |= {"mask": mask_map(mask, 3), "box": box_map(mask, 3)}
    assert set(expected) == set(HINTS)
    for kind, plane in expected.items():
        hint = make_hint(kind, mask, edge, 3)
        assert hint.min() >= 0 and hint.max() <= 1 and torch.equal(hint, plane.expand(2, 3, 8, 8))
    assert torch.equal(make_hint("hed", None, edge, 3)[:, :1], edge)


def test_agreement_of_lines():
    edge = lines(4, 4, 4, 4, None, 4, None)
    reference = lines(4, 5, 6, 9, None, None, 4)
    assert edge_agreement(edge, reference).tolist() == [1, 1, 0, 0, 1, 0, 0]
    assert edge_agreement(edge, reference, tolerance=0).tolist() == [1, 0, 0, 0, 1, 0, 0]
    assert edge_agreement(edge, reference, tolerance=2).tolist() == [1, 1, 1, 0, 1, 0, 0]
    assert edge_agreement(0.4 * edge, edge).tolist() == [0, 0, 0, 0, 1, 0, 1]  # below the threshold: no edge
    assert edge_agreement(0.4 * edge, edge, threshold=0.4).tolist() == [1] * 7


@pytest.mark.parametrize("tolerance", [0, 1, 2])
def test_agreement_by_brute_force(tolerance):
    draw = torch.Generator().manual_seed(tolerance)
    edge, reference = torch.rand(2, 1, 10, 13, generator=draw) ** 6, torch.rand(2, 1, 10, 13, generator=draw) ** 6
    for a, b, ours in zip(edge[:, 0], reference[:, 0], edge_agreement(edge, reference, 0.5, tolerance), strict=True):
        ours_at, theirs_at = (a >= 0.5).nonzero().tolist(), (b >= 0.5).nonzero().tolist()

        def share(points, others):
            near = [any(max(abs(r - s), abs(c - d)) <= tolerance for s, d in others) for r, c in points]
            return sum(near) / len(near)

        precise, recalled = share(ours_at, theirs_at), share(theirs_at, ours_at)
        expected = 2 * precise * recalled / (precise + recalled) if precise + recalled else 0.0
        assert ours.item() == pytest.approx(expected, abs=1e-6)  # float32 quotient
