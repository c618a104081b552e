"""NIfTI volumes: any orientation, channel order and spacing gives the same slices, and every mismatch is caught."""

import gzip
import json
import os
import struct

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from emit.data import volumes
from emit.data.cases import read_cases
from emit.errors import InputError
from tests.data.reading import check_fault, expect

IMAGE, LABELS = "imagesTr/spleen_1.nii.gz", "labelsTr/spleen_1.nii.gz"


def make_volume(seed=0):
    """A canonical volume (R 14, A 11, S 6) with 2 x 3 x 5 mm voxels, in HU, and its labels 0, 1, 2."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((14, 11, 6), np.uint8)
    labels[8:12, 2:5, 1:4] = 1
    labels[2:5, 6:9, 2:5] = 2
    array = rng.integers(-1000, 1000, labels.shape).astype(np.int16)
    affine = np.diag([2.0, 3.0, 5.0, 1.0])
    affine[:3, 3] = -10, 20, 30
    return array, labels, affine


def store(path, array, affine, codes="RAS"):
    """Write a canonical array with its axes permuted and flipped; the affine says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    turned = nibabel.orientations.apply_orientation(array, turn)
    image = nibabel.Nifti1Image(np.ascontiguousarray(turned), affine @ inv_ornt_aff(turn, array.shape[:3]))
    assert nibabel.aff2axcodes(image.affine) == tuple(codes)
    nibabel.save(image, path)


def describe_set(root, manner="msd", channels=("CT",), labels=("background", "spleen", "liver")):
    about = {"name": "Dataset009_Spleen", "modality": dict(enumerate(channels)), "labels": dict(enumerate(labels))}
    if manner == "nnunet":
        about |= {"channel_names": about.pop("modality"), "labels": {name: i for i, name in enumerate(labels)}}
    (root / "dataset.json").write_text(json.dumps(about))


def write_set(root, codes="RAS", label_codes=None, **options):
    array, labels, affine = make_volume()
    store(root / IMAGE, array, affine, codes)
    store(root / LABELS, labels, affine, label_codes or codes)
    describe_set(root, **options)
    return root


@pytest.mark.parametrize(("codes", "label_codes"), [
    *((codes, codes) for codes in ("RAS", "LPS", "LAS", "PIR", "SLA", "ASR")), ("LPS", "SLA"),
])  # fmt: skip
def test_any_orientation_gives_the_same_slices(tmp_path, codes, label_codes):
    array, labels, _ = make_volume()
    found = read_cases(write_set(tmp_path, codes, label_codes))
    assert len(found.cases) == 6 and found.classes == ("background", "spleen", "liver")
    for k, case in enumerate(found.cases):
        image, mask = case.load()
        shown = [[array[13 - column, 10 - row, k] for column in range(14)] for row in range(11)]
        np.testing.assert_allclose(image, expect(np.array(shown), -160, 240), atol=1e-6)  # float32 rounding
        np.testing.assert_array_equal(mask, [[labels[13 - c, 10 - r, k] for c in range(14)] for r in range(11)])
        assert (case.spacing, case.thickness) == ((3.0, 2.0), 5.0)
        assert (case.id, case.volume, case.index, case.group) == (f"spleen_1/{k:04d}", "spleen_1", k, "spleen_1")
    assert found.cases[0].prompt == "CT, spleen"


@pytest.mark.parametrize(("axis", "count", "spacing", "thickness"), [
    (0, 14, (5.0, 3.0), 2.0), (1, 11, (5.0, 2.0), 3.0),
])  # fmt: skip
def test_other_planes_show_superior_up(tmp_path, axis, count, spacing, thickness):
    array, _, _ = make_volume()
    found = read_cases(write_set(tmp_path), axis=axis, window=(-1000, 1000))
    assert len(found.cases) == count
    assert (found.cases[0].spacing, found.cases[0].thickness) == (spacing, thickness)
    plane = array[4] if axis == 0 else array[:, 4]
    top_left = plane[-1, -1]  # most anterior (or right) column first, most superior row first
    image = found.cases[4].image
    np.testing.assert_allclose(image[0, 0], expect(top_left, -1000, 1000), atol=1e-6)
    assert image.shape == plane.shape[::-1]


