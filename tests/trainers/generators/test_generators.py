"""Generators: what they draw, that their labels are true, and that chance repeats where it should and nowhere else."""

import itertools
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import BertTokenizer

from modeling_electra_exit import ElectraEarlyExitForMaskedLM, ElectraEarlyExitForPreTraining, modeling_electra_exit
from modeling_electra_exit.configuration_electra_exit import GENERATOR_TYPES
from modeling_electra_exit.modeling_electra_exit import originals
from modeling_electra_exit.trainers import DataCollatorForReplacedTokenDetection, ElectraEarlyExitTrainingArguments
from modeling_electra_exit.trainers.data.sequences import token_counts
from modeling_electra_exit.trainers.errors import UsageError
from modeling_electra_exit.trainers.generators.base import GeneratorContext, StepGenerator
from modeling_electra_exit.trainers.generators.neural import Frozen, text_keys
from modeling_electra_exit.trainers.generators.registry import GENERATORS, IN_MODEL, build_generator
from modeling_electra_exit.trainers.generators.statistical import Bigram, TokenDistribution, bigram_counts
from modeling_electra_exit.trainers.runtime.flops import step_flops
from tests.conftest import tiny_config, tiny_model


IN_COLLATOR = ["uniform", "unigram", "bigram", "shuffle"]


def corpus_of(tokenizer, rows=40, length=30):
    generator = np.random.default_rng(0)
    # Some tokens are much more frequent than others.
    ids = 5 + np.minimum(generator.geometric(0.1, (rows, length)), len(tokenizer) - 6)
    ids[:, 0], ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    return Dataset.from_dict({"input_ids": ids.tolist()})


def is_drawn_from(drawn, probabilities) -> bool:
    """Whether ids `drawn` are a likely sample of `probabilities`, by chi-square; far beyond p = 0.001."""
    found = np.bincount(drawn, minlength=len(probabilities))
    expected = probabilities / probabilities.sum() * len(drawn)
    if found[expected == 0].any():
        return False
    likely = expected > 5
    chi_square = ((found - expected) ** 2 / np.maximum(expected, 1e-9))[likely].sum()
    degrees = likely.sum() - 1
    return chi_square < degrees + 4.5 * (2 * degrees) ** 0.5


def test_every_name_that_the_config_knows_is_a_generator_and_the_other_way_round():
    assert sorted(GENERATOR_TYPES) == sorted([*IN_MODEL, *GENERATORS])


def test_counts(tokenizer):
    sequences = corpus_of(tokenizer)
    flat = [token for row in sequences["input_ids"] for token in row]
    counts = token_counts(sequences, 120)
    assert [flat.count(token) for token in range(120)] == counts.tolist()


def test_bigram_counts_against_plain_loops(tokenizer):
    sequences, special = corpus_of(tokenizer), set(tokenizer.all_special_ids)
    # One that ends without a special token must not run into the next.
    rows = [*sequences["input_ids"][:10], [7, 8], [9, 7, 8]]
    expected = Counter(pair for row in rows for pair in itertools.pairwise(row) if not special & set(pair))
    counts = bigram_counts(Dataset.from_dict({"input_ids": rows}), 120, tokenizer.all_special_ids).todok()
    assert {tuple(map(int, pair)): int(count) for pair, count in counts.items()} == expected


@pytest.mark.parametrize(("name", "alpha"), [("uniform", 1.0), ("unigram", 1.0), ("unigram", 0.5)])
def test_distributions(tokenizer, name, alpha):
    sequences = corpus_of(tokenizer)
    generator = build_generator(tiny_config(generator_type=name, generator_alpha=alpha), sequences, tokenizer)
    counts = token_counts(sequences, 120).astype(float)
    counts[tokenizer.all_special_ids] = 0
    weights = (counts > 0).astype(float) if name == "uniform" else np.where(counts > 0, counts**alpha, 0)
    drawn = generator(np.zeros(1), np.zeros(60_000), np.random.default_rng(1))
    assert is_drawn_from(drawn, weights)
    assert not is_drawn_from(drawn, np.roll(weights, 1))


