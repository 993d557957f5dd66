"""Runs that end by the clock, on clocks that the tests turn."""

from itertools import pairwise

import pytest
import torch

from modeling_electra_exit.trainers import ElectraEarlyExitTrainingArguments
from modeling_electra_exit.trainers.runtime.pace import Pace, paced_schedule, seconds_of


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def drive(pace, clock, seconds, step=0, until=10**6):
    """Steps of a run that take `seconds(step)`, as the Trainer makes them; returns how many there were, and the
    progress after each."""
    pace.start(step)
    pace.plan(step)
    shares = []
    while step < pace.max_steps and step < until:
        took = seconds(step)
        clock.now += took
        step += 1
        shares.append(pace.progress(step))
        if pace.due(step):
            pace.plan(step)
    return step, shares


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90min", 5400), ("1h30m", 5400), ("45s", 45), ("1.5 h", 5400), ("1d", 86400)],
)
def test_times_as_people_write_them(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 hours", "-1h", "0s", "2h!", "1h 3x"])
def test_malformed_train_times_are_rejected(text):
    with pytest.raises(ValueError, match="`train_time` must be a time such as 2h"):
        seconds_of(text)


def test_a_run_ends_in_time_though_its_first_step_is_slow():
    clock = Clock()
    pace = Pace(100.0, clock)
    steps, shares = drive(pace, clock, lambda step: 5.0 if step == 0 else 0.5)
    assert clock.now == pytest.approx(100, abs=1)
    assert steps == pytest.approx(1 + 95 / 0.5, abs=2)
    assert shares[-1] == 1.0
    assert all(before <= after + 0.01 for before, after in pairwise(shares))


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_a_machine_that_changes_its_speed_is_planned_for_anew(factor):
    clock = Clock()
    pace = Pace(100.0, clock)
    steps, shares = drive(pace, clock, lambda step: 0.1 * (factor if clock.now > 50 else 1))
    assert clock.now == pytest.approx(100, rel=0.01)
    assert shares[-1] == 1.0
    assert steps == pytest.approx(500 + 500 / factor, rel=0.03)
    jumps = [after - before for before, after in pairwise(shares)]
    assert max(jumps) < 0.03  # what the steps between two plans can miss


def test_the_first_plan_and_large_changes_are_logged(caplog):
    caplog.set_level("INFO")
    clock = Clock()
    drive(Pace(100.0, clock), clock, lambda step: 0.1 if clock.now < 50 else 0.4)
    told = [record.message for record in caplog.records]
    assert told[0] == "plan: 1,000 steps in 1 min 40 s, at 0.1 s per step; 1 min 39 s left"
    assert len(told) > 1
    assert all(message.startswith("new plan: ") for message in told[1:])


def test_evaluations_count_as_time_of_the_run_and_not_as_steps():
    clock = Clock()
    pace = Pace(200.0, clock)

    def seconds(step):
        if step and step % 50 == 0:
            with pace.pause():
                clock.now += 5.0
        return 0.1

    steps, _ = drive(pace, clock, seconds)
    assert clock.now == pytest.approx(200, abs=6)  # an evaluation more or less
    assert steps == pytest.approx(1000, rel=0.05)


def test_a_run_goes_on_with_what_was_left_of_its_time():
    clock = Clock()
    pace = Pace(100.0, clock)
    step, _ = drive(pace, clock, lambda step: 0.5, until=80)
    state = pace.state_dict()
    clock.now = 10_000.0  # it lay still
    resumed = Pace(100.0, clock)
    resumed.load_state_dict(state)
    assert resumed.progress(step) == pace.progress(step)
    steps, shares = drive(resumed, clock, lambda step: 0.5, step)
    assert steps == pytest.approx(200, abs=2)
    assert clock.now == pytest.approx(10_060, abs=1)
    assert shares[0] == pytest.approx(0.405, abs=0.01)


def test_a_time_that_is_over_before_the_second_step_ends_the_run():
    clock = Clock()
    assert drive(Pace(10.0, clock), clock, lambda step: 30.0)[0] == 1


def test_steps_that_cost_more_are_expected_to_take_longer():
    clock = Clock()
    pace = Pace(100.0, clock)
    pace.start(0, 1.0)
    step, _ = drive(pace, clock, lambda step: 0.1, until=300)
    pace.start(step, 2.0)
    pace.plan(step)
    assert pace.max_steps == pytest.approx(300 + 70 / 0.2, abs=2)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "electra", "constant_with_warmup"])
def test_the_learning_rate_follows_the_progress(tmp_path, schedule):
    clock = Clock()
    args = ElectraEarlyExitTrainingArguments(
        str(tmp_path), train_time="100s", warmup_steps=0.1, lr_scheduler_type=schedule, use_cpu=True
    )
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    pace = Pace(100.0, clock)
    scheduler = paced_schedule(optimizer, args, pace)
    rates = []
    pace.start()
    for step in range(1, 10**6):
        clock.now += 0.25
        optimizer.step()
        scheduler.step()
        if pace.due(step):
            pace.plan(step)
        rates.append(scheduler.get_last_lr()[0])
        if step >= pace.max_steps:
            break
    half = {"linear": 2 * 0.5 / 0.9, "cosine": 1.17365, "electra": 1.0, "constant_with_warmup": 2.0}
    assert rates[len(rates) // 2] == pytest.approx(half[schedule], rel=0.02)
    assert rates[len(rates) // 20] == pytest.approx(1.0, rel=0.1)  # in the middle of the warm-up
    if schedule != "constant_with_warmup":
        assert rates[-1] < 0.02


def refused(tmp_path, **arguments):
    with pytest.raises(ValueError, match="train_time") as error:
        ElectraEarlyExitTrainingArguments(str(tmp_path), train_time="1h", use_cpu=True, **arguments)
    return str(error.value)


def test_what_needs_a_number_of_steps_is_refused(tmp_path):
    assert "`logging_steps` must be at least 1 with `train_time`" in refused(tmp_path, logging_steps=0.1)
    assert "`warmup_steps` must be below `max_steps`" in refused(tmp_path, max_steps=-1, warmup_steps=10)
    assert "got warmup_stable_decay" in refused(tmp_path, lr_scheduler_type="warmup_stable_decay")
    kwargs = {"num_decay_steps": 10}
    assert "got cosine" in refused(tmp_path, lr_scheduler_type="cosine", lr_scheduler_kwargs=kwargs)


def test_a_warm_up_keeps_its_share_of_the_steps_that_it_was_given_with(tmp_path):
    args = ElectraEarlyExitTrainingArguments(
        str(tmp_path), train_time="1h", use_cpu=True, max_steps=2000, warmup_steps=100
    )
    assert args.warmup_steps == 0.05
