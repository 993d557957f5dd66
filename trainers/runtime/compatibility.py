"""Every private part of Transformers, accelerate, datasets and torch that `trainers` overrides or calls, each with its
reason. Elsewhere these libraries are used through what they document.

Any release may change what stands here: `tests/trainers/runtime/test_compatibility.py` has the signature of each, and
of what the files of `modeling_electra_exit` use, which travel with a checkpoint and so cannot import this one.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from datasets import Features, IterableDataset
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import Preempted
from .distributed import full_tensor
from .files import INCOMPLETE, share_weights


Arguments = TypeVar("Arguments", bound=TrainingArguments)

# ---- Transformers: the arguments ----


@contextlib.contextmanager
def arguments_as(args: TrainingArguments, **values) -> Iterator[None]:
    """`args` with other `values` while the context lasts, for a method that reads them there and takes no parameter:
    `__post_init__` knows none but its own names of optimizers and schedules, and `Trainer._get_dataloader` drops the
    last batch of an evaluation, too."""
    before = {name: getattr(args, name) for name in values}
    vars(args).update(values)
    try:
        yield
    finally:
        vars(args).update(before)


def completed(args: TrainingArguments | None, cls: type[Arguments]) -> Arguments:
    """`args` as a `cls`: what they do not say, all of it where there are none, is the default of `cls`.

    Without `__init__`, which would set the device and the processes up again: `args` hold them in attributes that are
    no fields.
    """
    if args is None or isinstance(args, cls):
        return args or cls("tmp_trainer")
    whole = object.__new__(cls)
    for field in fields(cls):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        setattr(whole, field.name, default)
    vars(whole).update(vars(args))
    return whole


# ---- Transformers: the Trainer ----


class CompatibleTrainer(Trainer):
    """[`~transformers.Trainer`] with public methods for what it leaves to private ones: a subclass overrides those."""

    _writing_checkpoint = False

    def _prepare_for_training(self, *args, **kwargs):
        """The model is sharded here. Whatever saves it reads the name of its class."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.is_fsdp_enabled:
            name_as_unsharded(self.model)
        return prepared

    def _run_epoch(self, **kwargs):
        """Not a step too many: the library takes one more when it resumes after the last."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, model, trial, *args, **kwargs):
        """What comes between two steps: callbacks get neither the model of the run nor its trial."""
        with contextlib.suppress(Preempted):
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        self.between_steps(model, trial)

    def between_steps(self, model, trial) -> None:
        """Called after a step was logged, evaluated and saved; `errors.Preempted` leaves that unfinished."""

    def _get_grad_norm(self, model, grad_norm=None):
        """The only place between gradients and weights that knows the norm: of all gradients, where accelerate before
        1.15 returns the part of this process if the model is sharded."""
        grad_norm = full_tensor(super()._get_grad_norm(model, grad_norm))
        self.check_grad_norm(grad_norm)
        return grad_norm

    def check_grad_norm(self, grad_norm) -> None:
        """Called before each step of the optimizer, with the norm of all gradients."""

    def _hp_search_setup(self, trial):
        """By now `train` has made a new model, where there is a `model_init`; and a trial its hyperparameters."""
        super()._hp_search_setup(trial)
        if self.model_init is not None:
            self.adopt(self.model)

    def adopt(self, model) -> None:
        """Called with each model that `model_init` has made."""

    def _issue_warnings_after_load(self, load_result):
        """A tied weight is saved under one of its names, and is not missing under the other."""
        missing = [name for name in load_result.missing_keys if name not in self.model.all_tied_weights_keys]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    # ---- Data ----

    def _set_signature_columns_if_needed(self):
        """The library drops the columns that the model's `forward` does not name."""
        unset = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if unset:
            self._signature_columns += self.columns_beside_the_model()

    def columns_beside_the_model(self) -> list[str]:
        """Columns that the collator reads, and the model does not."""
        return []

    def _get_dataloader(self, *args, is_training=False, **kwargs):
        """`dataloader_drop_last` is about training: an evaluation is of everything."""
        with arguments_as(self.args, dataloader_drop_last=self.args.dataloader_drop_last and is_training):
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)

    @property
    def train_batch_size(self) -> int:
        """Sequences in a batch of this process: fewer than `args` say where `auto_find_batch_size` had to halve."""
        return self._train_batch_size

    def _prepare_input(self, data):
        """Without waiting for the device, as the library's copies of what its own loaders have not put there do."""
        if isinstance(data, torch.Tensor):
            data = data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def prepare_inputs(self, inputs):
        """A batch on the device of the run: `prediction_step` gets it as it left the collator."""
        return self._prepare_inputs(inputs)

    # ---- Optimizer and schedule ----

    def own_scheduler(self, scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
        """Use this one in the place of the library's; the next `train` makes another, as it does of the library's."""
        self.lr_scheduler, self._created_lr_scheduler = scheduler, True

    # ---- Checkpoints ----

    def _get_output_dir(self, trial):
        """While a checkpoint is being written, the place for what is not complete yet: the library has no other name
        for one, and takes whatever is there for whole."""
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, INCOMPLETE) if self._writing_checkpoint else folder

    def checkpoint_folder(self, trial) -> Path:
        """Where the checkpoint of this step is, or will be."""
        return Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

    def _save_checkpoint(self, model, trial):
        """There is no callback before a checkpoint, nor one in the place of it."""
        self.save_checkpoint(model, trial)

    def save_checkpoint(self, model, trial) -> None:
        """Write the checkpoint of this step and push it, where `push_to_hub` says so."""
        super()._save_checkpoint(model, trial)
        if self.args.push_to_hub:
            self.push_checkpoint(self.checkpoint_folder(trial))

    def write_incomplete(self, model, trial) -> None:
        """Write this process's part of the checkpoint of this step, in [`files.INCOMPLETE`] beside its place."""
        self._writing_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writing_checkpoint = False

    def _save(self, output_dir=None, state_dict=None):
        """Without the pickled arguments: they would carry the Hub token in clear text, and nothing reads them."""
        if state_dict is not None:  # gathered from shards, tied weights twice
            state_dict = {n: value for n, value in state_dict.items() if n not in self.model.all_tied_weights_keys}
        super()._save(output_dir, state_dict)
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        if self.args.should_save:
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            share_weights(folder)

    def save_unpushed(self) -> None:
        """[`~transformers.Trainer.save_model`], which otherwise pushes what nothing was measured of yet."""
        self.save_model(_internal_call=True)

    def _save_optimizer_and_scheduler(self, output_dir):
        """Callbacks cannot add a file to a checkpoint: when they are called, it has its name."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self.save_beside_optimizer(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.load_beside_optimizer(Path(checkpoint))

    def save_beside_optimizer(self, checkpoint: Path) -> None:
        """Called in the process that writes a checkpoint, to add files of one's own."""

    def load_beside_optimizer(self, checkpoint: Path) -> None:
        """Called in every process when a run is resumed from a checkpoint."""

    # ---- Pushes ----

    def _push_from_checkpoint(self, checkpoint_folder):
        """Not yet: the library pushes a checkpoint before it is complete."""

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Push a checkpoint that is complete."""
        super()._push_from_checkpoint(str(checkpoint))

    def finish_push(self) -> None:
        """Wait for the push of an earlier checkpoint: two at once would find each other's commit in their way."""
        self._finish_current_push()


