"""Fine-tuning heads: ELECTRA's without exits, what exits add to the loss, and inference one example at a time."""

import copy
import logging
import math

import pytest
import torch
import transformers
from datasets import Dataset
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    ElectraConfig,
    ElectraForMultipleChoice,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from modeling_electra_exit import (
    ElectraEarlyExitForMultipleChoice,
    ElectraEarlyExitForPreTraining,
    ElectraEarlyExitForQuestionAnswering,
    ElectraEarlyExitForSequenceClassification,
    ElectraEarlyExitForTokenClassification,
    ElectraEarlyExitModel,
)
from modeling_electra_exit.conversion import electra_settings
from modeling_electra_exit.exit_criteria import ConfidenceRule
from tests.conftest import masked_batch, tiny_config, tiny_model, trained_exits


SEQUENCE, TOKEN = ElectraEarlyExitForSequenceClassification, ElectraEarlyExitForTokenClassification
ANSWER, CHOICE = ElectraEarlyExitForQuestionAnswering, ElectraEarlyExitForMultipleChoice
NATIVE = {
    SEQUENCE: ElectraForSequenceClassification,
    TOKEN: ElectraForTokenClassification,
    ANSWER: ElectraForQuestionAnswering,
    CHOICE: ElectraForMultipleChoice,
}
LENGTHS = (40, 33, 17, 64, 9, 25)  # of the examples; a batch pads to the longest


def head_model(model_class, **overrides):
    """With exit heads that count as trained."""
    torch.manual_seed(0)
    labels = {"num_labels": 2 if model_class is ANSWER else 3, "summary_last_dropout": 0.0}
    return trained_exits(model_class(tiny_config(**{**labels, "exit_layers": [1, 2, 4], **overrides})))


