"""Write the numbers and tables of README.md and docs/ from the files in benchmarks/results.

    python -m docs.measurements            # rewrite them in place
    python -m docs.measurements --check    # status 1 if a page differs

Numbers are between the comments `<!--= NAME -->` and `<!--/-->`, which Markdown does not show. `NUMBERS` lists the
functions that compute them, one per results file or study.
"""

import argparse
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean, quantiles, stdev


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # otherwise the recipes of old runs are checked against the Hub

from benchmarks.quickstart import whole_run
from benchmarks.time_to_quality import GOAL, TIMING, best_of, read_runs, seconds_to, summary
from modeling_electra_exit.trainers.runtime.files import read_json
from research import results as studied
from research.measures import Measure, standard_error
from research.tables import difference, paired


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"<!--= ([\w.-]+) -->(.*?)<!--/-->", re.DOTALL)


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fill(text: str, numbers: dict[str, str]) -> str:
    """Replace every marked number in `text` by its value in `numbers`.

    Raises:
        KeyError: if a name is not in `numbers`.
    """

    def value(found: re.Match) -> str:
        number = numbers[found[1]]
        if "\n" in number:
            number = f"\n\n{number}\n\n"
        return f"<!--= {found[1]} -->{number}<!--/-->"

    return MARKED.sub(value, text)


def without_marks(text: str) -> str:
    """The text without the comments around its numbers."""
    return MARKED.sub(lambda found: found[2], text)


@cache
def all_numbers() -> dict[str, str]:
    """All numbers and tables as text, by name."""
    numbers = {}
    for prefix, compute in NUMBERS.items():
        numbers |= {f"{prefix}.{name}": text for name, text in compute()}
    return numbers


Named = Iterator[tuple[str, str]]


# ---- Files of records ----


@cache
def records(name: str) -> dict[tuple[str, str], dict]:
    """The records of a benchmark's file, by name and metric."""
    return {(r["name"], r["metric"]): r for r in json.loads((RESULTS / f"{name}.json").read_text("utf-8"))}


