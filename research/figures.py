"""The figures of a study's report. Each function returns whether it had anything to draw."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from textwrap import fill

from .results import Arms, Legend, base, curve, find_arm, held_out_auc, mean_auc, seconds_of


# Arms called `rule`, `rule.tight` and `rule.generous` are one rule at several budgets.
BUDGETS = (".tight", "", ".generous")
# Width of a legend in inches.
LEGEND = 4.0


def _plots(columns: int, height: float = 4.2):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    width = 5 * columns + LEGEND
    return pyplot.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)


def _legend_beside(figure, plot) -> None:
    figure.legend(*plot.get_legend_handles_labels(), loc="outside right upper", fontsize=8)


def _save(figure, path: Path) -> bool:
    from matplotlib import pyplot

    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _points(plot, x: list[float], y: list[float], style: dict) -> None:
    """The seeds of an arm."""
    plot.plot(x, y, linestyle="", marker=style["marker"], color=style["color"], markersize=3, alpha=0.45)


def draw_curves(arms: Arms, legend: Legend, path: Path) -> bool:
    """Plot held-out ROC-AUC against tokens, operations and time: a line through the means of an arm, a point per seed,
    the best arm first in the legend."""
    curves = {arm: [curve(result) for result in group] for arm, group in arms.items()}
    if not any(len(found["score"]) > 1 for group in curves.values() for found in group):
        return False
    figure, (plots,) = _plots(3, height=5.5)
    for arm in sorted(arms, key=lambda arm: -mean_auc(arms[arm])):
        found, style = curves[arm], legend.style(arm)
        scores = list(zip(*(run["score"] for run in found), strict=True))
        for plot, axis, unit in zip(plots, ("tokens", "flops", "seconds"), (1e6, 1e12, 60), strict=True):
            x = [mean(at) / unit for at in zip(*(run[axis] for run in found), strict=True)]
            plot.plot(x, [mean(at) for at in scores], label=legend.title(arm), **{**style, "marker": ""})
            for run in found if len(found) > 1 else ():
                _points(plot, [at / unit for at in run[axis]], run["score"], style)
    plots[0].set(xlabel="million tokens", ylabel="held-out ROC-AUC, full depth")
    plots[1].set(xlabel="training TFLOPs, everything included")
    plots[2].set(xlabel="minutes of training")
    _legend_beside(figure, plots[0])
    return _save(figure, path)


def draw_pareto(arms: Arms, legend: Legend, path: Path) -> bool:
    """Plot the final held-out ROC-AUC against total operations and total time, with the Pareto front: the mean of an
    arm, and small points for its seeds. Prior costs are included and drawn as a bar to the left of the point. Arms are
    numbered from the best down."""
    figure, (plots,) = _plots(2, height=6)
    axes = (("flops", lambda r: r["flops"]["total"], 1e12), ("seconds", seconds_of, 60))
    ranked, places = sorted(arms.items(), key=lambda item: -mean_auc(item[1])), []
    for plot, (part, own, unit) in zip(plots, axes, strict=True):
        reached = [_draw_arm(plot, arm, group, legend, number, (part, own, unit))
                   for number, (arm, group) in enumerate(ranked, start=1)]  # fmt: skip
        front = sorted(p for p in reached if p[1] == max(score for cost, score in reached if cost <= p[0]))
        plot.plot(*zip(*front, strict=True), "k-", linewidth=0.8, drawstyle="steps-post", zorder=0)
        plot.margins(x=0.1)
        places.append(reached)
    plots[0].set(xlabel="training TFLOPs, everything included", ylabel="held-out ROC-AUC at the end")
    plots[1].set(xlabel="minutes of training")
    _legend_beside(figure, plots[0])
    figure.draw_without_rendering()  # settles the places of the points
    for plot, reached in zip(plots, places, strict=True):
        _number_apart(plot, reached)
    return _save(figure, path)


def _draw_arm(plot, arm: str, group: list[dict], legend: Legend, number: int, axis: tuple) -> tuple[float, float]:
    """Draw an arm in [`draw_pareto`]. Returns its cost and score."""
    (part, own, unit), style = axis, legend.style(arm)
    given = mean(r.get("given", {}).get(part, 0.0) for r in group) / unit
    cost, score = mean(map(own, group)) / unit + given, mean_auc(group)
    plot.plot([cost - given, cost], [score, score], color=style["color"], linewidth=1)
    if len(group) > 1:
        _points(plot, [own(r) / unit + given for r in group], [held_out_auc(r) for r in group], style)
    plot.plot(cost, score, **{**style, "linestyle": ""}, label=f"{number} {legend.title(arm)}")
    return cost, score


def _number_apart(plot, points: list[tuple[float, float]]) -> None:
    """Number points from 1, each beside its point where no earlier number is."""
    taken = [plot.transData.transform(point) for point in points]  # pixels
    for number, place in enumerate(list(taken), start=1):
        offsets = [(6, 3), (6, -9), (-13, 3), (-13, -9), (-3, 7), (-3, -14), (16, 3), (16, -9), (-23, 3), (-23, -9)]
        centers = [(place[0] + 1.5 * (x + 3), place[1] + 1.5 * (y + 3)) for x, y in offsets]
        free = [_distance(center, taken) for center in centers]
        chosen = next((i for i, distance in enumerate(free) if distance > 11), free.index(max(free)))
        taken.append(centers[chosen])
        plot.annotate(str(number), points[number - 1], fontsize=7, xytext=offsets[chosen], textcoords="offset points")


def _distance(place, others) -> float:
    return min(((place[0] - x) ** 2 + (place[1] - y) ** 2) ** 0.5 for x, y in others)


def draw_envelope(stages: dict[str, Arms], legend: Legend, path: Path) -> bool:
    """Plot the table of [`tables.envelope`] against the time of the stages: a line per arm through the means, a point
    per run."""
    figure, ((plot,),) = _plots(1)
    names = dict.fromkeys(base(arm) for arms in stages.values() for arm in arms)
    minutes = [mean(seconds_of(r) for group in arms.values() for r in group) / 60 for arms in stages.values()]
    for name in names:
        groups = [(at, find_arm(arms, name)) for at, arms in zip(minutes, stages.values(), strict=True)]
        groups = [(at, [held_out_auc(result) for result in group]) for at, group in groups if group]
        style = legend.style(name)
        plot.plot(*zip(*((at, mean(s)) for at, s in groups), strict=True), label=legend.title(name), **style)
        _points(plot, [at for at, s in groups for _ in s], [score for _, s in groups for score in s], style)
    plot.set(xlabel="minutes of training", ylabel="held-out ROC-AUC at the end", xscale="log")
    plot.set_xticks(minutes, [f"{at:.2g}" for at in minutes])
    plot.minorticks_off()
    _legend_beside(figure, plot)
    return _save(figure, path)


def draw_kept(arms: Arms, legend: Legend, path: Path) -> bool:
    """Plot the share of tokens that each layer computes while exits are active."""
    exiting = {arm: tuple(group[0]["kept_share"]) for arm, group in arms.items() if min(group[0]["kept_share"]) < 1}
    if not exiting:
        return False
    figure, ((plot,),) = _plots(1)
    for shares in dict.fromkeys(exiting.values()):
        same = [arm for arm, kept in exiting.items() if kept == shares]
        names = fill("; ".join(map(legend.title, same)), 60)
        plot.plot(range(1, len(shares) + 1), shares, label=names, **legend.style(same[0]))
    plot.set(xlabel="layer", ylabel="share of the tokens computed", ylim=(0, 1.05))
    plot.set_xticks(range(1, max(map(len, exiting.values())) + 1))
    _legend_beside(figure, plot)
    return _save(figure, path)


def draw_budgets(arms: Arms, legend: Legend, path: Path) -> bool:
    """Plot quality against the share of tokens kept, with one curve per rule, and full depth as horizontal lines."""
    rules = [arm for arm in arms if any(f"{arm}{budget}" in arms for budget in BUDGETS if budget)]
    if not rules:
        return False
    figure, ((plot,),) = _plots(1)
    for rule in rules:
        groups = [arms[f"{rule}{budget}"] for budget in BUDGETS if f"{rule}{budget}" in arms]
        shares, style = [mean(group[0]["kept_share"]) for group in groups], legend.style(rule)
        plot.plot(shares, list(map(mean_auc, groups)), label=legend.title(rule), **style)
        for share, group in zip(shares, groups, strict=True):
            _points(plot, [share] * len(group), list(map(held_out_auc, group)), style)
    for arm in ("dense", "dense_slower", "dense_with_heads"):
        if arm in arms:
            plot.axhline(mean_auc(arms[arm]), label=legend.title(arm), **{**legend.style(arm), "marker": ""})
    plot.set(xlabel="kept share of tokens, mean over layers, while exits are active", ylabel="held-out ROC-AUC")
    _legend_beside(figure, plot)
    return _save(figure, path)


FIGURES: dict[str, Callable[[Arms, Legend, Path], bool]] = {
    "curves": draw_curves,
    "pareto": draw_pareto,
    "kept": draw_kept,
    "budgets": draw_budgets,
}
