"""The phantoms: the same seed the same files, labels and boundaries that agree, physics with known statistics."""

import hashlib
import json
from functools import cache
from itertools import pairwise

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from emit.data import anatomy, phantom
from emit.errors import InputError

COUNTS = {"pretrain": 18, "busi": 24, "patients": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    phantom.write_phantoms(folder, seed=3, **COUNTS)
    return folder


def hash_files(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@cache
def draw(modality, pathology, patients, size=64, count=None):
    numbers = range(patients)
    return [p for n in numbers for p in phantom.draw_patient(modality, "labelled", n, pathology, size, count=count)]


def test_same_seed_same_files_other_seed_other_files(root, tmp_path):
    (tmp_path / ".again.tmp" / "left by a kill").mkdir(parents=True)
    for name, seed in (("again", 3), ("other", 4)):
        phantom.write_phantoms(tmp_path / name, seed=seed, **COUNTS)
    first, other = hash_files(root), hash_files(tmp_path / "other")
    assert hash_files(tmp_path / "again") == first
    images = [name for name in first if "mask" not in name and not name.endswith(".json") and "labelsTr" not in name]
    assert len(images) == 18 + 18 + 24 + 3 + 3
    assert all(first[name] != other[name] for name in images)


def test_no_picture_is_in_two_populations(root):
    """The first benign breast and the first CT and MR patients have the same number in both populations."""
    pretrain, labelled = hash_files(root / "radiology_ai"), hash_files(root / "BUSI")
    assert not set(pretrain.values()) & set(labelled.values())
    assert len(set(pretrain.values())) == 18
    for modality, pathology in (("CT", "normal"), ("MR", "lesion")):
        one, two = (phantom.draw_patient(modality, p, 0, pathology) for p in (phantom.PRETRAIN, phantom.LABELLED))
        assert all((a.masks[0] != b.masks[0]).any() for a, b in zip(one[2:5], two[2:5], strict=True))


@pytest.mark.parametrize("modality", ["US", "CT", "MR"])
@pytest.mark.parametrize(("size", "patients"), [(64, 4), (128, 1)])
def test_contour_of_mask_lies_on_boundary(modality, size, patients):
    """At least 95 % of the contour's pixels lie within 1.5 pixels of a boundary of full strength (over 0.5)."""
    hit = []
    for pathology in phantom.PATHOLOGIES[modality]:
        for picture in draw(modality, pathology, patients, size=size):
            far = ndimage.distance_transform_edt(picture.boundary < 0.5)
            mask = np.max(picture.masks, axis=0)
            for label in range(1, mask.max() + 1):
                region = mask >= label
                contour = region & ~ndimage.binary_erosion(region, border_value=1)
                hit.extend(far[contour] <= 1.5)
    assert len(hit) > 300
    assert np.mean(hit) > 0.95


def test_boundary_is_thin_and_sparse():
    """Lines are 1 to 2 pixels wide, so less than half of a picture is boundary; a straight line is 1.5 +- 0.25 wide."""
    canvas = anatomy.Canvas(64, (0,))
    canvas.paint(canvas.distance(canvas.x - 0.01 + 0 * canvas.y), (1,))
    assert canvas.boundary.sum(axis=1) == pytest.approx(np.full(64, 1.5), abs=0.25)
    for modality, limit in (("US", 0.25), ("CT", 0.5), ("MR", 0.5)):
        boundaries = [picture.boundary for picture in draw(modality, "normal", 2)]
        assert 0.02 < np.mean(boundaries) < limit


def test_blob_is_a_signed_distance():
    """A circle's distance is known: |r - R| to 0.1 pixel within 4 pixels of it, where it is used."""
    canvas = anatomy.Canvas(64, (0,))
    exact = (np.hypot(canvas.x - 0.1, canvas.y + 0.2) - 0.5) * 32
    found = canvas.blob(0.1, -0.2, 0.5, 0.5)
    near = np.abs(exact) < 4
    assert np.abs(found - exact)[near].max() < 0.1


def test_hounsfield_units_of_tissues():
    """Means over a patient's tissue, eroded by a pixel, stay within the documented range +- 6 HU.

    The noise has sigma <= 18 HU over some 100 grains of spleen and liver: standard error under 2 HU.
    """
    for number in range(4):
        pictures = phantom.draw_patient("CT", "labelled", number, "normal")
        image = np.stack([picture.image[0] for picture in pictures])
        spleen = np.stack([ndimage.binary_erosion(picture.masks[0]) for picture in pictures])
        assert 48 - 6 < image[spleen].mean() < 120 + 6
        assert 58 - 6 < np.median(image[3, 26:34, 14:20]) < 110 + 6  # the liver, on the picture's left
        assert image[:, :4, :4].mean() == pytest.approx(-1000, abs=10)
        ribs = np.sort(image[:, :, :22], axis=None)[-20:]  # right of the spine; 450, sigma of texture and noise 63
        assert 420 < ribs.min() < 600
        assert image[3, 17:32, 36:48].min() == pytest.approx(-950, abs=75)  # gas in the stomach, 4 sigma of the noise


def test_spleen_is_left_of_the_patient_and_grows_with_splenomegaly():
    volumes = {}
    for pathology in ("normal", "splenomegaly"):
        masks = [picture.masks[0] for picture in draw("CT", pathology, 4)]
        assert np.mean([ndimage.center_of_mass(mask)[1] for mask in masks if mask.any()]) > 40  # columns 0..63
        volumes[pathology] = np.sum(masks)
    assert volumes["splenomegaly"] > 1.3 * volumes["normal"]  # radii times 1.35, cut by the neighbours


def test_slices_of_a_volume_belong_together():
    """Neighbouring slices of one patient overlap more than the same slices of two patients."""
    one, two = (phantom.draw_patient("MR", "labelled", number, "normal") for number in (0, 1))
    glands = [picture.masks[0] > 0 for picture in one[1:5]]
    assert min(2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairwise(glands)) > 0.85
    difference = [np.abs(a.image[0] - b.image[0]).mean() for a, b in pairwise(one[1:5])]
    strangers = [np.abs(a.image[0] - b.image[0]).mean() for a, b in zip(one[1:4], two[1:4], strict=True)]
    assert np.mean(difference) < 0.8 * np.mean(strangers)


def draw_rician(seed, size, signal, sigma, grain):
    return anatomy.add_rician(np.random.default_rng(seed), np.full((size, size), signal), sigma, grain)


SPECKLE = (0.0, np.sqrt(0.5), (0.9, 1.4))  # the ultrasound's: no signal, rms 1


def test_noise_without_signal_is_rayleigh_and_at_20_sigma_nearly_gaussian():
    """Mean / std of a Rayleigh amplitude is sqrt(pi / (4 - pi)) = 1.913, its median sqrt(ln 2) of its rms, sigma sqrt 2.

    400 x 400 pixels hold about 400^2 / (4 pi 0.9 1.4) = 10,000 independent grains: the ratio is known to 1 %, 3 sigma.
    With a signal, the mean is the signal + sigma^2 / (2 signal).
    """
    for amplitude, rms in ((draw_rician(0, 400, *SPECKLE), 1), (draw_rician(0, 300, 0.0, 25, (0.7, 0.7)), 25 * np.sqrt(2))):
        assert amplitude.mean() / amplitude.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.03)
        assert np.sqrt(np.mean(amplitude**2)) == pytest.approx(rms, rel=0.03)
        assert np.median(amplitude) == pytest.approx(rms * np.sqrt(np.log(2)), rel=0.03)
    bright = draw_rician(0, 300, 500.0, 25, (0.7, 0.7))
    assert (bright.mean(), bright.std()) == (pytest.approx(500 + 25**2 / 1000, abs=0.6), pytest.approx(25, rel=0.03))


def test_speckle_grain_is_two_to_three_pixels_wide():
    """The intensity's autocorrelation falls to a half at 2 to 4 pixels, full width, across the beam."""
    intensity = draw_rician(1, 256, *SPECKLE) ** 2
    intensity -= intensity.mean()
    correlation = [np.mean(intensity * np.roll(intensity, shift, axis=1)) for shift in range(5)]
    half = np.interp(-0.5 * correlation[0], -np.array(correlation), range(5))
    assert 2 < 2 * half < 4


def find_inner_lesions(pathology, patients=40):
    """Lesions that the picture's sides do not cut."""
    for picture in draw("US", pathology, patients, count=1):
        for mask in picture.masks:
            if not (mask[:, :2].any() or mask[:, -2:].any() or mask[-2:].any()):
                yield picture, mask


@pytest.mark.parametrize(("pathology", "low", "high"), [("benign", 0, 0), ("malignant", 0.8, 1)])
def test_benign_is_wider_than_tall_and_malignant_taller(pathology, low, high):
    taller = []
    for _, mask in find_inner_lesions(pathology):
        height, width = (np.ptp(place) for place in np.nonzero(mask))
        taller.append(height > width)
    assert low <= np.mean(taller) <= high  # the ragged outline may widen a few


def measure_behind(pathology):
    """Mean grey value straight below a lesion minus that at the same depth beside it, by more than 4 pixels."""
    found = []
    for picture, mask in find_inner_lesions(pathology):
        rows, columns = np.nonzero(mask)
        behind = picture.image[0, rows.max() + 3 : rows.max() + 11]
        middle = round(columns.mean())
        beside = np.ones(64, bool)
        beside[max(columns.min() - 4, 0) : columns.max() + 5] = False
        if len(behind) >= 4 and beside.sum() >= 10 and len(picture.masks) == 1:
            found.append(behind[:, middle - 3 : middle + 4].mean() - behind[:, beside].mean())
    assert len(found) >= 10
    return np.array(found)


def test_malignant_casts_a_shadow_and_benign_enhances():
    """Attenuation 35 to 90 dB over the picture times a height of 0.3 is 10 to 27 dB, 0.17 to 0.45 grey, less the cut.

    A benign lesion, 0.2 high, gains 2 to 6 dB and spares the gland's 2: 0.06 to 0.13 grey.
    """
    shadow, enhancement = measure_behind("malignant"), measure_behind("benign")
    assert np.mean(shadow < 0) > 0.85
    assert shadow.mean() < -0.1
    assert enhancement.mean() > 0.06


def test_normal_breast_has_no_lesion_and_others_have_one_or_two():
    assert not any(mask.any() for picture in draw("US", "normal", 5) for mask in picture.masks)
    for pathology in ("benign", "malignant"):
        pictures = draw("US", pathology, 40, count=1)
        assert all(mask.any() for picture in pictures for mask in picture.masks)
        assert any(len(picture.masks) == 2 for picture in pictures)


def test_lesion_of_the_prostate_is_dark_in_both_channels():
    """The same patients and noise with and without it: T2 falls from 600 or more to 240, ADC from 1700 to 700, less the blur."""
    labels, falls = [], []
    for lesion, normal in zip(draw("MR", "lesion", 4), draw("MR", "normal", 4), strict=True):
        seen = lesion.image[0] < normal.image[0] - 200
        labels.extend(lesion.masks[0][seen])
        falls.extend((normal.image[1] - lesion.image[1])[seen])
    assert len(labels) > 100 and np.mean(np.equal(labels, 1)) > 0.95
    assert np.mean(falls) > 500


def test_pretraining_tree(root):
    images, boundaries = root / "radiology_ai", root / "boundaries"
    names = {path.relative_to(images) for path in images.glob("**/*.png")}
    assert len(names) == 18
    assert names == {path.relative_to(boundaries) for path in boundaries.glob("**/*.png")}
    assert {name.parts[:2] for name in names} == {("US", "breast"), ("CT", "abd"), ("MR", "prostate")}
    for path in [tree / name for name in names for tree in (images, boundaries)]:
        with Image.open(path) as file:
            assert (file.mode, file.size) == ("L", (64, 64))
            assert np.ptp(np.asarray(file)) > 150


def test_busi_tree(root):
    """The mix of 24 is 13 benign, 6 malignant, 5 normal; some masks are RGB or RGBA; all are 0 or 255."""
    modes, folder = set(), root / "BUSI"
    names = [(kind, i + 1) for kind, count in (("benign", 13), ("malignant", 6), ("normal", 5)) for i in range(count)]
    pictures = {path.name for path in folder.glob("*/*.png") if "_mask" not in path.name}
    assert pictures == {f"{kind} ({i}).png" for kind, i in names}
    for patient, (kind, i) in enumerate(names):
        masks = sorted(folder.glob(f"{kind}/{kind} ({i})_mask*.png"))
        assert masks[0].name == f"{kind} ({i})_mask.png"
        (picture,) = phantom.draw_patient("US", "labelled", patient, kind, 64, 3, 1)
        for path, expected in zip(masks, picture.masks, strict=True):
            with Image.open(path) as file:
                modes.add(file.mode)
                assert np.array_equal(np.asarray(file.convert("L")), expected * 255)
    assert modes == {"1", "RGB", "RGBA"}


@pytest.mark.parametrize(("task", "shape", "spacing", "labels"), [
    ("Task09_Spleen", (64, 64, 6), (6.25, 6.25, 12), {"0": "background", "1": "spleen"}),
    ("Task05_Prostate", (64, 64, 6, 2), (2.5, 2.5, 6), {"0": "background", "1": "PZ", "2": "TZ"}),
])  # fmt: skip
def test_decathlon_trees(root, task, shape, spacing, labels):
    about = json.loads((root / task / "dataset.json").read_text())
    assert about["labels"] == labels
    assert about["modality"] == ({"0": "CT"} if len(shape) == 3 else {"0": "T2", "1": "ADC"})
    assert len(about["training"]) == 3
    for pair in about["training"]:
        image, label = (nibabel.load(root / task / pair[part]) for part in ("image", "label"))
        assert image.shape == shape
        assert label.shape == shape[:3]
        assert image.header.get_zooms()[:3] == pytest.approx(spacing)
        assert nibabel.aff2axcodes(image.affine) == nibabel.aff2axcodes(label.affine) == ("L", "P", "S")
        assert set(np.unique(label.dataobj)) == {int(key) for key in labels}
    if task == "Task09_Spleen":  # the spleen is on the patient's left: x, pointing left, above the middle
        assert np.nonzero(np.asarray(label.dataobj))[0].mean() > 40
    else:  # diffusion is freer in the peripheral than in the central zone
        zones, adc = np.asarray(label.dataobj), np.asarray(image.dataobj)[..., 1]
        assert np.median(adc[zones == 1]) > np.median(adc[zones == 2]) + 100
        assert adc.max() == pytest.approx(2700, rel=0.2)  # urine; its T2 signal is below 960 x 1.3


def test_a_folder_that_holds_something_and_a_file_are_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    for path in (tmp_path / "full", tmp_path / "full" / "mine.txt", tmp_path / "full" / "mine.txt" / "below"):
        with pytest.raises(InputError, match="could not be written"):
            phantom.write_phantoms(path, size=32, pretrain=1, busi=1, patients=0)
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"


def test_interrupted_run_leaves_no_tree(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("power cut")

    monkeypatch.setattr(phantom, "write_busi", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        phantom.write_phantoms(tmp_path / "new", pretrain=3, busi=1, patients=1)
    assert not (tmp_path / "new").exists()
