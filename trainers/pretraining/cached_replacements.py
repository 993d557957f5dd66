"""Sampling of replacements in advance: `electra-exit cache-replacements`."""

import json
import logging
import math
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict, Features, Value
from datasets import Sequence as SequenceFeature

from ..data.sequences import checksum, count_tokens, id_dtype
from ..errors import UsageError
from ..generators.base import GeneratorContext, Replacements, StepGenerator
from ..generators.cached import CACHE_REPORT
from ..generators.registry import IN_MODEL, build_generator
from ..runtime.arguments import ElectraEarlyExitTrainingArguments
from .collator import MASK_SHARE
from .run import build_config, prepare_run
from .starting import starting_point


logger = logging.getLogger(__name__)

COLUMN = "replacements"
BATCH = 64
# Generators that depend on the model in training, or whose replacements are already cached.
NOT_BEFOREHAND = (*IN_MODEL, "self", "cached")


def cache_replacements(
    config_fields: dict, data_args, training_args: ElectraEarlyExitTrainingArguments, folder: Path, draws: int
) -> dict:
    """Sample `draws` replacements for every token of a run's text and write them to `folder`.

    Returns:
        As [`write_cache`].

    Raises:
        UsageError: if the generator depends on the model in training, or the text is streamed.
    """
    if (name := build_config(config_fields).generator_type) in NOT_BEFOREHAND:
        raise UsageError(
            f"generator_type {name!r} cannot be sampled in advance; for a trained masked language model, use "
            "`--generator_type frozen --generator_folder FOLDER`"
        )
    if data_args.streaming:
        raise UsageError("replacements can be cached only for stored sequences: omit --streaming")
    config, packed, tokenizer, _ = prepare_run(
        config_fields, data_args, starting_point(config_fields, data_args, training_args)
    )
    context = GeneratorContext(config, packed["train"], tokenizer, training_args)
    generator = build_generator(config, packed["train"], tokenizer, training_args)
    return write_cache(generator, packed, context, draws, folder)


def write_cache(
    generator: Replacements | StepGenerator, packed: DatasetDict, context: GeneratorContext, draws: int, folder: Path
) -> dict:
    """Write one Arrow file per split with the column `replacements`: for each sequence a flat list of `draws` ids per
    token, in the smallest sufficient integer type. A special token is replaced by itself.

    A neural generator must not see the tokens that it predicts. It therefore processes each sequence several times,
    each time with another `mlm_probability` of the tokens masked, until all have been masked.

    Returns:
        The content of `cache.json`: for each split the numbers of sequences, tokens, seconds, bytes and FLOPs, the
        share of replacements that equal the original, and a checksum of the sequences.
    """
    folder.mkdir(parents=True)
    features = Features({COLUMN: SequenceFeature(Value(id_dtype(context.config.vocab_size)))})
    report = {"generator_type": context.config.generator_type, "draws": draws, "splits": {}}
    with torch.random.fork_rng():
        torch.manual_seed(context.args.mask_seed)
        for split, sequences in packed.items():
            path, start = folder / f"{split}.arrow", time.perf_counter()
            equal = total = 0

            def sample(batch):
                nonlocal equal, total
                rows = [np.asarray(row, dtype=np.int64) for row in batch["input_ids"]]
                tables = sample_rows(generator, rows, context, draws, batch.get("token_type_ids"))
                ordinary = [~np.isin(row, context.tokenizer.all_special_ids) for row in rows]
                equal += sum(int((t == r[:, None])[o].sum()) for t, r, o in zip(tables, rows, ordinary, strict=True))
                total += draws * sum(int(o.sum()) for o in ordinary)
                return {COLUMN: [table.ravel() for table in tables]}

            sequences.map(
                sample, batched=True, batch_size=BATCH, remove_columns=sequences.column_names, features=features,
                cache_file_name=str(path), load_from_cache_file=False, desc=f"sampling {split}",
                new_fingerprint=f"{checksum(sequences):08x}",  # the default would hash all weights
            )  # fmt: skip
            report["splits"][split] = {
                "sequences": len(sequences),
                "tokens": count_tokens(sequences),
                "seconds": round(time.perf_counter() - start, 1),
                "bytes": path.stat().st_size,
                "flops": generator_flops(generator, sequences, context),
                "equal_rate": equal / max(1, total),
                "checksum": checksum(sequences),
            }
    (folder / CACHE_REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def generator_flops(generator, sequences, context: GeneratorContext) -> float:
    """FLOPs of a neural generator for all sequences, each processed until all its tokens have been masked."""
    if not isinstance(generator, StepGenerator):
        return 0.0
    return _parts(context) * generator.flops(len(sequences), max(map(len, sequences["input_ids"])))


def _parts(context: GeneratorContext) -> int:
    return math.ceil(1 / context.config.mlm_probability)


def sample_rows(
    generator: Replacements | StepGenerator,
    rows: list[np.ndarray],
    context: GeneratorContext,
    draws: int,
    types: list[list[int]] | None = None,
) -> list[np.ndarray]:
    """Sample replacements for sequences.

    Args:
        generator: the generator.
        rows: sequences, each of shape `(tokens,)`, int64.
        context: the context of the generator.
        draws: replacements per token.
        types (*optional*): token types of the sequences.

    Returns:
        Replacements of each sequence, of shape `(tokens, draws)`, int64.
    """
    tables = [np.repeat(row[:, None], draws, axis=1) for row in rows]
    chances = [np.random.default_rng((context.args.mask_seed, zlib.crc32(row.tobytes()))) for row in rows]
    parts = _parts(context)
    split = [
        np.array_split(chance.permutation(np.flatnonzero(~np.isin(row, context.tokenizer.all_special_ids))), parts)
        for row, chance in zip(rows, chances, strict=True)
    ]
    for part in range(parts):
        positions = [np.sort(places[part]) for places in split]
        if isinstance(generator, StepGenerator):
            drawn = _sample_in_step(generator, rows, positions, chances, context, draws, types)
        else:
            drawn = [
                np.stack([generator(row, places, chance) for _ in range(draws)], axis=1)
                for row, places, chance in zip(rows, positions, chances, strict=True)
            ]
        for table, places, replacements in zip(tables, positions, drawn, strict=True):
            table[places] = replacements
    return tables


def _sample_in_step(generator, rows, positions, chances, context, draws, types) -> list[np.ndarray]:
    """`draws` replacements for the `positions` of each row, which are all masked in one pass."""
    length = max(map(len, rows))
    input_ids = np.full((len(rows), length), context.tokenizer.pad_token_id)
    mlm_labels, token_type_ids = np.full_like(input_ids, -100), np.zeros_like(input_ids)
    for i, (row, places, chance) in enumerate(zip(rows, positions, chances, strict=True)):
        input_ids[i, : len(row)] = row
        token_type_ids[i, : len(row)] = 0 if types is None else types[i]
        mlm_labels[i, places] = row[places]
        input_ids[i, places[chance.random(len(places)) < MASK_SHARE]] = context.tokenizer.mask_token_id
    attention_mask = np.arange(length) < np.array([[len(row)] for row in rows])
    ids, labels, mask, types = (
        torch.from_numpy(array).to(context.args.device)
        for array in (input_ids, mlm_labels, attention_mask.astype(int), token_type_ids)
    )
    with torch.autocast(context.args.device.type, torch.bfloat16, enabled=context.args.bf16):
        drawn = generator.propose_several(ids, labels, mask, draws, types).cpu().numpy()
    return np.split(drawn, np.cumsum([len(places) for places in positions])[:-1])
