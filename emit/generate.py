"""Between stages 2 and 3: n labelled images for each training case of a fold, from pure noise and that case's edge.

    python -m emit.generate --model MODEL --hed HED --finetuned RUN --out FOLDER
    python -m emit.generate verify FOLDER                        # makes its images again and compares

The labelled set, its splits and the hint are those of the fine-tuning. Writes the folders of `emit.generated`.
An image depends on (seed, case, index) and its settings alone, not on the order or a restart; with another --batch
or --n the last bits of its sums differ, which may turn a rounding by one grey level. An image that is no picture
(`emit.generated.find_fault`) is drawn again once, with its seed + 1, and then left out.
"""

import contextlib
import math
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from emit import checkpoints, errors
from emit.claims import claim, share
from emit.compat import read_compat
from emit.data.cache import Memo, TrainingImages
from emit.data.cases import read_cases
from emit.data.edges import edge_agreement, make_hint
from emit.data.geometry import LINEAR, fit
from emit.data.images import decode
from emit.data.prompts import add_phrase, draw_phrase, gray_sketch
from emit.data.shapes import bend, transplant
from emit.data.similarity import content_hash
from emit.dataset import DATASET, choose_folds, open_set, read_description, write_set
from emit.diffusion.samplers import SAMPLERS
from emit.files import append_line, read_json, sha256, write_json
from emit.generated import KINDS, find_fault, is_whole, read_left_out, read_manifest, save_pictures, to_bytes
from emit.ledger import join, open_ledger
from emit.model import EmitDiff, Sampling, find_edges, load_hed, to_grey
from emit.seeds import generator, seed_from
from emit.training import distributed
from emit.training.loop import forecast, write_lines
from emit.training.settings import (
    CONFIG,
    Limited,
    SamplingSettings,
    check_values,
    expand_sweep,
    parse,
    save_config,
    setting,
    to_plain,
)

FAILED = 0.05  # [choice] share of the images that may be left out: of all so far, of the fold's first hundred at once
OF_EDGES = ("hed+contour", "hed", "contour")  # hints whose agreement with an image's edges means something


@dataclass(frozen=True, kw_only=True)
class Settings(SamplingSettings):
    """EMIT-Diff's generator: a fine-tuned ControlNet per fold in, labelled images per training case out."""

    model: Path = setting(source="[choice] stage 1's", help="model.safetensors of stage 1, or Stable Diffusion")
    finetuned: Path = setting(source="[choice] stage 2's", help="run folder of stage 2, with fold<k>/controlnet.safetensors")
    hed: Path = setting(source="[choice] stage 1's", help="HED weights")
    out: Path = setting(source="[choice] your folder", help="the output folder, new or with --resume", may_change=True)
    data: Path | None = setting(None, "[choice] stage 2's", help="the labelled images, if they were moved", may_change=True)
    fold: str = setting("all", "[paper] one model per fold", help="all, or one fold number", may_change=True)
    n: int = setting(3, "[choice] seconds; [authors' code]: 50", paper=50, help="images per training case", may_change=True, low=1)
    vary: float = setting(1.0, "[choice] new shapes: docs/findings.md", paper=0.0, help="how far edges and mask are bent", low=0)
    texture: float = setting(
        1.0, "[choice] docs/findings.md", paper=0.0, help="share of what the VAE loses, put back", low=0, high=1
    )
    tissue: Path | None = setting(
        None, "[choice] the case's own", help="stage 1's pictures: normal ones take in the labelled objects"
    )
    phrases: str = setting("none", "[choice] for models that know words", paper="words", help="none, words, or their weight")
    compat: tuple[str, ...] = setting((), "[authors' code]", help="diffboost, or diffboost:NAME,... (see docs/paper.md)")
    sweep: tuple[str, ...] = setting((), "[choice] none", help="guidance=V,V,... or strength=V,V,...: a folder for each value")
    seed: int = setting(0, "[choice] any number", help="seed of the draws")
    batch: int = setting(32, "[choice] memory", paper=8, help="images at a time", may_change=True, low=1)
    resume: bool = setting(False, "[choice] explicit", help="go on with the images in --out", may_change=True)


