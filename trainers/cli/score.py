"""`electra-exit score`."""

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from .columns import add_column_arguments
from .hub import check_reachable
from .parser import Parser


def run(argv: Sequence[str]) -> int:
    args = score_parser().parse_args(list(argv))
    if args.output and args.output.exists() and os.path.exists(args.file) and args.output.samefile(args.file):
        score_parser().error(f"--output {args.output} is the input file; name another file")
    if not os.path.isfile(args.file):
        score_parser().error(f"no such file: {args.file}")
    check_reachable(score_parser(), [args.checkpoint])
    from modeling_electra_exit.trainers.finetuning.prediction import is_fine_tuned, predictions, replacements
    from modeling_electra_exit.trainers.runtime.loading import read_config

    from .sentences import show_progress

    show_progress()
    say = predictions if is_fine_tuned(read_config(args.checkpoint)) else replacements
    entries = say(args.checkpoint, args.file, args.text_column, args.text_pair_column, args.exit_entropy_threshold)
    texts, tokens, start = 0, 0, time.perf_counter()
    # UTF-8 cannot encode unpaired surrogates; as escapes they are still valid JSON.
    to_file = {"mode": "w", "encoding": "utf-8", "errors": "backslashreplace"}
    with open(args.output, **to_file) if args.output else nullcontext(sys.stdout) as file:
        is_unicode = (file.encoding or "utf-8").lower().startswith("utf")
        for entry, length in entries:
            file.write(json.dumps(entry, ensure_ascii=not is_unicode) + "\n")
            texts, tokens = texts + 1, tokens + length
    speed = tokens / (time.perf_counter() - start)
    print(f"{texts:,} texts, {tokens:,} tokens, {speed:,.0f} tokens/s", file=sys.stderr)
    return 0


def score_parser() -> Parser:
    parser = Parser(
        prog="electra-exit score",
        description="Write one JSON line per text. A pre-trained checkpoint gives the tokens, the probability that "
        "each is a replacement, and the log-probability that none is (a pseudo-log-likelihood, in nats). A fine-tuned "
        "checkpoint gives the predicted label, labels, value or tags, with probabilities.",
    )
    parser.add_argument("checkpoint", metavar="FOLDER", help="a checkpoint, folder or Hub id")
    parser.add_argument(
        "file", metavar="FILE",
        help=".txt with one text per line, .jsonl, .csv, .tsv or .parquet; for token classifiers also .conll; plain "
        "or .gz or .xz",
    )  # fmt: skip
    add_column_arguments(parser, labels=False)
    parser.add_argument("--output", type=Path, help="output file (default: standard output)")
    text = "pre-trained checkpoints: a token exits where its entropy, in nats, is at most this (default: full depth); "
    text += "fine-tuned checkpoints use the thresholds from `electra-exit calibrate`"
    parser.add_argument("--exit_entropy_threshold", type=float, help=text)
    return parser
