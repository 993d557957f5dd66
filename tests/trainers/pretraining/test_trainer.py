import functools
import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForPreTraining

from modeling_electra_exit.exit_state import ElectraEarlyExitState
from modeling_electra_exit.trainers import (
    DataCollatorForReplacedTokenDetection,
    ElectraAdamW,
    ElectraEarlyExitTrainer,
    ElectraEarlyExitTrainingArguments,
)
from modeling_electra_exit.trainers.errors import DivergenceError
from modeling_electra_exit.trainers.pretraining import trainer as trainer_module
from modeling_electra_exit.trainers.pretraining.collator import build_collator
from modeling_electra_exit.trainers.pretraining.trainer import EXPLODED
from modeling_electra_exit.trainers.runtime import cpu_kernels, late
from modeling_electra_exit.trainers.runtime.flops import step_flops
from tests.conftest import tiny_model
from tests.trainers.generators.test_generators import saved_masked_lm


LENGTH = 64


def sequences(tokenizer, count=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, len(tokenizer), (count, LENGTH), generator=generator)
    ids[:, 0], ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    return Dataset.from_dict({"input_ids": ids.tolist()})


def make_trainer(tokenizer, output_dir, model=None, **arguments):
    settings = {
        "output_dir": str(output_dir),
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "exit_warmup": 0.0,
        "exit_cooldown": 0.0,
        "exit_loss_warmup": 0.0,
    }
    model, data = tiny_model() if model is None else model, sequences(tokenizer)
    args = ElectraEarlyExitTrainingArguments(**{**settings, **arguments})
    return ElectraEarlyExitTrainer(
        model,
        args,
        *build_collator(model.config, data, tokenizer, args, LENGTH),
        train_dataset=data,
        eval_dataset=sequences(tokenizer, 8, seed=1),
        processing_class=tokenizer,
    )


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(first, second):
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_every_trainable_parameter_moves_and_the_log_tells(tokenizer, tmp_path):
    # Positions and token types beyond the data get no gradient, and must not.
    trainer = make_trainer(tokenizer, tmp_path, tiny_model(max_position_embeddings=LENGTH, type_vocab_size=1))
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    # Without a gradient, only weight decay would have moved them; biases and norms have none.
    parameters = [name for name, _ in trainer.model.named_parameters()]
    assert [name for name in parameters if torch.equal(before[name], after[name])] == []
    log = trainer.state.log_history[0]
    assert log["exits_active"] == 1.0
    assert [log[f"kept_layer_{layer}"] for layer in range(1, 7)] == [1.0, 1.0, 0.5, 0.5, 0.25, 1.0]
    assert log["tokens_per_second"] > 0
    config = trainer.model.config
    parts = log["discriminator_loss"] + config.exit_loss_weight * log["exit_loss"]
    assert log["loss"] == pytest.approx(log["generator_loss"] + 50 * parts, abs=0.01)
    assert trainer.state.total_flos == step_flops(config, 8, LENGTH, True).total * 6


def test_exits_rest_in_the_dense_phases(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, max_steps=10, exit_warmup=0.2, exit_cooldown=0.3)
    trainer.train()
    active = [log["exits_active"] for log in trainer.state.log_history if "exits_active" in log]
    assert active == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0]
    config = trainer.model.config
    expected = 5 * step_flops(config, 8, LENGTH, True).total + 5 * step_flops(config, 8, LENGTH, False).total
    assert trainer.state.total_flos == expected


