import json
import math

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch.nn import Parameter
from transformers.training_args import OptimizerNames

from electra_exit import main as cli
from electra_exit.parsing import FINETUNE, parse, parse_fields
from modeling_electra_exit import ElectraEarlyExitForSequenceClassification
from modeling_electra_exit.trainers import ElectraAdamW, ElectraMuon
from modeling_electra_exit.trainers.errors import UsageError
from modeling_electra_exit.trainers.finetuning import run as finetuning
from modeling_electra_exit.trainers.finetuning.arguments import FineTuningArguments
from modeling_electra_exit.trainers.runtime import cpu_kernels, muon
from modeling_electra_exit.trainers.runtime.arguments import ElectraTrainingArguments
from tests.conftest import tiny_config, tiny_model
from tests.trainers.pretraining.test_trainer import assert_same, make_trainer, weights


SHAPES = [(8, 8), (8, 8), (6, 24), (24, 6), (8, 8)]
KINDS = [f"attention.self.{name}" for name in ("query", "key", "value")]
KINDS += ["attention.output.dense", "intermediate.dense", "output.dense"]


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    """However many there are."""
    monkeypatch.setattr(muon, "FEW_THREADS", torch.get_num_threads())


def matrices(dtype=torch.float32, seed=0) -> list[Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randn(shape, dtype=dtype, generator=generator)) for shape in SHAPES]


def set_gradients(parameters, seed):
    for parameter, gradient in zip(parameters, matrices(parameters[0].dtype, seed), strict=True):
        parameter.grad = gradient.detach()


def quintic(x):
    """Jordan et al. (2024): five steps."""
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    return x


def zolotarev(x):
    """By its zeros and poles, and not as the sum of fractions that is computed."""
    (p1, p2), (w1, w2) = muon.ZOLOTAREV_POLES, muon.ZOLOTAREV_WEIGHTS
    zeros = torch.tensor([1.0, p1 + p2 + w1 + w2, p1 * p2 + w1 * p2 + w2 * p1], dtype=torch.float64)
    square = x**2
    numerator = zeros[0] * square**2 + zeros[1] * square + zeros[2]
    return muon.ZOLOTAREV_SCALE * x * numerator / ((square + p1) * (square + p2))


def reference_orthogonal(matrix, function=zolotarev):
    """A function of the singular values: another way than products and inverses of matrices."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ function(values / matrix.norm()).diag() @ right


def reference_step(p, m, g, lr, momentum, decay):
    """Jordan et al. (2024) with Nesterov's momentum, scaled as Liu et al. (2025) do."""
    m = momentum * m + (1 - momentum) * g
    u = reference_orthogonal((1 - momentum) * g + momentum * m)
    return p - lr * (0.2 * max(p.shape) ** 0.5 * u + decay * p), m


