"""The tables of a study's report, as lines of Markdown."""

import json
from collections.abc import Callable
from statistics import mean

import numpy as np

from .measures import Measure, between_seeds, separates, standard_error
from .results import Arms, base, curve, find_arm, held_out_auc, mean_auc, peak_bytes, seconds_a_step


# Suffix of an arm that adds exits to the arm of the same name without it.
EXITS_MARK = "_exits"
# Operations spent before a run on a model or cached replacements that it uses.
PRIOR_FLOPS = "prior FLOPs"

# What to call an arm.
Title = Callable[[str], str]


def table(arms: Arms, baseline: str, measures: list[Measure], title: Title) -> list[str]:
    """A table of cost relative to the baseline, and quality."""
    reference = find_arm(arms, baseline)
    costs = {
        "FLOPs, layers": lambda r: r["flops"]["blocks"],
        "FLOPs, all": lambda r: r["flops"]["total"],
        "FLOPs per step": lambda r: r["flops"]["total"] / r["training"]["steps"],
        "time per step": seconds_a_step,
    }
    if all(peak_bytes(result) is not None for group in arms.values() for result in group):
        costs["peak memory"] = peak_bytes
    if any(result.get("given", {}).get("flops") for group in arms.values() for result in group):
        costs[PRIOR_FLOPS] = lambda r: r["flops"]["total"] + r["given"]["flops"]
    rows = [["arm", *costs, *(measure.title for measure in measures)]]
    for arm, group in arms.items():
        row = [title(arm)]
        for name, cost in costs.items():
            row.append(_ratio(group, reference, cost, costs["FLOPs, all"] if name == PRIOR_FLOPS else None))
        rows.append(row + [_spread(measure.values(group), "{:.4f}") for measure in measures])
    return markdown(rows)


# ---- Sizes and errors ----


def shown_measures(measures: list[Measure], arms: Arms, study: Arms) -> tuple[list[Measure], list[Measure]]:
    """The measures that a table shows, and those that it leaves out, because the arms do not differ by more than their
    errors explain. `study` are the arms of all stages, for the deviation between seeds if a stage has one seed."""
    shown = [m for m in measures if not m.downstream or separates(m, arms, _deviation(m, arms, study))]
    return shown, [measure for measure in measures if measure not in shown]


def _deviation(measure: Measure, arms: Arms, study: Arms) -> float | None:
    own = between_seeds(measure, arms)
    return between_seeds(measure, study) if own is None else own


def sizes_and_errors(measures: list[Measure], arms: Arms, study: Arms) -> str:
    """The sizes of the test sets, and the errors of a run's values."""
    judged = [result["judged"] for group in arms.values() for result in group]
    held_out = next((of for found in judged for key, of in found.items() if key.startswith("held_out")), {})
    parts = ["The size of the held-out text was not recorded."]
    if "tokens" in held_out:
        parts = [f"The held-out text has {held_out['tokens']:,} tokens in {held_out['sequences']:,} sequences."]
    if entities := next((found["entities"] for found in judged if "entities" in found), None):
        parts.append(
            f"Entities are probed on {entities['words']:,} words, of which {entities['share_of_entities']:.4f} are in "
            "a name; this share is chance."
        )
    errors = "; ".join(f"{measure.title} {text}" for measure in measures if (text := _error(measure, arms, study)))
    parts.append(f"Standard error of one run: {errors}." if errors else "No standard error is known from one seed.")
    return " ".join(parts)


def _error(measure: Measure, arms: Arms, study: Arms) -> str:
    """A run's standard error by its sources, as far as they are known."""
    tests = [measure.test_error(result) for group in arms.values() for result in group]
    known = [error for error in tests if error is not None]
    sources = {"test data": mean(known) if known else None, "seeds": _deviation(measure, arms, study)}
    return ", ".join(f"{error:.4f} ({source})" for source, error in sources.items() if error is not None)


def left_out(measures: list[Measure], arms: Arms, study: Arms, title: Title) -> str:
    """What the measures are that a table does not show, and their ranges."""
    if not measures:
        return ""
    ranges = []
    for measure in measures:
        means = {arm: mean(values) for arm, group in arms.items() if (values := measure.values(group))}
        low, high = min(means, key=means.get), max(means, key=means.get)
        ranges.append(
            f"{measure.title}, from {means[low]:.3f} ({title(low)}) to {means[high]:.3f} ({title(high)}), "
            f"standard error of one run {_error(measure, arms, study) or 'unknown'}"
        )
    return f"Not shown, because they do not separate the arms: {'; '.join(ranges)}."


# ---- Paired differences ----


def paired(group: list[dict], reference: list[dict], choosing_seed: int | None) -> list[tuple[dict, dict]]:
    """The runs of two arms with the same seed. The choosing seed counts only if there is no other."""
    by_seed = {result["seed"]: result for result in reference}
    pairs = [(result, by_seed[result["seed"]]) for result in group if result["seed"] in by_seed]
    return [pair for pair in pairs if pair[0]["seed"] != choosing_seed] or pairs


