"""A whole study on tiny data: run, judged, continued, reported."""

import json
import lzma
from pathlib import Path

import pytest
import yaml

from modeling_electra_exit.trainers import cli, study
from modeling_electra_exit.trainers.parsing import parse_fields
from modeling_electra_exit.trainers.pretraining import build_config
from modeling_electra_exit.trainers.study_report import cumulative_flops
from tests.conftest import write_corpus
from tests.trainers.test_cli import RECIPE


TINY = {
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
        "random.tight": {"exit_policy": "random", "exit_keep": [0.25, 0.25]},
        "adaptive": {"exit_error_target": 0.001, "exit_adapt_steps": 1, "exit_flops_budget": 1.0, "exit_warmup": 0.0},
    },
    "stages": {
        "short": {"fields": {"max_steps": 3}, "judges": ["held_out"], "seeds": [0], "arms": ["dense"]},
        "full": {"judges": ["held_out", "blimp", "glue"], "seeds": [0, 1],
                 "arms": ["dense", "random", "random.tight", "adaptive"]},
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
    return [
        "--train_files", str(text), "--blimp", str(tmp_path / "blimp.jsonl.xz"), "--glue", str(glue),
        "--output_dir", str(tmp_path / "out"), "--results", str(tmp_path / "results"),
    ]  # fmt: skip


def test_run_continue_and_report(studies, flags, tmp_path, capsys, monkeypatch):
    assert cli.main(["study", "tiny", *flags, "--stages", "full", "--seeds", "0"]) == 0
    results = tmp_path / "results"
    found = {path.name: json.loads(path.read_text()) for path in results.glob("*.json")}
    assert sorted(found) == [f"full-{arm}-seed0.json" for arm in ("adaptive", "dense", "random", "random.tight")]
    for result in found.values():
        assert 0 <= result["judged"]["held_out"]["roc_auc"] <= 1
        assert result["judged"]["blimp"]["pairs"] == 4
        assert result["judged"]["sst2"]["examples"] == 8
        assert "stsb" in result["judged"]
        assert str(tmp_path) not in json.dumps(result)  # what was run, and not where
    rates = {result["judged"]["held_out"]["replaced_rate"] for result in found.values()}
    assert len(rates) == 1  # one corruption for all
    cost = {result["arm"]: cumulative_flops(result)[-1] for result in found.values()}
    for result in found.values():
        assert cost[result["arm"]] == result["flops"]["total"]
    report = (results / "README.md").read_text()
    assert "| random.tight |" in report
    for figure in ("full-curves.png", "full-budgets.png", "full-exits.png"):
        assert figure in report
        assert (results / figure).stat().st_size > 5000

    # What is there is not run again; what is missing is.
    (results / "full-random-seed0.json").unlink()
    started = []
    monkeypatch.setattr(study, "pretrain", lambda *args, **kwargs: started.append(args))
    assert cli.main(["study", "tiny", *flags, "--stages", "full", "--seeds", "0"]) == 0
    assert started == []  # the run itself was finished; only its judgement was missing
    assert json.loads((results / "full-random-seed0.json").read_text()) == found["full-random-seed0.json"]


def test_a_result_of_other_fields_is_not_taken_for_this_one(studies, flags, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "short-dense-seed0.json"
    path.write_text(json.dumps({"fields": {**TINY["base"], "max_steps": 9}}))
    assert cli.main(["study", "tiny", *flags, "--stages", "short"]) == 2
    assert "was made with other fields (exit_policy, max_steps, seed)" in capsys.readouterr().err
    assert json.loads(path.read_text())["fields"]["max_steps"] == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--arms", "densest"], "--arms: no densest here; there are dense, random, random.tight, adaptive"),
        (["--seeds", "7"], "--seeds: no 7 here; there are 0, 1"),
        (["--blimp", "/nowhere/b.jsonl"], "no such file or folder: /nowhere/b.jsonl"),
        (["--train_files", "/nowhere/a.txt"], "no such file: /nowhere/a.txt"),
    ],
)
def test_mistakes_are_one_line(studies, flags, capsys, changes, message):
    assert cli.main(["study", "tiny", *flags, *changes]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_text_is_needed_unless_only_the_report_is(studies, tmp_path, capsys):
    assert cli.main(["study", "tiny", "--output_dir", str(tmp_path)]) == 2
    assert "give the text with --train_files" in capsys.readouterr().err
    assert cli.main(["study", "tiny", "--output_dir", str(tmp_path), "--report_only"]) == 0
    assert Path(capsys.readouterr().out.strip()).exists()


@pytest.mark.parametrize("name", [path.stem for path in Path(str(study.STUDIES)).glob("*.yaml")])
def test_packaged_studies_make_sense(name):
    content = yaml.safe_load(study.STUDIES.joinpath(f"{name}.yaml").read_text())
    runs = study.read_runs(content)
    assert len({run.name for run in runs}) == len(runs)
    assert {run.arm for run in runs} == set(content["arms"])
    for run in runs:
        config_fields, *_ = parse_fields({**run.fields, "output_dir": "x", "train_files": ["x"]})
        build_config(config_fields)
        assert set(run.judges) <= {"held_out", "blimp", "glue"}
