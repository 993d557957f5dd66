"""Does `domain-adapt` pay? A model fine-tuned on a task as it is, and after more pre-training on text of the domain.

    python -m benchmarks.domain_adapt MODEL wnut17 FOLDER --json benchmarks/results/domain_adapt/wnut17.json

`wnut17` holds `train.jsonl` and `validation.jsonl` with the columns `tokens` and `ner_tags` (WNUT-17: emerging
entities in tweets and the like). The text of the domain is that of the training file, without its tags; nothing of the
validation file is read before it is measured. Both fine-tunings have the same settings, which are ordinary ones and
were not searched, and the same seeds. The same command continues where it was interrupted.
"""

import argparse
import json
import sys
from pathlib import Path

from electra_exit import main as cli


SEEDS = (0, 1, 2)
METRIC = "entity_f1"
ADAPT = {
    "sample_by": "line", "segments": "one", "max_seq_length": 64, "num_train_epochs": 5, "learning_rate": 1e-4,
    "seed": 0, "save_steps": 20, "report_to": "none",
}  # fmt: skip
FINETUNE = {
    "max_seq_length": 64, "learning_rate": 1e-4, "num_train_epochs": 3, "max_train_examples": 1000,
    "adam_bias_correction": True, "exit_policy": "none",
}  # fmt: skip


def flags(fields: dict) -> list[str]:
    return [word for name, value in fields.items() for word in (f"--{name}", str(value))]


def run(command: str, what: str, folder: Path, *more: str, **fields) -> dict:
    """What a command measured, after running it unless that is done."""
    metrics = folder / "metrics.json"
    if not metrics.exists() and (
        status := cli.main([command, what, *flags(fields), "--output_dir", str(folder), *more])
    ):
        sys.exit(status)
    return json.loads(metrics.read_text(encoding="utf-8"))


def write_text(examples: Path, path: Path) -> None:
    """The words of each example on a line."""
    rows = (json.loads(line) for line in examples.read_text(encoding="utf-8").splitlines())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(" ".join(row["tokens"]) + "\n" for row in rows), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a BERT, an ELECTRA or one of ours, folder or Hub id")
    parser.add_argument("task", type=Path, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("folder", type=Path, help="gets the runs")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    args = parser.parse_args()
    text = args.folder / "text.txt"
    if not text.exists():
        write_text(args.task / "train.jsonl", text)
    adapted = args.folder / "adapted"
    pretraining = run("pretrain", "domain-adapt", adapted, init_from=args.model, train_files=text, **ADAPT)
    files = {"train_file": args.task / "train.jsonl", "validation_file": args.task / "validation.jsonl",
             "text_column": "tokens", "label_column": "ner_tags"}  # fmt: skip
    found = {}
    for name, model in (("as it is", args.model), ("after domain-adapt", str(adapted))):
        folder = args.folder / name.replace(" ", "-")
        measured = run("finetune", model, folder, "--seeds", *map(str, SEEDS), **files, **FINETUNE)
        found[name] = measured["evaluation"]
    scores = [found[name][METRIC]["scores"] for name in found]
    differences = [after - before for before, after in zip(*scores, strict=True)]
    print(f"\n{METRIC} of {len(SEEDS)} seeds")
    for name, evaluation in found.items():
        print(f"  {name:20}{evaluation[METRIC]['mean']:.4f}   {evaluation[METRIC]['scores']}")
    print(f"  {'difference':20}{sum(differences) / len(differences):+.4f}   {differences}")
    if args.json:
        result = {
            "model": Path(args.model).name, "adapt": ADAPT, "finetune": FINETUNE, "seeds": SEEDS, "evaluation": found,
            "pretraining": {name: pretraining[name] for name in ("evaluation", "training", "data")},
        }  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