def read_weight(phrases):
    """Return the weight of the phrase's text states, None where it is words of the prompt."""
    if phrases in ("none", "words"):
        return None
    with contextlib.suppress(ValueError):
        if 0 <= float(phrases) <= 1:
            return float(phrases)
    raise errors.InputError(f"--phrases: is {phrases}; give none, words, or a weight from 0 to 1")


class Job(NamedTuple):
    """One image to make: of which case and index, from which text and seed, in the tissue of which other picture (numbers)."""

    case: int
    index: int
    prompt: str
    seed: int
    tissue: int | None


def name_normal(prompt):
    """Return the prompt of a normal picture of the same modality and organ: "US, breast, normal" of "US, breast, benign"."""
    return ", ".join([*prompt.split(", ")[:2], "normal"])


def open_tissue(settings, labelled):
    """Return the pictures of --tissue in which nothing is to be found, of the set's organs, as TrainingImages; None: no flag."""
    if settings.tissue is None:
        return None
    if labelled.hint not in ("hed", "hed+contour"):
        raise errors.InputError(f"--tissue: gives edges, and the hint is {labelled.hint}; leave it out")
    for case in labelled.cases:
        if len(case.prompt.split(", ")) != 3:
            words = f"needs prompts of modality, organ and finding, and that of {case.id} is {case.prompt!r}"
            raise errors.InputError(f"--tissue: {words}; leave it out")
        if case.prompt == name_normal(case.prompt) and case.mask is not None and case.mask.any():
            words = f"is for lesions, and {case.id}, {case.prompt}, is labelled: its organ would be there twice"
            raise errors.InputError(f"--tissue: {words}; leave it out")
    wanted = {name_normal(case.prompt) for case in labelled.cases}
    found = [case for case in read_cases(settings.tissue, layout="radimagenet").cases if case.prompt in wanted]
    for missing in sorted(wanted - {case.prompt for case in found}):
        raise errors.InputError(f"--tissue: {settings.tissue} holds no picture of {missing}; leave the flag out")
    return TrainingImages(found, labelled.size, labelled.hed_size)


def plan(cases, settings, tissue=None):
    """List the Job of every image of a fold. tissue: of `open_tissue`."""
    deviations, weight, jobs = read_compat(settings.compat, "emit.generate"), read_weight(settings.phrases), []
    normal = {}  # {prompt: places in the tissue's cases}
    for place, other in enumerate(tissue.cases if tissue is not None else ()):
        normal.setdefault(other.prompt, []).append(place)
    for number, case in enumerate(cases):
        places = normal.get(name_normal(case.prompt), [])
        for index in range(settings.n):
            prompt, phrase = case.prompt, draw_phrase(generator(settings.seed, case.id, index, "phrase"))
            if "gray_sketch" in deviations:
                prompt = gray_sketch(prompt, phrase)
            elif settings.phrases != "none":
                prompt = add_phrase(prompt, phrase, weight)
            source = () if "one_seed" in deviations else (case.id,)
            draw = torch.randint(max(1, len(places)), (), generator=generator(settings.seed, case.id, index, "tissue"))
            place = places[draw] if places else None
            jobs.append(Job(number, index, prompt, seed_from(settings.seed, *source, index), place))
    return jobs


def look_at(images, model, hed, labelled, settings):
    """Return a Memo: numbers of B images -> (B, 4, S, S): edges, texture, 1 outside the picture, mask.

    Texture: what the autoencoder loses of the picture, x - D(E(x)): noise, mostly.
    """

    def look(numbers):
        batch = images.batch(numbers)
        texture = torch.zeros_like(batch.image)
        if settings.texture:
            colour = batch.image.expand(-1, 3, -1, -1).to(next(model.parameters()).device)
            texture = settings.texture * (batch.image - to_grey(model.vae.decode(model.vae.encode(colour).mode())).cpu())
        frame, edges = fit(batch.view, labelled.size, LINEAR, 0.0).isnan(), find_edges(hed, batch.view, size=labelled.size)
        return torch.cat([edges, texture, frame, batch.mask[:, None]], dim=1)

    return Memo(look)


