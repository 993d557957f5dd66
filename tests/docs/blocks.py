"""The code blocks of a page, and made-up files for the names in them."""

import csv
import json
import lzma
import random
import re
import shlex
import shutil
from glob import glob
from pathlib import Path
from typing import NamedTuple

import yaml
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
)

from docs.measurements import without_marks
from tests.conftest import WORDS, tiny_model, write_corpus


FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?"
    r"```(?P<language>\w+)(?: title=\"(?P<file>[^\"]+)\")?\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
RUN = ("bash", "python")
# Flags after those of a command, which win.
SIZES = {
    "vocab_size": 60, "max_position_embeddings": 32, "hidden_size": 32, "embedding_size": 16, "intermediate_size": 64,
    "num_attention_heads": 2, "num_hidden_layers": 4, "generator_size": 0.5,
}  # fmt: skip
TUNING = {
    "max_seq_length": 32, "max_steps": 2, "warmup_steps": 1, "per_device_train_batch_size": 4, "disable_tqdm": "true",
    "use_cpu": "true", "report_to": "none",
}  # fmt: skip
TRAINING = {**TUNING, "gradient_accumulation_steps": 1, "logging_steps": 1, "save_steps": 1}
FINETUNING = {**TUNING, "seeds": 42}
FLAGS = {
    "pretrain": {**SIZES, **TRAINING},
    "cache-replacements": {**SIZES, **TRAINING},
    "finetune": FINETUNING,
    "evaluate": FINETUNING,
}


class Block(NamedTuple):
    language: str
    code: str
    file: str | None = None
    reason: str | None = None


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in a language that could be run, in their order."""
    found = (match.groupdict() for match in FENCE.finditer(without_marks(page.read_text("utf-8"))))
    return [Block(**block) for block in found if block["language"] in RUN]


def commands(code: str) -> list[list[str]]:
    """The words of each command of a bash block."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def tiny(arguments: list[str]) -> list[str]:
    """The arguments of `electra-exit`, patterns expanded, and made small, on made-up text where none is named."""
    arguments = [name for word in arguments for name in (sorted(glob(word)) if "*" in word else [word])]
    command, *_ = arguments
    if command in ("pretrain", "cache-replacements") and not {"--train_files", "my_recipe.yaml"} & set(arguments):
        arguments += ["--train_files", "my_text.txt"]
    flags = FLAGS.get(command, {})
    if command == "evaluate" and "--tasks" not in arguments:
        flags = {"use_cpu": "true"}
    elif "--init_from" in arguments:
        flags = TRAINING  # the sizes are those of the model
    if "--train_time" in arguments:
        flags = {**flags, "train_time": "1s"}
    return arguments + [str(word) for name, value in flags.items() for word in (f"--{name}", value)]


def smaller(code: str) -> str:
    """A block of Python with a small model and few steps."""
    sizes = ("num_hidden_layers", "hidden_size", "embedding_size", "intermediate_size", "num_attention_heads")
    config = "".join(f"{name}={SIZES[name]}, " for name in ("vocab_size", *sizes))
    code = code.replace("exit_layers=[4]", "exit_layers=[2]").replace(
        "max_steps=1000, warmup_steps=100", "max_steps=2"
    )
    return code.replace(" = ElectraEarlyExitConfig(", f" = ElectraEarlyExitConfig({config}")


