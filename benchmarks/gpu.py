"""All GPU checks and measurements in one command with a time limit.

    python benchmarks/gpu.py --minutes 8 [--folder gpu-results] [--text FILE] [--wheels FOLDER]
    python benchmarks/gpu.py --rehearse              # the same on a CPU at a tiny size, in seconds
    python benchmarks/gpu.py --pack FOLDER           # with network access: wheels for a machine that has only torch

It requires a clone, Python 3.12 and PyTorch 2.11. The folder of `--wheels` provides all other packages. The parts run
one after another, each in a separate process that is ended when its time is over. `FOLDER/gpu.json` is updated after
each part, with a list of records as in the other benchmarks:

- `correctness`: losses and gradients of a step on the GPU and on the CPU, in fp32 and bf16; the tokens kept for equal
  seeds; exits in a batch and for single examples; a resumed and an uninterrupted run; a compiled and an eager step.
  `holds` is 1 or 0.
- `steps`: time, memory, MFU, kernel launches and synchronizations of a training step: a plain loop on Transformers'
  models, our model without exits and with the default exits, and both compiled. The peak for MFU is measured with the
  product of two large matrices in the same process.
- `inference`: a classifier at full depth, with exits that no example takes, and with exits that half of the examples
  reaching them take.
- `training`: the time of whole steps of our Trainer on text, from the data loader to the optimizer, with and without
  `--torch_compile`.
- `quality`: ELECTRA-Small on text for the remaining time, split equally between the published recipe, the recipe
  `electra-small-fast`, and the published one with Muon and with the default exits: held-out ROC-AUC, and the seconds
  to the best ROC-AUC that all reach.
"""

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path


START = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
# Packages that a machine with PyTorch is assumed to have, by prefix.
LEFT_OUT = ("torch", "triton", "nvidia", "cuda", "numpy", "scipy", "pandas", "pyarrow", "scikit-learn", "setuptools")
COMPILED = ("--torch_compile", "true", "--torch_compile_mode", "reduce-overhead")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


@dataclass
class Plan:
    """The sizes of all parts. Cases are in order of importance, in case the time does not suffice for all."""

    sizes: tuple = ("electra-small", "electra-base")
    lengths: tuple = (128, 512)
    precisions: tuple = ("bf16", "tf32")
    tokens: int = 128 * 128
    variants: tuple = ("hf-loop", "dense", "exits", "dense.compiled", "exits.compiled")
    block: int = 10  # steps that are timed together
    blocks: int = 3
    compiler: dict = field(default_factory=lambda: {"mode": "reduce-overhead"})
    batch_sizes: tuple = (1, 8, 32, 64, 256)
    passes: int = 10
    peak_size: int = 8192
    # Shares of the time. Time that a part leaves is added to the later parts.
    shares: dict = field(
        default_factory=lambda: {"correctness": 0.1, "steps": 0.3, "inference": 0.05, "training": 0.2, "quality": 0.35}
    )
    # The runs of `training`.
    trainers: dict = field(
        default_factory=lambda: {
            "dense": ("electra-small",),
            "dense.compiled": ("electra-small", *COMPILED),
            "exits.compiled": ("electra-small", "--exit_policy", "random", *COMPILED),
        }
    )
    turns: int = 10
    # The runs of `quality`, and the flags of all of them.
    arms: dict = field(
        default_factory=lambda: {
            "dense": ("electra-small",),
            "fast": ("electra-small-fast",),
            "muon": ("electra-small", "--optim", "muon"),
            "exits": ("electra-small", "--exit_policy", "random"),
        }
    )
    pretraining: tuple = ("--dataloader_num_workers", "4", "--validation_fraction", "0.01", "--eval_steps", "100",
                          "--logging_steps", "100")  # fmt: skip


