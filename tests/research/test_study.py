"""A whole study on tiny data: run, judged, continued, reported."""

import json
import lzma
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from electra_exit.parsing import parse_fields
from modeling_electra_exit.trainers.data import preparation
from modeling_electra_exit.trainers.errors import UsageError
from modeling_electra_exit.trainers.pretraining.run import build_config
from research import study
from research.results import (
    at_better_rate,
    base,
    cumulative_flops,
    cumulative_seconds,
    curve,
    held_out_auc,
    peak_bytes,
    read_results,
)
from research.routing import recipe_of
from research.step_timing import first_of_each
from research.tables import equal_cost, exits_table, scores_at_equal_cost
from tests.conftest import WORDS, write_corpus
from tests.trainers.cli.test_cli import RECIPE


# What `--time_steps` adds on the platforms on which it measures memory.
MEMORY = ["peak_bytes"] if sys.platform == "linux" else []
RESULTS = Path(study.__file__).parents[1] / "benchmarks" / "results"
TINY = {
    "title": "which pay?",
    "baseline": "dense",
    "base": {
        **{name: value for name, value in RECIPE.items() if name not in ("save_steps", "generator_size")},
        "generator_type": "unigram",
        "save_strategy": "no",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "disable_tqdm": True,
    },
    "judges": {
        "held_out": {"seed": 1},
        "blimp": {"pairs_per_paradigm": 2},
        "glue": {"sst2": {"epochs": 1, "max_examples": 8}, "stsb": {"epochs": 1}},
    },
    "arms": {
        "dense": {"exit_policy": "none"},
        "random": {"exit_policy": "random"},
        "random.tight": {"exit_policy": "random", "exit_capacities": [0.25, 0.25]},
    },
    "stages": {
        "short": {"fields": {"max_steps": 3}, "judges": ["held_out"], "seeds": [0], "arms": ["dense"]},
        "full": {"judges": ["held_out", "blimp", "glue", "entities"], "seeds": [0, 1],
                 "arms": ["dense", "random", "random.tight"]},
    },
}  # fmt: skip


@pytest.fixture
def studies(tmp_path, monkeypatch):
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.setattr(study, "STUDIES", folder)
    return folder


