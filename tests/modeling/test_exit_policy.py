"""Pure functions: who continues, who exits."""

import math

import pytest
import torch

from modeling_electra_exit.exit_policy import (
    POLICIES,
    SIGNALS,
    Evidence,
    binary_entropy,
    capacity,
    draw,
    row_noise,
    sample_size,
    sampled_entropy_signal,
    select,
    systematic_sample,
)
from tests.conftest import EXIT_RULES, masked_batch, rule_name, tiny_config, tiny_model


def reference_select(scores, num_kept, protected, padding):
    """Plain loops, no exploration: the kept positions of each row, as sets."""
    kept = []
    for row in range(scores.shape[0]):
        rank = sorted(
            range(scores.shape[1]),
            key=lambda t: (bool(padding[row, t]), not protected[row, t], -scores[row, t].item()),
        )
        kept.append(set(rank[:num_kept]))
    return kept


def random_masks(batch, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    protected = torch.rand(batch, tokens, generator=generator) < 0.1
    padding = torch.arange(tokens) >= torch.randint(tokens // 2, tokens + 1, (batch, 1), generator=generator)
    return torch.randn(batch, tokens, generator=generator), protected & ~padding, padding


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_kept", [12, 16, 40])
def test_select_matches_plain_loops(seed, num_kept):
    scores, protected, padding = random_masks(6, 40, seed)
    selection = select(scores, num_kept, protected, padding)
    expected = reference_select(scores, num_kept, protected, padding)
    for row in range(6):
        kept = selection.order[row, :num_kept].tolist()
        # Among padding all scores are equal, so only the number of padding tokens that stay is defined.
        assert {t for t in kept if not padding[row, t]} == {t for t in expected[row] if not padding[row, t]}
        assert kept == sorted(kept)
        rest = selection.order[row, num_kept:].tolist()
        assert rest == sorted(rest)
        assert sorted(kept + rest) == list(range(40))
    assert not selection.exploration.any()


def test_protected_tokens_continue_and_padding_exits_first():
    scores, protected, padding = random_masks(8, 64, 0)
    for exploration in (0.0, 0.3, 1.0):
        kept = select(scores, 32, protected, padding, exploration).order[:, :32]
        stays = torch.zeros_like(protected).scatter(1, kept, True)
        assert stays[protected].all()
        real = (~padding).sum(1)
        assert torch.equal((stays & padding).sum(1), (32 - real).clamp_min(0))


def test_more_protected_tokens_than_places():
    kept = select(torch.randn(2, 32), 16, protected=torch.ones(2, 32, dtype=torch.bool)).order
    assert torch.equal(kept.sort(1).values, torch.arange(32).expand(2, -1))


def test_audit_tokens_are_a_uniform_sample_of_all_candidates():
    torch.manual_seed(0)
    scores = torch.arange(48.0).expand(4000, -1)  # the scores keep the last ones
    protected = (torch.arange(48) == 7).expand(4000, -1)
    selection = select(scores, 16, protected, exploration=0.25)
    kept = selection.order[:, :16]
    assert selection.exploration.sum(1).eq(4).all()
    counts = torch.bincount(kept[selection.exploration], minlength=48)
    assert counts[7] == 0
    expected = 4000 * 4 / 47
    others = torch.arange(48) != 7
    chi_square = ((counts[others] - expected) ** 2 / expected).sum()
    assert chi_square < 81.4  # 46 degrees of freedom, p = 0.001
    # The eleven other free places go to the best scores that the exploration_noise did not draw.
    chosen = kept[~selection.exploration].view(4000, -1)
    assert (chosen == 7).any(1).all()
    for row in range(50):
        drawn = set(kept[row][selection.exploration[row]].tolist())
        best = [t for t in range(47, -1, -1) if t not in drawn and t != 7][:11]
        assert set(chosen[row].tolist()) - {7} == set(best)


def test_an_exploration_sample_beside_many_protected_tokens_is_uniform_too():
    torch.manual_seed(0)
    protected = (torch.arange(40) % 10 == 3).expand(4000, -1)
    selection = select(torch.arange(40.0).expand(4000, -1), 8, protected, exploration=1.0)
    kept = selection.order[:, :8]
    assert selection.exploration.sum(1).eq(4).all()
    counts = torch.bincount(kept[selection.exploration], minlength=40)[~protected[0]]
    expected = 4000 * 4 / 36
    assert ((counts - expected) ** 2 / expected).sum() < 66.6  # 35 degrees of freedom, p = 0.001


def test_equal_scores_count_in_the_order_of_the_text(monkeypatch):
    """`topk` may break ties as it likes, and does so differently on other devices."""
    monkeypatch.setattr(torch, "topk", None)
    monkeypatch.setattr(torch.Tensor, "topk", None)
    padding = (torch.arange(24) >= 20).expand(2, -1)
    for exploration in (0.0, 1.0):
        selection = select(
            torch.zeros(2, 24), 8, padding=padding, exploration=exploration, exploration_noise=torch.full((2, 24), 0.5)
        )
        assert selection.order[:, :8].tolist() == [list(range(8))] * 2
    assert draw(torch.full((1, 24), 0.5), 8).order[0, :8].tolist() == list(range(8))


def test_padding_is_not_protected_even_where_it_has_the_id_of_a_special_token():
    padding = torch.arange(16) >= 4
    selection = select(torch.zeros(1, 16), 6, protected=padding[None] | (torch.arange(16) == 0), padding=padding[None])
    assert selection.order[0, :4].tolist() == [0, 1, 2, 3]


def test_audit_places_for_more_than_there_are_candidates():
    padding = (torch.arange(32) >= 10).expand(2, -1)
    selection = select(torch.randn(2, 32), 16, padding=padding, exploration=1.0)
    kept = selection.order[:, :16]
    assert (kept < 10).sum(1).eq(10).all()
    assert torch.equal(selection.exploration, kept < 10)  # padding that fills the places is no exploration token


def test_entropy_is_exact_and_finite():
    logits = torch.tensor([-1000.0, -3.0, 0.0, 3.0, 1000.0])
    entropy = binary_entropy(logits)
    p = 1 / (1 + math.exp(-3))
    expected = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    torch.testing.assert_close(entropy, torch.tensor([0.0, expected, math.log(2), expected, 0.0]), atol=1e-6, rtol=0)


def test_sampled_entropy_draws_in_proportion_to_entropy():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0, 4.0]).expand(40000, -1)
    first = sampled_entropy_signal(Evidence(logits)).argmax(1)
    weights = binary_entropy(logits[0])
    expected = weights / weights.sum() * 40000
    chi_square = ((torch.bincount(first, minlength=4) - expected) ** 2 / expected).sum()
    assert chi_square < 16.27  # 3 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("keep", "length", "expected"),
    [
        (0.5, 128, 64),
        (0.25, 128, 32),
        (0.3, 128, 40),
        (0.1, 160, 16),
        (0.28, 200, 56),
        (0.01, 128, 8),
        (1.0, 100, 100),
        (0.5, 8, 8),
    ],
)
def test_capacity_rounds_up_to_a_multiple_of_8(keep, length, expected):
    assert capacity(keep, length) == expected


