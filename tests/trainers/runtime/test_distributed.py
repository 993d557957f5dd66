"""Two real processes over gloo do what one does."""

import functools
import json
import os
import runpy
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
import torch.distributed.run
import yaml
from accelerate.commands.launch import launch_command, launch_command_parser
from safetensors import safe_open
from torch.distributed.tensor import DTensor
from transformers import AutoModelForPreTraining
from transformers.training_args import ParallelMode

from electra_exit import main as cli
from electra_exit.parsing import parse_fields
from electra_exit.places import RECIPES
from modeling_electra_exit.trainers import ElectraEarlyExitTrainingArguments
from modeling_electra_exit.trainers.data import packing
from modeling_electra_exit.trainers.data.packing import _encode
from modeling_electra_exit.trainers.errors import Preempted, UsageError
from modeling_electra_exit.trainers.runtime.distributed import full_tensor
from tests.conftest import tiny_model, write_corpus
from tests.forked import PROCESSES
from tests.trainers.cli.test_cli import RECIPE
from tests.trainers.pretraining.test_depth import growing
from tests.trainers.pretraining.test_trainer import make_trainer, sequences


RANKED = {"exit_signal": "expected_gain"}
# 36 sequences are four batches of eight, and four sequences over; ten steps are two epochs and a half.
SETTINGS = {"max_steps": 10, "exit_warmup": 0.2}
MUON = {"optim": "muon", "max_steps": 4}


def build(tokenizer, folder, batch_size, **settings):
    """A trainer that records the ids it trains on, step by step."""
    trainer = make_trainer(
        tokenizer, folder, tiny_model(**RANKED), **{**SETTINGS, "per_device_train_batch_size": batch_size, **settings}
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
        "state": {name: full_tensor(value).clone() for name, value in trainer.model.state_dict().items()},
        "log": trainer.state.log_history,
        "seen": trainer.seen,
        "flos": trainer.state.total_flos,
    }


def muon_runs(folder: Path, tokenizer, **settings) -> dict:
    """A run with Muon, and its continuation from the middle."""
    runs = {}
    for name, checkpoint in (("straight", None), ("resumed", str(folder / "muon-straight" / "checkpoint-2"))):
        trainer = build(
            tokenizer, folder / f"muon-{name}", 4, **{**MUON, "save_strategy": "steps", "save_steps": 2, **settings}
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        runs[name] = record(trainer)
    return runs


def grown_runs(folder: Path, tokenizer) -> dict:
    """A run that grows, its continuation from before it did, and one that ends by the clock."""
    runs = {}
    for name, checkpoint in (("straight", None), ("resumed", str(folder / "grown-straight" / "checkpoint-1"))):
        trainer = growing(tokenizer, folder / f"grown-{name}", per_device_train_batch_size=4)
        trainer.train(resume_from_checkpoint=checkpoint)
        runs[name] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer = growing(tokenizer, folder / "timed", depth_schedule=None, train_time="1s", save_strategy="no")
    trainer.train()
    runs["steps"] = trainer.state.global_step, trainer.state.max_steps
    return runs


def work(rank: int, folder: Path, tokenizer, recipe: str) -> dict:
    """Everything that the tests ask of two processes, so that they are started once."""
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

    results["muon"] = muon_runs(folder, tokenizer)
    results["grown"] = grown_runs(folder, tokenizer)
    results["statuses"] = [cli.main(["pretrain", recipe]) for _ in range(2)]
    flags = ["--streaming", "true", "--validation_files", str(folder / "corpus.txt")]
    results["streamed"] = cli.main(["pretrain", recipe, *flags, "--output_dir", str(folder / "streamed")])
    return results


def note_encoding(texts, tokenizer):
    """Says which process tokenises, in the place of what does."""
    with open(os.environ["ENCODED"], "a") as file:
        file.write(f"{os.environ['RANK']} {len(texts)}\n")
    return _encode(texts, tokenizer)


def shard(rank: int, folder: Path, tokenizer, recipe: str) -> dict:
    """The same of two that share the weights by FSDP2. They are others: accelerate decides once a process."""
    results = {}
    trainer = build(tokenizer, folder / "straight", 4, fsdp=True, save_strategy="steps", save_steps=6)
    trainer.train()
    results["types"] = {type(parameter) for parameter in trainer.model.parameters()}
    results["local"] = trainer.model.get_input_embeddings().weight.to_local().shape
    results["straight"] = record(trainer)
    results["evaluation"] = trainer.evaluate()

    trainer = build(tokenizer, folder / "resumed", 4, fsdp=True)
    trainer.train(resume_from_checkpoint=str(folder / "straight" / "checkpoint-6"))
    results["resumed"] = record(trainer)

    results["muon"] = muon_runs(folder, tokenizer, fsdp=True)
    results["status"] = cli.main(["pretrain", recipe, "--fsdp"])
    return results


def serve(job, rank: int, port: int, environment: dict, folder: Path, *args):
    """One of two processes, as torchrun starts them."""
    os.environ |= {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                   "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    os.environ["ENCODED"] = str(folder / "encoded.txt")
    packing._encode = note_encoding
    torch.set_num_threads(1)
    torch.save(job(rank, folder, *args), folder / f"rank-{rank}.pt")


def start_two(job, folder: Path, tokenizer, environment: Mapping[str, str] = MappingProxyType({})) -> tuple:
    """The folder, and what two processes return of a job."""
    corpus = write_corpus(folder / "corpus.txt")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "train_files": [str(corpus)], "output_dir": str(folder / "run"),
                                      "report_to": "none", "disable_tqdm": True}))  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        PROCESSES.Process(
            target=serve, args=(job, rank, port, dict(environment), folder, tokenizer, str(recipe)), daemon=True
        )
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


