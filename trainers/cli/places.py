"""Where this package's files lie, found without importing it."""

import importlib.util
import re
from pathlib import Path


def package_folder(name: str) -> Path:
    """The folder of a package at the top."""
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


def _trainers() -> Path:
    inside = package_folder("modeling_electra_exit") / "trainers"  # of a wheel; in a working tree it is beside it
    return inside if inside.is_dir() else Path(__file__).resolve().parents[1]


TRAINERS = _trainers()
RECIPES = TRAINERS / "recipes"


def version() -> str:
    """Of this package, as its source says it: an editable installation remembers the one that was installed."""
    source = (package_folder("modeling_electra_exit") / "configuration_electra_exit.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.*)"$', source, re.MULTILINE)[1]


def yaml_names(folder: Path) -> list[str]:
    """The YAML files in a folder, without their ending."""
    return sorted(path.stem for path in folder.glob("*.yaml"))
