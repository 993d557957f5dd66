"""What a training step takes, whole: from the data over the generator to the optimizer. The runs of a study take turns
in one process, so that a machine that others use too slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Hashable, Iterator
from functools import partial

import torch

from modeling_electra_exit.trainers.pretraining.trainer import ElectraEarlyExitTrainer


# Steps of one kind in a row, as a run has them: the first finds caches and memory as another kind left them, and does
# not count.
TURN = 4


def take_turns(steps: dict[Hashable, Callable[[], object]], turns: int) -> dict[Hashable, list[float]]:
    """Seconds of the steps of so many turns of each, one turn of each after the other, after a warm-up."""
    samples = {name: [] for name in steps}
    for turn in range(1 + turns):
        for name, step in steps.items():
            for number in range(TURN):
                start = time.perf_counter()
                step()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if turn > 0 and number > 0:
                    samples[name].append(time.perf_counter() - start)
    return samples


def time_steps(trainers: dict[str, ElectraEarlyExitTrainer], turns: int) -> dict[str, dict[str, float]]:
    """Seconds of a step of each trainer, the median of those of `turns` turns: at full depth as `dense`, and with its
    exits as `exits`, as far as its run has such steps. What comes once in hundreds of steps is left out. The trainers
    are used up."""
    steps = {}
    for name, trainer in trainers.items():
        endless = _steps(trainer)
        for variant, number in first_of_each(trainer).items():
            steps[name, variant] = partial(_step_as, trainer, number, endless)
    medians = {name: {} for name in trainers}
    for (name, variant), seconds in take_turns(steps, turns).items():
        medians[name][variant] = statistics.median(seconds)
    return medians


def _step_as(trainer: ElectraEarlyExitTrainer, number: int, steps: Iterator[None]):
    """One step, as that of the given number."""
    trainer.state.global_step = number
    next(steps)


def first_of_each(trainer: ElectraEarlyExitTrainer) -> dict[str, int]:
    """The first step of a run at full depth, and the first with exits, as far as there are any."""
    first = {}
    for step in range(trainer.args.max_steps):
        exits = trainer.model_config.has_exit_heads and trainer.args.exits_active(step, trainer.args.max_steps)
        first.setdefault("exits" if exits else "dense", step)
    return first


def _steps(trainer: ElectraEarlyExitTrainer) -> Iterator[None]:
    """Training steps as [`~transformers.Trainer.train`] makes them, one for each call."""
    trainer.state.max_steps = trainer.args.max_steps
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    loader = trainer.get_train_dataloader()
    while True:
        for batch in loader:
            trainer.training_step(model, batch)
            trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            yield
