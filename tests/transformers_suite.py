"""Transformers' own common model tests, of the exact version installed.

They are no part of the wheel, only of the source distribution, so that is fetched from the package registry once and
kept in `.pytest_cache`. The modules of the suite that are not in it either get empty stand-ins: we run none of the
tests that live there (generation, export).
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import transformers
from filelock import FileLock


VERSION = transformers.__version__
CACHE = Path(__file__).resolve().parents[1] / ".pytest_cache" / "transformers-suite"
PACKAGE = f"transformers_suite_{VERSION.replace('.', '_')}"
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def _fetch(target: Path):
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*command, "--dest", folder, f"transformers=={VERSION}"], check=True, capture_output=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        unpacked = Path(folder) / "unpacked"
        with tarfile.open(archive) as tar:
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 or newer
            tar.extractall(unpacked, **safely)
        package = next(unpacked.glob("*/tests"))
        for name, text in STAND_INS.items():
            if not (package / name).exists():
                (package / name).parent.mkdir(parents=True, exist_ok=True)
                (package / name).write_text(text)
        for path in [package, *(p for p in package.rglob("*") if p.is_dir())]:
            (path / "__init__.py").touch()
        package.rename(target)


def load(module: str):
    """A module of the suite, such as `test_modeling_common`."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "lock"):
        if not (CACHE / PACKAGE).is_dir():
            try:
                _fetch(CACHE / PACKAGE)
            except subprocess.CalledProcessError as error:
                if os.environ.get("CI"):  # there a missing suite must not look like a passing one
                    raise
                reason = error.stderr.decode(errors="replace").strip().split("\n")[-1]
                pytest.skip(f"cannot fetch transformers' source distribution: {reason}", allow_module_level=True)
    if str(CACHE) not in sys.path:
        sys.path.insert(0, str(CACHE))
    return importlib.import_module(f"{PACKAGE}.{module}")