def test_oblique_and_anisotropic_spacing_is_the_voxel_size(tmp_path):
    array, labels, affine = make_volume()
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    for part, data in (("imagesTr", array), ("labelsTr", labels)):
        store(tmp_path / part / "a.nii", data, turn @ affine)
    describe_set(tmp_path)
    case = read_cases(tmp_path).cases[0]
    np.testing.assert_allclose((*case.spacing, case.thickness), (3, 2, 5), rtol=1e-6)  # the header is float32


def test_mr_has_one_normalisation_per_volume(tmp_path):
    array, _, affine = make_volume()
    write_set(tmp_path, channels=("MRI",))
    array = array + np.arange(6, dtype=np.int16) * 500  # slices of different brightness
    store(tmp_path / IMAGE, array, affine)
    low, high = np.percentile(array, (0.5, 99.5))
    images = np.stack([case.image for case in read_cases(tmp_path).cases])
    shown = np.moveaxis(array, 2, 0)[:, ::-1, ::-1].transpose(0, 2, 1)
    np.testing.assert_allclose(images, expect(shown, low, high), atol=1e-6)  # float32 rounding


@pytest.mark.parametrize("channel", [0, 1])
def test_channels_in_the_fourth_axis_or_in_files_of_their_own(tmp_path, channel):
    array, labels, affine = make_volume()
    both = np.stack([array, -array // 2], axis=3)
    for manner in ("msd", "nnunet"):
        root = tmp_path / manner
        store(root / "labelsTr" / "p_01.nii.gz", labels, affine, "LPS")
        if manner == "msd":
            store(root / "imagesTr" / "p_01.nii.gz", both, affine, "LPS")
            (root / "imagesTr" / "._p_01.nii.gz").write_bytes(b"not an image")
        for i in range(2 * (manner == "nnunet")):
            store(root / "imagesTr" / f"p_01_{i:04d}.nii.gz", both[..., i], affine, "LPS")
        describe_set(root, manner, ("T2", "ADC"), ("background", "PZ", "TZ"))
        found = read_cases(root, channel=channel, labels={1: "prostate", 2: "prostate"}, window=(-500, 500))
        assert found.classes == ("background", "prostate") and len(found.cases) == 6
        image, mask = found.cases[2].load()
        np.testing.assert_allclose(image, expect(both[::-1, ::-1, 2, channel].T, -500, 500), atol=1e-6)
        np.testing.assert_array_equal(mask, labels[::-1, ::-1, 2].T > 0)


def test_header_scaling_is_applied(tmp_path):
    write_set(tmp_path)
    array, _, affine = make_volume()
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_slope_inter(0.5, -24)
    nibabel.save(image, tmp_path / IMAGE)
    stored = nibabel.load(tmp_path / IMAGE).get_fdata()
    case = read_cases(tmp_path).cases[3]
    np.testing.assert_allclose(case.image, expect(stored[::-1, ::-1, 3].T, -160, 240), atol=1e-6)


def test_a_volume_is_read_once_for_all_its_slices(tmp_path, monkeypatch):
    cases = read_cases(write_set(tmp_path)).cases
    read, opened = volumes.read_array, []
    monkeypatch.setattr(volumes, "read_array", lambda path, channel=0: opened.append(path) or read(path, channel))
    for case in [*cases, *cases[::-1]]:
        case.load()
    assert len(opened) == 2  # the image and its labels


def test_bare_pair_of_volumes(tmp_path):
    array, labels, affine = make_volume()
    store(tmp_path / "scan.nii.gz", array, affine)
    store(tmp_path / "scan_seg.nii.gz", labels.astype(np.float32), affine)
    found = read_cases(tmp_path, modality="CT", labels={2: "liver"})
    assert found.classes == ("background", "liver")
    assert found.cases[0].prompt == "CT, liver" and found.cases[0].id == "scan/0000"
    np.testing.assert_array_equal(found.cases[3].mask, labels[::-1, ::-1, 3].T == 2)
    assert read_cases(tmp_path, modality="CT").classes == ("background", "class 1", "class 2")
    with pytest.raises(InputError, match="modality"):
        read_cases(tmp_path)


# bad input


def write_regions(root):
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "both": [1, 2]}}
    (root / "dataset.json").write_text(json.dumps(about))


def shift(affine, millimetres):
    """Move a volume along R; its voxels are 2 mm wide."""
    moved = affine.copy()
    moved[0, 3] += millimetres
    return moved


