"""`electra-exit score`."""

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from .parser import Parser


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="electra-exit score",
        description="For each text, as JSON Lines: its tokens, for each the probability that it is a replacement, and "
        "the log-probability that none of them is (a pseudo-log-likelihood, in nats).",
    )
    parser.add_argument("checkpoint", metavar="FOLDER", help="a pre-trained checkpoint, folder or Hub id")
    parser.add_argument(
        "file", metavar="FILE", help=".txt, one text a line, or .jsonl, .csv, .parquet; plain, .gz, .xz"
    )
    parser.add_argument("--text_column", default="text", help="the column that holds the text (default: text)")
    parser.add_argument("--output", type=Path, help="write there instead of to the terminal")
    text = "tokens whose entropy at an exit, in nats, is at most this stay with its answer (left out: full depth)"
    parser.add_argument("--exit_entropy_threshold", type=float, help=text)
    args = parser.parse_args(list(argv))
    if args.output and args.output.exists() and os.path.exists(args.file) and args.output.samefile(args.file):
        parser.error(f"--output {args.output} is the input itself; name another file")
    if not os.path.isfile(args.file):
        parser.error(f"no such file: {args.file}")
    from modeling_electra_exit.trainers.data.reading import check_text, read_files
    from modeling_electra_exit.trainers.finetuning.scoring import Scorer

    from .sentences import show_progress

    show_progress()
    rows = read_files([args.file], "line", text_columns=[args.text_column])
    check_text(rows.features, args.text_column, args.file, "; choose one with --text_column")
    scorer = Scorer(args.checkpoint, args.exit_entropy_threshold)
    tokens, start = 0, time.perf_counter()
    # Surrogates without a partner have no bytes in UTF-8; written as escapes they are JSON, too.
    to_file = {"mode": "w", "encoding": "utf-8", "errors": "backslashreplace"}
    with open(args.output, **to_file) if args.output else nullcontext(sys.stdout) as file:
        is_unicode = (file.encoding or "utf-8").lower().startswith("utf")
        for score in scorer(text or "" for text in rows[args.text_column]):
            entry = {name: value for name, value in asdict(score).items() if value is not None}
            file.write(json.dumps(entry, ensure_ascii=not is_unicode) + "\n")
            tokens += len(score.tokens)
    speed = tokens / (time.perf_counter() - start)
    print(f"{len(rows):,} texts, {tokens:,} tokens, {speed:,.0f} tokens/s", file=sys.stderr)
    return 0
