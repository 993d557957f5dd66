"""Parity with transformers, the joint objective against a plain loop, and what exits may and may not do."""

import copy
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForPreTraining, ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

from modeling_electra_exit import (
    ElectraEarlyExitForPreTraining,
    ElectraEarlyExitModel,
    generator_head,
    modeling_electra_exit,
)
from modeling_electra_exit.exit_policy import row_noise
from tests.conftest import EXIT_RULES, masked_batch, rule_name, tiny_config, tiny_model


def plain_electra(model, tmp_path) -> ElectraForPreTraining:
    return ElectraForPreTraining.from_pretrained(model.to_electra(tmp_path)["discriminator"]).eval()


# ---- Parity with transformers ----


@pytest.mark.parametrize("padding", [0, 20])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_full_depth_is_electra(tmp_path, padding, attention):
    model = tiny_model(exit_policy="none").eval()
    plain = plain_electra(model, tmp_path)
    for each in (model, plain):
        each.set_attn_implementation(attention)
    batch = masked_batch(padding=padding)
    inputs = {k: v for k, v in batch.items() if k != "mlm_labels"} | {"token_type_ids": batch["input_ids"] % 2}
    labels = (batch["input_ids"] % 7 == 0).long()
    ours = model(**inputs, labels=labels, output_hidden_states=True)
    theirs = plain(**inputs, labels=labels, output_hidden_states=True)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.loss, theirs.loss, atol=1e-6, rtol=1e-6)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 7
    for own, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-6)


def test_full_depth_gradients_are_electras(tmp_path):
    model = tiny_model(exit_policy="none").train()
    plain = plain_electra(model, tmp_path).train()
    ids = masked_batch()["input_ids"]
    labels = (ids % 7 == 0).long()
    model(ids, labels=labels).loss.backward()
    plain(ids, labels=labels).loss.backward()
    own = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_activations_are_not_kept_for_the_gradients(norm_position):
    model = tiny_model(exit_policy="none", norm_position=norm_position).train()
    alive = []
    for layer in model.electra.encoder.layer:
        layer.intermediate.intermediate_act_fn.register_forward_hook(
            lambda module, inputs, output: alive.append(weakref.ref(output))
        )
    loss = model(masked_batch()["input_ids"], labels=masked_batch()["input_ids"] % 2).loss
    assert len(alive) == 6
    assert all(reference() is None for reference in alive)
    loss.backward()
    assert len(alive) == 12  # computed again


