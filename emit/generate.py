"""Between stages 2 and 3: n labelled images for each training case of a fold, from pure noise and that case's edge.

    python -m emit.generate --model MODEL --hed HED --finetuned RUN --data DATA --out FOLDER

Writes fold<k>/images, masks, edges and manifest.jsonl, whose lines hold all that is needed to make an image again.
An image depends on (seed, case, index) and its settings alone, not on the batch, the order or a restart.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from emit import checkpoints, errors
from emit.compat import HABITS, read_compat
from emit.data.cache import Pictures
from emit.data.edges import edge_agreement, make_hint
from emit.data.prompts import add_phrase, draw_phrase, gray_sketch
from emit.data.splits import write_splits
from emit.files import sha256, write_atomic
from emit.ledger import record
from emit.model import EmitDiff, Sampling, find_edges, load_hed
from emit.seeds import generator, seed_from
from emit.training import distributed
from emit.training.config import parse, save_config, setting, vary
from emit.training.dataset import DataSettings, check_size, choose_folds, choose_training, open_data


@dataclass(frozen=True, kw_only=True)
class Settings(DataSettings):
    """EMIT-Diff's generator: a fine-tuned ControlNet per fold in, labelled images per training case out."""

    model: Path = setting(source="[choice] stage 1's", help="model.safetensors of stage 1, or Stable Diffusion")
    finetuned: Path = setting(
        source="[choice] stage 2's", help="run folder of stage 2, with fold<k>/controlnet.safetensors"
    )
    hed: Path = setting(source="[choice] stage 1's", help="HED weights")
    out: Path = setting(source="[choice] your folder", help="the output folder, new or with --resume", may_change=True)
    fold: str = setting("all", "[paper] one model per fold", help="all, or one fold number", may_change=True)
    n: int = setting(3, "[choice] seconds; [authors' code]: 50", paper=50, help="images per training case", may_change=True, low=1)
    hint: Literal["hed+contour", "hed", "contour", "mask", "box"] = setting(
        "hed+contour", "[paper]", help="edge condition"
    )
    method: Literal["ddim", "ddpm", "dpmpp_2m"] = setting("ddim", "[authors' code]", help="sampler")
    steps: int = setting(12, "[choice] seconds; [authors' code]: 20", paper=20, help="denoising steps", low=1)
    eta: float = setting(0.0, "[authors' code]", help="DDIM's noise, 0 to 1", low=0, high=1)
    spacing: Literal["trailing", "leading"] = setting(
        "trailing", "[choice] starts at the noisiest t", help="kept timesteps"
    )
    guidance: float = setting(
        2.0, "[choice] see docs/paper.md; [authors' code]: 9", paper=9.0, help="guidance weight"
    )
    guided: Literal["text", "text+hint"] = setting(
        "text+hint", "[choice] lesions follow their mask; [authors' code]: text", paper="text", help="what guidance drives"
    )
    strength: float = setting(1.0, "[authors' code]", help="control strength")
    guess_mode: Literal["original", "diffusers"] | None = setting(
        None, "[authors' code]", help="falling control scales"
    )
    phrases: bool = setting(False, "[choice] only models that know words", paper=True, help="add an appearance phrase")
    phrase_weight: float | None = setting(
        None, "[paper] Fig. 1: as words", help="w mixes the states, (1 - w) prompt + w phrase", low=0, high=1
    )
    negative: str = setting("", "[choice] no natural-image words", help="text of the unconditional half")
    grey: bool = setting(True, "[paper]", help="average the channels after decoding")
    compat: tuple[str, ...] = setting(
        (), "[authors' code]", help="diffboost, or diffboost:" + ",".join(HABITS["emit.generate"])
    )
    sweep: tuple[str, ...] = setting(
        (), "[choice] none", help="guidance=V,V,... or strength=V,V,...: one set of images in --out for each value"
    )
    batch: int = setting(32, "[choice] memory", paper=8, help="images at a time; changes nothing but speed", may_change=True, low=1)
    precision: Literal["float32", "bf16"] = setting("float32", "[authors' code]", help="of the forward passes")
    device: str = setting("cpu", "[choice] demo machine", paper="cuda", help="torch device", may_change=True)
    resume: bool = setting(False, "[choice] explicit", help="go on with the images in --out", may_change=True)


def plan(pictures, settings, habits, done):
    """List (case number, sample index, prompt, seed) for every image still to make."""
    jobs = []
    for number, case in enumerate(pictures.cases):
        for index in range(settings.n):
            if (case.id, index) in done:
                continue
            phrase = draw_phrase(generator(settings.seed, case.id, index, "phrase"))
            prompt = add_phrase(case.prompt, phrase, settings.phrase_weight) if settings.phrases else case.prompt
            if "gray_sketch" in habits:
                prompt = gray_sketch(case.prompt, phrase)
            source = () if "one_seed" in habits else (case.id,)
            jobs.append((number, index, prompt, seed_from(settings.seed, *source, index)))
    return jobs


def save_picture(path, array):
    """Write an 8-bit grey PNG in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda temporary: Image.fromarray(array).save(temporary, "PNG"))


def write_json(path, values):
    """Write a JSON file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(values)))