def write_flat(path, array, affine):
    nibabel.save(nibabel.Nifti1Image(array[:, :, 0], affine), path)


def write_header(path, image, place, form, *values):
    """Write a volume whose header says other values from this byte on."""
    store(path, *image)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[place : place + struct.calcsize(form)] = struct.pack(form, *values)
    path.write_bytes(gzip.compress(bytes(content)))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FAULTS = {  # what is spoilt in a sound set (root, array, labels, affine), which file the message names, what it says
    "undeclared label": (lambda r, i, y, a: describe_set(r, labels=("background", "spleen")), LABELS, "value 2 is not a class"),
    "no description": (lambda r, i, y, a: (r / "dataset.json").unlink(), "dataset.json", "cannot be read"),
    "region labels": (lambda r, i, y, a: write_regions(r), "dataset.json", "label both is a region of several values"),
    "no label": (lambda r, i, y, a: store(r / "imagesTr/x.nii.gz", i, a), "imagesTr/x.nii.gz", "no mask"),
    "shape": (lambda r, i, y, a: store(r / LABELS, y[:, :, :-1], a), LABELS, r"shape \(14, 11, 5\)"),
    "affine": (lambda r, i, y, a: store(r / LABELS, y, shift(a, 1.5)), LABELS, "1.5 mm"),
    "truncated": (lambda r, i, y, a: truncate(r / IMAGE), IMAGE, "damaged"),
    "text": (lambda r, i, y, a: (r / IMAGE).write_bytes(b"text"), IMAGE, "NIfTI"),
    "flat": (lambda r, i, y, a: write_flat(r / IMAGE, i, a), IMAGE, r"shape \(14, 11\)"),
    "fractions": (lambda r, i, y, a: store(r / LABELS, y * 0.5, a), LABELS, "whole numbers"),
    "negative": (lambda r, i, y, a: store(r / LABELS, -y.astype(np.int16), a), LABELS, "labels -2 to 0"),
    "no voxel": (lambda r, i, y, a: write_header(r / IMAGE, (i, a), 42, "<h", 0), IMAGE, "is not a volume's"),
    "huge header": (lambda r, i, y, a: write_header(r / IMAGE, (i, a), 42, "<3h", *[32767] * 3), IMAGE, "too short for a shape"),
    "complex": (lambda r, i, y, a: write_header(r / IMAGE, (i, a), 70, "<2h", 32, 64), IMAGE, "no numbers|too short"),
    "unknown numbers": (lambda r, i, y, a: write_header(r / IMAGE, (i, a), 70, "<h", 999), IMAGE, "not recognized"),
    "pipe": (lambda r, i, y, a: [(r / IMAGE).unlink(), os.mkfifo(r / IMAGE)], IMAGE, "it is no file"),
    "nan": (lambda r, i, y, a: store(r / IMAGE, np.full(i.shape, np.nan, np.float32), a), IMAGE, "NaN"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_line_that_names_the_file_and_the_remedy(tmp_path, fault):
    write, named, said = FAULTS[fault]
    write(write_set(tmp_path), *make_volume())
    check_fault(tmp_path, named, said)


def test_an_affine_off_by_rounding_is_no_mismatch(tmp_path):
    _, labels, affine = make_volume()
    store(write_set(tmp_path) / LABELS, labels, shift(affine, 0.9))
    assert len(read_cases(tmp_path).cases) == 6


def test_a_pair_is_two_files(tmp_path):
    _, labels, affine = make_volume()
    for name in ("a", "b", "a_seg"):
        store(tmp_path / f"{name}.nii.gz", labels, affine)
    with pytest.raises(InputError, match="2 images and 1 label"):
        read_cases(tmp_path, modality="CT")


@pytest.mark.parametrize(("options", "said"), [
    ({"channel": 2}, "names 2 channels"),
    ({"channel": 1}, "has 1 channels, not channel 1"),  # though two are declared
    ({"labels": {"red": "a"}}, "'red' is no number;"),
    ({"labels": {7: "a"}}, "does not declare label 7"),
    ({"labels": {1: "background"}}, "1 classes"),
])  # fmt: skip
def test_bad_options(tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        read_cases(write_set(tmp_path, channels=("CT", "PET")), **options)
