"""Configuration of ELECTRA with early exits."""

import math
import re

from huggingface_hub.dataclasses import strict
from transformers import ElectraConfig
from transformers.activations import ACT2FN

from .exit_criteria import CRITERIA
from .exit_policy import POLICIES, SIGNALS


# Also the package's version, defined here because this file is copied into checkpoints.
__version__ = "0.1.0"

EXIT_CONTEXTS = ("all", "first", "none")
NORM_POSITIONS = ("post", "pre")
CLASSIFIER_POOLINGS = ("first", "mean")
GENERATOR_TYPES = ("mlm", "uniform", "unigram", "bigram", "shuffle", "frozen", "cached", "self", "none")
# A user-defined generator, `module:attribute`. Only its syntax is checked, so that a checkpoint loads where the module
# is not installed.
USER_GENERATOR = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")

# Every Auto class that this plugin supports. Written into each config, so that a saved folder loads through any of
# them with `trust_remote_code=True`, whichever class saved it.
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


# Defaults of fields that only some policies read. They are filled in when the policy reads the field and it is unset.
POLICY_DEFAULTS = {
    "exit_signal": "expected_gain",
    "exit_auc_floor": 0.6,
    "exit_exploration": 0.2,
    "exit_gain_loss_weight": 0.05,
}


def reads(name: str, policy: str, signal: str | None) -> bool:
    """Whether a policy reads the field `name`: a key of [`POLICY_DEFAULTS`] or `exit_entropy_threshold`."""
    if name == "exit_entropy_threshold":
        return policy == "threshold"
    if name == "exit_gain_loss_weight":
        return policy == "topk" and signal in (None, "expected_gain")
    return policy == "topk"


