"""The published deviations that can be switched on, each alone, to measure what it does: --compat diffboost:NAME,NAME,...

Each belongs to one program and is off by default; docs/paper.md says what stands in its place. The names that are on
are in the generator's manifest and stamped on the report and on every figure; config.json holds the words of the flag.
"""

from emit.errors import InputError

DEVIATIONS = {
    "train_seg.py": ("select_on_test", "no_shuffle", "fake_pixel", "mix_logits"),
    "emit.generate": ("one_seed", "gray_sketch"),
}


def read_compat(words, program):
    """Return the names that the words of --compat switch on in a program of DEVIATIONS, sorted; "diffboost": all it has.

    The other program's names may stand beside its own: one flag serves both. Raises InputError for an unknown name.
    """
    named, own = {word.removeprefix("diffboost:") for word in words}, DEVIATIONS[program]
    for name in sorted(named - {"diffboost", *sum(DEVIATIONS.values(), ())}):
        raise InputError(f"--compat: {name} is unknown; choose from diffboost, {', '.join(own)}")
    return tuple(sorted(own if "diffboost" in named else named & set(own)))
