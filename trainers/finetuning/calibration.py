"""How certain must an exit head be? Temperatures and thresholds of a fine-tuned model, picked on held-out examples.

    from modeling_electra_exit.trainers.calibration import calibrate_exits
    calibrate_exits(model, held_out, max_accuracy_drop=0.005)
    model.save_pretrained(folder)  # or push_to_hub: the thresholds are in the config

and, for classification of texts and of their words on the command line, `electra-exit calibrate`.
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


CONFIDENCE = 0.95  # with which the drop in accuracy is bounded
CUTS = 20  # quantiles of an exit's certainty that are tried as its threshold
TIMED_PASSES = 3
TIMED_BATCHES = 32


@dataclass
class Point:
    """What thresholds do on the examples.

    thresholds (`list[float]`): one an exit.
    accuracy (`float`): share of right predictions.
    drop_bound (`float`): upper bound of the drop from the full depth's accuracy, see [`drop_bound`].
    depth (`float`): layers that an item takes, the mean, as a share of all.
    """

    thresholds: list[float]
    accuracy: float
    drop_bound: float
    depth: float


@dataclass
class Calibration:
    """What [`calibrate_exits`] found; the first five fields are in the model's config too.

    criterion, exit_layers, num_hidden_layers, thresholds, temperatures: see [`ElectraEarlyExitConfig`].
    calibration_error_before, calibration_error_after (`list[float]`): expected calibration error of each exit head,
        over 15 bins, without and with its temperature.
    exit_accuracy (`list[float]`): of each exit head, had everybody left there.
    full_accuracy, accuracy (`float`): of the full depth and of the exits, as run.
    drop_bound (`float`): upper bound of their difference on other examples of the kind, see [`drop_bound`].
    depth (`float`): layers that an item takes, the mean, as a share of all.
    full_examples_per_second, examples_per_second (`float`): medians of passes over the first batches, in turn.
    curve (`list[Point]`): from full depth to all items exiting at the first exit, predicted from the full depth's
        logits. For tokens that is an approximation, since those that stay see frozen neighbours; `accuracy` is not.
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
    """Pick temperatures and thresholds for a fine-tuned model's exits and set them in its config.

    Each exit head gets the temperature with the lowest cross-entropy (Guo et al., 2017, arXiv 1706.04599). Thresholds
    start where nothing exits, and step by step that one falls which saves most layers for the accuracy it costs. The
    last point on the way is taken before the first whose drop might be above `max_accuracy_drop`, by an upper bound
    with 95 % confidence ([`drop_bound`]): examples that all agree prove no more than their number can.

    Args:
        model: for sequence classification (one label or several), token classification or multiple choice, with exits.
        dataset (`Dataset`): held-out examples as `Trainer` takes them, with `labels`. Never those trained on.
        max_accuracy_drop (`float`): how much accuracy, absolute, the exits may cost, by that bound. For several labels
            and for tokens, the accuracy of the single labels.
        criterion (`str`): a key of `CRITERIA`.
        data_collator (*optional*): left out, pads with the tokenizer of the folder that the model came from.
        one_for_all (`bool`): one threshold for all exits, as DeeBERT has; with patience it is always so.

    Raises:
        ValueError: for a model without exits or with untrained exit heads, a regression, a task without `labels`, an
            unknown criterion, or fewer examples than can bound the drop that low.
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
    """Of everything that has a label: logits of each exit head and of the final head, (items, predictions, classes);
    labels, (items, predictions); and the number of its example, an array (items,)."""
    found, examples, start = [], [], 0
    for batch in batches:
        batch = {name: value.to(model.device) for name, value in batch.items()}
        if "labels" not in batch:
            raise ValueError("calibration needs examples with `labels`")
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
    """Share of an item's predictions that are right, (items,)."""
    return (logits.argmax(dim=-1) == labels).float().mean(dim=-1).numpy()


