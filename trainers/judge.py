"""How good is a checkpoint? The same questions for every run of a study, all at full depth."""

import json
import lzma
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_dataset
from scipy.stats import pearsonr
from sklearn.metrics import matthews_corrcoef
from torch.nn import functional as F
from transformers import (
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from . import metrics
from .collator import DataCollatorForReplacedTokenDetection


BATCH = 128


def judge_held_out(folder: Path, sequences: Dataset, collate: DataCollatorForReplacedTokenDetection) -> dict:
    """Replaced-token detection by the checkpoint in `folder` on one fixed corruption of held-out sequences.

    Args:
        sequences (`Dataset`): packed, column `input_ids`; and `labels`, where they are corrupted already.
        collate: corrupts the others, with the same generator and seed for all checkpoints compared.

    Returns:
        What [`metrics.replaced_token_detection`] measures.
    """
    model = _full_depth(AutoModelForPreTraining, folder)
    logits, labels = [], []
    for start in range(0, len(sequences), BATCH):
        batch = collate(list(sequences.select(range(start, min(start + BATCH, len(sequences))))))
        mask = batch.get("attention_mask", torch.ones_like(batch["labels"])).bool()
        with torch.inference_mode():
            answers = model(batch["input_ids"], attention_mask=batch.get("attention_mask")).logits
        logits.append(answers[mask])
        labels.append(batch["labels"][mask])
    metric = metrics.load("replaced_token_detection")
    return metric.compute(predictions=torch.cat(logits).float(), references=torch.cat(labels))


def judge_blimp(folder: Path, path: Path, pairs_per_paradigm: int | None = None) -> dict:
    """BLiMP (Warstadt et al., 2020), zero-shot: in how many minimal pairs does the acceptable sentence get the higher
    log-probability that none of its tokens was replaced?

    Args:
        path (`Path`): JSON Lines, plain or .xz, with `sentence_good`, `sentence_bad` and `UID`.
        pairs_per_paradigm (`int`, *optional*): only the first of each paradigm.

    Returns:
        `accuracy` over all pairs, and `pairs`, their number. Ties count half.
    """
    model, tokenizer = _full_depth(AutoModelForPreTraining, folder), AutoTokenizer.from_pretrained(folder)
    seen, pairs = defaultdict(int), []
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            pair = json.loads(line)
            seen[pair["UID"]] += 1
            if pairs_per_paradigm is None or seen[pair["UID"]] <= pairs_per_paradigm:
                pairs.append((pair["sentence_good"], pair["sentence_bad"]))
    sentences = [sentence for pair in pairs for sentence in pair]
    # By length, so that a batch has little padding.
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    scores = np.zeros(len(sentences))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = tokenizer([sentences[i] for i in chosen], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        scores[chosen] = (F.logsigmoid(-logits.float()) * batch["attention_mask"]).sum(dim=1)
    good, bad = scores[::2], scores[1::2]
    return {"accuracy": float(((good > bad) + 0.5 * (good == bad)).mean()), "pairs": len(pairs)}


@dataclass
class Task:
    """A GLUE task: its columns of text, its number of classes (1 for a regression) and its usual metric."""

    columns: tuple[str, ...]
    num_labels: int
    metric: str


TASKS = {
    "sst2": Task(("sentence",), 2, "accuracy"),
    "cola": Task(("sentence",), 2, "matthews_correlation"),
    "mrpc": Task(("sentence1", "sentence2"), 2, "accuracy"),
    "rte": Task(("sentence1", "sentence2"), 2, "accuracy"),
    "stsb": Task(("sentence1", "sentence2"), 1, "pearson"),
}


def judge_glue(
    folder: Path,
    glue: Path,
    task_name: str,
    epochs: float,
    learning_rate: float = 5e-4,
    max_examples: int | None = None,
    seed: int = 0,
) -> dict:
    """Fine-tune the checkpoint's encoder on a task and return its usual metric on the validation split.

    Args:
        glue (`Path`): holds `<task>/train.jsonl` and `<task>/validation.jsonl` with the columns of `glue` on the Hub.
        max_examples (`int`, *optional*): train on this many examples, drawn with `seed`.
    """
    task, tokenizer = TASKS[task_name], AutoTokenizer.from_pretrained(folder)
    model = _full_depth(AutoModelForSequenceClassification, folder, num_labels=task.num_labels)
    files = {split: str(glue / task_name / f"{split}.jsonl") for split in ("train", "validation")}
    data = load_dataset("json", data_files=files)
    if max_examples is not None and len(data["train"]) > max_examples:
        data["train"] = data["train"].shuffle(seed=seed).select(range(max_examples))
    length = model.config.max_position_embeddings

    def encode(batch):
        return tokenizer(*(batch[column] for column in task.columns), truncation=True, max_length=length)

    data = data.map(encode, batched=True, remove_columns=list(task.columns), desc=f"tokenising {task_name}")
    arguments = TrainingArguments(
        output_dir=str(folder / "fine-tuning"),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=BATCH,
        learning_rate=learning_rate,
        warmup_steps=0.1,
        seed=seed,
        bf16=True,
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        train_sampling_strategy="group_by_length",
        logging_strategy="no",
    )
    trainer = Trainer(
        model,
        arguments,
        DataCollatorWithPadding(tokenizer),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        compute_metrics=lambda prediction: {task.metric: _score(task.metric, *prediction)},
    )
    trainer.train()
    return {task.metric: trainer.evaluate()[f"eval_{task.metric}"], "examples": len(data["train"])}


def _score(metric: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    if metric == "pearson":
        answers = predictions.squeeze(-1)
        # Undefined for a model that gives one answer to everything, which has learned nothing.
        return float(pearsonr(answers, labels)[0]) if np.ptp(answers) and np.ptp(labels) else 0.0
    answers = predictions.argmax(axis=-1)
    return float((answers == labels).mean() if metric == "accuracy" else matthews_corrcoef(labels, answers))


def _full_depth(auto_class, folder: Path, **kwargs):
    model = auto_class.from_pretrained(folder, **kwargs).eval()
    if not torch.accelerator.is_available():
        model.set_attn_implementation("eager")
    return model
