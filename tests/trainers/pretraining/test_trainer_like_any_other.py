"""What every Trainer takes, ours takes; and what every model gives, the library's own Trainer gets of ours."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, trainer

from modeling_electra_exit.trainers import (
    DataCollatorForReplacedTokenDetection,
    ElectraAdamW,
    ElectraEarlyExitTrainer,
    ElectraEarlyExitTrainingArguments,
)
from modeling_electra_exit.trainers.errors import UsageError
from modeling_electra_exit.trainers.finetuning.run import FineTuningTrainer
from tests.conftest import tiny_model
from tests.trainers.pretraining.test_trainer import LENGTH, make_trainer, sequences


STOCK = {"max_steps": 2, "per_device_train_batch_size": 8, "report_to": "none", "use_cpu": True, "logging_steps": 1,
         "save_strategy": "no", "disable_tqdm": True}  # fmt: skip


class Rows(torch.utils.data.Dataset):
    """As torch has it: rows of tensors, by number."""

    def __init__(self, tokenizer, count=16):
        self.rows = sequences(tokenizer, count)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {"input_ids": torch.tensor(self.rows[i]["input_ids"])}


# ---- Arguments ----


def test_plain_arguments_are_completed(tokenizer, tmp_path):
    data = sequences(tokenizer)
    args = TrainingArguments(str(tmp_path), learning_rate=3e-4, seed=5, **STOCK)
    args.of_the_user = "kept"
    mine = ElectraEarlyExitTrainer(tiny_model(), args, train_dataset=data, processing_class=tokenizer)
    assert isinstance(mine.args, ElectraEarlyExitTrainingArguments)
    assert (mine.args.learning_rate, mine.args.mask_seed, mine.args.of_the_user) == (3e-4, 5, "kept")
    assert (mine.args.exit_cooldown, mine.args.generator_temperature) == (0.3, [2.0, 1.0])
    mine.train()
    assert mine.state.global_step == 2
    assert type(mine.optimizer.optimizer) is ElectraAdamW


@pytest.mark.parametrize("cls", [ElectraEarlyExitTrainer, FineTuningTrainer])
def test_no_arguments_are_our_defaults(tokenizer, tmp_path, monkeypatch, cls):
    monkeypatch.chdir(tmp_path)
    mine = cls(tiny_model(), processing_class=tokenizer, train_dataset=sequences(tokenizer))
    assert type(mine.args) is cls.arguments_class
    assert mine.args.output_dir == "tmp_trainer"


# ---- Models made on the way ----


def test_a_model_that_is_made_on_the_way(tokenizer, tmp_path):
    """Each model gets what goes with it; the result is that of the same model given."""
    args = make_trainer(tokenizer, tmp_path, max_steps=3).args
    common = {"train_dataset": sequences(tokenizer), "processing_class": tokenizer}
    given = ElectraEarlyExitTrainer(tiny_model(generator_type="unigram", cls_token_id=None), args, **common)
    made = ElectraEarlyExitTrainer(
        None, args, model_init=lambda: tiny_model(generator_type="unigram", cls_token_id=None), **common
    )
    for each in (given, made):
        tiny_model(generator_type="unigram")  # seeds, and draws as many numbers as `model_init`
        each.train()
        assert each.model.config.cls_token_id == tokenizer.cls_token_id
    first, second = given.model.state_dict(), made.model.state_dict()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


class Trials:
    """A backend of hyperparameter search, for where none is installed: trials one after the other."""

    def ensure_available(self):
        pass

    def run(self, searching, n_trials, direction, **kwargs):
        objectives = []
        for number in range(n_trials):
            searching.train(trial=SimpleNamespace(number=number, params={"number": number}))
            objectives.append(searching.compute_objective(searching.evaluate()))
        return objectives


def search(tokenizer, tmp_path, trials, **arguments):
    """Over a generator and a seed; what each trial was made of, and the search's result."""
    kinds, seen = ["mlm", "unigram", "bigram"], []

    def model_init(trial):
        kind = kinds[0 if trial is None else trial.number % 3]
        return tiny_model(generator_type=kind, sep_token_id=None, vocab_size=len(tokenizer))

    class Look(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            seen.append(
                (model.config.generator_type, model.config.sep_token_id, searching.data_collator.seed,
                 type(searching.data_collator.replacements).__name__, state.global_step)
            )  # fmt: skip

    args = make_trainer(tokenizer, tmp_path, max_steps=2, per_device_eval_batch_size=8).args
    searching = ElectraEarlyExitTrainer(
        args=args, model_init=model_init, train_dataset=sequences(tokenizer), eval_dataset=sequences(tokenizer, 8, 1),
        processing_class=tokenizer, callbacks=[Look()],
    )  # fmt: skip
    result = searching.hyperparameter_search(
        hp_space=lambda trial: {"seed": 10 + trial.number}, compute_objective=lambda metrics: metrics["eval_loss"],
        n_trials=trials, **arguments,
    )  # fmt: skip
    replacements = ["NoneType", "TokenDistribution", "Bigram"]
    expected = [(kinds[i], tokenizer.sep_token_id, 10 + i, replacements[i], 2) for i in range(trials)]
    assert seen == expected
    return result


def test_hyperparameters_are_searched(tokenizer, tmp_path, monkeypatch):
    optuna = trainer.HPSearchBackend.OPTUNA
    monkeypatch.setitem(trainer.ALL_HYPERPARAMETER_SEARCH_BACKENDS, optuna, Trials)
    monkeypatch.setattr(Trainer, "_report_to_hp_search", lambda *args: None)  # these two know real trials alone
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    losses = search(tokenizer, tmp_path, 3, backend="optuna")
    assert np.isfinite(losses).all()
    assert len(set(losses)) == 3


def test_hyperparameters_are_searched_with_optuna(tokenizer, tmp_path):
    pytest.importorskip("optuna")
    best = search(tokenizer, tmp_path, 2, backend="optuna")
    assert np.isfinite(best.objective)


# ---- Data ----


@pytest.mark.parametrize("generator_type", ["unigram", "bigram", "self"])
def test_a_data_set_of_torch(tokenizer, tmp_path, generator_type):
    def run(data, folder):
        torch.manual_seed(0)
        args = make_trainer(tokenizer, tmp_path / folder, max_steps=2).args
        mine = ElectraEarlyExitTrainer(
            tiny_model(generator_type=generator_type), args, train_dataset=data, processing_class=tokenizer
        )
        mine.train()
        return mine.model.state_dict()

    rows = Rows(tokenizer)
    first, second = run(rows, "torch"), run(rows.rows, "arrow")
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_text_that_cannot_be_counted_is_refused(tokenizer, tmp_path):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                yield {"input_ids": [2, 9, 3]}

    args = make_trainer(tokenizer, tmp_path).args
    for data, name in ((Endless(), "Endless"), (None, "NoneType")):
        with pytest.raises(UsageError, match=f"requires a `train_dataset` with a length, got {name}"):
            ElectraEarlyExitTrainer(
                tiny_model(generator_type="unigram"), args, train_dataset=data, processing_class=tokenizer
            )


def test_labels_of_whole_texts_are_left_out(tokenizer, tmp_path):
    data = sequences(tokenizer)
    losses = []
    for each in (data, data.add_column("labels", [i % 2 for i in range(len(data))])):
        mine = ElectraEarlyExitTrainer(
            tiny_model(), make_trainer(tokenizer, tmp_path, max_steps=2).args, train_dataset=each,
            processing_class=tokenizer,
        )  # fmt: skip
        losses.append(mine.train().training_loss)
    assert losses[0] == losses[1]


# ---- The tokenizer's tokens in the config ----


@pytest.mark.parametrize("way", ["processing_class", "collator", "model_init"])
def test_every_way_in_names_the_tokens_that_must_not_exit(tokenizer, tmp_path, way):
    args = make_trainer(tokenizer, tmp_path).args
    model = tiny_model(cls_token_id=None, sep_token_id=None, pad_token_id=None)
    ways = {
        "processing_class": {"model": model, "processing_class": tokenizer},
        "collator": {"model": model, "data_collator": DataCollatorForReplacedTokenDetection(tokenizer)},
        "model_init": {"model_init": lambda: model, "processing_class": tokenizer},
    }
    mine = ElectraEarlyExitTrainer(args=args, train_dataset=sequences(tokenizer), **ways[way])
    for name in ("pad_token_id", "cls_token_id", "sep_token_id"):
        assert getattr(mine.model.config, name) == getattr(tokenizer, name)


def test_renamed_special_tokens_are_logged(tokenizer, tmp_path, caplog):
    args = make_trainer(tokenizer, tmp_path).args
    with caplog.at_level(logging.WARNING):
        mine = ElectraEarlyExitTrainer(
            tiny_model(sep_token_id=9), args, train_dataset=sequences(tokenizer), processing_class=tokenizer
        )
    assert mine.model.config.sep_token_id == tokenizer.sep_token_id
    assert f"`sep_token_id` is 9 in the model and {tokenizer.sep_token_id} in the tokenizer" in caplog.text


@pytest.mark.parametrize("generator_type", ["mlm", "unigram"])
def test_a_separator_that_also_pads_is_learned(tokenizer, generator_type):
    """`nn.Embedding` would keep the padding token's vector at 0 for good."""
    model = tiny_model(pad_token_id=3, sep_token_id=3, generator_type=generator_type)
    before = model.electra.embeddings.word_embeddings.weight[3].detach().clone()
    assert before.norm() > 0
    ids = torch.tensor([[2, 9, 8, 3, 3, 3]])
    model(ids, labels=torch.zeros_like(ids), attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]])).loss.backward()
    assert model.electra.embeddings.word_embeddings.weight.grad[3].norm() > 0


