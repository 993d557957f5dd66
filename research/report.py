"""Write the report of a study as Markdown and figures, from the JSON files of its runs."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from statistics import mean
from textwrap import fill

import numpy as np

from electra_exit.parsing import parse_fields
from modeling_electra_exit.trainers.finetuning.tasks import TASKS
from modeling_electra_exit.trainers.pretraining.run import build_config
from modeling_electra_exit.trainers.runtime.flops import step_flops

from .routing import Routing, recipe_of


# Arms called `rule`, `rule.tight` and `rule.generous` are one rule at several budgets.
BUDGETS = (".tight", "", ".generous")
# Separates an arm's name from its learning rate if it is run with several.
RATE_MARK = "@"
# An optional file, in the folder of the results, with conclusions.
FINDINGS = "FINDINGS.md"
# Suffix of an arm that adds exits to the arm of the same name without it.
EXITS_MARK = "_exits"
# Operations spent before a run on a model or cached replacements that it uses.
PRIOR_FLOPS = "prior FLOPs"
TASK_TITLES = {"sst2": "SST-2", "cola": "CoLA", "mrpc": "MRPC", "rte": "RTE", "stsb": "STS-B"}

# Title of a column, function from a result to its value (raises `KeyError` if there is none), format.
Column = tuple[str, Callable[[dict], float], str]


def write_report(name: str, study: dict, runs: list, results: Path) -> Path:
    """Write `README.md` and its figures to the folder of the results. Returns the path of `README.md`."""
    found = {}
    for run in runs:
        if (path := results / run.result_file).exists():
            result = json.loads(path.read_text("utf-8"))
            timed = results / timing_file(run.stage)
            if timed.exists():
                seconds = json.loads(timed.read_text("utf-8"))
                result["step_seconds"] = seconds.get(run.arm.split(RATE_MARK)[0])
            found.setdefault(run.stage, defaultdict(list))[run.arm].append(result)
    results.mkdir(parents=True, exist_ok=True)
    lines = [
        f"# Study: {study['title']}",
        "",
        f"Written by `python -m research.study {name}` from the JSON files in this folder; the study is defined in "
        f"`research/studies/{name}.yaml`. All arms are evaluated at full depth (a learned router: at its capacity) on "
        "the same corrupted held-out text. "
        "For an arm with several seeds, the mean is followed by the value of each seed. FLOPs cover the whole run, "
        "including dense phases, for the discriminator's layers alone and for everything. They are relative to the "
        f"arm `{study['baseline']}` unless the stage names another.",
        "",
    ]
    if (results / FINDINGS).exists():
        lines += [f"Conclusions and their limits: [{FINDINGS}]({FINDINGS}).", ""]
    stages, choosing_seed = study["stages"], study.get("choosing_seed")
    best = {stage: at_better_rate(arms, choosing_seed) for stage, arms in found.items()}
    timed = {stage: arms for stage, arms in best.items() if "steps" in stages[stage]}
    if len(timed) > 1:
        lines += envelope(timed)
        draw_envelope(timed, results / "envelope.png")
    for stage, arms in found.items():
        baseline = stages[stage].get("baseline", study["baseline"])
        lines += [f"## Stage {stage}: {tokens_of(find_arm(arms, baseline) or chain(*arms.values())):.1f} M tokens", ""]
        if baseline != study["baseline"]:
            lines += [f"FLOPs and times are relative to the arm `{baseline}`.", ""]
        if all(result.get("step_seconds") for group in arms.values() for result in group):
            lines += ["Times are computed from median step times of all arms in alternation (`--time_steps`).", ""]
        chosen = best[stage]
        if len(chosen) < len(arms):
            how = "" if choosing_seed is None else f" of seed {choosing_seed}, without that seed if there are others"
            lines += [f"Each arm at the learning rate (after its name) with the best held-out ROC-AUC{how}:", ""]
        budgets, scores = scores_at_equal_cost(chosen, baseline)
        parts = (equal_cost(budgets, scores), exits_table(chosen, baseline, scores), difficulty_table(chosen))
        lines += [*table(chosen, baseline), "", *chain(*parts), ""]
        if len(chosen) < len(arms):
            lines += ["All learning rates:", "", *table(arms, baseline), ""]
        for figure, draw in FIGURES.items():
            if draw(chosen, results / f"{stage}-{figure}.png"):
                lines += [f"![{figure}]({stage}-{figure}.png)", ""]
    path = results / "README.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def timing_file(stage: str) -> str:
    """Name of the file, in the folder of the results, that `--time_steps` writes."""
    return f"{stage}-step-seconds.json"


def tokens_of(results: Iterable[dict]) -> float:
    """Millions of tokens of the longest run."""
    return max(result["training"]["tokens"] for result in results) / 1e6


def at_better_rate(arms: dict[str, list[dict]], choosing_seed: int | None = None) -> dict[str, list[dict]]:
    """Among arms that differ only in the learning rate, keep the one with the best mean held-out ROC-AUC.

    With `choosing_seed`, only runs with this seed count for the choice. If the chosen arm has runs with other seeds,
    only those are kept, because the seed that chose the rate favors it.
    """
    best, score = {}, {}
    for arm, group in arms.items():
        name = arm.split(RATE_MARK)[0]
        choosing = [result for result in group if choosing_seed == result["seed"]] or group
        if _mean_auc(choosing) > score.get(name, 0.0):
            best[name], score[name] = arm, _mean_auc(choosing)
    chosen = {arm: arms[arm] for arm in best.values()}
    return {arm: [r for r in group if r["seed"] != choosing_seed] or group for arm, group in chosen.items()}


def find_arm(arms: dict[str, list[dict]], name: str) -> list[dict] | None:
    """The runs of an arm at any learning rate; `None` if there are none."""
    return next((group for arm, group in arms.items() if arm.split(RATE_MARK)[0] == name), None)


# ---- Tables ----


def columns_of(results: list[dict]) -> list[Column]:
    """The columns of quality: two per held-out set and one per task, if any result has them."""
    judged = sorted({key for result in results for key in result["judged"]})
    columns = []
    for key in judged:
        if key.startswith("held_out"):
            where = key.removeprefix("held_out").replace("_", ", ", 1)
            columns.append((f"ROC-AUC{where}", partial(_judged, key, "roc_auc"), "{:.4f}"))
            columns.append((f"average precision{where}", partial(_judged, key, "average_precision"), "{:.4f}"))
    if "blimp" in judged:
        columns.append(("BLiMP", partial(_judged, "blimp", "accuracy"), "{:.4f}"))
    columns += [
        (title, partial(_judged, task, TASKS[task].metrics[0]), "{:.4f}")
        for task, title in TASK_TITLES.items()
        if task in judged
    ]
    return columns


def _judged(key: str, metric: str, result: dict) -> float:
    return result["judged"][key][metric]


def table(arms: dict[str, list[dict]], baseline: str) -> list[str]:
    """A table of cost relative to the baseline, and quality."""
    reference = find_arm(arms, baseline)
    columns = columns_of([result for group in arms.values() for result in group])
    costs = {
        "FLOPs, layers": lambda r: r["flops"]["blocks"],
        "FLOPs, all": lambda r: r["flops"]["total"],
        "FLOPs per step": lambda r: r["flops"]["total"] / r["training"]["steps"],
        "time per step": _seconds_a_step,
    }
    if any(result.get("given", {}).get("flops") for group in arms.values() for result in group):
        costs[PRIOR_FLOPS] = lambda r: r["flops"]["total"] + r["given"]["flops"]
    rows = [["arm", *costs, *(title for title, *_ in columns)]]
    for arm, group in arms.items():
        row = [arm]
        for title, cost in costs.items():
            less = costs["FLOPs, all"] if title == PRIOR_FLOPS else None
            row.append(_ratio(group, reference, cost, less))
        rows.append(row + [_cell(group, column) for column in columns])
    return _markdown(rows)


def envelope(stages: dict[str, dict[str, list[dict]]]) -> list[str]:
    """A table for stages whose arms all train for the same time: the final ROC-AUC of each arm in each stage at its
    best learning rate, with the best of each stage in bold."""
    names = dict.fromkeys(arm.split(RATE_MARK)[0] for arms in stages.values() for arm in arms)
    rows = [["arm", *stages]]
    for name in names:
        row = [name]
        for arms in stages.values():
            group = find_arm(arms, name)
            cell = "" if group is None else _spread([held_out_auc(result) for result in group], "{:.4f}")
            best = group is not None and group is max(arms.values(), key=_mean_auc)
            row.append(f"**{cell}**" if best else cell)
        rows.append(row)
    return [
        "## The best arm for a training time",
        "",
        "Held-out ROC-AUC at the end of training. All runs of a stage train for the same time, on schedules that end "
        "there, each at its best learning rate. The best of each stage is in bold.",
        "",
        *_markdown(rows),
        "",
        "![envelope](envelope.png)",
        "",
    ]


# The costs at which arms are compared: name in a curve, unit, symbol of the unit.
COSTS = {"tokens": ("tokens", 1e6, "M"), "FLOPs": ("flops", 1e12, "T"), "time": ("seconds", 1.0, "s")}


def scores_at_equal_cost(arms: dict[str, list[dict]], baseline: str) -> tuple[dict, dict]:
    """Held-out ROC-AUC at the tokens, operations and seconds of the arm that spends the least. Arms with less than
    half of the baseline's operations do not set these budgets.

    Returns:
        The budgets by the keys of `COSTS`, and for each the scores of each arm's runs; both empty if a run has no
        learning curve.
    """
    curves = {arm: [curve(result) for result in group] for arm, group in arms.items()}
    if not all(found["score"] for group in curves.values() for found in group):
        return {}, {}
    spent = {arm: mean(result["flops"]["total"] for result in group) for arm, group in arms.items()}
    reference = find_arm(arms, baseline)
    enough = mean(result["flops"]["total"] for result in reference) / 2 if reference else 0.0
    compared = [found for arm, group in curves.items() if spent[arm] >= enough for found in group]
    budgets = {cost: min(found[axis][-1] for found in compared) for cost, (axis, *_) in COSTS.items()}
    return budgets, {
        cost: {arm: [_at(found, COSTS[cost][0], budget) for found in group] for arm, group in curves.items()}
        for cost, budget in budgets.items()
    }


def equal_cost(budgets: dict, scores: dict) -> list[str]:
    """The table of [`scores_at_equal_cost`]."""
    if not budgets:
        return []
    titles = [f"equal {cost} ({budgets[cost] / unit:.1f} {sign})" for cost, (_, unit, sign) in COSTS.items()]
    rows = [["arm", *titles]]
    rows += [[arm, *(_spread(scores[cost][arm], "{:.4f}") for cost in COSTS)] for arm in scores["tokens"]]
    return [
        "Held-out ROC-AUC (the mean over the held-out sets) from the learning curves, at the total cost of the "
        "cheapest arm. Arms with less than half of the baseline's operations do not count as the cheapest, and are "
        "read at their own end. Times exclude evaluation and prior costs, such as training a given generator. Longer "
        "runs are read before their learning rate has decayed, which is a disadvantage for them:",
        "",
        *_markdown(rows),
    ]


def exits_table(arms: dict[str, list[dict]], baseline: str, scores: dict) -> list[str]:
    """A table with the arms `name` and `name_exits`, which differ only in exits, in one row. Empty if there are none.
    `scores` are those of [`scores_at_equal_cost`]."""
    by_name = {arm.split(RATE_MARK)[0]: arm for arm in arms}
    if not scores or not any(f"{name}{EXITS_MARK}" in by_name for name in by_name):
        return []
    reference = find_arm(arms, baseline)
    columns = {
        "time per step": lambda arm: _ratio(arms[arm], reference, _seconds_a_step),
        "equal tokens": lambda arm: _spread(scores["tokens"][arm], "{:.4f}"),
        "equal time": lambda arm: _spread(scores["time"][arm], "{:.4f}"),
    }
    rows = [["arm", *(f"{title}{mark}" for title in columns for mark in ("", ", exits"))]]
    for name, arm in by_name.items():
        if not name.endswith(EXITS_MARK):
            pair = [arm, by_name.get(f"{name}{EXITS_MARK}")]
            rows.append([name, *(cell(each) if each else "" for cell in columns.values() for each in pair)])
    return ["", "Each arm without and, if it was run, with exits:", "", *_markdown(rows)]


def _at(found: dict, axis: str, budget: float) -> float:
    """The score of a curve at a budget, by linear interpolation, constant beyond its ends."""
    return float(np.interp(budget, found[axis], found["score"]))


def difficulty_table(arms: dict[str, list[dict]]) -> list[str]:
    """A table of the difficulty of each arm's own generator at the end. Empty if all arms have the same generator."""
    columns = [
        ("replacements equal to the original", lambda r: r["generator"]["generator_equal_rate"], "{:.4f}"),
        ("log-probability of replacements", lambda r: r["generator"]["replacement_log_probability"], "{:.2f}"),
        ("log-probability of originals", lambda r: r["generator"]["original_log_probability"], "{:.2f}"),
        ("ROC-AUC on its own replacements", lambda r: r["generator"]["roc_auc"], "{:.4f}"),
    ]
    results = [result for group in arms.values() for result in group]
    generators = {
        json.dumps({name: value for name, value in result["fields"].items() if name.startswith("generator_")})
        for result in results
    }
    if len(generators) < 2 or not any(result.get("generator") for result in results):
        return []
    rows = [["arm", *(title for title, *_ in columns)]]
    rows += [[arm, *(_cell(group, column) for column in columns)] for arm, group in arms.items()]
    return ["", "Difficulty of each arm's own generator, on the held-out text at the end:", "", *_markdown(rows)]


