"""How good is a checkpoint? The same questions for every run of a study, all at full depth."""

from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForPreTraining, AutoTokenizer

from modeling_electra_exit.trainers import metrics
from modeling_electra_exit.trainers.finetuning.arguments import FineTuningArguments, FineTuningDataArguments
from modeling_electra_exit.trainers.finetuning.examples import read_examples
from modeling_electra_exit.trainers.finetuning.run import encode_splits, evaluate, train
from modeling_electra_exit.trainers.finetuning.starting import Start
from modeling_electra_exit.trainers.pretraining.collator import DataCollatorForReplacedTokenDetection
from modeling_electra_exit.trainers.runtime.cpu_kernels import suit_attention


BATCH = 128
# What of a corrupted batch the model reads.
READ = ("input_ids", "attention_mask", "token_type_ids")


def judge_held_out(folder: Path, sequences: Dataset, collate: DataCollatorForReplacedTokenDetection) -> dict:
    """Replaced-token detection by the checkpoint in `folder` on one fixed corruption of held-out sequences.

    Args:
        sequences (`Dataset`): packed, column `input_ids`; and `labels`, where they are corrupted already.
        collate: corrupts the others, with the same generator and seed for all checkpoints compared.

    Returns:
        What [`metrics.replaced_token_detection`] measures.
    """
    model = AutoModelForPreTraining.from_pretrained(folder).eval()
    suit_attention(model, model.device)
    logits, labels = [], []
    for start in range(0, len(sequences), BATCH):
        batch = collate(list(sequences.select(range(start, min(start + BATCH, len(sequences))))))
        mask = batch.get("attention_mask", torch.ones_like(batch["labels"])).bool()
        with torch.inference_mode():
            answers = model(**{name: batch[name] for name in READ if name in batch}).logits
        logits.append(answers[mask])
        labels.append(batch["labels"][mask])
    metric = metrics.load("replaced_token_detection")
    return metric.compute(predictions=torch.cat(logits).float(), references=torch.cat(labels))


def judge_glue(
    folder: Path,
    glue: Path,
    task_name: str,
    epochs: float,
    learning_rate: float = 5e-4,
    max_examples: int | None = None,
    seed: int = 0,
) -> dict:
    """Fine-tune the checkpoint's encoder on a task, all layers alike, and return its usual metric on validation.

    Args:
        glue (`Path`): holds `<task>/train.jsonl` and `<task>/validation.jsonl` with the columns of `glue` on the Hub.
        max_examples (`int`, *optional*): train on this many examples, drawn with `seed`.
    """
    data_args = FineTuningDataArguments(
        str(folder), task=task_name, data_dir=str(glue), max_train_examples=max_examples, both_orders=False
    )
    args = FineTuningArguments(
        output_dir=str(folder / "fine-tuning"),
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        layerwise_lr_decay=1.0,
        weight_decay=0.0,
        adam_epsilon=1e-8,
        adam_bias_correction=True,
        seed=seed,
        bf16="auto",
        report_to=[],
        disable_tqdm=True,
        train_sampling_strategy="group_by_length",
        logging_strategy="no",
    )
    # Without exit heads, whatever the pre-training had: all arms of a study are fine-tuned alike.
    plain = {"exit_policy": "none"}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = read_examples(data_args)
    task, start = examples.task, Start(str(folder), examples.task, plain)
    encoded = encode_splits(examples, tokenizer, start.model, data_args)
    trainer = train(start, encoded, task, tokenizer, data_args, args)
    main = task.metrics[0]
    return {main: evaluate(trainer, task)[main], "examples": len(trainer.train_dataset)}
