"""Routed layers against the dense model, a plain loop and hand-counted operations, and whole runs with them."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from modeling_electra_exit.exit_policy import capacity
from modeling_electra_exit.modeling_electra_exit import ElectraEarlyExitLayer
from modeling_electra_exit.trainers.errors import UsageError
from research import study
from research.results import cumulative_flops
from research.routing import RoutedLayer, Routing
from tests.conftest import masked_batch, tiny_model
from tests.research.test_study import MEMORY, TINY, flags, studies  # noqa: F401 fixtures


KINDS = ["random_layers", "router"]


def plain(**fields):
    return tiny_model(exit_policy="none", generator_type="none", **fields)


def detection_batch(padding: int, side: str = "right") -> dict[str, torch.Tensor]:
    """Rows of 64 tokens in two segments; all but the first have padding."""
    batch = masked_batch(padding=padding)
    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids))
    if side == "left":
        ids, mask = ids.flip(1), mask.flip(1)
    segments = (torch.arange(64) > 20).long().expand_as(ids)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments, "labels": (ids % 7 == 0).long()}


def switch_on(layers: list[RoutedLayer]) -> None:
    for layer in layers:
        layer.routes = True


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "electra_cpu"])
def test_random_layers_of_the_whole_capacity_are_the_dense_model(norm_position, attention):
    model, batch = plain(norm_position=norm_position), detection_batch(padding=13)
    model.set_attn_implementation(attention)
    expected, dense = model(**batch), gradients(model, batch)
    layers = Routing("random_layers", 1.0).apply(model)
    switch_on(layers)
    assert len(layers) == 4
    torch.testing.assert_close(model(**batch).logits, expected.logits, rtol=0, atol=1e-6)
    routed = gradients(model, batch)
    assert routed.keys() == dense.keys()
    for name, gradient in dense.items():
        torch.testing.assert_close(routed[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def by_loop(layer: RoutedLayer, states: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The layer's output for the real tokens, one sequence and one token at a time."""
    rows = []
    for row in range(len(states)):
        real = [token for token in range(states.shape[1]) if mask[row, token]]
        ranked = sorted(real, key=lambda token: -scores[row, token].item())
        chosen = sorted(ranked[: capacity(layer.capacity, states.shape[1])])
        computed = ElectraEarlyExitLayer.forward(layer, states[row : row + 1, chosen])[0]
        tokens = list(states[row])
        for token, new in zip(chosen, computed, strict=True):
            gate = 1.0 if layer.router is None else scores[row, token]
            tokens[token] = states[row, token] + gate * (new - states[row, token])
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("share", "padding", "side"), [(0.25, 0, "right"), (0.25, 13, "left"), (0.5, 50, "right"), (1.0, 13, "right")]
)
def test_a_layer_equals_a_loop_over_tokens(norm_position, kind, share, padding, side):
    model, batch = plain(norm_position=norm_position), detection_batch(padding, side)
    layer, mask = Routing(kind, share).apply(model)[0], batch["attention_mask"]
    layer.routes = True
    states = torch.randn(4, 64, 32, requires_grad=True)
    wanted = mask.unsqueeze(2) * torch.randn(4, 64, 32)
    torch.manual_seed(1)
    output = layer(states, mask.bool()[:, None, None, :] if padding else None)
    torch.manual_seed(1)
    scores = torch.rand(4, 64) if kind == "random_layers" else states @ layer.router
    expected = by_loop(layer, states, scores, mask)
    torch.testing.assert_close(output * mask.unsqueeze(2), expected * mask.unsqueeze(2), rtol=0, atol=1e-5)
    wrt = [*layer.parameters(), states]
    found, right = (torch.autograd.grad((values * wanted).sum(), wrt) for values in (output, expected))
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    if layer.router is not None:
        assert found[0].shape == layer.router.shape
        assert found[0].abs().min() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_padding_does_not_change_the_logits_of_tokens(kind, norm_position):
    model = plain(norm_position=norm_position).eval()
    layers = Routing(kind, 0.25).apply(model)
    if kind == "router":
        switch_on(layers)
    batch = detection_batch(padding=0)
    short = {name: values[:, :56] for name, values in batch.items()}
    longer = {name: values.clone() for name, values in batch.items()}
    longer["attention_mask"][:, 56:] = 0
    for layer in layers:  # as many tokens, not the same share
        layer.capacity = 16 / 56
    expected = model(**short).logits
    for layer in layers:
        layer.capacity = 16 / 64
    torch.testing.assert_close(model(**longer).logits[:, :56], expected, rtol=0, atol=1e-5)


