"""`report.html`: the settings and results of a run on one self-contained page."""

import json
from importlib.resources import files
from pathlib import Path

import jinja2

from ..errors import UsageError
from ..runtime.files import naming_write_errors, read_json
from ..runtime.pace import in_words
from ..runtime.run_folder import RUN_FILE
from .model_card import METRIC_TITLES
from .records import CALIBRATION, METRICS, points, read_facts, read_log, scores_by_exit
from .svg import Series, line_chart


REPORT = "report.html"
# Titles of the metrics of pre-training.
EVALUATION = {"roc_auc": "ROC-AUC", "average_precision": "average precision",
              "recall_on_replaced": "recall on replaced", "calibration_error": "calibration error"}  # fmt: skip
COSTS = {"blocks": "the discriminator's layers", "discriminator": "the discriminator", "total": "both models"}


def write_report(folder: str | Path) -> Path:
    """Write `report.html` to the folder of a finished pre-training or fine-tuning run. Returns its path.

    Raises:
        UsageError: if the folder holds no finished run.
        WriteError: if the report cannot be written.
    """
    folder = Path(folder)
    if not (folder / METRICS).is_file():
        raise UsageError(f"{folder} holds no finished run: it has no {METRICS}")
    summary = read_json(folder / METRICS)
    page = fine_tuning_page(folder, summary) if "best" in summary else pre_training_page(folder)
    template = files("modeling_electra_exit.model_cards").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    with naming_write_errors(str(folder / REPORT)):
        text = environment.from_string(template).render(name=folder.resolve().name, **page)
        (folder / REPORT).write_text(text, encoding="utf-8")
    return folder / REPORT


def chart(title: str, note: str, svg: str) -> dict[str, str]:
    return {"title": title, "note": note, "svg": svg}


# ---- Pre-training ----


def pre_training_page(folder: Path) -> dict:
    """The variables of the template for a pre-training run."""
    facts, log = read_facts(folder), read_log(folder)
    training, data, evaluation = (facts.get(name, {}) for name in ("training", "data", "evaluation"))
    scale, x_label = (training["tokens_per_step"], "tokens") if "tokens_per_step" in training else (1, "steps")
    summary = {}
    if "roc_auc" in evaluation:
        summary["held-out ROC-AUC"] = f"{evaluation['roc_auc']:.4f}"
    if training.get("tokens_per_second"):
        summary["training time"] = in_words(training["tokens"] / training["tokens_per_second"])
        summary["tokens per second"] = f"{training['tokens_per_second']:,.0f}"
    if training:
        summary["tokens"] = f"{training['tokens']:,}"
    return {
        "kind": "Pre-training",
        "summary": summary,
        "charts": [
            *_quality(log, scale, x_label, expected_curve(folder)),
            *_losses(log, scale, x_label, PRE_TRAINING_LOSSES),
            *_exits(facts),
        ],
        "tables": [
            _detection(evaluation),
            _costs(facts.get("flops")),
            _table("Settings", ("setting", "value"), _conditions(training, data, facts.get("parameters", {}))),
        ],
        "versions": facts.get("versions", {}),
    }


PRE_TRAINING_LOSSES = {
    "discriminator_loss": "the discriminator",
    "exit_loss": "the exit heads",
    "generator_loss": "the generator",
}


def expected_curve(folder: Path) -> list[tuple[float, float]]:
    """Pairs of step and measured held-out ROC-AUC of a run with the same settings; empty if there is none. The files
    in `recipes/expected` name the command that measured them."""
    given = read_json(folder / RUN_FILE).get("arguments", {}) if (folder / RUN_FILE).is_file() else {}
    for path in files("modeling_electra_exit.trainers").joinpath("recipes", "expected").iterdir():
        measured = json.loads(path.read_text(encoding="utf-8"))
        if measured["arguments"].items() <= given.items():
            return [(step, auc) for step, auc in measured["steps_and_roc_auc"]]
    return []


def _quality(log: list[dict], scale: float, x_label: str, expected: list[tuple[float, float]]) -> list[dict]:
    train, held_out = points(log, "discriminator_auc", scale), points(log, "eval_roc_auc", scale)
    if len(train) + len(held_out) < 2:
        return []
    lines = [
        Series("training batches", train),
        Series("held-out text", held_out, "b", dots=True),
        Series("expected on held-out text", [(step * scale, auc) for step, auc in expected], "d"),
        Series("chance", [(x, 0.5) for x, _ in (train or held_out)], "c"),
    ]
    last = (held_out or train)[-1][1]
    title = f"ROC-AUC of the discriminator against {x_label}; the last value is {last:.3f}"
    return [chart("Learning curve", "How well the model detects replaced tokens: 0.5 is chance, 1 is perfect.",
                  line_chart(title, lines, x_label, "ROC-AUC"))]  # fmt: skip


def _losses(log: list[dict], scale: float, x_label: str, names: dict[str, str]) -> list[dict]:
    charts = []
    for name, title in names.items():
        if len(line := points(log, name, scale)) >= 2:
            said = f"Loss of {title} against {x_label}, from {line[0][1]:.3f} to {line[-1][1]:.3f}"
            charts.append(chart(f"Loss of {title}", "On training batches.",
                                line_chart(said, [Series(title, line)], x_label, "loss")))  # fmt: skip
    return charts


