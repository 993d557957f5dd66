"""The locations of this package's files, found without importing it."""

import importlib.util
import re
from pathlib import Path


def package_folder(name: str) -> Path:
    """The folder of a top-level package, found without importing it."""
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


def _trainers() -> Path:
    inside = package_folder("modeling_electra_exit") / "trainers"  # in a wheel; a working tree has it one level up
    return inside if inside.is_dir() else Path(__file__).resolve().parents[1]


TRAINERS = _trainers()
RECIPES = TRAINERS / "recipes"


def version() -> str:
    """The version in this package's source. The metadata of an editable install may be older."""
    source = (package_folder("modeling_electra_exit") / "configuration_electra_exit.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.*)"$', source, re.MULTILINE)[1]


def yaml_names(folder: Path) -> list[str]:
    """The names of the YAML files in a folder, without their suffix, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))
