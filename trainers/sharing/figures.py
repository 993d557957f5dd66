"""The figures of a model card. They require matplotlib."""

from collections.abc import Callable
from pathlib import Path

from ..runtime.figures import can_draw
from ..runtime.files import tolerated
from .records import CURVE, FIGURE, points, read_facts, read_log, scores_by_exit


def draw_figures(folder: Path, measured: dict | None = None) -> None:
    """Draw the figures of a run into its folder. A failure is logged as a warning and does not end the run.

    Args:
        folder: folder of the run.
        measured: the content of `metrics.json`, if it is not written yet.
    """
    for name, draw in (FIGURE, draw_exit_profile), (CURVE, draw_learning_curve):
        with tolerated(f"{name} of the model card"):
            _draw(draw, folder, measured, folder / name)


def _draw(draw: Callable, folder: Path, measured: dict | None, path: Path) -> None:
    try:
        figure = draw(read_facts(folder, measured), read_log(folder))
        if figure is not None:
            figure.savefig(path, dpi=110, metadata={"Software": None})
    except Exception:
        path.unlink(missing_ok=True)  # may be incomplete
        raise


def draw_exit_profile(facts: dict, log: list[dict]):
    """Plot the share of tokens computed by each layer and the ROC-AUC of each exit head. `None` without exits."""
    shares, scores = facts.get("kept_share", []), scores_by_exit(facts)
    if not scores or not can_draw():
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    left = figure.subplots()
    left.bar(range(1, len(shares) + 1), shares, color="C0", alpha=0.45)
    left.set(xlabel="layer", ylabel="share of tokens computed", ylim=(0, 1.05), xticks=range(1, len(shares) + 1))
    right = left.twinx()
    right.plot(*zip(*sorted(scores.items()), strict=True), "o-", color="C1")
    right.set_ylim(min(0.5, *scores.values()), 1)  # starts at chance, so that small differences look small
    right.set_ylabel("held-out ROC-AUC of its head", color="C1")
    return figure


def draw_learning_curve(facts: dict, log: list[dict]):
    """Plot ROC-AUC and loss against tokens for pre-training, or loss against steps for fine-tuning. `None` if the log
    has fewer than two losses."""
    scale = facts.get("training", {}).get("tokens_per_step")
    loss = points(log, "discriminator_loss" if scale else "loss", (scale or 1) / (1e6 if scale else 1))
    if len(loss) < 2 or not can_draw():
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3), layout="constrained")
    if scale is None:
        plot = figure.subplots()
    else:
        quality, plot = figure.subplots(1, 2)
        for name, style, label in (
            ("discriminator_auc", "C0-", "training batches"), ("eval_roc_auc", "C1o-", "held-out text")
        ):  # fmt: skip
            if line := points(log, name, scale / 1e6):
                quality.plot(*zip(*line, strict=True), style, label=label)
        quality.axhline(0.5, color="0.5", linestyle="--", label="chance")
        quality.set(xlabel="million tokens", ylabel="ROC-AUC")
        quality.legend()
    plot.plot(*zip(*loss, strict=True), "C0-")
    plot.set(xlabel="million tokens" if scale else "steps", ylabel="discriminator loss" if scale else "loss")
    return figure
