"""Compare a fine-tuned small model with baselines that only see words, and with the same model from random weights.

    python -m benchmarks.bag_of_words MODEL glue/sst2/train.jsonl wnut17 FOLDER \\
        --json benchmarks/results/bag_of_words.json

SST-2: the training set is a random sample of its training examples, the evaluation set another one. Both contain
phrases, and phrases of one sentence can be in both, which favors recognizing words. The bag of words is a logistic
regression on TF-IDF weights (scikit-learn). WNUT-17: F1 of named entities on `validation.jsonl`, beside the most
frequent tag of each word. The settings of fine-tuning were not tuned. Repeat the command to continue an interrupted
run.
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
FINETUNE = {
    "max_seq_length": 64, "learning_rate": 1e-3, "exit_policy": "none", "adam_bias_correction": True,
    "layerwise_lr_decay": 1.0, "lr_scheduler_type": "linear", "train_sampling_strategy": "group_by_length", "seeds": 7,
}  # fmt: skip
TEXTS = {"num_train_epochs": 2, "classifier_pooling": "mean"}
WORDS = {"num_train_epochs": 8, "text_column": "tokens", "label_column": "ner_tags"}


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
    parser.add_argument("--json", type=Path, help="write the result to this file")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.examples.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    splits = {"train": rows[:TRAINING], "evaluation": rows[-EVALUATION:]}
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, part in splits.items():
        (args.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    save_random(args.model, args.folder / "random")
    files = {"train_file": args.folder / "train.jsonl", "validation_file": args.folder / "evaluation.jsonl"}
    accuracy = {"bag of words": bag_of_words(*splits.values())}
    for name, model in (("pre-trained", args.model), ("random weights", args.folder / "random")):
        measured = run("finetune", str(model), args.folder / name.replace(" ", "-"), **files, **FINETUNE, **TEXTS)
        accuracy[name] = measured["evaluation"]["accuracy"]["mean"]
    files = {"train_file": args.tagging / "train.jsonl", "validation_file": args.tagging / "validation.jsonl"}
    tagging = run("finetune", args.model, args.folder / "tagging", **files, **FINETUNE, **WORDS)
    f1 = {
        "pre-trained": tagging["evaluation"]["entity_f1"]["mean"],
        "most frequent tags": tagging["baselines"]["most frequent tag of each word"]["entity_f1"],
    }
    result = {"accuracy": accuracy, "entity_f1": f1}
    for metric, values in result.items():
        for name, value in values.items():
            print(f"{metric:12}{name:20}{value:.4f}")
    if args.json:
        settings = {"examples": {"train": TRAINING, "evaluation": EVALUATION}, "finetune": [FINETUNE, TEXTS, WORDS]}
        args.json.write_text(json.dumps({**result, **settings}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
