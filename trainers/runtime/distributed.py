"""What the processes of a run have to agree on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.distributed.tensor import DTensor, Replicate

from modeling_electra_exit.exit_state import all_reduce

from ..errors import WorkerError


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process of the run. Every process has to call it, and all wait for the device."""
    return bool(flags_set(flag, device)) if is_distributed() else flag


def is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def flags_set(flag: bool, device: torch.device) -> torch.Tensor:
    """In how many processes of the run `flag` is set, `()` on the device. Every process has to call it."""
    return all_reduce(torch.full((), float(flag), device=device))


def run_on_main_and_broadcast(decide: Callable[[], Any]) -> Any:
    """What `decide` returns, or raises, in the main process, in every process of the run. All of them have to call it.

    So that processes cannot find a folder in different states, and nothing is done twice.
    """
    answer = [None, None]
    if PartialState().is_main_process:
        try:
            answer[0] = decide()
        except Exception as error:
            answer[1] = error
    result, error = broadcast_object_list(answer)
    if error is not None:
        raise error
    return result


# How torch and `datasets` say it, with what they raise for anything.
WORKER_DIED = ("DataLoader worker", "One of the subprocesses has abruptly died")


@contextmanager
def naming_dead_workers(flag: str) -> Iterator[None]:
    """Say what to do where a process has died of which `flag` is the number.

    Raises:
        WorkerError: then; whatever else is raised inside stays.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(WORKER_DIED):
            raise
        raise WorkerError(
            f"a process that reads the data was killed, perhaps because memory ran out; a smaller {flag} takes less. "
            "The same command continues"
        ) from error


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """All of a parameter or a gradient, wherever its shards are. Every process has to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_as(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Of a tensor that every process has all of, the shard that this process has of `parameter`."""
    if not isinstance(parameter, DTensor):
        return tensor
    mesh = parameter.device_mesh
    everywhere = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=parameter.placements)
