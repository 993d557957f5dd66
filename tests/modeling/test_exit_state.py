"""What training measures about its exits."""

import copy

import pytest
import torch
from sklearn.metrics import roc_auc_score

from modeling_electra_exit import ElectraEarlyExitForPreTraining
from modeling_electra_exit.exit_state import DECAY, ElectraEarlyExitState, class_errors, roc_auc
from tests.conftest import masked_batch, tiny_config, tiny_model


def training_step(model, seed=0, **kwargs):
    """One forward pass in training mode; every eighth id counts as replaced."""
    batch = masked_batch(seed=seed, **kwargs)
    del batch["mlm_labels"]
    batch["labels"] = (batch["input_ids"] % 8 == 0).long()
    torch.manual_seed(seed)
    return model(**batch), batch


@pytest.mark.parametrize("seed", range(3))
def test_roc_auc_is_sklearns(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(500, generator=generator)
    labels = (torch.rand(500, generator=generator) < 0.2).long()
    labels[::7] = -1
    real = labels >= 0
    assert roc_auc(logits, labels).item() == pytest.approx(roc_auc_score(labels[real], logits[real]), abs=1e-5)


def test_roc_auc_of_one_class_is_one_half():
    assert roc_auc(torch.randn(9), torch.zeros(9, dtype=torch.long)) == 0.5


def test_class_errors_match_plain_loops():
    torch.manual_seed(0)
    logits, labels, mask = torch.randn(3, 40), torch.randint(-1, 2, (3, 40)), torch.rand(3, 40) < 0.5
    counts = class_errors(logits, labels, mask, torch.tensor(0.3))
    expected = torch.zeros(2, 2)
    for logit, label, counted in zip(logits.flatten(), labels.flatten(), mask.flatten(), strict=True):
        if counted and label >= 0:
            expected[label, 1] += 1
            expected[label, 0] += (torch.sigmoid(logit) > 0.3).long() != label
    assert torch.equal(counts, expected)


def test_one_step_of_statistics_matches_plain_loops():
    model = tiny_model(exit_signal="entropy").train()
    prior = model.exit_state.replaced_rate.item()
    outputs, batch = training_step(model, padding=20)
    labels = batch["labels"].masked_fill(batch["attention_mask"] == 0, -1)
    for number, positions in enumerate(outputs.exit_positions):
        selection, logits = outputs.exit_selections[number], outputs.exit_logits[number]
        left = torch.zeros(2, 2)
        for row in range(4):
            for place, candidate in enumerate(selection.order[row].tolist()):
                label = labels[row, positions[row, candidate]].item()
                if label < 0:
                    continue
                wrong = (torch.sigmoid(logits[row, candidate]) > prior).long().item() != label
                if place >= selection.exploration.shape[1]:
                    left[label] += torch.tensor([wrong, 1.0])
        assert torch.equal(model.exit_state.left[number], left)
    rate = (labels == 1).sum() / (labels >= 0).sum()
    assert model.exit_state.replaced_rate.item() == pytest.approx(DECAY * prior + (1 - DECAY) * rate.item())


def test_statistics_are_saved_and_loaded(tmp_path):
    model = tiny_model().train()
    training_step(model)
    model.save_pretrained(tmp_path)
    loaded = ElectraEarlyExitForPreTraining.from_pretrained(tmp_path)
    for name, buffer in model.exit_state.named_buffers():
        assert torch.equal(loaded.exit_state.get_buffer(name), buffer), name


def test_a_checkpoint_without_statistics_starts_them_afresh(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if "exit_state" not in k})
    loaded = ElectraEarlyExitForPreTraining.from_pretrained(tmp_path)
    for name, value in loaded.exit_state.initial(loaded.config).items():
        assert torch.equal(loaded.exit_state.get_buffer(name), value), name


def test_evaluation_and_dense_steps_leave_the_statistics_alone():
    model = tiny_model()
    before = {name: buffer.clone() for name, buffer in model.exit_state.named_buffers()}
    training_step(model.eval())
    batch = masked_batch()
    model.train()(**batch, exit_policy="none")
    for name, buffer in model.exit_state.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_stay_in_fp32_whatever_the_weights_are(dtype, tmp_path):
    """In bf16, a hundredth of the way from 0.5 to 0.7 is less than half of the distance to the next number."""
    model = tiny_model().train()
    model.exit_state.auc.fill_(0.6123456)
    ways = {"to": model.to(dtype), "cast": copy.deepcopy(model).type(dtype)}  # DeepSpeed does the second
    model.save_pretrained(tmp_path)
    ways["loaded"] = ElectraEarlyExitForPreTraining.from_pretrained(tmp_path, dtype=dtype)
    with torch.device("meta"):
        empty = tiny_model()
    ways["from meta"] = empty.to_empty(device="cpu").to(dtype)
    for way, cast in ways.items():
        assert cast.dtype == dtype, way
        assert {buffer.dtype for buffer in cast.exit_state.buffers()} == {torch.float32}, way
    assert ways["loaded"].exit_state.auc.tolist() == pytest.approx([0.6123456] * 2, abs=1e-7)
    model.exit_state.auc.fill_(0.5)
    ids = masked_batch()["input_ids"]
    for _ in range(3):
        model(ids, labels=(ids % 5 == 0).long())
    assert (model.exit_state.auc != 0.5).all()


def test_errors_are_shares_of_each_class():
    state = ElectraEarlyExitState(tiny_config())
    state.left[0] = torch.tensor([[1.0, 4.0], [3.0, 6.0]])
    assert state.error_on_left()[0].tolist() == pytest.approx([0.25, 0.5])
    assert (state.error_on_left()[1] == 0).all()  # nothing seen yet


def test_a_step_counts_for_those_between_that_are_not_measured():
    states = []
    for steps in ([4], [1, 1, 1, 1]):
        model = tiny_model(exit_policy="random").train()
        torch.manual_seed(0)
        outputs, batch = training_step(model, padding=20)
        for each in steps:
            model.exit_state.update(outputs, batch["labels"], batch["attention_mask"], steps=each)
        states.append(model.exit_state)
    once, often = states
    for name in ("auc", "replaced_rate"):
        torch.testing.assert_close(once.get_buffer(name), often.get_buffer(name), atol=1e-6, rtol=1e-6)
    before = once.left.clone()
    once.update(outputs, batch["labels"], batch["attention_mask"], steps=3)
    assert once.left[..., 1].tolist() == (before[..., 1] * DECAY**3 + before[..., 1]).tolist()


@pytest.mark.parametrize(("policy", "moves"), [("random", False), ("topk", True)])
def test_the_model_measures_what_its_policy_reads(policy, moves):
    model = tiny_model(exit_policy=policy).train()
    training_step(model)
    assert (model.exit_state.left.sum() > 0) == moves
