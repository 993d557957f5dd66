"""A run survives whatever happens to it: real signals and real files, in processes of their own."""

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from benchmarks.faults import DAMAGES, KILLS, STATUS, TERMS, TRAINER, Case, Fault, LimitFileSize
from electra_exit import main as cli
from modeling_electra_exit.trainers.errors import Interrupted, WorkerError, WriteError
from modeling_electra_exit.trainers.runtime import checkpoints, files
from tests.trainers.pretraining.test_trainer import make_trainer


SOME = [
    fault
    for fault in KILLS + TERMS
    if fault.name.endswith(("gradients computed", "its manifest written", "none removed yet", "the last evaluation",
                            "the measurements not", "SIGTERM: in a step", "SIGTERM: in an evaluation",
                            "Ctrl-C: in a step"))
]  # fmt: skip


# One test, because every worker would have to import everything for its own processes; the rest is in the benchmark.
def test_nothing_is_lost(tmp_path):
    straight = Case(tmp_path, "straight")
    assert straight.run() == 0, straight.output_text()
    measured = json.loads((straight.output / "metrics.json").read_text())
    assert len(SOME) == 8
    for number, fault in enumerate(SOME):
        case = Case(tmp_path, f"fault-{number}")
        status = case.run(fault.inject)
        assert status == STATUS[fault.signal], (fault, case.output_text())
        if fault.signal != signal.SIGKILL:
            command = f"continues from step 8: electra-exit pretrain {case.recipe}"
            assert command in case.output_text()
            assert "Traceback" not in case.output_text()
            assert (case.output / "checkpoint-8").is_dir()
        assert case.run() == 0, (fault, case.output_text())
        if fault.signal != signal.SIGKILL:
            assert f"continues from step 8: {case.output}/checkpoint-8" in case.output_text()
        assert case.differences(straight) == [], fault
        again = json.loads((case.output / "metrics.json").read_text())
        assert again["flops"] == measured["flops"], fault
        assert again["training"]["steps"] == 12, fault
        assert (case.output / "README.md").exists(), fault

    full = Case(tmp_path, "full")
    assert full.run(LimitFileSize(120_000)) == 1  # no room for the weights
    errors = [line for line in full.output_text().splitlines() if "could not be written" in line]
    assert [line.split(" could not")[0] for line in errors] == [
        *(f"the checkpoint of step {n}" for n in (3, 6, 9, 12)),
        f"electra-exit pretrain: error: the model in {full.output}",
    ]
    assert "Traceback" not in full.output_text()
    assert not list(full.output.glob("*checkpoint*"))
    assert full.run() == 0
    assert full.differences(straight) == []


def saved(tokenizer, folder, **arguments):
    trainer = make_trainer(tokenizer, folder, save_strategy="steps", save_steps=2, **arguments)
    trainer.train()
    return trainer


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tokenizer, tmp_path, caplog, how):
    saved(tokenizer, tmp_path, max_steps=4)
    newest = tmp_path / "checkpoint-4"
    for path in sorted(newest.iterdir()):
        content = path.read_bytes()
        DAMAGES[how](path)
        reason = checkpoints.damage(newest)
        assert path.name in reason or (path.name == checkpoints.MANIFEST and reason)
        path.write_bytes(content)
    assert checkpoints.newest_intact(tmp_path) == str(newest)
    DAMAGES[how](newest / "model.safetensors")
    assert checkpoints.newest_intact(tmp_path) == str(tmp_path / "checkpoint-2")
    assert f"{newest} is damaged (model.safetensors" in caplog.text
    assert (tmp_path / "_damaged-checkpoint-4").is_dir()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"a": {"size": 1}}'])
def test_a_manifest_of_something_else(tmp_path, content):
    (tmp_path / checkpoints.MANIFEST).write_text(content)
    assert checkpoints.damage(tmp_path) == "it has no readable manifest.json"


def test_the_limit_counts_whole_checkpoints_and_leaves_the_only_good_one(tokenizer, tmp_path, monkeypatch, caplog):
    first = saved(tokenizer, tmp_path, max_steps=4, save_total_limit=1)
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-4"]

    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    second = make_trainer(tokenizer, tmp_path, max_steps=8, save_strategy="steps", save_steps=2, save_total_limit=1)
    monkeypatch.setattr(second, "_save_rng_state", no_space)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 8
    assert "checkpoint of step 8 could not be written: [Errno 28] No space left on device" in caplog.text
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-4"]
    assert checkpoints.damage(tmp_path / "checkpoint-4") is None
    assert not (tmp_path / files.INCOMPLETE).exists()

    # Where the newest is damaged, what is saved next is the newest, whatever the numbers say.
    DAMAGES["truncated"](tmp_path / "checkpoint-4" / "optimizer.pt")
    third = make_trainer(tokenizer, tmp_path, max_steps=2, save_strategy="steps", save_steps=2, save_total_limit=1)
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        third.train(resume_from_checkpoint=True)
    third.train()
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint-2"]
    assert first.state.global_step == 4


