"""Replacements that were sampled beforehand and are stored beside the data."""

import json
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets

from ..data.sequences import checksum
from ..errors import DataError
from .base import GeneratorContext, Replacements


# What was sampled for packed sequences, in the folder of their cached replacements.
CACHE_REPORT = "cache.json"


class Cached(Replacements):
    """One of the replacements that `electra-exit cache-replacements` wrote for each token, all alike."""

    columns = ("replacements",)

    def __init__(self, context: GeneratorContext):
        pass

    def __call__(self, row, positions, generator, *, replacements, **columns):
        table = np.asarray(replacements, dtype=np.int64).reshape(len(row), -1)
        return table[positions, generator.integers(table.shape[1], size=len(positions))]


def attach_replacements(packed: DatasetDict, folder: str | Path | None) -> DatasetDict:
    """Packed sequences with the column that `electra-exit cache-replacements` wrote for them.

    Raises:
        DataError: if there is none, or it was written for other sequences.
    """
    if folder is None:
        raise DataError(
            "generator_type 'cached' needs --generator_folder, what `electra-exit cache-replacements` wrote"
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
