"""Fine-tune on a custom or GLUE task with ELECTRA's settings: `electra-exit finetune`."""

import copy
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UsageError
from ..pretraining.callbacks import show_lines
from ..pretraining.trainer import ElectraTrainer
from ..runtime.checkpoints import newest_intact
from ..runtime.cpu_kernels import suit_attention
from ..runtime.distributed import run_on_main_and_broadcast
from ..runtime.files import naming_write_errors, read_json, tolerated, write_json
from ..runtime.loading import NO_THRESHOLDS, named, read_config, read_tokenizer
from ..runtime.optimization import decay_by_layer
from ..runtime.run_folder import METRICS_FILE, fingerprints, opened
from ..sharing.figures import draw_figures
from ..sharing.report import REPORT, write_report
from .arguments import FineTuningArguments, FineTuningDataArguments
from .encoding import collator_for, encode
from .examples import GLUE_ON_THE_HUB, Examples, example_files, read_examples
from .labels import readable
from .scores import answers, baselines, scores
from .starting import Start, predict_in_units
from .tasks import TASKS, Task, labels_of


logger = logging.getLogger(__name__)

# In the output folder: the held-out examples, in columns that `electra-exit calibrate` recognizes.
HELD_OUT_FILE = "held_out.jsonl"


class FineTuningTrainer(ElectraTrainer):
    """[`~transformers.Trainer`] with ELECTRA's optimizer and layer-wise learning rates."""

    args: FineTuningArguments

    def create_optimizer(self, model=None):
        """The optimizer of `--optim`, with its parameter groups split by depth."""
        if self.optimizer is None:
            super().create_optimizer(model)
            decay_by_layer(self.optimizer, self.model, self.args.layerwise_lr_decay)
        return self.optimizer


def spread(measured: dict) -> str:
    """The mean over the seeds; with several seeds also the standard deviation and each score."""
    if measured["standard_deviation"] is None:
        return f"{measured['mean']:.4f}"
    each = " ".join(f"{score:.4f}" for score in measured["scores"])
    return f"{measured['mean']:.4f} +- {measured['standard_deviation']:.4f}   ({each})"


def finetune(
    config_fields: dict, data_args: FineTuningDataArguments, training_args: FineTuningArguments, given: dict
) -> dict:
    """Fine-tune once per seed, each in a separate folder, and summarize. Finished seeds are not repeated.

    Args:
        config_fields: fields of the model's config to change.
        data_args: the checkpoint, the task and the examples.
        training_args: training arguments, with the seeds.
        given: all fields that the user gave, by name.

    Returns:
        The content of `metrics.json` in the output folder: `task`, `model` and `seeds`; `evaluation`, for each metric
        the `scores` of the seeds, their `mean`, their `standard_deviation` (with n - 1; `None` for one seed) and their
        `median`, which ELECTRA reports; `baselines`, see [`scores.baselines`]; and `best`, the folder of the seed
        with the largest score in the first metric.

    Raises:
        UsageError, DataError: for a mistake in the arguments or examples, before anything is written.
    """
    folder = Path(training_args.output_dir)
    with opened(training_args, given, lambda: inputs(data_args)) as (record, before, _):
        config = read_config(data_args.model)
        examples = read_examples(data_args, labels=labels_of(config))
        start = Start(data_args.model, examples.task, {**NO_THRESHOLDS, **config_fields})
        tokenizer = read_tokenizer(data_args.model)
        run_on_main_and_broadcast(lambda: record.begin(before, folder))
        run_on_main_and_broadcast(lambda: _write_held_out(examples, folder))
        logger.info(describe(examples))
        encoded = encode_splits(examples, tokenizer, start.model, data_args)
        found = baselines(examples.task, examples.splits["train"], examples.splits["validation"])
        facts = {**_facts(examples, data_args), "baselines": found}
        results = [
            finetune_seed(seed, start, encoded, examples.task, tokenizer, data_args, training_args, facts)
            for seed in training_args.seeds
        ]
        evaluation = {
            name: summarize([result["evaluation"][name] for result in results]) for name in examples.task.metrics
        }
        best = int(np.argmax(evaluation[examples.task.metrics[0]]["scores"]))
        summary = {
            "task": examples.task.name,
            "model": data_args.model,
            "seeds": training_args.seeds,
            "evaluation": evaluation,
            "baselines": found,
            "best": f"seed-{training_args.seeds[best]}",
        }
        # Written last: its presence marks the run as finished.
        run_on_main_and_broadcast(lambda: write_json(folder / METRICS_FILE, summary))
        run_on_main_and_broadcast(lambda: _write_report(folder))
    return summary


