"""Settings: one frozen dataclass at the top of each program, one flag per field, a source for every value."""

import argparse
import hashlib
import json
import math
import operator
import subprocess
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints

import torch

from emit import __version__
from emit.claims import is_any_held
from emit.data.images import MOST_SIDE
from emit.diffusion.samplers import SAMPLERS
from emit.errors import InputError, program
from emit.files import find_misfit, read_json, sha256, write_json
from emit.training import distributed

LIMITS = {  # of a number: what must hold, in words
    "low": (operator.ge, "at least"),
    "above": (operator.gt, "more than"),
    "high": (operator.le, "at most"),
    "below": (operator.lt, "less than"),
}
CONFIG = {"settings": dict, "inputs": dict[str, dict[str, str]]}  # what a resumed run reads of config.json
MOST = {"batch": 2**16, "size": MOST_SIDE, "channels": 2**12, "n": 10**4, "folds": 1000, "seed": 2**63}  # by the last word
STARTED = ("state.pt", "manifest.jsonl")  # files of a run, or of the generator, that has begun


def setting(default=MISSING, source="", *, paper=MISSING, help="", may_change=False, nargs=None, **limits):
    """Declare a field: its default (none: the user must give it), its source, the paper's value where it differs.

    source: "[paper]", "[authors' code]", "[SD 1.5]", or "[choice]" and its reason. may_change: a resumed run may change it.
    nargs: "+" for texts between spaces, which may hold commas.
    limits: low, high (the limit itself is allowed), above, below (it is not) of a number, or of each in a tuple.
    """
    presets = {"demo": default, "paper": default if paper is MISSING else paper}
    words = {"source": source, "help": help, "may_change": may_change, "nargs": nargs, "limits": limits}
    return field(default=default, metadata=presets | words)


class Limited:
    """The base of all settings: numbers keep to their limits, also where `replace` makes new ones."""

    def __post_init__(self):
        for f in fields(self):
            value, limits = getattr(self, f.name), f.metadata["limits"].items()
            most = MOST.get(f.name.split("_")[-1], 2**31 - 1)
            if limits and value == () != f.default:
                raise InputError(f"{flag_of(f.name)}: is empty; give at least one number")
            for number in value if isinstance(value, tuple) else (value,):
                if type(number) is int and abs(number) > most and "high" not in f.metadata["limits"]:
                    raise InputError(f"{flag_of(f.name)}: is {number}; give at most {most}")
                if number is not None and not all(LIMITS[name][0](number, limit) for name, limit in limits):
                    words = " and ".join(f"{LIMITS[name][1]} {limit}" for name, limit in limits)
                    raise InputError(f"{flag_of(f.name)}: is {number}; give {words}")


@dataclass(frozen=True, kw_only=True)
class RunSettings(Limited):
    """The training run."""

    steps: int = setting(1000, "[choice] a short run", help="optimiser steps", low=1)
    batch: int = setting(16, "[choice] CPU minutes", help="images per step, over all processes", low=1)
    lr: float = setting(1e-3, "[choice] small network, few steps", help="learning rate of AdamW", above=0)
    seed: int = setting(0, "[choice] any number", help="seed of initialisation, order and draws")
    warmup: int = setting(20, "[choice] stable start", help="steps of linear warm-up", low=0)
    schedule: Literal["cosine", "constant"] = setting("cosine", "[choice] few steps", paper="constant", help="after the warm-up")
    ema: float = setting(0.99, "[choice] few steps; [authors' code]: none", paper=0.0, help="EMA's decay, 0: none", low=0, below=1)
    accumulate: int = setting(1, "[choice] memory", paper=4, help="forward passes per step", low=1)
    precision: Literal["float32", "bf16"] = setting("float32", "[authors' code]", help="of the forward passes")
    device: str = setting("auto", "[choice] a GPU if there is one", help="auto, cpu, cuda, cuda:1 or mps", may_change=True)
    save_every: int = setting(500, "[choice] minutes lost", paper=1000, help="steps between states", may_change=True, low=1)
    resume: bool = setting(False, "[choice] explicit", help="go on with the run in --out", may_change=True)


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(Limited):
    """How pictures are drawn."""

    method: Literal[*SAMPLERS] = setting("ddim", "[authors' code]", help="sampler")
    steps: int = setting(12, "[choice] seconds; [authors' code]: 20", paper=20, help="denoising steps", low=1, high=1000)
    eta: float = setting(0.0, "[authors' code]", help="DDIM's noise, 0 to 1", low=0, high=1)
    spacing: Literal["trailing", "leading", "linspace"] | None = setting(
        None, "[choice] trailing, from the noisiest t; [SD 1.5] plms: leading, euler: linspace", help="kept timesteps"
    )
    guidance: float = setting(2.0, "[choice] see docs/findings.md; [authors' code]: 9", paper=9.0, help="guidance weight")
    guided: Literal["text", "text+hint"] = setting(
        "text+hint", "[choice] docs/findings.md", paper="text", help="what guidance drives"
    )
    strength: float = setting(1.0, "[authors' code]", help="control strength")
    guess_mode: Literal["original", "diffusers"] | None = setting(None, "[authors' code]", help="falling control scales")
    negative: str = setting("", "[choice] no natural-image words", help="text of the unconditional half")
    precision: Literal["float32", "bf16"] = setting("float32", "[authors' code]", help="of the forward passes")
    device: str = setting("auto", "[choice] a GPU if there is one", help="auto, cpu, cuda, cuda:1 or mps", may_change=True)

    def __post_init__(self):
        super().__post_init__()
        if self.eta and self.method != "ddim":
            raise InputError(f"--eta: is DDIM's, and --method is {self.method}; leave one of them out")
        if (self.spacing or SAMPLERS[self.method].spacing) == "leading" and self.steps == 1000:
            raise InputError("--spacing: leading takes at most 999 steps; give fewer, or trailing")


