"""Difficulty of a generator's replacements: measures, and warnings.

Replacements that are too easy to detect give no further training signal. A generator that is too strong mostly
proposes the original tokens, or equally plausible ones.
"""

import logging
from collections.abc import Callable

import torch
from transformers import TrainerCallback

from modeling_electra_exit.modeling_electra_exit import chosen_tokens

from .masked_lm import MaskedLanguageModel


logger = logging.getLogger(__name__)

# Limits for warnings, applied to means over the steps between two log lines.
TOO_EASY_AUC, TOO_STRONG_AUC, TOO_STRONG_EQUAL_RATE = 0.98, 0.55, 0.6
# No warnings in the first steps: this share of the run, but at most this number.
EARLY, MOST_EARLY = 0.05, 1000
# A small discriminator starts with a plateau, whatever the generator. For this share of the run, a low ROC-AUC is
# normal.
PLATEAU = 1 / 3
# With `corpus_init`, a low ROC-AUC is abnormal after this many tokens: in benchmarks/results, every run with a final
# ROC-AUC of at least 0.6 stayed above 0.55 from 1.9 million tokens on (tests/trainers/generators/test_difficulty.py).
PLATEAU_TOKENS = 2_000_000


class Difficulty:
    """Measures of a generator's replacements, accumulated over batches.

    Args:
        reference ([`MaskedLanguageModel`], *optional*): model that scores the likelihood of replacements.
        mask_token_id (`int`): token that replaces the chosen tokens in the reference's input.
    """

    def __init__(self, reference: MaskedLanguageModel | None, mask_token_id: int):
        self.reference, self.mask_token_id = reference, mask_token_id
        self.restart()

    def restart(self):
        """Reset the measures."""
        self.sums = torch.zeros(5, dtype=torch.float64)

    @torch.no_grad()
    def add(self, corrupted_ids, mlm_labels, attention_mask, token_type_ids=None):
        """Add a batch. All arguments are `torch.LongTensor` of shape `(batch, sequence)`. `mlm_labels` holds the
        original tokens at chosen positions, -100 elsewhere."""
        chosen = mlm_labels != -100
        before, after = mlm_labels[chosen], corrupted_ids[chosen]
        replaced = after != before
        found = [chosen.sum(), (~replaced).sum(), replaced.sum()]
        if self.reference is not None:
            shown = corrupted_ids.masked_fill(chosen, self.mask_token_id)
            logs = self.reference.logits(shown, chosen_tokens(mlm_labels), attention_mask, token_type_ids)
            logs = logs.log_softmax(dim=-1)
            found += [logs.gather(1, ids[:, None])[:, 0][replaced].sum() for ids in (after, before)]
        self.sums[: len(found)] += torch.stack([value.double().cpu() for value in found])

    def measures(self) -> dict[str, float]:
        """The measures so far; empty without chosen tokens.

        Returns:
            `generator_equal_rate`: share of the chosen tokens whose replacement equals the original. With a reference
            also its mean log probability in nats, with all chosen tokens masked, of replacements that differ from the
            original (`replacement_log_probability`), and of the originals at the same positions
            (`original_log_probability`).
        """
        chosen, equal, replaced, *logs = self.sums.tolist()
        if not chosen:
            return {}
        measured = {"generator_equal_rate": equal / chosen}
        if self.reference is not None and replaced:
            names = ("replacement_log_probability", "original_log_probability")
            measured |= {name: total / replaced for name, total in zip(names, logs, strict=True)}
        return measured


class DifficultyCallback(TrainerCallback):
    """Logs a warning, once of each kind, if the generator is too easy or too strong. Silent in the first steps.

    Args:
        tokens_of_step: returns the number of tokens in a step; `None` if it is unknown.
    """

    def __init__(self, tokens_of_step: Callable[[], int] | None = None):
        self.logged = set()
        self.tokens_of_step = tokens_of_step

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        auc, equal = logs.get("discriminator_auc"), logs.get("generator_equal_rate", 0.0)
        if auc is None or (model is not None and model.config.discriminator_weight == 0):
            return
        if state.global_step <= min(EARLY * state.max_steps, MOST_EARLY):
            return
        if auc > TOO_EASY_AUC:
            self._warn_once(
                f"the generator is too easy: the discriminator's ROC-AUC is {auc:.3f} (above {TOO_EASY_AUC}), which "
                "leaves little to learn; try a stronger generator"
            )
        elif equal > TOO_STRONG_EQUAL_RATE:
            self._warn_once(
                f"the generator is too strong: {equal:.0%} of its replacements equal the original (above "
                f"{TOO_STRONG_EQUAL_RATE:.0%}), so few tokens are replaced; try a smaller generator"
            )
        elif auc < TOO_STRONG_AUC and self._is_late(args, state):
            self._warn_once(
                f"the generator is too strong, or training has stalled: after {state.global_step} of "
                f"{state.max_steps} steps the discriminator's ROC-AUC is {auc:.3f} (below {TOO_STRONG_AUC})"
            )

    def _is_late(self, args, state) -> bool:
        """Whether the discriminator should detect replaced tokens by now."""
        if state.global_step > PLATEAU * state.max_steps:
            return True
        has_head_start = getattr(args, "corpus_init", False) and self.tokens_of_step is not None
        return has_head_start and state.global_step * self.tokens_of_step() > PLATEAU_TOKENS

    def _warn_once(self, message: str):
        kind = message.split(":")[0]
        if kind not in self.logged:
            self.logged.add(kind)
            logger.warning(message)
