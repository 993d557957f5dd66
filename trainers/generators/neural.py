"""Neural generators that run in the training step."""

import copy

import numpy as np
import torch

from modeling_electra_exit.generator_head import sample_tokens
from modeling_electra_exit.modeling_electra_exit import ChosenTokens, chosen_tokens, originals, tokens_in

from ..data.sequences import read_real_ids
from ..errors import UsageError
from .base import GeneratorContext, StepGenerator, num_chosen
from .masked_lm import MaskedLanguageModel
from .statistical import unigram


class NeuralGenerator(StepGenerator):
    """A generator that samples a replacement for each of the [`ChosenTokens`] of a masked batch.

    With `masked_positions`, the host does not synchronize with the device.
    """

    def corrupt(self, inputs, progress):
        """As in the base class."""
        input_ids, mlm_labels = inputs["input_ids"], inputs["mlm_labels"]
        chosen = chosen_tokens(mlm_labels, inputs.get("masked_positions"))
        beside = (inputs.get(name) for name in ("attention_mask", "token_type_ids"))
        samples = self.samples(input_ids, chosen, *beside, progress)
        corrupted, labels = chosen.corrupt(originals(input_ids, mlm_labels), samples)
        return {**inputs, "input_ids": corrupted, "labels": labels}

    def propose(self, input_ids, mlm_labels, attention_mask, progress, token_type_ids=None):
        return self.samples(input_ids, chosen_tokens(mlm_labels), attention_mask, token_type_ids, progress)

    def samples(
        self,
        input_ids: torch.Tensor,
        chosen: ChosenTokens,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        progress: float,
    ) -> torch.Tensor:
        """A replacement for each chosen token, `torch.LongTensor` of shape `(tokens,)`; those of fill entries are
        ignored. Other arguments are as in [`propose`]."""
        raise NotImplementedError


class Frozen(NeuralGenerator):
    """Samples from the pre-trained masked language model in `args.generator_folder`.

    The softmax temperature changes linearly from the first to the second number of `args.generator_temperature`.
    Decreasing it makes replacements easy to detect at first and harder over time, because unlikely tokens are detected
    first.

    Raises:
        UsageError: if no folder is given, or it has no masked language model with the same vocabulary.
    """

    def __init__(self, context: GeneratorContext):
        self.args, self.config = context.args, context.config
        if self.args is None or self.args.generator_folder is None:
            raise UsageError(
                "generator_type 'frozen' requires --generator_folder, the folder of a masked language model"
            )
        self.model = MaskedLanguageModel(self.args.generator_folder, context.tokenizer, self.args.device)

    def samples(self, input_ids, chosen, attention_mask, token_type_ids, progress):
        first, last = self.args.generator_temperature
        logits = self.model.logits(input_ids, chosen, attention_mask, token_type_ids)
        return sample_tokens(logits / (first + (last - first) * progress))

    def propose_several(self, input_ids, mlm_labels, attention_mask, draws, token_type_ids=None):
        logits = self.model.logits(input_ids, chosen_tokens(mlm_labels), attention_mask, token_type_ids)
        return sample_tokens(logits / self.args.generator_temperature[1], draws)

    def flops(self, batch_size, sequence_length):
        return batch_size * self.model.flops(
            sequence_length, num_masked=round(self.config.mlm_probability * sequence_length)
        )


