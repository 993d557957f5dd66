"""Checkpoints that the user names: reading them, starting from them, and `electra-exit export`."""

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
# Those of a calibrated checkpoint are of heads that go on learning, perhaps another task.
NO_THRESHOLDS = {"inference_exit_thresholds": None, "inference_exit_temperatures": None}


def lacks_model(folder: Path) -> str | None:
    """What to say of a folder without a model: for that of a fine-tuning, where its best one is. `None` with one."""
    if (folder / "config.json").is_file():
        return None
    if best := best_model(folder):
        return f"{folder} holds the seeds of a fine-tuning; its best model is {best}"
    return f"{folder} holds no model: it has no config.json"


def best_model(folder: Path) -> Path | None:
    """The folder of the best seed of a fine-tuning; `None` for another folder."""
    try:
        best = folder / json.loads((folder / "metrics.json").read_bytes())["best"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return best if (best / "config.json").is_file() else None


def read_config(checkpoint: str) -> PreTrainedConfig:
    """The config of a checkpoint, a folder or a Hub id.

    Raises:
        UsageError: if there is none, or none that transformers can read.
    """
    with naming_failures(f"no model in `{checkpoint}`"):
        if best_model(Path(checkpoint)):
            raise UsageError(lacks_model(Path(checkpoint)))
        for path in Path(checkpoint).glob("*.safetensors"):
            path.open("rb").close()  # safetensors says "No such file" of a file that others may read
        return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)  # else it asks, and runs what is there


def read_tokenizer(checkpoint: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Raises:
        UsageError: if there is none, it cannot fill a batch, or it has ids that the model does not embed.
    """
    with naming_failures(f"no tokenizer in `{checkpoint}`"):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        raise UsageError(f"the tokenizer of `{checkpoint}` must have a pad token, got none")
    vocab_size = getattr(read_config(checkpoint), "vocab_size", math.inf)
    if (last := max(tokenizer.get_vocab().values(), default=-1)) >= vocab_size:
        raise UsageError(f"the tokenizer of `{checkpoint}` has the id {last}, and the model embeds {vocab_size} ids")
    return tokenizer


def named(checkpoint: str) -> dict[str, str]:
    """What a card says of a checkpoint that another one started from: `model`, its Hub id or the name of its folder,
    and not where that lies; and `base_model`, the id, where it is of the Hub."""
    if Path(checkpoint).is_dir():
        return {"model": Path(checkpoint).resolve().name}
    return {"model": checkpoint, "base_model": checkpoint}


def architecture(config: PreTrainedConfig) -> str:
    """The name of the class that a checkpoint was saved from."""
    return (config.architectures or ["unknown"])[0]


def load_for(model_class: type[PreTrainedModel], checkpoint: str, **config_overrides) -> PreTrainedModel:
    """A model of one of our classes from a checkpoint of ours, of ELECTRA or of BERT, with its weights in fp32.

    Raises:
        UsageError: if the checkpoint is missing, of another architecture, or does not fit `config_overrides`.
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


@contextlib.contextmanager
def quiet_loading():
    """Without transformers' report of what a checkpoint lacks."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


def export_electra(checkpoint: str, output: Path) -> dict[str, str]:
    """Write a pre-trained checkpoint, or a generator alone, as plain ELECTRA, each part with its tokenizer.

    Returns:
        The folder written for each part.

    Raises:
        UsageError: for a checkpoint of another kind or without a plain form, and for an `output` in use.
    """
    config = read_config(checkpoint)
    saved_as = architecture(config) if config.model_type == OURS else config.model_type
    classes = {cls.__name__: cls for cls in (ElectraEarlyExitForPreTraining, ElectraEarlyExitForMaskedLM)}
    if saved_as not in classes:
        raise UsageError(f"{checkpoint} must hold an {' or an '.join(classes)}, got {saved_as}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is in use; choose a folder that is empty or not there yet")
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