def test_each_layer_draws_its_own_uniform_sample():
    model = plain(norm_position="pre")
    layers = Routing("random_layers", 0.25).apply(model)
    switch_on(layers)
    computed = torch.zeros(4, 64)
    states = torch.randn(1, 64, 32)
    torch.manual_seed(0)
    for number, layer in enumerate(layers):
        for _ in range(50):
            computed[number] += (layer(states) != states).any(dim=2)[0]
    assert computed.sum(dim=1).tolist() == [50 * 16] * 4
    assert 3 <= computed.min() <= computed.max() <= 24  # 12.5 expected, with a standard deviation of 3.1
    assert len({tuple(row.tolist()) for row in computed}) == 4


def test_operations_are_those_counted_by_hand():
    config = plain(norm_position="pre").config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (32, 64, 6)

    def layer(tokens):  # four projections, two products of attention, two of the feed-forward block
        return 2 * tokens * (4 * 32 * 32 + 2 * tokens * 32 + 2 * 32 * 64)

    for kind, routed, router in (("random_layers", 4, 0), ("router", 3, 3 * 2 * 64 * 32)):
        routing = Routing(kind, 0.125)
        found = routing.step_flops(config, 5, 64, True).blocks
        assert found == 5 * 3 * ((6 - routed) * layer(64) + routed * layer(8) + router)
    assert Routing("random_layers", 0.125).step_flops(config, 5, 64, False).blocks == 5 * 3 * 6 * layer(64)
    assert Routing("router", 0.125).layer_tokens(config, 64, False)[:3] == [(64, 64), (8, 8), (64, 64)]


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_those_that_torch_counts(kind):
    model, batch = plain(norm_position="pre"), detection_batch(padding=13)
    model.set_attn_implementation("eager")
    routing = Routing(kind, 0.25)
    switch_on(routing.apply(model))
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    expected = routing.step_flops(model.config, 4, 64, True).total
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "layers", "capacity": 0.5}, "`routing.kind` must be one of random_layers, router, got 'layers'"),
        ({"kind": "router", "capacity": 0}, "`routing.capacity` must be a share above 0 and at most 1, got 0"),
        ({"kind": "router", "capacity": 1.5}, "`routing.capacity` must be a share above 0 and at most 1, got 1.5"),
        ({"kind": "router", "capacity": "x"}, "`routing.capacity` must be a share above 0 and at most 1, got 'x'"),
        (
            {"kind": "router"},
            "`routing` must have the entries kind and capacity and no others, got {'kind': 'router'}",
        ),
        ("router", "`routing` must have the entries kind and capacity and no others, got 'router'"),
    ],
)
def test_a_malformed_routing_is_one_sentence(entry, message):
    with pytest.raises(UsageError) as error:
        Routing.of({"routing": entry})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exit_policy": "random"}, "`exit_policy` must be none for an arm with routing, got random"),
        (
            {"exit_policy": "none", "num_hidden_layers": 2},
            "`num_hidden_layers` 2 leaves no layer for the routing random_layers: use more",
        ),
    ],
)
def test_a_model_that_cannot_be_routed_is_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        Routing("random_layers", 0.5).apply(tiny_model(**fields))


# ---- Whole runs ----

ARMS = {
    "random_layers": {"exit_policy": "none", "routing": {"kind": "random_layers", "capacity": 0.25}},
    "router": {"exit_policy": "none", "routing": {"kind": "router", "capacity": 0.25}},
}
WIDER = {**ARMS, "router": {"exit_policy": "none", "routing": {"kind": "router", "capacity": 0.5}}}
ROUTED = {
    **TINY,
    "baseline": "router",
    "base": {
        **TINY["base"],
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "no",
        "optim": "muon",
        "norm_position": "pre",
    },
    "stages": {"only": {"judges": ["held_out", "entities"], "seeds": [0], "arms": list(ARMS)}},
}


@pytest.fixture
def routed(studies, monkeypatch):  # noqa: F811
    """A function that writes the study `routed`, which has no report."""
    monkeypatch.setattr(study, "write_report", lambda *args: "no report")

    def write(**changes):
        (studies / "routed.yaml").write_text(yaml.safe_dump({**ROUTED, "arms": ARMS, **changes}))

    write()
    return write


