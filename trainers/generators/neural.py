"""Neural generators that run in the training step."""

import copy

import numpy as np
import torch

from modeling_electra_exit.generator_head import sample_tokens
from modeling_electra_exit.modeling_electra_exit import chosen_tokens, originals

from ..data.sequences import id_dtype
from ..errors import UsageError
from .base import GeneratorContext, StepGenerator
from .masked_lm import MaskedLanguageModel
from .statistical import unigram


class Frozen(StepGenerator):
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

    def corrupt(self, inputs, progress):
        """As in the base class. With `masked_positions`, the host does not synchronize with the device."""
        input_ids, mlm_labels = inputs["input_ids"], inputs["mlm_labels"]
        chosen = chosen_tokens(mlm_labels, inputs.get("masked_positions"))
        beside = (inputs.get(name) for name in ("attention_mask", "token_type_ids"))
        samples = self._samples(input_ids, chosen, *beside, progress)
        corrupted, labels = chosen.corrupt(originals(input_ids, mlm_labels), samples)
        return {**inputs, "input_ids": corrupted, "labels": labels}

    def propose(self, input_ids, mlm_labels, attention_mask, progress, token_type_ids=None):
        return self._samples(input_ids, chosen_tokens(mlm_labels), attention_mask, token_type_ids, progress)

    def _samples(self, input_ids, chosen, attention_mask, token_type_ids, progress) -> torch.Tensor:
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


class SelfProposals(StepGenerator):
    """Replacements that the discriminator proposed in the previous epoch; in the first epoch, those of `unigram`.

    The model proposes only for the positions that the next epoch will choose (`look_ahead` of the collator), which
    takes about 200 bytes of memory per sequence of 64 tokens. Sequences are identified by a hash of their ids
    (multilinear, modulo 2^64), so their order and source do not matter.
    """

    def __init__(self, context: GeneratorContext):
        self.proposals: dict[int, np.ndarray] = {}
        self.dtype = id_dtype(context.config.vocab_size)
        self.first = torch.from_numpy(unigram(context).cumulative)
        length = context.config.max_position_embeddings
        self.multipliers = torch.randint(-(2**63), 2**63 - 1, (length,), generator=torch.Generator().manual_seed(0))

    def keys(self, originals: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Hashes of uncorrupted sequences, `torch.LongTensor` of shape `(batch,)`. Padding is ignored.

        Args:
            originals (`torch.LongTensor` of shape `(batch, sequence)`): the uncorrupted text.
            attention_mask (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
        """
        real = originals + 1 if attention_mask is None else (originals + 1) * attention_mask
        return (real * self.multipliers[: originals.shape[1]].to(originals.device)).sum(dim=1)

    def propose(self, input_ids, mlm_labels, attention_mask, progress, token_type_ids=None):
        masked = mlm_labels != -100
        drawn = torch.rand(int(masked.sum()), dtype=self.first.dtype) * self.first[-1]
        replacements = torch.searchsorted(self.first, drawn, right=True)
        rows = replacements.split(masked.sum(dim=1).tolist())
        for key, row in zip(self.keys(originals(input_ids, mlm_labels), attention_mask).tolist(), rows, strict=True):
            if (stored := self.proposals.get(key)) is not None:
                row.copy_(torch.from_numpy(stored.astype(np.int64)))
        return replacements.to(input_ids.device)

    def for_evaluation(self, model, inputs):
        """A generator with proposals of `model` for this batch. Held-out sequences have no previous epoch, so one is
        simulated: it corrupts the positions of the next epoch, and the model proposes at those of this one."""
        here, there = inputs["mlm_labels"] != -100, inputs["proposal_mask"]
        text, attention_mask = originals(inputs["input_ids"], inputs["mlm_labels"]), inputs.get("attention_mask")
        simulated = copy.copy(self)
        simulated.proposals = {}
        previous = simulated.corrupt({**inputs, "input_ids": text, "mlm_labels": text.masked_fill(~there, -100)}, 0.0)
        read = {name: previous[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in previous}
        proposals = model(**read, proposal_mask=here).proposals
        simulated.remember(self.keys(text, attention_mask), proposals)
        return simulated

    def remember(self, keys: torch.Tensor, proposals: torch.Tensor):
        """Store the model's proposals for the next epoch.

        Args:
            keys (`torch.LongTensor` of shape `(batch,)`): as [`keys`] returns them.
            proposals (`torch.LongTensor` of shape `(batch, sequence)`): -100 where there is no proposal.
        """
        for key, row in zip(keys.tolist(), proposals.cpu().numpy(), strict=True):
            self.proposals[key] = row[row != -100].astype(self.dtype)

    def state_dict(self):
        if not self.proposals:
            return {}
        rows = list(self.proposals.values())
        return {
            "keys": torch.tensor(list(self.proposals)),
            "counts": torch.tensor([len(row) for row in rows]),
            "proposals": torch.from_numpy(np.concatenate(rows).astype(np.int32)),
        }

    def load_state_dict(self, state):
        ends = np.cumsum(state["counts"].numpy())[:-1]
        rows = np.split(state["proposals"].numpy().astype(self.dtype), ends)
        self.proposals = dict(zip(state["keys"].tolist(), rows, strict=True))
