"""TrainingImages are read once a batch, rows are computed alone, and what was read is counted."""

import numpy as np
import torch

from emit.data.cache import Memo, TrainingImages
from emit.data.cases import Case
from emit.data.geometry import LINEAR, fit
from emit.data.similarity import content_hash


def make_cases(count, asked):
    """Cases whose picture is one grey level; `asked` counts how often each is loaded."""

    def load(i):
        asked.append(i)
        return np.full((8, 8), i / 10, np.float32), np.full((8, 8), i % 2, np.uint8)

    return [Case(str(i), str(i), f"prompt {i}", "", "", lambda path, i=i: load(i)) for i in range(count)]


def test_a_row_does_not_depend_on_its_neighbours():
    """A convolution of one, two or sixteen rows differs in its last bits on a CPU; a resumed run meets other batches."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(*(torch.nn.Conv2d(c, 32, 3, padding=1) for c in (1, 32)))
    rows = torch.randn(16, 1, 64, 64)
    with torch.no_grad():
        together = Memo(network)(list(range(16)), rows)
        for group in ([3], [5, 3], list(range(15))):
            assert torch.equal(Memo(network)(group, rows[group]), together[group])


def test_rows_are_computed_once_while_they_fit_and_once_a_call_beyond():
    asked = []
    memo = Memo(lambda keys: (asked.append(keys[0]), torch.full((1, 4), float(keys[0])))[1], limit=2 * 16)  # float32
    assert memo([5, 7, 9, 9])[:, 0].tolist() == [5, 7, 9, 9] and asked == [5, 7, 9]
    assert memo([9, 7, 5])[:, 0].tolist() == [9, 7, 5] and asked == [5, 7, 9, 9]


def test_a_batch_beyond_the_limit_is_decoded_once(monkeypatch):
    asked = []
    pictures = TrainingImages(make_cases(4, asked), 8)
    pictures.rows.room = 0
    batch = pictures.batch([2, 1])
    assert asked == [2, 1]
    assert batch.image.shape == (2, 1, 8, 8) and batch.mask.tolist() == torch.tensor([0, 1]).view(2, 1, 1).expand(2, 8, 8).tolist()
    assert batch.prompts == ["prompt 2", "prompt 1"] and torch.allclose(batch.image[:, 0, 0, 0], torch.tensor([0.2, 0.1]))


def test_the_view_is_the_picture_at_its_own_size_without_the_black_of_the_frame():
    draw = np.random.default_rng(0)
    wide, square = (draw.uniform(-1, 1, shape).astype(np.float32) for shape in ((45, 100), (100, 100)))
    cases = [Case(str(n), "", "", "", "", lambda path, image=image: (image, None)) for n, image in enumerate((wide, square))]
    plain = TrainingImages(cases, 20).batch([0, 1])
    batch = TrainingImages(cases, 20, 64).batch([0, 1])
    assert torch.equal(batch.image, plain.image) and torch.equal(batch.mask, plain.mask) and plain.view.numel() == 0
    framed = fit(wide, 64, LINEAR, -1.0)  # rows 17.3 to 46.1
    assert batch.view.shape == (2, 1, 64, 64) and batch.view[0].isnan().nonzero()[:, 1].unique().tolist() == [
        *range(18),
        *range(45, 64),
    ]
    assert torch.equal(batch.view[0, 0, 18:45], framed[18:45]) and torch.equal(batch.view[1, 0], fit(square, 64, LINEAR, -1.0))


def test_what_was_read_is_counted_by_content():
    cases = make_cases(4, [])
    pictures = TrainingImages(cases, 8)
    pictures.read([3, 1])
    counted = pictures.hashes.numpy().view(np.uint64)
    assert counted.tolist() == [0, content_hash(cases[1].image), 0, content_hash(cases[3].image)]