def examples(model_class, seed=0):
    """Each alone: ids of shape (1, length), or (1, choices, length)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 3) if model_class is CHOICE else (1,)
    return [torch.randint(5, 120, (*shape, length), generator=generator) for length in LENGTHS]


def batch_of(ids: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    longest = max(each.shape[-1] for each in ids)
    padded = torch.cat([F.pad(each, (0, longest - each.shape[-1])) for each in ids])
    return {"input_ids": padded, "attention_mask": (padded != 0).long()}


def targets_for(model_class, ids):
    count, length = ids.shape[0], ids.shape[-1]
    if model_class is ANSWER:
        return {"start_positions": torch.arange(count), "end_positions": torch.arange(count) + 2}
    if model_class is TOKEN:
        return {"labels": (ids % 3).masked_fill(torch.arange(length) % 5 == 0, -100)}
    return {"labels": torch.arange(count) % 3}


# ---- Training ----


FORMATS = [
    (SEQUENCE, {"num_labels": 3}, torch.tensor([0, 1, 2, 1])),
    (SEQUENCE, {"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0, 0.0])),
    (SEQUENCE, {"num_labels": 2, "problem_type": "regression"}, torch.randn(4, 2)),
    (SEQUENCE, {"num_labels": 3}, torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])),
    (TOKEN, {}, None),
    (ANSWER, {}, None),
    (CHOICE, {}, None),
]


def case(model_class, overrides, labels, **more):
    model = head_model(model_class, **{**overrides, **more})
    ids = torch.cat([each[..., :9] for each in examples(model_class)][:4])
    targets = targets_for(model_class, ids) if labels is None else {"labels": labels}
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), **targets}


def logits_of(outputs):
    return outputs.logits if "logits" in outputs else torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)


@pytest.mark.parametrize(("model_class", "overrides", "labels"), FORMATS)
def test_without_exits_a_head_is_electras(model_class, overrides, labels):
    model, batch = case(model_class, overrides, labels, exit_policy="none")
    native = NATIVE[model_class](ElectraConfig(**electra_settings(model.config)))
    assert model.state_dict().keys() == native.state_dict().keys()
    native.load_state_dict(model.state_dict())
    ours, theirs = model.eval()(**batch), native.eval()(**batch)
    torch.testing.assert_close(logits_of(ours), logits_of(theirs), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.loss, theirs.loss)
    assert ours.exit_logits is None
    assert ours.exit_layers is None


@pytest.mark.parametrize(("model_class", "overrides", "labels"), FORMATS)
def test_loss_is_the_final_heads_and_the_mean_of_the_exits(model_class, overrides, labels):
    model, batch = case(model_class, overrides, labels, exit_loss_weight=0.7)
    outputs = model.train()(**batch)
    # The loss of each exit is that of a plain model of as many layers, with the exit's head for its own.
    losses = []
    for number, layer in enumerate(model.config.exit_layers):
        shallow = copy.deepcopy(model).eval()
        shallow.electra.encoder.layer = shallow.electra.encoder.layer[:layer]
        shallow.config.exit_policy = "none"
        shallow.final_head = lambda states, head=model.exit_heads.heads[number]: head(states)
        native = shallow(**batch)
        losses.append(native.loss)
        torch.testing.assert_close(outputs.exit_logits[number], logits_of(native), atol=1e-6, rtol=1e-5)
    model.config.exit_policy = "none"
    expected = model(**batch).loss
    torch.testing.assert_close(outputs.exit_loss, torch.stack(losses).mean().detach())
    torch.testing.assert_close(outputs.loss, expected + 0.7 * torch.stack(losses).mean())


def distance(model, student, teacher, batch):
    """What distillation adds, item by item, from the logits of an exit and of the final head."""
    if model.config.num_labels == 1 or model.config.problem_type == "regression":
        return (student - teacher).square().mean()
    if model.config.problem_type == "multi_label_classification":
        p, q = teacher.sigmoid(), student.sigmoid()
        return -(p * q.log() + (1 - p) * (1 - q).log()).mean()
    if isinstance(model, TOKEN):
        student, teacher = (each[batch["labels"] != -100] for each in (student, teacher))
    if isinstance(model, ANSWER):
        pairs = [
            (student[row, :length, end], teacher[row, :length, end])
            for row, length in enumerate(batch["attention_mask"].sum(1))
            for end in (0, 1)
        ]
    else:
        pairs = list(zip(student, teacher, strict=True))
    return torch.stack([-(t.softmax(-1) * s.softmax(-1).log()).sum() for s, t in pairs]).mean()


@pytest.mark.parametrize(("model_class", "overrides", "labels"), FORMATS)
def test_exits_learn_the_final_heads_answers(model_class, overrides, labels):
    model, batch = case(model_class, overrides, labels)
    batch["attention_mask"][1, ..., 6:] = 0
    outputs = model.train()(**batch)
    teacher = logits_of(outputs).detach()
    distances = [distance(model, logits, teacher, batch) for logits in outputs.exit_logits]
    plain = outputs.exit_loss
    outputs.loss.backward()
    final_heads = {n: p.grad.clone() for n, p in model.named_parameters() if not n.startswith(("electra", "exit_"))}
    model.zero_grad()
    model.config.exit_distillation_weight = 0.5
    distilled = model(**batch)
    torch.testing.assert_close(distilled.exit_loss, plain + 0.5 * torch.stack(distances).mean().detach())
    distilled.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    for name, gradient in final_heads.items():  # the teacher is not taught
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, msg=name)


@pytest.mark.parametrize("summary_type", ["first", "last", "mean"])
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_choices_are_pooled_as_the_config_says(pooling, summary_type):
    model = head_model(CHOICE, classifier_pooling=pooling, summary_type=summary_type).eval()
    batch = batch_of(examples(CHOICE)[:3])
    rows = {name: value.flatten(0, 1) for name, value in batch.items()}
    states = model.electra(**rows, output_hidden_states=True).hidden_states
    mask = rows["attention_mask"].unsqueeze(-1)
    outputs = model(**batch, labels=torch.tensor([0, 1, 2]))
    heads = (*model.exit_heads.heads, nn.Sequential(model.sequence_summary, model.classifier))
    for layer, head, logits in zip((1, 2, 4, 6), heads, (*outputs.exit_logits, outputs.logits), strict=True):
        mean = ((states[layer] * mask).sum(1) / mask.sum(1)).unsqueeze(1)
        expected = head(mean if pooling == "mean" else states[layer])  # as in ELECTRA
        torch.testing.assert_close(logits, expected.view(3, 3), atol=1e-6, rtol=1e-5)


def test_mean_pooling_reads_every_token_but_padding():
    model = head_model(SEQUENCE, classifier_pooling="mean").eval()
    batch = batch_of(examples(SEQUENCE)[:3])
    batch["attention_mask"][0, :2] = 0  # padding on the left counts no more than on the right
    states = model.electra(**batch, output_hidden_states=True).hidden_states
    outputs = model(**batch, labels=torch.tensor([0, 1, 2]))
    for layer, head, logits in zip(
        (*model.config.exit_layers, 6),
        (*model.exit_heads.heads, model.classifier),
        (*outputs.exit_logits, outputs.logits),
        strict=True,
    ):
        for row, mask in enumerate(batch["attention_mask"].bool()):
            mean = states[layer][row][mask].mean(dim=0)
            torch.testing.assert_close(logits[row], head(mean.view(1, 1, -1))[0], atol=1e-6, rtol=1e-5)
    everything = model(batch["input_ids"]).logits
    torch.testing.assert_close(everything, model(batch["input_ids"], attention_mask=torch.ones(3, 40)).logits)


@pytest.mark.parametrize(("model_class", "overrides", "labels"), FORMATS)
def test_every_parameter_of_a_head_is_trained(model_class, overrides, labels):
    model, batch = case(model_class, overrides, labels)
    model.train()(**batch).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize(("model_class", "overrides", "labels"), FORMATS)
def test_losses_of_parts_of_a_batch_add_up_to_that_of_the_whole(model_class, overrides, labels, weight):
    model, batch = case(model_class, overrides, labels, exit_distillation_weight=weight)
    if model_class is TOKEN:  # parts with few labels, and one with none
        batch["labels"][0] = -100
        batch["labels"][1, 2:] = -100
    count = 4 if model_class is ANSWER else (batch["labels"] != -100).sum()
    whole = model.train()(**batch)
    whole.loss.backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    parts = [{name: value[row : row + 1] for name, value in batch.items()} for row in range(4)]
    outputs = [model(**part, num_items_in_batch=count) for part in parts]
    torch.testing.assert_close(sum(each.loss for each in outputs), whole.loss)
    torch.testing.assert_close(sum(each.exit_loss for each in outputs), whole.exit_loss)
    sum(each.loss for each in outputs).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("model_class", "overrides", "labels"), FORMATS)
def test_the_loss_in_evaluation_is_the_final_heads(model_class, overrides, labels):
    model, batch = case(model_class, overrides, labels, exit_loss_weight=0.7)
    with torch.no_grad():
        trained, evaluated = model.train()(**batch), model.eval()(**batch)
    torch.testing.assert_close(evaluated.loss + 0.7 * evaluated.exit_loss, trained.loss)
    torch.testing.assert_close(evaluated.exit_loss, trained.exit_loss)
    model.config.exit_policy = "none"
    torch.testing.assert_close(evaluated.loss, model(**batch).loss)


@pytest.mark.parametrize("model_class", [*NATIVE, ElectraEarlyExitForPreTraining])
def test_a_loss_with_gradients_in_evaluation_mode_is_warned_of_once(model_class, caplog):
    logger = logging.getLogger("transformers")
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.get_logger().warning_once.cache_clear()
    if model_class is ElectraEarlyExitForPreTraining:
        models, batch = [tiny_model(exit_policy=policy) for policy in ("none", "random")], masked_batch()
    else:
        models, batch = zip(*(case(model_class, {}, None, exit_policy=p) for p in ("none", "random")), strict=True)
        batch = batch[0]
    logger.addHandler(caplog.handler)
    try:
        for model in models:
            model.train()(**batch)
            with torch.no_grad():
                model.eval()(**batch)
        models[0](**batch)  # has no exits to train
        assert "Call `model.train()`" not in caplog.text
        for _ in range(2):
            models[1](**batch)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.text.count("Call `model.train()`") == 1


def trained(tmp_path, accumulation, model_class=SEQUENCE, **overrides):
    model = head_model(model_class, **overrides)
    ids = torch.cat([each[..., :9] for each in examples(model_class) + examples(model_class, 1)])[:8]
    labels = [0, 1, 2, 0, 1, 2, 0, 1]
    if model_class is TOKEN:  # as unevenly spread as there are words in texts
        labels = [[-100] * (8 - row) + (ids[row, 8 - row :] % 3).tolist() for row in range(8)]
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels})
    losses = []
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=8 // accumulation, report_to=[], use_cpu=True,
        gradient_accumulation_steps=accumulation, logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=data, eval_dataset=data,
        compute_metrics=lambda p: losses.append(p.predictions.shape) or {},
    )  # fmt: skip
    trainer.train()
    trainer.evaluate()
    assert losses == [(8, 9, 3) if model_class is TOKEN else (8, 3)]  # the logits alone, not the exits'
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model


@pytest.mark.parametrize("model_class", [SEQUENCE, TOKEN, CHOICE])
def test_the_plain_trainer_trains_it_and_accumulation_changes_nothing(tmp_path, model_class):
    at_once, model = trained(tmp_path, 1, model_class)
    one_by_one, other = trained(tmp_path, 8, model_class)
    assert at_once == pytest.approx(one_by_one, rel=1e-4)
    for (name, one), eight in zip(model.named_parameters(), other.parameters(), strict=True):
        # The same added to all keys changes no attention: this gradient is rounding, which Adam makes large. Nor do
        # choices change by what is added to all of them.
        if not name.endswith("self.key.bias") and not (model_class is CHOICE and name.endswith(".bias")):
            torch.testing.assert_close(one, eight, atol=1e-5, rtol=1e-4, msg=name)


def test_training_never_exits():
    model = head_model(SEQUENCE, inference_exit_thresholds=[0.0, 0.0, 0.0]).train()
    batch = batch_of(examples(SEQUENCE))
    assert model(**batch).exit_layers is None
    assert (model.eval()(**batch).exit_layers == 1).all()


def test_a_pre_training_checkpoint_runs_at_full_depth_until_thresholds_are_set(tmp_path):
    tiny_model(exit_policy="threshold", exit_entropy_threshold=0.5).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert len(model.exit_heads.heads) == 2
    batch = batch_of(examples(SEQUENCE))
    seen = states_computed(model)
    assert model(**batch).exit_layers is None
    assert seen == [(6, 64)] * 6


# ---- Inference: sequences ----


def exits_alone(config, number, logits, history) -> bool:
    """The exit criteria, by hand, for the logits (predictions, classes) of one item."""
    threshold = config.inference_exit_thresholds[number]
    probabilities = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in logits.float().tolist()]
    if config.inference_exit_criterion == "confidence":
        return min(map(max, probabilities)) > threshold
    if config.inference_exit_criterion == "entropy":
        return max(-sum(p * math.log(p) for p in row) for row in probabilities) < threshold
    history.append([row.index(max(row)) for row in probabilities])
    agreed = 0
    for now, before in zip(reversed(history), reversed(history[:-1]), strict=False):
        if now != before:
            break
        agreed += 1
    return agreed >= threshold


def predictions_of(model_class, logits, multi_label=False):
    """(predictions, classes) of one item's logits."""
    if model_class is ANSWER:
        return logits[0].T
    if multi_label:
        return torch.stack([torch.zeros(3, dtype=logits.dtype), logits[0]], dim=-1)
    return logits