def difference(pairs: list[tuple[dict, dict]], measure: Measure) -> tuple[float, float | None, int] | None:
    """The mean difference of pairs of runs, its standard error (`None` for one pair) and the number of pairs.

    If resamples of the test set are kept, the error also covers the choice of the test set, which all seeds share.
    Returns `None` if no pair has the measure."""
    pairs = [pair for pair in pairs if all(measure.value(result) is not None for result in pair)]
    if not pairs:
        return None
    differences = [measure.value(ours) - measure.value(theirs) for ours, theirs in pairs]
    error = standard_error(differences)
    kept = [[result["judged"][measure.key].get("resamples") for result in pair] for pair in pairs]
    if error is not None and all(both[0] and both[1] for both in kept):
        resampled = np.mean([np.subtract(*both) for both in kept], axis=0)
        error = float(np.hypot(error, np.std(resampled)))
    return mean(differences), error, len(differences)


def difference_table(
    arms: Arms, baseline: str, measures: list[Measure], choosing_seed: int | None, title: Title
) -> list[str]:
    """A table of the differences of all arms from the baseline, paired by seed. Empty if there is nothing to pair."""
    reference, rows = find_arm(arms, baseline), []
    for arm, group in arms.items():
        pairs = paired(group, reference or [], choosing_seed)
        if base(arm) == baseline or not pairs:
            continue
        fresh = [] if choosing_seed is None else [str(sum(ours["seed"] != choosing_seed for ours, _ in pairs))]
        cells = (_difference(difference(pairs, measure), len(pairs)) for measure in measures)
        rows.append([title(arm), str(len(pairs)), *fresh, *cells])
    if not rows:
        return []
    fresh = [] if choosing_seed is None else ["seeds that chose nothing"]
    resampled = any("resamples" in of for group in arms.values() for r in group for of in r["judged"].values())
    also = " The error of entities also covers the choice of the test sentences." if resampled else ""
    return [
        f"Difference from *{title(baseline)}*, paired by seed, with its standard error over seeds (none for one "
        f"seed).{also}",
        "",
        *markdown([["arm", "seeds", *fresh, *(measure.title for measure in measures)], *rows]),
    ]


def _difference(found: tuple[float, float | None, int] | None, expected: int | None = None) -> str:
    """A difference with its error, and the number of pairs if it is not the expected one."""
    if found is None:
        return ""
    value, error, count = found
    return (
        f"{value:+.4f}" + ("" if error is None else f" ± {error:.4f}") + ("" if count == expected else f" ({count})")
    )


# ---- The envelope ----


def envelope(chosen: dict[str, Arms], arms: dict[str, Arms], choosing_seed: int | None, title: Title) -> list[str]:
    """Tables for stages whose arms all train for the same time: the final ROC-AUC of each arm in each stage, and its
    difference from the best of the stage.

    Args:
        chosen: for each stage, the runs that count, of each arm at its best learning rate.
        arms: the same with the runs of the seed that chose the rates.
        choosing_seed: that seed.
        title: what to call an arm.
    """
    names = list(dict.fromkeys(base(arm) for found in chosen.values() for arm in found))
    best = {stage: max(found, key=lambda arm: mean_auc(found[arm])) for stage, found in chosen.items()}
    values, differences = [["arm", *chosen]], [["arm", *chosen]]
    for name in sorted(names, key=names.index):
        groups = {stage: find_arm(found, name) for stage, found in chosen.items()}
        cells = {
            stage: "" if group is None else _spread([held_out_auc(result) for result in group], "{:.4f}")
            for stage, group in groups.items()
        }
        values.append([title(name), *(f"**{c}**" if base(best[s]) == name else c for s, c in cells.items())])
        differences.append([
            title(name),
            *(_from_best(find_arm(arms[s], name), arms[s][best[s]], choosing_seed) for s in chosen),
        ])  # fmt: skip
    return [
        "## The best arm for a training time",
        "",
        "Held-out ROC-AUC at the end of training. All runs of a stage train for the same time, on schedules that end "
        "there, each arm at its best learning rate. The best of each stage is in bold.",
        "",
        *markdown(values),
        "",
        "Difference from the best arm of the stage, paired by seed, with its standard error over seeds and (in "
        "parentheses) the number of seeds. *Level*: within two standard errors of the best. With one seed there is no "
        f"error and no such statement.{_about_choosing(choosing_seed)}",
        "",
        *markdown(differences),
        "",
        "![envelope](envelope.png)",
        "",
    ]


def _about_choosing(seed: int | None) -> str:
    return "" if seed is None else f" A star marks numbers from seed {seed}, which also chose the learning rates."


