"""Licence-free phantoms in the layouts of the public data sets.

python -m emit.data.phantom DIR writes DIR/radiology_ai (pre-training), DIR/boundaries (its true tissue boundaries, same
paths below it), DIR/BUSI, DIR/Task09_Spleen and DIR/Task05_Prostate. The anatomy itself is drawn in anatomy.py.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from emit.data.anatomy import draw_ct, draw_ct_patient, draw_mr, draw_mr_patient, draw_us
from emit.errors import InputError, run
from emit.seeds import seed_from

PATHOLOGIES = {
    "US": ("benign", "malignant", "normal"),
    "CT": ("normal", "splenic_lesion", "splenomegaly"),
    "MR": ("enlarged", "lesion", "normal"),
}
ANATOMY = {"US": "breast", "CT": "abd", "MR": "prostate"}
IMAGES_PER_PATIENT = {"US": 2, "CT": 6, "MR": 6}  # a volume's slices; in BUSI one image each
CT_WINDOW = (-160.0, 240.0)  # HU shown from black to white, the usual abdominal window
PRETRAIN, LABELLED = "pretrain", "labelled"  # two populations of patients, disjoint because their seeds differ


def draw_patient(modality, population, patient, pathology, size=64, seed=0, count=None):
    """Return a patient's pictures, a list of Picture: `count` images (US) or slices from bottom to top (CT, MR).

    A picture depends on (seed, population, modality, patient, index) and its pathology alone.
    """
    key = (seed, "phantom", population, modality, patient)
    count = count or IMAGES_PER_PATIENT[modality]
    each = [np.random.default_rng(seed_from(*key, index)) for index in range(count)]
    if modality == "US":
        return [draw_us(size, pathology, np.random.default_rng(seed_from(*key)), one) for one in each]
    prepare, draw = {"CT": (draw_ct_patient, draw_ct), "MR": (draw_mr_patient, draw_mr)}[modality]
    parameters = prepare(np.random.default_rng(seed_from(*key)), pathology)
    return [draw(size, parameters, z, one) for z, one in zip(np.linspace(-0.75, 0.75, count), each, strict=True)]


def to_grey(modality, images):
    """Return 8-bit pictures of a patient's first channel: US as it is, CT windowed, MR by percentiles 0.5 and 99.5."""
    first = np.stack([image[0] for image in images])
    low, high = {"US": (0, 1), "CT": CT_WINDOW, "MR": np.percentile(first, (0.5, 99.5))}[modality]
    return np.rint(np.clip((first - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def write_pretrain(images, boundaries, size, seed, count):
    """Write `count` pictures, a third of each modality, as modality/anatomy/pathology/*.png, and their boundaries."""
    for number, modality in enumerate(PATHOLOGIES):
        left = (count + 2 - number) // 3
        patient = 0
        while left > 0:
            pathology = PATHOLOGIES[modality][patient % 3]
            pictures = draw_patient(modality, PRETRAIN, patient, pathology, size, seed)[:left]
            greys = to_grey(modality, [picture.image for picture in pictures])
            for index, (picture, grey) in enumerate(zip(pictures, greys, strict=True)):
                name = Path(modality, ANATOMY[modality], pathology, f"{modality.lower()}{patient:04d}_{index}.png")
                save_png(images / name, grey)
                save_png(boundaries / name, np.rint(picture.boundary * 255).astype(np.uint8))
            left -= len(pictures)
            patient += 1


def write_busi(folder, size, seed, count):
    """Write `count` patients, one image each, in BUSI's mix (56 % benign, 27 % malignant, 17 % normal) and naming.

    Masks are 0 or 255 and, as in the public set, mostly 1-bit, some RGB or RGBA, one file per lesion.
    """
    benign, malignant = round(0.56 * count), round(0.27 * count)
    numbers = {"benign": benign, "malignant": malignant, "normal": count - benign - malignant}
    patient = 0
    for pathology, number in numbers.items():
        for i in range(1, number + 1):
            (picture,) = draw_patient("US", LABELLED, patient, pathology, size, seed, count=1)
            stem = f"{pathology} ({i})"
            save_png(folder / pathology / f"{stem}.png", to_grey("US", [picture.image])[0])
            for j, mask in enumerate(picture.masks):
                mode = {3: "RGB", 6: "RGBA"}.get(i % 8, "1")
                save_png(folder / pathology / f"{stem}_mask{f'_{j}' if j else ''}.png", mask * 255, mode)
            patient += 1


def save_png(path, array, mode="L"):
    """Write an 8-bit array, converted to a PIL mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).convert(mode).save(path)


def write_volumes(folder, modality, size, seed, patients, labels, channels, spacing):
    """Write one Medical Segmentation Decathlon task: NIfTI volumes (x, y, z[, channel]), labels and dataset.json."""
    name = folder.name.split("_")[1].lower()
    listed = []
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    for patient in range(patients):
        pathology = PATHOLOGIES[modality][patient % 3]
        pictures = draw_patient(modality, LABELLED, patient, pathology, size, seed)
        image = np.stack([picture.image for picture in pictures]).transpose(3, 2, 0, 1).squeeze()
        mask = np.stack([picture.mask for picture in pictures]).transpose(2, 1, 0)
        affine = np.diag((-spacing[0], -spacing[1], spacing[2], 1.0))  # x from the right, y from the front
        for part, array in (("imagesTr", np.rint(image).astype(np.int16)), ("labelsTr", mask)):
            nibabel.save(nibabel.Nifti1Image(array, affine), folder / part / f"{name}_{patient + 1}.nii.gz")
        listed.append({part: f"./{where}/{name}_{patient + 1}.nii.gz"
                       for part, where in (("image", "imagesTr"), ("label", "labelsTr"))})
    about = {"name": name, "description": "synthetic phantoms, no patient data", "licence": "MIT", "release": "1.0",
             "tensorImageSize": "4D" if len(channels) > 1 else "3D", "modality": dict(enumerate(channels)),
             "labels": dict(enumerate(labels)), "numTraining": patients, "numTest": 0, "training": listed, "test": []}
    (folder / "dataset.json").write_text(json.dumps(about, indent=2) + "\n")


def write_phantoms(root, size=64, seed=0, pretrain=900, busi=60, patients=8):
    """Write all phantom data sets under root: `pretrain` images, `busi` images, `patients` volumes per task.

    Each tree appears whole or not at all. Raises InputError if root is not an empty or new folder, or a number is bad.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root}: exists and is not an empty folder; name a new one")
    if size < 32 or min(pretrain, busi, patients) < 0:
        raise InputError(f"{root}: size {size} or a count is too small; take a size of at least 32 and counts >= 0")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{root}: cannot be made ({error.strerror}); name another folder") from error
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=root) as scratch:
        scratch = Path(scratch)
        trees = ["radiology_ai", "boundaries", "BUSI", "Task09_Spleen", "Task05_Prostate"]
        for tree in trees:
            (scratch / tree).mkdir()
        write_pretrain(scratch / "radiology_ai", scratch / "boundaries", size, seed, pretrain)
        write_busi(scratch / "BUSI", size, seed, busi)
        write_volumes(scratch / "Task09_Spleen", "CT", size, seed, patients, ("background", "spleen"), ("CT",),
                      (400 / size, 400 / size, 12.0))
        write_volumes(scratch / "Task05_Prostate", "MR", size, seed, patients, ("background", "PZ", "TZ"),
                      ("T2", "ADC"), (160 / size, 160 / size, 6.0))
        for tree in trees:
            os.rename(scratch / tree, root / tree)


def main():
    """Read the command line and write the phantoms."""
    parser = argparse.ArgumentParser(prog="python -m emit.data.phantom", description=__doc__.split("\n")[0],
                                     allow_abbrev=False)
    parser.add_argument("root", metavar="DIR", help="a new or empty folder")
    parser.add_argument("--size", type=int, default=64, help="width and height of the pictures in pixels (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds, other patients (default 0)")
    arguments = parser.parse_args()
    write_phantoms(arguments.root, arguments.size, arguments.seed)


if __name__ == "__main__":
    run(main)
