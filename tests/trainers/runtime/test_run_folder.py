"""One process at a time in a run's folder, and nothing of one run mixed with another's."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import time

import pytest
import torch

from modeling_electra_exit.trainers.runtime import run_folder
from modeling_electra_exit.trainers.runtime.run_folder import RunRecord, fingerprints, held, tokenizer_fingerprint
from tests.conftest import tiny_model, write_corpus
from tests.trainers.cli.test_cli import recipe, run  # noqa: F401


@pytest.fixture
def unfinished(recipe, tmp_path):  # noqa: F811
    """A run of two steps whose measurements are not written yet: its recipe, its text and its folder."""
    text = write_corpus(tmp_path / "text.txt")
    path = recipe(max_steps=2, train_files=[str(text)], report_to="none")
    assert run(path) == 0
    (tmp_path / "run" / "metrics.json").unlink()
    return path, text, tmp_path / "run"


# ---- What a run began with ----


def test_changed_text_is_refused_by_name_and_the_same_text_is_not(unfinished, capsys, caplog):
    path, text, folder = unfinished
    content, written = text.read_bytes(), text.stat()
    weights = (folder / "model.safetensors").read_bytes()
    text.write_bytes(content.replace(b"cat", b"dog", 1))
    os.utime(text, ns=(written.st_atime_ns, written.st_mtime_ns))  # neither its size nor its time says so
    assert run(path) == 2
    assert f"error: {text} has changed since the run in {folder} began; restore it" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == weights
    text.unlink()
    text.write_bytes(content)
    assert run(path) == 0
    assert "continues from step 2" in caplog.text
    assert (folder / "metrics.json").exists()


def test_changed_thread_counts_and_versions_are_logged(unfinished, caplog):
    path, _, folder = unfinished
    record = json.loads((folder / "run.json").read_text())
    assert record["environment"]["torch threads"] == torch.get_num_threads()
    record["environment"] |= {"torch threads": 7, "electra-early-exit": "0.0.1"}
    (folder / "run.json").write_text(json.dumps(record))
    assert run(path) == 0
    assert f"began with torch threads 7 and continues with {torch.get_num_threads()}: its weights may" in caplog.text
    assert "began with electra-early-exit 0.0.1 and continues with" in caplog.text
    assert "began with torch 2" not in caplog.text


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("processes", 2, "2, got 1; resume it with as many"),
        ("tokenizer", "other", "the tokenizer differs from that of the run in"),
    ],
)
def test_other_processes_and_another_tokenizer_are_refused(unfinished, capsys, part, value, message):
    path, _, folder = unfinished
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, part: value}))
    assert run(path) == 2
    assert message in capsys.readouterr().err


DAMAGED = {"truncated": b'{"arguments": {"a', "empty": b"", "binary": bytes(range(256)), "a list": b"[]",
           "of another version": b'{"max_steps": 2}',
           "sections": b'{"arguments": 1, "inputs": 2, "processes": 3}'}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_run_file_is_named(recipe, tmp_path, capsys, how):  # noqa: F811
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_bytes(DAMAGED[how])
    assert run(recipe()) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith(f"electra-exit pretrain: error: {tmp_path}/run/run.json ")
    assert (tmp_path / "run" / "run.json").read_bytes() == DAMAGED[how]


def test_fingerprints_are_of_content(tmp_path, tokenizer):
    for part in (tiny_model(), tokenizer):
        part.save_pretrained(tmp_path / "model")
    model, text = str(tmp_path / "model"), str(write_corpus(tmp_path / "text.txt"))
    before = fingerprints([text, str(tmp_path / "nowhere")], [model, None, "no/such-model"])
    assert before[str(tmp_path / "nowhere")] == before["no/such-model"] == "missing"
    (tmp_path / "model" / "metrics.json").write_text("{}")  # reports do not make the model
    (tmp_path / "model" / "README.md").write_text("a card")
    os.utime(text, (0, 0))
    assert fingerprints([text], [model]).items() <= before.items()
    tiny_model(hidden_size=64).save_pretrained(tmp_path / "model")
    assert fingerprints([], [model])[model] != before[model]


def test_a_tokenizer_is_known_by_its_vocabulary_and_rules(tokenizer):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer("a cat", truncation=True, max_length=4, padding="max_length")
    assert tokenizer_fingerprint(tokenizer) == before
    other = type(tokenizer)(vocab=tokenizer.get_vocab(), do_lower_case=False)
    assert tokenizer_fingerprint(other) != before


# ---- Whose it is ----


def hold(folder, ready, orphan):
    """In a process of its own: hold the folder, and maybe leave a child behind."""
    with held(folder):
        if orphan and os.fork() == 0:
            os.close(ready.fileno())
            time.sleep(30)
            os._exit(0)
        ready.send(True)
        time.sleep(30)


@pytest.mark.parametrize("orphan", [False, True])
def test_a_folder_is_held_until_the_process_ends_however_it_ends(recipe, tmp_path, capsys, orphan):  # noqa: F811
    folder = tmp_path / "run"
    mine, theirs = multiprocessing.Pipe()
    other = multiprocessing.get_context("fork").Process(target=hold, args=(folder, theirs, orphan))
    other.start()
    assert mine.recv()
    path = recipe(max_steps=2, report_to="none")
    assert run(path) == 2
    assert f"error: another process is using {folder}; wait until it ends, or" in capsys.readouterr().err
    assert os.listdir(folder) == [run_folder.LOCK_FILE]
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert run(path) == 0


def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch, caplog):
    def missing(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    (tmp_path / run_folder.LOCK_FILE).write_text(f"1\nnot-{socket.gethostname()}\n")  # of a machine that is gone
    with held(tmp_path):
        assert f"the file system of {tmp_path} does not support locks: do not start a second run" in caplog.text


def test_a_folder_that_cannot_be_one(recipe, tmp_path, capsys):  # noqa: F811
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("mine")
    messages = {"link": f"link is a link to {tmp_path}/nowhere, which does not exist", "file": "file is not a folder",
                "file/run": "file/run is not a folder"}  # fmt: skip
    for name, message in messages.items():
        assert run(recipe(), "--output_dir", str(tmp_path / name)) == 2
        assert message in capsys.readouterr().err


def test_a_folder_into_which_nothing_was_written_is_gone(tmp_path):
    with held(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_what_it_was(tmp_path):
    record = RunRecord({"seed": 3}, {"text.txt": "0f"}, 1, "ab")
    record.begin(None, tmp_path)
    assert RunRecord.read(tmp_path) == record
