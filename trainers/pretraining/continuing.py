"""Continued training of a finished run in a new folder: `--continue_from`."""

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

# Longest warm-up of a continued run, as a share of its steps: weights and moments are already trained.
LONGEST_WARMUP = 0.05
# Warm-ups that only random weights need.
ONLY_AT_FIRST = ("exit_warmup", "exit_loss_warmup")
# State that the optimizer keeps in its parameter groups, in addition to the settings.
COUNTED = ("steps_taken",)


def finished_run(folder: str) -> dict:
    """Card data about a finished pre-training run: `model`, its name (with `base_model` for a Hub id), and the total
    numbers of `steps` and `tokens` that its weights were trained for, runs that it continued included.

    Raises:
        UsageError: if the folder does not exist, or holds no finished pre-training run.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UsageError(f"--continue_from {folder}: no such folder")
    if not (path / METRICS_FILE).is_file():
        if (path / RUN_FILE).is_file():
            raise UsageError(f"the run in {folder} is not finished: repeat its command to resume it")
        raise UsageError(f"{folder} does not hold a run; to start from a model alone, use --init_from")
    measured = read_json(path / METRICS_FILE)
    if not isinstance(training := measured.get("training"), dict):
        raise UsageError(f"{folder} does not hold a pre-training run; to start from its model, use --init_from")
    before = measured.get("start", {})
    seen = {name: training[name] + before.get(name, 0) for name in ("steps", "tokens")}
    return {**named(folder), **seen}


def check_tokenizer(folder: str, tokenizer_name: str | None) -> None:
    """Raises: UsageError if the tokenizer in a run's folder, or `tokenizer_name`, differs from that of the run."""
    with naming_failures(f"no tokenizer in `{folder}`"):
        own = tokenizer_fingerprint(AutoTokenizer.from_pretrained(folder))
    if (recorded := RunRecord.read(Path(folder)).tokenizer) not in (None, own):
        raise UsageError(f"the tokenizer in {folder} differs from the one that its run started with; restore it")
    if tokenizer_name is None or recorded is None:
        return
    with naming_failures(f"no tokenizer in `{tokenizer_name}`"):
        other = tokenizer_fingerprint(AutoTokenizer.from_pretrained(tokenizer_name))
    if other != own:
        raise UsageError(
            f"the tokenizer `{tokenizer_name}` differs from that of the run in {folder}, whose embeddings belong to "
            "other tokens: omit `tokenizer_name`"
        )


def restart(args: ElectraEarlyExitTrainingArguments, given: Collection[str], steps: int) -> None:
    """Adjust the arguments in place for a run whose weights were trained for `steps` before.

    The learning rate schedule is a warm restart with a short warm-up, because the optimizer moments are kept. Exits
    are active from the start, and the data has another order and other masks.

    Args:
        args: the arguments of the run.
        given: names of the arguments that the user has set; exit warm-ups among them are kept.
        steps: total steps so far.
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
    """The file with the final optimizer state of a finished run; `None` without an undamaged final checkpoint."""
    step = read_json(Path(folder) / TRAINER_STATE_NAME)["global_step"]
    checkpoint = Path(folder) / f"checkpoint-{step}"
    path = checkpoint / OPTIMIZER_NAME
    return path if path.is_file() and damage(checkpoint) is None else None


def inherit_moments(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Load the moments of another optimizer, but not its settings, into a new one. If the parameters differ, log this
    and keep the new optimizer as it is."""
    before, own = torch.load(path, map_location="cpu", weights_only=True), optimizer.state_dict()
    if not _fits(optimizer, before):
        logger.info("the optimizer starts from scratch: its state in the continued run has other parameters")
        return
    groups = zip(own["param_groups"], before["param_groups"], strict=True)
    kept = [{**mine, **{name: theirs[name] for name in COUNTED if name in theirs}} for mine, theirs in groups]
    optimizer.load_state_dict({"state": before["state"], "param_groups": kept})


def _fits(optimizer: torch.optim.Optimizer, before: dict) -> bool:
    """Whether a saved state belongs to an optimizer with the same groups and shapes of parameters."""
    own = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in own] != [group["params"] for group in before["param_groups"]]:
        return False
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    held = ((index, value) for index, state in before["state"].items() for value in state.values())
    return all(shapes[index] == value.shape for index, value in held if torch.is_tensor(value) and value.dim())
