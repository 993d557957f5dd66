"""What replaces tokens. A generator of your own derives from [`Replacements`] or [`StepGenerator`]."""

from .base import GeneratorContext, Replacements, StepGenerator
from .registry import GENERATORS, build_generator


__all__ = ["GENERATORS", "GeneratorContext", "Replacements", "StepGenerator", "build_generator"]
