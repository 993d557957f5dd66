"""Fine-tuning on GLUE, as ELECTRA does: `electra-exit finetune`."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, Value, concatenate_datasets
from transformers import (
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.trainer_callback import ProgressCallback

from modeling_electra_exit import ElectraEarlyExitForSequenceClassification

from ..data.reading import check_text, load_from_hub, naming_cache_errors, read_files
from ..errors import DataError, UsageError
from ..pretraining.callbacks import OneLineProgressCallback
from ..pretraining.trainer import ElectraTrainer
from ..runtime.checkpoints import newest_intact
from ..runtime.cpu_kernels import suit_attention
from ..runtime.distributed import run_on_main_and_broadcast
from ..runtime.files import naming_write_errors, read_json, write_json
from ..runtime.loading import architecture, load_for, quiet_loading, read_config, read_tokenizer
from ..runtime.optimization import decay_by_layer
from ..runtime.run_folder import METRICS_FILE, fingerprints, opened
from .arguments import FineTuningArguments, FineTuningDataArguments
from .tasks import TASKS, Task


logger = logging.getLogger(__name__)


class FineTuningTrainer(ElectraTrainer):
    """[`~transformers.Trainer`] with ELECTRA's optimizer and a learning rate a layer."""

    args: FineTuningArguments

    def create_optimizer(self, model=None):
        """Whatever `--optim` makes, its groups split by depth."""
        if self.optimizer is None:
            super().create_optimizer(model)
            decay_by_layer(self.optimizer, self.model, self.args.layerwise_lr_decay)
        return self.optimizer


def spread(scores: dict) -> str:
    """A mean, and what the seeds differ by."""
    if scores["standard_deviation"] is None:
        return f"{scores['mean']:.4f}"
    each = " ".join(f"{score:.4f}" for score in scores["scores"])
    return f"{scores['mean']:.4f} +- {scores['standard_deviation']:.4f}   ({each})"


def finetune(
    config_fields: dict, data_args: FineTuningDataArguments, training_args: FineTuningArguments, given: dict
) -> dict:
    """Fine-tune once a seed, each in a folder of its own, and summarise. Seeds that are done are not done again.

    Args: what [`parsing.parse`] returns for [`parsing.FINETUNE`].

    Returns:
        What `metrics.json` in the output folder says: `task`, `model`, `seeds`, and in `evaluation` for each metric
        the `scores` of the seeds, their `mean`, their `standard_deviation` (with n - 1; `None` for one seed) and their
        `median`, which ELECTRA reports.

    Raises:
        UsageError, DataError: before anything is written, for whatever the user can put right.
    """
    folder = Path(training_args.output_dir)
    with opened(training_args, given, lambda: inputs(data_args)) as (record, before, _):
        check_start(data_args, config_fields)
        tokenizer = read_tokenizer(data_args.model)
        examples = load_examples(data_args)
        run_on_main_and_broadcast(lambda: record.begin(before, folder))
        results = [
            finetune_seed(seed, examples, tokenizer, data_args, training_args, config_fields)
            for seed in training_args.seeds
        ]
        summary = {
            "task": data_args.task,
            "model": data_args.model,
            "seeds": training_args.seeds,
            "evaluation": {
                name: summarize([result["evaluation"][name] for result in results])
                for name in TASKS[data_args.task].metrics
            },
        }
        # At the very end: its presence says that the run is finished.
        run_on_main_and_broadcast(lambda: write_json(folder / METRICS_FILE, summary))
    return summary


def finetune_seed(
    seed: int,
    examples: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    data_args: FineTuningDataArguments,
    training_args: FineTuningArguments,
    config_fields: dict,
) -> dict:
    """What `metrics.json` in the folder of one seed says, after fine-tuning with it unless that is done."""
    path = Path(training_args.output_dir) / f"seed-{seed}" / METRICS_FILE
    if (
        result := run_on_main_and_broadcast(lambda: read_json(path, "evaluation") if path.exists() else None)
    ) is not None:
        return result
    args = copy.copy(training_args)
    args.seed, args.output_dir = seed, str(path.parent)
    trainer = train_classifier(examples, tokenizer, data_args, args, config_fields)
    evaluation = evaluate(trainer, TASKS[data_args.task])
    with naming_write_errors(f"the model in {path.parent}"):
        trainer.save_model()
        trainer.save_state()
    result = {
        "task": data_args.task,
        "seed": seed,
        "evaluation": evaluation,
        "train_examples": len(trainer.train_dataset),
        "steps": trainer.state.global_step,
    }
    logger.info(f"seed {seed}: " + "  ".join(f"{name} {score:.4f}" for name, score in evaluation.items()))
    run_on_main_and_broadcast(lambda: write_json(path, result))  # last: its presence says that this seed is done
    return result


