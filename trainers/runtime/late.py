"""Asynchronous reads of numbers from a device, without host-device synchronization."""

from collections import deque
from collections.abc import Callable

import torch


class LateNumber:
    """An asynchronous copy of a scalar tensor to the host."""

    def __init__(self, number: torch.Tensor):
        self._host = number.detach().to("cpu", non_blocking=True)
        self._event = torch.Event(number.device)
        self._event.record()

    def has_arrived(self) -> bool:
        return self._event.query()

    def value(self) -> float:
        """The number. Blocks until it has arrived."""
        self._event.synchronize()
        return float(self._host)


def on_host(number: torch.Tensor | float) -> bool:
    return not isinstance(number, torch.Tensor) or number.device.type == "cpu"


class LateNumbers:
    """A queue of asynchronous reads: calls a function with each number when it arrives, in order. On a CPU numbers
    arrive at once, on other devices about one step later."""

    def __init__(self):
        self._pending: deque[tuple[LateNumber, Callable[[float], None]]] = deque()

    def watch(self, number: torch.Tensor | float, callback: Callable[[float], None]) -> None:
        """Queue `callback` for a number of shape `()`, and process the queue as far as numbers have arrived."""
        if on_host(number):
            callback(float(number))
            return
        self._pending.append((LateNumber(number), callback))
        while self._pending and self._pending[0][0].has_arrived():
            self._process_first()

    def settle(self) -> None:
        """Wait for all pending numbers and process them."""
        while self._pending:
            self._process_first()

    def _process_first(self) -> None:
        number, callback = self._pending.popleft()
        callback(number.value())
