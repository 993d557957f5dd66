"""Throughput of data preparation, compared with the tokenizer alone.

    python benchmarks/data_preparation.py TEXT [TEXT ...] [--json FILE] [--megabytes 20] [--repeats 5]

- `tokenizer`: the Rust tokenizer of `tokenizers` on all cores, discarding the ids.
- `tokenizer.lists`: the same through Transformers, returning the ids as lists.
- `pack`: what `electra-exit pretrain` does with new text: tokenize it, pack it into sequences of two segments, and
  store them. `pack.one`: the same with one segment.
- `pack.again`: load what `pack` has stored.

The cases alternate, and the results are medians.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, DatasetDict
from steps import records

from modeling_electra_exit.trainers.data.arguments import DataArguments
from modeling_electra_exit.trainers.data.packing import pack
from modeling_electra_exit.trainers.data.preparation import load_tokenizer
from modeling_electra_exit.trainers.data.reading import load_documents
from modeling_electra_exit.trainers.errors import DataError


VOCAB_SIZE, LENGTH = 8192, 128


def first_documents(documents: Dataset, megabytes: float) -> tuple[Dataset, float]:
    """The first documents with at least `megabytes` of text (or all), and their size in MB."""
    sizes = np.cumsum([len((text or "").encode()) for text in documents["text"]]) / 1e6
    wanted = min(len(documents), int(np.searchsorted(sizes, megabytes)) + 1)
    return documents.select(range(wanted)), float(sizes[wanted - 1])


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+", help="text files, as for --train_files of `electra-exit pretrain`")
    parser.add_argument("--megabytes", type=float, default=20, help="MB of text to use (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="write the records to this file")
    args = parser.parse_args()
    try:
        documents, size = first_documents(
            load_documents(DataArguments(train_files=args.text))["train"], args.megabytes
        )
        tokenizer = load_tokenizer(DataArguments(max_seq_length=LENGTH), VOCAB_SIZE, documents)
    except DataError as error:
        sys.exit(f"{parser.prog}: error: {error}")
    texts = [text or "" for text in documents["text"]]
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder)
        documents.save_to_disk(stored / "documents")
        found = measure(datasets.load_from_disk(stored / "documents"), texts, tokenizer, args.repeats)
    speeds = {name: size / statistics.median(times) for name, times in found.items()}
    samples = {name: [size / each for each in times] for name, times in found.items()}
    print(f"{size:.1f} MB of text, {len(texts):,} documents\n\n| case | MB/s | times the tokenizer |\n|---|---|---|")
    for name, speed in speeds.items():
        print(f"| {name} | {speed:.2f} | {speed / speeds['tokenizer']:.2f} |")
    if args.json:
        found = records("data_preparation", "megabytes_per_second", "MB/s", speeds, "tokenizer", samples)
        Path(args.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


def measure(documents: Dataset, texts: list[str], tokenizer, repeats: int) -> dict[str, list[float]]:
    """Seconds of each case, measured in alternation."""
    cases = {
        "tokenizer": lambda: tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False),
        "tokenizer.lists": lambda: tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        ),
        "pack": lambda: pack(DatasetDict(train=documents), tokenizer, LENGTH),
        "pack.one": lambda: pack(DatasetDict(train=documents), tokenizer, LENGTH, segments="one"),
        "pack.again": lambda: pack(DatasetDict(train=documents), tokenizer, LENGTH),
    }
    found = {name: [] for name in cases}
    for _ in range(repeats):
        documents.cleanup_cache_files()
        for name, case in cases.items():
            found[name].append(seconds(case))
    return found


if __name__ == "__main__":
    main()
