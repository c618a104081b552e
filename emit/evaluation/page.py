"""The report as one HTML page: plain, self-contained, readable on a phone; figures are inside it."""

import base64
from collections import Counter
from dataclasses import MISSING, fields
from html import escape
from itertools import chain
from pathlib import Path

from emit import ledger
from emit.data.splits import select
from emit.files import write_text

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
"""
HEAD = (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>EMIT-Diff: report</title><style>{STYLE}</style></head>\n<body>\n"
)
EMPTY_MASKS = (
    "Every case counts: both masks empty scores Dice 1 and distance 0; a missed lesion or a false alarm scores Dice 0 and "
    "an infinite distance. Other codes drop some of these cases (docs/metrics.md)."
)
GENERATOR = (
    "The content of every test case is looked for among all cases that the generator of its fold, or any model it came "
    "from, was trained on. Near-duplicates, and slices that were read there with another window, channel or axis, "
    "are not recognised. Weights without a ledger, such as public ones, cannot be checked: they are unknown."
)
NO_GENERATOR = "No generated images were used, so there was no generator to check."
GROUPS = "A group is a patient or, where none is known, a set of look-alike pictures; none may be on two sides."
SELECTED = "Weights were chosen on the test cases (select_on_test): the scores are too good."
TESTS = (
    "Differences are paired by case; percentile bootstrap intervals draw whole groups; p is Wilcoxon's signed-rank test on "
    "group means. Holm's correction runs over the comparisons of arms with generated images, and over those of the other "
    "arms. The best classical arm was chosen on these same scores, which flatters it."
)


def write_page(path, results, tables, figures, labelled, settings) -> None:
    """Write the page. tables: {name: rows of strings, header first}; figures: [(title, path, caption)]."""
    stamp, generated = results["stamp"], settings.generated
    selected = [SELECTED] if "select_on_test" in stamp else []
    parts = [
        f"<h1>EMIT-Diff: {len(results['arms'])} arms on {escape(labelled.about.data.name)}</h1>",
        f'<p class="stamp">{escape(stamp)}</p>' if stamp else "",
        f'<div class="result">{make_paragraphs(*results["conclusion"])}</div>',
        "<h2>Scores</h2>",
        make_table(tables["main"]),
        make_paragraphs(explain_scores(results, settings)),
        *(make_figure(*figure) for figure in figures),
        make_paragraphs(*results["fidelity"]["sentences"], *results["beside_real"]["sentences"]),
        "<h2>Comparisons</h2>",
        make_table(tables["comparisons"]) if results["comparisons"] else "<p>Only the baseline was run.</p>",
        make_paragraphs(TESTS),
        *(["<h2>Classes</h2>", make_table(tables["classes"])] if "classes" in tables else []),
        "<h2>Empty masks</h2>",
        make_table(tables["kinds"]),
        make_paragraphs(EMPTY_MASKS),
        "<h2>Splits and leaks</h2>",
        make_table(list_splits(labelled)),
        make_paragraphs(GROUPS, *selected, NO_GENERATOR if generated is None else GENERATOR),
        make_table(list_ledger(labelled, generated)) if generated else "",
        "<h2>Settings</h2>",
        make_paragraphs(describe_versions(results["versions"])),
        make_table(list_settings(settings), kind="plain"),
    ]
    write_text(path, HEAD + "\n".join(filter(None, parts)) + "\n</body></html>\n")


def make_paragraphs(*sentences: str) -> str:
    """Return each sentence as a paragraph."""
    return "".join(f"<p>{show_text(sentence)}</p>" for sentence in sentences)


def make_table(table, kind: str = "numbers") -> str:
    """Return rows of strings, the header first, as a table that scrolls sideways on a narrow screen."""
    lines = ["".join(f"<td>{show_text(cell)}</td>" for cell in line) for line in table]
    lines[0] = lines[0].replace("td>", "th>")
    return f'<div class="wide"><table class="{kind}"><tr>' + "</tr>\n<tr>".join(lines) + "</tr></table></div>"


def make_figure(title: str, path, caption: str) -> str:
    """Return a headed figure with the image inside."""
    data = base64.b64encode(Path(path).read_bytes()).decode()
    image = f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">'
    return f"<h2>{escape(title)}</h2><figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def show_text(text: str) -> str:
    """Return plain text as HTML."""
    return escape(text).replace("+-", "±")


def explain_scores(results, settings) -> str:
    """Say what the main table's numbers are."""
    seeds, tolerance = results["seeds"], f"{settings.tolerance:g} {'/'.join(results['units'])}"
    words = (
        f"{results['cases']} cases in {results['groups']} groups, {seeds} seed{'s' if seeds > 1 else ''}; each case is tested "
        "once per seed, at its native size, a volume as a whole. Dice: mean over cases and classes +- standard deviation "
        "between cases; difference: to the baseline. Distances: median over all cases, a missed lesion or a false alarm "
        f"being infinite (how many are). The others: means. NSD: share of the surfaces within {tolerance}."
    )
    spreads = [f"{arm} {entry['dice']['seed_spread']:.4f}" for arm, entry in results["arms"].items()]
    return words + (f" Standard deviation of mean Dice between seeds: {', '.join(spreads)}." if seeds > 1 else "")


def list_splits(labelled) -> list[list[str]]:
    """Return the table of folds: cases and groups in each part, and groups that are in more than one."""
    group_of = {case.id: case.group for case in labelled.cases}
    table = [["fold", "training", "validation", "test", "groups in two parts"]]
    for fold, split in enumerate(labelled.splits):
        parts = [case.id for case in labelled.training(fold)], split.validation, split.test
        groups = [{group_of[name] for name in part} for part in parts]
        counts = [f"{len(part)} in {len(mine)} groups" for part, mine in zip(parts, groups, strict=True)]
        table.append([str(fold), *counts, str(sum(n > 1 for n in Counter(chain(*groups)).values()))])
    return table


def list_ledger(labelled, generated) -> list[list[str]]:
    """Return the table of what each fold's generator has seen, and how many of the fold's test cases are among it."""
    table = [["fold", "seen by the generator", "test cases looked for", "found"]]
    for fold, split in enumerate(labelled.splits):
        seen = ledger.read(Path(generated) / f"fold{fold}" / "ledger.json")
        stages = "; ".join(f"{entry['stage']}: {entry['cases']} cases" for entry in seen.entries)
        leaked = {case for case, _ in seen.find(select(labelled.cases, split.test))}
        found = str(len(leaked)) if seen.entries else "unknown"
        table.append([str(fold), stages or "unknown", str(len(split.test)), found])
    return table


def list_settings(settings) -> list[list[str]]:
    """Return every setting with its value, where the default comes from, and its meaning."""
    table = [["setting", "value", "source of the default", "meaning"]]
    for f in fields(settings):
        value, data = getattr(settings, f.name), f.metadata
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else str(value)
        given = value not in (f.default, data["paper"]) and f.default is not MISSING
        table.append([f.name, shown + " (given)" * given, data["source"], data["help"]])
    return table


def describe_versions(versions) -> str:
    """Return the versions in a line."""
    code = versions["code"]
    changed = ", with changes" if code["changed"] else ""
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "code")
    return f"emit-diff {code['version']} (commit {code['commit'] or 'unknown'}{changed}), {packages}."
