"""The command line: `electra-exit COMMAND ...`; each command is described where it is defined."""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module

import transformers

from modeling_electra_exit import __version__

from .callbacks import Interrupted, Preempted
from .checkpoints import RunError
from .data import DataError
from .parsing import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser("electra-exit", description="ELECTRA with adaptive early exits.")
    parser.add_argument("--version", action="version", version=f"electra-early-exit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, description) in COMMANDS.items():
        commands.add_parser(name, help=f"{description} ({name} --help for more)", add_help=False)
    arguments = parser.parse_args(argv[:1])
    logging.basicConfig(format="%(message)s")
    logging.getLogger("modeling_electra_exit").setLevel(logging.INFO)  # counts and what is going on
    transformers.utils.logging.disable_progress_bar()  # of loading and saving; training has its own
    try:
        where, _ = COMMANDS[arguments.command]
        module, function = where.split(":")
        return getattr(import_module(f".{module}", __package__), function)(argv[1:])
    except (UsageError, DataError) as error:
        print(f"electra-exit {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"electra-exit {arguments.command}: error: {error}", file=sys.stderr)
        return 1
    except (Preempted, Interrupted) as stop:
        saved = "the last checkpoint, for none could be written now" if stop.step is None else f"step {stop.step}"
        print(f"\nasked to end; the same command continues from {saved}: {typed(argv)}", file=sys.stderr)
        return stop.code if isinstance(stop, Preempted) else 130
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from the last checkpoint, if one was saved", file=sys.stderr)
        return 130


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


if __name__ == "__main__":
    sys.exit(main())
