"""Read recipes, which are YAML files of fields."""

import json
import math

import yaml

from modeling_electra_exit.trainers.errors import UsageError


# A recipe has a few dozen values, but nested aliases can expand a short file to billions.
MAX_YAML_NODES = 10_000


def read_yaml(text: str, name: str):
    """The content of a YAML document, with aliases resolved; `None` if it is empty.

    Args:
        text: the document.
        name: name of the document in errors.

    Raises:
        UsageError: if it is not valid YAML, or has more than `MAX_YAML_NODES` nodes with aliases resolved.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MAX_YAML_NODES:
            raise UsageError(
                f"{name} must have at most {MAX_YAML_NODES:,} values with its aliases resolved, and has more"
            )
        return loader.construct_document(node)
    except RecursionError as error:
        raise UsageError(f"{name} is nested too deeply") from error
    except UsageError:
        raise
    except Exception as error:  # not only YAMLError: an invalid date is a ValueError, and a tag can raise anything
        raise UsageError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Number of nodes with aliases resolved; infinite if a node contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        held = [] if isinstance(node, yaml.ScalarNode) else node.value
        pairs = (part for item in held for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_size(part, known) for part in pairs)
    return known[id(node)]


def recipe_arguments(recipe: dict) -> list[str]:
    """A recipe as command-line arguments, so that one parser handles recipes and flags."""
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
