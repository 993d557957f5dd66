"""A run of a recipe against its time, on made-up text."""

import pytest

from benchmarks import quickstart
from modeling_electra_exit.trainers.runtime.files import read_json
from tests.benchmarks.test_time_to_quality import SIZES
from tests.conftest import write_corpus


@pytest.fixture
def measure(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "corpus.txt", documents=100)

    def run(*words):
        places = ["--folder", str(tmp_path / "run"), "--json", str(tmp_path / "now-seed1.json"), "--name", "now"]
        text = ["--train_files", str(corpus), "--max_steps", "6", "--every", "2", *SIZES]
        monkeypatch.setattr("sys.argv", ["x", "quickstart", *places, *text, *words])
        quickstart.main()
        return read_json(tmp_path / "now-seed1.json")

    return run


def test_a_run_is_measured_and_goes_on(measure, monkeypatch, tmp_path, capsys):
    class Stop(Exception):
        pass

    on_step_end = quickstart.Curve.on_step_end

    def stops(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == 5:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(quickstart.Curve, "on_step_end", stops)
        with pytest.raises(Stop):
            measure()
    first = read_json(tmp_path / "now-seed1.json")["curve"]
    assert [point["step"] for point in first] == [2, 4]
    made = measure()
    assert made["curve"][:2] == first
    assert [point["step"] for point in made["curve"]] == [2, 4, 6]
    assert made["curve"][2]["seconds"] >= first[1]["seconds"]
    assert all(0 <= point["own_samples/roc_auc"] <= 1 for point in made["curve"])
    assert {"fixed_samples/roc_auc", "fixed_samples/average_precision"} <= made["curve"][0].keys()

    monkeypatch.setattr("sys.argv", ["x", "summary", "--results", str(tmp_path)])
    quickstart.main()
    assert "| now | 1 | 6 of 6 |" in capsys.readouterr().out


def test_the_time_of_all_steps_is_estimated_from_the_steps_that_were_run():
    curve = [{"step": 2, "seconds": 14.0}, {"step": 4, "seconds": 20.0}, {"step": 6, "seconds": 26.0}]
    assert quickstart.whole_run({"seconds_before_training": 10.0, "max_steps": 10, "curve": curve}) == 40.0
