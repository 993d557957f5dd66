"""The command line as a user meets it: the whole path on tiny data, and every mistake answered in one line."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module

import pytest
import torch
import yaml

from electra_exit import finetune, parsing, pretrain
from electra_exit import main as cli
from electra_exit.calibrate import calibrate_parser
from electra_exit.parsing import build_parser
from electra_exit.places import RECIPES, yaml_names
from modeling_electra_exit import ElectraEarlyExitConfig, __version__
from modeling_electra_exit.configuration_electra_exit import GENERATOR_TYPES
from modeling_electra_exit.exit_criteria import CRITERIA
from modeling_electra_exit.exit_policy import POLICIES
from modeling_electra_exit.trainers.pretraining import run as pretraining
from modeling_electra_exit.trainers.runtime import checkpoints, cpu_kernels
from tests.conftest import write_corpus


PRETRAIN_RECIPES = ["domain-adapt", "electra-base", "electra-small", "electra-small-fast", "quickstart"]
FINETUNING_RECIPES = ["glue-base", "glue-large", "glue-small", "small-models"]
RECIPE = {
    "vocab_size": 80,
    "max_seq_length": 32,
    "max_position_embeddings": 32,
    "hidden_size": 32,
    "embedding_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "generator_size": 0.5,
    "exit_layers": [1, 2],
    "exit_capacities": [0.5, 0.5],
    "validation_fraction": 0.2,
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 1,
    "logging_steps": 2,
    "save_steps": 2,
    "use_cpu": True,
}


@pytest.fixture
def recipe(tmp_path, corpus):
    def write(**changes):
        fields = {**RECIPE, "train_files": [str(corpus)], "output_dir": str(tmp_path / "run"), **changes}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in fields.items() if value is not None}))
        return str(path)

    return write


def run(*argv) -> int:
    return cli.main(["pretrain", *argv])


def test_the_whole_path(recipe, tmp_path, capsys):
    assert run(recipe(), "--seed", "3") == 0
    folder = tmp_path / "run"
    expected = {
        "README.md", "config.json", "configuration_electra_exit.py", "exit_policy.py", "metrics.json",
        "model.safetensors", "modeling_electra_exit.py", "run.json", "tokenizer.json", "tokenizer_config.json",
        "trainer_state.json",
    }  # fmt: skip
    assert expected <= {path.name for path in folder.iterdir()}
    measured = json.loads((folder / "metrics.json").read_text())
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == len(vocabulary) <= 80
    assert 0 <= measured["evaluation"]["roc_auc"] <= 1
    assert measured["training"]["tokens"] == 4 * 4 * 32
    assert measured["flops"]["blocks"] < measured["flops"]["dense_blocks"]
    assert json.loads((folder / "trainer_state.json").read_text())["total_flos"] == pytest.approx(
        measured["flops"]["total"]
    )
    printed = capsys.readouterr().out
    assert "4/4  loss" in printed
    for fragment in ("ROC-AUC", "average precision", "recall on replaced", "tokens per second", "without exits",
                     "share of tokens, by layer", "<- replaced", "trust_remote_code=True"):  # fmt: skip
        assert fragment in printed
    card = (folder / "README.md").read_text()
    assert f"{measured['evaluation']['roc_auc']:.4f}" in card
    assert "fine-tuned" not in card
    assert str(tmp_path) not in card
    assert any((folder / "runs").rglob("events.*")), "TensorBoard is installed with the tests and on by default"


def test_flags_win_over_the_recipe_and_dashes_are_underscores(recipe):
    path = recipe()
    config, data, training, _ = parsing.parse([path, "--max-steps", "7", "--exit_capacities", "0.9", "0.5", "--bf16"])
    assert training.max_steps == 7
    assert training.bf16
    assert config["exit_capacities"] == [0.9, 0.5]
    assert config["hidden_size"] == 32
    assert data.max_seq_length == 32


@pytest.mark.parametrize("able", [True, False])
def test_bf16_auto_follows_the_processor(recipe, monkeypatch, able):
    """Without instructions for it, bf16 takes many times as long as fp32: the recipes must not ask for it there."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(cpu_kernels, "multiplies_bf16", lambda: able)
    for name in PRETRAIN_RECIPES:
        assert parsing.parse([name])[2].bf16 is able
    for name in FINETUNING_RECIPES:
        assert parsing.parse([name], parsing.FINETUNE)[2].bf16 is able
    assert parsing.parse([recipe(), "--bf16", "auto", "--fp16", "true"])[2].bf16 is False
    assert parsing.parse([recipe(), "--bf16", "true"])[2].bf16 is True
    with pytest.raises(SystemExit):
        parsing.parse([recipe(), "--bf16", "perhaps"])


