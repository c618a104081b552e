"""Settings: one frozen dataclass at the top of each program, one flag per field, a source for every value.

@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):                            # or Limited, where nothing is trained
    data: Path = setting(source="[choice] your folder", help="the images")             # no default: required
    lr: float = setting(1e-4, "[choice] small model, short run", paper=1e-5, help="learning rate")

settings = parse(Settings)
"""

import argparse
import hashlib
import json
import math
import operator
import subprocess
import types
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, Union, get_args, get_origin, get_type_hints

import torch

from emit import __version__
from emit.errors import InputError, program
from emit.files import sha256, write_json
from emit.training import distributed

SOURCES = ("[paper]", "[authors' code]", "[SD 1.5]", "[choice] ")
LIMITS = {  # of a number: what must hold, in words
    "low": (operator.ge, "at least"),
    "above": (operator.gt, "more than"),
    "high": (operator.le, "at most"),
    "below": (operator.lt, "less than"),
}
STARTED = ("state.pt", "manifest.jsonl")  # files of a run, or of the generator, that has begun


def setting(default=MISSING, source="", *, paper=MISSING, help="", may_change=False, **limits):
    """Declare a field: its default (none: the user must give it), its source, the paper's value where it differs.

    source starts with one of SOURCES; "[choice]" goes on with the reason. may_change: a resumed run may change it.
    limits: low, high (the limit itself is allowed), above, below (it is not) of a number, or of each in a tuple.
    """
    if not source.startswith(SOURCES):
        raise ValueError(f"source {source!r} must start with one of {SOURCES}, and a choice needs its reason")
    metadata = {"source": source, "paper": paper, "help": help, "may_change": may_change, "limits": limits}
    return field(default=default, metadata=metadata)


class Limited:
    """The base of all settings: numbers keep to their limits, also where `replace` makes new ones."""

    def __post_init__(self):
        for f in fields(self):
            check_limits(flag_of(f.name), getattr(self, f.name), f)