REHEARSAL = Plan(
    sizes=("tiny",), lengths=(32,), precisions=("bf16",), tokens=64, block=1, blocks=2, compiler={"backend": "eager"},
    batch_sizes=(1, 4), passes=1, peak_size=128, variants=("hf-loop", "dense", "exits.compiled"), turns=1,
    trainers={
        "dense": ("quickstart",),
        "exits.compiled": ("quickstart", "--exit_policy", "random", "--torch_compile", "true",
                           "--torch_compile_backend", "eager"),
    },
    arms={"dense": ("quickstart",), "exits": ("quickstart", "--exit_policy", "random")},
    pretraining=("--max_seq_length", "32", "--max_position_embeddings", "32", "--vocab_size", "300",
                 "--hidden_size", "32", "--embedding_size", "32", "--intermediate_size", "64", "--eval_steps", "2",
                 "--logging_steps", "2", "--per_device_train_batch_size", "4", "--max_steps", "4",
                 "--corpus_init", "false"),
)  # fmt: skip
TINY = {
    "vocab_size": 120, "embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
    "intermediate_size": 64,
}  # fmt: skip


# ---- Imports on a bare machine ----


def make_importable(wheels: Path | None, scratch: Path) -> None:
    """Make the packages of this clone and of `wheels` importable."""
    if wheels is not None:
        site = scratch / "site"
        names = sorted(str(path) for path in wheels.glob("*.whl"))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*command, "--target", str(site), *names], check=True)
        sys.path.insert(0, str(site))
    if importlib.util.find_spec("modeling_electra_exit") is None:
        # The layout that setuptools would install.
        package = scratch / "clone" / "modeling_electra_exit"
        package.mkdir(parents=True)
        for path in (ROOT / "modeling_electra_exit").iterdir():
            (package / path.name).symlink_to(path)
        for name in ("trainers", "model_cards"):
            (package / name).symlink_to(ROOT / name)
        (scratch / "clone" / "electra_exit").symlink_to(ROOT / "trainers" / "cli")
        sys.path.insert(0, str(scratch / "clone"))
    if wheels is not None or str(scratch / "clone") in sys.path:
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # for the worker processes of torch.compile
    sys.path.append(str(ROOT))  # for `research`


def pack(folder: Path) -> None:
    """Download the wheels that this package requires, except [`LEFT_OUT`], in the versions of `requirements.lock`."""
    from importlib.metadata import PackageNotFoundError, requires

    def canonical(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = {canonical(line.split("==")[0]): line for line in lines if "==" in line}
    needed, waiting, seen = {}, [("electra-early-exit", "")], set()
    while waiting:
        package, extras = waiting.pop()
        if (package, extras) in seen:
            continue
        seen.add((package, extras))
        try:
            wanted = requires(package) or []
        except PackageNotFoundError:
            continue
        for line in wanted:
            _, name, more = re.match(r"(([\w.-]+)\s*(?:\[([\w,-]+)\])?)", line).groups()
            of_extra = re.search(r"extra == ['\"]([\w-]+)", line)
            if (of_extra and of_extra[1] not in extras.split(",")) or canonical(name).startswith(LEFT_OUT):
                continue
            if canonical(name) in locked:
                needed[canonical(name)] = locked[canonical(name)]
                waiting.append((canonical(name), more or ""))
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    options += [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder), *needed.values()],
        check=True,
    )
    megabytes = sum(path.stat().st_size for path in folder.glob("*.whl")) / 2**20
    print(f"{len(needed)} wheels, {megabytes:.0f} MiB, in {folder}: {' '.join(sorted(needed.values()))}")


# ---- Records ----