class Page:
    """A folder in which the blocks of one page are run. Files that no block has written before are made up."""

    def __init__(self, folder: Path, checkpoint: Path, classifier: Path):
        self.folder, self.checkpoint, self.classifier = folder, checkpoint, classifier
        self.choose = random.Random(0)
        self.made = set()

    def make_up(self, code: str) -> None:
        """Make each file of [`FILES`] that `code` names, or reads without naming it."""
        code = " ".join([code, *(made for words, made in self.IMPLIED.items() if words in code)])
        for name, make in self.FILES.items():
            if name in code and name not in self.made and not (self.folder / name).exists():
                self.made.add(name)
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                make(self, path)

    @property
    def tokenizer(self):
        return AutoTokenizer.from_pretrained(self.checkpoint)

    def text(self) -> str:
        return " ".join(self.choose.choices(WORDS, k=6))

    def texts(self, path: Path) -> None:
        write_corpus(path)

    def compressed(self, path: Path) -> None:
        write_corpus(path)
        path.write_bytes(lzma.compress(path.read_bytes()))

    def parquet(self, path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(
            pyarrow.table({"text": [". ".join(self.text() for _ in range(5)) for _ in range(40)]}), path
        )

    def labeled(self, path: Path, rows: int = 40) -> None:
        examples = [{"text": self.text(), "label": ("bad", "good")[number % 2]} for number in range(rows)]
        if path.suffix == ".jsonl":
            path.write_text("\n".join(map(json.dumps, examples)))
        else:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, ["text", "label"])
                writer.writeheader()
                writer.writerows(examples)

    def held_out(self, path: Path) -> None:
        self.labeled(path, rows=640)  # a drop of 0.005 takes 600

    def tagged(self, path: Path) -> None:
        sentences = (
            "\n".join(f"{word} {'B-THING' if len(word) > 3 else 'O'}" for word in self.text().split())
            for _ in range(20)
        )
        path.write_text("\n\n".join(sentences) + "\n")

    def sst2(self, path: Path) -> None:
        path.write_text("\n".join(json.dumps({"sentence": self.text(), "label": n % 2}) for n in range(24)))

    def rte(self, path: Path) -> None:
        rows = ({"sentence1": self.text(), "sentence2": self.text(), "label": n % 2} for n in range(24))
        path.write_text("\n".join(map(json.dumps, rows)))

    def blimp(self, path: Path) -> None:
        pairs = ({"sentence_good": self.text(), "sentence_bad": self.text(), "UID": "a"} for _ in range(4))
        path.write_bytes(lzma.compress("\n".join(map(json.dumps, pairs)).encode()))

    def recipe(self, path: Path) -> None:
        self.make_up("my_text.txt")
        path.write_text(yaml.safe_dump({"train_files": ["my_text.txt"], "output_dir": "runs/my_recipe"}))

    def finetuning_recipe(self, path: Path) -> None:
        self.make_up("runs/mine reviews.csv")
        path.write_text(
            yaml.safe_dump({"model": "runs/mine", "train_file": "reviews.csv", "output_dir": "runs/tuned"})
        )

    def pretrained(self, path: Path) -> None:
        shutil.copytree(self.checkpoint, path)

    def plain(self, path: Path) -> None:
        tiny_model(exit_policy="random", vocab_size=len(self.tokenizer)).save_pretrained(path)
        self.tokenizer.save_pretrained(path)

    def finetuned(self, path: Path) -> None:
        shutil.copytree(self.classifier, path)

    def prepared(self, path: Path) -> None:
        from datasets import Dataset

        Dataset.from_dict({"input_ids": [[2, 5, 6, 3]] * 4}).save_to_disk(path)

    def electra(self, path: Path) -> None:
        config = {"vocab_size": 60, "embedding_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
        kind, size = (ElectraForMaskedLM, 16) if "generator" in path.name else (ElectraForPreTraining, 32)
        kind(ElectraConfig(**config, hidden_size=size, intermediate_size=2 * size)).save_pretrained(path)
        self.tokenizer.save_pretrained(path)

    def bert(self, path: Path) -> None:
        config = BertConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64
        )
        BertForMaskedLM(config).save_pretrained(path)
        self.tokenizer.save_pretrained(path)

    FILES = {
        "my_text.txt": texts,
        "sentences.txt": texts,
        "texts/one.txt": texts,
        "wiki.txt.xz": compressed,
        "my_recipe.yaml": recipe,
        "my_finetuning.yaml": finetuning_recipe,
        "part-1.parquet": parquet,
        "part-2.parquet": parquet,
        "held_out.parquet": parquet,
        "reviews.csv": labeled,
        "new.csv": labeled,
        "test.csv": labeled,
        "held_out.jsonl": held_out,
        "ner/train.conll": tagged,
        "ner/dev.conll": tagged,
        "glue/sst2/train.jsonl": sst2,
        "glue/sst2/validation.jsonl": sst2,
        "glue/rte/train.jsonl": rte,
        "glue/rte/validation.jsonl": rte,
        "blimp.jsonl.xz": blimp,
        "runs/mine": pretrained,
        "runs/quickstart": pretrained,
        "runs/electra-small": plain,
        "runs/reviews/seed-42": finetuned,
        "prepared": prepared,
        # Ids on the Hub are folders here.
        "google/electra-small-discriminator": electra,
        "google/electra-small-generator": electra,
        "bert-base-uncased": bert,
    }
    # What else is read where these words stand.
    IMPLIED = {
        "--train_files texts": "texts/one.txt",
        "part-*.parquet": "part-1.parquet part-2.parquet",
        "--data_dir glue": " ".join(name for name in FILES if "glue" in name),
        "pretrain": "my_text.txt",
        "cache-replacements": "my_text.txt",
    }