def _markdown(rows: list[list[str]]) -> list[str]:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return [head, "|---" * len(rows[0]) + "|", *body]


def _cell(group: list[dict], column: Column) -> str:
    values = []
    for result in group:
        with suppress(KeyError):
            values.append(column[1](result))
    return _spread(values, column[2])


def _ratio(group: list[dict], reference: list[dict] | None, cost, less=None) -> str:
    """The mean cost of a group divided by that of the reference, as text. With `less`, the group's mean of
    `cost - less` divided by the reference's mean of `less`."""
    if not reference:
        return ""
    own = mean(cost(r) - (less(r) if less else 0) for r in group)
    return f"{own / mean((less or cost)(r) for r in reference):.3f}"


def _spread(values: list[float], form: str) -> str:
    if len(values) < 2:
        return "".join(form.format(value) for value in values)
    return form.format(mean(values)) + " (" + ", ".join(form.format(value) for value in values) + ")"


def held_out_auc(result: dict) -> float:
    """The final ROC-AUC, averaged over the held-out sets."""
    return mean(found["roc_auc"] for key, found in result["judged"].items() if key.startswith("held_out"))


def _mean_auc(group: list[dict]) -> float:
    return mean(map(held_out_auc, group))


# ---- Curves ----


def measured_seconds(training: dict) -> float:
    """Training time of a run in seconds, excluding evaluation and saving."""
    return training["tokens"] / training["tokens_per_second"]


