import json
import sys

import pytest

from tests.forked import PROCESSES


def records(path) -> dict[tuple[str, str], dict]:
    return {(record["name"], record["metric"]): record for record in json.loads(path.read_text())}


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_step_is_compared_in_time_memory_and_operations(load, tmp_path, monkeypatch):
    small = ["--sizes", "mini", "--tokens", 64, "--lengths", 32, "--precisions", "fp32", "--repeats", 1]
    small += ["--variants", "hf-loop", "dense", "dense.muon", "--json", tmp_path / "found.json"]
    benchmark = load("training_step", *small)
    assert benchmark.PROCESSES.get_start_method() == "spawn"
    monkeypatch.setattr(benchmark, "PROCESSES", PROCESSES)  # which need not import everything
    monkeypatch.setattr(benchmark, "PEAK_SIZE", 128)
    benchmark.main()
    found = records(tmp_path / "found.json")
    variants = ("hf-loop", "dense", "dense.muon")
    assert {name for name, _ in found} == {f"mini/32/fp32/{variant}" for variant in variants}
    for variant in variants:
        assert {metric for name, metric in found if name == f"mini/32/fp32/{variant}"} == {
            "step_seconds", "tokens_per_second", "peak_bytes", "mfu",
            *(["update_seconds"] if variant != "hf-loop" else []),
        }  # fmt: skip
    dense = found["mini/32/fp32/dense", "tokens_per_second"]
    seconds = found["mini/32/fp32/dense", "step_seconds"]["value"]
    assert dense["value"] == pytest.approx(64 / seconds)
    # Weights, gradients and both moments of Adam, at least.
    assert found["mini/32/fp32/dense", "peak_bytes"]["value"] > 4 * 4 * 2e6
    adam, muon = (found[f"mini/32/fp32/{variant}", "update_seconds"] for variant in ("dense", "dense.muon"))
    assert adam["value"] > 0
    assert muon["ratio"] == muon["value"] / adam["value"] > 1


def test_what_exits_save_is_compared_with_a_model_without_them(load, tmp_path, monkeypatch, capsys):
    small = ["--models", "mini", "--precisions", "fp32", "--repeats", 1]
    benchmark = load("exits", *small, "--json", tmp_path / "found.json")
    (case,) = benchmark.cases("mini")
    assert case[-2:] == (64, 64)  # as in `eight_layers.yaml`
    monkeypatch.setattr(benchmark, "cases", lambda name: [(*case[:3], 2, 64)])
    benchmark.main()
    found = records(tmp_path / "found.json")
    exits = found["mini/64/fp32/exits", "step_seconds"]
    dense = found["mini/64/fp32/dense", "step_seconds"]
    assert exits["ratio"] == pytest.approx(exits["value"] / dense["value"])
    assert len(exits["samples"]) == len(dense["samples"]) == 3
    assert found["mini/64/fp32/exits", "block_flops"]["ratio"] < 0.8
    assert found["mini/64/fp32/full-depth", "block_flops"]["ratio"] == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("| mini/64/fp32 |")
