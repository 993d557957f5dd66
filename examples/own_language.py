"""A tagger for a language of your own: a tokenizer, a pre-training, a tagger with calibrated exits.

    python examples/own_language.py text.jsonl train.conll runs/mine [USER/REPOSITORY]

text.jsonl   text of the language, some MB: a document a line as {"text": "..."}; or .txt, .csv, .parquet
train.conll  a word and its tag a line, an empty line after each sentence.

What it writes can be pushed: name a repository to do so. Interrupted, the same command continues.
"""

import json
import sys
from pathlib import Path

from electra_exit.main import main as electra_exit


LANGUAGE = "en"  # its ISO 639-1 code, for the model's card
# What differs from the recipe `quickstart`, of two million parameters. `electra-exit pretrain --help` names more.
PRETRAINING = {
    "vocab_size": 8000,  # 16,000 and more for Chinese and Korean
    "lowercase": False,  # capitals tell names
    "max_seq_length": 64,
    "max_steps": 1600,  # ten to fifteen minutes on two CPU cores
}
EXIT_LAYERS = (1, 2)  # after which of the four layers a word may be tagged; the last one always answers
# A small model learns a task faster than ELECTRA's settings let it, all its layers alike.
FINETUNING = {"learning_rate": 1e-3, "layerwise_lr_decay": 1.0, "num_train_epochs": 10, "max_seq_length": 64,
              "exit_policy": "random"}  # fmt: skip
MAX_ACCURACY_DROP = 0.005  # of all words, by exits


def run(command: str, *words, **fields) -> None:
    """A command of `electra-exit`; ends with its status where it fails."""
    flags = [f"--{name}={value}" for name, value in fields.items()]
    if status := electra_exit([command, *map(str, words), *flags]):
        sys.exit(status)


def main(text: str, tagged: str, folder: str, repository: str | None = None) -> Path:
    """Returns the folder of the tagger."""
    pretrained, tagger = Path(folder) / "pretrained", Path(folder) / "tagger"
    run("pretrain", "quickstart", train_files=text, language=LANGUAGE, output_dir=pretrained,
        **PRETRAINING)  # fmt: skip
    run("finetune", pretrained, "--exit_layers", *EXIT_LAYERS, train_file=tagged, output_dir=tagger, **FINETUNING)
    best = tagger / json.loads((tagger / "metrics.json").read_text())["best"]
    # A tenth of the sentences was held out. Words stop at the exit where it is certain enough.
    run("calibrate", best, tagger / "held_out.jsonl", max_accuracy_drop=MAX_ACCURACY_DROP)
    run("card", best)
    if repository:
        run("push", best, repository)
    return best


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    print(f"tag text with: electra-exit score {main(*sys.argv[1:])} FILE")
