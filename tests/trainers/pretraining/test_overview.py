"""What is said of a run before it starts, and of its time when a few steps were timed."""

import logging
import re

import pytest
from datasets import config as datasets_config

from electra_exit import main as cli
from modeling_electra_exit import ElectraEarlyExitConfig
from modeling_electra_exit.trainers.pretraining import overview
from modeling_electra_exit.trainers.pretraining.overview import OverviewCallback, estimate, in_short, savings
from modeling_electra_exit.trainers.pretraining.run import flops_report
from tests.conftest import tiny_model
from tests.trainers.cli.test_cli import recipe  # noqa: F401  a fixture
from tests.trainers.pretraining.test_trainer import LENGTH, make_trainer


COUNTS = {"tokens": 2_048, "sequences": 32}


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="modeling_electra_exit")
    return lambda: {line[:8].strip(): line[8:] for line in (record.getMessage() for record in caplog.records)}


def test_the_header_says_what_the_run_will_be(tokenizer, tmp_path, said):
    trainer = make_trainer(tokenizer, tmp_path, max_steps=12, exit_cooldown=0.5, gradient_accumulation_steps=2)
    trainer.add_callback(OverviewCallback(trainer, COUNTS))
    trainer.train()
    lines = said()
    assert lines["device"] == "1 CPU thread, fp32"
    assert lines["model"] == f"{trainer.model.num_parameters():,} parameters, 6 layers of width 32, generator mlm"
    assert lines["text"] == "2,048 tokens in 32 sequences of length 64"
    assert lines["steps"] == "12 of 16 sequences each: 12,288 tokens, 6.0 epochs"
    # What it promised is what the run then counted.
    counted = flops_report(trainer)
    share = counted["total"] / counted["dense_total"]
    assert savings(trainer)[1] == pytest.approx(share)
    assert lines["exits"].endswith(f", {share:.0%} in total")
    form = r"about .* left at \S+ s per step, plus evaluations; \d+\.\d GB of memory"
    assert re.fullmatch(form, lines["time"])
    ours = ("device", "model", "text", "steps", "exits", "time")
    assert max(8 + len(lines[name]) for name in ours) <= 80


def test_without_exits_the_header_does_not_mention_them(tokenizer, tmp_path, said):
    trainer = make_trainer(tokenizer, tmp_path, tiny_model(exit_policy="none"))
    trainer.add_callback(OverviewCallback(trainer, {}))
    trainer.train()
    lines = said()
    assert "exits" not in lines
    assert "text" not in lines, "a stream is not counted"
    assert lines["steps"] == "6 of 8 sequences each: 3,072 tokens"


def test_steps_in_which_tokens_exit_are_expected_to_take_less(tokenizer, tmp_path, monkeypatch):
    trainer = make_trainer(tokenizer, tmp_path, max_steps=1000, exit_warmup=0.1, exit_cooldown=0.3)
    trainer.state.max_steps, trainer.state.global_step = 1000, 10
    trainer.step_timer.seconds = [2.0] * 8
    monkeypatch.setattr(overview, "peak_memory", lambda: 3 * 2**30)
    share, _ = costs = savings(trainer)
    assert costs[1] < 1
    config = ElectraEarlyExitConfig(**{**trainer.model_config.to_dict(), "exit_policy": "none"})
    dense = overview.step_flops(config, 8, LENGTH, False).total
    own = overview.step_costs(trainer)
    expected = 2.0 * (390 + 600 * own[True] / own[False])
    assert share == own[True] / dense
    minutes = re.match(r"about (\d+) min (\d+) s left at 2 s per step", estimate(trainer))
    assert 60 * int(minutes[1]) + int(minutes[2]) == round(expected)
    assert estimate(trainer).endswith("; 3.0 GB of memory")


def test_numbers_in_short():
    assert [in_short(n) for n in (999_999, 1e6, 1.2345e9, 7e12)] == ["999,999", "1 M", "1.23 G", "7 T"]


def test_dry_run_reports_everything_and_leaves_no_run_folder(recipe, tmp_path, said, caplog):  # noqa: F811
    before = sorted(path.name for path in tmp_path.iterdir())
    assert cli.main(["pretrain", recipe(max_steps=1_000_000), "--dry_run"]) == 0
    lines = said()
    assert lines["steps"].startswith("1,000,000 of 4 sequences")
    assert lines["time"].startswith("about ")
    assert f"nothing was written to {tmp_path / 'run'}" in caplog.text
    assert str(datasets_config.HF_DATASETS_CACHE) in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*before, "recipe.yaml"})
    assert cli.main(["pretrain", recipe()]) == 0, "the run itself begins afresh"


def test_a_run_of_fewer_steps_than_are_timed_ends_as_any(recipe, tmp_path):  # noqa: F811
    assert cli.main(["pretrain", recipe(max_steps=2)]) == 0
    assert (tmp_path / "run" / "metrics.json").exists()
