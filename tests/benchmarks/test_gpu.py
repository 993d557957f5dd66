"""The command for the minutes in which there is a GPU, rehearsed without one."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch


@pytest.fixture
def gpu(load, monkeypatch):
    """A function that loads the benchmark with arguments; what it changes of the environment is put back."""
    for name in ("CUDA_VISIBLE_DEVICES", "PYTORCH_NVML_BASED_CUDA_CHECK", "PYTHONPATH"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda *arguments: load("gpu", *arguments)


def test_a_rehearsal_goes_through_every_part(gpu, tmp_path, capfd):
    assert gpu("--rehearse", "--folder", tmp_path, "--minutes", 20).main() == 0
    records = json.loads((tmp_path / "gpu.json").read_text())
    assert all(
        set(record) == {"name", "metric", "value", "unit", "baseline", "ratio", "samples"} for record in records
    )
    found = {(record["name"], record["metric"]): record for record in records}
    right = {name for name, metric in found if metric == "holds"}
    assert right >= {f"correctness/{name}" for name in (
        "samples/bf16", "dense/fp32/loss", "exits/bf16/gradients", "tokens_kept", "batched/logits",
        "compiled/exits/gradients", "resumed",
    )}  # fmt: skip
    assert all(found[name, "holds"]["value"] == 1 for name in right)
    assert 0 < found["correctness/batched", "exited"]["value"] < 1
    for variant in ("hf-loop", "dense", "exits.compiled"):
        step = {metric: record for (name, metric), record in found.items() if name == f"tiny/32/bf16/{variant}"}
        assert set(step) == {"step_seconds", "tokens_per_second", "peak_bytes", "mfu", "launches", "waits"}
        assert step["tokens_per_second"]["value"] == pytest.approx(64 / step["step_seconds"]["value"])
    peak = found["cpu/bf16", "matmul_peak"]["value"]
    assert found["tiny/32/bf16/dense", "mfu"]["value"] * peak > 0
    stay, half = (found[f"tiny/32/bf16/batch-4/exits.{name}", "layers"]["value"] for name in ("stay", "half"))
    assert half < stay == 4
    assert {name for name, metric in found if metric == "step_seconds"} >= {
        "training/dense",
        "training/exits.compiled",
    }
    assert (
        {name for name, metric in found if metric == "seconds"}
        >= {name for name, _ in found if name.startswith("quality/dense/to-")}
        != set()
    )
    assert "does not hold" not in capfd.readouterr().out


def test_a_part_that_does_not_end_is_ended_and_leaves_its_records(gpu, tmp_path, monkeypatch, capfd):
    benchmark = gpu()

    def hangs(plan, results, seconds, text):
        results.add("a", "seconds", 1.0, "s")
        time.sleep(600)

    def fails(plan, results, seconds, text):
        results.add("b", "seconds", 2.0, "s")
        raise ArithmeticError

    parts = {"correctness": hangs, "steps": fails, "inference": hangs, "quality": hangs}
    monkeypatch.setattr(benchmark, "PARTS", parts)
    start = time.monotonic()
    found = benchmark.run(benchmark.REHEARSAL, tmp_path, start, minutes=15 / 60, text=["text"])
    assert time.monotonic() - start < 15
    assert [record["name"] for record in found] == ["a", "b", "a", "a"]
    assert json.loads((tmp_path / "gpu.json").read_text()) == found
    said = capfd.readouterr().out
    assert "correctness was ended after" in said
    assert "steps failed with exit status 1" in said


def test_a_nan_difference_fails_the_comparison(gpu, tmp_path):
    results = gpu().Results(tmp_path / "part.json")
    results.holds("a", float("nan"), 1.0)
    results.holds("b", 0.5, 1.0)
    assert [record["value"] for record in json.loads((tmp_path / "part.json").read_text())[1::2]] == [0.0, 1.0]


def test_what_is_packed_is_what_the_lock_names_without_torch(gpu, tmp_path, monkeypatch, capsys):
    benchmark, commands = gpu("--pack", tmp_path / "wheels"), []
    monkeypatch.setattr(benchmark.subprocess, "run", lambda command, check: commands.append(command))
    assert benchmark.main() == 0
    (command,) = commands
    named = {word.split("==")[0].lower() for word in command if "==" in word and not word.startswith("--only")}
    assert named >= {"transformers", "datasets", "accelerate", "huggingface_hub", "tokenizers", "safetensors"}
    assert not {name for name in named if name.startswith(benchmark.LEFT_OUT)}
    lock = (benchmark.ROOT / "requirements.lock").read_text().splitlines()
    assert {word for word in command if word.startswith("transformers==")} <= set(lock)
    assert "--python-version 3.12" in " ".join(command)


def test_a_clone_that_is_not_installed_can_be_imported(gpu, tmp_path, monkeypatch):
    benchmark = gpu()
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    benchmark.make_importable(None, tmp_path)
    clone = Path(sys.path[0])
    for file in ("modeling_electra_exit/__init__.py", "modeling_electra_exit/trainers/__init__.py",
                 "modeling_electra_exit/model_cards/__init__.py", "electra_exit/main.py"):  # fmt: skip
        assert (clone / file).is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a device")
def test_without_a_device_it_ends_in_one_line(gpu, tmp_path, capsys):
    assert gpu("--folder", tmp_path / "results").main() == 1
    assert capsys.readouterr().out.count("\n") == 1
    assert not (tmp_path / "results").exists()
