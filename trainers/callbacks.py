"""What happens between the steps, and what the terminal shows of it."""

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback


class NewEpochCallback(TrainerCallback):
    """New masks every epoch. Called before the loader starts, so that its workers see it."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        if hasattr(self.trainer.data_collator, "set_epoch"):
            # A run resumed in the middle of an epoch begins with a fraction here.
            self.trainer.data_collator.set_epoch(int(state.epoch or 0))
        self.trainer.stopwatch.lap()


class OneLineProgressCallback(ProgressCallback):
    """Transformers' progress bar, with the numbers of a step on one line of words instead of a long dictionary."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and (line := one_line(logs)):
            self.training_bar.write(f"step {state.global_step}/{state.max_steps}  {line}")


def one_line(logs: dict) -> str:
    """The numbers of a training step or of an evaluation as a line of text; empty for anything else."""
    kept = [share for name, share in logs.items() if name.startswith("kept_layer_")]
    shown = (
        ("loss", "loss {:.2f}"),
        ("discriminator_loss", "discriminator {:.4f}"),
        ("exit_loss", "exits {:.4f}"),
        ("generator_loss", "generator {:.3f}"),
        ("eval_roc_auc", "held out: ROC-AUC {:.4f}"),
        ("eval_average_precision", "average precision {:.4f}"),
        ("learning_rate", "lr {:.2e}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
    )
    parts = [text.format(logs[name]) for name, text in shown if name in logs]
    if kept:
        parts.append(f"{sum(kept) / len(kept):.0%} of tokens x layers computed")
    return "  ".join(parts)
