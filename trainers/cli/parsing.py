"""Turn recipes and flags into arguments. Every field of a recipe is also a flag, and one parser reads both."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from modeling_electra_exit.trainers.data.arguments import DataArguments
from modeling_electra_exit.trainers.data.reading import SOURCES
from modeling_electra_exit.trainers.errors import UsageError, reason
from modeling_electra_exit.trainers.finetuning.arguments import FineTuningArguments, FineTuningDataArguments
from modeling_electra_exit.trainers.runtime.arguments import ElectraEarlyExitTrainingArguments

from .flags import config_flags
from .hub import DATASETS, GLUE_ON_THE_HUB, MODELS, check_reachable
from .parser import OneLineErrors, Parser, ParserExit
from .places import RECIPES, yaml_names
from .quick import HELP_ALL, unknown_field, with_underscores
from .recipes import read_yaml, recipe_arguments


@dataclass(frozen=True)
class Command:
    """A command of `electra-exit` that takes a recipe, and the fields that its recipes may set.

    Args:
        name: name of the command.
        description: first words of its help.
        recipes: folder of its packaged recipes.
        data: dataclass of the data arguments.
        training: dataclass of the training arguments, a [`TrainingArguments`].
        config_flags: names of the model config's fields that are flags.
        sources: fields of `data` that name a source; any of them on the command line replaces all of the recipe's.
        or_model: whether a checkpoint can be given instead of a recipe.
    """

    name: str
    description: str
    recipes: Path
    data: type
    training: type
    config_flags: tuple[str, ...]
    sources: tuple[str, ...]
    or_model: bool = False

    def recipe_names(self) -> list[str]:
        return yaml_names(self.recipes)


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
    "Fine-tune an electra-exit, ELECTRA or BERT checkpoint, once per seed, on your own task or a GLUE task, from a "
    "recipe",
    RECIPES / "finetuning",
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
)


class RecipeParser(OneLineErrors, HfArgumentParser):
    """The parser of a command whose flags are the fields of dataclasses."""


def read_recipe(name_or_path: str, command: Command = PRETRAIN) -> dict:
    """The fields of a packaged recipe (by name) or of a YAML file (by path).

    Raises:
        UsageError: if there is no such recipe, or it is not a YAML mapping.
    """
    if name_or_path in command.recipe_names():
        text = (command.recipes / f"{name_or_path}.yaml").read_text(encoding="utf-8")
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


def build_parser(command: Command = PRETRAIN) -> RecipeParser:
    """A parser with a flag for every field of a recipe. `--help_all` prints its help."""
    recipe = "RECIPE_OR_MODEL" if command.or_model else "RECIPE"
    parser = RecipeParser(
        [command.data, command.training],
        prog=f"electra-exit {command.name}",
        usage=f"electra-exit {command.name} {recipe} [--field value ...]",
        description=f"{command.description}: {', '.join(command.recipe_names())}, or a YAML file of your own. Every "
        "field of a recipe is also a flag, and flags override the recipe.",
        allow_abbrev=False,
        add_help=False,
        formatter_class=argparse.HelpFormatter,
    )
    meaning = "name of a packaged recipe, or path of a YAML file"
    if command.or_model:
        meaning += "; or a checkpoint, to use the defaults below"
    parser.add_argument("recipe", help=meaning, metavar=recipe)
    for action in parser._actions:
        if action.dest == "bf16":
            action.type = _bool_or_auto
        # `--max-steps` works too (see `with_underscores`); showing both would double the length of the help.
        action.option_strings = [option for option in action.option_strings if "-" not in option[2:]]
        if action.option_strings[:1] == [f"--no_{action.dest}"]:
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


def _group_of(name: str) -> str:
    if name.startswith("exit_") or name == "exit_exploration":
        return "exits"
    if name.startswith(("generator_", "discriminator_", "mlm_")):
        return "generator and objective"
    return "model (fields of ElectraConfig)"


def parse(argv: Sequence[str], command: Command = PRETRAIN) -> tuple[dict, object, TrainingArguments, dict]:
    """Parse a command line: a recipe, then flags.

    Returns:
        The config fields that were given, the data arguments, the training arguments, and all fields that were given.

    Raises:
        UsageError: if the recipe or a field is invalid.
        ParserExit: for `--help_all`, for a value that argparse rejects, or as [`hub.check_reachable`].
    """
    argv = list(argv)
    if HELP_ALL & set(argv):
        build_parser(command).print_help()
        raise ParserExit(0)
    arguments = parse_fields(read_recipe(argv[0], command), argv[1:], command)
    check_names(arguments)
    return arguments


def check_names(arguments: tuple[dict, object, TrainingArguments, dict]) -> None:
    """Check that the Hub ids in `arguments`, the result of [`parse_fields`], can be loaded.

    Raises:
        ParserExit: as [`hub.check_reachable`].
    """
    fields = {name: value for part in arguments[1:3] for name, value in vars(part).items()}
    models, datasets = ([fields.get(flag[2:]) for flag in flags] for flags in (MODELS, DATASETS))
    if fields.get("task") and not (fields["data_dir"] or fields["train_file"] or any(datasets)):
        datasets = [GLUE_ON_THE_HUB]
    check_reachable(Parser(prog="electra-exit"), models, datasets)


def parse_fields(
    recipe: dict, flags: Sequence[str] = (), command: Command = PRETRAIN
) -> tuple[dict, object, TrainingArguments, dict]:
    """Like [`parse`], for a recipe that has already been read."""
    parser = build_parser(command)
    flags = [with_underscores(token) for token in flags]
    on_the_command_line = {token.split("=")[0] for token in flags}
    replaced = set()
    if {f"--{source}" for source in command.sources} & on_the_command_line:
        # Text named on the command line replaces the recipe's text, whatever their kinds of source.
        replaced |= {*command.sources, "language"}
    if "--lr_scheduler_type" in on_the_command_line:
        replaced.add("lr_scheduler_kwargs")  # those of the recipe's schedule
    recipe = {name: value for name, value in recipe.items() if name not in replaced}
    tokens = recipe_arguments(recipe) + flags
    known = {option for action in parser._actions for option in action.option_strings}
    for token in tokens:
        if token.startswith("--") and (flag := token.split("=")[0]) not in known:
            raise UsageError(unknown_field(flag, known))
    namespace = parser.parse_args(["RECIPE", *tokens])
    of_exits = sorted(flag for flag in on_the_command_line - {"--exit_policy"} if flag.startswith("--exit_"))
    if of_exits and namespace.exit_policy == "none":
        raise UsageError(f"{of_exits[0]} requires exits, but `exit_policy` is none: give --exit_policy random")
    try:
        data_args = command.data(**_take(namespace, command.data))
        training_args = command.training(**_take(namespace, command.training))
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    except (LookupError, AttributeError, OSError, RuntimeError, ArithmeticError) as error:  # from Transformers' checks
        raise UsageError(f"these settings are incompatible: {reason(error)}") from error
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


def _take(namespace, dataclass_type) -> dict:
    return {
        f.name: getattr(namespace, f.name) for f in fields(dataclass_type) if f.init and hasattr(namespace, f.name)
    }
