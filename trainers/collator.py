"""From packed sequences to batches: masked for the model's generator, or already corrupted by one that runs here."""

import zlib
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .generators import Replacements


# Of the positions chosen for prediction, this share is shown to the generator as [MASK]; the rest stay as they are.
# None becomes a random token: ELECTRA's `pretrain/pretrain_helpers.py` (`mask`), unlike BERT.
MASK_SHARE = 0.85


@dataclass
class DataCollatorForReplacedTokenDetection:
    """Pads to a fixed length, and masks for the generator or replaces tokens itself.

    The mask of a sequence, and the seed of the noise that it meets in the model, is a function of (`seed`, epoch, the
    sequence's own ids). So it does not depend on the batch a sequence lands in, on the number of loader workers or of
    processes; two epochs differ; and a resumed run sees what an uninterrupted one would have seen.

    Args:
        tokenizer: needs a mask token and a pad token.
        max_seq_length (`int`, *optional*): every sequence is padded to it. Left out: to the longest of the batch.
        mlm_probability (`float`): share of a sequence's tokens that is masked; at least one, never a special token.
        seed (`int`): of the masks.
        replacements ([`generators.Replacements`], *optional*): proposes what the chosen tokens become. Left out: the
            batch is masked, and the model's generator proposes.

    Raises:
        ValueError: if the tokenizer has no mask or pad token, or a sequence is longer than `max_seq_length`.
    """

    tokenizer: PreTrainedTokenizerBase
    max_seq_length: int | None = None
    mlm_probability: float = 0.15
    seed: int = 0
    replacements: Replacements | None = None
    # Shared memory, because loader workers that outlive an epoch hold a copy of this object.
    _epoch: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64).share_memory_(), repr=False)

    def __post_init__(self):
        for name in ("mask_token", "pad_token"):
            if getattr(self.tokenizer, f"{name}_id") is None:
                raise ValueError(f"replaced-token detection needs a tokenizer with a `{name}`, and this one has none")
        self._special_ids = np.array(self.tokenizer.all_special_ids)

    def set_epoch(self, epoch: int):
        """Draw new masks from now on."""
        self._epoch.fill_(epoch)

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        """Mask a batch.

        Args:
            features: each with `input_ids`, the ids of one sequence with its special tokens.

        Returns:
            `input_ids` with `mlm_labels`, the original ids at masked positions and -100 elsewhere; or, with
            `replacements`, corrupted `input_ids` with `labels`, 1 where a token was replaced by another and 0
            elsewhere. Both `torch.LongTensor` of shape `(batch, sequence)`. `noise_seeds`, `torch.LongTensor` of shape
            `(batch,)`. And `attention_mask` (shape of `input_ids`), only where there is padding.
        """
        rows = [np.asarray(feature["input_ids"], dtype=np.int64) for feature in features]
        longest = max(len(row) for row in rows)
        length = self.max_seq_length or longest
        if longest > length:
            raise ValueError(f"a sequence of {longest} tokens does not fit `max_seq_length` {length}")
        make, name, no_label = (
            (self.mask, "mlm_labels", -100) if self.replacements is None else (self.replace, "labels", 0)
        )
        input_ids = np.full((len(rows), length), self.tokenizer.pad_token_id)
        labels = np.full((len(rows), length), no_label)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)], labels[i, : len(row)] = make(row)
        batch = {"input_ids": torch.from_numpy(input_ids), name: torch.from_numpy(labels)}
        batch["noise_seeds"] = torch.tensor([int(self._generator(row, 1).integers(2**63)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        if (lengths < length).any():
            batch["attention_mask"] = (torch.arange(length) < lengths.unsqueeze(1)).long()
        return batch

    def mask(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The masked ids and the labels of one sequence; all three of shape (tokens,), int64."""
        chosen, generator = self._choose(row)
        labels = np.full_like(row, -100)
        labels[chosen] = row[chosen]
        masked = row.copy()
        masked[chosen[generator.random(len(chosen)) < MASK_SHARE]] = self.tokenizer.mask_token_id
        return masked, labels

    def replace(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The corrupted ids of one sequence and 1 where they differ from it; all three of shape (tokens,), int64."""
        chosen, generator = self._choose(row)
        corrupted = row.copy()
        corrupted[chosen] = self.replacements(row, chosen, generator)
        return corrupted, (corrupted != row).astype(np.int64)

    def _choose(self, row: np.ndarray) -> tuple[np.ndarray, np.random.Generator]:
        """The positions to corrupt, never a special token's, and the sequence's own random generator."""
        generator = self._generator(row)
        candidates = np.flatnonzero(~np.isin(row, self._special_ids))
        count = min(len(candidates), max(1, round(self.mlm_probability * len(row))))
        return (generator.choice(candidates, count, replace=False) if count else candidates), generator

    def _generator(self, row: np.ndarray, *purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, int(self._epoch), zlib.crc32(row.tobytes()), *purpose))
