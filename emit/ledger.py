"""The leak ledger: which cases a checkpoint, and every checkpoint it came from, has seen.

A case is recognised by its content alone. Ids only name what was found: "0001" of another data set is another case.
"""

from emit.data.splits import content_hash


def record(stage, cases, ancestors=()):
    """Return a checkpoint header's {"ancestry": [...]}: the ancestors' entries and one for this stage.

    ancestors: headers of the checkpoints that this one started from. An entry is {"stage", "cases": {id: content hash}}.
    """
    inherited = []
    for header in ancestors:
        inherited += [entry for entry in header.get("ancestry", []) if entry not in inherited]
    return {"ancestry": [*inherited, {"stage": stage, "cases": {case.id: content_hash(case) for case in cases}}]}


def find_leaks(header, cases):
    """Return (case id, stage, id under which it was seen) for every case whose content the checkpoint has seen.

    Content is the picture as it was read: a near-duplicate, or a slice read with another window, channel or axis, is
    not found.
    """
    leaks = []
    for case in cases:
        fingerprint = content_hash(case)
        for entry in header.get("ancestry", []):
            leaks += [(case.id, entry["stage"], name) for name, seen in entry["cases"].items() if seen == fingerprint]
    return leaks
