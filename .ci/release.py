"""Releases: `make version VERSION=0.1.0` sets the version, `make release` builds and checks the distributions."""

import argparse
import datetime
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
# The only definition of the version; the rest of the repository reads it or is updated by `set_version`.
SOURCE = "modeling_electra_exit/configuration_electra_exit.py"
VERSION = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)
RELEASE = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")
UNRELEASED = "## Unreleased"
IN_README = re.compile(r"(?<=<!--= package\.version -->).*?(?=<!--/-->)")  # as docs/measurements.py marks numbers
# The contents of the wheel besides its metadata.
PACKAGES = ("electra_exit", "modeling_electra_exit")


class ReleaseError(Exception):
    """A release is not possible. The message is one sentence."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build and check the wheel and sdist of the current commit in dist/")
    commands.add_parser("version", help="write a version and today's date").add_argument("version")
    args = parser.parse_args()
    try:
        if args.command == "version":
            set_version(ROOT, args.version, datetime.date.today())
        else:
            release(ROOT)
    except ReleaseError as error:
        print(f"release: error: {error}", file=sys.stderr)
        return 1
    return 0


def version_of(root: Path) -> str:
    return VERSION.search((root / SOURCE).read_text(encoding="utf-8"))[1]


# ---- The version ----


def set_version(root: Path, version: str, today: datetime.date) -> None:
    """Write a version to the source, README.md and CITATION.cff. A release, unlike a development version, also gets a
    date in CITATION.cff and in the changelog, whose unreleased section becomes the section of the release.

    Raises:
        ReleaseError: if the version is malformed, or the unreleased section is empty.
    """
    is_release = RELEASE.fullmatch(version) is not None
    if not is_release and not re.fullmatch(r"\d+\.\d+\.\d+\.dev\d+", version):
        raise ReleaseError(f"a version must be like 1.2.3, 1.2.3rc1 or 1.2.3.dev4, got {version!r}")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if is_release:
        head, found, rest = changelog.partition(f"{UNRELEASED}\n")
        if not found or not rest.partition("\n## ")[0].strip():
            raise ReleaseError(f'CHANGELOG.md has nothing under "{UNRELEASED}"')
        changelog = f"{head}{UNRELEASED}\n\n## {version} - {today}\n{rest}"
    citation = re.sub(r"^date-released: .*\n", "", (root / "CITATION.cff").read_text(encoding="utf-8"), flags=re.M)
    dated = f"version: {version}\n" + (f"date-released: {today}\n" if is_release else "")
    citation = re.sub(r"^version: .*\n", dated, citation, flags=re.M)
    source = VERSION.sub(f'__version__ = "{version}"', (root / SOURCE).read_text(encoding="utf-8"))
    readme = IN_README.sub(version, (root / "README.md").read_text(encoding="utf-8"))
    texts = {"CHANGELOG.md": changelog, "CITATION.cff": citation, "README.md": readme, SOURCE: source}
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")


# ---- The distributions ----


def release(root: Path) -> None:
    """Build the wheel and sdist of the current commit in dist/, and check them.

    Raises:
        ReleaseError: if there are uncommitted changes, the version has no date, or a check fails.
    """
    version = refuse_unready(root)
    dist = root / "dist"
    for old in dist.glob("electra_early_exit-*"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=root, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
        _checked("build", "--no-isolation", "--outdir", dist, source)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    _checked("twine", "check", "--strict", wheel, sdist)
    check_wheel(wheel, version)
    check_sdist(sdist, tracked(root))
    print(f"{wheel.relative_to(root)} and {sdist.relative_to(root)} are ready: twine upload dist/*")


def refuse_unready(root: Path) -> str:
    """The version to release.

    Raises:
        ReleaseError: if there are uncommitted changes, or the version has no date.
    """
    if changed := _git(root, "status", "--porcelain"):
        raise ReleaseError(f"commit or remove first: {', '.join(line[3:] for line in changed.splitlines())}")
    version = version_of(root)
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = re.search(rf"^## {re.escape(version)} - (\d{{4}}-\d\d-\d\d)$", changelog, re.MULTILINE)
    if not dated:
        raise ReleaseError(f"CHANGELOG.md has no dated section for {version}: make version VERSION=...")
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    if f"version: {version}\ndate-released: {dated[1]}\n" not in citation:
        raise ReleaseError(f"CITATION.cff must say version {version} and date {dated[1]}: make version VERSION=...")
    return version


def check_wheel(wheel: Path, version: str) -> None:
    """Raises: ReleaseError if the wheel has another version, lacks files, or contains other packages."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = re.search(r"^Version: (.*)$", archive.read(metadata).decode(), re.MULTILINE)[1]
    info = metadata.partition("/")[0]
    if said != version:
        raise ReleaseError(f"{wheel.name} says version {said}, the source {version}")
    if other := sorted({name.partition("/")[0] for name in names} - {*PACKAGES, info}):
        raise ReleaseError(f"{wheel.name} holds {', '.join(other)}")
    needed = [f"{package}/py.typed" for package in PACKAGES]
    needed += ["modeling_electra_exit/trainers/recipes/quickstart.yaml", f"{info}/licenses/LICENSE"]
    if missing := sorted(set(needed) - set(names)):
        raise ReleaseError(f"{wheel.name} lacks {', '.join(missing)}")


def check_sdist(sdist: Path, expected: set[str]) -> None:
    """Raises: ReleaseError if the sdist lacks tracked files, or contains others except packaging metadata."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in (member.name for member in archive if member.isfile())}
    written = {name for name in names if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    if wrong := sorted((names - written) ^ expected):
        verb = "lacks" if wrong[0] in expected else "holds"
        raise ReleaseError(f"{sdist.name} {verb} {wrong[0]}, and {len(wrong) - 1} more differ: see MANIFEST.in")


def tracked(root: Path) -> set[str]:
    return set(_git(root, "ls-files").splitlines())


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout


def _checked(module: str, *words) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise ReleaseError(f"{module} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
