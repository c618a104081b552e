"""Settings: one frozen dataclass at the top of each script, one flag per field, a source for every value.

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        data: Path = setting(source="[choice] your folder", help="the images")             # no default: required
        lr: float = setting(1e-4, "[choice] small model, short run", paper=1e-5, help="learning rate")

    settings = parse(Settings)
"""

import difflib
import hashlib
import json
import math
import operator
import subprocess
import sys
import tomllib
import types
from dataclasses import MISSING, field, fields, replace
from pathlib import Path
from typing import Literal, Union, get_args, get_origin, get_type_hints

import torch

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
ROOT = Path(__file__).resolve().parents[2]


def setting(
    demo=MISSING, source="", *, paper=MISSING, help="", may_change=False, low=None, above=None, high=None, below=None
):
    """Declare a field: its demo value (none: the user must give it), its source, the paper's value where it differs.

    source starts with one of SOURCES; "[choice]" goes on with the reason. may_change: a resumed run may change it.
    low, high (the limit itself is allowed), above, below (it is not): what a number, or each of a tuple, must keep to.
    """
    if not source.startswith(SOURCES):
        raise ValueError(f"source {source!r} must start with one of {SOURCES}, and a choice needs its reason")
    given = {"low": low, "above": above, "high": high, "below": below}
    limits = {name: limit for name, limit in given.items() if limit is not None}
    metadata = {"source": source, "paper": paper, "help": help, "may_change": may_change, "limits": limits}
    return field(default=demo, metadata=metadata)


def parse(cls, argv=None, inherit=None):
    """Read the command line into an instance of the settings class cls.

    inherit: function of {field: value} of the flags given, returns ({field: value}, file): what an earlier program wrote,
    in place of the preset's values. A flag that says otherwise is refused.

    Flags are `--field-name value` or `--field-name=value`; a bool is `--name` or `--no-name`; a tuple is separated by
    commas; "none" is None where the type allows it. --preset demo|paper picks the values that no flag gives; --help
    prints all.
    Raises InputError for an unknown, abbreviated, repeated, missing or ill-typed flag, and a number outside its limits.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--help" in argv or "-h" in argv:
        print(describe(cls))
        raise SystemExit(0)
    hints = get_type_hints(cls)
    given = _read_flags(argv, {"preset": Literal["demo", "paper"], **hints})
    preset = given.pop("preset", "demo")
    known, source = inherit(given) if inherit else ({}, None)
    for name in sorted(given.keys() & known.keys()):
        if given[name] != known[name]:
            words = f"is {_show(given[name])}, and {source} says {_show(known[name])}"
            raise InputError(f"{_flag(name)}: {words}; leave it out, or run the earlier program anew")
    values = {f.name: {**known, **given}.get(f.name, _preset_value(f, preset)) for f in fields(cls)}
    missing = [_flag(name) for name, value in values.items() if value is MISSING]
    if missing:
        raise InputError(f"{missing[0]}: is required; give {' and '.join(missing)}, or see --help")
    for f in fields(cls):
        _check_limits(_flag(f.name), values[f.name], f)
    return cls(**values)


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
    kind = get_type_hints(type(settings)).get(name, str)
    known = {f.name: f for f in fields(settings)}
    runs = {}
    for text in (first, *settings.sweep[1:]):
        value = _convert(f"--sweep {name}", text, kind)
        if name in known:
            _check_limits(f"--sweep {name}", value, known[name])
        if value in runs:
            raise InputError(f"--sweep {name}: {text} is given twice; give it once")
        change = {name: value} if hasattr(settings, name) else {}
        runs[value] = replace(settings, sweep=(), out=settings.out / f"{name}_{text}", **change)
    return runs


def describe(cls):
    """Return the --help text: each setting with its type, demo value, paper value, source and meaning."""
    hints = get_type_hints(cls)
    rows = [("setting", "type", "demo", "paper", "source, meaning")]
    rows.append(("--preset", "demo|paper", "demo", "paper", "which of the two columns holds where no flag is given"))
    for f in fields(cls):
        demo, paper = (_show(_preset_value(f, preset)) for preset in ("demo", "paper"))
        meaning = f"{f.metadata['source']}: {f.metadata['help']}".rstrip(": ")
        rows.append((_flag(f.name), _type_name(hints[f.name]), demo, paper, meaning))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row[:4], widths, strict=True)), row[4]]) for row in rows]
    lead = (cls.__doc__ or "").strip()
    usage = f"usage: {' '.join(program())} [--preset demo|paper] [--setting value ...]"
    return "\n".join([usage, "", lead, "", *lines, "", "flag: --name turns it on, --no-name off. Lists: a,b,c."])


def save_config(run_folder, settings, inputs, cases):
    """Write run_folder/config.json: resolved settings, versions, path and SHA-256 of each input file, a digest of the cases.

    inputs: name -> path of each file that the run starts from (None: not given). cases: the set's. Rank 0 writes.
    Raises InputError when the folder holds a trained state or generated images, and a setting that may not change, what
    is in one of the files, or the ids of the cases have changed. Paths may: run folders and data can be moved.
    """
    values = {f.name: to_plain(getattr(settings, f.name)) for f in fields(settings)}
    files = {name: {"path": str(file), "sha256": sha256(file)} for name, file in inputs.items() if file is not None}
    files["data"] = {"path": str(settings.data), "sha256": _digest(case.id for case in cases), "cases": len(cases)}
    path = Path(run_folder) / "config.json"
    if path.exists() and any(file for name in STARTED for file in path.parent.rglob(name)):
        _check_unchanged(path, settings, values, files)
    if distributed.rank() > 0:
        return
    config = {"settings": values, "code": code_version(), "torch": torch.__version__, "inputs": files}
    write_json(path, config, indent=2)


def _digest(words):
    """Return the SHA-256 of words, in any order."""
    return hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()


def _check_unchanged(path, settings, values, files):
    before = json.loads(path.read_text())
    for f in fields(settings):
        old, new = before["settings"].get(f.name), values[f.name]
        moved = isinstance(getattr(settings, f.name), Path) and old is not None
        if old != new and not moved and not f.metadata["may_change"]:
            remedy = "resume with the first run's settings or choose another folder"
            raise InputError(f"{path}: {_flag(f.name)} was {_show(old)} and is now {_show(new)}; {remedy}")
    for name, file in files.items():
        if before["inputs"].get(name, file)["sha256"] != file["sha256"]:
            words = f"{_flag(name) if name in values else name} changed since the first run"
            first = before["inputs"][name]["path"]
            raise InputError(f"{path}: {words}; resume with what was {first} or choose another folder")


def code_version():
    """Return the package's version, its git commit, and whether files differ from that commit (None: unknown)."""
    project = ROOT / "pyproject.toml"
    version = tomllib.loads(project.read_text())["project"]["version"] if project.exists() else None
    commit = _git("rev-parse", "HEAD")
    changed = None if commit is None else bool(_git("status", "--porcelain", "--untracked-files=no"))
    return {"version": version, "commit": commit, "changed": changed}