def test_gradient_accumulation_changes_nothing(tokenizer, tmp_path):
    """One batch of 8 and four of 2: the same loss and gradients, at full depth and with a fixed corruption."""
    batch = DataCollatorForReplacedTokenDetection(tokenizer, LENGTH)([sequences(tokenizer)[i] for i in range(8)])
    labels = (batch["mlm_labels"] != -100).long()
    inputs = {"input_ids": batch["input_ids"], "labels": labels}
    gradients = []
    for accumulation in (1, 4):
        trainer = make_trainer(tokenizer, tmp_path, tiny_model(exit_policy="none"), learning_rate=0.0)
        trainer.current_gradient_accumulation_steps = accumulation
        trainer.create_optimizer()
        size = 8 // accumulation
        losses = [
            trainer.training_step(trainer.model, {k: v[i : i + size] for k, v in inputs.items()}, torch.tensor(99))
            for i in range(0, 8, size)
        ]
        gradients.append({n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})
        gradients[-1]["loss"] = sum(losses)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_gradient_accumulation_in_a_whole_run_reports_the_mean_loss(tokenizer, tmp_path):
    logged = []
    for size, accumulation in ((8, 1), (2, 4)):
        trainer = make_trainer(
            tokenizer,
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            exit_warmup=1.0,
        )
        trainer.train()
        logged.append(trainer.state.log_history[0])
    # The masks are the same; the generator's samples are drawn in another order.
    assert logged[1]["generator_loss"] == pytest.approx(logged[0]["generator_loss"], abs=2e-4)
    assert logged[1]["loss"] == pytest.approx(logged[0]["loss"], rel=0.05)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_run_ends_in_the_weights_of_an_uninterrupted_one(tokenizer, tmp_path, workers):
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    common = {"max_steps": 7, "exit_warmup": 0.2, "exit_cooldown": 0.2, "dataloader_num_workers": workers}
    straight = make_trainer(tokenizer, tmp_path / "a", tiny_model(**dropout), **common)
    straight.train()
    saving = {**common, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 2}
    first = make_trainer(tokenizer, tmp_path / "b", tiny_model(**dropout), **saving)
    first.train()
    assert_same(weights(straight), weights(first))  # evaluation leaves no trace
    for save_at in (3, 4):  # in the middle and at the end of an epoch of four steps
        torch.manual_seed(99)
        second = make_trainer(tokenizer, tmp_path / "b", tiny_model(**dropout), **common)
        second.train(resume_from_checkpoint=str(tmp_path / "b" / f"checkpoint-{save_at}"))
        assert_same(weights(straight), weights(second))
        assert second.state.total_flos == straight.state.total_flos


@pytest.mark.parametrize(
    "generator",
    [
        {"generator_type": "bigram"},
        {"generator_type": "frozen"},
        {"generator_type": "self"},  # an epoch is four steps: the proposals of the first are in use at step 5
    ],
    ids=lambda fields: fields["generator_type"],
)
def test_an_interrupted_run_draws_the_replacements_of_an_uninterrupted_one(
    tokenizer, tmp_path, model_folder, generator
):
    common = {"max_steps": 7, "dataloader_num_workers": 1, "generator_folder": str(model_folder)}
    saving = {**common, "save_strategy": "steps", "save_steps": 5}
    straight = make_trainer(tokenizer, tmp_path, tiny_model(**generator), **saving)
    straight.train()
    torch.manual_seed(99)
    second = make_trainer(tokenizer, tmp_path, tiny_model(**generator), **common)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert_same(weights(straight), weights(second))
    replaced = [log["discriminator_loss"] for log in straight.state.log_history[:7]]
    assert len(set(replaced)) == 7  # something is replaced, and other tokens every time


def test_a_trainer_finds_the_generator_that_the_config_names(tokenizer, tmp_path):
    trainer = ElectraEarlyExitTrainer(
        tiny_model(generator_type="unigram"),
        make_trainer(tokenizer, tmp_path).args,
        train_dataset=sequences(tokenizer),
        processing_class=tokenizer,
    )
    assert trainer.train().training_loss > 0


def test_evaluation_is_the_same_every_time_and_at_full_depth(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path)
    seen = []
    trainer.model.electra.encoder.layer[4].register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
    first = trainer.evaluate()
    torch.manual_seed(5)
    trainer.data_collator.set_epoch(3)
    second = trainer.evaluate()
    assert set(seen) == {LENGTH}
    names = [n for n in first if "runtime" not in n and "per_second" not in n and "preparation" not in n]
    assert {n: first[n] for n in names} == {n: second[n] for n in names}
    assert {"eval_roc_auc", "eval_average_precision", "eval_recall_on_replaced", "eval_roc_auc_layer_2"} <= set(first)
    assert int(trainer.data_collator._epoch) == 3


