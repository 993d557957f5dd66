import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from modeling_electra_exit.trainers import DataCollatorForReplacedTokenDetection
from modeling_electra_exit.trainers.generators.base import Replacements
from modeling_electra_exit.trainers.pretraining import collator as collator_module
from modeling_electra_exit.trainers.pretraining.row_generators import row_generators


def rows(tokenizer, lengths, seed=0):
    choose = np.random.default_rng(seed)
    ordinary = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    return [{"input_ids": [cls, *choose.choice(ordinary, n - 2).tolist(), sep]} for n in lengths]


def test_labels_are_the_originals_of_masked_positions(tokenizer):
    features = rows(tokenizer, [40] * 200)
    batch = DataCollatorForReplacedTokenDetection(tokenizer)(features)
    originals = torch.tensor([f["input_ids"] for f in features])
    chosen = batch["mlm_labels"] != -100
    assert torch.equal(batch["mlm_labels"][chosen], originals[chosen])
    assert torch.equal(batch["input_ids"][~chosen], originals[~chosen])
    assert chosen.sum(1).eq(6).all()  # 15 % of 40
    assert not chosen[:, [0, -1]].any()
    assert "attention_mask" not in batch
    # 85 % become [MASK], 15 % stay, none becomes another token.
    now = batch["input_ids"][chosen]
    is_mask = now == tokenizer.mask_token_id
    assert torch.equal(now[~is_mask], originals[chosen][~is_mask])
    assert abs(is_mask.float().mean() - 0.85) < 4 * (0.85 * 0.15 / chosen.sum()) ** 0.5


def test_every_ordinary_position_is_equally_likely(tokenizer):
    collator = DataCollatorForReplacedTokenDetection(tokenizer)
    batch = collator(rows(tokenizer, [42] * 2000))
    counts = (batch["mlm_labels"] != -100).sum(0)[1:-1].double()
    expected = counts.sum() / 40
    # Drawn without replacement, so the statistic is stochastically below chi-square with 39 degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 72.05  # p = 0.001


def test_padding_is_marked_and_never_masked(tokenizer):
    batch = DataCollatorForReplacedTokenDetection(tokenizer, max_seq_length=50)(rows(tokenizer, [50, 20, 3]))
    assert batch["input_ids"].shape == (3, 50)
    assert batch["attention_mask"].sum(1).tolist() == [50, 20, 3]
    padding = batch["attention_mask"] == 0
    assert (batch["input_ids"][padding] == tokenizer.pad_token_id).all()
    assert (batch["mlm_labels"][padding] == -100).all()
    assert (batch["mlm_labels"] != -100).sum(1).tolist() == [8, 3, 1]  # at least one


class Next(Replacements):
    def __call__(self, row, positions, generator):
        return row[positions] + 1


def padded(tokenizer, row, length, side="right"):
    """As a tokenizer leaves it with `padding="max_length"`."""
    missing = length - len(row["input_ids"])
    fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0, "labels": -100}
    row = {"attention_mask": [1] * len(row["input_ids"]), **row}
    return {
        name: [*values, *[fill[name]] * missing] if side == "right" else [*[fill[name]] * missing, *values]
        for name, values in row.items()
    }


