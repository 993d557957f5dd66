"""Fine-tuning on a task of one's own or of GLUE, as ELECTRA does: `electra-exit finetune`."""

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

# In the output folder: the examples that were held out, with columns that `electra-exit calibrate` finds.
HELD_OUT_FILE = "held_out.jsonl"


class FineTuningTrainer(ElectraTrainer):
    """[`~transformers.Trainer`] with ELECTRA's optimizer and a learning rate a layer."""

    args: FineTuningArguments

    def create_optimizer(self, model=None):
        """Whatever `--optim` makes, its groups split by depth."""
        if self.optimizer is None:
            super().create_optimizer(model)
            decay_by_layer(self.optimizer, self.model, self.args.layerwise_lr_decay)
        return self.optimizer


def spread(measured: dict) -> str:
    """A mean, and what the seeds differ by."""
    if measured["standard_deviation"] is None:
        return f"{measured['mean']:.4f}"
    each = " ".join(f"{score:.4f}" for score in measured["scores"])
    return f"{measured['mean']:.4f} +- {measured['standard_deviation']:.4f}   ({each})"


def finetune(
    config_fields: dict, data_args: FineTuningDataArguments, training_args: FineTuningArguments, given: dict
) -> dict:
    """Fine-tune once a seed, each in a folder of its own, and summarise. Seeds that are done are not done again.

    Args: what the parser of the command line returns; `given` is all that was given, by name.

    Returns:
        What `metrics.json` in the output folder says: `task`, `model`, `seeds`, in `evaluation` for each metric
        the `scores` of the seeds, their `mean`, their `standard_deviation` (with n - 1; `None` for one seed) and their
        `median`, which ELECTRA reports; `baselines`, see [`scores.baselines`]; and `best`, the folder of the seed
        with the largest score in the first metric.

    Raises:
        UsageError, DataError: before anything is written, for whatever the user can put right.
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
        # At the very end: its presence says that the run is finished.
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
    """What is learned from which columns, in one line, so that a wrong guess is seen."""
    task, columns = examples.task, examples.task.columns
    texts = " and ".join(f"`{name}`" for name in columns.texts)
    labels = ", ".join(f"`{name}`" for name in columns.labels)
    of = "" if task.is_regression else f", {len(task.labels)} labels: {_few(task.labels)}"
    train, validation = (f"{len(rows):,}" for rows in examples.splits.values())
    held_out = "held out" if examples.held_out else "to evaluate on"
    return f"{task.name}: {task.kind}, {texts} -> {labels}{of}; {train} examples to train on, {validation} {held_out}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _facts(examples: Examples, data_args: FineTuningDataArguments) -> dict:
    """What the model card says of the examples: names of files and columns, and no place on this machine."""
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
    """What `metrics.json` in the folder of one seed says, after fine-tuning with it unless that is done."""
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
    run_on_main_and_broadcast(lambda: write_json(path, result))  # last: its presence says that this seed is done
    return result


def _settings(trainer: FineTuningTrainer, model: str, seconds: float) -> dict:
    """What the model card says of the training."""
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
    """Fingerprints of all that a fine-tuning reads. Raises: UsageError if a task is unknown, or no model is named."""
    check_task(data_args)
    files = example_files(data_args)
    dataset = None
    if not files and (data_args.dataset_name or data_args.task):
        dataset = (data_args.dataset_name or GLUE_ON_THE_HUB, data_args.task)
    return fingerprints(files.values(), [data_args.model], dataset)


def check_task(data_args: FineTuningDataArguments) -> None:
    """Raises: UsageError for a task that is unknown or has its own kind, or if no model is named."""
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


# ---- One run ----


def encode_splits(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    data_args: FineTuningDataArguments,
) -> dict[str, Dataset]:
    """The splits as a model reads them, but for training data of which each seed draws its own; and as `swapped`,
    where the order of a pair does not matter and is to be learned both ways, the same with the second text first."""
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
    """In tokens; what is longer is cut."""
    return min(data_args.max_seq_length, model.config.max_position_embeddings)


def _draws(data_args: FineTuningDataArguments, splits: dict[str, Dataset]) -> bool:
    """Whether each seed trains on examples of its own, which are encoded when they are drawn."""
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
    """Fine-tune with `args.seed` alone: the new head, the order of the examples and dropout follow from it."""
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
    """A Trainer that learns and measures a task."""
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
