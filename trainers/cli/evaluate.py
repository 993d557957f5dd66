"""`electra-exit evaluate`."""

from collections.abc import Sequence
from pathlib import Path

from .parser import Parser
from .quick import check_flags


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="electra-exit evaluate",
        usage="electra-exit evaluate MODEL [--tasks TASK[,TASK...]] [--validation_file FILE] [--field value ...]",
        description="Evaluate a fine-tuned checkpoint on the examples of a file, or any checkpoint on GLUE tasks or "
        "BLiMP. A checkpoint without a classification head is first fine-tuned on each GLUE task, in a folder per "
        "task; a fine-tuned checkpoint is evaluated as it is. The discriminator scores BLiMP zero-shot. All other "
        "flags are those of `electra-exit finetune`.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint, folder or Hub id")
    parser.add_argument(
        "--tasks",
        help="comma-separated: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte and blimp (default: MODEL's own task)",
    )
    parser.add_argument("--blimp", type=Path, metavar="FILE", help="BLiMP as JSON Lines, plain or .gz or .xz")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/evaluate"),
        help="gets the fine-tuned models and evaluation.json (default: %(default)s)",
    )  # fmt: skip
    args, fields = parser.parse_known_args(list(argv))
    check_flags(parser, fields, [args.model])
    if args.blimp is not None and not args.blimp.is_file():
        parser.error(f"no such file: {args.blimp}")
    from modeling_electra_exit.trainers.errors import UsageError
    from modeling_electra_exit.trainers.finetuning.evaluation import RESULT_FILE, evaluate_own_task, evaluate_tasks
    from modeling_electra_exit.trainers.finetuning.run import spread
    from modeling_electra_exit.trainers.runtime.files import write_json

    from .parsing import FINETUNE, check_names, parse_fields
    from .sentences import show_progress

    show_progress()

    def arguments(task: str) -> tuple:
        ours = {"model": args.model, "task": task, "output_dir": str(args.output_dir / task)}
        if given := {f"--{name}" for name in ours} & {token.split("=")[0] for token in fields}:
            raise UsageError(f"{min(given)} is not a flag of `evaluate`; name the tasks with --tasks")
        parsed = parse_fields(ours, fields, FINETUNE)
        check_names(parsed)
        return parsed

    if args.tasks is None:
        ours = {"model": args.model, "output_dir": str(args.output_dir)}
        results = evaluate_own_task(parse_fields(ours, fields, FINETUNE))
    else:
        results = evaluate_tasks(args.model, args.tasks.split(","), args.blimp, arguments)
    write_json(args.output_dir / RESULT_FILE, {"model": args.model, "tasks": results})
    width = max(8, *(len(task) + 2 for task in results))
    print(f"\n{'task':{width}}{'how':13}{'metric':22}score")
    for task, result in results.items():
        for metric, scores in result["evaluation"].items():
            print(f"{task:{width}}{result['how']:13}{metric:22}{spread(scores)}")
    return 0
