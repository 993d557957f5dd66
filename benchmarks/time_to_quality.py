"""Held-out quality against training time, for a plain loop and for this package.

    for arm in plain electra-pytorch ours; do
        OMP_NUM_THREADS=1 python -m benchmarks.time_to_quality $arm --results benchmarks/results/time_to_quality
    done
    python -m benchmarks.time_to_quality summary --results benchmarks/results/time_to_quality

`plain` is a typical loop around Transformers' ELECTRA: generator and discriminator with shared embeddings, generator
logits at all positions, AdamW, the published initializer range, dropout and loss weights, and the learning rate of
`--rate`. `electra-pytorch` is the same with the step of that package (pip install electra-pytorch). `ours` is
`electra-exit pretrain quickstart` with four layers and `--generator_type mlm`, so that every arm trains a generator
and has the same largest model. All arms use the quickstart's text, tokenizer, width, sequences per step and share of
masked tokens, and train for the same time. Each arm's learning rate reaches 0 at the end of its time.

Time is the CPU time of the arm's process, excluding evaluations; on a shared machine, run the arms at the same time.
Or measure the steps of all arms in alternating turns, and let each step count as the measured time, on whatever
machine the arms then run:

    OMP_NUM_THREADS=1 python -m benchmarks.time_to_quality timing --results benchmarks/results/time_to_quality
    python -m benchmarks.time_to_quality plain --minutes 60 --timed --results benchmarks/results/time_to_quality

Quality is the ROC-AUC on a fixed corruption of the held-out text, with replacements sampled by frequency. Repeat the
command to continue an interrupted arm.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import roc_auc_score
from torch.nn import functional
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining, TrainerCallback

from electra_exit.parsing import parse
from modeling_electra_exit.trainers.pretraining.collator import DataCollatorForReplacedTokenDetection
from modeling_electra_exit.trainers.pretraining.run import build_trainer, prepare_run
from modeling_electra_exit.trainers.runtime.checkpoints import newest_intact
from modeling_electra_exit.trainers.runtime.files import read_json, write_json
from research.step_timing import steps_of, take_turns
from research.study import corrupt_held_out


PLAIN, PACKAGE, OURS = ARMS = ("plain", "electra-pytorch", "ours")
GOAL = 0.88
TIMING = "step-seconds.json"
# Number of held-out sequences per evaluation, and of evaluations per run.
EVALUATED, EVALUATIONS = 384, 20
# ELECTRA-Small's learning rate, the share of the run for warm-up, and the weight of the discriminator's loss.
RATE, WARMUP, DISCRIMINATOR_WEIGHT = 5e-4, 0.06, 50.0
CORRUPTION = ["--generator_type", "unigram", "--seed", "0", "--data_seed", "20"]
# The quickstart's former depth, and the number of steps that turns its warm-up into a share of the time.
FOUR_LAYERS = ["--num_hidden_layers", "4", "--max_steps", "1400"]
READ = ("input_ids", "attention_mask", "token_type_ids")


class Curve:
    """The measurements of an arm, written to a file after each one.

    Args:
        path: the JSON file. If it exists, the curve is continued.
        facts: other facts to write to the file.
        held_out: corrupted sequences with `labels`.
        collate: makes a batch from a list of sequences.
    """

    def __init__(self, path: Path, facts: dict, held_out: Dataset, collate: Callable):
        self.path, self.facts = path, facts
        self.batches = [
            collate(list(held_out.select(range(at, min(at + 64, len(held_out))))))
            for at in range(0, len(held_out), 64)
        ]
        self.points = read_json(path)["curve"] if path.exists() else []

    def measure(self, model, step: int, seconds: float) -> None:
        """Measure and record the ROC-AUC of a discriminator after `step` steps and `seconds`."""
        training = model.training
        model.eval()
        logits, labels = [], []
        for batch in self.batches:
            with torch.inference_mode():
                answers = model(**{name: batch[name].to(model.device) for name in READ if name in batch}).logits.cpu()
            mask = batch.get("attention_mask", torch.ones_like(batch["labels"])).bool()
            logits.append(answers[mask])
            labels.append(batch["labels"][mask])
        model.train(training)
        auc = roc_auc_score(torch.cat(labels).numpy(), torch.cat(logits).float().numpy())
        self.points = [point for point in self.points if point["step"] < step]
        self.points.append({"step": step, "seconds": round(seconds, 1), "roc_auc": round(float(auc), 5)})
        write_json(self.path, {**self.facts, "curve": self.points})


# ---- The plain loops ----


def plain_models(config) -> tuple[ElectraForMaskedLM, ElectraForPreTraining]:
    """Transformers' generator and discriminator in the sizes of our models, with shared embeddings."""
    same = ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size", "pad_token_id")
    sizes = {name: getattr(config, name) for name in same}

    def of(source) -> ElectraConfig:
        own = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        return ElectraConfig(**sizes, **{name: getattr(source, name) for name in own})

    generator, discriminator = ElectraForMaskedLM(of(config.generator_config())), ElectraForPreTraining(of(config))
    discriminator.electra.embeddings = generator.electra.embeddings
    return generator, discriminator