def _write_report(folder: Path) -> None:
    with tolerated(REPORT):
        logger.info(f"report: {write_report(folder)}")


def _write_held_out(examples: Examples, folder: Path) -> None:
    if examples.held_out:
        path, rows = folder / HELD_OUT_FILE, readable(examples.splits["validation"], examples.task)
        with naming_write_errors(str(path)), path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def describe(examples: Examples) -> str:
    """The task and its columns in one line, so that a wrong inference is visible."""
    task, columns = examples.task, examples.task.columns
    texts = " and ".join(f"`{name}`" for name in columns.texts)
    labels = ", ".join(f"`{name}`" for name in columns.labels)
    of = "" if task.is_regression else f", {len(task.labels)} labels: {_few(task.labels)}"
    train, validation = (f"{len(rows):,}" for rows in examples.splits.values())
    held_out = "held out" if examples.held_out else "for validation"
    return f"{task.name}: {task.kind}, {texts} -> {labels}{of}; {train} examples for training, {validation} {held_out}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _facts(examples: Examples, data_args: FineTuningDataArguments) -> dict:
    """The facts about the examples for the model card: names of files and columns, but no local paths."""
    task, files = examples.task, example_files(data_args)
    return {
        "kind": task.kind,
        "labels": list(task.labels),
        "text_columns": list(task.columns.texts),
        "label_columns": list(task.columns.labels),
        "files": {split: Path(path).name for split, path in files.items()},
        "dataset_name": None if files else data_args.dataset_name or GLUE_ON_THE_HUB,
        "examples": {split: len(rows) for split, rows in examples.splits.items()},
        "held_out": examples.held_out,
        "max_seq_length": data_args.max_seq_length,
    }


def finetune_seed(
    seed: int,
    start: Start,
    encoded: dict[str, Dataset],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    data_args: FineTuningDataArguments,
    training_args: FineTuningArguments,
    facts: dict,
) -> dict:
    """Fine-tune with one seed, unless that is done. Returns the content of `metrics.json` in the seed's folder."""
    path = Path(training_args.output_dir) / f"seed-{seed}" / METRICS_FILE
    if (
        result := run_on_main_and_broadcast(lambda: read_json(path, "evaluation") if path.exists() else None)
    ) is not None:
        return result
    args, began = copy.copy(training_args), time.perf_counter()
    args.seed, args.output_dir = seed, str(path.parent)
    trainer = train(start, encoded, task, tokenizer, data_args, args)
    seconds = time.perf_counter() - began
    evaluation = evaluate(trainer, task)
    if task.is_regression:
        predict_in_units(trainer.model, task)
    with naming_write_errors(f"the model in {path.parent}"):
        trainer.save_model()
        trainer.save_state()
    result = {
        "task": task.name,
        "seed": seed,
        "evaluation": evaluation,
        "train_examples": len(trainer.train_dataset),
        "steps": trainer.state.global_step,
        "finetuning": {**facts, **_settings(trainer, data_args.model, seconds)},
    }
    measured = "  ".join(f"{name} {score:.4f}" for name, score in evaluation.items())
    logger.info(f"seed {seed}: {measured}  ({trainer.state.global_step:,} steps in {seconds:.0f} s)")
    run_on_main_and_broadcast(lambda: draw_figures(path.parent, result))
    run_on_main_and_broadcast(lambda: write_json(path, result))  # last: its presence marks this seed as finished
    return result


def _settings(trainer: FineTuningTrainer, model: str, seconds: float) -> dict:
    """The facts about the training for the model card."""
    args = trainer.args
    return {
        **named(model),
        "epochs": args.num_train_epochs,
        "examples_per_step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning_rate": args.learning_rate,
        **args.conditions(),
        "seconds": round(seconds, 1),
    }


