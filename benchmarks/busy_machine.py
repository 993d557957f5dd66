"""Time the quickstart's training step on an idle CPU and beside other busy processes, for OpenMP's two wait policies.

    python -m benchmarks.busy_machine --json benchmarks/results/busy_machine.json

Run it on an otherwise idle machine. The busy process has its own session, as another user's has, because Linux divides
the processor among sessions first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.steps import records
from modeling_electra_exit.trainers.runtime.files import read_json
from research.results import measured_seconds


POLICIES = {"threads spin": "ACTIVE", "threads sleep": "PASSIVE"}
STEPS = 12
BUSY_LOOP = "while True: pass"


def seconds_per_step(policy: str, busy: int, folder: Path) -> float:
    """Run a few steps of the quickstart with OMP_WAIT_POLICY `policy` beside `busy` other processes."""
    command = [sys.executable, "-m", "electra_exit", "pretrain", "quickstart", "--max_steps", STEPS, "--corpus_init",
               "false", "--validation_fraction", "0.001", "--report_to", "none", "--output_dir", folder]  # fmt: skip
    with ExitStack() as stack:
        for _ in range(busy):
            other = stack.enter_context(subprocess.Popen([sys.executable, "-c", BUSY_LOOP], start_new_session=True))
            stack.callback(other.kill)
        environment = {**os.environ, "OMP_WAIT_POLICY": policy}
        subprocess.run(list(map(str, command)), env=environment, check=True, capture_output=True)
    training = read_json(folder / "metrics.json")["training"]
    return measured_seconds(training) / training["steps"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    args = parser.parse_args()
    samples = {machine: {name: [] for name in POLICIES} for machine in ("idle", "busy")}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(args.repeats):
            for busy, (machine, by_policy) in enumerate(samples.items()):
                for name, seconds in by_policy.items():
                    run = Path(folder) / f"{machine}-{name}-{repeat}"
                    seconds.append(seconds_per_step(POLICIES[name], busy, run))
    found = []
    for machine, by_policy in samples.items():
        medians = {name: statistics.median(seconds) for name, seconds in by_policy.items()}
        found += records(machine, "step_seconds", "s", medians, next(iter(POLICIES)), by_policy)
    for record in found:
        print(f"{record['name']:24}{record['value']:8.3f} s   {record['ratio']:5.2f} of {record['baseline']}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
