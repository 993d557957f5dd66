"""Choose the temperatures and thresholds of a fine-tuned model's exits on held-out examples.

    from modeling_electra_exit.trainers.finetuning.calibration import calibrate_exits
    calibrate_exits(model, held_out, max_accuracy_drop=0.005)
    model.save_pretrained(folder)  # or push_to_hub: the thresholds are in the config

`electra-exit calibrate` does this on the command line, for text and token classifiers.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
)

from modeling_electra_exit.exit_criteria import CRITERIA, confidence, prediction_entropy

from .. import metrics
from ..errors import UsageError, naming_failures
from ..runtime.loading import lacks_model, read_config, read_tokenizer
from .encoding import encode
from .examples import read_examples_of
from .tasks import Columns, task_of


CONFIDENCE = 0.95  # confidence level of the bound on the drop in accuracy
CUTS = 20  # quantiles of an exit's certainty to try as its threshold
TIMED_PASSES = 3
TIMED_BATCHES = 32


@dataclass
class Point:
    """The effect of a set of thresholds on the calibration examples.

    thresholds (`list[float]`): one per exit.
    accuracy (`float`): share of correct predictions.
    drop_bound (`float`): upper bound of the drop from full-depth accuracy, see [`drop_bound`].
    depth (`float`): mean number of layers that an item uses, as a share of all layers.
    """

    thresholds: list[float]
    accuracy: float
    drop_bound: float
    depth: float


@dataclass
class Calibration:
    """The result of [`calibrate_exits`]. The model's config also holds the first five fields.

    criterion, exit_layers, num_hidden_layers, thresholds, temperatures: see [`ElectraEarlyExitConfig`].
    calibration_error_before, calibration_error_after (`list[float]`): expected calibration error of each exit head,
        over 15 bins, without and with its temperature.
    exit_accuracy (`list[float]`): accuracy of each exit head if all items exit there.
    full_accuracy, accuracy (`float`): measured accuracy at full depth and with exits.
    drop_bound (`float`): upper bound of their difference on new examples of the same kind, see [`drop_bound`].
    depth (`float`): mean number of layers that an item uses, as a share of all layers.
    full_examples_per_second, examples_per_second (`float`): medians of alternating passes over the first batches.
    curve (`list[Point]`): from full depth to all items exiting at the first exit, predicted from the full-depth
        logits. For tokens this is approximate, since tokens that continue see frozen neighbours; `accuracy` is
        measured.
    """

    criterion: str
    exit_layers: list[int]
    num_hidden_layers: int
    thresholds: list[float]
    temperatures: list[float]
    calibration_error_before: list[float]
    calibration_error_after: list[float]
    exit_accuracy: list[float]
    full_accuracy: float
    accuracy: float
    drop_bound: float
    depth: float
    full_examples_per_second: float
    examples_per_second: float
    curve: list[Point]


def calibrate_exits(
    model,
    dataset: Dataset,
    max_accuracy_drop: float = 0.005,
    criterion: str = "confidence",
    data_collator: Callable | None = None,
    batch_size: int = 32,
    one_for_all: bool = False,
) -> Calibration:
    """Choose temperatures and thresholds for a fine-tuned model's exits and set them in its config.

    Each exit head gets the temperature with the lowest cross-entropy (Guo et al., 2017, arXiv 1706.04599). Thresholds
    start where no item exits. Each step lowers the threshold that saves the most layers per loss of accuracy. The
    result is the last step before the drop might exceed `max_accuracy_drop`, by an upper bound with 95 % confidence
    ([`drop_bound`]).

    Args:
        model: for sequence classification (one label or several), token classification or multiple choice, with exits.
        dataset (`Dataset`): held-out examples in the format of `Trainer`, with `labels`; not used for training.
        max_accuracy_drop (`float`): largest absolute drop in accuracy, by that bound. For multi-label classification
            and token classification, the accuracy of single labels.
        criterion (`str`): a key of `CRITERIA`.
        data_collator (*optional*): default: pads with the tokenizer from the folder that the model was loaded from.
        batch_size (`int`): examples per batch, also in the timed passes.
        one_for_all (`bool`): use one threshold for all exits, as DeeBERT does. Patience always has one.

    Raises:
        ValueError: if the model has no exits or untrained exit heads, the task is regression, the examples have no
            `labels` or are too few to bound the drop, or the criterion is unknown.
    """
    config = model.config
    if not config.has_exit_heads:
        raise ValueError(
            f"the model has no exits (`exit_policy` is {config.exit_policy!r}, `exit_layers` {config.exit_layers}); "
            "fine-tune it with --exit_policy random"
        )
    if criterion not in CRITERIA:
        raise ValueError(f"`criterion` must be one of {list(CRITERIA)}, got {criterion!r}")
    model.check_trained(config.exit_layers, "exit_layers", config.exit_layers)
    if data_collator is None:
        data_collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(model.name_or_path))
    config.inference_exit_thresholds = config.inference_exit_temperatures = None
    config.inference_exit_criterion = criterion
    model.eval()
    batches = list(DataLoader(dataset, batch_size, collate_fn=data_collator))
    *exits, final, labels, examples = answers_of(model, batches)
    check_size(np.bincount(examples), max_accuracy_drop)

    temperatures = [best_temperature(logits, labels) for logits in exits]
    scaled = [logits / t for logits, t in zip(exits, temperatures, strict=True)]
    right = np.stack([is_right(logits, labels) for logits in (*exits, final)])
    certainty = certainties(criterion, scaled)
    layers = np.array([*config.exit_layers, config.num_hidden_layers])
    curve = speed_accuracy_curve(criterion, certainty, right, examples, layers / layers[-1], one_for_all)
    points = [Point([float(threshold_of(criterion, cut)) for cut in cuts], *found) for cuts, *found in curve]

    config.inference_exit_temperatures = temperatures
    chosen, answers = choose(model, batches, points, right[-1], examples, max_accuracy_drop)
    timed = batches[:TIMED_BATCHES]
    seconds = time_in_turn(model, timed, chosen.thresholds)
    config.inference_exit_thresholds = chosen.thresholds
    dense_seconds, exits_seconds = (sum(len(batch["labels"]) for batch in timed) / each for each in seconds)
    return Calibration(
        criterion,
        list(config.exit_layers),
        config.num_hidden_layers,
        chosen.thresholds,
        temperatures,
        [expected_calibration_error(logits, labels) for logits in exits],
        [expected_calibration_error(logits, labels) for logits in scaled],
        right[:-1].mean(axis=1).tolist(),
        float(right[-1].mean()),
        float(answers.mean()),
        drop_bound(answers, right[-1], examples),
        chosen.depth,
        dense_seconds,
        exits_seconds,
        points,
    )


@torch.inference_mode()
def answers_of(model, batches: list[dict]) -> list:
    """Logits, labels and example numbers of all items that have a label.

    Returns:
        The logits of each exit head and of the final head, (items, predictions, classes); the labels, (items,
        predictions); and the index of each item's example, an array (items,).
    """
    found, examples, start = [], [], 0
    for batch in batches:
        batch = {name: value.to(model.device) for name, value in batch.items()}
        if "labels" not in batch:
            raise ValueError("calibration requires examples with `labels`")
        outputs = model(**batch)
        heads = [model.predictions(logits.float()) for logits in (*outputs.exit_logits, outputs.logits)]
        labels, labelled = labels_like(heads[0], batch["labels"])
        found.append([part[labelled].cpu() for part in (*heads, labels)])
        examples.append(start + labelled.nonzero()[:, 0].cpu().numpy())
        start += len(labelled)
    return [*(torch.cat(parts) for parts in zip(*found, strict=True)), np.concatenate(examples)]


def labels_like(predictions: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (items..., predictions) for logits (items..., predictions, classes), and which items have them."""
    labels = labels.long()
    labels = labels.unsqueeze(-1) if labels.dim() < predictions.dim() - 1 else labels
    return labels, (labels != -100).all(dim=-1)


