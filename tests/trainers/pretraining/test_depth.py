"""Pre-trainings that grow, and those that end by the clock."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForPreTraining
from transformers.trainer_callback import TrainerCallback

from electra_exit import main as cli
from modeling_electra_exit.trainers import ElectraEarlyExitTrainingArguments
from modeling_electra_exit.trainers.errors import WriteError
from modeling_electra_exit.trainers.pretraining import depth as depth_module
from modeling_electra_exit.trainers.pretraining.depth import (
    FORK_BATCHES,
    LAYER,
    Fork,
    at_depth,
    check_depths,
    grow,
    grown_moments,
    sources,
)
from modeling_electra_exit.trainers.runtime.checkpoints import damage
from modeling_electra_exit.trainers.runtime.depths import DepthSchedule, FoundDepths, doubling
from tests.conftest import tiny_model
from tests.trainers.cli.test_cli import RECIPE
from tests.trainers.pretraining.test_trainer import assert_same, make_trainer, weights


STAGES = "1:0.25,2:0.25,4"


class Stop(Exception):
    pass


class StopAt(TrainerCallback):
    """Ends a run as a crash does, after a step and all that comes with it."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Stop


def plain_model(**overrides):
    settings = {"num_hidden_layers": 4, "exit_policy": "none"}
    settings |= {"norm_position": "pre", "hidden_dropout_prob": 0.1, "generator_num_hidden_layers": 1}
    return tiny_model(**{**settings, **overrides})


def growing(tokenizer, folder, model=None, **arguments):
    settings = {"depth_schedule": STAGES, "max_steps": 8, "save_strategy": "steps", "save_steps": 1}
    return make_trainer(tokenizer, folder, model or plain_model(), **{**settings, **arguments})


def finish(tokenizer, folder, **arguments):
    trainer = growing(tokenizer, folder, **arguments)
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    return trainer


# ---- What a schedule may say ----


def test_a_schedule_says_how_deep_and_for_how_long():
    schedule = DepthSchedule.parse("2:0.15, 4:.55, 8")
    assert schedule.depths == (2, 4, 8)
    assert schedule.ends == pytest.approx((0.15, 0.7, 1.0))
    assert [schedule.stage_after(step, 100) for step in (0, 14, 15, 69, 70, 99, 100)] == [0, 0, 1, 1, 2, 2, 2]
    assert [schedule.stage_at(share) for share in (0.0, 0.2, 0.99, 1.0)] == [0, 1, 2, 2]


