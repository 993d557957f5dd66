"""What users run: the shipped defaults, of which nothing is changed but sizes and the number of steps.

Most other tests set exits of their own, so that more can happen in a tiny model. Here nothing about the exits, the
generator or the schedule is set.
"""

import json

import pytest
import torch
from scipy.stats import chi2
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

from electra_exit import main as cli
from modeling_electra_exit import ElectraEarlyExitConfig, ElectraEarlyExitForPreTraining
from modeling_electra_exit.exit_policy import capacity
from tests.conftest import MASK_ID, write_corpus


SIZES = {
    "vocab_size": 120,
    "embedding_size": 8,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "max_position_embeddings": 512,
    "generator_size": 1.0,
    "generator_num_hidden_layers": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CLS, SEP = 2, 3


def default_model(**overrides) -> ElectraEarlyExitForPreTraining:
    torch.manual_seed(0)
    return ElectraEarlyExitForPreTraining(
        ElectraEarlyExitConfig(**{**SIZES, "cls_token_id": CLS, "sep_token_id": SEP, **overrides})
    )


def text(rows: int, length: int, separators: int) -> torch.Tensor:
    """Sequences with a [CLS] and that many [SEP], evenly spaced."""
    ids = torch.randint(5, 120, (rows, length))
    ids[:, 0] = CLS
    ids[:, torch.arange(1, separators + 1) * (length - 1) // separators] = SEP
    return ids


def test_the_defaults_are_those_of_the_docs():
    config = ElectraEarlyExitConfig()
    assert (config.exit_policy, config.exit_layers, config.exit_capacities) == ("random", [4], [0.125])
    assert (config.generator_type, config.generator_weight, config.discriminator_weight) == ("mlm", 1.0, 50.0)
    assert (config.exit_reentry_layers, config.exit_context, config.mlm_probability) == (1, "all", 0.15)


@pytest.mark.parametrize("seeded", [True, False], ids=["seeds", "torch"])
@pytest.mark.parametrize("separators", [1, 3])
@pytest.mark.parametrize("length", [64, 128, 512])
def test_every_position_is_as_likely_to_continue_as_any_other(length, separators, seeded):
    """Pearson's test of the number of times that each ordinary token continued, through the model."""
    model = default_model().train()
    rows = 2_000 * 64 // length
    ids = text(rows, length, separators)
    with torch.no_grad():
        seeds = torch.randint(2**62, (rows,)) if seeded else None
        outputs = model(ids, labels=torch.zeros_like(ids), noise_seeds=seeds)
    counts = (outputs.exit_layers > model.config.exit_layers[0]).sum(0)
    special = (ids[0] == CLS) | (ids[0] == SEP)
    assert (counts[special] == rows).all()
    drawn = capacity(model.config.exit_capacities[0], length) - int(special.sum())
    candidates = length - int(special.sum())
    assert counts[~special].sum() == rows * drawn
    expected = rows * drawn / candidates
    # A row draws without replacement, which makes the counts vary less than independent draws would.
    statistic = ((counts[~special] - expected) ** 2 / expected).sum() * (candidates - 1) / (candidates - drawn)
    assert statistic < chi2.ppf(0.999, candidates - 1)
    assert statistic > chi2.ppf(0.001, candidates - 1)


def test_chance_does_not_look_at_the_predictions():
    """The same seeds keep the same tokens, whatever the weights say."""
    ids, seeds = text(16, 64, 2), torch.arange(16)
    kept = []
    for seed in (0, 1):
        model = default_model().train()
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.data.normal_()
        kept.append(model(ids, labels=ids % 2, noise_seeds=seeds).exit_layers)
    assert torch.equal(*kept)
    assert not torch.equal(kept[0], model(ids, labels=ids % 2, noise_seeds=seeds + 99).exit_layers)


def test_a_sample_that_is_a_special_token_exits_like_any_other():
    """Only the special tokens of the text are protected: the generator may sample one at an ordinary place."""
    model = default_model(generator_type="unigram").train()
    ids = text(2_000, 64, 2)
    labels = torch.full_like(ids, -100)
    labels[:, 9], corrupted = ids[:, 9], ids.clone()
    corrupted[:, 9] = SEP
    with torch.no_grad():
        outputs = model(corrupted, labels=(corrupted != ids).long(), mlm_labels=labels)
    continued = outputs.exit_layers > 1
    assert continued[ids == SEP].all()
    share, expected = continued[:, 9].float().mean().item(), 5 / 61
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 2_000) ** 0.5


def test_special_tokens_continue_in_the_joint_objective():
    model = default_model().train()
    ids = text(8, 64, 2)
    labels = torch.full_like(ids, -100)
    labels[:, 5:15] = ids[:, 5:15]
    masked = ids.clone()
    masked[:, 5:15] = MASK_ID
    outputs = model(masked, mlm_labels=labels)
    continued = outputs.exit_layers > 1
    assert continued[(ids == CLS) | (ids == SEP)].all()
    assert continued.sum(1).tolist() == [8] * 8
    outputs.loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "exit_predictions" in name)


