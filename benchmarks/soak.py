"""A run that is killed again and again: is its memory flat, and does it end in the weights of an undisturbed one?

    nice -n 19 python -m benchmarks.soak --minutes 120 --folder runs/soak --json benchmarks/results/soak.json

SIGKILL or SIGTERM at random moments, the same command again, until the run is finished; a checkpoint a minute. The
resident memory and the open files of every stretch are read from /proc four times a second; they grow from its second
quarter to its last. The run is as long as `--minutes` at the speed of a first short one; an undisturbed one runs
beside it, each on one thread. Neither may take more than twice that and five minutes. With `--piece_minutes 20` the
disturbed rests after twenty minutes, and the same command continues it; the undisturbed one is one piece.
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
    parser.add_argument("--minutes", type=float, default=120, help="about how long the disturbed run takes")
    parser.add_argument("--piece_minutes", type=float, help="rest after so long; left out: only when it is finished")
    parser.add_argument("--stretch", type=float, default=60, help="mean seconds between two signals")
    parser.add_argument("--folder", type=Path, required=True, help="keeps the runs; the same folder continues them")
    parser.add_argument("--json", help="write what was measured here as well")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what it started ends with it
    changes = plan(args.folder, args.minutes)
    straight, disturbed = (Case(args.folder, name, **changes) for name in ("straight", "disturbed"))
    with undisturbed(straight, bound(args.minutes)):
        finished = disturb(disturbed, args)
    if not finished:
        print("resting; the same command continues")
        sys.exit(os.EX_TEMPFAIL)
    stretches = json.loads((args.folder / STRETCHES).read_text())
    records = summary(stretches, changes["max_steps"], disturbed.differences(straight, changes["max_steps"]))
    for record in records:
        print(f"{record['metric']:24} {record['value']:.4g} {record['unit']}")
    if args.json:
        Path(args.json).write_text(json.dumps(records, indent=1) + "\n")


@contextlib.contextmanager
def undisturbed(case: Case, seconds: float):
    """A run beside what is done meanwhile, waited for at the end; nothing where it finished earlier."""
    if (case.output / "metrics.json").exists():
        yield
        return
    shutil.rmtree(case.output, ignore_errors=True)  # of one that was cut
    process, started = start(case), time.monotonic()
    yield
    status = case.wait(process, max(0, started + seconds - time.monotonic()))
    assert status == 0, case.output_text()


def bound(minutes: float) -> float:
    """Seconds that a run may take which is planned for so many minutes."""
    return 120 * minutes + 300


def plan(folder: Path, minutes: float) -> dict:
    """What both runs differ in from those of `benchmarks/faults.py`, for the speed of this machine; decided once."""
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
    """Start, watch and end the run until it ends by itself (true) or it is time to rest (false). Appends what each
    stretch used to those of earlier pieces."""
    path = args.folder / STRETCHES
    stretches = json.loads(path.read_text()) if path.exists() else []
    choose = random.Random(len(stretches))
    rest = time.monotonic() + (bound(args.minutes) if args.piece_minutes is None else 60 * args.piece_minutes)
    while not (stretches and stretches[-1]["status"] == 0):
        if sum(stretch["seconds"] for stretch in stretches) > bound(args.minutes):
            raise TimeoutError("the run did not end in twice the time it was given, and five minutes")
        if time.monotonic() > rest:
            return False
        stretches.append(stretch(case, choose.uniform(0, 2 * args.stretch), choose))
        path.write_text(json.dumps(stretches))
        assert stretches[-1]["status"] in (0, -signal.SIGKILL, -signal.SIGTERM, os.EX_TEMPFAIL), case.output_text()
    return True


def stretch(case: Case, seconds: float, choose: random.Random) -> dict:
    """One start of the run and, after so many seconds, its end; what it used meanwhile."""
    process, started, memory, files = start(case), time.monotonic(), [], []
    while process.is_alive() and time.monotonic() < started + seconds:
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
    process.join(120)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{ending.name} was not obeyed within two minutes")
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