@dataclass(frozen=True, kw_only=True)
class RunSettings(Limited):
    """The training run."""

    steps: int = setting(1000, "[choice] a short run", help="optimiser steps", low=1)
    batch: int = setting(16, "[choice] CPU minutes", help="images per step, over all processes", low=1)
    lr: float = setting(1e-3, "[choice] small network, few steps", help="learning rate of AdamW", above=0)
    seed: int = setting(0, "[choice] any number", help="seed of initialisation, order and draws")
    warmup: int = setting(20, "[choice] stable start", help="steps of linear warm-up", low=0)
    schedule: Literal["cosine", "constant"] = setting(
        "cosine", "[choice] few steps; [paper] names none", paper="constant", help="learning rate after the warm-up"
    )
    ema: float = setting(
        0.99, "[choice] few steps; [authors' code]: none", paper=0.0, help="decay of the weight average, 0 for none", low=0, below=1
    )
    accumulate: int = setting(1, "[choice] memory", paper=4, help="forward passes per step", low=1)
    precision: Literal["float32", "bf16"] = setting("float32", "[authors' code]", help="of the forward passes")
    device: str = setting("auto", "[choice] a GPU if there is one", help="auto, cpu, cuda, cuda:1 or mps", may_change=True)
    save_every: int = setting(
        500, "[choice] minutes lost at most", paper=1000, help="steps between saved states", may_change=True, low=1
    )
    resume: bool = setting(False, "[choice] explicit", help="go on with the run in --out", may_change=True)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors and which knows no abbreviations."""

    def __init__(self, description):
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(" ".join(program()), description=description, allow_abbrev=False, formatter_class=form)

    def error(self, message):
        raise InputError(f"{message.removeprefix('argument ')}; see --help")


def parse(cls, argv=None, inherit=None):
    """Read the command line into an instance of the settings class cls.

    Flags are `--field-name value`; a bool is `--name` or `--no-name`; lists are separated by commas; "none" is None where
    the type allows it. --preset demo|paper picks the values that no flag gives; --help prints all.
    inherit: function of {field: value} of the flags given, returns ({field: value}, file): what an earlier program wrote,
    in place of the preset's values. Raises InputError for a flag that says otherwise, is unknown, missing, ill-typed,
    or outside its limits.
    """
    parser = Parser(cls.__doc__)
    has_paper = any(f.metadata["paper"] is not MISSING for f in fields(cls))
    if has_paper:
        parser.add_argument("--preset", choices=("demo", "paper"), default="demo", help="which default values hold")
    for title, declared in group_fields(cls).items():
        group = parser.add_argument_group(title)
        for f in declared:
            add_flag(group, f, get_type_hints(cls)[f.name])
    given = vars(parser.parse_args(argv))
    preset = given.pop("preset", "demo")
    known, source = inherit(given) if inherit else ({}, None)
    for name in sorted(given.keys() & known.keys()):
        if given[name] != known[name]:
            words = f"is {show(given[name])}, and {source} says {show(known[name])}"
            raise InputError(f"{flag_of(name)}: {words}; leave it out, or run the earlier program anew")
    values = {f.name: {**known, **given}.get(f.name, preset_value(f, preset)) for f in fields(cls)}
    missing = [flag_of(name) for name, value in values.items() if value is MISSING]
    if missing:
        raise InputError(f"{missing[0]}: is required; give {' and '.join(missing)}, or see --help")
    return cls(**values)


def group_fields(cls):
    """Return {title: fields}, by the class that declares a field first; its docstring is the title."""
    groups = {}
    for f in fields(cls):
        owner = next(c for c in reversed(cls.__mro__) if f.name in getattr(c, "__annotations__", {}))
        title = "This program" if owner is cls else owner.__doc__
        groups.setdefault(title, []).append(f)
    return groups


def add_flag(group, f, kind):
    """Add one field's flag: what it does, its values, and at the end where they come from."""
    demo, paper = (show(preset_value(f, preset)) for preset in ("demo", "paper"))
    values = demo if demo == paper else f"{demo}, paper {paper}"
    words = {"help": f"{f.metadata['help']} ({values}) {f.metadata['source']}".replace("%", "%%"), "default": argparse.SUPPRESS}
    if kind is bool:
        group.add_argument(flag_of(f.name), action=argparse.BooleanOptionalAction, **words)
    else:
        group.add_argument(flag_of(f.name), type=converter(kind), metavar=type_name(kind), **words)


def converter(kind):
    """Return the function from a flag's text to a value of its type, named as argparse's messages need it."""

    def convert(text):
        try:
            return to_value(text, kind)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not {type_name(kind)}") from error

    return convert


def to_value(text, kind):
    """Turn text into a value of a type; ValueError where it is none."""
    options = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        member = next(option for option in options if option is not type(None))
        return None if text.lower() == "none" else to_value(text, member)
    if get_origin(kind) is tuple:
        return tuple(to_value(part.strip(), options[0]) for part in text.split(",")) if text.strip() else ()
    if get_origin(kind) is Literal:
        if text not in options:
            raise ValueError
        return text
    value = kind(text)
    if (kind is float and not math.isfinite(value)) or (kind is Path and not text):
        raise ValueError
    return value


def check_limits(flag, value, f):
    """Refuse a number outside the field's limits, alone or in a tuple; None is no number."""
    limits = f.metadata["limits"].items()
    for number in value if isinstance(value, tuple) else [] if value is None else [value]:
        if not all(LIMITS[name][0](number, limit) for name, limit in limits):
            words = " and ".join(f"{LIMITS[name][1]} {limit}" for name, limit in limits)
            raise InputError(f"{flag}: is {show(number)}; give {words}")


