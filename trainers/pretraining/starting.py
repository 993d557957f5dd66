"""Initialization of pre-training from an existing model: `--init_from` and `--continue_from`."""

import functools
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig

from modeling_electra_exit import ElectraEarlyExitConfig, ElectraEarlyExitForPreTraining
from modeling_electra_exit.conversion import (
    copy_weights,
    early_exit_config,
    generator_settings,
    source_config,
)

from ..data.arguments import DataArguments
from ..errors import UsageError, naming_failures
from ..runtime.arguments import ElectraEarlyExitTrainingArguments
from ..runtime.compatibility import was_loaded
from ..runtime.loading import NO_THRESHOLDS, OURS, architecture, named, quiet_loading, read_config
from .continuing import check_tokenizer, finished_run


logger = logging.getLogger(__name__)

# Config fields that are determined by the weights of the model, and of its generator.
OF_ITS_WEIGHTS = (
    "vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size", "hidden_act", "layer_norm_eps", "norm_position",
)  # fmt: skip
OF_ITS_GENERATOR = (
    "generator_size", "generator_num_hidden_layers", "generator_num_attention_heads", "generator_intermediate_size",
)  # fmt: skip
# Overrides of config fields that belong to the source's run or task.
NEW_RUN = {**NO_THRESHOLDS, "pretraining_depths": None}
# Config fields that identify the source checkpoint or its task. All others are taken over.
NOT_TAKEN_OVER = {"architectures", "dtype", "transformers_version", "auto_map", "id2label", "label2id", "problem_type",
                  "model_type", "pretraining_depths"}  # fmt: skip
# Descriptions of the parts of a model, by the first component of their weights' names.
PARTS = {
    "discriminator_predictions": "the discriminator's head",
    "exit_predictions": "the exit heads",
    "exit_gains": "the gain regressors",
    "generator": "the generator",
}


def taken_over(config: ElectraEarlyExitConfig) -> dict:
    """The fields of a config that are taken over into the config of a new run."""
    return {name: value for name, value in config.to_dict().items() if name not in NOT_TAKEN_OVER}


@dataclass
class Start:
    """The model from which a pre-training starts.

    source: folder or Hub id of a model of this package, ELECTRA or BERT; or a checkpoint of the same run to resume.
    generator: folder or Hub id of the generator of an ELECTRA model, or `None`.
    config: config of the run's model, before the fields that depend on the tokenizer are set.
    """

    source: str
    generator: str | None
    config: ElectraEarlyExitConfig

    def fields(self) -> dict:
        """Config fields for [`run.build_config`]."""
        return taken_over(self.config)

    def data(self, data_args: DataArguments) -> DataArguments:
        """Data arguments with the tokenizer of the source."""
        return replace(data_args, tokenizer_name=self.source)

    def model(self, config: ElectraEarlyExitConfig) -> ElectraEarlyExitForPreTraining:
        """Load the model with fp32 weights, and log which parts are new. Missing weights are newly initialized, except
        exit heads, which are copies of the final head if the source has one.

        Raises:
            UsageError: if the source cannot be loaded, or lacks weights of the encoder.
        """
        source = read_config(self.source)
        with quiet_loading(), naming_failures(f"cannot start from `{self.source}`"):
            model = self._load(source, config)
        new = [name for name, weight in model.named_parameters() if not was_loaded(weight)]
        if missing := [name for name in new if name.startswith("electra.")]:
            raise UsageError(f"`{self.source}` lacks {len(missing)} weights of its encoder, such as {missing[0]}")
        self._log_start(source, {name.split(".")[0] for name in new})
        return model

    def _load(self, source: PreTrainedConfig, config: ElectraEarlyExitConfig) -> ElectraEarlyExitForPreTraining:
        fields = taken_over(config)
        if source.model_type == "electra":
            return ElectraEarlyExitForPreTraining.from_electra(self.source, self.generator, **fields)
        if source.model_type == "bert":
            return ElectraEarlyExitForPreTraining.from_bert(self.source, **fields)
        ours = functools.partial(ElectraEarlyExitForPreTraining.from_pretrained, self.source, dtype=torch.float32)
        if not config.has_exit_heads or source.exit_layers == config.exit_layers:
            return ours(config=config)
        return _with_other_exits(ours(), config)

    def _log_start(self, source: PreTrainedConfig, new: set[str]) -> None:
        parts = [text for name, text in PARTS.items() if name in new]
        text = f"starting from `{self.source}` ({architecture(source)}); new: {', '.join(parts) or 'nothing'}"
        if "discriminator_predictions" in new:
            text += ". It was not trained for replaced-token detection, so only its encoder is reused"
        logger.info(text)


def _with_other_exits(
    donor: ElectraEarlyExitForPreTraining, config: ElectraEarlyExitConfig
) -> ElectraEarlyExitForPreTraining:
    """A model with the weights of `donor`, but with exit heads copied from its final head, because the donor's exit
    heads were trained at other layers."""
    model = ElectraEarlyExitForPreTraining(config)
    shared = ["electra", "discriminator_predictions"]
    if hasattr(donor, "generator") and donor.config.generator_type == config.generator_type:
        shared.append("generator")
    for name in shared:
        copy_weights(getattr(model, name), getattr(donor, name))
    for head in model.exit_predictions:
        copy_weights(head, donor.discriminator_predictions)
    return model.eval()