@pytest.mark.parametrize("stack_size", [1, 2**17])
def test_matches_the_update_of_the_papers(monkeypatch, stack_size):
    monkeypatch.setitem(muon.STACK_SIZE, "cpu", stack_size)
    parameters = matrices(torch.float64)
    vector = Parameter(torch.ones(3, dtype=torch.float64))
    alone = Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = ElectraMuon(
        [{"params": [vector, *parameters]}], parameters, lr=0.01, momentum=0.9, weight_decay=0.1, betas=(0.8, 0.99)
    )
    adam = ElectraAdamW([alone], lr=0.01, weight_decay=0.1, betas=(0.8, 0.99))
    state = [(p.detach().clone(), torch.zeros_like(p)) for p in parameters]
    for step in range(4):
        lr = 0.01 * (1 - step / 4)
        for group in (*optimizer.param_groups, *adam.param_groups):
            group["lr"] = lr
        set_gradients(parameters, seed=step + 1)
        vector.grad = alone.grad = torch.tensor([1.0, -2.0, step], dtype=torch.float64)
        optimizer.step()
        adam.step()
        state = [reference_step(*s, p.grad, lr, 0.9, 0.1) for s, p in zip(state, parameters, strict=True)]
        for parameter, (expected, _) in zip(parameters, state, strict=True):
            torch.testing.assert_close(parameter.data, expected)
        assert torch.equal(vector, alone)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_matches_torchs_own(monkeypatch):
    """As where the iteration is in bf16, as torch's always is; Zolotarev's function stays close to it."""

    def moves_from_torchs() -> list[float]:
        ours, theirs = matrices(), matrices()
        optimizer = ElectraMuon([{"params": ours}], ours, lr=0.01, momentum=0.9, weight_decay=0.1)
        other = torch.optim.Muon(theirs, lr=0.01, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for step in range(4):
            for parameters, its in ((ours, optimizer), (theirs, other)):
                set_gradients(parameters, seed=step + 1)
                its.step()
        return [
            float((mine - its).detach().norm() / (its - start).detach().norm())
            for mine, its, start in zip(ours, theirs, matrices(), strict=True)
        ]

    assert max(moves_from_torchs()) < 0.3
    monkeypatch.setattr(muon, "orthogonalize", muon.newton_schulz)
    monkeypatch.setattr(muon, "iteration_dtype", lambda device: torch.bfloat16)  # which torch always takes
    assert max(moves_from_torchs()) < 0.01


def test_zolotarevs_function_is_the_best_of_its_degree():
    """Chebyshev: as close as possible to 1 is what errs equally, on alternate sides, as often as it has coefficients
    and once more."""
    values = zolotarev(torch.logspace(math.log10(0.002), 0, 20001, dtype=torch.float64))
    inner = values[1:-1]
    extreme = (inner - values[:-2]) * (inner - values[2:]) > 0
    errors = torch.cat([values[:1], inner[extreme], values[-1:]]) - 1
    assert len(errors) == 6
    torch.testing.assert_close(errors.abs(), torch.full_like(errors, 0.15475), rtol=0, atol=1e-5)
    assert (errors.sign()[1:] == -errors.sign()[:-1]).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (40, 40), (33, 70), (70, 33), (96, 384)])
@pytest.mark.parametrize("spectrum", ["flat", "one", "falling", "two and little"])
def test_orthogonalizes_whatever_the_singular_values(shape, spectrum):
    torch.manual_seed(0)
    least = min(shape)
    values = {
        "flat": torch.ones(least),
        "one": torch.eye(least)[0],
        "falling": torch.logspace(0, -6, least),
        "two and little": torch.full((least,), 1e-4).index_fill_(0, torch.arange(min(2, least)), 1.0),
    }[spectrum].double()
    left, right = (torch.linalg.qr(torch.randn(size, least, dtype=torch.float64))[0] for size in shape)
    matrix = left @ values.diag() @ right.mT
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 3e-3)):
        for scale in (1e-3, 1.0, 1e3):
            found = muon.orthogonalize((scale * matrix)[None].to(dtype))[0]
            assert found.dtype is dtype
            error = torch.linalg.matrix_norm(found.double() - reference_orthogonal(matrix), 2)
            assert error < tolerance, (dtype, scale)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_orthogonalizes_by_the_iteration_too(monkeypatch, dtype, tolerance):
    monkeypatch.setattr(muon.cpu_kernels, "multiplies_bf16", lambda: dtype is torch.bfloat16)
    for shape in ((3, 8, 8), (2, 6, 24), (2, 24, 6)):
        matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        found = muon.newton_schulz(matrices)
        assert found.dtype is dtype
        expected = torch.stack([reference_orthogonal(matrix, quintic) for matrix in matrices])
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)
        # In bf16 parameters too, where it is computed in fp32.
        coarse = muon.orthogonalize(matrices.bfloat16())
        assert coarse.dtype is torch.float32
        assert (coarse - muon.orthogonalize(matrices)).abs().max() < 0.1


@pytest.mark.parametrize("function", [muon.orthogonalize, muon.newton_schulz])
def test_zero_matrices_remain_zero_and_nan_is_kept(function):
    assert not function(torch.zeros(1, 4, 4)).any()
    assert function(torch.full((1, 4, 6), 1e-12)).abs().max() < 0.01  # a norm of nearly 0 is not enlarged to 1
    broken = torch.ones(2, 4, 6)
    broken[0, 1, 2] = float("nan")
    found = function(broken)
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


