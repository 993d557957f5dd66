"""A `Trainer` for replaced-token detection with early exits. Read as a list of overrides, each with its reason."""

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
from ..errors import DivergenceError, WriteError
from ..generators.difficulty import Difficulty, DifficultyCallback
from ..generators.masked_lm import MaskedLanguageModel
from ..runtime import cpu_kernels
from ..runtime.arguments import ElectraEarlyExitTrainingArguments, ElectraTrainingArguments
from ..runtime.checkpoints import commit, damage, newest_intact
from ..runtime.compatibility import CompatibleTrainer, attention_of, completed, switch_fsdp_on
from ..runtime.depths import FoundDepths
from ..runtime.distributed import any_rank, naming_dead_workers, run_on_main_and_broadcast
from ..runtime.files import INCOMPLETE, naming_write_errors, read_json, share_weights, tolerated, write_json
from ..runtime.flops import active_tokens, step_flops
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

# A loss above this many times that of uniform predictions does not recover.
EXPLODED = 100
GENERATOR_FILE, PACE_FILE = "generator.safetensors", "pace.json"
LOSSES = ("discriminator_loss", "exit_loss", "gain_loss", "generator_loss")
# What is no loss is measured in every tenth step, or in those that are logged where there are more of them: it takes
# as many kernels as several layers.
MEASURED_EVERY = 10


# What reports to somebody: the callbacks of `report_to`, and the terminal's.
REPORTS = (*INTEGRATION_TO_CALLBACK.values(), ProgressCallback, PrinterCallback)


def _outlive_reports(callback) -> None:
    if isinstance(callback, REPORTS):
        outlived(callback)


