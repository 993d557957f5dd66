"""Communication between the processes of a run."""

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
    """Whether `flag` is set in any process of the run. A collective call with a host-device synchronization."""
    return bool(flags_set(flag, device)) if is_distributed() else flag


def is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def flags_set(flag: bool, device: torch.device) -> torch.Tensor:
    """Number of processes in which `flag` is set, a tensor of shape `()` on the device. A collective call."""
    return all_reduce(torch.full((), float(flag), device=device))


def run_on_main_and_broadcast(decide: Callable[[], Any]) -> Any:
    """Call `decide` in the main process, and return its result, or raise its error, in every process of the run.

    A collective call. It ensures that processes do not see a folder in different states, and nothing is done twice.
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


# Beginnings of the messages of torch and `datasets`, which raise a generic RuntimeError.
WORKER_DIED = ("DataLoader worker", "One of the subprocesses has abruptly died")


@contextmanager
def naming_dead_workers(flag: str) -> Iterator[None]:
    """Convert the error about a dead worker process. `flag` sets the number of workers.

    Raises:
        WorkerError: if a worker has died; the message says what to do. Other errors are not converted.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(WORKER_DIED):
            raise
        raise WorkerError(
            f"a process that reads the data was killed, perhaps because memory ran out; a smaller {flag} needs less. "
            "The same command resumes the run"
        ) from error


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter or gradient gathered from its shards. A collective call if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_as(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The shard of a replicated tensor that corresponds to this process's shard of `parameter`."""
    if not isinstance(parameter, DTensor):
        return tensor
    mesh = parameter.device_mesh
    everywhere = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=parameter.placements)
