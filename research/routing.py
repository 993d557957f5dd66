"""Layers that compute only some of a sequence's tokens: arms of studies that the package does not have. An arm has the
entry `routing: {kind: ..., capacity: ...}` beside the fields of its recipe.

- `random_layers`, random-LTD (Yao et al., 2022, arXiv 2211.11586): every layer but the first and the last computes a
  uniform sample of the tokens, drawn anew in each layer. As with exits, the shares `exit_warmup` and `exit_cooldown`
  of the training steps, and evaluation, run at full depth.
- `router`, Mixture of Depths (Raposo et al., 2024, arXiv 2404.02258): in every other layer, beginning with the second,
  a linear router scores the tokens, and the layer computes those with the highest scores. The layer's change of a
  token is multiplied by the score itself, as in the paper's equation 1, and not by its sigmoid. All training steps
  and evaluation have the same capacity.

The other tokens keep their states, and are not attended to. Padding is chosen only in sequences with too few tokens.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForPreTraining
from transformers.utils import SAFE_WEIGHTS_NAME

from modeling_electra_exit import ElectraEarlyExitConfig, ElectraEarlyExitForPreTraining
from modeling_electra_exit.exit_policy import capacity, select
from modeling_electra_exit.modeling_electra_exit import ElectraEarlyExitLayer, Permutation, PermuteTokens
from modeling_electra_exit.trainers.errors import UsageError
from modeling_electra_exit.trainers.pretraining.trainer import ElectraEarlyExitTrainer
from modeling_electra_exit.trainers.runtime.flops import TRAINING_FACTOR, StepFlops, step_flops


# The layers, of a given number, that are routed.
ROUTED = {"random_layers": lambda depth: range(1, depth - 1), "router": lambda depth: range(1, depth, 2)}


@dataclass(frozen=True)
class Routing:
    """Which tokens the layers of an arm compute.

    kind: a key of [`ROUTED`].
    capacity: share of a sequence's tokens that a routed layer computes, in (0, 1]; the number is rounded up as that of
        exits.

    Raises:
        UsageError: for other values.
    """

    kind: str
    capacity: float

    def __post_init__(self):
        if self.kind not in ROUTED:
            raise UsageError(f"`routing.kind` must be one of {', '.join(ROUTED)}, got {self.kind!r}")
        if not isinstance(self.capacity, int | float) or not 0 < self.capacity <= 1:
            raise UsageError(f"`routing.capacity` must be a share above 0 and at most 1, got {self.capacity!r}")

    @classmethod
    def of(cls, fields: dict) -> "Routing | None":
        """The routing of a run with these `fields`, if any. Raises: UsageError if its entry is malformed."""
        entry = fields.get("routing")
        if entry is None:
            return None
        if not isinstance(entry, dict) or set(entry) != {"kind", "capacity"}:
            raise UsageError(f"`routing` must have the entries kind and capacity and no others, got {entry!r}")
        return cls(**entry)

    @property
    def learned(self) -> bool:
        return self.kind == "router"

    def layer_tokens(self, config: ElectraEarlyExitConfig, length: int, exits_active: bool) -> list[tuple[int, int]]:
        """As [`~trainers.runtime.flops.layer_tokens`]."""
        tokens = [length] * config.num_hidden_layers
        if self.learned or exits_active:
            for index in ROUTED[self.kind](config.num_hidden_layers):
                tokens[index] = capacity(self.capacity, length)
        return list(zip(tokens, tokens, strict=True))

    def step_flops(self, config: ElectraEarlyExitConfig, rows: int, length: int, exits_active: bool) -> StepFlops:
        """As [`~trainers.runtime.flops.step_flops`] of a training step."""
        layers = self.layer_tokens(config, length, exits_active)
        return step_flops(config, rows, length, exits_active, layers=layers) + self.router_flops(config, rows, length)

    def router_flops(self, config: ElectraEarlyExitConfig, rows: int, length: int) -> StepFlops:
        """FLOPs of the routers in a training step, one product per routed layer, as part of the layers."""
        routers = len(ROUTED[self.kind](config.num_hidden_layers)) if self.learned else 0
        return StepFlops(TRAINING_FACTOR * routers * rows * 2 * length * config.hidden_size, 0, 0)

    def apply(self, model: ElectraEarlyExitForPreTraining) -> list["RoutedLayer"]:
        """Replace the routed layers of a model by [`RoutedLayer`]s with the same weights, and return them.

        Raises:
            UsageError: if the model has exits, or too few layers.
        """
        layers, config = model.electra.encoder.layer, model.config
        if config.exit_policy != "none":
            raise UsageError(f"`exit_policy` must be none for an arm with routing, got {config.exit_policy}")
        if not (indices := ROUTED[self.kind](len(layers))):
            raise UsageError(
                f"`num_hidden_layers` {len(layers)} leaves no layer for the routing {self.kind}: use more"
            )
        for index in indices:
            layers[index] = RoutedLayer(layers[index], config, index, self)
        return [layers[index] for index in indices]

    def load(self, folder: Path) -> ElectraEarlyExitForPreTraining:
        """The model of a finished run, as it is to be evaluated. The weights of the routers, which a model without
        routing ignores, are in the same file as all others."""
        model = AutoModelForPreTraining.from_pretrained(folder)
        if self.learned:
            weights = load_file(folder / SAFE_WEIGHTS_NAME)
            for index, layer in zip(
                ROUTED[self.kind](len(model.electra.encoder.layer)), self.apply(model), strict=True
            ):
                layer.router.data.copy_(weights[f"electra.encoder.layer.{index}.router"])
        return model.eval()


class RoutedLayer(ElectraEarlyExitLayer):
    """A layer that computes the chosen tokens of every sequence. It has the weights of the given `layer` under the
    same names and, with a learned routing, `router`: a vector, so that Muon leaves it to Adam.

    routes (`bool`): whether tokens are chosen. Otherwise all are computed.
    """

    def __init__(self, layer: ElectraEarlyExitLayer, config: ElectraEarlyExitConfig, index: int, routing: Routing):
        super().__init__(config, layer_idx=index)
        self.load_state_dict(layer.state_dict())
        self.capacity, self.routes = routing.capacity, routing.learned
        initial = torch.randn(config.hidden_size) * config.initializer_range
        self.register_parameter("router", nn.Parameter(initial) if routing.learned else None)
        self.to(next(layer.parameters()))

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        """`attention_mask`, of shape `(batch, 1, queries, keys)`, is boolean, or is added to the attention scores."""
        if not self.routes:
            return super().forward(hidden_states, attention_mask, **kwargs)
        batch, length, _ = hidden_states.shape
        if self.router is None:
            scores = torch.rand(batch, length, device=hidden_states.device)
        else:
            scores = (hidden_states.float() * self.router.float()).sum(dim=2)  # in fp32 also under autocast
        keys = None if attention_mask is None else attention_mask[:, :, :1]  # every query sees the same
        padding = None if keys is None else ~(keys if keys.dtype is torch.bool else keys == 0)[:, 0, 0]
        count = capacity(self.capacity, length)
        order = select(scores.detach(), count, padding=padding).order
        if keys is not None:
            keys = keys.gather(3, order[:, None, None, :count])
        permutation = Permutation.of(order)
        chosen, others = PermuteTokens.apply(hidden_states, *permutation).split([count, length - count], dim=1)
        updated = super().forward(chosen.contiguous(), keys, few_tokens=count < length, **kwargs)
        if self.router is not None:
            gate = scores.gather(1, order[:, :count]).unsqueeze(2)
            updated = chosen + gate * (updated - chosen)
        both = torch.cat([updated.to(others.dtype), others], dim=1)
        return PermuteTokens.apply(both, *permutation.reversed())


class RoutedTrainer(ElectraEarlyExitTrainer):
    """The Trainer of a model with routing.

    Raises:
        UsageError: as [`Routing.apply`], or if the model would grow.
    """

    def __init__(self, model, args, *, routing: Routing, **kwargs):
        if args.depth_schedule is not None:
            raise UsageError(f"`depth_schedule` must be unset for an arm with routing, got {args.depth_schedule}")
        self.routing, self.routed = routing, routing.apply(model)
        super().__init__(model, args, **kwargs)

    @property
    def has_exits(self) -> bool:
        return not self.routing.learned

    def compute_loss(self, model, *args, **kwargs):
        for layer in self.routed:
            layer.routes = self.routing.learned or (model.training and self.exits_active())
        return super().compute_loss(model, *args, **kwargs)

    def layer_tokens(self, config, length, exits_active):
        return self.routing.layer_tokens(config, length, exits_active)

    def step_flops(self, config, rows, length, exits_active):
        routers = self.routing.router_flops(config, rows, length)
        return super().step_flops(config, rows, length, exits_active) + routers


def recipe_of(fields: dict) -> dict:
    """The `fields` of a run without its routing, which a recipe does not know."""
    return {name: value for name, value in fields.items() if name != "routing"}


def trainer_class(routing: Routing | None):
    """The class of the Trainer of a run, for [`~trainers.pretraining.run.build_trainer`]."""
    return ElectraEarlyExitTrainer if routing is None else partial(RoutedTrainer, routing=routing)
