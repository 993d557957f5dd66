"""Compare our training step with other implementations of ELECTRA pre-training.

    pip install --no-deps electra-pytorch==0.1.2 rtd-gdes==0.1.4.1
    python benchmarks/training_step.py [--json FILE] [--lengths 128 512] [--repeats 3]

All variants train ELECTRA-Small with a vocabulary of 30,522 on the same number of tokens per step, in alternating
turns of a few steps. Each turn is a separate process that runs alone: our step keeps freed memory in its process,
which would speed up other variants there, and memory held by others would slow down variants that allocate it in each
step.

- `hf-loop`: Transformers' `ElectraForMaskedLM` with logits at every position, `torch.multinomial` at the masked ones,
  `ElectraForPreTraining` on shared embeddings, and `torch.optim.AdamW`, all with default settings.
- `electra-pytorch`: that package's `Electra` around the same two models.
- `rtd-gdes`: that package's own loop, with **another objective**: one DeBERTa is both generator and discriminator, the
  most likely tokens replace samples, every masked position counts as replaced, and the discriminator does not train
  the embeddings. Its model has the width, depth and vocabulary of ELECTRA-Small's discriminator.
- `dense`, `exits`: ours, without exits and with exits active in every step (a run also has dense phases).
- `exits.unigram`: replaces tokens in the data loader and has no generator in the step.
- `dense.torch-kernels`: `dense` without `--cpu_kernels`.
- `dense.muon`: `dense` with `--optim muon`, whose update cost does not depend on the number of tokens.
- `dense.compiled`, `exits.compiled`: with `torch.compile`. Compilation takes minutes on two cores and is not timed.
  They are measured only if `--variants` names them.

MFU is the rate of the operations that the *objective* needs (the same for `hf-loop` and `dense`) divided by the peak:
the fastest product of two 2048 x 2048 matrices measured in the same run and precision, with the faster of the kernels.
The optimizer's CPU time is that of all threads, so other load on the machine hardly affects it. Peak memory is that of
the process during the steps, minus its memory before the model was created.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace
from typing import NamedTuple

import torch
from steps import OurStep, device, made_up_batch, records, spread, timing_records
from torch import nn
from transformers import (
    BatchEncoding,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
)

from modeling_electra_exit import ElectraEarlyExitConfig
from modeling_electra_exit.trainers.runtime import cpu_kernels
from modeling_electra_exit.trainers.runtime.flops import step_flops


# Fields of `ElectraConfig`, and the ratio of the discriminator's width to the generator's.
SIZES = {
    # As wide as the recipe `quickstart` and twice as deep; the generator is half as wide.
    "mini": (
        {
            "vocab_size": 4096,
            "embedding_size": 128,
            "hidden_size": 128,
            "num_hidden_layers": 8,
            "num_attention_heads": 2,
            "intermediate_size": 512,
        },
        2,
    ),
    "electra-small": (
        {"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
        4,
    ),
    "electra-base": (
        {"embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
        3,
    ),
}
CONFIG = {"cls_token_id": 2, "sep_token_id": 3}
UNTIMED, TIMED = 3, 3  # steps per turn; the first ones allocate memory from the system
PROCESSES = multiprocessing.get_context("spawn")  # CUDA does not work after a fork
PEAK_SIZE = 2048  # rows of the square matrices whose product gives the peak


class Case(NamedTuple):
    """A setting in which the variants are compared. `tokens` is the number of tokens per step."""

    size: str = "electra-small"
    length: int = 128
    precision: str = "fp32"
    tokens: int = 16 * 128

    @property
    def bf16(self) -> bool:
        return self.precision == "bf16"

    @property
    def batch_size(self) -> int:
        return self.tokens // self.length

    def fields(self) -> dict:
        """Fields of the discriminator's config."""
        return SIZES[self.size][0]

    def generator_fields(self) -> dict:
        fields, part = SIZES[self.size]
        narrower = ("hidden_size", "num_attention_heads", "intermediate_size")
        return {name: value // part if name in narrower else value for name, value in fields.items()}

    def our_config(self, **fields) -> ElectraEarlyExitConfig:
        return ElectraEarlyExitConfig(**CONFIG, **self.fields(), generator_size=1 / SIZES[self.size][1], **fields)


def plain_pair(case: Case) -> tuple[ElectraForMaskedLM, ElectraForPreTraining]:
    """Transformers' generator and discriminator with shared embeddings."""
    torch.manual_seed(0)
    discriminator = ElectraForPreTraining(ElectraConfig(**case.fields()))
    generator = ElectraForMaskedLM(ElectraConfig(**case.generator_fields()))
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.generator_lm_head.weight = discriminator.electra.embeddings.word_embeddings.weight
    return generator.train().to(device()), discriminator.train().to(device())


class PlainStep:
    """A step with the loss of a subclass and the usual backward pass, gradient clipping and AdamW."""

    def __init__(self, model: nn.Module, batch: dict, bf16: bool):
        self.model, self.batch, self.bf16 = model, batch, bf16
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, eps=1e-6)

    def __call__(self):
        with torch.autocast(device(), torch.bfloat16, enabled=self.bf16):
            loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class HfLoop(PlainStep):
    def __init__(self, case: Case):
        self.generator, self.discriminator = plain_pair(case)
        batch = made_up_batch(self.discriminator.config, case.batch_size, case.length)
        super().__init__(nn.ModuleList([self.generator, self.discriminator]), batch, case.bf16)

    def loss(self):
        ids, labels = self.batch["input_ids"], self.batch["mlm_labels"]
        predicted = self.generator(ids, labels=labels)
        masked = labels != -100
        with torch.no_grad():
            sampled = torch.multinomial(predicted.logits[masked].float().softmax(-1), 1).squeeze(1)
        original = torch.where(masked, labels, ids)
        corrupted = original.masked_scatter(masked, sampled)
        detected = self.discriminator(corrupted, labels=(corrupted != original).long())
        return predicted.loss + 50 * detected.loss