def _exits(facts: dict) -> list[dict]:
    shares, scores = facts.get("kept_share", []), scores_by_exit(facts)
    if not scores:
        return []
    each = ", ".join(f"{share:.0%}" for share in shares)
    auc = ", ".join(f"{score:.3f} after layer {layer}" for layer, score in sorted(scores.items()))
    title = f"Share of the tokens that each layer computes while exits are active: {each}. ROC-AUC of the heads: {auc}"
    lines = [Series("held-out ROC-AUC of the head after a layer", sorted(scores.items()), "b", dots=True)]
    return [chart("Exits", "Bars: share of the tokens that a layer computes while exits are active.",
                  line_chart(title, lines, "layer", "share, ROC-AUC", bars=shares))]  # fmt: skip


def _table(title: str, head: tuple[str, ...], rows: list) -> dict | None:
    return {"title": title, "head": head, "rows": rows} if rows else None


def _detection(evaluation: dict) -> dict | None:
    layers = sorted(int(name.rsplit("_", 1)[1]) for name in evaluation if name.startswith("roc_auc_layer_"))
    suffixes = {**{f"after layer {layer}": f"_layer_{layer}" for layer in layers}, "at full depth": ""}
    rows = [
        [where, *(f"{evaluation[name + suffix]:.4f}" if name + suffix in evaluation else "" for name in EVALUATION)]
        for where, suffix in suffixes.items()
        if f"roc_auc{suffix}" in evaluation
    ]
    return _table("Replaced tokens in held-out text", ("head", *EVALUATION.values()), rows)


def _costs(flops: dict | None) -> dict | None:
    if not flops:
        return None
    rows = [
        [f"FLOPs of {title}", f"{flops[name]:.3g}", f"{flops['dense_' + name]:.3g}",
         f"{flops[name] / flops['dense_' + name]:.1%}"]
        for name, title in COSTS.items()
    ]  # fmt: skip
    return _table("Cost", ("cost", "executed", "without exits", "ratio"), rows)


def _conditions(training: dict, data: dict, parameters: dict) -> list:
    rows = []
    if parameters:
        rows.append(
            ["parameters", f"{parameters['discriminator']:,}, plus {parameters['generator']:,} in the generator"]
        )
    if counts := data.get("counts", {}).get("train"):
        rows.append(["text", f"{counts['documents']:,} documents, {counts['tokens']:,} tokens"])
    if training:
        rows += [
            ["steps", f"{training['steps']:,} of {training['tokens_per_step']:,} tokens"],
            ["computed on", f"{training['hardware']}, {training['precision']}"],
            ["seed", str(training["seed"])],
        ]
    return rows


# ---- Fine-tuning ----


def fine_tuning_page(folder: Path, summary: dict) -> dict:
    """The variables of the template for a fine-tuning run with its seeds."""
    best = folder / summary["best"]
    facts, log = read_facts(best), read_log(best)
    how, metrics = facts["finetuning"], summary["evaluation"]
    first = next(iter(metrics))
    heads = [METRIC_TITLES.get(name, name) for name in metrics]
    rows = [[f"seed {seed}", *(f"{measured['scores'][number]:.4f}" for measured in metrics.values())]
            for number, seed in enumerate(summary["seeds"])]  # fmt: skip
    if len(rows) > 1:
        rows.append(["mean", *(f"{measured['mean']:.4f}" for measured in metrics.values())])
    for which, found in summary["baselines"].items():
        rows.append([which, *(f"{found[name]:.4f}" if name in found else "" for name in metrics)])
    title = METRIC_TITLES.get(first, first)
    return {
        "kind": f"Fine-tuning on {summary['task']}",
        "summary": {
            f"{title}, best seed": f"{max(metrics[first]['scores']):.4f}",
            "examples": f"{how['examples']['train']:,}",
            "seconds per seed": f"{how['seconds']:,.0f}",
            "best": summary["best"],
        },
        "charts": [*_losses(log, 1, "steps", {"loss": "all heads"}), *_calibration(best)],
        "tables": [
            _table("Results", ("", *heads), rows),
            _table("Settings", ("setting", "value"), [
                ["from", how["model"]], ["kind", how["kind"]], ["labels", ", ".join(map(str, how["labels"][:12]))],
                ["validation examples", f"{how['examples']['validation']:,}"],
                ["steps", f"{facts['steps']:,} of {how['examples_per_step']} examples"],
                ["learning rate", f"{how['learning_rate']:g}"],
                ["computed on", f"{how['hardware']}, {how['precision']}"],
            ]),
        ],
        "versions": {},
    }  # fmt: skip


def _calibration(folder: Path) -> list[dict]:
    found = read_json(folder / CALIBRATION) if (folder / CALIBRATION).is_file() else {}
    curve = sorted((point["depth"], point["accuracy"]) for point in found.get("curve", []))
    if len(curve) < 2:
        return []
    title = f"Accuracy against the share of the layers; chosen: {found['accuracy']:.3f} at {found['depth']:.0%}"
    lines = [Series("all thresholds", curve), Series("chosen", [(found["depth"], found["accuracy"])], "b", dots=True)]
    return [chart("Exits", "Predicted accuracy for each share of the layers.",
                  line_chart(title, lines, "share of the layers", "accuracy"))]  # fmt: skip
