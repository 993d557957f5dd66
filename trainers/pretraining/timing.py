"""How long a training step takes, from the first steps of a run."""

import statistics
import time

import torch
from transformers import TrainerCallback


# The first steps allocate memory, start the loader and choose kernels.
UNTIMED = 2
# Steps that are timed: this many, or fewer where they have taken so long together.
TIMED, ENOUGH_SECONDS = 8, 20.0


class StepTimer(TrainerCallback):
    """Times the first optimizer steps of a run after [`UNTIMED`]: wall time from the end of one to the end of the
    next, waiting for data included. A step after an evaluation or a checkpoint is left out. Waits for the device while
    it times, and costs nothing afterwards.

    seconds (`list[float]`): of each step timed so far.
    """

    def __init__(self):
        self.seconds: list[float] = []
        self._steps, self._last = 0, None

    @property
    def done(self) -> bool:
        return len(self.seconds) >= TIMED or sum(self.seconds) >= ENOUGH_SECONDS

    def on_train_begin(self, args, state, control, **kwargs):
        self.seconds, self._steps, self._last = [], 0, None

    def on_step_end(self, args, state, control, **kwargs):
        if self.done:
            return
        self._steps += 1
        if args.device.type != "cpu":
            torch.accelerator.synchronize()
        now = time.perf_counter()
        if self._last is not None and self._steps > UNTIMED:
            self.seconds.append(now - self._last)
        self._last = now

    def on_evaluate(self, args, state, control, **kwargs):
        self._last = None

    def on_save(self, args, state, control, **kwargs):
        self._last = None


def time_of_step(trainer) -> float:
    """Seconds of an optimizer step: the median of those that `trainer.step_timer` has timed in its last `train`.

    Raises:
        ValueError: if it has timed none yet.
    """
    if not trainer.step_timer.seconds:
        raise ValueError(f"no step has been timed: train at least {UNTIMED + 1} steps")
    return statistics.median(trainer.step_timer.seconds)
