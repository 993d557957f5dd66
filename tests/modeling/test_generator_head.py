import pytest
import torch
from torch.nn import functional as F

from modeling_electra_exit import generator_head
from modeling_electra_exit.generator_head import PredictMaskedTokens, sample_in_proportion


def head(rows, vocabulary=300, width=16):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator) for shape in ((rows, width), (vocabulary, width), (vocabulary,))
    )
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    return [tensor.requires_grad_() for tensor in (hidden, weight, bias)], targets


def plain(inputs, targets):
    return F.cross_entropy(F.linear(*inputs).float(), targets)


@pytest.mark.parametrize("chunk", [300, 5 * 300, 10**9])  # one row at a time, five (the last chunk is short), all
def test_loss_and_gradients_equal_the_plain_ones(monkeypatch, chunk):
    monkeypatch.setattr(generator_head, "CHUNK_ELEMENTS", chunk)
    inputs, targets = head(rows=13)
    loss, samples = PredictMaskedTokens.apply(*inputs, targets)
    expected = plain(inputs, targets)
    torch.testing.assert_close(loss, expected)
    ours, theirs = torch.autograd.grad(3.0 * loss, inputs), torch.autograd.grad(3.0 * expected, inputs)
    torch.testing.assert_close(ours, theirs)
    assert samples.shape == targets.shape
    assert not samples.requires_grad


def test_large_logits_stay_finite():
    inputs, targets = head(rows=4)
    scaled = [(1000 * tensor).detach().requires_grad_() for tensor in inputs]
    loss, _ = PredictMaskedTokens.apply(*scaled, targets)
    torch.testing.assert_close(loss, plain(scaled, targets))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, scaled))


def test_under_autocast_as_precise_as_the_plain_one():
    inputs, targets = head(rows=64)
    exact = torch.autograd.grad(plain(inputs, targets), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = PredictMaskedTokens.apply(*inputs, targets)
        reference = plain(inputs, targets)
    assert loss.dtype == torch.float32
    for ours, theirs, truth in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(reference, inputs), exact, strict=True
    ):
        assert ours.dtype == truth.dtype
        assert (ours - truth).norm() <= 1.1 * (theirs - truth).norm()


def test_nothing_masked_means_no_loss_and_no_gradient():
    inputs, targets = head(rows=0)
    loss, samples = PredictMaskedTokens.apply(*inputs, targets)
    assert loss == 0
    assert samples.shape == (0,)
    loss.backward()
    assert not inputs[1].grad.any()


def test_a_second_backward_pass_is_rejected():
    inputs, targets = head(rows=3)
    loss, _ = PredictMaskedTokens.apply(*inputs, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Fewer columns than a block, whole blocks alone, and blocks with a rest; 0.999 quantiles of chi-square.
@pytest.mark.parametrize(("columns", "limit"), [(50, 85.35), (256, 330.5), (300, 379.0)])
def test_samples_follow_the_distribution(columns, limit):
    torch.manual_seed(0)
    weights = (torch.randn(columns) * 1.5).exp()
    counts = torch.bincount(sample_in_proportion(weights.expand(100_000, -1)), minlength=columns)
    expected = weights / weights.sum() * 100_000
    assert ((counts - expected) ** 2 / expected).sum() < limit


def test_the_layer_samples_from_its_own_softmax():
    torch.manual_seed(0)
    (hidden, weight, bias), _ = head(rows=1, vocabulary=60, width=4)
    _, samples = PredictMaskedTokens.apply(
        hidden.expand(50_000, -1), weight, bias, torch.zeros(50_000, dtype=torch.long)
    )
    expected = F.linear(hidden, weight, bias).softmax(-1)[0] * 50_000
    counts = torch.bincount(samples, minlength=60)
    assert ((counts - expected) ** 2 / expected).sum() < 98.3  # 59 degrees of freedom, p = 0.001


@pytest.mark.parametrize("possible", [0, 127, 128, 299])
def test_what_has_no_weight_is_never_drawn(possible):
    weights = torch.zeros(2000, 300)
    weights[:, possible] = 1e-6
    assert (sample_in_proportion(weights) == possible).all()
