"""The readers on awkward pictures: every odd way to write one picture or one mask gives the same arrays."""

import os

import numpy as np
import pytest
from PIL import Image

from emit.data.cases import Case, find_group, read_cases
from emit.data.images import COLOURS
from emit.data.phantom import write_phantoms
from emit.dataset import SetSettings, open_set, read_set, write_set
from emit.errors import InputError
from tests.data.reading import check_fault, expect

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (24, 32), np.uint8)
LESION = np.zeros((24, 32), np.uint8)
LESION[5:12, 8:20] = 1
OTHER = np.zeros((24, 32), np.uint8)
OTHER[15:20, 22:30] = 1
WHITE = LESION * 255


def save(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)


def make_rgba(grey, alpha):
    return np.dstack([grey, grey, grey, alpha])


def make_palette(indices, colours):
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette([part for colour in colours for part in colour])
    return image


def folders(root, mask, name="p1_1", picture=PICTURE, suffix=".png", **options):
    save(root / "images" / f"{name}.png", picture)
    save(root / "masks" / f"{name}{suffix}", mask, **options)
    return root


# pictures


WIDE = np.arange(1001, dtype=np.uint16).reshape(7, 143) * 10  # percentiles 0.5 and 99.5 are 50 and 9950
COLOUR = np.random.default_rng(4).integers(0, 256, (24, 32, 3), np.uint8)
SHADED = make_rgba(PICTURE, WHITE)


@pytest.mark.parametrize(("pixels", "grey", "window"), [
    (WIDE, WIDE, (50, 9950)), (COLOUR, COLOUR @ np.array([0.299, 0.587, 0.114]), None),  # ITU-R BT.601
    (SHADED, PICTURE * LESION, None),  # alpha that varies is laid over black
], ids=["16 bit", "luma", "alpha"])  # fmt: skip
def test_picture_is_grey_and_normalised_by_its_percentiles(tmp_path, pixels, grey, window):
    save(tmp_path / "US" / "thyroid" / "a.png", pixels)
    image, mask = read_cases(tmp_path).cases[0].load()
    assert mask is None and image.dtype == np.float32
    # float32 of values up to 255, divided by half the range: 255 * 6e-8 * 3 / 100
    np.testing.assert_allclose(image, expect(grey, *(window or np.percentile(grey, (0.5, 99.5)))), atol=1e-6)


@pytest.mark.parametrize("form", ["RGB", "RGBA", "P", "LA", "16 bit", "tif", "bmp"])
def test_picture_is_the_same_in_any_format(tmp_path, form):
    folder = tmp_path / "US" / "thyroid"
    save(folder / "plain.png", PICTURE)
    if form == "16 bit":
        save(folder / "twin.png", PICTURE.astype(np.uint16) * 257)
    elif form in ("tif", "bmp"):
        save(folder / f"twin.{form}", PICTURE)
    else:
        save(folder / "twin.png", PICTURE, form)
    plain, twin = read_cases(tmp_path).cases
    np.testing.assert_allclose(plain.image, twin.image, atol=1e-6)  # float32 rounding


def test_blank_picture_is_black_and_nearly_blank_one_keeps_its_dot(tmp_path):
    dot = np.full((24, 32), 7, np.uint8)
    save(tmp_path / "US" / "gb" / "a.png", dot)
    dot[3, 4] = 9  # 1 of 768 pixels: beyond the percentiles
    save(tmp_path / "US" / "gb" / "b.png", dot)
    a, b = read_cases(tmp_path).cases
    assert (a.image == -1).all()
    assert b.image[3, 4] == 1 and (b.image == -1).sum() == 767


# RadImageNet and BUSI trees


