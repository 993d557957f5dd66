"""What holds of the exit policy for every input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_electra_exit.exit_policy import POLICIES, Evidence, capacity, select
from tests.conftest import EXIT_RULES, rule_name, tiny_config, tiny_model


@st.composite
def candidates(draw):
    """Scores (batch, tokens), how many continue, and any masks of protected tokens and of padding."""
    batch, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 24))
    flags = st.lists(st.booleans(), min_size=batch * tokens, max_size=batch * tokens)
    scores = draw(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=batch * tokens, max_size=batch * tokens))
    padding = torch.tensor(draw(flags)).view(batch, tokens)
    protected = torch.tensor(draw(flags)).view(batch, tokens) & ~padding
    return torch.tensor(scores).view(batch, tokens), draw(st.integers(1, tokens)), protected, padding


@settings(deadline=None)
@given(candidates(), st.floats(0, 1))
def test_a_selection_is_a_permutation_that_keeps_its_promises(given, exploration):
    scores, num_kept, protected, padding = given
    selection = select(scores, num_kept, protected, padding, exploration)
    assert selection.order.shape == scores.shape
    assert selection.exploration.shape == (len(scores), num_kept)
    assert torch.equal(selection.order.sort(dim=1).values, torch.arange(scores.shape[1]).expand_as(scores))
    kept = torch.zeros_like(padding).scatter(1, selection.order[:, :num_kept], True)
    for row in range(len(scores)):
        real, must = int((~padding[row]).sum()), int(protected[row].sum())
        assert int((kept[row] & padding[row]).sum()) == max(0, num_kept - real)
        assert int((kept[row] & protected[row]).sum()) == min(must, num_kept)
    chosen = protected.gather(1, selection.order[:, :num_kept]) | padding.gather(1, selection.order[:, :num_kept])
    assert not (selection.exploration & chosen).any()


@settings(deadline=None)
@given(st.floats(0, 1, exclude_min=True), st.integers(1, 600))
def test_a_capacity_is_between_one_token_and_all(keep, length):
    assert 1 <= capacity(keep, length) <= length
    assert capacity(keep, length) >= min(length, int(keep * length))
    assert capacity(1, length) == length


@pytest.mark.parametrize("rule", EXIT_RULES, ids=rule_name)
@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("keep", [[1e-9, 1e-9], [1, 1]])
def test_the_smallest_batches_train(rule, length, keep):
    capacities = {} if rule["exit_policy"] == "threshold" else {"exit_capacities": keep}
    model = tiny_model(**rule, **capacities).train()
    ids = torch.full((1, length), 3)  # nothing but special tokens
    labels = torch.full_like(ids, -100)
    output = model(input_ids=ids, mlm_labels=labels)
    assert output.loss.isfinite()
    output.loss.backward()
    padded = model(input_ids=ids, mlm_labels=labels, attention_mask=torch.zeros_like(ids))
    assert padded.logits.shape == (1, length)
    assert padded.loss.isfinite()


@pytest.mark.parametrize("rule", EXIT_RULES[:3], ids=rule_name)
def test_policies_rank_every_candidate(rule):
    config = tiny_config(**rule)
    ranking = POLICIES[config.exit_policy](Evidence(torch.tensor([[1e30, -1e30, 0.0]])), 2, config)
    assert ranking.scores.isfinite().all()
    assert 1 <= ranking.num_kept <= 3
