"""Weak scaling over processes on one machine: each process has the same work, so ideal throughput is proportional.

    python -m benchmarks.scaling --json benchmarks/results/scaling.json
    python -m benchmarks.scaling --arithmetic --json benchmarks/results/communication.json

Each process has one thread and communicates over gloo, so this measures the cost of coordination on a CPU, not on
GPUs. `--arithmetic` computes the communication of many GPUs from the sizes of the weights, without running a model.

The arithmetic is for one of N processes and one optimizer step, with ring collectives and no overlap with computation.
For an all-gather or a reduce-scatter, a process sends (N - 1) / N of a buffer in N - 1 hops; for an all-reduce, twice
that.

- DDP: one all-reduce of all gradients in fp32, and a broadcast of the buffers per forward pass.
- FSDP2: an all-gather of each layer's weights per forward and backward pass, and one of all other weights per forward
  pass, in bf16; one reduce-scatter of all gradients in fp32. Each layer has its own collective.
- Exits: one all-reduce of 2 numbers plus 6 per exit, in fp32, per forward pass.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from electra_exit.parsing import parse_fields, read_recipe
from modeling_electra_exit import ElectraEarlyExitForPreTraining
from modeling_electra_exit.modeling_electra_exit import ElectraEarlyExitLayer
from modeling_electra_exit.trainers.pretraining.run import build_config
from modeling_electra_exit.trainers.runtime.flops import step_flops
from tests.conftest import write_corpus


RECIPE = Path(__file__).with_name("eight_layers.yaml")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3, help="runs per number of processes, in alternation")
    parser.add_argument("--port", type=int, default=29651)
    parser.add_argument("--json", help="write the records to this file")
    parser.add_argument("--arithmetic", action="store_true", help="compute the communication of many GPUs instead")
    parser.add_argument("--gigabytes_per_second", type=float, default=25, help="assumed one-way bandwidth per process")
    parser.add_argument("--microseconds_a_hop", type=float, default=5, help="assumed latency of a hop")
    parser.add_argument("--teraflops", type=float, default=100, help="assumed sustained throughput of a GPU")
    args = parser.parse_args()
    records = reckon(args) if args.arithmetic else measure(args)
    if args.json:
        Path(args.json).write_text(json.dumps(records, indent=1) + "\n")


def measure(args) -> list[dict]:
    speeds = {count: [] for count in args.processes}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_corpus(folder / "corpus.txt", documents=3000)
        for repeat in range(args.repeats):
            for count in args.processes:
                speeds[count].append(tokens_per_second(folder / f"{count}-{repeat}", count, args))
    one = statistics.median(speeds[args.processes[0]])
    records = []
    print("| processes | tokens/s | range | speedup |\n|---|---|---|---|")
    for count, values in speeds.items():
        middle = statistics.median(values)
        print(f"| {count} | {middle:,.0f} | {min(values):,.0f} to {max(values):,.0f} | {middle / one:.2f} |")
        records.append({"name": f"quickstart/processes-{count}", "metric": "tokens_per_second", "value": middle,
                        "unit": "tokens/s", "baseline": f"quickstart/processes-{args.processes[0]}",
                        "ratio": middle / one, "samples": len(values)})  # fmt: skip
    return records


def reckon(args) -> list[dict]:
    records = []
    print("| recipe | GPUs | computes | DDP sends | takes | FSDP2 sends | takes | exits send | take |")
    print("|---|---|---|---|---|---|---|---|---|")
    for recipe in ("electra-small", "electra-base"):
        fields, data_args, training_args, _ = parse_fields(
            {**read_recipe(recipe), "output_dir": "unused", "bf16": False, "exit_policy": "random"}
        )
        config, passes = build_config(fields), training_args.gradient_accumulation_steps
        batch = training_args.per_device_train_batch_size * passes
        computing = step_flops(config, batch, data_args.max_seq_length, True).total / (args.teraflops * 1e12)
        for processes in (8, 64, 512):
            sent = communication(config, processes, passes)
            taken = {
                name: size / (args.gigabytes_per_second * 1e9) + hops * args.microseconds_a_hop * 1e-6
                for name, (size, hops) in sent.items()
            }
            cells = " | ".join(f"{sent[name][0] / 1e6:,.4g} MB | {taken[name] * 1e3:.3g} ms" for name in sent)
            print(f"| {recipe} | {processes} | {computing * 1e3:.0f} ms | {cells} |")
            for name, (size, _) in sent.items():
                common = {"name": f"{recipe}/gpus-{processes}.{name}", "baseline": None, "ratio": None, "samples": 0}
                records += [
                    {**common, "metric": "bytes_sent", "value": size, "unit": "bytes"},
                    {**common, "metric": "seconds_communicating", "value": taken[name], "unit": "s"},
                    {**common, "metric": "seconds_computing", "value": computing, "unit": "s"},
                ]
    return records


def communication(config, processes: int, passes: int) -> dict[str, tuple[float, float]]:
    """The bytes that a process sends and the hops that it waits for, per optimizer step of `passes` forward passes."""
    with torch.device("meta"):
        model = ElectraEarlyExitForPreTraining(config)
    layers = [module for module in model.modules() if isinstance(module, ElectraEarlyExitLayer)]
    everything = sum(parameter.numel() for parameter in model.parameters())
    in_layers = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    share, hops = (processes - 1) / processes, processes - 1
    groups = len(layers) + 2  # the embeddings with the weights tied to them, and the rest
    buffers = sum(buffer.nbytes for buffer in model.buffers()) * passes
    gathered = 2 * (2 * in_layers + everything - in_layers) * passes  # bytes, in bf16
    statistics = 4 * (2 + 6 * len(config.exit_layers)) * passes if config.has_exit_heads else 0
    return {
        "ddp": (share * 2 * 4 * everything + buffers, hops * (2 + passes)),
        "fsdp2": (share * (gathered + 4 * everything), hops * ((len(layers) + groups) * passes + groups)),
        "exits": (share * 2 * statistics, 2 * hops * passes),
    }


def tokens_per_second(output: Path, processes: int, args) -> float:
    """The training throughput of all processes together, from a run."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)),
        *("--master_addr", "127.0.0.1", "--master_port", str(args.port)),
        *("-m", "electra_exit", "pretrain", str(RECIPE), "--output_dir", str(output)),
        *("--train_files", str(output.parent / "corpus.txt"), "--max_steps", str(args.steps), "--num_proc", "1"),
        *("--save_strategy", "no", "--eval_strategy", "no", "--report_to", "none", "--disable_tqdm", "true"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr[-2000:])
    return json.loads((output / "metrics.json").read_text())["training"]["tokens_per_second"]


if __name__ == "__main__":
    main()
