"""Overview of a pre-training run: its settings, logged at the start, and its expected time, after the first steps."""

import logging
import resource
import sys

import torch
from transformers import TrainerCallback

from ..runtime.distributed import any_rank
from ..runtime.flops import step_flops, without_exits
from ..runtime.pace import in_words
from .timing import time_of_step


logger = logging.getLogger(__name__)


class OverviewCallback(TrainerCallback):
    """Logs an overview at the start of a run, and its expected time after the first steps.

    Args:
        trainer ([`ElectraEarlyExitTrainer`]): the trainer of the run.
        counts: counts of the training text, with `tokens` and `sequences`; empty for a stream.
        stops (`bool`): whether to end the run when its steps have been timed.
    """

    def __init__(self, trainer, counts: dict, stops: bool = False):
        self.trainer, self.counts, self.stops = trainer, counts, stops
        self._logged, self._timed = False, False

    def on_train_begin(self, args, state, control, **kwargs):
        if not self._logged and state.is_world_process_zero:
            for name, text in overview(self.trainer, self.counts).items():
                logger.info(f"{name:8}{text}")
        self._logged = True  # called at the start of every stage

    def on_step_end(self, args, state, control, **kwargs):
        timer = self.trainer.step_timer
        last = state.global_step >= state.max_steps
        if not self._timed and timer.seconds and (timer.done or last):
            self._timed = True
            if state.is_world_process_zero:
                logger.info(f"{'time':8}{estimate(self.trainer)}")
        if self.stops and any_rank(self._timed, args.device):
            control.should_training_stop = True


def overview(trainer, counts: dict) -> dict[str, str]:
    """Short descriptions of a run's settings, by name. The trainer must have set its number of steps."""
    args, config, length = trainer.args, trainer.model_config, trainer.sequence_length
    model = trainer.accelerator.unwrap_model(trainer.model)
    batch = trainer.sequences_of_step()
    conditions = args.conditions()
    processes = f", {args.world_size} processes" if args.world_size > 1 else ""
    steps, tokens = trainer.state.max_steps, trainer.state.max_steps * batch * length
    lines = {
        "device": f"{conditions['hardware']}, {conditions['precision']}{processes}",
        "model": f"{model.num_parameters():,} parameters, {config.num_hidden_layers} layers of width "
        f"{config.hidden_size}, generator {config.generator_type}",
    }
    if counts:
        lines["text"] = f"{counts['tokens']:,} tokens in {counts['sequences']:,} sequences of length {length}"
    if trainer.pace is not None:
        lines["steps"] = (
            f"as many as fit into {args.train_time}, of {batch:,} sequences ({batch * length:,} tokens) each"
        )
    else:
        epochs = f", {tokens / (counts['sequences'] * length):.1f} epochs" if counts else ""
        lines["steps"] = f"{steps:,} of {batch:,} sequences each: {in_short(tokens)} tokens{epochs}"
    if config.has_exit_heads and trainer.depths is None and trainer.pace is None:
        of_step, of_run = savings(trainer)
        lines["exits"] = f"{of_step:.0%} of the FLOPs per step while exits are active, {of_run:.0%} in total"
    return lines


def step_costs(trainer) -> dict[bool, float]:
    """FLOPs of a step, by whether exits are active."""
    batch, length = trainer.sequences_of_step(), trainer.sequence_length
    return {active: trainer.step_flops(trainer.model_config, batch, length, active).total for active in (False, True)}


def active_steps(trainer, first: int, last: int) -> int:
    """Number of steps with active exits from `first` up to, but not including, `last`, counted from 0."""
    if not trainer.has_exits:
        return 0
    return sum(trainer.args.exits_active(step, trainer.state.max_steps) for step in range(first, last))


def savings(trainer) -> tuple[float, float]:
    """FLOPs of a step with active exits, and of the whole run, as shares of those without exits."""
    costs, steps = step_costs(trainer), trainer.state.max_steps
    batch, length = trainer.sequences_of_step(), trainer.sequence_length
    dense = step_flops(without_exits(trainer.model_config), batch, length, False).total
    dense += trainer.flops_beside(batch, length)
    active = active_steps(trainer, 0, steps)
    return costs[True] / dense, (costs[True] * active + costs[False] * (steps - active)) / (steps * dense)


def estimate(trainer) -> str:
    """The expected time of the remaining steps, from the timed steps and the FLOPs of each, and the peak memory."""
    timer, state = trainer.step_timer, trainer.state
    seconds, memory = time_of_step(trainer), f"{peak_memory() / 2**30:.1f} GB of memory"
    if trainer.pace is not None or trainer.depths is not None:
        return f"{seconds:.3g} s per step; {memory}"
    now, left = state.global_step, state.max_steps - state.global_step
    timed = range(max(0, now - len(timer.seconds)), now)
    costs = step_costs(trainer)
    cost = sum(costs[bool(active_steps(trainer, step, step + 1))] for step in timed) / len(timed)
    active = active_steps(trainer, now, state.max_steps)
    whole = seconds / cost * (costs[True] * active + costs[False] * (left - active))
    return f"about {in_words(whole)} left at {seconds:.3g} s per step, plus evaluations; {memory}"


def peak_memory() -> int:
    """Peak memory of this process in bytes, on the GPU if it uses one."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # in bytes on macOS, in KiB elsewhere


def in_short(number: float) -> str:
    """A number with three significant digits and a unit prefix, such as `12.3 M`."""
    for size, name in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if number >= size:
            return f"{number / size:.3g}{name}"
    return f"{number:,.0f}"