@pytest.fixture
def flags(tmp_path):
    text = write_corpus(tmp_path / "corpus.txt")
    glue = tmp_path / "glue"
    rows = {
        "sst2": [{"sentence": "the cat sings", "label": i % 2} for i in range(12)],
        "stsb": [{"sentence1": "the cat", "sentence2": "a dog", "label": i / 3} for i in range(12)],
    }
    for task, examples in rows.items():
        (glue / task).mkdir(parents=True)
        for split in ("train", "validation"):
            (glue / task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, examples)))
    pairs = [{"sentence_good": "the cat sings", "sentence_bad": "cat the sings", "UID": f"u{i % 2}"} for i in range(8)]
    with lzma.open(tmp_path / "blimp.jsonl.xz", "wt") as file:
        file.write("\n".join(map(json.dumps, pairs)))
    entities = tmp_path / "entities"
    entities.mkdir()
    for split, count in (("train", 12), ("test", 6)):
        rows = [{"tokens": ["the", WORDS[i], "sings"], "ner_tags": ["O", "B-x" if i % 2 else "O", "O"]}
                for i in range(count)]  # fmt: skip
        (entities / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [
        "--train_files", str(text), "--blimp", str(tmp_path / "blimp.jsonl.xz"), "--glue", str(glue),
        "--entities", str(entities),
        "--output_dir", str(tmp_path / "out"), "--results", str(tmp_path / "results"),
    ]  # fmt: skip


def test_run_continue_and_report(studies, flags, tmp_path, capsys, monkeypatch):
    assert study.main(["tiny", *flags, "--stages", "full", "--seeds", "0"]) == 0
    results = tmp_path / "results"
    found = {path.name: json.loads(path.read_text()) for path in results.glob("*.json")}
    assert sorted(found) == [f"full-{arm}-seed0.json" for arm in ("dense", "random", "random.tight")]
    for result in found.values():
        assert 0 <= result["judged"]["held_out"]["roc_auc"] <= 1
        assert 0 < result["judged"]["held_out"]["roc_auc_standard_error"] < 0.2
        assert result["judged"]["held_out"]["tokens"] > 10 * result["judged"]["held_out"]["sequences"] > 0
        assert result["judged"]["blimp"]["pairs"] == 4
        assert result["judged"]["sst2"]["examples"] == 8
        assert result["judged"]["stsb"]["validation_examples"] == 12
        assert result["judged"]["entities"]["words"] == 18
        assert len(result["judged"]["entities"]["resamples"]) == 200
        assert str(tmp_path) not in json.dumps(result)  # what was run, and not where
    rates = {result["judged"]["held_out"]["replaced_rate"] for result in found.values()}
    assert len(rates) == 1  # one corruption for all
    cost = {result["arm"]: cumulative_flops(result)[-1] for result in found.values()}
    for result in found.values():
        assert cost[result["arm"]] == pytest.approx(result["flops"]["total"])
    report = (results / "README.md").read_text()
    assert "| random.tight |" in report
    for figure in ("full-curves.png", "full-budgets.png"):
        assert figure in report
        assert (results / figure).stat().st_size > 5000

    # What is there is not run again; what is missing is.
    (results / "full-random-seed0.json").unlink()
    started = []
    monkeypatch.setattr(study, "pretrain", lambda *args, **kwargs: started.append(args))
    assert study.main(["tiny", *flags, "--stages", "full", "--seeds", "0"]) == 0
    assert started == []  # the run itself was finished; only its judgement was missing
    assert json.loads((results / "full-random-seed0.json").read_text()) == found["full-random-seed0.json"]

    # An evaluation that a result lacks is added if the run is kept. The others stay as they are.
    path = results / "full-random-seed0.json"
    without = json.loads(path.read_text())
    del without["judged"]["entities"]
    without["judged"]["held_out"]["roc_auc"] = 0.7
    path.write_text(json.dumps(without))
    shutil.move(tmp_path / "out/tiny/full/random", tmp_path / "elsewhere")
    assert study.main(["tiny", *flags, "--stages", "full", "--seeds", "0"]) == 0
    assert json.loads(path.read_text()) == without
    shutil.move(tmp_path / "elsewhere", tmp_path / "out/tiny/full/random")
    assert study.main(["tiny", *flags, "--stages", "full", "--seeds", "0"]) == 0
    judged = json.loads(path.read_text())["judged"]
    assert judged["entities"] == found["full-random-seed0.json"]["judged"]["entities"]
    assert judged["held_out"]["roc_auc"] == 0.7
    assert started == []

    # A stage may compare with another arm than the others.
    stages = {**TINY["stages"], "full": {**TINY["stages"]["full"], "baseline": "random"}}
    (studies / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "stages": stages}))
    assert "| dense | 1.000 | 1.000 |" in report
    assert "FINDINGS.md" not in report
    (results / "FINDINGS.md").write_text("Nothing was found.")
    assert study.main(["tiny", *flags, "--report_only"]) == 0
    report = (results / "README.md").read_text()
    assert "relative to the arm *random*." in report
    assert "| random | 1.000 | 1.000 |" in report
    assert "](FINDINGS.md)" in report
    assert (results / "FINDINGS.md").read_text() == "Nothing was found."


def test_text_is_packed_once_for_all_runs_and_their_judges(studies, flags, monkeypatch):
    packed, original = [], preparation.pack

    def recording(*args):
        splits, counts = original(*args)
        packed.append(splits["train"]._fingerprint)
        return splits, counts

    for module in (preparation, study):
        monkeypatch.setattr(module, "pack", recording)
    assert study.main(["tiny", *flags, "--stages", "short"]) == 0
    assert len(packed) == 2
    assert len(set(packed)) == 1


