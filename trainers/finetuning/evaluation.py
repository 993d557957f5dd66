"""Evaluate one checkpoint on several tasks: `electra-exit evaluate`."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import UsageError
from ..runtime.files import read_json
from ..runtime.loading import architecture, read_config, read_tokenizer
from ..runtime.run_folder import METRICS_FILE, RunRecord
from .blimp import judge_blimp
from .encoding import encode
from .examples import asked_columns, read_examples, read_examples_of
from .run import build_trainer, check_task, encode_splits, encoded_length, evaluate, finetune, inputs, summarize
from .starting import Start, check_head, has_head_for
from .tasks import TASKS, Task, task_of


DISCRIMINATORS = ("ElectraEarlyExitForPreTraining", "ElectraForPreTraining")
RESULT_FILE = "evaluation.json"


def evaluate_own_task(arguments: tuple) -> dict[str, dict]:
    """Evaluate a fine-tuned checkpoint on its own task.

    Args:
        arguments: the arguments of [`run.finetune`]; `validation_file` names the examples.

    Returns:
        The result of [`evaluate_tasks`] for this task.

    Raises:
        UsageError, DataError: if the checkpoint is not fine-tuned, or the examples do not fit its task.
    """
    config_fields, data_args, args, _ = arguments
    model = data_args.model
    config = read_config(model)
    if not any(has_head_for(config, tags_words) for tags_words in (True, False)):
        raise UsageError(f"{model} must be fine-tuned, got {architecture(config)}; or name tasks with --tasks")
    if not data_args.validation_file:
        raise UsageError("`validation_file` must name examples of the model's task, got None; or name --tasks")
    task, rows = read_examples_of(task_of(config), data_args.validation_file, asked_columns(data_args))
    start, tokenizer = Start(model, task, config_fields), read_tokenizer(model)
    encoded = {"validation": encode(rows, task, tokenizer, encoded_length(start.model, data_args))}
    return {task.name: {"how": "as it is", "evaluation": measure(start, task, tokenizer, args, encoded)}}


def evaluate_tasks(
    model: str, tasks: Sequence[str], blimp: Path | None, arguments_of: Callable[[str], tuple]
) -> dict[str, dict]:
    """Evaluate a checkpoint on each task.

    Args:
        model: the checkpoint, folder or Hub id.
        tasks: keys of `TASKS`, or "blimp".
        blimp: the file of minimal pairs, for the task `blimp`.
        arguments_of: returns the arguments of [`run.finetune`] for a task.

    Returns:
        For each task, `how` it was evaluated ("fine-tuned", "as it is" or "zero-shot"), and `evaluation`: for each
        metric the result of [`run.summarize`].

    Raises:
        UsageError, DataError: for a mistake in the arguments or examples, before the first task starts.
    """
    arguments = {}
    for task in tasks:
        if task not in (*TASKS, "blimp"):
            raise UsageError(f"--tasks must be among {', '.join(TASKS)} and blimp, got {task!r}")
        if task == "blimp":
            check_blimp(model, blimp)
            continue
        arguments[task] = arguments_of(task)
        check(arguments[task])
    as_it_is = has_head_for(read_config(model), tags_words=False)
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
        raise UsageError("the task blimp requires --blimp FILE")
    if not blimp.is_file():
        raise UsageError(f"no such file: {blimp}")
    saved_as = architecture(read_config(model))
    if saved_as not in DISCRIMINATORS:
        raise UsageError(
            f"the task blimp requires a discriminator: one of {', '.join(DISCRIMINATORS)}, got {saved_as}"
        )


def check(arguments: tuple) -> None:
    """Raises: UsageError, DataError if the task, the model and the examples do not fit together."""
    _, data_args, _, _ = arguments
    check_task(data_args)
    check_head(data_args.model, TASKS[data_args.task])
    read_tokenizer(data_args.model)
    config = read_config(data_args.model)
    learned = getattr(config, "finetuning_task", None)
    if has_head_for(config, tags_words=False) and learned not in (None, data_args.task):
        raise UsageError(f"`finetuning_task` of {data_args.model} must be {data_args.task!r}, got {learned!r}")
    read_examples(data_args, wanted(config))


def wanted(config) -> tuple[str, ...]:
    """The splits of a GLUE task to read for a checkpoint."""
    return ("validation",) if has_head_for(config, tags_words=False) else ("train", "validation")


def evaluate_as_it_is(arguments: tuple) -> dict[str, dict]:
    config_fields, data_args, args, _ = arguments
    examples, tokenizer = read_examples(data_args, ("validation",)), read_tokenizer(data_args.model)
    start = Start(data_args.model, examples.task, config_fields)
    encoded = encode_splits(examples, tokenizer, start.model, data_args)
    return measure(start, examples.task, tokenizer, args, encoded)


def measure(start: Start, task: Task, tokenizer, args, encoded: dict) -> dict[str, dict]:
    """The summary of each metric for the checkpoint."""
    with tempfile.TemporaryDirectory() as args.output_dir:  # a Trainer requires a folder; this one is removed
        trainer = build_trainer(start.model, task, tokenizer, args, encoded)
        return {name: summarize([score]) for name, score in evaluate(trainer, task).items()}


def fine_tune_or_read(arguments: tuple) -> dict:
    """Fine-tune, or read the result if the output folder holds one for the same arguments, model and examples.

    Raises:
        UsageError: if it holds the result of another run.
    """
    _, data_args, args, given = arguments
    folder = Path(args.output_dir)
    if not (folder / METRICS_FILE).exists():
        return finetune(*arguments)
    RunRecord(given, inputs(data_args), args.world_size).check_continues(RunRecord.read(folder), folder)
    return read_json(folder / METRICS_FILE, "evaluation")