def test_exits_off_in_evaluation_mode(tmp_path):
    model = tiny_model(exit_policy="topk").eval()
    ids = masked_batch()["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain_electra(model, tmp_path)(ids).logits, atol=1e-6, rtol=1e-6)


# ---- The joint objective ----


def reference_joint_loss(model, batch):
    """The joint loss from transformers' own two models, one position at a time, given the tokens that were sampled."""
    config = model.config
    generator = ElectraForMaskedLM.from_pretrained(batch.pop("generator"))
    discriminator = ElectraForPreTraining.from_pretrained(batch.pop("discriminator"))
    sampled, mask = batch["sampled"], batch.get("attention_mask")
    logits = generator(batch["input_ids"], attention_mask=mask).logits
    generator_losses, corrupted, labels = [], batch["input_ids"].clone(), torch.zeros_like(batch["input_ids"])
    draw = iter(sampled.tolist())
    for row in range(corrupted.shape[0]):
        for position in range(corrupted.shape[1]):
            original = batch["mlm_labels"][row, position].item()
            if original == -100:
                continue
            probabilities = logits[row, position].softmax(-1)
            generator_losses.append(-probabilities[original].log())
            corrupted[row, position] = next(draw)
            labels[row, position] = int(corrupted[row, position].item() != original)
    scores = discriminator(corrupted, attention_mask=mask).logits
    losses = []
    for row in range(corrupted.shape[0]):
        for position in range(corrupted.shape[1]):
            if mask is None or mask[row, position] == 1:
                p = scores[row, position].sigmoid()
                losses.append(-(p.log() if labels[row, position] else (1 - p).log()))
    generator_loss = torch.stack(generator_losses).mean()
    discriminator_loss = torch.stack(losses).mean()
    return config.generator_weight * generator_loss + config.discriminator_weight * discriminator_loss, labels


@pytest.mark.parametrize("padding", [0, 20])
def test_joint_loss_equals_a_plain_loop(tmp_path, monkeypatch, padding):
    model = tiny_model(exit_policy="none").eval()
    batch = masked_batch(padding=padding)
    sampled = []
    sample = generator_head.sample_in_proportion
    monkeypatch.setattr(
        generator_head, "sample_in_proportion", lambda *args: sampled.append(sample(*args)) or sampled[-1]
    )
    ours = model(**batch)
    expected, labels = reference_joint_loss(model, {**batch, **model.to_electra(tmp_path), "sampled": sampled[0]})
    torch.testing.assert_close(ours.loss, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.rtd_labels, labels)
    assert 0 < labels.sum() < (batch["mlm_labels"] != -100).sum() + 1


def test_exit_loss_is_the_mean_over_exits_of_the_tokens_that_arrive():
    model = tiny_model().train()
    batch = masked_batch(padding=20)
    torch.manual_seed(1)
    outputs = model(**batch)
    losses = []
    for logits, positions in zip(outputs.exit_logits, outputs.exit_positions, strict=True):
        each = [
            F.binary_cross_entropy_with_logits(logits[row, i], outputs.rtd_labels[row, t].float())
            for row in range(4)
            for i, t in enumerate(positions[row].tolist())
            if batch["attention_mask"][row, t]
        ]
        losses.append(torch.stack(each).mean())
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(outputs.exit_loss, expected)
    config = model.config
    total = config.generator_weight * outputs.generator_loss + config.discriminator_weight * (
        outputs.discriminator_loss + config.exit_loss_weight * expected
    )
    torch.testing.assert_close(outputs.loss, total)


def test_a_sampled_token_equal_to_the_original_counts_as_original(monkeypatch):
    model = tiny_model()
    batch = masked_batch()
    originals = batch["mlm_labels"][batch["mlm_labels"] != -100]
    monkeypatch.setattr(generator_head, "sample_in_proportion", lambda *args: originals.clone())
    ids, labels, _ = model.corrupt(batch["input_ids"], batch["mlm_labels"])
    assert labels.sum() == 0
    assert torch.equal(ids[:, 3:13], batch["mlm_labels"][:, 3:13])


def test_no_gradient_flows_from_the_discriminator_into_the_generator():
    model = tiny_model(generator_weight=0.0).train()
    model(**masked_batch()).loss.backward()
    own = [p for name, p in model.generator.named_parameters() if name != "lm_head.weight"]
    assert all(p.grad is None or not p.grad.any() for p in own)


def test_a_batch_in_which_nothing_can_be_masked_has_a_finite_loss():
    model = tiny_model().train()
    batch = masked_batch()
    batch["mlm_labels"][:] = -100
    outputs = model(**batch)
    outputs.loss.backward()
    assert outputs.generator_loss == 0
    assert outputs.loss.isfinite()


# ---- Exits ----


@pytest.mark.parametrize("policy", ["topk", "random"])
def test_every_trainable_parameter_moves(policy):
    model = tiny_model(exit_policy=policy).train()
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    # Position embeddings past the sequence and tokens that do not occur have no gradient; so use them all.
    batch = masked_batch(batch_size=16, length=128)
    batch["token_type_ids"] = batch["input_ids"] % 2
    model(**batch).loss.backward()
    optimizer.step()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def survivors(model, batch, **kwargs):
    torch.manual_seed(7)
    outputs = model(**batch, **kwargs)
    return outputs.exit_layers, outputs.exit_positions


@pytest.mark.parametrize("rule", EXIT_RULES, ids=rule_name)
def test_labels_never_reach_routing(rule):
    floor = {"exit_auc_floor": 0.4} if rule["exit_policy"] == "topk" else {}
    model = tiny_model(**rule, **floor).train()
    ids = masked_batch()["input_ids"]
    labels = (ids % 5 == 0).long()
    before = {name: value.clone() for name, value in model.exit_state.state_dict().items()}
    reference = survivors(model, {"input_ids": ids, "labels": labels})
    for permuted in (labels[:, torch.randperm(labels.shape[1])], 1 - labels, labels.flip(0)):
        model.exit_state.load_state_dict(before)  # the labels of earlier steps are in there, by design
        exit_layers, positions = survivors(model, {"input_ids": ids, "labels": permuted})
        assert torch.equal(exit_layers, reference[0])
        assert all(torch.equal(a, b) for a, b in zip(positions, reference[1], strict=True))


def test_original_tokens_never_reach_routing_in_the_joint_objective():
    model = tiny_model(exit_signal="entropy").train()
    batch = masked_batch()
    reference = survivors(model, batch)
    other = batch["mlm_labels"].where(batch["mlm_labels"] == -100, (batch["mlm_labels"] + 11) % 115 + 5)
    changed = survivors(model, {**batch, "mlm_labels": other})
    assert torch.equal(changed[0], reference[0])


@pytest.mark.parametrize("context", ["all", "first", "none"])
@pytest.mark.parametrize("padding", [0, 20])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_keeping_everything_is_full_depth(context, padding, attention):
    model = tiny_model(exit_capacities=[1.0, 1.0], exit_context=context).eval()
    model.set_attn_implementation(attention)
    batch = {k: v for k, v in masked_batch(padding=padding).items() if k != "mlm_labels"}
    with torch.no_grad():
        torch.testing.assert_close(model(**batch, exit_policy="topk").logits, model(**batch).logits)


def test_gains_are_learned_from_audit_tokens_alone_and_touch_nothing_else(monkeypatch):
    model = tiny_model(exit_signal="expected_gain", exit_loss_weight=0.0).train()
    ids = masked_batch()["input_ids"]
    labels = (ids % 5 == 0).long()
    gradients = {}
    for with_gain in (True, False):
        if not with_gain:
            monkeypatch.setattr(model, "_gain_loss", lambda *args: torch.tensor(0.0))
        model.zero_grad()
        torch.manual_seed(1)
        outputs = model(ids, labels=labels)
        outputs.loss.backward()
        gradients[with_gain] = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        if with_gain:
            expected = []
            for number, selection in enumerate(outputs.exit_selections):
                errors = []
                for row, place in selection.exploration.nonzero().tolist():
                    candidate = selection.order[row, place]
                    position = outputs.exit_positions[number][row, candidate]
                    label = labels[row, position].float()
                    losses = [
                        F.binary_cross_entropy_with_logits(logit, label)
                        for logit in (outputs.exit_logits[number][row, candidate], outputs.logits[row, position])
                    ]
                    errors.append((outputs.exit_gains[number][row, candidate] - (losses[0] - losses[1])) ** 2)
                expected.append(torch.stack(errors).mean())
            discriminator = F.binary_cross_entropy_with_logits(outputs.logits, labels.float())
            torch.testing.assert_close(outputs.gain_loss, torch.stack(expected).mean().detach())
            torch.testing.assert_close(
                outputs.loss, discriminator + model.config.exit_gain_loss_weight * outputs.gain_loss
            )
    regressors = {name for name in gradients[True] if name.startswith("exit_gains")}
    assert regressors
    assert all(gradients[True][name].abs().sum() > 0 for name in regressors)
    for name, gradient in gradients[False].items():
        if name not in regressors:
            torch.testing.assert_close(gradients[True][name], gradient, msg=name)


@pytest.mark.parametrize("padding", [0, 20])
def test_at_full_depth_heads_and_regressors_learn_from_a_sample(padding):
    model = tiny_model(exit_signal="expected_gain", exit_full_depth_share=0.2).train()
    batch = masked_batch(padding=padding)
    labels = (batch.pop("mlm_labels") != -100).long()
    outputs = model(**batch, labels=labels, exit_policy="none")
    head_losses, gain_errors = [], []
    for number in range(2):
        for row, positions in enumerate(outputs.exit_positions[number].tolist()):
            assert len(set(positions)) == len(positions) == 13  # a fifth of 64, rounded up
            for place, position in enumerate(positions):
                if padding and batch["attention_mask"][row, position] == 0:
                    continue
                here, last = outputs.exit_logits[number][row, place], outputs.logits[row, position]
                losses = [F.binary_cross_entropy_with_logits(x, labels[row, position].float()) for x in (here, last)]
                head_losses.append(losses[0])
                gain_errors.append((outputs.exit_gains[number][row, place] - (losses[0] - losses[1])) ** 2)
    # Both exits are asked about the same tokens, so that the mean over all is the mean over the exits.
    torch.testing.assert_close(outputs.exit_loss, torch.stack(head_losses).mean().detach())
    torch.testing.assert_close(outputs.gain_loss, torch.stack(gain_errors).mean().detach())
    assert outputs.exit_selections is None
    assert outputs.exit_layers is None
    outputs.loss.backward()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if n.startswith(("exit_g", "exit_p")))