def make_conditions(own, other, cases, jobs, labelled, settings):
    """Return, for B jobs, hints (B, 3, S, S), masks (B, S, S), frames (B, S, S), true outside the picture, texture (B, 1, S, S).

    own, other: of `look_at`, for the cases and for the tissue (None: their own).
    """
    edges, rest = own([job.case for job in jobs]).split([1, 3], dim=1)  # (B, 4, S, S) -> edges; texture, frame, mask
    if settings.vary:
        draws = [generator(settings.seed, cases[job.case].id, job.index, "shape") for job in jobs]
        edges, rest = bend(edges, rest, draws, settings.vary)  # nearest keeps noise as it is
    planes, frames, masks = torch.cat([edges, rest[:, :1]], dim=1), rest[:, 1] > 0, rest[:, 2].long()
    if other is not None:
        tissue = other([job.tissue for job in jobs])  # (B, 4, S, S)
        frames = tissue[:, 2] > 0
        planes, masks = transplant(planes, masks, tissue[:, :2], frames)
    return make_hint(labelled.hint, masks, planes[:, :1], len(labelled.classes)), masks, frames, planes[:, 1:]


class Maker:
    """Makes the images of one fold: for the generator, and once more for `verify`. chunks: lists of Jobs made together."""

    def __init__(self, model, hed, cases, labelled, settings, weights, tissue=None):
        self.model, self.hed, self.cases, self.labelled, self.settings = model, hed, cases, labelled, settings
        self.pictures, self.tissue = TrainingImages(cases, labelled.size, labelled.hed_size), tissue
        self.looks = [images and look_at(images, model, hed, labelled, settings) for images in (self.pictures, tissue)]
        self.sampling, self.sources = Sampling.read(settings), {path: sha256(path) for path in {case.path for case in cases}}
        reading = {name: getattr(labelled.about, name) for name in ("layout", "window", "channel", "axis", "labels")}
        self.shared = {name: getattr(labelled, name) for name in ("size", "hint", "hed_size", "classes")} | {"reading": reading}
        self.shared |= {"sampling": asdict(self.sampling), "negative": settings.negative, "precision": settings.precision}
        self.shared |= {"weights": weights, "compat": read_compat(settings.compat, "emit.generate"), "synthetic": True}
        self.shared |= {"vary": settings.vary, "texture": settings.texture, "run_seed": settings.seed}
        jobs = plan(cases, settings, tissue)
        self.chunks = [jobs[start : start + settings.batch] for start in range(0, len(jobs), settings.batch)]

    def key(self, job):
        """Return (case id, index) of a Job."""
        return self.cases[job.case].id, job.index

    def make(self, chunk):
        """Return, for each Job of a whole chunk, its line, its image, mask and edge (S, S) uint8, and its fault, None: none.

        Whole, because a sum's last bits depend on what is computed beside it. An image with a fault is drawn again once,
        with its seed + 1, beside the others of the chunk that have one.
        """
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            hint, masks, frames, texture = make_conditions(*self.looks, self.cases, chunk, self.labelled, self.settings)
            images, faults = self.draw(chunk, hint)
            bad = [row for row, fault in enumerate(faults) if fault]
            if bad:
                chunk = [job._replace(seed=job.seed + 1) if fault else job for job, fault in zip(chunk, faults, strict=True)]
                others, again = self.draw([chunk[row] for row in bad], hint[bad])
                images = images.index_copy(0, torch.tensor(bad, device=images.device), others)
                faults = [again.pop(0) if fault else None for fault in faults]
            grey = (to_grey(images).cpu() + texture).clamp(-1, 1)  # (B, 3, S, S) -> (B, 1, S, S)
            unframed = grey.masked_fill(frames[:, None], math.nan)
            agreement = edge_agreement(find_edges(self.hed, unframed, self.labelled.hed_size), hint[:, :1])
        made = []
        for row, job in enumerate(chunk):
            files = to_bytes(grey[row, 0]), masks[row].to(torch.uint8).numpy(), to_bytes(2 * hint[row, 0] - 1)
            made.append((self.describe(job, agreement[row].item()), files, faults[row]))
        return made

    def draw(self, chunk, hint):
        """Return images (B, 3, S, S) and why each is no picture (None: it is one)."""
        prompts, seeds = [job.prompt for job in chunk], [job.seed for job in chunk]
        images = self.model.generate(prompts, hint, seeds, self.labelled.size, self.sampling, self.settings.negative)
        faults = []
        for job, image in zip(chunk, images, strict=True):
            # Of all channels, as a mean of clipped ones is not clipped, and of their mean, which can be one grey.
            # A case that is blank itself, such as the first slice of a volume, may have a blank image.
            blank = image.isfinite().all() and find_fault(self.pictures.image([job.case])[0])
            faults.append(None if blank else find_fault(image) or find_fault(to_grey(image[None])))
        return images, faults

    def describe(self, job, agreement):
        """Return an image's line of the manifest, whose sha256 comes with its files."""
        case = self.cases[job.case]
        line = {"file": f"{case.id.replace('/', '_')}_{job.index:03d}.png", "case": case.id, "index": job.index}
        line |= {"prompt": job.prompt, "seed": job.seed, **self.shared}
        if self.tissue is not None:
            other = self.tissue.cases[job.tissue]
            line |= {"tissue": other.id, "tissue_source": sha256(other.path)}
        line |= {"sha256": None, "source": self.sources[case.path]}
        return line | ({"edge_agreement": round(agreement, 4)} if self.labelled.hint in OF_EDGES else {})


