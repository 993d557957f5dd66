"""Simulate a full disk at each file that a pre-training run writes.

    python -m benchmarks.full_disk --json benchmarks/results/full_disk.json

The files are found by intercepting the writes of an undisturbed run with the preloaded library `full_disk.c`, which
requires a C compiler. For each file, a run is started in which writes to this file fail. If it does not finish, the
same command is repeated with room on the disk. No run may end with different weights or a traceback.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import datasets

from benchmarks.faults import Case


LOADED = "FULL_DISK_LOADED"
# The parts of file names that vary between runs: numbers, hashes, and the random parts of temporary names.
VARIABLE = re.compile(r"(?<=tmp)\w+|[0-9a-f]{16,}|\d+")


def preload() -> None:
    """Restart this process with the library preloaded, to intercept its writes and those of its children."""
    if LOADED in os.environ:
        return
    library = Path(tempfile.mkdtemp()) / "full_disk.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), LOADED: "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


@dataclass
class FullDisk:
    """In the process of a run, make writes to files that match `pattern` fail, and log the paths of all writes to
    `log`. The run prepares its data in a separate `cache`."""

    cache: Path
    pattern: str = ""
    log: Path | None = None

    def __call__(self):
        os.environ |= {"FULL_DISK": self.pattern, "FULL_DISK_LOG": str(self.log or "")}
        datasets.config.HF_DATASETS_CACHE = self.cache


def files_written(folder: Path, log: Path) -> list[str]:
    """Patterns of the files below `folder` that were written, in the order of their first write."""
    paths = [path.removesuffix(" (deleted)") for path in log.read_text().splitlines()]
    below = [os.path.relpath(path, folder) for path in paths if Path(path).is_relative_to(folder)]
    return list(dict.fromkeys(VARIABLE.sub("*", path) for path in below))


def measure(folder: Path, only: list[str] | None = None) -> Iterator[dict]:
    """One record per file: whether the run whose first start was disturbed ended with different weights."""
    folder.mkdir(exist_ok=True)
    folder = folder.resolve()
    straight = Case(folder, "run")
    status = straight.run(FullDisk(folder / "run-cache", log=folder / "writes.txt"))
    assert status == 0, straight.output_text()
    for number, pattern in enumerate(files_written(folder, folder / "writes.txt")):
        if pattern == "run.log" or (only and not any(fnmatch(pattern, wanted) for wanted in only)):
            continue
        case = Case(folder, f"full-{number}")
        here = pattern.replace("run", f"full-{number}", 1)
        first = case.run(FullDisk(folder / f"full-{number}-cache", f"{folder}/{here}"))
        said = case.output_text()
        assert "Traceback" not in said, (pattern, said)
        assert first in (0, 1, 2), (pattern, first, said)
        if first != 0 or not (case.output / "metrics.json").exists():
            assert said.strip().splitlines()[-1].startswith("electra-exit pretrain: error: "), (pattern, said)
            assert case.run(FullDisk(folder / f"full-{number}-cache")) == 0, (pattern, case.output_text())
        different = case.differences(straight)
        print(f"{pattern}: ended with {first}, {len(different)} tensors differ", flush=True)
        yield {"name": pattern, "metric": "ended_in_other_weights", "value": int(bool(different)), "unit": "runs",
               "baseline": None, "ratio": None, "samples": 1, "status": first, "said": reasons(said)}  # fmt: skip


def reasons(said: str) -> list[str]:
    """The lines in which a run reports failed writes."""
    signs = "could not|training continues|disabled after|cannot"
    return [line for line in said.splitlines() if re.search(signs, line)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="only files that match these patterns")
    parser.add_argument("--json", help="write the records to this file")
    args = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory() as temporary:
        rows = list(measure(Path(temporary), args.only))
    print("\n| full disk at | exit status | ended in other weights |\n|---|---|---|")
    for row in rows:
        print(f"| {row['name']} | {row['status']} | {row['value']} |")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
