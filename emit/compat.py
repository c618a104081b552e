"""The published habits that can be switched on, each alone, to measure what it does: --compat diffboost:NAME,NAME,...

Each belongs to one program and is off by default; docs/paper.md says what stands in its place. The names that are on
are kept in the generator's manifest and stamped on the report and on every figure; config.json keeps the words given.
"""

from emit.errors import InputError

HABITS = {
    "train_seg.py": ("select_on_test", "no_shuffle", "fake_pixel", "mix_logits"),
    "emit.generate": ("one_seed", "gray_sketch"),
}


def read_compat(words, program):
    """Return the habits that the words of --compat switch on in a program of HABITS: a sorted tuple of names.

    "diffboost" is all that the program has. Raises InputError for an unknown name or another program's.
    """
    named = {name for word in words for name in word.removeprefix("diffboost:").split("|")}
    own = HABITS[program]
    for name in sorted(named - {"diffboost", *own}):
        owner = next((other for other, habits in HABITS.items() if name in habits), None)
        remedy = f"give it to {owner}" if owner else f"choose from diffboost, {', '.join(own)}"
        raise InputError(f"--compat: {name} is {'not for this program' if owner else 'unknown'}; {remedy}")
    return tuple(sorted(own if "diffboost" in named else named))