@pytest.mark.parametrize("saving", [{}, {"save_strategy": "steps", "save_steps": 2}])
def test_throughput_counts_training_alone_and_all_of_it(tokenizer, tmp_path, monkeypatch, saving):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    # An epoch ends after four steps, between two log lines.
    trainer = make_trainer(tokenizer, tmp_path, logging_steps=3, **saving)

    def takes(seconds, method):
        def call(*args, **kwargs):
            now[0] += seconds
            return method(*args, **kwargs)

        return call

    monkeypatch.setattr(trainer, "training_step", takes(2.0, trainer.training_step))
    monkeypatch.setattr(trainer, "save_model", takes(1000.0, trainer.save_model))
    monkeypatch.setattr(trainer, "prediction_step", takes(1000.0, trainer.prediction_step))
    now[0] += 1000.0
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    assert trainer.throughput() == pytest.approx(8 * LENGTH / 2.0)
    logged = [log["tokens_per_second"] for log in trainer.state.log_history if "tokens_per_second" in log]
    assert logged == [256, 256]


def test_every_epoch_has_new_masks(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, max_steps=8)
    epochs = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: epochs.append(kwargs["mlm_labels"].ne(-100).sum(0)), with_kwargs=True
    )
    trainer.train()
    assert not torch.equal(torch.stack(epochs[:4]).sum(0), torch.stack(epochs[4:]).sum(0))


@pytest.mark.parametrize("able", [True, False])
def test_bf16_on_a_cpu(tokenizer, tmp_path, monkeypatch, caplog, able):
    monkeypatch.setattr(cpu_kernels, "multiplies_bf16", lambda: able)
    trainer = make_trainer(tokenizer, tmp_path, bf16=True, max_steps=2)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0
    assert ("--bf16 auto" in caplog.text) is not able


def test_a_frozen_generator_runs_in_the_precision_of_the_run(tokenizer, tmp_path, model_folder):
    arguments = {"bf16": True, "max_steps": 1, "generator_folder": str(model_folder)}
    trainer = make_trainer(tokenizer, tmp_path, tiny_model(generator_type="frozen"), **arguments)
    dtypes = []
    head = trainer.generator.model._model.generator_lm_head
    head.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    trainer.train()
    assert dtypes[0] == torch.bfloat16  # the other call counts its operations


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ElectraAdamW),
        ({"adam_bias_correction": True}, torch.optim.AdamW),
        ({"optim": "sgd"}, torch.optim.SGD),
    ],
)
def test_optimizer(tokenizer, tmp_path, arguments, expected):
    trainer = make_trainer(tokenizer, tmp_path, **arguments)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is expected
    decays = {group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {0.01, 0.0}


def test_saved_folder_holds_no_pickle(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path)
    trainer.save_model()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "modeling_electra_exit.py"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["ElectraEarlyExitForPreTraining"]
    assert AutoModelForPreTraining.from_pretrained(tmp_path).config.exit_layers == [2, 4]


def test_defaults_are_electras(tmp_path):
    args = ElectraEarlyExitTrainingArguments(output_dir=str(tmp_path))
    assert (args.learning_rate, args.warmup_steps, args.adam_epsilon, args.weight_decay) == (5e-4, 10_000, 1e-6, 0.01)
    assert args.lr_scheduler_type == "linear"
    assert args.max_grad_norm == 1.0
    assert args.report_to == ["tensorboard"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exit_warmup": 1.5}, "`exit_warmup` must be a share between 0 and 1, got 1.5"),
        ({"exit_cooldown": -0.1}, "`exit_cooldown` must be a share"),
        ({"exit_warmup": 0.6, "exit_cooldown": 0.6}, "must not exceed 1 together"),
    ],
)
def test_impossible_schedules_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        ElectraEarlyExitTrainingArguments(output_dir=str(tmp_path), **arguments)


