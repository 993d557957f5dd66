"""The files that the user means: by name, by folder, by pattern, or standard input."""

import glob
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from ..runtime.files import INCOMPLETE, naming_write_errors


# File name endings and the `datasets` loader that reads them; a compression suffix may follow.
LOADERS = {
    ".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"
}  # fmt: skip
COMPRESSED = (".gz", ".xz")
STANDARD_INPUT = "-"


def text_files(paths: Iterable[str]) -> list[str]:
    """Each file once, those of a folder or pattern in alphabetical order.

    Args:
        paths: of files; of folders, of which all files with text are meant, those in their subfolders too, but none
            that is hidden; and patterns such as `texts/**/*.txt`. A file of that very name is meant before a pattern.

    Raises:
        DataError: for what is not there or matches nothing.
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
        raise DataError(f"no file in {folder} ends in {', '.join(LOADERS)}, or that and {' or '.join(COMPRESSED)}")
    return files


def few(paths: list[str]) -> str:
    """The names of files for a sentence, of many the first ones."""
    return ", ".join(paths) if len(paths) <= 4 else f"{', '.join(paths[:3])} and {len(paths) - 3:,} more"


def loader_of(path: str) -> str | None:
    """The name of the `datasets` loader for a file's name; `None` where it says nothing of its content."""
    name = re.sub("|".join(rf"\{ending}$" for ending in COMPRESSED), "", path)
    return LOADERS.get(os.path.splitext(name)[1].lower())


def spool_standard_input(path: Path) -> None:
    """Write what comes on standard input into a file, which stays as it is where nothing comes.

    Raises:
        DataError: if nothing comes and there is no file yet.
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
            "--train_files - reads standard input, and nothing came: cat my.txt | electra-exit pretrain ..."
        )
