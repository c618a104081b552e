"""Nearest training image and diversity against np.corrcoef and hand-made images."""

import numpy as np
import pytest
import torch

from emit.data.cache import TrainingImages
from emit.data.cases import Case
from emit.evaluation.fidelity import describe_generated, find_nearest, flag_copies, measure_diversity, radial_power_spectrum


def smooth(count, rng, side=48):
    coarse = torch.from_numpy(rng.normal(size=(count, 1, 6, 6)))
    return list(torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")[:, 0])


def test_nearest_equals_corrcoef():
    rng = np.random.default_rng(1)
    queries, gallery = rng.normal(size=(5, 16, 16)), rng.normal(size=(11, 16, 16))
    table = np.corrcoef(queries.reshape(5, -1), gallery.reshape(11, -1))[:5, 5:]
    where, value = find_nearest(queries, gallery, 16)
    assert where.tolist() == table.argmax(axis=1).tolist()
    assert value == pytest.approx(table.max(axis=1), abs=1e-6)  # float32


@pytest.mark.parametrize("side", [32, 48])
def test_copies_are_found_and_their_source_named(side):
    rng = np.random.default_rng(2)
    training, held_out, fresh = smooth(60, rng), smooth(200, rng), smooth(200, rng)
    noisy = [0.5 * training[k] + 0.05 * torch.from_numpy(rng.normal(size=(48, 48))) - 2 for k in (7, 3)]
    nearest, correlation = find_nearest(noisy + fresh, training, side)
    flagged = flag_copies(correlation, find_nearest(held_out, training, side)[1])
    assert nearest[:2].tolist() == [7, 3] and flagged[:2].all()
    # Fresh images come from the held-out distribution: 1 % of 200 expected, 8 or more has a chance below 0.01.
    assert flagged[2:].sum() < 8


def test_exact_copies_are_flagged_even_where_held_out_images_repeat_training():
    rng = np.random.default_rng(3)
    training = smooth(10, rng)
    _, correlation = find_nearest([3 * training[4] + 1, *smooth(1, rng)], training, 48)
    _, repeated = find_nearest(training, training, 48)
    assert np.quantile(repeated, 0.99) == pytest.approx(1, abs=1e-6)
    assert flag_copies(correlation, repeated).tolist() == [True, False]


def test_diversity_of_known_sets():
    rng = np.random.default_rng(4)
    image = rng.normal(size=(3, 32, 32))
    assert measure_diversity([image, 2 * image + 1, image], 32) == pytest.approx(0, abs=1e-6)
    assert measure_diversity([image, -image], 32) == pytest.approx(2, abs=1e-6)
    stripes = [np.sign(np.sin(np.pi / 16 * f * (np.arange(32) + 0.5)))[None].repeat(32, 0) for f in (1, 2, 4)]
    assert measure_diversity(stripes, 32) == pytest.approx(1, abs=1e-6)  # Walsh functions are orthogonal
    samples = rng.normal(size=(4, 8, 8)) + rng.normal(size=(8, 8))
    table = np.corrcoef(samples.reshape(4, -1))
    assert measure_diversity(samples, 8) == pytest.approx(1 - table[np.triu_indices(4, 1)].mean(), abs=1e-6)


def pictures(images):
    reads = [lambda path, image=image: (image.float().numpy(), None) for image in images]
    return TrainingImages([Case(str(number), "", "", "", "", read) for number, read in enumerate(reads)], 48)


def test_generated_images_are_described_beside_real_ones():
    rng = np.random.default_rng(5)
    training, held_out = smooth(6, rng), smooth(40, rng)
    images = [0.9 * training[2] + 0.1 * held_out[0], training[4], training[1], training[1]]
    pairs = [(case, image[None, None], None) for case, image in zip("2011", images, strict=True)]
    found = describe_generated(pairs, pictures(training), pictures(held_out), 48)
    assert found["images"] == 4 and found["own_source"] == 0.75  # the second is a copy of another case's image
    assert found["highest"] == pytest.approx(1, abs=1e-6) and found["flagged"] == 4
    _, expected = find_nearest(images[:1], training, 48)
    assert found["correlation"] == pytest.approx(1, abs=1 - expected[0])
    assert found["diversity"] == pytest.approx(0, abs=1e-6)  # two equal images of case 1; the others are alone
    halved = [(case, image / 2, mask) for case, image, mask in pairs[:2]]
    two = describe_generated(halved, pictures([training[2], training[4]]), pictures(held_out))
    assert two["diversity"] is None and two["texture"] == pytest.approx(0.25, abs=0.06)  # half the amplitude; a tenth differs


@pytest.mark.parametrize(("cycles", "octave"), [((0, 20), 0), ((12, 12), 0), ((12, 0), 1), ((0, 9), 1), ((3, 4), 2)])
def test_a_wave_has_its_power_in_its_own_octave(cycles, octave):
    """64 x 48 pixels, amplitude 3 on a level of 7: 9 / 2 in one octave; Hann's window spreads it over neighbours, not octaves."""
    y, x = np.mgrid[:64, :48]
    wave = 7 + 3 * np.sin(2 * np.pi * (cycles[0] * y / 64 + cycles[1] * x / 48) + 0.4)
    power = radial_power_spectrum(np.stack([wave, wave])[:, None])
    assert power[octave] == pytest.approx(4.5, rel=0.02) and np.delete(power, octave).max() < 0.05


def test_power_of_white_noise_and_of_a_ramp():
    """White noise of variance 4: each octave has its share of the plane. A ramp's jump at the border is no fine detail."""
    noise = torch.from_numpy(2 * np.random.default_rng(0).normal(size=(200, 1, 32, 32)))
    shares = np.pi / 4 * np.array([3 / 4, 3 / 16, 3 / 64])  # of annuli in the square of all frequencies
    # 200 images x 100 bins of the third annulus, which holds whole bins: 2 % by chance, 6 % by its border
    assert radial_power_spectrum(noise, 3) == pytest.approx(4 * shares, rel=0.08)
    fine, *_, coarse = radial_power_spectrum(np.linspace(-1, 1, 64) * np.ones((64, 1)))
    assert fine < 1e-4 * coarse