def inputs(data_args: FineTuningDataArguments) -> dict[str, str]:
    """Fingerprints of all that a fine-tuning reads. Raises: UsageError if no task, or no model, is named."""
    task_of(data_args)
    files = example_files(data_args)
    dataset = None if files else (data_args.dataset_name, data_args.task)
    return fingerprints(files.values(), [data_args.model], dataset)


def summarize(scores: list[float]) -> dict:
    return {
        "scores": scores,
        "mean": float(np.mean(scores)),
        "standard_deviation": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "median": float(np.median(scores)),
    }


# ---- One run ----


def train_classifier(
    examples: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    data_args: FineTuningDataArguments,
    args: FineTuningArguments,
    config_fields: dict | None = None,
) -> FineTuningTrainer:
    """Fine-tune with `args.seed` alone: the new head, the order of the examples and dropout follow from it."""
    task, train = TASKS[data_args.task], examples["train"]
    set_seed(args.seed)
    with quiet_loading():  # that a new head is new is no news
        model = load_classifier(data_args, **(config_fields or {}))
    if data_args.max_train_examples is not None and len(train) > data_args.max_train_examples:
        train = train.shuffle(seed=args.seed).select(range(data_args.max_train_examples))
    if task.symmetric and data_args.both_orders:
        first, second = task.columns
        train = concatenate_datasets([train, train.map(lambda row: {first: row[second], second: row[first]})])
    args.num_train_epochs = args.num_train_epochs or task.epochs
    trainer = build_trainer(model, tokenizer, data_args, args, {"train": train, "validation": examples["validation"]})
    trainer.train(resume_from_checkpoint=run_on_main_and_broadcast(lambda: newest_intact(Path(args.output_dir))))
    return trainer


def build_trainer(model, tokenizer, data_args, args, examples: dict[str, Dataset]) -> FineTuningTrainer:
    """A Trainer of the task of `data_args` on the splits in `examples`."""
    task = TASKS[data_args.task]
    encoded = {
        split: encode(rows, task, tokenizer, min(data_args.max_seq_length, model.config.max_position_embeddings))
        for split, rows in examples.items()
    }
    suit_attention(model, args.device)
    trainer = FineTuningTrainer(
        model,
        args,
        DataCollatorWithPadding(tokenizer),
        train_dataset=encoded.get("train"),
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        compute_metrics=lambda prediction: task.scores(prediction.predictions, prediction.label_ids),
    )
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(OneLineProgressCallback)
    return trainer


def evaluate(trainer: FineTuningTrainer, task: Task) -> dict[str, float]:
    """The task's metrics on its validation split."""
    evaluation = trainer.evaluate()
    return {name: evaluation[f"eval_{name}"] for name in task.metrics}


# ---- The model and its task ----


def task_of(data_args: FineTuningDataArguments) -> Task:
    """Raises: UsageError if no task that we know, or no model, is named."""
    if data_args.task not in TASKS:
        raise UsageError(f"`task` must be one of {', '.join(TASKS)}, got {data_args.task!r}")
    if data_args.model is None:
        raise UsageError("`model` must be a folder or a Hub id, got None")
    return TASKS[data_args.task]


def is_classifier(config: PreTrainedConfig) -> bool:
    """Whether a checkpoint holds a head for whole sequences that we take over. BERT's, on its pooler, we do not."""
    return architecture(config).endswith("ForSequenceClassification") and config.model_type != "bert"


