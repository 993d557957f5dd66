"""Train a tagger for your own language: a tokenizer, a pre-trained model, and a tagger with calibrated exits.

    python examples/own_language.py text.jsonl train.conll runs/mine [USER/REPOSITORY]

text.jsonl   a few MB of text, with one document per line as {"text": "..."}; or .txt, .csv, .parquet
train.conll  one word and its tag per line, with an empty line after each sentence

Name a repository to push the result. Repeat the command to continue an interrupted run.
"""

import json
import sys
from pathlib import Path

from electra_exit.main import main as electra_exit


LANGUAGE = "en"  # ISO 639-1 code, for the model card
# Changes to the recipe `quickstart`. `electra-exit pretrain --help` lists more fields.
PRETRAINING = {
    "vocab_size": 8000,  # 16,000 or more for Chinese and Korean
    "lowercase": False,  # capitals help to recognize names
    "max_seq_length": 64,
    "num_hidden_layers": 4,  # two more than the recipe has, which helps a tagger
    "max_steps": 1600,  # five to fifteen minutes on two CPU cores
}
EXIT_LAYERS = (1, 2)  # layers of the four after which a word can exit
# A small model needs a higher learning rate than ELECTRA's settings, the same for all layers.
FINETUNING = {"learning_rate": 1e-3, "layerwise_lr_decay": 1.0, "num_train_epochs": 10, "max_seq_length": 64,
              "exit_policy": "random"}  # fmt: skip
MAX_ACCURACY_DROP = 0.005  # accuracy per word


def run(command: str, *words, **fields) -> None:
    """Run a command of `electra-exit`, and exit with its status if it fails."""
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
    # Calibrate on the tenth of the sentences that was held out.
    run("calibrate", best, tagger / "held_out.jsonl", max_accuracy_drop=MAX_ACCURACY_DROP)
    run("card", best)
    if repository:
        run("push", best, repository)
    return best


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    print(f"tag text with: electra-exit score {main(*sys.argv[1:])} FILE")
