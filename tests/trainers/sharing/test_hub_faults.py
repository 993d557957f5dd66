"""What goes wrong between here and the Hub: each ends in success, or in one sentence with the folder as it was."""

import json

import pytest
import yaml

from modeling_electra_exit.trainers.errors import PushError
from modeling_electra_exit.trainers.runtime import checkpoints
from modeling_electra_exit.trainers.runtime.files import INCOMPLETE
from modeling_electra_exit.trainers.sharing import hub as pushing
from modeling_electra_exit.trainers.sharing.hub import shared_files
from tests.loopback_hub import Fault
from tests.trainers.cli.test_cli import RECIPE
from tests.trainers.sharing.test_hub import COMMANDS, commits_of, contents, empty, in_a_process, run_commands


@pytest.fixture
def hub(loopback):
    return empty(loopback)


def errors_of(done) -> list[str]:
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.split("\n") if ": error: " in line]


def test_faults_that_pass_end_in_success(hub, model_folder, tmp_path):
    hub.faults = [
        Fault("PUT", "/lfs/"),  # the connection breaks in the middle of the upload
        Fault("PUT", "/lfs/", status=503),
        Fault("POST", "/preupload/", status=429, headers={"Retry-After": "0"}),
        Fault("POST", "objects/batch", status=500),
    ]
    assert run_commands(hub, tmp_path, ["push", str(model_folder), "alice/mini"]) == [0]
    assert all(fault.times == 0 for fault in hub.faults)
    assert [commit.title for commit in commits_of(hub, "alice/mini")] == ["Upload model", "Upload model: card"]
    uploaded = commits_of(hub, "alice/mini")[-1].files["model.safetensors"].content
    assert uploaded == (model_folder / "model.safetensors").read_bytes()


def test_faults_that_stay_end_in_one_sentence_and_the_push_can_be_repeated(hub, model_folder, tmp_path):
    before = contents(model_folder)
    hub.faults = [
        Fault("POST", "/repos/create", status=429, headers={"Retry-After": "60"}),
        Fault("POST", "/repos/create", status=503),
        Fault("POST", "/commit/main"),  # the connection breaks while the commit is sent
        Fault("POST", "/commit/main", status=412),  # somebody else was faster
    ]
    push = ["push", str(model_folder), "alice/mini"]
    done = run_commands(hub, tmp_path, *[push] * 6, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().split("\n")[-1]) == [2, 2, 2, 2, 0, 0]
    limited, out_of_order, dropped, overtaken = errors_of(done)
    assert "the Hub's rate limit is reached; push again later" in limited
    assert "the Hub has a server error (status 503); push again later" in out_of_order
    assert "could not push to alice/mini: " in dropped
    assert "someone else committed to alice/mini at the same time; push again" in overtaken
    assert contents(model_folder) == before
    assert len(commits_of(hub, "alice/mini")) == 2
    assert sum(request.startswith("PUT /lfs/") for request in hub.requests) == 1, "what is there is not sent again"


@pytest.mark.parametrize("token", ["hf_wrong", None])
def test_a_wrong_token_or_none(hub, model_folder, tmp_path, token):
    before = contents(model_folder)
    done = run_commands(hub, tmp_path, ["push", str(model_folder), "alice/mini"], token=token, check=False)
    (line,) = errors_of(done)
    assert "the Hub rejects your token for alice/mini: log in with `hf auth login`, or set HF_TOKEN" in line
    assert contents(model_folder) == before
    assert hub.repositories == {}


# The operating system refuses every new file in the cache from the moment on that downloads begin.
FULL_DISK = f"""
import errno, os, sys

def full(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[0].endswith(".incomplete"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), arguments[0])

sys.addaudithook(full)
{COMMANDS}
"""


def test_a_full_disk_in_the_cache(hub, model_folder, tmp_path, corpus):
    assert run_commands(hub, tmp_path, ["push", str(model_folder), "alice/mini"]) == [0]
    before = contents(model_folder)
    command = ["pretrain", "quickstart", "--train_files", str(corpus), "--output_dir", str(tmp_path / "run"),
               "--tokenizer_name", "alice/mini"]  # fmt: skip
    done = in_a_process(FULL_DISK, hub, tmp_path, json.dumps([command]), check=False)
    assert json.loads(done.stdout.strip().split("\n")[-1]) == [2]
    (line,) = errors_of(done)
    assert "cannot load the tokenizer `alice/mini`" in line
    assert "No space left on device" in line
    assert not (tmp_path / "run").exists()
    assert contents(model_folder) == before


