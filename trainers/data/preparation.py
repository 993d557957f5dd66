"""The data pipeline, from documents to packed sequences of token ids."""

import logging
from dataclasses import asdict

from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..errors import DataError, first_line
from ..runtime.distributed import run_on_main_and_broadcast
from .arguments import DataArguments
from .packing import pack
from .reading import load_documents
from .streaming import PackedStream
from .tokenization import train_tokenizer


logger = logging.getLogger(__name__)


def load_tokenizer(args: DataArguments, vocab_size: int, documents: Dataset) -> PreTrainedTokenizerBase:
    """The tokenizer `args.tokenizer_name`, or else one of at most `vocab_size` entries trained on `documents`.

    Raises:
        DataError: if it cannot be loaded, or has no [CLS], [SEP], [MASK] or [PAD] token.
    """
    if args.tokenizer_name is None:
        tokenizer = train_tokenizer(documents, vocab_size, args.lowercase, args.strip_accents, args.tokenizer_type)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(args.tokenizer_name)
        except (OSError, ValueError, ImportError) as error:  # `ImportError` for a missing word segmentation library
            raise DataError(f"cannot load the tokenizer `{args.tokenizer_name}`: {first_line(error)}") from error
    missing = [name for name in ("cls", "sep", "mask", "pad") if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise DataError(f"the tokenizer `{args.tokenizer_name}` has no {', '.join(missing)} token; choose another")
    # Avoids a misleading warning about long documents, which are cut into sequences afterwards.
    tokenizer.model_max_length = args.max_seq_length
    return tokenizer


def prepare(args: DataArguments, vocab_size: int) -> tuple[DatasetDict, PreTrainedTokenizerBase, dict]:
    """Run [`load_documents`], [`load_tokenizer`] and [`pack`].

    In a distributed run, the first process of each machine prepares the data, and the others read the cache. With
    `args.streaming`, only the validation data is prepared, and the training sequences are a [`PackedStream`].

    Returns:
        The packed splits, the tokenizer, and the counts of each prepared split as dictionaries.

    Raises:
        DataError, WorkerError: as the functions above.
    """
    with PartialState().local_main_process_first():
        documents = load_documents(args)
    # Broadcast: training it in every process would give the same tokenizer, but take as long again.
    tokenizer = run_on_main_and_broadcast(lambda: load_tokenizer(args, vocab_size, documents["train"]))
    how = (args.segments, args.data_split_seed)
    stream = PackedStream(documents.pop("train"), tokenizer, args.max_seq_length, *how) if args.streaming else None
    if stream is not None:
        run_on_main_and_broadcast(stream.check_known)
    with PartialState().local_main_process_first():
        packed, counts = pack(documents, tokenizer, args.max_seq_length, args.num_proc, *how)
    if stream is not None:
        packed["train"] = stream
    return packed, tokenizer, {name: asdict(count) for name, count in counts.items()}