@pytest.fixture(scope="module")
def two(tokenizer, tmp_path_factory):
    return start_two(work, tmp_path_factory.mktemp("two"), tokenizer)


@pytest.fixture(scope="module")
def sharded(tokenizer, tmp_path_factory):
    return start_two(shard, tmp_path_factory.mktemp("sharded"), tokenizer)


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
    assert first["straight"]["flos"] == first["resumed"]["flos"]


def test_a_run_of_two_grows_and_ends_by_one_clock(two):
    _, (first, second) = two
    straight, resumed = first["grown"]["straight"], first["grown"]["resumed"]
    assert "electra.encoder.layer.3.output.dense.weight" in straight
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []
    others = second["grown"]["straight"]
    assert [name for name in straight if not torch.equal(straight[name], others[name])] == []
    assert first["grown"]["steps"] == second["grown"]["steps"]


def test_sigterm_to_one_process_ends_both_at_one_step(two):
    folder, (first, second) = two
    assert first["preempted"] == second["preempted"] == (os.EX_TEMPFAIL, 3)
    assert (folder / "preempted" / "checkpoint-3" / "rng_state_1.pth").is_file()


def test_the_command_line_runs_once_and_refuses_everywhere(two):
    folder, (first, second) = two
    assert first["statuses"] == second["statuses"] == [0, 2]
    measured = json.loads((folder / "run" / "metrics.json").read_text())
    assert measured["training"]["tokens_per_step"] == 2 * 4 * 32


def test_data_is_prepared_once_and_a_stream_is_shared(two):
    folder, (first, second) = two
    encoded = [line.split() for line in (folder / "encoded.txt").read_text().splitlines()]
    # The recipe's corpus of 60 documents, a fifth of them held out; the stream's 60 once to see whether the tokenizer
    # knows them, its held-out data anew, and then the 60 in halves.
    assert encoded[:2] == [["0", "48"], ["0", "12"]]
    assert [line for line in encoded[2:] if line[1] == "60"] == [["0", "60"]] * 2
    streamed = [line for line in encoded[2:] if line[1] != "60"]
    assert {rank for rank, _ in streamed} == {"0", "1"}
    assert {count for _, count in streamed} == {"30"}
    assert first["streamed"] == second["streamed"] == 0


