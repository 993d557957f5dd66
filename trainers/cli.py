"""The command line: `electra-exit pretrain RECIPE [--field value ...]`, `electra-exit cache-replacements RECIPE` and
`electra-exit study NAME`."""

import argparse
import logging
import sys
from collections.abc import Sequence

import transformers

from modeling_electra_exit import __version__

from .cached_replacements import cache_command
from .data import DataError
from .parsing import UsageError, parse
from .pretraining import pretrain
from .study import study_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser("electra-exit", description="Pre-train ELECTRA with adaptive early exits.")
    parser.add_argument("--version", action="version", version=f"electra-early-exit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("pretrain", help="pre-train a model from a recipe (pretrain --help for more)", add_help=False)
    commands.add_parser("cache-replacements", add_help=False,
                        help="sample replacements once, for --generator_type cached (--help for more)")  # fmt: skip
    commands.add_parser("study", help="run a matrix of pre-trainings and judge them (study --help for more)",
                        add_help=False)  # fmt: skip
    arguments = parser.parse_args(argv[:1])
    logging.basicConfig(format="%(message)s")
    logging.getLogger("modeling_electra_exit").setLevel(logging.INFO)  # counts and what is going on
    transformers.utils.logging.disable_progress_bar()  # of loading and saving; training has its own
    try:
        return COMMANDS[arguments.command](argv[1:])
    except (UsageError, DataError) as error:
        print(f"electra-exit {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from the last checkpoint, if one was saved", file=sys.stderr)
        return 130


def pretrain_command(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    pretrain(*arguments)
    return 0


COMMANDS = {"pretrain": pretrain_command, "cache-replacements": cache_command, "study": study_command}


if __name__ == "__main__":
    sys.exit(main())
