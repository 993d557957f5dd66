"""What holds for every input: of the collator, and of configs that nobody would write."""

import numpy as np
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import ElectraConfig

from electra_exit.flags import config_flags
from modeling_electra_exit import ElectraEarlyExitConfig, ElectraEarlyExitForPreTraining
from modeling_electra_exit.trainers.errors import UsageError
from modeling_electra_exit.trainers.generators.statistical import TokenDistribution
from modeling_electra_exit.trainers.pretraining.collator import DataCollatorForReplacedTokenDetection
from modeling_electra_exit.trainers.pretraining.run import build_config


quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPECIAL = [0, 1, 2, 3, 4]


@quick
@given(
    rows=st.lists(st.lists(st.integers(0, 70), min_size=1, max_size=20), min_size=1, max_size=5),
    probability=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    padded=st.booleans(),
    replaces=st.booleans(),
)
def test_a_batch_is_its_sequences_with_some_tokens_hidden(tokenizer, rows, probability, seed, padded, replaces):
    collator = DataCollatorForReplacedTokenDetection(
        tokenizer, 20 if padded else None, probability, seed, TokenDistribution(np.ones(71)) if replaces else None
    )
    # Without a mask, the id of padding at an end would be refused.
    features = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
    batch = collator(features)
    length = 20 if padded else max(map(len, rows))
    labels = batch["labels" if replaces else "mlm_labels"]
    mask = batch.get("attention_mask", torch.ones(len(rows), length, dtype=torch.long))
    assert batch["input_ids"].shape == labels.shape == mask.shape == (len(rows), length)
    for number, row in enumerate(rows):
        ids, row_labels = batch["input_ids"][number].tolist(), labels[number].tolist()
        assert mask[number].tolist() == [1] * len(row) + [0] * (length - len(row))
        assert ids[len(row) :] == [tokenizer.pad_token_id] * (length - len(row))
        chosen = [i for i in range(length) if row_labels[i] != (0 if replaces else -100)]
        ordinary = [i for i, token in enumerate(row) if token not in SPECIAL]
        assert set(chosen) <= set(ordinary)
        if replaces:
            assert chosen == [i for i in range(len(row)) if ids[i] != row[i]]
        else:
            assert len(chosen) == min(len(ordinary), max(1, round(probability * len(row))))
            assert [row_labels[i] for i in chosen] == [row[i] for i in chosen]
            hidden = {i for i in range(len(row)) if ids[i] != row[i]}
            assert hidden <= set(chosen)
            assert {ids[i] for i in hidden} <= {tokenizer.mask_token_id}
    again = collator(features[::-1])
    assert torch.equal(again["input_ids"].flip(0), batch["input_ids"])


number = st.one_of(st.integers(-2, 40), st.floats(allow_nan=True), st.none(), st.text(max_size=3), st.booleans())
value = st.one_of(number, st.lists(number, max_size=3))
plausible = {
    "vocab_size": 30, "embedding_size": 8, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 16, "exit_layers": [1], "exit_capacities": [0.5],
    "pad_token_id": 0, "generator_size": 0.5,
}  # fmt: skip
# Ours and ELECTRA's own; what every config of the library inherits is the library's.
names = st.sampled_from(
    sorted(config_flags().keys() & (ElectraConfig.__annotations__ | ElectraEarlyExitConfig.__annotations__).keys())
)


@settings(quick, max_examples=120)
@given(st.dictionaries(names, value, min_size=1, max_size=3))
@example({"vocab_size": 1})
def test_every_config_is_refused_in_one_sentence_or_trains(fields):
    config, refusal = None, None
    try:
        config = build_config({**plausible, **fields})
    except UsageError as error:
        refusal = str(error)
    if config is None:
        assert refusal
        assert "\n" not in refusal
        return
    model = ElectraEarlyExitForPreTraining(config).train()
    ids = torch.randint(min(config.vocab_size, 30), (2, min(config.max_position_embeddings, 16)))
    batch = {"mlm_labels": ids} if config.generator_type == "mlm" else {"labels": torch.ones_like(ids)}
    model(input_ids=ids, **batch).loss.backward()
