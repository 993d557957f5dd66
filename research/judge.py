"""Evaluate the checkpoints of a study, all in the same way, and at full depth except with a learned routing."""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForPreTraining, AutoTokenizer

from modeling_electra_exit.trainers import metrics
from modeling_electra_exit.trainers.finetuning.arguments import FineTuningArguments, FineTuningDataArguments
from modeling_electra_exit.trainers.finetuning.examples import read_examples
from modeling_electra_exit.trainers.finetuning.run import encode_splits, evaluate, train
from modeling_electra_exit.trainers.finetuning.starting import Start
from modeling_electra_exit.trainers.pretraining.collator import DataCollatorForReplacedTokenDetection
from modeling_electra_exit.trainers.runtime.cpu_kernels import to_best_device

from .resampling import resampled
from .routing import Routing
from .yardstick import measure, probe, read_data


BATCH = 128
# The columns of a corrupted batch that are model inputs.
READ = ("input_ids", "attention_mask", "token_type_ids")


def judge_held_out(
    folder: Path,
    sequences: Dataset,
    collate: DataCollatorForReplacedTokenDetection,
    routing: Routing | None = None,
) -> dict:
    """Evaluate replaced-token detection of a checkpoint on a fixed corruption of held-out sequences.

    Args:
        folder (`Path`): the checkpoint.
        sequences (`Dataset`): packed sequences with `input_ids`, and `labels` if they are already corrupted.
        collate: corrupts the sequences otherwise, with the same generator and seed for all compared checkpoints.
        routing ([`Routing`], *optional*): that with which the checkpoint was trained.

    Returns:
        The metrics of [`metrics.replaced_token_detection`]; the number of `tokens` and `sequences`; and the
        `roc_auc_standard_error` and `average_precision_standard_error` that come from the choice of the sequences.
    """
    model = AutoModelForPreTraining.from_pretrained(folder).eval() if routing is None else routing.load(folder)
    device = to_best_device(model)
    logits, labels = [], []  # of each sequence
    for start in range(0, len(sequences), BATCH):
        batch = collate(list(sequences.select(range(start, min(start + BATCH, len(sequences))))))
        mask = batch.get("attention_mask", torch.ones_like(batch["labels"])).bool()
        with torch.inference_mode():
            answers = model(**{name: batch[name].to(device) for name in READ if name in batch}).logits.cpu()
        for row, kept in enumerate(mask):
            logits.append(answers[row, kept].float())
            labels.append(batch["labels"][row, kept])
    metric = metrics.load("replaced_token_detection")
    found = metric.compute(predictions=torch.cat(logits), references=torch.cat(labels))
    resamples = resampled([of.numpy() for of in logits], [of.numpy() for of in labels])
    errors = {
        f"{name}_standard_error": float(np.nanstd(values))
        for name, values in resamples.items()
        if found[name] is not None
    }
    return {**found, **errors, "tokens": sum(map(len, labels)), "sequences": len(sequences)}


def judge_entities(folder: Path, data: Path, routing: Routing | None = None) -> dict:
    """Probe the checkpoint's frozen encoder for named entities; see [`research.yardstick`].

    Args:
        folder (`Path`): the checkpoint.
        data (`Path`): holds WNUT-17 as `train.jsonl` and `test.jsonl`.
        routing ([`Routing`], *optional*): that with which the checkpoint was trained.

    Returns:
        The result of [`research.yardstick.measure`], with the average precision of each resample of the test
        sentences as `resamples`. They are the same for all checkpoints, so differences have a paired standard error.
    """
    sentences = read_data(data)
    encoder = None if routing is None else routing.load(folder).electra
    found, resamples = measure(probe(str(folder), sentences, encoder), sentences["test"])
    return {**found, "resamples": [round(float(value), 6) for value in resamples]}


def judge_glue(
    folder: Path,
    glue: Path,
    task_name: str,
    epochs: float,
    learning_rate: float = 5e-4,
    max_examples: int | None = None,
    seed: int = 0,
) -> dict:
    """Fine-tune the checkpoint's encoder on a GLUE task, with the same learning rate for all layers.

    Args:
        folder (`Path`): the checkpoint.
        glue (`Path`): holds `<task>/train.jsonl` and `<task>/validation.jsonl` with the columns of `glue` on the Hub.
        task_name (`str`): name of the task.
        epochs (`float`): passes over the training data.
        learning_rate (`float`): peak learning rate.
        max_examples (`int`, *optional*): train on this many examples, sampled with `seed`.
        seed (`int`): seed of the new head, the order of the examples and dropout.

    Returns:
        The task's main metric on the validation split, by name, and the numbers of training and validation examples as
        `examples` and `validation_examples`.
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
    # Fine-tune all arms of a study in the same way, without exit heads.
    plain = {"exit_policy": "none"}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = read_examples(data_args)
    task, start = examples.task, Start(str(folder), examples.task, plain)
    encoded = encode_splits(examples, tokenizer, start.model, data_args)
    trainer = train(start, encoded, task, tokenizer, data_args, args)
    main = task.metrics[0]
    return {
        main: evaluate(trainer, task)[main],
        "examples": len(trainer.train_dataset),
        "validation_examples": len(encoded["validation"]),
    }