def test_routed_arms_are_run_judged_counted_and_resumed(routed, flags, tmp_path, capsys, monkeypatch):  # noqa: F811
    judged, load = [], Routing.load
    monkeypatch.setattr(Routing, "load", lambda self, folder: judged.append(self.kind) or load(self, folder))
    assert study.main(["routed", *flags]) == 0
    assert judged == ["random_layers"] * 2 + ["router"] * 2  # for both evaluations
    results = {arm: tmp_path / "results" / f"only-{arm}-seed0.json" for arm in ARMS}
    folders = {arm: tmp_path / "out" / "routed" / "only" / arm / "seed-0" for arm in ARMS}
    found = {arm: json.loads(path.read_text()) for arm, path in results.items()}
    layer, part = ((2 * n * (4 * 32 * 32 + 2 * n * 32 + 2 * 32 * 64)) for n in (32, 8))
    blocks = {  # of four steps, the last is at full depth with random layers
        "random_layers": 3 * (2 * layer + 2 * part) + 4 * layer,
        "router": 4 * (2 * layer + 2 * part + 2 * 2 * 32 * 32),
    }
    for arm, result in found.items():
        assert result["fields"]["routing"] == ARMS[arm]["routing"]
        assert result["flops"]["blocks"] == 4 * 3 * blocks[arm]
        assert result["flops"]["dense_blocks"] == 4 * 3 * 4 * 4 * layer
        assert cumulative_flops(result)[-1] == pytest.approx(result["flops"]["total"])
        state = json.loads((folders[arm] / "trainer_state.json").read_text())
        assert state["total_flos"] == pytest.approx(result["flops"]["total"])
    assert found["random_layers"]["kept_share"] == [1.0, 0.25, 0.25, 1.0]
    assert found["router"]["kept_share"] == [1.0, 0.25, 1.0, 0.25]

    # The router that is judged is the one that was trained, at the same capacity.
    model = Routing("router", 0.25).load(folders["router"])
    layers = model.electra.encoder.layer
    assert [isinstance(layer, RoutedLayer) and layer.routes for layer in layers] == [False, True] * 2
    weights = {arm: load_file(folder / "model.safetensors") for arm, folder in folders.items()}
    assert torch.equal(layers[3].router, weights["router"]["electra.encoder.layer.3.router"])

    # A run that was interrupted after two steps ends with the same weights.
    for arm, folder in folders.items():
        for path in (folder / "metrics.json", folder / "model.safetensors", results[arm]):
            path.unlink()
        shutil.rmtree(folder / "checkpoint-4")
    routed(arms=WIDER)
    assert study.main(["routed", *flags, "--arms", "router"]) == 2
    assert "holds a run with other settings (routing: {'capacity': 0.25, 'kind': 'router'} then" in (
        capsys.readouterr().err
    )
    routed()
    assert study.main(["routed", *flags]) == 0
    for arm, folder in folders.items():
        again = load_file(folder / "model.safetensors")
        assert again.keys() == weights[arm].keys()
        assert all(torch.equal(weight, again[name]) for name, weight in weights[arm].items())
        assert json.loads(results[arm].read_text())["judged"] == found[arm]["judged"]

    routed(arms=WIDER)
    assert study.main(["routed", *flags]) == 2
    assert "has different fields (routing)" in capsys.readouterr().err


def test_routed_arms_are_timed_in_their_phases(routed, flags, tmp_path):  # noqa: F811
    assert study.main(["routed", *flags, "--time_steps", "1"]) == 0
    timed = json.loads((tmp_path / "results" / "only-step-seconds.json").read_text())
    assert {arm: sorted(seconds) for arm, seconds in timed.items()} == {
        "random_layers": ["dense", "exits", *MEMORY],
        "router": ["dense", *MEMORY],
    }


def test_a_router_is_judged_only_by_evaluations_that_know_it(routed, flags, capsys):  # noqa: F811
    routed(stages={"only": {"judges": ["held_out", "blimp"], "seeds": [0], "arms": ["router"]}})
    assert study.main(["routed", *flags]) == 2
    assert "must be among entities, held_out for the arm router, whose router no" in capsys.readouterr().err


def test_an_arm_with_routing_does_not_grow(routed, flags, capsys):  # noqa: F811
    arms = {**ARMS, "router": {**ARMS["router"], "depth_schedule": "2:0.5,4"}}
    routed(arms=arms)
    assert study.main(["routed", *flags, "--arms", "router"]) == 2
    assert "`depth_schedule` must be unset for an arm with routing, got 2:0.5,4" in capsys.readouterr().err
