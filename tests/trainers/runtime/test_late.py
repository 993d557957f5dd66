"""Numbers of a device, without a device: what arrives when is made up."""

import pytest
import torch

from modeling_electra_exit.trainers.pretraining import callbacks
from modeling_electra_exit.trainers.runtime import distributed, late


class Number:
    """Arrives when `arrived` says so, or when it is waited for."""

    arrived: set[float] = set()
    waited: list[float] = []

    def __init__(self, number):
        self.number = float(number)

    def has_arrived(self):
        return self.number in self.arrived

    def value(self):
        if not self.has_arrived():
            self.waited.append(self.number)
        return self.number


@pytest.fixture
def device(monkeypatch):
    """Every tensor is one of a device."""
    monkeypatch.setattr(Number, "arrived", set())
    monkeypatch.setattr(Number, "waited", [])
    monkeypatch.setattr(late, "LateNumber", Number)
    monkeypatch.setattr(late, "on_host", lambda number: not isinstance(number, torch.Tensor))
    return Number


def test_on_the_host_numbers_are_looked_at_at_once():
    numbers, seen = late.LateNumbers(), []
    numbers.watch(torch.tensor(1.0), seen.append)
    numbers.watch(2.0, seen.append)
    assert seen == [1.0, 2.0]


def test_on_a_device_numbers_are_looked_at_in_order_when_they_have_arrived(device):
    numbers, seen = late.LateNumbers(), []
    for number in (1.0, 2.0):
        numbers.watch(torch.tensor(number), seen.append)
    device.arrived.add(2.0)  # never before the first
    numbers.watch(torch.tensor(3.0), seen.append)
    assert seen == []
    device.arrived.add(1.0)
    numbers.watch(torch.tensor(4.0), seen.append)
    assert seen == [1.0, 2.0]
    assert device.waited == []
    numbers.settle()
    assert seen == [1.0, 2.0, 3.0, 4.0]
    assert device.waited == [3.0, 4.0]


def test_what_a_look_raises_is_raised_once(device):
    numbers = late.LateNumbers()

    def look(number):
        raise ArithmeticError(number)

    numbers.watch(torch.tensor(1.0), look)
    with pytest.raises(ArithmeticError):
        numbers.settle()
    numbers.settle()


def test_one_process_makes_no_tensor_to_learn_of_a_signal(monkeypatch):
    monkeypatch.setattr(torch, "full", None)  # so that making one fails
    assert not distributed.any_rank(False, torch.device("cpu"))
    assert distributed.any_rank(True, torch.device("cpu"))
    with callbacks.PreemptionCallback(torch.device("cuda")) as preemption:
        assert not preemption.requested_before()
        preemption._noticed = 15
        assert preemption.requested_before()


def test_processes_learn_of_a_signal_at_the_same_step_and_a_step_late(monkeypatch):
    """They read the sum of the step before, which every device has by then."""
    flags = []
    monkeypatch.setattr(callbacks, "is_distributed", lambda: True)
    monkeypatch.setattr(callbacks, "flags_set", lambda flag, device: flags.append(flag) or float(flag))
    monkeypatch.setattr(callbacks, "LateNumber", Number)
    with callbacks.PreemptionCallback(torch.device("cuda")) as preemption:
        assert not preemption.requested_before()
        preemption._noticed = 15
        assert not preemption.requested_before()
        assert preemption.requested_before()
    assert flags == [False, True, True]
    with preemption:  # another run starts anew
        assert not preemption.requested_before()
