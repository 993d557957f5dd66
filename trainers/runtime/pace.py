"""Runs with a time limit instead of a number of steps: planning of the steps, and progress."""

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator

import torch
from transformers import TrainingArguments, get_scheduler

from .optimization import ELECTRA_SCHEDULE, electra_schedule


logger = logging.getLogger(__name__)

# `max_steps` of a run with a time limit, before its number of steps is planned.
ENDLESS = 10**9
# A plan holds for this share of the time. The first plans are made after 2, 4, 8, ... steps.
PLAN_SHARE = 0.02
# A plan is logged after this many timed steps, and again when the number of steps changes by this share.
LOG_AFTER, LOG_AGAIN = 8, 0.2
# Resolution of the learning rate schedule.
POINTS = 10**6
UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> float:
    """Seconds in a time such as `2h`, `90min`, `1h30m` or `45s`.

    Raises:
        ValueError: for any other form, and for a time of 0.
    """
    compact = text.replace(" ", "")
    parts = re.findall(r"(\d+(?:\.\d+)?)(min|[smhd])", compact)
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != compact or not seconds > 0:
        raise ValueError(f"`train_time` must be a time such as 2h, 90min or 1h30m, got {text!r}")
    return seconds


def in_words(seconds: float) -> str:
    """A time for readers: `2 h 5 min`, `3 min 20 s`, `40 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest if not hours else 0, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"


class Pace:
    """Progress and expected number of steps of a run with a time limit.

    Progress is the elapsed share of the time. Each plan sets it to the elapsed time; between two plans it grows
    linearly with the steps, so that the learning rate changes smoothly. Evaluations and checkpoints count as time of
    the run.

    Args:
        budget: the time limit, in seconds.
        clock: returns the current time, in seconds.
    """

    def __init__(self, budget: float, clock: Callable[[], float] = time.monotonic):
        self.budget, self.clock = budget, clock
        self.paused = 0.0
        self.step_seconds: float | None = None
        self.cost = 1.0
        # The first and last step of the plan, and the progress at each.
        self.steps, self.shares = (0, ENDLESS), (0.0, 0.0)
        self.max_steps, self.next_plan, self.told = ENDLESS, 1, 0
        self._before, self._started, self._began = 0.0, None, 0
        self._marked: tuple[int, float, float] | None = None

    def start(self, step: int = 0, cost: float = 1.0) -> None:
        """Start the clock after `step` steps.

        Args:
            step: number of steps so far.
            cost: cost of a step, in any unit. The expected time of a step scales with it.
        """
        if self.step_seconds is not None:
            self.step_seconds *= cost / self.cost
        self.cost = cost
        self._before, self._started = self.elapsed, self.clock()
        self._marked, self._began, self.next_plan = None, step, step + 1

    @property
    def elapsed(self) -> float:
        """Seconds of the run so far, including the time before interruptions."""
        return self._before + (0.0 if self._started is None else self.clock() - self._started)

    def progress(self, step: int) -> float:
        """The progress after `step` steps, from 0 to 1."""
        (first, last), (before, after) = self.steps, self.shares
        return after if step >= last else before + (after - before) * max(0, step - first) / max(last - first, 1)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time inside, such as an evaluation, from the measured time of a step."""
        start = self.clock()
        try:
            yield
        finally:
            self.paused += self.clock() - start

    def due(self, step: int) -> bool:
        """Whether a new plan is due after `step` steps. All processes of a run get the same answer."""
        return step >= self.next_plan

    def plan(self, step: int, end: float = 1.0, later: float = 0.0) -> None:
        """Make a new plan after `step` steps, from the time of the last ones.

        Args:
            step: number of steps so far.
            end: progress up to which steps cost the same as now, in (0, 1].
            later: speed of the steps after `end`, relative to the current speed.
        """
        elapsed = self.elapsed
        if self._marked is not None and step > self._marked[0]:
            before, since, paused = self._marked
            took = (elapsed - since - (self.paused - paused)) / (step - before)
            self.step_seconds = took if self.step_seconds is None else (self.step_seconds + took) / 2
        if step > self._began:  # the first step is not representative
            self._marked = step, elapsed, self.paused
        if self.step_seconds is None:
            self.next_plan = step + 1
            self.max_steps = step if elapsed >= self.budget else ENDLESS
            return
        step_time = max(self.step_seconds, 1e-9) / max(1 - self.paused / max(elapsed, 1e-9), 0.05)
        left = end * self.budget - elapsed
        count = max(0 if left <= 0 else 1, round(left / step_time))
        self.steps, self.shares = (step, step + count), (min(elapsed / self.budget, end), end)
        self.max_steps = step + count + round((1 - end) * self.budget / step_time * later)
        self.next_plan = step + max(1, min(step - self._began, round(PLAN_SHARE * self.budget / step_time)))
        self._log_plan(step, step_time)

    def _log_plan(self, step: int, step_time: float) -> None:
        if (
            step < min(self._began + LOG_AFTER, self.max_steps)
            or abs(self.max_steps - self.told) <= LOG_AGAIN * self.told
        ):
            return
        left = in_words(max(0.0, self.budget - self.elapsed))
        logger.info(
            f"{'new plan' if self.told else 'plan'}: {self.max_steps:,} steps in {in_words(self.budget)}, at "
            f"{step_time:.3g} s per step; {left} left"
        )
        self.told = self.max_steps

    def state_dict(self) -> dict:
        names = ("paused", "step_seconds", "cost", "steps", "shares", "max_steps", "next_plan", "told")
        return {"elapsed": self.elapsed, **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: dict) -> None:
        """Continue from the state of another process or a checkpoint. The remaining time is that of the state, less
        any time that this process has spent beyond it."""
        values = {**state, "steps": tuple(state["steps"]), "shares": tuple(state["shares"])}
        self._before = max(self.elapsed, values.pop("elapsed"))
        if self._started is not None:
            self._started = self.clock()
        for name, value in values.items():
            setattr(self, name, value)


def schedule_by_progress(args: TrainingArguments) -> Callable[[float], float]:
    """The schedule of `args` as a function from the progress, from 0 to 1, to the factor of the learning rate.
    `warmup_steps` must be a share.

    Raises:
        ValueError: if the schedule depends on more than the progress.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    if args.lr_scheduler_type == ELECTRA_SCHEDULE:
        schedule = electra_schedule(optimizer, args.warmup_steps, POINTS)
    else:
        counted = [name for name in args.lr_scheduler_kwargs or {} if "steps" in name]
        if args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy", "warmup_stable_decay") or counted:
            raise ValueError(
                f"`lr_scheduler_type` must not depend on a number of steps or a metric with `train_time`, got "
                f"{getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}; use linear or cosine"
            )
        schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=round(args.warmup_steps * POINTS),
            num_training_steps=POINTS,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
    factor = schedule.lr_lambdas[0]
    return lambda progress: factor(round(progress * POINTS))


def paced_schedule(
    optimizer: torch.optim.Optimizer, args: TrainingArguments, pace: Pace
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate schedule of `args` over the time of a run instead of its steps."""
    factor = schedule_by_progress(args)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(pace.progress(step)))
