"""One checkpoint measured on several tasks."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import UsageError
from ..runtime.files import read_json
from ..runtime.loading import architecture, read_config, read_tokenizer
from ..runtime.run_folder import METRICS_FILE, RunRecord
from .blimp import judge_blimp
from .run import (
    build_trainer,
    check_start,
    evaluate,
    finetune,
    inputs,
    is_classifier,
    load_classifier,
    load_examples,
    summarize,
)
from .tasks import TASKS


DISCRIMINATORS = ("ElectraEarlyExitForPreTraining", "ElectraForPreTraining")
RESULT_FILE = "evaluation.json"


def evaluate_tasks(
    model: str, tasks: Sequence[str], blimp: Path | None, arguments_of: Callable[[str], tuple]
) -> dict[str, dict]:
    """Every task in turn.

    Args:
        blimp: the file of minimal pairs, for the task `blimp`.
        arguments_of: the arguments of [`finetuning.run.finetune`] for a task.

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
        arguments[task] = arguments_of(task)
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
