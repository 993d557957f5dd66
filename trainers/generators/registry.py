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


# Types for which nothing is built here: `mlm` runs inside the model, `none` expects corrupted batches.
IN_MODEL = ("mlm", "none")
# What a generator derives from.
INTERFACE = (Replacements, StepGenerator)


# name -> function of a context that makes the generator
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
    """The generator that `config` names, for packed `sequences`; `None` where it is part of the model.

    Raises:
        UsageError: if it is a user's and cannot be imported, is no generator or fails; or if it has nothing to draw.
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
    """Whatever the user's own code raises, or tries to exit with, becomes a [`UsageError`]."""
    try:
        yield
    except UsageError:
        raise
    except SystemExit as error:
        raise UsageError(f"generator_type {name!r}: its code called sys.exit({error.code!r})") from error
    except Exception as error:
        raise UsageError(f"generator_type {name!r}: {reason(error)}; --debug shows where") from error


def import_generator(name: str) -> Replacements | StepGenerator | Callable:
    """What `module:attribute` names, from the Python path or the current folder: a generator, a class of one, or a
    function whose one argument is called `context`. It is not called here.

    Raises:
        UsageError: if it cannot be imported, or is nothing of these.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script has its own folder there instead; last, to shadow nothing
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        legal = ", ".join(map(repr, GENERATOR_TYPES))
        raise UsageError(f"generator_type {name!r}: {error}; give one of {legal}, or `module:attribute`") from error
    if isinstance(found, INTERFACE) or (isinstance(found, type) and issubclass(found, INTERFACE)):
        return found
    if not (inspect.isfunction(found) and list(inspect.signature(found).parameters) == ["context"]):
        raise UsageError(
            f"generator_type {name!r} must name a class that derives from Replacements or StepGenerator, or a "
            f"function of one argument called `context` that returns one, got {found!r:.100}"
        )
    return found
