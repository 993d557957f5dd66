"""Generators: what replaces the tokens that the discriminator has to find. `generator_type` in the config names one.

Where they run follows from what they need. `mlm` and `self` need the weights in training and are part of the model.
Those that need the text alone run in the collator, so in loader workers where there are some ([`Replacements`]).
Another neural model runs in the training step, on the training device ([`StepGenerator`]).

Add your own without touching this package: `generator_type="my_module:my_generator"` names a class that derives from
one or the other and is made from a [`GeneratorContext`], or a function whose one argument, `context`, is one, and
which returns a generator.
"""

import copy
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from modeling_electra_exit import ElectraEarlyExitConfig
from modeling_electra_exit.configuration_electra_exit import GENERATOR_TYPES
from modeling_electra_exit.generator_head import sample_tokens
from modeling_electra_exit.modeling_electra_exit import originals, replace_tokens

from .arguments import ElectraEarlyExitTrainingArguments
from .data import id_dtype, read_ids, token_counts
from .masked_lm import MaskedLanguageModel
from .parsing import UsageError, reason


@dataclass
class GeneratorContext:
    """What a generator is made from.

    config ([`ElectraEarlyExitConfig`]): its `generator_*` fields.
    sequences (`Dataset`): the packed training sequences, column `input_ids`.
    tokenizer (`PreTrainedTokenizerBase`).
    args ([`ElectraEarlyExitTrainingArguments`], *optional*): of the run.
    """

    config: ElectraEarlyExitConfig
    sequences: Dataset
    tokenizer: PreTrainedTokenizerBase
    args: ElectraEarlyExitTrainingArguments | None = None

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each id is in the training text, `int64` of shape `(vocab_size,)`; 0 for special tokens."""
        counts = token_counts(self.sequences, self.config.vocab_size)
        counts[self.tokenizer.all_special_ids] = 0
        return counts


class Replacements:
    """A generator that runs in the collator.

    columns (`tuple[str, ...]`): what it reads of the data set beside `input_ids`.
    """

    columns: tuple[str, ...] = ()

    def __call__(
        self, row: np.ndarray, positions: np.ndarray, generator: np.random.Generator, **columns
    ) -> np.ndarray:
        """Replacements for `row[positions]`.

        Args:
            row (`int64` array of shape `(tokens,)`): one sequence with its special tokens, uncorrupted.
            positions (`int64` array of shape `(replaced,)`): where to replace; never a special token.
            generator (`np.random.Generator`): the only source of chance, so that a resumed run repeats it.
            **columns: what else the data set holds of this sequence.

        Returns:
            `int64` array of shape `(replaced,)`. A replacement may equal the original; it then counts as original.
        """
        raise NotImplementedError


class StepGenerator:
    """A generator that runs in the training step, on its device, and is not trained there."""

    def propose(
        self,
        input_ids: torch.Tensor,
        mlm_labels: torch.Tensor,
        attention_mask: torch.Tensor | None,
        progress: float,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Replacements for the masked tokens.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, sequence)`): with masked positions.
            mlm_labels (`torch.LongTensor` of shape `(batch, sequence)`): the original token there, else -100.
            attention_mask (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
            progress (`float`): share of the training steps that are over; 1 in evaluation.
            token_type_ids (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): the segments.

        Returns:
            `torch.LongTensor` of shape `(masked tokens,)`, in the order in which `mlm_labels != -100` selects. Chance
            comes from torch's own generator, which a resumed run restores.
        """
        raise NotImplementedError

    def propose_several(
        self,
        input_ids: torch.Tensor,
        mlm_labels: torch.Tensor,
        attention_mask: torch.Tensor | None,
        draws: int,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As [`propose`] at the end of training, several times: `torch.LongTensor` of shape
        `(masked tokens, draws)`."""
        several = [self.propose(input_ids, mlm_labels, attention_mask, 1.0, token_type_ids) for _ in range(draws)]
        return torch.stack(several, dim=1)

    def flops(self, batch_size: int, sequence_length: int) -> float:
        """Operations of one step's proposals, in the convention of [`flops.step_flops`]."""
        return 0.0

    def corrupt(self, inputs: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor]:
        """A masked batch with `input_ids` corrupted and `labels`, 1 where a token was replaced by another."""
        input_ids, mlm_labels = inputs["input_ids"], inputs["mlm_labels"]
        proposals = self.propose(
            input_ids, mlm_labels, inputs.get("attention_mask"), progress, inputs.get("token_type_ids")
        )
        corrupted, labels = replace_tokens(input_ids, mlm_labels, proposals)
        return {**inputs, "input_ids": corrupted, "labels": labels}

    def for_evaluation(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> "StepGenerator":
        """The generator that corrupts this masked batch of an evaluation; it must leave no trace in training's."""
        return self

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a resumed run needs beside the weights; saved with every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]):
        """Continue from what [`state_dict`] said."""


