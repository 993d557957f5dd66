"""What the processes of a run have to agree on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, broadcast_object_list
from torch.distributed.tensor import DTensor, Replicate

from modeling_electra_exit.exit_state import all_reduce

from ..errors import WorkerError


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process of the run. Every process has to call it."""
    return bool(all_reduce(torch.tensor(float(flag), device=device)))


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


def switch_fsdp_on(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Let FSDP2 work between CPUs too, and lose no precision to `bf16` beyond that of the layers.

    accelerate shards between accelerators only: a run of several CPUs goes on with DDP, and nothing says so. All that
    it takes is to call the run by its name; neither torch nor the Trainer minds the device.
    """
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        state.fsdp_plugin = plugin
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    if (policy := state.fsdp_plugin.mixed_precision_policy) is not None:
        # As under DDP with autocast: gradients are averaged, and losses returned, in fp32.
        state.fsdp_plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)


def name_as_unsharded(model: torch.nn.Module) -> None:
    """Give a model sharded by FSDP2 its name back: torch derives a class of its own from the model's, and saving
    would ship the code of torch in the place of the model's and name a class in it that cannot be loaded."""
    sharded, original = type(model), type(model).__bases__[-1]
    sharded.__name__, sharded.__qualname__, sharded.__module__ = (
        original.__name__,
        original.__qualname__,
        original.__module__,
    )


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
