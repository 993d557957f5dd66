"""From recipes and flags to arguments: every field of a recipe is also a flag, and both go through one parser."""

import argparse
import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import fields
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import yaml
from transformers import HfArgumentParser, TrainingArguments

from .arguments import DataArguments, ElectraEarlyExitTrainingArguments, config_flags
from .data import SOURCES


RECIPES = files(__package__).joinpath("recipes")


class UsageError(Exception):
    """Something the user can put right; shown as one line, exit status 2."""


class Parser(HfArgumentParser):
    """Errors in one line, without the two hundred flags."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def yaml_names(folder: Traversable) -> list[str]:
    """The YAML files in a packaged folder, without their ending."""
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def recipe_names() -> list[str]:
    return yaml_names(RECIPES)


def read_recipe(name_or_path: str) -> dict:
    """The fields of a packaged recipe, by name, or of a YAML file, by path."""
    if name_or_path in recipe_names():
        text = RECIPES.joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif os.path.isfile(name_or_path):
        text = Path(name_or_path).read_text(encoding="utf-8", errors="replace")
    else:
        raise UsageError(f"no recipe `{name_or_path}`: give a YAML file, or one of {', '.join(recipe_names())}")
    try:
        recipe = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{name_or_path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise UsageError(f"{name_or_path} must map fields to values, got a {type(recipe).__name__}")
    return recipe


def recipe_arguments(recipe: dict) -> list[str]:
    """A recipe as command-line arguments, so that recipes and flags go through the same parsing."""
    arguments = []
    for name, value in recipe.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{name}", *(json.dumps(v) if isinstance(v, bool) else str(v) for v in values)]
    return arguments


def build_parser(show_all: bool = False) -> Parser:
    parser = Parser(
        [DataArguments, ElectraEarlyExitTrainingArguments],
        prog="electra-exit pretrain",
        usage="electra-exit pretrain RECIPE [--field value ...]",
        description=f"Pre-train from a recipe: {', '.join(recipe_names())}, or a YAML file of yours. Every field of "
        "a recipe is also a flag here, and flags win. --help_all lists all flags.",
        allow_abbrev=False,
        add_help=False,
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument("recipe", help="name of a packaged recipe, or path of a YAML file", metavar="RECIPE")
    own = {f.name for f in fields(ElectraEarlyExitTrainingArguments)} - {f.name for f in fields(TrainingArguments)}
    common = own | set(COMMON_TRAINING_FLAGS) | {f.name for f in fields(DataArguments)} | {"recipe"}
    for action in parser._actions:
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
    for name, keywords in config_flags().items():
        groups[_group_of(name)].add_argument(f"--{name}", **keywords)
    parser._action_groups.sort(key=lambda group: group.title.startswith("training"))
    return parser


COMMON_TRAINING_FLAGS = (
    "output_dir", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
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


def parse(argv: Sequence[str]) -> tuple[dict, DataArguments, ElectraEarlyExitTrainingArguments, dict]:
    """Recipe and flags to: config fields that were given, data arguments, training arguments, all fields given."""
    argv = list(argv)
    if not argv or {"-h", "--help", "--help_all", "--help-all"} & set(argv):
        build_parser(show_all=bool({"--help_all", "--help-all"} & set(argv))).print_help()
        raise SystemExit(0 if argv else 2)
    if argv[0].startswith("-"):
        raise UsageError(f"the recipe comes first: one of {', '.join(recipe_names())}, or the path of a YAML file")
    return parse_fields(read_recipe(argv[0]), argv[1:])


def parse_fields(
    recipe: dict, flags: Sequence[str] = ()
) -> tuple[dict, DataArguments, ElectraEarlyExitTrainingArguments, dict]:
    """As [`parse`], for a recipe already read."""
    parser = build_parser()
    flags = [_with_underscores(token) for token in flags]
    if {f"--{source}" for source in SOURCES} & {token.split("=")[0] for token in flags}:
        # Text named on the command line takes the place of the recipe's, whatever kind of source either is.
        recipe = {name: value for name, value in recipe.items() if name not in (*SOURCES, "language")}
    tokens = recipe_arguments(recipe) + flags
    known = {option for action in parser._actions for option in action.option_strings}
    for token in tokens:
        if token.startswith("--") and (flag := token.split("=")[0]) not in known:
            close = difflib.get_close_matches(flag, known, n=1)
            raise UsageError(f"unknown field `{flag[2:]}`" + (f"; did you mean `{close[0][2:]}`?" if close else ""))
    namespace = parser.parse_args(["RECIPE", *tokens])
    try:
        data_args = DataArguments(**_take(namespace, DataArguments))
        training_args = ElectraEarlyExitTrainingArguments(**_take(namespace, ElectraEarlyExitTrainingArguments))
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    config_fields = {name: getattr(namespace, name) for name in config_flags() if getattr(namespace, name) is not None}
    given = {
        action.dest for action in parser._actions if {t.split("=")[0] for t in tokens} & set(action.option_strings)
    }
    return config_fields, data_args, training_args, {name: getattr(namespace, name) for name in sorted(given)}


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