@torch.no_grad()
def sequence_alone(model, ids):
    """One example, unpadded: layer by layer, until an exit's head is certain. Logits and the layers it took."""
    config, model_class = model.config, type(model)
    rows = ids.view(-1, ids.shape[-1])
    states, history = model.electra.embeddings_project(model.electra.embeddings(rows)), []
    for index, layer in enumerate(model.electra.encoder.layer):
        states = layer(states, None)
        if index + 1 in config.exit_layers:
            number = config.exit_layers.index(index + 1)
            normed = model.electra.encoder.norm(states)
            if config.classifier_pooling == "mean":
                normed = normed.mean(dim=1, keepdim=True)
            logits = model.exit_heads.heads[number](normed)
            if config.inference_exit_temperatures is not None:
                logits = logits / config.inference_exit_temperatures[number]
            logits = logits.view(1, -1) if model_class is CHOICE else logits
            multi_label = config.problem_type == "multi_label_classification"
            if exits_alone(config, number, predictions_of(model_class, logits, multi_label), history):
                return logits, index + 1
    states = model.electra.encoder.norm(states)
    logits = model.final_head(states.mean(dim=1, keepdim=True) if config.classifier_pooling == "mean" else states)
    return (logits.view(1, -1) if model_class is CHOICE else logits), len(model.electra.encoder.layer)


