"""Generators by name."""

import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from modeling_electra_exit import ElectraEarlyExitConfig
from modeling_electra_exit.configuration_electra_exit import GENERATOR_TYPES

from ..errors import UsageError, reason
from ..runtime.arguments import ElectraEarlyExitTrainingArguments
from .base import GeneratorContext, Replacements, StepGenerator
from .cached import Cached
from .neural import Frozen, SelfProposals
from .statistical import Bigram, Shuffle, uniform, unigram


# Types without a generator object: `mlm` is part of the model, `none` expects corrupted batches.
IN_MODEL = ("mlm", "none")
# Base classes of generators.
INTERFACE = (Replacements, StepGenerator)


# Generators: name -> function from a [`GeneratorContext`] to a generator.
GENERATORS: dict[str, Callable[[GeneratorContext], Replacements | StepGenerator]] = {
    "uniform": uniform,
    "unigram": unigram,
    "bigram": Bigram,
    "shuffle": Shuffle,
    "cached": Cached,
    "frozen": Frozen,
    "self": SelfProposals,
}


def build_generator(
    config: ElectraEarlyExitConfig,
    sequences: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    args: ElectraEarlyExitTrainingArguments | None = None,
) -> Replacements | StepGenerator | None:
    """Create the generator that `config.generator_type` names; `None` for `"mlm"` and `"none"`.

    Args:
        config, sequences, tokenizer, args: as in [`GeneratorContext`].

    Raises:
        UsageError: if the generator rejects its settings or the text; or if a user-defined one cannot be imported,
            fails, or is not a generator.
    """
    name = config.generator_type
    if name in IN_MODEL:
        return None
    context = GeneratorContext(config, sequences, tokenizer, args)
    if name in GENERATORS:
        try:
            return GENERATORS[name](context)
        except ValueError as error:
            raise UsageError(f"generator_type {name!r}: {error}") from error
    with naming_user_failures(name):
        named = import_generator(name)
        made = named if isinstance(named, INTERFACE) else named(context)
    if not isinstance(made, INTERFACE):
        raise UsageError(f"generator_type {name!r} must return a Replacements or StepGenerator, got {made!r:.100}")
    return made


@contextmanager
def naming_user_failures(name: str) -> Iterator[None]:
    """Convert errors and exits of user-defined code.

    Raises:
        UsageError: with a message that names the generator.
    """
    try:
        yield
    except UsageError:
        raise
    except SystemExit as error:
        raise UsageError(f"generator_type {name!r}: its code called sys.exit({error.code!r})") from error
    except Exception as error:
        raise UsageError(f"generator_type {name!r}: {reason(error)}; use --debug for the traceback") from error


def import_generator(name: str) -> Replacements | StepGenerator | Callable:
    """Import `module:attribute` from the Python path or the current folder, without calling it.

    Returns:
        A generator, a generator class, or a function with a single argument named `context`.

    Raises:
        UsageError: if it cannot be imported, or is none of these.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # not in the path of a console script; appended last, so as to shadow nothing
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        legal = ", ".join(map(repr, GENERATOR_TYPES))
        raise UsageError(f"generator_type {name!r}: {error}; use one of {legal}, or `module:attribute`") from error
    if isinstance(found, INTERFACE) or (isinstance(found, type) and issubclass(found, INTERFACE)):
        return found
    if not (inspect.isfunction(found) and list(inspect.signature(found).parameters) == ["context"]):
        raise UsageError(
            f"generator_type {name!r} must name a subclass of Replacements or StepGenerator, or a function with one "
            f"argument named `context` that returns an instance, got {found!r:.100}"
        )
    return found
