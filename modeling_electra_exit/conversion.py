"""From plain ELECTRA and BERT checkpoints, and back: what the models' classes inherit for it."""

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
    """Starting any of our models from a plain encoder."""

    @classmethod
    def from_electra(cls, checkpoint: str | os.PathLike, **config_overrides):
        """Start from a plain ELECTRA checkpoint, at full depth its equal.

        Args:
            checkpoint (`str`): folder or Hub id of any ELECTRA: its encoder is taken (a generator's too, as that of
                an `ElectraForMaskedLM`), and its head where this class has the same.
            **config_overrides: fields of [`ElectraEarlyExitConfig`], such as `exit_layers` or `num_labels`.

        Returns:
            This class, with its weights in fp32. What the checkpoint lacks is new, and is reported as such.

        Raises:
            ValueError: if the checkpoint is of another architecture.
        """
        return cls._from_plain(checkpoint, "electra", config_overrides)

    @classmethod
    def from_bert(cls, checkpoint: str | os.PathLike, **config_overrides):
        """Start from a BERT checkpoint, whose encoder is an ELECTRA's with embeddings as wide as its layers.

        BERT's pooler and its pre-training heads have no counterpart and are left out.

        Args:
            checkpoint (`str`): folder or Hub id of any model of `model_type` "bert".
            **config_overrides: fields of [`ElectraEarlyExitConfig`], such as `exit_layers` or `num_labels`. For
                pre-training, `cls_token_id` and `sep_token_id` name the tokens that must not exit.

        Returns:
            This class, with its weights in fp32. At full depth its hidden states are `BertModel`'s.

        Raises:
            ValueError: if the checkpoint is of another architecture, or its positions are not absolute.
        """
        return cls._from_plain(checkpoint, "bert", config_overrides)

    @classmethod
    def _from_plain(cls, checkpoint, model_type: str, config_overrides: dict):
        config = early_exit_config(source_config(checkpoint, model_type), config_overrides)
        return cls.from_pretrained(
            checkpoint, config=config, key_mapping={rf"^{model_type}\.": "electra."}, dtype=torch.float32
        )