def test_the_log_tells_how_good_the_exits_are(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, max_steps=3)
    trainer.train()
    log, state = trainer.state.log_history[2], trainer.model.exit_state
    for number, layer in enumerate((2, 4)):
        (_, _), (wrong, replaced) = state.left[number].tolist()
        assert 0 <= log[f"exit_auc_layer_{layer}"] == pytest.approx(state.auc[number].item(), abs=1e-4)
        assert log[f"exit_recall_left_layer_{layer}"] == pytest.approx(1 - wrong / replaced, abs=1e-4)
    assert set(state.left[:, 0, 0].tolist()) != {0.0}  # so that the two classes differ


@pytest.mark.parametrize(("logging_steps", "measured"), [(3, [3, 6, 9, 12]), (12, [10]), (20, [10])])
def test_what_is_no_loss_is_measured_in_every_tenth_step_or_a_logged_one(
    tokenizer, tmp_path, monkeypatch, logging_steps, measured
):
    steps = {"step_difficulty": [], "update": []}
    model = tiny_model(exit_policy="random", vocab_size=len(tokenizer))
    trainer = make_trainer(tokenizer, tmp_path, model, max_steps=12, logging_steps=logging_steps)

    def note(module, name):
        function = getattr(module, name)

        def noted(*args, **kwargs):
            steps[name].append(trainer.state.global_step + 1)
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, noted)

    note(trainer_module, "step_difficulty")
    note(ElectraEarlyExitState, "update")
    trainer.train()
    assert steps == {"step_difficulty": measured, "update": measured}
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(0 < entry["discriminator_auc"] < 1 for entry in logged)
    assert len(logged) == 12 // logging_steps


def test_means_skip_micro_steps_without_the_value():
    means = trainer_module.Means()
    assert not means
    static = torch.tensor(1.0)
    for value in (1.0, 2.0, 6.0):
        static.fill_(value)  # as a captured step writes its outputs
        means.add({"loss": static, **({"auc": static} if value > 1 else {})})
    assert means.take(1) == {"loss": 3, "auc": 4}
    assert not means


@pytest.mark.parametrize("generator_type", ["mlm", "unigram"])
def test_nothing_reads_the_outputs_of_an_earlier_step(tokenizer, tmp_path, generator_type):
    """With CUDA graphs (`--torch_compile_mode reduce-overhead`), the next step writes to the same memory."""
    logs = []
    for captured in (False, True):
        model = tiny_model(exit_policy="random", generator_type=generator_type, vocab_size=len(tokenizer))
        trainer = make_trainer(
            tokenizer, tmp_path, model, max_steps=12, logging_steps=5, eval_strategy="steps", eval_steps=6,
            per_device_eval_batch_size=2, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        )  # fmt: skip
        if captured:
            forward, earlier = model.forward, []

            @functools.wraps(forward)
            def overwriting(*args, forward=forward, earlier=earlier, **kwargs):
                for tensor in earlier:
                    tensor.data.fill_(3)
                outputs = forward(*args, **kwargs)
                given = {value.data_ptr() for value in kwargs.values() if isinstance(value, torch.Tensor)}
                found = pytree.tree_leaves(tuple(outputs.values()))
                earlier[:] = [t for t in found if isinstance(t, torch.Tensor) and t.data_ptr() not in given]
                return outputs

            model.forward = overwriting
        trainer.train()
        timed = ("seconds", "runtime", "per_second")
        logs.append([
            {name: value for name, value in entry.items() if not name.endswith(timed)}
            for entry in trainer.state.log_history
        ])  # fmt: skip
    assert len([entry for entry in logs[0] if "eval_roc_auc" in entry]) == 2
    assert logs[0] == logs[1]


@pytest.mark.parametrize("loss_only", [False, True])
def test_predictions_are_copies_of_the_models_outputs(tokenizer, tmp_path, loss_only):
    trainer, returned = make_trainer(tokenizer, tmp_path, tiny_model(vocab_size=len(tokenizer))), []
    trainer.model.register_forward_hook(lambda module, args, outputs: returned.append(outputs))
    batch = next(iter(trainer.get_eval_dataloader()))
    found = trainer.prediction_step(trainer.model.eval(), batch, prediction_loss_only=loss_only)
    memory = {t.data_ptr() for t in pytree.tree_leaves(tuple(returned[0].values())) if isinstance(t, torch.Tensor)}
    assert [t for t in found if t is not None and t.data_ptr() in memory] == []