class SelfProposals(NeuralGenerator):
    """Replacements that the discriminator proposed in the previous epoch; in the first epoch, those of `unigram`.

    The model proposes only for the positions that the next epoch will choose (`look_ahead` of the collator). The
    proposals are kept on the training device: 28 bytes per sequence of 64 tokens, of which 8 are for its hash.
    Sequences are identified by a hash of their ids (multilinear, modulo 2^64), so their order does not matter.

    known (`torch.LongTensor` of shape `(sequences,)`): the hashes of the training text, ascending.
    places (`int`): maximum number of proposals per sequence.
    proposals (`torch.ShortTensor`, or `torch.IntTensor` for more than 2^15 ids, of shape `(sequences * places + 1,)`):
        the proposals of the sequences in the order of `known`, in the order of their positions. -1 where there is
        none, always in the last entry, which stands for sequences of other texts.

    Raises:
        ValueError: if a sequence is longer than `max_position_embeddings`.
    """

    def __init__(self, context: GeneratorContext):
        device = torch.device("cpu") if context.args is None else context.args.device
        exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.first = torch.from_numpy(unigram(context).cumulative).to(device, exact)
        self.mlm_probability = context.config.mlm_probability
        self.dtype = torch.int16 if context.config.vocab_size <= 2**15 else torch.int32
        length = context.config.max_position_embeddings
        multipliers = torch.randint(-(2**63), 2**63 - 1, (length,), generator=torch.Generator().manual_seed(0))
        self.multipliers = multipliers.to(device)
        known, longest = text_keys(context.sequences, multipliers.numpy())
        self.forget(torch.from_numpy(known).to(device), longest)

    def forget(self, known: torch.Tensor, longest: int):
        """Start without proposals, for sequences of at most `longest` tokens with the hashes `known`, ascending."""
        self.known, self.places = known, num_chosen(self.mlm_probability, longest)
        self.proposals = torch.full((len(known) * self.places + 1,), -1, dtype=self.dtype, device=known.device)

    def keys(self, originals: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Hashes of uncorrupted sequences, `torch.LongTensor` of shape `(batch,)`. Padding is ignored.

        Args:
            originals (`torch.LongTensor` of shape `(batch, sequence)`): the uncorrupted text.
            attention_mask (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
        """
        real = originals + 1 if attention_mask is None else (originals + 1) * attention_mask
        return (real * self.multipliers[: originals.shape[1]]).sum(dim=1)

    def _entries(self, keys: torch.Tensor, tokens: torch.Tensor, length: int) -> torch.Tensor:
        """Indices (tokens,) into `proposals` of `tokens` (tokens,), ascending by row in the flattened batch of
        `keys` (batch,) and rows of `length`: a row's first token has the sequence's first proposal."""
        rows = tokens // length
        ranks = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
        sequences = torch.searchsorted(self.known, keys).clamp_max(len(self.known) - 1)
        found = self.known.index_select(0, sequences) == keys
        entries = sequences.index_select(0, rows) * self.places + ranks
        return entries.where(found.index_select(0, rows) & (ranks < self.places), len(self.proposals) - 1)

    def _store(self, entries: torch.Tensor, proposals: torch.Tensor):
        self.proposals.index_copy_(0, entries, proposals.to(self.dtype))
        self.proposals[-1:].fill_(-1)

    def samples(self, input_ids, chosen, attention_mask, token_type_ids, progress):
        drawn = torch.rand(len(chosen.places), dtype=self.first.dtype, device=self.first.device) * self.first[-1]
        keys = self.keys(chosen.put(input_ids, chosen.targets), attention_mask)
        stored = self.proposals.index_select(0, self._entries(keys, chosen.places, input_ids.shape[1]))
        return torch.where(stored >= 0, stored, torch.searchsorted(self.first, drawn, right=True))

    def for_evaluation(self, model, inputs):
        """A generator with proposals of `model` for this batch. Held-out sequences have no previous epoch, so one is
        simulated: it corrupts the positions of the next epoch, and the model proposes at those of this one."""
        here, there = inputs["mlm_labels"] != -100, inputs["proposal_mask"]
        text, attention_mask = originals(inputs["input_ids"], inputs["mlm_labels"]), inputs.get("attention_mask")
        keys, simulated = self.keys(text, attention_mask), copy.copy(self)
        simulated.forget(keys.sort().values, text.shape[1])
        masked = {"input_ids": text, "mlm_labels": text.masked_fill(~there, -100), "masked_positions": None}
        previous = simulated.corrupt({**inputs, **masked}, 0.0)
        read = {name: previous[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in previous}
        simulated.remember(keys, model(**read, proposal_mask=here).proposals)
        return simulated

    def remember(self, keys: torch.Tensor, proposals: torch.Tensor):
        """Store the model's proposals for the next epoch, without host-device synchronization.

        Args:
            keys (`torch.LongTensor` of shape `(batch,)`): as [`keys`] returns them.
            proposals (`torch.LongTensor` of shape `(batch, sequence)`): -100 where there is no proposal.
        """
        length = proposals.shape[1]
        proposed = tokens_in(proposals != -100, num_chosen(self.mlm_probability, length))
        real = proposed.targets != -100
        self._store(self._entries(keys, proposed.places, length), proposed.take(proposals).where(real, -1))

    def state_dict(self):
        rows = self.proposals[:-1].view(len(self.known), self.places)
        used = rows[:, 0] >= 0
        return {"keys": self.known[used], "proposals": rows[used]} if used.any() else {}

    def load_state_dict(self, state):
        keys, rows = (state[name].to(self.known.device) for name in ("keys", "proposals"))
        self.proposals.fill_(-1)
        tokens = torch.arange(rows.numel(), device=rows.device)
        self._store(self._entries(keys, tokens, rows.shape[1]), rows.flatten())


def text_keys(sequences, multipliers: np.ndarray) -> tuple[np.ndarray, int]:
    """The distinct hashes of a text, as [`SelfProposals.keys`] computes them, and the length of its longest sequence.

    Args:
        sequences: as in [`read_real_ids`].
        multipliers (`int64` array of shape `(positions,)`).

    Returns:
        An ascending `int64` array, and the number of tokens.

    Raises:
        ValueError: if a sequence has more tokens than there are multipliers.
    """
    keys, longest = [], 0
    for ids, lengths in read_real_ids(sequences, 100_000):
        longest = max(longest, int(lengths.max()))
        if longest > (most := len(multipliers)):
            raise ValueError(
                f"sequences must have at most `max_position_embeddings` tokens, {most}, got one of {longest}"
            )
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(len(ids)) - np.repeat(starts, lengths)
        keys.append(np.add.reduceat((ids.astype(np.int64) + 1) * multipliers[positions], starts[lengths > 0]))
    return np.unique(np.concatenate(keys)), longest