def set_thresholds(model, criterion):
    """So that about a third of the examples leaves at each exit."""
    model.config.inference_exit_criterion = criterion
    if criterion == "patience":  # untrained, different heads would hardly ever agree
        model.config.inference_exit_thresholds = [1, 1, 2]
        for head in model.exit_heads.heads[1:]:
            head.load_state_dict(model.exit_heads.heads[0].state_dict())
        return
    thresholds = []
    for layer in model.config.exit_layers:
        logits = [logits_of(model(ids, exit_layer=layer)) for ids in examples(type(model))]
        multi_label = model.config.problem_type == "multi_label_classification"
        found = []
        for each in logits:
            p = predictions_of(type(model), each, multi_label).float().softmax(-1)
            entropies = -(p * p.log()).sum(-1)
            found.append(p.amax(-1).min().item() if criterion == "confidence" else -entropies.max().item())
        found = sorted(found)
        thresholds.append(abs(found[len(found) * 2 // 3] + found[len(found) * 2 // 3 - 1]) / 2)
    model.config.inference_exit_thresholds = thresholds


def states_computed(model):
    """Rows and columns that each layer computes, filled in by running the model."""
    seen = []
    for layer in model.electra.encoder.layer:
        layer.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape[:2])))
    return seen


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("criterion", ["confidence", "entropy", "patience"])
@pytest.mark.parametrize(
    ("model_class", "overrides"),
    [
        (SEQUENCE, {}),
        (SEQUENCE, {"norm_position": "pre", "inference_exit_temperatures": [2.0, 0.5, 1.5]}),
        (SEQUENCE, {"problem_type": "multi_label_classification"}),
        (SEQUENCE, {"classifier_pooling": "mean", "initializer_range": 0.3}),
        (ANSWER, {}),
        (CHOICE, {}),
    ],
)
def test_a_batch_of_sequences_exits_as_each_alone(model_class, overrides, criterion, attention):
    if criterion == "patience":  # layers that change little, so that exits agree
        overrides = {**overrides, "initializer_range": 0.1}
    model = head_model(model_class, **overrides).eval()
    set_thresholds(model, criterion)
    model.set_attn_implementation(attention)
    ids = examples(model_class)
    with torch.inference_mode():
        outputs = model(**batch_of(ids), output_hidden_states=True)
    alone = [sequence_alone(model, each) for each in ids]
    assert outputs.exit_layers.tolist() == [layer for _, layer in alone]
    assert len(set(outputs.exit_layers.tolist())) > 1
    for number, (logits, layer) in enumerate(alone):
        length = ids[number].shape[-1] if model_class is ANSWER else None
        torch.testing.assert_close(logits_of(outputs)[number : number + 1, :length], logits, atol=1e-5, rtol=1e-5)
        # Hidden states have full length, and those of who left stay.
        rows = slice(3 * number, 3 * number + 3) if model_class is CHOICE else slice(number, number + 1)
        for later in outputs.hidden_states[layer + 1 : 6]:
            assert torch.equal(later[rows], outputs.hidden_states[layer][rows])
    assert len(outputs.hidden_states) == 7
    assert {len(states) for states in outputs.hidden_states} == {len(ids) * (3 if model_class is CHOICE else 1)}