@pytest.mark.parametrize("left", [6, 7, 30, "special", "never followed"])
def test_distribution_of_the_bigram(tokenizer, left):
    sequences = corpus_of(tokenizer)
    special = tokenizer.all_special_ids
    left = {"special": special[0], "never followed": 119}.get(left, left)
    context = GeneratorContext(tiny_config(generator_type="bigram"), sequences, tokenizer)
    unigram = context.counts / context.counts.sum()
    pairs = Counter()
    for row in sequences["input_ids"]:
        pairs.update(b for a, b in itertools.pairwise(row) if a == left and not {a, b} & set(special))
    expected = unigram
    if pairs:
        seen = np.array([max(pairs[token] - Bigram.DISCOUNT, 0) for token in range(120)])
        expected = (seen + Bigram.DISCOUNT * len(pairs) * unigram) / sum(pairs.values())
    assert expected.sum() == pytest.approx(1)
    row = np.array([left, 10] * 30_000)
    drawn = Bigram(context)(row, np.arange(1, 60_000, 2), np.random.default_rng(1))
    assert is_drawn_from(drawn, expected)
    assert is_drawn_from(drawn, unigram) == (not pairs)


def test_shuffled_tokens_change_places_and_none_is_lost(tokenizer):
    shuffle = build_generator(tiny_config(generator_type="shuffle"), corpus_of(tokenizer), tokenizer)
    row, positions = np.arange(100, 130), np.array([20, 3, 9, 11, 4])
    moved = Counter()
    for seed in range(2000):
        replacements = shuffle(row, positions, np.random.default_rng(seed))
        assert sorted(replacements) == sorted(row[positions])
        assert not (replacements == row[positions]).any()
        moved[int(replacements[0])] += 1
    assert all(abs(moved[100 + place] - 500) < 4.5 * (2000 * 0.25 * 0.75) ** 0.5 for place in (3, 9, 11, 4))
    assert shuffle(row, positions[:1], np.random.default_rng(0)) == row[20]


def test_no_figure_without_data():
    with pytest.raises(ValueError, match="none can be drawn"):
        TokenDistribution(np.zeros(5))


def test_a_generator_inside_the_model_needs_none_outside(tokenizer):
    for name in IN_MODEL:
        assert build_generator(tiny_config(generator_type=name), corpus_of(tokenizer), tokenizer) is None


def labels_by_plain_loops(rows, batch, special, pad) -> tuple[int, int]:
    """Check every label; returns how many positions were replaced, and how many were chosen."""
    replaced = chosen = 0
    for row, ids, labels, before in zip(
        rows, batch["input_ids"].tolist(), batch["labels"].tolist(), batch["mlm_labels"].tolist(), strict=True
    ):
        for position, now in enumerate(ids):
            if position >= len(row):
                assert (now, labels[position], before[position]) == (pad, 0, -100)
                continue
            assert labels[position] == int(now != row[position])
            if row[position] in special:
                assert now == row[position]
                assert before[position] == -100
            if before[position] == -100:
                assert now == row[position]
            else:
                assert before[position] == row[position]
            replaced += labels[position]
            chosen += before[position] != -100
    return replaced, chosen


@pytest.mark.parametrize("name", IN_COLLATOR)
def test_labels_against_plain_loops(tokenizer, name):
    sequences = corpus_of(tokenizer)
    replacements = build_generator(tiny_config(generator_type=name), sequences, tokenizer)
    collate = DataCollatorForReplacedTokenDetection(tokenizer, 32, seed=3, replacements=replacements)
    batch = collate(list(sequences))
    replaced, chosen = labels_by_plain_loops(
        sequences["input_ids"], batch, set(tokenizer.all_special_ids), tokenizer.pad_token_id
    )
    assert chosen == 4 * 40
    assert chosen / 2 < replaced < chosen  # some draw what was there
    # What a sequence becomes depends on the seed, the epoch and itself alone.
    again = collate(list(sequences.select([7, 3])))
    assert torch.equal(again["input_ids"], batch["input_ids"][[7, 3]])
    collate.set_epoch(1)
    assert not torch.equal(collate(list(sequences))["input_ids"], batch["input_ids"])


@pytest.mark.parametrize("name", IN_COLLATOR)
def test_workers_draw_what_none_would_and_never_repeat_each_other(tokenizer, name):
    sequences = corpus_of(tokenizer, rows=64)
    replacements = build_generator(tiny_config(generator_type=name), sequences, tokenizer)
    collate = DataCollatorForReplacedTokenDetection(tokenizer, 30, replacements=replacements)
    alone, shared = (
        torch.cat([batch["mlm_labels"] for batch in DataLoader(sequences, 8, collate_fn=collate, num_workers=workers)])
        for workers in (0, 2)
    )
    assert torch.equal(alone, shared)
    # Every other batch came from the other worker; were their streams alike, they would choose alike.
    chosen = (shared != -100).view(4, 2, 8, 30)
    assert not (chosen[:, 0] == chosen[:, 1]).all(-1).any()


