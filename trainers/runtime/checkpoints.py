"""Checkpoints that are whole or not there: written under another name, renamed when complete, verified before use."""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from .files import DAMAGED, flush, write_json


logger = logging.getLogger(__name__)

# In every checkpoint: the size in bytes and the SHA-256 of each of its files.
MANIFEST = "manifest.json"
# What resuming needs, and the names under which the Trainer, FSDP or DeepSpeed store it.
NEEDED = {
    "weights": r"(pytorch_)?model.*\.(safetensors|bin)$|global_step",
    "state of the optimizer": r"optimizer|global_step",
    "random state": r"rng_state",
    "state of the Trainer": r"trainer_state\.json$",
}


def commit(incomplete: Path, final: Path) -> None:
    """Give a checkpoint whose files are all written its manifest and its name. One already there is replaced.

    Everything is flushed to the disk first, so that not even a loss of power leaves the name without the content.
    """
    files = sorted(path for path in incomplete.rglob("*") if path.is_file())
    for path in files:
        flush(path)
    manifest = {
        str(path.relative_to(incomplete)): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in files
    }
    write_json(incomplete / MANIFEST, manifest)
    if final.exists():
        final.rename(incomplete.with_name(f"replaced-{final.name}"))
    incomplete.rename(final)
    _date_newest(final)
    flush(final.parent)
    shutil.rmtree(incomplete.parent, ignore_errors=True)


def _date_newest(checkpoint: Path) -> None:
    """Make a checkpoint the youngest of its run, even where the clock was set back: the oldest are deleted."""
    others = [p.stat().st_mtime for p in checkpoint.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p != checkpoint]
    if others and checkpoint.stat().st_mtime <= max(others):
        os.utime(checkpoint, times=(max(others) + 2, max(others) + 2))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words, or `None` where every file is as it was written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"it has no readable {MANIFEST}"
    for name, (size, checksum) in expected.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if _sha256(path) != checksum:
            return f"{name} does not match its checksum"
    for what, names in NEEDED.items():
        if not any(re.match(names, name) for name in expected):
            return f"its {MANIFEST} lists no {what}"
    return None


def newest_intact(folder: Path) -> str | None:
    """The newest undamaged checkpoint in a run's folder.

    A damaged one that is newer is named, with what is wrong, and renamed: else it would count as the newest when
    `save_total_limit` decides what to delete.
    """
    for checkpoint in map(Path, reversed(sort_checkpoints(str(folder)))):
        if (reason := damage(checkpoint)) is None:
            return str(checkpoint)
        aside = checkpoint.with_name(f"{DAMAGED}-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        logger.warning(f"{checkpoint} is damaged ({reason}); it is {aside.name} now, and the one before is used")
    return None
