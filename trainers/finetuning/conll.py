"""Words and their tags in columns: CoNLL files."""

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
# The columns of Universal Dependencies, https://universaldependencies.org/format.html; elsewhere they are numbered.
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
BLANK = " \t\r\n"  # and none of the other spaces of Unicode, which may be part of a word


def is_conll(path: str) -> bool:
    """Whether a file holds a word a line. A .tsv file does where an empty line is between others.

    Raises:
        DataError: if it must be read to tell, and cannot be.
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
    """What reading a damaged file raises becomes a [`DataError`]."""
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise DataError(f"cannot read {path} as CoNLL: {first_line(error)}") from error


def read_conll(path: str) -> tuple[Dataset, Columns]:
    """The sentences of a file, a row each and for every column a list, and where the words and the tags are.

    A word a line, its columns between tabs or else between spaces, and an empty line after each sentence. Words are
    the first column, or the second after one that counts them; tags are the last, in .conllu files `upos`.

    Raises:
        DataError: if the file cannot be read, has lines of different numbers of columns, or no sentence.
    """
    with _naming_failures(path), opened_text(path) as file:
        sentences = list(_sentences(file, path))
    if not sentences:
        raise DataError(f"there is no sentence in {path}")
    width = len(sentences[0][0])
    universal = width == len(CONLLU) and _ending(path) == ".conllu"
    names = CONLLU if universal else [str(number) for number in range(1, width + 1)]
    if universal:  # without the words that are written as one, and those that are not written
        sentences = [[word for word in sentence if word[0].isdigit()] for sentence in sentences]
    if len(sentences) == 1 and len(sentences[0]) > 512:
        raise DataError(f"{path} has {len(sentences[0]):,} lines and no empty one between two sentences; put one "
                        "after each sentence, or name a table with a header .csv or .tsv")  # fmt: skip
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
        elif not (line.startswith("#") and len(columns) != width and not sentence):  # else a comment
            width = width or len(columns)
            if len(columns) != width or width < 2:
                raise DataError(
                    f"line {number} of {path} must have {max(2, width)} columns, as the first, got {len(columns)}"
                )
            sentence.append(columns)
    if sentence:
        yield sentence
