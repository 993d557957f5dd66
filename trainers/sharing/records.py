"""Read the records of a run for its card, figures and report."""

from pathlib import Path
from statistics import median

from transformers.trainer import TRAINER_STATE_NAME

from ..runtime.files import read_json


CARD, METRICS, CALIBRATION = "README.md", "metrics.json", "calibration.json"
FIGURE, CURVE = "exit_profile.png", "learning_curve.png"


def read_facts(folder: Path, measured: dict | None = None) -> dict:
    """The recorded facts of a run: `metrics.json` of a finished run or the last evaluation of an unfinished one, and
    the throughput of each phase.

    Args:
        folder: folder of the run.
        measured: the content of `metrics.json`, if it is not written yet.

    Returns:
        Sections by name; those that were not recorded are missing.
    """
    facts = dict(measured or _read_if_there(folder / METRICS))
    if calibration := _read_if_there(folder / CALIBRATION):
        facts["calibration"] = calibration
    state = _read_if_there(folder / TRAINER_STATE_NAME)
    log = state.get("log_history", [])
    if "evaluation" not in facts and state:
        facts["progress"] = {"step": state["global_step"], "max_steps": state["max_steps"]}
        if evaluations := [entry for entry in log if "eval_roc_auc" in entry]:
            facts["evaluation"] = {key.removeprefix("eval_"): value for key, value in evaluations[-1].items()}
    speeds = {
        phase: [entry["tokens_per_second"] for entry in log if entry.get("exits_active") == active]
        for phase, active in (("dense", 0.0), ("exits", 1.0))
    }
    if all(len(measured) >= 3 for measured in speeds.values()):
        facts["speed"] = {phase: median(measured) for phase, measured in speeds.items()}
    return facts


def _read_if_there(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def read_log(folder: Path) -> list[dict]:
    """The Trainer's log entries that have a step, oldest first; empty if there is no log."""
    return [entry for entry in _read_if_there(folder / TRAINER_STATE_NAME).get("log_history", []) if "step" in entry]


def points(log: list[dict], name: str, scale: float = 1.0) -> list[tuple[float, float]]:
    """The curve of a logged number: pairs of the step, times `scale`, and the value."""
    return [(entry["step"] * scale, entry[name]) for entry in log if isinstance(entry.get(name), (int, float))]


def scores_by_exit(facts: dict) -> dict[int, float]:
    """The held-out ROC-AUC of each exit head and the final head, by layer; empty without exits."""
    evaluation = facts.get("evaluation", {})
    found = {int(name.rsplit("_", 1)[1]): auc for name, auc in evaluation.items() if name.startswith("roc_auc_layer_")}
    return {**found, len(facts["kept_share"]): evaluation["roc_auc"]} if found and facts.get("kept_share") else {}
