"""Training runs of the tests draw no curves, which take longer than their steps; tests/training/test_loop.py draws them."""

import pytest

from emit.training import loop


@pytest.fixture(autouse=True, scope="session")
def empty_curves():
    patch = pytest.MonkeyPatch()
    patch.setattr(loop, "save_curves", lambda path, curves: path.touch())
    yield
    patch.undo()
