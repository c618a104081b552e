"""Look at a folder of images before anything learns from it: errors, which every program refuses, and warnings.

python -m emit.data check FOLDER [--labels 1:spleen and the other flags of emit.dataset]
"""

import sys

from emit import errors
from emit.data.check import examine, warn_of_differences, warn_of_files, warn_of_folds
from emit.dataset import SetSettings, find_cases, split_cases
from emit.training.settings import parse


def main():
    """Print a line about each error and warning, and their numbers; exit with code 2 where there is an error."""
    word, *words = sys.argv[1:] or [""]
    if word != "check" or not words:
        raise errors.InputError("emit.data: knows one word; give python -m emit.data check FOLDER")
    about = parse(SetSettings, words if words[0] == "--help" else ["--data", *words])
    faults, cases, warnings = errors.Faults(), [], []
    with faults.of(about.data):
        found = find_cases(about, faults)
        looks = examine(found.cases, faults)
        cases = [case for case in found.cases if case.id in looks]
        warnings += warn_of_files(cases, looks, found.classes, about.duplicates if found.classes else 1)
        warnings += warn_of_differences(cases, looks)
        if found.classes and cases:
            _, splits = split_cases(cases, looks, about, faults.values())
            warnings += warn_of_folds(splits, looks, found.classes)
    for line in (*(f"error: {line}" for line in faults), *(f"warning: {line}" for line in warnings)):
        print(" ".join(line.split()))
    print(f"{about.data}: {len(cases)} cases can be read; {len(faults)} errors, {len(warnings)} warnings")
    sys.exit(2 if faults else 0)


if __name__ == "__main__":
    errors.run(main, again="")
