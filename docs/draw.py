"""Draw the figures of README.md and docs/ from the files in benchmarks/results.

python -m docs.draw
"""

import hashlib
import json
import math
import random
from pathlib import Path
from statistics import mean

from docs.measurements import ROOT, depth_times, study, time_to_quality_curve
from research.results import curve, held_out_auc


FIGURES = ROOT / "docs" / "figures"
# Okabe and Ito's colors, which are distinguishable with any color blindness and dark enough for lines on white.
BLUE, ORANGE, GREEN, GREY, LIGHT = "#0072B2", "#D55E00", "#009E73", "#555555", "#E4E4E4"
ARMS = {"dense": ("no exits", ORANGE), "random_one_exit_early": ("default exits", BLUE)}


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({
        "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "docs",
        "font.family": "DejaVu Sans",
    })  # fmt: skip
    from matplotlib import pyplot

    return pyplot


def overview_data() -> dict:
    """The share of tokens that each layer computes, and the learning curves, from the exits study."""
    arms = study("exits", "narrow")
    curves = {arm: [curve(result) for result in arms[arm]] for arm in ARMS}
    return {"kept": arms["random_one_exit_early"][0]["kept_share"], "curves": curves}


def fingerprint(data) -> str:
    """A hash of the data of a figure. It is stored in the figure's metadata and compared by a test."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def save(figure, name: str, data) -> None:
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None, "Description": fingerprint(data)})


def draw_overview() -> None:
    data = overview_data()
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(1, 1.15))
    _draw_tokens(left, data["kept"])
    for arm, (label, color) in ARMS.items():
        runs = data["curves"][arm]
        for run in runs:
            right.plot([s / 60 for s in run["seconds"]], run["score"], color=color, alpha=0.25, linewidth=0.8)
        seconds, scores = (
            [mean(at) for at in zip(*(run[axis] for run in runs), strict=True)] for axis in ("seconds", "score")
        )
        right.plot(
            [s / 60 for s in seconds], scores, color=color, linewidth=2.2, label=f"{label} (mean of {len(runs)} seeds)"
        )
        right.plot(seconds[-1] / 60, scores[-1], "o", color=color)
    right.set(xlabel="minutes of one CPU thread", ylabel="ROC-AUC on held-out text", ylim=(0.75, 0.9))
    right.set_title("Quality against time", loc="left", fontweight="bold")
    right.legend(loc="lower right", frameon=False)
    save(figure, "overview", data)


def _draw_tokens(plot, kept: list[float], tokens: int = 24) -> None:
    from matplotlib.patches import Rectangle

    chance, order = random.Random(8), list(range(1, tokens))
    chance.shuffle(order)
    for layer, share in enumerate(kept):
        continuing = {0, *order[: math.ceil(share * tokens) - 1]}
        for token in range(tokens):
            color = BLUE if token in continuing else LIGHT
            plot.add_patch(Rectangle((token + 0.08, layer + 0.1), 0.84, 0.8, color=color, linewidth=0))
    plot.set(xlim=(0, tokens), ylim=(0, len(kept)), xlabel="tokens of a sequence", xticks=[])
    plot.set_yticks([layer + 0.5 for layer in range(len(kept))], [f"{layer + 1}" for layer in range(len(kept))])
    plot.set_ylabel("layer")
    plot.spines[["left", "bottom"]].set_visible(False)
    plot.tick_params(length=0)
    plot.set_title("Computed tokens (blue), exits active", loc="left", fontweight="bold")


LOOPS = {
    "plain": ("plain loop", ORANGE),
    "electra-pytorch": ("electra-pytorch", GREY),
    "ours": ("electra-exit, also four layers", BLUE),
}


def loops_data() -> dict:
    """Seconds and ROC-AUC of the plain loops at their best rates and of our run."""
    return {arm: time_to_quality_curve(arm) for arm in LOOPS}


def draw_time_to_quality() -> None:
    data = loops_data()
    figure, plot = pyplot().subplots(figsize=(6, 3.6), layout="constrained")
    for arm, (label, color) in LOOPS.items():
        seconds, scores = data[arm]
        plot.plot([s / 60 for s in seconds], scores, color=color, linewidth=2.2, label=label)
        plot.plot(seconds[-1] / 60, scores[-1], "o", color=color)
    plot.set(xlabel="minutes of one CPU thread", ylabel="ROC-AUC on held-out text", ylim=(0.48, 0.9))
    plot.legend(loc="center right", frameon=False)
    save(figure, "time_to_quality", data)


# Color, marker and label of the study's arms.
DEPTH_ARMS = {
    "2_layers": (BLUE, "o", "2 layers"),
    "4_layers": (GREEN, "o", "4 layers"),
    "8_layers_grown": (ORANGE, "^", "2, then 4, then 8 layers"),
    "8_layers_router": (ORANGE, "D", "8 layers, learned router"),
    "8_layers_exits": (ORANGE, "s", "8 layers with exits"),
    "8_layers": (ORANGE, "o", "8 layers"),
    "12_layers": (GREY, "o", "12 layers"),
}


def depth_data() -> dict:
    """Seconds and ROC-AUC of each run of the study of depths, by arm."""
    points = {arm: [] for arm in DEPTH_ARMS}
    for seconds, arms in depth_times().values():
        for arm in points.keys() & arms.keys():
            points[arm] += [[seconds, held_out_auc(result)] for result in arms[arm]]
    return points


def draw_depth() -> None:
    data = depth_data()
    figure, plot = pyplot().subplots(figsize=(7, 3.8), layout="constrained")
    for arm, (color, marker, label) in DEPTH_ARMS.items():
        times = sorted({seconds for seconds, _ in data[arm]})
        means = [mean(score for seconds, score in data[arm] if seconds == at) for at in times]
        plot.plot(times, means, color=color, marker=marker, markersize=5, linewidth=2, label=label)
        plot.plot(*zip(*data[arm], strict=True), marker, color=color, markersize=5)
    plot.set(xlabel="seconds of training, one CPU thread", ylabel="ROC-AUC on held-out text", xscale="log")
    times = sorted({seconds for points in data.values() for seconds, _ in points})
    plot.set_xticks(times, [f"{seconds:.0f}" for seconds in times])
    plot.minorticks_off()
    plot.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save(figure, "depth", data)


# From the top: each box may import those below it.
ROOMS = (
    (("cli", "the commands"),),
    (("finetuning", "tasks, calibration, scoring"),),
    (("pretraining", "collator, Trainer, one run"),),
    (("sharing", "the Hub, cards"), ("generators", "what replaces tokens")),
    (("data", "text, tokenizers, packing"),),
    (("runtime", "optimizers, checkpoints, processes"), ("metrics", "quality"), ("errors", "one sentence")),
)
MODEL = (
    (("heads", "fine-tuning, exits at inference"), ("model", "encoder, generator, objective")),
    (("exit state", "measurements"), ("configuration", "fields")),
    (("exit policy", "which tokens continue"), ("exit criteria", "when an example is finished")),
)


def draw_architecture() -> None:
    plt = pyplot()
    figure, plot = plt.subplots(figsize=(8, 6.4), layout="constrained")
    top = _draw_rows(plot, MODEL, 0, "#DCEBF5", "modeling_electra_exit: travels with a checkpoint")
    top = _draw_rows(plot, ROOMS, top + 0.35, "#FBE9DF", "trainers: makes a checkpoint")
    plot.annotate(
        "", xy=(-0.25, 0.3), xytext=(-0.25, top - 0.3), arrowprops={"arrowstyle": "->", "color": GREY, "lw": 1.5}
    )
    plot.text(-0.45, top / 2, "imports", rotation=90, va="center", ha="center", color=GREY)
    plot.set(xlim=(-0.7, 10.1), ylim=(-0.1, top + 0.1))
    plot.axis("off")
    save(figure, "architecture", [ROOMS, MODEL])


def _draw_rows(plot, rows, bottom: float, color: str, title: str) -> float:
    """Draw rows of boxes from top to bottom below a title. Returns the position of their upper end."""
    from matplotlib.patches import FancyBboxPatch

    top = bottom + len(rows) + 0.45
    plot.add_patch(
        FancyBboxPatch((0, bottom), 10, top - bottom, boxstyle="round,pad=0,rounding_size=0.1", fc=color, ec="none")
    )
    plot.text(0.2, top - 0.25, title, va="center", fontweight="bold")
    for row, boxes in enumerate(rows):
        y, width = top - 0.45 - (row + 1), 9.7 / len(boxes)
        for column, (name, text) in enumerate(boxes):
            x = 0.15 + column * width
            frame = "round,pad=0,rounding_size=0.08"
            corner, size = (x + 0.05, y + 0.07), (width - 0.1, 0.85)
            plot.add_patch(FancyBboxPatch(corner, *size, boxstyle=frame, fc="white", ec="#AAAAAA", lw=0.8))
            plot.text(x + width / 2, y + 0.63, name, ha="center", va="center", fontsize=11)
            plot.text(x + width / 2, y + 0.3, text, ha="center", va="center", fontsize=9, color=GREY)
    return top


# Figure -> what it shows.
DATA = {
    "overview": overview_data,
    "time_to_quality": loops_data,
    "depth": depth_data,
    "architecture": lambda: [ROOMS, MODEL],
}


def drawn(name: str) -> Path:
    return FIGURES / f"{name}.svg"


if __name__ == "__main__":
    draw_overview()
    draw_time_to_quality()
    draw_depth()
    draw_architecture()
