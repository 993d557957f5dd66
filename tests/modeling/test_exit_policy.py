"""Pure functions: who continues, who exits."""

import math

import pytest
import torch

from modeling_electra_exit.exit_policy import (
    POLICIES,
    SIGNALS,
    binary_entropy,
    capacity,
    sampled_entropy_signal,
    select,
)


def reference_select(scores, num_kept, protected, padding):
    """Plain loops, no audit: the kept positions of each row, as sets."""
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
    assert not selection.audit.any()


def test_protected_tokens_continue_and_padding_exits_first():
    scores, protected, padding = random_masks(8, 64, 0)
    for audit_fraction in (0.0, 0.3, 1.0):
        kept = select(scores, 32, protected, padding, audit_fraction).order[:, :32]
        stays = torch.zeros_like(protected).scatter(1, kept, True)
        assert stays[protected].all()
        real = (~padding).sum(1)
        assert torch.equal((stays & padding).sum(1), (32 - real).clamp_min(0))


def test_more_protected_tokens_than_places():
    kept = select(torch.randn(2, 32), 16, protected=torch.ones(2, 32, dtype=torch.bool)).order
    assert torch.equal(kept.sort(1).values, torch.arange(32).expand(2, -1))


def test_audit_places_are_drawn_uniformly_from_those_the_scores_refused():
    torch.manual_seed(0)
    scores = torch.arange(48.0).expand(4000, -1)  # the scores keep the last ones
    selection = select(scores, 16, audit_fraction=0.25)
    audited = selection.order[:, :16][selection.audit]
    assert selection.audit.sum(1).eq(4).all()
    counts = torch.bincount(audited, minlength=48)
    assert counts[36:].sum() == 0  # 12 places go to the 12 best scores
    expected = 4000 * 4 / 36
    chi_square = ((counts[:36] - expected) ** 2 / expected).sum()
    assert chi_square < 66.6  # 35 degrees of freedom, p = 0.001


def test_entropy_is_exact_and_finite():
    logits = torch.tensor([-1000.0, -3.0, 0.0, 3.0, 1000.0])
    entropy = binary_entropy(logits)
    p = 1 / (1 + math.exp(-3))
    expected = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    torch.testing.assert_close(entropy, torch.tensor([0.0, expected, math.log(2), expected, 0.0]), atol=1e-6, rtol=0)


def test_sampled_entropy_draws_in_proportion_to_entropy():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0, 4.0]).expand(40000, -1)
    first = sampled_entropy_signal(logits).argmax(1)
    weights = binary_entropy(logits[0])
    expected = weights / weights.sum() * 40000
    chi_square = ((torch.bincount(first, minlength=4) - expected) ** 2 / expected).sum()
    assert chi_square < 16.27  # 3 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("keep", "length", "expected"),
    [(0.5, 128, 64), (0.25, 128, 32), (0.3, 128, 48), (0.1, 160, 16), (0.01, 128, 16), (1.0, 100, 100), (0.5, 8, 8)],
)
def test_capacity_rounds_up_to_a_multiple_of_16(keep, length, expected):
    assert capacity(keep, length) == expected


@pytest.mark.parametrize("num_kept", [0, 33])
def test_select_refuses_impossible_numbers(num_kept):
    with pytest.raises(ValueError, match="between 1 and the number of tokens"):
        select(torch.randn(2, 32), num_kept)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("signal", SIGNALS)
def test_every_policy_and_signal_gives_finite_scores(policy, signal):
    logits = torch.tensor([[-1e4, -1.0, 0.0, 1.0, 1e4]])
    scores = POLICIES[policy](logits, signal)
    assert scores.shape == logits.shape
    assert scores.isfinite().all()
