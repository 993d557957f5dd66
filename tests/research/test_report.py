"""Reports of results that are made up."""

import json
from math import sqrt

import pytest

from research.measures import Measure, measures_of, separates
from research.report import write_report
from research.results import Legend, legend_of, read_results
from research.tables import difference, difference_table, envelope, left_out, paired, shown_measures, sizes_and_errors
from tests.research.test_study import TINY


AUC = Measure("ROC-AUC", "held_out", "roc_auc", 0.5)
BLIMP = Measure("BLiMP", "blimp", "accuracy", 0.5, downstream=True)
ENTITIES = Measure("entities", "entities", "average_precision")


def run(seed=0, auc=0.8, stage="full", arm="dense", **judged):
    return {
        "stage": stage, "arm": arm, "seed": seed, "fields": {**TINY["base"], "exit_policy": "none"},
        "judged": {"held_out": {"roc_auc": auc, "average_precision": auc / 2}, **judged},
        "flops": {"blocks": 3.0, "total": 4.0, "generator": 0.0}, "generator": {}, "kept_share": [1.0, 1.0],
        "training": {"steps": 4, "tokens": 512, "tokens_per_step": 128, "tokens_per_second": 64.0},
        "log": [{"step": step, "eval_roc_auc": auc - 0.01 * (4 - step)} for step in (2, 4)],
    }  # fmt: skip


def group(*scores, first=0, **judged):
    return [run(seed, auc, **judged) for seed, auc in enumerate(scores, start=first)]


def blimp(*scores, pairs=400):
    return [run(seed, blimp={"accuracy": score, "pairs": pairs}) for seed, score in enumerate(scores)]


def test_results_of_removed_arms_and_stages_stay_in_the_report(tmp_path):
    removed = run(arm="weighted", auc=0.7777)
    removed["fields"]["exit_importance_weights"] = True  # no longer a field
    elsewhere = run(stage="old", arm="weighted@0.001", auc=0.6666)
    for number, result in enumerate((run(), run(seed=1, auc=0.82), removed, elsewhere)):
        (tmp_path / f"{number}-seed{number}.json").write_text(json.dumps(result))
    (tmp_path / "sst2-more-seeds.json").write_text("{}")
    study = {**TINY, "titles": {"dense": "no exits at all", "weighted": "weighted entropy"}}
    report = write_report("tiny", study, tmp_path).read_text()
    assert "| weighted entropy † | `weighted` |" in report
    full, old = report.split("## Stage full")[1].split("## Stage old")
    assert "| no exits at all | 1.000 | 1.000 | 1.000 | 1.000 | 0.8100 (0.8000, 0.8200) |" in full
    assert "| weighted entropy † | 1.000 | 1.000 | 1.000 | 1.000 | 0.7777 |" in full
    assert "The study no longer defines this stage." in old
    assert "| weighted entropy, rate 0.001 † | 1.000 | 1.000 | 1.000 | 1.000 | 0.6666 |" in old
    assert "no longer defines this stage" not in full
    assert "entities" not in report
    for figure in ("full-curves.png", "full-pareto.png", "old-curves.png"):
        assert f"({figure})" in report
        assert (tmp_path / figure).stat().st_size > 5000
    assert list(read_results(study, tmp_path)["full"]) == ["dense", "weighted"]


def test_differences_are_paired_by_seed_and_leave_out_the_choosing_one():
    arms = {"dense": group(0.8, 0.7, 0.9), "random": group(0.9, 0.71, 0.93), "random.tight": group(0.6)}
    *_, random, tight = difference_table(arms, "dense", [AUC], 0, str.upper)
    assert random == "| RANDOM | 2 | 2 | +0.0200 ± 0.0100 |"
    assert tight == "| RANDOM.TIGHT | 1 | 0 | -0.2000 |"  # it has no other seed
    unknown = difference_table(arms, "dense", [AUC], None, str)
    assert unknown[-2].startswith("| random | 3 | +0.0467 ± 0.0273 |")
    assert "chose" not in "".join(unknown)
    assert difference_table({"dense": arms["dense"]}, "dense", [AUC], 0, str) == []
    assert difference_table({"random": arms["random"]}, "dense", [AUC], 0, str) == []
    assert paired(group(0.5, first=7), arms["dense"], None) == []


def test_the_error_of_a_difference_covers_the_choice_of_the_test_sentences():
    def probed(seed, value, resamples):
        return run(seed, entities={"average_precision": value, "resamples": resamples})

    pairs = [
        (probed(0, 0.4, [0.2, 0.4]), probed(0, 0.3, [0.2, 0.2])),  # differ by 0.1; by 0 and 0.2
        (probed(1, 0.5, [0.2, 0.4]), probed(1, 0.3, [0.2, 0.2])),
    ]
    value, error, count = difference(pairs, ENTITIES)
    assert (value, count) == (pytest.approx(0.15), 2)
    assert error == pytest.approx(sqrt(0.05**2 + 0.1**2))
    assert difference(pairs[:1], ENTITIES) == (pytest.approx(0.1), None, 1)
    assert difference(pairs, BLIMP) is None


