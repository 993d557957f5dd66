"""The parser of a command line. It imports nothing large, so that help and typos answer at once."""

import argparse
import sys


class ParserExit(SystemExit):
    """The command line has been answered: with help, a version, or what is wrong with it."""

    code: int


class OneLineErrors:
    """For an [`argparse.ArgumentParser`]: errors in one line, without the usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def exit(self, status=0, message=None):
        if message:
            self._print_message(message, sys.stderr)
        raise ParserExit(status)


class Parser(OneLineErrors, argparse.ArgumentParser):
    """Of a command whose flags are few."""
