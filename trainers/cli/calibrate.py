"""`electra-exit calibrate`."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .columns import add_column_arguments
from .parser import Parser


def run(argv: Sequence[str]) -> int:
    parser = calibrate_parser()
    args = parser.parse_args(list(argv))
    if not 0 < args.max_accuracy_drop < 1:
        parser.error(f"--max_accuracy_drop must be above 0 and below 1, got {args.max_accuracy_drop}")
    if not os.path.isfile(args.examples):
        parser.error(f"no such file: {args.examples}")
    if not any((args.folder / name).is_file() for name in ("config.json", "metrics.json")):
        parser.error(f"{args.folder} holds no model: it has no config.json")
    from modeling_electra_exit.trainers.errors import UsageError
    from modeling_electra_exit.trainers.finetuning.calibration import (
        calibrate_exits,
        draw_curve,
        load_classifier,
        load_examples,
        summary,
    )
    from modeling_electra_exit.trainers.finetuning.encoding import collator_for
    from modeling_electra_exit.trainers.finetuning.tasks import Columns, task_of
    from modeling_electra_exit.trainers.runtime.figures import can_draw
    from modeling_electra_exit.trainers.runtime.files import tolerated
    from modeling_electra_exit.trainers.sharing.report import REPORT, write_report

    model, tokenizer = load_classifier(args.folder)
    task, columns = task_of(model.config), Columns(args.text_column, args.text_pair_column, tuple(args.label_column))
    if task.is_regression:
        raise UsageError(
            f"{args.folder} is a regression model, which has no confidence to exit on; use it at full depth"
        )
    examples = load_examples(args.examples, tokenizer, model.config, columns)
    try:
        found = calibrate_exits(
            model, examples, args.max_accuracy_drop, args.criterion, collator_for(task, tokenizer), args.batch_size
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    model.config.save_pretrained(args.folder)
    (args.folder / "calibration.json").write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    figure = args.folder / "calibration.png"
    figure.unlink(missing_ok=True)  # left by an earlier calibration
    if can_draw():
        draw_curve(found, figure)
    run = args.folder.resolve().parent
    if (run / REPORT).is_file():  # the fine-tuning report gains the section on exits
        with tolerated(REPORT):
            write_report(run)
    print(summary(found))
    return 0


def calibrate_parser() -> Parser:
    parser = Parser(
        prog="electra-exit calibrate",
        description="Choose temperatures and thresholds for the exits of a fine-tuned text or token classifier on "
        "held-out examples, and store them in its config.json. Also writes calibration.json and, with matplotlib, "
        "calibration.png. Use examples that resemble production data and were not used for training.",
    )
    parser.add_argument("folder", type=Path, help="the fine-tuned model, with its tokenizer")
    parser.add_argument("examples", type=Path, help="held-out examples, in a format that `finetune` reads")
    parser.add_argument(
        "--max_accuracy_drop", type=float, default=0.005,
        help="largest absolute drop in accuracy, as a bound with 95 %% confidence; 0.005 needs at least 600 "
        "examples, 0.01 needs 300 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--criterion", choices=["confidence", "entropy", "patience"], default="confidence", help="default: %(default)s"
    )
    add_column_arguments(parser)
    parser.add_argument("--batch_size", type=int, default=32, help="default: %(default)s")
    return parser
