"""Loading of checkpoints that the user names, and `electra-exit export`."""

import contextlib
import functools
import json
import math
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from modeling_electra_exit import ElectraEarlyExitConfig, ElectraEarlyExitForMaskedLM, ElectraEarlyExitForPreTraining

from ..errors import UsageError, naming_failures
from .files import share_weights


OURS = ElectraEarlyExitConfig.model_type
# Overrides for further training: thresholds of a calibrated checkpoint do not apply to heads that are trained further.
NO_THRESHOLDS = {"inference_exit_thresholds": None, "inference_exit_temperatures": None}


def lacks_model(folder: Path) -> str | None:
    """The error message for a folder without a model, `None` for a folder with one. For a fine-tuning run, the message
    names the folder of the best model."""
    if (folder / "config.json").is_file():
        return None
    if best := best_model(folder):
        return f"{folder} holds one model per seed of a fine-tuning run; the best one is {best}"
    return f"{folder} holds no model: it has no config.json"


def best_model(folder: Path) -> Path | None:
    """The folder of the best seed of a fine-tuning run; `None` if `folder` is not a fine-tuning run."""
    try:
        best = folder / json.loads((folder / "metrics.json").read_bytes())["best"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return best if (best / "config.json").is_file() else None


def read_config(checkpoint: str) -> PreTrainedConfig:
    """The config of a checkpoint, a folder or a Hub id.

    Raises:
        UsageError: if it is missing, or Transformers cannot read it.
    """
    with naming_failures(f"no model in `{checkpoint}`"):
        if best_model(Path(checkpoint)):
            raise UsageError(lacks_model(Path(checkpoint)))
        for path in Path(checkpoint).glob("*.safetensors"):
            path.open("rb").close()  # safetensors reports "No such file" for a file without read permission
        return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)  # never prompts, never runs its code


def read_tokenizer(checkpoint: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Raises:
        UsageError: if it is missing, has no pad token, or has ids outside the model's vocabulary.
    """
    with naming_failures(f"no tokenizer in `{checkpoint}`"):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        raise UsageError(f"the tokenizer of `{checkpoint}` must have a pad token, got none")
    vocab_size = getattr(read_config(checkpoint), "vocab_size", math.inf)
    if (last := max(tokenizer.get_vocab().values(), default=-1)) >= vocab_size:
        raise UsageError(
            f"the ids of the tokenizer of `{checkpoint}` must be below the model's `vocab_size`, {vocab_size}, got "
            f"{last}"
        )
    return tokenizer


def named(checkpoint: str) -> dict[str, str]:
    """Card data about the checkpoint that a run started from: `model`, its Hub id or the name of its folder without
    the path; and `base_model`, the Hub id, if it is from the Hub."""
    if Path(checkpoint).is_dir():
        return {"model": Path(checkpoint).resolve().name}
    return {"model": checkpoint, "base_model": checkpoint}


def architecture(config: PreTrainedConfig) -> str:
    """The name of the class that saved a checkpoint; "unknown" if the config does not have it."""
    return (config.architectures or ["unknown"])[0]


def load_for(model_class: type[PreTrainedModel], checkpoint: str, **config_overrides) -> PreTrainedModel:
    """Load a checkpoint of this package, ELECTRA or BERT as `model_class`, with fp32 weights.

    Raises:
        UsageError: if the checkpoint is missing, has another architecture, or does not fit `config_overrides`.
    """
    model_type = read_config(checkpoint).model_type
    starts = {
        OURS: functools.partial(model_class.from_pretrained, dtype=torch.float32),
        "electra": model_class.from_electra,
        "bert": model_class.from_bert,
    }
    if model_type not in starts:
        known = ", ".join(map(repr, starts))
        raise UsageError(f"`model_type` of {checkpoint} must be one of {known}, got {model_type!r}")
    with naming_failures(checkpoint):
        return starts[model_type](checkpoint, **config_overrides)


def check_policy(config: PreTrainedConfig, given: dict, model: str) -> None:
    """Raises: UsageError if `given`, fields of `config`, turns exits on, and `model` has none."""
    policy, depth = given.get("exit_policy", "none"), config.num_hidden_layers
    if policy == "none" or config.has_exit_heads:
        return
    if depth < 2:
        raise UsageError(f"--exit_policy {policy} requires at least two layers, but {model} has {depth}")
    raise UsageError(f"--exit_layers must name layers between 1 and {depth - 1} with --exit_policy {policy}, got none")


@contextlib.contextmanager
def quiet_loading():
    """Suppress Transformers' report of missing and unexpected weights."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


def export_electra(checkpoint: str, output: Path) -> dict[str, str]:
    """Write a pre-training checkpoint, or a standalone generator, as plain ELECTRA, each part with its tokenizer.

    Returns:
        The folder of each part, by `"discriminator"` and `"generator"`.

    Raises:
        UsageError: if the checkpoint is of another class, if plain ELECTRA cannot represent it, or if `output` is not
            an empty or new folder.
    """
    config = read_config(checkpoint)
    saved_as = architecture(config) if config.model_type == OURS else config.model_type
    classes = {cls.__name__: cls for cls in (ElectraEarlyExitForPreTraining, ElectraEarlyExitForMaskedLM)}
    if saved_as not in classes:
        raise UsageError(f"{checkpoint} must hold an {' or an '.join(classes)}, got {saved_as}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is not an empty folder; choose an empty or a new one")
    tokenizer = read_tokenizer(checkpoint)
    with naming_failures(checkpoint):
        model = classes[saved_as].from_pretrained(checkpoint)
    try:
        written = model.to_electra(output)
    except ValueError as error:
        raise UsageError(f"{checkpoint}: {error}") from error
    for folder in written.values():
        tokenizer.save_pretrained(folder)
        share_weights(Path(folder))
    return written
