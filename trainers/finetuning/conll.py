"""Read CoNLL files, which hold words and their tags in columns."""

import itertools
import lzma
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from datasets import Dataset

from ..data.reading import COMPRESSIONS, opened_text
from ..errors import DataError, first_line
from .tasks import Columns


ENDINGS = (".conll", ".conllu", ".iob", ".iob2", ".bio", ".txt")
# The columns of Universal Dependencies, https://universaldependencies.org/format.html; other files have numbers.
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
BLANK = " \t\r\n"  # other Unicode spaces may be part of a word


def is_conll(path: str) -> bool:
    """Whether a file holds one word per line. A .tsv file does if it has an empty line between others.

    Raises:
        DataError: if a .tsv file cannot be read.
    """
    ending = _ending(path)
    return ending in ENDINGS or (ending == ".tsv" and _has_gaps(path))


def _ending(path: str) -> str:
    for suffix in COMPRESSIONS:
        path = path.removesuffix(suffix)
    return os.path.splitext(path)[1].lower()


def _has_gaps(path: str) -> bool:
    with _naming_failures(path), opened_text(path) as file:
        written = (bool(line.strip(BLANK)) for line in file)
        return any(itertools.dropwhile(bool, written))


@contextmanager
def _naming_failures(path: str):
    """Raise the errors of reading a damaged file as [`DataError`]."""
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise DataError(f"cannot read {path} as CoNLL: {first_line(error)}") from error


def read_conll(path: str) -> tuple[Dataset, Columns]:
    """The sentences of a file, and the columns of the words and the tags.

    A file has one word per line, with columns separated by tabs or else by spaces, and an empty line after each
    sentence. Words are in the first column, or in the second if the first counts them. Tags are in the last column, or
    in `upos` of .conllu files.

    Returns:
        A dataset with one row per sentence and, for each column, a list with one entry per word; and the columns.

    Raises:
        DataError: if the file cannot be read, has no sentence, or its lines differ in their number of columns.
    """
    with _naming_failures(path), opened_text(path) as file:
        sentences = list(_sentences(file, path))
    if not sentences:
        raise DataError(f"{path} holds no sentences")
    width = len(sentences[0][0])
    universal = width == len(CONLLU) and _ending(path) == ".conllu"
    names = CONLLU if universal else [str(number) for number in range(1, width + 1)]
    if universal:  # drop the lines of multiword tokens (such as 1-2) and empty nodes (such as 1.1)
        sentences = [[word for word in sentence if word[0].isdigit()] for sentence in sentences]
    if len(sentences) == 1 and len(sentences[0]) > 512:
        raise DataError(f"{path} has {len(sentences[0]):,} lines and no empty line between sentences; put one after "
                        "each sentence, or name a table with a header .csv or .tsv")  # fmt: skip
    rows = [dict(zip(names, map(list, zip(*words, strict=True)), strict=True)) for words in sentences if words]
    counts = not universal and width > 2 and all(
        row[names[0]] == [str(number) for number in range(1, len(row[names[0]]) + 1)] for row in rows
    )  # fmt: skip
    words, tags = ("form", "upos") if universal else (names[1 if counts else 0], names[-1])
    return Dataset.from_list(rows), Columns(words, None, (tags,))


def _sentences(lines: Iterable[str], path: str) -> Iterator[list[list[str]]]:
    sentence, width = [], None
    for number, line in enumerate(lines, 1):
        line, inside = line.rstrip("\r\n"), line.strip(BLANK)
        columns = line.split("\t") if "\t" in inside else re.split(" +", inside)
        if not inside or columns[0] == "-DOCSTART-":
            if sentence:
                yield sentence
            sentence = []
        elif not (line.startswith("#") and len(columns) != width and not sentence):  # not a comment
            width = width or len(columns)
            if len(columns) != width or width < 2:
                raise DataError(
                    f"line {number} of {path} must have {max(2, width)} columns, as the first line, got {len(columns)}"
                )
            sentence.append(columns)
    if sentence:
        yield sentence
