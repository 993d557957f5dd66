"""The folder of a run: held by one process at a time, and continued only with what it began with."""

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

# What a run is: its arguments and inputs at the start, its measurements at the very end.
RUN_FILE, METRICS_FILE = "run.json", "metrics.json"
LOCK_FILE = ".lock"
MISSING = "missing"
# A copy of the text that came on standard input, so that the run can continue.
STDIN_FILE = "standard_input.txt"
# Arguments that may change between an interruption and its continuation without changing the result.
HARMLESS = {"output_dir", "num_proc", "resume_from_checkpoint", "logging_steps", "save_total_limit", "disable_tqdm",
            "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision",
            "language", "model_license", "profile_step"}  # fmt: skip
# In a folder: the files that make a model, a tokenizer or a data set, but for those that only report on it.
CONTENT = (".safetensors", ".bin", ".json", ".txt", ".model", ".arrow")
REPORTS = {RUN_FILE, METRICS_FILE, "trainer_state.json", "calibration.json", "evaluation.json"}


# ---- What a run began with ----


@dataclass
class RunRecord:
    """What `run.json` says.

    arguments: those that were given, by name.
    inputs: for each file, folder or Hub id that the run reads, a fingerprint of its content.
    tokenizer: a fingerprint of the tokenizer in use; `None` before there is one.
    start: what the card says of the model that the weights started from; empty for random ones.
    processes: how many train together.
    environment: what may change the last bits of the weights: versions, and torch's threads.
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
        """Raises: UsageError if the file is damaged, or of another version of this package."""
        try:
            record = cls(**read_json(folder / RUN_FILE))
            if not all(
                isinstance(part, dict) for part in (record.arguments, record.inputs, record.start, record.environment)
            ):
                raise TypeError("a section is missing")
        except TypeError as error:
            raise UsageError(
                f"{folder / RUN_FILE} is not what this version writes of a run; choose another --output_dir"
            ) from error
        return record

    def check_continues(self, before: "RunRecord", folder: Path, not_read_again: Collection[str] = ()) -> None:
        """Raises: UsageError if a run that began as `before` would end in other weights continued as this.

        Args:
            not_read_again: inputs that may be gone by now.
        """
        gone = {name for name in not_read_again if self.inputs.get(name) == MISSING and name in before.inputs}
        self.inputs |= {name: before.inputs[name] for name in gone}
        now = json.loads(json.dumps(self.arguments))
        names = (before.arguments.keys() | now.keys()) - HARMLESS
        if changed := sorted(name for name in names if before.arguments.get(name) != now.get(name)):
            differences = "; ".join(f"{n}: {before.arguments.get(n)!r} then, {now.get(n)!r} now" for n in changed)
            raise UsageError(f"{folder} holds a run with other settings ({differences}); continue it as it "
                             "was, or choose another --output_dir")  # fmt: skip
        if before.processes != self.processes:
            raise UsageError(
                f"the run in {folder} has {before.processes} processes, and this has {self.processes}; continue it "
                "as it was, or choose another --output_dir"
            )
        for name in sorted(self.inputs.keys() | before.inputs.keys()):
            if before.inputs.get(name) != self.inputs.get(name):
                raise UsageError(f"{name} has changed since the run in {folder} began; restore it, or "
                                 "choose another --output_dir")  # fmt: skip

    def warn_of_environment(self, before: "RunRecord", folder: Path) -> None:
        for name, value in self.environment.items():
            if (earlier := before.environment.get(name)) != value:
                logger.warning(f"the run in {folder} began with {name} {earlier} and continues with {value}: its "
                               "weights may differ from those of an undisturbed run")  # fmt: skip

    def begin(self, before: "RunRecord | None", folder: Path) -> None:
        """Write `run.json`, now that the tokenizer is known.

        Raises:
            UsageError: if the run that began as `before` has another tokenizer.
            WriteError: if it cannot be written.
        """
        if before is not None and before.tokenizer != self.tokenizer:
            raise UsageError(
                f"the tokenizer is not the one of the run in {folder}, so its embeddings would be of other tokens; "
                "put it back as it was, or choose another --output_dir"
            )
        write_json(folder / RUN_FILE, vars(self))


def fingerprints(
    files: Iterable[str], models: Iterable[str | None] = (), dataset: tuple[str, str | None] | None = None
) -> dict[str, str]:
    """What identifies the content of everything that a run reads. The same content gives the same fingerprint,
    whenever it was written. [`MISSING`] stands for what is not there, which its reader reports.

    Files are read as a whole, at some gigabytes a second: far less time than tokenising them takes.

    Args:
        files: text, or folders of a data set.
        models: folders or Hub ids of models and tokenizers, or `None`; on the Hub, the commit counts.
        dataset: name and configuration of a data set on the Hub.

    Raises:
        UsageError, DataError: for what cannot be read.
    """
    found = {file: _local(Path(file)) or MISSING for file in files}
    found |= {model: _local(Path(model)) or _commit(model) for model in models if model is not None}
    if dataset is not None:
        try:
            found[dataset[0]] = load_dataset_builder(*dataset).hash
        except Exception as error:  # the library raises a dozen kinds, as in `data.load_from_hub`
            raise DataError(f"cannot load the data set `{dataset[0]}`: {first_line(error)}") from error
    return found


def _local(path: Path) -> str | None:
    """Of a file, all of it; of a folder, the model, tokenizer or data set in it."""
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
    """Of its vocabulary and, where it has any, of the rules by which it cuts text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = {} if backend is None else json.loads(backend.to_str())
    last_call = ("truncation", "padding")  # of which the backend keeps the settings
    parts = sorted(tokenizer.get_vocab().items()), {name: r for name, r in rules.items() if name not in last_call}
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())


