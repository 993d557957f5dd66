"""What ends a command with one sentence, and how the errors of other libraries become that sentence."""

import codecs
import contextlib
import errno
import os
import re
from collections.abc import Iterator

from huggingface_hub.errors import StrictDataclassError


# ---- What the user can put right: status 2 ----


class UsageError(Exception):
    """Something the user can put right; shown as one line, exit status 2."""


class DataError(ValueError):
    """The data cannot be used as asked; the message is one line that says what to do."""


class PushError(UsageError):
    """Nothing was pushed, or not all of it; the message is one line that says what to do. Pushing again is safe."""


# ---- What failed: status 1 ----


class RunError(Exception):
    """A run cannot go on; the message is one line. The same command continues it."""


class WriteError(RunError):
    """A file could not be written."""


class WorkerError(RunError):
    """A process that prepares or loads data has died."""


class DivergenceError(RunError):
    """Training cannot go on; the message says where the batch is."""


# ---- What was told to stop ----


class Preempted(SystemExit):
    """SIGTERM ended a training run, which has left a checkpoint of `step`; `None` where that could not be written. The
    exit status, 75, says: temporary failure."""

    def __init__(self, step: int | None = None):
        super().__init__(os.EX_TEMPFAIL)
        self.step = step


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a training run, which has left a checkpoint of `step`; `None` where that could not be written."""

    def __init__(self, step: int | None):
        super().__init__(step)
        self.step = step


# ---- Errors of other libraries in one sentence ----

# What the system says where nothing more can be written.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def first_line(error: BaseException) -> str:
    """What an error says in its first line, or else what it is."""
    if isinstance(error, UnicodeDecodeError):
        written = "UTF-16" if error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "WINDOWS-1252"
        return f"it is not UTF-8 (byte {error.start:,}); convert it, perhaps with: iconv -f {written} -t UTF-8"
    return str(error).strip().split("\n")[0] or type(error).__name__


def reason(error: BaseException) -> str:
    """What another library's error says, in one line: its kind, its message and that of its cause."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    # A worker's error brings the traceback along, and says what it is in the last line.
    text = lines[-1 if any("Traceback (most recent call last)" in line for line in lines) else 0] if lines else ""
    cause = first_line(error.__cause__) if isinstance(error.__cause__, Exception) else ""
    known = not cause or '"""' in cause or cause in text
    return f"{type(error).__name__}: {text}".removesuffix(": ") + ("" if known else f" ({cause})")


def config_reason(error: Exception) -> str:
    """Why a config was refused, in one line that names the field."""
    # The library's own first line names the validator; the reason is the last.
    reason = str(error.__cause__ or error).strip().split("\n")[-1].strip()
    name = re.search(r"field '(\w+)'", str(error))
    return f"{name[1]}: {reason}" if name and name[1] not in reason else reason


@contextlib.contextmanager
def naming_failures(what: str) -> Iterator[None]:
    """What a damaged or hostile file leads the libraries to raise becomes a [`UsageError`] that begins with `what`."""
    try:
        yield
    except UsageError:
        raise
    except StrictDataclassError as error:
        raise UsageError(f"{what}: {config_reason(error)}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{what}: {first_line(error)}") from error
    except Exception as error:  # says nothing without its kind
        raise UsageError(f"{what}: {reason(error)}") from error
