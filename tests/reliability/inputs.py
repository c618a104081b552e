"""Good files of every format, the functions that read them, and the process in which a reader meets a bad one.

A reader returns all that the programs use of what it read, so that a change that it lets pass can be told from one that
changes nothing.
"""

import hashlib
import json
import os
import resource
import runpy
import shutil
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import h5py
import nibabel
import numpy as np
import torch
from mutations import changes_of
from PIL import Image

import train_seg
from emit import checkpoints, errors, sample
from emit.checkpoints.keras import NAMES
from emit.data import volumes
from emit.data.cases import read_cases
from emit.data.splits import read_splits
from emit.dataset import open_set
from emit.files import write_json
from emit.generated import Generated
from emit.ledger import open_ledger
from emit.model import load_hed
from emit.networks.hed import HED, STAGES
from emit.predict import load_segmenters
from emit.training.loop import Run
from emit.training.settings import RunSettings, parse, save_config

SECONDS = int(os.environ.get("EMIT_SECONDS", 30))  # that a bad input may take
MEMORY = 2 * 2**30  # bytes that a bad input may take, over those that the imports took
ROOT = Path(__file__).resolve().parents[2]

# ---- good files


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_good(root):
    """Write, beside the folders of the four programs, one good file of every other kind."""
    rng, bad = np.random.default_rng(0), root / "bad"
    mask = np.zeros((12, 16), np.uint8)
    mask[3:8, 4:9] = 1
    for name in ("p1.png", "p2.jpg", "p3.tif", "p4.bmp", "p5.tif"):
        grey = rng.integers(0, 255, (12, 16), np.uint8)
        save(grey.astype(np.float32) if name == "p5.tif" else grey, bad / "folders" / "images" / name)
        save(mask, bad / "folders" / "masks" / f"{name[:2]}.png")
    lines = "".join(f"p{n},picture {n}\n" for n in range(1, 6))
    (bad / "folders" / "prompts.csv").write_text("name,prompt\n" + lines)
    affine = np.diag((-2.0, -2.0, 3.0, 1.0))
    labels = rng.integers(0, 2, (6, 5, 4)).astype(np.uint8)
    for name in ("a", "b", "c"):
        for part, array in (("imagesTr", rng.integers(-900, 900, (6, 5, 4)).astype(np.int16)), ("labelsTr", labels)):
            (bad / "nnunet" / part).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, affine), bad / "nnunet" / part / f"{name}.nii.gz")
    about = {"name": "organs", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}, "numTraining": 3}
    write_json(bad / "nnunet" / "dataset.json", about)
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["b", "c"], "val": ["a"]}]
    write_json(bad / "nnunet" / "splits_final.json", folds)
    (bad / "volume").mkdir()
    for name, array in (("ct.nii", rng.normal(size=(6, 5, 4)).astype(np.float32)), ("seg.nii", labels)):
        nibabel.save(nibabel.Nifti1Image(array, affine), bad / "volume" / name)
    write_weights(bad, root)
    settings = RunSettings(steps=4, batch=2, warmup=0, save_every=2, device="cpu")
    save_config(bad / "run", settings, {"model": root / "pre" / "model.safetensors"}, root / "set", ["a", "b"])
    run = Run(bad / "run", {"net": small_network()}, settings, log_every=1)
    for _, batch in run.steps(Numbers()):
        run.update(run.modules["net"](batch).square().mean(), seen=1.0)
    about = {"settings": {"prompt": ["US, breast"], "steps": 4, "seeds": [1], "size": "32x32", "guidance": 2.0}, "sha256": {}}
    about["settings"] |= {"model": str(root / "pre" / "model.safetensors"), "like": None, "eta": 0.0, "method": "ddim"}
    sample.save_picture(bad / "sampled.png", mask, about)


def write_weights(bad, root):
    """Write HED's weights as pickle, zip or not, and as Keras file, and the model as a diffusers folder."""
    torch.manual_seed(0)
    hed = HED((1, 1, 1, 1, 1)).state_dict()
    torch.save(hed, bad / "hed.pt")
    torch.save(hed, bad / "hed_legacy.pt", _use_new_zipfile_serialization=False)
    with h5py.File(bad / "hed.h5", "w") as file:
        for place, name in NAMES.items() | {(f"dsn{n + 1}", f"moduleScore{stage}") for n, stage in enumerate(STAGES)}:
            for number, variable in enumerate(("weight", "bias")):
                tensor = hed[f"{name}.{variable}"]
                file[f"{place}/vars/{number}"] = tensor.permute(2, 3, 1, 0).numpy() if tensor.ndim == 4 else tensor.numpy()
    model = checkpoints.read(root / "pre" / "model.safetensors")
    checkpoints.write_diffusers(bad / "diffusers", model.parts, model.config, model.header)
    shutil.copytree(root / "pre" / "ledger", bad / "diffusers" / "ledger")


class Numbers:
    """Eight numbers to train on, whose hashes are kept as pictures' are."""

    def __init__(self):
        self.hashes = torch.arange(1, 9)

    def __len__(self):
        return 8

    def batch(self, indices, rng):
        return torch.tensor(indices, dtype=torch.float32)[:, None]


def small_network():
    torch.manual_seed(0)
    return torch.nn.Linear(1, 2)


# ---- readers: functions of the root


def read_folder(place, **options):
    def read(root):
        volumes.load_image.cache_clear(), volumes.load_labels.cache_clear()
        found = read_cases(root / "bad" / place, **options)
        return found.classes, [(c.id, c.group, c.prompt, c.stratum, c.spacing, c.thickness, *c.load()) for c in found.cases]

    return read


