"""The folder of a run: locked by one process at a time, and resumed only with the same arguments and inputs."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
import xxhash
from datasets import load_dataset_builder
from filelock import FileLock, SoftFileLock, Timeout
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from modeling_electra_exit import __version__

from ..errors import DataError, UsageError, first_line
from .checkpoints import damage, newest_intact
from .distributed import run_on_main_and_broadcast
from .files import INCOMPLETE, read_json, write_json


logger = logging.getLogger(__name__)

# `run.json` has the arguments and inputs and is written at the start, `metrics.json` the results, at the very end.
RUN_FILE, METRICS_FILE = "run.json", "metrics.json"
LOCK_FILE = ".lock"
MISSING = "missing"
# A copy of the text from standard input, so that the run can be resumed.
STDIN_FILE = "standard_input.txt"
# Arguments that may change when a run is resumed, because they do not affect the weights.
HARMLESS = {"output_dir", "num_proc", "resume_from_checkpoint", "logging_steps", "save_total_limit", "disable_tqdm",
            "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision",
            "language", "model_license", "profile_step"}  # fmt: skip
# Suffixes of the files of a model, tokenizer or data set that a fingerprint covers, and names that it excludes.
CONTENT = (".safetensors", ".bin", ".json", ".txt", ".model", ".arrow")
REPORTS = {RUN_FILE, METRICS_FILE, "trainer_state.json", "calibration.json", "evaluation.json"}


# ---- Arguments and inputs of a run ----


@dataclass
class RunRecord:
    """The content of `run.json`.

    arguments: explicitly given arguments, by name.
    inputs: fingerprint of the content of each file, folder or Hub id that the run reads.
    processes: number of training processes.
    tokenizer: fingerprint of the tokenizer; `None` before it is known.
    start: card data about the model that the weights started from; empty for random initialization.
    environment: versions and number of torch threads, which may change the last bits of the weights.
    """

    arguments: dict
    inputs: dict[str, str]
    processes: int
    tokenizer: str | None = None
    start: dict = field(default_factory=dict)
    environment: dict[str, str | int] = field(
        default_factory=lambda: {
            "electra-early-exit": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "torch threads": torch.get_num_threads(),
        }
    )

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """Read `run.json` in `folder`.

        Raises:
            UsageError: if the file is damaged, or written by another version of this package.
        """
        try:
            record = cls(**read_json(folder / RUN_FILE))
            if not all(
                isinstance(part, dict) for part in (record.arguments, record.inputs, record.start, record.environment)
            ):
                raise TypeError("a section is missing")
        except TypeError as error:
            raise UsageError(
                f"{folder / RUN_FILE} does not have the format of this version; choose another --output_dir"
            ) from error
        return record

    def check_continues(self, before: "RunRecord", folder: Path, not_read_again: Collection[str] = ()) -> None:
        """Check that the run `before` in `folder` can be resumed as this one without changing its result.

        Args:
            before: the record in the folder.
            folder: the folder of the run.
            not_read_again: inputs that may be missing now.

        Raises:
            UsageError: if arguments, inputs or the number of processes differ.
        """
        gone = {name for name in not_read_again if self.inputs.get(name) == MISSING and name in before.inputs}
        self.inputs |= {name: before.inputs[name] for name in gone}
        now = json.loads(json.dumps(self.arguments))
        names = (before.arguments.keys() | now.keys()) - HARMLESS
        if changed := sorted(name for name in names if before.arguments.get(name) != now.get(name)):
            differences = "; ".join(f"{n}: {before.arguments.get(n)!r} then, {now.get(n)!r} now" for n in changed)
            raise UsageError(f"{folder} holds a run with other settings ({differences}); resume it with the same "
                             "settings, or choose another --output_dir")  # fmt: skip
        if before.processes != self.processes:
            raise UsageError(
                f"the number of processes must be that of the run in {folder}, {before.processes}, got "
                f"{self.processes}; resume it with as many, or choose another --output_dir"
            )
        for name in sorted(self.inputs.keys() | before.inputs.keys()):
            if before.inputs.get(name) != self.inputs.get(name):
                raise UsageError(f"{name} has changed since the run in {folder} began; restore it, or "
                                 "choose another --output_dir")  # fmt: skip

    def warn_of_environment(self, before: "RunRecord", folder: Path) -> None:
        """Log a warning for each difference between the environments of this record and `before`."""
        for name, value in self.environment.items():
            if (earlier := before.environment.get(name)) != value:
                logger.warning(f"the run in {folder} began with {name} {earlier} and continues with {value}: its "
                               "weights may differ from those of an uninterrupted run")  # fmt: skip

    def begin(self, before: "RunRecord | None", folder: Path) -> None:
        """Write `run.json`, once the tokenizer is known.

        Raises:
            UsageError: if the run to resume, `before`, has another tokenizer.
            WriteError: if the file cannot be written.
        """
        if before is not None and before.tokenizer != self.tokenizer:
            raise UsageError(
                f"the tokenizer differs from that of the run in {folder}, whose embeddings would belong to other "
                "tokens; restore it, or choose another --output_dir"
            )
        write_json(folder / RUN_FILE, vars(self))


def fingerprints(
    files: Iterable[str], models: Iterable[str | None] = (), dataset: tuple[str, str | None] | None = None
) -> dict[str, str]:
    """Fingerprints of the content of everything that a run reads, regardless of modification times.

    A missing input gets the fingerprint [`MISSING`]; the code that reads it reports the error. Files are read in full,
    at some gigabytes per second, which takes far less time than tokenizing them.

    Args:
        files: text files, or folders of a data set.
        models: folders or Hub ids of models and tokenizers, or `None`; for Hub ids, the fingerprint is the commit.
        dataset: name and configuration of a data set on the Hub.

    Returns:
        Fingerprints by file, folder or Hub id.

    Raises:
        UsageError: if a file cannot be read.
        DataError: if the data set cannot be loaded.
    """
    found = {file: _local(Path(file)) or MISSING for file in files}
    found |= {model: _local(Path(model)) or _commit(model) for model in models if model is not None}
    if dataset is not None:
        try:
            found[dataset[0]] = load_dataset_builder(*dataset).hash
        except Exception as error:  # the library raises many error classes, as in `data.load_from_hub`
            raise DataError(f"cannot load the data set `{dataset[0]}`: {first_line(error)}") from error
    return found


def _local(path: Path) -> str | None:
    """Fingerprint of a file, or of the model, tokenizer or data set in a folder; `None` if the path does not exist."""
    if path.is_file():
        return _content(path)
    if not path.is_dir():
        return None
    files = sorted(f for f in path.iterdir() if f.suffix in CONTENT and f.name not in REPORTS and f.is_file())
    return xxhash.xxh3_128_hexdigest("".join(f"{file.name}\0{_content(file)}\n" for file in files).encode())


def _commit(model: str) -> str:
    try:
        config = cached_file(model, "config.json", _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return MISSING
    return extract_commit_hash(config, None) or MISSING


def _content(path: Path) -> str:
    hasher, buffer = xxhash.xxh3_128(), memoryview(bytearray(1 << 20))
    try:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                hasher.update(buffer[:size])
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}") from error
    return hasher.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Fingerprint of a tokenizer's vocabulary and, for fast tokenizers, of its rules."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = {} if backend is None else json.loads(backend.to_str())
    last_call = ("truncation", "padding")  # settings of the last call, which the backend keeps
    parts = sorted(tokenizer.get_vocab().items()), {name: r for name, r in rules.items() if name not in last_call}
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())


# ---- Locking ----


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Create a run's folder if necessary, and lock it for this process. A created folder is removed again if it is
    empty at the end.

    The operating system releases the lock whenever the process ends. File systems without locks (some shared ones) are
    used without one: a lock file would outlive the process and block the run forever.

    Raises:
        UsageError: if another process has locked the folder, or it is not a folder or not writable.
    """
    if folder.is_symlink() and not folder.exists():
        raise UsageError(
            f"{folder} is a link to {os.readlink(folder)}, which does not exist; choose another --output_dir"
        )
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        if not isinstance(lock, SoftFileLock):
            raise UsageError(
                f"another process is using {folder}; wait until it ends, or choose another --output_dir"
            ) from error
    except NotImplementedError:
        pass
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder} is not a folder; choose another --output_dir") from error
    except OSError as error:
        raise UsageError(f"--output_dir {folder} cannot be written: {first_line(error)}") from error
    if isinstance(lock, SoftFileLock) or not lock.is_locked:
        logger.warning(f"the file system of {folder} does not support locks: do not start a second run in this folder")
    try:
        yield
    finally:
        if not (folder / RUN_FILE).exists():
            for name in (LOCK_FILE, STDIN_FILE):
                (folder / name).unlink(missing_ok=True)
        lock.release()
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()  # fails unless it is empty


