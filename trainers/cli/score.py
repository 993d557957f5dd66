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
        score_parser().error(f"--output {args.output} is the input itself; name another file")
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
    # Surrogates without a partner have no bytes in UTF-8; written as escapes they are JSON, too.
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
        description="For each text, as JSON Lines: of a pre-trained checkpoint its tokens, for each the probability "
        "that it is a replacement, and the log-probability that none of them is (a pseudo-log-likelihood, in nats); "
        "of a fine-tuned one the label, labels, value or tags that it predicts, with probabilities.",
    )
    parser.add_argument("checkpoint", metavar="FOLDER", help="a checkpoint, folder or Hub id")
    parser.add_argument(
        "file", metavar="FILE",
        help=".txt, one text a line, or .jsonl, .csv, .tsv, .parquet; for words .conll, too; plain, .gz, .xz",
    )  # fmt: skip
    add_column_arguments(parser, labels=False)
    parser.add_argument("--output", type=Path, help="write there instead of to the terminal")
    text = "tokens whose entropy at an exit, in nats, is at most this stay with its answer (left out: full depth); a "
    text += "fine-tuned checkpoint has thresholds of its own, by `electra-exit calibrate`"
    parser.add_argument("--exit_entropy_threshold", type=float, help=text)
    return parser
