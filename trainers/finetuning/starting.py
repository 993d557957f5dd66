"""The checkpoint that fine-tuning starts from. It is loaded once and copied for each seed."""

import copy

import torch
from transformers import PreTrainedConfig, PreTrainedModel, set_seed

from modeling_electra_exit import ElectraEarlyExitForSequenceClassification, ElectraEarlyExitForTokenClassification

from ..errors import UsageError
from ..runtime.compatibility import initialize, was_loaded
from ..runtime.loading import architecture, check_policy, load_for, quiet_loading, read_config
from .tasks import KINDS, Task


# Config fields that have no effect without exit heads.
NEED_EXITS = ("exit_layers", "exit_loss_weight", "exit_distillation_weight")


def head_class(task: Task) -> type[PreTrainedModel]:
    return ElectraEarlyExitForTokenClassification if task.tags_words else ElectraEarlyExitForSequenceClassification


def has_head_for(config: PreTrainedConfig, tags_words: bool) -> bool:
    """Whether a checkpoint has a head that fine-tuning keeps. BERT's sequence head, which uses its pooler, is not."""
    if tags_words:
        return architecture(config).endswith("ForTokenClassification")
    return architecture(config).endswith("ForSequenceClassification") and config.model_type != "bert"


class Start:
    """A checkpoint with a head for a task, which is new if the checkpoint has none.

    Args:
        checkpoint (`str`): folder or Hub id of an electra-exit, ELECTRA or BERT model.
        task: the task of the head.
        config_fields: fields of the config to change.

    Raises:
        UsageError: if the checkpoint is not supported, its head does not fit the task, or `config_fields` sets exits
            that it does not have.
    """

    def __init__(self, checkpoint: str, task: Task, config_fields: dict | None = None):
        check_head(checkpoint, task)
        problem_type = {} if task.tags_words else {"problem_type": KINDS[task.kind]}
        with quiet_loading():  # without the warning about the new head
            self.model = load_for(
                head_class(task),
                checkpoint,
                num_labels=len(task.labels),
                id2label=dict(enumerate(task.labels)),
                label2id={label: number for number, label in enumerate(task.labels)},
                **problem_type,
                **(config_fields or {}),
            )
        check_exits(self.model.config, checkpoint, config_fields or {})
        self.model.config.finetuning_task = task.name
        self.new = {name for name, weight in self.model.named_parameters() if not was_loaded(weight)}

    def model_for(self, seed: int) -> PreTrainedModel:
        """A copy of the model whose new weights depend only on the seed."""
        model = copy.deepcopy(self.model)
        set_seed(seed)
        for path, module in model.named_modules():
            if any(f"{path}.{name}" in self.new for name, _ in module.named_parameters(recurse=False)):
                initialize(model, module)
        return model


def check_exits(config: PreTrainedConfig, checkpoint: str, config_fields: dict) -> None:
    """Raises: UsageError if `config_fields` turns exits on or sets them, and the model cannot have or has none."""
    if config.has_exit_heads:
        return
    check_policy(config, config_fields, checkpoint)
    if unread := [name for name in NEED_EXITS if config_fields.get(name)]:
        raise UsageError(f"--{unread[0]} requires exits, but {checkpoint} has none: give --exit_policy random")


def check_head(checkpoint: str, task: Task) -> None:
    """Raises: UsageError if a checkpoint has a head for another task."""
    config = read_config(checkpoint)
    if not has_head_for(config, task.tags_words):
        return
    of = f"of {checkpoint} for the task {task.name}"
    if config.num_labels != len(task.labels):
        raise UsageError(f"`num_labels` {of} must be {len(task.labels)}, got {config.num_labels}")
    if not task.tags_words and config.problem_type not in (None, KINDS[task.kind]):
        raise UsageError(f"`problem_type` {of} must be {KINDS[task.kind]!r}, got {config.problem_type!r}")


@torch.no_grad()
def predict_in_units(model: PreTrainedModel, task: Task) -> None:
    """Rescale the heads of a regression model to predict labels instead of (label - shift) / scale."""
    for head in (model.classifier, *getattr(model.exit_heads, "heads", ())):
        head.out_proj.weight.mul_(task.scale)
        head.out_proj.bias.mul_(task.scale).add_(task.shift)
