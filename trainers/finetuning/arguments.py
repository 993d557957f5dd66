"""Arguments of a fine-tuning."""

from dataclasses import dataclass, field

from ..runtime.arguments import _INHERITED, ELECTRA_SCHEDULE, ElectraTrainingArguments
from .tasks import TASKS


@dataclass
class FineTuningArguments(ElectraTrainingArguments):
    """Arguments of a fine-tuning: [`ElectraTrainingArguments`], a learning rate a layer, and seeds.

    Defaults that differ are those of google-research/electra (`configure_finetuning.py`).

    Raises:
        ValueError: if `layerwise_lr_decay` is not in (0, 1], or a seed is given twice.
    """

    learning_rate: float = field(default=1e-4, metadata=_INHERITED["learning_rate"])
    warmup_steps: float = field(default=0.1, metadata=_INHERITED["warmup_steps"])
    lr_scheduler_type: str = field(
        default=ELECTRA_SCHEDULE, metadata=ElectraTrainingArguments.__dataclass_fields__["lr_scheduler_type"].metadata
    )
    num_train_epochs: float | None = field(
        default=None, metadata={"help": "Passes over the data. Left out: 10 for rte and stsb, 3 for other tasks."}
    )
    per_device_train_batch_size: int = field(default=32, metadata=_INHERITED["per_device_train_batch_size"])
    per_device_eval_batch_size: int = field(default=128, metadata=_INHERITED["per_device_eval_batch_size"])
    save_strategy: str = field(default="no", metadata=_INHERITED["save_strategy"])
    layerwise_lr_decay: float = field(
        default=0.8,
        metadata={"help": "What a layer's learning rate is of that of the layer above it. 1: all learn alike."},
    )
    seeds: list[int] | None = field(
        default=None, metadata={"help": "Fine-tune once with each of these. Left out: once, with --seed."}
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
    """What is fine-tuned on which task, and where its examples come from: `data_dir`, two files, or else the Hub."""

    _argument_group_name = "data"

    model: str | None = field(
        default=None, metadata={"help": "The checkpoint to start from, folder or Hub id: ours, an ELECTRA or a BERT."}
    )
    task: str | None = field(default=None, metadata={"help": f"The GLUE task: one of {', '.join(TASKS)}."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with <task>/train.jsonl and <task>/validation.jsonl."}
    )
    train_file: str | None = field(
        default=None, metadata={"help": "A local .jsonl, .json, .csv or .parquet file, plain or .gz or .xz."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same, to evaluate on."})
    dataset_name: str = field(
        default="nyu-mll/glue", metadata={"help": "The data set on the Hub, its configurations named as the tasks."}
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