class ElectraPytorch(PlainStep):
    def __init__(self, case: Case):
        from electra_pytorch import Electra

        class Logits(nn.Module):
            def __init__(self, model):
                super().__init__()
                self.model = model

            def forward(self, ids):
                return self.model(ids).logits

        generator, discriminator = plain_pair(case)
        batch = made_up_batch(discriminator.config, case.batch_size, case.length)
        ids = torch.where(batch["mlm_labels"] == -100, batch["input_ids"], batch["mlm_labels"])
        model = Electra(Logits(generator), Logits(discriminator), mask_token_id=4, mask_ignore_token_ids=[2, 3])
        super().__init__(model.train(), {"ids": ids}, case.bf16)

    def loss(self):
        return self.model(self.batch["ids"]).loss


class RtdGdes:
    def __init__(self, case: Case):
        from rtd_gdes.gdes.model import DebertaV3GDES
        from rtd_gdes.gdes.trainer import train_one_epoch

        torch.manual_seed(0)
        plain = ElectraConfig(**case.fields())
        config = DebertaV2Config(
            vocab_size=plain.vocab_size, hidden_size=plain.hidden_size, num_hidden_layers=plain.num_hidden_layers,
            num_attention_heads=plain.num_attention_heads, intermediate_size=plain.intermediate_size,
            relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=256, norm_rel_ebd="layer_norm",
            share_att_key=True,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            DebertaV2ForMaskedLM(config).save_pretrained(folder)
            model = DebertaV3GDES(folder).to(device())
        batch = made_up_batch(config, case.batch_size, case.length)
        ids, labels = batch["input_ids"], batch["mlm_labels"]
        batch = BatchEncoding({"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)})
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.step = lambda: train_one_epoch(
            SimpleNamespace(mask_token_id=4),
            [batch],
            model,
            50.0,
            optimizer,
            torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
            torch.bfloat16 if case.bf16 else torch.float32,
            torch.amp.GradScaler(device(), enabled=False),
            torch.device(device()),
            1.0,
        )

    def __call__(self):
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # hides its progress bar
            self.step()


def ours(case: Case, kernels: bool = True, compiled: bool = False, muon: bool = False, **fields) -> OurStep:
    step = OurStep(case.our_config(**fields), case.batch_size, case.length, case.bf16, kernels, muon=muon)
    if compiled:
        step.model.compile()
        step()  # compiles, so that compilation is not timed
    return step


VARIANTS = {
    "hf-loop": HfLoop,
    "electra-pytorch": ElectraPytorch,
    "rtd-gdes": RtdGdes,
    "dense.torch-kernels": lambda case: ours(case, kernels=False, exit_policy="none"),
    "dense": lambda case: ours(case, exit_policy="none"),
    "dense.compiled": lambda case: ours(case, compiled=True, exit_policy="none"),
    "dense.muon": lambda case: ours(case, muon=True, exit_policy="none"),
    "exits": ours,
    "exits.compiled": lambda case: ours(case, compiled=True),
    "exits.unigram": lambda case: ours(case, generator_type="unigram"),
}
UNCOMPILED = [name for name in VARIANTS if not name.endswith(".compiled")]
PACKAGES = {"electra-pytorch": "electra_pytorch", "rtd-gdes": "rtd_gdes"}


def available(names: list[str]) -> list[str]:
    found = []
    for name in names:
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            print(f"{name} skipped: {PACKAGES[name]} is not installed\n")
        else:
            found.append(name)
    return found


def gemm_peak(dtype: torch.dtype) -> float:
    """Peak FLOP/s of a matrix product, with the faster of PyTorch's kernel and ours."""
    left, right = torch.randn(2, PEAK_SIZE, PEAK_SIZE, device=device()).to(dtype)
    seconds = []
    for kernels in (False, True):
        with cpu_kernels.use(kernels and device() == "cpu"):
            for _ in range(8):
                start = time.perf_counter()
                left @ right
                if device() == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
    return 2 * PEAK_SIZE**3 / min(seconds)


def needed_flops(name: str, case: Case) -> float | None:
    """FLOPs that the step's objective needs; `None` if the objective is not ELECTRA's."""
    if name == "rtd-gdes":
        return None
    config = case.our_config(generator_type="unigram" if name == "exits.unigram" else "mlm")
    return step_flops(config, case.batch_size, case.length, name.startswith("exits")).total


def turn(name: str, case: Case) -> tuple[list[float], list[float], int]:
    """[`take_steps`] in a separate process."""
    with ProcessPoolExecutor(1, mp_context=PROCESSES) as pool:
        return pool.submit(take_steps, name, case).result()


def take_steps(name: str, case: Case) -> tuple[list[float], list[float], int]:
    """Run some steps of a variant.

    Returns:
        The seconds of each step, the CPU seconds of the optimizer in each step (if known), and the peak memory in
        bytes, minus the memory of this process before the model was created.
    """
    cuda, seconds, updates = device() == "cuda", [], []
    before = torch.cuda.memory_allocated() if cuda else status("VmRSS")
    step = VARIANTS[name](case)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak
    for _ in range(UNTIMED + TIMED):
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if (update := getattr(step, "update_seconds", None)) is not None:
            updates.append(update)
    peak = torch.cuda.max_memory_allocated() if cuda else status("VmHWM")
    return seconds[UNTIMED:], updates[UNTIMED:], peak - before


def status(name: str) -> int:
    """A memory figure of this process from /proc, in bytes."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return 1024 * int(re.search(rf"^{name}:\s+(\d+) kB", file.read(), re.MULTILINE)[1])


def measure(case: Case, names: list[str], repeats: int) -> list[dict]:
    prefix = f"{case.size}/{case.length}/{case.precision}"
    samples, updates, peaks = {name: [] for name in names}, {name: [] for name in names}, {}
    for _ in range(repeats):
        for name in names:
            seconds, optimizer, peaks[name] = turn(name, case)
            samples[name] += seconds
            updates[name] += optimizer
    updates = {name: seconds for name, seconds in updates.items() if seconds}
    found = timing_records(prefix, samples, case.tokens, "hf-loop")
    if "dense" in updates:
        medians = {name: statistics.median(seconds) for name, seconds in updates.items()}
        found += records(prefix, "update_seconds", "s", medians, "dense", updates)
    found += records(prefix, "peak_bytes", "B", peaks, "hf-loop")
    rate = gemm_peak(torch.bfloat16 if case.bf16 else torch.float32)
    seconds = {r["name"].rsplit("/", 1)[1]: r["value"] for r in found if r["metric"] == "step_seconds"}
    needed = {name: needed_flops(name, case) for name in names}
    shares = {name: flops / seconds[name] / rate for name, flops in needed.items() if flops}
    found += records(prefix, "mfu", "share", shares, "hf-loop")
    print(f"\n### {case.size}, length {case.length}, {case.precision} (peak {rate / 1e9:.0f} GFLOP/s)\n")
    print("| variant | step | optimizer, CPU time | tokens/s | over hf-loop | peak memory | over hf-loop | MFU |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        mine = {r["metric"]: r for r in found if r["name"] == f"{prefix}/{name}"}
        speed, memory = mine["tokens_per_second"], mine["peak_bytes"]
        share = f"{mine['mfu']['value']:.0%}" if "mfu" in mine else ""
        update = spread(updates[name]) if name in updates else ""
        print(
            f"| {name} | {spread(samples[name])} | {update} | {speed['value']:,.0f} | {speed['ratio']:.2f} | "
            f"{memory['value'] / 2**20:,.0f} MiB | {memory['ratio']:.2f} | {share} |",
            flush=True,
        )
    return found


def main(description: str | None = __doc__, sizes=("electra-small",), tokens: int = Case().tokens, names=UNCOMPILED):
    """The command line. The arguments are its description and defaults, which depend on the device."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=sizes)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=names)
    parser.add_argument("--tokens", type=int, default=tokens, help="tokens per step")
    parser.add_argument("--repeats", type=int, default=3, help="turns per variant")
    parser.add_argument("--json", help="write the records to this file")
    args = parser.parse_args()
    names = available(list(dict.fromkeys(["hf-loop", *args.variants])))
    print(f"{device()}, {torch.get_num_threads()} threads, {args.tokens:,} tokens per step")
    found = []
    for case in itertools.product(args.sizes, args.lengths, args.precisions, [args.tokens]):
        found += measure(Case(*case), names, args.repeats)
        if args.json:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