def to_bytes(image):
    """Turn an image in [-1, 1] into 0..255."""
    return (image * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def read_manifest(folder):
    """Return the entries of a fold's manifest ([]: none yet), without a last line that a kill cut off."""
    entries, manifest = [], folder / "manifest.jsonl"
    for line in manifest.read_text().splitlines() if manifest.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def generate_fold(model, hed, cases, classes, settings, habits, folder, weights):
    """Make every image of one fold that the manifest does not hold yet; each line is written after its files."""
    manifest, lines = folder / "manifest.jsonl", read_manifest(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(manifest, lambda temporary: temporary.write_text("".join(json.dumps(line) + "\n" for line in lines)))
    pictures = Pictures(cases, settings.size)
    sampling = Sampling(**{name: getattr(settings, name) for name in Sampling.__dataclass_fields__})
    jobs = plan(pictures, settings, habits, {(line["case"], line["index"]) for line in lines})
    reading = {name: getattr(settings, name) for name in ("layout", "window", "channel", "axis", "labels")}
    sources = {case.id: sha256(case.path) for case in cases}
    device = next(model.unet.parameters()).device
    bar = tqdm(total=len(jobs), desc=folder.name, unit="image")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")
    with open(manifest, "a") as log, autocast, bar:
        for start in range(0, len(jobs), settings.batch):
            numbers, indices, prompts, seeds = zip(*jobs[start : start + settings.batch], strict=True)
            masks = pictures.mask(numbers)
            edges = find_edges(hed, pictures.image(numbers))
            hint = make_hint(settings.hint, masks, edges, len(classes))
            images = model.generate(list(prompts), hint, seeds, settings.size, sampling, settings.negative)
            agreement = edge_agreement(find_edges(hed, images.mean(1, keepdim=True).cpu()), hint[:, :1])
            for row, (number, index) in enumerate(zip(numbers, indices, strict=True)):
                case = cases[number]
                name = f"{case.id.replace('/', '_')}_{index:03d}.png"
                picture = images[row].mean(0) if settings.grey else images[row].permute(1, 2, 0)
                save_picture(folder / "images" / name, to_bytes(picture))
                save_picture(folder / "masks" / name, masks[row].to(torch.uint8).numpy())
                save_picture(folder / "edges" / name, to_bytes(2 * hint[row, 0] - 1))
                line = {"file": name, "case": case.id, "index": index, "prompt": prompts[row], "seed": seeds[row]}
                line |= {"hint": settings.hint, "size": settings.size, "negative": settings.negative}
                line |= {"sampling": asdict(sampling), "precision": settings.precision}
                line |= {"edge_agreement": round(agreement[row].item(), 4)}
                line |= {"weights": weights, "source": sources[case.id], "classes": classes, "synthetic": True}
                line |= {"compat": habits, "reading": reading}
                log.write(json.dumps(line) + "\n")
            log.flush()
            bar.update(len(numbers))
    agreements = [json.loads(line)["edge_agreement"] for line in manifest.read_text().splitlines()]
    mean, spread = np.mean(agreements), np.std(agreements)
    print(f"{folder}: {len(agreements)} images, edge agreement (F1 within 1 pixel) {mean:.3f} +- {spread:.3f}")


def main():
    """Generate every fold that is asked for, once for each value of a sweep."""
    settings = parse(Settings)
    if settings.eta and settings.method != "ddim":
        raise errors.InputError(f"--eta: is DDIM's, and --method is {settings.method}; leave one of them out")
    habits = read_compat(settings.compat, "emit.generate")
    runs = vary(settings, ("guidance", "strength"))
    cases, splits = open_data(settings)
    folds = choose_folds(settings.fold, splits)
    device = distributed.start(settings.device)
    hed, hed_header = load_hed(settings.hed)
    files = {f"fold{fold}": settings.finetuned / f"fold{fold}" / "controlnet.safetensors" for fold in folds}
    for controlnet in files.values():  # all can be read, before anything is written
        checkpoints.read(controlnet)
    model, headers = EmitDiff.load(settings.model, files[f"fold{folds[0]}"])
    check_size(settings.size, model.sizes)
    for folder in [run.out / f"fold{fold}" for run in runs.values() for fold in folds]:
        if not settings.resume and read_manifest(folder):
            raise errors.InputError(f"{folder}: already holds images; go on with --resume or choose another folder")
    for run in runs.values():
        save_config(run.out, run, {"model": settings.model, "hed": settings.hed, **files})
        write_splits(run.out / "splits.json", splits)
    shared = {"model": sha256(settings.model), "hed": sha256(settings.hed)}
    for fold in folds:
        controlnet = files[f"fold{fold}"]
        if fold != folds[0]:
            model, headers = EmitDiff.load(settings.model, controlnet)
        model.to(device).requires_grad_(False), hed.to(device)
        weights = {**shared, "controlnet": sha256(controlnet)}
        training = choose_training(cases, splits[fold], settings)
        for run in runs.values():
            folder = run.out / f"fold{fold}"
            write_json(folder / "ledger.json", record("generation", [], [*headers, hed_header]))
            generate_fold(model, hed, training, cases.classes, run, habits, folder, weights)


if __name__ == "__main__":
    errors.run(main)
