"""Find the columns of a table that hold the text and the labels: those that are named, or else the only candidates."""

import functools
import re

from datasets import Dataset

from ..errors import DataError
from .tasks import Columns


# Column names with a known meaning.
TEXTS = ("text", "sentence", "tokens", "words")
PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
         ("text", "text_pair"), ("text1", "text2"))  # fmt: skip
LABELS = ("label", "labels", "tags", "ner_tags", "target", "class", "category")
NUMBER = re.compile(r"\s*[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?\s*|\s*nan\s*|\s*[+-]?inf\s*", re.IGNORECASE)


def find_columns(rows: Dataset, where: str, asked: Columns, defaults: Columns, kind: str | None) -> Columns:
    """The columns of a task.

    Args:
        rows: the table.
        where: name of the table in messages.
        asked: the columns named by the user; the others are inferred.
        defaults: the columns that the file format prescribes.
        kind: the kind of task if known, a key of `KINDS`.

    Raises:
        DataError: if a named column is missing, or there is not exactly one candidate for another.
    """
    for column in (*filter(None, asked.texts), *asked.labels):
        if column not in rows.column_names:
            raise DataError(f"{where} must have the column `{column}`, got {column_names(rows)}")
    table = _Table(rows, where)
    labels = asked.labels or defaults.labels or (table.label(asked),)
    text, pair = asked.text or defaults.text, asked.pair
    if text is None:
        of_words = kind == "tagging" if kind else all(is_list(rows.features[name]) for name in labels)
        text, pair = table.texts(labels, pair, of_words)
    if reused := sorted({text, pair} & set(labels)) or ([text] if text == pair else []):
        raise DataError(f"the column `{reused[0]}` of {where} must be only one of text, second text and label")
    if len(labels) == 1 and not is_list(rows.features[labels[0]]) and labels[0] in table.distinct(labels[0]):
        raise DataError(
            f"{where} must begin with a header, but its first line seems to be an example: `{labels[0]}` is also a "
            "label"
        )
    return Columns(text, pair, labels)


def find_texts(rows: Dataset, where: str, asked: Columns, defaults: Columns, of_words: bool) -> Columns:
    """The columns of texts to predict, whose labels, if any, are ignored. Args, Raises: as [`find_columns`]."""
    for column in filter(None, asked.texts):
        if column not in rows.column_names:
            raise DataError(f"{where} must have the column `{column}`, got {column_names(rows)}")
    if text := asked.text or defaults.text:
        return Columns(text, asked.pair)
    labels = tuple(name for name in rows.column_names if name.lower() in LABELS)
    return Columns(*_Table(rows, where).texts(labels, asked.pair, of_words))


def column_names(rows: Dataset) -> str:
    return ", ".join(rows.column_names)


def is_list(feature) -> bool:
    return getattr(feature, "feature", None) is not None


def number_in(value) -> float | None:
    """A value or text as a number, with a decimal point or comma; `None` if it is not a number."""
    if isinstance(value, str):
        return float(value.replace(",", ".")) if NUMBER.fullmatch(value) else None
    return None if value is None else float(value)


class _Table:
    """A table whose columns are classified by their names and contents."""

    def __init__(self, rows: Dataset, where: str):
        self.rows, self.where = rows, where
        self.distinct = functools.cache(rows.unique)

    def label(self, asked: Columns) -> str:
        """The column of the labels: by its name; or the only one besides the text; or the only one with repeated
        values, fractional numbers or lists."""
        free = [name for name in self.rows.column_names if name not in asked.texts]
        fitting = [name for name in free if name.lower() in LABELS]
        if not fitting and len(free) == 2:
            fitting = [name for name in free if name.lower() not in TEXTS]
        if len(fitting) != 1:
            fitting = [name for name in fitting or free if self._can_be_label(name)]
        return self._only(fitting, "label", "--label_column")

    def texts(self, labels: tuple[str, ...], pair: str | None, of_words: bool) -> tuple[str, str | None]:
        """The columns of the text and of its pair. If `of_words`, columns with lists of words take precedence."""
        free = [name for name in self.rows.column_names if name not in (*labels, pair) and self._holds_text(name)]
        lists = [name for name in free if is_list(self.rows.features[name])]
        free = lists if of_words and lists else [name for name in free if name not in lists]
        named = {name.lower(): name for name in free}
        pairs = [(named[one], named[other]) for one, other in PAIRS if {one, other} <= named.keys()]
        if pair is None and len(pairs) == 1:
            return pairs[0]
        fitting = [name for name in free if name.lower() in TEXTS]
        if len(fitting) != 1:
            fitting = fitting or free
            spaced = [name for name in fitting if not is_list(self.rows.features[name]) and self._has_spaces(name)]
            fitting = spaced or fitting
        return self._only(fitting, "text", "--text_column"), pair

    def _can_be_label(self, name: str) -> bool:
        if is_list(self.rows.features[name]):
            return name.lower() not in TEXTS
        values = [value for value in self.distinct(name) if value is not None]
        numbers = [number_in(value) for value in values]
        fractions = None not in numbers and any(number % 1 for number in numbers)
        return fractions or 1 <= len(values) <= len(self.rows) / 2

    def _holds_text(self, name: str) -> bool:
        """Whether a column holds lists of text, or text that is not all numbers."""
        feature = self.rows.features[name]
        if "string" not in str(getattr(getattr(feature, "feature", feature), "dtype", "")):
            return False
        return is_list(feature) or any(number_in(value) is None for value in self.distinct(name) if value)

    def _has_spaces(self, name: str) -> bool:
        values = [value for value in self.distinct(name) if value]
        return sum(" " in value.strip() for value in values) > len(values) / 2

    def _only(self, fitting: list[str], what: str, flag: str) -> str:
        if len(fitting) == 1:
            return fitting[0]
        among = f"; candidates: {', '.join(fitting)}" if fitting else ""
        raise DataError(
            f"name the {what} column of {self.where} with {flag}: it has the columns {column_names(self.rows)}{among}"
        )
