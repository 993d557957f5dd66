"""Where the time of a training step goes: `--profile_step`."""

import logging
from pathlib import Path

import torch
from torch.profiler import profile, record_function
from transformers import TrainerCallback

from ..runtime.files import tolerated
from .callbacks import log_beside


logger = logging.getLogger(__name__)

# Steps that are timed together, from the one named on.
STEPS = 10
PARTS = ("data", "generator", "discriminator", "backward", "optimizer", "rest")
TRACE = "profile_trace.json"


class StepProfileCallback(TrainerCallback):
    """Records [`STEPS`] training steps with `torch.profiler`, and writes all of it to [`TRACE`] in the run's folder,
    which Perfetto (https://ui.perfetto.dev) shows. The log gets `profile_<part>_ms`, the mean of a step, for each of

    - `data`: waiting for the loader;
    - `generator`: its forward pass with sampling (none for a generator outside the model);
    - `discriminator`: its forward pass, with the exits and the losses;
    - `backward`: the backward pass of both, and clipping;
    - `optimizer`: the update;
    - `rest`: everything else between two steps.

    Waits for the device between the parts, and recording takes time of its own: the shares are those of other steps,
    the sums are not.

    Args:
        step (`int`): the first step to record, counted from 1.
    """

    def __init__(self, trainer, step: int):
        self.trainer = trainer
        self.first = step
        self._profile = None
        self._part = None
        self._hooks = []

    def _enter(self, part: str | None):
        """What comes next is `part`."""
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
        self.first = 0  # a second training with this Trainer does not record again
