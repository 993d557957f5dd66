"""Standard output and error streams that survive a closed pipe, a full disk or an ASCII-only encoding."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class OutputError(Exception):
    """Writing the result of a command to standard output failed. The message is one line.

    status (`int`): exit status: 141 for a closed pipe, such as after `head` (the value that shells report for
        SIGPIPE), else 1.
    """

    def __init__(self, error: OSError):
        super().__init__(f"could not write all output: {error.strerror}")
        self.status = 141 if error.errno == errno.EPIPE else 1


class _Stream(io.FileIO):
    """The file behind a standard stream. If a write fails, the stream discards all later output. A stream that carries
    the command's result raises [`OutputError`]; otherwise a failure of standard output is reported on standard
    error."""

    def __init__(self, descriptor: int, carries_answer: bool):
        super().__init__(descriptor, "w", closefd=False)
        self.carries_answer = carries_answer

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if self.carries_answer:
                raise OutputError(error) from error
            if self.fileno() == 1:
                print(f"standard output failed ({error.strerror}); continuing without it", file=sys.stderr)
            return len(data)


@contextmanager
def lasting_streams(carries_answer: bool) -> Iterator[None]:
    """Replace standard output and error with streams that survive write errors, unless the caller has replaced them.

    Args:
        carries_answer: whether the command's result goes to standard output, so that a failed write ends the command.

    Raises:
        OutputError: if `carries_answer` and standard output could not be written.
    """
    before = sys.stdout, sys.stderr
    for descriptor in range(3):  # otherwise the next file opened would take a closed descriptor and receive the output
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(2, sys.stderr, False, line_buffering=True)
    if sys.stdout is sys.__stdout__:
        if sys.stdout is None and carries_answer:
            raise OutputError(OSError(errno.EBADF, os.strerror(errno.EBADF)))
        with suppress(AttributeError):
            sys.stdout.flush()
        sys.stdout = _text(1, sys.stdout, carries_answer)
    try:
        yield
        sys.stdout.flush()
    finally:
        with suppress(OutputError):
            sys.stdout.flush()
        sys.stdout, sys.stderr = before


def _text(descriptor: int, before: io.TextIOBase | None, carries_answer: bool, line_buffering: bool | None = None):
    """A text stream like the interpreter's own, but with unencodable characters written as escapes."""
    encoding = getattr(before, "encoding", None) or "utf-8"
    if line_buffering is None:
        line_buffering = os.isatty(descriptor)
    file = io.BufferedWriter(_Stream(descriptor, carries_answer))
    return io.TextIOWrapper(file, encoding, "backslashreplace", line_buffering=line_buffering, write_through=False)