def test_radimagenet_tree(tmp_path):
    base = tmp_path / "radiology_ai"  # below, e and a combining accent, as macOS stores it, are one letter in the ids
    for name in ("CT/abd/normal/ct1.png", "US/gb/usn1.png", "US/breast/benign/b.PNG", "MR/af/e\u0301/me\u0301.jpg"):
        save(base / name, PICTURE)
    save(base / "CT/abd/normal/._ct1.png", PICTURE)
    (base / "CT/abd/normal/notes.txt").write_text("no picture")
    found = read_cases(tmp_path)
    assert found.classes == ()
    assert {case.id: (case.prompt, case.stratum) for case in found.cases} == {
        "CT/abd/normal/ct1": ("CT, abdomen, normal", "CT/abd/normal"),
        "MR/af/é/mé": ("MR, ankle/foot, é", "MR/af/é"),
        "US/breast/benign/b": ("US, breast, benign", "US/breast/benign"),
        "US/gb/usn1": ("US, gallbladder", "US/gb"),
    }
    assert all(case.group == case.id and case.load()[1] is None for case in found.cases)
    assert [case.id for case in read_cases(base).cases] == [case.id for case in found.cases]


def test_radimagenet_links_are_followed_once_and_masks_are_no_pictures(tmp_path):
    for name in ("tree/US/gb/a.png", "tree/US/gb/a_mask.png", "tree/US/gb/b_mask.png", "far/benign/c.png"):
        save(tmp_path / name, PICTURE)
    (tmp_path / "tree/US/breast").symlink_to(tmp_path / "far")
    (tmp_path / "far/benign/again").symlink_to(tmp_path / "tree/US/gb/..")  # in a circle
    (tmp_path / "tree/US/gb/self").symlink_to(".")
    cases = read_cases(tmp_path / "tree").cases
    assert {case.id: case.prompt for case in cases} == {
        "US/breast/benign/c": "US, breast, benign", "US/gb/a": "US, gallbladder", "US/gb/b_mask": "US, gallbladder",
    }  # fmt: skip


def write_busi_case(root, stratum="benign", number=1, masks=(WHITE,), mode="1"):
    save(root / stratum / f"{stratum} ({number}).png", PICTURE, "RGB")
    for i, mask in enumerate(masks):
        save(root / stratum / f"{stratum} ({number})_mask{f'_{i}' if i else ''}.png", mask, mode)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P"])
def test_busi_masks_of_every_kind_are_one_label(tmp_path, mode):
    write_busi_case(tmp_path, masks=(WHITE, OTHER * 255, LESION * 0, WHITE), mode=mode)
    (case,) = read_cases(tmp_path).cases
    assert case.mask.dtype == np.uint8
    np.testing.assert_array_equal(case.mask, LESION | OTHER)


def test_busi_tree(tmp_path):
    write_busi_case(tmp_path / "Dataset_BUSI_with_GT", "benign", 10)
    write_busi_case(tmp_path / "Dataset_BUSI_with_GT", "benign", 1)
    write_busi_case(tmp_path / "Dataset_BUSI_with_GT", "normal", 1, masks=(LESION * 0,), mode="RGB")
    found = read_cases(tmp_path)
    assert found.classes == ("background", "lesion")
    assert [(case.id, case.stratum, case.prompt) for case in found.cases] == [
        ("benign/benign (1)", "benign", "US, breast, benign"),
        ("benign/benign (10)", "benign", "US, breast, benign"),
        ("normal/normal (1)", "normal", "US, breast, normal"),
    ]
    assert {case.prompt for case in read_cases(tmp_path, prompt="Breast, Ultrasound").cases} == {"Breast, Ultrasound"}


def test_phantoms_are_read(tmp_path):
    write_phantoms(tmp_path / "p", size=32, pretrain=6, busi=6, patients=1)
    assert len(read_cases(tmp_path / "p" / "radiology_ai").cases) == 6
    assert len(read_cases(tmp_path / "p" / "BUSI").cases) == 6
    spleen, prostate = (read_cases(tmp_path / "p" / name) for name in ("Task09_Spleen", "Task05_Prostate"))
    assert spleen.classes == ("background", "spleen") and spleen.cases[0].prompt == "CT, spleen"
    assert prostate.classes == ("background", "PZ", "TZ") and prostate.cases[0].prompt == "MR, prostate"
    columns = np.nonzero(max((case.mask for case in spleen.cases), key=np.sum))[1]
    assert columns.mean() > 16  # the spleen, left in the body, is on the right of the picture


# images/ and masks/ folders


