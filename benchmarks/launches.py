"""Count the kernel launches and host-device synchronizations of a training step without a GPU.

    python benchmarks/launches.py [--sizes electra-small electra-base] [--length 128] [--batch_size 8] [--json FILE]

The step runs on the device `meta`, where tensors have shapes but no values, so an operation that reads a value fails.
Every operator that is not a view counts as a launch. A real device launches fewer kernels where one fused kernel
replaces several operators (attention, dropout), and a compiled step in a CUDA graph is one launch per pass.
"""

import argparse
import contextlib
import json
from collections import Counter

import torch
from steps import records
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_electra_exit import ElectraEarlyExitConfig, ElectraEarlyExitForPreTraining


# Operators for which the host waits, because it needs their result or its shape.
WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "equal",
    "_unique2",
    "unique_dim",
    "bincount",
)
# Operators that launch no kernel.
NO_LAUNCH = (
    "empty", "empty_like", "new_empty", "empty_strided", "detach", "_reshape_alias", "_unsafe_view", "lift_fresh",
)  # fmt: skip


class TensorsOfNumbers(TorchFunctionMode):
    """Records in `waits` each conversion of Python numbers to a tensor on a device, a copy that the host waits for."""

    def __init__(self, waits: list[str]):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if (
            function in (torch.tensor, torch.as_tensor)
            and torch.device((kwargs or {}).get("device") or "cpu").type != "cpu"
        ):
            self.waits.append(f"torch.{function.__name__}{args}")
        return function(*args, **(kwargs or {}))


class DeviceCalls(TorchDispatchMode):
    """Counts kernel launches and host-device synchronizations within the context.

    launches (`Counter`): operators that launch a kernel, by name.
    waits (`list[str]`): operators for which the host waits, or that take a tensor on the host.
    """

    def __init__(self):
        super().__init__()
        self.launches, self.waits = Counter(), []
        self._of_numbers = TensorsOfNumbers(self.waits)

    def __enter__(self):
        self._of_numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self._of_numbers.__exit__(*exception)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, operator.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        to = kwargs.get("device")
        on_host = any(place.type == "cpu" for place in [*(tensor.device for tensor in given), *([to] if to else [])])
        chosen_by_mask = name.startswith("index") and any(
            tensor.dtype in (torch.bool, torch.uint8) for tensor in tree_leaves(args[1:2]) if tensor is not None
            and isinstance(tensor, torch.Tensor)
        )  # fmt: skip
        if name in WAITS or chosen_by_mask or on_host:
            self.waits.append(f"{operator}({', '.join(f'{t.device.type}{list(t.shape)}' for t in given)})")
        result = operator(*args, **kwargs)
        if any(leaf.device.type == "cpu" for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)):
            self.waits.append(f"{operator} -> cpu")
        if not operator.is_view and name not in NO_LAUNCH:
            self.launches[name] += 1
        return result


def without_values(device: str):
    """A context in which tensors on `device` have no values."""
    return FakeTensorMode() if device == "cuda" else contextlib.nullcontext()


def batch_of(config: ElectraEarlyExitConfig, batch_size: int, length: int, device: str, padding: bool = False) -> dict:
    """A batch in the format of the collator: masked for the model's own generator, else already corrupted."""
    ids = torch.zeros(batch_size, length, dtype=torch.long, device=device)
    batch = {"input_ids": ids, "noise_seeds": ids[:, 0].clone(), "mlm_labels": ids.clone()}
    if config.generator_type in ("mlm", "self"):
        places = max(1, round(config.mlm_probability * length))
        batch["masked_positions"] = torch.zeros(batch_size, places, dtype=torch.long, device=device)
    if config.generator_type == "self":
        batch["proposal_mask"] = torch.zeros_like(ids, dtype=torch.bool)
    if config.generator_type != "mlm":
        batch["labels"] = ids.clone()
    return batch | ({"attention_mask": torch.ones_like(ids)} if padding else {})


def follow_step(config: ElectraEarlyExitConfig, device: str, batch_size: int, length: int, **options) -> DeviceCalls:
    """Record the forward and backward pass of one training step. `options` are those of [`batch_of`]. For `cuda`
    without a CUDA device, only the forward pass, because autograd requires the device."""
    with without_values(device):
        with torch.device(device):
            model = ElectraEarlyExitForPreTraining(config).train()
        batch = batch_of(config, batch_size, length, device, **options)
        with DeviceCalls() as calls:
            loss = model(**batch).loss
            if device != "cuda" or torch.cuda.is_available():
                loss.backward()
    return calls


def main():
    import training_step  # imports more than the tests need

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=training_step.SIZES, default=["electra-small", "electra-base"])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--json", help="write the records to this file")
    args = parser.parse_args()
    found = []
    print("| case | launches | over dense | waits |\n|---|---|---|---|")
    for size in args.sizes:
        prefix, calls = f"{size}/{args.length}", {}
        for variant, fields in {"dense": {"exit_policy": "none"}, "exits": {}}.items():
            config = training_step.Case(size).our_config(**fields)
            calls[variant] = follow_step(config, "meta", args.batch_size, args.length)
        launches = {variant: each.launches.total() for variant, each in calls.items()}
        for variant, count in launches.items():
            ratio, waits = count / launches["dense"], len(calls[variant].waits)
            print(f"| {prefix}/{variant} | {count:,} | {ratio:.2f} | {waits} |", flush=True)
        found += records(prefix, "launches", "launches", launches, "dense")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