def read_nnunet(root):
    folder = root / "bad" / "nnunet"
    cases = read_cases(folder)
    splits = read_splits(folder / "splits_final.json", cases.cases, 0.5)
    return read_folder("nnunet")(root), [asdict(split) for split in splits]


def read_set(root):
    labelled = open_set(root / "fine")
    lists = [labelled.training(fold) for fold in range(len(labelled.splits))]
    own = [labelled.size, labelled.hint, labelled.hed_size, labelled.real_cases, labelled.seed, labelled.classes]
    return labelled.names, own, [[case.id for case in cases] for cases in lists]


def read_generated(root):
    made = Generated(root / "made" / "fold0")
    used = [{name: line[name] for name in ("file", "case", "prompt", "size")} for line in made.lines]
    report = "tissue" in made.lines[0], made.lines[0].get("compat") or []
    return list(made.pairs()), made.ledger.entries, used, report


def read_model(path):
    def read(root):
        found = checkpoints.read(root / path)
        return open_ledger(root / path, found.header).entries, found.config, found.prediction, found.dropped, found.parts

    return read


def read_hed(path):
    def read(root):
        hed, header = load_hed(root / path)
        return open_ledger(root / path, header).entries, dict(hed.state_dict())

    return read


def read_segmenter(root):
    network, about = load_segmenters([root / "seg" / "baseline" / "fold0_seed0" / "segmenter.safetensors"])
    return about, dict(network.state_dict())


def read_scores(root):
    if not (root / "seg" / "baseline" / "fold0_seed0" / "scores.json").exists():
        return "trained anew"
    fold = SimpleNamespace(tests={"": None}, number=0)
    return train_seg.run_arm("baseline", fold, 0, SimpleNamespace(resume=True, out=root / "seg"))


def read_run(root):
    folder, settings = root / "bad" / "run", RunSettings(steps=4, batch=2, warmup=0, save_every=2, device="cpu", resume=True)
    save_config(folder, settings, {"model": root / "pre" / "model.safetensors"}, root / "set", ["a", "b"])
    run = Run(folder, {"net": small_network()}, settings)
    list(run.steps(Numbers()))
    state = run.optimizer.state_dict()
    found = dict(run.modules.state_dict()), run.ema, run.sums, run.done, run.hashes, state["state"], state["param_groups"]
    return found, (folder / "log.jsonl").read_text()


def read_sampled(root):
    return vars(parse(sample.Settings, ["--again", str(root / "bad" / "sampled.png"), "--out", "x"], sample.inherit))


READERS = {
    "folders": read_folder("folders"), "nnunet": read_nnunet, "volume": read_folder("volume", modality="CT"), "set": read_set,
    "generated": read_generated, "model": read_model("pre/model.safetensors"), "diffusers": read_model("bad/diffusers"),
    "hed": read_hed("pre/hed.safetensors"), "pt": read_hed("bad/hed.pt"), "legacy": read_hed("bad/hed_legacy.pt"),
    "h5": read_hed("bad/hed.h5"), "segmenter": read_segmenter, "scores": read_scores, "run": read_run, "sampled": read_sampled,
}  # fmt: skip


def digest(value):
    """Return a hash of nested lists, dicts, arrays, tensors and plain values."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        text = f"{value.dtype}{value.shape}{hashlib.sha256(np.ascontiguousarray(value)).hexdigest()}"
    elif isinstance(value, dict):
        text = "{" + ",".join(f"{name}:{digest(one)}" for name, one in sorted(value.items(), key=str)) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ",".join(map(digest, value)) + "]"
    else:
        text = repr(value)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


# ---- the process


@dataclass(frozen=True)
class Program:
    """A program started with these words, as on a command line."""

    words: tuple

    def __call__(self):
        limit_memory()
        sys.argv, name = list(self.words), self.words[0]
        if name.endswith(".py"):
            runpy.run_path(str(ROOT / name), run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__", alter_sys=True)


def examine(reader, root, path, log):
    """Let a reader meet every change of one file; write a line for each: {"change", "verdict", "said"}.

    verdict: "refused", "same" or "other" (the result, where there is one), "hang", "memory", "no line", "traceback: ...".
    """
    signal.signal(signal.SIGALRM, stop)
    read, good = READERS[reader], digest(READERS[reader](root))
    place = root / "made" if "made" in path.parts else path  # what a change may touch
    spare = keep(place, root / "spare")
    changes = changes_of(path)
    limit_memory()
    for name, change in changes.items():
        change(path) if callable(change) else path.write_bytes(change)
        signal.alarm(SECONDS)
        try:
            try:
                found = digest(read(root))
            finally:
                signal.alarm(0)
            verdict, said = "same" if found == good else "other", ""
        except errors.InputError as error:
            verdict, said = "refused", str(error)
            verdict = "refused" if ": " in said and len(said) < 2000 else "no line"
        except MemoryError as error:
            verdict, said = "memory", repr(error)
        except Slow:
            verdict, said = "hang", ""
        except Exception as error:
            verdict, said = f"traceback: {type(error).__name__}", repr(error)
        keep(spare, place)
        with open(log, "a") as file:
            file.write(json.dumps({"change": name, "verdict": verdict, "said": said[:400]}) + "\n")


class Slow(BaseException):
    """No Exception: what handles those must not take a hang for a damaged file."""


def stop(*_):
    raise Slow


def keep(one, other):
    """Copy a file or folder to another place, whatever is there; return it."""
    if other.is_dir() and not other.is_symlink():
        shutil.rmtree(other)
    other.unlink(missing_ok=True)
    return shutil.copytree(one, other) if one.is_dir() else shutil.copyfile(one, other)


def limit_memory():
    """Let this process take MEMORY more bytes than it has now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def child(work, log, *arguments):
    """Do the work; what it prints goes to `log`."""
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    work(*arguments)