# ---- What is found before anything is sent ----


def test_a_folder_that_is_not_whole_is_refused(model_folder):
    (model_folder / "exit_state.py").unlink()
    with pytest.raises(PushError, match=r"lacks exit_state\.py; save the model again with `save_pretrained`"):
        shared_files(model_folder)
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    with pytest.raises(PushError, match=r"lacks exit_state\.py, model\.safetensors;"):
        shared_files(model_folder)


def test_only_what_loading_needs_is_chosen(model_folder):
    for name in ("training_args.bin", "optimizer.pt", "run.json", "notes.txt", "my_script.py", "pytorch_model.bin"):
        (model_folder / name).write_text("private")
    (model_folder / "runs").mkdir()
    assert set(shared_files(model_folder)) == {
        "config.json", "model.safetensors", "configuration_electra_exit.py", "conversion.py", "exit_criteria.py",
        "exit_policy.py", "exit_state.py",
        "generator_head.py", "modeling_electra_exit.py", "modeling_heads.py", "modeling_masked_lm.py",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_a_secret_in_the_card_or_the_message_stops_the_push_before_anything_is_sent(monkeypatch):
    monkeypatch.setattr(pushing, "API", None)
    for name, card, message in (
        (r"README\.md", "my hf_abc", "Upload"),
        ("the commit message", "a card", "with hf_abc"),
    ):
        with pytest.raises(PushError, match=f"^{name} holds your token; nothing was pushed"):
            pushing.push_files({"a.json": b"{}"}, card, "alice/mini", message=message, token="hf_abc")


def test_the_path_of_the_best_checkpoint_is_not_pushed(model_folder):
    state = {"best_model_checkpoint": "/data/alice/runs/x/checkpoint-4", "global_step": 5}
    (model_folder / "trainer_state.json").write_text(json.dumps(state))
    for name in ("optimizer.pt", "rng_state.pth"):
        (model_folder / name).write_bytes(b"state")
    checkpoint = model_folder.with_name("checkpoint-5")
    incomplete = model_folder.with_name(INCOMPLETE) / checkpoint.name
    incomplete.parent.mkdir()
    checkpoints.commit(model_folder.rename(incomplete), checkpoint)
    (checkpoint / "training_args.bin").write_bytes(b"pickled")
    files = pushing.training_state_files(checkpoint)
    assert json.loads(files["trainer_state.json"])["best_model_checkpoint"] == "checkpoint-4"
    assert "training_args.bin" not in files
    for name, source in files.items():  # whoever resumes from what was pushed finds it undamaged
        (checkpoint / name).write_bytes(source if isinstance(source, bytes) else source.read_bytes())
    assert checkpoints.damage(checkpoint) is None


def test_a_run_that_may_not_push_is_complete_all_the_same(hub, tmp_path, corpus):
    hub.create("bob/his")
    recipe = {**RECIPE, "train_files": [str(corpus)], "max_steps": 2, "save_steps": 1, "push_to_hub": True,
              "report_to": ["none"]}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    his = [
        "pretrain",
        "recipe.yaml",
        "--output_dir",
        "his",
        "--hub_model_id",
        "bob/his",
        "--hub_strategy",
        "every_save",
    ]
    wrong = [
        "pretrain",
        "recipe.yaml",
        "--output_dir",
        "wrong",
        "--hub_model_id",
        "alice/x",
        "--hub_token",
        "hf_wrong",
    ]
    done = run_commands(hub, tmp_path, his, wrong, check=False)
    assert json.loads(done.stdout.strip().split("\n")[-1]) == [2, 2]
    refused, unknown = errors_of(done)
    assert "your token cannot write to bob/his" in refused
    assert "The run itself is complete in his; repeat the push with `electra-exit push`" in refused
    assert "your token cannot write to bob/his" in done.stderr.split("Training continues; the next push")[0]
    assert {"model.safetensors", "metrics.json", "README.md", "checkpoint-2"} <= {
        path.name for path in (tmp_path / "his").iterdir()
    }
    assert not list((tmp_path / "his").glob(".push-*"))
    assert "the Hub rejects your token for alice/x" in unknown
    assert not (tmp_path / "wrong" / "run.json").exists()
