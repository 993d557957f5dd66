"""Arguments of a fine-tuning."""

from dataclasses import dataclass, field

from ..runtime.arguments import ELECTRA_SCHEDULE, INHERITED, ElectraTrainingArguments
from .tasks import KINDS, TASKS


@dataclass
class FineTuningArguments(ElectraTrainingArguments):
    """Arguments of a fine-tuning: [`ElectraTrainingArguments`], a learning rate a layer, and seeds.

    Defaults that differ are those of google-research/electra (`configure_finetuning.py`).

    Raises:
        ValueError: if `layerwise_lr_decay` is not in (0, 1], or a seed is given twice.
    """

    learning_rate: float = field(default=1e-4, metadata=INHERITED["learning_rate"])
    warmup_steps: float = field(default=0.1, metadata=INHERITED["warmup_steps"])
    lr_scheduler_type: str = field(
        default=ELECTRA_SCHEDULE, metadata=ElectraTrainingArguments.__dataclass_fields__["lr_scheduler_type"].metadata
    )
    num_train_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Passes over the data. Default: 10 for rte, stsb and own tasks below 6,000 examples; else 3."
        },
    )
    per_device_train_batch_size: int = field(default=32, metadata=INHERITED["per_device_train_batch_size"])
    per_device_eval_batch_size: int = field(default=128, metadata=INHERITED["per_device_eval_batch_size"])
    save_strategy: str = field(default="no", metadata=INHERITED["save_strategy"])
    logging_steps: float = field(default=0.1, metadata=INHERITED["logging_steps"])
    layerwise_lr_decay: float = field(
        default=0.8,
        metadata={
            "help": "Learning rate of a layer relative to the layer above it. At 1, all layers have the same rate."
        },
    )
    seeds: list[int] | None = field(
        default=None, metadata={"help": "Fine-tune once with each of these seeds. Default: once, with --seed."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.seeds = self.seeds or [self.seed]
        if not 0 < self.layerwise_lr_decay <= 1:
            raise ValueError(f"`layerwise_lr_decay` must be in (0, 1], got {self.layerwise_lr_decay}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` must differ from each other, got {self.seeds}")
        if self.push_to_hub:
            raise ValueError("`push_to_hub` must be False here; upload the folder of the seed of your choice instead")


@dataclass
class FineTuningDataArguments:
    """What is fine-tuned on which task, and where its examples come from: files, `data_dir`, or else the Hub."""

    _argument_group_name = "data"

    model: str | None = field(
        default=None, metadata={"help": "The checkpoint to start from, folder or Hub id: ours, an ELECTRA or a BERT."}
    )
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Your examples: .csv or .tsv with a header, .jsonl, .json or .parquet; or CoNLL (.conll, .conllu, "
            ".iob, .bio, .txt), a word a line; plain or .gz or .xz."
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "The same, to evaluate on. Left out: a share of the examples is held out."}
    )
    text_column: str | None = field(
        default=None, metadata={"help": "The column of the text, or of lists of words. Left out: the only candidate."}
    )
    text_pair_column: str | None = field(
        default=None, metadata={"help": "The second text of a pair, if there is one."}
    )
    label_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "The column of the labels, or several of zeros and ones, a label each. Left out: the only "
            "candidate."
        },
    )
    task_type: str | None = field(
        default=None,
        metadata={
            "help": "What is learned. Left out: numbers with fractions are a regression, lists of labels multi_label, "
            "lists of words tagging, all else classification.",
            "choices": list(KINDS),
        },
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the examples that is held out, of each label alike."}
    )
    data_split_seed: int = field(default=0, metadata={"help": "Seed of the examples held out."})
    task: str | None = field(
        default=None, metadata={"help": f"A task of GLUE instead of your own: one of {', '.join(TASKS)}."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "For a GLUE task: folder with <task>/train.jsonl and <task>/validation.jsonl."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A data set on the Hub instead of files. Left out, for a GLUE task: nyu-mll/glue."},
    )
    max_seq_length: int = field(
        default=128, metadata={"help": "Tokens an example is cut to; never more than the model has positions."}
    )
    max_train_examples: int | None = field(
        default=None, metadata={"help": "Train on this many examples, drawn with the seed."}
    )
    both_orders: bool = field(
        default=True,
        metadata={"help": "Train on both orders of a pair where order does not matter (mrpc and stsb), as ELECTRA."},
    )
