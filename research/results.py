"""Read the results of a study: its runs by stage and arm, their costs and learning curves."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from statistics import mean

from electra_exit.parsing import parse_fields
from modeling_electra_exit.trainers.pretraining.run import build_config
from modeling_electra_exit.trainers.runtime.flops import step_flops

from .routing import Routing, recipe_of


# The runs of a stage, by arm (with its learning rate if it is run with several), in the order of their seeds.
Arms = dict[str, list[dict]]

# Separates an arm's name from its learning rate if it is run with several.
RATE_MARK = "@"
RESULT_FILE = re.compile(r".+-seed\d+\.json")
# The fields on which the operations and the time of a step depend, beside the generator's.
COST_FIELDS = (
    "vocab_size", "max_seq_length", "max_position_embeddings", "hidden_size", "embedding_size", "num_hidden_layers",
    "num_attention_heads", "intermediate_size", "exit_policy", "exit_layers", "exit_capacities", "exit_warmup",
    "exit_cooldown",
)  # fmt: skip


def read_results(study: dict, folder: Path) -> dict[str, Arms]:
    """The results in a folder by stage, in the order of the study.

    A result has `removed` set if the study no longer defines its arm or stage, whose fields may be illegal today.
    Removed stages and arms come last.
    """
    found = defaultdict(lambda: defaultdict(list))
    for path in folder.glob("*.json"):
        if RESULT_FILE.fullmatch(path.name):
            result = json.loads(path.read_text("utf-8"))
            result["removed"] = result["stage"] not in study["stages"] or base(result["arm"]) not in study["arms"]
            found[result["stage"]][result["arm"]].append(result)
    names = arm_names(study, (arm for arms in found.values() for arm in arms))
    stages = [*study["stages"], *sorted(found.keys() - study["stages"].keys())]
    return {
        stage: _in_order(found[stage], names, step_seconds(folder / timing_file(stage)))
        for stage in stages
        if stage in found
    }


def _in_order(arms: Arms, names: list[str], seconds: dict[str, dict]) -> Arms:
    for arm, group in arms.items():
        for result in group:
            result["step_seconds"] = seconds.get(base(arm))
    ordered = sorted(arms, key=lambda arm: (names.index(base(arm)), _rate(arm)))
    return {arm: sorted(arms[arm], key=lambda result: result["seed"]) for arm in ordered}


def base(arm: str) -> str:
    """The name of an arm without its learning rate."""
    return arm.split(RATE_MARK)[0]


def _rate(arm: str) -> float:
    return float(arm.split(RATE_MARK)[1]) if RATE_MARK in arm else 0.0


def arm_names(study: dict, found: Iterable[str]) -> list[str]:
    """All arms without their learning rates in a fixed order: those of the study, then those removed from it."""
    removed = {base(arm) for arm in found} - study["arms"].keys()
    titled = [arm for arm in study.get("titles", {}) if arm in removed]
    return [*study["arms"], *titled, *sorted(removed.difference(titled))]


@dataclass
class Legend:
    """The names and styles of a study's arms, the same in all tables and figures.

    names: all arms in a fixed order.
    titles: what to call some of them; the others go by their name.
    removed: those that the study no longer defines.
    stages: the arms of each stage, which should be easy to tell apart.
    """

    names: list[str]
    titles: dict[str, str] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    stages: list[set[str]] = field(default_factory=list)

    def __post_init__(self):
        self.styles = _styles(self.names, self.stages)

    def title(self, arm: str) -> str:
        name = self.titles.get(base(arm), base(arm))
        rate = f", rate {_rate(arm):g}" if RATE_MARK in arm else ""
        return f"{name}{rate}{' †' if base(arm) in self.removed else ''}"

    def style(self, arm: str) -> dict[str, str]:
        """Color, line style and marker."""
        color, line = self.styles[base(arm)]
        return {"color": f"C{color}", **LINES[line]}


LINES = tuple(
    {"linestyle": line, "marker": marker}
    for line, marker in (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ((0, (5, 1, 1, 1, 1, 1)), "v"))
)
COLORS = 10


def _styles(names: list[str], stages: list[set[str]]) -> dict[str, tuple[int, int]]:
    """The color and line of each arm. An arm has the color that is rarest among the earlier arms of its stages, and a
    line that none of these has in this color, so that up to ten arms of a stage have colors of their own."""
    styles = {}
    for name in names:
        beside = {other for stage in stages if name in stage for other in stage & styles.keys()}
        used = [[styles[other][1] for other in beside if styles[other][0] == color] for color in range(COLORS)]
        color = min(range(COLORS), key=lambda color: len(used[color]))
        styles[name] = color, next((line for line in range(len(LINES)) if line not in used[color]), 0)
    return styles


def legend_of(study: dict, found: dict[str, Arms]) -> Legend:
    names = arm_names(study, (arm for arms in found.values() for arm in arms))
    removed = set(names) - study["arms"].keys()
    stages = [set(stage["arms"]) for stage in study["stages"].values()]
    stages += [
        set(map(base, arms)) | set(study["stages"].get(stage, {}).get("arms", ()))
        for stage, arms in found.items()
        if removed & set(map(base, arms))
    ]
    return Legend(names, study.get("titles", {}), removed, stages)


def timing_file(stage: str) -> str:
    """Name of the file, in the folder of the results, that `--time_steps` writes."""
    return f"{stage}-step-seconds.json"


def step_seconds(path: Path) -> dict[str, dict[str, float]]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def tokens_of(results: Iterable[dict]) -> float:
    """Millions of tokens of the longest run."""
    return max(result["training"]["tokens"] for result in results) / 1e6


def at_better_rate(arms: Arms, choosing_seed: int | None = None) -> Arms:
    """Among arms that differ only in the learning rate, keep the one with the best mean held-out ROC-AUC.

    With `choosing_seed`, only runs with this seed count for the choice. If the chosen arm has runs with other seeds,
    only those are kept, because the seed that chose the rate favors it.
    """
    best, score = {}, {}
    for arm, group in arms.items():
        choosing = [result for result in group if choosing_seed == result["seed"]] or group
        if mean_auc(choosing) > score.get(base(arm), 0.0):
            best[base(arm)], score[base(arm)] = arm, mean_auc(choosing)
    chosen = {arm: arms[arm] for arm in best.values()}
    return {arm: [r for r in group if r["seed"] != choosing_seed] or group for arm, group in chosen.items()}


def find_arm(arms: Arms, name: str) -> list[dict] | None:
    """The runs of an arm at any learning rate; `None` if there are none."""
    return next((group for arm, group in arms.items() if base(arm) == name), None)


def held_out_auc(result: dict) -> float:
    """The final ROC-AUC, averaged over the held-out sets."""
    return mean(found["roc_auc"] for key, found in result["judged"].items() if key.startswith("held_out"))


def mean_auc(group: list[dict]) -> float:
    return mean(map(held_out_auc, group))


# ---- Costs and learning curves ----


def measured_seconds(training: dict) -> float:
    """Training time of a run in seconds, excluding evaluation and saving."""
    return training["tokens"] / training["tokens_per_second"]


def cumulative_seconds(result: dict) -> list[float]:
    """Seconds after each step: from the times of `--time_steps` if there are any, else from the run itself. The forks
    by which a run chooses its depth are not included."""
    steps, timed = result["training"]["steps"], result.get("step_seconds")
    if timed is None:
        return [measured_seconds(result["training"]) * (step + 1) / steps for step in range(steps)]
    _, _, args, _ = _arguments(result)

    def seconds(step: int) -> float:
        depth = next((depth for first, depth in reversed(result.get("depths", [])) if step >= first), None)
        of_depth = timed if depth is None else timed[str(depth)]
        return of_depth["exits" if "exits" in of_depth and args.exits_active(step, steps) else "dense"]

    return list(accumulate(map(seconds, range(steps))))


def _arguments(result: dict) -> tuple:
    fields = result["fields"]
    if result.get("removed"):
        fields = {name: fields[name] for name in COST_FIELDS if name in fields}
    return _parsed(json.dumps(recipe_of(fields), sort_keys=True))


@cache
def _parsed(fields: str) -> tuple:
    return parse_fields({**json.loads(fields), "output_dir": "unused"})


def seconds_of(result: dict) -> float:
    return cumulative_seconds(result)[-1]


def peak_bytes(result: dict) -> int | None:
    """The peak memory of the run's steps, at its deepest; `None` if it was not measured."""
    timed = result.get("step_seconds") or {}
    measured = [found for found in (timed, *timed.values()) if isinstance(found, dict) and "peak_bytes" in found]
    return max((found["peak_bytes"] for found in measured), default=None)