@strict
class ElectraEarlyExitConfig(ElectraConfig):
    r"""
    Configuration of an ELECTRA model with early exits. It has all fields of [`ElectraConfig`], with the same defaults,
    and the fields below.

    Args:
        norm_position (`str`, defaults to `"post"`):
            Position of each block's LayerNorm: `"post"`, after the residual sum, as in ELECTRA; or `"pre"`, before the
            block, with an extra one after the last layer. Small models learn faster with `"pre"`.
        exit_policy (`str`, defaults to `"random"`):
            Which tokens continue past an exit layer in pre-training: `"random"` (a share of `exit_capacities`, drawn
            anew in each step; no ranking did better in our studies), `"topk"` (the same share, ranked by
            `exit_signal`), `"threshold"` (all tokens whose entropy exceeds `exit_entropy_threshold`) or `"none"` (no
            exits and no exit heads: plain ELECTRA). In evaluation mode the encoder runs at full depth unless a policy
            is passed.

            In fine-tuning the policy only enables exits: any policy but `"none"` adds a task head at each exit layer.
            All heads are trained jointly, with every token at full depth. Inference also runs at full depth unless
            `inference_exit_thresholds` are set. `from_pretrained(folder, exit_policy="none")` disables exits.
        exit_signal (`str`, *optional*):
            Score by which the `"topk"` policy ranks tokens: `"entropy"` of the exit head's prediction;
            `"sampled_entropy"`, sampling in proportion to that entropy; or `"expected_gain"`, the reduction of the
            loss by deeper layers, predicted by a small regressor that is trained on exploration tokens. Only for
            `"topk"`; if unset, `"expected_gain"`.
        exit_auc_floor (`float`, *optional*):
            ROC-AUC below which the `"topk"` policy draws at random instead of ranking, for each exit head by its
            running mean. 0 ranks from the first step. Only for `"topk"`; if unset, 0.6.
        exit_entropy_threshold (`float` or `list[float]`, *optional*):
            Entropy in nats above which a token continues under the `"threshold"` policy. Two numbers apply to tokens
            that the exit head predicts to be original and replaced, respectively. Only for `"threshold"`.
        exit_layers (`list[int]`, *optional*):
            Numbers of completed layers after which tokens may exit, strictly increasing. If unset, one exit after a
            third of the depth (4 of 12), or after the first layer of two.
        exit_capacities (`list[float]`, *optional*):
            Share of the sequence that continues past each exit layer; must not increase with depth. If unset, 1/8,
            1/16, ...; for the `"threshold"` policy, which has no capacities, 1 at each.
        exit_context (`str`, defaults to `"all"`):
            Later layers that still attend to exited tokens as keys and values: `"all"`, only the `"first"` after an
            exit, or `"none"`.
        exit_reentry_layers (`int`, *optional*):
            Number of final layers that run on all tokens again in pre-training. If unset, 1; in a model of two layers,
            0, so that it can have an exit.
        exit_loss_weight (`float`, defaults to 0.2):
            Weight of the exit heads' loss, averaged over the exits, relative to the final head's loss.
        exit_full_depth_share (`float`, defaults to 0.25):
            Share of a sequence's tokens on which exit heads and regressors are trained in full-depth steps, so that
            such a step costs little more than one without exits.
        exit_gain_loss_weight (`float`, *optional*):
            Weight of the regressors' loss. The regressors share no parameters with the encoder, and Adam's step size
            does not depend on the weight. Gradients are clipped jointly, however: if the regressors' gradients
            dominate the norm, the encoder's effective learning rate drops. Only for `exit_signal="expected_gain"`; if
            unset, 0.05.
        exit_distillation_weight (`float`, defaults to 0.0):
            Weight of distillation from the final head into the exit heads, relative to the exit heads' loss. The loss
            is the cross-entropy with the final head's detached prediction (the squared difference for regression): on
            exploration tokens in pre-training, on all labeled items in fine-tuning.
        exit_exploration (`float`, *optional*):
            Share of an exit's capacity that goes to tokens drawn uniformly at random. Only for `"topk"`; if unset,
            0.2.
        classifier_pooling (`str`, defaults to `"first"`):
            Input of sequence-level heads, at the exits and at the end: the hidden state of the `"first"` token, as in
            ELECTRA, or the `"mean"` over all tokens except padding. In early layers the first token carries little
            information, and in sentence-embedding checkpoints often none.
        inference_exit_criterion (`str`, defaults to `"confidence"`):
            Criterion by which a sequence (classification, multiple choice, question answering) or a token (token
            classification) exits a fine-tuned model in evaluation mode: its largest probability is above the threshold
            (`"confidence"`), its entropy in nats is below it (`"entropy"`), or that many exits in a row agreed with
            the preceding one (`"patience"`).
        inference_exit_thresholds (`list[float]`, *optional*):
            One threshold for each exit layer. A confidence of 1 or an entropy of 0 disables the exit. If unset,
            inference runs at full depth. Exit heads that the model's own loss has not trained are rejected.
        inference_exit_temperatures (`list[float]`, *optional*):
            Temperature for each exit layer, by which the exit head's logits are divided in evaluation mode. If unset,
            1.
        generator_type (`str`, defaults to `"mlm"`):
            Source of the replacement tokens. `"mlm"`: ELECTRA's small masked language model, trained jointly and part
            of this checkpoint. Drawn by the data collator: `"uniform"`, any token of the training text with equal
            probability; `"unigram"`, by frequency in the training text; `"bigram"`, by frequency after the token to
            the left; `"shuffle"`, the chosen tokens of a sequence are permuted; `"cached"`, sampled in advance and
            stored with the data. `"frozen"`: a pre-trained masked language model that is not part of this checkpoint.
            `"self"`: a masked-language-modeling head on an early layer of the discriminator proposes the replacements
            for the next epoch; the first epoch uses `"unigram"`. `"none"`: a discriminator alone, trained on batches
            of corrupted `input_ids` and `labels`. `"module:attribute"`: a generator of your own, imported when
            training starts, not when a checkpoint is loaded.
        generator_alpha (`float`, defaults to 1.0):
            Exponent of the token frequency in `"unigram"`, also where `"bigram"` and `"self"` fall back on it. Below
            1, rare tokens are drawn more often than they occur.
        generator_size (`float`, defaults to 0.25):
            Width of the generator relative to the discriminator.
        generator_num_hidden_layers (`int`, *optional*):
            Depth of the generator. If unset, the discriminator's depth (narrower, not shallower).
        generator_num_attention_heads (`int`, *optional*):
            Attention heads of the generator. If unset, one for every 64 units of width, at least one.
        generator_intermediate_size (`int`, *optional*):
            Width of the generator's feed-forward layers. If unset, four times the generator's width.
        generator_head_layer (`int`, *optional*):
            Number of discriminator layers below the generator's head, only for `"self"`. If unset, the first exit
            layer, or a third of the depth without exits.
        generator_weight (`float`, defaults to 1.0):
            Weight of the generator's masked-language-modeling loss.
        discriminator_weight (`float`, defaults to 50.0):
            Weight of the discriminator's loss.
        mlm_probability (`float`, defaults to 0.15):
            Share of a sequence's tokens that is masked for the generator. Special tokens count, but are never masked.
        cls_token_id, sep_token_id (`int`, *optional*):
            Ids of the special tokens, which never exit. Position 0 never exits in any case.
        pretraining_depths (`list[list[int]]`, *optional*):
            Record of a depth schedule: pairs of a step and the number of layers from that step on, such as
            `[[0, 2], [480, 4]]`.
        electra_exit_version (`str`, *optional*):
            Version of this package that wrote the checkpoint. A config in memory always has the version of the running
            code.

    The defaults of the generator fields are those of google-research/electra (`configure_pretraining.py` and
    `get_generator_config` in `run_pretraining.py`).

    Raises:
        huggingface_hub.errors.StrictDataclassError: if a field has the wrong type or an illegal value; the message
            names the field, the value and the legal values.
    """

    model_type = "electra_early_exit"
    # Only the logits are predictions. Trainer would gather these outputs as predictions, too.
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
    exit_reentry_layers: int | None = None
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
        if self.exit_reentry_layers is None:
            self.exit_reentry_layers = most_reentry_layers(None, self.num_hidden_layers)
        if self.exit_layers is None:
            self.exit_layers = self.default_exit_layers()
        if self.exit_capacities is None:
            shares = [1.0 if self.exit_policy == "threshold" else 0.5 ** (i + 3) for i in range(len(self.exit_layers))]
            self.exit_capacities = shares
        self._fill_policy_fields()
        # Merged, not replaced, so that a user's own Auto classes survive re-saving.
        self.auto_map = {**AUTO_MAP, **getattr(self, "auto_map", {})}

    def _fill_policy_fields(self):
        """Fill in the defaults of the fields that the policy reads. The others stay `None`, as they have no effect."""
        for name, default in POLICY_DEFAULTS.items():
            if getattr(self, name) is None and reads(name, self.exit_policy, self.exit_signal):
                setattr(self, name, default)

    def _refuse_other_versions(self):
        """Reject checkpoints of newer minor versions, which may have changed the meaning of fields and weights, and of
        0.1.0.dev0, whose fields and weights no longer exist."""
        written_by = self.electra_exit_version
        if written_by == "0.1.0.dev0":
            raise ValueError(
                f"this checkpoint was written by electra-early-exit {written_by}, which {__version__} cannot read: "
                "pre-train again, or install that version"
            )
        if written_by is not None and _minor(written_by) > _minor(__version__):
            raise ValueError(
                f"this checkpoint was written by electra-early-exit {written_by}, and {__version__} cannot read it: "
                f"pip install 'electra-early-exit>={written_by}', or, for code loaded with `trust_remote_code=True`, "
                "leave out `code_revision`"
            )

    def default_exit_layers(self) -> list[int]:
        """One exit after a third of the depth, at least one layer; none if no layer remains before the re-entry."""
        third = max(1, self.num_hidden_layers // 3)
        return [third] if third <= self.num_hidden_layers - self.exit_reentry_layers - 1 else []

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in Transformers, but overrides are validated together with the stored fields, and dependent fields are
        adjusted: with fewer layers, only the exits that fit remain; new exit layers get default values; and a policy
        for a model without exits adds the default ones."""
        changes = {
            name: value for name, value in kwargs.items() if name in (*cls.__annotations__, "num_hidden_layers")
        }
        if config_dict.get("num_hidden_layers", cls.num_hidden_layers) <= 2 and "num_hidden_layers" in changes:
            config_dict = {**config_dict, "exit_reentry_layers": None}  # two layers have no choice but 0
        config_dict = _follow(without_unread({**config_dict, **changes}, changes), changes)
        return super().from_dict(config_dict, **{name: v for name, v in kwargs.items() if name not in changes})

    @property
    def has_exit_heads(self) -> bool:
        """Whether the model has an exit head at each exit layer. With `exit_policy="none"` it has none."""
        return self.exit_policy != "none" and len(self.exit_layers) > 0

    @property
    def has_gain_heads(self) -> bool:
        """Whether each exit has a regressor of the expected gain in addition to its head."""
        return self.has_exit_heads and self.exit_policy == "topk" and self.exit_signal == "expected_gain"

    @property
    def has_inference_exits(self) -> bool:
        """Whether a fine-tuned model exits early in evaluation mode."""
        return self.has_exit_heads and self.inference_exit_thresholds is not None

    def generator_config(self) -> "ElectraEarlyExitConfig":
        """Configuration of the generator's encoder: narrower, without exits, same embedding size."""
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
        """Number of layers below the head of the generator `"self"`."""
        first_exit = self.exit_layers[0] if self.has_exit_heads else max(1, self.num_hidden_layers // 3)
        return self.generator_head_layer or first_exit

    def _check(self, name: str, legal: bool, legal_values: str):
        """Raise a ValueError that names the field, its value and the legal values unless `legal`."""
        if not legal:
            raise ValueError(f"`{name}` must be {legal_values}, got {getattr(self, name)!r}")

    def validate_sizes(self):
        """Part of `@strict`-powered validation: sizes that ELECTRA's own config does not check."""
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
            else f"empty for a model of {depth} layers, of which {self.exit_reentry_layers} run on all tokens again",
        )
        self._check(
            "exit_capacities",
            len(self.exit_capacities) == len(self.exit_layers)
            and all(0 < keep <= 1 for keep in self.exit_capacities)
            and list(self.exit_capacities) == sorted(self.exit_capacities, reverse=True),
            f"one share in (0, 1] for each of the {len(self.exit_layers)} exit layers {self.exit_layers}, not "
            "increasing with depth",
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
            "one or two entropies in nats (at least 0; the maximum is 0.693), and is required for "
            "`exit_policy='threshold'`",
        )
        if self.exit_policy != "none":  # a control run only needs to set the policy to "none"
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
                f"unset for `exit_policy={self.exit_policy!r}`{ranking}, which does not read it",
            )
        self._check(
            "exit_capacities",
            self.exit_policy != "threshold" or all(keep == 1 for keep in self.exit_capacities),
            "unset for `exit_policy='threshold'`, which has no capacities",
        )
        learns_gain = self.exit_policy == "topk" and self.exit_signal == "expected_gain"
        self._check(
            "exit_exploration",
            not learns_gain or self.exit_exploration > 0,
            "above 0 for `exit_signal='expected_gain'`, whose regressor is trained on exploration tokens",
        )

    def validate_generator(self):
        """Part of `@strict`-powered validation: the generator and the objective."""
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
                f"None, or for `generator_type='self'` between 1 and {deepest}, so that no token has exited yet",
            )
        if self.generator_type != "mlm":
            return
        hidden_size = round(self.hidden_size * self.generator_size)
        heads = self.generator_num_attention_heads or max(1, hidden_size // 64)
        self._check(
            "generator_size",
            hidden_size >= 1 and hidden_size % heads == 0,
            f"positive and give a width (hidden_size {self.hidden_size} times it, {hidden_size}) that is divisible by "
            f"the number of attention heads ({heads})",
        )


def without_unread(fields: dict, changes: dict) -> dict:
    """`fields` of a config without those that its policy does not read, unless `changes` sets them.

    An override of the policy thus drops the stored fields of the old one, while explicit overrides that the new policy
    does not read are still rejected by the validation.
    """
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


def most_reentry_layers(wanted: int | None, depth: int) -> int:
    """`wanted` layers, by default 1, or as many as leave an exit layer and one that exited tokens skip."""
    return max(0, min(1 if wanted is None else wanted, depth - 2))


# Fields with one entry per exit layer.
_PER_EXIT = ("exit_capacities", "inference_exit_thresholds", "inference_exit_temperatures")


def _follow(fields: dict, changes: dict) -> dict:
    """`fields` of a config, which include `changes`, without values that no longer fit and are not in `changes`."""
    fields, new_exits = dict(fields), "exit_layers" in changes
    if not new_exits and changes.keys().isdisjoint(("num_hidden_layers", "exit_policy")):
        return fields
    depth = fields.get("num_hidden_layers", ElectraConfig.num_hidden_layers)
    reentry = fields.get("exit_reentry_layers")
    if reentry is None or "exit_reentry_layers" not in changes:
        reentry = fields["exit_reentry_layers"] = most_reentry_layers(reentry, depth)
    if not new_exits and fields.get("exit_layers") is not None:
        fields["exit_layers"] = [layer for layer in fields["exit_layers"] if layer <= depth - reentry - 1]
        for name in _PER_EXIT:
            if fields.get(name) is not None and name not in changes:
                fields[name] = fields[name][: len(fields["exit_layers"])]
    turned_on = changes.get("exit_policy", "none") != "none" and not fields.get("exit_layers")
    stale = {"exit_layers", *_PER_EXIT} - changes.keys() if new_exits or turned_on else set()
    return {name: value for name, value in fields.items() if name not in stale}


ElectraEarlyExitConfig.register_for_auto_class()

__all__ = ["ElectraEarlyExitConfig"]