def vary(settings, names):
    """Read settings.sweep, ("NAME=VALUE", "VALUE", ...), and return {value: settings of its run in out/NAME_VALUE}.

    names: what may be swept; a name that is no field of the settings changes `out` alone, and its value stays a text.
    Without a sweep {None: settings}. Raises InputError for an unknown name, a wrong value or a repeated one.
    """
    if not settings.sweep:
        return {None: settings}
    name, _, first = settings.sweep[0].partition("=")
    name = name.replace("-", "_")
    if name not in names or not first:
        words = f"--sweep: {','.join(settings.sweep)!r} is not NAME=VALUE,VALUE,..."
        raise InputError(f"{words}; NAME is one of {', '.join(names)}")
    known, kind = {f.name: f for f in fields(settings)}, get_type_hints(type(settings)).get(name, str)
    runs = {}
    for text in (first, *settings.sweep[1:]):
        try:
            value = to_value(text, kind)
        except ValueError as error:
            raise InputError(f"--sweep {name}: {text!r} is not {type_name(kind)}; write numbers between commas") from error
        if value in runs:
            raise InputError(f"--sweep {name}: {text} is given twice; give it once")
        change = {name: value} if name in known else {}
        runs[value] = replace(settings, sweep=(), out=settings.out / f"{name}_{text}", **change)
    return runs


def save_config(run_folder, settings, inputs, data, names):
    """Write run_folder/config.json: resolved settings, versions, path and SHA-256 of each input file, a digest of the data.

    inputs: name -> path of each file that the run starts from (None: not given). data: where the pictures are; names:
    what identifies them, the ids and how they are read and split. Rank 0 writes.
    Raises InputError when the folder holds a trained state or generated images, and a setting that may not change, what
    is in one of the files, or the data has changed. Paths may: run folders and data can be moved.
    """
    values = {f.name: to_plain(getattr(settings, f.name)) for f in fields(settings)}
    files = {name: {"path": str(file), "sha256": sha256(file)} for name, file in inputs.items() if file is not None}
    digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
    files["data"] = {"path": str(data), "sha256": digest}
    path, before = Path(run_folder) / "config.json", {}
    if path.exists() and any(file for name in STARTED for file in path.parent.rglob(name)):
        before = check_unchanged(path, settings, values, files)
    if distributed.rank() == 0:
        config = {"settings": values, "code": code_version(), "torch": torch.__version__, "inputs": before | files}
        write_json(path, config, indent=2)


def check_unchanged(path, settings, values, files):
    """Compare a run's settings and input files with those in its config.json; return the files stated there."""
    before = json.loads(path.read_text())
    for f in fields(settings):
        old, new = before["settings"].get(f.name), values[f.name]
        moved = isinstance(getattr(settings, f.name), Path) and old is not None
        if old != new and not moved and not f.metadata["may_change"]:
            remedy = "resume with the first run's settings or choose another folder"
            raise InputError(f"{path}: {flag_of(f.name)} was {show(old)} and is now {show(new)}; {remedy}")
    for name, file in files.items():
        first = before["inputs"].get(name, file)
        if first["sha256"] != file["sha256"]:
            words = f"{flag_of(name) if name in values else name} changed since the first run"
            raise InputError(f"{path}: {words}; resume with what was {first['path']} or choose another folder")
    return before["inputs"]


def code_version():
    """Return the package's version, its git commit, and whether files differ from that commit (None: unknown)."""
    commit = _git("rev-parse", "HEAD") if _git("ls-files", "emit/__init__.py") else None  # not of a repository around it
    changed = None if commit is None else bool(_git("status", "--porcelain", "--untracked-files=no"))
    return {"version": __version__, "commit": commit, "changed": changed}


def _git(*arguments):
    folder = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def type_name(kind):
    """Return a type as --help shows it."""
    options = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return "|".join(type_name(option) for option in options if option is not type(None)) + "|none"
    if get_origin(kind) is Literal:
        return "|".join(options)
    if get_origin(kind) is tuple:
        return f"{type_name(options[0])},..."
    return kind.__name__.lower()


def preset_value(f, preset):
    """Return a field's default in the preset "demo" or "paper"."""
    paper = f.metadata["paper"]
    return paper if preset == "paper" and paper is not MISSING else f.default


def flag_of(name):
    """Return the flag of a field."""
    return "--" + name.replace("_", "-")


def show(value):
    """Return a setting's value as a person reads it."""
    if value is MISSING:
        return "required"
    if isinstance(value, tuple | list):
        return ",".join(map(str, value)) or "none"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def to_plain(value):
    """Return a setting's value as JSON has it."""
    if isinstance(value, tuple):
        return [to_plain(member) for member in value]
    return str(value) if isinstance(value, Path) else value
