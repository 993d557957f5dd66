"""Recipes: YAML files of fields."""

import json
import math

import yaml

from modeling_electra_exit.trainers.errors import UsageError


# A recipe has some dozens of values; aliases within aliases can make a short file say billions.
MAX_YAML_NODES = 10_000


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
