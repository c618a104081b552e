"""The report as one HTML page: plain, self-contained, readable on a phone; figures are inside it."""

import base64
from dataclasses import fields
from html import escape

from emit import ledger
from emit.evaluation.statistics import POWER
from emit.files import write_text
from emit.training.settings import show

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ccc; }
p, li { max-width: 46rem; overflow-wrap: break-word; }
.wide { overflow-x: auto; } .stamp { border: 2px solid #b00000; color: #b00000; padding: .5rem .8rem; }
.result { background: #eef4fa; border-left: 4px solid #0072b2; padding: .6rem .9rem; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem .25rem 0; text-align: left; vertical-align: top; }
td { border-top: 1px solid #e4e4e4; } th, td { white-space: nowrap; }
figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; } figcaption { font-size: .85rem; color: #555; }
"""
COMPARED = f"""<p>Differences are paired by case and training; interval (uncorrected) and p are of one t test whose standard error
holds the luck of the cases, by whole groups, and of the trainings (docs/metrics.md). Detectable: what it finds with probability
{POWER:g}. Holm's correction runs over the comparisons of arms with generated images, and over those of the other arms.</p>"""


def write_page(path, results, tables, figures, labelled, settings) -> None:
    """Write the page. tables: {name: rows of strings, header first}; figures: [(title, path, caption)]."""
    seeds, stamp, code = results["seeds"], escape(results["stamp"]), results["code"]
    spreads = ", ".join(f"{arm} {entry['dice']['seed_spread']:.4f}" for arm, entry in results["arms"].items())
    times = "once" if results["folds"] == 1 else f"by the segmenters of {results['folds']} folds, whose mean counts,"
    splits = list_splits(labelled, settings.generated)
    rows = [[f.name, show(getattr(settings, f.name)), f.metadata["source"], f.metadata["help"]] for f in fields(settings)]
    text = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>EMIT-Diff: report</title><style>{STYLE}</style></head>
<body>
<h1>EMIT-Diff: {len(results["arms"])} arms on {escape(labelled.about.data.name)}</h1>
{f'<p class="stamp">{stamp}</p>' if stamp else ""}
<div class="result">{make_paragraphs(results["conclusion"])}</div>
<h2>Scores</h2>
{make_table(tables["main"])}
<p>{results["cases"]} cases in {results["groups"]} groups, {seeds} seed{"s" if seeds > 1 else ""}; each case is tested {times}
per seed, at its native size, a volume as a whole. Dice: mean over cases and classes +- standard deviation between cases;
difference: to the baseline. Distances: median over all cases, a missed lesion or a false alarm being infinite (how many are).
The others: means. NSD: share of the surfaces within {settings.tolerance:g} {"/".join(results["units"])}.
{f"Standard deviation of mean Dice between seeds: {spreads}." if seeds > 1 else ""}</p>
{"".join(make_figure(*figure) for figure in figures)}
{make_paragraphs([*results["fidelity"]["sentences"], *results["beside_real"]["sentences"]])}
{"<h2>Comparisons</h2>" + make_table(tables["comparisons"]) + COMPARED if results["comparisons"] else ""}
{"<h2>Classes</h2>" + make_table(tables["classes"]) if len(results["classes"]) > 1 else ""}
<h2>Empty masks</h2>
{make_table(tables["kinds"])}
<p>Every case counts: both masks empty scores Dice 1 and distance 0; a missed lesion or a false alarm scores Dice 0 and an
infinite distance. Other codes drop some of these cases (docs/metrics.md).</p>
<h2>Splits and leaks</h2>
{make_table(splits)}
<p>A group is a patient or, where none is known, a set of look-alike pictures; splits with one on two sides are refused. Weights
are chosen on the validation cases; with select_on_test on the test cases: then the scores are too good.</p>
{make_paragraphs(describe_leaks(splits, settings))}
<h2>Settings</h2>
<p>emit-diff {code["version"]} (commit {code["commit"] or "unknown"}{", with changes" if code["changed"] else ""}).</p>
{make_table([["setting", "value", "source of the default", "meaning"], *rows])}
</body></html>
"""
    write_text(path, text.replace("+-", "±"))


def make_paragraphs(sentences) -> str:
    """Return each sentence as a paragraph."""
    return "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)


def make_table(table) -> str:
    """Return rows of strings, the header first, as a table that scrolls sideways on a narrow screen."""
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in line) for line in table]
    lines[0] = lines[0].replace("td>", "th>")
    return '<div class="wide"><table><tr>' + "</tr>\n<tr>".join(lines) + "</tr></table></div>"


def make_figure(title: str, path, caption: str) -> str:
    """Return a headed figure with the image inside."""
    image = f'<img alt="{title}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
    return f"<h2>{title}</h2><figure>{image}<figcaption>{caption}</figcaption></figure>\n"


def list_splits(labelled, generated) -> list[list[str]]:
    """Return the table of folds: cases and groups of the parts, how many cases the generator has seen."""
    group_of = {case.id: case.group for case in labelled.cases}
    table = [["fold", "training", "validation", "test", "seen by the generator"]]
    for fold, split in enumerate(labelled.splits):
        parts = [case.id for case in labelled.training(fold)], split.validation, split.test
        counts = [f"{len(part)} in {len({group_of[name] for name in part})} groups" for part in parts]
        stages = "no generator"
        if generated is not None:
            seen = ledger.read(generated / f"fold{fold}" / "ledger.json").entries
            stages = "; ".join(f"{entry['stage']}: {entry['cases']} cases" for entry in seen) or "unknown"
        table.append([str(fold), *counts, stages])
    return table


def describe_leaks(splits, settings) -> list[str]:
    """Say where the test cases were looked for and what cannot be checked. splits: of `list_splits`."""
    seen, looked = {line[-1] for line in splits[1:]} - {"no generator"}, "was looked for by its content among"
    ledger = "all that the ledger of its generator lists, and not found: else there is no comparison"
    public = "weights without a ledger, such as public ones"
    sentences = {
        "No generated images were used, so there was no generator to check.": not seen,
        f"What a generator of {public}, has seen is unknown and cannot be checked.": "unknown" in seen,
        f"Every test case {looked} {ledger}. Of {public} that it came from, this cannot be said.": seen - {"unknown"},
        f"Every case of a --test set {looked} the training and validation cases, and not found.": settings.test,
        "Near-duplicates, and slices read with another window, channel or axis, are not recognised.": seen or settings.test,
    }
    return [sentence for sentence, holds in sentences.items() if holds]
