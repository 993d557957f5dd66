"""What exits save in time, beside what they save in operations.

    python benchmarks/exits.py [--json FILE] [--models mini electra-small] [--repeats 11]

One process trains a dense model and one with exits, step by step in turn, on made-up ids (the cost of a step does not
depend on what the tokens are). Medians are compared; the spread is that of the single steps.
"""

import argparse
import json
import statistics
import time

import torch

from modeling_electra_exit import ElectraEarlyExitConfig, ElectraEarlyExitForPreTraining
from modeling_electra_exit.trainers.cli import build_config, parse
from modeling_electra_exit.trainers.flops import step_flops


def configurations(name: str) -> list[tuple[str, ElectraEarlyExitConfig, int, int]]:
    """Label, config, batch size and sequence length of the cases of one model."""
    if name == "mini":  # the quickstart's
        fields, data, training, _ = parse(["quickstart"])
        return [("mini", build_config(fields), training.per_device_train_batch_size, data.max_seq_length)]
    small = ElectraEarlyExitConfig(cls_token_id=2, sep_token_id=3)
    return [(name, small, 16, 128), (name, small, 4, 512)]


class Case:
    """One model and its optimizer, ready to step."""

    def __init__(self, config, batch_size, length, bf16, device):
        torch.manual_seed(0)
        self.model = ElectraEarlyExitForPreTraining(config).train().to(device)
        if device == "cpu":
            self.model.set_attn_implementation("eager")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        ids = torch.randint(5, config.vocab_size, (batch_size, length))
        labels = torch.full_like(ids, -100)
        masked = torch.rand(batch_size, length).argsort(1)[:, : round(config.mlm_probability * length)]
        labels.scatter_(1, masked, ids.gather(1, masked))
        self.batch = {"input_ids": ids.scatter(1, masked, 4).to(device), "mlm_labels": labels.to(device)}
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=bf16)
        self.device = device

    def step(self) -> float:
        """Seconds of one optimizer step."""
        start = time.perf_counter()
        with self.autocast:
            loss = self.model(**self.batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def measure(label, config, batch_size, length, bf16, repeats, device) -> list[dict]:
    dense_config = ElectraEarlyExitConfig(**{**config.to_dict(), "exit_policy": "none"})
    cases = {
        variant: Case(each, batch_size, length, bf16, device)
        for variant, each in (("dense", dense_config), ("exits", config))
    }
    samples = {variant: [] for variant in cases}
    for repeat in range(repeats + 2):
        for variant, case in cases.items():
            seconds = case.step()
            if repeat >= 2:  # the first steps allocate
                samples[variant].append(seconds)
    prefix = f"{label}/{length}/{'bf16' if bf16 else 'fp32'}"
    flops = {
        "dense": step_flops(dense_config, batch_size, length, False),
        "exits": step_flops(config, batch_size, length, True),
    }
    records = []
    for variant in cases:
        baseline = f"{prefix}/dense"
        for metric, unit, values in (
            ("step_seconds", "s", {v: statistics.median(samples[v]) for v in samples}),
            (
                "tokens_per_second",
                "tokens/s",
                {v: batch_size * length / statistics.median(samples[v]) for v in samples},
            ),
            ("flops", "FLOPs", {v: flops[v].total for v in flops}),
            ("block_flops", "FLOPs", {v: flops[v].blocks for v in flops}),
        ):
            records.append(
                {
                    "name": f"{prefix}/{variant}",
                    "metric": metric,
                    "value": values[variant],
                    "unit": unit,
                    "baseline": baseline,
                    "ratio": values[variant] / values["dense"],
                    "samples": samples[variant] if metric == "step_seconds" else [],
                }
            )
    return records


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["mini", "electra-small"], default=["mini", "electra-small"])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json", help="write the records to this file")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{device}, {torch.get_num_threads()} threads, exits active in every step (no dense phases)\n")
    print("| case | dense step | with exits | time ratio | FLOPs ratio | FLOPs ratio of the layers |")
    print("|---|---|---|---|---|---|")
    records = []
    for model in args.models:
        for case in configurations(model):
            for precision in args.precisions:
                new = measure(*case, precision == "bf16", args.repeats, device)
                records += new
                table = {(r["name"].rsplit("/", 1)[1], r["metric"]): r for r in new}
                dense, exits = (table[variant, "step_seconds"] for variant in ("dense", "exits"))
                print(
                    f"| {dense['baseline'].removesuffix('/dense')} | {_spread(dense)} | {_spread(exits)} | "
                    f"{exits['ratio']:.2f} | "
                    f"{table['exits', 'flops']['ratio']:.2f} | {table['exits', 'block_flops']['ratio']:.2f} |",
                    flush=True,
                )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(records, file, indent=1)


def _spread(record) -> str:
    """Median and the middle half of the steps, in milliseconds."""
    quartiles = statistics.quantiles(record["samples"], n=4)
    return f"{record['value'] * 1e3:.0f} ms ({quartiles[0] * 1e3:.0f}-{quartiles[2] * 1e3:.0f})"


if __name__ == "__main__":
    main()
