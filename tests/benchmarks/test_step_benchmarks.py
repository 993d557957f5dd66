import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


FOLDER = Path(__file__).parents[2] / "benchmarks"


def run(*arguments):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def records(path) -> dict[tuple[str, str], dict]:
    return {(record["name"], record["metric"]): record for record in json.loads(path.read_text())}


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_step_is_compared_in_time_memory_and_operations(tmp_path):
    variants = ["hf-loop", "dense", "dense.muon"]
    small = ["--sizes", "mini", "--tokens", 64, "--lengths", 32, "--precisions", "fp32", "--repeats", 1]
    small += ["--variants", *variants, "--json", tmp_path / "found.json"]
    done = run(FOLDER / "training_step.py", *small)
    assert done.returncode == 0, done.stderr
    found = records(tmp_path / "found.json")
    assert {name for name, _ in found} == {f"mini/32/fp32/{variant}" for variant in variants}
    for variant in variants:
        assert {metric for name, metric in found if name == f"mini/32/fp32/{variant}"} == {
            "step_seconds", "tokens_per_second", "peak_bytes", "mfu",
        }  # fmt: skip
    dense = found["mini/32/fp32/dense", "tokens_per_second"]
    seconds = found["mini/32/fp32/dense", "step_seconds"]["value"]
    assert dense["value"] == pytest.approx(64 / seconds)
    # Weights, gradients and both moments of Adam, at least.
    assert found["mini/32/fp32/dense", "peak_bytes"]["value"] > 4 * 4 * 2e6
    assert found["mini/32/fp32/dense.muon", "step_seconds"]["value"] > seconds


def test_what_exits_save_is_compared_with_a_model_without_them(tmp_path):
    small = ["--models", "mini", "--precisions", "fp32", "--repeats", 1]
    done = run(FOLDER / "exits.py", *small, "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    found = records(tmp_path / "found.json")
    exits = found["mini/64/fp32/exits", "step_seconds"]
    dense = found["mini/64/fp32/dense", "step_seconds"]
    assert exits["ratio"] == pytest.approx(exits["value"] / dense["value"])
    assert len(exits["samples"]) == len(dense["samples"]) == 3
    assert found["mini/64/fp32/exits", "block_flops"]["ratio"] < 0.8
    assert found["mini/64/fp32/full-depth", "block_flops"]["ratio"] == 1
    assert done.stdout.splitlines()[-1].startswith("| mini/64/fp32 |")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a device")
def test_without_a_device_the_benchmark_for_it_ends_in_one_line():
    done = run(FOLDER / "gpu.py")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "CUDA" in done.stderr
