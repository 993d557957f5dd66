"""Our training step against what people pre-train ELECTRA with today.

    pip install --no-deps electra-pytorch==0.1.2 rtd-gdes==0.1.4.1
    python benchmarks/training_step.py [--json FILE] [--lengths 128 512] [--repeats 5]

ELECTRA-Small with 30,522 entries of vocabulary, as many tokens a step for all, a step of each in turn in one process:

- `hf-loop`: transformers' `ElectraForMaskedLM` with logits at every position, `torch.multinomial` at the masked ones,
  `ElectraForPreTraining` on shared embeddings, `torch.optim.AdamW`; everything at its default.
- `electra-pytorch`: that package's `Electra` around the same two models.
- `rtd-gdes`: that package's own loop. **Another objective**: one DeBERTa is generator and discriminator at once, the
  most likely tokens take the place of samples, every masked position counts as replaced, and embeddings do not learn
  from the discriminator. Its model has the width, depth and vocabulary of ELECTRA-Small's discriminator.
- `dense`, `exits`: ours, without and with exits in every step (a run has dense phases too); `exits.unigram` replaces
  tokens in the data loader and has no generator in the step; `dense.torch-kernels` is `dense` without
  `--cpu_kernels`.

The share of the peak (MFU) is of the operations that the *objective* needs (for `hf-loop` as for `dense`), over the
fastest product of two 2048 x 2048 matrices measured in the same run, in the same precision, with whichever kernel is
faster.
Peak memory is that of a process of its own, less what it held before the model was made.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import torch
from steps import OurStep, device, interleave, made_up_batch, records, spread, timing_records
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
from modeling_electra_exit.trainers import cpu_kernels
from modeling_electra_exit.trainers.flops import step_flops


TOKENS = 16 * 128
CONFIG = {"cls_token_id": 2, "sep_token_id": 3}


def plain_pair() -> tuple[ElectraForMaskedLM, ElectraForPreTraining]:
    """Transformers' generator and discriminator of ELECTRA-Small, on one set of embeddings."""
    torch.manual_seed(0)
    discriminator = ElectraForPreTraining(ElectraConfig())
    generator = ElectraForMaskedLM(ElectraConfig(hidden_size=64, num_attention_heads=1, intermediate_size=256))
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
    def __init__(self, length: int, bf16: bool):
        self.generator, self.discriminator = plain_pair()
        batch = made_up_batch(self.discriminator.config, TOKENS // length, length)
        super().__init__(nn.ModuleList([self.generator, self.discriminator]), batch, bf16)

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
    def __init__(self, length: int, bf16: bool):
        from electra_pytorch import Electra

        class Logits(nn.Module):
            def __init__(self, model):
                super().__init__()
                self.model = model

            def forward(self, ids):
                return self.model(ids).logits

        generator, discriminator = plain_pair()
        batch = made_up_batch(discriminator.config, TOKENS // length, length)
        ids = torch.where(batch["mlm_labels"] == -100, batch["input_ids"], batch["mlm_labels"])
        model = Electra(Logits(generator), Logits(discriminator), mask_token_id=4, mask_ignore_token_ids=[2, 3])
        super().__init__(model.train(), {"ids": ids}, bf16)

    def loss(self):
        return self.model(self.batch["ids"]).loss


class RtdGdes:
    def __init__(self, length: int, bf16: bool):
        from rtd_gdes.gdes.model import DebertaV3GDES
        from rtd_gdes.gdes.trainer import train_one_epoch

        torch.manual_seed(0)
        small = ElectraConfig()
        config = DebertaV2Config(
            vocab_size=small.vocab_size, hidden_size=small.hidden_size, num_hidden_layers=small.num_hidden_layers,
            num_attention_heads=small.num_attention_heads, intermediate_size=small.intermediate_size,
            relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=256, norm_rel_ebd="layer_norm",
            share_att_key=True,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            DebertaV2ForMaskedLM(config).save_pretrained(folder)
            model = DebertaV3GDES(folder).to(device())
        batch = made_up_batch(config, TOKENS // length, length)
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
            torch.bfloat16 if bf16 else torch.float32,
            torch.amp.GradScaler(device(), enabled=False),
            torch.device(device()),
            1.0,
        )

    def __call__(self):
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # its progress bar
            self.step()


def ours(length: int, bf16: bool, kernels: bool = True, **fields) -> OurStep:
    config = ElectraEarlyExitConfig(**CONFIG, **fields)
    return OurStep(config, TOKENS // length, length, bf16, kernels)


VARIANTS = {
    "hf-loop": HfLoop,
    "electra-pytorch": ElectraPytorch,
    "rtd-gdes": RtdGdes,
    "dense.torch-kernels": lambda *case: ours(*case, kernels=False, exit_policy="none"),
    "dense": lambda *case: ours(*case, exit_policy="none"),
    "exits": ours,
    "exits.unigram": lambda *case: ours(*case, generator_type="unigram"),
}
PACKAGES = {"electra-pytorch": "electra_pytorch", "rtd-gdes": "rtd_gdes"}


def available(names: list[str]) -> list[str]:
    found = []
    for name in names:
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            print(f"{name} left out: it is not installed (the command is at the top of this file)\n")
        else:
            found.append(name)
    return found


def gemm_peak(dtype: torch.dtype) -> float:
    """Operations a second of a 2048 x 2048 product, the better of PyTorch's kernel and ours."""
    left, right = torch.randn(2, 2048, 2048, device=device()).to(dtype)
    seconds = []
    for kernels in (False, True):
        with cpu_kernels.use(kernels and device() == "cpu"):
            for _ in range(8):
                start = time.perf_counter()
                left @ right
                if device() == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds)


def needed_flops(name: str, length: int) -> float | None:
    """Operations that the step's objective needs; `None` where that is another objective."""
    if name == "rtd-gdes":
        return None
    exits = name.startswith("exits")
    config = ElectraEarlyExitConfig(**CONFIG, generator_type="unigram" if name == "exits.unigram" else "mlm")
    return step_flops(config, TOKENS // length, length, exits).total


def peak_bytes(case: list[str]) -> float:
    command = [sys.executable, __file__, "--peak_of", *case]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(name: str, length: int, bf16: bool):
    """In a process of its own: the most memory it ever held, less what it held before the model was made."""
    if device() == "cuda":
        before = torch.cuda.memory_allocated()
    else:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak starts anew
        before = status("VmRSS")
    step = VARIANTS[name](length, bf16)
    for _ in range(3):
        step()
    peak = torch.cuda.max_memory_allocated() if device() == "cuda" else status("VmHWM")
    print(peak - before)


def status(name: str) -> int:
    """A figure of this process, in bytes."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return 1024 * int(re.search(rf"^{name}:\s+(\d+) kB", file.read(), re.MULTILINE)[1])


def measure(length: int, precision: str, names: list[str], repeats: int) -> list[dict]:
    bf16, prefix = precision == "bf16", f"electra-small/{length}/{precision}"
    samples = interleave({name: VARIANTS[name](length, bf16) for name in names}, repeats)
    found = timing_records(prefix, samples, TOKENS, "hf-loop")
    peaks = {name: peak_bytes([name, str(length), precision]) for name in names}
    found += records(prefix, "peak_bytes", "B", peaks, "hf-loop")
    rate = gemm_peak(torch.bfloat16 if bf16 else torch.float32)
    seconds = {r["name"].rsplit("/", 1)[1]: r["value"] for r in found if r["metric"] == "step_seconds"}
    needed = {name: needed_flops(name, length) for name in names}
    shares = {name: flops / seconds[name] / rate for name, flops in needed.items() if flops}
    found += records(prefix, "mfu", "share", shares, "hf-loop")
    print(f"\n### Length {length}, {precision} ({rate / 1e9:.0f} GFLOP/s at most)\n")
    print("| variant | step | tokens/s | over hf-loop | peak memory | over hf-loop | MFU |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        mine = {r["metric"]: r for r in found if r["name"] == f"{prefix}/{name}"}
        speed, memory = mine["tokens_per_second"], mine["peak_bytes"]
        share = f"{mine['mfu']['value']:.0%}" if "mfu" in mine else ""
        print(
            f"| {name} | {spread(samples[name])} | {speed['value']:,.0f} | {speed['ratio']:.2f} | "
            f"{memory['value'] / 2**20:,.0f} MiB | {memory['ratio']:.2f} | {share} |",
            flush=True,
        )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="write the records to this file")
    parser.add_argument("--peak_of", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        name, length, precision = args.peak_of
        print_peak(name, int(length), precision == "bf16")
        return
    names = available(list(dict.fromkeys(["hf-loop", *args.variants])))
    print(f"{device()}, {torch.get_num_threads()} threads, {TOKENS:,} tokens a step")
    found = []
    for length in args.lengths:
        for precision in args.precisions:
            found += measure(length, precision, names, args.repeats)
            if args.json:
                with open(args.json, "w", encoding="utf-8") as file:
                    json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
