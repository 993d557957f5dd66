"""A downstream test for small checkpoints: probe the frozen encoder for named entities.

    python -m research.yardstick CHECKPOINT [CHECKPOINT ...] --data FOLDER --json results.json

A linear probe on the states after the last layer predicts whether each word belongs to a named entity in WNUT-17
(Derczynski et al., 2017), whose names are rare and new, so that memorizing them helps little. The probe is a ridge
regression on the training sentences, which has a unique solution and takes seconds. Average precision is measured on
the test sentences, with a standard error from bootstrap resampling. Several checkpoints share the resamples, so their
differences have smaller errors than their values.

The probe uses the last layer, not the best one: in models as small as the quickstart, the embeddings are best, but
they are initialized from statistics of the text and do not reflect the encoder.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

import modeling_electra_exit  # noqa: F401 registers the architecture
from modeling_electra_exit.trainers.errors import UsageError
from modeling_electra_exit.trainers.runtime.cpu_kernels import to_best_device
from modeling_electra_exit.trainers.runtime.files import write_json

from .resampling import resampled


BATCH = 64
# The ridge penalty, per example and in units of the states' mean square.
RIDGE = 1e-3
SPLITS = ("train", "test")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m research.yardstick", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--data", type=Path, required=True, help="folder of WNUT-17 as train.jsonl and test.jsonl")
    parser.add_argument("--max_sentences", type=int, help="use this many sentences per split (default: all)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args(argv)
    sentences = read_data(args.data, args.max_sentences)
    results = compare({name: probe(name, sentences) for name in args.checkpoints}, sentences["test"])
    print(table(results))
    if args.json:
        write_json(args.json, results)
    return 0


def read_data(folder: Path, count: int | None = None) -> dict[str, list]:
    """[`read_sentences`] of each split."""
    return {split: read_sentences(folder / f"{split}.jsonl", count) for split in SPLITS}


def read_sentences(path: Path, count: int | None = None) -> list[tuple[list[str], np.ndarray]]:
    """For each sentence, its words and whether each is part of a named entity.

    Raises:
        UsageError: if there is no such file.
    """
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:count]]
    return [(row["tokens"], np.array([tag != "O" for tag in row["ner_tags"]])) for row in rows]


def probe(checkpoint: str, sentences: dict[str, list], model: PreTrainedModel | None = None) -> list[np.ndarray]:
    """The scores of the words of each test sentence, one array per sentence.

    Args:
        checkpoint (`str`): the checkpoint, folder or Hub id.
        sentences: the result of [`read_data`].
        model (*optional*): its encoder, in evaluation mode. If omitted, loaded with `AutoModel`.

    Raises:
        UsageError: if the tokenizer is not a fast one.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    if not tokenizer.is_fast:
        raise UsageError(f"the probe requires a fast tokenizer, which maps tokens to words, but {checkpoint} has none")
    model = model or AutoModel.from_pretrained(checkpoint).eval()
    to_best_device(model)
    inputs = {split: with_ones(word_states(model, tokenizer, sentences[split])) for split in SPLITS}
    labels = np.concatenate([inside for _, inside in sentences["train"]])
    scores = inputs["test"] @ ridge(inputs["train"], labels)
    return np.split(scores, np.cumsum([len(words) for words, _ in sentences["test"]])[:-1])


@torch.inference_mode()
def word_states(model, tokenizer, sentences: list) -> np.ndarray:
    """The last hidden states of the words' first tokens, fp32 of shape `(words, hidden_size)`. A word without a token,
    or beyond the model's positions, has zeros."""
    longest, kept = model.config.max_position_embeddings, []
    for start in range(0, len(sentences), BATCH):
        words = [words for words, _ in sentences[start : start + BATCH]]
        encoded = tokenizer(
            words, is_split_into_words=True, truncation=True, max_length=longest, padding=True, return_tensors="pt"
        )
        states = model(**encoded.to(model.device)).last_hidden_state.float().cpu().numpy()
        for row, of_row in enumerate(words):
            first = {}
            for position, word in enumerate(encoded.word_ids(row)):
                first.setdefault(word, position)
            nothing = np.zeros(states.shape[-1], dtype=np.float32)
            kept += [states[row, first[word]] if word in first else nothing for word in range(len(of_row))]
    return np.stack(kept)


def with_ones(states: np.ndarray) -> np.ndarray:
    return np.concatenate([states, np.ones((len(states), 1), dtype=states.dtype)], axis=1)


def ridge(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The weights of the penalized least-squares fit to 0/1 labels. The last one, of the bias, has no penalty."""
    inputs = inputs.astype(np.float64)
    gram = inputs.T @ inputs
    penalty = RIDGE * np.diag(gram).mean() * np.eye(len(gram))
    penalty[-1, -1] = 0
    return np.linalg.solve(gram + penalty + 1e-9 * np.eye(len(gram)), inputs.T @ labels)


def measure(scores: list[np.ndarray], sentences: list) -> tuple[dict, np.ndarray]:
    """The quality of the scores of [`probe`]: `average_precision`, its `standard_error` over resamples of the
    sentences, the number of `words` and the `share_of_entities`, which is the average precision of chance. Also the
    average precision of each resample; the resamples are the same for all checkpoints."""
    labels = [inside for _, inside in sentences]
    resamples = resampled(scores, labels)["average_precision"]
    true = np.concatenate(labels)
    return {
        "average_precision": float(average_precision_score(true, np.concatenate(scores))),
        "standard_error": float(np.std(resamples)),
        "words": len(true),
        "share_of_entities": float(true.mean()),
    }, resamples


def compare(scores: dict[str, list[np.ndarray]], sentences: list) -> dict[str, dict]:
    """[`measure`] of each checkpoint, and its `difference` from the first one with its `difference_standard_error`."""
    measured = {name: measure(of, sentences) for name, of in scores.items()}
    first, first_resamples = next(iter(measured.values()))
    return {
        name: {
            **found,
            "difference": found["average_precision"] - first["average_precision"],
            "difference_standard_error": float(np.std(resamples - first_resamples)),
        }
        for name, (found, resamples) in measured.items()
    }


def table(results: dict[str, dict]) -> str:
    lines = ["| checkpoint | average precision | difference from the first |", "|---|---|---|"]
    for name, of in results.items():
        lines.append(
            f"| {name} | {of['average_precision']:.4f} ± {of['standard_error']:.4f} | "
            f"{of['difference']:+.4f} ± {of['difference_standard_error']:.4f} |"
        )
    of = next(iter(results.values()))
    return "\n".join([*lines, "", f"{of['words']:,} words; chance: {of['share_of_entities']:.4f}; ± standard error."])


if __name__ == "__main__":
    sys.exit(main())
