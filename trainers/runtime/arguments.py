"""Arguments of a pre-training or fine-tuning run, apart from the fields of the model's config."""

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


# Help texts of TrainingArguments. A field redefined with another default would lose its text otherwise.
INHERITED = {f.name: dict(f.metadata) for f in fields(TrainingArguments)}


# Bounds that TrainingArguments does not check itself: name, description, test.
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
    """[`TrainingArguments`] with ELECTRA's optimizer as the default.

    `adam_epsilon` and `weight_decay` default to the values of google-research/electra (`model/optimization.py`),
    `report_to` to TensorBoard if it is installed. Additional values are `"auto"` for `bf16`, `"muon"` for `optim`, and
    [`ELECTRA_SCHEDULE`] for `lr_scheduler_type`.

    Raises:
        ValueError: for a number out of range, such as a learning rate of NaN or a batch size of 0; for an unknown
            optimizer; for Muon with `adam_bias_correction` or DeepSpeed; for unsupported FSDP settings.
    """

    _argument_group_name = "training (fields of transformers.TrainingArguments)"

    optim: str = field(
        default=TrainingArguments.optim,
        metadata={
            "help": "`muon` (Muon for the weight matrices of the layers, ELECTRA's Adam for all other parameters, and "
            "one learning rate), or one of Transformers' OptimizerNames. adamw_torch[_fused] is ELECTRA's Adam."
        },
    )
    muon_momentum: float = field(default=0.95, metadata={"help": "Momentum of Muon, with `--optim muon`."})
    adam_epsilon: float = field(default=1e-6, metadata=INHERITED["adam_epsilon"])
    weight_decay: float = field(default=0.01, metadata=INHERITED["weight_decay"])
    report_to: None | str | list[str] = field(default=None, metadata=INHERITED["report_to"])
    bf16: bool = field(
        default=False,
        metadata={
            "help": "Train in bf16 (autocast). `auto`: only if the device has bf16 instructions; without them, bf16 "
            "is many times slower than fp32."
        },
    )
    lr_scheduler_type: str = field(
        default="linear",
        metadata={
            "help": "Learning rate schedule: one of Transformers' schedules, or `electra`, ELECTRA's own: "
            "lr * (1 - t/T) * min(1, t/W) after t of T steps, with W warm-up steps."
        },
    )
    cpu_kernels: bool = field(
        default=True,
        metadata={
            "help": "On a CPU, use faster matrix products and dropout than PyTorch's, where available "
            "(`trainers/runtime/cpu_kernels.py`)."
        },
    )
    adam_bias_correction: bool = field(
        default=False,
        metadata={"help": "Use Adam's bias correction, unlike ELECTRA. Only for `--optim adamw_torch[_fused]`."},
    )

    def __post_init__(self):
        for name, bounds, holds in _BOUNDS:
            if isinstance(value := getattr(self, name), int | float) and not holds(value):
                raise ValueError(f"`{name}` must be {bounds}, got {value}")
        if self.report_to is None:
            self.report_to = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
        # Without `use_cpu`, Transformers rejects bf16 on machines without a GPU.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.bf16 == "auto":
            able = cpu_kernels.multiplies_bf16() if self.use_cpu else is_torch_bf16_gpu_available()
            self.bf16 = able and not self.fp16
        if isinstance(self.fsdp, str) and self.fsdp.lower() in ("true", "false"):
            self.fsdp = self.fsdp.lower() == "true"  # the form of every switch in recipes
        self._check_optimizer()
        own = {"optim": MUON, "lr_scheduler_type": ELECTRA_SCHEDULE}
        ours = [name for name, value in own.items() if getattr(self, name) == value]
        if self.accelerator_config is None and self.dataloader_pin_memory and not self.use_cpu:
            self.accelerator_config = {"non_blocking": True}  # overlaps the transfer of batches with computation
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
                "`optim` must not be muon with DeepSpeed, which flattens matrices; use FSDP2, or adamw_torch"
            )

    def conditions(self) -> dict[str, str]:
        """The computing conditions for reports: `precision` and `hardware`."""
        threads = torch.get_num_threads()
        processor = f"{threads} CPU thread{'s' if threads > 1 else ''}"
        return {
            "precision": "bf16 autocast" if self.bf16 else "fp16 autocast" if self.fp16 else "fp32",
            "hardware": torch.cuda.get_device_name() if self.device.type == "cuda" else processor,
        }

    def sharding(self) -> FullyShardedDataParallelPlugin | None:
        """The FSDP2 settings of `fsdp_config` or `accelerate launch`; `None` without FSDP.

        Raises:
            ValueError: for FSDP in a single process, for FSDP1, or for an unsupported `state_dict_type` or
                `cpu_ram_efficient_loading`.
        """
        if not (self.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")):
            return None
        if self.parallel_mode != ParallelMode.DISTRIBUTED:
            raise ValueError("`fsdp` requires several processes; start the run with torchrun")
        settings = self.fsdp_plugin_args or {}
        if (version := int(settings.get("fsdp_version") or os.environ.get("FSDP_VERSION", "1"))) != 2:
            raise ValueError(f"`fsdp_config`: `version` must be 2, got {version}")
        plugin = FullyShardedDataParallelPlugin(**settings)
        # A checkpoint contains the full model, and every process loads all weights of a frozen generator.
        needed = {"state_dict_type": StateDictType.FULL_STATE_DICT, "cpu_ram_efficient_loading": False}
        for name, value in needed.items():
            if getattr(plugin, name) != value:
                raise ValueError(f"`fsdp_config`: `{name}` must be {value}, got {getattr(plugin, name)}")
        return plugin


@dataclass
class ElectraEarlyExitTrainingArguments(ElectraTrainingArguments):
    """Arguments of pre-training: [`ElectraTrainingArguments`] and the schedules of exits, depth and time.

    Changed defaults: `learning_rate`, `warmup_steps` and `max_steps` are those of google-research/electra
    (`configure_pretraining.py`); `dataloader_drop_last` is true; `ddp_find_unused_parameters` and
    `logging_nan_inf_filter` are false.

    Raises:
        ValueError: if `exit_warmup`, `exit_cooldown` or `exit_loss_warmup` is not a share, or the first two exceed 1
            together; for a malformed `train_time`, `depth_schedule`, `depth_growth`, `profile_step` or
            `generator_temperature`; for a combination of settings that is not supported.
    """

    learning_rate: float = field(default=5e-4, metadata=INHERITED["learning_rate"])
    warmup_steps: float = field(default=10_000, metadata=INHERITED["warmup_steps"])
    max_steps: int = field(default=1_000_000, metadata=INHERITED["max_steps"])
    dataloader_drop_last: bool = field(
        default=True,
        metadata={
            "help": "Drop the last incomplete batch of an epoch (different sequences in each epoch). Otherwise, a "
            "single process trains on the smaller batch, and several processes repeat sequences to fill it. "
            "Evaluation never drops sequences."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Exclude NaN and infinite losses from the logged mean. A run stops at such a loss anyway, and the "
            "filter costs a host-device synchronization in every step."
        },
    )
    # Every parameter is used in every step.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata=INHERITED["ddp_find_unused_parameters"])
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Start from the weights of this model, a folder or Hub id: BERT, ELECTRA, or a model of this "
            "package. Tokenizer and sizes come from the model; missing parts, such as a generator, are new."
        },
    )
    continue_from: str | None = field(
        default=None,
        metadata={
            "help": "Continue this finished run for --max_steps more, in a new output folder: with its weights, "
            "tokenizer and optimizer moments, and a warm restart of the learning rate. The text may differ."
        },
    )
    generator_init_from: str | None = field(
        default=None,
        metadata={"help": "Generator that the ELECTRA model of --init_from was trained with, a folder or Hub id."},
    )
    corpus_init: bool = field(
        default=False,
        metadata={
            "help": "Initialize embeddings and attention from statistics of the training text instead of at random "
            "(`trainers/pretraining/initialization.py`). Small models then learn from millions fewer tokens."
        },
    )
    train_time: str | None = field(
        default=None,
        metadata={
            "help": "Train for this wall-clock time, such as 2h or 90min, instead of a number of steps. The run "
            "estimates how many steps fit, evaluations and checkpoints included, and the learning rate schedule ends "
            "with the time. `warmup_steps` are converted to their share of `max_steps`."
        },
    )
    depth_schedule: str | None = field(
        default=None,
        metadata={
            "help": "Start shallow and grow: increasing depths with their shares of the run, such as 2:0.15,4:0.55,8; "
            "the last must be --num_hidden_layers (`trainers/pretraining/depth.py`). `auto`: start with at most half "
            "of the layers, and grow when short forks of the run show that a deeper model lowers the held-out loss "
            "faster; the run may end with fewer than --num_hidden_layers. In our runs, `auto` did not grow where "
            "depth paid off (docs/results/depth.md)."
        },
    )
    depth_growth: str = field(
        default="identity",
        metadata={
            "help": "How a --depth_schedule initializes added layers: `stack`, as copies of the existing layers, on "
            "top of them; `interleave`, each as a copy of the layer below; `identity`, as `stack`, but with output "
            "projections of attention and feed-forward at 0, so that the function is unchanged at first.",
            "choices": ["stack", "interleave", "identity"],
        },
    )
    model_license: str | None = field(
        default=None, metadata={"help": "License for the model card, such as apache-2.0."}
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Prepare the text, train a few steps, report the settings and the expected time of the run, and "
            "delete the output."
        },
    )
    profile_step: int | None = field(
        default=None,
        metadata={
            "help": "Profile ten steps from this one on with torch.profiler, log where their time went, and write the "
            "trace to `profile_trace.json`."
        },
    )
    exit_loss_warmup: float = field(
        default=0.3,
        metadata={"help": "Share of the steps over which the weight of the exit heads' loss increases from 0."},
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
            "run of this package, or any that Transformers can load); for `cached`, the output of cache-replacements."
        },
    )
    reference_folder: str | None = field(
        default=None,
        metadata={
            "help": "Folder of a masked language model with the same vocabulary. Evaluation reports the likelihood "
            "that it assigns to the generator's replacements."
        },
    )
    generator_temperature: list[float] = field(
        default_factory=lambda: [2.0, 1.0],
        metadata={"help": "Temperature of generator_type `frozen` at the first and at the last step."},
    )

    def __post_init__(self):
        if self.train_time is not None:
            self._end_by_time()
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

    def _end_by_time(self) -> None:
        """Remove the limit on steps, and convert the warm-up to a share."""
        seconds_of(self.train_time)
        for name in ("logging_steps", "save_steps", "eval_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1 with `train_time`, because the number of steps is not "
                                 f"known in advance, got {value}")  # fmt: skip
        if self.warmup_steps >= 1:
            self.warmup_steps = self.warmup_steps / self.max_steps if self.max_steps > 0 else math.inf
        if not self.warmup_steps < 1:
            raise ValueError("`warmup_steps` must be below `max_steps` with `train_time`, or a share below 1")
        self.max_steps = ENDLESS

    def _check_stages(self) -> None:
        if self.depth_growth not in (choices := ("stack", "interleave", "identity")):
            raise ValueError(f"`depth_growth` must be one of {', '.join(choices)}, got {self.depth_growth}")
        if self.depth_schedule is not None:
            if self.depth_schedule != AUTO:
                DepthSchedule.parse(self.depth_schedule)
            if self.load_best_model_at_end:
                raise ValueError("`load_best_model_at_end` must be False with `depth_schedule`: the best checkpoint "
                                 "may have fewer layers than the final model")  # fmt: skip
        for name in ("train_time", "depth_schedule"):
            if getattr(self, name) is None:
                continue
            if self.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
                raise ValueError(f"`{name}` must be unset with DeepSpeed, which has its own optimizer and schedule")
        if self.depth_schedule is not None and (self.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")):
            raise ValueError("`depth_schedule` must be unset with FSDP, which stores the optimizer in another format")

    @property
    def mask_seed(self) -> int:
        """Seed of the masks: `data_seed` if given, otherwise `seed`."""
        return self.seed if self.data_seed is None else self.data_seed

    def exits_active(self, step: int, max_steps: int) -> bool:
        """Whether tokens exit in optimizer step `step` (counted from 0) of a run of `max_steps`."""
        return round(self.exit_warmup * max_steps) <= step < max_steps - round(self.exit_cooldown * max_steps)