def check_start(data_args: FineTuningDataArguments, config_fields: dict) -> None:
    """Raises: UsageError for a task or a checkpoint that we do not know, or a head that does not fit the task."""
    task = task_of(data_args)
    config = read_config(data_args.model)
    if is_classifier(config):
        needs = f"and the task {data_args.task} needs"
        if config.num_labels != len(task.labels):
            raise UsageError(f"`num_labels` of {data_args.model} is {config.num_labels}, {needs} {len(task.labels)}")
        kind = "regression" if task.is_regression else "single_label_classification"
        if config.problem_type not in (None, kind):
            raise UsageError(f"`problem_type` of {data_args.model} is {config.problem_type!r}, {needs} {kind!r}")
    load_classifier(data_args, **config_fields)


def load_classifier(data_args: FineTuningDataArguments, **config_overrides) -> PreTrainedModel:
    labels = TASKS[data_args.task].labels
    model = load_for(
        ElectraEarlyExitForSequenceClassification,
        data_args.model,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        **config_overrides,
    )
    model.config.finetuning_task = data_args.task
    return model


# ---- The examples ----


@naming_cache_errors()
def load_examples(
    data_args: FineTuningDataArguments, wanted: Sequence[str] = ("train", "validation")
) -> dict[str, Dataset]:
    """The `wanted` splits of the task: its columns of text, and `label`.

    Raises:
        DataError: if they cannot be read, lack a column, or hold a label that the task does not have.
    """
    task = TASKS[data_args.task]
    if files := example_files(data_args, wanted):
        splits = {split: read_files([path], text_columns=task.columns) for split, path in files.items()}
    else:
        splits = load_from_hub(data_args.dataset_name, data_args.task, task.validation)
        if "validation" not in splits:
            raise DataError(f"`{data_args.dataset_name}` has no split `{task.validation}` for {data_args.task}")
    return {split: check_examples(splits[split], f"the {split} data of {data_args.task}", task) for split in wanted}


def example_files(
    data_args: FineTuningDataArguments, wanted: Sequence[str] = ("train", "validation")
) -> dict[str, str]:
    """The files of the `wanted` splits; none where the examples come from the Hub.

    Raises:
        DataError: if not all of them are given.
    """
    files = {split: getattr(data_args, f"{split}_file") for split in wanted}
    if any(files.values()) and not all(files.values()):
        missing = next(split for split, path in files.items() if not path)
        raise DataError(f"`{missing}_file` must be given beside the other, got None")
    if all(files.values()):
        return files
    if data_args.data_dir:
        return {split: str(Path(data_args.data_dir) / data_args.task / f"{split}.jsonl") for split in wanted}
    return {}


def check_examples(rows: Dataset, where: str, task: Task) -> Dataset:
    """The columns of a task, labels as integers, or as floats for a regression.

    Raises:
        DataError: if a column is missing or holds something else.
    """
    for column in task.columns:
        check_text(rows.features, column, where)
    for column in (*task.columns, "label"):
        if column not in rows.column_names:
            raise DataError(f"{where} must have the column `{column}`, got {', '.join(rows.column_names)}")
        if empty := rows.data.column(column).null_count:
            raise DataError(f"the column `{column}` of {where} must have a value everywhere, {empty} are missing")
    if len(rows) == 0:
        raise DataError(f"{where} must have a row, got none")
    if task.is_regression:
        if not (kind := rows.features["label"].dtype).startswith(("int", "float")):
            raise DataError(f"the column `label` of {where} must hold numbers, got {kind}")
        if outside := [label for label in rows.unique("label") if not 0 <= label <= task.largest]:
            raise DataError(
                f"the column `label` of {where} must hold numbers from 0 to {task.largest:g}, got {outside[0]}"
            )
    elif unknown := [label for label in rows.unique("label") if label not in range(len(task.labels))]:
        names = ", ".join(f"{number} ({name})" for number, name in enumerate(task.labels))
        raise DataError(f"the column `label` of {where} must hold {names}, got {unknown[0]!r}")
    rows = rows.select_columns([*task.columns, "label"])
    return rows.cast_column("label", Value("float32" if task.is_regression else "int64"))


@naming_cache_errors()
def encode(rows: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Examples as a model reads them; a regression's labels become shares of the largest there is."""

    def tokenize(batch):
        encoded = tokenizer(*(batch[column] for column in task.columns), truncation=True, max_length=max_length)
        if task.is_regression:
            encoded["label"] = [label / task.largest for label in batch["label"]]
        return encoded

    return rows.map(tokenize, batched=True, remove_columns=list(task.columns), desc="tokenising")
