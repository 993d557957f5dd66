"""Generators: what replaces the tokens that the discriminator has to find. `generator_type` in the config names one.

Where they run follows from what they need. `mlm` is part of the model, and so is the head that proposes for `self`.
Those that need the text alone run in the collator, so in loader workers where there are some ([`Replacements`]).
Another neural model runs in the training step, on the training device ([`StepGenerator`]).

Add your own without touching this package: `generator_type="my_module:my_generator"` names a class that derives from
one or the other and is made from a [`GeneratorContext`], or a function whose one argument, `context`, is one, and
which returns a generator.
"""

from .base import GeneratorContext, Replacements, StepGenerator
from .registry import GENERATORS, build_generator


__all__ = ["GENERATORS", "GeneratorContext", "Replacements", "StepGenerator", "build_generator"]