def test_a_task_that_does_not_separate_the_arms_has_no_column():
    level = {"dense": blimp(0.50, 0.52), "random": blimp(0.51, 0.53)}
    apart = {"dense": blimp(0.50, 0.52), "random": blimp(0.71, 0.73)}
    single = {"dense": blimp(0.50), "random": blimp(0.73)}
    assert shown_measures([AUC, BLIMP], level, level) == ([AUC], [BLIMP])
    assert shown_measures([AUC, BLIMP], apart, apart) == ([AUC, BLIMP], [])
    assert shown_measures([AUC, BLIMP], single, single) == ([AUC], [BLIMP])  # the deviation of a seed is unknown
    assert shown_measures([AUC, BLIMP], single, level) == ([AUC, BLIMP], [])  # but other stages tell it
    assert not separates(BLIMP, {"dense": blimp(0.50), "random": blimp(0.57)}, 0.0142)
    assert separates(BLIMP, {"dense": blimp(0.50, pairs=40_000), "random": blimp(0.57, pairs=40_000)}, 0.0142)
    text = left_out([BLIMP], level, level, str)
    assert "BLiMP, from 0.510 (dense) to 0.520 (random), standard error of one run 0.0250 (test data), 0.0141" in text
    assert left_out([], level, level, str) == ""


def test_sizes_and_errors_of_test_sets_are_told():
    def judged(auc):
        held_out = {"roc_auc": auc, "average_precision": 0.5, "roc_auc_standard_error": 0.0123,
                    "average_precision_standard_error": 0.02, "tokens": 12345, "sequences": 678}  # fmt: skip
        entities = {"average_precision": 0.3, "standard_error": 0.011, "words": 23394, "share_of_entities": 0.0744}
        return {"held_out": held_out, "entities": entities}

    arms = {"dense": [run(seed) | {"judged": judged(0.8 + seed / 10)} for seed in (0, 1)]}
    measures = measures_of(arms["dense"])
    assert [measure.title for measure in measures] == ["ROC-AUC", "entities", "average precision"]
    text = sizes_and_errors(measures, arms, arms)
    assert "12,345 tokens in 678 sequences" in text
    assert "23,394 words, of which 0.0744" in text
    assert "ROC-AUC 0.0123 (test data), 0.0707 (seeds); entities 0.0110 (test data)" in text
    unknown = {"dense": [run()]}
    assert sizes_and_errors([AUC], unknown, unknown) == (
        "The size of the held-out text was not recorded. No standard error is known from one seed."
    )


def test_the_envelope_tells_which_arms_are_level_with_the_best():
    arms = {"short": {"deep": group(0.9, 0.80, 0.82), "flat": group(0.9, 0.79, 0.82), "thin": group(0.9, 0.70, 0.71),
                      "late": group(0.5)}}  # fmt: skip
    fresh = {"short": {arm: of[1:] or of for arm, of in arms["short"].items()}}
    lines = envelope(fresh, arms, 0, str)
    assert "| deep | **0.8100 (0.8000, 0.8200)** |" in lines
    for line in ("| deep | best |", "| flat | -0.0050 ± 0.0050 (2), *level* |", "| thin | -0.1050 ± 0.0050 (2) |",
                 "| late | -0.4000 (1)* |"):  # fmt: skip
        assert line in lines


def test_an_arm_looks_the_same_whichever_results_there_are():
    study = {"arms": {f"arm{n}": {} for n in range(24)}, "stages": {
        "first": {"arms": [f"arm{n}" for n in range(14)]}, "second": {"arms": [f"arm{n}" for n in range(14, 24)]},
    }}  # fmt: skip
    legend, part = legend_of(study, {}), legend_of(study, {"first": {"arm3@0.1": []}})
    assert all(legend.style(arm) == part.style(f"{arm}@0.5") for arm in study["arms"])
    assert len({str(legend.style(arm)) for arm in study["stages"]["first"]["arms"]}) == 14
    assert len({legend.style(arm)["color"] for arm in study["stages"]["second"]["arms"]}) == 10
    titled = Legend(["deep", "old"], {"deep": "8 layers"}, {"old"})
    assert [titled.title(arm) for arm in ("deep", "deep@0.0005", "old")] == [
        "8 layers",
        "8 layers, rate 0.0005",
        "old †",
    ]
