"""Fine-tuning tasks: the kinds of task, and the tasks of GLUE (Wang et al., 2019)."""

from dataclasses import dataclass

from transformers import PreTrainedConfig


# The kinds of task, and the `problem_type` of a model's config for each.
KINDS = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
    "tagging": None,
}
METRICS_OF = {
    "classification": ("accuracy", "macro_f1"),
    "multi_label": ("micro_f1", "macro_f1"),
    "regression": ("pearson", "spearman", "rmse"),
    "tagging": ("accuracy", "macro_f1"),
}
ENTITY_METRICS = ("entity_f1", "accuracy")
# Marks of a chunk's tokens in IOB, IOB2, IOBES and BILOU: the first, the inner ones, the last, and a single token.
BEGINS, INSIDE, ENDS, WHOLE = "B", "I", "EL", "SU"


@dataclass(frozen=True)
class Columns:
    """The columns of a table that a task uses.

    Args:
        text: the text, or for tagging the list of words.
        pair: the second text of a pair.
        labels: the label, or one 0/1 column per label.
    """

    text: str | None = None
    pair: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,) if self.pair is None else (self.text, self.pair)


@dataclass(frozen=True)
class Task:
    """A task.

    Args:
        name: its name on the model card.
        kind: a key of [`KINDS`].
        columns: the columns of its examples.
        labels: the names of the classes in the order of their indices; for regression, the name of the value.
        metrics: keys of [`scores.METRICS`]. The first one selects the best seed and must be better when larger.
        epochs: default number of epochs.
        symmetric: whether ELECTRA trains on both orders of a pair.
        validation: name of the validation split on the Hub.
        largest: for regression with labels from 0, the largest label; infinite if labels are unlimited.
        shift, scale: regression is trained on (label - shift) / scale.
    """

    name: str
    kind: str
    columns: Columns
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    epochs: float = 3.0
    symmetric: bool = False
    validation: str = "validation"
    largest: float = float("inf")
    shift: float = 0.0
    scale: float = 1.0

    @property
    def is_regression(self) -> bool:
        return self.kind == "regression"

    @property
    def tags_words(self) -> bool:
        return self.kind == "tagging"


def kind_of(config: PreTrainedConfig) -> str:
    """The kind of task that a fine-tuned checkpoint was trained for."""
    if (config.architectures or [""])[0].endswith("ForTokenClassification"):
        return "tagging"
    if config.problem_type == "regression" or config.num_labels == 1:
        return "regression"
    return "multi_label" if config.problem_type == KINDS["multi_label"] else "classification"


def labels_of(config: PreTrainedConfig) -> tuple[str, ...]:
    """The names of a checkpoint's labels, in the order of their indices."""
    return tuple(str(config.id2label.get(number, number)) for number in range(config.num_labels))


def task_of(config: PreTrainedConfig) -> Task:
    """The task that a fine-tuned checkpoint was trained for, without the columns of its examples."""
    kind, labels = kind_of(config), labels_of(config)
    name = getattr(config, "finetuning_task", None) or "the model's own"
    return Task(name, kind, Columns(), labels, metrics_of(kind, labels))


def metrics_of(kind: str, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The default metrics of a task."""
    return ENTITY_METRICS if kind == "tagging" and marks_chunks(labels) else METRICS_OF[kind]


def marks_chunks(labels: tuple[str, ...]) -> bool:
    """Whether the tags mark chunks, such as `O`, `B-PER` and `I-PER`."""
    marks = {label.partition("-")[0] for label in labels if label != "O"}
    return "O" in labels and bool(marks & {BEGINS, INSIDE}) and marks <= {BEGINS, INSIDE, *ENDS, *WHOLE}


def _glue(name: str, texts: tuple[str, ...], labels: tuple[str, ...], metrics: tuple[str, ...], **more) -> Task:
    """A task with the columns and labels of the dataset `glue` on the Hub, and the epochs of google-research/electra
    (`configure_finetuning.py`)."""
    kind = "regression" if len(labels) == 1 else "classification"
    return Task(name, kind, Columns(*texts, *[None] * (2 - len(texts)), ("label",)), labels, metrics, **more)


PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")

TASKS = {
    task.name: task
    for task in (
        _glue("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
        _glue("sst2", ("sentence",), ("negative", "positive"), ("accuracy",)),
        _glue("mrpc", PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1"), symmetric=True),
        _glue("stsb", PAIR, ("similarity",), ("pearson", "spearman"), epochs=10.0, symmetric=True, largest=5.0,
              scale=5.0),
        _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
        _glue("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",),
              validation="validation_matched"),
        _glue("qnli", ("question", "sentence"), ENTAILMENT, ("accuracy",)),
        _glue("rte", PAIR, ENTAILMENT, ("accuracy",), epochs=10.0),
    )
}  # fmt: skip