def test_exited_tokens_are_not_computed():
    model = head_model(SEQUENCE).eval()
    set_thresholds(model, "confidence")
    seen = states_computed(model)
    layers = model(**batch_of(examples(SEQUENCE))).exit_layers.tolist()
    staying = [[n for n, layer in zip(LENGTHS, layers, strict=True) if layer > index] for index in range(6)]
    assert seen == [(len(lengths), max(lengths)) for lengths in staying if lengths]
    assert min(seen)[0] < len(LENGTHS)
    assert min(columns for _, columns in seen) < max(LENGTHS)


def test_rows_of_padding_alone_do_no_harm(monkeypatch):
    model = head_model(SEQUENCE, inference_exit_thresholds=[0.9, 0.9, 0.9]).eval()
    calls = iter([torch.tensor([False, True, False]), torch.tensor([False, False]), torch.tensor([False, False])])
    monkeypatch.setattr(ConfidenceRule, "__call__", lambda *_: next(calls))
    batch = batch_of(examples(SEQUENCE)[:3])
    batch["attention_mask"][[0, 2]] = 0
    outputs = model(**batch)
    assert outputs.exit_layers.tolist() == [6, 1, 6]
    assert outputs.logits.isfinite().all()


def test_nothing_is_computed_once_all_have_exited():
    model = head_model(SEQUENCE, inference_exit_thresholds=[0.0, 1.0, 1.0]).eval()
    seen = states_computed(model)
    outputs = model(**batch_of(examples(SEQUENCE)), output_hidden_states=True)
    assert seen == [(6, 64)]
    assert len(outputs.hidden_states) == 7
    torch.testing.assert_close(outputs.logits, model(**batch_of(examples(SEQUENCE)), exit_layer=1).logits)


NEVER = [("confidence", 1.0), ("entropy", 0.0), ("patience", 3)]


@pytest.mark.parametrize(("criterion", "threshold"), [*NEVER, ("confidence", 0.999999)])
@pytest.mark.parametrize("model_class", NATIVE)
def test_a_threshold_out_of_reach_is_full_depth(model_class, criterion, threshold):
    model = head_model(model_class, inference_exit_criterion=criterion, inference_exit_thresholds=[threshold] * 3)
    model.eval()
    batch = batch_of(examples(model_class))
    outputs = model(**batch)
    real = batch["attention_mask"].bool() if model_class is TOKEN else slice(None)
    assert (outputs.exit_layers[real] == 6).all()
    model.config.inference_exit_thresholds = None
    torch.testing.assert_close(logits_of(outputs)[real], logits_of(model(**batch))[real])


@pytest.mark.parametrize("model_class", NATIVE)
@pytest.mark.parametrize(
    ("criterion", "thresholds", "asked"),
    [*((name, [never] * 3, [0, 0, 0]) for name, never in NEVER), ("confidence", [1.0, 0.99, 1.0], [0, 1, 0]),
     ("entropy", [0.0, 0.0, 0.01], [0, 0, 1]), ("patience", [3, 1, 3], [1, 1, 0])],
)  # fmt: skip
def test_a_head_whose_threshold_is_out_of_reach_is_not_computed(model_class, criterion, thresholds, asked):
    model = head_model(model_class, inference_exit_criterion=criterion, inference_exit_thresholds=thresholds).eval()
    calls = [0, 0, 0]
    for number, head in enumerate(model.exit_heads.heads):
        last = head[-1] if isinstance(head, nn.Sequential) else head
        last.register_forward_hook(lambda *_, number=number: calls.__setitem__(number, calls[number] + 1))
    model(**batch_of(examples(model_class)))
    assert calls == asked


