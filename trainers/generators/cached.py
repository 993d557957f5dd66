"""Replacements that were sampled in advance and stored with the data."""

import json
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets

from ..data.sequences import checksum
from ..errors import DataError
from .base import GeneratorContext, Replacements


# Report in the folder of cached replacements, with the checksums of their sequences.
CACHE_REPORT = "cache.json"


class Cached(Replacements):
    """Draws uniformly among the replacements that `electra-exit cache-replacements` wrote for each token."""

    columns = ("replacements",)

    def __init__(self, context: GeneratorContext):
        pass

    def __call__(self, row, positions, generator, *, replacements, **columns):
        table = np.asarray(replacements, dtype=np.int64).reshape(len(row), -1)
        return table[positions, generator.integers(table.shape[1], size=len(positions))]


def attach_replacements(packed: DatasetDict, folder: str | Path | None) -> DatasetDict:
    """Add the column `replacements`, which `electra-exit cache-replacements` wrote, to packed sequences.

    Raises:
        DataError: if the folder has no cached replacements, or they were written for other sequences.
    """
    if folder is None:
        raise DataError(
            "generator_type 'cached' requires --generator_folder, the output of `electra-exit cache-replacements`"
        )
    if not (Path(folder) / CACHE_REPORT).is_file():
        raise DataError(f"{folder} holds no cached replacements (no {CACHE_REPORT})")
    report = json.loads((Path(folder) / CACHE_REPORT).read_text(encoding="utf-8"))
    together = DatasetDict()
    for split, sequences in packed.items():
        if report["splits"][split]["checksum"] != checksum(sequences):
            raise DataError(f"{folder} holds replacements for other {split} sequences than these")
        column = Dataset.from_file(str(Path(folder) / f"{split}.arrow"))
        together[split] = concatenate_datasets([sequences, column], axis=1)
    return together
