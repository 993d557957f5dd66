"""Atomic checkpoints: written under a temporary name, renamed when complete, and verified before use."""

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

# File in every checkpoint with the size in bytes and the SHA-256 of its other files.
MANIFEST = "manifest.json"
# Contents required for resuming, and patterns of the file names that the Trainer, FSDP or DeepSpeed use for them.
NEEDED = {
    "weights": r"(pytorch_)?model.*\.(safetensors|bin)$|global_step",
    "state of the optimizer": r"optimizer|global_step",
    "random state": r"rng_state",
    "state of the Trainer": r"trainer_state\.json$",
}


def commit(incomplete: Path, final: Path) -> None:
    """Write the manifest of a complete checkpoint and give the checkpoint its final name, replacing an existing one.

    All files are flushed to disk first, so that even after a power failure a checkpoint of that name is complete.
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
    """Make a checkpoint the newest of its run even if the clock was set back: the oldest are deleted."""
    others = [p.stat().st_mtime for p in checkpoint.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p != checkpoint]
    if others and checkpoint.stat().st_mtime <= max(others):
        os.utime(checkpoint, times=(max(others) + 2, max(others) + 2))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(checkpoint: Path) -> str | None:
    """A short description of the damage to a checkpoint; `None` if all files match the manifest."""
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
    """The newest undamaged checkpoint in a run's folder; `None` if there is none.

    Newer damaged checkpoints are reported and renamed, so that `save_total_limit` does not count them.
    """
    for checkpoint in map(Path, reversed(sort_checkpoints(str(folder)))):
        if (reason := damage(checkpoint)) is None:
            return str(checkpoint)
        aside = checkpoint.with_name(f"{DAMAGED}-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        logger.warning(f"{checkpoint} is damaged ({reason}): renamed to {aside.name}, using the preceding checkpoint")
    return None
