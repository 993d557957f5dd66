"""The command line: `electra-exit COMMAND ...`; each command is described where it is defined."""

import argparse
import errno
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
import transformers

import modeling_electra_exit
from modeling_electra_exit import __version__

from .callbacks import Interrupted, Preempted
from .checkpoints import RunError
from .console import OutputError, lasting_streams
from .data import DataError
from .parsing import Parser, ParserExit, UsageError, reason


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 2 for what the user can put right, 1 for what failed, 75 where SIGTERM and 130 where Ctrl-C
        ended a run, 141 where the reader of an answer had enough.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = bool(os.environ.get("ELECTRA_EXIT_DEBUG"))
    for end in (slice(1), slice(-1, None)):
        if argv[end] == ["--debug"]:
            debug = True
            del argv[end]
    command = argv[0] if argv else ""
    try:
        with lasting_streams(carries_answer=command in ANSWERING):
            return _run_and_report(argv, command, debug)
    except OutputError as error:  # the last of the answer
        return _report(error, command, debug)


def _run_and_report(argv: Sequence[str], command: str, debug: bool) -> int:
    """The edge of every command: whatever is raised becomes one sentence and an exit status."""
    try:
        return _run(argv)
    except ParserExit:
        raise
    except (Preempted, Interrupted) as stop:
        saved = "the last checkpoint, for none could be written now" if stop.step is None else f"step {stop.step}"
        print(f"\nasked to end; the same command continues from {saved}: {typed(argv)}", file=sys.stderr)
        return stop.code if isinstance(stop, Preempted) else 130
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from the last checkpoint, if one was saved", file=sys.stderr)
        return 130
    except BaseException as error:  # SystemExit of a user's code, a panic of a library in Rust
        return _report(error, command, debug)


def _report(error: BaseException, command: str, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    text, status = sentence(error)
    print(f"electra-exit {command}: error: {' '.join(text.splitlines())}", file=sys.stderr)
    return status


def _run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="electra-exit",
        usage="electra-exit [--debug] COMMAND ...",
        description="ELECTRA with adaptive early exits.",
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"electra-early-exit {__version__}")
    parser.add_argument("--debug", action="store_true",
                        help="show the traceback of an error, too; ELECTRA_EXIT_DEBUG=1 does the same")  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, description) in COMMANDS.items():
        commands.add_parser(name, help=f"{description} ({name} --help for more)", add_help=False)
    arguments = parser.parse_args(argv[:1])
    logging.basicConfig(format="%(message)s")
    logging.getLogger("modeling_electra_exit").setLevel(logging.INFO)  # counts and what is going on
    transformers.utils.logging.disable_progress_bar()  # of loading and saving; training has its own
    where, _ = COMMANDS[arguments.command]
    module, function = where.split(":")
    return getattr(import_module(f".{module}", __package__), function)(argv[1:])


def sentence(error: BaseException) -> tuple[str, int]:
    """What a user reads of an error, and the exit status."""
    if isinstance(error, (UsageError, DataError)):
        return str(error), 2
    if isinstance(error, OutputError):
        return str(error), error.status
    if isinstance(error, RunError):
        return str(error), 1
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"there is not enough memory: {reason(error)}", 1
    if isinstance(error, OSError) and error.filename is not None:
        # What is full or broken is not the user's mistake.
        return f"{error.strerror}: {error.filename}", 1 if error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EIO,
        ) else 2
    if isinstance(error, SystemExit):
        return f"code that this command loaded called sys.exit({error.code!r}) before it was finished", 1
    return f"unexpected {reason(error)}{_place(error)}; --debug shows the traceback", 1


def _place(error: BaseException) -> str:
    """The last line of this package that an error came through."""
    ours = {Path(__file__).parent, Path(modeling_electra_exit.__file__).parent}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent in ours]
    return f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def typed(argv: Sequence[str]) -> str:
    """The command as it was typed, but for a secret in it."""
    words = ["electra-exit", *argv]
    for number, word in enumerate(words):
        if word.replace("-", "_").startswith("__hub_token"):
            if "=" in word:
                words[number] = word.partition("=")[0] + "=..."
            elif number + 1 < len(words):
                words[number + 1] = "..."
    return shlex.join(words)


# Name -> its function, and what it does. The function's module is imported when the command is called, so that no
# command fails, or waits, for the sake of another.
COMMANDS = {
    "pretrain": ("pretraining:pretrain_command", "pre-train a model from a recipe"),
    "cache-replacements": (
        "cached_replacements:cache_command",
        "sample replacements once, for --generator_type cached",
    ),
    "finetune": ("finetuning:finetune_command", "fine-tune a checkpoint on a GLUE task"),
    "calibrate": ("calibration:calibrate_command", "pick the thresholds of a fine-tuned model's exits"),
    "evaluate": ("evaluation:evaluate_command", "measure a checkpoint on GLUE tasks and BLiMP"),
    "score": ("scoring:score_command", "say of each token of a text how likely it is a replacement"),
    "export": ("loading:export_command", "write a checkpoint as plain ELECTRA"),
    "push": ("hub:push_command", "push a run or a saved model to the Hub"),
    "push-dataset": ("push_dataset:push_dataset_command", "push prepared data and its tokenizer"),
    "card": ("model_card:card_command", "render a run's model card again"),
    "study": ("study:study_command", "run a matrix of pre-trainings and judge them"),
}
# These are run for what they print, the others for what they write.
ANSWERING = ("score",)


if __name__ == "__main__":
    sys.exit(main())
