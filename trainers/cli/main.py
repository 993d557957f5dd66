"""The command line: `electra-exit COMMAND ...`, one module a command.

A command's module parses first and imports what it needs afterwards, inside its function: help, a version, a typo and
a missing file are answered before torch is loaded.
"""

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module

from .console import OutputError, lasting_streams
from .parser import Parser, ParserExit
from .places import version


# What each command does. Its module, of the same name, is imported when the command is called.
COMMANDS = {
    "pretrain": "pre-train a model from a recipe",
    "cache-replacements": "sample replacements in advance, for --generator_type cached",
    "finetune": "fine-tune a checkpoint on your own task or a GLUE task",
    "calibrate": "pick the thresholds of a fine-tuned model's exits",
    "evaluate": "evaluate a checkpoint on its own task, GLUE tasks or BLiMP",
    "info": "show what a model is, its scores, and what you can do with it",
    "score": "predict labels or tags of texts, or which of their tokens were replaced",
    "demo": "try a model on a page of this machine, or write that page as a Space",
    "export": "write a checkpoint as plain ELECTRA",
    "push": "push a run or a saved model to the Hub",
    "push-dataset": "push prepared data and its tokenizer",
    "card": "render a run's model card again",
}
# These are run for what they print, the others for what they write.
ANSWERING = ("score", "info")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, as [`report`] does."""
    return report(_run, sys.argv[1:] if argv is None else argv, "electra-exit", ANSWERING)


def _run(argv: list[str]) -> int:
    parser = Parser(
        prog="electra-exit",
        usage="electra-exit [--debug] COMMAND ...",
        description="ELECTRA pre-training with early exits.",
    )
    parser.add_argument("--version", action="version", version=f"electra-early-exit {version()}")
    parser.add_argument("--debug", action="store_true",
                        help="also show the traceback of an error; ELECTRA_EXIT_DEBUG=1 does the same")  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, description in COMMANDS.items():
        commands.add_parser(name, help=f"{description} ({name} --help for more)", add_help=False)
    command = parser.parse_args(argv[:1]).command
    return import_module(f".{command.replace('-', '_')}", __package__).run(argv[1:])


def report(run: Callable[[list[str]], int], argv: Sequence[str], program: str, answering: Sequence[str] = ()) -> int:
    """Run `argv`, whose first word names the command; whatever is raised becomes one sentence and an exit status.

    Args:
        run: takes `argv` without `--debug`.
        program: how the program is called.
        answering: commands that are run for what they print.

    Returns:
        2 for what the user can put right, 1 for what failed, 75 where SIGTERM and 130 where Ctrl-C ended a run, 141
        where the reader of an answer had enough.
    """
    argv = list(argv)
    debug = bool(os.environ.get("ELECTRA_EXIT_DEBUG"))
    for end in (slice(1), slice(-1, None)):
        if argv[end] == ["--debug"]:
            debug = True
            del argv[end]
    try:
        with lasting_streams(carries_answer=bool(argv) and argv[0] in answering):
            try:
                return run(argv)
            except ParserExit as answered:
                return answered.code
            except BaseException as error:  # SystemExit of a user's code, a panic of a library in Rust
                return _report(error, argv, program, debug)
    except OutputError as error:  # the last of the answer
        return _report(error, argv, program, debug)


def _report(error: BaseException, argv: list[str], program: str, debug: bool) -> int:
    with suppress(OSError, OutputError, ValueError):
        sys.stdout.flush()  # what was printed before the error comes before it in a log of both streams
    if debug:
        traceback.print_exception(error)
    if isinstance(error, OutputError):
        text, status = str(error), error.status
    elif type(error) is KeyboardInterrupt:  # perhaps in the middle of an import, which must not be tried again
        text, status = "interrupted; the same command continues from the last checkpoint, if one was saved", 130
    else:
        from .sentences import sentence

        text, status = sentence(error, typed(argv, program))
    if isinstance(error, KeyboardInterrupt) or status == os.EX_TEMPFAIL:
        print(f"\n{text}", file=sys.stderr)
    else:
        print(f"{' '.join([program, *argv[:1]])}: error: {' '.join(text.splitlines())}", file=sys.stderr)
    return status


def typed(argv: Sequence[str], program: str = "electra-exit") -> str:
    """The command as it was typed, but for a secret in it."""
    words = [*program.split(), *argv]
    for number, word in enumerate(words):
        if word.replace("-", "_").startswith("__hub_token"):
            if "=" in word:
                words[number] = word.partition("=")[0] + "=..."
            elif number + 1 < len(words):
                words[number + 1] = "..."
    return shlex.join(words)