@pytest.mark.parametrize("num_kept", [0, 33])
def test_select_refuses_impossible_numbers(num_kept):
    with pytest.raises(ValueError, match="between 1 and the number of tokens"):
        select(torch.randn(2, 32), num_kept)


@pytest.mark.parametrize("rule", EXIT_RULES, ids=rule_name)
def test_every_policy_and_signal_gives_finite_scores(rule):
    logits = torch.tensor([[-1e4, -1.0, 0.0, 1.0, 1e4] * 4])
    evidence = Evidence(logits, gain=torch.randn_like(logits))
    config = tiny_config(**rule)
    ranking = POLICIES[config.exit_policy](evidence, 16, config)
    assert ranking.scores.shape == logits.shape
    assert ranking.scores.isfinite().all()
    assert ranking.num_kept == 16


def test_signals_rank_by_what_they_say():
    evidence = Evidence(torch.tensor([[-5.0, 0.1, 3.0]]), torch.tensor([[0.2, -1.0, 0.4]]))
    order = {name: SIGNALS[name](evidence).argsort(descending=True).tolist()[0] for name in SIGNALS}
    assert order["entropy"] == [1, 2, 0]
    assert order["expected_gain"] == [2, 0, 1]


def test_thresholds_keep_the_right_tokens_and_no_more_than_a_multiple_of_8():
    torch.manual_seed(0)
    logits = torch.randn(3, 64) * 3
    for threshold in (0.2, [0.5, 0.1]):
        config = tiny_config(exit_policy="threshold", exit_entropy_threshold=threshold)
        original, replaced = threshold if isinstance(threshold, list) else (threshold, threshold)
        wanted = binary_entropy(logits) > torch.where(logits > 0, replaced, original)
        ranking = POLICIES["threshold"](Evidence(logits), 1, config)
        assert ranking.num_kept == capacity(wanted.sum(1).max().item() / 64, 64)
        kept = torch.zeros_like(wanted).scatter(
            1, select(ranking.scores, ranking.num_kept).order[:, : ranking.num_kept], True
        )
        assert kept[wanted].all()