def test_a_result_with_different_fields_is_rejected(studies, flags, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "short-dense-seed0.json"
    path.write_text(json.dumps({"fields": {**TINY["base"], "max_steps": 9}}))
    assert study.main(["tiny", *flags, "--stages", "short"]) == 2
    assert "has different fields (exit_policy, max_steps, seed)" in capsys.readouterr().err
    assert json.loads(path.read_text())["fields"]["max_steps"] == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--arms", "densest"], "--arms must be among dense, random, random.tight, got densest"),
        (["--seeds", "7"], "--seeds must be among 0, 1, got 7"),
        (["--blimp", "/nowhere/b.jsonl"], "no such file or folder: /nowhere/b.jsonl"),
        (["--entities", "/nowhere/wnut17"], "no such file or folder: /nowhere/wnut17"),
        (["--train_files", "/nowhere/a.txt"], "no such file: /nowhere/a.txt"),
    ],
)
def test_mistakes_are_one_line(studies, flags, capsys, changes, message):
    assert study.main(["tiny", *flags, *changes]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_text_is_needed_unless_only_the_report_is(studies, tmp_path, capsys):
    assert study.main(["tiny", "--output_dir", str(tmp_path)]) == 2
    assert "--train_files must name the text" in capsys.readouterr().err
    assert study.main(["tiny", "--output_dir", str(tmp_path), "--report_only"]) == 0
    assert Path(capsys.readouterr().out.strip()).exists()


GENERATORS = {
    "title": "which generator?",
    "baseline": "mlm",
    "base": {**TINY["base"], "exit_policy": "none", "generator_type": "mlm"},
    "references": {"judge": {"discriminator_weight": 0.0, "seed": 9, "eval_strategy": "no"}},
    "reference": "judge",
    "caches": {"judge": {"draws": 2, "fields": {"generator_type": "frozen", "generator_folder": "references/judge"}}},
    "corruptions": {
        "easy": {"generator_type": "unigram"},
        "hard": {"generator_type": "frozen", "generator_folder": "references/judge"},
    },
    "judges": {},
    "arms": {
        "mlm": {},
        "frozen": {"generator_type": "frozen", "generator_folder": "references/judge"},
        "cached": {"generator_type": "cached", "generator_folder": "caches/judge"},
        "self": {"generator_type": "self"},
    },
    "stages": {
        "only": {
            "judges": ["held_out"], "seeds": [0], "arms": ["mlm", "frozen", "cached", "self"],
            "learning_rates": [1.0e-3, 5.0e-4],
        }
    },
}  # fmt: skip


def test_generators_are_judged_on_the_same_corruptions_and_their_costs_told(studies, flags, tmp_path, capsys):
    (studies / "kinds.yaml").write_text(yaml.safe_dump(GENERATORS))
    small = {
        "extends": "kinds",
        "title": "again?",
        "stages": {"only": {**GENERATORS["stages"]["only"], "arms": ["mlm"]}},
    }
    (studies / "again.yaml").write_text(yaml.safe_dump(small))
    assert study.main(["kinds", *flags]) == 0
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")}
    assert len(found) == 8
    for result in found.values():
        for name in ("easy", "hard"):
            assert 0 <= result["judged"][f"held_out_{name}"]["roc_auc"] <= 1
        assert [entry["step"] for entry in result["log"] if "eval_hard_roc_auc" in entry] == [2, 4]
        assert -20 < result["generator"]["replacement_log_probability"] < 0
        assert 0 <= result["generator"]["generator_equal_rate"] < 1
        assert cumulative_flops(result)[-1] == pytest.approx(result["flops"]["total"])
        assert curve(result)["score"][-1] == pytest.approx(
            held_out_auc(result), abs=1e-4
        )  # it ends where it is judged
    for name in ("easy", "hard"):  # one corruption for all
        assert len({result["judged"][f"held_out_{name}"]["replaced_rate"] for result in found.values()}) == 1
    given = {arm: found[f"only-{arm}@0.001-seed0"]["given"]["flops"] for arm in GENERATORS["arms"]}
    assert given["mlm"] == given["self"] == 0
    reference = json.loads((tmp_path / "out/kinds/references/judge/metrics.json").read_text())["flops"]["total"]
    cache = json.loads((tmp_path / "out/kinds/caches/judge/cache.json").read_text())["splits"]["train"]["flops"]
    assert given["frozen"] == reference
    assert given["cached"] == reference + cache > reference

    report = (tmp_path / "results" / "README.md").read_text()
    better, everything = report.split("All learning rates:")
    assert better.count("| frozen, rate ") == 4  # cost and quality, difference, equal cost, difficulty
    assert everything.count("| frozen, rate ") == 2
    for fragment in ("# Study: which generator?", "equal FLOPs", "log-probability of replacements", "only-pareto.png",
                     "ROC-AUC, hard", "prior FLOPs"):  # fmt: skip
        assert fragment in better + everything

    # What one study made serves the other that extends it.
    before = (tmp_path / "out/kinds/references/judge/metrics.json").stat().st_mtime_ns
    again = [*flags[:-1], str(tmp_path / "again")]
    assert study.main(["again", *again]) == 0
    assert (tmp_path / "out/kinds/references/judge/metrics.json").stat().st_mtime_ns == before
    assert not (tmp_path / "out/again/references").exists()


def test_arms_of_one_time_are_compared_over_all_times(studies, flags, tmp_path):
    arms = {"shallow": {"exit_policy": "none"}, "deep": {"exit_policy": "none"}}
    stage = {"judges": ["held_out"], "seeds": [0], "learning_rates": [1.0e-3, 5.0e-4], "arms": ["shallow", "deep"]}
    stages = {f"time_{n}": {**stage, "steps": {"shallow": 2 * n, "deep": n}} for n in (1, 2)}
    (studies / "depth.yaml").write_text(yaml.safe_dump({**TINY, "baseline": "deep", "arms": arms, "stages": stages}))
    runs = study.read_runs(study.read_study("depth"))
    assert {(run.stage, run.arm, run.fields["max_steps"]) for run in runs} == {
        (f"time_{n}", f"{arm}@{rate}", steps)
        for n in (1, 2)
        for arm, steps in (("shallow", 2 * n), ("deep", n))
        for rate in ("0.001", "0.0005")
    }
    assert study.main(["depth", *flags, "--stages", "time_1", "--arms", "deep@0.001"]) == 0
    report = tmp_path / "results" / "README.md"
    assert "The best arm for a training time" not in report.read_text()  # of one there is nothing to compare
    done = json.loads((tmp_path / "results" / "time_1-deep@0.001-seed0.json").read_text())
    for run in runs:  # what the others would have found, of which the second rate is better
        found = json.loads(json.dumps({**done, "stage": run.stage, "arm": run.arm, "fields": run.fields}))
        better = 0.1 * run.arm.endswith("@0.0005") + 0.01 * (run.arm.startswith("deep") == (run.stage == "time_2"))
        found["judged"]["held_out"]["roc_auc"] = 0.5 + better
        found["training"]["steps"] = run.fields["max_steps"]
        (tmp_path / "results" / run.result_file).write_text(json.dumps(found))
    assert study.main(["depth", *flags, "--report_only"]) == 0
    table = report.read_text().split("## The best arm for a training time")[1].split("## Stage")[0]
    assert "| shallow | **0.6100** | 0.6000 |" in table
    assert "| deep | 0.6000 | **0.6100** |" in table
    assert (tmp_path / "results" / "envelope.png").stat().st_size > 5000


def test_the_seed_that_chose_the_learning_rate_is_not_among_the_results():
    def group(**scores):
        return [{"seed": int(s[1:]), "judged": {"held_out": {"roc_auc": auc}}} for s, auc in scores.items()]

    arms = {"deep@0.001": group(s0=0.8, s1=0.5), "deep@0.002": group(s0=0.7, s1=0.9), "flat@0.001": group(s0=0.6)}
    assert list(at_better_rate(arms)) == ["deep@0.002", "flat@0.001"]  # the better mean
    chosen = at_better_rate(arms, choosing_seed=0)
    assert {arm: [result["seed"] for result in results] for arm, results in chosen.items()} == {
        "deep@0.001": [1],
        "flat@0.001": [0],  # no other
    }


def test_arms_take_turns_to_be_timed_and_the_report_reads_it(studies, flags, tmp_path, capsys):
    short = [*flags, "--stages", "full", "--seeds", "0", "--arms", "dense", "random"]
    assert study.main(["tiny", *short, "--time_steps", "2"]) == 0
    path = tmp_path / "results" / "full-step-seconds.json"
    found = json.loads(path.read_text())
    assert {arm: sorted(seconds) for arm, seconds in found.items()} == {
        "dense": ["dense", *MEMORY],
        "random": ["dense", "exits", *MEMORY],  # the last of its four steps is at full depth
    }
    if MEMORY:
        assert all(2**10 < seconds.pop("peak_bytes") < 2**30 for seconds in found.values())
    assert all(0 < value < 10 for seconds in found.values() for value in seconds.values())
    assert not list((tmp_path / "results").glob("full-dense*"))  # timed, and not run
    result = {
        "training": {"steps": 10, "tokens": 100, "tokens_per_second": 10.0},
        "fields": {**TINY["base"], "exit_warmup": 0.2, "exit_cooldown": 0.1},
    }
    assert cumulative_seconds(result) == pytest.approx([*range(1, 11)])
    timed = cumulative_seconds({**result, "step_seconds": {"dense": 2.0, "exits": 1.0}})
    assert timed == [2, 4, 5, 6, 7, 8, 9, 10, 11, 13]
    assert cumulative_seconds({**result, "step_seconds": {"dense": 2.0}})[-1] == 20
    assert study.main(["tiny", *short]) == 0
    report = (tmp_path / "results" / "README.md").read_text()
    assert "Times are computed from median step times" in report
    assert ("| time per step | peak memory |" in report) == bool(MEMORY)


def test_a_run_whose_depth_changes_is_timed_and_counted_at_each_depth(studies, flags, tmp_path):
    plain = {"exit_policy": "none", "exit_layers": [], "exit_capacities": []}
    content = {
        **TINY,
        "arms": {"dense": plain, "grown": {**plain, "depth_schedule": "1:0.5,4"}},
        "stages": {"only": {"judges": ["held_out"], "seeds": [0], "arms": ["dense", "grown"]}},
    }
    (studies / "grown.yaml").write_text(yaml.safe_dump(content))
    assert study.main(["grown", *flags, "--time_steps", "1"]) == 0
    path = tmp_path / "results" / "only-step-seconds.json"
    timed = json.loads(path.read_text())
    assert {name: sorted(found) for name, found in timed.items()} == {"dense": ["dense", *MEMORY], "grown": ["1", "4"]}
    assert all(sorted(seconds) == ["dense", *MEMORY] for seconds in timed["grown"].values())
    assert timed["grown"]["1"]["dense"] < timed["grown"]["4"]["dense"]
    path.write_text(
        json.dumps({"dense": {"dense": 3.0}, "grown": {"1": {"dense": 1.0}, "4": {"dense": 3.0, "peak_bytes": 5}}})
    )
    assert study.main(["grown", *flags]) == 0
    grown = next(group for arm, group in read_results(content, tmp_path / "results")["only"].items() if arm == "grown")
    assert grown[0]["depths"] == [[0, 1], [2, 4]]
    assert cumulative_seconds(grown[0]) == [1, 2, 5, 8]
    assert peak_bytes(grown[0]) == 5


def test_an_arm_with_the_models_generator_is_judged_like_the_others(studies, flags, tmp_path, capsys):
    content = {
        **TINY,
        "arms": {"dense": {"exit_policy": "none"}, "mlm": {"exit_policy": "none", "generator_type": "mlm"}},
        "stages": {"only": {"judges": ["held_out"], "seeds": [0], "arms": ["dense", "mlm"]}},
    }
    (studies / "mixed.yaml").write_text(yaml.safe_dump(content))
    assert study.main(["mixed", *flags]) == 0
    results = [json.loads((tmp_path / "results" / f"only-{arm}-seed0.json").read_text()) for arm in content["arms"]]
    assert len({result["judged"]["held_out"]["replaced_rate"] for result in results}) == 1

    (studies / "mixed.yaml").write_text(yaml.safe_dump({**content, "base": {**TINY["base"], "generator_type": "mlm"}}))
    assert study.main(["mixed", *flags]) == 2
    assert "must define `corruptions`, because the `generator_type` of its base, mlm," in capsys.readouterr().err


def test_scores_are_read_off_the_curves_at_equal_cost():
    def result(speed, scores, total=1.0):
        log = [{"step": step, "eval_a_roc_auc": score, "eval_b_roc_auc": score} for step, score in scores]
        training = {"tokens_per_step": 4 * 32, "tokens": 4 * 4 * 32, "steps": 4, "tokens_per_second": speed}
        fields = {**TINY["base"], "exit_policy": "none"}
        return {"log": log, "training": training, "fields": fields, "flops": {"generator": 0.0, "total": total}}

    # The second takes twice as long, so it has come half as far when the first is done.
    arms = {"fast": [result(64.0, [(2, 0.6), (4, 0.7)])], "slow": [result(32.0, [(2, 0.7), (4, 0.9)])]}
    lines = equal_cost(*scores_at_equal_cost(arms, "fast"), str)
    assert lines[-2].split(" | ")[1:] == ["0.7000", "0.7000", "0.7000 |"]
    assert lines[-1].split(" | ")[1:] == ["0.9000", "0.9000", "0.7000 |"]
    # Nobody is cut down to an arm that spends next to nothing.
    arms["tiny"] = [result(640.0, [(2, 0.5), (4, 0.6)], total=0.4)]
    assert equal_cost(*scores_at_equal_cost(arms, "fast"), str)[-3:-1] == lines[-2:]
    assert equal_cost(*scores_at_equal_cost(arms, "fast"), str)[-1].split(" | ")[1:] == [
        "0.6000",
        "0.6000",
        "0.6000 |",
    ]

    # Arms that differ by their exits alone share a row, whatever their learning rates.
    assert exits_table(arms, "fast", scores_at_equal_cost(arms, "fast")[1], str) == []
    paired = {"fast@0.001": arms["fast"], "fast_exits@0.0005": arms["slow"], "tiny": arms["tiny"]}
    *_, both, alone = exits_table(paired, "fast", scores_at_equal_cost(paired, "fast")[1], str)
    assert both == "| fast | 1.000 | 2.000 | 0.7000 | 0.9000 | 0.7000 | 0.7000 |"
    assert alone == "| tiny | 0.100 |  | 0.6000 |  | 0.6000 |  |"


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"exit_warmup": 0.2, "exit_cooldown": 0.1}, {"dense": 0, "exits": 2}),
        ({"exit_warmup": 0.1, "exit_cooldown": 0.6}, {"dense": 0, "exits": 1}),  # none in its middle
        ({"exit_warmup": 0.0, "exit_cooldown": 0.0}, {"exits": 0}),
        ({"exit_policy": "none"}, {"dense": 0}),
    ],
)
def test_steps_are_timed_with_exits_and_without_as_the_run_has_them(changes, first):
    fields = {**TINY["base"], "max_steps": 10, "output_dir": "unused", **changes}
    config_fields, _, args, _ = parse_fields(fields)
    trainer = SimpleNamespace(args=args, has_exits=build_config(config_fields).has_exit_heads)
    assert first_of_each(trainer) == first


