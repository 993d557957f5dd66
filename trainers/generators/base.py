"""What a generator is: the two interfaces, and the context from which one is made."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from modeling_electra_exit import ElectraEarlyExitConfig
from modeling_electra_exit.modeling_electra_exit import replace_tokens

from ..data.sequences import token_counts
from ..runtime.arguments import ElectraEarlyExitTrainingArguments


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
