"""A run that is killed again and again: is its memory flat, and does it end in the weights of an undisturbed one?

    python -m benchmarks.soak --minutes 120 --json benchmarks/results/soak.json

SIGKILL or SIGTERM at random moments, the same command again, until the run is finished. The resident memory and the
open files of every stretch are read from /proc four times a second; they grow from its second quarter to its last.
"""

import argparse
import json
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.faults import Case, start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120, help="about how long the disturbed run takes")
    parser.add_argument("--stretch", type=float, default=60, help="mean seconds between two signals")
    parser.add_argument("--save_steps", type=int, default=100)
    parser.add_argument(
        "--steps_per_minute", type=int, default=600, help="of this machine, to choose the run's length"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write what was measured here as well")
    args = parser.parse_args()
    steps = int(args.minutes * args.steps_per_minute)
    changes = {
        "max_steps": steps,
        "save_steps": args.save_steps,
        "eval_steps": 3 * args.save_steps,
        "logging_steps": 50,
    }
    with tempfile.TemporaryDirectory() as folder:
        straight, disturbed = (Case(Path(folder), name, **changes) for name in ("straight", "disturbed"))
        started = time.monotonic()
        assert straight.run(timeout=None) == 0, straight.output_text()
        print(f"undisturbed: {steps} steps in {time.monotonic() - started:.0f} s", flush=True)
        stretches = disturb(disturbed, random.Random(args.seed), args.stretch, deadline=args.minutes * 60 * 4)
        differing = disturbed.differences(straight, last_step=steps)
    signals = [stretch["signal"] for stretch in stretches[:-1]]
    memory = [stretch["memory_growth"] for stretch in stretches if stretch["memory_growth"] is not None]
    files = [stretch["files_growth"] for stretch in stretches if stretch["files_growth"] is not None]
    measured = {
        "steps": (steps, "steps"),
        "sigkill": (signals.count("SIGKILL"), "signals"),
        "sigterm": (signals.count("SIGTERM"), "signals"),
        "memory_growth_median": (statistics.median(memory), "ratio"),
        "memory_growth_max": (max(memory), "ratio"),
        "open_files_growth_max": (max(files), "files"),
        "tensors_that_differ": (len(differing), "tensors"),
    }
    for name, (value, unit) in measured.items():
        print(f"{name:24} {value:.4g} {unit}")
    if args.json:
        records = [
            {"name": "soak", "metric": name, "value": value, "unit": unit, "baseline": None, "ratio": None,
             "samples": len(stretches)} for name, (value, unit) in measured.items()
        ]  # fmt: skip
        Path(args.json).write_text(json.dumps(records, indent=1) + "\n")


def disturb(case: Case, choose: random.Random, mean_seconds: float, deadline: float) -> list[dict]:
    """Start, watch and end the run until it ends by itself; what each stretch of it used."""
    stretches, ends = [], time.monotonic() + deadline
    while time.monotonic() < ends:
        process, until = start(case), time.monotonic() + choose.uniform(0, 2 * mean_seconds)
        memory, files = [], []
        while process.is_alive() and time.monotonic() < until:
            process.join(0.25)
            try:
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                memory.append(pages * os.sysconf("SC_PAGE_SIZE"))
                files.append(len(os.listdir(f"/proc/{process.pid}/fd")))
            except OSError:  # it has just ended
                break
        ending = choose.choice((signal.SIGKILL, signal.SIGTERM))
        if process.is_alive():
            os.kill(process.pid, ending)
        process.join(60)
        stretches.append({"signal": ending.name, "memory_growth": growth(memory), "files_growth": difference(files)})
        if process.exitcode == 0:
            return stretches
        assert process.exitcode in (-signal.SIGKILL, -signal.SIGTERM, os.EX_TEMPFAIL), case.output_text()
    raise TimeoutError("the run did not end in four times the time it was given")


def growth(values: list[int]) -> float | None:
    """Median of the last quarter over that of the second, the first being start-up; for a stretch long enough."""
    quarter = len(values) // 4
    if quarter < 5:
        return None
    return statistics.median(values[-quarter:]) / statistics.median(values[quarter : 2 * quarter])


def difference(values: list[int]) -> int | None:
    quarter = len(values) // 4
    if quarter < 5:
        return None
    return round(statistics.median(values[-quarter:]) - statistics.median(values[quarter : 2 * quarter]))


if __name__ == "__main__":
    main()
