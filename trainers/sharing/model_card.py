"""Render the model card of a run from its records. `electra-exit card` renders it again."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.trainer import TRAINER_STATE_NAME

from modeling_electra_exit import ElectraEarlyExitConfig

from ..errors import UsageError, reason
from ..runtime.loading import read_config
from .figures import draw_figures
from .records import CALIBRATION, CARD, CURVE, FIGURE, METRICS, read_facts


# Descriptions of the replacements from each generator outside the model.
REPLACEMENTS = {
    "uniform": "random tokens with equal probabilities",
    "unigram": "random tokens with their frequencies in the text",
    "bigram": "random tokens with their frequencies in the text after the token to the left",
    "shuffle": "permuted tokens of the same sequence",
    "frozen": "samples of a pre-trained masked language model that is not updated",
    "cached": "sampled once in advance and stored with the data",
    "self": "proposed by a head on an early layer in the previous pass over the sequence",
}


METRIC_TITLES = {
    "accuracy": "Accuracy", "f1": "F1", "macro_f1": "Macro F1", "micro_f1": "Micro F1", "entity_f1": "F1 of entities",
    "matthews_correlation": "Matthews correlation", "pearson": "Pearson correlation",
    "spearman": "Spearman correlation", "rmse": "Root mean square error",
}  # fmt: skip

KIND_TITLES = {
    "classification": "one label per text", "multi_label": "several labels per text",
    "regression": "one number per text", "tagging": "one label per word",
}  # fmt: skip

# Names of folders, files, datasets and columns may contain markup.
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", "[": "&#91;", "|": "&#124;"})

# Replaced when the card is pushed.
REPOSITORY_PLACEHOLDER, COMMIT_PLACEHOLDER = "path-or-repo-id", "commit-hash"
# The Hub's pipeline tag for each architecture.
PIPELINES = {
    "ElectraEarlyExitForMaskedLM": "fill-mask",
    "ElectraEarlyExitForSequenceClassification": "text-classification",
    "ElectraEarlyExitForTokenClassification": "token-classification",
    "ElectraEarlyExitForQuestionAnswering": "question-answering",
    "ElectraEarlyExitForMultipleChoice": "multiple-choice",
}


def write_model_card(folder: str | Path, measured: dict | None = None, **details) -> Path:
    """Write a run's card, `README.md`, and its figures to the folder of the run.

    Args: those of [`render_model_card`].

    Returns:
        The path of the card.
    """
    folder = Path(folder)
    draw_figures(folder, measured)
    (folder / CARD).write_text(render_model_card(folder, measured=measured, **details), encoding="utf-8")
    return folder / CARD


def render_model_card(
    folder: str | Path,
    name: str | None = None,
    language: str | list[str] | None = None,
    license: str | None = None,
    has_generator: bool = True,
    measured: dict | None = None,
) -> str:
    """Render the card of the model in a folder from `config.json` and, if they exist, `metrics.json`,
    `calibration.json` and `trainer_state.json`. Facts that were not recorded are omitted.

    Args:
        folder: folder of the model.
        name: name of the model. Default: that of the folder.
        language: language codes such as "en". Default: as recorded by the run.
        license: license of the model, such as "apache-2.0". Default: as recorded by the run.
        has_generator: whether the generator's weights are in the repository.
        measured: the content of `metrics.json`, if it is not written yet.

    Raises:
        UsageError: if one of these files cannot be read, or does not have the format that a run writes.
    """
    folder = Path(folder)
    config = read_config(str(folder))
    with _naming_records(folder):
        return _render(folder, config, read_facts(folder, measured), name, language, license, has_generator)


@contextmanager
def _naming_records(folder: Path) -> Iterator[None]:
    """Raise a [`UsageError`] that names the records if they were edited, truncated or written by another program."""
    try:
        yield
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        recorded = [name for name in (METRICS, TRAINER_STATE_NAME, CALIBRATION) if (folder / name).is_file()]
        files_read = " and ".join(recorded or ["config.json"])
        raise UsageError(f"cannot render a card from {files_read} in {folder}: {reason(error)}") from error


def _render(
    folder: Path,
    config: ElectraEarlyExitConfig,
    facts: dict,
    name: str | None,
    language: str | list[str] | None,
    license: str | None,
    has_generator: bool,
) -> str:
    name = name or folder.resolve().name
    data, training = facts.get("data", {}), facts.get("training", {})
    architecture = (config.architectures or ["ElectraEarlyExitForPreTraining"])[0]
    pretraining = architecture == "ElectraEarlyExitForPreTraining"
    license = license or training.get("model_license")
    card_data = ModelCardData(
        language=language or data.get("language"),
        license=license,
        library_name="transformers",
        pipeline_tag=PIPELINES.get(architecture, "feature-extraction"),
        tags=["electra", "early-exit", *(["replaced-token-detection", "pretraining"] if pretraining else [])],
        datasets=data.get("dataset_name") or facts.get("finetuning", {}).get("dataset_name"),
        base_model=facts.get("start", facts.get("finetuning", {})).get("base_model"),
        model_name=name,
        eval_results=_eval_results(facts) if pretraining else _task_results(facts, architecture),
    )
    template = files("modeling_electra_exit.model_cards").joinpath("card.md.jinja").read_text(encoding="utf-8")
    card = ModelCard.from_template(
        card_data,
        template_str=template,
        name=in_markdown(name),
        config=config,
        architecture=in_markdown(architecture),
        pretraining=pretraining,
        auto_class=f"AutoModelFor{architecture.split('For')[1]}" if architecture in PIPELINES else "AutoModel",
        metric_titles=METRIC_TITLES,
        kinds=KIND_TITLES,
        generator=config.generator_config() if pretraining and config.generator_type == "mlm" else None,
        has_generator=has_generator,
        replacements=REPLACEMENTS,
        layers=_layers(facts, config),
        license=license,
        figure=FIGURE if (folder / FIGURE).is_file() else None,
        curve=CURVE if (folder / CURVE).is_file() else None,
        repository=REPOSITORY_PLACEHOLDER,
        commit=COMMIT_PLACEHOLDER,
        **in_markdown(facts),
    )
    return f"{card}\n"


def in_markdown(value):
    """Escape text, also inside lists and dictionaries, for Markdown: one line, without HTML, links or table cells."""
    if isinstance(value, dict):
        return {in_markdown(name): in_markdown(held) for name, held in value.items()}
    if isinstance(value, list):
        return [in_markdown(held) for held in value]
    return " ".join(value.split()).translate(ENTITIES) if isinstance(value, str) else value


def _layers(facts: dict, config: ElectraEarlyExitConfig) -> list[dict]:
    """One row per exit head, then one for the final head."""
    suffixes = {f"layer {layer}": f"_layer_{layer}" for layer in config.exit_layers}
    suffixes[f"{config.num_hidden_layers} (final)"] = ""
    names = ("roc_auc", "average_precision", "calibration_error")
    evaluation = facts.get("evaluation", {})
    return [
        {"layer": layer, **{name: evaluation[f"{name}{suffix}"] for name in names}}
        for layer, suffix in suffixes.items()
        if evaluation.get(f"roc_auc{suffix}") is not None
    ]


def _eval_results(facts: dict) -> list[EvalResult] | None:
    evaluation, data = facts.get("evaluation", {}), facts.get("data", {})
    described = {
        "task_type": "replaced-token-detection",
        "task_name": "Replaced-token detection",
        "dataset_type": data.get("dataset_name") or "text",
        "dataset_name": data.get("name", "held-out text"),
        "dataset_split": "validation",
    }
    results = [
        EvalResult(metric_type=name, metric_name=title, metric_value=round(evaluation[name], 4), **described)
        for name, title in (
            ("roc_auc", "ROC-AUC"),
            ("average_precision", "Average precision"),
            ("recall_on_replaced", "Recall on replaced tokens"),
            ("calibration_error", "Expected calibration error"),
        )
        if evaluation.get(name) is not None
    ]
    return results or None


def _task_results(facts: dict, architecture: str) -> list[EvalResult] | None:
    """The evaluation results of fine-tuning; `None` if there are none."""
    finetuning = facts.get("finetuning", {})
    measured = facts.get("evaluation", {}) if finetuning else {}
    described = {
        "task_type": PIPELINES.get(architecture, "other"),
        "dataset_type": finetuning.get("dataset_name") or "text",
        "dataset_name": facts.get("task", "held-out examples"),
        "dataset_split": "validation",
    }
    results = [
        EvalResult(metric_type=name, metric_name=METRIC_TITLES[name], metric_value=round(value, 4), **described)
        for name, value in measured.items()
    ]
    return results or None