def test_full_depth_samples_use_the_output_of_all_tokens():
    model = tiny_model(exit_signal="expected_gain")
    inputs = {"input_ids": masked_batch()["input_ids"], "exit_policy": "none"}
    sampled, everything = model.train()(**inputs), model.eval()(**inputs)
    for name in ("exit_logits", "exit_gains"):
        for ours, all_of_them, positions in zip(sampled[name], everything[name], sampled.exit_positions, strict=True):
            assert all_of_them.shape == (4, 64)
            assert ours.shape == (4, 16)
            torch.testing.assert_close(ours, all_of_them.gather(1, positions))


def test_distillation_teaches_the_exit_heads_and_not_the_final_head():
    heads = {}
    for weight in (0.0, 1.0):
        model = tiny_model(exit_distillation_weight=weight).train()
        torch.manual_seed(1)
        ids = masked_batch()["input_ids"]
        model(ids, labels=(ids % 5 == 0).long()).loss.backward()
        heads[weight] = [
            head.dense_prediction.weight.grad for head in (model.discriminator_predictions, *model.exit_predictions)
        ]
    torch.testing.assert_close(heads[0.0][0], heads[1.0][0])
    assert not torch.allclose(heads[0.0][1], heads[1.0][1])


def test_below_the_auc_floor_chance_decides():
    model = tiny_model(exit_signal="entropy", exit_auc_floor=0.6, exit_exploration=0.0).train()
    batch = {"input_ids": masked_batch()["input_ids"]}
    kept = {}
    for auc in (0.55, 0.65):
        model.exit_state.auc.fill_(auc)
        kept[auc] = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            kept[auc].append(model(**batch).exit_layers)
    assert not torch.equal(*kept[0.55])
    assert torch.equal(*kept[0.65])