def sources_of(args: ElectraEarlyExitTrainingArguments) -> list[str]:
    """The models that a run reads only at its start."""
    return [name for name in (args.init_from, args.generator_init_from, args.continue_from) if name is not None]


def start_facts(args: ElectraEarlyExitTrainingArguments) -> dict:
    """Card data about the models that a run starts from, without local paths. For `--continue_from`, see
    [`finished_run`]; empty for random initialization.

    Raises:
        UsageError: as [`finished_run`].
    """
    if args.continue_from is not None:
        return finished_run(args.continue_from)
    if args.init_from is None:
        return {}
    generator = {} if args.generator_init_from is None else {"generator": named(args.generator_init_from)["model"]}
    return named(args.init_from) | generator


def starting_point(
    config_fields: dict,
    data_args: DataArguments,
    args: ElectraEarlyExitTrainingArguments,
    checkpoint: str | None = None,
) -> Start | None:
    """The model that a run starts from; `None` for random initialization.

    Args:
        config_fields: explicitly given config fields.
        data_args, args: arguments of the run.
        checkpoint: checkpoint of this run to resume, which replaces the model.

    Raises:
        UsageError: if the model cannot be read or has another architecture, or contradicts given fields or arguments.
    """
    if len(sources_of(args)) > 1 and args.continue_from is not None:
        raise UsageError("--continue_from excludes --init_from and --generator_init_from: omit them")
    if args.continue_from is None and args.init_from is None:
        if args.generator_init_from is not None:
            raise UsageError("--generator_init_from requires --init_from, the discriminator that it was trained with")
        return None
    if checkpoint is not None:
        return Start(checkpoint, None, ElectraEarlyExitConfig.from_pretrained(checkpoint))
    if args.continue_from is not None:
        return _continued(config_fields, data_args, args.continue_from)
    for name, given in (("tokenizer_name", data_args.tokenizer_name), ("corpus_init", args.corpus_init)):
        if given:
            raise UsageError(f"--init_from determines tokenizer and weights: omit `{name}`")
    source = read_config(args.init_from)
    if source.model_type not in (OURS, "electra", "bert"):
        raise UsageError(
            f"`model_type` of {args.init_from} must be '{OURS}', 'electra' or 'bert', got {source.model_type!r}"
        )
    if args.generator_init_from is not None and source.model_type != "electra":
        raise UsageError(f"--generator_init_from requires an ELECTRA as --init_from, got {source.model_type!r}")
    with naming_failures(f"cannot start from `{args.init_from}`"):
        config = _config(source, args, config_fields)
    return Start(args.init_from, args.generator_init_from, config)


def _config(
    source: PreTrainedConfig, args: ElectraEarlyExitTrainingArguments, config_fields: dict
) -> ElectraEarlyExitConfig:
    """The config of the source, with the given fields."""
    if source.model_type == OURS:
        return _config_of_ours(source, args.init_from, OF_ITS_WEIGHTS, config_fields)
    plain = source_config(args.init_from, source.model_type)
    _check_agrees(args.init_from, early_exit_config(plain, {"exit_policy": "none"}).to_dict(), OF_ITS_WEIGHTS,
                  config_fields)  # fmt: skip
    settings = {}
    if args.generator_init_from is not None:
        settings = generator_settings(plain, source_config(args.generator_init_from, "electra"))
        _check_agrees(args.generator_init_from, settings, settings.keys(), config_fields)
    return early_exit_config(plain, {**settings, **config_fields})


def _config_of_ours(
    source: PreTrainedConfig, folder: str, names: tuple[str, ...], config_fields: dict
) -> ElectraEarlyExitConfig:
    if source.generator_type == config_fields.get("generator_type", source.generator_type) == "mlm":
        names += OF_ITS_GENERATOR
    _check_agrees(folder, source.to_dict(), names, config_fields)
    fields = {name: value for name, value in config_fields.items() if name not in names}
    return ElectraEarlyExitConfig.from_pretrained(folder, **NEW_RUN, **fields)


def _continued(config_fields: dict, data_args: DataArguments, folder: str) -> Start:
    """Start from a finished run. `vocab_size` is ignored: in recipes it is the limit for a new tokenizer, and the
    run's tokenizer is kept."""
    finished_run(folder)
    check_tokenizer(folder, data_args.tokenizer_name)
    fields = {name: value for name, value in config_fields.items() if name != "vocab_size"}
    with naming_failures(f"cannot continue from `{folder}`"):
        return Start(folder, None, _config_of_ours(read_config(folder), folder, OF_ITS_WEIGHTS, fields))


def _check_agrees(model: str, own: dict, names: Iterable[str], given: dict) -> None:
    """Raises: UsageError if a field in `given` differs from that of the model's weights, `own`."""
    for name in names:
        if name in given and given[name] != own[name]:
            raise UsageError(
                f"`{name}` must be that of {model}, {own[name]!r}, got {given[name]!r} from the recipe or flags: omit "
                "it, as the recipe domain-adapt does"
            )