def test_the_exit_loss_warms_up(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, max_steps=4, exit_loss_warmup=0.5)
    trainer.train()
    config, scales = trainer.model.config, []
    for log in trainer.state.log_history[:4]:
        rest = (log["loss"] - log["generator_loss"]) / 50 - log["discriminator_loss"]
        scales.append(rest / (config.exit_loss_weight * log["exit_loss"]))
    assert scales == pytest.approx([1 / 3, 2 / 3, 1, 1], abs=0.01)


def test_a_nan_loss_stops_the_run_before_the_weights_are_updated(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, save_strategy="steps", save_steps=1, gradient_accumulation_steps=2)
    broken, batches = trainer.model.discriminator_predictions.dense.bias, []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(kwargs["input_ids"]), with_kwargs=True
    )
    step = trainer.training_step

    def training_step(model, inputs, *args):
        if trainer.state.global_step == 1:
            broken.data[0] = torch.nan
        return step(model, inputs, *args)

    trainer.training_step = training_step
    with pytest.raises(DivergenceError, match=r"the loss is nan in step 2; the batch is saved in .*diverged-step-2-0"):
        trainer.train()
    seen = load_file(tmp_path / "diverged-step-2-0.safetensors")
    assert set(seen) == {"0.input_ids", "0.masked_positions", "0.mlm_labels", "0.noise_seeds"}
    assert torch.equal(seen["0.input_ids"], batches[-1])
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert all(value.isfinite().all() for value in load_file(tmp_path / "checkpoint-1" / "model.safetensors").values())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda model: model.discriminator_predictions.dense_prediction.bias.data.fill_(1e6), "the loss is "),
        (lambda model: model.electra.embeddings.word_embeddings.weight.register_hook(lambda g: g / 0), "gradient n"),
    ],
)
def test_an_exploding_loss_and_gradients_without_end_stop_the_run(tokenizer, tmp_path, spoil, reason):
    trainer = make_trainer(tokenizer, tmp_path)
    spoil(trainer.model)
    with pytest.raises(DivergenceError, match=f"{reason}.* in step 1"):
        trainer.train()
    assert (tmp_path / "diverged-step-1-0.safetensors").is_file()


class SlowNumber:
    """As a number of a GPU: it does not arrive before it is waited for."""

    def __init__(self, number):
        self._number = float(number.detach().numpy())  # which no operator does

    def has_arrived(self):
        return False

    def value(self):
        return self._number


@pytest.fixture
def slow_device(monkeypatch):
    """Guards watch numbers as if they were on a GPU that is far behind."""
    monkeypatch.setattr(late, "LateNumber", SlowNumber)
    monkeypatch.setattr(late, "on_host", lambda number: False)


@pytest.mark.parametrize(("settings", "detected"), [({"save_steps": 3}, 3), ({"logging_steps": 4}, 4)])
def test_on_a_device_a_nan_loss_stops_the_run_one_step_later(tokenizer, tmp_path, slow_device, settings, detected):
    """Before it gets into a checkpoint or a log line, with the batch that it is of."""
    trainer = make_trainer(
        tokenizer, tmp_path, save_strategy="steps", **{"logging_steps": 6, "save_steps": 6} | settings
    )
    batches, step = [], trainer.training_step

    def training_step(model, inputs, *args):
        batches.append(inputs)
        if trainer.state.global_step == 1:
            model.discriminator_predictions.dense.bias.data[0] = torch.nan
        return step(model, inputs, *args)

    trainer.training_step = training_step
    with pytest.raises(DivergenceError, match="the loss is nan in step 2"):
        trainer.train()
    assert trainer.state.global_step == detected
    seen = load_file(tmp_path / "diverged-step-2-0.safetensors")
    assert torch.equal(seen["0.input_ids"], batches[1]["input_ids"])
    assert not list(tmp_path.glob("checkpoint-*"))
    assert not [log for log in trainer.state.log_history if "loss" in log]


