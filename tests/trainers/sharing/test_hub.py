"""What is pushed, in which commits, and what a stranger can do with each of them, on `tests/loopback_hub.py`."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from modeling_electra_exit.configuration_electra_exit import AUTO_MAP
from tests.conftest import write_corpus
from tests.trainers.cli.test_cli import RECIPE


STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")
TOKEN = "hf_SecretOfAlice"

# Several commands in one process: importing takes longer than running them.
COMMANDS = """
import json, sys
from electra_exit import main as cli
results = [cli.main(command) for command in json.loads(sys.argv[1])]
assert "research" not in sys.modules, "no command needs a study"
print(json.dumps(results))
"""

LOAD = """
import json, sys
requests, plugin = json.loads(sys.argv[1]), sys.argv[2] == "plugin"
if plugin:
    import modeling_electra_exit
else:
    sys.modules["modeling_electra_exit"] = None
import torch, transformers
ids = torch.arange(5, 21)[None]
loaded = []
for repository, revision, auto_classes in requests:
    options = {"revision": revision} | ({} if plugin else {"trust_remote_code": True})
    tokenizer = transformers.AutoTokenizer.from_pretrained(repository, **options)
    assert tokenizer("the cat").input_ids[0] == tokenizer.cls_token_id
    found = {}
    for auto_class in auto_classes:
        load = getattr(transformers, auto_class).from_pretrained
        if auto_class == "AutoConfig":
            load(repository, **options)
            continue
        model, report = load(repository, output_loading_info=True, **options)
        with torch.no_grad():
            output = model.eval()(ids[:, None] if auto_class == "AutoModelForMultipleChoice" else ids)
        found[auto_class] = {
            "missing": sorted({name.split(".")[0] for name in report["missing_keys"]}),
            "unexpected": sorted(report["unexpected_keys"]),
            "sum": output[0].double().abs().sum().item(),
            "generator": hasattr(model, "generator"),
        }
    loaded.append(found)
print(json.dumps(loaded))
"""


def empty(loopback):
    """The Hub that all tests share, with nothing in it nor in its clients' caches."""
    loopback.reset()
    shutil.rmtree(loopback.processes.environment["HF_HOME"], ignore_errors=True)
    loopback.users[TOKEN] = "alice"
    return loopback


def in_a_process(script, hub, home, *argv, token=TOKEN, check=True):
    """Run with a home folder of its own; returns what it printed last, or the process unless `check`."""
    done = hub.processes.run(script, *argv, cwd=home, HOME=str(home), HF_TOKEN=token)
    if not check:
        return done
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().split("\n")[-1])


def run_commands(hub, home, *commands, **options):
    return in_a_process(COMMANDS, hub, home, json.dumps(commands), **options)


def files_of(commit) -> set[str]:
    return set(commit.files) - {".gitattributes"}


MODEL = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
CODE = {"configuration_electra_exit.py", "conversion.py", "exit_criteria.py", "exit_policy.py", "exit_state.py",
        "generator_head.py",
        "modeling_electra_exit.py", "modeling_heads.py", "modeling_masked_lm.py"}  # fmt: skip
