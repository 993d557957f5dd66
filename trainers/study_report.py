"""What a study found, as Markdown and figures; every number is read from the runs' JSON files."""

import json
from collections import defaultdict
from itertools import accumulate
from pathlib import Path
from statistics import mean

from .flops import capacity_history, step_flops, with_capacities
from .parsing import parse_fields
from .pretraining import build_config


# title, how to find the value in a result, how to print it
COLUMNS = (
    ("ROC-AUC", lambda r: r["judged"]["held_out"]["roc_auc"], "{:.4f}"),
    ("average precision", lambda r: r["judged"]["held_out"]["average_precision"], "{:.4f}"),
    ("BLiMP", lambda r: r["judged"]["blimp"]["accuracy"], "{:.4f}"),
    ("SST-2", lambda r: r["judged"]["sst2"]["accuracy"], "{:.4f}"),
    ("STS-B", lambda r: r["judged"]["stsb"]["pearson"], "{:.4f}"),
)
# Arms called `rule`, `rule.tight` and `rule.generous` are one rule at several budgets.
BUDGETS = (".tight", "", ".generous")


def write_report(runs: list, results: Path) -> Path:
    """Write `README.md` and its figures into the folder of the results; returns the path of the former."""
    found = {}
    for run in runs:
        if (path := results / run.result_file).exists():
            found.setdefault(run.stage, defaultdict(list))[run.arm].append(json.loads(path.read_text("utf-8")))
    results.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Study: which exits pay?",
        "",
        "Written by `electra-exit study exits` from the JSON files beside it; the recipe is "
        "`trainers/studies/exits.yaml`. All arms are judged at full depth, on the same corrupted held-out text. Where "
        "an arm has more than one seed, the mean is followed by the single seeds. FLOPs are of the whole run, dense "
        "phases included, over those of the arm `dense`: of the discriminator's layers alone, and of everything.",
        "",
    ]
    for stage, arms in found.items():
        lines += [f"## Stage {stage}: {tokens_of(arms):.1f} M tokens", "", *table(arms), ""]
        for name, draw in (("curves", draw_curves), ("budgets", draw_budgets), ("exits", draw_exits)):
            if draw(arms, results / f"{stage}-{name}.png"):
                lines += [f"![{name}]({stage}-{name}.png)", ""]
    path = results / "README.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def tokens_of(arms: dict[str, list[dict]]) -> float:
    """Millions of tokens, the most that an arm saw."""
    return max(result["training"]["tokens"] for group in arms.values() for result in group) / 1e6


def table(arms: dict[str, list[dict]]) -> list[str]:
    columns = [column for column in COLUMNS if any(_has(r, column[1]) for group in arms.values() for r in group)]
    lines = [
        "| arm | FLOPs, layers | FLOPs, all | " + " | ".join(title for title, *_ in columns) + " |",
        "|---" * (3 + len(columns)) + "|",
    ]
    dense = arms.get("dense")
    for arm, group in arms.items():
        cells = [_ratio(group, dense, part) for part in ("blocks", "total")]
        for _, find, form in columns:
            values = [find(result) for result in group if _has(result, find)]
            cells.append(_spread(values, form))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def _has(result: dict, find) -> bool:
    try:
        find(result)
    except KeyError:
        return False
    return True


def _ratio(group: list[dict], dense: list[dict] | None, part: str) -> str:
    if not dense:
        return ""
    return f"{mean(r['flops'][part] for r in group) / dense[0]['flops'][part]:.3f}"


def _spread(values: list[float], form: str) -> str:
    if len(values) < 2:
        return "".join(form.format(value) for value in values)
    return form.format(mean(values)) + " (" + ", ".join(form.format(value) for value in values) + ")"


def cumulative_flops(result: dict) -> list[float]:
    """Operations executed after each step of a run, everything included."""
    config_fields, data_args, args, _ = parse_fields({**result["fields"], "output_dir": "unused"})
    config, length, steps = build_config(config_fields), data_args.max_seq_length, result["training"]["steps"]
    batch = result["training"]["tokens_per_step"] // length
    known, costs = {}, []
    for step, keep in enumerate(capacity_history(config, result["log"], steps)):
        key = (args.exits_active(step, steps), tuple(keep))
        if key not in known:
            known[key] = step_flops(with_capacities(config, keep), batch, length, key[0]).total
        costs.append(known[key])
    return list(accumulate(costs))