def _git(*arguments):
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _read_flags(argv, hints):
    given, words = {}, iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        name, switch = _find(flag, hints)
        if name in given:
            raise InputError(f"{flag}: given twice; give it once")
        if hints[name] is bool:
            if equals:
                raise InputError(f"{flag}: takes no value; write {_flag(name)} or --no-{_flag(name)[2:]}")
            given[name] = switch
            continue
        value = value if equals else next(words, None)
        if value is None or (not equals and value.startswith("--")):
            raise InputError(f"{flag}: needs a value; write {flag} {_type_name(hints[name])}")
        given[name] = _convert(flag, value, hints[name])
    return given


def _find(flag, hints):
    """Return the field that a flag names, and False for --no-name."""
    known = {_flag(name): (name, True) for name in hints}
    known |= {f"--no-{_flag(name)[2:]}": (name, False) for name, kind in hints.items() if kind is bool}
    if flag in known:
        return known[flag]
    if not flag.startswith("-"):
        raise InputError(f"{flag}: is no flag; write --setting value (see --help)")
    longer = [name for name in known if name.startswith(flag) and len(flag) > 2]
    near = longer or difflib.get_close_matches(flag, known, n=1, cutoff=0.6)
    raise InputError(f"{flag}: unknown setting; {f'did you mean {near[0]}?' if near else 'see --help'}")


def _convert(flag, text, kind):
    """Turn a flag's text into a value of its type."""
    members, options = _optional(kind), get_args(kind)
    if members is not None:
        return None if text.lower() == "none" else _convert(flag, text, members)
    if get_origin(kind) is Literal:
        if text not in options:
            near = difflib.get_close_matches(text, options, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(options)}"
            raise InputError(f"{flag}: {text!r} is not one of {', '.join(options)}; {hint}")
        return text
    if get_origin(kind) is tuple:
        parts = [part.strip() for part in text.split(",")] if text.strip() else []
        if options[-1] is not Ellipsis and len(parts) != len(options):
            raise InputError(f"{flag}: {text!r} has {len(parts)} values; give {len(options)}, separated by commas")
        return tuple(_convert(flag, part, options[0]) for part in parts)
    try:
        value = kind(text)
        if (kind is float and not math.isfinite(value)) or (kind is Path and not text):
            raise ValueError
    except ValueError as error:
        raise InputError(f"{flag}: {text!r} is not {_type_name(kind)}; write {flag} {_type_name(kind)}") from error
    return value


def _check_limits(flag, value, f):
    """Refuse a number outside the field's limits, alone or in a tuple; None is no number."""
    limits = f.metadata["limits"].items()
    for number in value if isinstance(value, tuple) else [] if value is None else [value]:
        if not all(LIMITS[name][0](number, limit) for name, limit in limits):
            words = " and ".join(f"{LIMITS[name][1]} {limit}" for name, limit in limits)
            raise InputError(f"{flag}: is {_show(number)}; give {words}")


def _optional(kind):
    """Return X where kind is X | None, else None."""
    if get_origin(kind) not in (Union, types.UnionType):
        return None
    return next(member for member in get_args(kind) if member is not type(None))


def _type_name(kind):
    if kind is bool:
        return "flag"
    if _optional(kind) is not None:
        return f"{_type_name(_optional(kind))}|none"
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return ",".join("..." if member is Ellipsis else _type_name(member) for member in get_args(kind))
    return kind.__name__.lower()


def _preset_value(f, preset):
    paper = f.metadata["paper"]
    return paper if preset == "paper" and paper is not MISSING else f.default


def _flag(name):
    return "--" + name.replace("_", "-")


def _show(value):
    if value is MISSING:
        return "required"
    if isinstance(value, tuple | list):
        return ",".join(map(str, value)) or '""'
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def to_plain(value):
    """Return a setting's value as JSON has it."""
    if isinstance(value, tuple):
        return [to_plain(member) for member in value]
    return str(value) if isinstance(value, Path) else value
