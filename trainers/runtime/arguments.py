"""Arguments of a pre-training or fine-tuning run, beside the fields of the model's config."""

import importlib.util
import math
import os
from dataclasses import dataclass, field, fields

import torch
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
from torch.distributed.fsdp import StateDictType
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames, ParallelMode
from transformers.utils import is_torch_bf16_gpu_available

from . import cpu_kernels
from .compatibility import arguments_as
from .depths import AUTO, DepthSchedule
from .muon import MUON
from .optimization import ELECTRA_SCHEDULE
from .pace import ENDLESS, schedule_by_progress, seconds_of


# The help texts that come with TrainingArguments; redefining a field's default would lose its text.
INHERITED = {f.name: dict(f.metadata) for f in fields(TrainingArguments)}


# What fields of TrainingArguments must be that it does not check itself: name, words, test.
_BOUNDS = (
    *((name, "a number of at least 0", lambda x: 0 <= x < math.inf)
      for name in ("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon", "warmup_steps")),
    *((name, "a number from 0 to below 1", lambda x: 0 <= x < 1) for name in ("adam_beta1", "adam_beta2")),
    *((name, "at least 1", lambda x: x >= 1)
      for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
                   "eval_accumulation_steps", "save_total_limit")),
    *((name, "a number above 0", lambda x: 0 < x < math.inf)
      for name in ("logging_steps", "save_steps", "eval_steps")),
    *((name, "at least 0", lambda x: x >= 0) for name in ("dataloader_num_workers", "eval_delay")),
    *((name, "from 0 to 4294967295", lambda x: 0 <= x < 2**32) for name in ("seed", "data_seed")),
    ("num_train_epochs", "a finite number", math.isfinite),
)  # fmt: skip


