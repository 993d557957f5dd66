"""The depth schedule: pre-training that starts with a shallow model and adds layers.

A stage is an ordinary run of a shallower model. It ends with an ordinary checkpoint, which is then replaced by that of
a deeper model: new layers start as copies of others, with weights and optimizer moments. The rest of the checkpoint is
unchanged, so the run continues with the same position in the data, learning rate schedule and random state. An
interrupted run is resumed from either of the two checkpoints.
"""

import itertools
import logging
import re
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerCallback, TrainerState

from modeling_electra_exit import ElectraEarlyExitConfig

from ..errors import WriteError, config_reason
from ..runtime.arguments import ElectraEarlyExitTrainingArguments
from ..runtime.checkpoints import MANIFEST, commit, damage
from ..runtime.depths import DepthSchedule, FoundDepths, read_depths
from ..runtime.distributed import run_on_main_and_broadcast
from ..runtime.files import INCOMPLETE, naming_write_errors, read_json, share_weights, write_json


logger = logging.getLogger(__name__)

# File in a checkpoint at which depths were compared, with the result.
DECISION = "depth.json"
# Steps of a fork, as a share of the steps so far, and their bounds; number of held-out batches for its loss, which are
# at most as large as training batches.
FORK_SHARE, FEWEST, MOST = 0.01, 8, 64
FORK_BATCHES = 8
# Number of standard errors from which a decrease of the loss counts as significant.
SURE = 2.0
LAYER = re.compile(r"^(electra\.encoder\.layer\.)(\d+)(\..*)$")
# The projections whose outputs are added to the residual stream.
LAST_PROJECTIONS = (".attention.output.dense.", ".output.dense.")


def at_depth(config: ElectraEarlyExitConfig, depth: int) -> ElectraEarlyExitConfig:
    """The config of a stage with `depth` layers. The generator is the same in all stages.

    Raises:
        ValueError: if exits or the generator's head need more layers.
    """
    if depth == config.num_hidden_layers:
        return config
    fixed = {"generator_num_hidden_layers": config.generator_num_hidden_layers or config.num_hidden_layers}
    if config.generator_type == "self":
        fixed["generator_head_layer"] = config.generator_layer
    if config.exit_policy == "none":  # the defaults at this depth, for a task that adds exits
        fixed |= dict.fromkeys(("exit_layers", "exit_capacities", "exit_reentry_layers"))
    try:
        return type(config)(**{**config.to_dict(), **fixed, "num_hidden_layers": depth})
    except Exception as error:
        raise ValueError(
            f"`depth_schedule` has a stage of {depth} layer{'s' if depth > 1 else ''}, and {config_reason(error)}"
        ) from error


def phases(config: ElectraEarlyExitConfig) -> list[tuple[int, ElectraEarlyExitConfig]]:
    """The stages of a model's pre-training: pairs of the first step and the config."""
    return [
        (step, at_depth(config, depth)) for step, depth in config.pretraining_depths or [[0, config.num_hidden_layers]]
    ]


def check_depths(args: ElectraEarlyExitTrainingArguments, config: ElectraEarlyExitConfig) -> DepthSchedule:
    """The depth schedule of the arguments for a model of this config.

    Raises:
        ValueError: if the model does not fit the schedule, or the run does not support it.
    """
    schedule = read_depths(args.depth_schedule, config.num_hidden_layers)
    for depth in schedule.depths:
        at_depth(config, depth)
    if isinstance(schedule, FoundDepths) and (args.world_size > 1 or args.fp16):
        raise ValueError(
            "`depth_schedule` must be depths and shares, not auto, with several processes or fp16, got auto"
        )
    return schedule


