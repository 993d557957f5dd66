"""The effect of `domain-adapt`: fine-tune a model before and after further pre-training on text of the domain.

    python benchmarks/own_task.py DATA
    python -m benchmarks.domain_adapt MODEL DATA FOLDER --json benchmarks/results/domain_adapt/eras.json

The domain is the US State of the Union addresses. The task is to predict the era of a speech from the first words of a
paragraph. The pre-training text is that of the training speeches; the test speeches are read only for evaluation. Both
fine-tuning runs use the same settings, which were not tuned, and the same seeds. Repeat the command to continue an
interrupted run.

    python -m benchmarks.domain_adapt MODEL DATA FOLDER --learning_rate 1e-5 --exit_policy none

Other flags are those of `electra-exit pretrain` and change the further pre-training.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from electra_exit import main as cli


SEEDS = (0, 1, 2)
METRIC = "accuracy"
ADAPT = {"max_seq_length": 64, "max_steps": 200, "seed": 0, "save_steps": 50, "report_to": "none"}
# Few labelled examples, where further pre-training can matter most.
FINETUNE = {
    "max_train_examples": 300, "max_seq_length": 32, "learning_rate": 1e-4, "num_train_epochs": 10,
    "classifier_pooling": "mean", "adam_bias_correction": True, "exit_policy": "none",
}  # fmt: skip


def flags(fields: dict) -> list[str]:
    return [word for name, value in fields.items() for word in (f"--{name}", str(value))]


def run(command: str, what: str, folder: Path, *more: str, **fields) -> dict:
    """Run a command unless it is finished. Returns the content of its `metrics.json`."""
    metrics = folder / "metrics.json"
    if not metrics.exists() and (
        status := cli.main([command, what, *flags(fields), "--output_dir", str(folder), *more])
    ):
        sys.exit(status)
    return json.loads(metrics.read_text(encoding="utf-8"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="BERT, ELECTRA or electra-exit checkpoint: folder or Hub id")
    parser.add_argument("data", type=Path, help="output folder of benchmarks/own_task.py")
    parser.add_argument("folder", type=Path, help="folder for the runs")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    args, changes = parser.parse_known_args()
    adapted = args.folder / "adapted"
    start = {"init_from": args.model, "train_files": args.data / "text.txt"}
    pretraining = run("pretrain", "domain-adapt", adapted, *changes, **start, **ADAPT)
    files = {"train_file": args.data / "train.csv", "validation_file": args.data / "test.csv"}
    found = {}
    for name, model in (("before", args.model), ("after", str(adapted))):
        measured = run("finetune", model, args.folder / name, "--seeds", *map(str, SEEDS), **files, **FINETUNE)
        found[name] = measured["evaluation"][METRIC]["scores"]
    found["difference"] = [after - before for before, after in zip(found["before"], found["after"], strict=True)]
    print(f"\n{METRIC} of {len(SEEDS)} seeds")
    for name, scores in found.items():
        print(f"  {name:12}{statistics.mean(scores):+.4f} ± {statistics.stdev(scores):.4f}   {scores}")
    if args.json:
        result = {
            "model": Path(args.model).name, "adapt": ADAPT, "changes": changes, "finetune": FINETUNE, "seeds": SEEDS,
            METRIC: found,
            "pretraining": {name: pretraining[name] for name in ("evaluation", "training", "data")},
        }  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