def test_exit_loss_scale():
    model = tiny_model(exit_signal="entropy", exit_exploration=0.0).train()
    ids = masked_batch()["input_ids"]
    outputs = model(ids, labels=(ids % 5 == 0).long(), exit_loss_scale=torch.tensor(0.25))
    expected = outputs.discriminator_loss + 0.25 * model.config.exit_loss_weight * outputs.exit_loss
    torch.testing.assert_close(outputs.loss.detach(), expected)


def test_weights_start_as_electras(tmp_path):
    """google-research/electra: Glorot where it names no initializer; a normal distribution elsewhere."""
    model = tiny_model(hidden_size=64, embedding_size=32, initializer_range=0.02, exit_signal="expected_gain")
    glorot = {
        "electra.embeddings_project.weight": (32, 64), "generator.embeddings_project.weight": None,
        "discriminator_predictions.dense_prediction.weight": (64, 1),
        "exit_predictions.0.dense_prediction.weight": (64, 1),
        "exit_predictions.1.dense_prediction.weight": (64, 1),
    }  # fmt: skip
    parameters = dict(model.named_parameters())
    for name, shape in glorot.items():
        if shape is None:  # the generator is as wide as the embeddings, and projects nothing
            assert name not in parameters
            continue
        bound = (6 / sum(shape)) ** 0.5
        largest = parameters[name].abs().max().item()
        assert 0.85 * bound < largest <= bound, name
        assert parameters[name].std().item() == pytest.approx(bound / 3**0.5, rel=0.25), name
    for name in ("discriminator_predictions.dense.weight", "electra.encoder.layer.0.output.dense.weight"):
        assert parameters[name].std().item() == pytest.approx(0.02, rel=0.05)
    assert parameters["discriminator_predictions.dense_prediction.bias"].abs().max() == 0
    model.save_pretrained(tmp_path)
    loaded = ElectraEarlyExitForPreTraining.from_pretrained(tmp_path).state_dict()
    assert [name for name, value in model.state_dict().items() if not torch.equal(loaded[name], value)] == []