def test_shards_train_as_whole_models_do(two, sharded):
    """FSDP2 against DDP: the same losses, weights, and statistics of the exits."""
    (_, (whole_run, _)), (_, (first, second)) = two, sharded
    assert first["types"] == second["types"] == {DTensor}
    assert first["local"][0] == second["local"][0] == tiny_model().config.vocab_size // 2
    for name in ("loss", "discriminator_loss", "exit_loss", "gain_loss", "generator_loss", "grad_norm"):
        assert logged(first["straight"], name) == pytest.approx(logged(whole_run["straight"], name), rel=1e-4), name
    for name, value in whole_run["straight"]["state"].items():
        torch.testing.assert_close(first["straight"]["state"][name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert first["evaluation"]["eval_roc_auc"] == pytest.approx(whole_run["evaluation"]["eval_roc_auc"], abs=1e-3)
    for name in ("straight", "resumed"):
        for key, value in first[name]["state"].items():
            assert torch.equal(value, second[name]["state"][key]), key


def test_a_run_of_shards_resumes_exactly(sharded):
    _, (first, _) = sharded
    for name, value in first["straight"]["state"].items():
        assert torch.equal(value, first["resumed"]["state"][name]), name


def test_a_checkpoint_of_shards_is_a_whole_model_with_its_code(sharded, two):
    folder, (first, _) = sharded
    checkpoint = folder / "straight" / "checkpoint-10"
    # The code is the model's own and none of torch's.
    assert {path.name for path in checkpoint.glob("*.py")} == {
        path.name for path in (two[0] / "straight" / "checkpoint-10").glob("*.py")
    }
    model = AutoModelForPreTraining.from_pretrained(checkpoint, trust_remote_code=True)
    for name, value in first["straight"]["state"].items():
        assert torch.equal(model.state_dict()[name], value), name
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["auto_map"]["AutoModelForPreTraining"] == "modeling_electra_exit.ElectraEarlyExitForPreTraining"
    with safe_open(checkpoint / "model.safetensors", "pt") as weights:  # tied weights are stored once
        assert "generator.lm_head.weight" not in weights.keys()  # noqa: SIM118
    assert first["status"] == 0
    assert json.loads((folder / "run" / "metrics.json").read_text())["training"]["tokens_per_step"] == 2 * 4 * 32


def test_muon_does_the_same_in_one_process_in_two_and_in_shards(two, sharded, tokenizer, tmp_path):
    trainer = build(tokenizer, tmp_path, 8, **MUON)
    trainer.train()
    one = record(trainer)
    for _, runs in (two, sharded):
        first, second = (run["muon"] for run in runs)
        assert logged(first["straight"], "loss") == pytest.approx(logged(one, "loss"), rel=1e-4)
        for name, value in one["state"].items():
            if name != "exit_state.auc":  # the mean of the processes' own: ranks do not add up
                torch.testing.assert_close(first["straight"]["state"][name], value, atol=1e-5, rtol=1e-4, msg=name)
        for name, value in first["straight"]["state"].items():
            assert torch.equal(value, second["straight"]["state"][name]), name
            assert torch.equal(value, first["resumed"]["state"][name]), name


def test_sharding_that_cannot_be_is_refused(tmp_path, monkeypatch):
    fields = {"output_dir": str(tmp_path)}
    for fsdp in (True, "full_shard"):
        with pytest.raises(UsageError, match=r"`fsdp` requires several processes; start the run with torchrun"):
            parse_fields({**fields, "fsdp": fsdp})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as accelerate launch asks for it
    with pytest.raises(UsageError, match="`fsdp` requires several processes"):
        parse_fields(fields)
    monkeypatch.setattr(ElectraEarlyExitTrainingArguments, "parallel_mode", ParallelMode.DISTRIBUTED)
    with pytest.raises(UsageError, match="`version` must be 2, got 1"):
        parse_fields(fields)
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # which accelerate itself sets below
    with pytest.raises(UsageError, match=r"`state_dict_type` must be .*FULL_STATE_DICT, got .*SHARDED_STATE_DICT"):
        parse_fields(fields)
    for setting, value in (("version", 1), ("cpu_ram_efficient_loading", True)):
        with pytest.raises(UsageError, match=f"`{setting}` must be .*, got {value}"):
            parse_fields({**fields, "fsdp": True, "fsdp_config": {setting: value}})
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert parse_fields({**fields, "fsdp": False})[2].sharding() is None


def run_module(name: str, argv: list[str], rank: int, *args) -> int:
    """`python -m name argv`; its exit status."""
    sys.argv = [name, *argv]
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    return stop.value.code


@pytest.mark.parametrize(
    ("launch", "is_sharded"),
    [
        (["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"], False),
        (["--config_file", str(RECIPES / "distributed" / "fsdp2.yaml")], True),
    ],
    ids=["ddp", "fsdp2"],
)
def test_accelerate_launch_starts_two_processes(tokenizer, tmp_path, monkeypatch, launch, is_sharded):
    """In the environment that accelerate makes; the two are forked, where `torchrun` would start them anew."""
    statuses = []

    def fork(args):
        job = functools.partial(run_module, args.training_script, args.training_script_args)
        assert (args.nproc_per_node, args.module) == ("2", True)
        statuses.extend(start_two(job, tmp_path, tokenizer, os.environ)[1])

    monkeypatch.setattr(torch.distributed.run, "run", fork)
    command = [*launch, "--num_processes", "2", "--main_process_port", "0"]
    command += ["-m", "electra_exit", "pretrain", str(tmp_path / "recipe.yaml")]
    launch_command(launch_command_parser().parse_args([*command, "--max_steps", "2"]))
    assert statuses == [0, 0]
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert measured["training"]["tokens_per_step"] == 2 * 4 * 32
    # Where the weights were in shards, the checkpoint has what gathers them again.
    assert (tmp_path / "run" / "checkpoint-2" / "pytorch_model_fsdp.bin").is_file() == is_sharded