def test_selected_hidden_states():
    model = head_model(SEQUENCE).eval()
    set_thresholds(model, "confidence")
    batch = batch_of(examples(SEQUENCE))
    every = model(**batch, output_hidden_states=True).hidden_states
    some = model(**batch, output_hidden_states=[0, 5]).hidden_states
    assert [number for number, states in enumerate(some) if states is not None] == [0, 5]
    assert torch.equal(some[5], every[5])


def test_position_ids_follow_their_rows():
    model = head_model(SEQUENCE).eval()
    set_thresholds(model, "confidence")
    batch = batch_of(examples(SEQUENCE))
    positions = torch.arange(64).expand(6, -1)
    torch.testing.assert_close(model(**batch, position_ids=positions).logits, model(**batch).logits)


@pytest.mark.parametrize("model_class", [SEQUENCE, TOKEN])
def test_bf16_under_inference_mode(model_class):
    """In bf16 an example has other logits in another batch at full depth already, so the tolerance is that of bf16."""
    model = head_model(model_class).eval()
    set_thresholds(model, "confidence") if model_class is SEQUENCE else None
    model.config.inference_exit_thresholds = model.config.inference_exit_thresholds or [0.5, 0.5, 0.5]
    model = model.to(torch.bfloat16)
    batch = batch_of(examples(model_class))
    with torch.inference_mode():
        together = model(**batch)
        alone = [model(**{name: value[i : i + 1] for name, value in batch.items()}) for i in range(len(LENGTHS))]
    assert together.logits.dtype == torch.bfloat16
    mask = batch["attention_mask"].bool()
    for number, outputs in enumerate(alone):
        where = mask[number] if model_class is TOKEN else ...
        assert torch.equal(together.exit_layers[number][where], outputs.exit_layers[0][where])
        torch.testing.assert_close(together.logits[number][where], outputs.logits[0][where], atol=2e-2, rtol=2e-2)
        assert torch.equal(together.logits[number][where].argmax(-1), outputs.logits[0][where].argmax(-1))


@pytest.mark.parametrize("exits", [False, True])
@pytest.mark.parametrize("model_class", NATIVE)
def test_padding_on_the_left_changes_no_answer(model_class, exits):
    model = head_model(model_class).eval()
    if exits and model_class is TOKEN:
        model.config.inference_exit_thresholds = [0.8, 0.7, 0.6]
    elif exits:
        set_thresholds(model, "confidence")
    ids = examples(model_class)
    longest = max(LENGTHS)
    padded = torch.cat([F.pad(each, (longest - each.shape[-1], 0)) for each in ids])
    with torch.inference_mode():
        together = model(input_ids=padded, attention_mask=(padded != 0).long())
        alone = [model(input_ids=each) for each in ids]
    for row, (length, outputs) in enumerate(zip(LENGTHS, alone, strict=True)):
        real = slice(longest - length, longest) if model_class in (TOKEN, ANSWER) else ...
        torch.testing.assert_close(logits_of(together)[row][real], logits_of(outputs)[0], atol=1e-5, rtol=1e-5)
        if exits:
            here = real if model_class is TOKEN else ...
            assert torch.equal(together.exit_layers[row][here], outputs.exit_layers[0])
    if exits:
        assert len(together.exit_layers.unique()) > 1


def test_a_pipeline_exits(tmp_path, tokenizer, caplog):
    model = head_model(SEQUENCE, inference_exit_thresholds=[0.4, 0.4, 0.4], vocab_size=len(tokenizer)).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["the cat sleeps", "a dog runs under the old tree near the house", "a bird"]
    seen = []
    classify = pipeline("text-classification", str(tmp_path))
    classify.model.register_forward_hook(lambda module, args, output: seen.append(output.exit_layers))
    together = classify(texts, batch_size=3)
    assert seen[0].shape == (3,)
    assert seen[0].min() < 6
    for text, answer in zip(texts, together, strict=True):
        (alone,) = classify(text)
        assert alone["label"] == answer["label"]
        assert alone["score"] == pytest.approx(answer["score"], abs=1e-5)


# ---- Inference: tokens ----