@pytest.mark.parametrize("generator_type", ["unigram", "none"])
def test_labels_of_a_named_generator_are_weighted_as_the_joint_objective_is(generator_type):
    model = tiny_model(generator_type=generator_type, exit_policy="none").train()
    ids = masked_batch()["input_ids"]
    # The originals, which the collator sends along, change nothing.
    outputs = model(ids, labels=(ids % 5 == 0).long(), mlm_labels=ids)
    weight = 50.0 if generator_type == "unigram" else 1.0
    torch.testing.assert_close(outputs.loss.detach(), weight * outputs.discriminator_loss)


@pytest.mark.parametrize("rule", [{"exit_policy": "random"}, {"exit_signal": "expected_gain", "exit_auc_floor": 0.55}])
def test_training_steps_are_compiled_once(rule):
    """Every value that changes from step to step is a tensor. Tracing is what is tested: no code is generated."""
    torch.compiler.reset()
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    model = tiny_model(num_hidden_layers=3, **rule).train()
    compiled = torch.compile(model, backend=backend)
    counts = []
    for step in range(4):
        ids = masked_batch(seed=step)["input_ids"]
        scale = torch.tensor(step / 4)
        compiled(ids, labels=(ids % 5 == 0).long(), exit_loss_scale=scale).loss.backward()
        counts.append(len(traced))
    torch.compiler.reset()
    assert counts[0] >= 1
    assert counts == counts[:1] * 4


def test_norm_before_the_blocks_has_no_plain_form(tmp_path):
    with pytest.raises(ValueError, match="got 'pre'"):
        tiny_model(norm_position="pre").to_electra(tmp_path)


def reference_encoder(model, batch, trace):
    """Exits with boolean masks and no gathering: every layer computes everything, and only survivors are updated."""
    config, encoder = model.config, model.electra.encoder
    mask = batch.get("attention_mask")
    real = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
    states = model.electra.embed(batch["input_ids"], mask)
    states = model.electra.embeddings_project(states)
    active, fresh = torch.ones_like(real), True
    for index, layer in enumerate(encoder.layer):
        if index == len(encoder.layer) - config.exit_reentry_layers:
            active = torch.ones_like(real)
        sees_all = config.exit_context == "all" or (config.exit_context == "first" and fresh)
        keys = real if sees_all else real & active
        blocked = torch.zeros(keys.shape).masked_fill(~keys, torch.finfo(torch.float32).min)[:, None, None, :]
        updated = layer(states, blocked, attn_implementation="eager")
        states = torch.where(active.unsqueeze(-1), updated, states)
        fresh = index + 1 in config.exit_layers
        if fresh:
            active = trace.exit_layers > index + 1
    return encoder.norm(states)


PADDING = {
    "none": [],
    "right": range(44, 64),
    "left": range(20),
    "gaps": range(1, 64, 3),
}


