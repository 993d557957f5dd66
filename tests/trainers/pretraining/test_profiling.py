import json
import time

import pytest

from modeling_electra_exit.trainers import ElectraEarlyExitTrainingArguments
from modeling_electra_exit.trainers.pretraining import profiling
from tests.trainers.pretraining.test_trainer import make_trainer


def profiles(trainer):
    return [entry for entry in trainer.state.log_history if "profile_data_ms" in entry]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_parts_add_up_to_the_step_and_each_is_charged_its_own(tokenizer, tmp_path, monkeypatch, caplog, accumulation):
    monkeypatch.setattr(profiling, "STEPS", 2)
    caplog.set_level("INFO", "modeling_electra_exit")
    arguments = {"profile_step": 2, "max_steps": 5, "gradient_accumulation_steps": accumulation}
    trainer = make_trainer(tokenizer, tmp_path, per_device_train_batch_size=4, **arguments)
    corrupt, exit_loss = type(trainer.model).corrupt, type(trainer.model)._exit_loss

    def slow(function, seconds):
        def wrapped(*args, **kwargs):
            time.sleep(seconds)
            return function(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(type(trainer.model), "corrupt", slow(corrupt, 0.2))
    monkeypatch.setattr(type(trainer.model), "_exit_loss", slow(exit_loss, 0.4))
    trainer.train()
    (profile,) = profiles(trainer)
    assert profile["step"] == 3
    assert profile["profile_generator_ms"] >= 200 * accumulation
    assert profile["profile_discriminator_ms"] >= 400 * accumulation
    assert all(profile[f"profile_{part}_ms"] > 0 for part in ("backward", "optimizer", "rest"))
    assert "steps 2 to 3, " in caplog.text
    names = [event.get("name") for event in json.loads((tmp_path / profiling.TRACE).read_text())["traceEvents"]]
    assert names.count("step/optimizer") == 2
    assert "aten::addmm" in names
    assert not trainer.model._forward_hooks
    assert not trainer.model.electra._forward_pre_hooks


def test_a_run_that_ends_sooner_reports_what_it_timed(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, profile_step=3, max_steps=4)
    trainer.train()
    assert profiles(trainer)[0]["step"] == 4


def test_without_the_flag_nothing_is_timed(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, max_steps=2)
    trainer.train()
    assert profiles(trainer) == []


def test_there_is_no_step_0(tmp_path):
    with pytest.raises(ValueError, match="`profile_step` must be at least 1, got 0"):
        ElectraEarlyExitTrainingArguments(str(tmp_path), profile_step=0)
