"""`--init_from`: a pre-training that starts from a model, its own tokenizer and sizes included."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    RobertaConfig,
)

from electra_exit import main as cli
from modeling_electra_exit import ElectraEarlyExitForSequenceClassification
from tests.conftest import tiny_config, tiny_model
from tests.trainers.cli.test_cli import run


SIZES = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
         "intermediate_size": 64, "max_position_embeddings": 40}  # fmt: skip
FLAGS = ["--max_seq_length", "32", "--max_steps", "2", "--per_device_train_batch_size", "4", "--logging_steps", "1",
         "--validation_fraction", "0.2", "--use_cpu", "true", "--report_to", "none"]  # fmt: skip


@pytest.fixture
def source(tmp_path, tokenizer):
    """Saves a model with a tokenizer, and says where."""

    def save(model, name="source"):
        torch.manual_seed(7)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.fixture
def adapt(tmp_path, corpus):
    def command(model, *flags, output="run", recipe="domain-adapt"):
        where = ["--train_files", str(corpus), "--output_dir", str(tmp_path / output)]
        return run(recipe, "--init_from", model, *where, *FLAGS, *flags)

    return command


def weights(folder):
    return load_file(folder / "model.safetensors")


def plain_electra(cls):
    return cls(ElectraConfig(**SIZES, embedding_size=16, type_vocab_size=2))


# The model -> what the line about it says.
STARTS = {
    "bert": (lambda: BertForMaskedLM(BertConfig(**SIZES)),
             "new: the discriminator's head, the exit heads, the generator. It was not trained for"),
    "discriminator": (lambda: plain_electra(ElectraForPreTraining), "new: the generator"),
    "masked language model": (lambda: plain_electra(ElectraForMaskedLM), "was not trained for"),
    "ours": (lambda: tiny_model(exit_policy="random"), "new: nothing"),
    "ours with a task": (lambda: ElectraEarlyExitForSequenceClassification(tiny_config(num_labels=3)),
                         "new: the discriminator's head, the exit heads, the generator. It was not"),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
def test_each_kind_of_model_trains_on_and_one_line_says_what_is_new(name, source, adapt, tmp_path, caplog, capsys):
    make, said = STARTS[name]
    model = make()
    folder = source(model)
    # At a learning rate of 0, what is saved is what training started from.
    assert adapt(folder, "--learning_rate", "0", "--generator_size", "0.5") == 0, capsys.readouterr().err
    (line,) = (text for text in caplog.messages if text.startswith("starting from"))
    assert said in line
    assert "MISSING" not in caplog.text + capsys.readouterr().err
    saved, encoder = weights(tmp_path / "run"), model.base_model.state_dict()
    assert all(
        torch.equal(saved[f"electra.{key}"], value) for key, value in encoder.items() if "position_ids" not in key
    )
    if name in ("discriminator", "ours"):
        head = model.discriminator_predictions.state_dict()
        assert all(torch.equal(saved[f"discriminator_predictions.{key}"], value) for key, value in head.items())
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert measured["start"] == {"model": "source"}
    card = (tmp_path / "run" / "README.md").read_text()
    assert "The weights were initialized from `source`" in card
    assert "base_model" not in card
    for file in ("config.json", "README.md", "tokenizer_config.json"):
        assert str(tmp_path) not in (tmp_path / "run" / file).read_text()


def test_an_electra_comes_with_its_generator(source, adapt, tmp_path, caplog):
    discriminator = source(plain_electra(ElectraForPreTraining))
    generator = ElectraForMaskedLM(
        ElectraConfig(
            **{**SIZES, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}, embedding_size=16
        )
    )
    folder = source(generator, "generator")
    assert adapt(discriminator, "--generator_init_from", folder, "--learning_rate", "0") == 0
    assert "new: nothing" in caplog.text
    saved = weights(tmp_path / "run")
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(saved[f"generator.{name}"], generator.electra.state_dict()[name])
    assert "those of the generator from `generator`" in (tmp_path / "run" / "README.md").read_text()


def test_heads_of_other_exits_start_as_the_final_head(source, adapt, tmp_path):
    model = tiny_model(exit_policy="random")
    assert adapt(source(model), "--exit_layers", "1", "--learning_rate", "0") == 0
    saved = weights(tmp_path / "run")
    assert [key for key in saved if key.startswith("exit_predictions.1")] == []
    expected = model.discriminator_predictions.dense.weight
    assert torch.equal(saved["exit_predictions.0.dense.weight"], expected)


def test_the_same_command_gives_the_same_weights_and_a_resumed_one_needs_no_source(source, adapt, tmp_path, capsys):
    folder = source(BertModel(BertConfig(**SIZES)))
    steps = ["--max_steps", "4", "--save_steps", "2", "--save_total_limit", "2"]
    for output in ("whole", "run"):
        assert adapt(folder, *steps, output=output) == 0
    whole = weights(tmp_path / "whole")
    assert all(torch.equal(value, whole[name]) for name, value in weights(tmp_path / "run").items())
    # As if it had been interrupted after the second step.
    (tmp_path / "run" / "metrics.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert adapt(source(BertModel(BertConfig(**SIZES))), *steps) == 2
    assert f"{folder} has changed since the run in" in capsys.readouterr().err
    shutil.rmtree(folder)
    assert adapt(folder, *steps) == 0, capsys.readouterr().err
    assert all(torch.equal(value, whole[name]) for name, value in weights(tmp_path / "run").items())
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record == json.loads((tmp_path / "whole" / "run.json").read_text()) | {"arguments": record["arguments"]}
    assert (
        record["start"] == json.loads((tmp_path / "run" / "metrics.json").read_text())["start"] == {"model": "source"}
    )


def test_what_contradicts_the_model_is_one_sentence(source, adapt, tmp_path, capsys):
    bert = source(BertModel(BertConfig(**SIZES)), "bert")
    ours = source(tiny_model(), "ours")
    electra = source(plain_electra(ElectraForPreTraining), "electra")
    RobertaConfig(**SIZES).save_pretrained(tmp_path / "roberta")
    for model, flags, message in (
        (
            bert,
            ["--hidden_size", "64"],
            "`hidden_size` must be that of {}, 32, got 64 from the recipe or flags: omit it",
        ),
        (bert, ["--norm_position", "pre"], "`norm_position` must be that of {}, 'post', got 'pre'"),
        (bert, ["--corpus_init", "true"], "omit `corpus_init`"),
        (bert, ["--tokenizer_name", "other"], "omit `tokenizer_name`"),
        (
            bert,
            ["--generator_init_from", ours],
            "--generator_init_from requires an ELECTRA as --init_from, got 'bert'",
        ),
        (bert, ["--max_seq_length", "64"], "--max_seq_length must be at most --max_position_embeddings"),
        (bert, ["--exit_layers", "9"], "`exit_layers` must be strictly increasing"),
        (ours, ["--generator_size", "0.25"], "`generator_size` must be that of {}, 0.5, got 0.25"),
        (electra, ["--generator_init_from", bert], "must be 'electra', got 'bert'"),
        (str(tmp_path / "roberta"), [], "must be 'electra_early_exit', 'electra' or 'bert', got 'roberta'"),
        (str(tmp_path / "nowhere"), [], "no model in `{}`"),
    ):
        assert adapt(model, *flags) == 2, message
        error = capsys.readouterr().err.strip().split("\n")[-1]
        assert error.startswith("electra-exit pretrain: error: ")
        assert message.format(model) in error
        assert not (tmp_path / "run").exists()
    assert adapt(bert, "--corpus_init", "false", recipe="quickstart") == 2
    assert "omit it, as the recipe domain-adapt does" in capsys.readouterr().err
    assert (
        run("domain-adapt", "--generator_init_from", electra, "--demo_corpus", "--output_dir", str(tmp_path / "run"))
        == 2
    )
    assert "--generator_init_from requires --init_from" in capsys.readouterr().err


def test_pretraining_from_a_calibrated_model_drops_its_thresholds(source, adapt, tmp_path):
    folder = source(ElectraEarlyExitForSequenceClassification(tiny_config(inference_exit_thresholds=[0.9, 0.9])))
    assert adapt(folder, "--generator_type", "unigram") == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config.get("inference_exit_thresholds") is None
    assert config["generator_type"] == "unigram"
    assert cli.main(["card", str(tmp_path / "run")]) == 0