class TokenDistribution(Replacements):
    """Draws replacements from one distribution, whatever the context.

    Args:
        weights (`np.ndarray` of shape `(vocab_size,)`): at least 0 each, not all 0; need not sum to 1.
    """

    def __init__(self, weights: np.ndarray):
        if not weights.sum() > 0:
            raise ValueError("no token has a weight above 0, so there is nothing to draw")
        self.cumulative = np.cumsum(weights / weights.sum())

    def __call__(self, row, positions, generator, **columns):
        # Scaled by the last entry, because rounding leaves the sum of the probabilities beside 1.
        drawn = generator.random(len(positions)) * self.cumulative[-1]
        return np.searchsorted(self.cumulative, drawn, side="right")


def uniform(context: GeneratorContext) -> TokenDistribution:
    """Every token of the training text alike."""
    return TokenDistribution((context.counts > 0).astype(float))


def unigram(context: GeneratorContext) -> TokenDistribution:
    """Every token in proportion to its count in the training text, to the power of `config.generator_alpha`."""
    counts = context.counts.astype(float)
    return TokenDistribution(np.where(counts > 0, counts**context.config.generator_alpha, 0.0))


class Bigram(Replacements):
    """Draws each replacement given the original token to its left, with absolute discounting (Ney et al., 1994).

    P(w | v) = max(c(v, w) - d, 0) / c(v) + d n(v) / c(v) P(w), where c counts pairs of neighbors, n(v) how many
    different tokens follow v, d is [`DISCOUNT`], and P(w) is `unigram`'s distribution: the mass taken from the counts
    is what backs off. After a special token, or one without successors, all of it does.

    Drawing is exact and takes only the counts that are not 0: first whether to back off, then, by the inverse of the
    cumulative distribution, among v's successors.
    """

    DISCOUNT = 0.75

    def __init__(self, context: GeneratorContext):
        pairs = bigram_counts(context.sequences, context.config.vocab_size, context.tokenizer.all_special_ids)
        followed = np.asarray(pairs.sum(axis=1)).ravel()
        successors = np.diff(pairs.indptr)
        self.back_off = np.where(followed > 0, self.DISCOUNT * successors / np.maximum(followed, 1), 1.0)
        self.unigram = unigram(context)
        # One array for all rows: within a row it rises by the discounted counts.
        self.cumulative = np.concatenate([[0.0], np.cumsum(pairs.data - self.DISCOUNT)])
        self.starts, self.successors = pairs.indptr, pairs.indices

    def __call__(self, row, positions, generator, **columns):
        left = row[positions - 1]
        replacements = self.unigram(row, positions, generator)
        drawn = generator.random((2, len(positions)))
        counted = np.flatnonzero(drawn[0] >= self.back_off[left])
        low, high = self.cumulative[self.starts[left[counted]]], self.cumulative[self.starts[left[counted] + 1]]
        found = np.searchsorted(self.cumulative, low + drawn[1, counted] * (high - low), side="right") - 1
        # Rounding may reach the next row's first pair.
        replacements[counted] = self.successors[np.minimum(found, self.starts[left[counted] + 1] - 1)]
        return replacements


