"""Our training step against the loop that people write around transformers' own ELECTRA models.

    python benchmarks/training_step.py [--json FILE] [--batch_size 16] [--length 128] [--repeats 7]

ELECTRA-Small with 30,522 entries of vocabulary, the same batch and objective, step by step in turn in one process.
`hf-loop` is `ElectraForMaskedLM` with logits at every position, `torch.multinomial` over the masked ones,
`ElectraForPreTraining` with shared embeddings, and `torch.optim.AdamW`, all at their defaults.
Peak memory is that of a process of its own for each variant, less what it holds before the first step.
"""

import argparse
import json
import resource
import subprocess
import sys

import torch
from steps import OurStep, device, interleave, made_up_batch, records, spread, timing_records
from torch import nn
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

from modeling_electra_exit import ElectraEarlyExitConfig


class PlainLoop:
    def __init__(self, batch_size: int, length: int, bf16: bool):
        torch.manual_seed(0)
        self.discriminator = ElectraForPreTraining(ElectraConfig()).train().to(device())
        small = ElectraConfig(hidden_size=64, num_attention_heads=1, intermediate_size=256)
        self.generator = ElectraForMaskedLM(small).train().to(device())
        self.generator.electra.embeddings = self.discriminator.electra.embeddings
        self.generator.generator_lm_head.weight = self.discriminator.electra.embeddings.word_embeddings.weight
        models = nn.ModuleList([self.generator, self.discriminator])
        self.parameters = list(models.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, eps=1e-6)
        self.batch = made_up_batch(small, batch_size, length)
        self.autocast = torch.autocast(device(), torch.bfloat16, enabled=bf16)

    def __call__(self):
        ids, labels = self.batch["input_ids"], self.batch["mlm_labels"]
        with self.autocast:
            predicted = self.generator(ids, labels=labels)
            masked = labels != -100
            with torch.no_grad():
                sampled = torch.multinomial(predicted.logits[masked].float().softmax(-1), 1).squeeze(1)
            original = torch.where(masked, labels, ids)
            corrupted = original.masked_scatter(masked, sampled)
            detected = self.discriminator(corrupted, labels=(corrupted != original).long())
            loss = predicted.loss + 50 * detected.loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def build(variant: str, batch_size: int, length: int, bf16: bool):
    if variant == "hf-loop":
        return PlainLoop(batch_size, length, bf16)
    config = ElectraEarlyExitConfig(
        cls_token_id=2, sep_token_id=3, exit_policy="none" if variant == "dense" else "budget"
    )
    return OurStep(config, batch_size, length, bf16)


# name in the records -> (variant, whether in bf16)
VARIANTS = {
    "hf-loop": ("hf-loop", False),
    "hf-loop.bf16": ("hf-loop", True),
    "dense": ("dense", False),
    "dense.bf16": ("dense", True),
    "exits": ("exits", False),
    "exits.bf16": ("exits", True),
}


def peak_bytes(name: str, batch_size: int, length: int) -> int:
    command = [sys.executable, __file__, "--peak_of", name, "--batch_size", str(batch_size), "--length", str(length)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(name: str, batch_size: int, length: int):
    variant, bf16 = VARIANTS[name]
    step = build(variant, batch_size, length, bf16)
    if device() == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for _ in range(3):
        step()
    peak = (
        torch.cuda.max_memory_allocated()
        if device() == "cuda"
        else (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    )
    print(peak - before)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="write the records to this file")
    parser.add_argument("--peak_of", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = (args.batch_size, args.length)
    if args.peak_of:
        print_peak(args.peak_of, *shape)
        return
    samples = interleave({name: build(v, *shape, bf16) for name, (v, bf16) in VARIANTS.items()}, args.repeats)
    peaks = {name: float(peak_bytes(name, *shape)) for name in VARIANTS}
    prefix = f"electra-small/{args.length}"
    found = timing_records(prefix, samples, args.batch_size * args.length, "hf-loop")
    found += records(prefix, "peak_bytes", "B", peaks, "hf-loop")
    ratio = {(r["name"].rsplit("/", 1)[1], r["metric"]): r["ratio"] for r in found}
    print(f"{device()}, {torch.get_num_threads()} threads, batch {args.batch_size} x {args.length}\n")
    print("| variant | step | tokens/s, of hf-loop | peak memory, of hf-loop |")
    print("|---|---|---|---|")
    for name in VARIANTS:
        print(
            f"| {name} | {spread(samples[name])} | {ratio[name, 'tokens_per_second']:.2f} | "
            f"{peaks[name] / 2**20:.0f} MiB ({ratio[name, 'peak_bytes']:.2f}) |"
        )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
