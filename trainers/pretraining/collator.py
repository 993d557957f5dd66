"""From packed sequences to batches: masked for the model's generator, or already corrupted by one that runs here."""

import itertools
import zlib
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..generators.base import Replacements, StepGenerator
from ..generators.registry import build_generator
from .row_generators import row_generators


# Of the positions chosen for prediction, this share is shown to the generator as [MASK]; the rest stay as they are.
# None becomes a random token: ELECTRA's `pretrain/pretrain_helpers.py` (`mask`), unlike BERT.
MASK_SHARE = 0.85


# What else a data set may say of each token, and what padding gets.
TOKEN_COLUMNS = {"token_type_ids": 0, "labels": 0}


@dataclass
class DataCollatorForReplacedTokenDetection:
    """Pads to a fixed length, and masks for the generator or replaces tokens itself.

    The mask of a sequence, and the seed of the noise that it meets in the model, is a function of (`seed`, epoch, the
    sequence's own ids). So it does not depend on the batch a sequence lands in, on the number of loader workers or of
    processes, nor on padding that it comes with; two epochs differ; and a resumed run sees what an uninterrupted one
    would have seen.

    As in google-research/electra (`pretrain/pretrain_helpers.py`), the share counts all tokens of a sequence, and only
    ordinary ones are chosen, all alike. Two things differ. It draws with replacement, so that some positions are drawn
    twice, and about 14 % of the tokens are masked where 15 % are asked for; here positions are distinct, and
    `mlm_probability` says what share is masked. And it may choose [UNK], here a special token like the others.

    Args:
        tokenizer: needs a mask token and a pad token.
        max_seq_length (`int`, *optional*): every sequence is padded to it. Left out: to the longest of the batch.
        mlm_probability (`float`): share of a sequence's tokens that is masked; at least one, never a special token.
        seed (`int`): of the masks.
        replacements ([`generators.Replacements`], *optional*): proposes what the chosen tokens become. Left out: the
            batch is masked, and the model's generator, or one that runs in the step, proposes.
        look_ahead (`bool`): also say which positions the next epoch will choose, as `proposal_mask`.

    Raises:
        ValueError: if the tokenizer has no mask or pad token. In a call: for a sequence without a token, longer than
            `max_seq_length`, or padded without an `attention_mask`; and for columns that do not fit `input_ids`.
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
        self._mask = self.tokenizer.mask_token_id  # asking a tokenizer takes as long as masking a sequence
        special, pad = self.tokenizer.all_special_ids, self.tokenizer.pad_token_id
        # Looked up with `mode="clip"`: what lies beyond the last special token is ordinary.
        self._ordinary = np.ones(max(special) + 2, dtype=bool)
        self._ordinary[special] = False
        # Padding is at an end: inside, it is text that names it. Where it is [SEP] or the like too, no id tells it.
        others = (getattr(self.tokenizer, f"{name}_token_id", None) for name in ("cls", "sep", "bos", "eos", "unk"))
        self._padding = None if pad in others else pad

    def set_epoch(self, epoch: int):
        """Draw new masks from now on."""
        self._epoch.fill_(epoch)

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        """Mask or corrupt a batch.

        Args:
            features: each with `input_ids`, the ids of one sequence with its special tokens; an `attention_mask` with
                0 at padding, on either side, where there is any; maybe `token_type_ids`; and whatever else the
                generator reads. Those with `labels`, one of 0 and 1 a token, are corrupted already, and are padded
                only; a single label is one of the text, and is left out.

        Returns:
            `input_ids` with `mlm_labels`, the original ids at the chosen positions and -100 elsewhere. With
            `replacements`, these `input_ids` are corrupted, and `labels` is 1 where a token was replaced by another
            and 0 elsewhere. All `torch.LongTensor` of shape `(batch, sequence)`, padded on the right; but without
            `replacements`, `labels` are empty, `(batch, 0)`, because they are made later: a Trainer evaluates no
            batch that does not have what its model calls labels. With those, `masked_positions`, where the chosen
            tokens stand, ascending: `(batch, places)`, padded with -1 to as many as a row of that length has.
            `noise_seeds`, `torch.LongTensor` of shape `(batch,)`. `token_type_ids`, where the features have them. And
            `attention_mask` (shape of `input_ids`), only where there is padding.
        """
        texts = [self._without_padding(**feature) for feature in features]
        # A sequence is known by its ids.
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
            raise ValueError(f"a sequence of {longest} tokens does not fit `max_seq_length` {length}")
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
        """The columns of one sequence, those with an entry a token as int64 arrays of shape (tokens,)."""
        tokens = {"input_ids": np.asarray(input_ids, dtype=np.int64)}
        for name in TOKEN_COLUMNS:
            if (values := columns.pop(name, None)) is not None and np.ndim(values):
                tokens[name] = np.asarray(values, dtype=np.int64)
        real, row = None, tokens["input_ids"]
        if attention_mask is not None:
            real = np.asarray(attention_mask) != 0
        elif self._padding is not None and self._padding in (*row[:1], *row[-1:]):
            raise ValueError(
                f"a sequence holds padding (id {self._padding}) and has no `attention_mask`: give the data set that "
                "column, or leave the padding to the collator"
            )
        for name, values in (*tokens.items(), ("attention_mask", row if real is None else real)):
            if values.shape != row.shape:
                raise ValueError(f"`{name}` must have an entry for each of {len(row)} tokens, got {values.shape}")
        if real is not None and not real.all():
            if self.replacements is not None and (shifted := set(columns) & set(self.replacements.columns)):
                raise ValueError(
                    f"a sequence with {', '.join(sorted(shifted))} for its generator must have no padding"
                )
            tokens = {name: values[real] for name, values in tokens.items()}
        if not len(tokens["input_ids"]):
            raise ValueError("a sequence must hold a token that is no padding, and this one has none")
        return tokens | columns

    def _corrupted(
        self, generator, later, /, input_ids, labels=None, token_type_ids=None, **columns
    ) -> dict[str, np.ndarray]:
        """What one sequence (tokens,) becomes; all arrays of its shape. `generator` is its own in this epoch, and
        `later`, to look ahead, in the next."""
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
        """The positions to corrupt, never a special token's."""
        candidates = self._ordinary.take(row, mode="clip").nonzero()[0]
        count = min(len(candidates), self._num_chosen(len(row)))
        return candidates[generator.choice(len(candidates), count, replace=False)] if count else candidates

    def _num_chosen(self, length: int) -> int:
        """How many tokens of a sequence of that length are chosen, if it has as many ordinary ones."""
        return max(1, round(self.mlm_probability * length))

    def _positions(self, chosen: torch.Tensor) -> torch.Tensor:
        """Where `chosen` (batch, sequence) is true, (batch, places): as many places in every batch of that length."""
        rows, columns = chosen.nonzero(as_tuple=True)
        counts = chosen.sum(dim=1)
        places = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
        positions = torch.full((len(chosen), self._num_chosen(chosen.shape[1])), -1)
        positions[rows, places] = columns
        return positions


def build_collator(
    config, sequences, tokenizer, args, max_seq_length: int | None = None
) -> tuple[DataCollatorForReplacedTokenDetection, StepGenerator | None]:
    """The collator of a run, and the generator that works in its training steps, if there is one; the arguments are
    those of [`generators.build_generator`]."""
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
