import sys
from importlib import import_module
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """A function that imports a benchmark, which finds those beside it as a script does, and sets its arguments."""
    monkeypatch.syspath_prepend(FOLDER)

    def load_with(name, *arguments):
        monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{name}.py"), *map(str, arguments)])
        return import_module(name)

    return load_with
