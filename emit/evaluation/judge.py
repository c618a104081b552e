"""No label that lies: segmenters of other real cases look for the asked label in every generated image (--keep-best)."""

from dataclasses import replace

import numpy as np

from emit.arms import ARMS
from emit.claims import claim
from emit.data.cache import TrainingImages
from emit.errors import InputError
from emit.evaluation.illustrate import run_folder
from emit.evaluation.metrics import score_overlap
from emit.evaluation.scoring import find_labels
from emit.seeds import seed_from

JUDGE = ARMS["nnunet"]  # [choice] few cases need the strongest classical stack


def score_label(found, label) -> float:
    """Return the Dice of two label maps, mean over the classes in either; 1 where both are empty."""
    classes = np.setdiff1d(np.union1d(found, label), 0)
    return float(np.mean([score_overlap(found == k, label == k)["dice"] for k in classes])) if len(classes) else 1.0


def keep_best(fold, settings, train) -> str:
    """Leave out the generated images whose label is found worst, and say what that changed.

    Cross-fitted within the fold's training part: two segmenters learn half of its groups each, and an image is judged by the
    one that did not learn its case, by `score_label`. train: `train_seg.train_segmenter`.
    """
    groups = sorted({case.group for case in fold.training})
    if len(groups) < 2:
        raise InputError(f"--keep-best: fold {fold.number} has one group of training cases, so no others to judge by; leave it out")
    halves = [[case for case in fold.training if case.group in groups[half::2]] for half in (0, 1)]
    networks = []
    for half, learned in enumerate(halves):
        folder = run_folder(settings.out, "judge", fold.number, half)
        seed = seed_from(settings.seed, "judge", fold.number, half)
        with claim(folder):
            networks.append(train(JUDGE, replace(fold, training=learned), settings, folder, seed))
    pairs, scores, real = list(fold.generated.pairs()), {}, []
    for half, network in enumerate(networks):
        others = TrainingImages(halves[1 - half], settings.size)
        for number in range(len(others)):
            image, mask = others.read([number])
            real.append(score_label(find_labels(network, image), mask[0].numpy()))
        unseen = {case.id for case in others.cases}
        for number, (case, image, mask) in enumerate(pairs):
            if case in unseen:
                scores[number] = score_label(find_labels(network, image), mask)
    found, areas = np.array([scores[number] for number in range(len(pairs))]), np.array([(mask > 0).mean() for *_, mask in pairs])
    kept = fold.generated.keep(found, settings.keep_best)
    parts = [f"{found[part].mean():.2f}, {(areas[part] == 0).mean():.0%} without a label, labelled area {areas[part].mean():.1%}"
             for part in (slice(None), kept)]  # fmt: skip
    return (
        f"Judged, fold {fold.number}: {len(kept)} of {len(pairs)} generated images are used, of each case those in which "
        f"segmenters of other real cases find the label best. All: Dice {parts[0]}. Used: Dice {parts[1]}. "
        f"Real images of the same cases: Dice {np.mean(real):.2f}."
    )