def inputs(data_args: FineTuningDataArguments) -> dict[str, str]:
    """Fingerprints of all inputs of a fine-tuning run.

    Raises:
        UsageError: if a task is unknown, or no model is named.
    """
    check_task(data_args)
    files = example_files(data_args)
    dataset = None
    if not files and (data_args.dataset_name or data_args.task):
        dataset = (data_args.dataset_name or GLUE_ON_THE_HUB, data_args.task)
    return fingerprints(files.values(), [data_args.model], dataset)


def check_task(data_args: FineTuningDataArguments) -> None:
    """Raises: UsageError if a task is unknown, is given with a `task_type`, or no model is named."""
    if data_args.task is not None and data_args.task not in TASKS:
        raise UsageError(f"`task` must be one of {', '.join(TASKS)}, got {data_args.task!r}")
    if data_args.task is not None and data_args.task_type is not None:
        raise UsageError(f"`task_type` must be None with `task` {data_args.task}, got {data_args.task_type!r}")
    if data_args.model is None:
        raise UsageError("`model` must be a folder or a Hub id, got None")


def summarize(scores: list[float]) -> dict:
    return {
        "scores": scores,
        "mean": float(np.mean(scores)),
        "standard_deviation": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "median": float(np.median(scores)),
    }


# ---- One seed ----


def encode_splits(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    data_args: FineTuningDataArguments,
) -> dict[str, Dataset]:
    """Encode the splits. Training data that each seed samples from stays as it is, to be encoded after sampling. If
    the order of a pair does not matter and both orders are to be trained on, `swapped` holds the other order."""
    task, splits = examples.task, dict(examples.splits)
    if task.symmetric and data_args.both_orders and "train" in splits:
        other = splits["train"].rename_columns({"text": "text_pair", "text_pair": "text"})
        splits["swapped"] = other.select_columns(["text", "text_pair", "labels"])
    length = encoded_length(model, data_args)
    few = _draws(data_args, splits)
    return {
        split: rows if few and split != "validation" else encode(rows, task, tokenizer, length)
        for split, rows in splits.items()
    }


def encoded_length(model: PreTrainedModel, data_args: FineTuningDataArguments) -> int:
    """Maximum length in tokens; longer examples are truncated."""
    return min(data_args.max_seq_length, model.config.max_position_embeddings)


def _draws(data_args: FineTuningDataArguments, splits: dict[str, Dataset]) -> bool:
    """Whether each seed trains on its own sample of the examples, encoded after sampling."""
    most = data_args.max_train_examples
    return most is not None and len(splits.get("train", ())) > most


def train(
    start: Start,
    encoded: dict[str, Dataset],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    data_args: FineTuningDataArguments,
    args: FineTuningArguments,
) -> FineTuningTrainer:
    """Fine-tune once. `args.seed` determines the new head, the order of the examples and dropout."""
    parts = [encoded[split] for split in ("train", "swapped") if split in encoded]
    if _draws(data_args, encoded):
        drawn = [part.shuffle(seed=args.seed).select(range(data_args.max_train_examples)) for part in parts]
        length = encoded_length(start.model, data_args)
        parts = [encode(part, task, tokenizer, length) for part in drawn]
    args.num_train_epochs = args.num_train_epochs or task.epochs
    splits = {"train": concatenate_datasets(parts), "validation": encoded["validation"]}
    trainer = build_trainer(start.model_for(args.seed), task, tokenizer, args, splits)
    trainer.train(resume_from_checkpoint=run_on_main_and_broadcast(lambda: newest_intact(Path(args.output_dir))))
    return trainer


def build_trainer(
    model: PreTrainedModel,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    args: FineTuningArguments,
    encoded: dict[str, Dataset],
) -> FineTuningTrainer:
    """A Trainer for fine-tuning on a task and evaluating it."""
    suit_attention(model, args.device)
    trainer = FineTuningTrainer(
        model,
        args,
        collator_for(task, tokenizer),
        train_dataset=encoded.get("train"),
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        compute_metrics=lambda prediction: scores(task, prediction.predictions, prediction.label_ids),
        preprocess_logits_for_metrics=lambda logits, _: answers(task, logits),
    )
    show_lines(trainer)
    return trainer


def evaluate(trainer: FineTuningTrainer, task: Task) -> dict[str, float]:
    """The task's metrics on its validation split."""
    evaluation = trainer.evaluate()
    return {name: evaluation[f"eval_{name}"] for name in task.metrics}
