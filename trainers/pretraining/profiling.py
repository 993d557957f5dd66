"""Profiling of training steps: `--profile_step`."""

import logging
from pathlib import Path

import torch
from torch.profiler import profile, record_function
from transformers import TrainerCallback

from ..runtime.files import tolerated
from .callbacks import log_beside


logger = logging.getLogger(__name__)

# Number of steps to profile.
STEPS = 10
PARTS = ("data", "generator", "discriminator", "backward", "optimizer", "rest")
TRACE = "profile_trace.json"


class StepProfileCallback(TrainerCallback):
    """Profiles [`STEPS`] training steps with `torch.profiler`, and writes the trace to [`TRACE`] in the run's folder,
    for Perfetto (https://ui.perfetto.dev). Logs `profile_<part>_ms`, the mean over the steps, for these parts:

    - `data`: waiting for the data loader;
    - `generator`: its forward pass and sampling (0 for a generator outside the model);
    - `discriminator`: its forward pass, with exits and losses;
    - `backward`: the backward pass of both, and gradient clipping;
    - `optimizer`: the update;
    - `rest`: everything else between two steps.

    The host synchronizes with the device between the parts, and profiling has overhead. The shares are therefore
    representative, but not the absolute times.

    Args:
        trainer ([`ElectraEarlyExitTrainer`]): the trainer of the run.
        step (`int`): the first step to profile, counted from 1.
    """

    def __init__(self, trainer, step: int):
        self.trainer = trainer
        self.first = step
        self._profile = None
        self._part = None
        self._hooks = []

    def _enter(self, part: str | None):
        """End the current part and begin `part`."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        if self._part is not None:
            self._part.__exit__(None, None, None)
        self._part = None if part is None else record_function(f"step/{part}").__enter__()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.first - 1 and self._profile is None:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            self._hooks = [
                model.register_forward_pre_hook(lambda *_: self._enter("generator")),
                model.electra.register_forward_pre_hook(lambda *_: self._enter("discriminator")),
                model.register_forward_hook(lambda *_: self._enter("backward")),
            ]
            self._profile = profile()
            self._profile.start()
        if self._hooks:
            self._enter("rest")

    def on_substep_end(self, args, state, control, **kwargs):
        if self._hooks:
            self._enter("rest")

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self._hooks:
            self._enter("optimizer")

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self._hooks:
            self._enter("rest")

    def on_step_end(self, args, state, control, **kwargs):
        if not self._hooks:
            return
        last = state.global_step == self.first - 1 + STEPS or state.global_step == state.max_steps
        self._enter(None if last else "data")
        if last:
            self._report(state.global_step)

    def _report(self, last: int):
        self._profile.stop()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        events = {event.key: event.cpu_time_total / 1e3 for event in self._profile.key_averages()}
        spent = {part: events.get(f"step/{part}", 0.0) for part in PARTS}  # ms
        steps, whole = last - self.first + 1, sum(spent.values())
        shares = "  ".join(f"{part} {ms / whole:.1%}" for part, ms in spent.items())
        logger.info(f"steps {self.first} to {last}, {whole / steps:.1f} ms each: {shares}")
        log_beside(self.trainer, {f"profile_{part}_ms": round(ms / steps, 3) for part, ms in spent.items()})
        if self.trainer.is_world_process_zero():
            path = Path(self.trainer.args.output_dir) / TRACE
            with tolerated(f"the trace {path}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._profile.export_chrome_trace(str(path))
        self._profile = None
        self.first = 0  # do not profile again if the Trainer trains a second time
