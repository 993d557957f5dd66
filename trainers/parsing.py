"""From recipes and flags to arguments: every field of a recipe is also a flag, and both go through one parser."""

import argparse
import difflib
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from .arguments import (
    DataArguments,
    ElectraEarlyExitTrainingArguments,
    FineTuningArguments,
    FineTuningDataArguments,
    config_flags,
)
from .data import SOURCES, first_line


@dataclass(frozen=True)
class Command:
    """A command of `electra-exit` that takes a recipe, and what a recipe of it may say.

    Args:
        recipes: the folder with the packaged ones.
        data, training: dataclasses; the training arguments are a [`TrainingArguments`].
        config_flags: the names of the fields of the model's config.
        sources: fields of `data` of which one on the command line takes the place of all of the recipe's.
        or_model: whether a checkpoint can stand in the place of a recipe.
        without: common training flags that --help does not show, because the command refuses them.
    """

    name: str
    description: str
    recipes: Traversable
    data: type
    training: type
    config_flags: tuple[str, ...]
    sources: tuple[str, ...]
    or_model: bool = False
    without: tuple[str, ...] = ()

    def recipe_names(self) -> list[str]:
        return yaml_names(self.recipes)


# A recipe has some dozens of values; aliases within aliases can make a short file say billions.
MAX_YAML_NODES = 10_000

RECIPES = files(__package__).joinpath("recipes")

PRETRAIN = Command(
    "pretrain",
    "Pre-train from a recipe",
    RECIPES,
    DataArguments,
    ElectraEarlyExitTrainingArguments,
    tuple(config_flags()),
    SOURCES,
)
FINETUNE = Command(
    "finetune",
    "Fine-tune a checkpoint of ours, of ELECTRA or of BERT on a GLUE task, once a seed, from a recipe",
    RECIPES.joinpath("finetuning"),
    FineTuningDataArguments,
    FineTuningArguments,
    (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "classifier_dropout",
        "classifier_pooling",
        "exit_policy",
        "exit_layers",
        "exit_loss_weight",
        "exit_distillation_weight",
    ),
    ("data_dir", "train_file", "validation_file", "dataset_name"),
    or_model=True,
    without=("push_to_hub", "hub_model_id"),
)


class UsageError(Exception):
    """Something the user can put right; shown as one line, exit status 2."""


def read_object(path: Path) -> dict:
    """What a JSON file says that must hold an object.

    Raises:
        UsageError: if it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a JSON object, got {content!r:.100}")
    return content


class ParserExit(SystemExit):
    """The command line has been answered: with help, a version, or what is wrong with it."""


class Parser(HfArgumentParser):
    """Errors in one line, without the two hundred flags."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def exit(self, status=0, message=None):
        if message:
            self._print_message(message, sys.stderr)
        raise ParserExit(status)


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


def yaml_names(folder: Traversable) -> list[str]:
    """The YAML files in a packaged folder, without their ending."""
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(name_or_path: str, command: Command = PRETRAIN) -> dict:
    """The fields of a packaged recipe, by name, or of a YAML file, by path."""
    if name_or_path in command.recipe_names():
        text = command.recipes.joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif os.path.isfile(name_or_path):
        text = Path(name_or_path).read_text(encoding="utf-8", errors="replace")
    elif command.or_model:
        return {"model": name_or_path}
    else:
        known = ", ".join(command.recipe_names())
        raise UsageError(f"no recipe `{name_or_path}`: give a YAML file, or one of {known}")
    recipe = read_yaml(text, name_or_path) or {}
    if not isinstance(recipe, dict):
        raise UsageError(f"{name_or_path} must map fields to values, got a {type(recipe).__name__}")
    return recipe


