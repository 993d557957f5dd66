import pytest
import torch
from torch.nn import functional as F

from modeling_electra_exit.trainers import ElectraEarlyExitTrainer, cpu_kernels
from tests.trainers.test_trainer import make_trainer


needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="this PyTorch has no oneDNN",
)


@pytest.fixture
def onednn(monkeypatch):
    """As on a processor that oneDNN is the faster for, whatever this one is; counts what it multiplies."""
    products = []
    for name in ("_mm", "_addmm"):
        kernel = getattr(cpu_kernels, name)

        def counting(*args, _kernel=kernel, **kwargs):
            result = _kernel(*args, **kwargs)
            products.append(result is not NotImplemented)
            return result

        monkeypatch.setattr(cpu_kernels, name, counting)
    monkeypatch.setattr(cpu_kernels, "prefers_onednn", lambda: True)
    return products


def matrix(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@needs_onednn
@pytest.mark.parametrize(
    ("left", "right", "taken"),
    [
        (matrix(64, 48), matrix(48, 80), True),
        (matrix(48, 64).t(), matrix(80, 48).t(), True),
        (matrix(64, 1), matrix(1, 80), True),
        (matrix(64, 1), matrix(1, 1), True),
        (matrix(8, 48), matrix(48, 80), False),  # few rows
        (matrix(0, 48), matrix(48, 80), False),
        (matrix(64, 0), matrix(0, 80), False),
        (matrix(64, 1).expand(64, 48), matrix(48, 80), False),  # one column, seen many times
        (matrix(64, 96)[:, ::2], matrix(48, 80), False),
        (matrix(64, 48).double(), matrix(48, 80).double(), False),
        (matrix(64, 48).bfloat16(), matrix(48, 80).bfloat16(), False),
    ],
)
def test_products_are_the_same(onednn, left, right, taken):
    bias = matrix(right.shape[1]).to(left.dtype)
    expected = left @ right, torch.addmm(bias, left, right), torch.addmm(bias, left, right, beta=0.5, alpha=2.0)
    with cpu_kernels.use():
        products = left @ right, torch.addmm(bias, left, right), torch.addmm(bias, left, right, beta=0.5, alpha=2.0)
    assert onednn == [taken, taken, False]
    torch.testing.assert_close(products, expected, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_so_are_the_gradients_of_a_layer(onednn):
    def gradients():
        inputs = [matrix(4, 16, 24).requires_grad_(), matrix(40, 24).requires_grad_(), matrix(40).requires_grad_()]
        return torch.autograd.grad(F.linear(*inputs).square().sum(), inputs)

    expected = gradients()
    with cpu_kernels.use():
        torch.testing.assert_close(gradients(), expected, rtol=1e-4, atol=1e-4)
    assert onednn == [True, True, True]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_masks_have_the_probability_asked_for(p, dtype):
    torch.manual_seed(0)
    with cpu_kernels.use():
        drawn = torch.empty(7, 30_001, dtype=dtype).t().bernoulli_(p)
    count = drawn.numel()
    assert set(drawn.float().unique().tolist()) <= {0.0, 1.0}
    assert abs(drawn.float().sum() - p * count) <= 3.3 * (p * (1 - p) * count) ** 0.5


def test_neighbouring_elements_are_independent():
    torch.manual_seed(0)
    with cpu_kernels.use():
        drawn = torch.empty(400_000).bernoulli_(0.5).view(-1, 4)  # four share one random number
    patterns = torch.bincount((drawn @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long(), minlength=16)
    assert ((patterns - 6250.0) ** 2 / 6250.0).sum() < 37.7  # 15 degrees of freedom, p = 0.001


def test_a_seed_repeats_the_mask():
    with cpu_kernels.use():
        masks = [torch.empty(1001).bernoulli_(0.3, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*masks)


def test_pytorchs_own_kernels_come_back_also_after_an_error():
    def draw():
        return torch.empty(1001).bernoulli_(0.3, generator=torch.Generator().manual_seed(5))

    def nest():
        with cpu_kernels.use():
            with cpu_kernels.use():
                assert not torch.equal(draw(), own)
            assert not torch.equal(draw(), own)  # the inner context leaves the outer one alone
            raise RuntimeError("in the middle")

    own = draw()
    with pytest.raises(RuntimeError, match="in the middle"):
        nest()
    assert torch.equal(draw(), own)


@pytest.mark.parametrize("wanted", [True, False])
def test_training_and_evaluation_use_them_unless_told_not_to(tokenizer, tmp_path, monkeypatch, wanted):
    used = []
    loss = ElectraEarlyExitTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        used.append(cpu_kernels._library is not None)
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(ElectraEarlyExitTrainer, "compute_loss", compute_loss)
    trainer = make_trainer(tokenizer, tmp_path, max_steps=1, cpu_kernels=wanted)
    trainer.train()
    trainer.evaluate()
    assert set(used) == {wanted}
    assert cpu_kernels._library is None
