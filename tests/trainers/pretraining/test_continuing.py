"""`--continue_from`: a finished run that trains on in another folder."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertTokenizer

from modeling_electra_exit.trainers.pretraining import run as pretraining
from modeling_electra_exit.trainers.pretraining.continuing import inherit_moments
from modeling_electra_exit.trainers.runtime.optimization import ElectraAdamW
from tests.conftest import WORDS, write_corpus
from tests.trainers.cli.test_cli import recipe, run  # noqa: F401


# As of the quickstart, whose recipe may be used again as it is.
FIELDS = {"norm_position": "pre", "corpus_init": True, "exit_loss_warmup": None, "report_to": "none"}


@pytest.fixture
def first(recipe, tmp_path):  # noqa: F811
    """A finished run of four steps, its recipe, and what continues it."""
    path = recipe(**FIELDS)
    assert run(path) == 0

    def go_on(*flags, folder="run", output="longer"):
        return run(path, "--continue_from", str(tmp_path / folder), "--output_dir", str(tmp_path / output), *flags)

    return go_on


def weights(folder):
    return load_file(folder / "model.safetensors")


def moments(folder, step):
    state = torch.load(folder / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)
    return {(n, name): value for n, held in state["state"].items() for name, value in held.items()}


def test_weights_and_moments_go_on_and_the_card_counts_all_tokens(first, tmp_path):
    # At a rate of 0 weights stay, and moments still move: by the decay and the gradients of one step.
    assert first("--max_steps", "1", "--save_steps", "1", "--learning_rate", "0") == 0
    before, after = weights(tmp_path / "run"), weights(tmp_path / "longer")
    assert all(torch.equal(value, after[name]) for name, value in before.items() if "exit_state" not in name)
    old, new = moments(tmp_path / "run", 4), moments(tmp_path / "longer", 1)
    assert old.keys() == new.keys()
    decayed = [(0.999 * old[key], new[key]) for key in old if key[1] == "exp_avg_sq"]
    assert all((kept <= grown * 1.0001).all() for kept, grown in decayed)
    measured = json.loads((tmp_path / "longer" / "metrics.json").read_text())
    assert measured["start"] == {"model": "run", "steps": 4, "tokens": 4 * 4 * 32}
    assert "This run continues `run`, which was trained on 512 tokens: 640 in total." in (
        tmp_path / "longer" / "README.md"
    ).read_text().replace("\n", " ")
    assert first("--max_steps", "1", folder="longer", output="longest") == 0
    again = json.loads((tmp_path / "longest" / "metrics.json").read_text())["start"]
    assert again == {"model": "longer", "steps": 5, "tokens": 640}


def test_the_learning_rate_restarts_soon_with_exits_at_work_and_other_masks(first, tmp_path, monkeypatch):
    seen = {}

    def train(trainer, *_):
        seen.update(args=trainer.args, active=trainer.args.exits_active(0, 100))
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "train", train)
    first("--max_steps", "100", "--warmup_steps", "40")
    assert (seen["args"].warmup_steps, seen["args"].data_seed, seen["active"]) == (0.05, 42 + 4, True)
    first("--max_steps", "100", "--warmup_steps", "3", "--data_seed", "9", "--exit_warmup", "0.5", output="other")
    assert (seen["args"].warmup_steps, seen["args"].data_seed, seen["active"]) == (3, 9, False)


def test_it_resumes_without_the_first_run_as_if_it_had_not_been_interrupted(first, tmp_path, capsys):
    flags = [
        "--max_steps",
        "4",
        "--save_total_limit",
        "2",
        "--train_files",
        str(write_corpus(tmp_path / "other.txt", seed=3)),
    ]
    assert first(*flags) == 0, capsys.readouterr().err
    whole = weights(tmp_path / "longer")
    (tmp_path / "longer" / "metrics.json").unlink()
    shutil.rmtree(tmp_path / "longer" / "checkpoint-4")
    shutil.rmtree(tmp_path / "run")
    assert first(*flags) == 0, capsys.readouterr().err
    assert all(torch.equal(value, whole[name]) for name, value in weights(tmp_path / "longer").items())
    assert json.loads((tmp_path / "longer" / "metrics.json").read_text())["start"]["steps"] == 4


def test_impossible_continuations_are_rejected_in_one_sentence(first, tmp_path, tokenizer, capsys, caplog):
    BertTokenizer().train_new_from_iterator([" ".join(WORDS)], 60, show_progress=False).save_pretrained(
        tmp_path / "other"
    )
    shutil.copytree(tmp_path / "run", tmp_path / "unfinished")
    (tmp_path / "unfinished" / "metrics.json").unlink()
    shutil.copytree(tmp_path / "run", tmp_path / "swapped")
    tokenizer.save_pretrained(tmp_path / "swapped")
    (tmp_path / "empty").mkdir()
    for folder, flags, message in (
        ("nowhere", [], "--continue_from {}: no such folder"),
        ("empty", [], "{} does not hold a run; to start from a model alone, use --init_from"),
        ("unfinished", [], "the run in {} is not finished: repeat its command to resume it"),
        ("swapped", [], "the tokenizer in {} differs from the one that its run started with"),
        ("run", ["--tokenizer_name", str(tmp_path / "other")], "differs from that of the run in {}"),
        ("run", ["--hidden_size", "64"], "`hidden_size` must be that of {}, 32, got 64"),
        ("run", ["--init_from", "x"], "--continue_from excludes --init_from"),
        ("run", ["--depth_schedule", "3:0.5,4"], "--depth_schedule requires a new model, got {} to start from"),
        ("run", ["--output_dir", str(tmp_path / "run")], "already holds a finished run; choose another --output_dir"),
    ):
        assert first(*flags, folder=folder) == 2, message
        error = capsys.readouterr().err.strip().split("\n")[-1]
        assert message.format(tmp_path / folder) in error
        assert not (tmp_path / "longer").exists()
    # Other exits have other heads, and so other parameters.
    assert first("--max_steps", "1", "--exit_layers", "1", "--exit_capacities", "0.5") == 0
    assert "the optimizer starts from scratch: its state in the continued run has other parameters" in caplog.text
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert first("--max_steps", "1", output="longest") == 0
    assert "the optimizer starts from scratch: its final state in" in caplog.text


def test_moments_come_without_the_learning_rate_they_were_made_with(tmp_path):
    def optimizer(width, lr):
        weight = torch.nn.Parameter(torch.ones(width))
        made = ElectraAdamW([weight], lr=lr)
        weight.sum().backward()
        return made

    old = optimizer(3, 0.5)
    old.step()
    torch.save(old.state_dict(), tmp_path / "optimizer.pt")
    new = optimizer(3, 0.1)
    inherit_moments(new, tmp_path / "optimizer.pt")
    (group,) = new.param_groups
    assert (group["lr"], group["steps_taken"]) == (0.1, 1)
    assert torch.equal(
        new.state[group["params"][0]]["exp_avg"], old.state[old.param_groups[0]["params"][0]]["exp_avg"]
    )
    other = optimizer(4, 0.1)
    inherit_moments(other, tmp_path / "optimizer.pt")
    assert not other.state
