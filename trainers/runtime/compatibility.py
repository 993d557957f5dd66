"""All private APIs of Transformers, accelerate, datasets and torch that `trainers` overrides or calls, with reasons.
All other modules use the documented APIs only.

Any release may change a private API. `tests/trainers/runtime/test_compatibility.py` checks the signature of each, also
of those used in `modeling_electra_exit`, whose files are copied into checkpoints and cannot import this module.
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
    """Temporarily set attributes of `args`, for methods that read them there and take no parameter: `__post_init__`
    rejects our names of optimizers and schedules, and `Trainer._get_dataloader` drops the last batch of evaluations.
    """
    before = {name: getattr(args, name) for name in values}
    vars(args).update(values)
    try:
        yield
    finally:
        vars(args).update(before)


def completed(args: TrainingArguments | None, cls: type[Arguments]) -> Arguments:
    """`args` as an instance of `cls`. Missing fields get the defaults of `cls`; without `args`, all fields.

    Does not call `__init__`, which would set up device and processes again: `args` keep them in attributes that are
    not fields.
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
    """[`~transformers.Trainer`] with public hooks in place of the private methods that subclasses would override."""

    _writing_checkpoint = False

    def _prepare_for_training(self, *args, **kwargs):
        """Shards the model. Saving reads the name of its class, so the original name is restored."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.is_fsdp_enabled:
            name_as_unsharded(self.model)
        return prepared

    def _run_epoch(self, **kwargs):
        """Prevents an extra step: `Trainer` makes one when it resumes after the last step."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, model, trial, *args, **kwargs):
        """Calls `between_steps`: callbacks have no access to the wrapped model and the trial."""
        with contextlib.suppress(Preempted):
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        self.between_steps(model, trial)

    def between_steps(self, model, trial) -> None:
        """Called after a step was logged, evaluated and saved. `errors.Preempted` skips the rest of these, not this
        call."""

    def _get_grad_norm(self, model, grad_norm=None):
        """Calls `check_grad_norm`: this is the only place before the optimizer step that knows the gradient norm. For
        sharded models, accelerate before 1.15 returns the norm of the local shard; `full_tensor` completes it."""
        grad_norm = full_tensor(super()._get_grad_norm(model, grad_norm))
        self.check_grad_norm(grad_norm)
        return grad_norm

    def check_grad_norm(self, grad_norm) -> None:
        """Called before each optimizer step with the norm of all gradients."""

    def _hp_search_setup(self, trial):
        """Calls `adopt`: at this point `train` has created a new model if there is a `model_init`, and the trial has
        set its hyperparameters."""
        super()._hp_search_setup(trial)
        if self.model_init is not None:
            self.adopt(self.model)

    def adopt(self, model) -> None:
        """Called with each model that `model_init` creates."""

    def _issue_warnings_after_load(self, load_result):
        """Ignores tied weights, which are saved under only one of their names."""
        missing = [name for name in load_result.missing_keys if name not in self.model.all_tied_weights_keys]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    # ---- Data ----

    def _set_signature_columns_if_needed(self):
        """Keeps the columns of `columns_beside_the_model`: `Trainer` drops all that `forward` does not name."""
        unset = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if unset:
            self._signature_columns += self.columns_beside_the_model()

    def columns_beside_the_model(self) -> list[str]:
        """Columns that the collator reads and the model does not."""
        return []

    def _get_dataloader(self, *args, is_training=False, **kwargs):
        """Applies `dataloader_drop_last` to training only: an evaluation covers all examples."""
        with arguments_as(self.args, dataloader_drop_last=self.args.dataloader_drop_last and is_training):
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)

    @property
    def train_batch_size(self) -> int:
        """Batch size of this process: smaller than in `args` if `auto_find_batch_size` has reduced it."""
        return self._train_batch_size

    def _prepare_input(self, data):
        """Copies tensors to the device without host-device synchronization, unlike the library."""
        if isinstance(data, torch.Tensor):
            data = data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def prepare_inputs(self, inputs):
        """The batch on the device of the run. `prediction_step` receives it from the collator, on the host."""
        return self._prepare_inputs(inputs)

    # ---- Optimizer and schedule ----

    def own_scheduler(self, scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
        """Use `scheduler` instead of the library's. The next `train` discards it, as it discards the library's."""
        self.lr_scheduler, self._created_lr_scheduler = scheduler, True

    # ---- Checkpoints ----

    def _get_output_dir(self, trial):
        """Redirects a checkpoint that is being written to a temporary folder. The library would write to the final
        name, and considers whatever has that name complete."""
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, INCOMPLETE) if self._writing_checkpoint else folder

    def checkpoint_folder(self, trial) -> Path:
        """The final folder of the checkpoint of this step."""
        return Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

    def _save_checkpoint(self, model, trial):
        """Calls `save_checkpoint`: there is no callback before a checkpoint, or to replace it."""
        self.save_checkpoint(model, trial)

    def save_checkpoint(self, model, trial) -> None:
        """Write the checkpoint of this step, and push it if `push_to_hub` is set."""
        super()._save_checkpoint(model, trial)
        if self.args.push_to_hub:
            self.push_checkpoint(self.checkpoint_folder(trial))

    def write_incomplete(self, model, trial) -> None:
        """Write this process's part of the checkpoint of this step to the temporary folder [`files.INCOMPLETE`]."""
        self._writing_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writing_checkpoint = False

    def _save(self, output_dir=None, state_dict=None):
        """Omits the pickled arguments, which contain the Hub token in clear text and are never read."""
        if state_dict is not None:  # gathered from shards, with tied weights duplicated
            state_dict = {n: value for n, value in state_dict.items() if n not in self.model.all_tied_weights_keys}
        super()._save(output_dir, state_dict)
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        if self.args.should_save:
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            share_weights(folder)

    def save_unpushed(self) -> None:
        """[`~transformers.Trainer.save_model`] without its push, which would come before the evaluation."""
        self.save_model(_internal_call=True)

    def _save_optimizer_and_scheduler(self, output_dir):
        """Calls `save_beside_optimizer`: callbacks run too late to add files to a checkpoint."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self.save_beside_optimizer(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.load_beside_optimizer(Path(checkpoint))

    def save_beside_optimizer(self, checkpoint: Path) -> None:
        """Called in the process that writes a checkpoint, to add files."""

    def load_beside_optimizer(self, checkpoint: Path) -> None:
        """Called in every process when a run is resumed from a checkpoint."""

    # ---- Pushes ----

    def _push_from_checkpoint(self, checkpoint_folder):
        """Does nothing: the library would push a checkpoint before it is complete."""

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Push a complete checkpoint."""
        super()._push_from_checkpoint(str(checkpoint))

    def finish_push(self) -> None:
        """Wait for the push of an earlier checkpoint, because concurrent pushes conflict."""
        self._finish_current_push()