def test_the_device_decides_how_to_orthogonalize(monkeypatch):
    able = cpu_kernels.multiplies_bf16()
    assert muon.iteration_dtype(torch.device("cpu")) is (torch.bfloat16 if able else torch.float32)
    square = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    for threads, expected in ((muon.FEW_THREADS, muon.zolotarev), (muon.FEW_THREADS + 1, None)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        expected = torch.stack([expected(each) for each in square]) if expected else muon.newton_schulz(square)
        assert torch.equal(muon.orthogonalize(square), expected)


def test_a_cpu_orthogonalizes_with_one_blas_thread(monkeypatch):
    def threads():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    used = []
    monkeypatch.setattr(muon, "zolotarev", lambda matrix: (used.append(threads()), matrix)[1])
    with threadpool_limits(limits=2, user_api="blas"):
        muon.orthogonalize(torch.ones(1, 4, 4))
        assert used == [{1}]
        assert threads() == {2}


def groups_of(optimizer, model) -> tuple[set[str], set[str]]:
    """The names of the parameters that Muon and that Adam has."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = (set(), set())
    for group in optimizer.param_groups:
        found["momentum" not in group].update(names[p] for p in group["params"])
    return found


def test_muon_has_the_matrices_of_the_layers_and_adam_the_rest(tokenizer, tmp_path):
    model = tiny_model(norm_position="pre")
    trainer = make_trainer(tokenizer, tmp_path, model, optim="muon", muon_momentum=0.8, weight_decay=0.02)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is ElectraMuon
    muons, adams = groups_of(optimizer, model)
    encoders = ("electra.encoder", "generator.encoder")
    assert muons == {f"{encoder}.layer.{n}.{kind}.weight" for encoder in encoders for n in range(6) for kind in KINDS}
    assert muons | adams == {name for name, _ in model.named_parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(muons) + len(adams)
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        without = name.endswith("bias") or "norm" in name.lower()
        assert decays[parameter] == (0.0 if without else 0.02), name
    assert {group["momentum"] for group in optimizer.param_groups if "momentum" in group} == {0.8}
    # Parameters that do not learn have no place in it.
    model.electra.encoder.layer[0].requires_grad_(False)
    frozen = make_trainer(tokenizer, tmp_path, model, optim="muon").create_optimizer()
    assert groups_of(frozen, model)[0] == {name for name in muons if not name.startswith("electra.encoder.layer.0.")}


def test_a_matrix_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"`matrices` must have two dimensions, got a shape of \(3,\)"):
        ElectraMuon([vector := Parameter(torch.ones(3))], [vector])


def test_learning_rates_a_layer(tmp_path):
    model = ElectraEarlyExitForSequenceClassification(
        tiny_config(num_hidden_layers=4, exit_layers=[2], exit_capacities=[0.5])
    )
    args = FineTuningArguments(
        str(tmp_path), learning_rate=1.0, layerwise_lr_decay=0.5, use_cpu=True, report_to=[], optim="muon"
    )
    optimizer = finetuning.FineTuningTrainer(model, args).create_optimizer()
    assert optimizer.param_groups[0]["lr"] == 1.0  # what is logged
    found = {p: (group["lr"], "momentum" in group) for group in optimizer.param_groups for p in group["params"]}
    expected = {
        "electra.embeddings.word_embeddings.weight": (0.5**6, False),
        "electra.encoder.layer.0.attention.self.query.weight": (0.5**5, True),
        "electra.encoder.layer.0.attention.self.query.bias": (0.5**5, False),
        "electra.encoder.layer.3.output.dense.weight": (0.5**2, True),
        "classifier.dense.weight": (1.0, False),
    }
    parameters = dict(model.named_parameters())
    assert found.keys() == set(parameters.values())
    assert {name: found[parameters[name]] for name in expected} == expected


def test_an_interrupted_run_ends_in_the_weights_of_an_uninterrupted_one(tokenizer, tmp_path):
    settings = {"optim": "muon", "save_strategy": "steps", "save_steps": 3, "warmup_steps": 2}
    straight = make_trainer(tokenizer, tmp_path / "straight", tiny_model(), **settings)
    before = weights(straight)
    straight.train()
    assert not any(torch.equal(before[n], p) for n, p in straight.model.named_parameters() if ".layer." in n)
    resumed = make_trainer(tokenizer, tmp_path / "resumed", tiny_model(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-3"))
    assert_same(weights(straight), weights(resumed))
    states = [trainer.optimizer.state_dict() for trainer in (straight, resumed)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for index, state in states[0]["state"].items():
        assert all(torch.equal(value, states[1]["state"][index][name]) for name, value in state.items())


def test_a_step_skipped_by_the_scaler_updates_nothing():
    """Fused Adam unscales gradients itself and is stepped all the same; Muon would take them as they are."""
    parameters, vector = matrices(), Parameter(torch.ones(3))
    optimizer = ElectraMuon([{"params": [vector, *parameters]}], parameters, lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(vector.sum())  # which is when it makes its scale
    expected, alone = matrices(), Parameter(torch.ones(3))
    other = ElectraMuon([{"params": [alone, *expected]}], expected, lr=0.1, fused=True)
    for step, factor in enumerate((4.0, float("inf"), 2.0)):  # the scale after a skipped step is half as large
        set_gradients(parameters, seed=step)
        vector.grad = torch.ones(3)
        for parameter in (vector, *parameters):
            parameter.grad *= factor
        scaler.step(optimizer)
        scaler.update()
        if factor < float("inf"):
            set_gradients(expected, seed=step)
            alone.grad = torch.ones(3)
            other.step()
        for mine, its in zip((vector, *parameters), (alone, *expected), strict=True):
            assert torch.equal(mine, its)
    assert [group.get("steps_taken") for group in optimizer.param_groups] == [2, None]


def test_what_does_not_go_with_muon_is_refused(tmp_path, monkeypatch):
    fields = {"output_dir": str(tmp_path), "optim": "muon"}
    with pytest.raises(UsageError, match=r"`optim` must be one of muon, adamw_torch, .*, got moun"):
        parse_fields({**fields, "optim": "moun"})
    for momentum in (1.0, -0.1):
        with pytest.raises(UsageError, match=rf"`muon_momentum` must be in \[0, 1\), got {momentum}"):
            parse_fields({**fields, "muon_momentum": momentum})
    with pytest.raises(UsageError, match="`adam_bias_correction` must be False with `optim` muon, got True"):
        parse_fields({**fields, "adam_bias_correction": True})
    with pytest.raises(UsageError, match="`optim` must not be muon with DeepSpeed"):
        parse_fields({**fields, "deepspeed": "zero2.json"})
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")  # as accelerate launch asks for it
    with pytest.raises(UsageError, match="`optim` must not be muon with DeepSpeed"):
        parse_fields(fields)


def test_arguments_say_which_optimizer(tmp_path):
    args = ElectraTrainingArguments(str(tmp_path), optim="muon", use_cpu=True)
    assert args.optim == "muon"
    assert json.loads(args.to_json_string())["optim"] == args.to_sanitized_dict()["optim"] == "muon"
    torch.save(args, tmp_path / "args.bin")
    assert torch.load(tmp_path / "args.bin", weights_only=False).optim == "muon"
    default = ElectraTrainingArguments(str(tmp_path), use_cpu=True)
    assert default.optim == ElectraTrainingArguments.optim
    assert isinstance(default.optim, OptimizerNames)
    assert parse(["glue-small", "--optim", "muon"], FINETUNE)[2].optim == "muon"


def test_the_quickstart_runs_with_it_and_continues_only_with_it(tmp_path, corpus, capsys):
    folder = tmp_path / "run"
    command = ["pretrain", "quickstart", "--train_files", str(corpus), "--output_dir", str(folder), "--max_steps", "4",
               "--save_steps", "2", "--per_device_train_batch_size", "4", "--warmup_steps", "1"]  # fmt: skip
    assert cli.main(command) == 0
    assert json.loads((folder / "run.json").read_text())["arguments"]["optim"] == "muon"
    state = torch.load(folder / "checkpoint-4" / "optimizer.pt")
    assert [group["momentum"] for group in state["param_groups"] if "momentum" in group] == [0.95]
    (folder / "metrics.json").unlink()
    assert cli.main([*command, "--optim", "adamw_torch"]) == 2
    assert "optim: 'muon' then, 'adamw_torch' now" in capsys.readouterr().err
    assert cli.main(command) == 0
