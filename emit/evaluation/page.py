"""The report as one HTML page: plain, self-contained, readable on a phone; figures are inside it."""

import base64
import json
from dataclasses import MISSING, fields
from html import escape
from pathlib import Path

from emit.data.splits import select
from emit.files import write_atomic
from emit.ledger import find_leaks

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ccc; }
p, li { max-width: 46rem; overflow-wrap: break-word; }
.wide { overflow-x: auto; } .stamp { border: 2px solid #b00000; color: #b00000; padding: .5rem .8rem; }
.result { background: #eef4fa; border-left: 4px solid #0072b2; padding: .6rem .9rem; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem .25rem 0; text-align: left; vertical-align: top; }
td { border-top: 1px solid #e4e4e4; } .numbers td, .numbers th { white-space: nowrap; }
.plain td:nth-child(3) { min-width: 13rem; }
figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; } figcaption { font-size: .85rem; color: #555; }
code { font-size: .85rem; }
"""


def write_page(path, results, tables, figures, cases, splits, settings):
    """Write the page. tables: {name: rows of strings, header first}; figures: [(title, path, caption)]."""
    stamp = f'<p class="stamp">{escape(results["stamp"])}</p>' if results["stamp"] else ""
    sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in results["conclusion"])
    told = [*results["fidelity"]["sentences"], *results["beside_real"]["sentences"]]
    told = [sentence.replace("+-", "±") for sentence in told]
    parts = [
        f"<h1>EMIT-Diff: {len(results['arms'])} arms on {escape(str(settings.data.name))}</h1>",
        stamp,
        f'<div class="result">{sentences}</div>',
        "<h2>Scores</h2>",
        make_table(tables["main"]),
        f"<p>{escape(explain_scores(results, settings))}</p>",
        *(make_figure(*figure) for figure in figures),
        *(f"<p>{escape(sentence)}</p>" for sentence in told),
        "<h2>Comparisons</h2>",
        make_table(tables["comparisons"]) if results["comparisons"] else "<p>Only the baseline was run.</p>",
        f"<p>{escape(explain_tests(results))}</p>",
        *(["<h2>Classes</h2>", make_table(tables["classes"])] if "classes" in tables else []),
        "<h2>Empty masks, and what other codes would have reported</h2>",
        make_table(tables["kinds"]),
        f"<p>{escape(POLICY_WORDS)}</p>",
        make_table(tables["policies"]),
        "<h2>Splits and leaks</h2>",
        make_table(list_splits(cases, splits)),
        *(f"<p>{escape(words)}</p>" for words in explain_leaks(cases, splits, settings)),
        *([make_table(list_ledger(cases, splits, settings))] if settings.generated else []),
        "<h2>Settings</h2>",
        f"<p>{escape(tell_versions(results['versions']))}</p>",
        make_table(list_settings(settings), numbers=False),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>EMIT-Diff: report</title><style>{STYLE}</style>"
    text = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(filter(None, parts))
    write_atomic(path, lambda temporary: temporary.write_text(text + "\n</body></html>\n", encoding="utf-8"))


POLICY_WORDS = (
    "Ours keeps every case: both masks empty scores Dice 1 and distance 0; exactly one empty scores Dice 0 and an "
    "infinite distance, counted beside the mean of the finite ones. nnU-Net v2 drops cases where both are empty; MONAI "
    "drops those with an empty target, false alarms included, and of the distances misses too; the public DiffBoost code "
    "puts one pixel into the centre of every empty mask."
)


def make_table(table, numbers=True):
    """Return rows of strings, the header first, as a table that scrolls sideways on a narrow screen."""
    head, *body = ([escape(cell).replace("+-", "±") for cell in line] for line in table)
    rows = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    rows += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in body]
    kind = "numbers" if numbers else "plain"
    return f'<div class="wide"><table class="{kind}">' + "\n".join(rows) + "</table></div>"


def make_figure(title, path, caption):
    """Return a headed figure with the image inside."""
    data = base64.b64encode(Path(path).read_bytes()).decode()
    image = f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">'
    return f"<h2>{escape(title)}</h2><figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def explain_scores(results, settings):
    """Say what the main table's numbers are."""
    cases, seeds = results["cases"], results["seeds"]
    tolerance = f"{settings.tolerance:g} {'/'.join(results['units'])}"
    words = (
        f"{cases} cases in {results['groups']} groups, {seeds} seed{'s' if seeds > 1 else ''}; each case is tested once per "
        "seed, at its native size, a volume as a whole. Dice: mean over cases and classes ± standard deviation between "
        "cases; difference: to the baseline. Distances: mean of the finite values (number of infinite ones). "
        f"NSD: share of the surfaces within {tolerance}."
    )
    spreads = [f"{arm} {entry['dice']['seed_spread']:.4f}" for arm, entry in results["arms"].items()]
    return words + (f" Standard deviation of mean Dice between seeds: {', '.join(spreads)}." if seeds > 1 else "")


def explain_tests(results):
    """Say how arms were compared."""
    level = 100 * (1 - results["settings"]["level"])
    return (
        f"Differences are paired by case; {level:g} % percentile bootstrap intervals draw whole groups; p is Wilcoxon's "
        "signed-rank test on group means. Holm's correction runs over the comparisons of arms with generated images, and "
        "over those of the other arms. The best classical arm was chosen on these same scores, which flatters it."
    )


def list_splits(cases, splits):
    """Return the table of folds: cases and groups in each part, and groups that are in more than one."""
    group_of = {case.id: case.group for case in cases.cases}
    table = [["fold", "training", "validation", "test", "groups in two parts"]]
    for fold, split in enumerate(splits):
        parts = [getattr(split, part) for part in ("train", "validation", "test")]
        groups = [{group_of[name] for name in part} for part in parts]
        shared = len(groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2])
        counts = [f"{len(part)} in {len(mine)} groups" for part, mine in zip(parts, groups, strict=True)]
        table.append([str(fold), *counts, str(shared)])
    return table


def explain_leaks(cases, splits, settings):
    """Say what was checked between training and test, and what was not."""
    words = ["A group is a patient or, where none is known, a set of look-alike pictures; none may be on two sides."]
    if any("select_on_test" in word or word == "diffboost" for word in settings.compat):
        words.append("Weights were chosen on the test cases (select_on_test): the scores are too good.")
    if settings.generated is None:
        return [*words, "No generated images were used, so there was no generator to check."]
    return [
        *words,
        "The content of every test case is looked for among all cases that the generator of its fold, or any model it came "
        "from, was trained on. Near-duplicates, and slices that were read there with another window, channel or axis, "
        "are not recognised. Weights without a ledger, such as public ones, cannot be checked.",
    ]


def list_ledger(cases, splits, settings):
    """Return the table of what each fold's generator has seen, and how many of the fold's test cases are among it."""
    table = [["fold", "seen by the generator", "test cases looked for", "found"]]
    for fold, split in enumerate(splits):
        ledger = json.loads((Path(settings.generated) / f"fold{fold}" / "ledger.json").read_text())
        seen = [f"{entry['stage']}: {len(entry['cases'])} cases" for entry in ledger["ancestry"]]
        leaked = {case for case, _, _ in find_leaks(ledger, select(cases.cases, split.test))}
        table.append([str(fold), "; ".join(seen), str(len(split.test)), str(len(leaked))])
    return table


def list_settings(settings):
    """Return every setting with its value, where the default comes from, and its meaning."""
    table = [["setting", "value", "source of the default", "meaning"]]
    for f in fields(settings):
        value, data = getattr(settings, f.name), f.metadata
        shown = (
            ", ".join(map(str, value)) if isinstance(value, tuple) else str(value).lower() if value is None else value
        )
        given = value not in (f.default, data["paper"]) and f.default is not MISSING
        table.append([f.name, f"{shown} (given)" if given else str(shown), data["source"], data["help"]])
    return table


def tell_versions(versions):
    """Return the versions in a line."""
    code = versions["code"]
    changed = ", with changes" if code["changed"] else ""
    packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "numpy", "scipy", "matplotlib"))
    return f"emit-diff {code['version']} (commit {code['commit'] or 'unknown'}{changed}), {packages}."
