"""Compare distributed runs with a single-process run.

    python -m benchmarks.equal_runs --json benchmarks/results/equal_runs.json

An eight-layer model trains in fp32 with 64 sequences per step: in one process; in two processes with 32 each under DDP
and under FSDP2; and on two nodes with one process each. The nodes are two network namespaces with their own addresses,
connected by a virtual Ethernet pair; creating them requires root, and they are removed at the end. The loss curve and
final weights of each run are compared with those of the single process. Steps count as equal until two losses differ
by more than 1e-5: after the first sample or token that rounding changes, the runs diverge.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.scaling import RECIPE
from electra_exit.parsing import parse
from modeling_electra_exit.trainers.pretraining.run import build_trainer
from tests.conftest import write_corpus


BATCH = 64
# Seven batches, without the last and shorter sequence: the mean over a padded batch differs when it is split in two.
SEQUENCES = 7 * BATCH
NOISE = 1e-5
# The first argument of a process of a run.
TRAIN = "train"


def train(argv: list[str]):
    """One process of a run: `electra-exit pretrain` on the first [`SEQUENCES`] sequences."""
    config_fields, data_args, args, _ = parse(argv)
    trainer, *_ = build_trainer(config_fields, data_args, args)
    trainer.train_dataset = trainer.train_dataset.select(range(SEQUENCES))
    trainer.train()
    trainer.save_unpushed()
    trainer.save_state()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--port", type=int, default=29661)
    parser.add_argument("--without_nodes", action="store_true", help="skip the two nodes, which require root")
    parser.add_argument("--json", help="write the curves and differences to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_corpus(folder / "corpus.txt", documents=900)
        two = ["--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
        runs = {"1x64": [["--nproc_per_node", "1"]], "2x32": [two], "2x32.fsdp2": [two]}
        with contextlib.ExitStack() as stack:
            if not args.without_nodes:
                runs["2x32.two-nodes"] = stack.enter_context(two_nodes())
            results = {name: run(folder / name, nodes, args) for name, nodes in runs.items()}
    one, records = results["1x64"], []
    print(
        "| run | first loss | last loss | largest relative loss difference | largest weight difference | equal steps |"
    )
    print("|---|---|---|---|---|---|")
    for name, (losses, weights) in results.items():
        apart = [abs(a / b - 1) for a, b in zip(losses, one[0], strict=True)]
        alike = next((step for step, difference in enumerate(apart) if difference > NOISE), len(apart))
        weight = max(float((weights[key] - value).abs().max()) for key, value in one[1].items())
        print(f"| {name} | {losses[0]:.4f} | {losses[-1]:.4f} | {max(apart):.1e} | {weight:.1e} | {alike} |")
        for metric, value, unit in (
            ("loss_curve", losses, "nats"),
            ("loss_difference_max", max(apart), "ratio"),
            ("weight_difference_max", weight, ""),
            ("steps_alike", alike, "steps"),
        ):
            records.append({"name": f"quickstart/{name}", "metric": metric, "value": value, "unit": unit,
                            "baseline": "quickstart/1x64", "ratio": None, "samples": len(losses)})  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps(records, indent=1) + "\n")


def run(output: Path, nodes: list[list[str]], args) -> tuple[list[float], dict]:
    """Run with one torchrun per node. Returns the loss of every step and the final weights. A node's list holds the
    command that enters the node, then torchrun's flags."""
    processes = []
    for node in nodes:
        entered = node.index("--nproc_per_node")
        flags = {
            "output_dir": output, "train_files": output.parent / "corpus.txt", "max_steps": args.steps,
            "per_device_train_batch_size": BATCH // (1 if output.name == "1x64" else 2), "bf16": "false",
            "logging_steps": 1, "num_proc": 1,
            "save_strategy": "no", "eval_strategy": "no", "report_to": "none", "disable_tqdm": "true",
            "fsdp": "fsdp2" in output.name,
        }  # fmt: skip
        command = [
            *(*node[:entered], sys.executable, "-m", "torch.distributed.run", *node[entered:]),
            *("--master_port", str(args.port), "-m", "benchmarks.equal_runs", TRAIN, str(RECIPE)),
            *(part for name, value in flags.items() for part in (f"--{name}", str(value))),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        )
    try:
        errors = [process.communicate(timeout=1800)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise RuntimeError("\n".join(error[-2000:] for error in errors))
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    tensors = load_file(output / "model.safetensors")
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith("exit_state.")}
    return [entry["loss"] for entry in history if "loss" in entry], weights


@contextlib.contextmanager
def two_nodes() -> Iterator[list[list[str]]]:
    """Two network namespaces that can reach only each other. Yields the commands and flags of torchrun for each."""
    names = [f"electra-{os.getpid()}-{number}" for number in (0, 1)]
    cables = [f"cable{os.getpid() % 100_000}-{number}" for number in (0, 1)]

    def ip(*words):
        subprocess.run(["ip", *words], check=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cables[0], "netns", names[0], "type", "veth", "peer", "name", cables[1], "netns", names[1])
        for number, (name, cable) in enumerate(zip(names, cables, strict=True)):
            ip("-n", name, "address", "add", f"10.199.0.{number + 1}/24", "dev", cable)
            for device in ("lo", cable):
                ip("-n", name, "link", "set", device, "up")
        yield [
            [
                *("ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={cable}"),
                *("--nproc_per_node", "1", "--nnodes", "2", "--node_rank", str(number), "--master_addr", "10.199.0.1"),
            ]
            for number, (name, cable) in enumerate(zip(names, cables, strict=True))
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


if __name__ == "__main__":
    train(sys.argv[2:]) if sys.argv[1:2] == [TRAIN] else main()