def best_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """What the logits are to be divided by for the lowest cross-entropy, between e^-3 and e^3."""

    def loss(log_temperature):
        scaled = logits.flatten(0, 1) / np.exp(log_temperature)
        return F.cross_entropy(scaled, labels.flatten()).item()

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def expected_calibration_error(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Over 15 bins of the largest probability: "is the prediction right?" is a question with two answers, too."""
    probabilities, predictions = logits.softmax(dim=-1).max(dim=-1)
    metric = metrics.load("replaced_token_detection")
    right = (predictions == labels).long()
    found = metric.compute(predictions=probabilities.flatten(), references=right.flatten(), from_logits=False)
    return found["calibration_error"]


def certainties(criterion: str, exits: list[torch.Tensor]) -> np.ndarray:
    """How certain each exit is of each item, larger is surer, (exits, items): an item exits above the exit's cut."""
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
    """The config's threshold at which items exit whose certainty is above `cut`."""
    return {"confidence": cut, "entropy": abs(cut), "patience": cut + 1}[criterion]


def cuts_of(criterion: str, certainty: np.ndarray) -> np.ndarray:
    """The cuts worth trying, from where no item exits to where all exit that can."""
    if criterion == "patience":
        return np.arange(certainty.max() + 1, -1, -1)
    never = {"confidence": 1.0, "entropy": 0.0}[criterion]
    quantiles = np.quantile(certainty, np.linspace(1, 0, CUTS + 1), method="higher")
    return np.unique([never, *quantiles, certainty.min() - 1e-3])[::-1]


def outcome(certainty: np.ndarray, right: np.ndarray, depths: np.ndarray, cuts: Sequence[float]):
    """The answers (items,), and the mean depth, where items exit at the first exit that is certain above its cut."""
    exits = np.concatenate([certainty > np.asarray(cuts)[:, None], np.ones((1, certainty.shape[1]), bool)])
    exit_taken = exits.argmax(axis=0)
    return right[exit_taken, np.arange(right.shape[1])], float(depths[exit_taken].mean())


def drop_bound(answers: np.ndarray, full: np.ndarray, examples: np.ndarray) -> float:
    """Upper bound, with 95 % confidence, of how much more often the full depth is right on examples of this kind.

    For n examples whose drops have the mean d and the mean square s, it is d + x with n x^2 = z^2 s + L x. Without a
    disagreement, that is L / n for L = -ln 0.05, the rule of three; with many, it is the normal distribution's
    quantile z; where answers are only lost, it is Clopper and Pearson's exact bound within 1 %. Tokens of one text
    are no independent evidence, so that its drop counts once, as a whole; a text with more tokens weighs more.

    Args:
        answers, full: how right the exits and the full depth are, (items,).
        examples: the number of each item's example, (items,).
    """
    lost = np.bincount(examples, full - answers)
    sizes = np.bincount(examples)
    drops = lost[sizes > 0] / sizes[sizes > 0].mean()
    number, unseen = len(drops), unseen_drop(sizes)
    known = norm.ppf(CONFIDENCE) ** 2 * np.square(drops).mean() / number
    return float(drops.mean() + unseen / 2 + math.sqrt(unseen**2 / 4 + known))


def unseen_drop(sizes: np.ndarray) -> float:
    """How large a drop, with 95 % confidence, may hide in examples of which none shows any. `sizes` (examples,): how
    many items each example has."""
    sizes = sizes[sizes > 0]
    return float(-math.log(1 - CONFIDENCE) * np.square(sizes).sum() / sizes.sum() ** 2)


def check_size(sizes: np.ndarray, max_drop: float):
    """Raises: ValueError if so few examples can bound no drop as low as `max_drop`."""
    if (unseen := unseen_drop(sizes)) > max_drop:
        needed = "" if max_drop <= 0 else f"give about {math.ceil(len(sizes) * unseen / max_drop)} examples, or "
        raise ValueError(
            f"`max_accuracy_drop` must be at least {unseen:.4f} for {len(sizes)} examples, which cannot bound a drop "
            f"below that with {CONFIDENCE:.0%} confidence, got {max_drop}: {needed}allow a larger drop"
        )


def speed_accuracy_curve(
    criterion: str,
    certainty: np.ndarray,
    right: np.ndarray,
    examples: np.ndarray,
    depths: np.ndarray,
    one_for_all: bool,
) -> list:
    """(cuts, accuracy, bound of its drop, depth) from full depth down. Arguments (exits, items), (exits + 1, items),
    (items,), (exits + 1,)."""

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
                # One item wrong is the least that an error can cost; what costs nothing goes by what it saves.
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
    """The last point, on the way down from full depth, before the first that might cost more than `max_drop`; and how
    right it was when run and not only predicted, (items,).

    To look on behind the first that fails would be to try again until chance helps. `full` (items,) is how right the
    full depth is.
    """
    allowed = list(takewhile(lambda point: point.drop_bound <= max_drop + 1e-9, points[1:]))
    for point in reversed(allowed):
        answers = run(model, batches, point.thresholds)
        if drop_bound(answers, full, examples) <= max_drop + 1e-9:
            return point, answers
    return points[0], run(model, batches, points[0].thresholds)  # full depth


@torch.inference_mode()
def run(model, batches, thresholds: list[float] | None) -> np.ndarray:
    """Share of each item's predictions that are right with these thresholds, as run, (items,)."""
    model.config.inference_exit_thresholds = thresholds
    right = []
    for batch in batches:
        inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
        logits = model.predictions(model(**inputs).logits.float()).cpu()
        labels, labelled = labels_like(logits, batch["labels"])
        right.append(is_right(logits[labelled], labels[labelled]))
    return np.concatenate(right)


def time_in_turn(model, batches, thresholds: list[float]) -> list[float]:
    """Seconds of a pass at full depth and of one with exits, the medians of passes in turn."""
    seconds: dict[tuple[float, ...] | None, list[float]] = {None: [], tuple(thresholds): []}
    for _ in range(TIMED_PASSES):
        for each, times in seconds.items():
            start = time.perf_counter()
            run(model, batches, None if each is None else list(each))
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds.values()]


def load_classifier(folder: Path):
    """A fine-tuned classifier of texts or of words, and its tokenizer.

    Raises:
        UsageError: if there is none.
    """
    if lack := lacks_model(folder):
        raise UsageError(lack)
    config = read_config(str(folder))
    kind = (config.architectures or ["a model of no known class"])[0]
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
    """Labelled examples of a file as the model takes them.

    Args:
        columns: those that are named; what is left out is guessed.

    Raises:
        DataError: for a file that cannot be read, a column that is not there, or a label that the model has not.
    """
    task, rows = read_examples_of(task_of(config), str(path), columns)
    return encode(rows, task, tokenizer, config.max_position_embeddings)


def summary(found: Calibration) -> str:
    """The calibration as a table and two lines."""
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
        f"with {CONFIDENCE:.0%} confidence at most {found.drop_bound:.4f}), "
        f"{found.examples_per_second:.1f} examples/s ({speed:.2f} times), "
        f"{found.depth:.0%} of the layers",
    ])  # fmt: skip


def draw_curve(found: Calibration, path: Path) -> None:
    """Accuracy against depth: the thresholds' curve, every exit head alone, and the point chosen."""
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