@pytest.mark.parametrize("context", ["all", "first", "none"])
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize(("reentry", "norm"), [(0, "post"), (1, "pre"), (2, "post")])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gathered_survivors_equal_masked_full_computation(context, padding, reentry, attention, norm):
    model = tiny_model(
        exit_layers=[1, 3],
        exit_capacities=[0.5, 0.25],
        exit_context=context,
        exit_reentry_layers=reentry,
        norm_position=norm,
    )
    model.eval().set_attn_implementation(attention)
    batch = {"input_ids": masked_batch()["input_ids"]}
    if padding != "none":
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][1:, PADDING[padding]] = 0
    with torch.no_grad():
        outputs = model.electra(**batch, exit_policy="topk", exits=model.exits())
        expected = reference_encoder(model, batch, outputs)
    torch.testing.assert_close(outputs.last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_skipped_layers_compute_only_the_survivors():
    model = tiny_model().train()
    seen = []
    for layer in model.electra.encoder.layer:
        layer.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    outputs = model(**masked_batch())
    assert seen == [64, 64, 32, 32, 16, 64]
    counts = [(outputs.exit_layers == layer).sum(1).tolist() for layer in (2, 4, 6)]
    assert counts == [[32] * 4, [16] * 4, [16] * 4]


def test_special_tokens_never_exit_and_padding_does_first():
    model = tiny_model().train()
    batch = masked_batch(padding=20)
    batch["input_ids"][:, 30] = 3
    outputs = model(**batch)
    assert (outputs.exit_layers[:, [0, 30]] == 6).all()
    assert (outputs.exit_layers[1:, -20:] == 2).all()


def test_attention_backends_agree_with_exits():
    model = tiny_model(exit_signal="entropy", exit_exploration=0.0).train()
    results = []
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        model.zero_grad()
        outputs = model(masked_batch(padding=20)["input_ids"], labels=(masked_batch()["input_ids"] % 7 == 0).long())
        outputs.loss.backward()
        results.append((outputs.logits.detach(), model.electra.encoder.layer[3].output.dense.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("policy", ["none", "topk"])
def test_what_stands_in_the_padding_does_not_matter(policy):
    model = tiny_model(exit_signal="entropy", exit_exploration=0.0).eval()
    batch = masked_batch(padding=20)
    del batch["mlm_labels"]
    noisy = batch["input_ids"].where(batch["attention_mask"] == 1, torch.tensor(77))
    with torch.no_grad():
        first = model(**batch, exit_policy=policy).logits
        second = model(**{**batch, "input_ids": noisy}, exit_policy=policy).logits
    real = batch["attention_mask"] == 1
    torch.testing.assert_close(first[real], second[real])


def test_more_padding_changes_nothing_at_full_depth():
    model = tiny_model().eval()
    ids = masked_batch()["input_ids"]
    longer = F.pad(ids, (0, 30))
    with torch.no_grad():
        padded = model(longer, attention_mask=(torch.arange(94) < 64).long().expand(4, -1)).logits[:, :64]
        torch.testing.assert_close(padded, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(3)
        model(**masked_batch()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("norm_position", ["post", "pre"])
@pytest.mark.parametrize("rule", [{"exit_policy": "random"}, {"exit_signal": "expected_gain", "exit_auc_floor": 0.6}])
@pytest.mark.parametrize("kind", [lambda: torch.device("meta"), FakeTensorMode], ids=["meta", "fake"])
def test_a_training_step_needs_no_data(kind, rule, norm_position):
    with kind():
        model = tiny_model(**rule, norm_position=norm_position, generator_type="unigram").train()
        ids = torch.ones(2, 64, dtype=torch.long)
        model(ids, labels=ids).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.shape != p.shape] == []


def test_bf16_autocast_trains():
    model = tiny_model().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**masked_batch(padding=20)).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters())


# ---- Conversion, saving, loading ----


def test_to_and_from_electra_lose_nothing(tmp_path):
    model = tiny_model()
    folders = model.to_electra(tmp_path)
    back = ElectraEarlyExitForPreTraining.from_electra(
        folders["discriminator"],
        folders["generator"],
        exit_policy="topk",
        exit_signal="sampled_entropy",
        exit_layers=[2, 4],
        exit_capacities=[0.5, 0.25],
    )
    assert back.config.model_type == "electra_early_exit"
    ours, theirs = model.state_dict(), back.state_dict()
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if not n.startswith("exit_predictions") and not torch.equal(ours[n], theirs[n])] == []
    for name, value in model.discriminator_predictions.state_dict().items():
        assert torch.equal(theirs[f"exit_predictions.0.{name}"], value)


def test_from_electra_without_generator_starts_a_fresh_one(tmp_path):
    torch.manual_seed(0)
    settings = {"vocab_size": 50, "hidden_size": 64, "embedding_size": 16, "intermediate_size": 64}
    ElectraForPreTraining(ElectraConfig(**settings)).save_pretrained(tmp_path)
    model = ElectraEarlyExitForPreTraining.from_electra(tmp_path, exit_layers=[3, 6], exit_policy="random")
    assert model.config.exit_layers == [3, 6]
    assert model.config.exit_policy == "random"
    assert model.generator.encoder.layer[0].intermediate.dense.out_features == 64
    assert model.generator.lm_head.weight is model.electra.embeddings.word_embeddings.weight


def test_from_electra_refuses_a_generator_of_another_vocabulary(tmp_path):
    folders = tiny_model().to_electra(tmp_path / "a")
    other = tiny_model(vocab_size=99).to_electra(tmp_path / "b")
    with pytest.raises(ValueError, match=r"`vocab_size` must be the discriminator's \(120\), got 99"):
        ElectraEarlyExitForPreTraining.from_electra(folders["discriminator"], other["generator"])


def test_save_and_load_through_the_plugin(tmp_path, caplog):
    model = tiny_model().eval()
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is ElectraEarlyExitForPreTraining
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = masked_batch()["input_ids"]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    encoder, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(encoder) is ElectraEarlyExitModel
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_an_electra_checkpoint_lacks_only_the_additions(tmp_path):
    folder = tiny_model().to_electra(tmp_path)["discriminator"]
    _, report = ElectraEarlyExitForPreTraining.from_pretrained(folder, config=tiny_config(), output_loading_info=True)
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"exit_predictions", "exit_state", "generator"}