# ---- Transformers: models ----


def was_loaded(weight: torch.nn.Parameter) -> bool:
    """Whether `from_pretrained` has found it in the checkpoint: it marks what it has, and reports in its log alone."""
    return getattr(weight, "_is_hf_initialized", False)


def attention_of(model: PreTrainedModel) -> str:
    """The name of the attention that a model computes with, as `set_attn_implementation` takes it."""
    return model.config._attn_implementation


def initialize(model: PreTrainedModel, module: torch.nn.Module) -> None:
    """Draw the weights of one module of a model, as a new model has them: in public there is only all of a model."""
    model._init_weights(module)


# ---- accelerate and FSDP2 ----


def switch_fsdp_on(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Let FSDP2 work between CPUs too, and lose no precision to `bf16` beyond that of the layers.

    accelerate shards between accelerators only: a run of several CPUs goes on with DDP, and nothing says so. All that
    it takes is to call the run by its name in the state that accelerate shares; neither torch nor the Trainer minds
    the device.
    """
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        state.fsdp_plugin = plugin
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    if (policy := state.fsdp_plugin.mixed_precision_policy) is not None:
        # As under DDP with autocast: gradients are averaged, and losses returned, in fp32.
        state.fsdp_plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)


def name_as_unsharded(model: torch.nn.Module) -> None:
    """Give a model sharded by FSDP2 its name back: torch derives a class of its own from the model's, and saving
    would ship the code of torch in the place of the model's and name a class in it that cannot be loaded."""
    sharded, original = type(model), type(model).__bases__[-1]
    sharded.__name__, sharded.__qualname__, sharded.__module__ = (
        original.__name__,
        original.__qualname__,
        original.__module__,
    )


# ---- datasets ----


def first_features(stream: IterableDataset) -> Features:
    """The columns and types of a stream whose first row says them: `features` is `None` until something has read."""
    return stream.take(1)._resolve_features().features or Features()


# ---- torch ----


def overflowed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the kernels leave this step out: with fp16, a fused optimizer is called although gradients overflowed,
    and `GradScaler` tells it by this attribute. Other optimizers are not called then."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def unscale_before(optimizer: torch.optim.Optimizer) -> None:
    """Let `GradScaler` unscale the gradients before it calls this optimizer: fused ones say that they do it."""
    optimizer._step_supports_amp_scaling = False


def has_onednn_linear() -> bool:
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`states @ weight.T + bias` by oneDNN: torch leaves no choice between it and MKL, except to its compiler."""
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


def onednn_multiplies_bf16() -> bool:
    """Of torch before `torch.cpu.get_capabilities`."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def softmax_gradient(grad: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """The gradient of what a softmax over the last dimension was of: autograd's kernel, which makes no copies."""
    return torch._softmax_backward_data(grad, probabilities, -1, probabilities.dtype)


def unregister(library: torch.library.Library) -> None:
    """Give operators their own kernels back: a library does so only when it is collected, at an unknown time."""
    library._destroy()
