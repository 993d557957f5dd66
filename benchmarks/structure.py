"""Figures about the structure of the code: files, imports, functions, lines, fields, flags, and the time of `--help`.

    python -m benchmarks.structure --folder /tmp/structure [--json benchmarks/results/structure.json]

Lines are those of all Python files, including comments and docstrings. The longest chain of imports is the longest
path through the imports between files of this repository. `pretrain to loss` counts the files of this repository on
the call stack from the command line to the loss of a pre-training step.
"""

import argparse
import ast
import json
import statistics
import subprocess
import sys
import time
from dataclasses import fields
from functools import cache
from pathlib import Path

from modeling_electra_exit import ElectraEarlyExitConfig
from tests.conftest import write_corpus
from tests.test_rooms import CODE, ROOT, imports, room_of


# Pre-trains for one step and prints the file names on the call stack where the loss is computed.
TRACE = """
import functools, json, sys, traceback
from electra_exit.main import main
from modeling_electra_exit import modeling_electra_exit as model
loss = model.ElectraEarlyExitForPreTraining.forward
@functools.wraps(loss)
def forward(self, *args, **kwargs):
    if self.training:
        print("STACK", json.dumps([frame.filename for frame in traceback.extract_stack()]))
    return loss(self, *args, **kwargs)
model.ElectraEarlyExitForPreTraining.forward = forward
sys.exit(main(sys.argv[1:]))
"""
TINY = {"vocab_size": 80, "hidden_size": 32, "embedding_size": 16, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 2, "generator_size": 0.5, "max_seq_length": 32, "max_position_embeddings": 32,
        "max_steps": 1, "warmup_steps": 1, "per_device_train_batch_size": 4, "report_to": "none"}  # fmt: skip


def longest_chain() -> list[str]:
    """The longest path through the imports between files of this repository."""

    @cache
    def below(path: Path) -> tuple[Path, ...]:
        return (path, *max((below(target) for target in imports(path, at_once=True)), key=len, default=()))

    return [str(path.relative_to(ROOT)) for path in max(map(below, CODE), key=len)]


def longest_function() -> tuple[int, str]:
    """The number of lines, without the docstring, and the name."""
    found = [(0, "")]
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                has_docstring = ast.get_docstring(node) is not None
                start = node.body[0].end_lineno if has_docstring else node.lineno
                found.append((node.end_lineno - start, f"{path.relative_to(ROOT)}:{node.name}"))
    return max(found)


def files_to_the_loss(folder: Path) -> list[str]:
    write_corpus(folder / "text.txt", documents=40)
    flags = {**TINY, "train_files": folder / "text.txt", "output_dir": folder / "run"}
    argv = [
        "pretrain",
        "electra-small",
        *(word for name, value in flags.items() for word in (f"--{name}", str(value))),
    ]
    done = subprocess.run([sys.executable, "-c", TRACE, *argv], capture_output=True, text=True, check=True)
    stack = json.loads(next(line for line in done.stdout.split("\n") if line.startswith("STACK"))[len("STACK ") :])
    ours = [str(Path(name).relative_to(ROOT)) for name in stack if Path(name).is_relative_to(ROOT)]
    ours = [name for name in ours if not name.startswith(".venv")]
    return list(dict.fromkeys([*ours, "modeling_electra_exit/modeling_electra_exit.py"]))


def seconds_of(*argv: str, repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "electra_exit", *argv], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(folder: Path) -> list[dict]:
    """The records, in the format of all benchmarks."""
    rooms = {}
    for path in CODE:
        rooms[room_of(path)] = rooms.get(room_of(path), 0) + 1
    shipped = [path for path in CODE if room_of(path) != "research"]
    page = subprocess.run([sys.executable, "-m", "electra_exit", "pretrain", "--help"], capture_output=True, text=True)
    chain, (lines, function), files = longest_chain(), longest_function(), files_to_the_loss(folder)
    own = set(ElectraEarlyExitConfig.__annotations__)
    values = {
        **{f"files/{room}": (count, "files", None) for room, count in sorted(rooms.items())},
        "imports/longest chain": (len(chain), "files", chain),
        "imports/pretrain to loss": (len(files), "files", files),
        "functions/longest": (lines, "lines", function),
        "lines/modeling_electra_exit and trainers": (
            sum(len(path.read_text(encoding="utf-8").split("\n")) - 1 for path in shipped), "lines", None,
        ),
        "config/fields of our own": (sum(f.name in own for f in fields(ElectraEarlyExitConfig)), "fields", None),
        "help/flags": (sum(line.startswith("  --") for line in page.stdout.split("\n")), "flags", None),
        "help/electra-exit --help": (seconds_of("--help"), "s", None),
        "help/electra-exit pretrain --help": (seconds_of("pretrain", "--help"), "s", None),
    }  # fmt: skip
    return [
        {"name": name, "metric": name.split("/")[0], "value": value, "unit": unit, "baseline": None, "ratio": None,
         "samples": [value], **({} if what is None else {"what": what})}
        for name, (value, unit, what) in values.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder, for a run of one step")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    records = measure(args.folder)
    for record in records:
        print(f"{record['name']:45}{record['value']:>10.4g} {record['unit']:8}{record.get('what', '')}")
    if args.json:
        args.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