def read_yaml(text: str, name: str):
    """What YAML says, aliases resolved.

    Raises:
        UsageError: for what is no YAML, or so many nodes once its aliases are that nothing could be done with them.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MAX_YAML_NODES:
            raise UsageError(
                f"{name} holds more than {MAX_YAML_NODES:,} values with its aliases resolved; write fewer"
            )
        return loader.construct_document(node)
    except RecursionError as error:
        raise UsageError(f"{name} is nested too deeply") from error
    except UsageError:
        raise
    except Exception as error:  # not only YAMLError: a date that is none is a ValueError, a tag may be anything
        raise UsageError(f"{name} is not YAML: {' '.join(str(error).split())}") from error


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Nodes of a document, each counted as often as aliases repeat it; infinitely many where it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        held = [] if isinstance(node, yaml.ScalarNode) else node.value
        pairs = (part for item in held for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_size(part, known) for part in pairs)
    return known[id(node)]


def recipe_arguments(recipe: dict) -> list[str]:
    """A recipe as command-line arguments, so that recipes and flags go through the same parsing."""
    arguments = []
    for name, value in recipe.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        arguments += [
            f"--{name}",
            *(json.dumps(v, default=str) if isinstance(v, (bool, dict)) else str(v) for v in values),
        ]
    return arguments


def build_parser(command: Command = PRETRAIN, show_all: bool = False) -> Parser:
    recipe = "RECIPE_OR_MODEL" if command.or_model else "RECIPE"
    parser = Parser(
        [command.data, command.training],
        prog=f"electra-exit {command.name}",
        usage=f"electra-exit {command.name} {recipe} [--field value ...]",
        description=f"{command.description}: {', '.join(command.recipe_names())}, or a YAML file of yours. Every "
        "field of a recipe is also a flag here, and flags win. --help_all lists all flags.",
        allow_abbrev=False,
        add_help=False,
        formatter_class=argparse.HelpFormatter,
    )
    meaning = "name of a packaged recipe, or path of a YAML file"
    if command.or_model:
        meaning += "; or the checkpoint itself, with the defaults below"
    parser.add_argument("recipe", help=meaning, metavar=recipe)
    own = {f.name for f in fields(command.training)} - {f.name for f in fields(TrainingArguments)}
    common = (
        own | set(COMMON_TRAINING_FLAGS) - {*command.without} | {f.name for f in fields(command.data)} | {"recipe"}
    )
    for action in parser._actions:
        if action.dest == "bf16":
            action.type = _bool_or_auto
        # `--max-steps` works as `--max_steps` (see `_with_underscores`); showing both would double the page.
        action.option_strings = [option for option in action.option_strings if "-" not in option[2:]]
        if not show_all and (action.dest not in common or action.option_strings[:1] == [f"--no_{action.dest}"]):
            action.help = argparse.SUPPRESS
        elif action.help and action.default is not None and "%(default)s" not in action.help and action.option_strings:
            action.help = f"{action.help} (default: {str(action.default).replace('%', '%%')})"
    groups = {
        title: parser.add_argument_group(title)
        for title in ("model (fields of ElectraConfig)", "exits", "generator and objective")
    }
    flags = config_flags()
    for name in command.config_flags:
        groups[_group_of(name)].add_argument(f"--{name}", **flags[name])
    parser._action_groups.sort(key=lambda group: group.title.startswith("training"))
    return parser


COMMON_TRAINING_FLAGS = (
    "output_dir", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "optim", "learning_rate",
    "warmup_steps", "weight_decay", "adam_beta2", "max_grad_norm", "seed", "bf16", "save_steps", "save_total_limit",
    "eval_strategy", "eval_steps", "logging_steps", "dataloader_num_workers", "torch_compile", "push_to_hub",
    "hub_model_id", "report_to",
)  # fmt: skip


def _group_of(name: str) -> str:
    if name.startswith("exit_") or name == "audit_fraction":
        return "exits"
    if name.startswith(("generator_", "discriminator_", "mlm_")):
        return "generator and objective"
    return "model (fields of ElectraConfig)"


def parse(argv: Sequence[str], command: Command = PRETRAIN) -> tuple[dict, object, TrainingArguments, dict]:
    """Recipe and flags to: config fields that were given, data arguments, training arguments, all fields given."""
    argv = list(argv)
    if not argv or {"-h", "--help", "--help_all", "--help-all"} & set(argv):
        build_parser(command, show_all=bool({"--help_all", "--help-all"} & set(argv))).print_help()
        raise ParserExit(0 if argv else 2)
    if argv[0].startswith("-"):
        known = ", ".join(command.recipe_names())
        raise UsageError(f"the recipe comes first: one of {known}, or the path of a YAML file")
    return parse_fields(read_recipe(argv[0], command), argv[1:], command)


def parse_fields(
    recipe: dict, flags: Sequence[str] = (), command: Command = PRETRAIN
) -> tuple[dict, object, TrainingArguments, dict]:
    """As [`parse`], for a recipe already read."""
    parser = build_parser(command)
    flags = [_with_underscores(token) for token in flags]
    if {f"--{source}" for source in command.sources} & {token.split("=")[0] for token in flags}:
        # Text named on the command line takes the place of the recipe's, whatever kind of source either is.
        recipe = {name: value for name, value in recipe.items() if name not in (*command.sources, "language")}
    tokens = recipe_arguments(recipe) + flags
    known = {option for action in parser._actions for option in action.option_strings}
    for token in tokens:
        if token.startswith("--") and (flag := token.split("=")[0]) not in known:
            close = difflib.get_close_matches(flag, known, n=1)
            raise UsageError(f"unknown field `{flag[2:]}`" + (f"; did you mean `{close[0][2:]}`?" if close else ""))
    namespace = parser.parse_args(["RECIPE", *tokens])
    try:
        data_args = command.data(**_take(namespace, command.data))
        training_args = command.training(**_take(namespace, command.training))
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    except (LookupError, AttributeError, OSError, RuntimeError, ArithmeticError) as error:  # the library's own checks
        raise UsageError(f"these settings do not go together: {reason(error)}") from error
    config_fields = {n: getattr(namespace, n) for n in command.config_flags if getattr(namespace, n) is not None}
    given = {
        action.dest for action in parser._actions if {t.split("=")[0] for t in tokens} & set(action.option_strings)
    }
    return config_fields, data_args, training_args, {name: getattr(namespace, name) for name in sorted(given)}


def _bool_or_auto(text: str) -> bool | str:
    if text == "auto":
        return text
    try:
        return string_to_bool(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"must be true, false or auto, got {text}") from error


def _with_underscores(token: str) -> str:
    """`--max-steps` and `--max_steps` are the same flag."""
    if not token.startswith("--"):
        return token
    flag, equals, value = token.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _take(namespace, dataclass_type) -> dict:
    return {
        f.name: getattr(namespace, f.name) for f in fields(dataclass_type) if f.init and hasattr(namespace, f.name)
    }