class Reads(TorchDispatchMode):
    """Counts the numbers that Python reads of tensors."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator is torch.ops.aten._local_scalar_dense.default
        return operator(*args, **(kwargs or {}))


def test_a_run_reads_numbers_where_it_logs_and_nowhere_else(tokenizer, tmp_path, slow_device, monkeypatch):
    found, collate = Reads(), DataCollatorForReplacedTokenDetection.__call__

    def uncounted(collator, features):  # what it reads is on the host
        before, batch = found.count, collate(collator, features)
        found.count = before
        return batch

    monkeypatch.setattr(DataCollatorForReplacedTokenDetection, "__call__", uncounted)

    def reads(steps):
        trainer = make_trainer(tokenizer, tmp_path, max_steps=steps, logging_steps=steps, exit_loss_warmup=0.5)
        found.count = 0
        with found:
            trainer.train()
        return found.count

    assert reads(4) == reads(2) > 0


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_loss_is_judged_whole_under_gradient_accumulation(tokenizer, tmp_path, accumulation):
    """One that is twice as large as is allowed, of which a batch of four contributes half as much as is allowed."""
    trainer = make_trainer(tokenizer, tmp_path, tiny_model(exit_policy="none"), max_steps=1,
                           per_device_train_batch_size=2, gradient_accumulation_steps=accumulation)  # fmt: skip
    limit = EXPLODED * trainer._uninformed_loss()
    # With this logit the discriminator's loss is the logit itself, wherever a token is original.
    bias = trainer.model.discriminator_predictions.dense_prediction.bias
    bias.data.fill_(2 * limit / trainer.model.config.discriminator_weight)
    with pytest.raises(DivergenceError, match=r"the loss is [567]\d\d\d in step 1"):
        trainer.train()


def test_a_vocabulary_that_the_model_does_not_embed_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=f"`vocab_size` must be at least {len(tokenizer)} for this tokenizer, got 20"):
        make_trainer(tokenizer, tmp_path, tiny_model(vocab_size=20))


@pytest.mark.parametrize("generator_type", ["mlm", "unigram", "self", "frozen"])
def test_every_reader_of_a_batch_sees_its_segments(tokenizer, tmp_path, generator_type):
    """Discriminator, generator of whatever kind, and the reference of an evaluation."""
    for folder in ("frozen", "reference"):
        saved_masked_lm(tmp_path / folder, tokenizer)
    model = tiny_model(generator_type=generator_type, vocab_size=len(tokenizer))
    folders = {f"{name}_folder": str(tmp_path / folder)
               for name, folder in (("generator", "frozen"), ("reference", "reference"))}  # fmt: skip
    data = sequences(tokenizer, 8)
    data = data.add_column("token_type_ids", [[0] * 30 + [1] * (LENGTH - 30)] * len(data))
    args = make_trainer(tokenizer, tmp_path, max_steps=1, **folders).args
    trainer = ElectraEarlyExitTrainer(model, args, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
    readers = {"model": model, "reference": trainer._difficulty.reference._model}
    if generator_type == "frozen":
        readers["generator"] = trainer.generator.model._model
    seen = dict.fromkeys(readers, 0)
    for name, reader in readers.items():

        def look(module, inputs, name=name):
            if len(inputs[0]) > 1:  # one sequence, of no segments, is what operations are counted with
                assert torch.equal(inputs[0].sum(1), torch.full((len(inputs[0]),), LENGTH - 30))
                seen[name] += 1

        reader.electra.embeddings.token_type_embeddings.register_forward_pre_hook(look)
    before = model.electra.embeddings.token_type_embeddings.weight.detach().clone()
    trainer.train()
    trainer.evaluate()
    assert all(seen.values())
    moved = (model.electra.embeddings.token_type_embeddings.weight - before).norm(dim=1)
    assert (moved > 1e-3).all()
