"""Our training step against what people pre-train ELECTRA with today.

    pip install --no-deps electra-pytorch==0.1.2 rtd-gdes==0.1.4.1
    python benchmarks/training_step.py [--json FILE] [--lengths 128 512] [--repeats 3]

ELECTRA-Small with 30,522 entries of vocabulary, as many tokens a step for all, some steps of each in turn. Each turn
is a process of its own, alone: ours makes its process keep memory that is freed, from which others in it would gain,
and others that hold memory meanwhile would slow down those that ask for it anew in every step.

- `hf-loop`: transformers' `ElectraForMaskedLM` with logits at every position, `torch.multinomial` at the masked ones,
  `ElectraForPreTraining` on shared embeddings, `torch.optim.AdamW`; everything at its default.
- `electra-pytorch`: that package's `Electra` around the same two models.
- `rtd-gdes`: that package's own loop. **Another objective**: one DeBERTa is generator and discriminator at once, the
  most likely tokens take the place of samples, every masked position counts as replaced, and embeddings do not learn
  from the discriminator. Its model has the width, depth and vocabulary of ELECTRA-Small's discriminator.
- `dense`, `exits`: ours, without and with exits in every step (a run has dense phases too); `exits.unigram` replaces
  tokens in the data loader and has no generator in the step; `dense.torch-kernels` is `dense` without
  `--cpu_kernels`; `dense.muon` is `dense` with `--optim muon`, whose update costs the same for any number of tokens;
  `dense.compiled` and `exits.compiled` went through `torch.compile`, before their steps are timed (minutes on two
  cores), and are measured only where `--variants` names them.

The share of the peak (MFU) is of the operations that the *objective* needs (for `hf-loop` as for `dense`), over the
fastest product of two 2048 x 2048 matrices measured in the same run, in the same precision, with whichever kernel is
faster.
CPU time of the optimizer is that of all threads; others on the machine do not disturb it.
Peak memory is that of the process while it steps, less what it held before the model was made.
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


# Fields of `ElectraConfig`, and how many times narrower the generator is.
SIZES = {
    # As wide as the recipe `quickstart`, and twice as deep; the generator is half as wide.
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
UNTIMED, TIMED = 3, 3  # steps of a turn; the first ones get their memory from the system
PROCESSES = multiprocessing.get_context("spawn")  # CUDA survives no fork
PEAK_SIZE = 2048  # of the matrices whose product is the peak


class Case(NamedTuple):
    """What the variants are compared at. `tokens` are those of a step."""

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
        """Of the discriminator's config."""
        return SIZES[self.size][0]

    def generator_fields(self) -> dict:
        fields, part = SIZES[self.size]
        narrower = ("hidden_size", "num_attention_heads", "intermediate_size")
        return {name: value // part if name in narrower else value for name, value in fields.items()}

    def our_config(self, **fields) -> ElectraEarlyExitConfig:
        return ElectraEarlyExitConfig(**CONFIG, **self.fields(), generator_size=1 / SIZES[self.size][1], **fields)


def plain_pair(case: Case) -> tuple[ElectraForMaskedLM, ElectraForPreTraining]:
    """Transformers' generator and discriminator, on one set of embeddings."""
    torch.manual_seed(0)
    discriminator = ElectraForPreTraining(ElectraConfig(**case.fields()))
    generator = ElectraForMaskedLM(ElectraConfig(**case.generator_fields()))
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.generator_lm_head.weight = discriminator.electra.embeddings.word_embeddings.weight
    return generator.train().to(device()), discriminator.train().to(device())


class PlainStep:
    """Loss of a subclass, then backward, clipping and AdamW as everyone writes them."""

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
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # its progress bar
            self.step()


def ours(case: Case, kernels: bool = True, compiled: bool = False, muon: bool = False, **fields) -> OurStep:
    step = OurStep(case.our_config(**fields), case.batch_size, case.length, case.bf16, kernels, muon=muon)
    if compiled:
        step.model.compile()
        step()  # compiles: before the steps in turn, and so not counted
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
            print(f"{name} left out: {PACKAGES[name]} is not installed\n")
        else:
            found.append(name)
    return found


def gemm_peak(dtype: torch.dtype) -> float:
    """Operations a second of a product of two matrices, the better of PyTorch's kernel and ours."""
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
    """Operations that the step's objective needs; `None` where that is another objective."""
    if name == "rtd-gdes":
        return None
    config = case.our_config(generator_type="unigram" if name == "exits.unigram" else "mlm")
    return step_flops(config, case.batch_size, case.length, name.startswith("exits")).total


def turn(name: str, case: Case) -> tuple[list[float], list[float], int]:
    """[`take_steps`] in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=PROCESSES) as pool:
        return pool.submit(take_steps, name, case).result()


def take_steps(name: str, case: Case) -> tuple[list[float], list[float], int]:
    """Seconds of some steps of a variant, CPU seconds of the optimizer in them if known, and the most bytes
    that the steps ever held, less what this process held before the model was made."""
    cuda, seconds, updates = device() == "cuda", [], []
    before = torch.cuda.memory_allocated() if cuda else status("VmRSS")
    step = VARIANTS[name](case)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak starts anew
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
    """A figure of this process, in bytes."""
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
    print(f"\n### {case.size}, length {case.length}, {case.precision} ({rate / 1e9:.0f} GFLOP/s at most)\n")
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
    """The command line, with the defaults of the device that it is for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=sizes)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=names)
    parser.add_argument("--tokens", type=int, default=tokens, help="of a step")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each")
    parser.add_argument("--json", help="write the records to this file")
    args = parser.parse_args()
    names = available(list(dict.fromkeys(["hf-loop", *args.variants])))
    print(f"{device()}, {torch.get_num_threads()} threads, {args.tokens:,} tokens a step")
    found = []
    for case in itertools.product(args.sizes, args.lengths, args.precisions, [args.tokens]):
        found += measure(Case(*case), names, args.repeats)
        if args.json:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
