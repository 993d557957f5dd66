"""A trained masked language model beside the one in training: a frozen generator, or a reference to score with."""

from functools import lru_cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerBase

from ..errors import UsageError
from ..runtime.cpu_kernels import suit_attention


class MaskedLanguageModel:
    """The generator of one of our checkpoints, or any masked language model that Transformers loads. Never trained.

    Args:
        folder (`str`): of the checkpoint, or its name on the Hub; with its tokenizer.
        tokenizer: must have the same vocabulary.
        device (`torch.device`).

    Raises:
        UsageError: if it cannot be loaded, is one of our checkpoints without a masked language model, or numbers its
            tokens otherwise.
    """

    def __init__(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase, device: torch.device | str = "cpu"):
        try:
            same_tokens = AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
            model = AutoModelForMaskedLM.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"cannot load a masked language model from {folder}: {str(error).splitlines()[0]}"
            ) from error
        if not same_tokens:
            raise UsageError(f"the tokenizer in {folder} has another vocabulary than this run's")
        suit_attention(model, device)
        self._model = model.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def logits(
        self,
        input_ids: torch.Tensor,
        masked: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits, fp32 of shape `(masked tokens, vocab_size)`, where `masked`, a `torch.BoolTensor` of shape
        `(batch, sequence)`, is true. A model that knows one segment alone reads no `token_type_ids`."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None and getattr(self._model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = token_type_ids
        if not hasattr(self._model, "generator_lm_head"):
            return self._model(**inputs).logits[masked].float()
        # ELECTRA's and ours: the other tokens need no prediction.
        states = self._model.electra(**inputs).last_hidden_state[masked]
        return self._model.generator_lm_head(self._model.generator_predictions(states)).float()

    @lru_cache  # noqa: B019  there is one of these a run
    def flops(self, length: int, num_masked: int) -> int:
        """Operations of one forward pass of one sequence, as `torch.utils.flop_counter` counts them."""
        ids = torch.zeros(1, length, dtype=torch.long, device=self._model.device)
        masked = torch.arange(length, device=ids.device)[None] < num_masked
        with FlopCounterMode(display=False) as counter:
            self.logits(ids, masked)
        return counter.get_total_flops()
