"""Generators: sources of the replacement tokens that the discriminator has to detect. `generator_type` in the config
selects one.

`mlm` and the head of `self` are part of the model. Generators that need only the text run in the collator, and thus in
data loader workers if there are any ([`Replacements`]). Other neural models run in the training step on the training
device ([`StepGenerator`]).

Use your own without changing this package: `generator_type="my_module:my_generator"` names either a subclass of one of
these classes, which is called with a [`GeneratorContext`], or a function with a single argument `context` that returns
a generator.
"""

from .base import GeneratorContext, Replacements, StepGenerator
from .registry import GENERATORS, build_generator


__all__ = ["GENERATORS", "GeneratorContext", "Replacements", "StepGenerator", "build_generator"]
