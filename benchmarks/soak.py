"""Kill a run repeatedly; check that its memory does not grow and that it ends with the weights of an undisturbed run.

    nice -n 19 python -m benchmarks.soak --minutes 120 --folder runs/soak --json benchmarks/results/soak.json

The run receives SIGKILL or SIGTERM at random times and is repeated until it finishes, with a checkpoint per minute.
The resident memory and the number of open files are read from /proc four times per second. Growth is measured from
the second to the last quarter of each stretch between signals. A short first run sets the number of steps for
`--minutes`. An undisturbed run trains at the same time; each run has one thread. Neither may take longer than twice
`--minutes` plus five minutes. With `--piece_minutes 20` the disturbed run pauses after twenty minutes, and the same
command continues it; the undisturbed run is not split.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path

from benchmarks.faults import Case, start


PLAN, STRETCHES = "plan.json", "stretches.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120, help="approximate duration (default: %(default)s)")
    parser.add_argument("--piece_minutes", type=float, help="pause after this time (default: run until it finishes)")
    parser.add_argument("--stretch", type=float, default=60, help="mean seconds between two signals")
    parser.add_argument("--folder", type=Path, required=True, help="folder of the runs; reuse it to continue them")
    parser.add_argument("--json", help="write the records to this file")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # also ends the child processes
    changes = plan(args.folder, args.minutes)
    straight, disturbed = (Case(args.folder, name, **changes) for name in ("straight", "disturbed"))
    with undisturbed(straight, bound(args.minutes)):
        finished = disturb(disturbed, args)
    if not finished:
        print("paused; the same command continues")
        sys.exit(os.EX_TEMPFAIL)
    stretches = json.loads((args.folder / STRETCHES).read_text())
    records = summary(stretches, changes["max_steps"], disturbed.differences(straight, changes["max_steps"]))
    for record in records:
        print(f"{record['metric']:24} {record['value']:.4g} {record['unit']}")
    if args.json:
        Path(args.json).write_text(json.dumps(records, indent=1) + "\n")


@contextlib.contextmanager
def undisturbed(case: Case, seconds: float):
    """Start a run, unless it is finished, and wait for it at the end of the context."""
    if (case.output / "metrics.json").exists():
        yield
        return
    shutil.rmtree(case.output, ignore_errors=True)  # left by an interrupted run
    process, started = start(case), time.monotonic()
    yield
    status = case.wait(process, max(0, started + seconds - time.monotonic()))
    assert status == 0, case.output_text()


def bound(minutes: float) -> float:
    """The maximum seconds for a run that is planned for `minutes`."""
    return 120 * minutes + 300


def plan(folder: Path, minutes: float) -> dict:
    """The fields of both runs that differ from `benchmarks/faults.py`, from the speed of this machine. They are chosen
    once and stored."""
    path = folder / PLAN
    if not path.exists():
        short = Case(folder, "short", max_steps=400, save_steps=400, eval_strategy="no")
        assert short.run(timeout=1200) == 0, short.output_text()
        measured = json.loads((short.output / "metrics.json").read_text())["training"]
        a_minute = max(1, round(60 * measured["tokens_per_second"] / measured["tokens_per_step"]))
        lengths = {"max_steps": max(10, round(minutes * a_minute)), "save_steps": a_minute, "eval_steps": 3 * a_minute}
        path.write_text(json.dumps({**lengths, "logging_steps": 50}))
    return json.loads(path.read_text())


def disturb(case: Case, args) -> bool:
    """Start and kill the run until it finishes (true) or `--piece_minutes` are over (false). Appends the measurements
    of each stretch to a file."""
    path = args.folder / STRETCHES
    stretches = json.loads(path.read_text()) if path.exists() else []
    choose = random.Random(len(stretches))
    rest = time.monotonic() + (bound(args.minutes) if args.piece_minutes is None else 60 * args.piece_minutes)
    while not (stretches and stretches[-1]["status"] == 0):
        if sum(stretch["seconds"] for stretch in stretches) > bound(args.minutes):
            raise TimeoutError("the run did not finish within twice the planned time plus five minutes")
        if time.monotonic() > rest:
            return False
        stretches.append(stretch(case, choose.uniform(0, 2 * args.stretch), choose))
        path.write_text(json.dumps(stretches))
        assert stretches[-1]["status"] in (0, -signal.SIGKILL, -signal.SIGTERM, os.EX_TEMPFAIL), case.output_text()
    return True


def stretch(case: Case, seconds: float, choose: random.Random) -> dict:
    """Start the run, end it after `seconds`, and return its resource use."""
    process, started, memory, files = start(case), time.monotonic(), [], []
    while process.is_alive() and time.monotonic() < started + seconds:
        process.join(0.25)
        try:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            memory.append(pages * os.sysconf("SC_PAGE_SIZE"))
            files.append(len(os.listdir(f"/proc/{process.pid}/fd")))
        except OSError:  # the process has just ended
            break
    ending = choose.choice((signal.SIGKILL, signal.SIGTERM))
    if process.is_alive():
        os.kill(process.pid, ending)
    process.join(120)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"the run did not end within two minutes after {ending.name}")
    return {
        "status": process.exitcode, "signal": ending.name, "seconds": time.monotonic() - started,
        "memory_mib": max(memory, default=0) / 2**20, "open_files": max(files, default=0),
        "memory_growth": growth(memory), "files_growth": difference(files),
    }  # fmt: skip


def summary(stretches: list[dict], steps: int, differing: list[str]) -> list[dict]:
    signals = [stretch["signal"] for stretch in stretches[:-1]]
    memory = [stretch["memory_growth"] for stretch in stretches if stretch["memory_growth"] is not None]
    files = [stretch["files_growth"] for stretch in stretches if stretch["files_growth"] is not None]
    measured = {
        "steps": (steps, "steps"),
        "seconds": (sum(stretch["seconds"] for stretch in stretches), "s"),
        "sigkill": (signals.count("SIGKILL"), "signals"),
        "sigterm": (signals.count("SIGTERM"), "signals"),
        "memory_max": (max(stretch["memory_mib"] for stretch in stretches), "MiB"),
        "memory_growth_median": (statistics.median(memory) if memory else None, "ratio"),
        "memory_growth_max": (max(memory, default=None), "ratio"),
        "open_files_max": (max(stretch["open_files"] for stretch in stretches), "files"),
        "open_files_growth_max": (max(files, default=None), "files"),
        "tensors_that_differ": (len(differing), "tensors"),
    }
    return [
        {"name": "soak", "metric": name, "value": value, "unit": unit, "baseline": None, "ratio": None,
         "samples": len(stretches)} for name, (value, unit) in measured.items() if value is not None
    ]  # fmt: skip


def growth(values: list[int]) -> float | None:
    """Ratio of the median of the last quarter to that of the second (the first is start-up); `None` if too short."""
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
