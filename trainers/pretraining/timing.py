"""Timing of training steps, from the first steps of a run."""

import statistics
import time

import torch
from transformers import TrainerCallback


# Number of initial steps to skip: they allocate memory, start the data loader and select kernels.
UNTIMED = 2
# Number of steps to time, or fewer if they take this many seconds in total.
TIMED, ENOUGH_SECONDS = 8, 20.0


class StepTimer(TrainerCallback):
    """Times the first optimizer steps of a run after [`UNTIMED`]: wall-clock time from the end of one step to the end
    of the next, including waiting for data. Steps after an evaluation or a checkpoint are skipped. The host
    synchronizes with the device only while steps are timed.

    seconds (`list[float]`): the time of each step so far.
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
    """Median time of an optimizer step, in seconds, as timed by `trainer.step_timer` in the last `train`.

    Raises:
        ValueError: if no step has been timed.
    """
    if not trainer.step_timer.seconds:
        raise ValueError(f"no step has been timed: train at least {UNTIMED + 1} steps")
    return statistics.median(trainer.step_timer.seconds)
