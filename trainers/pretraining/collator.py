"""Collation of packed sequences: masked for the model's generator, or corrupted by a generator in the collator."""

import itertools
import zlib
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..generators.base import Replacements, StepGenerator, num_chosen
from ..generators.registry import build_generator
from .row_generators import row_generators


# Share of the chosen positions that become [MASK]; the rest keep their tokens. Unlike in BERT, none becomes a random
# token (google-research/electra, `pretrain/pretrain_helpers.py`, `mask`).
MASK_SHARE = 0.85


# Optional columns with one entry per token, and their values at padding.
TOKEN_COLUMNS = {"token_type_ids": 0, "labels": 0}


@dataclass
class DataCollatorForReplacedTokenDetection:
    """Pads sequences, and masks tokens for a generator or replaces them.

    The mask of a sequence and its noise seed are functions of `seed`, the epoch and the sequence's ids. They do not
    depend on the batch, the number of workers or processes, or padding; they differ between epochs; and a resumed run
    gets the same masks as an uninterrupted one.

    As in google-research/electra (`pretrain/pretrain_helpers.py`), `mlm_probability` is a share of all tokens of a
    sequence, and positions are drawn uniformly among the tokens that are not special. There are two differences:
    ELECTRA draws with replacement, so that duplicates reduce a nominal 15 % to about 14 %, while positions are
    distinct here; and ELECTRA may choose [UNK], which is a special token here.

    Args:
        tokenizer: with a mask token and a pad token.
        max_seq_length (`int`, *optional*): length to which sequences are padded. If omitted, that of the longest
            sequence in the batch.
        mlm_probability (`float`): share of a sequence's tokens to mask; at least one token, never a special one.
        seed (`int`): seed of the masks.
        replacements ([`generators.Replacements`], *optional*): generator of the replacements. If omitted, the batch is
            masked for the model's generator, or for one that runs in the training step.
        look_ahead (`bool`): whether to return the positions of the next epoch's masks as `proposal_mask`.

    Raises:
        ValueError: if the tokenizer has no mask or pad token. When called: if a sequence is empty, longer than
            `max_seq_length`, or padded without an `attention_mask`; or if columns do not fit `input_ids`.
    """

    tokenizer: PreTrainedTokenizerBase
    max_seq_length: int | None = None
    mlm_probability: float = 0.15
    seed: int = 0
    replacements: Replacements | None = None
    look_ahead: bool = False
    # In shared memory, because persistent data loader workers have a copy of this object.
    _epoch: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64).share_memory_(), repr=False)

    def __post_init__(self):
        for name in ("mask_token", "pad_token"):
            if getattr(self.tokenizer, f"{name}_id") is None:
                raise ValueError(f"replaced-token detection requires a tokenizer with a `{name}`, got none")
        self._mask = self.tokenizer.mask_token_id  # looking it up takes as long as masking a sequence
        special, pad = self.tokenizer.all_special_ids, self.tokenizer.pad_token_id
        # Looked up with `mode="clip"`, so that ids above the last special one count as ordinary.
        self._ordinary = np.ones(max(special) + 2, dtype=bool)
        self._ordinary[special] = False
        # Padding is recognized only at the ends, and only if its id is not shared with another special token.
        others = (getattr(self.tokenizer, f"{name}_token_id", None) for name in ("cls", "sep", "bos", "eos", "unk"))
        self._padding = None if pad in others else pad

    def set_epoch(self, epoch: int):
        """Set the epoch, which changes the masks."""
        self._epoch.fill_(epoch)

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        """Mask or corrupt a batch.

        Args:
            features: one dictionary per sequence, with `input_ids`, special tokens included; `attention_mask`, 0 at
                padding on either side, if there is any; optionally `token_type_ids`; and the columns that the
                generator reads. Sequences with `labels`, 0 or 1 for each token, are already corrupted and only padded.
                A scalar label belongs to the text and is dropped.

        Returns:
            A dictionary of tensors, padded on the right, `torch.LongTensor` of shape `(batch, sequence)` unless stated
            otherwise:

            - `input_ids`: the masked text; with `replacements`, the corrupted text.
            - `mlm_labels`: original ids at the chosen positions, -100 elsewhere.
            - `labels`: 1 where a token differs from the original, else 0. Without `replacements` of shape
              `(batch, 0)`: labels are created later, but `Trainer` does not evaluate batches without them.
            - `masked_positions` of shape `(batch, places)`, only without `replacements`: the chosen positions,
              ascending, padded with -1 to a number that depends only on the length.
            - `proposal_mask`, `torch.BoolTensor`, only with `look_ahead`: the positions that the next epoch chooses.
            - `noise_seeds` of shape `(batch,)`.
            - `token_type_ids`, if the features have them.
            - `attention_mask`, only if there is padding.
        """
        texts = [self._without_padding(**feature) for feature in features]
        # Sequences are identified by their ids.
        checksums = np.array([zlib.crc32(text["input_ids"].tobytes()) for text in texts], dtype=np.uint32)
        epoch = int(self._epoch)
        own = row_generators(self.seed, epoch, checksums)
        later = row_generators(self.seed, epoch + 1, checksums) if self.look_ahead else itertools.repeat(None)
        rows = [self._corrupted(*generators, **text) for *generators, text in zip(own, later, texts, strict=False)]
        if any(row.keys() != rows[0].keys() for row in rows):
            raise ValueError(f"sequences of a batch must have the same columns, got {[sorted(row) for row in rows]}")
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        longest = int(lengths.max())
        length = self.max_seq_length or longest
        if longest > length:
            raise ValueError(f"sequences must have at most `max_seq_length` tokens, {length}, got one of {longest}")
        fill = {"input_ids": self.tokenizer.pad_token_id, "mlm_labels": -100, "proposal_mask": False, **TOKEN_COLUMNS}
        batch = {}
        for name in rows[0]:
            padded = np.full((len(rows), length), fill[name])
            for i, row in enumerate(rows):
                padded[i, : len(row[name])] = row[name]
            batch[name] = torch.from_numpy(padded)
        if "labels" not in batch:
            batch["labels"] = torch.empty(len(rows), 0, dtype=torch.int64)
            batch["masked_positions"] = self._positions(batch["mlm_labels"] != -100)
        batch["noise_seeds"] = torch.tensor(
            [int(each.integers(2**63)) for each in row_generators(self.seed, epoch, checksums, 1)]
        )
        if (lengths < length).any():
            batch["attention_mask"] = (torch.arange(length) < lengths.unsqueeze(1)).long()
        return batch

    def _without_padding(self, input_ids, attention_mask=None, **columns) -> dict:
        """The columns of one sequence without padding. Those with an entry per token become int64 arrays (tokens,)."""
        tokens = {"input_ids": np.asarray(input_ids, dtype=np.int64)}
        for name in TOKEN_COLUMNS:
            if (values := columns.pop(name, None)) is not None and np.ndim(values):
                tokens[name] = np.asarray(values, dtype=np.int64)
        real, row = None, tokens["input_ids"]
        if attention_mask is not None:
            real = np.asarray(attention_mask) != 0
        elif self._padding is not None and self._padding in (*row[:1], *row[-1:]):
            raise ValueError(
                f"a sequence has padding (id {self._padding}) but no `attention_mask`: add that column to the data "
                "set, or leave the padding to the collator"
            )
        for name, values in (*tokens.items(), ("attention_mask", row if real is None else real)):
            if values.shape != row.shape:
                raise ValueError(f"`{name}` must have one entry for each of {len(row)} tokens, got {values.shape}")
        if real is not None and not real.all():
            if self.replacements is not None and (shifted := set(columns) & set(self.replacements.columns)):
                raise ValueError(
                    f"a sequence with the generator's column {', '.join(sorted(shifted))} must not have padding"
                )
            tokens = {name: values[real] for name, values in tokens.items()}
        if not len(tokens["input_ids"]):
            raise ValueError("a sequence must have at least one token that is not padding")
        return tokens | columns

    def _corrupted(
        self, generator, later, /, input_ids, labels=None, token_type_ids=None, **columns
    ) -> dict[str, np.ndarray]:
        """Mask or corrupt one sequence (tokens,). All arrays in the result have its shape. `generator` is the random
        generator of the sequence in this epoch, `later` that of the next one, for `look_ahead`."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        if labels is not None:
            if labels.min() < 0 or labels.max() > 1:
                raise ValueError(f"`labels` must be 0 or 1 for each token, got {sorted(set(labels.tolist()))[:5]}")
            return {"input_ids": input_ids, **types, "labels": labels}
        chosen = self._choose(input_ids, generator)
        mlm_labels = np.full_like(input_ids, -100)
        mlm_labels[chosen] = input_ids[chosen]
        corrupted = input_ids.copy()
        if self.replacements is None:
            corrupted[chosen[generator.random(len(chosen)) < MASK_SHARE]] = self._mask
            masked = {"input_ids": corrupted, **types, "mlm_labels": mlm_labels}
            if self.look_ahead:
                masked["proposal_mask"] = np.zeros(len(input_ids), dtype=bool)
                masked["proposal_mask"][self._choose(input_ids, later)] = True
            return masked
        corrupted[chosen] = self.replacements(input_ids, chosen, generator, **columns)
        labels = (corrupted != input_ids).astype(np.int64)
        return {"input_ids": corrupted, **types, "mlm_labels": mlm_labels, "labels": labels}

    def _choose(self, row: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The positions to corrupt, never of special tokens."""
        candidates = self._ordinary.take(row, mode="clip").nonzero()[0]
        count = min(len(candidates), num_chosen(self.mlm_probability, len(row)))
        return candidates[generator.choice(len(candidates), count, replace=False)] if count else candidates

    def _positions(self, chosen: torch.Tensor) -> torch.Tensor:
        """Positions at which `chosen` (batch, sequence) is true, (batch, places), padded with -1. The number of places
        depends only on the length."""
        rows, columns = chosen.nonzero(as_tuple=True)
        counts = chosen.sum(dim=1)
        places = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
        positions = torch.full((len(chosen), num_chosen(self.mlm_probability, chosen.shape[1])), -1)
        positions[rows, places] = columns
        return positions


def build_collator(
    config, sequences, tokenizer, args, max_seq_length: int | None = None
) -> tuple[DataCollatorForReplacedTokenDetection, StepGenerator | None]:
    """Create the collator of a run.

    Args:
        config, sequences, tokenizer, args: as in [`generators.build_generator`].
        max_seq_length: as in [`DataCollatorForReplacedTokenDetection`].

    Returns:
        The collator, and the generator for the training step; `None` if there is no such generator.

    Raises:
        UsageError: as [`generators.build_generator`].
    """
    generator = build_generator(config, sequences, tokenizer, args)
    in_collator, in_step = (None, generator) if isinstance(generator, StepGenerator) else (generator, None)
    collator = DataCollatorForReplacedTokenDetection(
        tokenizer,
        max_seq_length,
        config.mlm_probability,
        args.mask_seed,
        in_collator,
        look_ahead=config.generator_type == "self",
    )
    return collator, in_step