def test_a_sequence_corrupted_beforehand_is_padded_and_nothing_else(tokenizer):
    collate = DataCollatorForReplacedTokenDetection(tokenizer, 6)
    batch = collate([{"input_ids": [2, 9, 8, 3], "labels": [0, 1, 0, 0]}])
    pad = tokenizer.pad_token_id
    assert batch["input_ids"].tolist() == [[2, 9, 8, 3, pad, pad]]
    assert batch["labels"].tolist() == [[0, 1, 0, 0, 0, 0]]
    assert "mlm_labels" not in batch


# ---- A masked language model trained before ----


def saved_masked_lm(folder, tokenizer, **overrides):
    """One of our checkpoints with its tokenizer; its generator is sure of what it says."""
    model = tiny_model(vocab_size=len(tokenizer), **overrides)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def frozen_context(tokenizer, folder, **arguments):
    args = ElectraEarlyExitTrainingArguments(str(folder / "out"), use_cpu=True, **arguments)
    config = tiny_config(generator_type="frozen", vocab_size=len(tokenizer))
    return GeneratorContext(config, corpus_of(tokenizer), tokenizer, args)


@pytest.mark.parametrize("kind", ["ours", "plain ELECTRA"])
def test_frozen_draws_from_the_model_in_the_folder(tokenizer, tmp_path, kind):
    model = saved_masked_lm(tmp_path, tokenizer, max_position_embeddings=64)
    folder = tmp_path
    if kind != "ours":
        folder = Path(model.to_electra(tmp_path / "plain")["generator"])
        tokenizer.save_pretrained(folder)
    context = frozen_context(tokenizer, tmp_path, generator_folder=str(folder), generator_temperature=[3.0, 0.5])
    batch = DataCollatorForReplacedTokenDetection(tokenizer, 32)(list(context.sequences.select([0])))
    masked = batch["mlm_labels"] != -100
    with torch.no_grad():
        logits = ElectraEarlyExitForMaskedLM.of(model)(batch["input_ids"], batch["attention_mask"]).logits[masked]
    generator = Frozen(context)
    torch.manual_seed(0)
    drawn = generator.propose_several(batch["input_ids"], batch["mlm_labels"], batch["attention_mask"], 4000)
    for place in range(int(masked.sum())):
        expected = (logits[place] / 0.5).softmax(-1).numpy().astype(float)
        assert is_drawn_from(drawn[place].numpy(), expected)
    # After a quarter of the steps, a quarter of the fall is over.
    several = {name: value.repeat(3000, 1) for name, value in batch.items()}
    drawn = generator.propose(several["input_ids"], several["mlm_labels"], several["attention_mask"], 0.25)
    expected = (logits[0] / 2.375).softmax(-1).numpy().astype(float)
    assert is_drawn_from(drawn.view(3000, -1)[:, 0].numpy(), expected)


def test_frozen_gives_true_labels_and_never_learns(tokenizer, tmp_path):
    saved_masked_lm(tmp_path, tokenizer)
    context = frozen_context(tokenizer, tmp_path, generator_folder=str(tmp_path))
    generator = Frozen(context)
    batch = generator.corrupt(DataCollatorForReplacedTokenDetection(tokenizer, 32)(list(context.sequences)), 0.0)
    rows, special = context.sequences["input_ids"], set(tokenizer.all_special_ids)
    replaced, chosen = labels_by_plain_loops(rows, batch, special, tokenizer.pad_token_id)
    assert chosen / 2 < replaced <= chosen
    assert not any(parameter.requires_grad for parameter in generator.model._model.parameters())
    assert generator.flops(2, 64) == pytest.approx(step_flops(tiny_config(vocab_size=len(tokenizer)), 2, 64, False,
                                                              training=False).generator, rel=0.01)  # fmt: skip


