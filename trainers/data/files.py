"""Text files given by name, folder or pattern, and standard input."""

import glob
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from ..runtime.files import INCOMPLETE, naming_write_errors


# File name suffixes and the `datasets` loaders for them. A compression suffix may follow.
LOADERS = {
    ".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"
}  # fmt: skip
COMPRESSED = (".gz", ".xz")
STANDARD_INPUT = "-"


def text_files(paths: Iterable[str]) -> list[str]:
    """Expand paths to files. Each file is listed once, those of a folder or pattern in alphabetical order.

    Args:
        paths: files; folders, which stand for all text files in them and their subfolders except hidden ones; or
            patterns such as `texts/**/*.txt`. A file with the exact name takes precedence over a pattern.

    Raises:
        DataError: if a file is missing, or a folder or pattern has no text files.
    """
    found = {}
    for path in paths:
        if os.path.isfile(path):
            files = [path]
        elif os.path.isdir(path):
            files = _of_folder(path)
        elif glob.has_magic(path):
            files = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
            if not files:
                raise DataError(f"no file matches {path}")
        else:
            raise DataError(f"no such file: {path}")
        found |= dict.fromkeys(files)
    return list(found)


def _of_folder(folder: str) -> list[str]:
    names = (name for name in glob.glob(os.path.join(glob.escape(folder), "**", "*"), recursive=True))
    files = sorted(name for name in names if loader_of(name) is not None and os.path.isfile(name))
    if not files:
        raise DataError(
            f"no file in {folder} ends in {', '.join(LOADERS)}, optionally followed by {' or '.join(COMPRESSED)}"
        )
    return files


def few(paths: list[str]) -> str:
    """File names for a message, abbreviated if there are more than four."""
    return ", ".join(paths) if len(paths) <= 4 else f"{', '.join(paths[:3])} and {len(paths) - 3:,} more"


def loader_of(path: str) -> str | None:
    """The name of the `datasets` loader for a file name; `None` if the suffix is unknown."""
    name = re.sub("|".join(rf"\{ending}$" for ending in COMPRESSED), "", path)
    return LOADERS.get(os.path.splitext(name)[1].lower())


def spool_standard_input(path: Path) -> None:
    """Copy standard input to a file. If standard input is empty, an existing file is kept.

    Raises:
        DataError: if standard input is empty and the file does not exist.
        WriteError: if the file cannot be written.
    """
    incomplete = path.with_name(f"{INCOMPLETE}-{path.name}")
    if sys.stdin is not None and not sys.stdin.isatty():
        with naming_write_errors(str(path)):
            with incomplete.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            if incomplete.stat().st_size:
                incomplete.replace(path)
            else:
                incomplete.unlink()
    if not path.exists():
        raise DataError(
            "--train_files - reads standard input, which is empty: use cat my.txt | electra-exit pretrain ..."
        )