def generate_fold(model, hed, cases, labelled, settings, weights, folder, tissue=None):
    """Make every image of one fold that is not there whole; each line of the manifest is written after its files."""
    manifest, maker = folder / "manifest.jsonl", Maker(model, hed, cases, labelled, settings, weights, tissue)
    place = {case.id: number for number, case in enumerate(cases)}
    whole = (line for line in read_manifest(folder) if line["case"] in place and is_whole(folder, line))
    lines = {(line["case"], line["index"]): line for line in whole}
    left_out = {key: line for key, line in read_left_out(folder).items() if key[0] in place}
    write_lines(manifest, lines.values())
    done, total = lines.keys() | left_out.keys(), sum(map(len, maker.chunks))
    chunks = [chunk for chunk in maker.chunks if any(maker.key(job) not in done for job in chunk)]
    with tqdm(chunks, folder.name, unit="batch") as bar:
        for chunk in bar:
            for line, files, fault in maker.make(chunk):
                key = line["case"], line["index"]
                if key in done:
                    continue
                done.add(key)
                if fault:
                    left_out[key] = {name: line[name] for name in ("case", "index", "prompt", "seed")} | {"fault": fault}
                    report_fault(folder, left_out[key], len(left_out), len(done), total)
                    write_lines(folder / "left_out.jsonl", [left_out[key] for key in sort(left_out, place)])
                else:
                    lines[key] = line | {"sha256": save_pictures(folder, line["file"], *files)}
                    append_line(manifest, lines[key])
            if chunk is chunks[0]:
                work = f"{folder.name}: {len(chunks)} batches of {len(chunk)} images in {settings.steps} denoising steps"
                device = next(model.parameters()).device
                forecast(work, device, settings.precision, "batch", bar.format_dict["elapsed"], len(chunks))
    write_lines(manifest, [lines[key] for key in sort(lines, place)])
    agreements = [line["edge_agreement"] for line in lines.values() if "edge_agreement" in line]
    words = f", {len(left_out)} left out" if left_out else ""
    if agreements:
        words += f", edge agreement (F1 within 1 pixel) {np.mean(agreements):.3f} +- {np.std(agreements):.3f}"
    print(f"{folder}: {len(lines)} images{words}")


def sort(keys, place):
    """Return (case id, index) pairs in the order of the cases."""
    return sorted(keys, key=lambda key: (place[key[0]], key[1]))


def report_fault(folder, line, failed, done, total):
    """Say that an image is left out; stop where more are than the method can be blamed for: a model may be broken."""
    words = f"{folder}: image {line['index']} of case {line['case']} {line['fault']}, with two seeds"
    if failed > FAILED * max(done, min(total, 100)):
        remedy = "look at --guidance, --strength, --precision and the weights, and choose another folder"
        raise errors.InputError(f"{words}; {remedy}")
    tqdm.write(f"{words}: left out")