class PlainStep(torch.nn.Module):
    """ELECTRA's loss, with generator logits at all positions."""

    def __init__(self, generator, discriminator):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        beside = {name: batch[name] for name in READ[1:] if name in batch}
        labels = batch["mlm_labels"]
        logits = self.generator(input_ids=batch["input_ids"], **beside).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        chosen = labels != -100
        with torch.no_grad():
            samples = torch.multinomial(logits[chosen].softmax(-1), 1)[:, 0]
        original = torch.where(chosen, labels, batch["input_ids"])
        corrupted = original.clone()
        corrupted[chosen] = samples
        replaced = (corrupted != original).long()
        found = self.discriminator(input_ids=corrupted, labels=replaced, **beside)
        return loss + DISCRIMINATOR_WEIGHT * found.loss


class PackageStep(torch.nn.Module):
    """The step of electra-pytorch, which masks the text itself."""

    def __init__(self, generator, discriminator, tokenizer):
        from electra_pytorch import Electra  # pip install electra-pytorch

        super().__init__()
        special = {token for token in tokenizer.all_special_ids if token != tokenizer.pad_token_id}
        self.step = Electra(
            Logits(generator), Logits(discriminator), mask_token_id=tokenizer.mask_token_id,
            pad_token_id=tokenizer.pad_token_id, mask_ignore_token_ids=list(special),
        )  # fmt: skip

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = batch["mlm_labels"]
        text = torch.where(labels != -100, labels, batch["input_ids"])
        return self.step(text, **{name: batch[name] for name in READ[1:] if name in batch}).loss


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, **beside):
        return self.model(input_ids=input_ids, **beside).logits