def with_types(features):
    """Two segments of random lengths."""
    choose = np.random.default_rng(1)
    types = [(np.arange(len(f["input_ids"])) >= choose.integers(2, len(f["input_ids"]))) * 1 for f in features]
    return [{**feature, "token_type_ids": each.tolist()} for feature, each in zip(features, types, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("replacements", [None, Next()])
def test_padding_that_rows_come_with_changes_nothing(tokenizer, side, replacements):
    features = with_types(rows(tokenizer, [30, 64, 12]))
    features[0]["input_ids"][10] = tokenizer.sep_token_id  # inside
    collator = DataCollatorForReplacedTokenDetection(tokenizer, 64, replacements=replacements)
    expected = collator(features)
    assert expected["attention_mask"].sum(1).tolist() == [30, 64, 12]
    batch = collator([padded(tokenizer, feature, 80 if side == "right" else 64, side) for feature in features])
    assert batch.keys() == expected.keys()
    for name in expected:
        assert torch.equal(batch[name], expected[name]), name
    # 15 % of the tokens, and not of the tokens and their padding.
    assert (batch["mlm_labels"] != -100).sum(1).tolist() == [4, 10, 2]


def test_padding_without_a_mask_is_refused(tokenizer):
    row = padded(tokenizer, rows(tokenizer, [20])[0], 32)
    del row["attention_mask"]
    with pytest.raises(ValueError, match=r"has padding \(id \d+\) but no `attention_mask`"):
        DataCollatorForReplacedTokenDetection(tokenizer)([row])


def test_text_that_names_the_padding_token_is_no_padding(tokenizer):
    row = [tokenizer.cls_token_id, 9, tokenizer.pad_token_id, 8, tokenizer.sep_token_id]
    batch = DataCollatorForReplacedTokenDetection(tokenizer)([{"input_ids": row}])
    assert "attention_mask" not in batch
    assert batch["mlm_labels"][0, 2] == -100


def test_a_separator_that_also_pads_is_no_padding_without_a_mask(tokenizer):
    class Shared:
        mask_token_id, pad_token_id, sep_token_id, all_special_ids = 4, 3, 3, [2, 3, 4]

    features = [{"input_ids": [2, 9, 8, 7, 3]}, {"input_ids": [2, 9, 3]}]
    batch = DataCollatorForReplacedTokenDetection(Shared())(features)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert not (batch["mlm_labels"] != -100)[:, [0, 4]].any()


def test_token_types_travel_along_and_decide_nothing(tokenizer):
    features = rows(tokenizer, [40, 25])
    typed = with_types(features)
    collator = DataCollatorForReplacedTokenDetection(tokenizer, 48)
    plain, batch = collator(features), collator(typed)
    assert "token_type_ids" not in plain
    types = batch.pop("token_type_ids")
    assert types.dtype == torch.int64
    for row, feature in zip(types.tolist(), typed, strict=True):
        assert row == feature["token_type_ids"] + [0] * (48 - len(feature["token_type_ids"]))
    assert batch.keys() == plain.keys()
    assert all(torch.equal(batch[name], plain[name]) for name in plain)
    corrupted = collator([{**feature, "labels": [0, 1] * (len(feature["input_ids"]) // 2)} for feature in typed[:1]])
    assert torch.equal(corrupted["token_type_ids"], types[:1])


def test_the_label_of_a_text_is_not_one_of_its_tokens(tokenizer):
    features = rows(tokenizer, [20, 30])
    collator = DataCollatorForReplacedTokenDetection(tokenizer)
    expected = collator(features)
    batch = collator(
        [{**feature, "labels": label} for feature, label in zip(features, (1, torch.tensor(0)), strict=True)]
    )
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"labels": [0, 1]}, r"`labels` must have one entry for each of 6 tokens, got \(2,\)"),
        ({"labels": [2, 9, 9, 9, 9, 3]}, r"`labels` must be 0 or 1 for each token, got \[2, 3, 9\]"),
        ({"token_type_ids": [0] * 5}, r"`token_type_ids` must have one entry for each of 6 tokens"),
        ({"attention_mask": [1] * 7}, r"`attention_mask` must have one entry for each of 6 tokens"),
        ({"attention_mask": [0] * 6}, "must have at least one token that is not padding"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tokenizer, columns, message):
    with pytest.raises(ValueError, match=message):
        DataCollatorForReplacedTokenDetection(tokenizer)([{"input_ids": [2, 9, 9, 9, 9, 3], **columns}])


def test_rows_of_different_columns_are_refused(tokenizer):
    first, second = rows(tokenizer, [20, 20])
    with pytest.raises(ValueError, match="must have the same columns"):
        DataCollatorForReplacedTokenDetection(tokenizer)([first, {**second, "token_type_ids": [0] * 20}])


def test_what_a_generator_reads_of_a_padded_row_is_refused(tokenizer):
    class Stored(Replacements):
        columns = ("replacements",)

    row = padded(tokenizer, rows(tokenizer, [20])[0], 32) | {"replacements": [9] * 64}
    with pytest.raises(ValueError, match=r"with the generator.s column replacements must not have padding"):
        DataCollatorForReplacedTokenDetection(tokenizer, replacements=Stored())([row])


def test_a_row_of_special_tokens_has_nothing_to_mask(tokenizer):
    batch = DataCollatorForReplacedTokenDetection(tokenizer)([{"input_ids": [tokenizer.cls_token_id] * 5}])
    assert (batch["mlm_labels"] == -100).all()


def test_masks_depend_on_seed_and_epoch_and_on_nothing_else(tokenizer):
    features = rows(tokenizer, [40] * 8)
    collator = DataCollatorForReplacedTokenDetection(tokenizer, seed=1)
    reference = collator(features)["input_ids"]
    assert torch.equal(collator(features[::-1])["input_ids"].flip(0), reference)
    assert torch.equal(collator(features[3:5])["input_ids"], reference[3:5])
    other_seed = DataCollatorForReplacedTokenDetection(tokenizer, seed=2)
    assert not torch.equal(other_seed(features)["input_ids"], reference)
    collator.set_epoch(1)
    assert not torch.equal(collator(features)["input_ids"], reference)
    collator.set_epoch(0)
    assert torch.equal(collator(features)["input_ids"], reference)


def test_no_two_streams_of_chance_have_one_seed(tokenizer, monkeypatch):
    """Neither two sequences nor two epochs, nor the masks of a sequence and the noise that it meets in the model."""
    states = []
    features = rows(tokenizer, [40] * 4)

    def noting(*entropy):
        for generator in row_generators(*entropy):
            states.append(generator.bit_generator.state["state"]["state"])
            yield generator

    monkeypatch.setattr(collator_module, "row_generators", noting)
    collator, noise = DataCollatorForReplacedTokenDetection(tokenizer, seed=1), []
    for epoch in range(2):
        collator.set_epoch(epoch)
        noise += collator(features)["noise_seeds"].tolist()
    assert len(set(states)) == len(states) == 16
    assert len(set(noise)) == 8
    collator.set_epoch(0)
    assert collator(features[::-1])["noise_seeds"].tolist() == noise[3::-1]


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_workers_give_the_batches_of_none(tokenizer, workers):
    features = rows(tokenizer, [40] * 12)
    collator = DataCollatorForReplacedTokenDetection(tokenizer)
    loader = DataLoader(features, 4, collate_fn=collator, num_workers=workers, persistent_workers=True)
    for epoch in range(2):  # the second epoch reaches workers that were started in the first
        collator.set_epoch(epoch)
        expected = [collator(features[i : i + 4])["input_ids"] for i in range(0, 12, 4)]
        for batch, reference in zip(loader, expected, strict=True):
            assert torch.equal(batch["input_ids"], reference)


def test_a_sequence_that_does_not_fit_is_refused(tokenizer):
    with pytest.raises(ValueError, match="at most `max_seq_length` tokens, 40, got one of 41"):
        DataCollatorForReplacedTokenDetection(tokenizer, max_seq_length=40)(rows(tokenizer, [41]))


def test_a_tokenizer_without_mask_token_is_refused(tokenizer):
    class Maskless:
        mask_token_id, pad_token_id, all_special_ids = None, 0, [0]

    with pytest.raises(ValueError, match="`mask_token`"):
        DataCollatorForReplacedTokenDetection(Maskless())
