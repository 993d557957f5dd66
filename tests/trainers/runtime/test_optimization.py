import math

import pytest
import torch

from modeling_electra_exit.trainers import ElectraAdamW
from modeling_electra_exit.trainers.runtime.optimization import electra_schedule


def reference_step(p, m, v, g, lr, b1, b2, eps, decay):
    """google-research/electra, model/optimization.py, for one number."""
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    return p - lr * (m / (v**0.5 + eps) + decay * p), m, v


@pytest.mark.parametrize("fused", [False, True])
def test_matches_electras_update(fused):
    values = [0.5, -1.0, 2.0]
    parameter = torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))
    optimizer = ElectraAdamW([parameter], lr=0.01, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, fused=fused)
    state = [(p, 0.0, 0.0) for p in values]
    gradients = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for step, gradient in enumerate(gradients):
        lr = 0.01 * (1 - step / 20)
        optimizer.param_groups[0]["lr"] = lr
        parameter.grad = gradient.clone()
        optimizer.step()
        state = [
            reference_step(*s, g, lr, 0.9, 0.999, 1e-6, 0.01) for s, g in zip(state, gradient.tolist(), strict=True)
        ]
        torch.testing.assert_close(parameter.data, torch.tensor([s[0] for s in state], dtype=torch.float64))
        assert optimizer.param_groups[0]["lr"] == lr
        assert optimizer.param_groups[0]["eps"] == 1e-6


@pytest.mark.parametrize("warmup", [0, 0.1, 7])
def test_schedule_is_electras(warmup):
    """google-research/electra, model/optimization.py: a linear decay over all steps, times a linear warm-up."""
    optimizer = torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.3, 0.1)], lr=1.0
    )
    schedule, total = electra_schedule(optimizer, warmup, 35), 35
    warmup_steps = {0: None, 0.1: 3.5, 7: 7}[warmup]
    for step in range(total + 1):
        factor = (1 - step / total) * (min(1, step / warmup_steps) if warmup_steps else 1)
        assert schedule.get_last_lr() == pytest.approx([0.3 * factor, 0.1 * factor])
        optimizer.step()
        schedule.step()


def test_resumes_where_it_was():
    def make():
        parameter = torch.nn.Parameter(torch.ones(3))
        return parameter, ElectraAdamW([parameter], lr=0.1)

    straight, straight_optimizer = make()
    first, first_optimizer = make()
    gradients = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    for gradient in gradients:
        straight.grad = gradient.clone()
        straight_optimizer.step()
    for gradient in gradients[:3]:
        first.grad = gradient.clone()
        first_optimizer.step()
    second, second_optimizer = make()
    second.data.copy_(first.data)
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    for gradient in gradients[3:]:
        second.grad = gradient.clone()
        second_optimizer.step()
    assert torch.equal(second, straight)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_none(fused):
    """fp16 begins with a scale that overflows for a few steps: the first real update is ELECTRA's all the same."""
    parameter = torch.nn.Parameter(torch.tensor([0.5, -1.0]))
    optimizer = ElectraAdamW([parameter], lr=0.01, eps=1e-6, weight_decay=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    state = [(value, 0.0, 0.0) for value in parameter.tolist()]
    for gradient in ([torch.inf, 1.0], [1.0, torch.nan], [0.3, -0.1], [torch.inf, 0.0], [-0.2, 0.4]):
        parameter.grad = scaler.scale(torch.tensor(gradient))
        scaler.step(optimizer)
        scaler.update()
        if all(map(math.isfinite, gradient)):
            state = [reference_step(*s, g, 0.01, 0.9, 0.999, 1e-6, 0.01) for s, g in zip(state, gradient, strict=True)]
        torch.testing.assert_close(parameter.data, torch.tensor([s[0] for s in state]))
    assert optimizer.param_groups[0]["steps_taken"] == 2
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_a_group_that_is_emptied_meanwhile_takes_no_step():
    """ZeRO-3 steps once a group, and the others have no parameters then."""
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    together = ElectraAdamW([{"params": [p]} for p in parameters], lr=0.1)
    others = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    in_turn = ElectraAdamW([{"params": [p]} for p in others], lr=0.1)
    for gradient in torch.randn(4, 3, generator=torch.Generator().manual_seed(0)):
        for parameter in (*parameters, *others):
            parameter.grad = gradient.clone()
        together.step()
        for group, parameter in zip(in_turn.param_groups, others, strict=True):
            for each in in_turn.param_groups:
                each["params"] = []
            group["params"] = [parameter]
            in_turn.step()
    for parameter, other in zip(parameters, others, strict=True):
        assert torch.equal(parameter, other)
