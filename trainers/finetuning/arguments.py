"""Arguments of a fine-tuning run."""

from dataclasses import dataclass, field

from ..runtime.arguments import ELECTRA_SCHEDULE, INHERITED, ElectraTrainingArguments
from .tasks import KINDS, TASKS


@dataclass
class FineTuningArguments(ElectraTrainingArguments):
    """Arguments of a fine-tuning run: [`ElectraTrainingArguments`] with layer-wise learning rates and seeds.

    The changed defaults are those of google-research/electra (`configure_finetuning.py`).

    Raises:
        ValueError: if `layerwise_lr_decay` is not in (0, 1], a seed is given twice, or `push_to_hub` is set.
    """

    learning_rate: float = field(default=1e-4, metadata=INHERITED["learning_rate"])
    warmup_steps: float = field(default=0.1, metadata=INHERITED["warmup_steps"])
    lr_scheduler_type: str = field(
        default=ELECTRA_SCHEDULE, metadata=ElectraTrainingArguments.__dataclass_fields__["lr_scheduler_type"].metadata
    )
    num_train_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Passes over the data. Default: 10 for rte, stsb and own tasks with fewer than 6,000 examples; "
            "else 3."
        },
    )
    per_device_train_batch_size: int = field(default=32, metadata=INHERITED["per_device_train_batch_size"])
    per_device_eval_batch_size: int = field(default=128, metadata=INHERITED["per_device_eval_batch_size"])
    save_strategy: str = field(default="no", metadata=INHERITED["save_strategy"])
    logging_steps: float = field(default=0.1, metadata=INHERITED["logging_steps"])
    layerwise_lr_decay: float = field(
        default=0.8,
        metadata={
            "help": "Ratio of a layer's learning rate to that of the layer above. At 1, all layers have the same rate."
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
            raise ValueError(f"`seeds` must be distinct, got {self.seeds}")
        if self.push_to_hub:
            raise ValueError("`push_to_hub` must be False for fine-tuning; push the folder of one seed instead")


@dataclass
class FineTuningDataArguments:
    """The checkpoint, the task, and the source of its examples: files, `data_dir`, or else the Hub."""

    _argument_group_name = "data"

    model: str | None = field(
        default=None,
        metadata={"help": "The checkpoint to start from (folder or Hub id): electra-exit, ELECTRA or BERT."},
    )
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Your examples: .csv or .tsv with a header, .jsonl, .json or .parquet; or CoNLL (.conll, .conllu, "
            ".iob, .bio, .txt), one word per line; plain or .gz or .xz."
        },
    )
    validation_file: str | None = field(
        default=None,
        metadata={"help": "Evaluation examples, in the same formats. Default: hold out a share of the training ones."},
    )
    text_column: str | None = field(
        default=None, metadata={"help": "Column of the text, or of lists of words. Default: the only candidate."}
    )
    text_pair_column: str | None = field(
        default=None, metadata={"help": "Column of the second text of a pair, if there is one."}
    )
    label_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "Column of the labels; several 0/1 columns are one label each. Default: the only candidate."
        },
    )
    task_type: str | None = field(
        default=None,
        metadata={
            "help": "Kind of task. Default: regression for fractions, multi_label for lists of labels, tagging for "
            "lists of words, classification otherwise.",
            "choices": list(KINDS),
        },
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the examples of each label that is held out."}
    )
    data_split_seed: int = field(default=0, metadata={"help": "Seed that selects the held-out examples."})
    task: str | None = field(
        default=None, metadata={"help": f"A GLUE task instead of your own: one of {', '.join(TASKS)}."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "For a GLUE task: folder with <task>/train.jsonl and <task>/validation.jsonl."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A dataset on the Hub instead of files. Default for a GLUE task: nyu-mll/glue."},
    )
    max_seq_length: int = field(
        default=128,
        metadata={"help": "Maximum tokens per example, limited to the model's positions; longer ones are truncated."},
    )
    max_train_examples: int | None = field(
        default=None, metadata={"help": "Train on this many examples, sampled with the seed."}
    )
    both_orders: bool = field(
        default=True,
        metadata={"help": "Train on both orders of a pair if order does not matter (mrpc and stsb), as ELECTRA does."},
    )