@torch.no_grad()
def tokens_alone(model, ids, decide, reentry):
    """One text, unpadded, without gathering: every layer computes everything, and only who is there is updated.

    `decide(number, states (tokens, hidden), there)` returns which tokens leave. Returns the states, (tokens, hidden),
    and when each token left.
    """
    config, encoder = model.config, model.electra.encoder
    states = model.electra.embeddings_project(model.electra.embeddings(ids))
    left_at, fresh = torch.full(ids.shape[1:], len(encoder.layer)), True
    for index, layer in enumerate(encoder.layer):
        there = left_at > index
        if index >= len(encoder.layer) - reentry:
            there = torch.ones_like(there)
        visible = there | (config.exit_context == "all") | (config.exit_context == "first" and fresh)
        blocked = torch.zeros(ids.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[:, None, None]
        states = torch.where(there[:, None], layer(states, blocked, attn_implementation="eager"), states)
        fresh = index + 1 in config.exit_layers
        if fresh:
            leaves = decide(config.exit_layers.index(index + 1), encoder.norm(states)[0])
            left_at = left_at.masked_fill(there & leaves, index + 1)
    return encoder.norm(states)[0], left_at


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("context", ["all", "first", "none"])
@pytest.mark.parametrize("criterion", ["confidence", "entropy", "patience"])
def test_a_batch_of_tokens_exits_as_each_text_alone(criterion, context, attention):
    thresholds = {"confidence": [0.8, 0.7, 0.6], "entropy": [0.7, 0.8, 0.9], "patience": [1, 1, 1]}[criterion]
    layers = {"initializer_range": 0.15} if criterion == "patience" else {}  # that change little, so that exits agree
    model = head_model(TOKEN, exit_context=context, inference_exit_criterion=criterion, **layers).eval()
    model.config.inference_exit_thresholds = thresholds
    model.set_attn_implementation(attention)
    ids = examples(TOKEN)
    outputs = model(**batch_of(ids), output_hidden_states=True)
    for row, each in enumerate(ids):
        said, histories = {}, [[] for _ in range(each.shape[1])]

        def decide(number, states, said=said, histories=histories):
            said[model.config.exit_layers[number]] = logits = model.exit_heads.heads[number](states)
            return torch.tensor(
                [exits_alone(model.config, number, logits[i : i + 1], histories[i]) for i in range(len(logits))]
            )

        states, left_at = tokens_alone(model, each, decide, reentry=0)
        said[6] = model.final_head(states)
        expected = torch.stack([said[layer][i] for i, layer in enumerate(left_at.tolist())])
        length = each.shape[1]
        assert torch.equal(outputs.exit_layers[row, :length], left_at)
        torch.testing.assert_close(outputs.logits[row, :length], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(outputs.hidden_states[-1][row, :length], states, atol=1e-5, rtol=1e-5)
    assert len(outputs.exit_layers[batch_of(ids)["attention_mask"].bool()].unique()) > 2
    assert {states.shape for states in outputs.hidden_states} == {(6, 64, 32)}


@pytest.mark.parametrize("context", ["all", "first", "none"])
@pytest.mark.parametrize("reentry", [0, 1])
def test_detection_with_a_threshold_does_not_depend_on_the_batch(context, reentry):
    model = tiny_model(
        exit_policy="threshold", exit_entropy_threshold=[0.47, 0.67], exit_context=context, exit_reentry_layers=reentry
    ).eval()
    ids = examples(TOKEN)
    for each in ids:
        each[:, 0], each[:, 5] = 2, 3
    with torch.inference_mode():
        outputs = model(**batch_of(ids), exit_policy="threshold")
    for row, each in enumerate(ids):

        def decide(number, states, ids=each):
            p = model.exit_predictions[number](states[None])[0].sigmoid()
            entropy = -(p * p.log() + (1 - p) * (1 - p).log())
            return (entropy <= torch.where(p > 0.5, 0.67, 0.47)) & (ids[0] != 2) & (ids[0] != 3)

        states, left_at = tokens_alone(model, each, decide, reentry)
        length = each.shape[1]
        assert torch.equal(outputs.exit_layers[row, :length], left_at)
        expected = model.discriminator_predictions(states[None])[0]
        torch.testing.assert_close(outputs.logits[row, :length], expected, atol=1e-5, rtol=1e-5)
    assert len(outputs.exit_layers[batch_of(ids)["attention_mask"].bool()].unique()) == 3  # at both exits, and at none


def test_tokens_that_left_are_not_computed():
    model = head_model(TOKEN, inference_exit_thresholds=[0.8, 0.6, 0.5]).eval()
    seen = []
    for layer in model.electra.encoder.layer:
        layer.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    layers = model(**batch_of(examples(TOKEN))).exit_layers
    needed = [(layers > index).sum(1).max().item() for index in range(6)]
    assert seen == [min(64, -(-count // 8) * 8) for count in needed if count]
    assert min(seen) < 64


def test_hidden_states_of_exits_in_training_have_full_length():
    model = tiny_model().train()
    torch.manual_seed(1)
    outputs = model.electra(
        masked_batch()["input_ids"], exit_policy="topk", exits=model.exits(), output_hidden_states=True
    )
    for index in range(1, 6):
        gone = outputs.exit_layers < index
        assert outputs.hidden_states[index].shape == (4, 64, 32)
        assert torch.equal(outputs.hidden_states[index][gone], outputs.hidden_states[index - 1][gone])
        there = outputs.exit_layers >= index
        assert (outputs.hidden_states[index] != outputs.hidden_states[index - 1]).any(-1)[there].all()


# ---- Shallower ----


def test_exit_layer_stops_the_encoder():
    model = tiny_model().eval().electra
    ids = masked_batch()["input_ids"]
    every = model(ids, output_hidden_states=True).hidden_states
    for layer in (1, 3, 6):
        outputs = model(ids, exit_layer=layer, output_hidden_states=True)
        assert torch.equal(outputs.last_hidden_state, every[layer])
        assert len(outputs.hidden_states) == layer + 1
    for wrong in (0, 7):
        with pytest.raises(ValueError, match=r"`exit_layer` must be between 1 and num_hidden_layers \(6\)"):
            model(ids, exit_layer=wrong)


def test_exit_layer_of_a_head_answers_with_that_exits_head():
    model = head_model(SEQUENCE).eval()
    ids = examples(SEQUENCE)[0]
    states = model.electra(ids, exit_layer=2).last_hidden_state
    torch.testing.assert_close(model(ids, exit_layer=2).logits, model.exit_heads.heads[1](states))
    torch.testing.assert_close(model(ids, exit_layer=6).logits, model(ids).logits)
    with pytest.raises(ValueError, match=r"one of \[1, 2, 4, 6\]"):
        model(ids, exit_layer=3)


@pytest.mark.parametrize(("layers", "exits"), [(5, [1, 2]), (4, [1, 2]), (3, [1]), (1, [])])
def test_fewer_layers_load_without_noise(tmp_path, caplog, layers, exits):
    source = head_model(SEQUENCE, inference_exit_thresholds=[0.9, 0.8, 0.7], exit_capacities=[0.5, 0.5, 0.25]).eval()
    source.save_pretrained(tmp_path)
    logger = logging.getLogger("transformers")
    transformers.utils.logging.set_verbosity_warning()
    logger.addHandler(caplog.handler)
    try:
        encoder = AutoModel.from_pretrained(tmp_path, num_hidden_layers=layers)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_hidden_layers=layers)
    finally:
        logger.removeHandler(caplog.handler)
    # Heads of a task are new to the encoder, as everywhere; layers that were not asked for are no news.
    assert "encoder.layer" not in caplog.text
    assert "exit_modules" not in caplog.text
    assert isinstance(encoder, ElectraEarlyExitModel)
    assert model.config.exit_layers == exits
    assert model.config.inference_exit_thresholds == [0.9, 0.8, 0.7][: len(exits)]
    ids = masked_batch()["input_ids"]
    with torch.no_grad():
        expected = source.electra(ids, exit_layer=layers).last_hidden_state
        assert torch.equal(encoder.eval()(ids).last_hidden_state, expected)
        assert torch.equal(model.eval().electra(ids).last_hidden_state, expected)


def test_other_exit_layers_take_their_own_defaults(tmp_path):
    head_model(SEQUENCE, inference_exit_thresholds=[0.9, 0.8, 0.7]).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, exit_layers=[3], num_labels=3)
    assert (model.config.exit_capacities, model.config.inference_exit_thresholds) == ([0.125], None)


# ---- Misuse ----


def test_a_regression_has_no_exits():
    model = head_model(SEQUENCE, num_labels=1, inference_exit_thresholds=[0.5, 0.5, 0.5]).eval()
    with pytest.raises(ValueError, match="`inference_exit_thresholds` must be None"):
        model(examples(SEQUENCE)[0])


@pytest.mark.parametrize("kind", [lambda: torch.device("meta"), FakeTensorMode], ids=["meta", "fake"])
@pytest.mark.parametrize(("model_class", "overrides", "labels"), FORMATS)
def test_a_training_step_needs_no_data(model_class, overrides, labels, kind):
    _, batch = case(model_class, overrides, labels)
    with kind():
        model = head_model(model_class, **overrides).train()
        # The library's own mask would look at an `attention_mask`.
        sizes = {name: (value.shape, value.dtype) for name, value in batch.items() if name != "attention_mask"}
        inputs = {name: torch.ones(shape, dtype=dtype) for name, (shape, dtype) in sizes.items()}
        model(**inputs).loss.backward()
    assert [name for name, p in model.exit_heads.named_parameters() if p.grad is None] == []
