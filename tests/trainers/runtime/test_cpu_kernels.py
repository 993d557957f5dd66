import pytest
import torch
from torch.nn import functional as F
from transformers.models.electra.modeling_electra import eager_attention_forward

from modeling_electra_exit.trainers import ElectraEarlyExitTrainer
from modeling_electra_exit.trainers.runtime import cpu_kernels
from tests.conftest import masked_batch, tiny_model
from tests.trainers.pretraining.test_trainer import make_trainer


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


def dropped(states, p):
    with cpu_kernels.use():
        return F.dropout(states, p)


@pytest.mark.parametrize("p", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_has_the_given_probability_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    ones = torch.ones(300, 701, dtype=dtype).t()
    left = torch.stack([dropped(ones, p) for _ in range(20)]).float()
    # Within a tensor the probability is one of the two multiples of 1/256 beside p; 20 tensors hardly average that.
    tolerance = 3.3 * (p * (1 - p) / left.numel()) ** 0.5 + (1 / 256 if 1 / 256 <= p <= 255 / 256 else 0)
    assert abs((left == 0).float().mean() - p) <= tolerance
    assert left.mean().item() == pytest.approx(1 if p < 1 else 0, abs=0.05 if p == 0.999 else 0.01)


def test_a_step_of_1_256_is_drawn_so_that_p_is_met_in_the_mean():
    torch.manual_seed(0)
    staying = torch.tensor([float(cpu_kernels.draw(torch.Size([1]), 0.1)[1]) for _ in range(2000)])
    assert set(staying.tolist()) == {230.0, 231.0}
    assert staying.mean().item() == pytest.approx(256 * 0.9, abs=0.04)


def test_neighbouring_elements_are_independent():
    torch.manual_seed(0)
    stays = (dropped(torch.ones(800_000), 0.5) > 0).float().view(-1, 8)  # eight share one random number
    patterns = torch.bincount((stays @ 2.0 ** torch.arange(8)).long(), minlength=256)
    assert ((patterns - 390.625) ** 2 / 390.625).sum() < 330.5  # 255 degrees of freedom, p = 0.001


def test_gradients_meet_the_mask_of_the_states():
    states = matrix(31, 7).requires_grad_()
    with cpu_kernels.use():
        left = F.dropout(states, 0.3)
    left.sum().backward()
    torch.testing.assert_close(states.grad * states, left)
    assert 0 < (left == 0).sum() < left.numel()


def test_a_seed_repeats_the_mask():
    drawn = [(torch.manual_seed(5), dropped(torch.ones(1001), 0.3))[1] for _ in range(2)]
    assert torch.equal(*drawn)


def test_pytorchs_own_kernels_come_back_also_after_an_error():
    def draw():
        torch.manual_seed(5)
        return F.dropout(torch.ones(1001), 0.3)

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


def attention_inputs(queries, keys, dtype=torch.float32):
    return [matrix(3, 2, tokens, 8).to(dtype).requires_grad_() for tokens in (queries, keys, keys)]


def padded(keys):
    """Each row of the batch of 3 sees one key less than the row before."""
    return (torch.arange(keys) < torch.tensor([keys, keys - 1, keys - 2])[:, None])[:, None, None]


@pytest.mark.parametrize("queries", [12, 5])
@pytest.mark.parametrize("mask", [None, padded])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_attention_is_that_of_transformers(queries, mask, dtype, tolerance):
    module, results = torch.nn.Module(), []
    mask = None if mask is None else mask(12)
    for attend, given, kind in (
        (eager_attention_forward, None if mask is None else torch.where(mask, 0.0, -1e9), torch.float32),
        (cpu_kernels.attention_forward, mask, dtype),
    ):
        inputs = attention_inputs(queries, 12, kind)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind is torch.bfloat16):
            output, weights = attend(module, *inputs, given, scaling=0.3, dropout=0.0)
        assert output.dtype is kind
        gradients = torch.autograd.grad(output.float().square().sum(), inputs)
        results.append([tensor.float() for tensor in (output, weights, *gradients)])
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mask", [None, padded])
def test_the_gradients_of_attention_with_dropout(mask):
    module, mask = torch.nn.Module(), None if mask is None else mask(7)

    def attend(*inputs):
        torch.manual_seed(0)
        return cpu_kernels.attention_forward(module, *inputs, mask, scaling=0.3, dropout=0.4)[0]

    inputs = attention_inputs(5, 7, torch.float64)
    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)
    # What the queries' own states are not: without dropout the result is another.
    undropped = cpu_kernels.attention_forward(module, *inputs, mask, scaling=0.3)[0]
    assert not torch.allclose(attend(*inputs), undropped)
    # Evaluation mode drops nothing.
    module.eval()
    torch.testing.assert_close(attend(*inputs), undropped)


def test_attention_keeps_its_probabilities_once_and_a_byte_an_element():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        cpu_kernels.attention_forward(torch.nn.Module(), *attention_inputs(16, 16), None, scaling=0.3, dropout=0.1)
    elements = 3 * 2 * 16 * 16
    assert sum(tensor.nbytes for tensor in kept) == 3 * 4 * (3 * 2 * 16 * 8) + (4 + 1) * elements


@pytest.mark.parametrize("policy", ["none", "random"])
@pytest.mark.parametrize("padding", [0, 20])
def test_a_model_computes_the_same_with_it(policy, padding):
    model = tiny_model(exit_policy=policy, generator_type="none").train()
    batch = masked_batch(padding=padding)
    labels = (batch.pop("mlm_labels") != -100).long()
    results = []
    for suit in (lambda: model.set_attn_implementation("eager"), lambda: cpu_kernels.suit_attention(model, "cpu")):
        suit()
        outputs = model(**batch, labels=labels, noise_seeds=torch.arange(len(labels)))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(outputs.loss, trained, allow_unused=True)
        results.append((outputs.logits, [gradient for gradient in gradients if gradient is not None]))
    assert model.config._attn_implementation == "electra_cpu"
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


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
