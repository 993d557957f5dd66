"""Fine-tune a small model with the recipe `small-models`, beside baselines that only see words, and other settings.

    python -m benchmarks.small_models MODEL glue/sst2/train.jsonl wnut17 FOLDER \\
        --json benchmarks/results/small_models.json

SST-2: the training set is a random sample of its training examples, the evaluation set another one. Both contain
phrases, and phrases of one sentence can be in both, which favors recognizing words. The bag of words is a logistic
regression on TF-IDF weights (scikit-learn). WNUT-17: F1 of named entities on `validation.jsonl`, beside the most
frequent tag of each word. Repeat the command to continue an interrupted run. `--only_model` leaves out all baselines,
to compare checkpoints with each other.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoConfig, AutoModelForPreTraining, AutoTokenizer

import modeling_electra_exit  # noqa: F401 registers the architecture
from benchmarks.domain_adapt import run


TRAINING, EVALUATION = 10_000, 3_000
SEED = 7
# Of the recipes: the length of the examples, which is short, and the epochs.
TEXTS = {"max_seq_length": 64, "num_train_epochs": 3, "seeds": SEED}
WORDS = {
    "max_seq_length": 64,
    "num_train_epochs": 8,
    "seeds": SEED,
    "text_column": "tokens",
    "label_column": "ner_tags",
}


def bag_of_words(train: list[dict], evaluation: list[dict]) -> float:
    """Accuracy of a logistic regression on the words and pairs of words of a text."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", sublinear_tf=True)
    words = vectorizer.fit_transform(row["sentence"] for row in train)
    classifier = LogisticRegression(C=4, max_iter=500).fit(words, [row["label"] for row in train])
    texts = vectorizer.transform(row["sentence"] for row in evaluation)
    return classifier.score(texts, [row["label"] for row in evaluation])


def save_random(model: str, folder: Path) -> None:
    """The same architecture and tokenizer with random weights."""
    torch.manual_seed(0)
    AutoModelForPreTraining.from_config(AutoConfig.from_pretrained(model)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a pre-trained checkpoint of this package")
    parser.add_argument("examples", type=Path, help="SST-2's train.jsonl")
    parser.add_argument("tagging", type=Path, help="WNUT-17: folder with train.jsonl and validation.jsonl")
    parser.add_argument("folder", type=Path, help="where the runs go")
    parser.add_argument("--only_model", action="store_true", help="leave out all baselines")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.examples.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    splits = {"train": rows[:TRAINING], "evaluation": rows[-EVALUATION:]}
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, part in splits.items():
        (args.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    files = {"train_file": args.folder / "train.jsonl", "validation_file": args.folder / "evaluation.jsonl"}
    accuracy, arms = {}, [("pre-trained", "small-models", args.model)]
    if not args.only_model:
        save_random(args.model, args.folder / "random")
        accuracy["bag of words"] = bag_of_words(*splits.values())
        arms += [
            ("random weights", "small-models", args.folder / "random"),
            ("published settings", "glue-small", args.model),
        ]
    for name, recipe, model in arms:
        measured = run("finetune", recipe, args.folder / name.replace(" ", "-"), model=model, **files, **TEXTS)
        accuracy[name] = measured["evaluation"]["accuracy"]["mean"]
    files = {"train_file": args.tagging / "train.jsonl", "validation_file": args.tagging / "validation.jsonl"}
    tagging = run("finetune", "small-models", args.folder / "tagging", model=args.model, **files, **WORDS)
    f1 = {
        "pre-trained": tagging["evaluation"]["entity_f1"]["mean"],
        "most frequent tags": tagging["baselines"]["most frequent tag of each word"]["entity_f1"],
    }
    result = {"accuracy": accuracy, "entity_f1": f1}
    for metric, values in result.items():
        for name, value in values.items():
            print(f"{metric:12}{name:20}{value:.4f}")
    if args.json:
        settings = {"examples": {"train": TRAINING, "evaluation": EVALUATION}, "texts": TEXTS, "words": WORDS}
        args.json.write_text(json.dumps({**result, **settings}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