def test_a_users_own_signal(monkeypatch):
    monkeypatch.setitem(SIGNALS, "margin", lambda evidence: -evidence.logits.abs())
    model = tiny_model(exit_signal="margin", exit_exploration=0.0).train()
    batch = masked_batch()
    outputs = model(batch["input_ids"], labels=(batch["input_ids"] % 7 == 0).long())
    margin = outputs.exit_logits[0].abs().masked_fill((batch["input_ids"] == 2) | (batch["input_ids"] == 3), -1)
    assert torch.equal(outputs.exit_layers > 2, margin <= margin.kthvalue(32, dim=1, keepdim=True).values)


def test_uncertain_and_special_tokens_pass_a_threshold_and_padding_does_not_count():
    torch.manual_seed(0)
    model = tiny_model(exit_policy="threshold", exit_entropy_threshold=0.5).train()
    batch = masked_batch(padding=20)
    outputs = model(batch["input_ids"], attention_mask=batch["attention_mask"])
    real = batch["attention_mask"] == 1
    special = (batch["input_ids"] == 2) | (batch["input_ids"] == 3)
    continues = ((binary_entropy(outputs.exit_logits[0]) > 0.5) | special) & real
    assert (outputs.exit_layers[continues] > 2).all()
    assert (outputs.exit_layers > 2).sum(1).tolist() == [capacity(continues.sum(1).max().item() / 64, 64)] * 4


def test_special_tokens_continue_past_every_threshold():
    model = tiny_model(exit_policy="threshold", exit_entropy_threshold=0.6931).eval()
    batch = masked_batch(padding=20)
    del batch["mlm_labels"]
    real = batch["attention_mask"] == 1
    special = ((batch["input_ids"] == 2) | (batch["input_ids"] == 3)) & real
    exit_layers = model(**batch, exit_policy="threshold").exit_layers
    assert (exit_layers[special] == 6).all()
    assert (exit_layers[real & ~special] == 2).float().mean() > 0.9


def test_the_noise_of_a_row_is_its_own():
    seeds = torch.tensor([0, 5, 2**63 - 1])
    noise = row_noise(seeds, 50, 2)[..., 0]
    assert torch.equal(row_noise(seeds[1:2], 40, 1)[..., 0], noise[1:2, :40])
    # SplitMix64 in Python's unbounded integers.
    state = (5 + 2 * 0x9E3779B97F4A7C15) % 2**64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
    assert noise[1, 1].item() == ((state ^ (state >> 31)) >> 41) / 2**23 + 2**-24
    many, next_one = row_noise(torch.arange(2000), 500, 5)[..., 3:].unbind(2)
    assert 0 < many.min() < many.max() < 1
    assert many.mean().item() == pytest.approx(1 / 2, abs=2e-3)
    assert many.var().item() == pytest.approx(1 / 12, abs=1e-3)
    streams = torch.stack([many[:, 0], many[:, 1], next_one[:, 0]])
    assert torch.corrcoef(streams).fill_diagonal_(0).abs().max() < 0.1


@pytest.mark.parametrize(("num_sampled", "length"), [(1, 7), (3, 7), (16, 64), (64, 64)])
def test_a_systematic_sample_gives_every_position_the_same_chance(num_sampled, length):
    starts = ((torch.arange(length) + 0.5) / length).unsqueeze(1)  # each start once
    sample = systematic_sample(starts, num_sampled, length)
    assert all(len(set(row)) == num_sampled for row in sample.tolist())
    assert torch.bincount(sample.flatten(), minlength=length).tolist() == [num_sampled] * length


def test_a_sample_is_rounded_up():
    assert [sample_size(share, tokens) for share, tokens in [(0.25, 64), (0.25, 65), (0.28, 200), (0.01, 5)]] == [
        16, 17, 56, 1,
    ]  # fmt: skip
