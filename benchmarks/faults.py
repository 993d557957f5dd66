"""Inject faults into pre-training runs and count the runs that end with different weights.

    python -m benchmarks.faults --json benchmarks/results/faults.json

Each case runs the command line on tiny data in a separate process, injects a fault, and repeats the command until the
run finishes. It then compares the weights and the optimizer state bit by bit with those of an undisturbed run.
"""

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from electra_exit import main as cli
from tests.conftest import write_corpus
from tests.forked import PROCESSES
from tests.trainers.cli.test_cli import RECIPE


# Dropout, and active exits with an AUC floor, so that the run has every kind of state to restore.
RUN = {
    **RECIPE,
    "max_steps": 12,
    "save_steps": 3,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "exit_policy": "topk",
    "exit_auc_floor": 0.3,
    "disable_tqdm": True,
}
TRAINER = "pretraining.trainer.ElectraEarlyExitTrainer"


@dataclass
class Fault:
    """A signal at the `call`-th call of a function.

    name: description in the results.
    target: the function, relative to `modeling_electra_exit.trainers`.
    moment: `before` the function starts, or `after` it returns.
    """

    name: str
    target: str
    call: int
    moment: str = "after"
    signal: int = signal.SIGKILL

    def inject(self):
        room, module, *path = self.target.split(".")
        owner = functools.reduce(getattr, path[:-1], import_module(f"modeling_electra_exit.trainers.{room}.{module}"))
        original, calls = getattr(owner, path[-1]), itertools.count(1)

        @functools.wraps(original)
        def faulty(*args, **kwargs):
            hit = next(calls) == self.call
            if hit and self.moment == "before":
                os.kill(os.getpid(), self.signal)
            result = original(*args, **kwargs)
            if hit and self.moment == "after":
                os.kill(os.getpid(), self.signal)
            return result

        setattr(owner, path[-1], faulty)


# A run has 12 steps, with a checkpoint every 3 steps and an evaluation of 3 batches every 4 steps and at the end.
KILLS = [
    Fault("SIGKILL: the data is prepared, nothing is written", "pretraining.run.prepare", 1),
    Fault("SIGKILL: before any checkpoint", f"{TRAINER}.training_step", 2),
    Fault("SIGKILL: in a step, gradients computed", f"{TRAINER}.training_step", 8),
    Fault("SIGKILL: in a step, after the optimizer", "runtime.optimization.ElectraAdamW.step", 8),
    Fault("SIGKILL: in an evaluation", f"{TRAINER}.prediction_step", 5),
    Fault("SIGKILL: in a checkpoint, weights written", f"{TRAINER}._save", 2),
    Fault("SIGKILL: in a checkpoint, optimizer written", f"{TRAINER}._save_optimizer_and_scheduler", 2),
    Fault("SIGKILL: in a checkpoint, its manifest written", "runtime.checkpoints.write_json", 2),
    Fault("SIGKILL: a checkpoint renamed, none removed yet", "pretraining.trainer.rotate_checkpoints", 3, "before"),
    Fault("SIGKILL: an old checkpoint just removed", "pretraining.trainer.rotate_checkpoints", 3),
    Fault("SIGKILL: in the last evaluation", f"{TRAINER}.prediction_step", 10),
    Fault("SIGKILL: the final weights written", f"{TRAINER}._save", 5),
    Fault("SIGKILL: the model card written, the measurements not", "pretraining.run.write_model_card", 1),
]
TERMS = [
    Fault("SIGTERM: in a step", f"{TRAINER}.training_step", 8, signal=signal.SIGTERM),
    Fault("SIGTERM: in a step that a checkpoint follows", f"{TRAINER}.training_step", 9, signal=signal.SIGTERM),
    Fault("SIGTERM: in an evaluation", f"{TRAINER}.prediction_step", 5, signal=signal.SIGTERM),
    Fault("SIGTERM: in a checkpoint", f"{TRAINER}._save", 2, signal=signal.SIGTERM),
    Fault("Ctrl-C: in a step", f"{TRAINER}.training_step", 8, signal=signal.SIGINT),
    Fault("Ctrl-C: in an evaluation", f"{TRAINER}.prediction_step", 5, signal=signal.SIGINT),
]
STATUS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: os.EX_TEMPFAIL, signal.SIGINT: 130}


