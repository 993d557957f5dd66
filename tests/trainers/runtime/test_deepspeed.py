"""The DeepSpeed configurations: what they become, and that two processes with them train as DDP does."""

import functools
import importlib.util
import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining

from electra_exit.parsing import parse_fields
from electra_exit.places import RECIPES
from modeling_electra_exit.trainers.errors import UsageError
from tests.trainers.runtime.test_distributed import build, record, start_two


CONFIGS = {stage: str(RECIPES / "distributed" / f"zero{stage}.json") for stage in (2, 3)}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_without_deepspeed_its_configuration_is_refused_in_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"(?i)deepspeed") as refused:
        parse_fields({"output_dir": str(tmp_path), "deepspeed": CONFIGS[2]})
    assert "\n" not in str(refused.value)


def train(stage: int, rank: int, folder, tokenizer, recipe: str) -> dict:
    """A run and its continuation; what each arrives at, and DeepSpeed's own reading of the configuration."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.runtime.config import DeepSpeedConfig

    settings = {"deepspeed": CONFIGS[stage], "max_steps": 6, "gradient_accumulation_steps": 2}
    results = {}
    for name, checkpoint in (("straight", None), ("resumed", str(folder / "straight" / "checkpoint-4"))):
        trainer = build(tokenizer, folder / name, 2, save_strategy="steps", save_steps=4, **settings)
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        results[name] = record(trainer)["log"]
    read = DeepSpeedConfig(trainer.args.hf_deepspeed_config.config)
    results["read"] = (read.zero_optimization_stage, read.train_batch_size, read.gradient_clipping)
    return results


def without(rank: int, folder, tokenizer, recipe: str) -> dict:
    trainer = build(tokenizer, folder / "straight", 2, max_steps=6, gradient_accumulation_steps=2)
    trainer.train()
    trainer.save_model()
    return {"straight": record(trainer)["log"]}


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_train_and_resume_as_without(tokenizer, tmp_path, stage):
    (tmp_path / "ddp").mkdir()
    (tmp_path / "zero").mkdir()
    _, (plain, _) = start_two(without, tmp_path / "ddp", tokenizer)
    folder, (first, second) = start_two(functools.partial(train, stage), tmp_path / "zero", tokenizer)
    assert first["read"] == second["read"] == (stage, 8, 1.0)
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in (plain["straight"], first["straight"])]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    expected, saved, resumed = (
        load_file(path / "model.safetensors")
        for path in (tmp_path / "ddp/straight", folder / "straight", folder / "resumed")
    )
    assert saved.keys() == expected.keys()
    for name, value in saved.items():
        assert torch.equal(value, resumed[name]), name
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=name)
    AutoModelForPreTraining.from_pretrained(folder / "straight")
