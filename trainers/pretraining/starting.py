"""The model that a pre-training starts from, where it does not start from random weights: `--init_from` and
`--continue_from`."""

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

# Fields of the config that weights fit or do not.
OF_ITS_WEIGHTS = (
    "vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size", "hidden_act", "layer_norm_eps", "norm_position",
)  # fmt: skip
OF_ITS_GENERATOR = (
    "generator_size", "generator_num_hidden_layers", "generator_num_attention_heads", "generator_intermediate_size",
)  # fmt: skip
# What a config says of the run, or the task, that is over.
NEW_RUN = {**NO_THRESHOLDS, "pretraining_depths": None}
# What says what a checkpoint was, or follows from the tokenizer; a config's other fields are the run's.
NOT_TAKEN_OVER = {"architectures", "dtype", "transformers_version", "auto_map", "id2label", "label2id", "problem_type",
                  "model_type", "pretraining_depths"}  # fmt: skip
# Parts of a model, by the first word of their weights' names.
PARTS = {
    "discriminator_predictions": "the discriminator's head",
    "exit_predictions": "the heads of the exits",
    "exit_gains": "the regressors of the exits",
    "generator": "the generator",
}


def taken_over(config: ElectraEarlyExitConfig) -> dict:
    """The fields of a config that another model's config takes over."""
    return {name: value for name, value in config.to_dict().items() if name not in NOT_TAKEN_OVER}


@dataclass
class Start:
    """What a pre-training starts from.

    source: folder or Hub id of a model of ours, an ELECTRA or a BERT; or the run's own checkpoint, where it continues.
    generator: of an ELECTRA's generator, or `None`.
    config: what the run's model is, but for what its tokenizer says.
    """

    source: str
    generator: str | None
    config: ElectraEarlyExitConfig

    def fields(self) -> dict:
        """Of the config, as [`run.build_config`] takes them."""
        return taken_over(self.config)

    def data(self, data_args: DataArguments) -> DataArguments:
        return replace(data_args, tokenizer_name=self.source)

    def model(self, config: ElectraEarlyExitConfig) -> ElectraEarlyExitForPreTraining:
        """The model in training, weights in fp32. What the source lacks is drawn from torch's generator, but for exit
        heads, which are copies of the final head where that was trained; one line of the log says what is new.

        Raises:
            UsageError: if the source cannot be loaded, or lacks weights of the encoder.
        """
        source = read_config(self.source)
        with quiet_loading(), naming_failures(f"cannot start from `{self.source}`"):
            model = self._load(source, config)
        new = [name for name, weight in model.named_parameters() if not was_loaded(weight)]
        if missing := [name for name in new if name.startswith("electra.")]:
            raise UsageError(f"`{self.source}` lacks {len(missing)} weights of its encoder, such as {missing[0]}")
        self._say(source, {name.split(".")[0] for name in new})
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

    def _say(self, source: PreTrainedConfig, new: set[str]) -> None:
        parts = [text for name, text in PARTS.items() if name in new]
        text = f"starting from `{self.source}` ({architecture(source)}); new: {', '.join(parts) or 'nothing'}"
        if "discriminator_predictions" in new:
            text += ". It was never trained to tell replaced tokens: its encoder is what is taken over"
        logger.info(text)


def _with_other_exits(
    donor: ElectraEarlyExitForPreTraining, config: ElectraEarlyExitConfig
) -> ElectraEarlyExitForPreTraining:
    """A model with the weights of another but for the exits' heads, which were trained after other layers: they start
    as the final head."""
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
    """The models that a run reads when it begins."""
    return [name for name in (args.init_from, args.generator_init_from, args.continue_from) if name is not None]


def start_facts(args: ElectraEarlyExitTrainingArguments) -> dict:
    """What the card says of the models that were named: which, and no place on this machine; for a run that another
    one continues, see [`finished_run`]. Empty without any.

    Raises: as [`finished_run`].
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
    """Where a run starts that names a model; `None` for one that does not.

    Args:
        config_fields: those that were given.
        checkpoint: of this run, from which it continues. The model is not needed any more.

    Raises:
        UsageError: if the model cannot be read or is of another kind, or something that was given contradicts it.
    """
    if len(sources_of(args)) > 1 and args.continue_from is not None:
        raise UsageError("--continue_from says where the run starts: leave out --init_from and --generator_init_from")
    if args.continue_from is None and args.init_from is None:
        if args.generator_init_from is not None:
            raise UsageError("--generator_init_from needs --init_from, the discriminator that it was trained with")
        return None
    if checkpoint is not None:
        return Start(checkpoint, None, ElectraEarlyExitConfig.from_pretrained(checkpoint))
    if args.continue_from is not None:
        return _continued(config_fields, data_args, args.continue_from)
    for name, given in (("tokenizer_name", data_args.tokenizer_name), ("corpus_init", args.corpus_init)):
        if given:
            raise UsageError(f"--init_from brings its own tokenizer and weights: leave out `{name}`")
    source = read_config(args.init_from)
    if source.model_type not in (OURS, "electra", "bert"):
        raise UsageError(
            f"`model_type` of {args.init_from} must be '{OURS}', 'electra' or 'bert', got {source.model_type!r}"
        )
    if args.generator_init_from is not None and source.model_type != "electra":
        raise UsageError(f"--generator_init_from needs an ELECTRA as --init_from, got {source.model_type!r}")
    with naming_failures(f"cannot start from `{args.init_from}`"):
        config = _config(source, args, config_fields)
    return Start(args.init_from, args.generator_init_from, config)


def _config(
    source: PreTrainedConfig, args: ElectraEarlyExitTrainingArguments, config_fields: dict
) -> ElectraEarlyExitConfig:
    """That of the source with what was given."""
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
    """The end of a finished run. The recipe that made it says how large a tokenizer is trained at most, and that
    embeddings start from statistics: neither is done again."""
    finished_run(folder)
    check_tokenizer(folder, data_args.tokenizer_name)
    fields = {name: value for name, value in config_fields.items() if name != "vocab_size"}
    with naming_failures(f"cannot continue from `{folder}`"):
        return Start(folder, None, _config_of_ours(read_config(folder), folder, OF_ITS_WEIGHTS, fields))


def _check_agrees(model: str, own: dict, names: Iterable[str], given: dict) -> None:
    """Raises: UsageError if a field that was given is not that of the weights."""
    for name in names:
        if name in given and given[name] != own[name]:
            raise UsageError(
                f"`{name}` of {model} is {own[name]!r}, and the recipe or flags say {given[name]!r}: leave it out, as "
                "the recipe domain-adapt does"
            )