STATE = {"manifest.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


@pytest.fixture(scope="module")
def hub(loopback):
    return empty(loopback)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home") / "alice"


@pytest.fixture(scope="module")
def runs(hub, home):
    """The quickstart with each strategy, made tiny; returns the runs' folders by strategy."""
    home.mkdir()
    write_corpus(home / "corpus.txt")
    tiny = {**RECIPE, "train_files": [str(home / "corpus.txt")], "language": ["en"], "max_steps": 2, "save_steps": 1,
            "save_total_limit": 1, "push_to_hub": True, "hub_always_push": True, "hub_token": TOKEN,
            "model_license": "apache-2.0", "logging_steps": 1, "report_to": ["none"]}  # fmt: skip
    (home / "recipe.yaml").write_text(yaml.safe_dump(tiny))
    folders = {strategy: home / "runs" / strategy for strategy in STRATEGIES}
    commands = [
        ["pretrain", "recipe.yaml", "--output_dir", str(folder), "--hub_strategy", strategy,
         "--hub_model_id", f"alice/{strategy}"]
        for strategy, folder in folders.items()
    ]  # fmt: skip
    assert run_commands(hub, home, *commands) == [0] * len(commands)
    return folders


@pytest.fixture(scope="module")
def commits(hub, runs):
    return {strategy: hub.repositories["model", f"alice/{strategy}"].commits() for strategy in STRATEGIES}


def test_the_commits_of_every_strategy_hold_exactly_this(commits):
    final = MODEL | CODE | {"metrics.json", "exit_profile.png", "learning_curve.png"}
    assert [(c.title, files_of(c)) for c in commits["end"]] == [
        ("End of training", final),
        ("End of training: card", final | {"README.md"}),
    ]
    subfolders = {
        "every_save": [(), ()],
        "checkpoint": [("last-checkpoint",), ("last-checkpoint",)],
        "all_checkpoints": [("checkpoint-1",), ("checkpoint-1", "checkpoint-2")],
    }
    for strategy, folders in subfolders.items():
        expected, card = [], set()
        for step, names in enumerate(folders, 1):
            states = {f"{name}/{file}" for name in names for file in MODEL | CODE | STATE}
            title = f"Training in progress, step {step}"
            expected.append((title, MODEL | CODE | states | card))
            expected.append((f"{title}: card", MODEL | CODE | states | {"README.md"}))
            card = {"README.md"}
        for title in ("End of training", "End of training: card"):
            expected.append((title, final | states | card))
        assert [(c.title, files_of(c)) for c in commits[strategy]] == expected


def test_a_commit_of_a_card_changes_nothing_else(commits):
    for history in commits.values():
        for before, commit in pairwise(history):
            if commit.title.endswith(": card"):
                assert {**before.files, "README.md": commit.files["README.md"]} == commit.files


def test_every_commit_loads_in_every_class_with_the_plugin_and_without(hub, home, commits):
    some, requests = ["AutoModel", "AutoModelForPreTraining"], []
    for strategy, history in commits.items():
        *before, last = [commit for commit in history if not commit.title.endswith(": card")]
        requests += [(f"alice/{strategy}", commit.sha, some) for commit in before]
        requests.append((f"alice/{strategy}", last.sha, list(AUTO_MAP)))
    with_plugin, without = (
        in_a_process(LOAD, hub, home, json.dumps(requests), how, token=None) for how in ("plugin", "stranger")
    )
    for found, expected in zip(without, with_plugin, strict=True):
        for auto_class in ("AutoModel", "AutoModelForPreTraining"):
            assert found[auto_class] == expected[auto_class]
            assert (found[auto_class]["missing"], found[auto_class]["unexpected"]) == ([], [])
        assert found["AutoModelForPreTraining"]["generator"]
        heads = {name for report in found.values() for name in report["missing"]}
        # New, where a task brings its own.
        assert heads <= {"classifier", "exit_modules", "qa_outputs", "sequence_summary"}
    # Steps differ, so the commits were not all the same model.
    assert len({found["AutoModel"]["sum"] for found in without}) > 1


def test_nothing_secret_and_no_pickle_was_pushed(hub, home, runs):
    assert TOKEN in hub.users
    for name, content in hub.everything_pushed():
        for secret in (TOKEN, str(home), str(Path.home()), "training_args"):
            assert secret.encode() not in content, name
        path = name.rsplit(":", 1)[-1]
        state_of_training = r"(last-checkpoint|checkpoint-\d)/(optimizer|scheduler|rng_state)\.pth?"
        if not re.fullmatch(rf"{state_of_training}|LFS object \w+", path):
            assert not re.match(rb"\x80[\x02-\x05]", content), name  # a bare pickle
            assert b"data.pkl" not in content, name  # one in the archive that torch writes
    assert all("hub_token" not in (folder / "run.json").read_text() for folder in runs.values())


def test_cards_say_what_is_so_at_that_commit(commits):
    for history in commits.values():
        for before, commit in pairwise(history):
            if not commit.title.endswith(": card"):
                continue
            card = commit.files["README.md"].content.decode()
            assert f'"revision": "{before.sha}", "code_revision": "{before.sha}"' in card
            assert "path-or-repo-id" not in card
            assert "commit-hash" not in card
            assert "license: apache-2.0" in card
            if commit is history[-1]:
                assert "Training was going on" not in card
                assert "language:\n- en" in card
            else:
                step = commit.title[len("Training in progress, step ")]
                assert f"This card was written during training, at step {step} of 2." in card


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def commits_of(hub, name, branch="main"):
    return hub.repositories["model", name].commits(branch)


@pytest.fixture(scope="module")
def pushed(hub, home, runs):
    """Pushes of one finished run in many ways, one after the other, with the exit status of each."""
    (home / "empty").mkdir()
    (home / "bert").mkdir()
    (home / "bert" / "config.json").write_text('{"model_type": "bert"}')
    hub.create("bob/his")
    run = str(runs["end"])
    before = contents(runs["end"])
    commands = [
        ["push", run, "alice/plain", "--private", "--message", "First"],
        ["push", run, "alice/plain", "--message", "Again"],
        ["push", run, "alice/plain", "--max_shard_size", "40KB", "--message", "Shards"],
        ["push", run, "alice/plain", "--message", "Whole"],
        ["push", run, "alice/alone", "--no-generator", "--revision", "slim"],
        ["push", run, "bob/his"],
        ["push", str(home / "empty"), "alice/none"],
        ["push", str(home / "bert"), "alice/none"],
        ["push", str(home / "nowhere"), "alice/none"],
    ]
    done = run_commands(hub, home, *commands, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(runs["end"]) == before
    return json.loads(done.stdout.strip().split("\n")[-1]), done.stderr


def test_push_says_what_went_wrong_in_one_line(pushed, home):
    status, errors = pushed
    assert status == [0] * 5 + [2] * 4
    assert "Traceback" not in errors
    lines = [line for line in errors.split("\n") if line.startswith("electra-exit push: error: ")]
    for line, reason in zip(
        lines,
        (
            "your token cannot write to bob/his: choose your own repository, or a token with write access",
            f"{home / 'empty'} holds no model: it has no config.json",
            f"`model_type` of {home / 'bert'} must be 'electra_early_exit', got 'bert'",
            f"no such folder: {home / 'nowhere'}",
        ),
        strict=True,
    ):
        assert reason in line


def test_pushing_again_without_a_change_makes_no_commit(pushed, hub):
    titles = [commit.title for commit in commits_of(hub, "alice/plain")]
    assert titles == ["First", "First: card", "Shards", "Shards: card", "Whole", "Whole: card"]
    assert hub.repositories["model", "alice/plain"].private


def test_shards_have_an_index_and_leave_no_other_weights_behind(pushed, hub):
    first, _, shards, _, whole, _ = commits_of(hub, "alice/plain")
    weights = {name for name in shards.files if "safetensors" in name}
    index = json.loads(shards.files["model.safetensors.index.json"].content)
    assert weights == {"model.safetensors.index.json", *index["weight_map"].values()}
    assert len(weights) > 2
    assert whole.files["model.safetensors"] == first.files["model.safetensors"]
    assert not any("-of-" in name for name in whole.files)


def test_every_such_commit_loads_and_no_generator_leaves_it_out(pushed, hub, home):
    classes = ["AutoModel", "AutoModelForPreTraining"]
    requests = [("alice/plain", commit.sha, classes) for commit in commits_of(hub, "alice/plain")]
    requests += [("alice/alone", commit.sha, classes) for commit in commits_of(hub, "alice/alone", "slim")]
    *plain, first_alone, alone = in_a_process(LOAD, hub, home, json.dumps(requests), "stranger")
    assert first_alone == alone
    assert {found["AutoModelForPreTraining"]["generator"] for found in plain} == {True}
    for found in (*plain, alone):
        for auto_class in classes:
            assert (found[auto_class]["missing"], found[auto_class]["unexpected"]) == ([], [])
            assert found[auto_class]["sum"] == plain[0][auto_class]["sum"]
    assert not alone["AutoModelForPreTraining"]["generator"]
    card = commits_of(hub, "alice/alone", "slim")[-1].files["README.md"].content.decode()
    assert "in the generator, which is not in this repository" in card
    assert "fill-mask" not in card
    assert commits_of(hub, "alice/alone") == []


BY_HAND = """
import sys
from transformers import AutoTokenizer
from modeling_electra_exit import ElectraEarlyExitForPreTraining
model = ElectraEarlyExitForPreTraining.from_pretrained(sys.argv[1])
model.push_to_hub("alice/by-hand", max_shard_size="40KB")
AutoTokenizer.from_pretrained(sys.argv[1]).push_to_hub("alice/by-hand")
print("null")
"""


def test_push_to_hub_of_the_model_itself(hub, home, runs):
    in_a_process(BY_HAND, hub, home, str(runs["end"]))
    model, _ = commits = commits_of(hub, "alice/by-hand")
    assert "model.safetensors.index.json" in model.files
    weights = {name for name in model.files if "safetensors" in name}
    assert files_of(model) - weights == CODE | {"config.json"}, "and no draft of a card"
    (found,) = in_a_process(
        LOAD, hub, home, json.dumps([("alice/by-hand", commits[-1].sha, ["AutoModelForPreTraining"])]), "stranger"
    )
    assert found["AutoModelForPreTraining"]["missing"] == []