def table(*rows: list[str]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


VARIANTS = {
    "hf-loop": "plain loop (`hf-loop`)",
    "electra-pytorch": "electra-pytorch 0.1.2",
    "rtd-gdes": "rtd-gdes 0.1.4.1 (another objective)",
    "dense.torch-kernels": "ours, dense, PyTorch kernels",
    "dense": "ours, dense",
    "dense.compiled": "ours, dense, compiled",
    "exits": "ours, exits active",
    "exits.compiled": "ours, exits active, compiled",
    "exits.unigram": "ours, exits active, `unigram`",
}


def step_table(file: str, *cases: str) -> str:
    """Step time, speed over the plain loop, peak memory and MFU of each variant, case by case."""
    found = records(file)
    rows = [["variant", "tokens", "precision", "step", "speedup over plain loop", "peak memory", "MFU"]]
    for case in cases:
        for variant, title in VARIANTS.items():
            name = f"electra-small/{case}/{variant}"
            if (name, "step_seconds") in found:
                mfu = found.get((name, "mfu"))
                rows.append([
                    title,
                    *case.split("/"),
                    f"{found[name, 'step_seconds']['value'] * 1e3:,.0f} ms",
                    f"{found[name, 'tokens_per_second']['ratio']:.2f}",
                    f"{found[name, 'peak_bytes']['value'] / 2**20:,.0f} MiB",
                    f"{mfu['value']:.0%}" if mfu else "",
                ])  # fmt: skip
    return table(*rows)


def gpu_steps() -> Named:
    """The training steps of `benchmarks/gpu.py`."""
    found = records("gpu")
    rows = [["model", "tokens", "variant", "step", "speed over plain loop", "peak memory", "launches", "waits"]]
    sizes = {"electra-small": "ELECTRA-Small", "electra-base": "ELECTRA-Base"}
    for size, length, variant in product(sizes, ("128", "512"), ("hf-loop", "dense", "exits")):
        name = f"{size}/{length}/bf16/{variant}"
        if (name, "step_seconds") in found:
            value = {metric: record["value"] for (each, metric), record in found.items() if each == name}
            rows.append([
                sizes[size],
                length,
                VARIANTS[variant],
                f"{value['step_seconds'] * 1e3:,.0f} ms",
                f"{found[name, 'tokens_per_second']['ratio'] or 1:.2f}",
                f"{value['peak_bytes'] / 2**20:,.0f} MiB",
                f"{value['launches']:,.0f}",
                f"{value['waits']:.0f}",
            ])  # fmt: skip
    yield "gpu", table(*rows)
    dense, exits = (f"electra-small/128/bf16/{variant}" for variant in ("dense", "exits"))
    seconds = found[dense, "step_seconds"]["value"]
    yield "gpu_launch_us", f"{seconds / found[dense, 'launches']['value'] * 1e6:.0f}"
    yield "gpu_exits", f"{found[exits, 'step_seconds']['value'] / seconds:.2f}"
    yield "gpu_memory", f"{found[dense, 'peak_bytes']['ratio']:.2f}"


def gpu_compiled() -> Named:
    """Compiled steps on a GPU, and whole steps of the Trainer."""
    found = records("gpu_compiled")
    rows = [["step", "time", "speed over plain loop", "launches"]]
    for variant, title in {
        **{name: VARIANTS[name] for name in ("hf-loop", "dense")},
        "dense.muon": "ours, dense, Muon",
        **{name: VARIANTS[name] for name in ("exits", "dense.compiled", "exits.compiled")},
        "exits.compiled-default": "ours, exits active, compiled without CUDA graphs",
    }.items():
        name = f"electra-small/128/bf16/{variant}"
        seconds, launches = (found[name, metric]["value"] for metric in ("step_seconds", "launches"))
        speed = found[name, "tokens_per_second"]["ratio"] or 1
        rows.append([title, f"{seconds * 1e3:.1f} ms", f"{speed:.2f}", f"{launches:,.0f}"])
    yield "gpu_compiled", table(*rows)
    yield "gpu_compiled_speed", f"{speed_of(found, 'dense.compiled'):.1f}"
    rows = [["whole step of the Trainer", "time", "share of the uncompiled time"]]
    for run, title in {
        "dense": "dense",
        "dense.compiled-default": "dense, `--torch_compile true`",
        "dense.compiled": "dense, also `--torch_compile_mode reduce-overhead`",
        "exits.compiled": "exits active, also `--torch_compile_mode reduce-overhead`",
    }.items():
        record = found[f"training/{run}", "step_seconds"]
        rows.append([title, f"{record['value'] * 1e3:.1f} ms", f"{record['ratio'] or 1:.2f}"])
    yield "gpu_training", table(*rows)
    dense, exits = (found[f"training/{run}", "step_seconds"] for run in ("dense.compiled", "exits.compiled"))
    yield "gpu_training_speed", f"{1 / dense['ratio']:.1f}"
    yield "gpu_training_exits", f"{exits['value'] / dense['value']:.2f}"
    yield "gpu_step_exits", f"{speed_of(found, 'dense.compiled') / speed_of(found, 'exits.compiled'):.2f}"


def speed_of(found: dict[tuple[str, str], dict], variant: str) -> float:
    """The speed of a variant of ELECTRA-Small's step over the plain loop."""
    return found[f"electra-small/128/bf16/{variant}", "tokens_per_second"]["ratio"]


def gpu_inference() -> Named:
    """The classifiers of `benchmarks/gpu.py`."""
    found = records("gpu")
    rows = [["batch", "full depth", "with exits", "ratio", "layers with exits"]]
    for size in (1, 8, 32, 64, 256):
        names = (f"electra-small/128/bf16/batch-{size}/{variant}" for variant in ("dense", "exits.half"))
        (dense, _), (half, layers) = (
            [found[name, metric]["value"] for metric in ("examples_per_second", "layers")] for name in names
        )
        rows.append([str(size), f"{dense:,.0f}/s", f"{half:,.0f}/s", f"{half / dense:.2f}", f"{layers:.1f}"])
    yield "gpu_inference", table(*rows)


def gpu_quality() -> Named:
    """The pre-training runs of `benchmarks/gpu.py` that finished."""
    found = records("gpu")
    rows = [["run", "tokens", "seconds", "ROC-AUC"]]
    for arm, command in (("dense", ""), ("muon", " --optim muon"), ("fast", "-fast")):
        name = f"quality/{arm}"
        tokens, auc = (found[name, metric]["value"] for metric in ("tokens", "roc_auc"))
        seconds = max(
            record["value"]
            for (each, metric), record in found.items()
            if each.startswith(f"{name}/step-") and metric == "seconds"
        )
        rows.append([f"`electra-small{command}`", f"{tokens / 1e6:.1f} M", f"{seconds:.0f}", f"{auc:.3f}"])
    yield "gpu_quality", table(*rows)


def speed() -> Named:
    yield "zen3", step_table("training_step-zen3", "128/fp32", "512/fp32")
    yield "avx512", step_table("training_step", "128/fp32", "128/bf16")
    yield "avx512_512", step_table("training_step-512", "512/fp32", "512/bf16")
    yield "compiled", step_table("training_step-compiled", "128/fp32", "128/bf16")
    zen3 = records("training_step-zen3")
    for variant in ("dense", "exits", "exits.unigram"):
        for length in (128, 512):
            name = f"electra-small/{length}/fp32/{variant}"
            yield f"{variant}_{length}", f"{zen3[name, 'tokens_per_second']['ratio']:.1f}"
            yield f"{variant}_{length}_memory", f"{zen3[name, 'peak_bytes']['ratio']:.2f}"

    yield from gpu_steps()
    yield from gpu_compiled()
    yield from gpu_inference()
    yield from gpu_quality()
    muon = records("training_step-muon")
    rows = [["model", "ELECTRA's Adam", "Muon for the layers, Adam for the rest"]]
    for size, title in (
        ("mini", "mini: 8 layers, 128 wide"),
        ("electra-small", "ELECTRA-Small"),
        ("electra-base", "ELECTRA-Base"),
    ):
        rows.append(
            [
                title,
                *(
                    f"{muon[f'{size}/128/fp32/{variant}', 'update_seconds']['value'] * 1e3:,.0f} ms"
                    for variant in ("dense", "dense.muon")
                ),
            ]
        )
    yield "muon", table(*rows)

    for name in ("tokenizer", "pack", "pack.one", "pack.again"):
        value = records("data_preparation")[f"data_preparation/{name}", "megabytes_per_second"]["value"]
        yield f"data.{name}", f"{value:.3g} MB/s"


# Share of a run's steps in which tokens exit, by default: all but the first tenth and the last three tenths.
EXITING = 0.6


# The runs with seed 2 in benchmarks/results/quickstart, and their titles.
QUICKSTARTS = {
    "eight_layers": "before 0.1.0: 8 layers with exits, Adam",
    "four_layers_unigram": "4 layers, linear decay",
    "four_layers_sqrt": "4 layers, square-root decay",
    "two_layers": "2 layers, linear decay",
    "two_layers_longer": "2 layers, linear decay, longer",
    "two_layers_sqrt": "2 layers, square-root decay",
}


def quickstart() -> Named:
    """Depths and schedules at the quickstart's size."""
    folder, own = RESULTS / "quickstart", "own_samples/roc_auc"
    runs = {name: json.loads((folder / f"{name}-seed2.json").read_text("utf-8")) for name in QUICKSTARTS}
    probed = json.loads((folder / "yardstick-depth.json").read_text("utf-8"))
    rows = [["run", "steps", "seconds", "ROC-AUC", f"seconds to {GOAL}", "named entities"]]
    for name, title in QUICKSTARTS.items():
        run, last, found = runs[name], runs[name]["curve"][-1], probed.get(name)
        finished, reached = last["step"] == run["max_steps"], seconds_to(GOAL, run["curve"], own)
        rows.append([
            title,
            f"{run['max_steps']:,}",
            f"{last['seconds'] if finished else whole_run(run):,.0f}",
            f"{last[own]:.3f}" + ("" if finished else f" after {last['step']:,} steps"),
            f"{reached:,.0f}" if reached else "not reached",
            f"{found['average_precision']:.3f} ± {found['standard_error']:.3f}" if found else "",
        ])  # fmt: skip
        yield f"{name}.auc", f"{last[own]:.3f}"
        if reached:
            yield f"{name}.goal", f"{reached:,.0f}"
            yield f"{name}.goal_share", f"{reached / whole_run(runs['eight_layers']):.2f}"
        if found:
            yield f"{name}.entities", f"{found['average_precision']:.3f}"
            yield f"{name}.entities_difference", f"{found['difference']:+.3f}"
            yield f"{name}.entities_error", f"{found['difference_standard_error']:.3f}"
    yield "runs", table(*rows)
    yield "goal", f"{GOAL}"
    yield from quickstart_depth()


def quickstart_depth() -> Named:
    """The quickstart beside four layers, which take a tenth more time, with several seeds."""
    folder = RESULTS / "quickstart" / "depth"
    former = read_json(folder / "eight_layers-seed3.json")
    last = former["curve"][-1]
    rows = [
        ["run", "steps", "seconds", "ROC-AUC", f"seconds to {GOAL}", "named entities", "SST-2", "WNUT-17"],
        [QUICKSTARTS["eight_layers"], f"{former['max_steps']:,}", f"{whole_run(former):,.0f}",
         f"{last['own_samples/roc_auc']:.3f} after {last['step']:,} steps", "not reached", "", "", ""],
    ]  # fmt: skip
    found = {}
    for name, title in (("four_layers", "4 layers"), ("quickstart", "**quickstart: 2 layers**")):
        runs = [read_json(path) for path in sorted(folder.glob(f"{name}-seed*.json"))]
        found[name] = quality_by_seed(folder, name, runs)
        seconds, goal = mean(run["curve"][-1]["seconds"] for run in runs), mean(found[name]["goal"])
        of = {measure: f"{mean(each):.3f} ± {standard_error(each):.3f}" for measure, each in found[name].items()}
        rows.append([title, f"{runs[0]['max_steps']:,}", f"{seconds:,.0f}", of["auc"], f"{goal:,.0f}", of["entities"],
                     of["accuracy"], of["f1"]])  # fmt: skip
    yield "depth", table(*rows)
    yield "seeds", f"{len(runs)}"
    yield "goal_share", f"{goal / whole_run(former):.2f}"
    yield "goal_seconds", f"{goal:,.0f}"
    yield "former_seconds", f"{whole_run(former):,.0f}"
    for measure, each in found["quickstart"].items():
        ahead = [two - four for two, four in zip(each, found["four_layers"][measure], strict=True)]
        yield f"{measure}_difference", f"{mean(ahead):+.3f} ± {standard_error(ahead):.3f}"


def quality_by_seed(folder: Path, name: str, runs: list[dict]) -> dict[str, list[float]]:
    """The measures of the runs of one arm of [`quickstart_depth`], each by seed."""
    probes = [read_json(folder / "yardstick" / f"seed{run['seed']}.json")[name] for run in runs]
    tasks = [read_json(folder / "tasks" / f"{name}-seed{run['seed']}.json") for run in runs]
    own = "own_samples/roc_auc"
    return {
        "auc": [run["curve"][-1][own] for run in runs],
        "goal": [seconds_to(GOAL, run["curve"], own) for run in runs],
        "entities": [probe["average_precision"] for probe in probes],
        "accuracy": [task["accuracy"]["pre-trained"] for task in tasks],
        "f1": [task["entity_f1"]["pre-trained"] for task in tasks],
    }


RATE = "0.001"
# The seed whose runs chose the learning rate.
CHOOSING_SEED = 0
TIMES = ("time_of_500", "time_of_1000", "time_of_2000", "time_of_4000", "time_of_8000")
DEPTHS = {
    "1_layer": "1 layer",
    "1_layer@0.002": "1 layer, twice the learning rate",
    "2_layers": "2 layers",
    "2_layers@0.002": "2 layers, twice the learning rate",
    "2_layers_exits@0.002": "2 layers, exits after layer 1, twice the learning rate",
    "4_layers": "4 layers",
    "4_layers@0.002": "4 layers, twice the learning rate",
    "8_layers": "8 layers",
    "12_layers": "12 layers",
    "8_layers_exits": "8 layers, the default exits: random, after layer 2, 1/8 continue",
    "8_layers_heads": "8 layers, exit heads without exits",
    "8_layers_random_layers": "8 layers, tokens drawn anew in every layer (random-LTD)",
    "8_layers_router": "8 layers, learned router in every other layer (Mixture of Depths)",
    "8_layers_grown": "8 layers: 2 for half of the steps, then 4, then 8",
    "8_layers_grown_exits": "8 layers: 4 for 60 % of the steps, then 8, with exits after layer 2",
    "8_layers_auto@0.002": "at most 8, by `--depth_schedule auto`, twice the learning rate",
    "4_layers_grown@0.002": "4 layers: 2 for half of the steps, then 4, twice the learning rate",
}
AUC = Measure("ROC-AUC", "held_out", "roc_auc")
ENTITIES = Measure("named entities", "entities", "average_precision")
TEXTS = {"time": "22 M tokens", "time_little": "0.4 M tokens"}


def depth() -> Named:
    """The study of depths at equal training time."""
    for name in TEXTS:
        text = "" if name == "time" else "little_"
        for key, measure in (("auc", AUC), ("entities", ENTITIES)):
            yield f"{text}{key}", depth_table(name, measure)
    yield "cost", depth_costs()
    yield from depth_differences()
    for name in TEXTS:
        runs = [run for _, arms in depth_times(name).values() for run in arms.get("8_layers_auto@0.002", [])]
        yield f"{name}.auto_runs", f"{len(runs)}"
        yield f"{name}.auto_grew", f"{sum(len(run['depths']) > 1 for run in runs)}"
    of_time = [arms for _, arms in depth_times().values()]
    tokens = (of_time[0][arm][0]["training"]["tokens"] for arm in ("2_layers", "4_layers"))
    yield "tokens", f"{next(tokens) / next(tokens):.1f}"
    # Runs of two, four and eight layers whose schedules have about 1,000 steps.
    like = [of_time[number][arm][0] for number, arm in ((0, "2_layers"), (1, "4_layers"), (2, "8_layers"))]
    yield "equal_steps", ", ".join(f"{studied.held_out_auc(run):.3f}" for run in like)
    yield "steps", ", ".join(f"{run['training']['steps']:,}" for run in like)


def depth_table(name: str, measure: Measure) -> str:
    """A measure of all arms of a study of depths, by training time."""
    times = depth_times(name).values()
    rows = [["model", *(f"{seconds:.0f} s" for seconds, _ in times)]]
    for arm, title in DEPTHS.items():
        groups = [of_seeds(arms.get(arm, []), measure) for _, arms in times]
        if any(groups):
            rows.append([title, *groups])
    return table(*rows)


def of_seeds(results: list[dict], measure: Measure) -> str:
    """The mean of the seeds that chose nothing, its standard error and their number; with a star, the value of the
    choosing seed, if there is no other."""
    fresh = measure.values([result for result in results if result["seed"] != CHOOSING_SEED])
    if len(fresh) > 1:
        return f"{mean(fresh):.3f} ± {standard_error(fresh):.3f} ({len(fresh)})"
    return f"{fresh[0]:.3f} (1)" if fresh else "".join(f"{value:.3f}*" for value in measure.values(results))


def depth_costs() -> str:
    """The time and memory of a step of each arm of the study of depths."""
    rows = [["model", "step", "step with active exits or random layers", "peak memory"]]
    _, arms = depth_times()["time_of_2000"]
    for arm, title in DEPTHS.items():
        timed = arms[arm][0]["step_seconds"] if arm in arms and "@" not in arm else {}
        if "dense" in timed:
            seconds = (f"{1e3 * timed[phase]:.0f} ms" if phase in timed else "" for phase in ("dense", "exits"))
            rows.append([title, *seconds, f"{timed['peak_bytes'] / 2**20:.0f} MiB"])
    return table(*rows)


# Pairs of arms to compare: name, the arm and its stage, the arm it is compared with and its stage.
COMPARED = {
    "default_500": ("2_layers", "time_of_500", "4_layers", "time_of_500"),
    "default_2000": ("2_layers", "time_of_2000", "4_layers", "time_of_2000"),
    "default_4000": ("2_layers", "time_of_4000", "4_layers", "time_of_4000"),
    "deep": ("2_layers", "time_of_2000", "12_layers", "time_of_4000"),
    "late": ("2_layers", "time_of_4000", "12_layers", "time_of_4000"),
    "one": ("2_layers@0.002", "time_of_2000", "1_layer@0.002", "time_of_2000"),
    "auto_2000": ("8_layers_auto@0.002", "time_of_2000", "2_layers@0.002", "time_of_2000"),
    "auto_4000": ("8_layers_auto@0.002", "time_of_4000", "2_layers@0.002", "time_of_4000"),
    "longest": ("2_layers@0.002", "time_of_8000", "4_layers@0.002", "time_of_8000"),
    "auto_four": ("8_layers_auto@0.002", "time_of_8000", "4_layers@0.002", "time_of_8000"),
    "grown_8000": ("4_layers_grown@0.002", "time_of_8000", "4_layers@0.002", "time_of_8000"),
    "grown_two": ("4_layers_grown@0.002", "time_of_8000", "2_layers@0.002", "time_of_8000"),
    "faster": ("2_layers@0.002", "time_of_2000", "2_layers", "time_of_2000"),
    "faster_four": ("4_layers@0.002", "time_of_4000", "4_layers", "time_of_4000"),
    "two_exits": ("2_layers_exits@0.002", "time_of_2000", "2_layers@0.002", "time_of_2000"),
    "exits": ("8_layers_exits", "time_of_4000", "8_layers", "time_of_4000"),
    "exits_2000": ("8_layers_exits", "time_of_2000", "8_layers", "time_of_2000"),
    "random_layers": ("8_layers_random_layers", "time_of_2000", "8_layers", "time_of_2000"),
    "router": ("8_layers_router", "time_of_2000", "8_layers", "time_of_2000"),
    "heads": ("8_layers_heads", "time_of_2000", "8_layers", "time_of_2000"),
    "grown": ("8_layers_grown", "time_of_4000", "8_layers", "time_of_4000"),
    "grown_four": ("8_layers_grown", "time_of_4000", "4_layers", "time_of_4000"),
    "mlm": ("4_layers_mlm", "time_of_2000", "4_layers", "time_of_2000"),
}


def depth_differences() -> Named:
    """Differences between arms of the study of depths, paired by seed, with standard errors."""
    rows = [["text", "time", "rate, two layers", "rate, four", "seeds", "ROC-AUC", "named entities"]]
    for name, text in TEXTS.items():
        times = depth_times(name)
        for key, (arm, stage, other, other_stage) in (COMPARED | tuned(times)).items():
            if not {stage, other_stage} <= times.keys():
                continue
            (seconds, arms), (_, others) = times[stage], times[other_stage]
            pairs = paired(arms.get(arm, []), others.get(other, []), CHOOSING_SEED)
            cells = []
            for of, measure in (("auc", AUC), ("entities", ENTITIES)):
                if (found := difference(pairs, measure)) is not None:
                    ahead, error, seeds = found
                    cells.append(f"{ahead:+.3f}" + ("" if error is None else f" ± {error:.3f}"))
                    yield f"{name}.{key}_{of}", cells[-1]
                    yield f"{name}.{key}_seeds", f"{seeds}"
            if cells and key.startswith(("default", "tuned")):
                rates = (each.partition("@")[2] or RATE for each in (arm, other))
                rows.append([text, f"{seconds:.0f} s", *rates, f"{seeds}", *cells])
    yield "default", table(*rows)


def tuned(times: dict) -> dict[str, tuple[str, str, str, str]]:
    """As [`COMPARED`], two and four layers, each at the learning rate that seed 0 chose, where it is not [`RATE`] for
    both and other seeds have run at it."""
    found = {}
    for stage, (_, arms) in times.items():
        two, four = (chosen(arms, depth) for depth in ("2_layers", "4_layers"))
        if (two, four) != ("2_layers", "4_layers") and min(len(arms.get(arm, [])) for arm in (two, four)) > 1:
            found[stage.replace("time_of", "tuned")] = (two, stage, four, stage)
    return found


def chosen(arms: dict[str, list[dict]], depth: str) -> str:
    """The arm of a depth with the highest ROC-AUC at the seed that chooses the learning rate."""
    choosing = {arm: result for arm, results in arms.items() if studied.base(arm) == depth
                for result in results if result["seed"] == CHOOSING_SEED}  # fmt: skip
    return max(choosing, key=lambda arm: studied.held_out_auc(choosing[arm]), default=depth)


@cache
def depth_times(name: str = "time") -> dict[str, tuple[float, dict[str, list[dict]]]]:
    """The training time and the runs by arm of each stage of a study of depths that has runs of four layers. Arms at
    another learning rate than [`RATE`] have it in their name."""
    times = {}
    for stage in TIMES:
        arms = study(name, stage)
        if of_four := [run for arm in arms if studied.base(arm) == "4_layers" for run in arms[arm]]:
            by_arm = {arm.removesuffix(f"@{RATE}"): found for arm, found in arms.items()}
            times[stage] = mean(map(studied.seconds_of, of_four)), by_arm
    return times


def small() -> Named:
    """The recipes at ELECTRA-Small's sizes for equal time."""
    found = study("small", "tokens_20m")
    rows = [["run", "M tokens", "seconds", "ROC-AUC", "named entities"]]
    for arm, title in (
        ("published", "`electra-small`, as published"),
        ("published_muon", "`electra-small` with Muon"),
        ("fast", "`electra-small-fast`: 3, then 6, then 12 layers"),
        ("fast_12_layers", "the same with 12 layers throughout"),
        ("fast_3_layers", "the same with 3 layers throughout"),
    ):
        (result,) = found[arm]
        entities = result["judged"]["entities"]
        rows.append([
            title,
            f"{result['training']['tokens'] / 1e6:.1f}",
            f"{studied.seconds_of(result):.0f}",
            f"{studied.held_out_auc(result):.3f}",
            f"{entities['average_precision']:.3f} ± {entities['standard_error']:.3f}",
        ])  # fmt: skip
    yield "runs", table(*rows)
    yield "seconds", rows[1][2]


def time_to_quality() -> Named:
    """The best quality of the plain loops, and the time that the quickstart takes to it."""
    folder = RESULTS / "time_to_quality"
    runs, steps = read_runs(folder), json.loads((folder / TIMING).read_text("utf-8"))
    ours = runs["ours"]["curve"]
    yield "table", summary(folder)
    for arm, name in (("plain", "plain"), ("electra-pytorch", "package")):
        best = best_run(runs, arm)
        goal = best_of(best)
        theirs, own = (seconds_to(goal, curve) for curve in (best["curve"], ours))
        yield f"{name}_step", f"{steps[arm]:.2f}"
        yield f"{name}_best", f"{goal:.3f}"
        yield f"{name}_seconds", f"{theirs:,.0f}"
        yield f"{name}_ours", f"{own:.0f}"
        yield f"{name}_ratio", f"{theirs / own:.0f}"
    yield "ours_step", f"{steps['ours']:.2f}"
    yield "ours_last", f"{ours[-1]['roc_auc']:.3f}"
    yield "ours_seconds", f"{ours[-1]['seconds']:.0f}"


def best_run(runs: dict[str, dict], arm: str) -> dict:
    """The run of an arm of `benchmarks/time_to_quality.py` at its best learning rate."""
    return max((run for run in runs.values() if run["arm"] == arm), key=best_of)


def time_to_quality_curve(arm: str) -> tuple[list[float], list[float]]:
    """Seconds and ROC-AUC of [`best_run`]."""
    curve = best_run(read_runs(RESULTS / "time_to_quality"), arm)["curve"]
    return [point["seconds"] for point in curve], [point["roc_auc"] for point in curve]


def exit_steps() -> Named:
    """The time that exits save, from alternating steps without exits, with exits, and at full depth with heads."""
    found = records("exits-zen3")

    def ratio(case: str, metric: str, variant: str = "exits") -> float:
        return found[f"{case}/{variant}", metric]["ratio"]

    def run(case: str, metric: str) -> float:
        return EXITING * ratio(case, metric) + (1 - EXITING) * ratio(case, metric, "full-depth")

    def spread(case: str, variant: str) -> str:
        low, median, high = (
            1e3 * q for q in quantiles(found[f"{case}/{variant}", "step_seconds"]["samples"], n=4, method="inclusive")
        )
        return f"{median:,.0f} ms ({low:,.0f} to {high:,.0f})"

    rows = [["case", "no exits", "exits active", "full depth with exit heads", "time, exits active",
             "layer FLOPs, exits active", "time, run", "FLOPs, run", "layer FLOPs, run"]]  # fmt: skip
    cases = list(dict.fromkeys(name.rpartition("/")[0] for name, _ in found))
    for case in cases:
        row = [f"`{case}`", *(spread(case, variant) for variant in ("dense", "exits", "full-depth"))]
        row += [f"{ratio(case, metric):.2f}" for metric in ("step_seconds", "block_flops")]
        row += [f"{run(case, metric):.2f}" for metric in ("step_seconds", "flops", "block_flops")]
        rows.append(row)
    yield "steps", table(*rows)
    times = [run(case, "step_seconds") for case in cases]
    yield "run_min", f"{min(times):.2f}"
    yield "run_max", f"{max(times):.2f}"


# Of SST-2's validation set.
SST2_EXAMPLES = 872


def own_task() -> Named:
    """Speedup and accuracy of calibrated exits on the task of `benchmarks/own_task.py`, by seed and on average."""
    rows = [["seed", "full depth", "with exits", "difference in points", "mean layers", "speedup at batch size 32"]]
    points, speedups = [], []
    for path in sorted((RESULTS / "own_task").glob("seed-*.json")):
        found = {
            (record["name"].split("/")[-1], record["metric"]): record for record in json.loads(path.read_text("utf-8"))
        }
        dense, exits = (found[variant, "accuracy"]["value"] for variant in ("dense", "exits"))
        speedup = found["exits", "examples_per_second"]["ratio"]
        points.append(100 * (exits - dense))
        speedups.append(speedup)
        layers = found["exits", "layers"]["value"]
        rows.append(
            [path.stem[5:], f"{dense:.4f}", f"{exits:.4f}", f"{points[-1]:+.2f}", f"{layers:.2f}", f"{speedup:.2f}"]
        )
    yield "seeds", str(len(points))
    yield "speedup", f"{mean(speedups):.2f}"
    yield "points", f"{mean(points):+.2f}"
    yield "points_error", f"{standard_error(points):.2f}"
    yield "table", table(*rows)


def domain_adapt() -> Named:
    """Accuracy on the task of `benchmarks/domain_adapt.py` before and after, in percent, by result file."""
    for path in sorted((RESULTS / "domain_adapt").glob("*.json")):
        for name, each in json.loads(path.read_text("utf-8"))["accuracy"].items():
            yield f"{path.stem}.{name}", f"{100 * mean(each):{'+' if name == 'difference' else ''}.1f}"
            yield f"{path.stem}.{name}_error", f"{100 * standard_error(each):.1f}"


def small_models() -> Named:
    """The quickstart on SST-2 (accuracy) and WNUT-17 (F1), beside baselines that look at words."""
    found = json.loads((RESULTS / "small_models.json").read_text("utf-8"))
    for metric in ("accuracy", "entity_f1"):
        for name, value in found[metric].items():
            yield f"{metric}.{re.sub('[ -]', '_', name)}", f"{value:.3f}"


def inference() -> Named:
    found, place = records("inference"), "sst2-minilm/55/float32/batch-{}/{}"
    columns = {"dense.compiled": "compiled", "exits": "with exits", "exits.stay": "exits that no example takes",
               "deebert": "DeeBERT's rule", "pabee": "PABEE's rule"}  # fmt: skip
    rows = [["batch size", "full depth", *columns.values()]]
    for batch in (1, 8, 32, 128):
        row = [str(batch), f"{found[place.format(batch, 'dense'), 'examples_per_second']['value']:.0f}/s"]
        for variant in columns:
            record = found.get((place.format(batch, variant), "examples_per_second"))
            row.append(f"{record['ratio']:.2f}" if record else "")
            if record:
                yield f"{variant}_{batch}", f"{record['ratio']:.1f}"
        rows.append(row)
    for metric, title, form in (("accuracy", "accuracy", ".4f"), ("layers", "mean layers", ".2f")):
        values = [found[place.format(1, variant), metric]["value"] for variant in ("dense", *columns)]
        rows.append([title, *(f"{value:{form}}" for value in values)])
    yield "table", table(*rows)
    full, exits = (found[place.format(1, variant), "accuracy"]["value"] for variant in ("dense", "exits"))
    yield "drop", f"{100 * (full - exits):.1f}"
    yield "error", f"{100 * (full * (1 - full) / SST2_EXAMPLES) ** 0.5:.1f}"
    yield "layers", f"{found[place.format(1, 'exits'), 'layers']['value']:.1f}"


KINDS = {"wordpiece": "WordPiece", "unigram": "Unigram", "bpe": "byte-level BPE"}


def tokenizers() -> Named:
    """The effect of tokenizer types and flags on each language."""
    found = records("tokenizers_languages")
    languages = list(dict.fromkeys(name.split("/")[0] for name, _ in found))

    def cell(language: str, switch: str, kind: str) -> str:
        place = f"{language}/{switch}/{kind}"
        words, characters, unknown = (
            found[place, metric]["value"] for metric in ("tokens_per_word", "characters_per_token", "unknown")
        )
        return f"{words:.2f}, {characters:.2f}, {unknown:.2%}"

    rows = [["language", *KINDS.values()]]
    yield "types", table(*rows, *([name, *(cell(name, "default", kind) for kind in KINDS)] for name in languages))
    switches = list(dict.fromkeys(name.split("/")[1] for name, _ in found))
    rows = [["language", *(f"`{switch}`" if switch.startswith("-") else switch for switch in switches)]]
    yield "flags", table(*rows, *([n, *(cell(n, switch, "wordpiece") for switch in switches)] for n in languages))


def scaling() -> Named:
    found = records("scaling")
    rows = [["processes", "tokens/s", "speedup"]]
    for processes in (1, 2):
        record = found[f"quickstart/processes-{processes}", "tokens_per_second"]
        rows.append([str(processes), f"{record['value']:,.0f}", f"{record['ratio']:.2f}"])
        yield f"ratio_{processes}", f"{record['ratio']:.2f}"
    yield "weak", table(*rows)

    found = records("equal_runs")
    rows = [["run", "first loss", "last loss", "largest relative loss difference", "largest weight difference"]]
    for name, title in (("1x64", "1 process of 64"), ("2x32", "2 of 32"), ("2x32.fsdp2", "2 of 32, FSDP2"),
                        ("2x32.two-nodes", "2 nodes of 1 process of 32, each with its own address")):  # fmt: skip
        losses = found[f"quickstart/{name}", "loss_curve"]["value"]
        differences = [found[f"quickstart/{name}", f"{which}_difference_max"]["value"] for which in ("loss", "weight")]
        shown = [""] * 2 if name == "1x64" else [f"{value:.1e}" for value in differences]
        rows.append([title, f"{losses[0]:.4f}", f"{losses[-1]:.4f}", *shown])
    yield "equal", table(*rows)

    found = records("communication")
    rows = [["recipe", "GPUs", "compute time", "DDP sends", "time", "FSDP2 sends", "time", "exits send", "time"]]
    for recipe in ("electra-small", "electra-base"):
        for gpus in (8, 64, 512):
            place = f"{recipe}/gpus-{gpus}."
            row = [f"`{recipe}`", str(gpus), f"{found[f'{place}ddp', 'seconds_computing']['value'] * 1e3:,.0f} ms"]
            for way in ("ddp", "fsdp2", "exits"):
                sent = found[place + way, "bytes_sent"]["value"]
                row.append(f"{sent / 1e6:,.0f} MB" if sent > 1e6 else f"{sent:,.0f} B")
                row.append(f"{found[place + way, 'seconds_communicating']['value'] * 1e3:,.3g} ms")
            rows.append(row)
    yield "communication", table(*rows)


def faults() -> Named:
    found = records("faults")
    rows = [["fault", "tries", "runs that ended in other weights"]]
    rows += [[name, f"{record['samples']}", f"{record['value']}"] for (name, _), record in found.items()]
    yield "table", table(*rows)
    yield "cases", f"{len(found)}"
    yield "tries", f"{sum(record['samples'] for record in found.values())}"
    yield "lost", f"{sum(record['value'] for record in found.values())}"
    soak = {metric: record["value"] for (_, metric), record in records("soak").items()}
    yield "soak.minutes", f"{soak['seconds'] / 60:.0f}"
    yield "soak.steps", f"{soak['steps']:,}"
    yield "soak.sigkill", f"{soak['sigkill']}"
    yield "soak.sigterm", f"{soak['sigterm']}"
    yield "soak.growth_median", f"{soak['memory_growth_median'] - 1:.1%}"
    yield "soak.growth_max", f"{soak['memory_growth_max'] - 1:.1%}"
    yield "soak.files", f"{soak['open_files_growth_max']}"
    yield "soak.differ", f"{soak['tensors_that_differ']}"


# ---- Studies ----


@cache
def study(name: str, stage: str) -> dict[str, list[dict]]:
    """The results of a stage, by arm, in the order of the seeds."""
    timed = RESULTS / name / studied.timing_file(stage)
    seconds = json.loads(timed.read_text("utf-8")) if timed.exists() else {}
    arms = {}
    for path in sorted((RESULTS / name).glob(f"{stage}-*-seed*.json")):
        result = json.loads(path.read_text("utf-8"))
        arm = result["name"].split("/")[1]
        result["step_seconds"] = seconds.get(studied.base(arm))
        arms.setdefault(arm, []).append(result)
    return arms


def judged(results: list[dict], judge: str, metric: str) -> list[float]:
    return [result["judged"][judge][metric] for result in results if judge in result["judged"]]


def values(numbers: list[float], form: str = ".4f") -> str:
    """The mean and, of several, each one."""
    if len(numbers) < 2:
        return "".join(f"{number:{form}}" for number in numbers)
    return f"{mean(numbers):{form}} ({', '.join(f'{number:{form}}' for number in numbers)})"


def cost(results: list[dict], baseline: list[dict], of) -> str:
    return f"{mean(map(of, results)) / mean(map(of, baseline)):.2f}"


NARROW = {
    "dense": "no exits",
    "dense_narrow_equal_time": "no exits, 0.78 of the steps",
    "random_one_exit_early": "**default: random, after layer 2, 1/8 continue, full depth for the last 30 %**",
    "gain_one_exit_early": "expected gain, the same exits",
    "random_one_exit": "random, after layer 2, 1/4 continue, full depth for the last 12 %",
    "gain_one_exit": "expected gain, the same exits",
    "gain_late": "expected gain, after layers 1 and 2, 1/2 and 1/4 continue, from a quarter of the steps on",
}


def exits() -> Named:
    arms = study("exits", "narrow")
    dense, fewer, default = (arms[arm] for arm in ("dense", "dense_narrow_equal_time", "random_one_exit_early"))
    rows = [["arm", "seeds", "layer FLOPs", "FLOPs", "time", "ROC-AUC", "average precision"]]
    for arm, title in NARROW.items():
        results = arms[arm]
        rows.append([
            title,
            str(len(results)),
            cost(results, dense, lambda r: r["flops"]["blocks"]),
            cost(results, dense, lambda r: r["flops"]["total"]),
            cost(results, dense, studied.seconds_of),
            values(judged(results, "held_out", "roc_auc")),
            values(judged(results, "held_out", "average_precision")),
        ])  # fmt: skip
    yield "narrow", table(*rows)
    yield "time", cost(default, dense, studied.seconds_of)
    yield "seeds", f"{len(default)}"
    yield "tokens", f"{default[0]['training']['tokens'] / 1e6:.1f}"
    for name, baseline in (("equal_tokens", dense), ("equal_time", fewer)):
        for metric, short in (("roc_auc", "auc"), ("average_precision", "ap")):
            pairs = zip(judged(default, "held_out", metric), judged(baseline, "held_out", metric), strict=True)
            differences = [ours - theirs for ours, theirs in pairs]
            yield f"{name}_{short}", f"{mean(differences):+.3f}"
            yield f"{name}_{short}_error", f"{standard_error(differences):.3f}"
            yield f"{name}_{short}_each", ", ".join(f"{difference:+.3f}" for difference in differences)
    yield "dense_auc", f"{mean(judged(dense, 'held_out', 'roc_auc')):.3f}"
    yield "default_auc", f"{mean(judged(default, 'held_out', 'roc_auc')):.3f}"
    yield "dense_deviation", f"{stdev(judged(dense, 'held_out', 'roc_auc')):.3f}"
    tasks = [["arm", "BLiMP", "SST-2", "STS-B"]]
    for arm in ("dense", "dense_narrow_equal_time", "random_one_exit_early"):
        scores = (
            judged(arms[arm], "blimp", "accuracy"),
            judged(arms[arm], "sst2", "accuracy"),
            judged(arms[arm], "stsb", "pearson"),
        )
        tasks.append([NARROW[arm], *(f"{mean(score):.3f} ± {stdev(score):.3f}" for score in scores)])
    yield "tasks", table(*tasks)


GENERATORS = {
    "mlm": "`mlm` (ELECTRA's, a quarter as wide, 6 layers)",
    "mlm_small": "`mlm`, an eighth as wide, 1 layer",
    "frozen": "`frozen`, temperature falling",
    "cached": "`cached`, 4 draws of the same model",
    "uniform": "`uniform`",
    "unigram": "`unigram`",
    "unigram_flat": "`unigram`, to the power of 0.5",
    "unigram_longer": "`unigram`, 1.14 times the steps",
    "bigram": "`bigram`",
    "shuffle": "`shuffle`",
    "self": "`self`",
    "neighbor": "`neighbor` (removed since)",
}


def seconds_a_step(result: dict) -> float:
    """Of a run without exits without its fields, some of which a later version may not know."""
    timed = result["step_seconds"]
    return studied.seconds_of(result) / result["training"]["steps"] if "exits" in timed else timed["dense"]


def generator_rows(study_name: str, stage: str, columns: dict, suffix: str = "") -> list[list[str]]:
    """A row per generator of a stage: its time per step relative to `mlm`, and `columns` of its results."""
    arms = studied.at_better_rate(study(study_name, stage))
    baseline = studied.find_arm(arms, "mlm")
    rows = []
    for name, title in GENERATORS.items():
        if results := studied.find_arm(arms, name + suffix):
            row = [title, cost(results, baseline, seconds_a_step)]
            rows.append(row + [values(judged(results, *column)) for column in columns.values()])
    return rows


SETS = {"ROC-AUC, easy set": ("held_out_easy", "roc_auc"), "ROC-AUC, hard set": ("held_out_hard", "roc_auc")}


def generators() -> Named:
    plain, exits = (generator_rows("efficiency", "screen", SETS, suffix) for suffix in ("", "_exits"))
    head = ["generator", *(f"{title}{mark}" for title in ("time per step", *SETS) for mark in ("", ", with exits"))]
    body = [
        [row[0], *(cell for pair in zip(row[1:], other[1:], strict=True) for cell in pair)]
        for row, other in zip(plain, exits, strict=True)
    ]
    yield "screen", table(head, *body)

    columns = {**SETS, "BLiMP": ("blimp", "accuracy"), "SST-2": ("sst2", "accuracy"), "STS-B": ("stsb", "pearson")}
    yield "full", table(["generator", "time per step", *columns], *generator_rows("generators", "full", columns))
    yield "repeated", table(["generator", "time per step", *SETS], *generator_rows("generators", "repeated", SETS))
    ratios = [float(exits_row[1]) / float(row[1]) for row, exits_row in zip(plain, exits, strict=True)]
    yield "exits_min", f"{min(ratios):.2f}"
    yield "exits_max", f"{max(ratios):.2f}"
    for stage in ("screen", "full", "repeated"):
        mlm = studied.find_arm(study("generators", stage), "mlm")
        yield f"tokens_{stage}", f"{studied.tokens_of(mlm):.1f}"
    full = studied.at_better_rate(study("generators", "full"))
    mlm, unigram = studied.find_arm(full, "mlm"), studied.find_arm(full, "unigram")
    yield "time", cost(unigram, mlm, seconds_a_step)
    easy = judged(mlm, "held_out_easy", "roc_auc")
    yield "mlm_seeds_apart", f"{max(easy) - min(easy):.2f}"
    for name, results in (("mlm", mlm), ("unigram", unigram)):
        for which in ("easy", "hard"):
            yield f"{name}_{which}", f"{mean(judged(results, f'held_out_{which}', 'roc_auc')):.3f}"
    sst2 = json.loads((RESULTS / "generators" / "sst2-more-seeds.json").read_text("utf-8"))
    for name, results in (("mlm", mlm), ("unigram", unigram)):
        again = [score for run, found in sst2.items() if f"/{name}@" in run for score in found["accuracy"]["scores"]]
        yield f"{name}_sst2", f"{mean(judged(results, 'sst2', 'accuracy') + again):.3f}"
        yield f"{name}_sst2_runs", f"{len(judged(results, 'sst2', 'accuracy') + again)}"


def package() -> Named:
    from modeling_electra_exit import __version__

    yield "version", __version__


NUMBERS = {
    "package": package,
    "speed": speed,
    "exit_steps": exit_steps,
    "quickstart": quickstart,
    "depth": depth,
    "small": small,
    "time_to_quality": time_to_quality,
    "domain_adapt": domain_adapt,
    "inference": inference,
    "own_task": own_task,
    "small_models": small_models,
    "tokenizers": tokenizers,
    "scaling": scaling,
    "faults": faults,
    "exits": exits,
    "generators": generators,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and end with status 1 if a page differs")
    check, differ = parser.parse_args().check, []
    for page in pages():
        text = page.read_text("utf-8")
        if (filled := fill(text, all_numbers())) != text:
            differ.append(page)
            if not check:
                page.write_text(filled, "utf-8")
    print(*(f"{'differs' if check else 'written'}: {page.relative_to(ROOT)}" for page in differ), sep="\n")
    return bool(check and differ)


if __name__ == "__main__":
    raise SystemExit(main())