class PlainPreTraining(FromPlain):
    """Discriminator and generator from two plain checkpoints, and back to two."""

    @classmethod
    def from_electra(
        cls, checkpoint: str | os.PathLike, generator: str | os.PathLike | None = None, **config_overrides
    ):
        """Start from plain ELECTRA checkpoints.

        Args:
            checkpoint (`str`): folder or Hub id of an `ElectraForPreTraining`. An `ElectraForMaskedLM` gives its
                encoder, and the discriminator's head is new.
            generator (`str`, *optional*): folder or Hub id of the `ElectraForMaskedLM` trained with it. Its size is
                taken from its config. Left out: a fresh generator as the config asks for. ELECTRA's own are as wide
                as the discriminator in Small++ (`generator_size=1.0`), a third of it in Base, a quarter in Large.
            **config_overrides: fields of [`ElectraEarlyExitConfig`], such as `exit_policy` or `exit_layers`.

        Returns:
            [`ElectraEarlyExitForPreTraining`] whose `exit_policy="none"` logits are the discriminator's. Exit heads
            start from the discriminator's final head.

        Raises:
            ValueError: if a checkpoint is of another architecture, or the generator's vocabulary, embedding size or
                depth-independent settings do not fit.
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
        """Copy a plain ELECTRA generator. Its embeddings are the discriminator's here; say so where they differ."""
        own = self.electra.embeddings.state_dict()
        for name, value in donor.electra.embeddings.state_dict().items():
            if not torch.equal(own[name], value):
                logger.warning(
                    f"The generator's `embeddings.{name}` differs from the discriminator's by up to "
                    f"{(own[name] - value).abs().max().item():.3g}; they share one here, the discriminator's."
                )
        for ours, theirs in self._generator_parts(donor):
            copy_weights(ours, theirs)
        with torch.no_grad():
            self.generator.lm_head.bias.copy_(donor.generator_lm_head.bias)
        _note_found(self.generator.lm_head.bias, donor.generator_lm_head.bias)

    def _generator_parts(self, plain: PreTrainedModel) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
        """The generator's modules here and in a plain one, but for the embeddings and the output layer."""
        parts = [
            (self.generator.encoder, plain.electra.encoder),
            (self.generator.predictions, plain.generator_predictions),
        ]
        if hasattr(self.generator, "embeddings_project"):
            parts.append((self.generator.embeddings_project, plain.electra.embeddings_project))
        return parts

    def to_electra(self, folder: str | os.PathLike) -> dict[str, str]:
        """Write plain ELECTRA checkpoints that need no plugin. Exit heads have no place there and are left out.

        Args:
            folder (`str`): gets a subfolder `discriminator` (`ElectraForPreTraining`) and, if there is a generator,
                `generator` (`ElectraForMaskedLM`).

        Returns:
            `dict[str, str]`: the folder written for each part.

        Raises:
            ValueError: for `norm_position="pre"`, which plain ELECTRA does not know.
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
        """Copy the generator's weights into a masked language model of its sizes that has ELECTRA's modules."""
        target.electra.embeddings.load_state_dict(self.electra.embeddings.state_dict())
        for ours, theirs in self._generator_parts(target):
            theirs.load_state_dict(ours.state_dict())
        target.generator_lm_head.load_state_dict(self.generator.lm_head.state_dict())
        target.tie_weights()


def check_plain_form(config: ElectraEarlyExitConfig):
    """Raise a ValueError for a model that plain ELECTRA has no form of."""
    if config.norm_position != "post":
        raise ValueError(
            f"plain ELECTRA normalises after each block; this model has `norm_position={config.norm_position!r}` and "
            "no plain form"
        )


def plain_model(model_class: type[PreTrainedModel], config: ElectraEarlyExitConfig) -> PreTrainedModel:
    """A new plain ELECTRA of the sizes of a config of ours."""
    return model_class(ElectraConfig(**electra_settings(config)))


def copy_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Give a module the weights of another, and what `from_pretrained` has noted of them."""
    ours.load_state_dict(theirs.state_dict())
    found = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        _note_found(weight, found[name])


def _note_found(weight: torch.nn.Parameter, original: torch.nn.Parameter) -> None:
    """`from_pretrained` marks the weights that the checkpoint had; a copy of one is as little new."""
    weight._is_hf_initialized = getattr(original, "_is_hf_initialized", False)


def generator_settings(discriminator: ElectraConfig, generator: ElectraConfig) -> dict:
    """The fields of our config that describe a given generator of a given discriminator."""
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
    """The config of a plain checkpoint, of that architecture."""
    config = AutoConfig.from_pretrained(checkpoint)
    if config.model_type != model_type:
        raise ValueError(f"`model_type` of {checkpoint} must be {model_type!r}, got {config.model_type!r}")
    # Transformers 5 no longer has any other, and would load the weights without a word.
    positions = getattr(config, "position_embedding_type", "absolute")
    if positions != "absolute":
        raise ValueError(f"`position_embedding_type` of {checkpoint} must be 'absolute', got {positions!r}")
    return config


def electra_settings(config: PreTrainedConfig) -> dict:
    """The fields of [`ElectraConfig`] in a config, less those that say what the checkpoint was."""
    fields = ElectraConfig().to_dict().keys() - {"model_type", "architectures", "dtype", "transformers_version"}
    return {name: value for name, value in config.to_dict().items() if name in fields}


def early_exit_config(source: PreTrainedConfig, overrides: dict) -> ElectraEarlyExitConfig:
    """Our config for the weights of a plain ELECTRA or BERT."""
    settings = {"embedding_size": source.hidden_size, **electra_settings(source)}
    if "num_labels" in overrides:  # the names of another number of labels
        settings = {name: value for name, value in settings.items() if name not in ("id2label", "label2id")}
    return ElectraEarlyExitConfig(**{**settings, **overrides})
