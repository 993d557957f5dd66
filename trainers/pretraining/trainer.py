"""A `Trainer` for replaced-token detection with early exits: a list of overrides, each with its reason."""

import contextlib
import logging
import math
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState
from transformers.trainer_utils import rotate_checkpoints

from modeling_electra_exit.exit_state import all_reduce, roc_auc
from modeling_electra_exit.modeling_electra_exit import originals

from .. import metrics
from ..data.streaming import PackedStream
from ..errors import DivergenceError, Preempted, WriteError
from ..generators.difficulty import Difficulty, DifficultyCallback
from ..generators.masked_lm import MaskedLanguageModel
from ..runtime import cpu_kernels
from ..runtime.arguments import ElectraEarlyExitTrainingArguments, ElectraTrainingArguments
from ..runtime.checkpoints import commit, damage, newest_intact
from ..runtime.compatibility import CompatibleTrainer, attention_of, completed, switch_fsdp_on
from ..runtime.depths import FoundDepths
from ..runtime.distributed import any_rank, naming_dead_workers, run_on_main_and_broadcast
from ..runtime.files import INCOMPLETE, naming_write_errors, read_json, share_weights, tolerated, write_json
from ..runtime.flops import StepFlops, layer_tokens, step_flops
from ..runtime.late import LateNumbers
from ..runtime.muon import MUON, ElectraMuon, layer_matrices
from ..runtime.optimization import ELECTRA_SCHEDULE, ElectraAdamW, electra_schedule
from ..runtime.pace import Pace, paced_schedule, seconds_of
from ..sharing.hub import PushingTrainer
from .callbacks import (
    NewEpochCallback,
    PaceCallback,
    PreemptionCallback,
    outlived,
    quiet_event_writers,
)
from .collator import build_collator
from .continuing import inherit_moments
from .depth import StageCallback, at_depth, check_depths, train_in_stages
from .profiling import StepProfileCallback
from .timing import StepTimer


logger = logging.getLogger(__name__)

# Training does not recover from a loss above this multiple of the loss of uniform predictions.
EXPLODED = 100
GENERATOR_FILE, PACE_FILE = "generator.safetensors", "pace.json"
LOSSES = ("discriminator_loss", "exit_loss", "gain_loss", "generator_loss")
# Metrics other than losses are measured every this many steps, or in each logged step if those are more frequent: they
# launch as many kernels as several layers.
MEASURED_EVERY = 10


# Reporting callbacks: those of `report_to`, and those of the terminal.
REPORTS = (*INTEGRATION_TO_CALLBACK.values(), ProgressCallback, PrinterCallback)


def _outlive_reports(callback) -> None:
    if isinstance(callback, REPORTS):
        outlived(callback)


