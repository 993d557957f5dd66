"""From packed sequences to batches: masked for the model's generator, or already corrupted by one that runs here."""

import zlib
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .generators import Replacements, StepGenerator, build_generator


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
            batch is masked, and the model's generator, or one that runs in the step, proposes.
        look_ahead (`bool`): also say which positions the next epoch will choose, as `proposal_mask`.

    Raises:
        ValueError: if the tokenizer has no mask or pad token, or a sequence is longer than `max_seq_length`.
    """

    tokenizer: PreTrainedTokenizerBase
    max_seq_length: int | None = None
    mlm_probability: float = 0.15
    seed: int = 0
    replacements: Replacements | None = None
    look_ahead: bool = False
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
        """Mask or corrupt a batch.

        Args:
            features: each with `input_ids`, the ids of one sequence with its special tokens, and whatever else the
                generator reads. Those with `labels` are corrupted already, and are padded only.

        Returns:
            `input_ids` with `mlm_labels`, the original ids at the chosen positions and -100 elsewhere. With
            `replacements`, these `input_ids` are corrupted, and `labels` is 1 where a token was replaced by another
            and 0 elsewhere. All `torch.LongTensor` of shape `(batch, sequence)`. `noise_seeds`, `torch.LongTensor` of
            shape `(batch,)`. And `attention_mask` (shape of `input_ids`), only where there is padding.
        """
        texts = [np.asarray(feature["input_ids"], dtype=np.int64) for feature in features]
        rows = [
            self._corrupted(**{**feature, "input_ids": text}) for feature, text in zip(features, texts, strict=True)
        ]
        for row, feature in zip(rows, features, strict=True):
            if "token_type_ids" in feature:
                row["token_type_ids"] = np.asarray(feature["token_type_ids"], dtype=np.int64)
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        longest = int(lengths.max())
        length = self.max_seq_length or longest
        if longest > length:
            raise ValueError(f"a sequence of {longest} tokens does not fit `max_seq_length` {length}")
        fill = {"input_ids": self.tokenizer.pad_token_id, "mlm_labels": -100, "labels": 0, "proposal_mask": False,
                "token_type_ids": self.tokenizer.pad_token_type_id}  # fmt: skip
        batch = {}
        for name in rows[0]:
            padded = np.full((len(rows), length), fill[name])
            for i, row in enumerate(rows):
                padded[i, : len(row[name])] = row[name]
            batch[name] = torch.from_numpy(padded)
        seeds = [self._generator(text, int(self._epoch), 1) for text in texts]
        batch["noise_seeds"] = torch.tensor([int(seed.integers(2**63)) for seed in seeds])
        if (lengths < length).any():
            batch["attention_mask"] = (torch.arange(length) < lengths.unsqueeze(1)).long()
        return batch

    def _corrupted(self, input_ids, labels=None, **columns) -> dict[str, np.ndarray]:
        """What one sequence becomes; all arrays of shape (tokens,), int64."""
        row = np.asarray(input_ids, dtype=np.int64)  # nothing to do where it is one already
        if labels is not None:
            return {"input_ids": row, "labels": np.asarray(labels)}
        epoch = int(self._epoch)
        chosen, generator = self._choose(row, epoch)
        mlm_labels = np.full_like(row, -100)
        mlm_labels[chosen] = row[chosen]
        corrupted = row.copy()
        if self.replacements is None:
            corrupted[chosen[generator.random(len(chosen)) < MASK_SHARE]] = self.tokenizer.mask_token_id
            masked = {"input_ids": corrupted, "mlm_labels": mlm_labels}
            if self.look_ahead:
                masked["proposal_mask"] = np.zeros(len(row), dtype=bool)
                masked["proposal_mask"][self._choose(row, epoch + 1)[0]] = True
            return masked
        corrupted[chosen] = self.replacements(row, chosen, generator, **columns)
        return {"input_ids": corrupted, "mlm_labels": mlm_labels, "labels": (corrupted != row).astype(np.int64)}

    def _choose(self, row: np.ndarray, epoch: int) -> tuple[np.ndarray, np.random.Generator]:
        """The positions to corrupt, never a special token's, and the sequence's own random generator."""
        generator = self._generator(row, epoch)
        candidates = np.flatnonzero(~np.isin(row, self._special_ids))
        count = min(len(candidates), max(1, round(self.mlm_probability * len(row))))
        return (generator.choice(candidates, count, replace=False) if count else candidates), generator

    def _generator(self, row: np.ndarray, epoch: int, *purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch, zlib.crc32(row.tobytes()), *purpose))


def build_collator(
    config, sequences, tokenizer, args, max_seq_length: int | None = None
) -> tuple[DataCollatorForReplacedTokenDetection, StepGenerator | None]:
    """The collator of a run, and the generator that works in its training steps, if there is one; the arguments are
    those of [`generators.build_generator`]."""
    generator = build_generator(config, sequences, tokenizer, args)
    in_step = isinstance(generator, StepGenerator)
    collator = DataCollatorForReplacedTokenDetection(
        tokenizer,
        max_seq_length,
        config.mlm_probability,
        args.mask_seed,
        None if in_step else generator,
        look_ahead=config.generator_type == "self",
    )
    return collator, generator if in_step else None
