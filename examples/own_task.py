"""Train a classifier with early exits for your own texts, in Python with Transformers.

    python examples/own_task.py MODEL task.csv runs/task [USER/REPOSITORY]

MODEL     pre-trained electra-exit model: folder or Hub id (`from_bert` and `from_electra` load other models)
task.csv  a column TEXT and a column LABEL with any number of label names

`electra-exit finetune MODEL --train_file task.csv` and `electra-exit calibrate` do the same from the command line.
"""

import sys
import time

import torch
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import modeling_electra_exit  # noqa: F401  registers the architecture
from modeling_electra_exit.trainers import calibrate_exits
from modeling_electra_exit.trainers.sharing.hub import push_folder


TEXT, LABEL = "text", "era"
EXIT_LAYERS = [1, 2]  # layers after which a text can exit
MAX_LENGTH = 64  # maximum tokens per text, at most the model's positions
BATCH_SIZE, EPOCHS, LEARNING_RATE = 32, 5, 5e-4
MAX_ACCURACY_DROP = 0.01  # requires at least 300 held-out examples for a bound with 95 % confidence


def main(start: str, file: str, folder: str, repository: str | None = None):
    """Returns the calibrated model."""
    tokenizer = AutoTokenizer.from_pretrained(start)
    rows = load_dataset("csv", data_files=file, split="train").class_encode_column(LABEL)
    names = rows.features[LABEL].names
    rows = rows.map(lambda row: tokenizer(row[TEXT], truncation=True, max_length=MAX_LENGTH), batched=True)
    rows = rows.rename_column(LABEL, "labels").select_columns([*tokenizer.model_input_names, "labels"])
    # Three parts: for training, for calibration, and for evaluation.
    parts = rows.train_test_split(test_size=0.3, seed=0, stratify_by_column="labels")
    held_out = parts["test"].train_test_split(test_size=0.5, seed=0, stratify_by_column="labels")

    model = AutoModelForSequenceClassification.from_pretrained(
        start,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        exit_policy="random",  # any policy but "none" adds a head after each exit layer
        exit_layers=EXIT_LAYERS,
        classifier_pooling="mean",  # early layers put little information into [CLS]
    )
    collate = DataCollatorWithPadding(tokenizer)
    arguments = TrainingArguments(
        folder, num_train_epochs=EPOCHS, learning_rate=LEARNING_RATE, per_device_train_batch_size=BATCH_SIZE,
        warmup_steps=0.1, save_strategy="no", report_to="none",
    )  # fmt: skip
    Trainer(model, arguments, collate, train_dataset=parts["train"]).train()  # also trains all exit heads

    measure("full depth", model, held_out["test"], collate)
    found = calibrate_exits(model, held_out["train"], MAX_ACCURACY_DROP, data_collator=collate)
    print(f"thresholds {found.thresholds} for the exits after layers {found.exit_layers}")
    measure("with exits", model, held_out["test"], collate)

    model.save_pretrained(folder)  # includes thresholds and code
    tokenizer.save_pretrained(folder)
    if repository:
        push_folder(folder, repository)
    return model


def measure(name: str, model, rows, collate) -> None:
    """Print accuracy, throughput and depth on examples that were not used for training or calibration."""
    right, layers, began = 0, 0, time.perf_counter()
    for first in range(0, len(rows), BATCH_SIZE):
        batch = collate(list(rows.select(range(first, min(first + BATCH_SIZE, len(rows)))))).to(model.device)
        with torch.inference_mode():
            outputs = model.eval()(**batch)
        right += (outputs.logits.argmax(-1) == batch["labels"]).sum().item()
        if outputs.exit_layers is not None:  # the model has thresholds
            layers += outputs.exit_layers.sum().item()
        else:
            layers += model.config.num_hidden_layers * len(batch["labels"])
    speed = len(rows) / (time.perf_counter() - began)
    print(f"{name}: accuracy {right / len(rows):.4f}, {speed:.0f} texts/s, {layers / len(rows):.2f} layers per text")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
