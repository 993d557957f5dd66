"""Measure held-out quality against training time for a recipe.

    OMP_NUM_THREADS=1 python -m benchmarks.quickstart quickstart --name now --seed 1 --folder runs/now-1 \\
        --json benchmarks/results/quickstart/now-seed1.json

The run is that of `electra-exit pretrain`. Repeat the command to continue it. Time is the process's CPU time since it
started to read the text, excluding evaluations. Other load on the machine also increases CPU time, so compare runs
that ran at the same time. ROC-AUC is measured on samples of the run's own generator, as every run reports it, and on a
fixed corruption of the held-out text, which is the same for all recipes with the same text and vocabulary.

    python -m benchmarks.quickstart summary --results benchmarks/results/quickstart

prints a table of the finished and unfinished runs. `eight_layers.yaml`, next to this file, is the former quickstart.
"""

import argparse
import re
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks.time_to_quality import GOAL, seconds_to
from electra_exit.parsing import parse
from modeling_electra_exit.trainers.pretraining.run import build_trainer
from modeling_electra_exit.trainers.runtime.checkpoints import newest_intact
from modeling_electra_exit.trainers.runtime.files import read_json, write_json
from research.study import corrupt_held_out


# Number of held-out sequences per evaluation.
EVALUATED = 384
OWN, FIXED = "own_samples", "fixed_samples"
# The fixed corruption: replacements sampled by their frequency in the text.
CORRUPTION = ["--generator_type", "unigram", "--seed", "0", "--data_seed", "20"]


class Curve(TrainerCallback):
    """Records the results of evaluations with the CPU time so far, excluding evaluations, and updates a file.

    Args:
        run: the content of the file. A continued run has its `curve` and the `seconds_by_step` of its checkpoints.
        path: the JSON file to write.
        before: CPU seconds of this process before the run.
    """

    def __init__(self, run: dict, path: Path, before: float):
        self.run, self.path, self.left_out = run, path, before
        self.mark = self.seconds = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop the points after the last checkpoint, since a continued run repeats these steps."""
        self.run["curve"] = [point for point in self.run.get("curve", []) if point["step"] <= state.global_step]
        if state.global_step:
            self.left_out = time.process_time() - self.run["seconds_by_step"][str(state.global_step)]

    def on_step_end(self, args, state, control, **kwargs):
        self.mark = time.process_time()
        self.seconds = self.mark - self.left_out
        self.run.setdefault("seconds_by_step", {})[str(state.global_step)] = round(self.seconds, 1)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        points = self.run["curve"]
        if not points or points[-1]["step"] != state.global_step:
            points.append({"step": state.global_step, "seconds": round(self.seconds, 1)})
        for name, value in metrics.items():
            if found := re.match(rf"eval_({OWN}|{FIXED})_(roc_auc|average_precision)$", name):
                points[-1][f"{found[1]}/{found[2]}"] = round(value, 5)
        saved = self.run["seconds_by_step"]
        kept = {step: saved[step] for step in saved if int(step) % args.save_steps == 0}
        write_json(self.path, {**self.run, "seconds_by_step": kept})
        self.left_out += time.process_time() - self.mark
        self.mark = time.process_time()


def measure(recipe: str, flags: list[str], args: argparse.Namespace) -> None:
    common = [recipe, *flags, "--seed", str(args.seed), "--output_dir", str(args.folder), "--report_to", "none"]
    often = [f"--{what}_{name}" for what, name in (("eval", "steps"), ("save", "steps"))]
    own = [word for flag in often for word in (flag, str(args.every))]
    own += ["--eval_strategy", "steps", "--disable_tqdm", "true"]
    fixed = corrupt_held_out(*parse([*common, *CORRUPTION])[:3])
    before = time.process_time()
    config, data, training, _ = parse([*common, *own])
    trainer, _, held_out = build_trainer(config, data, training)
    first = range(min(EVALUATED, len(held_out)))
    trainer.eval_dataset = {OWN: held_out.select(first), FIXED: fixed.select(first)}
    fresh = {
        "recipe": args.name,
        "seed": args.seed,
        "flags": flags,
        "max_steps": training.max_steps,
        "threads": torch.get_num_threads(),
        "seconds_before_training": round(time.process_time() - before, 1),
    }
    checkpoint = newest_intact(args.folder) if args.folder.exists() else None
    run = fresh if checkpoint is None else read_json(args.json)
    trainer.add_callback(Curve(run, args.json, before))
    trainer.train(resume_from_checkpoint=checkpoint)


def summary(folder: Path) -> str:
    """A table of the runs in a folder: their progress, their quality at the time of the shortest run, and the time of
    all their steps, which [`whole_run`] estimates for an unfinished one."""
    runs = [read_json(path) for path in sorted(folder.glob("*-seed*.json"))]
    common = min(run["curve"][-1]["seconds"] for run in runs)
    names = (
        "recipe", "seed", "steps", "seconds", "ROC-AUC", f"at {common:,.0f} s", f"seconds to {GOAL}",
        "seconds of all steps",
    )  # fmt: skip
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for run in runs:
        last, points = run["curve"][-1], run["curve"]
        then = np.interp(common, [point["seconds"] for point in points], [point[f"{OWN}/roc_auc"] for point in points])
        reached = seconds_to(GOAL, points, f"{OWN}/roc_auc")
        cells = (
            run["recipe"], run["seed"], f"{last['step']:,} of {run['max_steps']:,}", f"{last['seconds']:,.0f}",
            f"{last[f'{OWN}/roc_auc']:.4f}", f"{then:.4f}", "not reached" if reached is None else f"{reached:,.0f}",
            f"{whole_run(run):,.0f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def whole_run(run: dict) -> float:
    """Seconds that all steps of a run take, from the median time of its steps between evaluations."""
    points = [{"step": 0, "seconds": run["seconds_before_training"]}, *run["curve"]]
    paces = [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(points)]
    return run["seconds_before_training"] + run["max_steps"] * median(paces)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="name or path of a recipe, or `summary`")
    parser.add_argument("--results", type=Path, help="folder of the results to summarize")
    parser.add_argument("--name", help="name of the recipe in the results")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=200, help="steps between evaluations (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="output folder of the run")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args, flags = parser.parse_known_args()
    if args.recipe == "summary":
        print(summary(args.results))
        return
    if missing := [name for name in ("name", "folder", "json") if getattr(args, name) is None]:
        parser.error(f"a run requires --{', --'.join(missing)}")
    measure(args.recipe, flags, args)


if __name__ == "__main__":
    main()