def _child(argv: list[str], prepare: Callable[[], None] | None, log: str):
    """Run the command line in a child process, with its output in a file."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell inherit an ignored SIGINT
    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if prepare is not None:
        prepare()
    sys.exit(cli.main(argv))


def start(case: "Case", prepare: Callable[[], None] | None = None) -> multiprocessing.Process:
    process = PROCESSES.Process(
        target=_child, args=(["pretrain", str(case.recipe)], prepare, str(case.log)), daemon=True
    )
    process.start()
    return process


class Case:
    """A run in a folder; the cases in a folder share a corpus."""

    def __init__(self, folder: Path, name: str, **changes):
        folder.mkdir(parents=True, exist_ok=True)
        corpus = folder / "corpus.txt"
        if not corpus.exists():
            write_corpus(corpus)
        self.output = folder / name
        self.recipe, self.log = folder / f"{name}.yaml", folder / f"{name}.log"
        fields = {**RUN, "train_files": [str(corpus)], "output_dir": str(self.output), **changes}
        self.recipe.write_text(yaml.safe_dump(fields))

    def run(self, prepare: Callable[[], None] | None = None, timeout: float | None = 120) -> int:
        """Run the command once. Returns its exit status, negative for a signal."""
        return self.wait(start(self, prepare), timeout)

    def wait(self, process: multiprocessing.Process, timeout: float | None) -> int:
        """Wait for a started command. Returns its exit status.

        Raises:
            TimeoutError: if it takes more than `timeout` seconds.
        """
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"{self.output} took more than {timeout} seconds")
        return process.exitcode

    def output_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def differences(self, other: "Case", last_step: int = RUN["max_steps"]) -> list[str]:
        """The tensors of the final model and of the last optimizer state that differ from another finished run."""
        names = []
        mine, theirs = (load_file(case.output / "model.safetensors") for case in (self, other))
        names += [name for name in mine.keys() | theirs.keys() if not torch.equal(mine[name], theirs[name])]
        last = f"checkpoint-{last_step}"
        if not (self.output / last).is_dir():  # the checkpoint could not be written, but the weights could
            return names
        states = [torch.load(case.output / last / "optimizer.pt")["state"] for case in (self, other)]
        for index, state in states[1].items():
            names += [f"optimizer {index} {k}" for k, v in state.items() if not torch.equal(states[0][index][k], v)]
        return names


def truncate(path: Path):
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size // 2)


def flip_a_bit(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {"truncated": truncate, "one bit flipped": flip_a_bit, "removed": Path.unlink}


@dataclass
class LimitFileSize:
    """Limits files to this many bytes. The kernel rejects larger writes, as on a full disk."""

    bytes: int

    def __call__(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the records to this file")
    parser.add_argument("--repeats", type=int, default=1, help="tries per signal")
    args = parser.parse_args()

    from benchmarks import full_disk  # imports this module

    full_disk.preload()
    with tempfile.TemporaryDirectory() as temporary:
        rows = list(measure(Path(temporary), args.repeats))
        rows.append(summary(list(full_disk.measure(Path(temporary) / "full-disk"))))
    print("\n| fault | tried | ended in other weights |\n|---|---|---|")
    for row in rows:
        print(f"| {row['name']} | {row['samples']} | {row['value']} |")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


def measure(folder: Path, repeats: int):
    straight = Case(folder, "straight")
    assert straight.run() == 0, straight.output_text()
    for number, fault in enumerate(KILLS + TERMS):
        yield tally(fault.name, [signalled(folder, straight, fault, f"{number}-{i}") for i in range(repeats)])
    for how, damage in DAMAGES.items():
        yield tally(f"a file of the newest checkpoint {how}", list(damaged(folder, straight, how, damage)))
    yield tally("no room on the disk until the end", [no_room(folder, straight)])
    yield tally("the text changed, then put back", [changed_text(folder, straight)])
    yield tally("two processes with other seeds on one folder", list(two_processes(folder, straight, 6)))


def tally(name: str, same: list[bool]) -> dict:
    print(f"{name}: {len(same)} tried", flush=True)
    return {"name": name, "metric": "ended_in_other_weights", "value": same.count(False), "unit": "runs",
            "baseline": None, "ratio": None, "samples": len(same)}  # fmt: skip


def summary(files: list[dict]) -> dict:
    """One record that sums up those of [`full_disk.measure`]."""
    return tally("a full disk at each file that a run writes", [row["value"] == 0 for row in files])


def signalled(folder: Path, straight: Case, fault: Fault, name: str) -> bool:
    """Whether a run that was ended by a signal and continued has the final weights of the undisturbed one."""
    case = Case(folder, name)
    status = case.run(fault.inject)
    assert status == STATUS[fault.signal], (fault.name, status, case.output_text())
    return finish(case, straight)


def finish(case: Case, straight: Case) -> bool:
    assert case.run() == 0, case.output_text()
    return not case.differences(straight)


def damaged(folder: Path, straight: Case, how: str, damage: Callable[[Path], None]) -> Iterator[bool]:
    """Damage each file of the newer of two checkpoints in turn."""
    fault = Fault("", f"{TRAINER}.training_step", 8)
    for name in sorted(p.name for p in (straight.output / "checkpoint-12").iterdir()):
        case = Case(folder, f"{how}-{name}".replace(" ", "-"))
        case.run(fault.inject)
        damage(case.output / "checkpoint-6" / name)
        same = finish(case, straight)
        assert "checkpoint-6 is damaged" in case.output_text(), case.output_text()
        yield same


def no_room(folder: Path, straight: Case) -> bool:
    """No checkpoint and no final weights fit on the disk; then there is room again."""
    case = Case(folder, "full")
    status = case.run(LimitFileSize(120_000))
    assert status == 1, (status, case.output_text())
    return finish(case, straight)


def changed_text(folder: Path, straight: Case) -> bool:
    """A changed text is rejected; the original text is accepted again."""
    text = folder / "changed.txt"
    text.write_bytes((folder / "corpus.txt").read_bytes())
    case = Case(folder, "changed", train_files=[str(text)])
    case.run(Fault("", f"{TRAINER}.training_step", 8).inject)
    text.write_bytes((folder / "corpus.txt").read_bytes().replace(b"cat", b"dog"))
    status = case.run()
    assert status == 2, (status, case.output_text())
    assert f"{text} has changed since" in case.output_text(), case.output_text()
    text.write_bytes((folder / "corpus.txt").read_bytes())
    return finish(case, straight)


def two_processes(folder: Path, straight: Case, tries: int) -> Iterator[bool]:
    """Of two runs started at once in one folder, one is rejected, and the other ends with the weights of its seed."""
    seeds = {42: straight, 7: Case(folder, "seed-7", seed=7)}
    assert seeds[7].run() == 0, seeds[7].output_text()
    for number in range(tries):
        output = str(folder / f"both-{number}")
        both = {seed: Case(folder, f"both-{number}-{seed}", seed=seed, output_dir=output) for seed in seeds}
        processes = {seed: start(case) for seed, case in both.items()}
        statuses = {seed: both[seed].wait(process, 240) for seed, process in processes.items()}
        assert sorted(statuses.values()) == [0, 2], (statuses, [case.output_text() for case in both.values()])
        winner = min(statuses, key=statuses.get)
        loser = both[42 if winner == 7 else 7].output_text()
        assert "another process is using" in loser or "holds a finished run" in loser, loser
        both[winner].output = Path(output)
        assert json.loads((Path(output) / "run.json").read_text())["arguments"].get("seed", 42) == winner
        yield not both[winner].differences(seeds[winner])


if __name__ == "__main__":
    started = time.time()
    main()
    print(f"{time.time() - started:.0f} s")
