"""Two real processes over gloo do what one does."""

import json
import multiprocessing
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
import yaml

from modeling_electra_exit.trainers import cli
from modeling_electra_exit.trainers.callbacks import Preempted
from modeling_electra_exit.trainers.flops import capacity_history
from tests.conftest import tiny_model, write_corpus
from tests.trainers.test_cli import RECIPE
from tests.trainers.test_trainer import make_trainer, sequences


ADAPTS = {"exit_error_target": 0.001, "exit_flops_budget": 0.95}
# 36 sequences are four batches of eight, and four sequences over; ten steps are two epochs and a half.
SETTINGS = {"max_steps": 10, "exit_adapt_steps": 2, "exit_warmup": 0.2}


def build(tokenizer, folder, batch_size, **settings):
    """A trainer that records the ids it trains on, step by step."""
    trainer = make_trainer(
        tokenizer, folder, tiny_model(**ADAPTS), **{**SETTINGS, "per_device_train_batch_size": batch_size, **settings}
    )
    trainer.train_dataset = sequences(tokenizer, 36)
    trainer.seen = []

    def note(module, args, kwargs):
        if module.training:
            trainer.seen.append(kwargs["noise_seeds"].tolist())

    trainer.model.register_forward_pre_hook(note, with_kwargs=True)
    return trainer


def record(trainer) -> dict:
    return {
        "state": {name: value.clone() for name, value in trainer.model.state_dict().items()},
        "log": trainer.state.log_history,
        "seen": trainer.seen,
        "keep": trainer.model.config.exit_keep,
        "flos": trainer.state.total_flos,
    }


def work(rank: int, port: int, folder: Path, tokenizer, recipe: str):
    """Everything that the tests ask of two processes, so that they are started once."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    torch.set_num_threads(1)
    results = {}

    trainer = build(tokenizer, folder / "straight", 4, save_strategy="steps", save_steps=6)
    trainer.train()
    results["straight"] = record(trainer)
    results["find_unused"] = trainer.model_wrapped.find_unused_parameters
    results["evaluation"] = trainer.evaluate()

    trainer = build(tokenizer, folder / "resumed", 4)
    trainer.train(resume_from_checkpoint=str(folder / "straight" / "checkpoint-6"))
    results["resumed"] = record(trainer)

    trainer = build(tokenizer, folder / "preempted", 4)
    if rank == 1:  # only one of the two is told
        step = trainer.training_step
        trainer.training_step = lambda *args: (
            trainer.state.global_step == 2 and os.kill(os.getpid(), signal.SIGTERM), step(*args))[1]  # fmt: skip
    try:
        trainer.train()
    except Preempted as stop:
        results["preempted"] = (stop.code, trainer.state.global_step)

    results["statuses"] = [cli.main(["pretrain", recipe]) for _ in range(2)]
    torch.save(results, folder / f"rank-{rank}.pt")


@pytest.fixture(scope="module")
def two(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    corpus = write_corpus(folder / "corpus.txt")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "train_files": [str(corpus)], "output_dir": str(folder / "run"),
                                      "report_to": "none", "disable_tqdm": True}))  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.trainers.test_distributed"])
    processes = [
        context.Process(target=work, args=(rank, port, folder, tokenizer, str(recipe)), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return folder, [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]


def logged(record, name):
    return [entry[name] for entry in record["log"] if name in entry]


def test_two_processes_of_four_do_what_one_of_eight_does(two, tokenizer, tmp_path):
    _, (first, second) = two
    trainer = build(tokenizer, tmp_path, 8)
    trainer.train()
    one, evaluation = record(trainer), trainer.evaluate()
    assert [sorted(a + b) for a, b in zip(first["straight"]["seen"], second["straight"]["seen"], strict=True)] == [
        sorted(batch) for batch in one["seen"]
    ]
    for name in ("loss", "discriminator_loss", "exit_loss", "generator_loss", "learning_rate", "grad_norm"):
        assert logged(first["straight"], name) == pytest.approx(logged(one, name), rel=1e-4), name
    for name, value in one["state"].items():
        if name != "exit_state.auc":  # the mean of the processes' own: ranks do not add up
            torch.testing.assert_close(first["straight"]["state"][name], value, atol=1e-5, rtol=1e-4)
    assert first["straight"]["keep"] == one["keep"] != [0.5, 0.25]
    assert first["straight"]["flos"] == pytest.approx(one["flos"])
    for name in ("eval_roc_auc", "eval_average_precision", "eval_replaced_rate"):
        assert first["evaluation"][name] == pytest.approx(evaluation[name], abs=1e-3)


def test_every_process_holds_and_logs_the_same(two):
    _, (first, second) = two
    for run in ("straight", "resumed"):
        for name, value in first[run]["state"].items():
            assert torch.equal(value, second[run]["state"][name]), name
    timing = ("tokens_per_second", "runtime", "samples_per_second", "steps_per_second")
    for mine, others in zip(first["straight"]["log"], second["straight"]["log"], strict=True):
        assert mine.keys() == others.keys()
        assert {k: v for k, v in mine.items() if not k.endswith(timing)} == {
            k: v for k, v in others.items() if not k.endswith(timing)
        }
    assert first["find_unused"] is False


def test_no_sequence_is_seen_twice_in_an_epoch(two):
    _, (first, second) = two
    for epoch in range(2):
        steps = slice(4 * epoch, 4 * epoch + 4)
        seen = [seed for rank in (first, second) for batch in rank["straight"]["seen"][steps] for seed in batch]
        assert len(seen) == len(set(seen)) == 32


def test_a_run_of_two_resumes_exactly(two):
    _, (first, _) = two
    for name, value in first["straight"]["state"].items():
        assert torch.equal(value, first["resumed"]["state"][name]), name
    assert first["straight"]["keep"] == first["resumed"]["keep"]
    assert first["straight"]["flos"] == first["resumed"]["flos"]


def test_sigterm_to_one_process_ends_both_at_one_step(two):
    folder, (first, second) = two
    assert first["preempted"] == second["preempted"] == (os.EX_TEMPFAIL, 3)
    assert (folder / "preempted" / "checkpoint-3" / "rng_state_1.pth").is_file()


def test_the_command_line_runs_once_and_refuses_everywhere(two):
    folder, (first, second) = two
    assert first["statuses"] == second["statuses"] == [0, 2]
    measured = json.loads((folder / "run" / "metrics.json").read_text())
    assert measured["training"]["tokens_per_step"] == 2 * 4 * 32


def test_histories_agree(two):
    _, (first, second) = two
    config = tiny_model(**ADAPTS).config
    assert capacity_history(config, first["straight"]["log"], 10) == capacity_history(
        config, second["straight"]["log"], 10
    )