def _from_best(group: list[dict] | None, best: list[dict], choosing_seed: int | None) -> str:
    if group is None:
        return ""
    if group is best:
        return "best"
    pairs = paired(group, best, choosing_seed)
    if not pairs:
        return "no common seed"
    differences = [held_out_auc(ours) - held_out_auc(theirs) for ours, theirs in pairs]
    error = standard_error(differences)
    star = "*" if pairs[0][0]["seed"] == choosing_seed else ""
    level = ", *level*" if error is not None and mean(differences) + 2 * error >= 0 else ""
    return f"{_difference((mean(differences), error, len(pairs)))}{star}{level}"


# ---- Equal cost ----


# The costs at which arms are compared: name in a curve, unit, symbol of the unit.
COSTS = {"tokens": ("tokens", 1e6, "M"), "FLOPs": ("flops", 1e12, "T"), "time": ("seconds", 1.0, "s")}


def scores_at_equal_cost(arms: Arms, baseline: str) -> tuple[dict, dict]:
    """Held-out ROC-AUC at the tokens, operations and seconds of the arm that spends the least. Arms with less than
    half of the baseline's operations do not set these budgets.

    Returns:
        The budgets by the keys of `COSTS`, and for each the scores of each arm's runs; both empty if a run has no
        learning curve, which takes two evaluations.
    """
    curves = {arm: [curve(result) for result in group] for arm, group in arms.items()}
    if not all(len(found["score"]) > 1 for group in curves.values() for found in group):
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


def equal_cost(budgets: dict, scores: dict, title: Title) -> list[str]:
    """The table of [`scores_at_equal_cost`]."""
    if not budgets:
        return []
    titles = [f"equal {cost} ({budgets[cost] / unit:.1f} {sign})" for cost, (_, unit, sign) in COSTS.items()]
    rows = [["arm", *titles]]
    rows += [[title(arm), *(_spread(scores[cost][arm], "{:.4f}") for cost in COSTS)] for arm in scores["tokens"]]
    return [
        "Held-out ROC-AUC (the mean over the held-out sets) from the learning curves, at the total cost of the "
        "cheapest arm. Arms with less than half of the baseline's operations do not count as the cheapest, and are "
        "read at their own end. Times exclude evaluation and prior costs, such as training a given generator. Longer "
        "runs are read before their learning rate has decayed, which is a disadvantage for them:",
        "",
        *markdown(rows),
    ]


def exits_table(arms: Arms, baseline: str, scores: dict, title: Title) -> list[str]:
    """A table with the arms `name` and `name_exits`, which differ only in exits, in one row. Empty if there are none.
    `scores` are those of [`scores_at_equal_cost`]."""
    by_name = {base(arm): arm for arm in arms}
    if not scores or not any(f"{name}{EXITS_MARK}" in by_name for name in by_name):
        return []
    reference = find_arm(arms, baseline)
    columns = {
        "time per step": lambda arm: _ratio(arms[arm], reference, seconds_a_step),
        "equal tokens": lambda arm: _spread(scores["tokens"][arm], "{:.4f}"),
        "equal time": lambda arm: _spread(scores["time"][arm], "{:.4f}"),
    }
    rows = [["arm", *(f"{name}{mark}" for name in columns for mark in ("", ", exits"))]]
    for name, arm in by_name.items():
        if not name.endswith(EXITS_MARK):
            pair = [arm, by_name.get(f"{name}{EXITS_MARK}")]
            rows.append([title(name), *(cell(each) if each else "" for cell in columns.values() for each in pair)])
    return ["Each arm without and, if it was run, with exits:", "", *markdown(rows)]


def _at(found: dict, axis: str, budget: float) -> float:
    """The score of a curve at a budget, by linear interpolation, constant beyond its ends."""
    return float(np.interp(budget, found[axis], found["score"]))


def difficulty_table(arms: Arms, title: Title) -> list[str]:
    """A table of the difficulty of each arm's own generator at the end. Empty if all arms have the same generator."""
    columns = {
        "replacements equal to the original": ("generator_equal_rate", "{:.4f}"),
        "log-probability of replacements": ("replacement_log_probability", "{:.2f}"),
        "log-probability of originals": ("original_log_probability", "{:.2f}"),
        "ROC-AUC on its own replacements": ("roc_auc", "{:.4f}"),
    }
    results = [result for group in arms.values() for result in group]
    generators = {
        json.dumps({name: value for name, value in result["fields"].items() if name.startswith("generator_")})
        for result in results
    }
    if len(generators) < 2 or not any(result.get("generator") for result in results):
        return []
    rows = [["arm", *columns]]
    for arm, group in arms.items():
        given = [result["generator"] for result in group]
        cells = (_spread([of[name] for of in given if name in of], form) for name, form in columns.values())
        rows.append([title(arm), *cells])
    return ["Difficulty of each arm's own generator, on the held-out text at the end:", "", *markdown(rows)]


def markdown(rows: list[list[str]]) -> list[str]:
    """Rows of cells, of which the first is the head, as lines of a table."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return [head, "|---" * len(rows[0]) + "|", *body]


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
