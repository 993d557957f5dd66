"""From packed sequences to masked batches."""

import zlib
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase


# Of the positions chosen for prediction, this share is shown to the generator as [MASK]; the rest stay as they are.
# None becomes a random token: ELECTRA's `pretrain/pretrain_helpers.py` (`mask`), unlike BERT.
MASK_SHARE = 0.85


@dataclass
class DataCollatorForReplacedTokenDetection:
    """Pads to a fixed length and masks for the generator.

    The mask of a sequence is a function of (`seed`, epoch, the sequence's own ids). So it does not depend on the batch
    a sequence lands in, on the number of loader workers or of processes; two epochs differ; and a resumed run sees
    what an uninterrupted one would have seen.

    Args:
        tokenizer: needs a mask token and a pad token.
        max_seq_length (`int`, *optional*): every sequence is padded to it. Left out: to the longest of the batch.
        mlm_probability (`float`): share of a sequence's tokens that is masked; at least one, never a special token.
        seed (`int`): of the masks.

    Raises:
        ValueError: if the tokenizer has no mask or pad token, or a sequence is longer than `max_seq_length`.
    """

    tokenizer: PreTrainedTokenizerBase
    max_seq_length: int | None = None
    mlm_probability: float = 0.15
    seed: int = 0
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
            `input_ids` and `mlm_labels` (`torch.LongTensor` of shape `(batch, sequence)`; labels are the original ids
            at masked positions and -100 elsewhere), and `attention_mask` (same shape), only where there is padding.
        """
        rows = [np.asarray(feature["input_ids"], dtype=np.int64) for feature in features]
        longest = max(len(row) for row in rows)
        length = self.max_seq_length or longest
        if longest > length:
            raise ValueError(f"a sequence of {longest} tokens does not fit `max_seq_length` {length}")
        input_ids = np.full((len(rows), length), self.tokenizer.pad_token_id)
        labels = np.full((len(rows), length), -100)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)], labels[i, : len(row)] = self.mask(row)
        batch = {"input_ids": torch.from_numpy(input_ids), "mlm_labels": torch.from_numpy(labels)}
        lengths = torch.tensor([len(row) for row in rows])
        if (lengths < length).any():
            batch["attention_mask"] = (torch.arange(length) < lengths.unsqueeze(1)).long()
        return batch

    def mask(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The masked ids and the labels of one sequence; all three of shape (tokens,), int64."""
        generator = np.random.default_rng((self.seed, int(self._epoch), zlib.crc32(row.tobytes())))
        candidates = np.flatnonzero(~np.isin(row, self._special_ids))
        count = min(len(candidates), max(1, round(self.mlm_probability * len(row))))
        chosen = generator.choice(candidates, count, replace=False) if count else candidates
        labels = np.full_like(row, -100)
        labels[chosen] = row[chosen]
        masked = row.copy()
        masked[chosen[generator.random(count) < MASK_SHARE]] = self.tokenizer.mask_token_id
        return masked, labels
