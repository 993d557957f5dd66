"""What a user reads of whatever a command raised, and the exit status."""

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
    """Puts what is logged on lines of its own, above a progress bar."""

    def emit(self, record):
        with tqdm.external_write_mode(self.stream):
            super().emit(record)


def show_progress() -> None:
    """Log counts and what is going on, and no bars of loading and saving: training has its own."""
    logging.basicConfig(format="%(message)s", handlers=[AboveBars()])
    for package in ("modeling_electra_exit", "research"):
        logging.getLogger(package).setLevel(logging.INFO)
    transformers.utils.logging.disable_progress_bar()


def sentence(error: BaseException, command: str) -> tuple[str, int]:
    """One sentence and the exit status for what `command`, as it was typed, raised."""
    if isinstance(error, (Preempted, Interrupted)):
        saved = "the last checkpoint, for none could be written now" if error.step is None else f"step {error.step}"
        status = error.code if isinstance(error, Preempted) else 130
        return f"stopped; the same command continues from {saved}: {command}", status
    if isinstance(error, (UsageError, DataError)):
        return str(error), 2
    if isinstance(error, RunError):
        return str(error), 1
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"there is not enough memory: {reason(error)}", 1
    if isinstance(error, OSError) and error.filename is not None:
        # What is full or broken is not the user's mistake.
        return f"{error.strerror}: {error.filename}", 1 if error.errno in (*UNWRITABLE, errno.EIO) else 2
    if isinstance(error, SystemExit):
        return f"code that this command loaded called sys.exit({error.code!r}) before it was finished", 1
    return f"unexpected {reason(error)}{_place(error)}; --debug shows the traceback", 1


def _place(error: BaseException) -> str:
    """The last line of this package that an error came through."""
    packages = [modeling_electra_exit, sys.modules["modeling_electra_exit.trainers"], sys.modules[__package__]]
    folders = [Path(package.__file__).parent for package in packages]
    traced = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in traced if any(Path(frame.filename).is_relative_to(folder) for folder in folders)]
    return f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