class ElectraTrainer(CompatibleTrainer):
    """What pre-training and fine-tuning do alike. `args` may be plain [`~transformers.TrainingArguments`]: what they
    lack gets our defaults. So do all of them, where there are none."""

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
        """Resumes (`True`) from the newest checkpoint that is not damaged. On SIGTERM and on the first Ctrl-C a
        checkpoint is written at the end of the step, and [`callbacks.Preempted`] or [`callbacks.Interrupted`] raised;
        a second Ctrl-C ends it at once."""
        resume_from_checkpoint = self.newest(resume_from_checkpoint)
        if self.args.bf16 and self.args.device.type == "cpu" and not cpu_kernels.multiplies_bf16():
            logger.warning("this processor has no instructions for bf16 and takes many times as long: `--bf16 auto`")
        if isinstance(resume_from_checkpoint, str) and self.is_world_process_zero():
            step = TrainerState.load_from_json(os.path.join(resume_from_checkpoint, TRAINER_STATE_NAME)).global_step
            logger.info(f"{self.args.output_dir} continues from step {step}: {resume_from_checkpoint}")
        workers = naming_dead_workers("--dataloader_num_workers")
        with self.kernels(), self.preemption, quiet_event_writers(), workers:
            output = super().train(resume_from_checkpoint, *args, **kwargs)
            if self.preemption.requested():
                saved = run_on_main_and_broadcast(lambda: self.checkpoint_folder(None).is_dir())
                raise self.preemption.stop(self.state.global_step if saved else None)
        return output

    def newest(self, checkpoint: str | bool | None) -> str | bool | None:
        """For `True` the newest checkpoint that is not damaged; or `True`, where there is none, for the library's own
        message."""
        if checkpoint is not True:
            return checkpoint
        return run_on_main_and_broadcast(lambda: newest_intact(Path(self.args.output_dir))) or True

    def between_steps(self, model, trial):
        """The moment to end when told to. An evaluation that SIGTERM meets is not finished."""
        if self.preemption.requested_before():
            self.control.should_training_stop = True
            missing = self.args.should_save and damage(self.checkpoint_folder(trial)) is not None
            if any_rank(missing, self.args.device):
                self.save_checkpoint(model, trial)

    def evaluation_loop(self, *args, **kwargs):
        with self.kernels():
            return super().evaluation_loop(*args, **kwargs)

    def kernels(self):
        """The kernels that this device computes fastest with, as a context."""
        return cpu_kernels.use(self.args.cpu_kernels and self.args.device.type == "cpu")

    def get_optimizer_cls_and_kwargs(self, args, model=None):
        """ELECTRA's Adam in the place of torch's, and Muon; any other `--optim` is the user's choice and stays."""
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
        """ELECTRA's own schedule, which the library does not know, too."""
        if self.lr_scheduler is None and self.args.lr_scheduler_type == ELECTRA_SCHEDULE:
            self.own_scheduler(
                electra_schedule(optimizer or self.optimizer, self.args.warmup_steps, num_training_steps)
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def save_checkpoint(self, model, trial):
        """A full disk costs this checkpoint and nothing else."""
        final = self.checkpoint_folder(trial)
        try:
            self._write_checkpoint(model, trial, final)
        except WriteError as error:
            shutil.rmtree(final.parent / INCOMPLETE, ignore_errors=True)
            logger.error(f"{error}; the older ones are untouched, and training goes on")
        else:
            if self.args.push_to_hub:
                with tolerated(f"the push of {final}"):
                    self.push_checkpoint(final)
            if self.args.should_save:
                with tolerated(f"the removal of checkpoints beyond the last {self.args.save_total_limit}"):
                    rotate_checkpoints(
                        str(final.parent), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
                    )

    def _write_checkpoint(self, model, trial, final: Path):
        """Under another name, and renamed to `final` when every process has written its part."""
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
    """[`~transformers.Trainer`] that runs the joint objective, schedules the exits and accounts for their cost.

    Args: those of [`~transformers.Trainer`], and `generator`, a [`generators.StepGenerator`] that corrupts the batches
    where neither the collator nor the model does. `processing_class` is the tokenizer (left out: the collator's), by
    which the model's config learns the ids of the tokens that must not exit. `data_collator` and `generator`
    default to what the model's `generator_type` names ([`collator.build_collator`]), for sequences of `max_seq_length`
    tokens (left out: the longest of each batch), anew for each model of a `model_init`; and `compute_metrics` to
    [`metrics.replaced_token_detection`].

    Logged in addition to the loss: its parts; measured in every tenth step (or in each logged one, where these are
    more), `discriminator_auc`, the ROC-AUC of the final head on the training batches, and `generator_equal_rate`, the
    share of the chosen tokens whose replacement was the original;
    `tokens_per_second` of training (evaluation and saving left out); `exits_active`; `kept_layer_<n>`, the share of
    tokens computed by layer n; and as running means over the last hundred or so steps, for each exit layer n:
    `exit_auc_layer_<n>`, the ROC-AUC of its head, and `exit_recall_left_layer_<n>`, the share of the replaced tokens
    that exited which its head told as such (at the base rate). Evaluation adds what [`difficulty.Difficulty`] measures
    of the generator.
    `total_flos` in `trainer_state.json` counts the operations really executed.
    """

    args: ElectraEarlyExitTrainingArguments
    model: torch.nn.Module
    arguments_class = ElectraEarlyExitTrainingArguments
    # What a `train_time` is measured by, in seconds.
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
                raise ValueError("`depth_schedule` makes an optimizer for every stage: leave out `optimizers`")
            self.depths = check_depths(self.args, self.model_config)
            if isinstance(self.depths, FoundDepths) and self.eval_dataset is None:
                raise ValueError("`depth_schedule` auto compares depths by held-out text: give an `eval_dataset`")
            self.add_callback(StageCallback(self))
        if self.args.profile_step is not None:
            self.add_callback(StepProfileCallback(self, self.args.profile_step))
        self.add_callback(DifficultyCallback(self.tokens_of_step))

    def adopt(self, model):
        """Make what follows from the model, and tell its config the tokenizer's special tokens.

        Raises:
            ValueError: if the tokenizer has ids that the model does not embed, or there must be one and is none.
        """
        config = self.accelerator.unwrap_model(model).config
        if self.tokenizer is not None:
            needed = max(self.tokenizer.get_vocab().values()) + 1
            if needed > config.vocab_size:
                raise ValueError(f"`vocab_size` is {config.vocab_size}, and the tokenizer's ids need {needed}")
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
        """As [`ElectraTrainer.train`]; with a `train_time` until that is over, with a `depth_schedule` stage by stage:
        `model` is that of the stage then, and at the end that of the last."""
        if self.args.train_time is not None:
            self.pace = Pace(seconds_of(self.args.train_time), self.clock)
        if self.depths is None:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        checkpoint = self.newest(resume_from_checkpoint or None)
        run_stage = super().train
        return train_in_stages(self, checkpoint, lambda start: run_stage(start, *args, **kwargs))

    def create_optimizer(self, *args, **kwargs):
        """A fresh one with the `moments` of another, where that file is set."""
        if self.optimizer is None:
            super().create_optimizer(*args, **kwargs)
            if self.moments is not None:
                inherit_moments(self.optimizer, self.moments)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        """One that follows the clock, where the clock ends the run."""
        if self.lr_scheduler is None and self.pace is not None:
            self.own_scheduler(paced_schedule(optimizer or self.optimizer, self.args, self.pace))
        return super().create_scheduler(num_training_steps, optimizer)

    def plan(self) -> None:
        """Plan by the clock how many steps there will be, the same in every process."""
        step, end, later = self.state.global_step, 1.0, 0.0
        if self.depths is not None:
            end = self.depths.ends[self.stage]
            ends, cost = self.depths.ends, self.cost_of
            shares = {n: ends[n] - ends[n - 1] for n in range(self.stage + 1, len(ends))}
            if not isinstance(self.depths, FoundDepths):  # which may well stay as deep as it is
                shares = {n: share * cost() / cost(self.depths.depths[n]) for n, share in shares.items()}
            later = sum(shares.values()) / max(1 - end, 1e-9)

        def decide() -> dict:
            self.pace.plan(step, end, later)
            return self.pace.state_dict()

        self.pace.load_state_dict(run_on_main_and_broadcast(decide))
        self.state.max_steps = self.pace.max_steps

    def cost_of(self, depth: int | None = None) -> float:
        """Operations of a sequence's step at full depth, of this model or of one with as many layers."""
        config = self.model_config if depth is None else at_depth(self.model_config, depth)
        return step_flops(config, 1, self.sequence_length, False).total

    def stage_of(self, checkpoint: str | None) -> int:
        """The number of the stage with which a run goes on from a checkpoint."""
        if checkpoint is None:
            return 0
        state = read_json(Path(checkpoint, TRAINER_STATE_NAME))
        if self.pace is None:
            return self.depths.stage_after(state["global_step"], state["max_steps"])
        pace = Pace(self.pace.budget)
        pace.load_state_dict(read_json(Path(checkpoint, PACE_FILE)))
        return self.depths.stage_at(pace.progress(state["global_step"]))

    def decides_at(self, checkpoint: Path) -> bool:
        """Whether a stage begins at a checkpoint."""
        if self.stage == 0:
            return False
        state = read_json(checkpoint / TRAINER_STATE_NAME)
        if self.pace is None:
            return state["global_step"] == self.depths.last_step(self.stage - 1, state["max_steps"])
        pace = Pace(self.pace.budget)
        pace.load_state_dict(read_json(checkpoint / PACE_FILE))
        return pace.progress(state["global_step"]) == self.depths.ends[self.stage - 1]

    def stage_end(self) -> int | None:
        """After which step the model grows; `None` in the last stage."""
        if self.depths is None or self.stage == len(self.depths.ends) - 1:
            return None
        if self.pace is None:
            return self.depths.last_step(self.stage, self.state.max_steps)
        return self.pace.steps[1]

    def replace_model(self, model) -> None:
        """Go on with another model of the same kind, and an optimizer and a schedule of its own."""
        model.set_attn_implementation(attention_of(self.accelerator.unwrap_model(self.model)))
        self.model = self.model_wrapped = model.to(self.args.device)
        self.optimizer = self.lr_scheduler = None
        # Of steps that were logged, or of a fork; and what a step of the other model costs.
        self._guards.settle()
        self._means = Means()
        self._batches.clear()
        self._step_flops.clear()
        self.stopwatch.tokens = 0

    def optimizer_names(self, model) -> list[str]:
        """The names of a model's parameters in the order in which its optimizer numbers them."""
        before, self.optimizer = self.optimizer, None
        try:
            groups = self.create_optimizer(model).param_groups
        finally:
            self.optimizer = before
        names = {parameter: name for name, parameter in model.named_parameters()}
        return [names[parameter] for group in groups for parameter in group["params"]]

    # ---- Training ----

    def columns_beside_the_model(self):
        """Those that the collator's generator reads."""
        return list(getattr(getattr(self.data_collator, "replacements", None), "columns", ()))

    def get_train_dataloader(self):
        """A stream has a loader of its own: accelerate would leave most of what a process reads to the others."""
        if isinstance(self.train_dataset, PackedStream):
            return self.train_dataset.loader(self.train_batch_size, self.data_collator, self.args.mask_seed)
        return super().get_train_dataloader()

    def exits_active(self) -> bool:
        """Whether tokens exit in the current training step."""
        return self.model_config.has_exit_heads and self.args.exits_active(
            self.state.global_step, self.state.max_steps
        )

    @property
    def sequence_length(self) -> int:
        """Tokens a sequence, of which the exits keep shares."""
        return getattr(self.data_collator, "max_seq_length", None) or self.model_config.max_position_embeddings

    def sequences_of_step(self) -> int:
        """Sequences of an optimizer step, of all processes."""
        return self.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def tokens_of_step(self) -> int:
        """Tokens of an optimizer step, of all processes; padding counts."""
        return self.sequences_of_step() * self.sequence_length

    @property
    def model_config(self):
        return self.accelerator.unwrap_model(self.model).config

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own loss, with the exit policy of this step; evaluation is at full depth."""
        exits_active = model.training and self.exits_active()
        if "labels" in inputs and not inputs["labels"].numel():  # not made yet
            inputs = {name: value for name, value in inputs.items() if name != "labels"}
        masked = inputs
        if self.generator is not None and "labels" not in inputs:
            generator = self.generator if model.training else self.generator.for_evaluation(model, inputs)
            progress = self.state.global_step / self.state.max_steps if model.training else 1.0
            with self.accelerator.autocast():  # which covers the model in training alone
                inputs = generator.corrupt(inputs, progress)
        outputs = model(
            **inputs,
            exit_policy=self.model_config.exit_policy if exits_active else "none",
            exit_loss_scale=self._exit_loss_scale() if model.training else None,
        )
        if model.training:
            self._exits_were_active = exits_active  # logging comes after the step is counted
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
        """In the steps of [`MEASURED_EVERY`], take in what a log line has beside the losses."""
        every = min(MEASURED_EVERY, self.state.logging_steps)
        if (self.state.global_step + 1) % every or outputs.rtd_labels is None:
            return
        self._means.add(step_difficulty(outputs, inputs))
        if outputs.exit_selections is not None and self.model_config.exit_policy != "topk":
            state = self.accelerator.unwrap_model(self.model).exit_state
            state.update(outputs, outputs.rtd_labels, inputs.get("attention_mask"), steps=every)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Stop at a NaN or exploding loss: on a CPU before it reaches the weights, on any other device when it is
        known there, and before it reaches a log line or a checkpoint."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._batches.append(inputs)
        step, batches, parts = self.state.global_step + 1, self._batches, self.current_gradient_accumulation_steps

        def look(value):
            if not value * parts <= EXPLODED * self._uninformed_loss():  # so that NaN is caught
                self._stop(f"the loss is {value * parts:.4g}", step, batches)

        self._guards.watch(loss, look)
        return loss

    def check_grad_norm(self, grad_norm):
        """Stop, as at a loss, at a NaN or infinite gradient. With fp16, such steps are common, and skipped."""
        step, batches, self._batches = self.state.global_step + 1, self._batches, []

        def look(value):
            if not math.isfinite(value):
                self._stop(f"the gradient norm is {value}", step, batches)

        if not self.args.fp16:
            self._guards.watch(grad_norm, look)

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
        with tolerated(f"the writing of {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path)
        raise DivergenceError(
            f"{reason} in step {step}; the batch is saved in {path}; the checkpoints are from before it. "
            "A lower learning rate, a longer warm-up or a lower max_grad_norm may help"
        )

    def _exit_loss_scale(self) -> torch.Tensor | None:
        """Rises to 1 while the exit heads' loss warms up. A tensor always, so that nothing is compiled anew then."""
        if not self.model_config.has_exit_heads:
            return None
        steps = round(self.args.exit_loss_warmup * self.state.max_steps)
        scale = min(1.0, (self.state.global_step + 1) / (steps + 1))
        return torch.full((), scale, device=self.args.device)  # filled there: copied, it would be waited for

    def floating_point_ops(self, inputs) -> float:
        """Operations executed in one training step of this batch (the embeddings' look-ups are none)."""
        case = *inputs["input_ids"].shape, self.exits_active()
        if case not in self._step_flops:
            self._step_flops[case] = step_flops(self.model_config, *case).total + self.flops_beside(*case[:2])
        return self._step_flops[case]

    def flops_beside(self, rows: int, length: int) -> float:
        """Operations of the generator in a training step, where it is no part of the model."""
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
        if self.pace is not None and "train_steps_per_second" in logs:  # by how many steps the library takes it to be
            batch = self.get_total_train_batch_size(self.args)
            logs["train_samples_per_second"] = round(logs["train_steps_per_second"] * batch, 3)
        super().log(logs, start_time)

    def _exit_logs(self) -> dict[str, float]:
        config, length = self.model_config, self.sequence_length
        if not config.has_exit_heads:
            return {}
        counts = active_tokens(config, length, self._exits_were_active)
        shares = {f"kept_layer_{layer}": round(n / length, 4) for layer, n in enumerate(counts, 1)}
        state = self.accelerator.unwrap_model(self.model).exit_state
        measured = {"auc": state.auc, "recall_left": 1 - state.error_on_left()[:, 1]}
        exits = {
            f"exit_{name}_layer_{layer}": round(value, 4)
            for name, values in measured.items()
            for layer, value in zip(config.exit_layers, values.tolist(), strict=True)
        }
        return {"exits_active": float(self._exits_were_active), **shares, **exits}

    def throughput(self) -> float:
        """Tokens a second of this session's training, evaluation and saving left out. Padding counts."""
        return self.stopwatch.total_tokens / max(self.stopwatch.total_seconds, 1e-9)

    # ---- Evaluation ----

    def evaluation_loop(self, *args, **kwargs):
        """The same corruption at every evaluation, and no trace of it in the training run's random state."""
        self._guards.settle()
        self.stopwatch.lap()
        epoch = int(getattr(self.data_collator, "_epoch", torch.zeros(1)))
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with self._pause(), torch.random.fork_rng(devices):
            torch.manual_seed(self.args.seed)
            if hasattr(self.data_collator, "set_epoch"):
                self.data_collator.set_epoch(0)
            self._difficulty.restart()
            try:
                output = super().evaluation_loop(*args, **kwargs)
                self._difficulty.sums = self.accelerator.reduce(self._difficulty.sums.to(self.args.device)).cpu()
                prefix = kwargs.get("metric_key_prefix", "eval")
                output.metrics.update({f"{prefix}_{k}": value for k, value in self._difficulty.measures().items()})
                return output
            finally:
                if hasattr(self.data_collator, "set_epoch"):
                    self.data_collator.set_epoch(epoch)
                self.stopwatch.start()

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Full depth for every token.

        Returns:
            The loss; the logits (batch, sequence, 1 + exits): the final head's, then each exit head's; and the labels
            (batch, sequence): 1 replaced, 0 original, -100 padding.
        """
        inputs = self.prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        labels = outputs.rtd_labels
        if (mask := inputs.get("attention_mask")) is not None:
            labels = labels.masked_fill(mask == 0, -100)
        logits = torch.stack([outputs.logits, *(outputs.exit_logits or ())], dim=-1)
        return loss.detach(), logits.float(), labels

    # ---- Saving ----

    def save_beside_optimizer(self, checkpoint):
        """The state of a generator beside the model."""
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
        """Not counted as training time."""
        self._guards.settle()
        self.stopwatch.lap()
        with self._pause():
            super().save_checkpoint(model, trial)
        self.stopwatch.start()

    def _pause(self):
        return contextlib.nullcontext() if self.pace is None else self.pace.pause()


def name_special_tokens(config, tokenizer) -> None:
    """Set the ids of a model's [PAD], [CLS] and [SEP] to those of the tokenizer, where it has such a token."""
    for name in ("pad_token_id", "cls_token_id", "sep_token_id"):
        before, own = getattr(config, name), getattr(tokenizer, name, None)
        if own is None or before == own:
            continue
        if before is not None:
            logger.warning(f"`{name}` of the model is {before}, and the tokenizer's is {own}, which is taken")
        setattr(config, name, own)


def step_difficulty(outputs, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What one training step says of its generator, without waiting for the device."""
    labels, mask = outputs.rtd_labels, inputs.get("attention_mask")
    real = labels if mask is None else labels.masked_fill(mask == 0, -1)
    measured = {"discriminator_auc": roc_auc(outputs.logits.detach().reshape(-1), real.reshape(-1))}
    if (mlm_labels := inputs.get("mlm_labels")) is not None:
        chosen = mlm_labels != -100
        measured["generator_equal_rate"] = (chosen & (labels == 0)).sum() / chosen.sum().clamp_min(1)
    return measured


class Means:
    """Means, over the micro-steps since the last log line, of numbers on a device, which is not waited for."""

    def __init__(self):
        self._restart()

    def _restart(self):
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: Counter[str] = Counter()

    def __bool__(self):
        return bool(self._sums)

    def add(self, values: dict[str, torch.Tensor]) -> None:
        """Take in what one micro-step has of each name, a tensor `()`."""
        for name, value in values.items():
            # Added to 0 at first, and so a copy: a captured step writes its next outputs into the same memory.
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._counts.update(values.keys())

    def take(self, processes: int) -> dict[str, float]:
        """The means over as many processes, of which each took in the same names; and forget them."""
        sums, counts = all_reduce(torch.stack(list(self._sums.values()))), self._counts
        means = {name: total / counts[name] / processes for name, total in zip(self._sums, sums.tolist(), strict=True)}
        self._restart()
        return means


class Stopwatch:
    """Time and tokens of training alone."""

    def __init__(self):
        self.tokens = 0
        self.total_tokens = 0
        self.total_seconds = 0.0
        self._started = time.perf_counter()

    def start(self):
        """Forget the time since the last lap: it was not training."""
        self._started = time.perf_counter()

    def lap(self) -> float:
        """Tokens a second since the last lap or start; time in which no token was trained on is not counted."""
        seconds = time.perf_counter() - self._started if self.tokens else 0.0
        speed = self.tokens / max(seconds, 1e-9)
        self.total_tokens += self.tokens
        self.total_seconds += seconds
        self.tokens = 0
        self.start()
        return speed
