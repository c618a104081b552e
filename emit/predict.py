"""Masks for new pictures or volumes, by one trained segmenter or the mean of several.

    python -m emit.predict --segmenter runs/seg/ours --data FOLDER --out masks

Everything is read as the training set was, which the segmenter's header tells. Writes masks/ (PNG, or NIfTI on the file's own
grid; label values as in the training set), overlays/ (contours, of a volume on its fullest slice), sizes.csv, and
manifest.jsonl, whose lines follow their files.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from nibabel import orientations
from PIL import Image, ImageColor
from torch import nn
from tqdm import tqdm

from emit import errors
from emit.checkpoints.reader import fill, read_tensors
from emit.checkpoints.sizes import check_sizes
from emit.data.cases import MASK, Case, list_slices
from emit.data.images import COLOURS, MOST_SIDE
from emit.data.listing import list_pictures, list_volumes
from emit.dataset import VOLUMES
from emit.errors import Faults, InputError
from emit.evaluation.figures import ORDER
from emit.evaluation.metrics import find_surface
from emit.evaluation.scoring import predict
from emit.files import find_misfit, write_atomic, write_bytes, write_table
from emit.networks.segmenter import Segmenter, SegmenterConfig
from emit.training import distributed
from emit.training.loop import read_lines, write_lines
from emit.training.settings import Limited, parse, save_config, setting, show

READING = {"values": [(range(65536), str, list[int])], "window": (None, list[float]), "channel": int | None, "axis": int | None}
HEADER = {"config": {"channels": list}, "classes": list[str], "size": range(1, MOST_SIDE + 1), "reading": READING}
SIDE = 512  # pixels of an overlay's shorter side, at least


@dataclass(frozen=True, kw_only=True)
class Settings(Limited):
    """EMIT-Diff's segmenters at work: pictures or volumes in; masks, overlays and sizes out."""

    segmenter: Path = setting(source="[choice] stage 3's", help="segmenter.safetensors, or a folder: the mean of all below it")
    data: tuple[Path, ...] = setting(source="[choice] yours", help="pictures or NIfTI files, or folders of them", may_change=True)
    out: Path = setting(source="[choice] your folder", help="the output folder, new or with --resume", may_change=True)
    spacing: tuple[float, ...] = setting((), "[choice] unknown", help="mm from row to row, column to column of pictures", above=0)
    device: str = setting("auto", "[choice] a GPU if there is one", help="auto, cpu, cuda, cuda:1 or mps", may_change=True)
    resume: bool = setting(False, "[choice] explicit", help="go on with the masks in --out", may_change=True)


class Ensemble(nn.Module):
    """The mean of the networks' softmax probabilities, as scores: its logarithm (plus a constant), (B, K, H, W)."""

    def __init__(self, networks):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image):
        return torch.stack([network(image).log_softmax(dim=1) for network in self.networks]).logsumexp(dim=0)


def load_segmenters(paths) -> tuple[nn.Module, dict]:
    """Return the network, one alone or an Ensemble, and what every header says: classes, size, window, channel, axis, values."""
    networks, first = [], {}
    for path in paths:
        tensors, header = read_tensors(path)
        try:
            if fault := find_misfit(header, HEADER):
                raise ValueError(fault)
            about = {name: header["reading"][name] for name in (*VOLUMES, "values")}
            about |= {name: header[name] for name in ("classes", "size")}
            config = check_sizes(SegmenterConfig(**header["config"] | {"channels": tuple(header["config"]["channels"])}))
            with torch.device("meta"):  # no memory before the tensors are known to fit
                network = Segmenter(config)
            whole = all(tensor.isfinite().all() for tensor in tensors.values())
            if not whole or {len(about["classes"]), len(about["values"])} != {config.classes}:
                raise ValueError("its weights, classes and values do not fit")
        except (ValueError, TypeError, LookupError) as error:
            raise InputError(f"{path}: is no segmenter, or an earlier version's ({error}); train one with train_seg.py") from error
        first = first or about
        for name in (name for name in about if about[name] != first[name]):
            words = f"its {name}: {show(about[name])}; of {paths[0]}: {show(first[name])}"
            raise InputError(f"{path}: {words}; give segmenters of one training set")
        networks.append(fill(network, tensors, path, "segmenter"))
    return (networks[0] if len(networks) == 1 else Ensemble(networks)).eval(), first


def list_items(settings, about) -> dict[str, list[Case]]:
    """Return {file name without suffix: the picture, or the slices of the volume, as Cases} of --data."""
    flat, files = about["axis"] is None, {}
    for given in settings.data:
        folder = given if given.is_dir() else given.parent
        found = (list_pictures if flat else list_volumes)(folder)
        for name, path in ((name, path) for name, path in found.items() if given in (folder, Path(path))):
            if files.setdefault(name, path) != path:
                raise InputError(f"{path}: {files[name]} has the same name; predict one after the other")
        if given not in (folder, *map(Path, files.values())) or not files:
            kind = "picture" if flat else "NIfTI volume"
            raise InputError(f"{given}: is or holds no {kind}, which the segmenter was trained on; check the path")
    masks = {name for name in files if (match := MASK.fullmatch(name)) and match[1] in files}  # BUSI's, beside their picture
    files = {name: path for name, path in files.items() if name not in masks or Path(path) in settings.data}
    if flat:
        return {name: [Case(name, name, "", "", path, spacing=settings.spacing or None)] for name, path in files.items()}
    window = about["window"] and tuple(about["window"])
    volumes = {name: [(name, path, about["channel"], None)] for name, path in files.items()}
    faults = Faults()
    items = {name: list_slices(volume, faults, None, "", "", window, about["axis"]) for name, volume in volumes.items()}
    faults.refuse(settings.data[0])
    return items


