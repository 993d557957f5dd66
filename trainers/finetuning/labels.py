"""Drop incomplete examples, and convert labels to numbers."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence

from datasets import ClassLabel, Dataset, Features, List, Value, concatenate_datasets

from ..data.reading import check_text
from ..errors import DataError
from .columns import column_names, is_list, number_in
from .tasks import Task


logger = logging.getLogger(__name__)

# The most labels listed in a message.
NAMED = 20


def name_of(value) -> str | None:
    """The name of a class that is given as text, a number or a boolean; `None` if it is blank."""
    if _is_blank(value):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def values_of(rows: Dataset, column: str, unique: bool = False) -> list:
    """The values of a column. A `ClassLabel` column gives the names of its classes instead of their indices."""
    values = rows.unique(column) if unique else rows[column][:]
    feature = rows.features[column]
    inner = getattr(feature, "feature", feature)
    if not isinstance(inner, ClassLabel):
        return values

    def name(number):
        return None if number is None or not 0 <= number < inner.num_classes else inner.int2str(number)

    return [list(map(name, value)) if isinstance(value, list) else name(value) for value in values]


def prepare(rows: Dataset, task: Task, where: str, whose: str = "") -> Dataset:
    """Convert rows to the format of [`examples.Examples.splits`], without those that lack a text or a label.

    Args:
        rows: rows with the columns of the task.
        task: the task.
        where: name of the rows in messages.
        whose: origin of the labels in messages, such as " of the model".

    Raises:
        DataError: if a column is missing, half of the rows or more lack a text or label, or a label is not one of the
            task's.
    """
    columns = task.columns
    for column in (*columns.texts, *columns.labels):
        if column not in rows.column_names:
            raise DataError(f"{where} must have the column `{column}`, got {column_names(rows)}")
    if len(rows) == 0:
        raise DataError(f"{where} must have rows, got none")
    for column in columns.texts:
        (_check_words if task.tags_words else check_text)(rows.features, column, where)
    rows = _complete_rows(rows, task, where)
    labels = _numbers(rows, task, where, whose)
    if task.is_regression:
        kind = Value("float32")
    elif task.kind == "multi_label":
        kind = List(Value("float32"))
    else:
        kind = List(Value("int64")) if task.tags_words else Value("int64")
    texts = rows.select_columns(list(columns.texts))
    names = ("words",) if task.tags_words else ("text", "text_pair")
    texts = texts.rename_columns(dict(zip(columns.texts, names, strict=False)))
    return concatenate_datasets([texts, Dataset.from_dict({"labels": labels}, Features({"labels": kind}))], axis=1)


def _check_words(features: Features, column: str, where: str):
    feature = features[column]
    if not (is_list(feature) and "string" in str(getattr(feature.feature, "dtype", ""))):
        raise DataError(f"the column `{column}` of {where} must hold lists of words, got {feature}")


def _complete_rows(rows: Dataset, task: Task, where: str) -> Dataset:
    """The rows that have a text and a label. The number of dropped rows is logged.

    Raises:
        DataError: if half of the rows or more would be dropped, since the column is then probably the wrong one.
    """
    lacking: dict[int, str] = {}
    for column in (*task.columns.texts, *task.columns.labels):
        of_words = task.tags_words and column in task.columns.texts
        for number, value in enumerate(values_of(rows, column)):
            if _is_blank(value) or (of_words and (not value or any(map(_is_blank, value)))):
                lacking.setdefault(number, column)
    if not lacking:
        return rows
    count, first = f"{len(lacking):,} of {len(rows):,} rows of {where} lack a text or a label", min(lacking)
    if 2 * len(lacking) >= len(rows):
        raise DataError(f"{count}: row {first + 1} lacks `{lacking[first]}`")
    logger.warning(f"{count} and are dropped: row {first + 1} lacks `{lacking[first]}`")
    return rows.select([number for number in range(len(rows)) if number not in lacking])


def _is_blank(value) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _numbers(rows: Dataset, task: Task, where: str, whose: str) -> list:
    """The labels of rows as numbers."""
    if len(task.columns.labels) > 1:
        return _switches(rows, task, where)
    (column,) = task.columns.labels
    values = values_of(rows, column)
    lists = task.tags_words or task.kind == "multi_label"
    if is_list(rows.features[column]) != lists:
        want, got = ("a list of labels", "one label") if lists else ("one label", "a list of labels")
        raise DataError(f"the column `{column}` of {where} must have {want} in each row for {task.kind}, got {got}")
    what = f"the column `{column}` of {where}"
    if task.is_regression:
        return [_amount(value, task, what) for value in values]
    number = numbering(task.labels, lambda value: _refuse(value, task, what, whose))
    if task.tags_words:
        for words, tags in zip(rows[task.columns.text], values, strict=True):
            if len(words) != len(tags):
                raise DataError(f"{where} must have a label per word, got {len(words)} words in "
                                f"`{task.columns.text}` and {len(tags)} labels in `{column}`: "
                                f"{' '.join(words[:8])}")  # fmt: skip
        return [[number(tag) for tag in tags] for tags in values]
    if task.kind == "multi_label":
        return [_several(row, task, what) for row in values]
    return [number(value) for value in values]


def numbering(labels: Sequence[str], unknown: Callable) -> Callable[[object], int]:
    """A function from a label to its index. A label is given by name or, if no name is a number, by index. Any other
    label is passed to `unknown`."""
    by_name = {name: number for number, name in enumerate(labels)}
    by_number = all(number_in(name) is None for name in labels)
    known: dict[object, int] = {}

    def number(value) -> int:
        if value not in known:
            name = name_of(value)
            if name in by_name:
                known[value] = by_name[name]
            elif name is not None and by_number and name.isdecimal() and int(name) < len(labels):
                known[value] = int(name)
            else:
                return unknown(value)
        return known[value]

    return number


def _refuse(value, task: Task, what: str, whose: str):
    if whose:
        raise DataError(f"{what} must hold the labels{whose} ({_listed(task.labels)}), got {value!r}")
    numbered = [f"{number} ({name})" for number, name in enumerate(task.labels)]
    raise DataError(f"{what} must hold {_listed(numbered)}, got {value!r}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _several(row: list, task: Task, what: str) -> list[float]:
    """A 0 or 1 per label, from a row of zeros and ones or a list of label names."""
    if len(row) == len(task.labels) and not any(isinstance(value, str) for value in row) and set(row) <= {0, 1}:
        return [float(value) for value in row]
    names = {name_of(value) for value in row}
    if not names <= set(task.labels):
        raise DataError(
            f"{what} must hold lists of names among {_listed(task.labels)}, or lists with a 0 or 1 for each of the "
            f"{len(task.labels)} labels, got {row[:8]}"
        )
    return [float(label in names) for label in task.labels]


def _switches(rows: Dataset, task: Task, where: str) -> list[list[float]]:
    """A 0 or 1 per label, from one column per label."""
    if set(task.columns.labels) != set(task.labels):
        got = ", ".join(task.columns.labels)
        raise DataError(f"the label columns of {where} must be {', '.join(task.labels)}, got {got}")
    meaning = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}
    found = []
    for column in task.labels:
        names = [name_of(value) for value in rows[column]]
        if wrong := [name for name in names if name.lower() not in meaning]:
            raise DataError(f"the column `{column}` of {where} must hold 0 or 1, got {wrong[0]!r}")
        found.append([meaning[name.lower()] for name in names])
    return [list(row) for row in zip(*found, strict=True)]


def _amount(value, task: Task, what: str) -> float:
    amount, limited = number_in(value), math.isfinite(task.largest)
    if amount is None or not math.isfinite(amount) or (limited and not 0 <= amount <= task.largest):
        wanted = f"numbers from 0 to {task.largest:g}" if limited else "numbers"
        raise DataError(f"{what} must hold {wanted}, got {value!r}")
    return amount


def readable(rows: Dataset, task: Task) -> Iterator[dict]:
    """The output of [`prepare`] with label names, in columns that [`columns.find_columns`] recognizes."""
    named = {"tagging": "tags", "multi_label": "labels"}.get(task.kind, "label")
    for row in rows:
        labels = row.pop("labels")
        if task.kind == "multi_label":
            labels = [task.labels[number] for number, has in enumerate(labels) if has]
        elif task.tags_words:
            labels = [task.labels[number] for number in labels]
        else:
            labels = float(f"{labels:.7g}") if task.is_regression else task.labels[labels]
        yield {**({"tokens": row["words"]} if task.tags_words else row), named: labels}
