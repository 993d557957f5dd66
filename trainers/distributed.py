"""What the processes of a run have to agree on."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from modeling_electra_exit.exit_state import all_reduce


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process of the run. Every process has to ask."""
    return bool(all_reduce(torch.tensor(float(flag), device=device)))


def decided_once(decide: Callable[[], Any]) -> Any:
    """What `decide` returns, or raises, in the main process, in every process of the run. Every process has to ask.

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
