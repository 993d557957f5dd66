import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from modeling_electra_exit.trainers import DataCollatorForReplacedTokenDetection


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
    seeds, make = [], np.random.default_rng
    features = rows(tokenizer, [40] * 4)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: seeds.append(seed) or make(seed))
    collator, noise = DataCollatorForReplacedTokenDetection(tokenizer, seed=1), []
    for epoch in range(2):
        collator.set_epoch(epoch)
        noise += collator(features)["noise_seeds"].tolist()
    assert len(set(seeds)) == len(seeds) == 16
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
    with pytest.raises(ValueError, match="41 tokens does not fit `max_seq_length` 40"):
        DataCollatorForReplacedTokenDetection(tokenizer, max_seq_length=40)(rows(tokenizer, [41]))


def test_a_tokenizer_without_mask_token_is_refused(tokenizer):
    class Maskless:
        mask_token_id, pad_token_id, all_special_ids = None, 0, [0]

    with pytest.raises(ValueError, match="`mask_token`"):
        DataCollatorForReplacedTokenDetection(Maskless())