def list_weights(settings, fold):
    """Return {part: the file that its weights come from} of a fold."""
    controlnet = settings.finetuned / f"fold{fold}" / "controlnet.safetensors"
    return {"model": settings.model, "controlnet": controlnet, "hed": settings.hed}


def load(paths, device):
    """Return the model and HED, ready to draw, and the headers of the files."""
    prediction = checkpoints.read(paths["controlnet"]).prediction  # which the file of the model may not say
    model, headers = EmitDiff.load(paths["model"], paths["controlnet"], prediction=prediction)
    hed, header = load_hed(paths["hed"])
    return model.to(device).requires_grad_(False), hed.to(device), [*headers, header]


def main():
    """Generate every fold that is asked for, once for each value of a sweep; or verify what was."""
    if sys.argv[1:2] == ["verify"]:
        return errors.run(lambda: verify(sys.argv[2:]), again="")
    settings = parse(Settings)
    settings = replace(settings, spacing=settings.spacing or SAMPLERS[settings.method].spacing)
    read_compat(settings.compat, "emit.generate"), read_weight(settings.phrases)  # refused before anything is read
    runs = expand_sweep(settings, ("guidance", "strength"))
    if read_description(settings.finetuned / DATASET)[1]["hint"] is None:
        raise errors.InputError(f"{settings.finetuned / DATASET}: is not of stage 2; give its run folder")
    labelled = open_set(settings.finetuned, settings.data)
    folds, tissue = choose_folds(settings.fold, labelled.splits), open_tissue(settings, labelled)
    device = distributed.start(settings.device, alone=True)
    files = {f"fold{fold}": list_weights(settings, fold)["controlnet"] for fold in folds}
    for controlnet in files.values():
        load_hed(settings.hed), checkpoints.read(controlnet)  # all can be, before anything is written
    for folder in [run.out / name for run in runs.values() for name in files]:
        if not settings.resume and read_manifest(folder):
            raise errors.InputError(f"{folder}: already holds images; go on with --resume or choose another folder")
    hashes = [content_hash(case.image) for case in (tissue.cases if tissue else ())]
    names = [*labelled.names, *map(str, hashes)]
    for run in runs.values():
        with claim(run.out, wait=True):
            save_config(run.out, run, {"model": settings.model, "hed": settings.hed, **files}, labelled.about.data, names)
            write_set(run.out, labelled)

    def fill(fold):
        name, paths = f"fold{fold}", list_weights(settings, fold)
        with contextlib.ExitStack() as held:
            for run in runs.values():
                held.enter_context(claim(run.out / name))
            model, hed, headers = load(paths, device)
            ancestry = join(map(open_ledger, paths.values(), headers))
            weights, cases = {part: sha256(path) for part, path in paths.items()}, labelled.training(fold)
            if tissue is not None:
                ancestry = ancestry.add("tissue", np.array(hashes, np.uint64))
            for run in runs.values():
                with claim(run.out, wait=True):
                    ancestry.write(run.out)
                write_json(run.out / name / "ledger.json", ancestry.header)
                generate_fold(model, hed, cases, labelled, run, weights, run.out / name, tissue)

    share(folds, fill)


@dataclass(frozen=True, kw_only=True)
class VerifySettings(Limited):
    """Makes a generator's images again from their lines in the manifest, and compares. Exit code 0: all are the same; 1: not."""

    out: Path = setting(source="[choice] the generator's", help="its output folder; of a sweep, one of the folders in it")
    fold: str = setting("all", "[paper] one model per fold", help="all, or one fold number")
    number: int | None = setting(None, "[choice] all", help="about so many images of a fold: whole batches, drawn by --seed", low=1)
    seed: int = setting(0, "[choice] any number", help="seed of that draw")
    tolerance: int = setting(1, "[choice] another machine's rounding", help="grey levels to differ by", low=0, high=255)
    device: str = setting("auto", "[choice] a GPU if there is one", help="auto, cpu, cuda, cuda:1 or mps")
    model: Path | None = setting(None, "[choice] as it was", help="the model, if it was moved")
    hed: Path | None = setting(None, "[choice] as it was", help="the HED weights, if they were moved")
    finetuned: Path | None = setting(None, "[choice] as it was", help="the run folder of stage 2, if it was moved")
    data: Path | None = setting(None, "[choice] as it was", help="the labelled images, if they were moved")
    tissue: Path | None = setting(None, "[choice] as it was", help="the pictures of --tissue, if they were moved")