@dataclass
class ElectraTrainingArguments(TrainingArguments):
    """[`TrainingArguments`] with ELECTRA's optimizer as the default: `adam_epsilon` and `weight_decay` are those of
    google-research/electra (`model/optimization.py`). `report_to` is TensorBoard where it is installed. `bf16` may
    also be `"auto"`, `optim` `"muon"`, and `lr_scheduler_type` [`ELECTRA_SCHEDULE`].

    Raises:
        ValueError: for a number that none can train with, such as a learning rate of NaN or a batch of 0 sequences;
            for an unknown optimizer, Muon with what it does not go with, or sharding that cannot be.
    """

    _argument_group_name = "training (fields of transformers.TrainingArguments)"

    optim: str = field(
        default=TrainingArguments.optim,
        metadata={
            "help": "`muon`: Muon for the matrices of the layers, ELECTRA's Adam for everything else, at one learning "
            "rate. Or one of transformers' OptimizerNames, of which adamw_torch[_fused] is ELECTRA's Adam."
        },
    )
    muon_momentum: float = field(default=0.95, metadata={"help": "Momentum of Muon, with `--optim muon`."})
    adam_epsilon: float = field(default=1e-6, metadata=INHERITED["adam_epsilon"])
    weight_decay: float = field(default=0.01, metadata=INHERITED["weight_decay"])
    report_to: None | str | list[str] = field(default=None, metadata=INHERITED["report_to"])
    bf16: bool = field(
        default=False,
        metadata={
            "help": "Train in bf16 (autocast). `auto`: only where the device has instructions for it, because "
            "bf16 is many times slower than fp32 on other processors."
        },
    )
    lr_scheduler_type: str = field(
        default="linear",
        metadata={
            "help": "The learning rate schedule: one of Transformers' schedules, or `electra`, ELECTRA's own, "
            "lr * (1 - t/T) * min(1, t/W) after t of T steps with a warm-up of W."
        },
    )
    cpu_kernels: bool = field(
        default=True,
        metadata={
            "help": "On a CPU, use faster matrix products and dropout than PyTorch's own where available "
            "(`trainers/runtime/cpu_kernels.py`)."
        },
    )
    adam_bias_correction: bool = field(
        default=False,
        metadata={"help": "Correct Adam's bias, unlike ELECTRA. Applies to `--optim adamw_torch[_fused]`."},
    )

    def __post_init__(self):
        for name, bounds, holds in _BOUNDS:
            if isinstance(value := getattr(self, name), int | float) and not holds(value):
                raise ValueError(f"`{name}` must be {bounds}, got {value}")
        if self.report_to is None:
            self.report_to = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
        # transformers refuses bf16 without a GPU unless it is told that the CPU is meant.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.bf16 == "auto":
            able = cpu_kernels.multiplies_bf16() if self.use_cpu else is_torch_bf16_gpu_available()
            self.bf16 = able and not self.fp16
        if isinstance(self.fsdp, str) and self.fsdp.lower() in ("true", "false"):
            self.fsdp = self.fsdp.lower() == "true"  # as recipes say it, and every other switch
        self._check_optimizer()
        own = {"optim": MUON, "lr_scheduler_type": ELECTRA_SCHEDULE}
        ours = [name for name, value in own.items() if getattr(self, name) == value]
        if self.accelerator_config is None and self.dataloader_pin_memory and not self.use_cpu:
            self.accelerator_config = {"non_blocking": True}  # batches go to the device while it computes
        with arguments_as(self, **{name: getattr(TrainingArguments, name) for name in ours}):
            super().__post_init__()
        self.sharding()

    def _check_optimizer(self) -> None:
        if self.optim not in (names := [MUON, *(name.value for name in OptimizerNames)]):
            raise ValueError(f"`optim` must be one of {', '.join(names)}, got {self.optim}")
        if not 0 <= self.muon_momentum < 1:
            raise ValueError(f"`muon_momentum` must be in [0, 1), got {self.muon_momentum}")
        if self.optim != MUON:
            return
        if self.adam_bias_correction:
            raise ValueError("`adam_bias_correction` must be False with `optim` muon, got True")
        if self.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
            raise ValueError(
                "`optim` must not be muon with DeepSpeed, which cuts matrices into vectors; use FSDP2, or adamw_torch"
            )

    def conditions(self) -> dict[str, str]:
        """What a report says of how a run computed: `precision`, and `hardware`."""
        threads = torch.get_num_threads()
        processor = f"{threads} CPU thread{'s' if threads > 1 else ''}"
        return {
            "precision": "bf16 autocast" if self.bf16 else "fp16 autocast" if self.fp16 else "fp32",
            "hardware": torch.cuda.get_device_name() if self.device.type == "cuda" else processor,
        }

    def sharding(self) -> FullyShardedDataParallelPlugin | None:
        """How FSDP2 shards the model, as `fsdp_config` or `accelerate launch` says; `None` without FSDP.

        Raises:
            ValueError: for FSDP in one process, of version 1, or with settings that would cost a whole model.
        """
        if not (self.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")):
            return None
        if self.parallel_mode != ParallelMode.DISTRIBUTED:
            raise ValueError("`fsdp` needs several processes; start it with torchrun")
        settings = self.fsdp_plugin_args or {}
        if (version := int(settings.get("fsdp_version") or os.environ.get("FSDP_VERSION", "1"))) != 2:
            raise ValueError(f"`fsdp_config`: `version` must be 2, got {version}")
        plugin = FullyShardedDataParallelPlugin(**settings)
        # A checkpoint holds a whole model; and every process loads all of a frozen generator.
        needed = {"state_dict_type": StateDictType.FULL_STATE_DICT, "cpu_ram_efficient_loading": False}
        for name, value in needed.items():
            if getattr(plugin, name) != value:
                raise ValueError(f"`fsdp_config`: `{name}` must be {value}, got {getattr(plugin, name)}")
        return plugin


@dataclass
class ElectraEarlyExitTrainingArguments(ElectraTrainingArguments):
    """Arguments of a pre-training: [`ElectraTrainingArguments`] and the schedule of the exits.

    Defaults that differ: `learning_rate`, `warmup_steps` and `max_steps` are those of google-research/electra
    (`configure_pretraining.py`); `dataloader_drop_last` is true, `ddp_find_unused_parameters` and
    `logging_nan_inf_filter` false.

    Raises:
        ValueError: if `exit_warmup` or `exit_cooldown` are not shares, or leave no step for exits; for a `train_time`
            or a `depth_schedule` that is none, or goes with nothing that there is.
    """

    learning_rate: float = field(default=5e-4, metadata=INHERITED["learning_rate"])
    warmup_steps: float = field(default=10_000, metadata=INHERITED["warmup_steps"])
    max_steps: int = field(default=1_000_000, metadata=INHERITED["max_steps"])
    dataloader_drop_last: bool = field(
        default=True,
        metadata={
            "help": "Skip the sequences at the end of an epoch that do not fill a batch of all processes, other ones "
            "every epoch. Otherwise, several processes repeat sequences to fill it, and a single one has a smaller "
            "batch. Evaluation skips none."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Leave losses that are no numbers out of the logged mean. A run stops at one anyway, and looking "
            "for them waits for the device in every step."
        },
    )
    # Every parameter takes part in every step.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata=INHERITED["ddp_find_unused_parameters"])
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Start from a model, a folder or Hub id: a BERT, an ELECTRA, or one of ours. Tokenizer and sizes "
            "are its own; what it lacks, such as a generator, is new."
        },
    )
    continue_from: str | None = field(
        default=None,
        metadata={
            "help": "Train a finished run for --max_steps more, in another output folder: its weights, tokenizer and "
            "optimizer's moments go on, with a warm restart of the learning rate; the text may be another."
        },
    )
    generator_init_from: str | None = field(
        default=None,
        metadata={
            "help": "Where --init_from is an ELECTRA: the generator that it was trained with, folder or Hub id."
        },
    )
    corpus_init: bool = field(
        default=False,
        metadata={
            "help": "Start embeddings and attention from statistics of the training text instead of at random "
            "(`trainers/pretraining/initialization.py`): small models learn millions of tokens sooner."
        },
    )
    train_time: str | None = field(
        default=None,
        metadata={
            "help": "Train for this time, such as 2h or 90min, instead of a number of steps: the run plans its steps "
            "by what they take, evaluations and checkpoints included, and the schedule of the learning rate ends with "
            "the time. `warmup_steps` keep their share of the `max_steps` that they were given with."
        },
    )
    depth_schedule: str | None = field(
        default=None,
        metadata={
            "help": "Start shallow and grow: rising depths with their shares of the run, such as 2:0.15,4:0.55,8, of "
            "which the last is --num_hidden_layers (`trainers/pretraining/depth.py`). `auto`: half of the layers or "
            "fewer at first, and more when short forks of the run find that those lower the held-out loss faster; it "
            "may end with fewer than --num_hidden_layers."
        },
    )
    depth_growth: str = field(
        default="identity",
        metadata={
            "help": "How layers begin that a --depth_schedule adds: `stack`, as copies of the others on top of them; "
            "`interleave`, each as a copy of the layer below; `identity`, as those on top, but with the last "
            "projections of attention and feed-forward at 0, so that the deeper model starts where the other was.",
            "choices": ["stack", "interleave", "identity"],
        },
    )
    model_license: str | None = field(
        default=None, metadata={"help": "License for the model card, such as apache-2.0."}
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Prepare the text and train a few steps, report what the run would be and how long it would take, "
            "and leave no run behind."
        },
    )
    profile_step: int | None = field(
        default=None,
        metadata={
            "help": "Record ten steps from this one on with torch.profiler, log where their time went, and leave the "
            "trace in `profile_trace.json`."
        },
    )
    exit_loss_warmup: float = field(
        default=0.3,
        metadata={"help": "Share of the steps over which the weight of the exit heads' loss rises from 0."},
    )
    exit_warmup: float = field(
        default=0.1, metadata={"help": "Share of the steps at the start that run at full depth for every token."}
    )
    exit_cooldown: float = field(
        default=0.3, metadata={"help": "Share of the steps at the end that run at full depth for every token."}
    )
    generator_folder: str | None = field(
        default=None,
        metadata={
            "help": "For generator_type `frozen`, the folder of a masked language model with the same vocabulary (a "
            "run of this package, or any that Transformers loads); for `cached`, what cache-replacements wrote."
        },
    )
    reference_folder: str | None = field(
        default=None,
        metadata={
            "help": "Folder of a masked language model with the same vocabulary: evaluation reports how likely it "
            "finds the generator's replacements."
        },
    )
    generator_temperature: list[float] = field(
        default_factory=lambda: [2.0, 1.0],
        metadata={"help": "The temperature of generator_type `frozen` at the first step and at the last."},
    )

    def __post_init__(self):
        if self.train_time is not None:
            self._end_by_the_clock()
        self._check_stages()
        super().__post_init__()
        if self.train_time is not None:
            schedule_by_progress(self)
        if self.profile_step is not None and self.profile_step < 1:
            raise ValueError(f"`profile_step` must be at least 1, got {self.profile_step}")
        for name in ("exit_warmup", "exit_cooldown", "exit_loss_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be a share between 0 and 1, got {getattr(self, name)}")
        if self.exit_warmup + self.exit_cooldown > 1:
            raise ValueError(
                "`exit_warmup` and `exit_cooldown` must not exceed 1 together, "
                f"got {self.exit_warmup} and {self.exit_cooldown}"
            )

        if not (len(self.generator_temperature) == 2 and min(self.generator_temperature) > 0):
            raise ValueError(f"`generator_temperature` must be two numbers above 0, got {self.generator_temperature}")

    def _end_by_the_clock(self) -> None:
        """Let the steps have no end of their own, and the warm-up be a share."""
        seconds_of(self.train_time)
        for name in ("logging_steps", "save_steps", "eval_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1 with `train_time`, which knows no number of steps yet, "
                                 f"got {value}")  # fmt: skip
        if self.warmup_steps >= 1:
            self.warmup_steps = self.warmup_steps / self.max_steps if self.max_steps > 0 else math.inf
        if not self.warmup_steps < 1:
            raise ValueError("`warmup_steps` must be below 1 with `train_time`, a share of it, or below `max_steps`")
        self.max_steps = ENDLESS

    def _check_stages(self) -> None:
        if self.depth_growth not in (choices := ("stack", "interleave", "identity")):
            raise ValueError(f"`depth_growth` must be one of {', '.join(choices)}, got {self.depth_growth}")
        if self.depth_schedule is not None:
            if self.depth_schedule != AUTO:
                DepthSchedule.parse(self.depth_schedule)
            if self.load_best_model_at_end:
                raise ValueError("`load_best_model_at_end` must be False with `depth_schedule`: the best of a shallow "
                                 "stage is another model")  # fmt: skip
        for name in ("train_time", "depth_schedule"):
            if getattr(self, name) is None:
                continue
            if self.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
                raise ValueError(
                    f"`{name}` must be left out with DeepSpeed, which keeps its own optimizer and schedule"
                )
        if self.depth_schedule is not None and (self.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")):
            raise ValueError(
                "`depth_schedule` must be left out with FSDP, whose checkpoints hold no optimizer of ours"
            )

    @property
    def mask_seed(self) -> int:
        """Seed of the masks: that of the data, where one is given."""
        return self.seed if self.data_seed is None else self.data_seed

    def exits_active(self, step: int, max_steps: int) -> bool:
        """Whether tokens exit in optimizer step `step` (counted from 0) of a run of `max_steps`."""
        return round(self.exit_warmup * max_steps) <= step < max_steps - round(self.exit_cooldown * max_steps)
