"""Configuration of ELECTRA with early exits."""

import math
import re

from huggingface_hub.dataclasses import strict
from transformers import ElectraConfig
from transformers.activations import ACT2FN

from .exit_criteria import CRITERIA
from .exit_policy import POLICIES, SIGNALS


# The package's version too: it stands here because this file travels with checkpoints.
__version__ = "0.1.0"

EXIT_CONTEXTS = ("all", "first", "none")
NORM_POSITIONS = ("post", "pre")
CLASSIFIER_POOLINGS = ("first", "mean")
GENERATOR_TYPES = ("mlm", "uniform", "unigram", "bigram", "shuffle", "frozen", "cached", "self", "none")
# A user's own generator, `module:attribute`. Accepted by its form: a checkpoint made with it loads where it is not.
USER_GENERATOR = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")

# Every Auto class this plugin serves. Written into each config, so that a saved folder loads with
# `trust_remote_code=True` through all of them, whichever class it was saved from.
AUTO_MAP = {
    "AutoConfig": "configuration_electra_exit.ElectraEarlyExitConfig",
    "AutoModel": "modeling_electra_exit.ElectraEarlyExitModel",
    "AutoModelForPreTraining": "modeling_electra_exit.ElectraEarlyExitForPreTraining",
    "AutoModelForMaskedLM": "modeling_masked_lm.ElectraEarlyExitForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_heads.ElectraEarlyExitForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_heads.ElectraEarlyExitForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_heads.ElectraEarlyExitForQuestionAnswering",
    "AutoModelForMultipleChoice": "modeling_heads.ElectraEarlyExitForMultipleChoice",
}


# Defaults of fields that only some policies read, filled in where the policy reads the field and it was left out.
POLICY_DEFAULTS = {
    "exit_signal": "expected_gain",
    "exit_auc_floor": 0.6,
    "exit_exploration": 0.2,
    "exit_gain_loss_weight": 0.05,
}


def reads(name: str, policy: str, signal: str | None) -> bool:
    """Whether these settings make anything read `name`, a key of [`POLICY_DEFAULTS`] or `exit_entropy_threshold`."""
    if name == "exit_entropy_threshold":
        return policy == "threshold"
    if name == "exit_gain_loss_weight":
        return policy == "topk" and signal in (None, "expected_gain")
    return policy == "topk"