# ---- Figures. Each returns whether there was anything to draw. ----


def _plots(columns: int):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=(5.5 * columns, 4.2), layout="constrained")


def _save(figure, path: Path) -> bool:
    from matplotlib import pyplot

    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def draw_curves(arms: dict[str, list[dict]], path: Path) -> bool:
    """Held-out ROC-AUC while training, by tokens and by operations."""
    figure, (by_tokens, by_flops) = _plots(2)
    for arm, group in arms.items():
        for number, result in enumerate(group):
            points = [entry for entry in result["log"] if "eval_roc_auc" in entry]
            flops = cumulative_flops(result)
            steps = [entry["step"] for entry in points]
            scores = [entry["eval_roc_auc"] for entry in points]
            style = {"label": arm if number == 0 else None, "color": f"C{list(arms).index(arm) % 10}", "marker": "."}
            style["linestyle"] = ("-", "--", ":")[list(arms).index(arm) // 10 % 3]
            by_tokens.plot([s * result["training"]["tokens_per_step"] / 1e6 for s in steps], scores, **style)
            by_flops.plot([flops[s - 1] / 1e12 for s in steps], scores, **style)
    by_tokens.set(xlabel="million tokens", ylabel="held-out ROC-AUC, full depth")
    by_flops.set(xlabel="training TFLOPs, everything included")
    by_tokens.legend(fontsize=7)
    return _save(figure, path)


def draw_budgets(arms: dict[str, list[dict]], path: Path) -> bool:
    """Quality against the kept share, one curve a rule."""
    rules = [arm for arm in arms if any(f"{arm}{budget}" in arms for budget in BUDGETS if budget)]
    if not rules:
        return False
    figure, plot = _plots(1)
    for color, rule in enumerate(rules):
        groups = [arms[f"{rule}{budget}"] for budget in BUDGETS if f"{rule}{budget}" in arms]
        shares = [mean(group[0]["kept_share"]) for group in groups]
        plot.plot(shares, [mean(_auc(r) for r in group) for group in groups], color=f"C{color}", label=rule)
        for share, group in zip(shares, groups, strict=True):
            plot.plot([share] * len(group), [_auc(r) for r in group], ".", color=f"C{color}")
    for arm, style in (("dense", "-"), ("dense_slower", ":"), ("dense_with_heads", "--")):
        if arm in arms:
            plot.axhline(mean(_auc(r) for r in arms[arm]), color="k", linestyle=style, label=arm, linewidth=1)
    plot.set(xlabel="kept share of tokens, mean over layers, while exits are active", ylabel="held-out ROC-AUC")
    plot.legend(fontsize=8)
    return _save(figure, path)


def _auc(result: dict) -> float:
    return result["judged"]["held_out"]["roc_auc"]


def draw_exits(arms: dict[str, list[dict]], path: Path) -> bool:
    """For arms that adapt: the capacities, and the error on audit tokens with its target."""
    adaptive = {arm: group[0] for arm, group in arms.items() if group[0]["fields"].get("exit_error_target")}
    if not adaptive:
        return False
    figure, (capacities, errors) = _plots(2)
    color = 0
    for arm, result in adaptive.items():
        for layer in result["fields"]["exit_layers"]:
            for plot, name in ((capacities, f"exit_keep_layer_{layer}"), (errors, f"exit_error_gap_layer_{layer}")):
                points = [(entry["step"], entry[name]) for entry in result["log"] if name in entry]
                points.append((result["training"]["steps"], points[-1][1]))  # the last capacity holds to the end
                how = "steps-post" if plot is capacities else "default"
                plot.plot(*zip(*points, strict=True), color=f"C{color}", label=f"{arm}, layer {layer}", drawstyle=how)
            color += 1
        errors.axhline(result["fields"]["exit_error_target"], color="k", linewidth=1, linestyle=":")
    capacities.set(xlabel="step", ylabel="share of the sequence that continues")
    errors.set(xlabel="step", ylabel="error gap on audit tokens (dotted: target)")
    capacities.legend(fontsize=7)
    return _save(figure, path)
