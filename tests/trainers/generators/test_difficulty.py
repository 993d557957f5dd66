"""How hard a generator is: measured as by plain loops, reported, and said aloud when it is wrong."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from modeling_electra_exit import ElectraEarlyExitForMaskedLM
from modeling_electra_exit.trainers.generators.difficulty import (
    PLATEAU_TOKENS,
    TOO_STRONG_AUC,
    Difficulty,
    DifficultyCallback,
)
from modeling_electra_exit.trainers.generators.masked_lm import MaskedLanguageModel
from tests.conftest import masked_batch, tiny_model
from tests.trainers.generators.test_generators import saved_masked_lm
from tests.trainers.pretraining.test_trainer import make_trainer


def test_measures_against_plain_loops(tokenizer, tmp_path):
    model = ElectraEarlyExitForMaskedLM.of(saved_masked_lm(tmp_path, tokenizer))
    reference = MaskedLanguageModel(tmp_path, tokenizer)
    difficulty = Difficulty(reference, tokenizer.mask_token_id)
    equal = chosen = 0
    log_probabilities = []
    for seed in (0, 1):
        batch = masked_batch(seed=seed, padding=10)
        ids, labels, mask = (batch[name] % len(tokenizer) if name == "input_ids" else batch[name]
                             for name in ("input_ids", "mlm_labels", "attention_mask"))  # fmt: skip
        labels = torch.where(labels == -100, -100, labels % len(tokenizer))
        corrupted = torch.where(labels == -100, ids, labels)
        corrupted[:, 5:13] = 7 + seed  # of ten chosen positions, the first two stay
        difficulty.add(corrupted, labels, mask)
        for row in range(4):
            shown = corrupted[row : row + 1].clone()
            places = (labels[row] != -100).nonzero().flatten()
            shown[0, places] = tokenizer.mask_token_id
            where = (labels[row] != -100)[None]
            with torch.no_grad():
                logs = model(shown, mask[row : row + 1]).logits[where].log_softmax(-1)
            for log, place in zip(logs, places, strict=True):
                chosen += 1
                before, after = labels[row, place], corrupted[row, place]
                equal += int(before == after)
                if before != after:
                    log_probabilities.append((log[after].item(), log[before].item()))
    found = difficulty.measures()
    assert found["generator_equal_rate"] == equal / chosen
    assert 0.2 <= equal / chosen < 0.4
    after, before = (sum(values) / len(values) for values in zip(*log_probabilities, strict=True))
    assert found["replacement_log_probability"] == pytest.approx(after, rel=1e-4)
    assert found["original_log_probability"] == pytest.approx(before, rel=1e-4)


def test_without_a_reference_or_anything_chosen():
    difficulty = Difficulty(None, 4)
    assert difficulty.measures() == {}
    difficulty.add(torch.tensor([[5, 6, 7]]), torch.tensor([[-100, 6, 8]]), None)
    assert difficulty.measures() == {"generator_equal_rate": 0.5}


@pytest.mark.parametrize("generator_type", ["mlm", "self", "unigram", "bigram"])
def test_log_and_evaluation_tell_how_hard_it_is(tokenizer, tmp_path, generator_type):
    saved_masked_lm(tmp_path / "reference", tokenizer)
    model = tiny_model(generator_type=generator_type, vocab_size=len(tokenizer))
    trainer = make_trainer(tokenizer, tmp_path, model, max_steps=2, reference_folder=str(tmp_path / "reference"))
    trainer.train()
    log = trainer.state.log_history[0]
    assert 0 < log["discriminator_auc"] < 1
    evaluated = trainer.evaluate()
    chosen = round(0.15 * 64) / 64
    for equal, replaced in (
        (evaluated["eval_generator_equal_rate"], evaluated["eval_replaced_rate"]),
        (log["generator_equal_rate"], None),
    ):
        assert 0 <= equal < 0.5
        if replaced is not None:
            assert replaced == pytest.approx(chosen * (1 - equal))
    assert evaluated["eval_replacement_log_probability"] < 0
    assert evaluated["eval_original_log_probability"] < 0


def test_self_is_evaluated_on_its_own_proposals_and_remembers_none(tokenizer, tmp_path, monkeypatch):
    model = tiny_model(generator_type="self", vocab_size=len(tokenizer))
    trainer = make_trainer(tokenizer, tmp_path, model)
    with torch.no_grad():  # the head proposes one and the same token everywhere
        model.generator.lm_head.bias[9] = 1e4
    seen = []
    model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
    trainer.evaluate()
    batch = next(kwargs for kwargs in seen if "mlm_labels" in kwargs)
    assert (batch["input_ids"][batch["mlm_labels"] != -100] == 9).all()
    assert trainer.generator.state_dict() == {}


@pytest.mark.parametrize(
    ("step", "logs", "said"),
    [
        (5, {"discriminator_auc": 0.985}, "too easy"),
        (4, {"discriminator_auc": 0.985}, None),  # the first steps
        (50, {"discriminator_auc": 0.52}, "too strong, or training has stalled: after 50 of 99 steps"),
        (20, {"discriminator_auc": 0.52}, None),  # the plateau
        (5, {"discriminator_auc": 0.7, "generator_equal_rate": 0.7}, "too strong: 70% of its replacements"),
        (1, {"discriminator_auc": 0.7, "generator_equal_rate": 0.7}, None),
        (50, {"discriminator_auc": 0.8, "generator_equal_rate": 0.3}, None),
        (50, {"eval_roc_auc": 0.99}, None),
    ],
)
def test_alarms_are_given_once_and_not_in_the_first_steps(caplog, step, logs, said):
    callback, state = DifficultyCallback(), TrainerState(global_step=step, max_steps=99)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            callback.on_log(None, state, TrainerControl(), logs=logs)
    assert len(caplog.messages) == (said is not None)
    if said:
        assert said in caplog.messages[0]


@pytest.mark.parametrize(
    ("step", "corpus_init", "alarms"), [(1001, True, True), (1000, True, False), (2000, False, False)]
)
def test_a_run_that_starts_from_statistics_is_late_after_two_million_tokens(caplog, step, corpus_init, alarms):
    args, state = SimpleNamespace(corpus_init=corpus_init), TrainerState(global_step=step, max_steps=10_000)
    callback = DifficultyCallback(lambda: 2000)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            callback.on_log(args, state, None, {"discriminator_auc": 0.52})
    assert len(caplog.messages) == alarms


def test_every_measured_run_that_learned_had_left_the_plateau_by_then():
    """Where `PLATEAU_TOKENS` comes from."""
    late, runs = 0, 0
    for path in (Path(__file__).parents[3] / "benchmarks" / "results").glob("*/*-seed*.json"):
        run = json.loads(path.read_text())
        curve = [(entry["step"], entry["discriminator_auc"]) for entry in run.get("log", ())
                 if "discriminator_auc" in entry]  # fmt: skip
        if curve and run["fields"].get("corpus_init") and curve[-1][1] >= 0.6:
            below = max((step for step, auc in curve if auc < TOO_STRONG_AUC), default=0)
            late, runs = max(late, below * run["training"]["tokens_per_step"]), runs + 1
    assert runs > 70
    assert 0.8 * PLATEAU_TOKENS < late < PLATEAU_TOKENS
