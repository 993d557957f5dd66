"""Read labelled examples, infer their task, and hold out a validation split."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..data.reading import csv_header, load_from_hub, naming_cache_errors, read_files
from ..errors import DataError, UsageError
from .arguments import FineTuningDataArguments
from .columns import LABELS, find_columns, is_list, number_in
from .conll import is_conll, read_conll
from .labels import name_of, prepare, values_of
from .tasks import TASKS, Columns, Task, metrics_of


GLUE_ON_THE_HUB = "nyu-mll/glue"
# ELECTRA fine-tunes for 10 epochs on RTE (2,490 examples) and STS-B (5,749), for 3 on larger tasks.
FEW_EXAMPLES, EPOCHS_OF_FEW = 6000, 10.0
# This many different labels are accepted as classes, however few the rows.
MANY_CLASSES = 20
# Names of files, labels and folders that do not describe a task.
SAYS_LITTLE = re.compile(
    rf"(train|training|data|datasets?|examples?|split|upos|xpos|{'|'.join(LABELS)}|\d+)([-_ ]?\d+)?", re.IGNORECASE
)


@dataclass
class Examples:
    """The examples of a task.

    task: the task.
    splits: `train` and `validation`, or those that were requested. Their columns are `text` and optionally
        `text_pair`, or `words`; and `labels`: the class index, a 0 or 1 per label, a value, or the class index of each
        word.
    held_out: whether `validation` was held out from the training data.
    """

    task: Task
    splits: dict[str, Dataset]
    held_out: bool = False


@naming_cache_errors()
def read_examples(
    data_args: FineTuningDataArguments,
    wanted: Sequence[str] = ("train", "validation"),
    labels: Sequence[str] | None = None,
) -> Examples:
    """Read the examples of a GLUE task, or of a task that is inferred from them.

    Args:
        data_args: names the task or the files.
        wanted: the splits to read.
        labels: the labels of the checkpoint. If the data has the same set, their order is kept.

    Raises:
        UsageError: if neither a task nor data is named.
        DataError: if the examples cannot be read, or no trainable task can be inferred from them.
    """
    tables = _read_tables(data_args, wanted)
    asked = asked_columns(data_args)
    if data_args.task is not None:
        known = TASKS[data_args.task]
        task = replace(known, columns=Columns(*(ours or theirs for ours, theirs in _zip(asked, known.columns))))
    else:
        where, rows, defaults = tables["train"]
        task = _infer_task(rows, find_columns(rows, where, asked, defaults, data_args.task_type), where, data_args)
        if labels is not None and set(labels) == set(task.labels):
            task = replace(task, labels=tuple(labels))
    whose = "" if data_args.task else " of the training data"
    splits = {
        split: prepare(rows, task, where, whose if split == "validation" else "")
        for split, (where, rows, _) in tables.items()
    }
    holds_out = "validation" in wanted and "validation" not in splits
    if holds_out:
        where = tables["train"][0]
        all_labels, fraction = splits["train"]["labels"][:], data_args.validation_fraction
        kept, held = hold_out(all_labels, task, fraction, data_args.data_split_seed, where)
        splits = {"train": splits["train"].select(kept), "validation": splits["train"].select(held)}
    if task.is_regression and data_args.task is None:
        values = np.array(splits["train"]["labels"][:])
        if not np.ptp(values):
            raise DataError(f"the column `{task.columns.labels[0]}` of {tables['train'][0]} must hold at least two "
                            f"different numbers, got only {values[0]:g}")  # fmt: skip
        task = replace(task, shift=float(values.mean()), scale=float(values.std()))
    return Examples(task, splits, holds_out)


def asked_columns(data_args: FineTuningDataArguments) -> Columns:
    return Columns(data_args.text_column, data_args.text_pair_column, tuple(data_args.label_column or ()))


def _zip(ours: Columns, theirs: Columns):
    return ((getattr(ours, name), getattr(theirs, name)) for name in ("text", "pair", "labels"))


# ---- The tables ----


def _read_tables(data_args: FineTuningDataArguments, wanted: Sequence[str]) -> dict[str, tuple[str, Dataset, Columns]]:
    """For each split: its name in messages, its rows, and the columns that its file format prescribes."""
    of_task = "" if data_args.task is None else f"the {{}} data of {data_args.task}"
    if files := example_files(data_args, wanted):
        return {split: (of_task.format(split) or path, *read_table(path)) for split, path in files.items()}
    name = data_args.dataset_name or GLUE_ON_THE_HUB
    if data_args.dataset_name is None and data_args.task is None:
        raise UsageError(f"`train_file`, `dataset_name` or a GLUE `task` ({', '.join(TASKS)}) must be given, got none")
    validation = TASKS[data_args.task].validation if data_args.task else "validation"
    splits = load_from_hub(name, data_args.task, validation)
    if data_args.task and "validation" not in splits:
        raise DataError(f"`{name}` has no split `{validation}` for {data_args.task}")
    found = {split: rows for split, rows in splits.items() if split in wanted}
    return {
        split: (of_task.format(split) or f"the {split} data of {name}", rows, Columns())
        for split, rows in found.items()
    }


def example_files(
    data_args: FineTuningDataArguments, wanted: Sequence[str] = ("train", "validation")
) -> dict[str, str]:
    """The files of the `wanted` splits; none if the examples come from the Hub.

    Raises:
        DataError: if `train_file` is missing, or `data_dir` is given without a GLUE task.
    """
    files = {split: path for split in wanted if (path := getattr(data_args, f"{split}_file"))}
    if files and "train" in wanted and "train" not in files:
        raise DataError("`train_file` must be given with `validation_file`, got None")
    if not files and data_args.data_dir:
        if data_args.task is None:
            raise DataError(f"`data_dir` requires a GLUE `task` ({', '.join(TASKS)}), got None; for your own task, "
                            "name a file with --train_file")  # fmt: skip
        return {split: str(Path(data_args.data_dir) / data_args.task / f"{split}.jsonl") for split in wanted}
    return files


def read_examples_of(task: Task, path: str, asked: Columns) -> tuple[Task, Dataset]:
    """Read examples of a fine-tuned model's task.

    Args:
        task: the task of the model.
        path: file of the examples.
        asked: the columns named by the user; the others are inferred.

    Returns:
        The task with the columns of the file, and the examples in the format of [`Examples.splits`].

    Raises:
        DataError: if the examples cannot be read, or do not fit the task.
    """
    rows, defaults = read_table(path)
    task = replace(task, columns=find_columns(rows, path, asked, defaults, task.kind))
    return task, prepare(rows, task, path, " of the model")


def read_table(path: str) -> tuple[Dataset, Columns]:
    """A file of examples, and the columns of words and tags if its format prescribes them (CoNLL).

    Raises:
        DataError: if the file does not exist or cannot be read.
    """
    if not os.path.isfile(path):
        raise DataError(f"no such file: {path}")
    if is_conll(path):
        return read_conll(path)
    header = csv_header(path)[1] if re.search(r"\.[ct]sv(\.[a-z]+)?$", path, re.IGNORECASE) else ()
    rows = read_files([path], text_columns=header)  # keeps all values of a .csv file as text
    bare = {name: name.strip() for name in rows.column_names}
    return (rows.rename_columns(bare) if len(set(bare.values())) == len(bare) else rows), Columns()


# ---- The task ----


def _infer_task(rows: Dataset, columns: Columns, where: str, data_args: FineTuningDataArguments) -> Task:
    kind = data_args.task_type or _kind(rows, columns)
    labels = _label_names(rows, columns, kind, where)
    epochs = EPOCHS_OF_FEW if len(rows) < FEW_EXAMPLES else 3.0
    return Task(_task_name(columns, data_args), kind, columns, labels, metrics_of(kind, labels), epochs)


def _task_name(columns: Columns, data_args: FineTuningDataArguments) -> str:
    """A descriptive name: that of the file, else of the label column, else of the folder."""
    if not data_args.train_file:
        return data_args.dataset_name or "task"
    file = Path(data_args.train_file).resolve()
    folder = "" if file.parent == Path.home() else file.parent.name  # a home folder has the user's name
    names = (file.name.split(".")[0], columns.labels[0], folder)
    return next((name for name in names if name and not SAYS_LITTLE.fullmatch(name)), "task")


def _kind(rows: Dataset, columns: Columns) -> str:
    if is_list(rows.features[columns.text]):
        return "tagging"
    if len(columns.labels) > 1 or is_list(rows.features[columns.labels[0]]):
        return "multi_label"
    values = [value for value in values_of(rows, columns.labels[0], unique=True) if value is not None]
    numbers = [number_in(value) for value in values]
    whole = all(isinstance(value, (int, bool)) or re.fullmatch(r"[+-]?\d+", str(value)) for value in values)
    return "classification" if not values or None in numbers or whole else "regression"


def _label_names(rows: Dataset, columns: Columns, kind: str, where: str) -> tuple[str, ...]:
    """The names of the labels, sorted: numerically if all are numbers, and for tags with `O` first.

    Raises:
        DataError: if there are too few labels, or so many that the column is unlikely to hold classes.
    """
    column = columns.labels[0]
    if len(columns.labels) > 1:
        return columns.labels
    if kind == "regression":
        return (column,)
    values = values_of(rows, column, unique=not is_list(rows.features[column]))
    if is_list(rows.features[column]):
        lengths, found = {len(row or ()) for row in values}, {value for row in values for value in row or ()}
        if kind == "multi_label" and found <= {0, 1} and len(lengths) == 1 and max(lengths) > 1:
            return tuple(map(str, range(max(lengths))))
        values = found
    names = {name_of(value) for value in values} - {None}
    if len(names) < (1 if kind == "multi_label" else 2):
        only = f"only {next(iter(names))!r}" if names else "none"
        raise DataError(f"the column `{column}` of {where} must hold at least two labels, got {only}")
    if len(names) > max(MANY_CLASSES, len(rows) / 2) and kind == "classification":
        raise DataError(
            f"the column `{column}` of {where} has {len(names):,} different values in {len(rows):,} rows, too many "
            "for classes; choose another column with --label_column, or --task_type regression for numbers"
        )
    numbers = [number_in(name) for name in names]
    if None not in numbers:
        return tuple(sorted(names, key=number_in))
    return tuple(sorted(names, key=lambda name: (name != "O", name)))


# ---- The held-out split ----


def hold_out(labels: Sequence, task: Task, fraction: float, seed: int, where: str) -> tuple[list[int], list[int]]:
    """Split examples into training and held-out ones, stratified by label, set of labels or range of values. An
    example with a label that no training example has is not held out.

    Args:
        labels: one entry per example, in the format of [`Examples.splits`].
        task: the task of the examples.
        fraction: share to hold out.
        seed: seed of the split.
        where: name of the examples in messages.

    Returns:
        The indices of the training examples and of the held-out ones.

    Raises:
        DataError: if `fraction` is not in (0, 1), or no example can be held out.
    """
    if not 0 < fraction < 1:
        raise DataError(f"`validation_fraction` must be strictly between 0 and 1, got {fraction}")
    sets = [_label_set(label, task) for label in labels]
    keys = labels if task.is_regression else [sorted(each) for each in sets]
    order = sorted(np.random.default_rng(seed).permutation(len(labels)).tolist(), key=keys.__getitem__)
    held = {order[n] for n in range(len(order)) if math.floor((n + 1) * fraction) > math.floor(n * fraction)}
    seen = set().union(*(each for n, each in enumerate(sets) if n not in held))
    held = {n for n in held if sets[n] <= seen}
    if not held:
        raise DataError(f"{where} has {len(labels)} rows, too few to hold out any; give --validation_file")
    return [n for n in range(len(labels)) if n not in held], sorted(held)


def _label_set(label, task: Task) -> set[int]:
    """The indices of an example's labels."""
    if task.is_regression:
        return set()
    if task.kind == "multi_label":
        return {number for number, has in enumerate(label) if has}
    return set(label) if task.tags_words else {label}