class ElectraTrainer(CompatibleTrainer):
    """Base class of the Trainers for pre-training and fine-tuning. `args` may be plain
    [`~transformers.TrainingArguments`], or omitted: missing fields get the defaults of `arguments_class`."""

    args: ElectraTrainingArguments
    arguments_class = ElectraTrainingArguments

    def __init__(self, model=None, args=None, *more, **kwargs):
        super().__init__(model, completed(args, self.arguments_class), *more, **kwargs)
        self.preemption = PreemptionCallback(self.args.device)
        self.add_callback(self.preemption)
        self.step_timer = StepTimer()
        self.add_callback(self.step_timer)
        for callback in self.callback_handler.callbacks:
            _outlive_reports(callback)

    def add_callback(self, callback):
        super().add_callback(callback)
        _outlive_reports(self.callback_handler.callbacks[-1])

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        if (sharding := self.args.sharding()) is not None:
            switch_fsdp_on(self.accelerator, sharding)
            self.is_fsdp_enabled = True

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """Train as in Transformers, except that `resume_from_checkpoint=True` skips damaged checkpoints.

        Raises:
            Preempted, Interrupted: after SIGTERM or the first Ctrl-C, when a checkpoint has been written at the end of
                the step. A second Ctrl-C ends the process at once.
            WorkerError: if a data loader worker has died.
        """
        resume_from_checkpoint = self.newest(resume_from_checkpoint)
        if self.args.bf16 and self.args.device.type == "cpu" and not cpu_kernels.multiplies_bf16():
            logger.warning("this processor has no bf16 instructions, so bf16 is many times slower: use `--bf16 auto`")
        if isinstance(resume_from_checkpoint, str) and self.is_world_process_zero():
            step = TrainerState.load_from_json(os.path.join(resume_from_checkpoint, TRAINER_STATE_NAME)).global_step
            logger.info(f"{self.args.output_dir} continues from step {step}: {resume_from_checkpoint}")
        workers = naming_dead_workers("--dataloader_num_workers")
        with self.kernels(), self.stoppable(), quiet_event_writers(), workers:
            return super().train(resume_from_checkpoint, *args, **kwargs)

    @contextlib.contextmanager
    def stoppable(self):
        """Context manager for training or an evaluation, which ends early after SIGTERM or the first Ctrl-C.

        Raises:
            Preempted, Interrupted: then, with the step of the checkpoint.
        """
        with self.preemption:
            with contextlib.suppress(Preempted):
                yield
            if self.preemption.requested():
                saved = run_on_main_and_broadcast(lambda: self.checkpoint_folder(None).is_dir())
                raise self.preemption.stop(self.state.global_step if saved else None)

    def newest(self, checkpoint: str | bool | None) -> str | bool | None:
        """Replace `True` by the newest undamaged checkpoint. Without one, `True` is returned, for which `Trainer`
        raises an error."""
        if checkpoint is not True:
            return checkpoint
        return run_on_main_and_broadcast(lambda: newest_intact(Path(self.args.output_dir))) or True

    def between_steps(self, model, trial):
        """Stop and save a checkpoint if a signal was received. An evaluation in progress is not finished."""
        if self.preemption.requested_before():
            self.control.should_training_stop = True
            missing = self.args.should_save and damage(self.checkpoint_folder(trial)) is not None
            if any_rank(missing, self.args.device):
                self.save_checkpoint(model, trial)

    def evaluation_loop(self, *args, **kwargs):
        with self.kernels():
            return super().evaluation_loop(*args, **kwargs)

    def kernels(self):
        """Context manager that enables the faster CPU kernels, if this is a CPU run with `cpu_kernels`."""
        return cpu_kernels.use(self.args.cpu_kernels and self.args.device.type == "cpu")

    def get_optimizer_cls_and_kwargs(self, args, model=None):
        """Adds Muon, and replaces torch's AdamW by ELECTRA's. Other values of `--optim` are unchanged."""
        if args.optim == MUON:
            adam = {
                "betas": (args.adam_beta1, args.adam_beta2),
                "eps": args.adam_epsilon,
                "fused": args.default_optim.endswith("fused"),
            }
            matrices = layer_matrices(self.model if model is None else model)
            return ElectraMuon, {
                "lr": args.learning_rate,
                "matrices": matrices,
                "momentum": args.muon_momentum,
                **adam,
            }
        optimizer_class, optimizer_kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if optimizer_class is torch.optim.AdamW and not args.adam_bias_correction:
            optimizer_class = ElectraAdamW
        return optimizer_class, optimizer_kwargs

    def create_scheduler(self, num_training_steps, optimizer=None):
        """Adds ELECTRA's schedule."""
        if self.lr_scheduler is None and self.args.lr_scheduler_type == ELECTRA_SCHEDULE:
            self.own_scheduler(
                electra_schedule(optimizer or self.optimizer, self.args.warmup_steps, num_training_steps)
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def save_checkpoint(self, model, trial):
        """Write a checkpoint atomically. If writing fails, for example on a full disk, log the error and continue."""
        final = self.checkpoint_folder(trial)
        try:
            self._write_checkpoint(model, trial, final)
        except WriteError as error:
            shutil.rmtree(final.parent / INCOMPLETE, ignore_errors=True)
            logger.error(f"{error}; earlier checkpoints are unchanged, and training continues")
        else:
            if self.args.push_to_hub:
                with tolerated(f"pushing {final}"):
                    self.push_checkpoint(final)
            if self.args.should_save:
                with tolerated(f"deleting all checkpoints but the last {self.args.save_total_limit}"):
                    rotate_checkpoints(
                        str(final.parent), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
                    )

    def _write_checkpoint(self, model, trial, final: Path):
        """Write to a temporary folder, and rename it to `final` when every process has written its part.

        Raises:
            WriteError: in every process, if any of them could not write its part.
        """
        if self.args.should_save:
            shutil.rmtree(final.parent / INCOMPLETE, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        failure, incomplete = None, final.parent / INCOMPLETE / final.name
        try:
            with naming_write_errors(f"the checkpoint of step {self.state.global_step}"):
                self.write_incomplete(model, trial)
                if self.state.best_model_checkpoint == str(incomplete):
                    self.state.best_model_checkpoint = str(final)
                    if self.args.should_save:
                        self.state.save_to_json(incomplete / TRAINER_STATE_NAME)
        except WriteError as error:
            failure = error
        if any_rank(failure is not None, self.args.device):
            raise failure or WriteError("another process could not write its part of a checkpoint")
        if self.args.should_save:
            with naming_write_errors(f"the checkpoint of step {self.state.global_step}"):
                commit(incomplete, final)


class ElectraEarlyExitTrainer(PushingTrainer, ElectraTrainer):
    """[`~transformers.Trainer`] for pre-training: runs the joint objective, schedules the exits and counts FLOPs.

    Args:
        model, args, kwargs: as in [`~transformers.Trainer`]. `processing_class` is the tokenizer, by default that of
            the collator; it sets the ids of the special tokens in the model's config. `compute_metrics` defaults to
            [`metrics.replaced_token_detection`].
        data_collator (*optional*): if omitted, created with the generator by [`collator.build_collator`] for the
            model's `generator_type`, and again for each model of `model_init`.
        generator ([`generators.StepGenerator`], *optional*): corrupts batches if neither the collator nor the model
            does.
        max_seq_length (`int`, *optional*): length of the sequences, for the default collator. If omitted, that of the
            longest sequence in each batch.

    Logs in addition to the loss:

    - its parts;
    - `discriminator_auc`: ROC-AUC of the final head on training batches, measured in every tenth step (or in each
      logged step, if those are more frequent);
    - `generator_equal_rate`: share of the chosen tokens whose replacement equals the original, in the same steps;
    - `tokens_per_second`: training speed, without evaluation and saving;
    - `exits_active`: whether exits are active;
    - `kept_layer_<n>`: share of the tokens that layer n computes;
    - `exit_auc_layer_<n>` and `exit_recall_left_layer_<n>`, running means over about a hundred steps: ROC-AUC of the
      head at exit layer n, and its recall on the replaced tokens that exited there (at the base rate).

    Evaluation adds the measures of [`difficulty.Difficulty`]. `total_flos` in `trainer_state.json` counts the FLOPs
    that were actually executed.

    Raises:
        ValueError: if the tokenizer does not fit the model, or for arguments that `depth_schedule` does not support.
        UsageError: if the generator cannot be created.
    """

    args: ElectraEarlyExitTrainingArguments
    model: torch.nn.Module
    arguments_class = ElectraEarlyExitTrainingArguments
    # Clock for `train_time`, in seconds.
    clock = staticmethod(time.monotonic)

    def __init__(self, model=None, args=None, data_collator=None, generator=None, max_seq_length=None, **kwargs):
        self.tokenizer = kwargs.get("processing_class") or getattr(data_collator, "tokenizer", None)
        self._builds_collator = data_collator is None and self.tokenizer is not None
        self._measures_detection = "compute_metrics" not in kwargs
        self.generator, self._max_seq_length = generator, max_seq_length
        super().__init__(model, args, data_collator, **kwargs)
        self.adopt(self.model)
        self.stopwatch = Stopwatch()
        folder = self.args.reference_folder
        reference = None if folder is None else MaskedLanguageModel(folder, self.tokenizer, self.args.device)
        self._difficulty = Difficulty(reference, getattr(self.tokenizer, "mask_token_id", None))
        self.add_callback(NewEpochCallback(self))
        self.moments: Path | None = None
        self.pace: Pace | None = None
        self.stage, self.depths = 0, None
        if self.args.train_time is not None:
            self.add_callback(PaceCallback(self))
        if self.args.depth_schedule is not None:
            if self.optimizer is not None:
                raise ValueError("`depth_schedule` creates an optimizer for every stage: omit `optimizers`")
            self.depths = check_depths(self.args, self.model_config)
            if isinstance(self.depths, FoundDepths) and self.eval_dataset is None:
                raise ValueError("`depth_schedule` auto compares depths on held-out text: pass an `eval_dataset`")
            self.add_callback(StageCallback(self))
        if self.args.profile_step is not None:
            self.add_callback(StepProfileCallback(self, self.args.profile_step))
        self.add_callback(DifficultyCallback(self.tokens_of_step))

    def adopt(self, model):
        """Create everything that depends on the model, and set the ids of the special tokens in its config.

        Raises:
            ValueError: if the tokenizer has ids outside the model's vocabulary.
            UsageError: if the generator cannot be created.
        """
        config = self.accelerator.unwrap_model(model).config
        if self.tokenizer is not None:
            needed = max(self.tokenizer.get_vocab().values()) + 1
            if needed > config.vocab_size:
                raise ValueError(f"`vocab_size` must be at least {needed} for this tokenizer, got {config.vocab_size}")
            name_special_tokens(config, self.tokenizer)
        if self._builds_collator:
            text = self.train_dataset
            sequences = text.sequences() if isinstance(text, PackedStream) else text
            self.data_collator, self.generator = build_collator(
                config, sequences, self.tokenizer, self.args, self._max_seq_length
            )
        if self._measures_detection:
            self.compute_metrics = metrics.replaced_token_detection(config)
        self._means = Means()
        self._batches = []
        self._guards = LateNumbers()
        self._step_flops = {}
        self._exits_were_active = False

    # ---- The course of a run ----

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """As [`ElectraTrainer.train`], with a time limit if `train_time` is set. With a `depth_schedule`, it trains
        stage by stage; `model` is that of the current stage, and finally that of the last one.

        Raises:
            DivergenceError: if the loss or a gradient is NaN, infinite or too large.
            WriteError: if the checkpoint at the end of a stage cannot be written.
            Preempted, Interrupted, WorkerError: as [`ElectraTrainer.train`].
        """
        if self.args.train_time is not None:
            self.pace = Pace(seconds_of(self.args.train_time), self.clock)
        if self.depths is None:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        checkpoint = self.newest(resume_from_checkpoint or None)
        run_stage = super().train
        return train_in_stages(self, checkpoint, lambda start: run_stage(start, *args, **kwargs))

    def create_optimizer(self, *args, **kwargs):
        """Loads the file `moments` into the new optimizer, if it is set."""
        if self.optimizer is None:
            super().create_optimizer(*args, **kwargs)
            if self.moments is not None:
                inherit_moments(self.optimizer, self.moments)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        """Uses a schedule over time for a run with a time limit."""
        if self.lr_scheduler is None and self.pace is not None:
            self.own_scheduler(paced_schedule(optimizer or self.optimizer, self.args, self.pace))
        return super().create_scheduler(num_training_steps, optimizer)

    def plan(self) -> None:
        """Update `max_steps` from the elapsed time, with the same result in every process."""
        step, end, later = self.state.global_step, 1.0, 0.0
        if self.depths is not None:
            end = self.depths.ends[self.stage]
            ends, cost = self.depths.ends, self.cost_of
            shares = {n: ends[n] - ends[n - 1] for n in range(self.stage + 1, len(ends))}
            if not isinstance(self.depths, FoundDepths):  # with `auto`, the depth may stay the same
                shares = {n: share * cost() / cost(self.depths.depths[n]) for n, share in shares.items()}
            later = sum(shares.values()) / max(1 - end, 1e-9)

        def decide() -> dict:
            self.pace.plan(step, end, later)
            return self.pace.state_dict()

        self.pace.load_state_dict(run_on_main_and_broadcast(decide))
        self.state.max_steps = self.pace.max_steps

    def cost_of(self, depth: int | None = None) -> float:
        """FLOPs per sequence of a full-depth step, with the current or the given number of layers."""
        config = self.model_config if depth is None else at_depth(self.model_config, depth)
        return step_flops(config, 1, self.sequence_length, False).total

    def stage_of(self, checkpoint: str | None) -> int:
        """Index of the stage in which a run resumes from a checkpoint."""
        if checkpoint is None:
            return 0
        state = read_json(Path(checkpoint, TRAINER_STATE_NAME))
        if self.pace is None:
            return self.depths.stage_after(state["global_step"], state["max_steps"])
        pace = Pace(self.pace.budget)
        pace.load_state_dict(read_json(Path(checkpoint, PACE_FILE)))
        return self.depths.stage_at(pace.progress(state["global_step"]))

    def decides_at(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is at the beginning of a stage other than the first."""
        if self.stage == 0:
            return False
        state = read_json(checkpoint / TRAINER_STATE_NAME)
        if self.pace is None:
            return state["global_step"] == self.depths.last_step(self.stage - 1, state["max_steps"])
        pace = Pace(self.pace.budget)
        pace.load_state_dict(read_json(checkpoint / PACE_FILE))
        return pace.progress(state["global_step"]) == self.depths.ends[self.stage - 1]

    def stage_end(self) -> int | None:
        """The step after which the model grows; `None` in the last stage."""
        if self.depths is None or self.stage == len(self.depths.ends) - 1:
            return None
        if self.pace is None:
            return self.depths.last_step(self.stage, self.state.max_steps)
        return self.pace.steps[1]

    def replace_model(self, model) -> None:
        """Continue with another model of the same class, and a new optimizer and schedule."""
        model.set_attn_implementation(attention_of(self.accelerator.unwrap_model(self.model)))
        self.model = self.model_wrapped = model.to(self.args.device)
        self.optimizer = self.lr_scheduler = None
        # Reset the state of steps that were logged or belong to a fork, and the cost of a step.
        self._guards.settle()
        self._means = Means()
        self._batches.clear()
        self._step_flops.clear()
        self.stopwatch.tokens = 0

    def optimizer_names(self, model) -> list[str]:
        """The names of a model's parameters in the order of its optimizer."""
        before, self.optimizer = self.optimizer, None
        try:
            groups = self.create_optimizer(model).param_groups
        finally:
            self.optimizer = before
        names = {parameter: name for name, parameter in model.named_parameters()}
        return [names[parameter] for group in groups for parameter in group["params"]]

    # ---- Training ----

    def columns_beside_the_model(self):
        """Columns that the generator in the collator reads."""
        return list(getattr(getattr(self.data_collator, "replacements", None), "columns", ()))

    def get_train_dataloader(self):
        """Uses a stream's own loader, because accelerate's would discard most sequences that a process reads."""
        if isinstance(self.train_dataset, PackedStream):
            return self.train_dataset.loader(self.train_batch_size, self.data_collator, self.args.mask_seed)
        return super().get_train_dataloader()

    @property
    def has_exits(self) -> bool:
        """Whether tokens exit in the training steps for which `args.exits_active` is true."""
        return self.model_config.has_exit_heads

    def exits_active(self) -> bool:
        """Whether tokens exit in the current training step."""
        return self.has_exits and self.args.exits_active(self.state.global_step, self.state.max_steps)

    @property
    def sequence_length(self) -> int:
        """Number of tokens per sequence, padding included."""
        return getattr(self.data_collator, "max_seq_length", None) or self.model_config.max_position_embeddings

    def sequences_of_step(self) -> int:
        """Number of sequences in an optimizer step, over all processes."""
        return self.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def tokens_of_step(self) -> int:
        """Number of tokens in an optimizer step, over all processes, padding included."""
        return self.sequences_of_step() * self.sequence_length

    @property
    def model_config(self):
        return self.accelerator.unwrap_model(self.model).config

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss, with the exit policy of this step. Evaluation runs at full depth."""
        exits_active = model.training and self.exits_active()
        if "labels" in inputs and not inputs["labels"].numel():  # not created yet
            inputs = {name: value for name, value in inputs.items() if name != "labels"}
        masked = inputs
        if self.generator is not None and "labels" not in inputs:
            generator = self.generator if model.training else self.generator.for_evaluation(model, inputs)
            progress = self.state.global_step / self.state.max_steps if model.training else 1.0
            with self.accelerator.autocast():  # accelerate applies it only to the model in training
                inputs = generator.corrupt(inputs, progress)
        outputs = model(
            **inputs,
            exit_policy=self.model_config.exit_policy if exits_active else "none",
            exit_loss_scale=self._exit_loss_scale() if model.training else None,
        )
        if model.training:
            self._exits_were_active = exits_active  # the log is written after `global_step` has increased
            self.stopwatch.tokens += inputs["input_ids"].numel() * self.args.world_size
            self._means.add({name: value for name, value in outputs.items() if name in LOSSES})
            self._measure(outputs, inputs)
            if outputs.proposals is not None:
                text = originals(masked["input_ids"], masked["mlm_labels"])
                keys = self.generator.keys(text, masked.get("attention_mask"))
                self.generator.remember(*self.accelerator.gather((keys, outputs.proposals)))
        elif "mlm_labels" in inputs:
            beside = (inputs.get(name) for name in ("attention_mask", "token_type_ids"))
            self._difficulty.add(outputs.corrupted_ids, inputs["mlm_labels"], *beside)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _measure(self, outputs, inputs: dict[str, torch.Tensor]) -> None:
        """In every [`MEASURED_EVERY`]-th step, add the metrics other than losses to the means for the log."""
        every = min(MEASURED_EVERY, self.state.logging_steps or MEASURED_EVERY)  # 0 where nothing is logged
        if (self.state.global_step + 1) % every or outputs.rtd_labels is None:
            return
        self._means.add(step_difficulty(outputs, inputs))
        if outputs.exit_selections is not None and self.model_config.exit_policy != "topk":
            state = self.accelerator.unwrap_model(self.model).exit_state
            state.update(outputs, outputs.rtd_labels, inputs.get("attention_mask"), steps=every)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Stop at a NaN or exploding loss: on a CPU before the weights are updated, on other devices when the loss
        arrives on the host, but before the next log or checkpoint.

        Raises:
            DivergenceError: if the loss is NaN or too large.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._batches.append(inputs)
        step, batches, parts = self.state.global_step + 1, self._batches, self.current_gradient_accumulation_steps

        def check(value):
            if not value * parts <= EXPLODED * self._uninformed_loss():  # `not ... <=` also catches NaN
                self._stop(f"the loss is {value * parts:.4g}", step, batches)

        self._guards.watch(loss, check)
        return loss

    def check_grad_norm(self, grad_norm):
        """Stop at a NaN or infinite gradient, as at a loss. With fp16, such steps are normal and skipped.

        Raises:
            DivergenceError: if the norm is NaN or infinite.
        """
        step, batches, self._batches = self.state.global_step + 1, self._batches, []

        def check(value):
            if not math.isfinite(value):
                self._stop(f"the gradient norm is {value}", step, batches)

        if not self.args.fp16:
            self._guards.watch(grad_norm, check)

    def _uninformed_loss(self) -> float:
        """The loss, in nats, of uniform predictions."""
        config = self.model_config
        return config.generator_weight * math.log(config.vocab_size) + config.discriminator_weight * math.log(2)

    def _stop(self, reason: str, step: int, batches: list[dict[str, torch.Tensor]]):
        path = Path(self.args.output_dir) / f"diverged-step-{step}-{self.args.process_index}"
        path = path.with_suffix(".safetensors")
        tensors = {
            f"{n}.{name}": value for n, batch in enumerate(batches) for name, value in batch.items() if value.numel()
        }
        with tolerated(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path)
        raise DivergenceError(
            f"{reason} in step {step}; the batch is saved in {path}, and all checkpoints are from earlier steps. "
            "A lower learning rate, a longer warm-up or a lower max_grad_norm may help"
        )

    def _exit_loss_scale(self) -> torch.Tensor | None:
        """Factor on the exit heads' loss, which increases to 1 in its warm-up. Always a tensor, so that
        `torch.compile` does not recompile."""
        if not self.model_config.has_exit_heads:
            return None
        steps = round(self.args.exit_loss_warmup * self.state.max_steps)
        scale = min(1.0, (self.state.global_step + 1) / (steps + 1))
        return torch.full((), scale, device=self.args.device)  # filled on the device, a copy would synchronize

    def floating_point_ops(self, inputs) -> float:
        """FLOPs executed in one training step on this batch."""
        case = *inputs["input_ids"].shape, self.exits_active()
        if case not in self._step_flops:
            self._step_flops[case] = self.step_flops(self.model_config, *case).total
        return self._step_flops[case]

    def step_flops(self, config, rows: int, length: int, exits_active: bool) -> StepFlops:
        """FLOPs of a training step of a model with this config, those of a generator outside the model included."""
        layers = self.layer_tokens(config, length, exits_active)
        flops = step_flops(config, rows, length, exits_active, layers=layers)
        return flops + StepFlops(0, 0, self.flops_beside(rows, length))

    def layer_tokens(self, config, length: int, exits_active: bool) -> list[tuple[int, int]]:
        """Numbers of tokens of a sequence that each layer computes and attends to in a training step."""
        return layer_tokens(config, length, exits_active)

    def flops_beside(self, rows: int, length: int) -> float:
        """FLOPs in a training step of a generator outside the model."""
        return 0.0 if self.generator is None else self.generator.flops(rows, length)

    def log(self, logs, start_time=None):
        """Add the parts of the loss, the speed and the state of the exits to a training step's log line."""
        self._guards.settle()
        if "loss" in logs and self._means:
            logs |= {name: round(value, 4) for name, value in self._means.take(self.args.world_size).items()}
            logs["tokens_per_second"] = round(self.stopwatch.lap())
            logs |= self._exit_logs()
            if self.depths is not None:
                logs["depth"] = self.model_config.num_hidden_layers
        if self.pace is not None and "train_steps_per_second" in logs:  # the library uses the initial `max_steps`
            batch = self.get_total_train_batch_size(self.args)
            logs["train_samples_per_second"] = round(logs["train_steps_per_second"] * batch, 3)
        super().log(logs, start_time)

    def _exit_logs(self) -> dict[str, float]:
        config, length = self.model_config, self.sequence_length
        if not config.has_exit_heads:
            return {}
        counts = self.layer_tokens(config, length, self._exits_were_active)
        shares = {f"kept_layer_{layer}": round(n / length, 4) for layer, (n, _) in enumerate(counts, 1)}
        state = self.accelerator.unwrap_model(self.model).exit_state
        measured = {"auc": state.auc, "recall_left": 1 - state.error_on_left()[:, 1]}
        exits = {
            f"exit_{name}_layer_{layer}": round(value, 4)
            for name, values in measured.items()
            for layer, value in zip(config.exit_layers, values.tolist(), strict=True)
        }
        return {"exits_active": float(self._exits_were_active), **shares, **exits}

    def throughput(self) -> float:
        """Tokens per second since the process started, padding included, without evaluation and saving."""
        return self.stopwatch.total_tokens / max(self.stopwatch.total_seconds, 1e-9)

    # ---- Evaluation ----

    @property
    def epoch(self) -> int:
        """The epoch whose masks the collator makes."""
        return int(getattr(self.data_collator, "_epoch", 0))

    @contextlib.contextmanager
    def masks_of(self, epoch: int):
        """Within this context, the collator makes the masks of another epoch."""
        own, set_epoch = self.epoch, getattr(self.data_collator, "set_epoch", lambda epoch: None)
        set_epoch(epoch)
        try:
            yield
        finally:
            set_epoch(own)

    def evaluation_loop(self, *args, **kwargs):
        """Uses the same corruption in every evaluation, and does not change the random state of training."""
        self._guards.settle()
        self.stopwatch.lap()
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with self._pause(), torch.random.fork_rng(devices), self.masks_of(0):
            torch.manual_seed(self.args.seed)
            self._difficulty.restart()
            try:
                output = super().evaluation_loop(*args, **kwargs)
                self._difficulty.sums = self.accelerator.reduce(self._difficulty.sums.to(self.args.device)).cpu()
                prefix = kwargs.get("metric_key_prefix", "eval")
                output.metrics.update({f"{prefix}_{k}": value for k, value in self._difficulty.measures().items()})
                return output
            finally:
                self.stopwatch.start()

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Predictions at full depth.

        Returns:
            The loss; the logits (batch, sequence, 1 + exits) of the final head and of each exit head; and the labels
            (batch, sequence): 1 for replaced, 0 for original tokens, -100 for padding.
        """
        inputs = self.prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        # Copies, because a captured step writes its next outputs to the same memory.
        loss = loss.detach().clone()
        if prediction_loss_only:
            return loss, None, None
        labels = outputs.rtd_labels.clone()
        if (mask := inputs.get("attention_mask")) is not None:
            labels = labels.masked_fill(mask == 0, -100)
        logits = torch.stack([outputs.logits, *(outputs.exit_logits or ())], dim=-1)
        return loss, logits.float(), labels

    # ---- Saving ----

    def save_beside_optimizer(self, checkpoint):
        """Adds the state of a generator outside the model, and that of a time limit."""
        if self.generator is not None and (state := self.generator.state_dict()):
            save_file(state, checkpoint / GENERATOR_FILE)
            share_weights(checkpoint)
        if self.pace is not None:
            write_json(checkpoint / PACE_FILE, self.pace.state_dict())

    def load_beside_optimizer(self, checkpoint):
        if (path := checkpoint / GENERATOR_FILE).exists():
            self.generator.load_state_dict(load_file(path))
        if self.pace is not None and (path := checkpoint / PACE_FILE).exists():
            self.pace.load_state_dict(read_json(path))

    def save_checkpoint(self, model, trial):
        """Excludes saving from the training time."""
        self._guards.settle()
        self.stopwatch.lap()
        with self._pause():
            super().save_checkpoint(model, trial)
        self.stopwatch.start()

    def _pause(self):
        return contextlib.nullcontext() if self.pace is None else self.pace.pause()


def name_special_tokens(config, tokenizer) -> None:
    """Set the ids of [PAD], [CLS] and [SEP] in a model's config to those of the tokenizer, as far as it has them."""
    for name in ("pad_token_id", "cls_token_id", "sep_token_id"):
        before, own = getattr(config, name), getattr(tokenizer, name, None)
        if own is None or before == own:
            continue
        if before is not None:
            logger.warning(
                f"`{name}` is {before} in the model and {own} in the tokenizer: using that of the tokenizer"
            )
        setattr(config, name, own)


def step_difficulty(outputs, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`discriminator_auc` and `generator_equal_rate` of a training step, without host-device synchronization."""
    labels, mask = outputs.rtd_labels, inputs.get("attention_mask")
    real = labels if mask is None else labels.masked_fill(mask == 0, -1)
    measured = {"discriminator_auc": roc_auc(outputs.logits.detach().reshape(-1), real.reshape(-1))}
    if (mlm_labels := inputs.get("mlm_labels")) is not None:
        chosen = mlm_labels != -100
        measured["generator_equal_rate"] = (chosen & (labels == 0)).sum() / chosen.sum().clamp_min(1)
    return measured


class Means:
    """Means of numbers over the micro-steps since the last log line, without host-device synchronization."""

    def __init__(self):
        self._restart()

    def _restart(self):
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: Counter[str] = Counter()

    def __bool__(self):
        return bool(self._sums)

    def add(self, values: dict[str, torch.Tensor]) -> None:
        """Add the numbers of one micro-step, tensors of shape `()`, by name."""
        for name, value in values.items():
            # The first sum, 0 + value, is a copy: a captured step writes its next outputs to the same memory.
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._counts.update(values.keys())

    def take(self, processes: int) -> dict[str, float]:
        """Return the means over all `processes`, which must have added the same names, and reset them."""
        sums, counts = all_reduce(torch.stack(list(self._sums.values()))), self._counts
        means = {name: total / counts[name] / processes for name, total in zip(self._sums, sums.tolist(), strict=True)}
        self._restart()
        return means


class Stopwatch:
    """Measures time and tokens of training, without evaluation and saving."""

    def __init__(self):
        self.tokens = 0
        self.total_tokens = 0
        self.total_seconds = 0.0
        self._started = time.perf_counter()

    def start(self):
        """Discard the time since the last lap, which was not training."""
        self._started = time.perf_counter()

    def lap(self) -> float:
        """Tokens per second since the last lap or start. Time without any tokens is discarded."""
        seconds = time.perf_counter() - self._started if self.tokens else 0.0
        speed = self.tokens / max(seconds, 1e-9)
        self.total_tokens += self.tokens
        self.total_seconds += seconds
        self.tokens = 0
        self.start()
        return speed
