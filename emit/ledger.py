"""The leak ledger: which pictures a checkpoint, and every checkpoint it came from, has seen.

A picture is recognised by its content alone (`emit.data.similarity.content_hash`), 8 bytes each. A header names a list of
hashes by its SHA-256; the list lies in ledger/<SHA-256>.npy, in the folder of the weights or the one above, once for all
checkpoints there (in a diffusers folder: inside it). So a header stays short, whatever was seen, and run folders can be moved.
"""

import hashlib
import io
import re
from pathlib import Path

import numpy as np

from emit.data.similarity import content_hash
from emit.errors import InputError
from emit.files import find_misfit, read_json, write_bytes

ANCESTRY = [{"stage": str, "cases": range(2**40), "hashes": str}]


class Ledger:
    """entries: dicts of stage, cases (how many different pictures) and hashes (the SHA-256 of their list).

    lists: {SHA-256: the bytes of its .npy file}.
    No entry means that nothing is known, as of public weights; not that nothing was seen.
    """

    def __init__(self, entries=(), lists=None):
        self.entries, self.lists = list(entries), dict(lists or {})

    @property
    def header(self):
        """What a checkpoint's header holds: {"ancestry": entries}."""
        return {"ancestry": self.entries}

    def add(self, stage: str, hashes) -> "Ledger":
        """Return a ledger with one entry more.

        hashes: int64 or uint64, an array or tensor; 0 stands for a picture that was not read and is left out.
        """
        found = np.unique(np.asarray(hashes).view(np.uint64))
        found = found[found != 0]
        memory = io.BytesIO()
        np.save(memory, found)
        digest = hashlib.sha256(memory.getvalue()).hexdigest()
        entry = {"stage": stage, "cases": len(found), "hashes": digest}
        return join([self, Ledger([entry], {digest: memory.getvalue()})])

    def write(self, folder):
        """Write the lists that folder/ledger does not hold yet."""
        for digest, content in self.lists.items():
            path = Path(folder) / "ledger" / f"{digest}.npy"
            if not path.exists():
                write_bytes(path, content)

    def find(self, cases: list) -> list[tuple[str, str]]:
        """Return (case id, stage) for every case whose picture was seen.

        Blank pictures are all alike, so they are no leak. A near-duplicate, or a slice read with another window, channel
        or axis, is another picture and is not found.
        """
        images = (case.image for case in cases)
        wanted = np.array([content_hash(image) if np.ptp(image) else 0 for image in images], np.uint64)  # 0: blank
        leaks = []
        for entry in self.entries:
            seen = np.isin(wanted, np.load(io.BytesIO(self.lists[entry["hashes"]])))
            leaks += [(cases[number].id, entry["stage"]) for number in np.flatnonzero(seen)]
        return leaks

    def refuse(self, cases: list, path):
        """Raise InputError, about path, where one of these test cases was seen."""
        leaks = self.find(cases)
        if leaks:
            named = ", ".join(f"{case} in {stage}" for case, stage in leaks[:10])
            words = f"{len(leaks)} test cases were seen in training, such as {named}"
            raise InputError(f"{path}: {words}; train without the test cases, on the same splits, or test on others")


def join(ledgers):
    """Return one ledger with the entries of all, each once."""
    joined = Ledger()
    for ledger in ledgers:
        joined.entries += [entry for entry in ledger.entries if entry not in joined.entries]
        joined.lists |= ledger.lists
    return joined


def open_ledger(path: Path | None, header: dict) -> Ledger:
    """Return the Ledger of a file with this header; an empty one without a file.

    Raises InputError where a list is missing, damaged or another.
    """
    path, lists = Path(path or ".").absolute(), {}
    entries = header.get("ancestry", [])
    damaged = find_misfit(entries, ANCESTRY) or not all(re.fullmatch("[0-9a-f]{64}", entry["hashes"]) for entry in entries)
    if damaged:
        raise InputError(f"{path}: its ancestry is damaged, so leaks cannot be ruled out; write the file anew")
    entries = [{name: entry[name] for name in ("stage", "cases", "hashes")} for entry in entries]
    for name, count in {(entry["hashes"], entry["cases"]) for entry in entries}:
        places = [folder / "ledger" / f"{name}.npy" for folder in (path, path.parent, path.parent.parent)]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise InputError(f"{places[1]}: is missing, and tells what {path.name} was trained on; copy it along")
        lists[name] = file.read_bytes()
        if not _is_list(lists[name], name, count):
            raise InputError(f"{file}: is damaged, so leaks cannot be ruled out; copy it from where it was written")
    return Ledger(entries, lists)


def _is_list(content, digest, count):
    """Tell whether these bytes are a list of so many hashes, and the one of this SHA-256."""
    try:
        seen = np.load(io.BytesIO(content))
    except Exception:  # what a damaged file raises is anything
        return False
    return hashlib.sha256(content).hexdigest() == digest and seen.dtype == np.uint64 and seen.shape == (count,)


def read(path: Path) -> Ledger:
    """Return the Ledger of a JSON file, such as the generator's fold<k>/ledger.json."""
    return open_ledger(path, read_json(path, {"ancestry": list}, "generate anew, or leaks cannot be ruled out"))