def cumulative_seconds(result: dict) -> list[float]:
    """Seconds after each step: from the times of `--time_steps` if there are any, else from the run itself."""
    steps = result["training"]["steps"]
    timed = result.get("step_seconds")
    if timed is None:
        return [measured_seconds(result["training"]) * (step + 1) / steps for step in range(steps)]
    _, _, args, _ = parse_fields({**recipe_of(result["fields"]), "output_dir": "unused"})
    return list(
        accumulate(
            timed["exits" if "exits" in timed and args.exits_active(s, steps) else "dense"] for s in range(steps)
        )
    )


def seconds_of(result: dict) -> float:
    return cumulative_seconds(result)[-1]


def _seconds_a_step(result: dict) -> float:
    return seconds_of(result) / result["training"]["steps"]


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


def cumulative_flops(result: dict) -> list[float]:
    """Total operations executed after each step of a run."""
    config_fields, data_args, args, _ = parse_fields({**recipe_of(result["fields"]), "output_dir": "unused"})
    config, length, steps = build_config(config_fields), data_args.max_seq_length, result["training"]["steps"]
    batch = result["training"]["tokens_per_step"] // length
    generator = result["flops"]["generator"] / steps  # constant, and not derivable from the config for every generator
    counted = step_flops if (routing := Routing.of(result["fields"])) is None else routing.step_flops
    dense, exiting = (counted(config, batch, length, active).discriminator for active in (False, True))
    return list(
        accumulate(generator + (exiting if args.exits_active(step, steps) else dense) for step in range(steps))
    )