def is_right(logits: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Share of each item's predictions that are correct, (items,)."""
    return (logits.argmax(dim=-1) == labels).float().mean(dim=-1).numpy()


def best_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature, between e^-3 and e^3, that minimizes the cross-entropy."""

    def loss(log_temperature):
        scaled = logits.flatten(0, 1) / np.exp(log_temperature)
        return F.cross_entropy(scaled, labels.flatten()).item()

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def expected_calibration_error(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Expected calibration error over 15 bins of the largest probability, from the metric for binary predictions:
    whether the prediction is correct is a binary label."""
    probabilities, predictions = logits.softmax(dim=-1).max(dim=-1)
    metric = metrics.load("replaced_token_detection")
    right = (predictions == labels).long()
    found = metric.compute(predictions=probabilities.flatten(), references=right.flatten(), from_logits=False)
    return found["calibration_error"]


def certainties(criterion: str, exits: list[torch.Tensor]) -> np.ndarray:
    """Certainty of each exit about each item, (exits, items). An item exits where it exceeds the exit's cut."""
    if criterion == "confidence":
        return torch.stack([confidence(logits) for logits in exits]).numpy()
    if criterion == "entropy":
        return -torch.stack([prediction_entropy(logits) for logits in exits]).numpy()
    predictions = torch.stack([logits.argmax(dim=-1) for logits in exits])
    agreements = [torch.zeros(predictions.shape[1])]
    for before, now in pairwise(predictions):
        agreements.append(torch.where((before == now).all(dim=-1), agreements[-1] + 1, 0))
    return torch.stack(agreements).numpy()


def threshold_of(criterion: str, cut: float) -> float:
    """The value in the config that makes items exit whose certainty is above `cut`."""
    return {"confidence": cut, "entropy": abs(cut), "patience": cut + 1}[criterion]


def cuts_of(criterion: str, certainty: np.ndarray) -> np.ndarray:
    """Candidate cuts, from one where no item exits to one where all items exit that can."""
    if criterion == "patience":
        return np.arange(certainty.max() + 1, -1, -1)
    never = {"confidence": 1.0, "entropy": 0.0}[criterion]
    quantiles = np.quantile(certainty, np.linspace(1, 0, CUTS + 1), method="higher")
    return np.unique([never, *quantiles, certainty.min() - 1e-3])[::-1]


def outcome(certainty: np.ndarray, right: np.ndarray, depths: np.ndarray, cuts: Sequence[float]):
    """The correctness (items,) and the mean depth if each item exits at the first exit whose certainty exceeds its
    cut."""
    exits = np.concatenate([certainty > np.asarray(cuts)[:, None], np.ones((1, certainty.shape[1]), bool)])
    exit_taken = exits.argmax(axis=0)
    return right[exit_taken, np.arange(right.shape[1])], float(depths[exit_taken].mean())


def drop_bound(answers: np.ndarray, full: np.ndarray, examples: np.ndarray) -> float:
    """Upper bound, with 95 % confidence, of the drop in accuracy from full depth on new examples of the same kind.

    For n examples whose drops have mean d and mean square s, the bound is d + x with n x^2 = z^2 s + L x, where z is
    the normal quantile and L = -ln 0.05. If no answer differs, this is the rule of three, L / n. With many differences
    it approaches the normal bound. If answers are only lost, it is within 1 % of Clopper and Pearson's exact bound.
    The tokens of a text are not independent, so a text counts as one example, weighted by its number of tokens.

    Args:
        answers, full: correctness with exits and at full depth, (items,).
        examples: the index of each item's example, (items,).
    """
    lost = np.bincount(examples, full - answers)
    sizes = np.bincount(examples)
    drops = lost[sizes > 0] / sizes[sizes > 0].mean()
    number, unseen = len(drops), unseen_drop(sizes)
    known = norm.ppf(CONFIDENCE) ** 2 * np.square(drops).mean() / number
    return float(drops.mean() + unseen / 2 + math.sqrt(unseen**2 / 4 + known))


def unseen_drop(sizes: np.ndarray) -> float:
    """The bound on the drop, with 95 % confidence, if no example shows any. `sizes` (examples,): items per example."""
    sizes = sizes[sizes > 0]
    return float(-math.log(1 - CONFIDENCE) * np.square(sizes).sum() / sizes.sum() ** 2)


def check_size(sizes: np.ndarray, max_drop: float):
    """Raises: ValueError if there are too few examples to bound the drop by `max_drop`."""
    if (unseen := unseen_drop(sizes)) > max_drop:
        needed = "" if max_drop <= 0 else f"give about {math.ceil(len(sizes) * unseen / max_drop)} examples, or "
        raise ValueError(
            f"`max_accuracy_drop` must be at least {unseen:.4f} for {len(sizes)} examples, the lowest bound that "
            f"they allow with {CONFIDENCE:.0%} confidence, got {max_drop}: {needed}allow a larger drop"
        )


def speed_accuracy_curve(
    criterion: str,
    certainty: np.ndarray,
    right: np.ndarray,
    examples: np.ndarray,
    depths: np.ndarray,
    one_for_all: bool,
) -> list:
    """The points (cuts, accuracy, bound of the drop, depth), starting from full depth.

    Args:
        certainty: (exits, items).
        right: correctness of each exit head and the final head, (exits + 1, items).
        examples: the index of each item's example, (items,).
        depths: depth of each exit as a share of all layers, (exits + 1,).
    """

    def point(cuts):
        answers, depth = outcome(certainty, right, depths, cuts)
        return cuts, float(answers.mean()), drop_bound(answers, right[-1], examples), depth

    if one_for_all or criterion == "patience":
        return [point([cut] * len(certainty)) for cut in cuts_of(criterion, certainty.reshape(-1))]
    candidates = [cuts_of(criterion, row) for row in certainty]
    cuts = [float(row[0]) for row in candidates]
    curve = [point(cuts)]
    while True:
        _, accuracy, _, depth = curve[-1]
        best, best_rate = None, 0.0
        for number, row in enumerate(candidates):
            for cut in row[row < cuts[number]]:
                moved = [*cuts[:number], float(cut), *cuts[number + 1 :]]
                answers, new_depth = outcome(certainty, right, depths, moved)
                # Assume a cost of at least one wrong item, so that free steps are ranked by the layers they save.
                rate = (depth - new_depth) / max(accuracy - answers.mean(), 1 / right.shape[1])
                if rate > best_rate:
                    best, best_rate = moved, rate
        if best is None:
            return curve
        cuts = best
        curve.append(point(cuts))


def choose(
    model, batches, points: list[Point], full: np.ndarray, examples: np.ndarray, max_drop: float
) -> tuple[Point, np.ndarray]:
    """The last point, starting from full depth, before the first whose drop might exceed `max_drop`; and its measured
    correctness, (items,).

    The search does not continue past the first failure, because a later success could be due to chance. `full`
    (items,) is the correctness at full depth.
    """
    allowed = list(takewhile(lambda point: point.drop_bound <= max_drop + 1e-9, points[1:]))
    for point in reversed(allowed):
        answers = run(model, batches, point.thresholds)
        if drop_bound(answers, full, examples) <= max_drop + 1e-9:
            return point, answers
    return points[0], run(model, batches, points[0].thresholds)  # full depth


@torch.inference_mode()
def run(model, batches, thresholds: list[float] | None) -> np.ndarray:
    """Measured share of each item's predictions that are correct with these thresholds, (items,)."""
    model.config.inference_exit_thresholds = thresholds
    right = []
    for batch in batches:
        inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
        logits = model.predictions(model(**inputs).logits.float()).cpu()
        labels, labelled = labels_like(logits, batch["labels"])
        right.append(is_right(logits[labelled], labels[labelled]))
    return np.concatenate(right)


def time_in_turn(model, batches, thresholds: list[float]) -> list[float]:
    """Seconds of a pass at full depth and with exits: medians of alternating passes."""
    seconds: dict[tuple[float, ...] | None, list[float]] = {None: [], tuple(thresholds): []}
    for _ in range(TIMED_PASSES):
        for each, times in seconds.items():
            start = time.perf_counter()
            run(model, batches, None if each is None else list(each))
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds.values()]


