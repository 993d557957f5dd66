"""Compare finished runs by their `metrics.json` and `trainer_state.json`.

    python benchmarks/compare_runs.py FOLDER [FOLDER ...] [--json FILE]

The first folder is the baseline of the ratios. Throughput covers the whole training run, including saving. On a shared
machine it is only a rough comparison, because the runs were not interleaved (`benchmarks/exits.py` interleaves them).
"""

import argparse
import json
from pathlib import Path


# column title, accessor, unit, format
COLUMNS = (
    ("ROC-AUC", lambda m: m["evaluation"]["roc_auc"], "", "{:.4f}"),
    ("average precision", lambda m: m["evaluation"]["average_precision"], "", "{:.4f}"),
    ("recall on replaced", lambda m: m["evaluation"]["recall_on_replaced"], "", "{:.4f}"),
    ("replaced", lambda m: m["evaluation"]["replaced_rate"], "", "{:.4f}"),
    ("discriminator FLOPs", lambda m: m["flops"]["discriminator"], "FLOPs", "{:.3g}"),
    ("all FLOPs", lambda m: m["flops"]["total"], "FLOPs", "{:.3g}"),
    ("tokens/s", lambda m: m["training"]["tokens"] / m["train_runtime"], "tokens/s", "{:,.0f}"),
)


def read(folder: Path) -> dict:
    measured = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    (runtime,) = (entry["train_runtime"] for entry in state["log_history"] if "train_runtime" in entry)
    return {**measured, "train_runtime": runtime}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--json", help="write the records to this file")
    args = parser.parse_args()
    if missing := [str(folder) for folder in args.folders if not (folder / "metrics.json").is_file()]:
        parser.error(f"no finished run in {', '.join(missing)}")
    runs = {folder.name: read(folder) for folder in args.folders}
    baseline = args.folders[0].name
    print("| run | " + " | ".join(title for title, *_ in COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    records = []
    for name, measured in runs.items():
        cells = []
        for title, find, unit, text in COLUMNS:
            value, reference = find(measured), find(runs[baseline])
            cells.append(text.format(value) + (f" ({value / reference:.2f})" if unit else ""))
            records.append(
                {
                    "name": name,
                    "metric": title.lower().replace(" ", "_").replace("/s", "_per_second"),
                    "value": value,
                    "unit": unit,
                    "baseline": baseline,
                    "ratio": value / reference if reference else None,
                    "samples": [value],
                }
            )
        print(f"| {name} | " + " | ".join(cells) + " |")
    if args.json:
        Path(args.json).write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
