"""The command line: `electra-exit COMMAND ...`, with one module per command.

Each module parses its arguments before it imports anything large, so that `--help`, `--version`, typos and missing
files are handled without loading torch.
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


# Each command's description. The module of the same name is imported when the command is called.
COMMANDS = {
    "pretrain": "pre-train a model from a recipe",
    "cache-replacements": "sample replacements in advance, for --generator_type cached",
    "finetune": "fine-tune a checkpoint on your own task or a GLUE task",
    "calibrate": "choose the exit thresholds of a fine-tuned model",
    "evaluate": "evaluate a checkpoint on its own task, GLUE tasks or BLiMP",
    "info": "show what a model is, its scores, and what you can do with it",
    "score": "predict the labels or tags of texts, or which tokens were replaced",
    "demo": "try a model on a local web page, or write that page as a Space",
    "export": "export a checkpoint as plain ELECTRA",
    "push": "push a run or a saved model to the Hub",
    "push-dataset": "push prepared data and its tokenizer to the Hub",
    "card": "render a run's model card again",
}
# Commands whose result is their standard output; the others write files.
ANSWERING = ("score", "info")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with `argv` (default: `sys.argv[1:]`). Returns the exit status; see [`report`]."""
    # OpenMP reads this when torch loads it. By default, its threads wait in a loop. If another process is busy, that
    # takes most of the processor, and a training step of the quickstart several times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return report(_run, sys.argv[1:] if argv is None else argv, "electra-exit", ANSWERING)


def _run(argv: list[str]) -> int:
    parser = Parser(
        prog="electra-exit",
        usage="electra-exit [--debug] COMMAND ...",
        description="ELECTRA pre-training with early exits.",
    )
    parser.add_argument("--version", action="version", version=f"electra-early-exit {version()}")
    parser.add_argument("--debug", action="store_true",
                        help="show the traceback of an error; ELECTRA_EXIT_DEBUG=1 does the same")  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, description in COMMANDS.items():
        commands.add_parser(name, help=f"{description} ({name} --help for more)", add_help=False)
    command = parser.parse_args(argv[:1]).command
    return import_module(f".{command.replace('-', '_')}", __package__).run(argv[1:])


def report(run: Callable[[list[str]], int], argv: Sequence[str], program: str, answering: Sequence[str] = ()) -> int:
    """Call `run(argv)` and turn any exception into a one-sentence error message and an exit status.

    Args:
        run: function that takes `argv` without `--debug` and returns an exit status.
        argv: the arguments; the first one names the command.
        program: name of the program in messages.
        answering: commands whose result is their standard output.

    Returns:
        The exit status: 2 for an error that the user can correct, 1 for any other failure, 75 after SIGTERM, 130 after
        Ctrl-C, 141 if the reader of the output closed the pipe, else that of `run`.
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
            except BaseException as error:  # includes SystemExit from user code and panics of Rust libraries
                return _report(error, argv, program, debug)
    except OutputError as error:  # from the final flush
        return _report(error, argv, program, debug)


def _report(error: BaseException, argv: list[str], program: str, debug: bool) -> int:
    with suppress(OSError, OutputError, ValueError):
        sys.stdout.flush()  # keeps the order in a log that collects both streams
    if debug:
        traceback.print_exception(error)
    if isinstance(error, OutputError):
        text, status = str(error), error.status
    elif type(error) is KeyboardInterrupt:  # possibly during an import, which must not be repeated
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
    """The command as it was typed, with the value of --hub_token hidden."""
    words = [*program.split(), *argv]
    for number, word in enumerate(words):
        if word.replace("-", "_").startswith("__hub_token"):
            if "=" in word:
                words[number] = word.partition("=")[0] + "=..."
            elif number + 1 < len(words):
                words[number + 1] = "..."
    return shlex.join(words)