def read_settings(given):
    """Return the Settings that a generator's folder was made with, with the paths that are given."""
    path = given.out / "config.json"
    values = read_json(path, CONFIG, "give the generator's folder, or of a sweep one of those in it")["settings"]
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name != "processes"}
    check_values(Settings, values, path, [f.name for f in fields(Settings)])
    paths = {name: getattr(given, name) or values[name] for name in ("model", "hed", "finetuned", "data", "tissue")}
    paths = {name: path and Path(path) for name, path in paths.items()}
    return Settings(**values | paths | {"out": given.out, "device": given.device})


def verify(words):
    """Make the images of a folder again, fold by fold, and end with exit code 1 where one is another."""
    given = parse(VerifySettings, ["--out", *words] if words and not words[0].startswith("-") else words)
    settings = read_settings(given)
    labelled = open_set(given.out, given.data)
    tissue, device = open_tissue(settings, labelled), distributed.start(given.device)
    folds = [fold for fold in choose_folds(given.fold, labelled.splits) if (given.out / f"fold{fold}").exists()]
    if not all([verify_fold(fold, labelled, settings, given, tissue, device) for fold in folds]) or not folds:
        sys.exit(1)


def verify_fold(fold, labelled, settings, given, tissue, device):
    """Make images of one fold again, print in one line how they compare, and return whether all are within the tolerance."""
    folder, paths = given.out / f"fold{fold}", list_weights(settings, fold)
    lines, left_out = {(line["case"], line["index"]): line for line in read_manifest(folder)}, read_left_out(folder)
    weights = {part: sha256(path) for part, path in paths.items()}
    for line in lines.values():
        for part in weights:
            if (line.get("weights") or {}).get(part) != weights[part]:
                words = f"is another {part} than {line['file']} of {folder} was made with; give that one"
                raise errors.InputError(f"{paths[part]}: {words}")
    model, hed, _ = load(paths, device)
    maker, differences = Maker(model, hed, labelled.training(fold), labelled, settings, weights, tissue), {}
    draw = torch.randperm(len(maker.chunks), generator=generator(given.seed, fold)).tolist()
    for number in tqdm(draw, folder.name, unit="batch"):
        if given.number and len(differences) >= given.number:
            break
        for line, files, fault in maker.make(maker.chunks[number]):
            key = line["case"], line["index"]
            if fault and key in left_out:
                continue
            differences[line["file"]] = measure_difference(folder, lines.get(key), None if fault else to_plain(line), files)
    most, equal = max(differences.values(), default=0), sum(not difference for difference in differences.values())
    words = f"{len(differences)} of {len(lines)} images made again, {equal} equal, largest difference {most} grey levels"
    bad = [name for name, difference in differences.items() if difference > given.tolerance]
    print(f"{folder}: {words}{f', such as {bad[0]}' if bad else ''}")
    return not bad


def measure_difference(folder, line, again, files):
    """Return the largest difference, in grey levels, of an image and its edge from those made again.

    255 where there is none, or what its line says, or its mask, is another. line: as listed; again: as made again; None: none.
    """
    same = line and again and is_whole(folder, line)
    if not same or any(line.get(name) != again[name] for name in again.keys() - {"sha256", "edge_agreement"}):
        return 255
    found = {kind: decode(folder / kind / line["file"]) for kind in KINDS}
    found = {kind: np.abs(found[kind].astype(int) - file).max() for kind, file in zip(KINDS, files, strict=True)}
    return 255 if found["masks"] else int(max(found.values()))


if __name__ == "__main__":
    errors.run(main)
