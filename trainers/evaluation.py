"""`electra-exit evaluate`: one checkpoint, several tasks, one table."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from .checkpoints import write_json
from .finetuning import (
    build_trainer,
    check_start,
    evaluate,
    finetune,
    inputs,
    is_classifier,
    load_classifier,
    load_examples,
    spread,
    summarize,
)
from .judge import judge_blimp
from .loading import architecture, read_config, read_tokenizer
from .parsing import FINETUNE, Parser, UsageError, parse_fields
from .run_folder import METRICS_FILE, RunRecord, read_json
from .tasks import TASKS


DISCRIMINATORS = ("ElectraEarlyExitForPreTraining", "ElectraForPreTraining")
RESULT_FILE = "evaluation.json"


def evaluate_command(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="electra-exit evaluate",
        usage="electra-exit evaluate MODEL --tasks TASK[,TASK...] [--field value ...]",
        description="Measure a checkpoint on GLUE tasks and on BLiMP. A checkpoint without a classification head is "
        "fine-tuned on each GLUE task first, in a folder of its own; one that has been fine-tuned on a task is "
        "evaluated on that task as it is. BLiMP is zero-shot, by the discriminator, and trains nothing. Every other "
        "field is one of `electra-exit finetune`.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint, folder or Hub id")
    parser.add_argument("--tasks", required=True, help=f"separated by commas, of {', '.join(TASKS)} and blimp")
    parser.add_argument("--blimp", type=Path, metavar="FILE", help="BLiMP as JSON Lines, plain or .gz or .xz")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/evaluate"),
        help=f"gets the fine-tuned models and {RESULT_FILE} (default: %(default)s)",
    )  # fmt: skip
    args, fields = parser.parse_known_args(list(argv))
    results = evaluate_tasks(args.model, args.tasks.split(","), args.blimp, args.output_dir, fields)
    write_json(args.output_dir / RESULT_FILE, {"model": args.model, "tasks": results})
    print(f"\n{'task':8}{'how':13}{'metric':22}score")
    for task, result in results.items():
        for metric, scores in result["evaluation"].items():
            print(f"{task:8}{result['how']:13}{metric:22}{spread(scores)}")
    return 0


def evaluate_tasks(
    model: str, tasks: Sequence[str], blimp: Path | None, output_dir: Path, fields: Sequence[str] = ()
) -> dict[str, dict]:
    """Every task in turn.

    Args:
        blimp: the file of minimal pairs, for the task `blimp`.
        fields: flags of `electra-exit finetune`.

    Returns:
        For each task `how` it was measured ("fine-tuned", "as it is" or "zero-shot"), and `evaluation`: for each
        metric what [`finetuning.summarize`] says.

    Raises:
        UsageError, DataError: before any task is begun, for whatever the user can put right.
    """
    arguments = {}
    for task in tasks:
        if task not in (*TASKS, "blimp"):
            raise UsageError(f"--tasks must be of {', '.join(TASKS)} and blimp, got {task!r}")
        if task == "blimp":
            check_blimp(model, blimp)
            continue
        ours = {"model": model, "task": task, "output_dir": str(output_dir / task)}
        if given := {f"--{name}" for name in ours} & {token.split("=")[0] for token in fields}:
            raise UsageError(f"{min(given)} has no place here; name the tasks with --tasks")
        arguments[task] = parse_fields(ours, fields, FINETUNE)
        check_task(arguments[task])
    as_it_is = is_classifier(read_config(model))
    results = {}
    for task in tasks:
        if task == "blimp":
            accuracy = judge_blimp(model, blimp)["accuracy"]
            results[task] = {"how": "zero-shot", "evaluation": {"accuracy": summarize([accuracy])}}
        elif as_it_is:
            results[task] = {"how": "as it is", "evaluation": evaluate_as_it_is(arguments[task])}
        else:
            results[task] = {"how": "fine-tuned", "evaluation": fine_tune_or_read(arguments[task])["evaluation"]}
    return results


def check_blimp(model: str, blimp: Path | None) -> None:
    if blimp is None:
        raise UsageError("the task blimp needs its file: --blimp FILE")
    if not blimp.is_file():
        raise UsageError(f"no such file: {blimp}")
    saved_as = architecture(read_config(model))
    if saved_as not in DISCRIMINATORS:
        raise UsageError(f"the task blimp needs a discriminator: one of {', '.join(DISCRIMINATORS)}, got {saved_as}")


def check_task(arguments: tuple) -> None:
    """Raises: UsageError, DataError where the task, the model or the examples do not go together."""
    config_fields, data_args, _, _ = arguments
    check_start(data_args, config_fields)
    read_tokenizer(data_args.model)
    config = read_config(data_args.model)
    learned = getattr(config, "finetuning_task", None)
    if is_classifier(config) and learned not in (None, data_args.task):
        raise UsageError(f"`finetuning_task` of {data_args.model} is {learned!r}; it cannot do {data_args.task}")
    load_examples(data_args, ("validation",) if is_classifier(config) else ("train", "validation"))


def evaluate_as_it_is(arguments: tuple) -> dict[str, dict]:
    config_fields, data_args, args, _ = arguments
    model, tokenizer = load_classifier(data_args, **config_fields), read_tokenizer(data_args.model)
    with tempfile.TemporaryDirectory() as args.output_dir:  # a Trainer must have one, and this one leaves nothing
        trainer = build_trainer(model, tokenizer, data_args, args, load_examples(data_args, ("validation",)))
        return {name: summarize([score]) for name, score in evaluate(trainer, TASKS[data_args.task]).items()}


def fine_tune_or_read(arguments: tuple) -> dict:
    """Fine-tune, unless the same has been done there with the same model and examples.

    Raises:
        UsageError: if what has been done there was something else.
    """
    _, data_args, args, given = arguments
    folder = Path(args.output_dir)
    if not (folder / METRICS_FILE).exists():
        return finetune(*arguments)
    RunRecord(given, inputs(data_args), args.world_size).check_continues(RunRecord.read(folder), folder)
    return read_json(folder / METRICS_FILE, "evaluation")
