"""Names on a Hub that does not answer: one sentence within seconds, or what is in the cache."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from electra_exit import hub, parsing
from modeling_electra_exit.trainers.finetuning.examples import GLUE_ON_THE_HUB
from tests.conftest import tiny_model


COMMANDS = [
    (
        ["pretrain", "domain-adapt", "--init_from", "no/model"],
        "`no/model` is not a local file or folder, and the Hub at",
    ),
    (["pretrain", "quickstart", "--tokenizer_name", "no/tokenizer"], "`no/tokenizer` is not a local file or folder"),
    (["pretrain", "electra-small", "--dataset_name", "no/text"], "`no/text` is not in the cache"),
    (["finetune", "no/model", "--train_file", "{here}/text.txt"], "`no/model` is not a local file or folder"),
    (["finetune", "{here}", "--task", "rte"], "`nyu-mll/glue` is not in the cache"),
    (["evaluate", "no/model", "--tasks", "blimp"], "`no/model` is not a local file or folder"),
    (["score", "no/model", "{here}/text.txt"], "`no/model` is not a local file or folder"),
    (["export", "no/model", "{here}/plain", "--to", "electra"], "`no/model` is not a local file or folder"),
    (["push", "{here}", "me/mine"], "nothing was pushed"),
    (["push-dataset", "{here}", "me/mine"], "nothing was pushed"),
]
RUN = """
import json, os, sys
from electra_exit.main import main
for argv in json.loads(sys.argv[1]):
    os.environ.pop("HF_HUB_OFFLINE", None)  # each is as the first of a process
    print("status", main(argv), flush=True)
    assert not {"torch", "transformers"} & set(sys.modules), argv
"""


@pytest.fixture
def silent():
    """The address of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(20)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed():
    """The address of a port that nothing listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def environment(endpoint: str, home) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE")}
    return own | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}


@pytest.mark.parametrize("which", ["closed", "silent"])
def test_a_name_that_cannot_be_reached_is_one_sentence_before_torch_is_loaded(which, request, tmp_path):
    endpoint = request.getfixturevalue(which)
    (tmp_path / "text.txt").write_text("Some text.\n")
    (tmp_path / "config.json").write_text("{}")  # what is pushed is looked at first
    commands = [([word.format(here=tmp_path) for word in argv], said) for argv, said in COMMANDS]
    argv = [sys.executable, "-c", RUN, json.dumps([argv for argv, _ in commands])]
    start = time.perf_counter()
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
                          env=environment(endpoint, tmp_path / "cache"))  # fmt: skip
    assert time.perf_counter() - start < 30  # of all commands, on a machine that has other things to do
    *answers, _ = re.split(r"(?<=^status \d)\n", done.stdout, flags=re.MULTILINE)
    reason = {"closed": "Connection refused", "silent": "no answer within 3 seconds"}[which]
    for (argv, said), answer in zip(commands, answers, strict=True):
        sentence, status = answer.strip().split("\n")
        assert said in sentence
        assert f"{endpoint} cannot be reached: {reason}" in sentence
        assert status == "status 2", argv


def test_what_is_in_the_cache_is_used(loopback, closed, tmp_path, tokenizer):
    """Also where the libraries are imported already, as they are when a recipe's names are found."""
    cache = Path(loopback.processes.environment["HF_HOME"], "hub", "models--in--cache")
    snapshot = cache / "snapshots" / ("0" * 40)
    tiny_model().save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    (tmp_path / "text.txt").write_text("the cat sleeps\n")
    (tmp_path / "mine.yaml").write_text("init_from: no/model\ndemo_corpus: true\n")

    def run(*argv):
        script = "import sys; from electra_exit.main import main; sys.exit(main(sys.argv[1:]))"
        return loopback.processes.run(script, *argv, cwd=tmp_path, HF_ENDPOINT=closed)

    done = run("score", "in/cache", "text.txt")
    assert done.returncode == 0, done.stderr
    assert "Connection refused); using the cache" in done.stderr
    assert json.loads(done.stdout)["tokens"][1] == "the"
    done = run("pretrain", "mine.yaml")
    assert done.returncode == 2
    assert "`no/model` is not a local file or folder, and the Hub" in done.stderr.strip().split("\n")[-1]


def test_a_hub_that_answers_with_an_error_is_reachable(loopback, closed, monkeypatch):
    for endpoint, reason in ((loopback.url, None), (f"{loopback.url}/none", None), (closed, "Connection refused")):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert hub._ask() == reason


def test_a_slow_hub_is_waited_for_and_no_longer(silent, monkeypatch):
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    monkeypatch.setenv("HF_ENDPOINT", silent)
    hub.unreachable.cache_clear()
    try:
        assert hub.unreachable() == hub.LATE
    finally:
        hub.unreachable.cache_clear()


def test_glue_has_one_name():
    assert hub.GLUE_ON_THE_HUB == GLUE_ON_THE_HUB


def test_only_commands_contact_the_hub(monkeypatch):
    """A study's report, too, reads what a run was told."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "unreachable", lambda: pytest.fail("the Hub was asked"))
    parsing.parse_fields({"demo_corpus": True, "reference_folder": "references/small"})
