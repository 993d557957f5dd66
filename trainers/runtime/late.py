"""Numbers that a device computes, read without waiting for it."""

from collections import deque
from collections.abc import Callable

import torch


class LateNumber:
    """A copy of one number on its way to the host."""

    def __init__(self, number: torch.Tensor):
        self._host = number.detach().to("cpu", non_blocking=True)
        self._event = torch.Event(number.device)
        self._event.record()

    def has_arrived(self) -> bool:
        return self._event.query()

    def value(self) -> float:
        """The number; waits where it has not arrived."""
        self._event.synchronize()
        return float(self._host)


def on_host(number: torch.Tensor | float) -> bool:
    return not isinstance(number, torch.Tensor) or number.device.type == "cpu"


class LateNumbers:
    """Looks at numbers when they arrive, in the order in which they were given: on a CPU at once, on any other device
    a step or so later."""

    def __init__(self):
        self._on_their_way: deque[tuple[LateNumber, Callable[[float], None]]] = deque()

    def watch(self, number: torch.Tensor | float, look: Callable[[float], None]) -> None:
        """Have `look` called with a number, `()`, and with those before it that have arrived."""
        if on_host(number):
            look(float(number))
            return
        self._on_their_way.append((LateNumber(number), look))
        while self._on_their_way and self._on_their_way[0][0].has_arrived():
            self._look_at_first()

    def settle(self) -> None:
        """Wait for all of them."""
        while self._on_their_way:
            self._look_at_first()

    def _look_at_first(self) -> None:
        number, look = self._on_their_way.popleft()
        look(number.value())