def test_a_frozen_generator_that_cannot_be_used_is_one_line(tokenizer, tmp_path):
    with pytest.raises(UsageError, match="requires --generator_folder"):
        Frozen(frozen_context(tokenizer, tmp_path))
    with pytest.raises(UsageError, match="cannot load a masked language model from"):
        Frozen(frozen_context(tokenizer, tmp_path, generator_folder=str(tmp_path / "nothing")))
    saved_masked_lm(tmp_path / "a", tokenizer, generator_type="unigram")
    with pytest.raises(UsageError, match=r"cannot load .* `generator_type` of .* must be 'mlm' .*, got 'unigram'"):
        Frozen(frozen_context(tokenizer, tmp_path, generator_folder=str(tmp_path / "a")))
    saved_masked_lm(tmp_path / "b", tokenizer)
    other = BertTokenizer().train_new_from_iterator(["other words"] * 5, 60, show_progress=False)
    with pytest.raises(UsageError, match="must have the same vocabulary"):
        Frozen(frozen_context(other, tmp_path, generator_folder=str(tmp_path / "b")))
    with pytest.raises(ValueError, match="two numbers above 0"):
        frozen_context(tokenizer, tmp_path, generator_temperature=[1.0])


# ---- The discriminator itself ----


def test_self_proposals_serve_the_next_visit_and_unigram_the_first(tokenizer, monkeypatch):
    sequences = corpus_of(tokenizer)
    config = tiny_config(generator_type="self")
    generator = build_generator(config, sequences, tokenizer)
    collate = DataCollatorForReplacedTokenDetection(tokenizer, 32, look_ahead=True)
    batch = collate(list(sequences))
    # What is asked for now are the positions of the next epoch.
    collate.set_epoch(1)
    later = collate(list(sequences.select(range(39, -1, -1))))  # in another order
    assert torch.equal(batch["proposal_mask"], (later["mlm_labels"] != -100).flip(0))

    before = generator.corrupt(batch, 0.0)
    rows, special = sequences["input_ids"], set(tokenizer.all_special_ids)
    replaced, chosen = labels_by_plain_loops(rows, before, special, tokenizer.pad_token_id)
    assert 80 < replaced < chosen == 160
    drawn = before["input_ids"][batch["mlm_labels"] != -100]
    counts = token_counts(sequences, 120).astype(float)
    counts[tokenizer.all_special_ids] = 0
    assert is_drawn_from(drawn.numpy(), counts)

    # The model proposes the id 100 + position for all sequences but the first.
    proposals = torch.where(batch["proposal_mask"], 50 + torch.arange(32), -100)[1:]
    mask = batch["attention_mask"]
    text = originals(batch["input_ids"], batch["mlm_labels"])
    generator.remember(generator.keys(text, mask)[1:], proposals)
    restored = build_generator(config, sequences, tokenizer)
    restored.load_state_dict(generator.state_dict())
    fewer = {**later, "masked_positions": torch.nn.functional.pad(later["masked_positions"], (0, 3), value=-1)}
    for of, on_a_device in itertools.product((generator, restored), (False, True)):
        monkeypatch.setattr(modeling_electra_exit, "in_graph", lambda value=on_a_device: value)
        if on_a_device:
            of.remember(generator.keys(text, mask)[1:], proposals)
        after = of.corrupt(fewer, 0.5)["input_ids"].flip(0)
        assert torch.equal(after[1:][proposals != -100], proposals[proposals != -100])
        assert not torch.equal(after[0][batch["proposal_mask"][0]], 50 + batch["proposal_mask"][0].nonzero().squeeze())
        assert torch.equal(after[~batch["proposal_mask"]], text[~batch["proposal_mask"]])


def test_proposals_for_sequences_of_another_text_are_dropped(tokenizer):
    generator = build_generator(tiny_config(generator_type="self"), corpus_of(tokenizer), tokenizer)
    batch = {"input_ids": torch.full((2, 30), 7), "mlm_labels": torch.full((2, 30), -100)}
    batch["mlm_labels"][:, 2:9] = 8  # more tokens than the collator would choose
    keys = generator.keys(originals(**batch), None)
    assert not torch.isin(keys, generator.known).any()
    generator.remember(keys, batch["mlm_labels"])
    assert generator.state_dict() == {}
    assert (generator.corrupt(batch, 0.0)["input_ids"][:, 2:9] != 8).any()
    generator.remember(generator.known[:2], batch["mlm_labels"])  # as many as the collator would choose
    assert generator.state_dict()["proposals"].tolist() == [[8] * 4] * 2


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("kind", [list, Dataset.from_list, lambda rows: Dataset.from_list(rows).to_iterable_dataset()])
def test_sequences_of_a_padded_text_are_known(tokenizer, left, kind):
    ids, real = torch.randint(5, 100, (6, 20)), torch.arange(20).expand(6, -1) < torch.tensor([[20], [7], [12]] * 2)
    rows = [
        {"input_ids": text.where(mask, 0).tolist(), "attention_mask": mask.long().tolist()}
        for text, mask in (zip(ids, real.flip(1), strict=True) if left else zip(ids, real, strict=True))
    ]
    known, longest = text_keys(kind(rows), multipliers := np.arange(1, 21) * 3**20)
    own = [(np.array(row["input_ids"])[np.array(row["attention_mask"]) == 1] + 1) for row in rows]
    assert known.tolist() == sorted((each * multipliers[: len(each)]).sum() for each in own)
    assert longest == 20