# ---- Transformers: models ----


def was_loaded(weight: torch.nn.Parameter) -> bool:
    """Whether `from_pretrained` found the weight in the checkpoint. It marks such weights and only logs a report."""
    return getattr(weight, "_is_hf_initialized", False)


def attention_of(model: PreTrainedModel) -> str:
    """The name of a model's attention implementation, as in `set_attn_implementation`."""
    return model.config._attn_implementation


def initialize(model: PreTrainedModel, module: torch.nn.Module) -> None:
    """Initialize one module of a model as in a new model. The public API initializes only whole models."""
    model._init_weights(module)


# ---- accelerate and FSDP2 ----


def switch_fsdp_on(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Enable FSDP2 on CPUs, and keep gradient reduction and outputs in fp32 with `bf16`.

    accelerate shards across accelerators only, and silently falls back to DDP on several CPUs. Setting the distributed
    type in its shared state is sufficient; torch and the Trainer support any device.
    """
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        state.fsdp_plugin = plugin
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    if (policy := state.fsdp_plugin.mixed_precision_policy) is not None:
        # As in DDP with autocast: gradients are averaged and losses returned in fp32.
        state.fsdp_plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)


def name_as_unsharded(model: torch.nn.Module) -> None:
    """Restore the class name of a model sharded by FSDP2. torch derives a new class from the model's; saving would
    copy torch's code instead of the model's, and name a class that cannot be loaded."""
    sharded, original = type(model), type(model).__bases__[-1]
    sharded.__name__, sharded.__qualname__, sharded.__module__ = (
        original.__name__,
        original.__qualname__,
        original.__module__,
    )


# ---- datasets ----


def first_features(stream: IterableDataset) -> Features:
    """The columns and types of a stream, inferred from its first row: `features` is `None` before the first read."""
    return stream.take(1)._resolve_features().features or Features()


# ---- torch ----


def overflowed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the kernels of a fused optimizer skip this step. With fp16, `GradScaler` calls it even if gradients
    overflowed, and sets this attribute. Other optimizers are not called then."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def unscale_before(optimizer: torch.optim.Optimizer) -> None:
    """Make `GradScaler` unscale the gradients before it calls this optimizer; fused ones declare that they do it."""
    optimizer._step_supports_amp_scaling = False


def has_onednn_linear() -> bool:
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`states @ weight.T + bias` with oneDNN. torch chooses between oneDNN and MKL itself; only its compiler can
    choose."""
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


def onednn_multiplies_bf16() -> bool:
    """Whether the processor has bf16 instructions, for torch without `torch.cpu.get_capabilities`."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def softmax_gradient(grad: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """The input gradient of a softmax over the last dimension. Autograd's kernel, which makes no copies."""
    return torch._softmax_backward_data(grad, probabilities, -1, probabilities.dtype)


def unregister(library: torch.library.Library) -> None:
    """Restore the original kernels of a library's operators now; otherwise that waits for garbage collection."""
    library._destroy()


# PyTorch's operations on lists of tensors, of which its own optimizers consist: a few kernel launches on a GPU for any
# number of tensors.
foreach_lerp = torch._foreach_lerp
foreach_lerp_ = torch._foreach_lerp_
foreach_mul_ = torch._foreach_mul_
foreach_add_ = torch._foreach_add_
