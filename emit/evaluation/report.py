"""The report of the comparison: table on the screen, per_case.csv, summary.json, figures/ and one page, report.html."""

import json
from dataclasses import asdict, replace

from emit.arms import ARMS, CLASSICAL, all_real
from emit.compat import read_compat
from emit.evaluation.illustrate import illustrate
from emit.evaluation.metrics import KINDS, summarise
from emit.evaluation.page import write_page
from emit.evaluation.statistics import LEVEL, compare_arms, conclude, describe, share_headroom, tabulate, verdict
from emit.files import write_json, write_table
from emit.generated import read_manifest
from emit.training.settings import code_version

BASELINE, ALL = "baseline", "all classes"
NOTHING = "No arm with generated images was run: nothing is concluded about generated images."


def write_report(settings, labelled, rows, fidelity=(), beside_real=(), judged=()) -> dict:
    """Write and print it all; return what summary.json holds. settings: of train_seg.py.

    rows: dicts with arm, fold, seed, case, and what `score_case` returns; fidelity: such rows of generated images against the
    masks asked for; beside_real: of `describe_generated`, judged: of `keep_best`, one per fold.
    """
    write_table(settings.out / "per_case.csv", rows)
    deviations = ", ".join(find_deviations(settings))
    results = {
        "settings": asdict(settings),
        "code": code_version(),
        "stamp": f"published deviations on: {deviations}" if deviations else "",
        **compute(rows, labelled.cases),
        "fidelity": describe_fidelity(fidelity),
        "beside_real": {"folds": list(beside_real), "sentences": [*judged, *describe_beside_real(beside_real)]},
    }
    plain = json.loads(json.dumps(results, default=str), parse_constant=lambda name: None)  # JSON has no infinity
    write_json(settings.out / "summary.json", plain, indent=1)
    tables = make_tables(results)
    print(f"\n{settings.out}: tested on {labelled.about.data}\n{results['stamp']}", align(tables["main"]), "", sep="\n")
    print(align(tables["kinds"]), "", sep="\n")
    print(*results["conclusion"], *results["fidelity"]["sentences"], *results["beside_real"]["sentences"], sep="\n")
    figures = illustrate(rows, results, labelled, settings)
    write_page(settings.out / "report.html", results, tables, figures, labelled, settings)
    return results


def find_deviations(settings) -> list[str]:
    """Return the names of the published deviations that are on: this run's and those of the generator that it used."""
    images = [] if settings.generated is None else read_manifest(settings.generated / "fold0")
    return [*read_compat(settings.compat, "train_seg.py"), *((images[0].get("compat") or []) if images else [])]


def compute(rows, cases) -> dict:
    """Return all numbers of the report; its conclusion is about the arms with generated images.

    Two families of tests, each with Holm's correction: these arms against the baseline and their references; the others.
    """
    names, seeds, table = tabulate(rows)
    arms = {}
    for arm, values in table.items():
        mine = [row for row in rows if row["arm"] == arm]
        scores = summarise([row | {"class": ALL} for row in mine]) | summarise(mine)
        arms[arm] = {"scores": scores, "dice": describe(values)}
    group_of = {case.volume or case.id: case.group for case in cases}
    groups = [group_of[name] for name in names]
    # The real arm of the same augmentation, "deepstack" of "ours+deepstack"; of a real arm the baseline
    references = {arm: BASELINE if ARMS[arm].real is all_real else ARMS[arm].augmentation for arm in table}
    generated = [arm for arm in table if ARMS[arm].source == "generated"]
    others = [arm for arm in table if arm not in (BASELINE, *generated)]
    # The highest mean on these same scores: shown, not compared
    best = max((arm for arm in CLASSICAL if arm in table), key=lambda arm: arms[arm]["dice"]["mean"], default=None)
    pairs = dict.fromkeys((arm, other) for arm in generated for other in (BASELINE, references[arm]) if other in table)
    compared = compare_arms(table, pairs, groups)
    compared += compare_arms(table, [(arm, references[arm]) for arm in others if references[arm] in table], groups)
    name_of = {arm: name for name, arm in ARMS.items()}
    trios = [(arm, references[arm], name_of[replace(ARMS[arm], source="oracle")]) for arm in generated]
    headroom = [share_headroom(table, *trio, groups) for trio in trios if table.keys() >= {*trio}]
    conclusion = [conclude(c) for c in compared if c["arm"] in generated] + [h["sentence"] for h in headroom]
    return {
        "arms": arms,
        "best_classical": best,
        "generated_arms": generated,
        "comparisons": [c | {"verdict": verdict(c), "sentence": conclude(c)} for c in compared],
        "headroom": headroom,
        "conclusion": conclusion or [NOTHING],
        "classes": list(dict.fromkeys(row["class"] for row in rows)),
        "units": sorted({row["unit"] for row in rows}),
        "seeds": len(seeds),
        "folds": len({row["fold"] for row in rows if row["case"] == names[0]}),  # whose segmenters each case was tested by
        "cases": len(names),
        "groups": len(set(groups)),
    }


