"""Files that are whole or not there, and errors that name them."""

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

# What begins with these is not complete yet, or not any more; pushes to the Hub leave out names that begin with `_`.
INCOMPLETE, DAMAGED = "_incomplete", "_damaged"
# In the messages of errors that are of no kind of their own: torch.save's, in C++, which does not say why it cannot
# write, and those of tokenizers, in Rust.
TORCH_SAVE_FAILED, RUST_FAILED = ("inline_container.cc", "iostream error"), "(os error "


@contextmanager
def naming_write_errors(what: str) -> Iterator[None]:
    """Turn what the libraries raise when a disk is full or not writable into a [`WriteError`] that names `what`."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        if any(sign in reason for sign in TORCH_SAVE_FAILED):
            reason = "torch.save failed; is the disk full?"
        elif not isinstance(error, (OSError, SafetensorError)) and RUST_FAILED not in reason:
            raise  # it is not about the disk
        raise WriteError(f"{what} could not be written: {reason}") from error


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """Warn of an error inside and go on: for `what` is beside the weights, and not worth a run."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        logger.warning(f"{what} failed, and the run continues without it: {reason}")


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file that is never seen half written.

    Raises:
        WriteError: if it cannot be written; the file is as it was.
    """
    incomplete = path.with_name(f"{INCOMPLETE}-{path.name}")
    with naming_write_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        incomplete.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        flush(incomplete)
        os.replace(incomplete, path)


def share_weights(folder: Path) -> None:
    """Give a model's weights the permissions of its config: safetensors 0.8 writes files for their owner alone."""
    config = folder / "config.json"
    for path in folder.glob("*.safetensors") if config.exists() else ():
        path.chmod(stat.S_IMODE(config.stat().st_mode))


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, needs: str | None = None) -> dict:
    """What a JSON file says that must hold an object.

    Raises:
        UsageError: if it cannot be read, holds something else, or has no section that it `needs`.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a JSON object, got {content!r:.100}")
    if needs is not None and not isinstance(content.get(needs), dict):
        raise UsageError(f"{path} has no section `{needs}`; remove it to have it made again")
    return content
