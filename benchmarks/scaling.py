"""Weak scaling over processes of one machine: the same work for each, so that the ideal is as many times the tokens.

    python -m benchmarks.scaling --json benchmarks/results/scaling.json

Each process has one thread, and they talk over gloo: this says what coordination costs on a CPU, nothing about GPUs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import write_corpus


RECIPE = Path(__file__).parent.parent / "trainers/recipes/quickstart.yaml"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, in turn")
    parser.add_argument("--port", type=int, default=29651)
    parser.add_argument("--json", help="write the table here as well")
    args = parser.parse_args()
    speeds = {count: [] for count in args.processes}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_corpus(folder / "corpus.txt", documents=3000)
        for repeat in range(args.repeats):
            for count in args.processes:
                speeds[count].append(tokens_per_second(folder / f"{count}-{repeat}", count, args))
    one = statistics.median(speeds[args.processes[0]])
    records = []
    print("| processes | tokens/s | lowest to highest | times the first |\n|---|---|---|---|")
    for count, values in speeds.items():
        middle = statistics.median(values)
        print(f"| {count} | {middle:,.0f} | {min(values):,.0f} to {max(values):,.0f} | {middle / one:.2f} |")
        records.append({"name": f"quickstart/processes-{count}", "metric": "tokens_per_second", "value": middle,
                        "unit": "tokens/s", "baseline": f"quickstart/processes-{args.processes[0]}",
                        "ratio": middle / one, "samples": len(values)})  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps(records, indent=1) + "\n")


def tokens_per_second(output: Path, processes: int, args) -> float:
    """Of all processes together, training alone."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)),
        *("--master_addr", "127.0.0.1", "--master_port", str(args.port)),
        *("-m", "modeling_electra_exit.trainers.cli", "pretrain", str(RECIPE), "--output_dir", str(output)),
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