def to_values(labels, values) -> np.ndarray:
    """Turn class numbers into what stands for each class in the training set's files: numbers, or colours (..., 3)."""
    if all(isinstance(value, int) for value in values):
        return np.array(values, np.uint8 if max(values) < 256 else np.uint16)[labels]
    return np.array([value if isinstance(value, list) else COLOURS.get(value, (0, 0, 0)) for value in values], np.uint8)[labels]


def to_native(path, labels, axis):
    """Return labels (D, H, W), slices as displayed, as the NIfTI image with the grid, affine and codes of the file at path."""
    canonical = np.moveaxis(labels[:, ::-1, ::-1].transpose(0, 2, 1), 0, axis)  # (R, A, S): undoes emit.data.volumes.cut
    file = nibabel.load(path)
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), nibabel.io_orientation(file.affine))
    image = nibabel.Nifti1Image(orientations.apply_orientation(canonical, turn), file.affine, file.header, dtype=labels.dtype)
    image.header["cal_min"] = image.header["cal_max"] = 0  # the file's window, in which a mask would be black
    return image


def draw_overlay(image, labels, aspect):
    """Return a picture, enlarged, with the border of each class. image: (H, W) in [-1, 1]; aspect: the pixel's height / width."""
    factor = -(-SIDE // min(image.shape))
    size = image.shape[1] * factor, round(image.shape[0] * factor * aspect)
    planes = (np.asarray(plane, np.uint8) for plane in ((image + 1) * 127.5, labels))
    grey, labels = (Image.fromarray(plane).resize(size, Image.Resampling.NEAREST) for plane in planes)
    pixels, labels = np.array(grey.convert("RGB")), np.array(labels)
    for number in range(1, labels.max() + 1):
        pixels[find_surface(labels == number)] = ImageColor.getrgb(ORDER[-1 - (number - 1) % (len(ORDER) - 1)])
    return Image.fromarray(pixels)


def segment(network, slices, about, out) -> list[dict]:
    """Segment one picture or volume and write its files; return its rows of sizes.csv."""
    ((name, (labels, _, spacing)),) = predict(network, slices, about["size"]).items()
    values = to_values(labels, about["values"])
    if slices[0].volume is None:
        largest, planes = 0, labels[None]  # (1, H, W)
        write_atomic(out / "masks" / f"{name}.png", lambda file: Image.fromarray(values).save(file, "PNG"))
    else:
        areas, planes = np.count_nonzero(labels, axis=(1, 2)), labels
        largest = int(areas.argmax()) if areas.any() else len(areas) // 2
        image = to_native(slices[0].path, values, about["axis"])
        write_bytes(out / "masks" / f"{name}.nii.gz", gzip.compress(image.to_bytes(), mtime=0))
    row, column = slices[0].spacing or (1, 1)
    overlay = draw_overlay(slices[largest].image, planes[largest], row / column)
    write_atomic(out / "overlays" / f"{name}.png", lambda file: overlay.save(file, "PNG"))
    rows, each = [], float(np.prod(spacing or 1))  # mm2 or mm3
    for number, label in list(enumerate(about["classes"]))[1:]:
        count = int(np.count_nonzero(labels == number))
        row = {"case": name, "class": label, "value": about["values"][number], "pixels": count}
        rows.append(row | {"size": count * each, "unit": f"mm{labels.ndim}" if spacing else "px"})
    return rows


def main():
    """Segment everything in --data."""
    settings = parse(Settings)
    if len(settings.spacing) not in (0, 2):
        raise InputError(f"--spacing: is {show(settings.spacing)}; give two numbers in mm, for rows and columns")
    if settings.out.is_dir() and any(settings.out.iterdir()) and not settings.resume:
        raise InputError(f"{settings.out}: is not empty; go on with --resume or choose another folder")
    device, given = distributed.start(settings.device, alone=True), settings.segmenter
    paths = sorted(given.rglob("segmenter.safetensors")) if given.is_dir() else [given]
    if not paths:
        raise InputError(f"{given}: holds no segmenter.safetensors; give a file or a folder of train_seg.py")
    network, about = load_segmenters(paths)
    items, manifest = list_items(settings, about), settings.out / "manifest.jsonl"
    by = f"the mean of {len(paths)} segmenters in {given}" if len(paths) > 1 else paths[0]
    print(f"{len(items)} {'pictures' if about['axis'] is None else 'volumes'}, by {by}, on {device}")
    inputs = {f"segmenter {number}": path for number, path in enumerate(paths)}
    save_config(settings.out, settings, inputs, settings.data[0], [*items, json.dumps(about)])
    lines = {line["case"]: line for line in read_lines(manifest, kind={"case": str, "rows": list[dict]})}
    network.to(device)
    for name in tqdm([name for name in items if name not in lines], desc="masks"):
        lines[name] = {"case": name, "rows": segment(network, items[name], about, settings.out)}
        write_lines(manifest, lines.values())
    write_table(settings.out / "sizes.csv", [row for name in items for row in lines[name]["rows"]])
    print(f"{settings.out}: masks, overlays and sizes.csv")


if __name__ == "__main__":
    errors.run(main)
