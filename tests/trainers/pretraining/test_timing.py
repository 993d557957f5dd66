import time

import pytest
from transformers import TrainerCallback

from modeling_electra_exit.trainers.pretraining import timing
from modeling_electra_exit.trainers.pretraining.timing import StepTimer, time_of_step
from tests.trainers.pretraining.test_trainer import make_trainer


def fake_clock(monkeypatch, times):
    moments = iter(times)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(moments))


class Args:
    class device:
        type = "cpu"


def test_the_median_of_the_steps_after_the_first_two(monkeypatch):
    timer = StepTimer()
    fake_clock(monkeypatch, [0, 90, 91, 93, 96, 106])
    timer.on_train_begin(Args, None, None)
    for _ in range(6):
        timer.on_step_end(Args, None, None)
    assert timer.seconds == [1, 2, 3, 10]
    trainer = type("Trainer", (), {"step_timer": timer})
    assert time_of_step(trainer) == 2.5


def test_a_step_with_an_evaluation_or_a_checkpoint_is_not_timed(monkeypatch):
    timer = StepTimer()
    fake_clock(monkeypatch, [0, 1, 2, 50, 51, 99, 100])
    for event in (None, None, "on_evaluate", None, "on_save", None, None):
        timer.on_step_end(Args, None, None)
        if event:
            getattr(timer, event)(Args, None, None)
    assert timer.seconds == [1, 1, 1]


@pytest.mark.parametrize(("step", "timed"), [(1.0, timing.TIMED), (30.0, 1)], ids=["fast", "slow"])
def test_few_steps_are_enough_and_slow_ones_fewer(monkeypatch, step, timed):
    timer = StepTimer()
    fake_clock(monkeypatch, [step * number for number in range(100)])
    for _ in range(50):
        timer.on_step_end(Args, None, None)
    assert timer.done
    assert len(timer.seconds) == timed


def test_a_trainer_times_its_steps(tokenizer, tmp_path):
    class Slow(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            time.sleep(0.05)

    trainer = make_trainer(tokenizer, tmp_path, max_steps=5)
    with pytest.raises(ValueError, match="no step has been timed: train at least 3 steps"):
        time_of_step(trainer)
    trainer.add_callback(Slow())
    trainer.train()
    assert len(trainer.step_timer.seconds) == 3
    assert 0.05 <= time_of_step(trainer) < 1
    trainer.train()
    assert len(trainer.step_timer.seconds) == 3, "another run is timed anew"
