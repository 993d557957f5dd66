"""Time whole training steps, from data loading to the optimizer, and measure their memory. The runs of a study
alternate in one process, so that other load on the machine affects all of them equally."""

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from electra_exit.parsing import parse_fields
from modeling_electra_exit.trainers.pretraining.run import build_trainer, prepare_run
from modeling_electra_exit.trainers.pretraining.trainer import ElectraEarlyExitTrainer

from .routing import Routing, recipe_of, trainer_class


# Consecutive steps of one kind, as in a run. The first step of a turn is not counted, because caches and memory are in
# the state that another kind left.
TURN = 4


def take_turns(steps: dict[Hashable, Callable[[], object]], turns: int) -> dict[Hashable, list[float]]:
    """Time the steps in alternating turns, after one warm-up turn. Returns the seconds of each counted step."""
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
    """The median seconds of a step of each trainer over `turns` turns: `dense` at full depth (or with a router), and
    `exits` with active exits or random layers, if its run has such steps. Work that occurs once in hundreds of steps
    is excluded. The trainers cannot be used afterwards."""
    steps = {}
    for name, trainer in trainers.items():
        endless = steps_of(trainer)
        for variant, number in first_of_each(trainer).items():
            steps[name, variant] = partial(_step_as, trainer, number, endless)
    medians = {name: {} for name in trainers}
    for (name, variant), seconds in take_turns(steps, turns).items():
        medians[name][variant] = statistics.median(seconds)
    return medians


def _step_as(trainer: ElectraEarlyExitTrainer, number: int, steps: Iterator[None]):
    """Run one training step as step `number`."""
    trainer.state.global_step = number
    next(steps)


def first_of_each(trainer: ElectraEarlyExitTrainer) -> dict[str, int]:
    """The first step of a run at full depth (`dense`) and the first with active exits (`exits`), if it has them."""
    first = {}
    for step in range(trainer.args.max_steps):
        exits = trainer.has_exits and trainer.args.exits_active(step, trainer.args.max_steps)
        first.setdefault("exits" if exits else "dense", step)
    return first


def peak_memory(fields: dict) -> int:
    """The peak memory of the training steps of a run, in bytes: of the GPU, or of a process without what it had before
    it built the model. Linux only on a CPU.

    Args:
        fields: fields of the recipe and, beside them, its [`Routing`] if it has one.
    """
    # A process of its own, because memory that others freed may be reused.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_memory, fields).result()


def _peak_memory(fields: dict) -> int:
    arguments = parse_fields(recipe_of(fields))[:3]
    prepare_run(*arguments[:2])
    cuda, before = torch.cuda.is_available(), _memory("VmRSS")
    if not cuda:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    trainer, *_ = build_trainer(*arguments, trainer_class=trainer_class(Routing.of(fields)))
    steps = steps_of(trainer)
    for number in first_of_each(trainer).values():
        for _ in range(TURN):
            _step_as(trainer, number, steps)
    return torch.cuda.max_memory_allocated() if cuda else _memory("VmHWM") - before


def _memory(name: str) -> int:
    """A memory figure of this process from /proc, in bytes."""
    return 1024 * int(
        re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE)[1]
    )


def steps_of(trainer: ElectraEarlyExitTrainer) -> Iterator[None]:
    """Run one training step per iteration, as [`~transformers.Trainer.train`] does."""
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
