"""Write the report of a study as Markdown and figures, from the JSON files of its runs."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from .figures import FIGURES, draw_envelope
from .measures import measures_of
from .results import Arms, Legend, at_better_rate, base, find_arm, legend_of, read_results, tokens_of
from .tables import (
    difference_table,
    difficulty_table,
    envelope,
    equal_cost,
    exits_table,
    left_out,
    markdown,
    scores_at_equal_cost,
    shown_measures,
    sizes_and_errors,
    table,
)


# An optional file, in the folder of the results, with conclusions.
FINDINGS = "FINDINGS.md"
REMOVED = (
    "† The study no longer defines this arm. Its results are kept as measured. In its curves, the operations of a "
    "step are estimated, so that their sum is the recorded one."
)


@dataclass
class Stage:
    """A stage of a study.

    arms: all runs, by arm and learning rate.
    chosen: the runs that count, of each arm at its best learning rate, without the seed that chose it.
    baseline: the arm with which the others are compared.
    choosing_seed: that seed, if the study has one.
    """

    name: str
    arms: Arms
    chosen: Arms
    baseline: str
    choosing_seed: int | None

    @property
    def at_best_rate(self) -> Arms:
        """`chosen` with the choosing seed."""
        return {arm: self.arms[arm] for arm in self.chosen}


def write_report(name: str, study: dict, results: Path) -> Path:
    """Write `README.md` and its figures to the folder of the results. Returns the path of `README.md`."""
    results.mkdir(parents=True, exist_ok=True)
    found = read_results(study, results)
    legend = legend_of(study, found)
    stages = [_stage(stage, arms, study) for stage, arms in found.items()]
    of_study = {(stage.name, arm): group for stage in stages for arm, group in stage.chosen.items()}
    lines = introduction(name, study, stages, legend, (results / FINDINGS).exists())
    timed = {stage.name: stage for stage in stages if "steps" in study["stages"].get(stage.name, {})}
    if len(timed) > 1:
        chosen = {name: stage.chosen for name, stage in timed.items()}
        lines += envelope(
            chosen,
            {name: stage.at_best_rate for name, stage in timed.items()},
            study.get("choosing_seed"),
            legend.title,
        )
        draw_envelope(chosen, legend, results / "envelope.png")
    for stage in stages:
        lines += section(stage, study, of_study, legend)
        # The arms of a stage with equal times are compared in the envelope.
        for figure, draw in FIGURES.items():
            if (figure != "pareto" or stage.name not in timed) and draw(
                stage.chosen, legend, results / f"{stage.name}-{figure}.png"
            ):
                lines += [f"![{figure}]({stage.name}-{figure}.png)", ""]
    path = results / "README.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _stage(name: str, arms: Arms, study: dict) -> Stage:
    """The stage with its arms at their best learning rates. A removed stage without the study's baseline compares its
    arms with the first."""
    baseline = study["stages"].get(name, {}).get("baseline", study["baseline"])
    if name not in study["stages"] and find_arm(arms, baseline) is None:
        baseline = base(next(iter(arms)))
    choosing_seed = study.get("choosing_seed")
    return Stage(name, arms, at_better_rate(arms, choosing_seed), baseline, choosing_seed)


def introduction(name: str, study: dict, stages: list[Stage], legend: Legend, findings: bool) -> list[str]:
    """What the tables show, and what the arms are."""
    present = {base(arm) for stage in stages for arm in stage.arms}
    removed = legend.removed & present
    lines = [
        f"# Study: {study['title']}",
        "",
        f"Written by `python -m research.study {name}` from the JSON files in this folder; the study is defined in "
        f"`research/studies/{name}.yaml`. All arms are evaluated at full depth (a learned router: at its "
        "capacity) on the same corrupted held-out text. "
        "For an arm with several seeds, the mean is followed by the value of each seed. FLOPs cover the whole run, "
        "including dense phases, for the discriminator's layers alone and for everything. They are relative to the "
        f"arm *{legend.title(study['baseline'])}* unless the stage names another.",
        "",
        "A downstream task has a column only if it separates the arms: if Cochran's Q of their means exceeds its "
        "expectation by three standard deviations, with errors from the size of the test set and between seeds. "
        "Errors between seeds are pooled over the arms of a stage, or of the whole study if the stage has one seed. "
        "An error that is estimated from seeds is itself uncertain, by about 70 % for two seeds and 35 % for five.",
        "",
    ]
    if "choosing_seed" not in study:
        lines += ["Which seeds chose a learning rate or an arm is not recorded in this study.", ""]
    if findings:
        lines += [f"Conclusions and their limits: [{FINDINGS}]({FINDINGS}).", ""]
    if removed:
        lines += [REMOVED, ""]
    rows = [["arm", "name in the study and in file names"]]
    rows += [[legend.title(arm), f"`{arm}`"] for arm in legend.names if arm in present]
    return [*lines, *markdown(rows), ""]


def section(stage: Stage, study: dict, of_study: Arms, legend: Legend) -> list[str]:
    """The tables of a stage. `of_study` are the arms of all stages."""
    chosen, baseline, title = stage.chosen, stage.baseline, legend.title
    results = [result for group in stage.arms.values() for result in group]
    shown, dropped = shown_measures(measures_of(results), chosen, of_study)
    longest = tokens_of(find_arm(stage.arms, baseline) or results)
    lines = [f"## Stage {stage.name}: {longest:.1f} M tokens", ""]
    if stage.name not in study["stages"]:
        lines += ["The study no longer defines this stage. Its results are kept as measured.", ""]
    if baseline != study["baseline"]:
        lines += [f"FLOPs and times are relative to the arm *{title(baseline)}*.", ""]
    lines += [_source_of_times(results), ""]
    several_rates = len(chosen) < len(stage.arms)
    if several_rates:
        lines += [_how_chosen(stage.choosing_seed), ""]
    budgets, scores = scores_at_equal_cost(chosen, baseline)
    notes = (sizes_and_errors(shown, chosen, of_study), left_out(dropped, chosen, of_study, title))
    parts = (
        [*table(chosen, baseline, shown, title), *chain(*(["", note] for note in notes if note))],
        difference_table(stage.at_best_rate, baseline, shown, stage.choosing_seed, title),
        equal_cost(budgets, scores, title),
        exits_table(chosen, baseline, scores, title),
        difficulty_table(chosen, title),
        ["All learning rates:", "", *table(stage.arms, baseline, shown, title)] if several_rates else [],
    )
    for part in parts:
        lines += [*part, ""] if part else []
    return lines


def _source_of_times(results: list[dict]) -> str:
    if all(result.get("step_seconds") for result in results):
        return "Times are computed from median step times of all arms in alternation (`--time_steps`)."
    return "Times are those of the runs, each under the other load that the machine had."


def _how_chosen(choosing_seed: int | None) -> str:
    if choosing_seed is None:
        return (
            "Each arm at the learning rate with the best mean held-out ROC-AUC. The seeds that chose the rates are "
            "those of the results, which favors arms with several rates."
        )
    return (
        f"Each arm at the learning rate with the best held-out ROC-AUC of seed {choosing_seed}, without that seed if "
        "there are others."
    )
