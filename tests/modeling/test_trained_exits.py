"""Which exit heads have been trained: by the model's own loss, and with PEFT's adapters."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM, Trainer, TrainingArguments

from tests.conftest import tiny_config, tiny_model
from tests.modeling.test_heads import ANSWER, CHOICE, NATIVE, SEQUENCE, TOKEN, examples, logits_of


UNTRAINED = "must not use untrained exit heads, here those after layers"


def fresh(model_class=SEQUENCE, **overrides):
    torch.manual_seed(0)
    return model_class(tiny_config(**{"num_labels": 2, "num_hidden_layers": 4, "exit_layers": [1, 2], **overrides}))


def batch_for(model_class, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (8, 3, 9) if model_class is CHOICE else (8, 9)
    ids = torch.randint(5, 120, shape, generator=generator)
    if model_class is ANSWER:
        return {"input_ids": ids, "start_positions": torch.arange(8), "end_positions": torch.arange(8)}
    return {"input_ids": ids, "labels": (ids % 2) if model_class is TOKEN else torch.arange(8) % 2}


def answer_early(model, batch):
    """Everything exits at the first exit, whatever its head says."""
    model.eval()
    model.config.inference_exit_thresholds = [0.0, 1.0]
    with torch.no_grad():
        return model(batch["input_ids"])


@pytest.mark.parametrize("model_class", NATIVE)
def test_thresholds_are_refused_until_a_loss_has_trained_the_head(model_class, tmp_path):
    model, batch = fresh(model_class), batch_for(model_class)
    with pytest.raises(ValueError, match=rf"`inference_exit_thresholds` {UNTRAINED} \[1\], got \[0.0, 1.0\]"):
        answer_early(model, batch)
    with pytest.raises(ValueError, match=rf"`exit_layer` {UNTRAINED} \[2\], got 2"):
        model(batch["input_ids"], exit_layer=2)
    model(batch["input_ids"], exit_layer=4)
    model.train()(**batch)  # a loss of which no gradient comes back
    with pytest.raises(ValueError, match=UNTRAINED):
        answer_early(model, batch)
    model.train()(**batch).loss.backward()
    expected = answer_early(model, batch)
    assert (expected.exit_layers == 1).all()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits_of(answer_early(model_class.from_pretrained(tmp_path), batch)), logits_of(expected))


def test_a_threshold_that_nothing_can_pass_needs_no_training():
    model = fresh(inference_exit_thresholds=[1.0, 1.0]).eval()
    assert (model(examples(SEQUENCE)[0]).exit_layers == 4).all()


def test_frozen_heads_and_heads_without_weight_in_the_loss_are_untrained():
    batch = batch_for(SEQUENCE)
    frozen, weightless = fresh(), fresh(exit_loss_weight=0.0)
    frozen.exit_heads.heads[0].requires_grad_(False)
    for model, layers in ((frozen, [1]), (weightless, [1, 2])):
        model.train()(**batch).loss.backward()
        assert model.exit_heads.untrained() == layers


def test_a_head_that_is_trained_alone_is_trained():
    model, batch = fresh(), batch_for(SEQUENCE)
    model.train()(**batch, exit_layer=2).loss.backward()
    assert model.exit_heads.untrained() == [1]


def test_heads_trained_in_a_compiled_step_are_trained(tmp_path):
    model, batch = fresh(num_hidden_layers=2, exit_layers=[1], exit_reentry_layers=0), batch_for(SEQUENCE)
    compiled = torch.compile(model.train(), backend="eager")
    compiled(**batch).loss.backward()
    assert model.eval().exit_heads.untrained() == []


@pytest.mark.parametrize("outside", [{"label_smoothing_factor": 0.1}, {"compute_loss_func": True}, {}])
def test_a_loss_outside_of_the_model_trains_no_exit(tmp_path, outside):
    def loss_outside(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs["logits"], labels)

    model, batch = fresh(), batch_for(SEQUENCE)
    before = {name: weight.clone() for name, weight in model.exit_heads.heads.named_parameters()}
    rows = {name: value.tolist() for name, value in batch.items()}
    smoothing = {name: value for name, value in outside.items() if name == "label_smoothing_factor"}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, **smoothing
    )
    Trainer(
        model, arguments, train_dataset=Dataset.from_dict(rows),
        compute_loss_func=loss_outside if "compute_loss_func" in outside else None,
    ).train()  # fmt: skip
    moved = any(not torch.equal(weight, before[name]) for name, weight in model.exit_heads.heads.named_parameters())
    assert moved == (not outside)
    if moved:
        answer_early(model, batch)
    else:
        with pytest.raises(ValueError, match=UNTRAINED):
            answer_early(model, batch)


def test_a_head_at_another_layer_than_it_was_trained_at_is_untrained(tmp_path):
    model, batch = fresh(), batch_for(SEQUENCE)
    model.train()(**batch).loss.backward()
    model.save_pretrained(tmp_path)
    moved = AutoModelForSequenceClassification.from_pretrained(tmp_path, exit_layers=[2])
    assert moved.exit_heads.untrained() == [2]
    moved.config.inference_exit_thresholds = [0.5]
    with pytest.raises(ValueError, match=UNTRAINED):
        moved(batch["input_ids"])
    fewer = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_hidden_layers=3)
    assert (fewer.exit_heads.layers, fewer.exit_heads.untrained()) == ([1], [])


def test_what_was_loaded_under_other_names_is_saved_under_ours(tmp_path):
    config = BertConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    model = SEQUENCE.from_bert(tmp_path / "bert").eval()
    model.save_pretrained(tmp_path / "ours")
    loaded, report = SEQUENCE.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert (report["missing_keys"], report["unexpected_keys"]) == (set(), set())
    ids = batch_for(SEQUENCE)["input_ids"]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_heads_that_a_checkpoint_does_not_hold_are_untrained(tmp_path):
    tiny_model(num_hidden_layers=4).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, exit_layers=[1, 2])
    assert model.exit_heads.untrained() == [1, 2]


# ---- PEFT ----


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model_class", "task_type", "targets"),
    [
        (SEQUENCE, "SEQ_CLS", ["query", "value"]),
        (SEQUENCE, "SEQ_CLS", ["query", "value", "dense"]),
        (SEQUENCE, "SEQ_CLS", "all-linear"),
        (TOKEN, "TOKEN_CLS", ["query", "value"]),
        (ANSWER, "QUESTION_ANS", ["query", "value"]),
    ],
)
def test_pefts_ordinary_call_trains_and_saves_the_exit_heads(tmp_path, model_class, task_type, targets):
    peft = pytest.importorskip("peft")
    tiny_model(num_hidden_layers=4).save_pretrained(tmp_path / "base")
    batch = batch_for(model_class)

    def start(seed):
        torch.manual_seed(seed)
        return model_class.from_pretrained(tmp_path / "base", num_labels=2, exit_layers=[1, 2])

    # PEFT knows the layers of architectures in Transformers; a plugin's are named.
    config = peft.LoraConfig(task_type=task_type, target_modules=targets, r=2)
    model = peft.get_peft_model(start(0), config)
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    assert sum(".heads." in name for name in before) >= 2
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(2):
        model.train()(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [
        name for name, weight in model.named_parameters() if name in before and torch.equal(weight, before[name])
    ] == []
    expected = logits_of(answer_early(model, batch))
    model.save_pretrained(tmp_path / "adapter")
    reloaded = peft.PeftModel.from_pretrained(start(1), tmp_path / "adapter")
    torch.testing.assert_close(logits_of(answer_early(reloaded, batch)), expected)
    reloaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = model_class.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(answer_early(merged, batch)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_without_the_heads_leaves_them_untrained(tmp_path):
    peft = pytest.importorskip("peft")
    model, batch = fresh(), batch_for(SEQUENCE)
    # Without a task PEFT trains no head.
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query", "value"], r=2))
    model.train()(**batch).loss.backward()
    with pytest.raises(ValueError, match=UNTRAINED):
        answer_early(model, batch)
    named = peft.get_peft_model(
        fresh(), peft.LoraConfig(target_modules=["query"], r=2, modules_to_save=["exit_modules"])
    )
    named.train()(**batch).loss.backward()
    answer_early(named, batch)