def endless_batches(sequences: Dataset, collate, size: int, skip: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches in a new order in each epoch, without the first `skip`."""
    number = 0
    for epoch in range(10**9):
        order = np.random.default_rng(epoch).permutation(len(sequences))
        for at in range(0, len(order) - size + 1, size):
            number += 1
            if number > skip:
                collate.set_epoch(epoch)
                yield collate(list(sequences.select(order[at : at + size])))


class PlainLoop:
    """A model, its optimizer, and one step of them."""

    def __init__(self, arm: str, config, training, tokenizer, rate: float):
        generator, self.discriminator = plain_models(config)
        models = (generator, self.discriminator)
        self.model = PlainStep(*models) if arm == PLAIN else PackageStep(*models, tokenizer)
        self.model.to(training.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), rate, eps=1e-6, weight_decay=0.01)
        self.device = training.device

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        self.model({name: value.to(self.device) for name, value in batch.items()}).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def run_plain(loop: PlainLoop, training, packed, collate, curve: Curve, args: argparse.Namespace) -> None:
    state, before, number = args.folder / f"{args.name}.pt", 0.0, 0
    if state.exists():
        saved = torch.load(state, weights_only=False)
        loop.model.load_state_dict(saved["model"])
        loop.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        before, number = saved["seconds"], saved["number"]
    batches = endless_batches(packed["train"], collate, training.per_device_train_batch_size, number)
    budget, clock = 60 * args.minutes, clock_of(args, lambda: number)
    start = clock()
    due = budget / EVALUATIONS * (1 + int(before / budget * EVALUATIONS))
    while (seconds := before + clock() - start) < budget:
        over = seconds / budget
        for group in loop.optimizer.param_groups:
            group["lr"] = args.rate * min(over / WARMUP, (1 - over) / (1 - WARMUP))
        loop.step(next(batches))
        number += 1
        seconds = before + clock() - start
        if seconds >= min(due, budget):
            with clock.stopped():
                curve.measure(loop.discriminator, number, seconds)
                saved = {"model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict()}
                torch.save({**saved, "random": torch.get_rng_state(), "seconds": seconds, "number": number}, state)
            due += budget / EVALUATIONS


# ---- Clocks ----


class ProcessorTime:
    """The CPU time of this process, excluding evaluations."""

    def __init__(self):
        self.left_out = 0.0

    def __call__(self) -> float:
        return time.process_time() - self.left_out

    @contextmanager
    def stopped(self) -> Iterator[None]:
        start = time.process_time()
        yield
        self.left_out += time.process_time() - start


class StepTime:
    """A fixed time per step."""

    def __init__(self, seconds: float, steps: Callable[[], int]):
        self.seconds, self.steps = seconds, steps

    def __call__(self) -> float:
        return self.seconds * self.steps()

    def stopped(self):
        return nullcontext()


def clock_of(args: argparse.Namespace, steps: Callable[[], int]) -> ProcessorTime | StepTime:
    return ProcessorTime() if args.step_seconds is None else StepTime(args.step_seconds, steps)


# ---- Ours ----


class Measure(TrainerCallback):
    """Evaluates and saves our run at regular intervals of its clock."""

    def __init__(self, trainer, curve: Curve):
        self.trainer, self.curve, self.due = trainer, curve, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.every = self.trainer.pace.budget / EVALUATIONS
        self.due = self.every * (1 + int(self.trainer.pace.elapsed / self.every))

    def on_step_end(self, args, state, control, **kwargs):
        seconds = self.trainer.pace.elapsed
        if seconds < self.due and state.global_step < state.max_steps:
            return
        with self.trainer.clock.stopped():
            self.curve.measure(self.trainer.model, state.global_step, seconds)
        self.due += self.every
        control.should_save = True


def run_ours(words: list[str], curve: Curve, args: argparse.Namespace) -> None:
    given = ["--train_time", f"{60 * args.minutes:g}s", "--save_steps", "1000000", "--disable_tqdm", "true"]
    config, data, training, _ = parse([*words, *given])
    trainer, *_ = build_trainer(config, data, training)
    trainer.clock = clock_of(args, lambda: trainer.state.global_step)
    trainer.add_callback(Measure(trainer, curve))
    trainer.train(resume_from_checkpoint=newest_intact(Path(training.output_dir)))


# ---- Results ----


def seconds_to(goal: float, curve: list[dict], metric: str = "roc_auc") -> float | None:
    """The time at which a curve reaches a value, by linear interpolation; `None` if it does not."""
    for before, point in zip([None, *curve], curve, strict=False):
        if point[metric] >= goal:
            if before is None:
                return point["seconds"]
            share = (goal - before[metric]) / (point[metric] - before[metric])
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
    return None


def read_runs(folder: Path) -> dict[str, dict]:
    """The results of all runs, by name."""
    return {path.stem: run for path in sorted(folder.glob("*.json")) if "curve" in (run := read_json(path))}


def summary(folder: Path) -> str:
    """A table of all runs. The goals are the best quality of the plain loops, and [`GOAL`]."""
    runs = read_runs(folder)
    best = max((best_of(run) for run in runs.values() if run["arm"] == PLAIN), default=GOAL)
    lines = [f"| run | seconds | steps | ROC-AUC | seconds to {best:.3f} | to {GOAL} |", "|---|---|---|---|---|---|"]
    for name, run in runs.items():
        last = run["curve"][-1]
        times = [seconds_to(goal, run["curve"]) for goal in (best, GOAL)]
        cells = ["not reached" if time is None else f"{time:,.0f}" for time in times]
        lines.append(
            f"| {name} | {last['seconds']:,.0f} | {last['step']:,} | {last['roc_auc']:.4f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def best_of(run: dict) -> float:
    return max(point["roc_auc"] for point in run["curve"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm", choices=[*ARMS, "timing", "summary"])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate of the plain loops")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timed", action="store_true", help="let each step count as the time that `timing` measured")
    parser.add_argument("--turns", type=int, default=10, help="turns of `timing`, of three counted steps of each arm")
    parser.add_argument("--name", help="name of the result (default: that of the arm)")
    parser.add_argument("--folder", type=Path, default=Path("runs/time-to-quality"), help="folder of the checkpoints")
    parser.add_argument("--results", type=Path, required=True, help="folder of the results")
    args, flags = parser.parse_known_args()
    args.name = args.name or args.arm
    if args.arm == "timing":
        measure_steps(args, flags)
    elif args.arm != "summary":
        run(args, flags)
    print(summary(args.results))


def run(args: argparse.Namespace, flags: list[str]) -> None:
    """Run one arm. `flags` are flags of `electra-exit pretrain`, for example for another text."""
    args.folder.mkdir(parents=True, exist_ok=True)
    args.results.mkdir(parents=True, exist_ok=True)
    args.step_seconds = step_seconds(args) if args.timed else None
    words = words_of(args, flags)
    fields, data, training, _ = parse(words)
    config, packed, tokenizer, _ = prepare_run(fields, data)
    held_out = corrupt_held_out(*parse([*words, *CORRUPTION])[:3])
    held_out = held_out.select(range(min(EVALUATED, len(held_out))))
    facts = {"arm": args.arm, "minutes": args.minutes, "seed": args.seed, "threads": torch.get_num_threads(),
             "step_seconds": args.step_seconds, "layers": config.num_hidden_layers,
             "rate": training.learning_rate if args.arm == OURS else args.rate, "flags": flags}  # fmt: skip
    collate = DataCollatorForReplacedTokenDetection(tokenizer, data.max_seq_length)
    curve = Curve(args.results / f"{args.name}.json", facts, held_out, collate)
    if args.arm == OURS:
        run_ours(words, curve, args)
    else:
        torch.manual_seed(args.seed)
        loop = PlainLoop(args.arm, config, training, tokenizer, args.rate)
        run_plain(loop, training, packed, collate, curve, args)


def step_seconds(args: argparse.Namespace) -> float:
    """The seconds of a step of this arm that `timing` measured."""
    path = args.results / TIMING
    measured = read_json(path) if path.exists() else {}
    if args.arm not in measured:
        raise SystemExit(f"--timed requires the time of a step of {args.arm} in {path}; run `timing` first")
    return measured[args.arm]


def words_of(args: argparse.Namespace, flags: list[str]) -> list[str]:
    """The command of our run, whose text, sizes and batches all arms have."""
    output = ["--output_dir", str(args.folder / args.name), "--report_to", "none", "--seed", str(args.seed)]
    return ["quickstart", *FOUR_LAYERS, "--generator_type", "mlm", *flags, *output]


def measure_steps(args: argparse.Namespace, flags: list[str]) -> None:
    """Time the steps of all installed arms in alternating turns, and write the median seconds of each."""
    args.results.mkdir(parents=True, exist_ok=True)
    fields, data, training, _ = parse([*words_of(args, flags), "--corpus_init", "false"])
    config, packed, tokenizer, _ = prepare_run(fields, data)
    trainer, *_ = build_trainer(fields, data, training)
    steps = {OURS: partial(next, steps_of(trainer))}
    collate = DataCollatorForReplacedTokenDetection(tokenizer, data.max_seq_length)
    for arm in ARMS:
        if arm == OURS or (arm == PACKAGE and find_spec("electra_pytorch") is None):
            continue
        loop = PlainLoop(arm, config, training, tokenizer, args.rate)
        batches = endless_batches(packed["train"], collate, training.per_device_train_batch_size, 0)
        steps[arm] = partial(lambda loop, batches: loop.step(next(batches)), loop, batches)
    seconds = {arm: statistics.median(samples) for arm, samples in take_turns(steps, args.turns).items()}
    write_json(args.results / TIMING, seconds)
    print(", ".join(f"{arm}: {each:.3f} s" for arm, each in seconds.items()))


if __name__ == "__main__":
    main()
