"""What a training step takes, whole: from the data over the generator to the optimizer. The runs of a study take turns
in one process, so that a machine that others use too slows all of them alike."""

import statistics
import time
from collections.abc import Iterator

import torch

from .trainer import ElectraEarlyExitTrainer


WARM_UP = 2  # the first steps allocate


def time_steps(trainers: dict[str, ElectraEarlyExitTrainer], repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of a step of each trainer, the median of `repeats`: at full depth as `dense`, and with its exits as
    `exits`, as far as its run has such steps. What comes once in hundreds of steps is left out. The trainers are used
    up."""
    steps = {name: _steps(trainer) for name, trainer in trainers.items()}
    variants = {name: first_of_each(trainer) for name, trainer in trainers.items()}
    samples = {name: {variant: [] for variant in variants[name]} for name in trainers}
    for repeat in range(WARM_UP + repeats):
        for name, trainer in trainers.items():
            for variant, trainer.state.global_step in variants[name].items():
                start = time.perf_counter()
                next(steps[name])
                if trainer.args.device.type == "cuda":
                    torch.cuda.synchronize()
                if repeat >= WARM_UP:
                    samples[name][variant].append(time.perf_counter() - start)
    return {
        name: {variant: statistics.median(seconds) for variant, seconds in found.items()}
        for name, found in samples.items()
    }


def first_of_each(trainer: ElectraEarlyExitTrainer) -> dict[str, int]:
    """The first step of a run at full depth, and the first with exits, as far as there are any."""
    first = {}
    for step in range(trainer.args.max_steps):
        exits = trainer.model_config.has_exit_heads and trainer.args.exits_active(step, trainer.args.max_steps)
        first.setdefault("exits" if exits else "dense", step)
    return first


def _steps(trainer: ElectraEarlyExitTrainer) -> Iterator[None]:
    """Training steps as [`~transformers.Trainer.train`] makes them, one each time it is asked."""
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
