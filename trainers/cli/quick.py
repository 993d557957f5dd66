"""Checks of a command line that need no torch: help, and recipes, flags and files that do not exist.

Parsing repeats all checks, so a mistake that passes here is still rejected there.
"""

import difflib
import glob
import os
import re
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .hub import DATASETS, GLUE_ON_THE_HUB, MODELS, check_reachable
from .parser import Parser
from .places import RECIPES, TRAINERS, package_folder, yaml_names


# Flags whose values are local files.
FILES = {"--train_file", "--validation_file"}
# Flags that also take folders and patterns.
TEXTS = {"--train_files", "--validation_files"}
HELP, HELP_ALL = {"-h", "--help"}, {"--help_all", "--help-all"}
# The source files that declare the fields that are flags, by package.
DECLARED_IN = {
    "transformers": ("training_args.py", "configuration_utils.py", "models/electra/configuration_electra.py"),
    "modeling_electra_exit": ("configuration_electra_exit.py",),
    "trainers": ("runtime/arguments.py", "data/arguments.py", "finetuning/arguments.py"),
}


@dataclass(frozen=True)
class Page:
    """The help of a command that takes a recipe.

    Args:
        command: name of the command.
        recipes: folder of its packaged recipes, below `recipes/`.
        usage, description: as in argparse.
        examples: example commands, shown first.
        options: group title -> flag with its metavar -> meaning and default.
        or_model: whether a checkpoint can be given instead of a recipe.
    """

    command: str
    recipes: str
    usage: str
    description: str
    examples: tuple[str, ...]
    options: dict[str, dict[str, str]]
    or_model: bool = False

    def __str__(self) -> str:
        lines = [f"usage: {self.usage}", "", *self.examples, "", *textwrap.wrap(self.description, 100)]
        for title, options in self.options.items():
            lines += ["", f"{title}:"]
            for flag, text in options.items():
                first, *rest = textwrap.wrap(text, 66)
                lines += [f"  --{flag:30}  {first}", *(" " * 36 + line for line in rest)]
        return "\n".join(lines)


def answer(page: Page, argv: Sequence[str]) -> None:
    """Print the help if requested, and reject recipes, flags and files that do not exist; otherwise return.

    Raises:
        ParserExit: with status 0 after printing help, 2 after an error.
    """
    parser = Parser(prog=f"electra-exit {page.command}")
    if not argv or HELP & set(argv):
        print(page)
        parser.exit(0 if argv else 2)
    if HELP_ALL & set(argv):
        return
    names = yaml_names(RECIPES / page.recipes)
    if argv[0].startswith("-"):
        what = "recipe or model" if page.or_model else "recipe"
        parser.error(f"the {what} must come first: one of {', '.join(names)}, or the path of a YAML file")
    if not page.or_model and argv[0] not in names and not os.path.isfile(argv[0]):
        parser.error(f"no recipe `{argv[0]}`: give a YAML file, or one of {', '.join(names)}")
    is_model = page.or_model and argv[0] not in names and not os.path.isfile(argv[0])
    given = {with_underscores(token).partition("=")[0] for token in argv[1:]}
    of_the_hub = is_model and "--task" in given and not given & {"--data_dir", "--train_file", "--dataset_name"}
    check_flags(parser, argv[1:], argv[:1] if is_model else (), [GLUE_ON_THE_HUB] if of_the_hub else ())


def check_flags(
    parser: Parser, tokens: Sequence[str], models: Sequence[str] = (), datasets: Sequence[str] = ()
) -> None:
    """Reject unknown flags, missing files, and Hub ids that cannot be loaded.

    Args:
        parser: reports the error.
        tokens: flags and values.
        models, datasets: folders or Hub ids to check in addition to those in `tokens`.

    Raises:
        ParserExit: with status 2.
    """
    known, flag = {f"--{name}" for name in declared_fields()}, ""
    named = {"models": [*models], "datasets": [*datasets]}
    for token in map(with_underscores, tokens):
        if token.startswith("--"):
            flag, _, token = token.partition("=")
            if flag.replace("--no_", "--", 1) not in known:
                parser.error(unknown_field(flag, known))
        if flag in FILES | TEXTS and token and not os.path.isfile(token) and not (flag in TEXTS and _is_text(token)):
            parser.error(f"no file matches {token}" if glob.has_magic(token) else f"no such file: {token}")
        for kind, flags in (("models", MODELS), ("datasets", DATASETS)):
            if flag in flags:
                named[kind].append(token)
    check_reachable(parser, **named)


def _is_text(name: str) -> bool:
    """Whether a name that is not a file is a folder, a pattern with a match, or standard input."""
    return name == "-" or os.path.isdir(name) or next(glob.iglob(name, recursive=True), None) is not None


def with_underscores(token: str) -> str:
    """The token with dashes in its flag replaced: `--max-steps` and `--max_steps` are the same flag."""
    if not token.startswith("--"):
        return token
    flag, equals, value = token.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def unknown_field(flag: str, known: Collection[str]) -> str:
    """The error message for a `flag` that is not in `known`; all start with `--`."""
    close = difflib.get_close_matches(flag, known, n=1)
    return f"unknown field `{flag[2:]}`" + (f"; did you mean `{close[0][2:]}`?" if close else "")


def declared_fields() -> set[str]:
    """The names of all fields that are flags, read from the source of their classes."""
    names = set()
    for package, files in DECLARED_IN.items():
        folder = TRAINERS if package == "trainers" else package_folder(package)
        for file in files:
            names |= set(re.findall(r"^    (\w+) *:", (folder / file).read_text(encoding="utf-8"), re.M))
    return names