def load_classifier(folder: Path):
    """Load a fine-tuned text or token classifier and its tokenizer.

    Raises:
        UsageError: if the folder does not hold one.
    """
    if lack := lacks_model(folder):
        raise UsageError(lack)
    config = read_config(str(folder))
    kind = (config.architectures or ["a model of unknown class"])[0]
    auto_class = {
        "ElectraEarlyExitForSequenceClassification": AutoModelForSequenceClassification,
        "ElectraEarlyExitForTokenClassification": AutoModelForTokenClassification,
    }.get(kind)
    if auto_class is None:
        raise UsageError(
            f"{folder} holds {kind}; give a fine-tuned ElectraEarlyExitForSequenceClassification or "
            "ElectraEarlyExitForTokenClassification"
        )
    with naming_failures(str(folder)):
        return auto_class.from_pretrained(folder).eval(), read_tokenizer(str(folder))


def load_examples(path: Path, tokenizer, config, columns: Columns) -> Dataset:
    """Read and encode the labelled examples of a file.

    Args:
        columns: the columns named by the user; the others are inferred.

    Raises:
        DataError: if the file cannot be read, a column is missing, or a label is not one of the model's.
    """
    task, rows = read_examples_of(task_of(config), str(path), columns)
    return encode(rows, task, tokenizer, config.max_position_embeddings)


