"""What a pre-training will be, and what it will take: said before it starts, and when its first steps were timed."""

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
    """Says at the start of a run what it is, and after its first steps how long it will take.

    Args:
        trainer ([`ElectraEarlyExitTrainer`]).
        counts: of the training text, with `tokens` and `sequences`; empty for a stream.
        stops (`bool`): whether the run ends when its steps are timed.
    """

    def __init__(self, trainer, counts: dict, stops: bool = False):
        self.trainer, self.counts, self.stops = trainer, counts, stops
        self._told, self._timed = False, False

    def on_train_begin(self, args, state, control, **kwargs):
        if not self._told and state.is_world_process_zero:
            for name, text in overview(self.trainer, self.counts).items():
                logger.info(f"{name:8}{text}")
        self._told = True  # a run in stages begins several times

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
    """What a run is, in a few words each, by name. The Trainer knows its number of steps."""
    args, config, length = trainer.args, trainer.model_config, trainer.sequence_length
    model = trainer.accelerator.unwrap_model(trainer.model)
    batch = trainer.sequences_of_step()
    conditions = args.conditions()
    processes = f", {args.world_size} processes" if args.world_size > 1 else ""
    steps, tokens = trainer.state.max_steps, trainer.state.max_steps * batch * length
    said = {
        "device": f"{conditions['hardware']}, {conditions['precision']}{processes}",
        "model": f"{model.num_parameters():,} parameters, {config.num_hidden_layers} layers of {config.hidden_size}; "
        f"replacements by {config.generator_type}",
    }
    if counts:
        said["text"] = f"{counts['tokens']:,} tokens in {counts['sequences']:,} sequences of {length}"
    if trainer.pace is not None:
        said["steps"] = f"as many as {args.train_time} hold, of {batch:,} sequences ({batch * length:,} tokens)"
    else:
        passes = f", {tokens / (counts['sequences'] * length):.1f} passes" if counts else ""
        said["steps"] = f"{steps:,} of {batch:,} sequences: {in_short(tokens)} tokens{passes}"
    if config.has_exit_heads and trainer.depths is None and trainer.pace is None:
        share, of_run = savings(trainer)
        said["exits"] = f"a step takes {share:.0%} of the operations while tokens exit, the run {of_run:.0%}"
    return said


def step_costs(trainer) -> dict[bool, float]:
    """Operations of a step, by whether tokens exit in it."""
    batch, length = trainer.sequences_of_step(), trainer.sequence_length
    beside = trainer.flops_beside(batch, length)
    return {active: step_flops(trainer.model_config, batch, length, active).total + beside for active in (False, True)}


def active_steps(trainer, first: int, last: int) -> int:
    """In how many of the steps from `first` to before `last`, counted from 0, tokens exit."""
    if not trainer.model_config.has_exit_heads:
        return 0
    return sum(trainer.args.exits_active(step, trainer.state.max_steps) for step in range(first, last))


def savings(trainer) -> tuple[float, float]:
    """Operations of a step in which tokens exit, and of the whole run, as shares of those without exits."""
    costs, steps = step_costs(trainer), trainer.state.max_steps
    batch, length = trainer.sequences_of_step(), trainer.sequence_length
    dense = step_flops(without_exits(trainer.model_config), batch, length, False).total
    dense += trainer.flops_beside(batch, length)
    active = active_steps(trainer, 0, steps)
    return costs[True] / dense, (costs[True] * active + costs[False] * (steps - active)) / (steps * dense)


def estimate(trainer) -> str:
    """How long the steps that are left will take, by those that were timed and the operations of each, and the largest
    memory so far."""
    timer, state = trainer.step_timer, trainer.state
    seconds, memory = time_of_step(trainer), f"{peak_memory() / 2**30:.1f} GB of memory"
    if trainer.pace is not None or trainer.depths is not None:
        return f"{seconds:.3g} s a step; {memory}"
    now, left = state.global_step, state.max_steps - state.global_step
    timed = range(max(0, now - len(timer.seconds)), now)
    costs = step_costs(trainer)
    cost = sum(costs[bool(active_steps(trainer, step, step + 1))] for step in timed) / len(timed)
    active = active_steps(trainer, now, state.max_steps)
    whole = seconds / cost * (costs[True] * active + costs[False] * (left - active))
    return f"about {in_words(whole)} more at {seconds:.3g} s a step, evaluations apart; {memory}"


def peak_memory() -> int:
    """The most memory that this process has had, in bytes: of the accelerator where it has one."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # which alone counts in bytes


def in_short(number: float) -> str:
    """A large number in three digits."""
    for size, name in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if number >= size:
            return f"{number / size:.3g}{name}"
    return f"{number:,.0f}"
