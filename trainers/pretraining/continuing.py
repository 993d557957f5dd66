"""A finished run that trains on, in a folder of its own: `--continue_from`."""

import logging
from collections.abc import Collection
from pathlib import Path

import torch
from transformers import AutoTokenizer
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME

from ..errors import UsageError, naming_failures
from ..runtime.arguments import ElectraEarlyExitTrainingArguments
from ..runtime.checkpoints import damage
from ..runtime.files import read_json
from ..runtime.loading import named
from ..runtime.run_folder import METRICS_FILE, RUN_FILE, RunRecord, tokenizer_fingerprint


logger = logging.getLogger(__name__)

# The warm-up of a run whose weights and moments are trained is at most this share of it.
LONGEST_WARMUP = 0.05
# What lets heads and encoder find a start from random weights, which these have left behind.
ONLY_AT_FIRST = ("exit_warmup", "exit_loss_warmup")
# What a step of the optimizer leaves in its groups, beside the settings.
COUNTED = ("steps_taken",)


def finished_run(folder: str) -> dict:
    """What a finished pre-training says of itself: `model`, its name, and the `steps` and `tokens` that its weights
    have seen in all, those of the runs that it continued included.

    Raises:
        UsageError: if there is no such run, or it is not finished.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UsageError(f"--continue_from {folder}: no such folder")
    if not (path / METRICS_FILE).is_file():
        if (path / RUN_FILE).is_file():
            raise UsageError(f"the run in {folder} is not finished: repeat its command, which continues it")
        raise UsageError(f"{folder} holds no run; to start from a model without one, give --init_from")
    measured = read_json(path / METRICS_FILE)
    if not isinstance(training := measured.get("training"), dict):
        raise UsageError(f"{folder} holds no pre-training; to start from its model, give --init_from")
    before = measured.get("start", {})
    seen = {name: training[name] + before.get(name, 0) for name in ("steps", "tokens")}
    return {**named(folder), **seen}


def check_tokenizer(folder: str, tokenizer_name: str | None) -> None:
    """Raises: UsageError if the tokenizer in a run's folder, or the one named beside it, is not the run's."""
    with naming_failures(f"no tokenizer in `{folder}`"):
        own = tokenizer_fingerprint(AutoTokenizer.from_pretrained(folder))
    if (recorded := RunRecord.read(Path(folder)).tokenizer) not in (None, own):
        raise UsageError(f"the tokenizer in {folder} is not the one that its run began with; put it back as it was")
    if tokenizer_name is None or recorded is None:
        return
    with naming_failures(f"no tokenizer in `{tokenizer_name}`"):
        other = tokenizer_fingerprint(AutoTokenizer.from_pretrained(tokenizer_name))
    if other != own:
        raise UsageError(
            f"the tokenizer `{tokenizer_name}` is not that of the run in {folder}, whose embeddings are of other "
            "tokens: leave out `tokenizer_name`"
        )


def restart(args: ElectraEarlyExitTrainingArguments, given: Collection[str], steps: int) -> None:
    """Set the arguments, in place, for a run whose weights have been trained for `steps`.

    The schedule is a warm restart: as in any run it rises to the learning rate and falls to the end, but soon, as the
    moments are kept. Exits are at work from the start, and the data comes in another order with other masks.

    Args:
        given: the names of those that the user has chosen.
    """
    by_steps = args.max_steps > 0 and args.train_time is None
    share = args.warmup_steps if args.warmup_steps < 1 else args.warmup_steps / args.max_steps if by_steps else 1
    if share > LONGEST_WARMUP:
        args.warmup_steps = LONGEST_WARMUP
    for name in ONLY_AT_FIRST:
        if name not in given:
            setattr(args, name, 0.0)
    if args.data_seed is None:
        args.data_seed = (args.seed + steps) % 2**32


def moments_of(folder: str) -> Path | None:
    """The optimizer's state at the end of a finished run; `None` where there is no undamaged checkpoint of it."""
    step = read_json(Path(folder) / TRAINER_STATE_NAME)["global_step"]
    checkpoint = Path(folder) / f"checkpoint-{step}"
    path = checkpoint / OPTIMIZER_NAME
    return path if path.is_file() and damage(checkpoint) is None else None


def inherit_moments(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Give a fresh optimizer the moments of another, and not its learning rates; leave it fresh where those are of
    other parameters, and say so."""
    before, own = torch.load(path, map_location="cpu", weights_only=True), optimizer.state_dict()
    if not _fits(optimizer, before):
        logger.info("the optimizer starts from scratch: its state in the run that goes on is of other parameters")
        return
    groups = zip(own["param_groups"], before["param_groups"], strict=True)
    kept = [{**mine, **{name: theirs[name] for name in COUNTED if name in theirs}} for mine, theirs in groups]
    optimizer.load_state_dict({"state": before["state"], "param_groups": kept})


def _fits(optimizer: torch.optim.Optimizer, before: dict) -> bool:
    """Whether a saved state is of an optimizer with as many parameters of the same shapes, in the same groups."""
    own = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in own] != [group["params"] for group in before["param_groups"]]:
        return False
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    held = ((index, value) for index, state in before["state"].items() for value in state.values())
    return all(shapes[index] == value.shape for index, value in held if torch.is_tensor(value) and value.dim())