def test_the_default_needs_no_vocabulary_ids():
    model = default_model().train()
    outputs = model(inputs_embeds=torch.randn(2, 64, 8), labels=torch.zeros(2, 64, dtype=torch.long))
    assert (outputs.exit_layers > 1).sum(1).tolist() == [8, 8]
    assert set(dict(model.exit_state.named_buffers())) == {"auc", "replaced_rate", "left"}


# ---- From the command line, end to end ----

SMALL = {
    "vocab_size": 90, "max_seq_length": 64, "max_position_embeddings": 64, "hidden_size": 16, "embedding_size": 16,
    "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 6, "max_steps": 20, "warmup_steps": 2,
    "per_device_train_batch_size": 4, "logging_steps": 1, "save_steps": 10, "use_cpu": "true",
    "validation_fraction": 0.1,
}  # fmt: skip


def command(name: str, *argv, **flags) -> None:
    words = [str(word) for word in argv] + [
        word for flag, value in flags.items() for word in (f"--{flag}", str(value))
    ]
    assert cli.main([name, *words]) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The quickstart's recipe with the default exits, at a tiny size and on made-up text."""
    folder = tmp_path_factory.mktemp("defaults")
    corpus = write_corpus(folder / "corpus.txt", documents=200)
    command("pretrain", "quickstart", train_files=corpus, output_dir=folder / "run", exit_policy="random", **SMALL)
    return folder / "run"


def test_the_recipe_exits_in_the_middle_of_a_run_and_ends_at_full_depth(run):
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    steps = {entry["step"]: entry for entry in history if "exits_active" in entry}
    assert [step for step, entry in steps.items() if entry["exits_active"]] == list(range(3, 15))
    shares = [steps[5][f"kept_layer_{layer}"] for layer in range(1, 7)]
    assert shares == [1, 1, 0.125, 0.125, 0.125, 1]
    assert [steps[18][f"kept_layer_{layer}"] for layer in range(1, 7)] == [1] * 6
    assert all(0 <= entry["exit_auc_layer_2"] <= 1 for entry in steps.values())
    config = json.loads((run / "config.json").read_text())
    assert (config["exit_policy"], config["exit_signal"]) == ("random", None)
    assert None not in (config["cls_token_id"], config["sep_token_id"], config["pad_token_id"])


def test_its_checkpoint_loads_and_runs_at_full_depth(run):
    model = AutoModelForPreTraining.from_pretrained(run).eval()
    ids = torch.randint(5, 60, (2, 32))
    with torch.no_grad():
        outputs = model(ids)
        assert outputs.exit_layers is None
        torch.testing.assert_close(
            AutoModel.from_pretrained(run).eval()(ids).last_hidden_state, model.electra(ids).last_hidden_state
        )
    assert len(AutoModelForSequenceClassification.from_pretrained(run, num_labels=3).exit_heads.heads) == 1


def test_it_scores_text(run, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sleeps near the old house\n")
    command("score", run, tmp_path / "text.txt", output=tmp_path / "scores.jsonl")
    (scores,) = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert scores
