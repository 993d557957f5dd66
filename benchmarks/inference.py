"""Throughput and accuracy of a fine-tuned text classifier at full depth, compiled, and with exits.

    python benchmarks/inference.py FOLDER EXAMPLES.jsonl [--calibration FILE] [--json FILE] [--batch_sizes 1 8 32 128]

The thresholds of the exits are chosen on the examples of `--calibration` (`calibrate_exits` with
`--max_accuracy_drop`). Without `--calibration`, every second example is used for calibration and the others are
measured. The variants alternate after each pass, and the results are medians. `exits` has a threshold per exit.
`exits.stay` has thresholds that practically no example reaches; it shows the overhead of the exit heads. `deebert` has
one entropy threshold for all exits, `pabee` one patience. Both run one example at a time, as in their papers, so they
appear only at batch size 1.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from steps import device, records
from transformers import DataCollatorWithPadding

from electra_exit.columns import add_column_arguments
from modeling_electra_exit.trainers import calibrate_exits
from modeling_electra_exit.trainers.errors import DataError, UsageError
from modeling_electra_exit.trainers.finetuning.calibration import load_classifier, load_examples
from modeling_electra_exit.trainers.finetuning.tasks import Columns, task_of


RULES = {
    "exits": {"criterion": "confidence"},
    "deebert": {"criterion": "entropy", "one_for_all": True},
    "pabee": {"criterion": "patience"},
}
ONE_AT_A_TIME = ("deebert", "pabee")


def build_variants(dense, tokenizer, calibration, args) -> dict:
    """The model of each variant, made from a loaded model."""
    dense.config.inference_exit_thresholds = dense.config.inference_exit_temperatures = None
    variants = {"dense": dense.to(device())}
    if not args.no_compile:
        variants["dense.compiled"] = torch.compile(copy.deepcopy(dense), dynamic=True)
    for name, options in RULES.items():
        if name in ONE_AT_A_TIME and 1 not in args.batch_sizes:
            continue
        model = copy.deepcopy(dense)
        found = calibrate_exits(model, calibration, args.max_accuracy_drop, **options,
                                data_collator=DataCollatorWithPadding(tokenizer))  # fmt: skip
        print(f"{name}: thresholds {[round(t, 4) for t in found.thresholds]} from {len(calibration)} examples")
        variants[name] = model
    # The largest threshold below 1 that fp32 resolves: every head is computed, but hardly any example exits.
    variants["exits.stay"] = copy.deepcopy(dense)
    variants["exits.stay"].config.inference_exit_thresholds = [1 - 2**-23] * len(dense.config.exit_layers)
    return variants


def batches_of(examples, tokenizer, batch_size: int) -> list[dict]:
    collate = DataCollatorWithPadding(tokenizer)
    starts = range(0, len(examples), batch_size)
    return [
        dict(collate([examples[i] for i in range(s, min(s + batch_size, len(examples)))]).to(device())) for s in starts
    ]


@torch.inference_mode()
def one_pass(model, batches: list[dict]) -> tuple[float, float, float]:
    """Seconds, accuracy and mean number of layers per example for one pass over the batches."""
    right, layers, total = 0, 0, sum(len(batch["labels"]) for batch in batches)
    start = time.perf_counter()
    answers = [model(**{k: v for k, v in batch.items() if k != "labels"}) for batch in batches]
    if device() == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    for batch, outputs in zip(batches, answers, strict=True):
        right += (outputs.logits.argmax(-1) == batch["labels"]).sum().item()
        full = len(batch["labels"]) * model.config.num_hidden_layers
        layers += full if outputs.exit_layers is None else outputs.exit_layers.sum().item()
    return seconds, right / total, layers / total


def measure(variants: dict, examples, tokenizer, batch_size: int, args, prefix: str) -> list[dict]:
    """The records of one batch size. Prints its rows of the table."""
    if batch_size > 1:
        variants = {name: model for name, model in variants.items() if name not in ONE_AT_A_TIME}
    samples, quality = {name: [] for name in variants}, {}
    batches = batches_of(examples, tokenizer, batch_size)
    for repeat in range(args.repeats + 1):  # the first pass allocates and compiles
        for name, model in variants.items():
            seconds, *quality[name] = one_pass(model, batches)
            if repeat:
                samples[name].append(len(examples) / seconds)
    speeds = {name: statistics.median(values) for name, values in samples.items()}
    for name, (accuracy, layers) in quality.items():
        times = speeds[name] / speeds["dense"]
        print(f"| {prefix}/{name} | {speeds[name]:.1f} | {times:.2f} | {accuracy:.4f} | {layers:.2f} |", flush=True)
    accuracies = {name: accuracy for name, (accuracy, _) in quality.items()}
    return [
        *records(prefix, "examples_per_second", "examples/s", speeds, "dense", samples),
        *records(prefix, "accuracy", "share", accuracies, "dense"),
        *records(prefix, "layers", "layers", {name: layers for name, (_, layers) in quality.items()}, "dense"),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a fine-tuned sequence classifier with exits, and its tokenizer")
    parser.add_argument("examples", type=Path, help="labelled texts as JSON Lines, not used for training")
    parser.add_argument("--calibration", type=Path, help="labelled texts for choosing the thresholds")
    add_column_arguments(parser)
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--max_accuracy_drop", type=float, default=0.005)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no_compile", action="store_true", help="skip torch.compile, which needs a C++ compiler")
    parser.add_argument("--json", help="write the records to this file")
    args = parser.parse_args()
    try:
        model, tokenizer = load_classifier(args.folder)
        if (kind := task_of(model.config).kind) != "classification":
            raise UsageError(f"{args.folder} must be a classification model, got {kind}")
        columns = Columns(args.text_column, args.text_pair_column, tuple(args.label_column))
        calibration, measured = (
            load_examples(path, tokenizer, model.config, columns)
            for path in (args.calibration or args.examples, args.examples)
        )
    except (UsageError, DataError) as error:
        sys.exit(f"{parser.prog}: error: {error}")
    if args.calibration is None:
        calibration, measured = (measured.select(range(start, len(measured), 2)) for start in (0, 1))
    variants = build_variants(model, tokenizer, calibration, args)
    print(f"{device()}, {torch.get_num_threads()} threads, {len(measured)} examples measured\n")
    print("| case | examples/s | times full depth | accuracy | layers |\n|---|---|---|---|---|")
    found = []
    longest = max(map(len, measured["input_ids"]))
    for batch_size in args.batch_sizes:
        prefix = f"{args.folder.name}/{longest}/{str(model.dtype).removeprefix('torch.')}/batch-{batch_size}"
        found += measure(variants, measured, tokenizer, batch_size, args, prefix)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
