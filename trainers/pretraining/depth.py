"""The depth schedule: a pre-training that begins shallow and grows.

A stage is an ordinary run of a shallower model. It ends in an ordinary checkpoint, and that of a deeper model takes
its place: new layers start as copies of others, weights and the optimizer's moments alike. All else in it stays, so
the run goes on at the same place in the data, in the learning rate's schedule and in its random numbers. An
interrupted run continues from whichever of the two it finds.
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

# In a checkpoint at which depths were compared: what was found.
DECISION = "depth.json"
# Steps of a fork, as a share of those of the run so far and within bounds; and the held-out batches that judge it.
FORK_SHARE, FEWEST, MOST = 0.03, 8, 64
FORK_BATCHES = 16
# A fall of so many standard errors is no chance.
SURE = 2.0
LAYER = re.compile(r"^(electra\.encoder\.layer\.)(\d+)(\..*)$")
# What a block adds to the residual stream comes from these two projections.
LAST_PROJECTIONS = (".attention.output.dense.", ".output.dense.")


def at_depth(config: ElectraEarlyExitConfig, depth: int) -> ElectraEarlyExitConfig:
    """The config of a stage: with fewer layers, and a generator that is the same in all of them.

    Raises:
        ValueError: where something of it stands deeper than that.
    """
    if depth == config.num_hidden_layers:
        return config
    fixed = {"generator_num_hidden_layers": config.generator_num_hidden_layers or config.num_hidden_layers}
    if config.generator_type == "self":
        fixed["generator_head_layer"] = config.generator_layer
    if not config.has_exit_heads:
        fixed |= {"exit_layers": [], "exit_capacities": []}
    try:
        return type(config)(**{**config.to_dict(), **fixed, "num_hidden_layers": depth})
    except Exception as error:
        raise ValueError(
            f"`depth_schedule` has a stage of {depth} layer{'s' if depth > 1 else ''}, and {config_reason(error)}"
        ) from error


def phases(config: ElectraEarlyExitConfig) -> list[tuple[int, ElectraEarlyExitConfig]]:
    """From which step on a model was of which config while it was pre-trained."""
    return [
        (step, at_depth(config, depth)) for step, depth in config.pretraining_depths or [[0, config.num_hidden_layers]]
    ]


def check_depths(args: ElectraEarlyExitTrainingArguments, config: ElectraEarlyExitConfig) -> DepthSchedule:
    """The schedule that the arguments name, for a model of this config.

    Raises:
        ValueError: if it cannot grow by that.
    """
    schedule = read_depths(args.depth_schedule, config.num_hidden_layers)
    for depth in schedule.depths:
        at_depth(config, depth)
    if isinstance(schedule, FoundDepths) and (args.world_size > 1 or args.fp16):
        raise ValueError("`depth_schedule` auto measures in one process, in fp32 or bf16; name depths and shares")
    return schedule


def sources(shallow: int, deep: int, growth: str) -> list[int]:
    """Of which layer each layer of the deeper model is a copy, by number; those that it has already come first in
    `stack` and `identity`."""
    if growth == "interleave":
        return [layer * shallow // deep for layer in range(deep)]
    return [layer % shallow for layer in range(deep)]


class StageCallback(TrainerCallback):
    """Ends a stage in a checkpoint."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.trainer.stage_end():
            control.should_log = control.should_save = control.should_training_stop = True