def test_a_tied_weight_is_not_reported_missing(tokenizer, tmp_path, monkeypatch):
    saved = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 2, "eval_steps": 2,
             "load_best_model_at_end": True}  # fmt: skip
    said = []
    monkeypatch.setattr(trainer.logger, "warning", lambda message, *args: said.append(message))
    make_trainer(tokenizer, tmp_path, max_steps=2, **saved).train()
    mine = make_trainer(tokenizer, tmp_path, tiny_model(), max_steps=4, **saved)
    mine.train(resume_from_checkpoint=True)
    assert mine.model.generator.lm_head.weight is mine.model.get_input_embeddings().weight
    assert not [message for message in said if "missing keys" in message]
    missing = mine.model.load_state_dict({}, strict=False)
    mine._issue_warnings_after_load(missing)
    assert [message for message in said if "missing keys" in message and "lm_head.weight" not in message]


# ---- The library's own Trainer ----


@pytest.mark.parametrize("generator_type", ["mlm", "unigram", "corrupted"])
def test_the_librarys_trainer_trains_evaluates_and_predicts(tokenizer, tmp_path, generator_type):
    data, replacements = sequences(tokenizer, 16), None
    if generator_type == "corrupted":
        data = data.add_column("labels", [[i % 7 == 0 for i in range(LENGTH)]] * len(data))
    elif generator_type == "unigram":
        replacements = lambda row, positions, generator: (row[positions] + 1) % 75  # noqa: E731
    kind = "none" if generator_type == "corrupted" else generator_type
    model = tiny_model(generator_type=kind, vocab_size=len(tokenizer))
    stock = Trainer(
        model, TrainingArguments(str(tmp_path), **STOCK),
        DataCollatorForReplacedTokenDetection(tokenizer, LENGTH, replacements=replacements),
        train_dataset=data, eval_dataset=data, processing_class=tokenizer,
    )  # fmt: skip
    stock.train()
    assert stock.state.log_history[0]["grad_norm"] > 0
    assert stock.label_names == ["labels"]
    evaluated = stock.evaluate()
    assert 0 < evaluated["eval_loss"] < 100
    predicted = stock.predict(data)
    assert predicted.predictions.shape == (16, LENGTH)
    assert predicted.metrics["test_loss"] == pytest.approx(evaluated["eval_loss"])
    with torch.no_grad():
        batch = stock.data_collator([data[i] for i in range(16)])
        outputs = model.eval()(**batch)
    torch.testing.assert_close(torch.from_numpy(predicted.predictions), outputs.logits, atol=1e-4, rtol=1e-4)
    if kind == "mlm":
        assert predicted.label_ids.shape == (16, 0)  # the model makes them
    else:
        assert np.array_equal(predicted.label_ids, outputs.rtd_labels)
    with_labels = stock.predict(data, ignore_keys=[key for key in model.config.keys_to_ignore_at_inference
                                                   if key != "rtd_labels"])  # fmt: skip
    assert np.array_equal(with_labels.predictions[1], outputs.rtd_labels)
