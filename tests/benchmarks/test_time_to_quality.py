"""The arms of the comparison, for a second each on made-up text."""

import pytest
import torch

from benchmarks import time_to_quality
from modeling_electra_exit.trainers.runtime.files import read_json
from tests.conftest import tiny_config, write_corpus


SIZES = [
    "--vocab_size", "90", "--max_seq_length", "32", "--max_position_embeddings", "32", "--hidden_size", "32",
    "--embedding_size", "16", "--intermediate_size", "64", "--generator_size", "0.5", "--validation_fraction", "0.2",
    "--per_device_train_batch_size", "8", "--use_cpu", "true",
]  # fmt: skip


@pytest.fixture
def measure(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "corpus.txt", documents=100)

    def run(arm, minutes=0.02, more=()):
        words = [arm, "--minutes", minutes, "--folder", tmp_path / "runs", "--results", tmp_path / "r", *more]
        if arm == "timing":
            words += ["--turns", "1"]
        monkeypatch.setattr("sys.argv", ["x", *map(str, words), "--train_files", str(corpus), *SIZES])
        time_to_quality.main()
        name = more[-1] if more else "step-seconds" if arm == "timing" else arm
        return read_json(tmp_path / "r" / f"{name}.json")

    return run


@pytest.mark.parametrize("arm", time_to_quality.ARMS)
def test_an_arm_is_measured_until_its_time_is_over(measure, arm, capsys):
    if arm == time_to_quality.PACKAGE:
        pytest.importorskip("electra_pytorch")
    made = measure(arm)
    assert made["arm"] == arm
    assert made["curve"][-1]["seconds"] == pytest.approx(1.2, abs=0.6)
    assert all(0 <= point["roc_auc"] <= 1 for point in made["curve"])
    steps = [point["step"] for point in made["curve"]]
    assert steps == sorted(set(steps))
    assert f"| {arm} |" in capsys.readouterr().out


def test_a_plain_arm_goes_on_where_it_stopped(measure, monkeypatch, tmp_path):
    class Stop(Exception):
        pass

    save = torch.save

    def saves_once(*args):
        save(*args)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", saves_once)
        with pytest.raises(Stop):
            measure("plain")
    first = read_json(tmp_path / "r" / "plain.json")["curve"]
    assert len(first) == 1
    made = measure("plain")
    assert made["curve"][0] == first[0]
    assert len(made["curve"]) > 1


def test_the_plain_models_share_embeddings_and_sizes():
    generator, discriminator = time_to_quality.plain_models(tiny_config(exit_policy="none"))
    assert discriminator.electra.embeddings is generator.electra.embeddings
    assert discriminator.config.num_hidden_layers == 6
    assert generator.config.hidden_size == 16


def test_the_time_to_a_quality_is_between_two_points():
    curve = [{"seconds": 10, "roc_auc": 0.5}, {"seconds": 20, "roc_auc": 0.7}]
    assert time_to_quality.seconds_to(0.6, curve) == pytest.approx(15)
    assert time_to_quality.seconds_to(0.4, curve) == 10
    assert time_to_quality.seconds_to(0.8, curve) is None


@pytest.mark.parametrize("arm", ["plain", "ours"])
def test_a_timed_step_counts_as_measured(measure, arm, tmp_path):
    """Whatever time the steps of the run itself take."""
    measure("timing")
    assert set(read_json(tmp_path / "r" / time_to_quality.TIMING)) >= {"plain", "ours"}
    (tmp_path / "r" / time_to_quality.TIMING).write_text('{"plain": 10.0, "ours": 20.0}')
    made = measure(arm, minutes=2, more=["--timed", "--name", "timed"])
    seconds = {"plain": 10, "ours": 20}[arm]
    assert made["step_seconds"] == seconds
    assert [point["seconds"] for point in made["curve"]] == [seconds * point["step"] for point in made["curve"]]
    assert made["curve"][-1]["seconds"] == 120
