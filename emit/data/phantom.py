"""Licence-free phantoms in the layouts of the public data sets. The anatomy itself is drawn in anatomy.py."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from emit.data.anatomy import DRAW
from emit.errors import InputError
from emit.files import write_json
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
    """Return a patient's pictures, a list of PhantomSlice: `count` images (US) or slices from bottom to top (CT, MR)."""
    key = (seed, "phantom", population, modality, patient)
    pictures = []
    for i, z in enumerate(np.linspace(-0.75, 0.75, count or IMAGES_PER_PATIENT[modality])):
        same, own = (np.random.default_rng(seed_from(*parts)) for parts in (key, (*key, i)))
        pictures.append(DRAW[modality](size, pathology, z, same, own))
    return pictures


def to_grey(modality, pictures):
    """Return 8-bit images of a patient's first channel: US as it is, CT windowed, MR by percentiles 0.5 and 99.5."""
    first = np.stack([picture.image[0] for picture in pictures])
    low, high = {"US": (0, 1), "CT": CT_WINDOW, "MR": np.percentile(first, (0.5, 99.5))}[modality]
    return np.rint(np.clip((first - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def save_png(path, array, mode="L"):
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
    affine = np.diag((-width / size, -width / size, depth, 1.0))  # x from the right, y from the front
    about = {
        "name": folder.name.split("_")[1].lower(),
        "description": "synthetic phantoms, no patient data, MIT licence",
        "modality": dict(enumerate(channels)),
        "labels": dict(enumerate(labels)),
        "training": [],
    }
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for patient in range(patients):
        pictures = draw_patient(modality, LABELLED, patient, PATHOLOGIES[modality][patient % 3], size, seed)
        image = np.stack([picture.image for picture in pictures]).transpose(3, 2, 0, 1).squeeze()
        mask = np.stack([picture.masks[0] for picture in pictures]).transpose(2, 1, 0)
        file = f"{about['name']}_{patient + 1}.nii.gz"
        for part, array in (("imagesTr", np.rint(image).astype(np.int16)), ("labelsTr", mask)):
            nibabel.save(nibabel.Nifti1Image(array, affine), folder / part / file)
        about["training"].append({"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"})
    write_json(folder / "dataset.json", about, indent=2)


def write_phantoms(root, size=64, seed=0, pretrain=900, busi=60, patients=8, fresh=0):
    """Write `pretrain` images, `busi` images and `patients` volumes per task under root, a new or empty folder; InputError.

    root/radiology_ai and root/boundaries (the same paths) are for pre-training, the others are labelled; root/BUSI_test and
    root/BUSI_oracle: `fresh` further patients each. root appears whole or not at all.
    """
    root = Path(root)
    temporary = root.with_name(f".{root.name}.tmp")  # what a kill leaves, the next call replaces
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write_pretrain(temporary, size, seed, pretrain)
        for number, (name, count) in enumerate({"BUSI": busi, "BUSI_test": fresh, "BUSI_oracle": fresh}.items()):
            if count:
                write_busi(temporary / name, size, seed + number, count)
        for task in TASKS:
            write_volumes(temporary / task, size, seed, patients)
        temporary.rename(root)
    except OSError as error:
        raise InputError(f"{root}: could not be written ({error.strerror}); free space or name a new folder") from error
