"""Licence-free phantoms in the layouts of the public data sets.

python -m emit.data.phantom DIR writes DIR/radiology_ai (pre-training), DIR/boundaries (its true tissue boundaries, same
paths below it), DIR/BUSI, DIR/Task09_Spleen and DIR/Task05_Prostate. The anatomy itself is drawn in anatomy.py.
"""

import argparse
import json
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from emit.data.anatomy import DRAW
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
TASKS = {  # folder: modality, channels, labels, mm across a picture and between slices
    "Task09_Spleen": ("CT", ("CT",), ("background", "spleen"), 400, 12.0),
    "Task05_Prostate": ("MR", ("T2", "ADC"), ("background", "PZ", "TZ"), 160, 6.0),
}


def draw_patient(modality, population, patient, pathology, size=64, seed=0, count=None):
    """Return a patient's pictures, a list of PhantomSlice: `count` images (US) or slices from bottom to top (CT, MR).

    A picture depends on (seed, population, modality, patient, index) and its pathology alone.
    """
    key = (seed, "phantom", population, modality, patient)
    draw_parameters, draw = DRAW[modality]
    parameters = draw_parameters(np.random.default_rng(seed_from(*key)), pathology)
    heights = np.linspace(-0.75, 0.75, count or IMAGES_PER_PATIENT[modality])
    return [draw(size, parameters, z, np.random.default_rng(seed_from(*key, i))) for i, z in enumerate(heights)]


def to_grey(modality, pictures):
    """Return 8-bit images of a patient's first channel: US as it is, CT windowed, MR by percentiles 0.5 and 99.5."""
    first = np.stack([picture.image[0] for picture in pictures])
    low, high = {"US": (0, 1), "CT": CT_WINDOW, "MR": np.percentile(first, (0.5, 99.5))}[modality]
    return np.rint(np.clip((first - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def save_png(path, array, mode="L"):
    """Write an 8-bit array, converted to a PIL mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).convert(mode).save(path)


def write_pretrain(root, size, seed, count):
    """Write `count` pictures, a third of each modality, as modality/anatomy/pathology/*.png, and their boundaries."""
    for number, modality in enumerate(PATHOLOGIES):
        third, each = (count + 2 - number) // 3, IMAGES_PER_PATIENT[modality]
        for patient in range(-(-third // each)):
            pathology = PATHOLOGIES[modality][patient % 3]
            pictures = draw_patient(modality, PRETRAIN, patient, pathology, size, seed)[: third - patient * each]
            for index, (picture, grey) in enumerate(zip(pictures, to_grey(modality, pictures), strict=True)):
                name = Path(modality, ANATOMY[modality], pathology, f"{modality.lower()}{patient:04d}_{index}.png")
                save_png(root / "radiology_ai" / name, grey)
                save_png(root / "boundaries" / name, np.rint(picture.boundary * 255).astype(np.uint8))


def write_busi(folder, size, seed, count):
    """Write `count` patients, one image each, in BUSI's mix (56 % benign, 27 % malignant, 17 % normal) and naming.

    Masks are 0 or 255 and, as in the public set, mostly 1-bit, some RGB or RGBA, one file per lesion.
    """
    benign, malignant = round(0.56 * count), round(0.27 * count)
    numbers = [benign, malignant, count - benign - malignant]
    names = [(pathology, i + 1) for pathology, n in zip(PATHOLOGIES["US"], numbers, strict=True) for i in range(n)]
    for patient, (pathology, i) in enumerate(names):
        pictures = draw_patient("US", LABELLED, patient, pathology, size, seed, count=1)
        path = folder / pathology / f"{pathology} ({i}).png"
        save_png(path, to_grey("US", pictures)[0])
        for j, mask in enumerate(pictures[0].masks):
            mode = {3: "RGB", 6: "RGBA"}.get(i % 8, "1")
            save_png(path.with_name(f"{path.stem}_mask{f'_{j}' if j else ''}.png"), mask * 255, mode)


def write_volumes(folder, size, seed, patients):
    """Write one Medical Segmentation Decathlon task: NIfTI volumes (x, y, z[, channel]), labels and dataset.json."""
    modality, channels, labels, width, depth = TASKS[folder.name]
    name = folder.name.split("_")[1].lower()
    affine = np.diag((-width / size, -width / size, depth, 1.0))  # x from the right, y from the front
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir()
    for patient in range(patients):
        pictures = draw_patient(modality, LABELLED, patient, PATHOLOGIES[modality][patient % 3], size, seed)
        image = np.stack([picture.image for picture in pictures]).transpose(3, 2, 0, 1).squeeze()
        mask = np.stack([picture.mask for picture in pictures]).transpose(2, 1, 0)
        for part, array in (("imagesTr", np.rint(image).astype(np.int16)), ("labelsTr", mask)):
            nibabel.save(nibabel.Nifti1Image(array, affine), folder / part / f"{name}_{patient + 1}.nii.gz")
    files = [f"{name}_{patient + 1}.nii.gz" for patient in range(patients)]
    about = {"name": name, "description": "synthetic phantoms, no patient data", "licence": "MIT", "release": "1.0",
             "tensorImageSize": "4D" if len(channels) > 1 else "3D", "modality": dict(enumerate(channels)),
             "labels": dict(enumerate(labels)), "numTraining": patients, "numTest": 0,
             "training": [{"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"} for file in files],
             "test": []}  # fmt: skip
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
        trees = ["radiology_ai", "boundaries", "BUSI", *TASKS]
        for tree in trees:
            (scratch / tree).mkdir()
        write_pretrain(scratch, size, seed, pretrain)
        write_busi(scratch / "BUSI", size, seed, busi)
        for task in TASKS:
            write_volumes(scratch / task, size, seed, patients)
        for tree in trees:
            (scratch / tree).rename(root / tree)


def main():
    """Read the command line and write the phantoms."""
    parser = argparse.ArgumentParser("python -m emit.data.phantom", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("root", metavar="DIR", help="a new or empty folder")
    parser.add_argument("--size", type=int, default=64, help="width and height of the pictures in pixels (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds, other patients (default 0)")
    write_phantoms(**vars(parser.parse_args()))


if __name__ == "__main__":
    run(main, again=None)