def test_resizing_the_vocabulary_resizes_the_generator(tmp_path):
    model = tiny_model()
    model.resize_token_embeddings(130)
    assert model.generator.lm_head.bias.shape == (130,)
    assert model.generator.lm_head.weight is model.electra.embeddings.word_embeddings.weight
    batch = masked_batch()
    batch["input_ids"][0, 5] = 129
    assert model(**batch).loss.isfinite()


def test_no_generator_means_no_generator():
    model = tiny_model(generator_type="none")
    assert not [name for name, _ in model.named_parameters() if name.startswith("generator")]
    assert model.get_output_embeddings() is None


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_the_self_generator_learns_originals_and_proposes_from_its_layer(norm_position):
    model = tiny_model(generator_type="self", exit_policy="none", norm_position=norm_position).train()
    batch = masked_batch(padding=20)
    batch["labels"] = (batch["input_ids"] % 5 == 0).long()
    asked = torch.zeros_like(batch["labels"], dtype=torch.bool)
    asked[:, 20:25] = True
    states = model.electra(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states[2]
    logits = model.generator.lm_head(model.generator(model.electra.encoder.norm(states)))
    outputs = model(**batch, proposal_mask=asked)
    chosen = batch["mlm_labels"] != -100
    expected = torch.nn.functional.cross_entropy(logits[chosen], batch["mlm_labels"][chosen])
    torch.testing.assert_close(outputs.generator_loss, expected.detach())
    torch.testing.assert_close(outputs.loss.detach(), (expected + 50 * outputs.discriminator_loss).detach())
    assert outputs.hidden_states is None
    assert ((outputs.proposals != -100) == asked).all()
    torch.manual_seed(3)
    proposals = model(**batch, proposal_mask=asked).proposals[asked]
    torch.manual_seed(3)
    assert torch.equal(proposals, generator_head.sample_tokens(logits[asked]))
    outputs.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.generator.parameters())
    assert model.generator.lm_head.weight is model.electra.embeddings.word_embeddings.weight


# ---- Misuse ----


