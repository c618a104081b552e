"""The chain of runs behind a file, by its header's ledger alone, and by config.json where the file lies in its run folder.

A run's input is a parent, and followed, where a file of its SHA-256 lies at its path, or beside the run folder if both were
moved, and the ledger says that the file has seen all that the input had. What no file says is unknown.
"""

import json
from contextlib import suppress
from pathlib import Path

from emit.checkpoints import read
from emit.checkpoints.reader import read_tensors
from emit.errors import InputError
from emit.files import read_json, sha256
from emit.ledger import ANCESTRY
from emit.training.settings import CONFIG, show

DEPTHS = {"model": 0, "hed": 0, "controlnet": 1, "manifest": 1, "segmenter": 2}  # folders between a file and its run's config.json


def describe_lineage(path: Path) -> str:
    """Return Markdown: a section for the file, and one for each file that it came from, as far as they are found."""
    sections, waiting, known = [f"# Model card: {path.name}"], [path], set()
    while waiting:
        path = waiting.pop(0)
        digest, header = sha256(path), read_header(path)
        if digest in known:
            continue
        ancestry = header.pop("ancestry", [])
        run, config = find_run(path) if ancestry else (None, {})  # public files have no run
        code = json.dumps(config["code"]) if "code" in config else "unknown"
        settings = ", ".join(f"{name} {show(value)}" for name, value in config.get("settings", {}).items()) or "unknown"
        lines = [f"## {path.name}", "", f"- file: {path}, SHA-256 {digest}"]
        lines += [f"- pictures in {one['stage']}: {one['cases']:,}, list {one['hashes']}" for one in ancestry] or [
            "- pictures: unknown"
        ]
        lines += [f"- {name}: {json.dumps(header[name])}" for name in sorted(header)]
        lines += [f"- run: {run or 'unknown'}", f"- code, at the last start: {code}"]
        lines += [f"- settings: {'as above' if run in known else settings}"]
        for name, given in config.get("inputs", {}).items():
            found = find_input(run, given) if name != "data" else None  # the SHA-256 of "data" is that of names
            parent = found and found.is_file() and all(one in ancestry for one in read_header(found).get("ancestry", []))
            waiting += [found] if parent else []
            end = "" if found or name == "data" else "; not found as it was, so what made it is unknown"
            kind = "parent" if parent else "input"
            lines += [f"- {kind} {name}: {given.get('path')}, SHA-256 {given.get('sha256')}{end}"]
        sections += ["\n".join(lines)]
        known |= {digest, run}
    return "\n\n".join(sections) + "\n"


def read_header(path):
    """Return our header of a file or diffusers folder, {} where it has none; a manifest's is the ledger.json beside it."""
    if path.name == "manifest.jsonl":
        return {"ancestry": read_json(path.with_name("ledger.json"), {"ancestry": ANCESTRY})["ancestry"]}
    if path.is_dir():
        return read(path).header
    return read_tensors(path)[1] if path.suffix == ".safetensors" else {}


def find_run(path):
    """Return the config.json of the run folder that a file of ours lies in, and what it says; (None, {}): unknown."""
    if path.stem in DEPTHS:
        file = path.parent.joinpath(*[".."] * DEPTHS[path.stem], "config.json").resolve()
        with suppress(InputError):  # there is none, or it is another program's
            return file, read_json(file, CONFIG)
    return None, {}


def find_input(run, given):
    """Return where an input of a run lies now, None where nothing there has its SHA-256."""
    stated = Path(given.get("path", ""))
    places = [stated, *(run.parents[1].joinpath(*stated.parts[-depth:]) for depth in (2, 3))]
    return next((place for place in places if place.exists() and sha256(place) == given.get("sha256")), None)
