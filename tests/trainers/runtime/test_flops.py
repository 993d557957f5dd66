"""The arithmetic against what torch counts while the model really runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling_electra_exit import ElectraEarlyExitConfig
from modeling_electra_exit.trainers.runtime.flops import (
    active_tokens,
    layer_tokens,
    step_flops,
    step_flops_as_published,
)
from tests.conftest import masked_batch, tiny_config, tiny_model


def counted(model, batch, policy, training):
    with FlopCounterMode(display=False) as counter:
        if training:
            model.train()(**batch, exit_policy=policy).loss.backward()
        else:
            with torch.no_grad():
                model.eval()(**batch, exit_policy=policy)
    return counter.get_total_flops()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy", ["none", "topk"])
@pytest.mark.parametrize("context", ["all", "first", "none"])
@pytest.mark.parametrize("reentry", [0, 1])
def test_equals_what_torch_counts(training, policy, context, reentry):
    model = tiny_model(exit_context=context, exit_reentry_layers=reentry)
    model.set_attn_implementation("eager")
    batch = masked_batch(batch_size=2, length=128)
    expected = step_flops(model.config, 2, 128, policy != "none", num_masked=10, training=training).total
    assert expected == pytest.approx(counted(model, batch, policy, training), rel=0.01)


@pytest.mark.parametrize(
    "overrides",
    [
        {"exit_signal": "expected_gain"},
        {"exit_signal": "expected_gain", "exit_full_depth_share": 1.0},
        {"norm_position": "pre"},
        {"exit_policy": "random", "exit_layers": [1, 2, 4], "exit_capacities": [0.5, 0.25, 0.125]},
        {"exit_distillation_weight": 1.0},
    ],
)
@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_every_kind_of_exit_equals_what_torch_counts(overrides, training, active):
    model = tiny_model(**overrides)
    model.set_attn_implementation("eager")
    batch = masked_batch(batch_size=2, length=128)
    policy = model.config.exit_policy if active else "none"
    expected = step_flops(model.config, 2, 128, active, num_masked=10, training=training).total
    assert expected == pytest.approx(counted(model, batch, policy, training), rel=0.01)


@pytest.mark.parametrize("overrides", [{"generator_type": "none"}, {"exit_policy": "none"}, {"embedding_size": 32}])
def test_absent_parts_have_no_flops(overrides):
    model = tiny_model(**overrides)
    model.set_attn_implementation("eager")
    batch = masked_batch(batch_size=2)
    if model.config.generator_type == "none":
        batch = {"input_ids": batch["input_ids"], "labels": (batch["input_ids"] % 2)}
    expected = step_flops(model.config, 2, 64, False, num_masked=10).total
    assert expected == pytest.approx(counted(model, batch, "none", True), rel=0.01)


def test_the_head_of_the_self_generator_is_counted():
    overrides = {"exit_policy": "none", "vocab_size": 4000}
    model = tiny_model(generator_type="self", **overrides)
    model.set_attn_implementation("eager")
    batch = masked_batch(batch_size=2)
    batch |= {"labels": batch["input_ids"] % 2, "proposal_mask": batch["mlm_labels"] != -100}
    expected = step_flops(model.config, 2, 64, False, num_masked=10).total
    assert expected == pytest.approx(counted(model, batch, "none", True), rel=0.01)
    without = step_flops(tiny_config(generator_type="none", **overrides), 2, 64, False).total
    assert expected > 1.1 * without


def test_share_of_the_design():
    """0.70 of dense block FLOPs with context "all" and 0.64 with "none", for ELECTRA-Small at length 512 or less, and
    0.57 with the one exit that is there by default."""
    two = {"exit_layers": [4, 8], "exit_capacities": [0.5, 0.25]}
    for fields, share in ((two, 0.70), (two | {"exit_context": "none"}, 0.64), ({}, 0.57)):
        config = ElectraEarlyExitConfig(**fields)
        executed = step_flops(config, 1, 128, True).blocks / step_flops(config, 1, 128, False).blocks
        assert executed == pytest.approx(share, abs=0.01)


def test_the_tokens_of_each_layer():
    config = ElectraEarlyExitConfig(exit_layers=[4, 8], exit_capacities=[0.5, 0.25])
    assert active_tokens(config, 128, True) == [128] * 4 + [64] * 4 + [32] * 3 + [128]
    assert active_tokens(config, 128, False) == [128] * 12
    assert active_tokens(ElectraEarlyExitConfig(exit_policy="none"), 128, True) == [128] * 12
    config.exit_context = "first"
    exited = [(64, 128), (64, 64), (64, 64), (64, 64), (32, 128), (32, 32), (32, 32)]
    assert layer_tokens(config, 128, True) == [(128, 128)] * 4 + exited + [(128, 128)]


@pytest.mark.parametrize(
    ("fields", "batch_size", "length", "steps", "published"),
    [
        ({}, 128, 128, 1_000_000, 1.294e18),
        (
            {
                "hidden_size": 768,
                "embedding_size": 768,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
                "generator_size": 1 / 3,
            },
            256,
            512,
            766_000,
            6.425e19,
        ),
    ],
)
def test_the_published_convention_gives_the_numbers_of_the_authors_script(
    fields, batch_size, length, steps, published
):
    config = ElectraEarlyExitConfig(exit_policy="none", **fields)
    assert step_flops_as_published(config, batch_size, length, False) * steps == pytest.approx(published, rel=0.005)
    with_exits = ElectraEarlyExitConfig(**fields)
    saved = step_flops_as_published(with_exits, 1, length, True) / step_flops_as_published(config, 1, length, False)
    assert saved < 0.95