@pytest.mark.parametrize("name", [path.stem for path in Path(str(study.STUDIES)).glob("*.yaml")])
def test_packaged_studies_make_sense(name):
    content = study.read_study(name)
    runs = study.read_runs(content)
    assert len({run.name for run in runs}) == len(runs)
    removed = {arm for arms in read_results(content, RESULTS / name).values() for arm in map(base, arms)}
    assert set(content["titles"]) <= set(content["arms"]) | removed
    assert len(set(content["titles"].values())) == len(content["titles"])
    assert {run.arm.split("@")[0] for run in runs} == set(content["arms"])
    assert all(stage.get("baseline", content["baseline"]) in stage["arms"] for stage in content["stages"].values())
    for run in runs:
        config_fields, *_ = parse_fields({**recipe_of(run.fields), "output_dir": "x", "train_files": ["x"]})
        build_config(config_fields)
        assert set(run.judges) <= {"held_out", "blimp", "glue", "entities"}


def test_a_study_is_of_one_text(tmp_path):
    text = write_corpus(tmp_path / "text.txt")
    for _ in range(2):
        study.check_text(tmp_path, [str(text)])
    write_corpus(text, seed=1)
    with pytest.raises(UsageError, match=f"{text} must be the text that the study in {tmp_path} started with"):
        study.check_text(tmp_path, [str(text)])


def test_results_that_are_stored_can_still_be_read():
    """Those of arms that a packaged study still has: their fields are legal, and give the operations that
    were counted then, up to how regressors are counted."""
    read = 0
    for name in ("exits", "generators", "efficiency"):
        for run in study.read_runs(study.read_study(name)):
            if (path := RESULTS / name / run.result_file).exists():
                result = json.loads(path.read_text())
                assert cumulative_flops(result)[-1] == pytest.approx(result["flops"]["total"], rel=0.02), path.name
                read += 1
    assert read > 50