class Results:
    """The records of one part, written to a file after each addition."""

    def __init__(self, path: Path):
        self.path, self.records = path, []

    def add(self, name: str, metric: str, value: float, unit: str, samples=None, baseline: str | None = None):
        by_name = {(record["name"], record["metric"]): record["value"] for record in self.records}
        before = by_name.get((baseline, metric))
        ratio = value / before if before else None
        record = {"name": name, "metric": metric, "value": value, "unit": unit, "baseline": baseline, "ratio": ratio,
                  "samples": samples or [value]}  # fmt: skip
        self.records.append(record)
        written = self.path.with_suffix(".new")
        written.write_text(json.dumps(self.records, indent=1) + "\n", encoding="utf-8")
        written.replace(self.path)

    def holds(self, name: str, difference: float, limit: float):
        """Record a difference and whether it is at most `limit`."""
        right = difference <= limit  # false for NaN
        self.add(name, "difference", difference, f"at most {limit:g}")
        self.add(name, "holds", float(right), "1 or 0")
        print(f"{'holds' if right else 'DOES NOT HOLD'}: {name}, {difference:.2g} of at most {limit:g}", flush=True)


# ---- The parts ----


def correctness(plan: Plan, results: Results, seconds: float, text: list[str]) -> None:
    for check in (same_step_as_the_cpu, same_tokens_kept, same_alone_as_in_a_batch, same_compiled, same_resumed):
        try:
            check(plan, results)
        except Exception as error:
            traceback.print_exc()
            results.add(f"correctness/{check.__name__}", "holds", 0.0, f"{type(error).__name__}: {error}"[:300])


def small_step(on: str, precision: str = "fp32", compiler: dict | None = None, **fields):
    """The outputs of one training step of a small model without dropout, and its gradients, all on the CPU."""
    import torch

    from modeling_electra_exit import ElectraEarlyExitConfig, ElectraEarlyExitForPreTraining

    torch.manual_seed(0)
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = {"vocab_size": 512, "hidden_size": 64, "embedding_size": 64, "num_hidden_layers": 4, **none}
    config |= {"num_attention_heads": 2, "intermediate_size": 128, "cls_token_id": 2, "sep_token_id": 3}
    model = ElectraEarlyExitForPreTraining(ElectraEarlyExitConfig(**config, **fields)).train().to(on)
    if compiler:
        model.compile(**compiler)
    batch = padded_batch(model.config, 8, 64)
    if model.config.generator_type != "mlm":
        batch["labels"] = (batch.pop("mlm_labels") != -100).long()
    batch = {name: value.to(on) for name, value in batch.items()}
    with torch.autocast(on, torch.bfloat16, enabled=precision == "bf16"):
        outputs = model(**batch)
    outputs.loss.backward()
    gradients = torch.cat([p.grad.float().flatten().cpu() for p in model.parameters() if p.grad is not None])
    return outputs, gradients


