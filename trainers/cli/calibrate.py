"""`electra-exit calibrate`."""

import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .parser import Parser


def run(argv: Sequence[str]) -> int:
    parser = calibrate_parser()
    args = parser.parse_args(list(argv))
    if not 0 < args.max_accuracy_drop < 1:
        parser.error(f"--max_accuracy_drop must be above 0 and below 1, got {args.max_accuracy_drop}")
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("the figure needs matplotlib: pip install 'electra-early-exit[study]'")
    if not (args.folder / "config.json").exists():
        parser.error(f"no model in {args.folder}: it has no config.json")
    if not os.path.isfile(args.examples):
        parser.error(f"no such file: {args.examples}")
    from modeling_electra_exit.trainers.errors import UsageError
    from modeling_electra_exit.trainers.finetuning.calibration import (
        calibrate_exits,
        collator_for,
        draw_curve,
        load_classifier,
        load_examples,
        summary,
    )

    model, tokenizer = load_classifier(args.folder)
    examples = load_examples(args.examples, tokenizer, model.config, args.text_columns, args.label_column)
    try:
        found = calibrate_exits(
            model, examples, args.max_accuracy_drop, args.criterion, collator_for(model, tokenizer), args.batch_size
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    model.config.save_pretrained(args.folder)
    (args.folder / "calibration.json").write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    draw_curve(found, args.folder / "calibration.png")
    print(summary(found))
    return 0


def calibrate_parser() -> Parser:
    parser = Parser(
        prog="electra-exit calibrate",
        description="Pick temperatures and thresholds for the exits of a fine-tuned classifier, of texts or of words, "
        "on held-out examples and store them in its config.json. Writes calibration.json and calibration.png beside "
        "it. Take examples like those that the model will meet, and none that it was trained on.",
    )
    parser.add_argument("folder", type=Path, help="the fine-tuned model, with its tokenizer")
    parser.add_argument("examples", type=Path, help="held-out examples: a .jsonl, .json, .csv or .parquet file")
    parser.add_argument(
        "--max_accuracy_drop", type=float, default=0.005,
        help="what the drop in accuracy, absolute, may be by a bound with 95 %% confidence; 0.005 takes at least 600 "
        "examples, 0.01 takes 300 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--criterion", choices=["confidence", "entropy", "patience"], default="confidence", help="default: %(default)s"
    )
    parser.add_argument(
        "--text_columns", nargs="+", help="one or two of strings, or one of lists of words (default: all there are)"
    )
    parser.add_argument(
        "--label_column",
        default="label",
        help="numbers or names; for words a list of them, for several labels a list of names, or of a 0 or 1 for each "
        "label (default: %(default)s)",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="default: %(default)s")
    return parser