# ---- Whose it is ----


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder, which is made where it is not there, for this process; what nothing was written into is
    gone again at the end.

    The lock is the operating system's and ends with the process, however that ends. A file system that has none (some
    shared ones) is used without: a file in the lock's place would outlive the process, and block the run for ever.

    Raises:
        UsageError: if another process holds it, or it is no folder, or cannot be written.
    """
    if folder.is_symlink() and not folder.exists():
        raise UsageError(
            f"{folder} is a link to {os.readlink(folder)}, which is not there; choose another --output_dir"
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
        logger.warning(f"the file system of {folder} has no locks: do not start a second process on this folder")
    try:
        yield
    finally:
        if not (folder / RUN_FILE).exists():
            for name in (LOCK_FILE, STDIN_FILE):
                (folder / name).unlink(missing_ok=True)
        lock.release()
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()  # only where it is empty


@contextlib.contextmanager
def opened(
    args: TrainingArguments, given: dict, inputs: Callable[[], dict[str, str]], starts: Collection[str] = ()
) -> Iterator[tuple[RunRecord, RunRecord | None, str | None]]:
    """Hold the folder of a run that begins or continues. Every process has to call it; the main one does it.

    Args:
        given: the arguments, by name.
        inputs: makes [`fingerprints`] of all that the run reads.
        starts: those that are read when it begins, and not where it continues from a checkpoint.

    Returns:
        What the run is, as what it began where it continues, and the checkpoint to continue from.

    Raises: as [`held`] and [`check_output_folder`].
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
    """As what the run began that is there, and the checkpoint to continue from; `None` for a fresh start.

    Raises:
        UsageError: if the folder holds a finished run, a run of other settings, or files of something else; or if the
            checkpoint named in the arguments is damaged.
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
        raise UsageError(f"{folder} is not empty and holds no run of ours; choose another --output_dir")
    before, checkpoint = RunRecord.read(folder), chosen or newest_intact(folder)
    record.check_continues(before, folder, starts if checkpoint else ())
    record.warn_of_environment(before, folder)
    return before, checkpoint