@pytest.mark.parametrize("mask", [
    LESION, WHITE, LESION.astype(np.uint16) * 65535, WHITE.astype(bool), np.dstack([WHITE] * 3),
    make_rgba(WHITE, WHITE * 0), make_rgba(np.full_like(WHITE, 255), WHITE),
    make_palette(LESION, [(0, 0, 0), (128, 0, 0)]), make_palette(1 - LESION, [(255, 255, 255), (0, 0, 0)]),
])  # fmt: skip
def test_binary_mask_however_written(tmp_path, mask):
    found = read_cases(folders(tmp_path, mask))
    assert found.classes == ("background", "foreground")
    np.testing.assert_array_equal(found.cases[0].mask, LESION)


def test_jpeg_mask_is_thresholded(tmp_path):
    for mode in ("L", "RGB"):
        root = folders(tmp_path / mode, WHITE, suffix=".JPG", mode=mode, quality=90)
        values = np.unique(np.asarray(Image.open(root / "masks" / "p1_1.JPG")))
        assert len(values) > 2  # compression did blur the borders
        np.testing.assert_array_equal(read_cases(root).cases[0].mask, LESION)
    root = folders(tmp_path / "levels", WHITE // 5 * 3 + OTHER * 102, suffix=".jpeg", quality=95)  # 153 and 102
    np.testing.assert_array_equal(read_cases(root).cases[0].mask, LESION)


def test_class_numbers_palette_indices_and_labels(tmp_path):
    mask = LESION + 3 * OTHER
    indexed = make_palette(mask, [(0, 0, 0), (128, 0, 0), (0, 128, 0), (9, 128, 0)])
    for name, form in {"numbers": mask, "wide": mask.astype(np.uint16), "palette": indexed}.items():
        found = read_cases(folders(tmp_path / name, form))
        assert found.classes == ("background", "class 1", "class 3")
        np.testing.assert_array_equal(found.cases[0].mask, LESION + 2 * OTHER)
    merged = read_cases(tmp_path / "numbers", labels={1: "zone", 3: "zone"})
    assert merged.classes == ("background", "zone")
    np.testing.assert_array_equal(merged.cases[0].mask, LESION | OTHER)
    dropped = read_cases(tmp_path / "numbers", labels={1: "background", 3: "zone"})
    np.testing.assert_array_equal(dropped.cases[0].mask, OTHER)
    greys = read_cases(folders(tmp_path / "greys", LESION * 85 + OTHER * 255), labels={85: "a", 255: "b"})
    np.testing.assert_array_equal(greys.cases[0].mask, LESION + 2 * OTHER)
    alone = read_cases(folders(tmp_path / "alone", OTHER * 255), labels={85: "a", 255: "b"})  # 255 is no 1 here
    np.testing.assert_array_equal(alone.cases[0].mask, 2 * OTHER)


STEMS = ("p1_1", "p1_11", "p1_2", "1_p1_2")  # each within another


def write_named(root, way, stems=STEMS, names=("images", "masks")):
    """Pictures, and masks that begin at another row each."""
    for row, stem in enumerate(stems):
        save(root / names[0] / f"{stem}.png", PICTURE)
        save(root / names[1] / f"{way.replace('{}', stem)}.png", np.roll(LESION, row, axis=0))
    return root


def check_masks(found, stems=STEMS):
    assert {case.id: int(np.nonzero(case.mask)[0].min()) - 5 for case in found.cases} == {s: i for i, s in enumerate(stems)}


@pytest.mark.parametrize(("way", "names"), [
    ("{}_tumor", ("Images", "Masks")), ("mask_{}", ("images", "masks")), ("{}_mask", ("IMAGE", "GT")), ("{}", ("image", "Labels")),
    ("e\u0301 {}", ("images", "mask")),
])  # fmt: skip
def test_masks_with_one_prefix_or_suffix_in_folders_by_other_names(tmp_path, way, names):
    root = write_named(tmp_path, way, names=names)
    check_masks(read_cases(root))
    check_masks(read_cases(root, mask_name=way))


def test_a_given_mask_name_chooses_among_several(tmp_path):
    write_named(write_named(tmp_path, "{}_tumor"), "seg_{}_1", STEMS[::-1])
    check_masks(read_cases(tmp_path, mask_name="{}_tumor"))
    about = SetSettings(data=tmp_path, mask_name="seg_{}_1", folds=2, group="p1_(.+)", validation=0)
    write_set(tmp_path / "set", read_set(about))
    check_masks(open_set(tmp_path / "set"), STEMS[::-1])  # as set.json has it
    for bad in ("tumor", "{}{}"):
        with pytest.raises(InputError, match="--mask-name: is "):
            read_cases(tmp_path, mask_name=bad)


def write_prompts(root, text):
    write_named(root, "{}_m", STEMS[:3]).joinpath("prompts.csv").write_text(text, encoding="utf-8-sig")


def test_prompts_of_a_table_and_a_warning_without_any(tmp_path, capsys):
    write_prompts(tmp_path, 'name,prompt\np1_2.png,"CT, liver"\np1_1, MR\n\np1_11,\nother,x\n')
    assert {case.id: case.prompt for case in read_cases(tmp_path).cases} == {"p1_1": "MR", "p1_11": "", "p1_2": "CT, liver"}
    assert {case.prompt for case in read_cases(tmp_path, prompt="all").cases} == {"all"}
    assert not capsys.readouterr().err
    (tmp_path / "prompts.csv").unlink()
    read_cases(tmp_path)
    assert capsys.readouterr().err.startswith(f"{tmp_path}: every prompt is empty; give --prompt, or prompts.csv")


def write_bytes(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_all_bad_files_are_named_before_any_pixel_is_read(tmp_path):
    for number in range(11):
        save(tmp_path / f"benign/benign ({number}).png", PICTURE)
    for number in range(2):
        save(tmp_path / f"malignant/malignant ({number})_mask.png", WHITE)
    write_busi_case(tmp_path, "benign", 20, masks=(WHITE, WHITE[:-1], WHITE.T))
    with pytest.raises(InputError, match=r": 15 faults .*, the first: .*malignant \(0\)_mask.png: has no image; add") as caught:
        read_cases(tmp_path)
    assert sum("has no mask; add one" in line for line in caught.value.lines) == 11
    for number in range(11):
        (tmp_path / f"benign/benign ({number}).png").unlink()
    with pytest.raises(InputError, match=": 4 faults ") as caught:
        read_cases(tmp_path)
    for number, shape in ((1, (23, 32)), (2, (32, 24))):
        path = tmp_path / f"benign/benign (20)_mask_{number}.png"
        assert f"{path}: is {shape} (rows, columns), its image (24, 32); redraw it on this grid" in caught.value.lines
    assert sum("malignant/malignant (1)_mask.png: has no image" in line for line in caught.value.lines) == 1


def paint(shape=(96, 96), scale=8):
    """Two touching classes and their anti-aliased colour picture: coverage of each, area-averaged from a finer grid."""
    rows, columns = np.mgrid[: shape[0] * scale, : shape[1] * scale] / scale
    disc = (rows - 48) ** 2 + (columns - 48) ** 2 < 30**2
    parts = [disc & (columns + 0.3 * rows < 62.37), disc & (columns + 0.3 * rows >= 62.37)]
    cover = [part.reshape(shape[0], scale, shape[1], scale).mean(axis=(1, 3)) for part in parts]
    return np.array(cover)


@pytest.mark.parametrize("colours", [
    ("red", "green"), ("red", "yellow"), ("magenta", "cyan"), ((128, 0, 0), (0, 96, 96)),
])  # fmt: skip
def test_colour_mask_with_soft_borders(tmp_path, colours):
    rgb = np.array([COLOURS.get(colour, colour) for colour in colours])
    cover = paint()
    mask = np.rint(np.einsum("khw,kc->hwc", cover, rgb)).astype(np.uint8)
    labels = None if isinstance(colours[0], str) else dict(zip(colours, "ab", strict=True))
    found = read_cases(folders(tmp_path, mask, picture=np.zeros((96, 96), np.uint8)), labels=labels)
    read = found.cases[0].mask
    true = np.where(cover.sum(axis=0) >= 0.5, 1 + cover.argmax(axis=0), 0)
    names = ["ab"[i] if labels else colour for i, colour in enumerate(colours)]
    order = [0] + [found.classes.index(name) for name in names]
    sure = (np.abs(cover.sum(axis=0) - 0.5) > 0.02) & (np.abs(cover[0] - cover[1]) > 0.02)  # off rounding's ties
    if colours in (("red", "green"), ((128, 0, 0), (0, 96, 96))):  # orthogonal colours: exact up to equal coverage
        np.testing.assert_array_equal(read[sure], np.array(order)[true][sure])
    assert (read != np.array(order)[true]).mean() < 0.02  # overlapping colours: border pixels at most (6 % of all)
    assert not (read[36:60, 30:66] == 0).any()  # no crack between the two


def test_colours_are_numbered_alike_in_every_file(tmp_path):
    zero = np.zeros_like(WHITE)
    folders(tmp_path, np.dstack([zero, WHITE, zero]), name="p1_1")
    folders(tmp_path, np.dstack([WHITE, zero, zero]), name="p1_2")
    folders(tmp_path, zero, name="p1_3")
    found = read_cases(tmp_path)
    assert found.classes == ("background", "red", "green")
    assert [int(case.mask.max()) for case in found.cases] == [2, 1, 0]
    named = read_cases(tmp_path, labels={"green": "posterior", "red": "anterior"})
    assert named.classes == ("background", "posterior", "anterior")
    assert [int(case.mask.max()) for case in named.cases] == [1, 2, 0]


def test_groups_come_from_file_names(tmp_path):
    for name in ("10024_spleen_59", "10003_spleen_26", "100005_18", "100005_25", "img_7", "Müller_2"):
        folders(tmp_path, LESION, name=name)
    groups = {case.id: case.group for case in read_cases(tmp_path).cases}
    assert groups == {"10024_spleen_59": "59", "10003_spleen_26": "26", "100005_18": "100005", "100005_25": "100005",
                      "img_7": "img_7", "Müller_2": "Müller_2"}  # fmt: skip
    groups = {case.id: case.group for case in read_cases(tmp_path, group=r"^([^_]+)_").cases}
    assert groups["10024_spleen_59"] == "10024" and groups["Müller_2"] == "Müller"
    with pytest.raises(InputError, match=r"100005_18: .*spleen"):
        read_cases(tmp_path, group="spleen")


# bad input


RED, ORANGE = (np.dstack([WHITE, green, WHITE * 0]) for green in (WHITE * 0, LESION * 165))


def write_masks(root, *masks):
    for number, mask in enumerate(masks, start=1):
        folders(root, mask, f"p1_{number}")


def write_damaged(root):
    path = folders(root, LESION) / "images" / "p1_1.png"
    path.write_bytes(path.read_bytes()[:400])


def write_twins(root):
    for suffix in ("png", "bmp"):
        save(root / f"US/gb/x.{suffix}", PICTURE)


FAULTS = {  # what is written, which file the message names, what it says
    "missing folder": (lambda root: root.rmdir(), "", "not a folder"),
    "empty folder": (lambda root: None, "", "no known layout"),
    "empty tree": (lambda root: (root / "US").mkdir(), "", "no picture"),
    "too deep": (lambda root: save(root / "US/a/b/c/x.png", PICTURE), "US/a/b/c", "4 levels deep"),
    "no level": (lambda root: save(root / "US/x.png", PICTURE), "US", "1 levels deep"),
    "same name": (write_twins, "x.png", "same name"),
    "no mask": (lambda root: save(root / "benign/benign (1).png", PICTURE), "benign (1).png", "no mask"),
    "no way": (lambda root: write_named(root, "seg_{}_1"), "masks", "0 ways"),
    "another way": (lambda root: save(write_named(root, "{}_a") / "masks/p1_1_b.png", WHITE), "masks/p1_1_b.png", "has no image"),
    "two ways": (lambda root: [write_named(root, way) for way in ("{}_a", "{}_b")], "masks", r"\{\}_a, \{\}_b.*--mask-name"),
    "number in number": (lambda root: write_named(root, "{}0", ("1", "2")), "masks", "0 ways"),
    "prompt missing": (lambda root: write_prompts(root, "name,prompt\np1_1,CT\n"), "", "2 faults .*p1_11.png: has no prompt"),
    "prompt with comma": (lambda root: write_prompts(root, "name,prompt\np1_1,CT, liver\n"), "prompts.csv", "quotes"),
    "prompt twice": (lambda root: write_prompts(root, "name,prompt\np1_1,CT\np1_1,MR\n"), "prompts.csv", "twice"),
    "prompt's columns": (lambda root: write_prompts(root, "file,prompt\np1_1,CT\n"), "prompts.csv", "columns"),
    "DICOM": (lambda root: write_bytes(root / "a/b/IM1", bytes(128) + b"DICM"), "a/b/IM1", "DICOM.*dcm2niix"),
    "DICOM's ending": (lambda root: write_bytes(root / "US/gb/x.DCM", b""), "US/gb/x.DCM", "DICOM.*dcm2niix"),
    "MetaImage": (lambda root: write_bytes(root / "x.mhd", b""), "x.mhd", "MetaImage.*SimpleITK"),
    "NRRD": (lambda root: write_bytes(folders(root, LESION, suffix=".nrrd", format="png") / "masks/p.nrrd", b""),
             "masks/p.nrrd", "NRRD.*SimpleITK"),
    "value": (lambda root: write_busi_case(root, masks=(LESION * 200,), mode="L"), "benign (1)_mask.png", "value 200"),
    "grey ramp": (lambda root: folders(root, PICTURE), "masks/p1_1.png", "mask values 1 to 255"),
    "fractions": (lambda root: folders(root, LESION * np.float32(0.5), suffix=".tif"), "masks/p1_1.tif", "fractions"),
    "no foreground": (lambda root: folders(root, LESION * 0), "", "all masks are empty"),
    "orange": (lambda root: write_masks(root, RED, ORANGE), "masks/p1_2.png", r"\(255, 165, 0\)"),
    "grey and colour": (lambda root: write_masks(root, RED, WHITE), "", "some are grey"),
    "text": (lambda root: folders(root, LESION, "a").joinpath("masks/a.png").write_text("text"), "masks/a.png", "cannot be read"),
    "NaN": (lambda root: folders(root, LESION * np.float32(np.nan), suffix=".tif"), "masks/p1_1.tif", "NaN"),
    "pipe": (lambda root: [folders(root, LESION), (root / "images/p1_1.png").unlink(), os.mkfifo(root / "images/p1_1.png")],
             "images/p1_1.png", "it is no file"),
    "another format": (lambda root: folders(root, LESION, format="gif"), "p1_1.png", "cannot be read"),
    "a long side": (lambda root: folders(root, np.zeros((1, 9000), np.uint8)), "p1_1.png", "at most 8192 pixels"),
    "truncated": (write_damaged, "images/p1_1.png", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_line_that_names_the_file_and_the_remedy(tmp_path, fault):
    write, named, said = FAULTS[fault]
    root = tmp_path / "set"
    root.mkdir()
    write(root)
    check_fault(root, named, said)


@pytest.mark.parametrize(("options", "said"), [
    ({"layout": "dicom"}, "unknown layout 'dicom'"),
    ({"window": (0, 80)}, "busi has no option window"),
    ({"group": "("}, "not a regular expression"),
    ({"layout": "folders"}, "images"),
    ({"layout": "nnunet"}, "dataset.json"),
])  # fmt: skip
def test_bad_options(tmp_path, options, said):
    write_busi_case(tmp_path)
    with pytest.raises(InputError, match=said):
        read_cases(tmp_path, **options)


@pytest.mark.parametrize("letter", ["\n", "\udcff"])
def test_a_name_that_is_no_plain_text(tmp_path, letter):
    save(tmp_path / f"US/gb/x{letter}y.png", PICTURE)
    with pytest.raises(InputError, match="this name holds a line break, or no UTF-8"):
        read_cases(tmp_path)


def test_a_group_pattern_that_tries_every_way_is_given_up():
    with pytest.raises(InputError, match="takes for ever"):
        find_group(Case(40 * "a", "", "", "", ""), "((a|a)+)+x")


def test_coloured_mask_needs_coloured_labels(tmp_path):
    folders(tmp_path, RED)
    with pytest.raises(InputError, match="name its colours"):
        read_cases(tmp_path, labels={1: "a"}).cases[0].load()
    with pytest.raises(InputError, match="'orange' is no number nor red"):
        read_cases(tmp_path, labels={"orange": "a"})