def test_a_text_longer_than_the_model_is_one_line_for_self(tokenizer):
    config = tiny_config(generator_type="self", max_position_embeddings=16)
    with pytest.raises(UsageError, match="at most `max_position_embeddings` tokens, 16, got one of 30"):
        build_generator(config, corpus_of(tokenizer), tokenizer)


def test_sequences_are_told_apart_and_known_again_with_more_padding(tokenizer):
    generator = build_generator(tiny_config(generator_type="self"), corpus_of(tokenizer), tokenizer)
    ids = torch.randint(5, 100, (2000, 20), generator=torch.Generator().manual_seed(0))
    ids[1], ids[3, 7] = ids[0].flip(0), 5  # the same ids in another order, and a row with one id changed
    ids[2], ids[2, 7] = ids[3], 6
    keys = generator.keys(ids, None)
    assert len(set(keys.tolist())) == 2000
    padded = torch.nn.functional.pad(ids, (0, 5), value=tokenizer.pad_token_id)
    assert torch.equal(generator.keys(padded, (torch.arange(25) < 20).long().expand(2000, -1)), keys)


# ---- A user's own ----

USERS_OWN = """
from modeling_electra_exit.trainers.generators import Replacements, StepGenerator

class SameSequence(Replacements):
    def __init__(self, context):
        pass

    def __call__(self, row, positions, generator, **columns):
        return generator.choice(row[1:-1], len(positions))

class NextId(StepGenerator):
    def propose(self, input_ids, mlm_labels, attention_mask, progress, token_type_ids=None):
        return mlm_labels[mlm_labels != -100] + 1

def next_id(context):
    return NextId()
"""


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    (tmp_path / "users_generators.py").write_text(USERS_OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "users_generators"
    sys.modules.pop("users_generators", None)


def test_a_users_generator_in_the_collator(tokenizer, users_module):
    sequences = corpus_of(tokenizer)
    own = build_generator(tiny_config(generator_type=f"{users_module}:SameSequence"), sequences, tokenizer)
    batch = DataCollatorForReplacedTokenDetection(tokenizer, replacements=own)(list(sequences))
    for row, ids in zip(sequences["input_ids"], batch["input_ids"].tolist(), strict=True):
        assert set(ids) <= set(row)
    assert batch["labels"].sum() > 0


def test_a_users_generator_in_the_step(tokenizer, users_module):
    sequences = corpus_of(tokenizer)
    own = build_generator(tiny_config(generator_type=f"{users_module}:next_id"), sequences, tokenizer)
    assert isinstance(own, StepGenerator)
    batch = own.corrupt(DataCollatorForReplacedTokenDetection(tokenizer, 32)(list(sequences)), 0.0)
    replaced, chosen = labels_by_plain_loops(
        sequences["input_ids"], batch, set(tokenizer.all_special_ids), tokenizer.pad_token_id
    )
    assert replaced == chosen == 160


def test_a_checkpoint_of_a_users_generator_loads_where_there_is_none(tmp_path):
    tiny_model(generator_type="nowhere_to_be_found.module:attribute").save_pretrained(tmp_path)
    loaded = ElectraEarlyExitForPreTraining.from_pretrained(tmp_path)
    assert loaded.config.generator_type == "nowhere_to_be_found.module:attribute"


@pytest.mark.parametrize("name", ["nowhere_to_be_found:x", "json:no_such_attribute"])
def test_a_users_generator_that_is_not_there_is_one_line(tokenizer, name):
    with pytest.raises(UsageError, match=rf"^generator_type '{name}': .*; use one of 'mlm', .*`module:attribute`$"):
        build_generator(tiny_config(generator_type=name), corpus_of(tokenizer), tokenizer)