@contextlib.contextmanager
def opened(
    args: TrainingArguments, given: dict, inputs: Callable[[], dict[str, str]], starts: Collection[str] = ()
) -> Iterator[tuple[RunRecord, RunRecord | None, str | None]]:
    """Lock and check the folder of a new or resumed run. A collective call; the main process does the work.

    Args:
        args: arguments of the run; `args.output_dir` is the folder.
        given: explicitly given arguments, by name.
        inputs: returns the [`fingerprints`] of everything that the run reads.
        starts: inputs that are read only at the start, not when resuming from a checkpoint.

    Yields:
        The record of the run, the record to resume or `None`, and the checkpoint to resume from or `None`.

    Raises:
        UsageError: as [`held`] and [`check_output_folder`].
    """
    with contextlib.ExitStack() as stack:

        def begin():
            stack.enter_context(held(Path(args.output_dir)))  # before anything in it is read
            record = RunRecord(given, inputs(), args.world_size)
            return record, *check_output_folder(args, record, starts)

        yield run_on_main_and_broadcast(begin)


def check_output_folder(
    args: TrainingArguments, record: RunRecord, starts: Collection[str] = ()
) -> tuple[RunRecord | None, str | None]:
    """The record of the run in the output folder, and the checkpoint to resume from; each `None` if there is none.

    Raises:
        UsageError: if the folder holds a finished run, a run with other settings, or unrelated files; or if the
            checkpoint of `args.resume_from_checkpoint` is damaged.
    """
    folder = Path(args.output_dir)
    if (folder / METRICS_FILE).exists():
        raise UsageError(f"{folder} already holds a finished run; choose another --output_dir, or remove it")
    chosen = args.resume_from_checkpoint
    if chosen is not None and (reason := damage(Path(chosen))):
        raise UsageError(f"--resume_from_checkpoint {chosen}: {reason}")
    if all(path.name.startswith((INCOMPLETE, LOCK_FILE, STDIN_FILE)) for path in folder.iterdir()):
        return None, chosen
    if not (folder / RUN_FILE).exists():
        raise UsageError(f"{folder} is not empty and does not hold a run; choose another --output_dir")
    before, checkpoint = RunRecord.read(folder), chosen or newest_intact(folder)
    record.check_continues(before, folder, starts if checkpoint else ())
    record.warn_of_environment(before, folder)
    return before, checkpoint
