"""Turn the exceptions of a command into an error message and an exit status, and set up logging."""

import errno
import logging
import sys
import traceback
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

import modeling_electra_exit
from modeling_electra_exit.trainers.errors import (
    UNWRITABLE,
    DataError,
    Interrupted,
    Preempted,
    RunError,
    UsageError,
    reason,
)


class AboveBars(logging.StreamHandler):
    """Writes log records on separate lines above a progress bar."""

    def emit(self, record):
        with tqdm.external_write_mode(self.stream):
            super().emit(record)


def show_progress() -> None:
    """Enable this package's log output and disable Transformers' bars for loading and saving."""
    logging.basicConfig(format="%(message)s", handlers=[AboveBars()])
    for package in ("modeling_electra_exit", "research"):
        logging.getLogger(package).setLevel(logging.INFO)
    transformers.utils.logging.disable_progress_bar()


def sentence(error: BaseException, command: str) -> tuple[str, int]:
    """The one-sentence message and the exit status for `error`, raised by `command` (as it was typed)."""
    if isinstance(error, (Preempted, Interrupted)):
        saved = "the last checkpoint (saving one now failed)" if error.step is None else f"step {error.step}"
        status = error.code if isinstance(error, Preempted) else 130
        return f"stopped; the same command continues from {saved}: {command}", status
    if isinstance(error, (UsageError, DataError)):
        return str(error), 2
    if isinstance(error, RunError):
        return str(error), 1
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"out of memory: {reason(error)}", 1
    if isinstance(error, OSError) and error.filename is not None:
        # A full or failing disk is not a usage error.
        return f"{error.strerror}: {error.filename}", 1 if error.errno in (*UNWRITABLE, errno.EIO) else 2
    if isinstance(error, SystemExit):
        return f"code that this command loaded called sys.exit({error.code!r}) before the command finished", 1
    return f"unexpected {reason(error)}{_place(error)}; --debug shows the traceback", 1


def _place(error: BaseException) -> str:
    """The innermost line of this package in the traceback of `error`, as " (at FILE:LINE)"."""
    packages = [modeling_electra_exit, sys.modules["modeling_electra_exit.trainers"], sys.modules[__package__]]
    folders = [Path(package.__file__).parent for package in packages]
    traced = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in traced if any(Path(frame.filename).is_relative_to(folder) for folder in folders)]
    return f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
