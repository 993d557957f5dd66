"""The model card of a run, rendered from what the run wrote down."""

import json
from importlib.resources import files
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_electra_exit import ElectraEarlyExitConfig


# How the replacements of each generator outside the model are described.
REPLACEMENTS = {
    "uniform": "random tokens, all alike",
    "unigram": "random tokens, as frequent as in the text",
    "bigram": "random tokens, as frequent as in the text after the token to the left",
    "shuffle": "tokens of the same sequence that changed places",
    "frozen": "samples of a masked language model that was trained before",
    "cached": "sampled once beforehand and stored with the data",
    "self": "proposed by a head on an early layer when the sequence was last read",
    "neighbor": "tokens near in the discriminator's embeddings",
}


def write_model_card(folder: str | Path, language: str | None = None, license: str | None = None) -> Path | None:
    """Render `README.md` in a run's folder from its `config.json` and `metrics.json`.

    Returns:
        The path written, or `None` if the run has measured nothing yet: a card without numbers would have to invent.
    """
    folder = Path(folder)
    if not (folder / "metrics.json").is_file():
        return None
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = folder.resolve().name
    card_data = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        tags=["electra", "replaced-token-detection", "early-exit", "pretraining"],
        model_name=name,
        eval_results=_eval_results(metrics),
    )
    template = files("modeling_electra_exit.model_cards").joinpath("card.md.jinja").read_text(encoding="utf-8")
    card = ModelCard.from_template(
        card_data,
        template_str=template,
        name=name,
        config=config,
        generator_type=config["generator_type"],
        replacements=REPLACEMENTS,
        generator=ElectraEarlyExitConfig.from_pretrained(folder).generator_config(),
        layers=_layers(metrics["evaluation"], config),
        **metrics,
    )
    path = folder / "README.md"
    path.write_text(str(card), encoding="utf-8")
    return path


def _layers(evaluation: dict, config: dict) -> list[dict]:
    """One row an exit head, and the final head last."""
    suffixes = {f"layer {layer}": f"_layer_{layer}" for layer in config["exit_layers"]}
    suffixes[f"{config['num_hidden_layers']} (final)"] = ""
    return [
        {
            "layer": layer,
            "roc_auc": evaluation[f"roc_auc{suffix}"],
            "average_precision": evaluation[f"average_precision{suffix}"],
            "calibration_error": evaluation[f"calibration_error{suffix}"],
        }
        for layer, suffix in suffixes.items()
        if evaluation.get(f"roc_auc{suffix}") is not None
    ]


def _eval_results(metrics: dict) -> list[EvalResult]:
    evaluation = metrics["evaluation"]
    described = {
        "task_type": "replaced-token-detection",
        "dataset_type": "text",
        "dataset_name": metrics["data"]["name"],
    }
    return [
        EvalResult(metric_type=name, metric_value=round(evaluation[name], 4), **described)
        for name in ("roc_auc", "average_precision", "recall_on_replaced")
        if evaluation.get(name) is not None
    ]