def padded_batch(config, rows: int, length: int) -> dict:
    """A batch in the format of the collator in which every other row ends in padding."""
    import torch
    from steps import made_up_batch

    batch = {name: value.cpu() for name, value in made_up_batch(config, rows, length).items()}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][1::2, -length // 4 :] = 0
    batch["mlm_labels"] = batch["mlm_labels"].masked_fill(batch["attention_mask"] == 0, -100)
    hidden = batch["attention_mask"].gather(1, batch["masked_positions"]) == 0
    batch["masked_positions"] = batch["masked_positions"].masked_fill(hidden, -1)
    return batch


def relative(found, expected) -> float:
    found, expected = (tensor.detach().float().cpu() for tensor in (found, expected))
    return float((found - expected).norm() / expected.norm())


def same_step_as_the_cpu(plan: Plan, results: Results) -> None:
    """Compare a step on the GPU with one on the CPU, with equal weights, batch and seeds. The generator's samples use
    the same noise but can differ where rounding decides. Therefore the sampled ids are compared first, and losses and
    gradients are compared on a batch that is already corrupted."""
    from steps import device

    for precision, limit in (("fp32", 1e-3), ("bf16", 5e-2)):
        sampled = [small_step(on, precision, exit_policy="none")[0].corrupted_ids.cpu() for on in ("cpu", device())]
        differing = (sampled[0] != sampled[1]).float().mean()
        results.holds(f"correctness/samples/{precision}", float(differing), 0.001 if precision == "fp32" else 0.02)
        for variant, fields in {"dense": {"exit_policy": "none"}, "exits": {"exit_policy": "random"}}.items():
            (ours, gradients), (cpus, expected) = (
                small_step(on, precision, generator_type="unigram", **fields) for on in (device(), "cpu")
            )
            name = f"correctness/{variant}/{precision}"
            results.holds(f"{name}/loss", relative(ours.loss, cpus.loss), limit / 10)
            results.holds(f"{name}/gradients", relative(gradients, expected), limit)


def same_tokens_kept(plan: Plan, results: Results) -> None:
    from steps import device

    kept = [small_step(on, exit_policy="random")[0].exit_layers.cpu() for on in (device(), "cpu")]
    results.holds("correctness/tokens_kept", float((kept[0] != kept[1]).float().mean()), 0.0)


def same_compiled(plan: Plan, results: Results) -> None:
    from steps import device

    for variant in (name.removesuffix(".compiled") for name in plan.variants if name.endswith(".compiled")):
        policy = {"dense": "none", "exits": "random"}[variant]
        (eager, expected), (compiled, found) = (
            small_step(device(), compiler=compiler, generator_type="unigram", exit_policy=policy)
            for compiler in (None, plan.compiler)
        )
        results.holds(f"correctness/compiled/{variant}/loss", relative(compiled.loss, eager.loss), 1e-4)
        results.holds(f"correctness/compiled/{variant}/gradients", relative(found, expected), 1e-3)


def classifier(size: str, on: str, thresholds: list[float] | None = None):
    """A randomly initialized text classifier whose exits are marked as trained. The large initializer range makes its
    predictions differ between texts."""
    import torch
    import training_step

    from modeling_electra_exit import ElectraEarlyExitConfig
    from modeling_electra_exit.modeling_heads import ElectraEarlyExitForSequenceClassification

    torch.manual_seed(0)
    fields, depth = training_step.SIZES[size][0], training_step.SIZES[size][0].get("num_hidden_layers", 12)
    layers = sorted({max(1, depth // 3), max(2, 2 * depth // 3)})
    config = ElectraEarlyExitConfig(**fields, **training_step.CONFIG, exit_layers=layers, initializer_range=0.2)
    model = ElectraEarlyExitForSequenceClassification(config).eval().to(on)
    for number in range(len(layers)):
        model.exit_heads.mark_trained(number)
    model.config.inference_exit_thresholds = thresholds
    return model


def texts(config, rows: int, length: int, on: str) -> dict:
    """Random ids with different lengths."""
    import torch

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, config.vocab_size, (rows, length), generator=generator)
    ends = torch.randint(length // 2, length + 1, (rows, 1), generator=generator)
    mask = (torch.arange(length) < ends).long()
    return {"input_ids": (ids * mask).to(on), "attention_mask": mask.to(on)}


def median_thresholds(size: str, on: str, length: int) -> list[float]:
    """For each exit, the median confidence, which half of the examples exceed."""
    import torch

    model = classifier(size, on)
    batch = texts(model.config, 64, length, on)
    with torch.inference_mode():
        outputs = model(**batch, labels=torch.zeros(64, dtype=torch.long, device=on))
    return [float(logits.float().softmax(-1).amax(-1).median()) for logits in outputs.exit_logits]


def same_alone_as_in_a_batch(plan: Plan, results: Results) -> None:
    import torch
    from steps import device

    size, length = plan.sizes[0], plan.lengths[0]
    model = classifier(size, device(), median_thresholds(size, device(), length))
    batch = texts(model.config, 16, length, device())
    with torch.inference_mode():
        together = model(**batch)
        alone = [model(**{name: value[i : i + 1] for name, value in batch.items()}) for i in range(16)]
    layers = torch.cat([each.exit_layers for each in alone])
    results.holds("correctness/batched/exit_layers", float((layers != together.exit_layers).float().mean()), 0.0)
    logits = torch.cat([each.logits for each in alone])
    results.holds("correctness/batched/logits", float((logits - together.logits).abs().max()), 1e-2)
    results.add(
        "correctness/batched", "exited", float((layers < model.config.num_hidden_layers).float().mean()), "share"
    )


def same_resumed(plan: Plan, results: Results) -> None:
    """Compare four steps with a run that is resumed after two of them."""
    import torch
    from datasets import Dataset
    from steps import device
    from transformers import BertTokenizer

    from modeling_electra_exit import ElectraEarlyExitConfig, ElectraEarlyExitForPreTraining
    from modeling_electra_exit.trainers import ElectraEarlyExitTrainer, ElectraEarlyExitTrainingArguments

    tokenizer = BertTokenizer().train_new_from_iterator(["the cat runs under a tree"] * 20, 100, show_progress=False)
    ids = torch.randint(5, len(tokenizer), (32, 30), generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([[tokenizer.cls_token_id], [tokenizer.sep_token_id]]).expand(2, 32)
    data = Dataset.from_dict({"input_ids": torch.cat([ends[0][:, None], ids, ends[1][:, None]], dim=1).tolist()})

    def run(folder, resume=None):
        torch.manual_seed(0)
        fields = {**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 32, "generator_size": 0.5}
        model = ElectraEarlyExitForPreTraining(ElectraEarlyExitConfig(**fields))
        args = ElectraEarlyExitTrainingArguments(
            output_dir=str(folder), max_steps=4, per_device_train_batch_size=8, save_steps=2, logging_steps=4,
            learning_rate=1e-3, warmup_steps=0, exit_warmup=0.0, exit_cooldown=0.0, report_to="none",
            disable_tqdm=True, use_cpu=device() == "cpu",
        )  # fmt: skip
        trainer = ElectraEarlyExitTrainer(model, args, train_dataset=data, processing_class=tokenizer)
        trainer.train(resume_from_checkpoint=resume)
        return torch.cat([p.detach().float().flatten().cpu() for p in trainer.model.parameters()])

    with tempfile.TemporaryDirectory() as folder:
        whole = run(f"{folder}/whole")
        resumed = run(f"{folder}/resumed", resume=f"{folder}/whole/checkpoint-2")
    results.holds("correctness/resumed", relative(resumed, whole), 1e-6 if device() == "cpu" else 1e-4)


def steps(plan: Plan, results: Results, seconds: float, text: list[str]) -> None:
    """Measure the cases in order until the time is over."""
    import torch
    import training_step
    from steps import device

    end = time.monotonic() + seconds
    print("\n| case | step | tokens/s | over hf-loop | peak memory | MFU | launches | waits |\n" + "|---" * 8 + "|")
    name = torch.cuda.get_device_name() if device() == "cuda" else "cpu"
    for precision in plan.precisions:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        training_step.PEAK_SIZE = plan.peak_size
        peak = training_step.gemm_peak(torch.bfloat16 if precision == "bf16" else torch.float32)
        results.add(f"{name}/{precision}", "matmul_peak", peak, "FLOP/s")
        cases = [
            (training_step.Case(size, length, precision, plan.tokens), variant)
            for size in plan.sizes
            for length in plan.lengths
            for variant in plan.variants
        ]
        # Compilation takes most of the time: it is measured for the first case, and for the others at the end.
        for case, variant in sorted(cases, key=lambda each: each[1].endswith(".compiled") and each[0] != cases[0][0]):
            if time.monotonic() > end:
                return
            try:
                measure_step(plan, results, case, variant, peak)
            except Exception as error:  # out of memory, or unsupported by the compiler
                failed = f"{case.size}/{case.length}/{precision}/{variant}"
                print(f"| {failed} | {type(error).__name__}: {str(error).splitlines()[0][:80]} |", flush=True)
                results.add(failed, "failed", 1.0, f"{type(error).__name__}: {error}"[:300])


def measure_step(plan: Plan, results: Results, case, variant: str, peak: float) -> None:
    import torch
    import training_step
    from steps import device

    on_cuda, prefix = device() == "cuda", f"{case.size}/{case.length}/{case.precision}"
    if on_cuda:
        torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated() if on_cuda else 0
    step = training_step.VARIANTS[variant.removesuffix(".compiled")](case)
    if variant.endswith(".compiled"):
        step.model.compile(**plan.compiler)
    for _ in range(3):
        step()
    if on_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    samples = []
    for _ in range(plan.blocks):
        start = time.perf_counter()
        for _ in range(plan.block):
            step()
        if on_cuda:
            torch.cuda.synchronize()
        samples.append((time.perf_counter() - start) / plan.block)
    name, baseline, taken = f"{prefix}/{variant}", f"{prefix}/hf-loop", statistics.median(samples)
    needed = training_step.needed_flops(variant, case)
    memory = torch.cuda.max_memory_allocated() - before if on_cuda else 0
    launches, waits = asked_of_the_device(step)
    for metric, value, unit in (
        ("step_seconds", taken, "s"), ("tokens_per_second", case.tokens / taken, "tokens/s"),
        ("peak_bytes", memory, "B"), ("mfu", needed / taken / peak, "share"),
        ("launches", launches, "a step"), ("waits", waits, "a step"),
    ):  # fmt: skip
        results.add(name, metric, value, unit, samples if metric == "step_seconds" else None, baseline)
    ratio = next(r["ratio"] for r in results.records if r["name"] == name and r["metric"] == "tokens_per_second")
    print(
        f"| {name} | {taken * 1e3:.1f} ms | {case.tokens / taken:,.0f} | {ratio or 1:.2f} | "
        f"{memory / 2**20:,.0f} MiB | {needed / taken / peak:.1%} | {launches:,.0f} | {waits:.1f} |",
        flush=True,
    )


def asked_of_the_device(step, count: int = 3) -> tuple[float, float]:
    """Launches of kernels and graphs and host-device synchronizations per step, from the profiler. Zero on a CPU."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return 0.0, 0.0
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for _ in range(count):
            step()
    torch.cuda.synchronize()
    launches = waits = 0
    for event in recorded.key_averages():
        launches += event.count * event.key.startswith(("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch"))
        waits += event.count * event.key.startswith(("cudaStreamSynchronize", "cudaEventSynchronize"))
    return launches / count, waits / count


def inference(plan: Plan, results: Results, seconds: float, text: list[str]) -> None:
    import torch
    from steps import device

    end, size, length = time.monotonic() + seconds, plan.sizes[0], plan.lengths[0]
    thresholds = median_thresholds(size, device(), length)
    variants = {"dense": None, "exits.stay": [1 - 2**-23] * len(thresholds), "exits.half": thresholds}
    models = {name: classifier(size, device(), values) for name, values in variants.items()}
    print("\n| case | examples/s | times dense | layers |\n|---|---|---|---|")
    for batch_size in plan.batch_sizes:
        for name, model in models.items():
            if time.monotonic() > end:
                return
            batch, samples = texts(model.config, batch_size, length, device()), []
            with torch.inference_mode(), torch.autocast(device(), torch.bfloat16):
                for _ in range(plan.passes + 2):
                    start = time.perf_counter()
                    outputs = model(**batch)
                    if device() == "cuda":
                        torch.cuda.synchronize()
                    samples.append(batch_size / (time.perf_counter() - start))
            prefix, speed = f"{size}/{length}/bf16/batch-{batch_size}", statistics.median(samples[2:])
            results.add(f"{prefix}/{name}", "examples_per_second", speed, "examples/s", samples[2:], f"{prefix}/dense")
            depth = model.config.num_hidden_layers
            layers = depth if outputs.exit_layers is None else float(outputs.exit_layers.float().mean())
            results.add(f"{prefix}/{name}", "layers", layers, "layers", None, f"{prefix}/dense")
            ratio = results.records[-2]["ratio"]
            print(f"| {prefix}/{name} | {speed:,.1f} | {ratio or 1:.2f} | {layers:.2f} |", flush=True)


def training(plan: Plan, results: Results, seconds: float, text: list[str]) -> None:
    """Measure the runs in order until the time is over: at full depth, or with exits if a run has any."""
    from electra_exit.parsing import parse
    from modeling_electra_exit.trainers.pretraining.run import build_trainer
    from research.step_timing import first_of_each, steps_of, take_turns

    end = time.monotonic() + seconds
    print("\n| whole step of the Trainer | step |\n|---|---|")
    for name, words in plan.trainers.items():
        if time.monotonic() > end:
            return
        with tempfile.TemporaryDirectory() as folder:
            command = [*words, *plan.pretraining, "--train_files", *text, "--report_to", "none"]
            trainer, *_ = build_trainer(*parse([*command, "--output_dir", folder])[:3])
            first, step = first_of_each(trainer), steps_of(trainer)
            trainer.state.global_step = first.get("exits", first["dense"])
            samples = take_turns({name: step.__next__}, plan.turns)[name]
        results.add(f"training/{name}", "step_seconds", statistics.median(samples), "s", samples, "training/dense")
        print(f"| {name} | {statistics.median(samples) * 1e3:.1f} ms |", flush=True)


def quality(plan: Plan, results: Results, seconds: float, text: list[str]) -> None:
    """Train all arms for the same time each, and find when each reaches the best quality of all."""
    from electra_exit.main import main as command_line

    end, curves = time.monotonic() + seconds, {}
    with tempfile.TemporaryDirectory() as folder:
        # A run of one step first: it trains the tokenizer and packs the text for all, which takes an unknown time.
        command = [*plan.pretraining, "--train_files", *text, "--report_to", "none", "--disable_tqdm", "true"]
        first = ["--max_steps", "1", "--eval_strategy", "no", "--output_dir", f"{folder}/first"]
        if command_line(["pretrain", *next(iter(plan.arms.values())), *command, *first]) != 0:
            results.add("quality/first", "failed", 1.0, "the command failed")
            return
        command += ["--tokenizer_name", f"{folder}/first", "--eval_strategy", "steps", "--warmup_steps", "0.1"]
        each = max(5, int(0.8 * (end - time.monotonic()) / len(plan.arms)))  # the rest is for starting and saving
        if "--max_steps" not in plan.pretraining:
            command += ["--train_time", f"{each}s"]
        for arm, words in plan.arms.items():
            if command_line(["pretrain", *words, *command, "--output_dir", f"{folder}/{arm}"]) != 0:
                results.add(f"quality/{arm}", "failed", 1.0, "the command failed")
                continue
            curves[arm] = add_run(results, arm, Path(folder) / arm)
    if curves and all(curves.values()):
        reached = min(max(roc_auc for _, roc_auc in curve) for curve in curves.values())
        for arm, curve in curves.items():
            at = next(seconds for seconds, roc_auc in curve if roc_auc >= reached)
            results.add(f"quality/{arm}/to-{reached:.4f}", "seconds", at, "s of training")
            print(f"{arm}: {at:.0f} s to a held-out ROC-AUC of {reached:.4f}", flush=True)


def add_run(results: Results, arm: str, folder: Path) -> list[tuple[float, float]]:
    """Record a finished run. Returns its curve: the seconds of its steps so far, and the ROC-AUC after them."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    measured = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    training = measured["training"]
    results.add(f"quality/{arm}", "roc_auc", measured["evaluation"]["roc_auc"], "held out")
    results.add(f"quality/{arm}", "tokens", training["tokens"], "tokens")
    results.add(f"quality/{arm}", "tokens_per_second", training["tokens_per_second"], "tokens/s")
    before, seconds, a_step, curve = 0, 0.0, 0.0, {}
    for log in state["log_history"]:
        if "tokens_per_second" in log:
            a_step = training["tokens_per_step"] / log["tokens_per_second"]
            before, seconds = log["step"], seconds + (log["step"] - before) * a_step
        if "eval_roc_auc" in log:  # twice after the last step
            curve[log["step"]] = (seconds + (log["step"] - before) * a_step, log["eval_roc_auc"])
    for step, (seconds, roc_auc) in curve.items():
        results.add(f"quality/{arm}/step-{step}", "seconds", seconds, "s of training")
        results.add(f"quality/{arm}/step-{step}", "roc_auc", roc_auc, "held out")
    return list(curve.values())


PARTS = {"correctness": correctness, "steps": steps, "inference": inference, "training": training, "quality": quality}


# ---- The clock ----


def run_part(name: str, plan: Plan, folder: Path, seconds: float, text: list[str]) -> None:
    """Run one part; called in a separate process."""
    os.setpgrp()  # so that the processes it starts can be ended with it
    import torch

    torch.set_num_threads(1 if plan is REHEARSAL else min(8, os.cpu_count() or 1))
    PARTS[name](plan, Results(folder / f"{name}.json"), seconds, text)


def collect(folder: Path) -> list[dict]:
    found = []
    for name in PARTS:
        if (path := folder / f"{name}.json").exists():
            found += json.loads(path.read_text(encoding="utf-8"))
    (folder / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def run(plan: Plan, folder: Path, start: float, minutes: float, text: list[str]) -> list[dict]:
    """Run all parts within `minutes` since `start`, ending those that take too long."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        (folder / f"{name}.json").unlink(missing_ok=True)
    end, shares = start + 60 * minutes - 5, dict(plan.shares)
    for name in PARTS:
        left = end - time.monotonic()
        seconds = max(1.0, left * shares[name] / sum(shares.values()))
        del shares[name]
        if name in ("training", "quality") and not text:
            print(f"{name} skipped: give --text")
            continue
        # Fork to avoid repeating the imports. This is safe because this process has not initialized the device.
        process = multiprocessing.get_context("fork").Process(
            target=run_part, args=(name, plan, folder, 0.85 * seconds, text)
        )
        process.start()
        process.join(seconds)
        if process.is_alive():
            print(f"{name} was ended after {seconds:.0f} s", flush=True)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
        elif process.exitcode:
            print(f"{name} failed with exit status {process.exitcode}", flush=True)
        collect(folder)
    return collect(folder)


def imports() -> None:
    """Import the modules that the parts need once, before forking."""
    import training_step

    from modeling_electra_exit import trainers  # noqa: F401

    training_step.SIZES["tiny"] = (TINY, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="time limit (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("gpu-results"), help="gets gpu.json and one file per part")
    parser.add_argument(
        "--text", nargs="+", default=[], help="text for `training` and `quality`, as for --train_files"
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install for this run only")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="download wheels for --wheels to FOLDER, and exit")
    parser.add_argument("--rehearse", action="store_true", help="run on the CPU at a tiny size")
    args = parser.parse_args()
    if args.pack is not None:
        pack(args.pack)
        return 0
    plan, text = (REHEARSAL if args.rehearse else Plan()), args.text
    if args.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Check for CUDA without creating a context, which a process that forks must not have.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import torch

    if not args.rehearse and not torch.cuda.is_available():
        print("benchmarks/gpu.py requires a CUDA device, but this machine has none (--rehearse runs on a CPU)")
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        make_importable(args.wheels, Path(scratch))
        imports()
        if args.rehearse and not text:
            text = [str(Path(scratch) / "text.txt")]
            sentences = [f"The {word} sleeps under a tree. A bird sings near the {word}." for word in "abcdefgh"]
            Path(text[0]).write_text("\n\n".join(" ".join(sentences) for _ in range(40)), encoding="utf-8")
        found = run(plan, args.folder, START if __name__ == "__main__" else time.monotonic(), args.minutes, text)
    wrong = [record["name"] for record in found if record["metric"] == "holds" and not record["value"]]
    done = sorted({record["metric"] for record in found})
    print(f"\n{len(found)} records in {args.folder / 'gpu.json'}: {', '.join(done)}")
    if wrong:
        print(f"does not hold: {', '.join(wrong)}")
    return 1 if wrong or not found else 0


if __name__ == "__main__":
    sys.exit(main())