@pytest.mark.parametrize(
    "text", ["8", "4:0.5,2", "2:0.5,2", "2:0.6,4:0.4,8", "2:0,8", "2:15,8", "2,8", "0:0.5,2", "2:0.5,x", "2:0.5,", ""]
)
def test_malformed_depth_schedules_are_rejected(tmp_path, text):
    with pytest.raises(ValueError, match="`depth_schedule` must be increasing depths"):
        ElectraEarlyExitTrainingArguments(str(tmp_path), depth_schedule=text, use_cpu=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fsdp": True}, "`depth_schedule` must be unset with FSDP"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}, "`load_best_model_at"),
        ({"depth_growth": "top"}, "`depth_growth` must be one of stack, interleave, identity, got top"),
    ],
)
def test_what_does_not_go_with_it_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        ElectraEarlyExitTrainingArguments(str(tmp_path), depth_schedule=STAGES, use_cpu=True, **arguments)


@pytest.mark.parametrize(
    ("fields", "schedule", "message"),
    [
        ({}, "1:0.5,3", "the last depth of `depth_schedule` must be `num_hidden_layers`, 4, got 3"),
        ({"exit_policy": "random", "exit_layers": [2], "exit_capacities": [0.5]}, "2:0.5,4",
         "`depth_schedule` has a stage of 2 layers, and `exit_layers` must be"),
        ({"generator_type": "self", "generator_head_layer": 2}, "1:0.5,4",
         "`depth_schedule` has a stage of 1 layer, and `generator_head_layer` must be"),
    ],
)  # fmt: skip
def test_a_stage_too_shallow_for_the_model_is_refused(tokenizer, tmp_path, fields, schedule, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        growing(tokenizer, tmp_path, plain_model(**fields), depth_schedule=schedule)


# ---- Growing ----


@pytest.mark.parametrize(
    ("growth", "expected"),
    [("stack", [0, 1, 0, 1, 0]), ("identity", [0, 1, 0, 1, 0]), ("interleave", [0, 0, 0, 1, 1])],
)
def test_which_layer_is_a_copy_of_which(growth, expected):
    assert sources(2, 5, growth) == expected


@pytest.mark.parametrize("optim", ["adamw_torch", "muon"])
@pytest.mark.parametrize("growth", ["stack", "interleave", "identity"])
def test_weights_and_moments_go_along(tokenizer, tmp_path, growth, optim):
    """The checkpoint that a stage leaves, and the one that is grown from it, parameter by parameter."""
    trainer = growing(
        tokenizer, tmp_path, optim=optim, depth_growth=growth, depth_schedule="2:0.5,4", weight_decay=0.1
    )
    seen = {}

    def kept(folder):
        seen["before"] = shutil.copytree(folder, tmp_path / "before")
        return damage(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depth_module, "damage", kept)
        trainer.train()
    before, after = tmp_path / "before", tmp_path / "checkpoint-4"
    assert damage(after) is None
    small, large = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    copied = sources(2, 4, growth)
    names = {of: trainer.optimizer_names(tiny_model_at(of)) for of in (2, 4)}
    moments = {of: torch.load(folder / "optimizer.pt", weights_only=True) for of, folder in ((2, before), (4, after))}
    of_name = {of: {n: moments[of]["state"].get(i) for i, n in enumerate(names[of])} for of in (2, 4)}
    group_of = {
        of: {names[of][i]: n for n, group in enumerate(moments[of]["param_groups"]) for i in group["params"]}
        for of in (2, 4)
    }
    assert len(small) < len(large)
    for name, value in large.items():
        found = LAYER.match(name)
        source = f"{found[1]}{copied[int(found[2])]}{found[3]}" if found else name
        new = found and int(found[2]) >= 2 and growth == "identity"
        if new and "output.dense" in name:
            assert not value.any()
        else:
            assert torch.equal(value, small[source]), name
        if name not in of_name[4]:
            continue
        assert group_of[4][name] == group_of[2][source], name
        assert (of_name[4][name] is None) == (of_name[2][source] is None)
        for kind, moment in (of_name[4][name] or {}).items():
            assert torch.equal(torch.as_tensor(moment), torch.as_tensor(of_name[2][source][kind])), (name, kind)
    kinds = {kind for held in of_name[4].values() for kind in held or ()}
    assert ({"momentum_buffer"} if optim == "muon" else set()) | {"exp_avg", "exp_avg_sq"} <= kinds
    for one, other in zip(moments[2]["param_groups"], moments[4]["param_groups"], strict=True):
        assert {**one, "params": 0} == {**other, "params": 0}
    for name in ("scheduler.pt", "rng_state.pth", "trainer_state.json"):
        assert (before / name).read_bytes() == (after / name).read_bytes()


def tiny_model_at(depth):
    return plain_model(num_hidden_layers=depth)


def test_layers_that_add_nothing_leave_the_model_as_it_was(tokenizer, tmp_path):
    trainer = growing(tokenizer, tmp_path, depth_schedule="2:0.5,4")
    trainer.add_callback(StopAt(4))
    with pytest.raises(Stop):  # at the first step of the deeper model
        trainer.train()
    deeper = trainer.model.eval()
    assert deeper.config.num_hidden_layers == 4
    shallow = plain_model(num_hidden_layers=2).eval()
    weights_of = deeper.state_dict()
    shallow.load_state_dict({name: weights_of[name] for name in shallow.state_dict()})
    ids = torch.arange(5, 69)[None]
    torch.testing.assert_close(deeper(input_ids=ids).logits, shallow(input_ids=ids).logits)


def test_moments_that_an_optimizer_does_not_have_yet_are_none():
    state = {"state": {0: {"m": torch.ones(1)}}, "param_groups": [{"lr": 1.0, "params": [0, 1]}]}
    names = ["electra.encoder.layer.0.a", "head.b"]
    deep = ["electra.encoder.layer.0.a", "electra.encoder.layer.1.a", "head.b"]
    grown = grown_moments(state, names, deep, [0, 0])
    assert sorted(grown["state"]) == [0, 1]
    assert grown["param_groups"] == [{"lr": 1.0, "params": [0, 1, 2]}]


# ---- A whole run ----


@pytest.mark.parametrize("optim", ["adamw_torch", "muon"])
def test_a_run_grows_through_its_stages_into_an_ordinary_model(tokenizer, tmp_path, optim):
    trainer = finish(tokenizer, tmp_path, optim=optim)
    assert trainer.state.global_step == 8
    depths = [log["depth"] for log in trainer.state.log_history if "depth" in log]
    assert depths == [1, 1, 2, 2, 4, 4, 4, 4]
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert rates == pytest.approx([1e-3 * (1 - step / 8) for step in range(8)])
    epochs = [log["epoch"] for log in trainer.state.log_history if "loss" in log]
    assert epochs == [step / 4 for step in range(1, 9)]  # every batch of two epochs, once
    trainer.save_unpushed()
    model = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert model.config.num_hidden_layers == len(model.electra.encoder.layer) == 4
    assert model.config.pretraining_depths == [[0, 1], [2, 2], [4, 4]]
    assert_same(weights(trainer), model.state_dict())
    assert AutoConfig.from_pretrained(tmp_path).generator_num_hidden_layers == 1


@pytest.fixture(scope="module")
def undisturbed(tokenizer, tmp_path_factory):
    made = {}

    def of(optim):
        if optim not in made:
            made[optim] = weights(finish(tokenizer, tmp_path_factory.mktemp(optim), optim=optim))
        return made[optim]

    return of


# Before the first border, at both of them, and after it.
@pytest.mark.parametrize(
    ("optim", "step"), [("muon", 1), ("muon", 2), ("adamw_torch", 2), ("adamw_torch", 3), ("muon", 4)]
)
def test_a_run_that_is_killed_at_any_step_ends_in_the_same_weights(tokenizer, tmp_path, undisturbed, step, optim):
    trainer = growing(tokenizer, tmp_path, optim=optim)
    trainer.add_callback(StopAt(step))
    with pytest.raises(Stop):
        trainer.train()
    resumed = finish(tokenizer, tmp_path, optim=optim)
    assert resumed.state.global_step == 8
    assert_same(undisturbed(optim), weights(resumed))
    assert resumed.model.config.pretraining_depths == [[0, 1], [2, 2], [4, 4]]


@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_is_killed_while_it_grows_ends_in_the_same_weights(
    tokenizer, tmp_path, undisturbed, monkeypatch, before
):
    def dying(incomplete, final):
        if not before:
            commit(incomplete, final)
        raise Stop

    commit = depth_module.commit
    with monkeypatch.context() as patch:
        patch.setattr(depth_module, "commit", dying)
        with pytest.raises(Stop):
            growing(tokenizer, tmp_path, optim="adamw_torch").train()
    assert AutoConfig.from_pretrained(tmp_path / "checkpoint-2").num_hidden_layers == (1 if before else 2)
    assert_same(undisturbed("adamw_torch"), weights(finish(tokenizer, tmp_path, optim="adamw_torch")))


def test_a_stage_whose_checkpoint_cannot_be_written_says_so(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(depth_module, "damage", lambda folder: "weights.bin is missing")
    with pytest.raises(WriteError, match=r"cannot grow from .*checkpoint-2: weights.bin is missing"):
        growing(tokenizer, tmp_path).train()


def test_a_checkpoint_that_has_grown_is_left_alone(tokenizer, tmp_path):
    trainer = finish(tokenizer, tmp_path)
    checkpoint = tmp_path / "checkpoint-4"
    manifest = (checkpoint / "manifest.json").read_text()
    grow(trainer, checkpoint, trainer.model.config)
    assert (checkpoint / "manifest.json").read_text() == manifest


def test_exits_that_fit_the_first_stage_stay_through_all(tokenizer, tmp_path):
    model = plain_model(exit_policy="random", exit_layers=[1], exit_capacities=[0.5], num_hidden_layers=6)
    trainer = growing(tokenizer, tmp_path, model, depth_schedule="3:0.5,6")
    trainer.train()
    logged = [log for log in trainer.state.log_history if "depth" in log]
    assert {log["kept_layer_2"] for log in logged} == {0.5}
    assert "kept_layer_6" not in logged[0]
    assert logged[-1]["kept_layer_6"] == 1.0


# ---- By the clock ----


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Tick(TrainerCallback):
    """Steps that take as long as the model is deep."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.pace.clock.now += 1.0 * self.trainer.model.config.num_hidden_layers


@pytest.fixture
def clock():
    return Clock()


def timed(tokenizer, folder, clock, **arguments):
    trainer = growing(tokenizer, folder, **{"train_time": "40s", "depth_schedule": None, **arguments})
    trainer.clock = clock
    trainer.callback_handler.callbacks.insert(0, Tick(trainer))
    return trainer


def test_a_run_ends_when_its_time_is_over(tokenizer, tmp_path, clock):
    trainer = timed(tokenizer, tmp_path, clock)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps == 10
    assert clock.now == 40
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert rates[4] == pytest.approx(6e-4, abs=5e-5)
    assert rates[-1] == pytest.approx(1e-4, abs=2e-5)
    assert (tmp_path / "checkpoint-10").is_dir()
    assert 0 < trainer.state.log_history[-1]["train_samples_per_second"] < 10**6


def test_a_run_by_the_clock_goes_on_with_the_time_that_was_left(tokenizer, tmp_path, clock):
    trainer = timed(tokenizer, tmp_path, clock)
    trainer.add_callback(StopAt(6))
    with pytest.raises(Stop):
        trainer.train()
    clock.now += 10_000
    resumed = timed(tokenizer, tmp_path, clock)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 10
    assert clock.now == pytest.approx(10_040)


def test_stages_have_shares_of_the_time(tokenizer, tmp_path, clock):
    trainer = timed(tokenizer, tmp_path, clock, train_time="80s", depth_schedule="1:0.25,4", save_steps=1000)
    trainer.train()
    depths = [log["depth"] for log in trainer.state.log_history if "depth" in log]
    assert depths.count(1) == pytest.approx(20, abs=1)
    assert depths.count(4) == pytest.approx(60 / 4, abs=1)
    assert clock.now == pytest.approx(80, abs=4)


def test_a_run_by_the_clock_that_is_killed_at_a_stages_end_goes_on_in_the_next(tokenizer, tmp_path, clock):
    trainer = timed(tokenizer, tmp_path, clock, train_time="40s", depth_schedule="1:0.25,4")
    trainer.add_callback(StopAt(10))
    with pytest.raises(Stop):
        trainer.train()
    resumed = timed(tokenizer, tmp_path, clock, train_time="40s", depth_schedule="1:0.25,4")
    resumed.train(resume_from_checkpoint=True)
    state = json.loads(Path(tmp_path, f"checkpoint-{resumed.state.global_step}", "trainer_state.json").read_text())
    assert [log["depth"] for log in state["log_history"] if "depth" in log].count(1) == 10
    assert clock.now == pytest.approx(40, abs=4)


# ---- Depths that are found ----


def finding(tokenizer, folder, **arguments):
    settings = {"depth_schedule": "auto", "max_steps": 20, "save_steps": 1, "optim": "adamw_torch"}
    settings["per_device_eval_batch_size"] = 2
    return growing(tokenizer, folder, plain_model(num_hidden_layers=8), **{**settings, **arguments})


class Falls(dict):
    """Of the held-out loss by depth; and their standard errors."""


@pytest.fixture
def forks(monkeypatch):
    """Measurements by depth, and which were asked for."""
    asked, falls, errors = [], Falls(), {}
    falls.errors = errors

    def measured(trainer, checkpoint, config):
        asked.append((checkpoint.name, config.num_hidden_layers))
        return Fork(falls.get(config.num_hidden_layers, 1.0), errors.get(config.num_hidden_layers, 0.0), 1.0)

    monkeypatch.setattr(depth_module, "fork", measured)
    return asked, falls


def test_depths_double_up_to_the_models():
    assert doubling(8) == (2, 4, 8)
    assert doubling(12) == (3, 6, 12)
    assert doubling(7) == (7,)
    assert [FoundDepths.of(8).next_depth(depth) for depth in (2, 4, 8)] == [4, 8, None]
    with pytest.raises(ValueError, match=r"must be an even number of at least 4 .*got 3"):
        FoundDepths.of(3)


def test_a_model_grows_when_more_layers_lower_the_loss_faster(tokenizer, tmp_path, forks, caplog):
    caplog.set_level("INFO")
    asked, falls = forks
    falls.update({2: 1.0, 4: 2.0, 8: 1.5})
    trainer = finding(tokenizer, tmp_path)
    trainer.train()
    assert asked == [("checkpoint-3", 2), ("checkpoint-3", 4), ("checkpoint-7", 4), ("checkpoint-7", 8),
                     ("checkpoint-11", 4), ("checkpoint-11", 8)]  # fmt: skip
    assert trainer.state.global_step == 20
    assert trainer.model.config.pretraining_depths == [[0, 2], [3, 4]]
    assert len(trainer.model.electra.encoder.layer) == 4
    assert (
        "decrease of the held-out loss per second: 1 with 2 layers, 2 with 4 layers; continuing with 4 layers"
        in caplog.text
    )
    assert "more layers did not lower the loss faster: the model ends with 4 of 8 layers" in caplog.text


@pytest.mark.parametrize(
    ("falls_of", "error"),
    [({2: -1.0, 4: -0.5}, 0.0), ({2: 0.1, 4: 0.2}, 0.15)],  # nothing falls; nothing falls by more than chance
)
def test_a_model_on_a_plateau_does_not_grow(tokenizer, tmp_path, forks, falls_of, error):
    _, falls = forks
    falls.update(falls_of)
    falls.errors.update(dict.fromkeys(falls_of, error))
    trainer = finding(tokenizer, tmp_path, save_steps=1000)
    trainer.train()
    assert trainer.model.config.pretraining_depths == [[0, 2]]


def test_a_model_that_is_as_deep_as_can_be_is_measured_no_more(tokenizer, tmp_path, forks):
    asked, falls = forks
    falls.update({2: 1.0, 4: 2.0, 8: 3.0})
    trainer = finding(tokenizer, tmp_path, train_time=None)
    trainer.train()
    assert asked[-1] == ("checkpoint-7", 8)
    assert trainer.model.config.pretraining_depths == [[0, 2], [3, 4], [7, 8]]


def test_what_was_found_once_holds_when_a_run_goes_on(tokenizer, tmp_path, forks):
    asked, falls = forks
    falls.update({2: 1.0, 4: 2.0, 8: 1.0})
    whole = finding(tokenizer, tmp_path / "whole")
    whole.train()
    trainer = finding(tokenizer, tmp_path / "killed")
    trainer.add_callback(StopAt(7))
    with pytest.raises(Stop):
        trainer.train()
    asked.clear()
    falls.update({4: 0.0})  # which is not asked again of that checkpoint
    resumed = finding(tokenizer, tmp_path / "killed")
    resumed.train(resume_from_checkpoint=True)
    assert asked[0] == ("checkpoint-11", 4)
    assert resumed.model.config.pretraining_depths == [[0, 2], [3, 4], [11, 8]]
    before = [load_file(tmp_path / name / "checkpoint-10" / "model.safetensors") for name in ("whole", "killed")]
    assert_same(*before)


@pytest.mark.parametrize("optim", ["adamw_torch", "muon"])
def test_a_fork_measures_a_few_steps_and_leaves_nothing_behind(tokenizer, tmp_path, monkeypatch, optim):
    """The real measurement, of a run whose model never grows: it ends in the weights of one without any."""
    made = []

    def kept(*args):
        made.append(real(*args))
        return Fork(float(len(made) % 2), 0.0, 1.0)  # the shallower one comes first

    real = depth_module.fork
    monkeypatch.setattr(depth_module, "fork", kept)
    found = finding(tokenizer, tmp_path / "found", optim=optim, learning_rate=1e-2)
    found.train()
    assert len(made) == 6
    assert all(0 < of.seconds < 60 for of in made)
    assert any(of.fall > of.error > 0 for of in made)
    monkeypatch.setattr(
        depth_module, "fork", lambda trainer, at, config: Fork(1.0 / config.num_hidden_layers, 0.0, 1.0)
    )
    shallow = finding(tokenizer, tmp_path / "unmeasured", optim=optim, learning_rate=1e-2)
    shallow.train()
    assert_same(weights(shallow), weights(found))
    losses = [[log["loss"] for log in of.state.log_history if "loss" in log] for of in (shallow, found)]
    assert losses[0] == losses[1]


def test_a_fork_trains_on_new_masks_and_is_measured_on_those_of_evaluations(tokenizer, tmp_path, monkeypatch):
    """A run that has read its text several times would otherwise train the fork on what it has just seen."""
    epochs = {"train": set(), "held out": set()}

    def training_step(model, batch):
        epochs["train"].add(trainer.epoch)
        return real(model, batch)

    def prediction_step(model, batch, prediction_loss_only):
        epochs["held out"].add(trainer.epoch)
        return torch.tensor(1.0), None, None

    trainer = finding(tokenizer, tmp_path)
    real = trainer.training_step
    fork, own = depth_module.fork, []

    def at_the_fork(*args):
        trainer.data_collator.set_epoch(5)
        monkeypatch.setattr(trainer, "training_step", training_step)
        monkeypatch.setattr(trainer, "prediction_step", prediction_step)
        fork(*args)
        own.append(trainer.epoch)
        raise Stop

    monkeypatch.setattr(depth_module, "fork", at_the_fork)
    with pytest.raises(Stop):
        trainer.train()
    assert (epochs, own) == ({"train": {6}, "held out": {0}}, [5])


def test_a_fork_reads_few_held_out_sequences(tokenizer, tmp_path, monkeypatch):
    """Evaluation batches are often large, and the forks' time counts towards the run."""
    read = []

    def counted(model, batch, prediction_loss_only):
        read.append(len(batch["input_ids"]))
        return torch.tensor(1.0), None, None

    trainer = finding(tokenizer, tmp_path, per_device_train_batch_size=1, per_device_eval_batch_size=64)
    monkeypatch.setattr(trainer, "prediction_step", counted)
    depth_module.held_out_losses(trainer, trainer.model)
    assert read == [1] * FORK_BATCHES


def test_depths_are_found_by_the_clock_too(tokenizer, tmp_path, forks, clock):
    asked, falls = forks
    falls.update({2: 1.0, 4: 2.0, 8: 1.0})
    trainer = finding(tokenizer, tmp_path, train_time="100s", save_steps=1000)
    trainer.clock = clock
    trainer.callback_handler.callbacks.insert(0, Tick(trainer))
    trainer.train()
    assert [depth for _, depth in asked] == [2, 4, 4, 8, 4, 8]
    (_, first), (step, second) = trainer.model.config.pretraining_depths
    assert (first, second) == (2, 4)
    assert 2 * step == pytest.approx(15, abs=2)
    assert clock.now == pytest.approx(100, abs=4)


def test_depths_are_found_in_one_process():
    args = SimpleNamespace(depth_schedule="auto", world_size=2, fp16=False)
    with pytest.raises(ValueError, match="`depth_schedule` must be depths and shares, not auto"):
        check_depths(args, plain_model().config)


def test_a_model_that_stays_shallow_can_have_exits_in_a_task():
    stages = [at_depth(plain_model(num_hidden_layers=8, exit_layers=[]).config, depth) for depth in (1, 2, 4)]
    assert [(config.exit_layers, config.exit_reentry_layers) for config in stages] == [([], 0), ([1], 0), ([1], 1)]
    assert not any(config.has_exit_heads for config in stages)
    without = plain_model(num_hidden_layers=8, exit_policy="random", exit_layers=[]).config
    assert not at_depth(without, 4).has_exit_heads


# ---- The command line ----


def test_the_command_line_grows_a_model_and_reports_what_it_cost(tmp_path, corpus):
    fields = {**RECIPE, "exit_policy": "none", "generator_type": "unigram", "report_to": "none"}
    del fields["generator_size"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**fields, "train_files": [str(corpus)], "output_dir": str(tmp_path / "run")}))
    assert cli.main(["pretrain", str(recipe), "--depth_schedule", "2:0.5,4", "--disable_tqdm", "true"]) == 0
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert measured["flops"]["total"] == pytest.approx(state["total_flos"])
    assert 0.5 < measured["flops"]["blocks"] / measured["flops"]["dense_blocks"] < 1
    assert (
        "| depth in training | 2 layers from the start, 4 layers from step 2 on |"
        in (tmp_path / "run" / "README.md").read_text()
    )


def test_the_command_line_refuses_a_schedule_before_it_reads_text(tmp_path, corpus, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "train_files": [str(corpus)], "output_dir": str(tmp_path / "run")}))
    assert cli.main(["pretrain", str(recipe), "--depth_schedule", "2:0.5,4"]) == 2
    assert "`depth_schedule` has a stage of 2 layers, and `exit_layers` must be" in capsys.readouterr().err