def sources(shallow: int, deep: int, growth: str) -> list[int]:
    """For each layer of the deeper model, the index of the layer that it is a copy of. With `stack` and `identity`,
    the existing layers come first."""
    if growth == "interleave":
        return [layer * shallow // deep for layer in range(deep)]
    return [layer % shallow for layer in range(deep)]


class StageCallback(TrainerCallback):
    """Ends a stage with a checkpoint."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.trainer.stage_end():
            control.should_log = control.should_save = control.should_training_stop = True


def train_in_stages(trainer, checkpoint: str | None, train: Callable):
    """Train from a checkpoint, or from the start, to the end of the last stage.

    Args:
        trainer: with `depths`, a [`DepthSchedule`], and the model of the last stage. The first stage takes its layers
            from that model; afterwards the trainer has the model of the current stage.
        checkpoint: where to resume; `None` to start.
        train: function that trains one stage from a checkpoint and returns the output of `Trainer.train`.

    Returns:
        The output of the last call of `train`.

    Raises:
        WriteError: if the checkpoint at the end of a stage could not be written.
    """
    schedule, config = trainer.depths, trainer.model_config
    named = not isinstance(schedule, FoundDepths)
    while True:
        trainer.stage = trainer.stage_of(checkpoint)
        if checkpoint is None:
            trainer.replace_model(with_depth(trainer.model, at_depth(config, schedule.depths[0])))
        else:
            depth = schedule.depths[trainer.stage] if named else found_depth(trainer, Path(checkpoint), config)
            grown = at_depth(config, depth)
            run_on_main_and_broadcast(partial(grow, trainer, Path(checkpoint), grown))
            grown.pretraining_depths = type(config).from_pretrained(checkpoint).pretraining_depths
            trainer.replace_model(type(trainer.model)(grown))
            if depth == config.num_hidden_layers:
                trainer.stage = len(schedule.ends) - 1
        output = train(checkpoint)
        last = trainer.stage == len(schedule.ends) - 1
        if last or trainer.state.global_step != trainer.stage_end():  # finished, or stopped before
            depth, full = trainer.model_config.num_hidden_layers, config.num_hidden_layers
            if last and depth < full:
                logger.info(f"more layers did not lower the loss faster: the model ends with {depth} of {full} layers")
            return output
        folder = trainer.checkpoint_folder(None)
        if (reason := run_on_main_and_broadcast(partial(damage, folder))) is not None:
            raise WriteError(f"the model cannot grow from {folder}: {reason}; the same command resumes the run")
        checkpoint = str(folder)


# ---- Choosing the depth ----


@dataclass
class Fork:
    """Result of a fork: a few steps from a checkpoint, in which the learning rate decays to 0.

    fall: decrease of the held-out loss, in nats of the whole objective.
    error: standard error of `fall` over the held-out batches.
    seconds: time of the steps, from their median, which is robust to outliers.
    """

    fall: float
    error: float
    seconds: float

    @property
    def pace(self) -> float:
        """Decrease of the held-out loss per second."""
        return self.fall / max(self.seconds, 1e-9)


def found_depth(trainer, checkpoint: Path, config: ElectraEarlyExitConfig) -> int:
    """The number of layers with which to continue from a checkpoint: more if that lowers the held-out loss, and faster
    than the current depth. The decision is stored in the checkpoint, so that a resumed run makes the same one."""
    own = type(config).from_pretrained(checkpoint).num_hidden_layers
    deeper = trainer.depths.next_depth(own)
    if deeper is None or not trainer.decides_at(checkpoint):
        return own
    path = checkpoint / DECISION
    if not path.exists():
        forks = {depth: fork(trainer, checkpoint, at_depth(config, depth)) for depth in (own, deeper)}
        # On a plateau differences are noise, so the deeper model's decrease must be significant.
        learns = forks[deeper].fall > SURE * forks[deeper].error
        chosen = deeper if learns and forks[deeper].pace > forks[own].pace else own
        rates = ", ".join(f"{of.pace:.3g} with {depth} layers" for depth, of in forks.items())
        logger.info(f"decrease of the held-out loss per second: {rates}; continuing with {chosen} layers")
        write_json(path, {"depth": chosen, "forks": {depth: vars(of) for depth, of in forks.items()}})
    return read_json(path)["depth"]


def fork(trainer, checkpoint: Path, config: ElectraEarlyExitConfig) -> Fork:
    """Train a copy of a checkpoint's model, grown to `config`, for a few steps. All changes are discarded."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        copy = Path(shutil.copytree(checkpoint, Path(folder, checkpoint.name)))
        grow(trainer, copy, config)
        model = type(trainer.model).from_pretrained(copy)
        trainer.replace_model(model)
        moments = torch.load(copy / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        trainer.state = TrainerState.load_from_json(str(copy / TRAINER_STATE_NAME))
        # Training again on the masks of this epoch would only memorize what the run has just seen.
        with trainer.kernels(), trainer.masks_of(trainer.epoch + 1):
            return measure_fork(trainer, moments)


def measure_fork(trainer, moments: dict) -> Fork:
    """Train the trainer's model for a few steps with the optimizer state `moments`, and measure the effect."""
    optimizer = trainer.create_optimizer()
    optimizer.load_state_dict(moments)
    rates = [group["lr"] for group in optimizer.param_groups]
    model, optimizer = trainer.accelerator.prepare(trainer.model, optimizer)
    trainer.current_gradient_accumulation_steps = 1
    before = held_out_losses(trainer, model)
    batches = iter(trainer.get_train_dataloader())
    steps = min(max(FEWEST, round(FORK_SHARE * trainer.state.global_step)), MOST)
    seconds = []
    model.train()
    for step in range(steps):
        if (batch := next(batches, None)) is None:
            batches = iter(trainer.get_train_dataloader())
            batch = next(batches)
        start = trainer.clock()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / steps)
        trainer.training_step(model, batch)
        trainer.check_grad_norm(trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm))
        optimizer.step()
        model.zero_grad()
        if trainer.args.device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(trainer.clock() - start)
    falls = before - held_out_losses(trainer, model)
    trainer.accelerator.free_memory()
    error = float(falls.std() / len(falls) ** 0.5) if len(falls) > 1 else 0.0
    return Fork(float(falls.mean()), error, steps * statistics.median(seconds))


