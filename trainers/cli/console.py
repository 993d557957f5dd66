"""Standard output and error that do not end a run: they may be closed, full, or know ASCII alone."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class OutputError(Exception):
    """Standard output, which a command answers on, could not be written; the message is one line.

    status (`int`): 141 where a reader such as `head` had enough, as shells report SIGPIPE, else 1.
    """

    def __init__(self, error: OSError):
        super().__init__(f"standard output could not be written to its end: {error.strerror}")
        self.status = 141 if error.errno == errno.EPIPE else 1


class _Stream(io.FileIO):
    """The file behind a standard stream. When it fails for the first time it is said on standard error, and what comes
    after is dropped; or, for a stream that carries the answer, an [`OutputError`] is raised."""

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
                print(f"standard output is lost ({error.strerror}); the work continues", file=sys.stderr)
            return len(data)


@contextmanager
def lasting_streams(carries_answer: bool) -> Iterator[None]:
    """Put such streams in the place of the process's own; any other that a caller has put there stays.

    Args:
        carries_answer: standard output is what the command is run for, so that failing to write it ends the command.

    Raises:
        OutputError: if it carries the answer and could not be written.
    """
    before = sys.stdout, sys.stderr
    for descriptor in range(3):  # else the next file opened would get the number, and what is printed
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
    """A stream as the interpreter opens it, whatever it cannot encode written as an escape."""
    encoding = getattr(before, "encoding", None) or "utf-8"
    if line_buffering is None:
        line_buffering = os.isatty(descriptor)
    file = io.BufferedWriter(_Stream(descriptor, carries_answer))
    return io.TextIOWrapper(file, encoding, "backslashreplace", line_buffering=line_buffering, write_through=False)