def test_who_may_read_the_config_may_read_the_weights(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    trainer.train()
    trainer.save_unpushed()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_a_clock_that_is_set_back_costs_no_checkpoint(tokenizer, tmp_path):
    saved(tokenizer, tmp_path, max_steps=4, save_total_limit=2)
    for number, step in enumerate((2, 4)):
        os.utime(tmp_path / f"checkpoint-{step}", times=(4e9 + 60 * number,) * 2)  # written in the year 2096
    trainer = make_trainer(tokenizer, tmp_path, max_steps=8, save_strategy="steps", save_steps=2, save_total_limit=2)
    trainer.train(resume_from_checkpoint=True)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]


WRITERS = {
    "text": lambda path: path.write_text("a" * 400_000),
    "safetensors": lambda path: save_file({"a": torch.zeros(100_000)}, path),
    "torch": lambda path: torch.save(torch.zeros(100_000), path),
    "tokenizers": lambda path: Tokenizer(WordLevel({str(n): n for n in range(50_000)})).save(str(path)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_way_to_write_names_a_full_disk_in_one_line(writer, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(WriteError) as error, files.naming_write_errors("this"):
            WRITERS[writer](tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(error.value).startswith("this could not be written: ")
    assert "\n" not in str(error.value)


def test_a_bug_while_saving_is_not_taken_for_a_full_disk(tokenizer, tmp_path, monkeypatch):
    trainer = make_trainer(tokenizer, tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    monkeypatch.setattr(trainer, "_save_rng_state", lambda folder: [][1])
    with pytest.raises(IndexError):
        trainer.train()


WHOLE = ("model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json")


def commit_files(folder, names, content="content"):
    incomplete = folder / files.INCOMPLETE / "checkpoint-2"
    incomplete.mkdir(parents=True)
    for name in names:
        (incomplete / name).write_text(content)
    checkpoints.commit(incomplete, folder / "checkpoint-2")


@pytest.mark.parametrize("missing", WHOLE)
def test_a_manifest_that_lists_less_than_resuming_needs(tmp_path, missing):
    commit_files(tmp_path, set(WHOLE) - {missing})
    assert "its manifest.json lists no " in checkpoints.damage(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / checkpoints.MANIFEST).write_text("{}")
    assert checkpoints.damage(tmp_path / "checkpoint-2") == "its manifest.json lists no weights"


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    for content in ("old", "new"):
        commit_files(tmp_path, WHOLE, content)
        assert (tmp_path / "checkpoint-2" / "model.safetensors").read_text() == content
        assert checkpoints.damage(tmp_path / "checkpoint-2") is None
        assert not (tmp_path / files.INCOMPLETE).exists()


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A name without its content is what a loss of power would leave behind otherwise."""
    happened = []
    fsync, replace, rename = os.fsync, os.replace, Path.rename

    def flush(descriptor):
        happened.append(("flush", Path(f"/proc/self/fd/{descriptor}").resolve().relative_to(tmp_path).as_posix()))
        fsync(descriptor)

    def name(how):
        def call(source, target):
            happened.append(("name", Path(target).relative_to(tmp_path).as_posix()))
            return how(source, target)

        return call

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", name(replace))
    monkeypatch.setattr(Path, "rename", name(rename))
    incomplete = tmp_path / "_incomplete" / "checkpoint-2"
    (incomplete / "parts").mkdir(parents=True)
    for file in ("weights", "parts/more"):
        (incomplete / file).write_text(file)
    checkpoints.commit(incomplete, tmp_path / "checkpoint-2")
    written = [("flush", f"_incomplete/checkpoint-2/{file}")
               for file in ("parts/more", "weights", "_incomplete-manifest.json")]  # fmt: skip
    manifest, named = ("name", "_incomplete/checkpoint-2/manifest.json"), ("name", "checkpoint-2")
    assert set(written) <= set(happened[: happened.index(manifest)])
    assert happened.index(manifest) < happened.index(named)
    assert ("flush", ".") in happened[happened.index(named) :]


def test_the_best_checkpoint_is_known_by_its_name(tokenizer, tmp_path):
    trainer = saved(tokenizer, tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2,
                    metric_for_best_model="loss", load_best_model_at_end=True)  # fmt: skip
    best = f"{tmp_path}/checkpoint-{trainer.state.best_global_step}"
    assert trainer.state.best_model_checkpoint == best
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == best


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_last_evaluation_ends_the_run_in_a_sentence(tmp_path, number):
    case = Case(tmp_path, "run")
    fault = Fault("in the last evaluation", f"{TRAINER}.prediction_step", 10, signal=number)
    assert case.run(fault.inject) == STATUS[number], case.output_text()
    assert f"continues from step 12: electra-exit pretrain {case.recipe}" in case.output_text()
    assert not (case.output / "metrics.json").exists()
    assert case.run() == 0, case.output_text()
    assert (case.output / "metrics.json").exists()


def test_resuming_after_the_last_step_takes_no_other(tokenizer, tmp_path):
    saved(tokenizer, tmp_path, max_steps=6)
    trainer = make_trainer(tokenizer, tmp_path, max_steps=6)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6


def test_the_handlers_are_given_back(tokenizer, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    saved(tokenizer, tmp_path, max_steps=2)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal: a shell starts what it puts into the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_the_first_ctrl_c_saves_and_the_second_ends_at_once(tokenizer, tmp_path, capfd):
    trainer = make_trainer(tokenizer, tmp_path, max_steps=9, save_strategy="no", dataloader_num_workers=1)
    step = trainer.training_step

    def interrupted(*args):
        if trainer.state.global_step == 2:
            for process in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
                os.kill(process, signal.SIGINT)  # as a terminal does
        return step(*args)

    trainer.training_step = interrupted
    with pytest.raises(Interrupted) as stop:
        trainer.train()
    assert stop.value.step == 3
    assert checkpoints.damage(tmp_path / "checkpoint-3") is None
    said = "finishing the step and saving a checkpoint; press Ctrl-C again to end at once"
    assert capfd.readouterr().err.count(said) == 1

    again = make_trainer(tokenizer, tmp_path, max_steps=9, save_strategy="no")
    again.training_step = lambda *args: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]
    with pytest.raises(KeyboardInterrupt) as stop:
        again.train(resume_from_checkpoint=True)
    assert not isinstance(stop.value, Interrupted)
    assert not (tmp_path / "checkpoint-4").exists()


class Broken(TensorBoardCallback):
    calls = 0

    def on_log(self, *args, **kwargs):
        self.calls += 1
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failing_report_is_logged_once_and_does_not_end_the_run(tokenizer, tmp_path, caplog):
    report = Broken()
    trainer = make_trainer(tokenizer, tmp_path, max_steps=4)
    trainer.add_callback(report)
    trainer.train()
    assert trainer.state.global_step == 4
    assert report.calls == 1
    said = "Broken is disabled after an error; training continues: OSError: [Errno 28] No space left on device"
    assert [record.message for record in caplog.records].count(said) == 1


def test_a_missing_or_full_event_folder_does_not_end_the_run(tokenizer, tmp_path, caplog, capfd):
    trainer = make_trainer(tokenizer, tmp_path, max_steps=6, report_to=["tensorboard"])
    step, before = trainer.training_step, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*args):
        if trainer.state.global_step == 2:
            shutil.rmtree(tmp_path / "runs")
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        return step(*args)

    trainer.training_step = full
    try:
        trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert trainer.state.global_step == 6
    assert "TensorBoardCallback is disabled after an error; training continues: " in caplog.text
    assert "Traceback" not in capfd.readouterr().err


def test_a_callback_that_does_more_than_report_still_ends_the_run(tokenizer, tmp_path):
    class Watch(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise ValueError("mine")

    trainer = make_trainer(tokenizer, tmp_path, max_steps=2)
    trainer.add_callback(Watch())
    with pytest.raises(ValueError, match="mine"):
        trainer.train()


def test_a_killed_loader_worker_is_named(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, max_steps=9, dataloader_num_workers=1)
    step = trainer.training_step

    def killed(*args):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
        return step(*args)

    trainer.training_step = killed
    with pytest.raises(WorkerError, match="was killed, perhaps because memory ran out; a smaller --dataloader_num_wo"):
        trainer.train()


def test_a_secret_is_not_shown_in_the_command_that_continues():
    assert cli.typed(["pretrain", "r.yaml", "--hub_token", "s3cret", "--seed", "1"]) == (
        "electra-exit pretrain r.yaml --hub_token ... --seed 1"
    )
    assert cli.typed(["pretrain", "--hub-token=s3cret"]) == "electra-exit pretrain --hub-token=..."
