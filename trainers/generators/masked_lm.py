"""A pre-trained masked language model that serves as a frozen generator, or as a reference for scoring."""

from functools import lru_cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerBase

from modeling_electra_exit.modeling_electra_exit import ChosenTokens

from ..errors import UsageError
from ..runtime.cpu_kernels import suit_attention


class MaskedLanguageModel:
    """The generator of a checkpoint of this package, or any masked language model that Transformers can load. It is
    not trained.

    Args:
        folder (`str`): folder or Hub id of the checkpoint, with its tokenizer.
        tokenizer: the run's tokenizer, which must have the same vocabulary.
        device (`torch.device`): where to run the model.

    Raises:
        UsageError: if the checkpoint cannot be loaded, is a checkpoint of this package without a masked language
            model, or has another vocabulary.
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
            raise UsageError(f"the tokenizer in {folder} must have the same vocabulary as that of this run")
        suit_attention(model, device)
        self._model = model.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def logits(
        self,
        input_ids: torch.Tensor,
        chosen: ChosenTokens,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of the chosen tokens.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, sequence)`): the masked text.
            chosen ([`ChosenTokens`]): the tokens of `input_ids` to predict.
            attention_mask (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
            token_type_ids (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): the segments; ignored by
                models with a single token type.

        Returns:
            `torch.FloatTensor` of shape `(chosen tokens, vocab_size)`, fp32.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None and getattr(self._model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = token_type_ids
        if not hasattr(self._model, "generator_lm_head"):
            return chosen.take(self._model(**inputs).logits).float()
        # ELECTRA's generator and that of this package: skip the output layer for all other tokens.
        states = chosen.take(self._model.electra(**inputs).last_hidden_state)
        return self._model.generator_lm_head(self._model.generator_predictions(states)).float()

    @lru_cache  # noqa: B019  there is one of these a run
    def flops(self, length: int, num_masked: int) -> int:
        """Operations of one forward pass of one sequence, as `torch.utils.flop_counter` counts them."""
        ids = torch.zeros(1, length, dtype=torch.long, device=self._model.device)
        chosen = ChosenTokens(torch.arange(num_masked, device=ids.device), ids[0, :num_masked])
        with FlopCounterMode(display=False) as counter:
            self.logits(ids, chosen)
        return counter.get_total_flops()