def held_out_losses(trainer, model) -> torch.Tensor:
    """Losses of [`FORK_BATCHES`] held-out batches, fp32 of shape `(batches,)`. Their corruption is always the same."""
    losses, sequences = [], trainer.eval_dataset
    sequences = next(iter(sequences.values())) if isinstance(sequences, dict) else sequences
    whole = trainer.get_eval_dataloader(sequences)
    # Evaluation batches are often several times as large as training batches, and would cost more than the steps.
    size = min(trainer.args.train_batch_size, trainer.args.eval_batch_size)
    batches = DataLoader(whole.dataset, batch_size=size, collate_fn=whole.collate_fn)
    model.eval()
    with torch.random.fork_rng(), trainer.masks_of(0):
        torch.manual_seed(trainer.args.seed)
        for batch in itertools.islice(batches, FORK_BATCHES):
            losses.append(trainer.prediction_step(model, batch, prediction_loss_only=True)[0])
    return torch.stack(losses).float().cpu()


# ---- Growing ----


def with_depth(model: PreTrainedModel, config: ElectraEarlyExitConfig) -> PreTrainedModel:
    """A copy of a model with only its first layers."""
    shallow = type(model)(config)
    shallow.config.pretraining_depths = [[0, config.num_hidden_layers]]
    shallow.load_state_dict(
        {name: value for name, value in model.state_dict().items() if name in shallow.state_dict()}
    )
    return shallow


def grow(trainer, checkpoint: Path, config: ElectraEarlyExitConfig) -> None:
    """Replace a checkpoint by that of a deeper model. A checkpoint of that depth is left unchanged.

    Raises:
        WriteError: if the checkpoint cannot be written.
    """
    before = type(config).from_pretrained(checkpoint)
    shallow, deep = before.num_hidden_layers, config.num_hidden_layers
    if shallow == deep:
        return
    step = read_json(checkpoint / TRAINER_STATE_NAME)["global_step"]
    config.pretraining_depths = [*before.pretraining_depths, [step, deep]]
    with torch.random.fork_rng(devices=[]):
        small = type(trainer.model).from_pretrained(checkpoint, config=before)
        model = type(trainer.model)(config)
    copied = sources(shallow, deep, trainer.args.depth_growth)
    model.load_state_dict(grown_weights(small, model, copied))
    if trainer.args.depth_growth == "identity":
        silence(model, range(shallow, deep))
    incomplete = checkpoint.parent / INCOMPLETE / checkpoint.name
    with naming_write_errors(f"the deeper model of {checkpoint}"):
        shutil.rmtree(incomplete.parent, ignore_errors=True)
        shutil.copytree(checkpoint, incomplete)
        (incomplete / MANIFEST).unlink()
        model.save_pretrained(incomplete)
        share_weights(incomplete)
        moments = torch.load(checkpoint / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        names = [trainer.optimizer_names(of) for of in (small, model)]
        torch.save(grown_moments(moments, *names, copied), incomplete / OPTIMIZER_NAME)
        commit(incomplete, checkpoint)


def origin(name: str, copied: list[int]) -> str:
    """Name of the parameter of the shallower model that the deeper model's parameter `name` is a copy of."""
    found = LAYER.match(name)
    return f"{found[1]}{copied[int(found[2])]}{found[3]}" if found else name


def grown_weights(small: PreTrainedModel, model: PreTrainedModel, copied: list[int]) -> dict[str, torch.Tensor]:
    """State dict of the deeper `model`, copied from the shallower one; `copied` is from [`sources`]."""
    weights = small.state_dict()
    return {name: weights[origin(name, copied)] for name in model.state_dict()}


def grown_moments(state: dict, shallow: list[str], deep: list[str], copied: list[int]) -> dict:
    """Optimizer state of the deeper model, copied from that of the shallower one. Groups and their settings are kept.

    Args:
        state: state of the shallower model's optimizer.
        shallow, deep: parameter names of both models, in the order of their optimizers.
        copied: from [`sources`].
    """
    number = {name: index for index, name in enumerate(shallow)}
    held = {index: state["state"].get(number[origin(name, copied)]) for index, name in enumerate(deep)}
    groups, of_group = [], {index: n for n, group in enumerate(state["param_groups"]) for index in group["params"]}
    for n, group in enumerate(state["param_groups"]):
        mine = [index for index, name in enumerate(deep) if of_group[number[origin(name, copied)]] == n]
        groups.append({**group, "params": mine})
    return {**state, "state": {index: of for index, of in held.items() if of is not None}, "param_groups": groups}


@torch.no_grad()
def silence(model: PreTrainedModel, layers: range) -> None:
    """Set the output projections of `layers` to 0, so that they initially add nothing to the residual stream."""
    for name, parameter in model.named_parameters():
        found = LAYER.match(name)
        if found and int(found[2]) in layers and any(part in found[3] for part in LAST_PROJECTIONS):
            parameter.zero_()