def test_text_named_on_the_command_line_replaces_the_recipes():
    _, data, _, _ = parsing.parse(["quickstart", "--train_files", "mine.txt"])
    assert (data.demo_corpus, data.train_files, data.language) == (False, ["mine.txt"], None)
    _, data, _, _ = parsing.parse(["quickstart"])
    assert (data.demo_corpus, data.train_files) == (True, None)


def test_a_schedule_named_on_the_command_line_replaces_the_recipes_with_its_parameters():
    _, _, training, _ = parsing.parse(["quickstart"])
    assert (training.lr_scheduler_type, training.lr_scheduler_kwargs) == ("polynomial", {"power": 0.5})
    _, _, training, _ = parsing.parse(["quickstart", "--lr_scheduler_type", "constant"])
    assert (training.lr_scheduler_type, training.lr_scheduler_kwargs) == ("constant", None)
    cubic = ["--lr_scheduler_type", "polynomial", "--lr_scheduler_kwargs", '{"power": 3}']
    assert parsing.parse(["quickstart", *cubic])[2].lr_scheduler_kwargs == {"power": 3}


@pytest.mark.parametrize("name", PRETRAIN_RECIPES)
def test_packaged_recipes_parse(name):
    config, data, training, _ = parsing.parse([name])
    assert data.max_seq_length <= pretraining.build_config(config).max_position_embeddings
    assert training.exit_warmup == 0.1
    if name == "electra-small":
        assert (training.train_batch_size, training.learning_rate, training.max_steps) == (128, 5e-4, 1_000_000)
    if name in ("electra-small", "electra-base"):  # as published
        assert not pretraining.build_config(config).has_exit_heads
        assert training.lr_scheduler_type == "electra"


def test_failures_of_card_and_figures_do_not_end_the_run(recipe, tmp_path, monkeypatch, caplog, capsys):
    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def not_ascii(*args, **kwargs):
        "\u00e9".encode("ascii")

    monkeypatch.setattr(pretraining, "write_model_card", no_space)
    monkeypatch.setattr(pretraining, "report", not_ascii)
    assert run(recipe(max_steps=2, report_to="none")) == 0
    assert (
        "writing the model card (repeat it with `electra-exit card`) failed; the run continues without it: [Errno 28]"
        in (caplog.text)
    )
    assert "the report failed; the run continues without it: 'ascii' codec" in caplog.text
    assert (tmp_path / "run" / "metrics.json").exists()

    # The measurements say that the run is finished: without them it is not, and nothing is lost.
    monkeypatch.setattr(checkpoints.os, "fsync", no_space)
    assert run(recipe(max_steps=2, report_to="none", save_strategy="no"), "--output_dir", str(tmp_path / "other")) == 1
    error = f"error: {tmp_path}/other/run.json could not be written: [Errno 28] No space left on device\n"
    assert capsys.readouterr().err.endswith(error)


def test_exits_can_be_switched_off(recipe, tmp_path, capsys):
    assert run(recipe(max_steps=2), "--exit_policy", "none") == 0
    flops = json.loads((tmp_path / "run" / "metrics.json").read_text())["flops"]
    assert flops["total"] == flops["dense_total"]
    assert "layer 1" not in capsys.readouterr().out.split("Cost")[0]


def test_help_is_short_and_help_all_is_complete(capsys):
    assert run("--help") == 0
    short = capsys.readouterr().out
    assert max(map(len, short.split("\n"))) <= 110
    assert "--hub_always_push" not in short
    assert run("--help_all") == 0
    assert "--hub_always_push" in capsys.readouterr().out


@pytest.mark.parametrize(("page", "command"), [(pretrain.PAGE, parsing.PRETRAIN), (finetune.PAGE, parsing.FINETUNE)])
def test_the_help_names_real_flags_with_their_real_defaults(page, command):
    options = {flag.split(" ")[0]: text for group in page.options.values() for flag, text in group.items()}
    assert len(options) <= 30
    parser = build_parser(command)
    flags = {action.dest: action.default for action in parser._actions}
    config = ElectraEarlyExitConfig()
    for name, text in options.items():
        assert name in flags
        stated = re.search(r"\(default: (.*?)\)", text)
        default = flags[name] if flags[name] is not None else getattr(config, name, None)
        if stated and default not in (None, []) and not isinstance(default, list):
            assert stated[1] == (str(default).lower() if isinstance(default, bool) else str(default)), name
    assert all(recipe in page.description for recipe in yaml_names(RECIPES / page.recipes))
    for name, values in (("exit_policy", POLICIES), ("generator_type", {*GENERATOR_TYPES} - {"none"})):
        if command is parsing.PRETRAIN:
            assert all(re.search(rf"\b{value}\b", options[name]) for value in values)


