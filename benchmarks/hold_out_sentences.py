"""Split SST-2's training data into whole sentences for calibration and a training set that does not overlap them.

    python benchmarks/hold_out_sentences.py GLUE/sst2 FOLDER [--sentences 1500] [--seed 0]

SST-2's training examples are sentences and phrases from them; its validation examples are sentences. Randomly held-out
examples would mostly be phrases, which are easier and overlap with training examples. Writes
`FOLDER/sst2/train.jsonl`, `FOLDER/sst2/validation.jsonl` and `FOLDER/calibration.jsonl`.
"""

import argparse
import json
import random
import shutil
from collections import defaultdict
from pathlib import Path


def whole_sentences(texts: list[str]) -> tuple[list[int], dict[int, list[int]]]:
    """The indices of texts that are not part of another text, and for each other text, the indices of those that
    contain it."""
    words = [text.split() for text in texts]
    padded = [f" {' '.join(each)} " for each in words]
    starting, sentences, inside = defaultdict(list), [], {}
    for number in sorted(range(len(texts)), key=lambda i: (-len(padded[i]), i)):
        candidates = starting[tuple(words[number][:3])]
        if around := [each for each in candidates if padded[number] in padded[each]]:
            inside[number] = around
            continue
        sentences.append(number)
        for begin in range(len(words[number])):
            for length in (1, 2, 3):
                key = tuple(words[number][begin : begin + length])
                if not starting[key] or starting[key][-1] != number:
                    starting[key].append(number)
    return sentences, inside


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("folder", type=Path, help="output folder")
    parser.add_argument("--sentences", type=int, default=1500, help="sentences to hold out (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the selection (default: %(default)s)")
    args = parser.parse_args()
    lines = (args.task / "train.jsonl").read_text(encoding="utf-8").splitlines()
    sentences, inside = whole_sentences([json.loads(line)["sentence"] for line in lines])
    held_out = set(random.Random(args.seed).sample(sentences, args.sentences))
    seen = held_out | {phrase for phrase, around in inside.items() if held_out & set(around)}
    folder = args.folder / "sst2"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(args.task / "validation.jsonl", folder)
    for path, numbers in (
        (args.folder / "calibration.jsonl", sorted(held_out)),
        (folder / "train.jsonl", [n for n in range(len(lines)) if n not in seen]),
    ):
        path.write_text("".join(f"{lines[number]}\n" for number in numbers), encoding="utf-8")
        print(f"{path}: {len(numbers)} examples")


if __name__ == "__main__":
    main()