# ---- Figures. Each function returns whether it had anything to draw. ----


def _plots(columns: int, height: float = 4.2):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=(5.5 * columns, height), layout="constrained")


def _legend_beside(figure, plot) -> None:
    figure.legend(*plot.get_legend_handles_labels(), loc="outside right upper", fontsize=7)


def _save(figure, path: Path) -> bool:
    from matplotlib import pyplot

    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def draw_curves(arms: dict[str, list[dict]], path: Path) -> bool:
    """Plot held-out ROC-AUC against tokens, operations and time: the mean of each arm and the range of its seeds."""
    figure, plots = _plots(3, height=5)
    for number, (arm, group) in enumerate(arms.items()):
        color, line = f"C{number % 10}", ("-", "--", ":")[number // 10 % 3]
        found = [curve(result) for result in group]
        scores = list(zip(*(run["score"] for run in found), strict=True))
        for plot, axis, unit in zip(plots, ("tokens", "flops", "seconds"), (1e6, 1e12, 60), strict=True):
            x = [mean(at) / unit for at in zip(*(run[axis] for run in found), strict=True)]
            plot.plot(x, [mean(at) for at in scores], label=arm, color=color, linestyle=line, marker=".")
            plot.fill_between(x, [min(at) for at in scores], [max(at) for at in scores], color=color, alpha=0.15)
    plots[0].set(xlabel="million tokens", ylabel="held-out ROC-AUC, full depth")
    plots[1].set(xlabel="training TFLOPs, everything included")
    plots[2].set(xlabel="minutes of training on this machine")
    _legend_beside(figure, plots[0])
    return _save(figure, path)


def draw_pareto(arms: dict[str, list[dict]], path: Path) -> bool:
    """Plot the final held-out ROC-AUC against total operations and total time, with the Pareto front. Prior costs are
    included and drawn as a bar to the left of the point. Arms are numbered from the best down."""
    figure, plots = _plots(2, height=6)
    axes = (("flops", lambda r: r["flops"]["total"], 1e12), ("seconds", lambda r: seconds_of(r), 60))
    ranked = sorted(arms.items(), key=lambda item: -_mean_auc(item[1]))
    for plot, (part, own, unit) in zip(plots, axes, strict=True):
        reached = []
        for number, (arm, group) in enumerate(ranked, start=1):
            given = mean(r.get("given", {}).get(part, 0.0) for r in group) / unit
            cost, score = mean(map(own, group)) / unit + given, _mean_auc(group)
            reached.append((cost, score))
            plot.plot([cost - given, cost], [score, score], color=f"C{number % 10}", linewidth=1)
            plot.plot(cost, score, "o", color=f"C{number % 10}", label=f"{number} {arm}")
            plot.annotate(str(number), (cost, score), fontsize=7, xytext=(3, 3), textcoords="offset points")
        front = sorted(p for p in reached if p[1] == max(score for cost, score in reached if cost <= p[0]))
        plot.plot(*zip(*front, strict=True), "k-", linewidth=0.8, drawstyle="steps-post")
    plots[0].set(xlabel="TFLOPs, everything included", ylabel="held-out ROC-AUC")
    plots[1].set(xlabel="minutes on this machine")
    _legend_beside(figure, plots[0])
    return _save(figure, path)


def draw_envelope(stages: dict[str, dict[str, list[dict]]], path: Path) -> None:
    """Plot the table of [`envelope`] against the time of the stages: a line per arm through the means, a point per
    run."""
    figure, plots = _plots(1)
    names = dict.fromkeys(arm.split(RATE_MARK)[0] for arms in stages.values() for arm in arms)
    minutes = [mean(seconds_of(r) for group in arms.values() for r in group) / 60 for arms in stages.values()]
    for number, name in enumerate(names):
        groups = [(at, find_arm(arms, name)) for at, arms in zip(minutes, stages.values(), strict=True)]
        groups = [(at, [held_out_auc(result) for result in group]) for at, group in groups if group]
        plots.plot([at for at, _ in groups], [mean(s) for _, s in groups], f"C{number}-", label=name)
        plots.plot([at for at, s in groups for _ in s], [score for _, s in groups for score in s], f"C{number}.")
    plots.set(xlabel="minutes on this machine", ylabel="held-out ROC-AUC at the end", xscale="log")
    for set_formatter in (plots.xaxis.set_major_formatter, plots.xaxis.set_minor_formatter):
        set_formatter("{x:g}")
    plots.legend(fontsize=8)
    _save(figure, path)


def draw_kept(arms: dict[str, list[dict]], path: Path) -> bool:
    """Plot the share of tokens that each layer computes while exits are active."""
    exiting = {arm: group[0]["kept_share"] for arm, group in arms.items() if min(group[0]["kept_share"]) < 1}
    if not exiting:
        return False
    figure, plot = _plots(1)
    for shares in dict.fromkeys(map(tuple, exiting.values())):
        names = [arm for arm, kept in exiting.items() if tuple(kept) == shares]
        plot.plot(range(1, len(shares) + 1), shares, marker="o", label=fill(", ".join(names), 50))
    plot.set(xlabel="layer", ylabel="share of the tokens computed", ylim=(0, 1.05))
    figure.legend(loc="outside lower center", fontsize=6)
    return _save(figure, path)


def draw_budgets(arms: dict[str, list[dict]], path: Path) -> bool:
    """Plot quality against the share of tokens kept, with one curve per rule."""
    rules = [arm for arm in arms if any(f"{arm}{budget}" in arms for budget in BUDGETS if budget)]
    if not rules:
        return False
    figure, plot = _plots(1)
    for color, rule in enumerate(rules):
        groups = [arms[f"{rule}{budget}"] for budget in BUDGETS if f"{rule}{budget}" in arms]
        shares = [mean(group[0]["kept_share"]) for group in groups]
        plot.plot(shares, [mean(held_out_auc(r) for r in group) for group in groups], color=f"C{color}", label=rule)
        for share, group in zip(shares, groups, strict=True):
            plot.plot([share] * len(group), [held_out_auc(r) for r in group], ".", color=f"C{color}")
    for arm, style in (("dense", "-"), ("dense_slower", ":"), ("dense_with_heads", "--")):
        if arm in arms:
            plot.axhline(mean(held_out_auc(r) for r in arms[arm]), color="k", linestyle=style, label=arm, linewidth=1)
    plot.set(xlabel="kept share of tokens, mean over layers, while exits are active", ylabel="held-out ROC-AUC")
    plot.legend(fontsize=8)
    return _save(figure, path)


FIGURES = {
    "curves": draw_curves,
    "pareto": draw_pareto,
    "kept": draw_kept,
    "budgets": draw_budgets,
}