def test_the_choices_of_calibrate_are_the_criteria_of_the_model():
    (choices,) = (action.choices for action in calibrate_parser()._actions if action.dest == "criterion")
    assert list(choices) == list(CRITERIA)


def test_every_command_has_its_module():
    for name, description in cli.COMMANDS.items():
        assert callable(import_module(f"electra_exit.{name.replace('-', '_')}").run)
        assert description[0].islower()


QUICK = [
    (["--help"], 0, "COMMAND"),
    (["--version"], 0, __version__),
    (["pretrain", "--help"], 0, "--train_files"),
    (["finetune", "--help"], 0, "--train_file"),
    (["finetune", "model", "--train_file", "/nowhere/a.csv"], 2, "no such file: /nowhere/a.csv"),
    (["finetune", "model", "--lable_column", "x"], 2, "unknown field `lable_column`; did you mean `label_column`?"),
    (["push", "--help"], 0, "REPO_ID"),
    (["pretian"], 2, "invalid choice: 'pretian'"),
    (["pretrain", "quikstart"], 2, "no recipe `quikstart`"),
    (["pretrain", "quickstart", "--max-stepz", "3"], 2, "unknown field `max_stepz`; did you mean `max_steps`?"),
    (["pretrain", "quickstart", "--train_files", "/nowhere/a.txt"], 2, "no such file: /nowhere/a.txt"),
    (["score", "model", "/nowhere/a.txt"], 2, "no such file: /nowhere/a.txt"),
    (["evaluate", "model", "--tasks", "blimp", "--lerning_rate", "1"], 2, "unknown field `lerning_rate`"),
    (["cache-replacements", "quickstart", "--folder", "/nowhere/x", "--seeed", "1"], 2, "unknown field `seeed`"),
    (["calibrate", "model", "/nowhere/a.csv"], 2, "no such file: /nowhere/a.csv"),
]
ANSWER = """
import json, sys
from electra_exit.main import main
for argv in json.loads(sys.argv[1]):
    print("status", main(argv), flush=True)
    assert not {"torch", "transformers"} & set(sys.modules), argv
"""


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_do_not_take_the_processor_from_others(monkeypatch, given, expected):
    monkeypatch.setenv("OMP_WAIT_POLICY", "whatever is restored")
    monkeypatch.delenv("OMP_WAIT_POLICY") if given is None else monkeypatch.setenv("OMP_WAIT_POLICY", given)
    cli.main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == expected


def test_help_and_typos_are_answered_before_torch_is_loaded():
    arguments = [sys.executable, "-c", ANSWER, json.dumps([argv for argv, _, _ in QUICK])]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    *answers, _ = re.split(r"(?<=^status \d)\n", done.stdout, flags=re.MULTILINE)
    for (argv, status, said), answer in zip(QUICK, answers, strict=True):
        assert said in answer, argv
        assert answer.endswith(f"status {status}"), argv


