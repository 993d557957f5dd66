"""The measures of quality in the report of a study: their values, their errors, and whether they separate the arms."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev, variance

from modeling_electra_exit.trainers.finetuning.tasks import TASKS

from .results import Arms


TASK_TITLES = {"sst2": "SST-2", "cola": "CoLA", "mrpc": "MRPC", "rte": "RTE", "stsb": "STS-B"}


@dataclass(frozen=True)
class Measure:
    """A number by which arms are compared.

    title: of its column.
    key: the evaluation in a result's `judged`.
    metric: the number in that evaluation.
    chance: its value for a model that knows nothing, if it is the same for all data.
    downstream: whether it is a task that may be too hard for the models of a study, and is then not shown.
    """

    title: str
    key: str
    metric: str
    chance: float | None = None
    downstream: bool = False

    def value(self, result: dict) -> float | None:
        return result["judged"].get(self.key, {}).get(self.metric)

    def values(self, group: Iterable[dict]) -> list[float]:
        return [value for value in map(self.value, group) if value is not None]

    def test_error(self, result: dict) -> float | None:
        """The standard error of a run's value that comes from the size of its test set; `None` if it is not known."""
        found, value = result["judged"].get(self.key, {}), self.value(result)
        if self.key == "blimp" and value is not None:
            return sqrt(0.25 / found["pairs"])
        if self.key in TASKS and "validation_examples" in found:
            count = found["validation_examples"]
            proportion = self.metric in ("accuracy", "f1")
            return sqrt(value * (1 - value) / count) if proportion else (1 - value**2) / sqrt(count - 1)
        own = "standard_error" if self.key == "entities" else f"{self.metric}_standard_error"
        return found.get(own)


def measures_of(results: list[dict]) -> list[Measure]:
    """The measures that any of the results has."""
    judged = {key for result in results for key in result["judged"]}
    held_out = {
        key: key.removeprefix("held_out").replace("_", ", ", 1) for key in sorted(judged) if key.startswith("held_out")
    }
    measures = [Measure(f"ROC-AUC{where}", key, "roc_auc", 0.5) for key, where in held_out.items()]
    measures.append(Measure("entities", "entities", "average_precision"))
    measures += [Measure(f"average precision{where}", key, "average_precision") for key, where in held_out.items()]
    measures.append(Measure("BLiMP", "blimp", "accuracy", 0.5, downstream=True))
    measures += [Measure(title, task, TASKS[task].metrics[0], downstream=True) for task, title in TASK_TITLES.items()]
    return [measure for measure in measures if measure.key in judged]


def between_seeds(measure: Measure, arms: Arms) -> float | None:
    """The standard deviation of a measure between seeds, pooled over the arms with several seeds; `None` if
    there are none."""
    groups = [values for values in map(measure.values, arms.values()) if len(values) > 1]
    if not groups:
        return None
    return sqrt(sum(variance(values) * (len(values) - 1) for values in groups) / sum(len(v) - 1 for v in groups))


def separates(measure: Measure, arms: Arms, deviation: float | None) -> bool:
    """Whether the arms differ by more than their errors explain: whether Cochran's Q, the sum of squared deviations
    from the weighted mean in units of the standard errors, exceeds its expectation by three standard deviations.

    Args:
        measure: the measure.
        arms: the runs by arm.
        deviation: the measure's standard deviation between seeds. Without it, the errors are unknown, and the answer
            is no.
    """
    groups = [group for group in arms.values() if measure.values(group)]
    if len(groups) < 2:
        return True
    if deviation is None:
        return False
    means, weights = [], []
    for group in groups:
        values = measure.values(group)
        test = mean(measure.test_error(result) or 0.0 for result in group)
        means.append(mean(values))
        weights.append(1 / max(test**2 + deviation**2 / len(values), 1e-12))  # the seeds share the test set
    center = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
    q = sum(w * (m - center) ** 2 for w, m in zip(weights, means, strict=True))
    freedom = len(groups) - 1
    return q > freedom + 3 * sqrt(2 * freedom)


def standard_error(values: list[float]) -> float | None:
    """The standard error of the mean; `None` for fewer than two values."""
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else None