def check_values(cls, values, path, required=()):
    """Raise InputError, about the file at path, unless these {field: value} are settings of the class, with the required ones."""
    hints = get_type_hints(cls)
    if fault := find_misfit(values, {name: hints.get(name) for name in {*values, *required}}):
        raise InputError(f"{path}: is damaged, or of another version ({fault}); write it anew")


def parse(cls, argv=None, inherit=None):
    """Read the command line into an instance of the settings class cls.

    Flags are `--field-name value`; a bool is `--name` or `--no-name`; lists are separated by commas; "none" is None where
    the type allows it. --preset demo|paper picks the values that no flag gives; --help prints all.
    inherit: function of {field: value} of the flags given, returns ({field: value}, file): what an earlier program wrote,
    in place of the preset's values. Raises InputError for a flag that says otherwise, is unknown, missing, ill-typed,
    or outside its limits.
    """

    def fail(message):
        raise InputError(f"{message.removeprefix('argument ')}; see --help")

    parser = argparse.ArgumentParser(" ".join(program()), description=cls.__doc__, allow_abbrev=False)
    parser.error = fail
    if any(f.metadata["demo"] != f.metadata["paper"] for f in fields(cls)):
        parser.add_argument("--preset", choices=("demo", "paper"), default="demo", help="which default values hold")
    base, own = parser.add_argument_group(cls.__base__.__doc__), parser.add_argument_group("This program")
    for f in fields(cls):
        inherited = f.name in getattr(cls.__base__, "__dataclass_fields__", ())
        add_flag(base if inherited else own, f, get_type_hints(cls)[f.name])
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(parser.parse_args(argv)).items()}
    preset = given.pop("preset", "demo")
    known, source = inherit(given) if inherit else ({}, None)
    check_values(cls, known, source)
    for name in sorted(given.keys() & known.keys()):
        if given[name] != known[name]:
            words = f"is {show(given[name])}, and {source} says {show(known[name])}"
            raise InputError(f"{flag_of(name)}: {words}; leave it out, or run the earlier program anew")
    values = {f.name: f.metadata[preset] for f in fields(cls)} | known | given
    missing = [flag_of(name) for name, value in values.items() if value is MISSING]
    if missing:
        raise InputError(f"{missing[0]}: is required; give {' and '.join(missing)}, or see --help")
    return cls(**values)


def add_flag(group, f, kind):
    """Add one field's flag: what it does, its values, and at the end where they come from."""
    demo, paper = show(f.metadata["demo"]), show(f.metadata["paper"])
    values = demo if demo == paper else f"{demo}, paper {paper}"
    words = {"help": f"{f.metadata['help']} ({values}) {f.metadata['source']}".replace("%", "%%"), "default": argparse.SUPPRESS}
    if kind is bool:
        group.add_argument(flag_of(f.name), action=argparse.BooleanOptionalAction, **words)
    elif f.metadata["nargs"]:
        group.add_argument(flag_of(f.name), nargs=f.metadata["nargs"], metavar="TEXT", **words)
    else:
        ending = "|none" if NoneType in get_args(kind) else ",..." if get_origin(kind) is tuple else ""
        words |= {"action": "extend"} if get_origin(kind) is tuple else {}  # given twice: both
        name = name_type(get_args(kind)[0] if ending else kind) + ending
        group.add_argument(flag_of(f.name), type=lambda text: to_value(text, kind), metavar=name, **words)