# (recipe changes, flags, what the one line must say)
MISTAKES = [
    ({"lerning_rate": 1e-3}, [], "unknown field `lerning_rate`; did you mean `learning_rate`?"),
    ({}, ["--exit_polcy", "none"], "unknown field `exit_polcy`; did you mean `exit_policy`?"),
    (
        {"exit_policy": "none", "exit_layers": None, "exit_capacities": None},
        ["--exit_layers", "2"],
        "--exit_layers requires exits, but `exit_policy` is none: give --exit_policy random",
    ),
    ({"exit_policy": "none"}, ["--exit-warmup=0.2"], "--exit_warmup requires exits, but `exit_policy` is none"),
    (
        {"exit_layers": None, "exit_capacities": None},
        ["--num_hidden_layers", "1", "--exit_policy", "random"],
        "--exit_policy random requires at least two layers, but the model has 1",
    ),
    ({}, ["--learning_rate", "fast"], "--learning_rate: invalid float value: 'fast'"),
    (
        {},
        ["--exit_policy", "greedy"],
        "`exit_policy` must be one of 'none', 'topk', 'random', 'threshold', got 'greedy'",
    ),
    ({}, ["--exit_layers", "3", "1"], "`exit_layers` must be strictly increasing"),
    ({}, ["--exit_warmup", "2"], "`exit_warmup` must be a share between 0 and 1, got 2.0"),
    ({}, ["--max_seq_length", "33"], "--max_seq_length must be at most --max_position_embeddings"),
    ({}, ["--type_vocab_size", "1"], "`type_vocab_size` must be at least 2 for --segments two, got 1"),
    ({}, ["--segments", "three"], "--segments: invalid choice: 'three'"),
    ({}, ["--train_files", "/nowhere/a.txt"], "no such file: /nowhere/a.txt"),
    ({"train_files": None}, [], "give exactly one of --demo_corpus, --dataset_name, --train_files; got none"),
    ({}, ["--tokenizer_name", "{tokenizer}", "--vocab_size", "20"], "--vocab_size must be at least"),
    ({}, ["--num_attention_heads", "3"], "`num_attention_heads` must be a divisor of hidden_size (32), got 3"),
    ({}, ["--sample_by", "page"], "--sample_by: invalid choice: 'page'"),
    ({}, ["stray"], "unrecognized arguments: stray"),
    ({"max_steps": 0}, ["--num_train_epochs", "0"], "nothing to train"),
    ({}, ["--learning_rate", "nan"], "`learning_rate` must be a number of at least 0, got nan"),
    ({}, ["--adam_beta2", "2"], "`adam_beta2` must be a number from 0 to below 1, got 2.0"),
    ({}, ["--seed", "-1"], "`seed` must be from 0 to 4294967295, got -1"),
    ({}, ["--logging_steps", "0"], "`logging_steps` must be a number above 0, got 0.0"),
    ({}, ["--num_train_epochs", "inf"], "`num_train_epochs` must be a finite number, got inf"),
    *(
        ({}, [f"--{name}", "0"], f"`{name}` must be at least 1, got 0")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    ),
]


@pytest.mark.parametrize(("changes", "flags", "message"), MISTAKES, ids=[m[2][:40] for m in MISTAKES])
def test_mistakes_are_one_line_and_touch_nothing(recipe, tmp_path, tokenizer, capsys, changes, flags, message):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    flags = [flag.format(tokenizer=tmp_path / "tokenizer") for flag in flags]
    assert run(recipe(**changes), *flags) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("electra-exit pretrain: error: ")
    assert message in error
    assert not (tmp_path / "run").exists()


def test_recipes_that_are_not_there_or_not_recipes(tmp_path, capsys):
    assert run("quikstart") == 2
    assert (
        f"no recipe `quikstart`: give a YAML file, or one of {', '.join(PRETRAIN_RECIPES)}" in capsys.readouterr().err
    )
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    assert run(str(tmp_path / "list.yaml")) == 2
    assert "must map fields to values, got a list" in capsys.readouterr().err
    (tmp_path / "broken.yaml").write_text("a: [1\nb: 2")
    assert run(str(tmp_path / "broken.yaml")) == 2
    assert "is not valid YAML" in capsys.readouterr().err
    assert run("--max_steps", "3") == 2
    assert "the recipe must come first" in capsys.readouterr().err


def test_an_empty_corpus(recipe, tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n   \n\n")
    assert run(recipe(train_files=[str(empty)])) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert "document(s), so none can be held out" in error or "holds no text" in error


def test_a_finished_run_is_not_overwritten(recipe, tmp_path, capsys):
    path = recipe(max_steps=2)
    assert run(path) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    assert run(path) == 2
    assert "already holds a finished run; choose another --output_dir" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()} == before


def test_a_run_continues_only_as_it_was_and_from_a_checkpoint_that_is_whole(recipe, tmp_path, capsys):
    path = recipe(max_steps=2)
    assert run(path) == 0
    (tmp_path / "run" / "metrics.json").unlink()
    assert run(path, "--learning_rate", "0.5") == 2
    assert "holds a run with other settings (learning_rate: 0.001 then, 0.5 now)" in capsys.readouterr().err
    (tmp_path / "run" / "checkpoint-2" / "optimizer.pt").unlink()
    for name, reason in (("checkpoint-2", "optimizer.pt is missing"), ("nowhere", "it has no readable manifest.json")):
        assert run(path, "--resume_from_checkpoint", str(tmp_path / "run" / name)) == 2
        assert f"{name}: {reason}" in capsys.readouterr().err


def test_a_folder_of_something_else_is_not_touched(recipe, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    assert run(recipe()) == 2
    assert "is not empty and does not hold a run" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_validation_files_are_used(recipe, tmp_path):
    held_out = write_corpus(tmp_path / "held_out.txt", documents=7, seed=5)
    assert run(recipe(max_steps=2), "--validation_files", str(held_out)) == 0
    counts = json.loads((tmp_path / "run" / "metrics.json").read_text())["data"]["counts"]
    assert counts["validation"]["documents"] == 7
    assert counts["train"]["documents"] == 60