class Shuffle(Replacements):
    """The chosen tokens of a sequence change places with each other, along one random cycle: none keeps its place.

    Within the sequence and not the batch: so the corruption of a sequence stays a function of that sequence, whatever
    batch, process or worker it lands in; and a token of the same text is harder to find than one of another.
    """

    def __init__(self, context: GeneratorContext):
        pass

    def __call__(self, row, positions, generator, **columns):
        cycle = generator.permutation(len(positions))
        replacements = np.empty(len(positions), dtype=np.int64)
        replacements[cycle] = row[positions[np.roll(cycle, 1)]]
        return replacements


class Cached(Replacements):
    """One of the replacements that `electra-exit cache-replacements` wrote for each token, all alike."""

    columns = ("replacements",)

    def __init__(self, context: GeneratorContext):
        pass

    def __call__(self, row, positions, generator, *, replacements, **columns):
        table = np.asarray(replacements, dtype=np.int64).reshape(len(row), -1)
        return table[positions, generator.integers(table.shape[1], size=len(positions))]


class Frozen(StepGenerator):
    """Samples of a masked language model that was trained before, in `args.generator_folder`.

    The temperature of its softmax falls linearly from `args.generator_temperature`'s first number to its second: what
    is unlikely is found soonest, so samples are easy to tell first, and as hard as the model makes them at the end.

    Raises:
        UsageError: if no folder is given, or it holds no masked language model of this vocabulary.
    """

    def __init__(self, context: GeneratorContext):
        self.args, self.config = context.args, context.config
        if self.args is None or self.args.generator_folder is None:
            raise UsageError("generator_type 'frozen' needs --generator_folder, the folder of a masked language model")
        self.model = MaskedLanguageModel(self.args.generator_folder, context.tokenizer, self.args.device)

    def propose(self, input_ids, mlm_labels, attention_mask, progress, token_type_ids=None):
        first, last = self.args.generator_temperature
        logits = self.model.logits(input_ids, mlm_labels != -100, attention_mask, token_type_ids)
        return sample_tokens(logits / (first + (last - first) * progress))

    def propose_several(self, input_ids, mlm_labels, attention_mask, draws, token_type_ids=None):
        logits = self.model.logits(input_ids, mlm_labels != -100, attention_mask, token_type_ids)
        return sample_tokens(logits / self.args.generator_temperature[1], draws)

    def flops(self, batch_size, sequence_length):
        return batch_size * self.model.flops(
            sequence_length, num_masked=round(self.config.mlm_probability * sequence_length)
        )


