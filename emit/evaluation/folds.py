"""The folds of the comparison: which cases learn, select and are tested, in the set itself and in every set of --test."""

from dataclasses import dataclass

import numpy as np
import torch

from emit.data.cache import TrainingImages
from emit.data.similarity import content_hash
from emit.data.splits import select
from emit.dataset import LabelledSet, open_test
from emit.errors import InputError
from emit.generated import Generated
from emit.ledger import Ledger, join


@dataclass(frozen=True)
class Fold:
    """What the arms of a fold share: the set, lists of its cases, the generated images and the oracle (None: there are none)."""

    number: int
    labelled: LabelledSet
    training: list
    validation: list
    tests: dict  # {"": the fold's own test part, name of a --test set: all its cases}
    generated: Generated | None
    oracle: "Oracle | None" = None


class Oracle:
    """Further real labelled images where generated ones would be drawn: what perfect ones could be worth."""

    def __init__(self, cases: list, size: int):
        self.pictures = TrainingImages(cases, size)
        self.ledger = Ledger().add("oracle", np.array([content_hash(case.image) for case in cases], np.uint64))

    def draw(self, cases, rng):
        """Draw an image for each of B cases, whichever they are: (B, 1, S, S) in [-1, 1] and masks (B, S, S)."""
        return self.pictures.read(torch.randint(len(self.pictures), (len(cases),), generator=rng).tolist())


def name_tests(settings) -> dict:
    """Return {name: folder} of every --test: what its results, test_<folder>, are called."""
    named = {f"test_{path.resolve().name}": path for path in settings.test}
    if len(named) < len(settings.test):
        raise InputError(f"--test: two folders end in one name, of {', '.join(map(str, settings.test))}; rename one")
    return named


def open_sets(settings, labelled) -> dict[str, LabelledSet]:
    """Return {"": the labelled set, name: the same with the cases of a --test folder as the test part of every fold}."""
    if not settings.test and not any(split.test for split in labelled.splits):
        raise InputError(f"{labelled.about.data}: has no test part; give --test, or two folds or more to emit.dataset")
    return {"": labelled} | {name: open_test(folder, labelled, name) for name, folder in name_tests(settings).items()}


def open_folds(settings, sets) -> list[Fold]:
    """Return the folds, after looking for too few cases and for leaks. sets: of `open_sets`."""
    labelled, folds, oracle = sets[""], [], None
    if settings.oracle is not None:
        further = open_test(settings.oracle, labelled, "oracle")
        oracle = Oracle(select(further.cases, further.splits[0].test), settings.size)
    for number, split in enumerate(labelled.splits):
        training, validation = labelled.training(number), select(labelled.cases, split.validation)
        tests = {name: select(one.cases, one.splits[number].test) for name, one in sets.items()}
        generated = None
        if settings.generated is not None:
            generated = Generated(settings.generated / f"fold{number}", settings.n)
            generated.ledger.refuse(tests[""], generated.folder)
        if oracle is not None:
            oracle.ledger.refuse([*training, *validation, *tests[""]], settings.oracle)
        if "select_on_test" in settings.deviations:
            validation = tests[""]
        folds.append(Fold(number, labelled, training, validation, tests, generated, oracle))
    if len(sets) > 1:  # no fold learns from, selects on or generates from a case of --test
        seen = {case.id: case for fold in folds for case in (*fold.training, *fold.validation)}
        hashes = np.array([content_hash(case.image) for case in seen.values()], np.uint64)
        images = [source.ledger for fold in folds for source in (fold.generated, fold.oracle) if source is not None]
        ledger = join([Ledger().add("the cases of training and validation", hashes), *images])
        for name, cases in folds[0].tests.items():
            ledger.refuse(cases if name else [], name)
    return folds