def train_in_stages(trainer, checkpoint: str | None, train: Callable):
    """Train from a checkpoint, or from the start, to the end of the last stage.

    Args:
        trainer: with `depths`, a [`DepthSchedule`], and the model of the last stage, of which the first one takes its
            layers; it has the model of the stage that it is in from then on.
        train: trains one stage from a checkpoint, and returns what the library returns.

    Raises:
        WriteError: if the checkpoint at a stage's end could not be written.
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
        if last or trainer.state.global_step != trainer.stage_end():  # the end, or told to stop before
            depth, full = trainer.model_config.num_hidden_layers, config.num_hidden_layers
            if last and depth < full:
                logger.info(f"more layers did not pay in this time: the model has {depth} of {full}")
            return output
        folder = trainer.checkpoint_folder(None)
        if (reason := run_on_main_and_broadcast(partial(damage, folder))) is not None:
            raise WriteError(f"the model cannot grow from {folder}: {reason}; the same command continues")
        checkpoint = str(folder)


# ---- Which depth pays ----


@dataclass
class Fork:
    """What a few steps from a checkpoint on, in which the learning rate falls to 0, have changed.

    fall: of the held-out loss, in nats of the whole objective.
    error: its standard error over the held-out batches.
    seconds: of those steps, by their median: a step that something else held up says nothing.
    """

    fall: float
    error: float
    seconds: float

    @property
    def pace(self) -> float:
        return self.fall / max(self.seconds, 1e-9)


def found_depth(trainer, checkpoint: Path, config: ElectraEarlyExitConfig) -> int:
    """How deep a model goes on from a checkpoint: deeper if that lowers the held-out loss, and faster. A checkpoint at
    which that was measured says what was found, so that a run continues as it began."""
    own = type(config).from_pretrained(checkpoint).num_hidden_layers
    deeper = trainer.depths.next_depth(own)
    if deeper is None or not trainer.decides_at(checkpoint):
        return own
    path = checkpoint / DECISION
    if not path.exists():
        forks = {depth: fork(trainer, checkpoint, at_depth(config, depth)) for depth in (own, deeper)}
        # On a plateau nothing falls, and what is measured is chance: more layers have to be seen to learn.
        learns = forks[deeper].fall > SURE * forks[deeper].error
        chosen = deeper if learns and forks[deeper].pace > forks[own].pace else own
        words = ", ".join(f"{depth} layers by {of.pace:.3g}" for depth, of in forks.items())
        logger.info(f"a second of training lowers the held-out loss with {words}: the model has {chosen} from here on")
        write_json(path, {"depth": chosen, "forks": {depth: vars(of) for depth, of in forks.items()}})
    return read_json(path)["depth"]


def fork(trainer, checkpoint: Path, config: ElectraEarlyExitConfig) -> Fork:
    """Train a copy of a checkpoint's model, as deep as `config` says, for a few steps of which nothing remains."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        copy = Path(shutil.copytree(checkpoint, Path(folder, checkpoint.name)))
        grow(trainer, copy, config)
        model = type(trainer.model).from_pretrained(copy)
        trainer.replace_model(model)
        moments = torch.load(copy / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        trainer.state = TrainerState.load_from_json(str(copy / TRAINER_STATE_NAME))
        with trainer.kernels():
            return measure_fork(trainer, moments)


def measure_fork(trainer, moments: dict) -> Fork:
    """Of the model that the trainer has, and the state of an optimizer."""
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
    """Of some held-out batches, corrupted the same way every time; fp32 of shape `(batches,)`."""
    losses, sequences = [], trainer.eval_dataset
    sequences = next(iter(sequences.values())) if isinstance(sequences, dict) else sequences
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(trainer.args.seed)
        for batch in itertools.islice(trainer.get_eval_dataloader(sequences), FORK_BATCHES):
            losses.append(trainer.prediction_step(model, batch, prediction_loss_only=True)[0])
    return torch.stack(losses).float().cpu()


# ---- Growing ----


def with_depth(model: PreTrainedModel, config: ElectraEarlyExitConfig) -> PreTrainedModel:
    """A model of the first layers of another, and with all else that it has."""
    shallow = type(model)(config)
    shallow.config.pretraining_depths = [[0, config.num_hidden_layers]]
    shallow.load_state_dict(
        {name: value for name, value in model.state_dict().items() if name in shallow.state_dict()}
    )
    return shallow


def grow(trainer, checkpoint: Path, config: ElectraEarlyExitConfig) -> None:
    """Make a checkpoint that of a deeper model, in its place; leave alone one that is as deep already."""
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
    """The parameter of the shallower model that one of the deeper model is a copy of."""
    found = LAYER.match(name)
    return f"{found[1]}{copied[int(found[2])]}{found[3]}" if found else name


def grown_weights(small: PreTrainedModel, model: PreTrainedModel, copied: list[int]) -> dict[str, torch.Tensor]:
    weights = small.state_dict()
    return {name: weights[origin(name, copied)] for name in model.state_dict()}


def grown_moments(state: dict, shallow: list[str], deep: list[str], copied: list[int]) -> dict:
    """The state of an optimizer whose parameters have these names, in the order of its groups, as that of the deeper
    model's. What a group says of itself stays, and so do the groups."""
    number = {name: index for index, name in enumerate(shallow)}
    held = {index: state["state"].get(number[origin(name, copied)]) for index, name in enumerate(deep)}
    groups, of_group = [], {index: n for n, group in enumerate(state["param_groups"]) for index in group["params"]}
    for n, group in enumerate(state["param_groups"]):
        mine = [index for index, name in enumerate(deep) if of_group[number[origin(name, copied)]] == n]
        groups.append({**group, "params": mine})
    return {**state, "state": {index: of for index, of in held.items() if of is not None}, "param_groups": groups}


@torch.no_grad()
def silence(model: PreTrainedModel, layers: range) -> None:
    """Let layers add nothing to the residual stream, until they have learned."""
    for name, parameter in model.named_parameters():
        found = LAYER.match(name)
        if found and int(found[2]) in layers and any(part in found[3] for part in LAST_PROJECTIONS):
            parameter.zero_()