@strict
class ElectraEarlyExitConfig(ElectraConfig):
    r"""
    Configuration of an ELECTRA whose tokens may exit the encoder early. Everything [`ElectraConfig`] has, with the
    same names and defaults, and the fields below.

    Args:
        norm_position (`str`, defaults to `"post"`):
            Where each block's LayerNorm stands: `"post"`, after the residual sum, as in ELECTRA; or `"pre"`, before
            the block, with one more after the last layer, which learns sooner in small models.
        exit_policy (`str`, defaults to `"random"`):
            Which tokens continue past an exit layer in pre-training: `"random"` (as many as `exit_capacities` says,
            drawn anew in each step; no ranking has been found to be better), `"topk"` (as many, ranked by
            `exit_signal`), `"threshold"` (all whose entropy exceeds `exit_entropy_threshold`) or `"none"` (no exits,
            no exit heads: plain ELECTRA). In evaluation mode the encoder runs at full depth unless a policy is passed.

            In the fine-tuning heads the policy only says whether there are exits: with any but `"none"`, whatever the
            model was pre-trained with, there is a task head at each exit layer, and all of them learn together, every
            token at full depth. Inference runs at full depth too unless there are `inference_exit_thresholds`.
            `from_pretrained(folder, exit_policy="none")` makes fine-tuning plain.
        exit_signal (`str`, *optional*, `"expected_gain"` for the `"topk"` policy):
            What the `"topk"` policy, and no other, ranks by: `"entropy"` of the exit head's prediction;
            `"sampled_entropy"`, sampling in proportion to it; or `"expected_gain"`, how much a small regressor,
            trained on exploration tokens, expects deeper layers to lower the loss.
        exit_auc_floor (`float`, *optional*, 0.6 where it is read):
            As long as the running ROC-AUC of an exit head is below this, the `"topk"` policy draws at random there.
            0 ranks from the first step.
        exit_entropy_threshold (`float` or `list[float]`, *optional*):
            Entropy in nats above which the `"threshold"` policy, and no other, lets tokens continue; two numbers are
            for tokens that the exit head calls original and replaced.
        exit_layers (`list[int]`, *optional*):
            After how many completed layers tokens may exit, strictly increasing. Left out: once, after a third of the
            depth (4 of 12).
        exit_capacities (`list[float]`, *optional*):
            For each exit layer, the share of the sequence that continues past it; must not rise with depth. Left out:
            1/8, 1/16, ...; for the `"threshold"` policy, which has no capacities, 1 at each.
        exit_context (`str`, defaults to `"all"`):
            Where tokens that exited stay visible as keys and values: in `"all"` later layers, in the `"first"` layer
            after an exit, or in `"none"`.
        exit_reentry_layers (`int`, defaults to 1):
            How many of the last layers run on all tokens again.
        exit_loss_weight (`float`, defaults to 0.2):
            Weight of the exit heads' loss, averaged over the exits, relative to the final head's own loss.
        exit_full_depth_share (`float`, defaults to 0.25):
            Share of a sequence's tokens from which exit heads and regressors learn in full-depth training steps, so
            that such a step costs little more than one of a model without exits.
        exit_gain_loss_weight (`float`, *optional*, 0.05 where it is read):
            Weight of the regressors' loss, for `exit_signal="expected_gain"`. They share no parameter with the
            encoder, and Adam takes steps of the same size whatever the weight; but gradients are clipped together, and
            where the regressors' are the larger part, the encoder learns as if its learning rate were smaller.
        exit_distillation_weight (`float`, defaults to 0.0):
            Weight, relative to the exit heads' loss, of the cross-entropy between the final head's prediction, without
            gradient, and the exit heads': on exploration tokens while pre-training, on everything labelled in the
            fine-tuning heads (the squared difference in a regression).
        exit_exploration (`float`, *optional*, 0.2 for the `"topk"` policy):
            Share of the continuing places of a `"topk"` exit that goes to tokens drawn uniformly at random.
        classifier_pooling (`str`, defaults to `"first"`):
            What the heads for whole sequences read, at the exits and at the end: the states of the `"first"` token, as
            in ELECTRA, or the `"mean"` over all tokens but padding. Early layers have put little into the first
            token, and checkpoints for sentence embeddings often nothing at all.
        inference_exit_criterion (`str`, defaults to `"confidence"`):
            When a sequence (classification, multiple choice, question answering) or a token (token classification)
            exits a fine-tuned model in evaluation mode: when its largest probability is above the threshold
            (`"confidence"`), its entropy in nats below it (`"entropy"`), or when that many exits in a row agreed with
            the one before them (`"patience"`).
        inference_exit_thresholds (`list[float]`, *optional*):
            One for each exit layer. At a confidence of 1 or an entropy of 0 none exits. Left out: full depth. They
            are refused for exit heads that the model's own loss has not trained.
        inference_exit_temperatures (`list[float]`, *optional*):
            For each exit layer, what the exit head's logits are divided by in evaluation mode. Left out: 1.
        generator_type (`str`, defaults to `"mlm"`):
            What replaces tokens. `"mlm"`: ELECTRA's small masked language model, trained jointly, inside this
            checkpoint. Drawn by the data collator: `"uniform"`, any token of the training text; `"unigram"`, as
            frequent as there; `"bigram"`, as frequent as there after the token to the left; `"shuffle"`, the chosen
            tokens of a sequence change places; `"cached"`, sampled beforehand and stored with the data. `"frozen"`: a
            masked language model trained before, which is no part of this checkpoint. `"self"`: a
            masked-language-modelling head on an early layer of the discriminator proposes what the token becomes at
            the sequence's next visit; at the first, it is as `"unigram"`. `"none"`: a discriminator alone; batches
            bring corrupted `input_ids` and `labels`.
            `"module:attribute"`: your own, imported when training starts and not when a checkpoint is loaded.
        generator_alpha (`float`, defaults to 1.0):
            Power of the frequency in `"unigram"`, and where `"bigram"` and `"self"` fall back on it: below 1, rare
            tokens are drawn more often than they occur.
        generator_size (`float`, defaults to 0.25):
            Width of the generator relative to the discriminator.
        generator_num_hidden_layers (`int`, *optional*):
            Depth of the generator. Left out: the discriminator's (narrower, not shallower).
        generator_num_attention_heads (`int`, *optional*):
            Left out: one head for every 64 units of width, at least one.
        generator_intermediate_size (`int`, *optional*):
            Left out: four times the generator's width.
        generator_head_layer (`int`, *optional*):
            For `"self"` alone: the number of the discriminator's layer after which the generator's head stands. Left
            out: the first exit layer, or a third of the depth.
        generator_weight (`float`, defaults to 1.0):
            Weight of the generator's masked-language-modelling loss.
        discriminator_weight (`float`, defaults to 50.0):
            Weight of the discriminator's loss.
        mlm_probability (`float`, defaults to 0.15):
            Share of a sequence's ordinary tokens that is masked for the generator.
        cls_token_id, sep_token_id (`int`, *optional*):
            Ids of the special tokens, which never exit. Position 0 never exits either way.
        pretraining_depths (`list[list[int]]`, *optional*):
            A record of a pre-training that grew: from which step on the model had how many layers, such as
            `[[0, 2], [480, 4]]`.
        electra_exit_version (`str`, *optional*):
            The version of this package that wrote the checkpoint, for those that load it. A config in memory always
            has the version of its own code.

    The defaults of the generator fields are those of google-research/electra (`configure_pretraining.py` and
    `get_generator_config` in `run_pretraining.py`).

    Raises:
        huggingface_hub.errors.StrictDataclassError: if a field has the wrong type or an illegal value; the message
            names the field, the value and the legal values.
    """

    model_type = "electra_early_exit"
    # Trainer gathers everything else that a head returns as predictions.
    # Of the outputs, predictions are the logits alone.
    keys_to_ignore_at_inference = [
        "discriminator_loss", "exit_loss", "gain_loss", "generator_loss", "rtd_labels", "corrupted_ids", "proposals",
        "exit_logits", "exit_positions", "exit_gains", "exit_selections", "exit_layers",
    ]  # fmt: skip

    norm_position: str = "post"
    exit_policy: str = "random"
    exit_signal: str | None = None
    exit_auc_floor: float | int | None = None
    exit_entropy_threshold: float | int | list[float | int] | None = None
    exit_layers: list[int] | None = None
    exit_capacities: list[float | int] | None = None
    exit_context: str = "all"
    exit_reentry_layers: int = 1
    exit_loss_weight: float | int = 0.2
    exit_full_depth_share: float | int = 0.25
    exit_gain_loss_weight: float | int | None = None
    exit_distillation_weight: float | int = 0.0
    exit_exploration: float | int | None = None
    classifier_pooling: str = "first"
    inference_exit_criterion: str = "confidence"
    inference_exit_thresholds: list[float | int] | None = None
    inference_exit_temperatures: list[float | int] | None = None
    generator_type: str = "mlm"
    generator_alpha: float | int = 1.0
    generator_size: float | int = 0.25
    generator_num_hidden_layers: int | None = None
    generator_num_attention_heads: int | None = None
    generator_intermediate_size: int | None = None
    generator_head_layer: int | None = None
    generator_weight: float | int = 1.0
    discriminator_weight: float | int = 50.0
    mlm_probability: float | int = 0.15
    cls_token_id: int | None = None
    sep_token_id: int | None = None
    pretraining_depths: list[list[int]] | None = None
    electra_exit_version: str | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self._refuse_other_versions()
        self.electra_exit_version = __version__
        if self.exit_layers is None:
            self.exit_layers = self.default_exit_layers()
        if self.exit_capacities is None:
            shares = [1.0 if self.exit_policy == "threshold" else 0.5 ** (i + 3) for i in range(len(self.exit_layers))]
            self.exit_capacities = shares
        self._fill_policy_fields()
        # Merged, not replaced: a user's own Auto classes survive re-saving.
        self.auto_map = {**AUTO_MAP, **getattr(self, "auto_map", {})}

    def _fill_policy_fields(self):
        """Defaults for the fields that the policy reads. The others stay empty: what they say would not happen."""
        for name, default in POLICY_DEFAULTS.items():
            if getattr(self, name) is None and reads(name, self.exit_policy, self.exit_signal):
                setattr(self, name, default)

    def _refuse_other_versions(self):
        """A newer minor version may mean something else by the same fields and weights; a patch may not. Version 0.1.0
        starts afresh: what its first development version wrote has fields and weights that are gone."""
        written_by = self.electra_exit_version
        if written_by == "0.1.0.dev0":
            raise ValueError(
                f"this checkpoint was written by electra-early-exit {written_by}, which {__version__} does not read: "
                "pre-train anew, or install that version"
            )
        if written_by is not None and _minor(written_by) > _minor(__version__):
            raise ValueError(
                f"this checkpoint was written by electra-early-exit {written_by}, and {__version__} cannot read it: "
                f"pip install 'electra-early-exit>={written_by}', or, for code loaded with `trust_remote_code=True`, "
                "leave out `code_revision`"
            )

    def default_exit_layers(self) -> list[int]:
        """A third of the depth, where a layer is left between the exit and the re-entry."""
        third = self.num_hidden_layers // 3
        return [third] if 1 <= third <= self.num_hidden_layers - self.exit_reentry_layers - 1 else []

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As everywhere in Transformers, but overrides are checked together with the rest, and where one leaves other
        fields behind, those follow: fewer layers keep the exits that fit, other exit layers take their own defaults.
        """
        changes = {
            name: value for name, value in kwargs.items() if name in (*cls.__annotations__, "num_hidden_layers")
        }
        config_dict = _follow(without_unread({**config_dict, **changes}, changes), changes)
        return super().from_dict(config_dict, **{name: v for name, v in kwargs.items() if name not in changes})

    @property
    def has_exit_heads(self) -> bool:
        """Whether the model has an exit head at each exit layer (it has none without a policy that drops tokens)."""
        return self.exit_policy != "none" and len(self.exit_layers) > 0

    @property
    def has_gain_heads(self) -> bool:
        """Whether each exit has a regressor of the expected gain beside its head."""
        return self.has_exit_heads and self.exit_policy == "topk" and self.exit_signal == "expected_gain"

    @property
    def has_inference_exits(self) -> bool:
        """Whether a fine-tuned model exits early in evaluation mode."""
        return self.has_exit_heads and self.inference_exit_thresholds is not None

    def generator_config(self) -> "ElectraEarlyExitConfig":
        """Configuration of the generator's encoder: narrower, without exits, and with the embeddings of this one."""
        hidden_size = round(self.hidden_size * self.generator_size)
        no_exits = {**dict.fromkeys(_PER_EXIT), "exit_policy": "none", "exit_layers": []}
        generator = type(self)(**{**self.to_dict(), **no_exits})
        generator.hidden_size = hidden_size
        generator.num_hidden_layers = self.generator_num_hidden_layers or self.num_hidden_layers
        generator.num_attention_heads = self.generator_num_attention_heads or max(1, hidden_size // 64)
        generator.intermediate_size = self.generator_intermediate_size or 4 * hidden_size
        generator._attn_implementation = self._attn_implementation
        return generator

    @property
    def generator_layer(self) -> int:
        """After how many layers the head of the generator `"self"` stands."""
        first_exit = self.exit_layers[0] if self.has_exit_heads else max(1, self.num_hidden_layers // 3)
        return self.generator_head_layer or first_exit

    def _check(self, name: str, legal: bool, legal_values: str):
        """Raise a ValueError that names the field, its value and the legal values unless `legal`."""
        if not legal:
            raise ValueError(f"`{name}` must be {legal_values}, got {getattr(self, name)!r}")

    def validate_sizes(self):
        """Part of `@strict`-powered validation: what ELECTRA's own config takes as it comes and fails on later."""
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "intermediate_size",
                     "max_position_embeddings", "type_vocab_size"):  # fmt: skip
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            self._check(name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for name in ("initializer_range", "layer_norm_eps"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "at least 0 and finite")
        self._check("hidden_act", self.hidden_act in ACT2FN, f"one of {', '.join(map(repr, ACT2FN))}")
        padding = self.pad_token_id
        self._check(
            "pad_token_id", padding is None or 0 <= padding < self.vocab_size, "None or an id of the vocabulary"
        )

    def validate_exits(self):
        """Part of `@strict`-powered validation: where and when tokens exit."""
        for name, choices in (
            ("exit_policy", ("none", *POLICIES)),
            ("exit_signal", (*SIGNALS, None)),
            ("exit_context", EXIT_CONTEXTS),
            ("norm_position", NORM_POSITIONS),
            ("classifier_pooling", CLASSIFIER_POOLINGS),
            ("inference_exit_criterion", tuple(CRITERIA)),
        ):
            self._check(name, getattr(self, name) in choices, f"one of {', '.join(map(repr, choices))}")
        depth = self.num_hidden_layers
        self._check(
            "exit_reentry_layers",
            0 <= self.exit_reentry_layers <= max(depth - 1, 1),
            f"between 0 and num_hidden_layers - 1 ({depth - 1})",
        )
        last = depth - self.exit_reentry_layers - 1
        self._check(
            "exit_layers",
            self.exit_layers == sorted({layer for layer in self.exit_layers if 1 <= layer <= last}),
            f"strictly increasing numbers of completed layers between 1 and {last} (num_hidden_layers - "
            f"exit_reentry_layers - 1, so that at least one layer runs on fewer tokens)"
            if last > 0
            else f"empty in a model of {depth} layers, of which {self.exit_reentry_layers} run on all tokens again",
        )
        self._check(
            "exit_capacities",
            len(self.exit_capacities) == len(self.exit_layers)
            and all(0 < keep <= 1 for keep in self.exit_capacities)
            and list(self.exit_capacities) == sorted(self.exit_capacities, reverse=True),
            f"one share in (0, 1] for each of the {len(self.exit_layers)} exit layers {self.exit_layers}, not rising "
            "with depth",
        )
        self._check_exit_rule()
        self._check_inference_exits()
        self._check("is_decoder", not self.is_decoder, "False: early exits need an encoder")
        self._check(
            "num_attention_heads",
            self.num_attention_heads >= 1 and self.hidden_size % self.num_attention_heads == 0,
            f"a divisor of hidden_size ({self.hidden_size})",
        )

    def _check_exit_rule(self):
        for name in ("exit_loss_weight", "exit_gain_loss_weight", "exit_distillation_weight"):
            self._check(name, 0 <= (getattr(self, name) or 0) < math.inf, "at least 0 and finite")
        self._check("exit_full_depth_share", 0 < self.exit_full_depth_share <= 1, "a share in (0, 1]")
        for name in ("exit_exploration", "exit_auc_floor"):
            self._check(name, 0 <= (getattr(self, name) or 0) <= 1, "between 0 and 1")
        threshold = self.exit_entropy_threshold
        given = threshold is not None
        numbers = threshold if isinstance(threshold, list) else [threshold, threshold]
        self._check(
            "exit_entropy_threshold",
            len(numbers) == 2 and all(number >= 0 for number in numbers) if given else self.exit_policy != "threshold",
            "an entropy in nats (at least 0; 0.693 is the largest there is), or two, and given for "
            "`exit_policy='threshold'`",
        )
        if self.exit_policy != "none":  # so that switching the policy off is enough to make a control run
            self._check_exit_combinations()

    def _check_inference_exits(self):
        each = f"one number for each of the {len(self.exit_layers)} exit layers {self.exit_layers}"
        patience = self.inference_exit_criterion == "patience"
        for name, legal, legal_values in (
            ("inference_exit_thresholds", lambda value: value >= patience, f"at least {patience:d}"),
            ("inference_exit_temperatures", lambda value: value > 0, "above 0"),
        ):
            values = getattr(self, name)
            fits = values is None or (len(values) == len(self.exit_layers) and all(map(legal, values)))
            self._check(name, fits, f"None or {each}, {legal_values}")

    def _check_exit_combinations(self):
        for name in (*POLICY_DEFAULTS, "exit_entropy_threshold"):
            read = reads(name, self.exit_policy, self.exit_signal)
            ranking = f" with `exit_signal={self.exit_signal!r}`" if self.exit_policy == "topk" else ""
            self._check(
                name,
                read or getattr(self, name) is None,
                f"left out for `exit_policy={self.exit_policy!r}`{ranking}, which does not read it",
            )
        self._check(
            "exit_capacities",
            self.exit_policy != "threshold" or all(keep == 1 for keep in self.exit_capacities),
            "left out for `exit_policy='threshold'`, which has no capacities",
        )
        learns_gain = self.exit_policy == "topk" and self.exit_signal == "expected_gain"
        self._check(
            "exit_exploration",
            not learns_gain or self.exit_exploration > 0,
            "above 0 for `exit_signal='expected_gain'`, whose regressor learns from exploration tokens",
        )

    def validate_generator(self):
        """Part of `@strict`-powered validation: everything about the generator and the objective."""
        self._check(
            "generator_type",
            self.generator_type in GENERATOR_TYPES or USER_GENERATOR.fullmatch(self.generator_type) is not None,
            f"one of {', '.join(map(repr, GENERATOR_TYPES))}, or `module:attribute`",
        )
        for name in ("generator_weight", "discriminator_weight", "generator_alpha"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "at least 0 and finite")
        self._check("mlm_probability", 0 < self.mlm_probability < 1, "strictly between 0 and 1")
        for name in ("generator_num_hidden_layers", "generator_num_attention_heads", "generator_intermediate_size"):
            value = getattr(self, name)
            self._check(name, value is None or value >= 1, "None or at least 1")
        if self.generator_head_layer is not None:
            deepest = self.exit_layers[0] if self.has_exit_heads else self.num_hidden_layers
            self._check(
                "generator_head_layer",
                self.generator_type == "self" and 1 <= self.generator_head_layer <= deepest,
                f"None, or for `generator_type='self'` between 1 and {deepest}, so that no token has exited before",
            )
        if self.generator_type != "mlm":
            return
        hidden_size = round(self.hidden_size * self.generator_size)
        heads = self.generator_num_attention_heads or max(1, hidden_size // 64)
        self._check(
            "generator_size",
            hidden_size >= 1 and hidden_size % heads == 0,
            f"positive and give a width (hidden_size {self.hidden_size} times it, {hidden_size}) that its {heads} "
            "attention heads divide",
        )


def without_unread(fields: dict, changes: dict) -> dict:
    """`fields` of a config, without those that its policy does not read and `changes` does not ask for: another
    policy may be asked for. What was asked for is refused where it does not fit."""
    policy = fields.get("exit_policy", ElectraEarlyExitConfig.exit_policy)
    if policy == "none":
        return fields
    signal = fields.get("exit_signal")
    unread = {name for name in (*POLICY_DEFAULTS, "exit_entropy_threshold") if not reads(name, policy, signal)}
    if policy == "threshold":
        unread.add("exit_capacities")
    return {name: value for name, value in fields.items() if name not in unread or name in changes}


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])


# Fields with one entry an exit layer.
_PER_EXIT = ("exit_capacities", "inference_exit_thresholds", "inference_exit_temperatures")


def _follow(fields: dict, changes: dict) -> dict:
    """The fields of a config some of which were changed, without what no longer fits and was not changed itself."""
    fields, depth = dict(fields), fields.get("num_hidden_layers")
    if "exit_layers" in changes:
        return {name: value for name, value in fields.items() if name not in _PER_EXIT or name in changes}
    if "num_hidden_layers" in changes and fields.get("exit_layers") is not None:
        reentry = fields.get("exit_reentry_layers", 1)
        if "exit_reentry_layers" not in changes:
            reentry = fields["exit_reentry_layers"] = min(reentry, max(depth - 1, 1))
        fields["exit_layers"] = [layer for layer in fields["exit_layers"] if layer <= depth - reentry - 1]
        for name in _PER_EXIT:
            if fields.get(name) is not None and name not in changes:
                fields[name] = fields[name][: len(fields["exit_layers"])]
    return fields


ElectraEarlyExitConfig.register_for_auto_class()

__all__ = ["ElectraEarlyExitConfig"]
