"""Conversion from plain ELECTRA and BERT checkpoints, and back: mixins of the model classes."""

import os

import torch
from transformers import (
    AutoConfig,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from .configuration_electra_exit import ElectraEarlyExitConfig


logger = logging.get_logger(__name__)


class FromPlain:
    """Adds `from_electra` and `from_bert` to a model class."""

    @classmethod
    def from_electra(cls, checkpoint: str | os.PathLike, **config_overrides):
        """Start from a plain ELECTRA checkpoint. At full depth the encoder computes the same hidden states.

        Args:
            checkpoint (`str`): folder or Hub id of any ELECTRA model, generators (`ElectraForMaskedLM`) included. Its
                encoder is loaded, and its head if this class has the same head.
            **config_overrides: fields of [`ElectraEarlyExitConfig`], such as `exit_layers` or `num_labels`.

        Returns:
            An instance of this class with fp32 weights. Weights missing from the checkpoint are newly initialized and
            reported.

        Raises:
            ValueError: if the checkpoint has another architecture, or its position embeddings are not absolute.
        """
        return cls._from_plain(checkpoint, "electra", config_overrides)

    @classmethod
    def from_bert(cls, checkpoint: str | os.PathLike, **config_overrides):
        """Start from a BERT checkpoint. Its encoder is an ELECTRA encoder with `embedding_size == hidden_size`.

        BERT's pooler and pre-training heads have no counterpart and are dropped.

        Args:
            checkpoint (`str`): folder or Hub id of any model of `model_type` "bert".
            **config_overrides: fields of [`ElectraEarlyExitConfig`], such as `exit_layers` or `num_labels`. For
                pre-training, set `cls_token_id` and `sep_token_id`, so that these tokens never exit.

        Returns:
            An instance of this class with fp32 weights. At full depth its hidden states equal those of `BertModel`.

        Raises:
            ValueError: if the checkpoint has another architecture, or its position embeddings are not absolute.
        """
        return cls._from_plain(checkpoint, "bert", config_overrides)

    @classmethod
    def _from_plain(cls, checkpoint, model_type: str, config_overrides: dict):
        config = early_exit_config(source_config(checkpoint, model_type), config_overrides)
        return cls.from_pretrained(
            checkpoint, config=config, key_mapping={rf"^{model_type}\.": "electra."}, dtype=torch.float32
        )


class PlainPreTraining(FromPlain):
    """Converts a pair of plain ELECTRA checkpoints, discriminator and generator, and writes such a pair."""

    @classmethod
    def from_electra(
        cls, checkpoint: str | os.PathLike, generator: str | os.PathLike | None = None, **config_overrides
    ):
        """Start from plain ELECTRA checkpoints.

        Args:
            checkpoint (`str`): folder or Hub id of an `ElectraForPreTraining`. From an `ElectraForMaskedLM` only the
                encoder is loaded, and the discriminator's head is newly initialized.
            generator (`str`, *optional*): folder or Hub id of the `ElectraForMaskedLM` trained with it. Its sizes are
                read from its config. If omitted, the generator is new, with the sizes of the config. The published
                ELECTRA generators are as wide as the discriminator in Small++ (`generator_size=1.0`), a third as wide
                in Base and a quarter in Large.
            **config_overrides: fields of [`ElectraEarlyExitConfig`], such as `exit_policy` or `exit_layers`.

        Returns:
            [`ElectraEarlyExitForPreTraining`] in evaluation mode. With `exit_policy="none"` its logits equal the
            discriminator's. Exit heads start as copies of the discriminator's head.

        Raises:
            ValueError: if a checkpoint has another architecture, or the generator's `vocab_size`, `embedding_size`,
                `max_position_embeddings`, `type_vocab_size` or `hidden_act` differs from the discriminator's.
        """
        config, donor = source_config(checkpoint, "electra"), None
        if generator is not None:
            config_overrides = {
                **generator_settings(config, source_config(generator, "electra")),
                **config_overrides,
            }
            donor = ElectraForMaskedLM.from_pretrained(generator)
        source = ElectraForPreTraining.from_pretrained(checkpoint)
        model = cls(early_exit_config(config, config_overrides))
        copy_weights(model.electra, source.electra)
        for head in (model.discriminator_predictions, *getattr(model, "exit_predictions", ())):
            copy_weights(head, source.discriminator_predictions)
        if donor is not None:
            model._load_generator(donor)
        return model.eval()

    def _load_generator(self, donor: ElectraForMaskedLM):
        """Copy a plain ELECTRA generator, except for its embeddings: this model shares the discriminator's. Warn if
        the two differ."""
        own = self.electra.embeddings.state_dict()
        for name, value in donor.electra.embeddings.state_dict().items():
            if not torch.equal(own[name], value):
                logger.warning(
                    f"The generator's `embeddings.{name}` differs from the discriminator's by up to "
                    f"{(own[name] - value).abs().max().item():.3g}; this model uses the discriminator's for both."
                )
        for ours, theirs in self._generator_parts(donor):
            copy_weights(ours, theirs)
        with torch.no_grad():
            self.generator.lm_head.bias.copy_(donor.generator_lm_head.bias)
        _note_found(self.generator.lm_head.bias, donor.generator_lm_head.bias)

    def _generator_parts(self, plain: PreTrainedModel) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
        """Pairs of corresponding modules of this generator and a plain one, without embeddings and output layer."""
        parts = [
            (self.generator.encoder, plain.electra.encoder),
            (self.generator.predictions, plain.generator_predictions),
        ]
        if hasattr(self.generator, "embeddings_project"):
            parts.append((self.generator.embeddings_project, plain.electra.embeddings_project))
        return parts

    def to_electra(self, folder: str | os.PathLike) -> dict[str, str]:
        """Write plain ELECTRA checkpoints, which load without this plugin. Exit heads are dropped.

        Args:
            folder (`str`): where to write the subfolders `discriminator` (`ElectraForPreTraining`) and, for
                `generator_type="mlm"`, `generator` (`ElectraForMaskedLM`).

        Returns:
            `dict[str, str]`: the folder of each part, by `"discriminator"` and `"generator"`.

        Raises:
            ValueError: for `norm_position="pre"`, which plain ELECTRA does not support.
        """
        check_plain_form(self.config)
        plain = plain_model(ElectraForPreTraining, self.config)
        plain.electra.load_state_dict(self.electra.state_dict())
        plain.discriminator_predictions.load_state_dict(self.discriminator_predictions.state_dict())
        parts = {"discriminator": plain}
        if self.config.generator_type == "mlm":
            parts["generator"] = self._plain_generator()
        written = {name: os.path.join(folder, name) for name in parts}
        for name, part in parts.items():
            part.to(self.dtype).save_pretrained(written[name])
        return written

    def _plain_generator(self) -> ElectraForMaskedLM:
        plain = plain_model(ElectraForMaskedLM, self.config.generator_config())
        self.copy_generator(plain)
        return plain

    def copy_generator(self, target: PreTrainedModel):
        """Copy the generator's weights into a masked language model of the same sizes with ELECTRA's module names."""
        target.electra.embeddings.load_state_dict(self.electra.embeddings.state_dict())
        for ours, theirs in self._generator_parts(target):
            theirs.load_state_dict(ours.state_dict())
        target.generator_lm_head.load_state_dict(self.generator.lm_head.state_dict())
        target.tie_weights()


def check_plain_form(config: ElectraEarlyExitConfig):
    """Raise a ValueError if plain ELECTRA cannot represent a model of this config."""
    if config.norm_position != "post":
        raise ValueError(
            f"`norm_position` must be 'post' to write a plain ELECTRA, which normalizes after each block, got "
            f"{config.norm_position!r}"
        )


def plain_model(model_class: type[PreTrainedModel], config: ElectraEarlyExitConfig) -> PreTrainedModel:
    """A newly initialized plain ELECTRA model with the sizes of `config`."""
    return model_class(ElectraConfig(**electra_settings(config)))


def copy_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Copy the weights of `theirs` into `ours`, with the marks that `from_pretrained` has set on them."""
    ours.load_state_dict(theirs.state_dict())
    found = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        _note_found(weight, found[name])


def _note_found(weight: torch.nn.Parameter, original: torch.nn.Parameter) -> None:
    """Copy the mark that `from_pretrained` sets on weights found in a checkpoint, so that a copy is not reported as
    newly initialized."""
    weight._is_hf_initialized = getattr(original, "_is_hf_initialized", False)


def generator_settings(discriminator: ElectraConfig, generator: ElectraConfig) -> dict:
    """The fields of [`ElectraEarlyExitConfig`] that describe a plain generator.

    Raises:
        ValueError: if the generator's settings do not match the discriminator's.
    """
    for name in ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size", "hidden_act"):
        if getattr(discriminator, name) != getattr(generator, name):
            raise ValueError(
                f"the generator's `{name}` must be the discriminator's ({getattr(discriminator, name)!r}), "
                f"got {getattr(generator, name)!r}"
            )
    return {
        "generator_type": "mlm",
        "generator_size": generator.hidden_size / discriminator.hidden_size,
        "generator_num_hidden_layers": generator.num_hidden_layers,
        "generator_num_attention_heads": generator.num_attention_heads,
        "generator_intermediate_size": generator.intermediate_size,
    }


def source_config(checkpoint, model_type: str) -> PreTrainedConfig:
    """The config of a plain checkpoint.

    Raises:
        ValueError: if its `model_type` differs, or its position embeddings are not absolute.
    """
    config = AutoConfig.from_pretrained(checkpoint)
    if config.model_type != model_type:
        raise ValueError(f"`model_type` of {checkpoint} must be {model_type!r}, got {config.model_type!r}")
    # Transformers 5 supports no other type and would load the weights silently.
    positions = getattr(config, "position_embedding_type", "absolute")
    if positions != "absolute":
        raise ValueError(f"`position_embedding_type` of {checkpoint} must be 'absolute', got {positions!r}")
    return config


def electra_settings(config: PreTrainedConfig) -> dict:
    """The fields of [`ElectraConfig`] in a config, without those that identify the checkpoint."""
    fields = ElectraConfig().to_dict().keys() - {"model_type", "architectures", "dtype", "transformers_version"}
    return {name: value for name, value in config.to_dict().items() if name in fields}


def early_exit_config(source: PreTrainedConfig, overrides: dict) -> ElectraEarlyExitConfig:
    """The [`ElectraEarlyExitConfig`] for the weights of a plain ELECTRA or BERT model."""
    settings = {"embedding_size": source.hidden_size, **electra_settings(source)}
    if "num_labels" in overrides:  # the source's label names belong to another number of labels
        settings = {name: value for name, value in settings.items() if name not in ("id2label", "label2id")}
    return ElectraEarlyExitConfig(**{**settings, **overrides})