class SelfProposals(StepGenerator):
    """What the discriminator itself proposed when it last read the sequence; at the first visit, as `unigram`.

    The model proposes for the positions that the sequence's next visit will choose (`look_ahead` of the collator), so
    only these are kept: about 200 bytes of memory a sequence of 64 tokens. A sequence is known by a hash of its ids
    (multilinear, modulo 2^64), so it may come in any order and from any source.
    """

    def __init__(self, context: GeneratorContext):
        self.proposals: dict[int, np.ndarray] = {}
        self.dtype = id_dtype(context.config.vocab_size)
        self.first = torch.from_numpy(unigram(context).cumulative)
        length = context.config.max_position_embeddings
        self.multipliers = torch.randint(-(2**63), 2**63 - 1, (length,), generator=torch.Generator().manual_seed(0))

    def keys(self, originals: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """The hash of each uncorrupted sequence, `torch.LongTensor` of shape `(batch,)`; padding does not count."""
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
        """Held-out sequences have no earlier visit, so make one: corrupt where the next epoch would, and let the model
        propose where this one does."""
        here, there = inputs["mlm_labels"] != -100, inputs["proposal_mask"]
        text, attention_mask = originals(inputs["input_ids"], inputs["mlm_labels"]), inputs.get("attention_mask")
        visitor = copy.copy(self)
        visitor.proposals = {}
        visit = visitor.corrupt({**inputs, "input_ids": text, "mlm_labels": text.masked_fill(~there, -100)}, 0.0)
        read = {name: visit[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in visit}
        proposals = model(**read, proposal_mask=here).proposals
        visitor.remember(self.keys(text, attention_mask), proposals)
        return visitor

    def remember(self, keys: torch.Tensor, proposals: torch.Tensor):
        """Keep what the model proposed, `proposals` (batch, sequence) with -100 elsewhere, for the next visit."""
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


# The part of the model that some generators are; `none` is the user's own corruption.
IN_MODEL = ("mlm", "none")

# name -> function of a context that makes the generator
GENERATORS: dict[str, Callable[[GeneratorContext], Replacements | StepGenerator]] = {
    "uniform": uniform,
    "unigram": unigram,
    "bigram": Bigram,
    "shuffle": Shuffle,
    "cached": Cached,
    "frozen": Frozen,
    "self": SelfProposals,
}


def build_generator(
    config: ElectraEarlyExitConfig,
    sequences: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    args: ElectraEarlyExitTrainingArguments | None = None,
) -> Replacements | StepGenerator | None:
    """The generator that `config` names, for packed `sequences`; `None` where it is part of the model.

    Raises:
        UsageError: if it is a user's and cannot be imported, is no generator or fails; or if it has nothing to draw.
    """
    name = config.generator_type
    if name in IN_MODEL:
        return None
    context = GeneratorContext(config, sequences, tokenizer, args)
    if name in GENERATORS:
        try:
            return GENERATORS[name](context)
        except ValueError as error:
            raise UsageError(f"generator_type {name!r}: {error}") from error
    with naming_failures(name):
        named = import_generator(name)
        made = named if isinstance(named, INTERFACE) else named(context)
    if not isinstance(made, INTERFACE):
        raise UsageError(f"generator_type {name!r} must return a Replacements or StepGenerator, got {made!r:.100}")
    return made


INTERFACE = (Replacements, StepGenerator)


@contextmanager
def naming_failures(name: str) -> Iterator[None]:
    """Whatever the user's own code raises, or tries to exit with, becomes a [`UsageError`]."""
    try:
        yield
    except UsageError:
        raise
    except SystemExit as error:
        raise UsageError(f"generator_type {name!r}: its code called sys.exit({error.code!r})") from error
    except Exception as error:
        raise UsageError(f"generator_type {name!r}: {reason(error)}; --debug shows where") from error


def import_generator(name: str) -> Replacements | StepGenerator | Callable:
    """What `module:attribute` names, from the Python path or the current folder: a generator, a class of one, or a
    function whose one argument is called `context`. It is not called here.

    Raises:
        UsageError: if it cannot be imported, or is nothing of these.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script has its own folder there instead; last, to shadow nothing
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        legal = ", ".join(map(repr, GENERATOR_TYPES))
        raise UsageError(f"generator_type {name!r}: {error}; give one of {legal}, or `module:function`") from error
    if isinstance(found, INTERFACE) or (isinstance(found, type) and issubclass(found, INTERFACE)):
        return found
    if not (inspect.isfunction(found) and list(inspect.signature(found).parameters) == ["context"]):
        raise UsageError(
            f"generator_type {name!r} must name a class that derives from Replacements or StepGenerator, or a "
            f"function of one argument called `context` that returns one, got {found!r:.100}"
        )
    return found


def bigram_counts(sequences: Dataset, vocab_size: int, special_ids: list[int]) -> scipy.sparse.csr_matrix:
    """How often the second id follows the first within a sequence, `(vocab_size, vocab_size)`, in one pass over the
    data; no pair with a special token is counted."""
    special = np.zeros(vocab_size, dtype=bool)
    special[special_ids] = True
    total = scipy.sparse.csr_matrix((vocab_size, vocab_size), dtype=np.int64)
    for ids, lengths in read_ids(sequences, 100_000):
        ids, ends = ids.astype(np.int32), np.cumsum(lengths)
        counted = ~(special[ids[:-1]] | special[ids[1:]])
        counted[ends[:-1] - 1] = False  # from one sequence to the next
        pairs = (ids[:-1][counted], ids[1:][counted])
        total += scipy.sparse.coo_matrix((np.ones(len(pairs[0]), np.int64), pairs), total.shape).tocsr()
    return total