@pytest.mark.parametrize(
    ("overrides", "inputs", "message"),
    [
        ({}, {"labels": torch.zeros(4, 64)}, "are mutually exclusive"),
        ({"generator_type": "none"}, {}, "requires `generator_type='mlm'`, got 'none'"),
        ({"exit_policy": "none"}, {"exit_policy": "topk"}, "requires `exits`"),
        ({}, {"exit_policy": "greedy"}, "one of"),
        ({}, {"inputs_embeds": torch.zeros(4, 64, 16)}, "exactly one of"),
        ({}, {"attention_mask": torch.ones(4, 1, 64, 64)}, r"shape \(batch, sequence\)"),
    ],
)
def test_misuse_raises_a_clear_error(overrides, inputs, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**overrides).train()(**{**masked_batch(), **inputs})


@pytest.mark.parametrize("exit_policy", ["topk", "random"])
def test_chance_belongs_to_the_sequence_and_not_to_the_batch(exit_policy):
    model = tiny_model(exit_policy=exit_policy).train()
    batch = {**masked_batch(), "noise_seeds": torch.tensor([5, -7, 11, 2**60])}
    together = model(**batch)
    assert not torch.equal(
        together.exit_layers, model(**{**batch, "noise_seeds": batch["noise_seeds"] + 1}).exit_layers
    )
    torch.manual_seed(1234)  # of no consequence
    for row in range(4):
        alone = model(**{name: value[row : row + 1] for name, value in batch.items()})
        assert torch.equal(alone.rtd_labels[0], together.rtd_labels[row])
        assert torch.equal(alone.exit_layers[0], together.exit_layers[row])


def test_what_is_sampled_at_full_depth_depends_on_the_sequence_alone():
    model = tiny_model().train()
    batch = {"input_ids": masked_batch()["input_ids"], "exit_policy": "none"}
    seeds = torch.tensor([5, -7, 11, 2**60])
    together = model(**batch, noise_seeds=seeds).exit_positions[0]
    assert not torch.equal(together, model(**batch, noise_seeds=seeds + 1).exit_positions[0])
    for row in range(4):
        alone = model(batch["input_ids"][row : row + 1], exit_policy="none", noise_seeds=seeds[row : row + 1])
        assert torch.equal(alone.exit_positions[0][0], together[row])


@pytest.mark.parametrize("size", [150, 90], ids=["more", "fewer"])
@pytest.mark.parametrize(
    "settings",
    [{"generator_type": "self"}, {}],
    ids=["self", "mlm"],
)
def test_a_resized_vocabulary_trains_and_loads(settings, size, tmp_path):
    model = tiny_model(**settings)
    model.resize_token_embeddings(size)
    batch = masked_batch()
    batch = {name: ids.clamp_max(size - 1) for name, ids in batch.items()}
    if model.config.generator_type == "self":
        batch["labels"] = (batch["input_ids"] % 5 == 0).long()
    batch["input_ids"][:, 20] = batch["mlm_labels"][:, 5] = size - 1
    model.train()(**batch).loss.backward()
    model.save_pretrained(tmp_path)
    loaded = ElectraEarlyExitForPreTraining.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == size
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


def test_no_two_draws_of_a_step_share_their_noise(monkeypatch):
    """A sequence's seed gives the generator, every exit's policy and every exit's exploration sample a stream each."""

    def numbered(seeds, length, streams):
        """The noise of the first sequence is the number of the stream."""
        noise = row_noise(seeds, length, streams)
        noise[0] = torch.arange(streams) / streams
        return noise

    monkeypatch.setattr(modeling_electra_exit, "row_noise", numbered)
    stream, streams = modeling_electra_exit.Exits.stream, []
    predict, samples = ElectraEarlyExitForPreTraining._predict_tokens, []

    def of_exit(*args, **kwargs):
        streams.append(stream(*args, **kwargs))
        return streams[-1]

    def of_generator(self, states, targets, noise=None):
        samples.append(noise)
        return predict(self, states, targets, noise)

    monkeypatch.setattr(modeling_electra_exit.Exits, "stream", of_exit)
    monkeypatch.setattr(ElectraEarlyExitForPreTraining, "_predict_tokens", of_generator)
    tiny_model().train()(**masked_batch(), noise_seeds=torch.arange(4))
    used = [*samples[0][0].tolist(), *(noise[0, 0].item() for noise in streams)]
    assert sorted(round(6 * number) for number in used) == list(range(2 + 2 * 2))
