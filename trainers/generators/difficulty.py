"""How hard a generator makes it for the discriminator: what is measured of it, and when to say that it is wrong.

Replacements that are too easy teach nothing once they are told from originals; those of a generator that is too strong
are mostly the originals themselves, or as good as them.
"""

import logging
from collections.abc import Callable

import torch
from transformers import TrainerCallback

from .masked_lm import MaskedLanguageModel


logger = logging.getLogger(__name__)

# When to give the alarm, on means over the steps between two log lines.
TOO_EASY_AUC, TOO_STRONG_AUC, TOO_STRONG_EQUAL_RATE = 0.98, 0.55, 0.6
# The first steps say nothing yet: this share of them, and at most so many.
EARLY, MOST_EARLY = 0.05, 1000
# A small discriminator tells nothing for a while, whatever the generator: in this share of the steps that is no sign.
PLATEAU = 1 / 3
# With `corpus_init` it is one after so many tokens: of the runs in benchmarks/results, all that ended at a ROC-AUC of
# 0.6 or more were above 0.55 for good by 1.9 million (tests/trainers/generators/test_difficulty.py reads them).
PLATEAU_TOKENS = 2_000_000


class Difficulty:
    """Measures of a generator's replacements, summed over batches.

    Args:
        reference ([`MaskedLanguageModel`], *optional*): judges how likely replacements are in their places.
        mask_token_id (`int`): what it is shown there.
    """

    def __init__(self, reference: MaskedLanguageModel | None, mask_token_id: int):
        self.reference, self.mask_token_id = reference, mask_token_id
        self.restart()

    def restart(self):
        """Forget what was measured."""
        self.sums = torch.zeros(5, dtype=torch.float64)

    @torch.no_grad()
    def add(self, corrupted_ids, mlm_labels, attention_mask, token_type_ids=None):
        """Take in a batch; all `torch.LongTensor` of shape `(batch, sequence)`, `mlm_labels` -100 where nothing was
        chosen."""
        chosen = mlm_labels != -100
        before, after = mlm_labels[chosen], corrupted_ids[chosen]
        replaced = after != before
        found = [chosen.sum(), (~replaced).sum(), replaced.sum()]
        if self.reference is not None:
            shown = corrupted_ids.masked_fill(chosen, self.mask_token_id)
            logs = self.reference.logits(shown, chosen, attention_mask, token_type_ids).log_softmax(dim=-1)
            found += [logs.gather(1, ids[:, None])[:, 0][replaced].sum() for ids in (after, before)]
        self.sums[: len(found)] += torch.stack([value.double().cpu() for value in found])

    def measures(self) -> dict[str, float]:
        """`generator_equal_rate`, the share of the chosen tokens whose replacement is the original; and with a
        reference `replacement_log_probability`, the mean in nats that it gives replacements that are not, all chosen
        tokens of the sequence masked, and `original_log_probability`, what it gives the originals there. Empty if
        there was nothing to measure."""
        chosen, equal, replaced, *logs = self.sums.tolist()
        if not chosen:
            return {}
        measured = {"generator_equal_rate": equal / chosen}
        if self.reference is not None and replaced:
            names = ("replacement_log_probability", "original_log_probability")
            measured |= {name: total / replaced for name, total in zip(names, logs, strict=True)}
        return measured


class DifficultyCallback(TrainerCallback):
    """Says once each in the log of the process that the generator is too easy, or too strong, and not in the first
    steps.

    Args:
        tokens_of_step: returns the tokens of a step; left out where they are not known.
    """

    def __init__(self, tokens_of_step: Callable[[], int] | None = None):
        self.said = set()
        self.tokens_of_step = tokens_of_step

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        auc, equal = logs.get("discriminator_auc"), logs.get("generator_equal_rate", 0.0)
        if auc is None or (model is not None and model.config.discriminator_weight == 0):
            return
        if state.global_step <= min(EARLY * state.max_steps, MOST_EARLY):
            return
        if auc > TOO_EASY_AUC:
            self._say(
                f"the generator is too easy: the discriminator's ROC-AUC is {auc:.3f} (above {TOO_EASY_AUC}), so "
                "there is little left to learn from it; try a stronger one"
            )
        elif equal > TOO_STRONG_EQUAL_RATE:
            self._say(
                f"the generator is too strong: {equal:.0%} of its replacements are the original (above "
                f"{TOO_STRONG_EQUAL_RATE:.0%}), so few tokens are replaced; try a smaller one"
            )
        elif auc < TOO_STRONG_AUC and self._is_late(args, state):
            self._say(
                f"the generator is too strong, or learning has stalled: after {state.global_step} of "
                f"{state.max_steps} steps the discriminator's ROC-AUC is {auc:.3f} (below {TOO_STRONG_AUC})"
            )

    def _is_late(self, args, state) -> bool:
        """Whether a run should tell replaced tokens by now."""
        if state.global_step > PLATEAU * state.max_steps:
            return True
        starts_ahead = getattr(args, "corpus_init", False) and self.tokens_of_step is not None
        return starts_ahead and state.global_step * self.tokens_of_step() > PLATEAU_TOKENS

    def _say(self, message: str):
        kind = message.split(":")[0]
        if kind not in self.said:
            self.said.add(kind)
            logger.warning(message)
