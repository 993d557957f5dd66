"""The wall-clock time and the operations that exits save.

    python benchmarks/exits.py [--json FILE] [--models mini electra-small] [--repeats 5]

One process trains three models in turns of a few steps: one without exits, one with exits active, and one with exits
at full depth (as at the start and end of a run). The table shows medians with their interquartile ranges. Models and
exits are those of `eight_layers.yaml` and of the recipe `electra-small`. The last columns are for a whole run on their
schedule, including the full-depth steps.
"""

import argparse
import json
from pathlib import Path

import torch
from steps import OurStep, device, records, spread, timing_records

from electra_exit.parsing import parse
from modeling_electra_exit import ElectraEarlyExitConfig
from modeling_electra_exit.trainers.pretraining.run import build_config
from modeling_electra_exit.trainers.runtime.flops import step_flops
from research.step_timing import take_turns


MINI = Path(__file__).with_name("eight_layers.yaml")


def cases(name: str) -> list[tuple]:
    """The cases of one recipe: label, config, share of the steps with active exits, batch size, sequence length."""
    fields, data, training, _ = parse([str(MINI) if name == "mini" else name])
    config = build_config(fields, cls_token_id=2, sep_token_id=3)
    share = 1 - training.exit_warmup - training.exit_cooldown
    own = (training.per_device_train_batch_size, data.max_seq_length)
    sizes = [own] if name == "mini" else [(16, 128), (4, 512)]
    return [(name, config, share, *size) for size in sizes]


def measure(label, config, share, batch_size, length, bf16, repeats) -> tuple[list[dict], str]:
    """The records of one case, and its row of the table."""
    without = ElectraEarlyExitConfig(**{**config.to_dict(), "exit_policy": "none"})
    configs = {"dense": without, "exits": config, "full-depth": config}
    steps = {v: OurStep(c, batch_size, length, bf16, full_depth=v != "exits") for v, c in configs.items()}
    samples = take_turns(steps, repeats)
    prefix = f"{label}/{length}/{'bf16' if bf16 else 'fp32'}"
    flops = {variant: step_flops(c, batch_size, length, variant == "exits") for variant, c in configs.items()}
    found = timing_records(prefix, samples, batch_size * length, "dense")
    found += records(prefix, "flops", "FLOPs", {v: f.total for v, f in flops.items()}, "dense")
    found += records(prefix, "block_flops", "FLOPs", {v: f.blocks for v, f in flops.items()}, "dense")

    def ratio(metric: str, variant: str) -> float:
        return next(r["ratio"] for r in found if r["name"] == f"{prefix}/{variant}" and r["metric"] == metric)

    def of_a_run(metric: str) -> float:
        return share * ratio(metric, "exits") + (1 - share) * ratio(metric, "full-depth")

    cells = [prefix, *(spread(samples[variant]) for variant in configs)]
    cells += [f"{ratio(metric, 'exits'):.2f}" for metric in ("step_seconds", "block_flops")]
    cells += [f"{of_a_run(metric):.2f}" for metric in ("step_seconds", "flops", "block_flops")]
    return found, f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["mini", "electra-small"], default=["mini", "electra-small"])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=5, help="turns per model")
    parser.add_argument("--json", help="write the records to this file")
    args = parser.parse_args()
    print(f"{device()}, {torch.get_num_threads()} threads\n")
    print(
        "| case | no exits | active exits | full depth | time, active | layer FLOPs, active "
        "| time, run | FLOPs, run | layer FLOPs, run |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    found = []
    for model in args.models:
        for case in cases(model):
            for precision in args.precisions:
                new, line = measure(*case, precision == "bf16", args.repeats)
                found += new
                print(line, flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
