"""Fine-tune a model before and after further pre-training on text of your domain; calibrate the better one's exits.

    python examples/domain_adaptation.py MODEL text.jsonl task.csv runs/domain [USER/REPOSITORY]

MODEL       BERT, ELECTRA or electra-exit model: folder or Hub id
text.jsonl  a few MB of unlabelled text of the domain; or .txt, .csv, .parquet
task.csv    a task of the domain, with a column `text` and a column of labels

Name a repository to push the result. Repeat the command to continue an interrupted run.
"""

import json
import sys
from pathlib import Path

from electra_exit.main import main as electra_exit


PRETRAINING = {"num_train_epochs": 10, "max_seq_length": 128}  # changes to the recipe `domain-adapt`
FINETUNING = {"learning_rate": 5e-5, "layerwise_lr_decay": 0.9, "num_train_epochs": 3, "max_seq_length": 128,
              "classifier_pooling": "mean", "exit_policy": "random"}  # fmt: skip
SEEDS = (1, 2, 3)  # compare the difference between the models with the spread of the seeds
MAX_ACCURACY_DROP = 0.01


def run(command: str, *words, **fields) -> None:
    """Run a command of `electra-exit`, and exit with its status if it fails."""
    flags = [f"--{name}={value}" for name, value in fields.items()]
    if status := electra_exit([command, *map(str, words), *flags]):
        sys.exit(status)


def main(model: str, text: str, task: str, folder: str, repository: str | None = None) -> Path:
    """Returns the folder of the best model."""
    folder = Path(folder)
    adapted = folder / "pretrained"
    run("pretrain", "domain-adapt", init_from=model, train_files=text, output_dir=adapted, **PRETRAINING)
    found = {}
    for name, start in (("before", model), ("after", adapted)):
        # Both hold out the same examples, because the split has a separate seed (--data_split_seed).
        run("finetune", start, "--seeds", *SEEDS, train_file=task, output_dir=folder / name, **FINETUNING)
        found[name] = json.loads((folder / name / "metrics.json").read_text())
    measure = next(iter(found["after"]["evaluation"]))
    for name, summary in found.items():
        scores = summary["evaluation"][measure]
        print(f"{name:8}{measure} {scores['mean']:.4f} +- {scores['standard_deviation']:.4f}")
    better = max(found, key=lambda name: found[name]["evaluation"][measure]["mean"])
    best = folder / better / found[better]["best"]
    run("calibrate", best, folder / better / "held_out.jsonl", max_accuracy_drop=MAX_ACCURACY_DROP)
    run("card", best)
    if repository:
        run("push", best, repository)
    return best


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    print(f"classify text with: electra-exit score {main(*sys.argv[1:])} FILE")