def to_value(text, kind):
    """Turn a flag's text into a value of its type; argparse.ArgumentTypeError where it is none."""
    options = get_args(kind)
    if NoneType in options:
        return None if text.lower() == "none" else to_value(text, options[0])
    if get_origin(kind) is tuple:
        return tuple(to_value(part.strip(), options[0]) for part in text.split(",")) if text.strip() else ()
    try:
        value = options[options.index(text)] if options else kind(text)
        if (kind is float and not math.isfinite(value)) or (kind is Path and not text):
            raise ValueError
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not {name_type(kind)}") from error
    return value


def name_type(kind):
    """Return a type as --help shows it: "float", or the options of a Literal."""
    return "|".join(get_args(kind)) or kind.__name__.lower()


def expand_sweep(settings, names):
    """Read settings.sweep, ("NAME=VALUE", "VALUE", ...), and return {value: settings of its run in out/NAME_VALUE}.

    names: what may be swept; a name that is no field of the settings changes `out` alone, and its value stays a text.
    Without a sweep {None: settings}. Raises InputError for an unknown name, a wrong value or a repeated one.
    """
    if not settings.sweep:
        return {None: settings}
    name, _, first = settings.sweep[0].partition("=")
    name = name.replace("-", "_")
    if name not in names or not first:
        words = f"is not NAME=VALUE,VALUE,...; NAME is one of {', '.join(names)}"
        raise InputError(f"--sweep: {','.join(settings.sweep)!r} {words}")
    kinds, runs = get_type_hints(type(settings)), {}
    for text in (first, *settings.sweep[1:]):
        try:
            value = to_value(text, kinds.get(name, str))
        except argparse.ArgumentTypeError as error:
            raise InputError(f"--sweep {name}: {error}; write numbers between commas") from error
        if value in runs:
            raise InputError(f"--sweep {name}: {text} is given twice; give it once")
        change = {name: value} if name in kinds else {}
        runs[value] = replace(settings, sweep=(), out=settings.out / f"{name}_{text}", **change)
    return runs


def save_config(run_folder, settings, inputs, data, names):
    """Write run_folder/config.json: resolved settings, versions, path and SHA-256 of each input file, a digest of the data.

    inputs: name -> path of each file that the run starts from (None: not given). data: where the pictures are; names:
    what identifies them, the ids and how they are read and split. Rank 0 writes.
    Raises InputError when the folder holds a trained state or generated images, and a setting that may not change, what
    is in one of the files, the data or the number of processes has changed. Paths may: run folders and data can be moved.
    """
    values = to_plain(vars(settings)) | {"processes": distributed.ranks()}
    files = {name: {"path": str(file), "sha256": sha256(file)} for name, file in inputs.items() if file is not None}
    digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
    files["data"] = {"path": str(data), "sha256": digest}
    path = Path(run_folder) / "config.json"
    started, held = [file.name for name in STARTED for file in path.parent.rglob(name)], is_any_held(run_folder)
    if not settings.resume and (held or "state.pt" in started):
        raise InputError(f"{run_folder}: already holds a run; go on with --resume or choose another folder")
    if started or held:
        before = read_json(path, CONFIG)
        may_change = {f.name for f in fields(settings) if f.metadata["may_change"]}
        for name in [name for name in values if name not in may_change]:
            if name not in before["settings"]:
                raise InputError(f"{path}: is of an earlier version, without {flag_of(name)}; choose another folder")
            old, new = before["settings"][name], values[name]
            moved = isinstance(getattr(settings, name, None), Path) and old is not None
            if old != new and not moved:
                remedy = "resume with the first run's settings or choose another folder"
                raise InputError(f"{path}: {flag_of(name)} was {show(old)} and is now {show(new)}; {remedy}")
        for name, file in files.items():
            first = before["inputs"].get(name, file)
            if first.get("sha256") != file["sha256"]:
                words = f"{flag_of(name) if name in values else name} changed since the first run"
                raise InputError(f"{path}: {words}; resume with what was {first.get('path')} or choose another folder")
        files = before["inputs"] | files
    if distributed.rank() == 0:
        config = {"settings": values, "code": code_version(), "torch": torch.__version__, "inputs": files}
        write_json(path, config, indent=2)


def code_version():
    """Return the package's version, its git commit, and whether files differ from that commit (None: unknown)."""
    command = "git ls-files --error-unmatch emit/__init__.py > /dev/null && git describe --always --dirty --abbrev=40 --exclude='*'"
    done = subprocess.run(command, shell=True, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    commit, _, changed = done.stdout.strip().partition("-")
    return {"version": __version__, "commit": commit or None, "changed": bool(changed) if commit else None}


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
    return json.loads(json.dumps(value, default=str))