def seconds_a_step(result: dict) -> float:
    return seconds_of(result) / result["training"]["steps"]


def cumulative_flops(result: dict) -> list[float]:
    """Total operations executed after each step of a run. Where a step's operations cannot be derived from the fields
    (removed options, changing depth), they are scaled to the recorded total."""
    config_fields, data_args, args, _ = _arguments(result)
    config, length, steps = build_config(config_fields), data_args.max_seq_length, result["training"]["steps"]
    batch = result["training"]["tokens_per_step"] // length
    generator = result["flops"]["generator"] / steps  # constant, and not derivable from the config for every generator
    counted = step_flops if (routing := Routing.of(result["fields"])) is None else routing.step_flops
    dense, exiting = (counted(config, batch, length, active).discriminator for active in (False, True))
    flops = list(
        accumulate(generator + (exiting if args.exits_active(step, steps) else dense) for step in range(steps))
    )
    derived = not result.get("removed") and result["fields"].get("depth_schedule") is None
    return flops if derived else [spent * result["flops"]["total"] / flops[-1] for spent in flops]


def curve(result: dict) -> dict[str, list[float]]:
    """The learning curve: `score`, the held-out ROC-AUC averaged over the held-out sets, with `tokens`, `flops` and
    `seconds` at each point."""
    points = [(entry["step"], _scores(entry)) for entry in result["log"]]
    points = [(step, mean(scores)) for step, scores in points if scores]
    steps, flops, seconds = [step for step, _ in points], cumulative_flops(result), cumulative_seconds(result)
    tokens = [step * result["training"]["tokens_per_step"] for step in steps]
    return {
        "score": [score for _, score in points],
        "tokens": tokens,
        "flops": [flops[step - 1] for step in steps],
        "seconds": [seconds[step - 1] for step in steps],
    }


def _scores(entry: dict) -> list[float]:
    """Held-out ROC-AUC in a log entry: on the sets common to all arms, or on the run's own set if there are none. The
    last entry of a run may have both."""
    common = [value for name, value in entry.items() if re.fullmatch(r"eval_\w+_roc_auc", name)]
    return common or [entry[name] for name in ("eval_roc_auc",) if name in entry]
