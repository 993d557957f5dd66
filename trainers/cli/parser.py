"""The command-line parser. It imports nothing large, so `--help` and errors are fast."""

import argparse
import sys


class ParserExit(SystemExit):
    """The parser has printed help, a version or an error, and the command must exit with `code`."""

    code: int


class OneLineErrors:
    """Mixin for [`argparse.ArgumentParser`] that prints errors in one line, without the usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def exit(self, status=0, message=None):
        if message:
            self._print_message(message, sys.stderr)
        raise ParserExit(status)


class Parser(OneLineErrors, argparse.ArgumentParser):
    """The parser of a command that does not take a recipe."""
