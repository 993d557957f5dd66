"""Atomic file writes, and errors that name the file."""

import json
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import UsageError, WriteError, first_line


logger = logging.getLogger(__name__)

# Prefixes of files and folders that are incomplete or damaged. Pushes to the Hub skip names that begin with `_`.
INCOMPLETE, DAMAGED = "_incomplete", "_damaged"
# Parts of the messages of generic errors: of torch.save (C++), which does not give a reason, and of tokenizers (Rust).
TORCH_SAVE_FAILED, RUST_FAILED = ("inline_container.cc", "iostream error"), "(os error "


@contextmanager
def naming_write_errors(what: str) -> Iterator[None]:
    """Convert the errors of libraries about a full or read-only disk.

    Raises:
        WriteError: with a message that names `what`. Other errors are not converted.
    """
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        if any(sign in reason for sign in TORCH_SAVE_FAILED):
            reason = "torch.save failed; is the disk full?"
        elif not isinstance(error, (OSError, SafetensorError)) and RUST_FAILED not in reason:
            raise  # not about the disk
        raise WriteError(f"{what} could not be written: {reason}") from error


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """Log an error inside as a warning and continue, for steps that the run can do without."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        logger.warning(f"{what} failed; the run continues without it: {reason}")


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file atomically.

    Raises:
        WriteError: if it cannot be written. The previous file is unchanged.
    """
    incomplete = path.with_name(f"{INCOMPLETE}-{path.name}")
    with naming_write_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        incomplete.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        flush(incomplete)
        os.replace(incomplete, path)


def share_weights(folder: Path) -> None:
    """Give weights the permissions of their config: safetensors 0.8 writes files that only the owner can read."""
    config = folder / "config.json"
    for path in folder.glob("*.safetensors") if config.exists() else ():
        path.chmod(stat.S_IMODE(config.stat().st_mode))


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, needs: str | None = None) -> dict:
    """The JSON object in a file.

    Args:
        path: the file.
        needs: name of a section, an object itself, that must be present.

    Raises:
        UsageError: if the file cannot be read, does not contain an object, or lacks the section `needs`.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a JSON object, got {content!r:.100}")
    if needs is not None and not isinstance(content.get(needs), dict):
        raise UsageError(f"{path} has no section `{needs}`; remove the file to have it rebuilt")
    return content
