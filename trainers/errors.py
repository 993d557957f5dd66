"""Errors that end a command with a one-line message, and conversion of other libraries' errors into such messages."""

import codecs
import contextlib
import errno
import os
import re
from collections.abc import Iterator

from huggingface_hub.errors import StrictDataclassError


# ---- Errors that the user can fix: exit status 2 ----


class UsageError(Exception):
    """An error that the user can fix. Shown as one line, exit status 2."""


class DataError(ValueError):
    """The data cannot be used. The message is one line that says what to do."""


class PushError(UsageError):
    """A push failed, entirely or in part. The message is one line that says what to do. Pushing again is safe."""


# ---- Failures: exit status 1 ----


class RunError(Exception):
    """A run cannot continue. The message is one line. The same command resumes the run."""


class WriteError(RunError):
    """A file could not be written."""


class WorkerError(RunError):
    """A process that prepares or loads data has died."""


class DivergenceError(RunError):
    """Training has diverged. The message says where the batch was saved."""


# ---- Interruptions ----


class Preempted(SystemExit):
    """SIGTERM ended a training run. `step` is the step of the checkpoint written; `None` if writing failed. The exit
    status is 75, `EX_TEMPFAIL`."""

    def __init__(self, step: int | None = None):
        super().__init__(os.EX_TEMPFAIL)
        self.step = step


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a training run. `step` is the step of the checkpoint written; `None` if writing failed."""

    def __init__(self, step: int | None):
        super().__init__(step)
        self.step = step


# ---- Errors of other libraries in one sentence ----

# `errno` values for a file system that is full or read-only.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if the message is empty."""
    if isinstance(error, UnicodeDecodeError):
        written = "UTF-16" if error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "WINDOWS-1252"
        return f"it is not UTF-8 (byte {error.start:,}); convert it, for example with: iconv -f {written} -t UTF-8"
    return str(error).strip().split("\n")[0] or type(error).__name__


def reason(error: BaseException) -> str:
    """Another library's error in one line: its class, its message and that of its cause."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    # A worker's error contains the traceback; the message is in its last line.
    text = lines[-1 if any("Traceback (most recent call last)" in line for line in lines) else 0] if lines else ""
    cause = first_line(error.__cause__) if isinstance(error.__cause__, Exception) else ""
    known = not cause or '"""' in cause or cause in text
    return f"{type(error).__name__}: {text}".removesuffix(": ") + ("" if known else f" ({cause})")


def config_reason(error: Exception) -> str:
    """Why a config is invalid, in one line that names the field."""
    # The first line of the library's message names the validator, the last line gives the reason.
    reason = str(error.__cause__ or error).strip().split("\n")[-1].strip()
    name = re.search(r"field '(\w+)'", str(error))
    return f"{name[1]}: {reason}" if name and name[1] not in reason else reason


@contextlib.contextmanager
def naming_failures(what: str) -> Iterator[None]:
    """Convert any error inside, as libraries raise for damaged or malicious files.

    Raises:
        UsageError: with a message that begins with `what`. A [`UsageError`] raised inside stays as it is.
    """
    try:
        yield
    except UsageError:
        raise
    except StrictDataclassError as error:
        raise UsageError(f"{what}: {config_reason(error)}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{what}: {first_line(error)}") from error
    except Exception as error:  # the message alone is not informative
        raise UsageError(f"{what}: {reason(error)}") from error
