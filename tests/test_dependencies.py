"""What pyproject.toml declares is what is tested."""

import inspect
import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import modeling_electra_exit
from modeling_electra_exit import trainers


ROOT = Path(__file__).resolve().parents[1]


def locked(name: str) -> dict[str, Version]:
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    return {package.lower().replace("_", "-"): Version(version) for package, version in pins}


def test_the_least_versions_are_those_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest, newest = locked("requirements-oldest.lock"), locked("requirements.lock")
    for requirement in map(Requirement, project["dependencies"]):
        name = requirement.name.lower().replace("_", "-")
        least = [Version(bound.version) for bound in requirement.specifier if bound.operator == ">="]
        assert least == [oldest[name]], requirement
        assert newest[name] in requirement.specifier, requirement


def test_the_locked_versions_can_be_installed_on_the_least_python():
    """Debian 12 has Python 3.11.2, for example. A release may require a later 3.11."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (least,) = (f"{bound.version}.0" for bound in SpecifierSet(project["requires-python"]))
    for package in locked("requirements.lock") | locked("requirements-test.lock"):
        required = SpecifierSet(metadata(package).get("Requires-Python", ""))
        assert least in required, f"{package} requires Python {required}"


def test_the_type_checker_reads_every_module_of_a_public_name():
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["files"]
    public = [getattr(package, name) for package in (modeling_electra_exit, trainers) for name in package.__all__]
    files = {inspect.getsourcefile(thing) for thing in public if not isinstance(thing, str)}
    assert {str(Path(file).relative_to(ROOT)) for file in files} <= set(checked)