def summary(found: Calibration) -> str:
    """The calibration as a Markdown table and two lines."""
    lines = [
        "| exit after layer | threshold | temperature | calibration error before | after | accuracy of the head |",
        "|---|---|---|---|---|---|",
    ]
    rows = zip(
        found.exit_layers, found.thresholds, found.temperatures, found.calibration_error_before,
        found.calibration_error_after, found.exit_accuracy, strict=True,
    )  # fmt: skip
    lines += [f"| {layer} | " + " | ".join(f"{value:.4f}" for value in values) + " |" for layer, *values in rows]
    speed = found.examples_per_second / found.full_examples_per_second
    return "\n".join([
        *lines,
        "",
        f"full depth: accuracy {found.full_accuracy:.4f}, {found.full_examples_per_second:.1f} examples/s",
        f"with exits: accuracy {found.accuracy:.4f} (drop {found.full_accuracy - found.accuracy:.4f}, "
        f"at most {found.drop_bound:.4f} with {CONFIDENCE:.0%} confidence), "
        f"{found.examples_per_second:.1f} examples/s ({speed:.2f} times), "
        f"{found.depth:.0%} of the layers",
    ])  # fmt: skip


def draw_curve(found: Calibration, path: Path) -> None:
    """Plot accuracy against depth: the curve of the thresholds, each exit head alone, and the chosen point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, plot = pyplot.subplots(figsize=(5.5, 4.2), layout="constrained")
    plot.plot([p.depth for p in found.curve], [p.accuracy for p in found.curve], ".-", label=found.criterion)
    alone = [layer / found.num_hidden_layers for layer in found.exit_layers]
    plot.plot(alone, found.exit_accuracy, "x", label="all items exit at one exit")
    plot.plot(found.depth, found.accuracy, "o", fillstyle="none", markersize=10, label="chosen")
    plot.axhline(found.full_accuracy, color="k", linewidth=1, linestyle=":", label="full depth")
    plot.set(xlabel="mean share of the layers", ylabel="accuracy on the held-out examples")
    plot.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
