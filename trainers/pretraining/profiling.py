"""Where the time of a training step goes: `--profile_step`."""

import logging
import time

import torch
from transformers import TrainerCallback

from .callbacks import log_beside


logger = logging.getLogger(__name__)

# Steps that are timed together, from the one named on.
STEPS = 10
PARTS = ("data", "generator", "discriminator", "backward", "optimizer", "rest")


class StepProfileCallback(TrainerCallback):
    """Times the parts of [`STEPS`] training steps and logs them: `profile_<part>_ms`, the mean of a step, for each of

    - `data`: waiting for the loader;
    - `generator`: its forward pass with sampling (none for a generator outside the model);
    - `discriminator`: its forward pass, with the exits and the losses;
    - `backward`: the backward pass of both, and clipping;
    - `optimizer`: the update;
    - `rest`: everything else between two steps.

    Waits for the device between the parts, so the steps profiled are slower than others where that matters.

    Args:
        step (`int`): the first step to time, counted from 1.
    """

    def __init__(self, trainer, step: int):
        self.trainer = trainer
        self.first = step
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._last = None
        self._hooks = []

    def _mark(self, part: str):
        """What was done since the last mark was `part`."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        now = time.perf_counter()
        if self._last is not None:
            self.seconds[part] += now - self._last
        self._last = now

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.first - 1 and not self._hooks:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            self._hooks = [
                model.register_forward_pre_hook(lambda *_: self._mark("rest")),
                model.electra.register_forward_pre_hook(lambda *_: self._mark("generator")),
                model.register_forward_hook(lambda *_: self._mark("discriminator")),
            ]
            self._last = None
        if self._hooks:
            self._mark("data")

    def on_substep_end(self, args, state, control, **kwargs):
        if self._hooks:
            self._mark("backward")

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self._hooks:
            self._mark("backward")

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self._hooks:
            self._mark("optimizer")

    def on_step_end(self, args, state, control, **kwargs):
        if not self._hooks:
            return
        self._mark("rest")
        if state.global_step == self.first - 1 + STEPS or state.global_step == state.max_steps:
            self._report(state.global_step)

    def _report(self, last: int):
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        steps, whole = last - self.first + 1, sum(self.seconds.values())
        shares = "  ".join(f"{part} {seconds / whole:.1%}" for part, seconds in self.seconds.items())
        logger.info(f"steps {self.first} to {last}, {whole / steps * 1e3:.1f} ms each: {shares}")
        log_beside(
            self.trainer, {f"profile_{part}_ms": round(spent / steps * 1e3, 3) for part, spent in self.seconds.items()}
        )