def describe_fidelity(rows) -> dict:
    """Summarise mask fidelity by class: {"scores", "sentences"}; no sentence where nothing was measured."""
    summary, sentences = summarise(rows), []
    count = len({(row["fold"], row["case"]) for row in rows})  # whatever the number of seeds
    for name, entry in summary.items():
        dice = "{mean:.3f} +- {spread:.3f}".format_map(entry["scores"]["dice"]).replace("nan", "-")
        sentences.append(
            f"Mask fidelity, {name}: the baseline's segmenters, which learned from the real images of the same cases, find the "
            f"mask that was asked for in {count} generated images with Dice {dice}."
        )
    return {"scores": summary, "sentences": sentences}


def describe_beside_real(folds) -> list[str]:
    """Say how near the generated images are to training images, and how different among themselves."""
    return [
        f"Copies, fold {fold}: the nearest training image correlates with {found['images']} generated images at "
        f"{found['correlation']:.2f} in the median and {found['highest']:.2f} at most, with unseen real ones at "
        f"{found['held_out']:.2f}; it is the image's own source for {found['own_source']:.0%}; "
        f"{found['flagged']} are nearer than 99 % of the unseen. Finest octave: {found['texture']:.2f} of the real images' power."
        + (" The pictures of --tissue, whose edges and texture it may have, are not compared." if found["tissue"] else "")
        + (f" Diversity within a case {found['diversity']:.2f}." if found["diversity"] is not None else "")
        for fold, found in enumerate(folds)
    ]


def make_tables(results) -> dict[str, list[list[str]]]:
    """Return {name: rows of strings, the header first}: main, kinds, comparisons and, by arm and class, classes."""
    unit = "/".join(results["units"])
    scores = ["IoU", "precision", "recall", f"HD95 [{unit}]", f"ASSD [{unit}]", "NSD"]
    numbers = ["difference", f"{100 * (1 - LEVEL):g} % interval", "p (Holm)"]
    main, kinds = [["arm", "Dice", *numbers, *scores]], [["arm", *KINDS, "of"]]
    comparisons, classes = [["arm", "against", *numbers, "p", "detectable", "verdict"]], [["arm", "class", "Dice", *scores]]
    to_baseline = dict.fromkeys(results["arms"], [""] * 3)
    for c in results["comparisons"]:
        numbers = [f"{c['difference']:+.4f}", f"{c['low']:+.4f} to {c['high']:+.4f}", f"{c['p_adjusted']:.2g}"]
        comparisons.append([c["arm"], c["reference"], *numbers, f"{c['p']:.2g}", f"{c['detectable']:.4f}", c["verdict"]])
        if c["reference"] == BASELINE:
            to_baseline[c["arm"]] = numbers
    for arm, entry in results["arms"].items():
        pooled, dice = entry["scores"][ALL], entry["dice"]
        spread = f"{dice['mean']:.4f} +- {dice['case_spread']:.4f}".replace("nan", "-")  # of one case there is none
        main.append([arm, spread, *to_baseline[arm], *show_scores(pooled["scores"])])
        kinds.append([arm, *(str(pooled[key]) for key in (*KINDS, "cases"))])
        for name in results["classes"]:
            scores = entry["scores"][name]["scores"]
            classes.append([arm, name, f"{scores['dice']['mean']:.3f}", *show_scores(scores)])
    return {"main": main, "kinds": kinds, "comparisons": comparisons, "classes": classes}


def show_scores(scores) -> list[str]:
    """Return IoU, precision, recall (means), HD95, ASSD (medians, in brackets how many are infinite) and NSD as strings."""
    distances = [f"{scores[name]['median']:.2f} ({scores[name]['infinite']} inf)" for name in ("hd95", "assd")]
    iou, precision, recall, nsd = (f"{scores[name]['mean']:.3f}" for name in ("iou", "precision", "recall", "nsd"))
    return [iou, precision, recall, *distances, nsd]


def align(table) -> str:
    """Return the table as text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in table)
