"""The generator of a pre-training as a masked language model of its own."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    ElectraConfig,
    ElectraForMaskedLM,
    Trainer,
    TrainingArguments,
    pipeline,
)

from modeling_electra_exit import (
    ElectraEarlyExitForMaskedLM,
    ElectraEarlyExitForPreTraining,
    ElectraEarlyExitForSequenceClassification,
    ElectraEarlyExitModel,
)
from modeling_electra_exit.trainers.errors import UsageError
from modeling_electra_exit.trainers.runtime.loading import export_electra
from tests.conftest import masked_batch, tiny_config, tiny_model


SIZES = {
    "ELECTRA's": {},
    "pre-norm": {"norm_position": "pre"},
    "as wide, two layers": {"generator_size": 1.0, "generator_num_hidden_layers": 2, "embedding_size": 32},
}


@pytest.mark.parametrize("overrides", SIZES.values(), ids=SIZES)
def test_it_is_the_generator_of_the_checkpoint(tmp_path, overrides):
    whole = tiny_model(**overrides).eval()
    whole.save_pretrained(tmp_path)
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is ElectraEarlyExitForMaskedLM
    assert not model.training
    assert not any(info.values())
    expected = whole.config.generator_config()
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (
        expected.hidden_size,
        expected.num_hidden_layers,
    )
    assert str(model.config.name_or_path) == str(tmp_path)
    batch = masked_batch(padding=10)
    with torch.no_grad():
        # The generator's own loss in a step of the joint objective, computed by other code.
        loss = whole(**batch).generator_loss
        outputs = model(batch["input_ids"], batch["attention_mask"], labels=batch["mlm_labels"])
    torch.testing.assert_close(outputs.loss, loss)
    assert outputs.logits.shape == (4, 64, whole.config.vocab_size)


@pytest.mark.parametrize("overrides", SIZES.values(), ids=SIZES)
def test_saved_and_loaded_again(tmp_path, overrides):
    model = ElectraEarlyExitForMaskedLM.of(tiny_model(**overrides))
    model.save_pretrained(tmp_path)
    again, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["ElectraEarlyExitForMaskedLM"]
    ids = masked_batch()["input_ids"]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
        # Its encoder can be fine-tuned like any other.
        encoder, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert torch.equal(encoder(ids).last_hidden_state, model.electra(ids).last_hidden_state)


def test_options_of_from_pretrained(tmp_path):
    tiny_model().save_pretrained(tmp_path / "inner")
    config = AutoConfig.from_pretrained(tmp_path / "inner")
    model = ElectraEarlyExitForMaskedLM.from_pretrained(
        tmp_path, subfolder="inner", config=config, dtype=torch.bfloat16, attn_implementation="eager"
    )
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert model.config.hidden_size == 16
    assert config.hidden_size == 32, "the config that was given is as it was"
    weights = tiny_model().state_dict()
    copied = ElectraEarlyExitForMaskedLM.from_pretrained(None, config=tiny_config(), state_dict={})
    assert copied.config.hidden_size == 32, "without a checkpoint the config is taken as it is"
    assert weights["generator.lm_head.bias"].dtype == torch.float32


def test_the_output_layer_is_tied_to_the_word_embeddings(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path)
    embeddings = model.electra.embeddings.word_embeddings
    assert model.generator_lm_head.weight is embeddings.weight
    model.resize_token_embeddings(130)
    assert model.generator_lm_head.weight is model.electra.embeddings.word_embeddings.weight
    assert model.generator_lm_head.bias.shape == (130,)
    assert model(torch.full((1, 4), 129)).logits.shape == (1, 4, 130)


@pytest.mark.parametrize("generator_type", ["unigram", "self", "none", "frozen"])
def test_a_checkpoint_without_a_generator_is_refused(tmp_path, generator_type):
    tiny_model(generator_type=generator_type).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"`generator_type` of .* must be 'mlm' .*, got '{generator_type}'"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)


def test_a_fine_tuned_checkpoint_is_refused(tmp_path):
    ElectraEarlyExitForSequenceClassification(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must hold an .*got ElectraEarlyExitForSequenceClassification"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)


def test_an_encoder_alone_gets_a_new_output_layer(tmp_path):
    ElectraEarlyExitModel(tiny_config()).save_pretrained(tmp_path)
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert model.config.hidden_size == 32
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"generator_predictions", "generator_lm_head"}


def test_the_pipeline_fills_masks(tmp_path, tokenizer):
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    fill = pipeline("fill-mask", model=str(tmp_path), device="cpu")
    answers = fill(f"the {tokenizer.mask_token} runs", top_k=3)
    model, inputs = AutoModelForMaskedLM.from_pretrained(tmp_path), tokenizer("the [MASK] runs", return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits[0, 2].softmax(-1).topk(3)
    assert [answer["token"] for answer in answers] == expected.indices.tolist()
    assert [answer["score"] for answer in answers] == pytest.approx(expected.values.tolist(), abs=1e-6)


def mlm_trainer(tokenizer, folder, model, texts, **arguments):
    settings = {"max_steps": 30, "learning_rate": 5e-3, "logging_steps": 1, "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments(
        str(folder), **{**settings, **arguments}, save_strategy="no", report_to="none", lr_scheduler_type="constant"
    )
    collator = DataCollatorForLanguageModeling(tokenizer, seed=0)
    rows = [tokenizer(text, return_special_tokens_mask=True) for text in texts]
    return Trainer(model, args, collator, train_dataset=rows)


def test_it_trains_like_any_masked_language_model(tmp_path, tokenizer):
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path)
    trainer = mlm_trainer(tokenizer, tmp_path / "run", model, ["the cat runs under the old tree"] * 64)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert model.generator_lm_head.weight is model.electra.embeddings.word_embeddings.weight


def test_accumulated_batches_count_every_label_alike(tmp_path, tokenizer):
    """One batch of eight, or four of two with different numbers of labels: the same step."""
    texts = ["the cat"] * 4 + ["the old dog sleeps under the tree near the house and the bird sings"] * 4
    after = []
    for batch in (8, 2):
        model = ElectraEarlyExitForMaskedLM.of(tiny_model(vocab_size=len(tokenizer)))
        rows = [tokenizer(text, return_tensors="pt") for text in texts]
        for row in rows:
            row["labels"] = row["input_ids"].clone()
            row["labels"][:, ::3] = -100
        data = [{name: value[0] for name, value in row.items()} for row in rows]
        args = TrainingArguments(str(tmp_path), max_steps=1, per_device_train_batch_size=batch, use_cpu=True,
                                 gradient_accumulation_steps=8 // batch, optim="sgd", learning_rate=0.1,
                                 max_grad_norm=0, report_to="none", save_strategy="no", disable_tqdm=True)  # fmt: skip
        Trainer(model, args, lambda rows: pad(rows), train_dataset=data).train()
        after.append(model.state_dict())
    for name, value in after[0].items():
        torch.testing.assert_close(after[1][name], value, atol=1e-6, rtol=1e-4, msg=name)


def pad(rows):
    filling = {"input_ids": 0, "token_type_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)
        for name, value in filling.items()
    }


def test_a_sparse_vector_of_a_text_does_not_depend_on_padding():
    """As SPLADE makes one: the largest logarithm of 1 + ReLU of the logits, over the tokens of the text."""
    model = ElectraEarlyExitForMaskedLM.of(tiny_model())
    ids = masked_batch(batch_size=1, length=20)["input_ids"]

    def vector(ids, mask):
        with torch.no_grad():
            logits = model(ids, attention_mask=mask).logits
        return (logits.relu().log1p() * mask.unsqueeze(-1)).amax(dim=1)

    alone = vector(ids, torch.ones_like(ids))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 7))
    assert alone.shape == (1, 120)
    assert 0 < (alone > 0).sum() < 120
    torch.testing.assert_close(vector(torch.nn.functional.pad(ids, (0, 7)), mask), alone)


def test_from_plain_electra_and_back(tmp_path, tokenizer):
    torch.manual_seed(0)
    config = ElectraConfig(vocab_size=len(tokenizer), embedding_size=16, hidden_size=32, num_hidden_layers=2,
                           num_attention_heads=4, intermediate_size=64, initializer_range=0.2)  # fmt: skip
    plain = ElectraForMaskedLM(config).eval()
    plain.save_pretrained(tmp_path / "plain")
    model = ElectraEarlyExitForMaskedLM.from_electra(tmp_path / "plain")
    ids = masked_batch()["input_ids"] % len(tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    written = export_electra(str(tmp_path / "ours"), tmp_path / "again")
    assert written.keys() == {"generator"}
    again = ElectraForMaskedLM.from_pretrained(written["generator"]).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, plain(ids).logits, atol=1e-5, rtol=0)


def test_pre_norm_has_no_plain_form(tmp_path, tokenizer):
    ElectraEarlyExitForMaskedLM.of(tiny_model(norm_position="pre")).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match=r"`norm_position` must be 'post'.*got 'pre'"):
        export_electra(str(tmp_path / "model"), tmp_path / "out")


def test_a_pre_training_can_start_from_its_encoder(tmp_path):
    """As from a plain generator: its encoder becomes the discriminator's."""
    model = ElectraEarlyExitForMaskedLM.of(tiny_model())
    model.save_pretrained(tmp_path)
    whole = ElectraEarlyExitForPreTraining.from_pretrained(tmp_path)
    ids = masked_batch()["input_ids"]
    with torch.no_grad():
        assert torch.equal(whole.electra(ids).last_hidden_state, model.electra(ids).last_hidden_state)
