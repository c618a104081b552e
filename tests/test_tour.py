"""docs/tour.ipynb: cells that can be read, names that exist, sentences whose numbers are true, and it runs.

A cell tagged "trained" needs the model of part 6. Numbers that a cell prints are compared with those stored in it: to
rounding, and in trained cells to the "tolerance" in their metadata, as a training's last bits depend on threads and machine.
"""

import ast
import contextlib
import io
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "docs" / "tour.ipynb"
NOTEBOOK = nbformat.read(TOUR, as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def is_trained(cell):
    return "trained" in cell.metadata.get("tags", [])


def printed(outputs):
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def compare(cell, text):
    """Refuse a text whose numbers are not those that the cell has stored; the words between them must be the same."""
    stored = printed(cell.outputs)
    tolerance = cell.metadata.get("tolerance", 0.0)
    if not is_trained(cell):
        assert NUMBER.sub("#", text) == NUMBER.sub("#", stored)
    was, found = (list(map(float, NUMBER.findall(words))) for words in (stored, text))
    assert found == pytest.approx(was, rel=max(tolerance, 2e-3), abs=max(tolerance, 2e-4)), f"{text}\nstored: {stored}"


def test_cells_are_short_and_ran_in_order():
    nbformat.validate(NOTEBOOK)
    assert [cell.execution_count for cell in CODE] == [*range(1, len(CODE) + 1)] and len(CODE) > 25
    assert max(len(cell.source.splitlines()) for cell in CODE) <= 15
    pictures = [output.data.get("image/png") for cell in CODE for output in cell.outputs if "data" in output]
    assert len(pictures) > 15 and all(pictures)
    assert all(output.output_type != "error" and output.get("name") != "stderr" for cell in CODE for output in cell.outputs)


def test_the_file_is_small_and_of_no_machine():
    text = TOUR.read_text()
    assert len(text) < 1_200_000
    words = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r"(?<![\w.])/(tmp|home|root|work|Users|usr|opt)/|[A-Z]:\\\\", words)


def test_imports_and_names_exist():
    """Every import of a cell, and every `name` of `file.py` of the paragraphs that begin with "Shown"."""
    for cell in CODE:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom):
                assert all(hasattr(import_module(node.module), name.name) for name in node.names), node.module
    shown = 0
    for paragraph in "\n\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown").split("\n\n"):
        names = []
        for word in re.findall(r"`([\w./]+)`", paragraph if paragraph.startswith("Shown") else ""):
            if not word.endswith(".py"):
                names.append(word.rpartition(".")[2])
                continue
            source = (ROOT / word).read_text()
            assert all(re.search(rf"(def|class) {name}\b", source) for name in names), (word, names)
            shown, names = shown + 1, []
    assert shown > 20


def test_what_to_see_was_printed():
    """A number with a decimal point, in a paragraph of what to see, stands in an output of the cells before it."""
    outputs, checked = "", 0
    for cell in NOTEBOOK.cells:
        if cell.cell_type == "code":
            outputs += printed(cell.outputs)
            continue
        for paragraph in cell.source.split("\n\n"):
            if paragraph.startswith("**What to see.**"):
                stated = re.findall(r"\d+\.\d+", paragraph)
                assert set(stated) <= set(re.findall(r"\d+\.\d+", outputs)), paragraph
                outputs, checked = "", checked + len(stated)
    assert checked > 10


def test_what_needs_no_training_runs_and_prints_the_same(monkeypatch):
    monkeypatch.chdir(ROOT / "docs")
    monkeypatch.setattr(sys, "path", [*sys.path])
    names = {}
    for cell in CODE:
        if not is_trained(cell):
            with contextlib.redirect_stdout(io.StringIO()) as text:
                exec(cell.source, names)
            compare(cell, text.getvalue())
    assert not plt.get_fignums()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own parts
def test_the_whole_tour_runs_from_nothing(tmp_path):
    """As a reader runs it, with its own training: minutes."""
    from nbclient import NotebookClient

    for name in ("emit", "docs", "train_pretrain.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    notebook = nbformat.read(TOUR, as_version=4)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": tmp_path / "docs"}}).execute()
    for cell, fresh in zip(CODE, (cell for cell in notebook.cells if cell.cell_type == "code"), strict=True):
        compare(cell, printed(fresh.outputs))
