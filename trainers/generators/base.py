"""The two interfaces of generators, and the context from which a generator is created."""

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


def num_chosen(mlm_probability: float, length: int) -> int:
    """Number of tokens that the collator chooses in a sequence of `length` tokens; fewer if it has not enough ordinary
    ones."""
    return max(1, round(mlm_probability * length))


@dataclass
class GeneratorContext:
    """Inputs for the creation of a generator.

    config ([`ElectraEarlyExitConfig`]): the model's config, with the `generator_*` fields.
    sequences (`Dataset`): the packed training sequences, with the column `input_ids`.
    tokenizer (`PreTrainedTokenizerBase`): the run's tokenizer.
    args ([`ElectraEarlyExitTrainingArguments`], *optional*): the run's arguments.
    """

    config: ElectraEarlyExitConfig
    sequences: Dataset
    tokenizer: PreTrainedTokenizerBase
    args: ElectraEarlyExitTrainingArguments | None = None

    @cached_property
    def counts(self) -> np.ndarray:
        """Frequency of each id in the training text, `int64` of shape `(vocab_size,)`; 0 for special tokens."""
        counts = token_counts(self.sequences, self.config.vocab_size)
        counts[self.tokenizer.all_special_ids] = 0
        return counts


class Replacements:
    """A generator that runs in the collator.

    columns (`tuple[str, ...]`): columns of the data set that it reads in addition to `input_ids`.
    """

    columns: tuple[str, ...] = ()

    def __call__(
        self, row: np.ndarray, positions: np.ndarray, generator: np.random.Generator, **columns
    ) -> np.ndarray:
        """Replacements for `row[positions]`.

        Args:
            row (`int64` array of shape `(tokens,)`): an uncorrupted sequence with its special tokens.
            positions (`int64` array of shape `(replaced,)`): positions to replace, never of special tokens.
            generator (`np.random.Generator`): the only permitted source of randomness, so that resumed runs are
                reproducible.
            **columns: the other columns of this sequence.

        Returns:
            `int64` array of shape `(replaced,)`. A replacement that equals the original counts as original.
        """
        raise NotImplementedError


class StepGenerator:
    """A generator that runs in the training step, on the training device, and is not trained."""

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
            input_ids (`torch.LongTensor` of shape `(batch, sequence)`): the masked text.
            mlm_labels (`torch.LongTensor` of shape `(batch, sequence)`): original tokens at masked positions, -100
                elsewhere.
            attention_mask (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
            progress (`float`): completed share of the training steps; 1 in evaluation.
            token_type_ids (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): the segments.

        Returns:
            `torch.LongTensor` of shape `(masked tokens,)`, in the order of `mlm_labels != -100`. Random numbers must
            come from torch's generators, which a resumed run restores.
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
        """[`propose`] at the end of training, `draws` times: `torch.LongTensor` of shape `(masked tokens, draws)`."""
        several = [self.propose(input_ids, mlm_labels, attention_mask, 1.0, token_type_ids) for _ in range(draws)]
        return torch.stack(several, dim=1)

    def flops(self, batch_size: int, sequence_length: int) -> float:
        """FLOPs of the proposals of one step, in the convention of [`flops.step_flops`]."""
        return 0.0

    def corrupt(self, inputs: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor]:
        """The masked batch `inputs` with corrupted `input_ids` and with `labels`, 1 where a token differs from the
        original, else 0."""
        input_ids, mlm_labels = inputs["input_ids"], inputs["mlm_labels"]
        proposals = self.propose(
            input_ids, mlm_labels, inputs.get("attention_mask"), progress, inputs.get("token_type_ids")
        )
        corrupted, labels = replace_tokens(input_ids, mlm_labels, proposals)
        return {**inputs, "input_ids": corrupted, "labels": labels}

    def for_evaluation(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> "StepGenerator":
        """The generator for this masked evaluation batch. It must not change the state of the training generator."""
        return self

    def state_dict(self) -> dict[str, torch.Tensor]:
        """State of the generator, which is saved with every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]):
        """Restore a state that [`state_dict`] returned."""
