"""`electra-exit info`: what it says of every kind of folder, at once, and of what is no model, in one sentence."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import BertConfig, BertModel

from electra_exit import main as cli
from electra_exit.info import Header, NoModelError, describe
from modeling_electra_exit import (
    ElectraEarlyExitForMaskedLM,
    ElectraEarlyExitForSequenceClassification,
    ElectraEarlyExitModel,
)
from tests.conftest import tiny_config, tiny_model, trained_exits
from tests.trainers.cli.test_cli import recipe  # noqa: F401  a fixture
from tests.trainers.sharing.test_hub import empty, in_a_process
from tests.trainers.sharing.test_model_card import MEASURED


def pretrained(folder, measured=MEASURED, **overrides):
    model = tiny_model(**overrides)
    model.save_pretrained(folder)
    (folder / "metrics.json").write_text(json.dumps(measured))
    return model


def test_a_pre_training(tmp_path):
    model = pretrained(tmp_path)
    said = describe(str(tmp_path))
    generator = sum(p.numel() for n, p in model.generator.named_parameters() if n != "lm_head.weight")
    for line in (
        f"{tmp_path} is an ELECTRA discriminator with early exits, and the generator it was trained with",
        f"  parameters            {model.num_parameters():,}, of which {generator:,} in the generator",
        "  layers                6, 32 wide, 4 attention heads, LayerNorm after each block",
        "  replacements by       mlm",
        "  exits                 topk, after layers 2, 4; 0.5, 0.25 of the tokens continue",
        "  text                  local files (a.txt): 239 documents, 264,190 tokens",
        "  steps                 1,234 of 4,096 tokens, 5,054,464 in total",
        "  computed on           2 CPU threads in fp32, 4.0 minutes",
        "  ROC-AUC               0.7123   chance 0.5000",
        "  average precision     0.3100   chance 0.1357",
        "  after layer 2         ROC-AUC 0.6500",
        f"  electra-exit finetune {tmp_path} --train_file FILE",
        f"  electra-exit export {tmp_path} OUT --to electra",
        f"  transformers.pipeline('fill-mask', model='{tmp_path}')",
    ):
        assert line in said.splitlines()
    size = (tmp_path / "model.safetensors").stat().st_size
    assert f"{size / 1e6:,.1f} MB, fp32" in said


def test_what_a_model_cannot_do_is_not_offered(tmp_path):
    pretrained(tmp_path, norm_position="pre", generator_type="unigram", exit_policy="none")
    said = describe(str(tmp_path))
    for missing in ("export", "fill-mask", "Exits", "early exits", "generator's"):
        assert missing not in said
    assert "LayerNorm before each block" in said
    assert "replacements by       unigram" in said


def fine_tuned(folder, **fields):
    model = ElectraEarlyExitForSequenceClassification(tiny_config(num_labels=2, **fields))
    trained_exits(model).save_pretrained(folder)
    measured = {
        "task": "reviews", "seed": 1, "steps": 40, "evaluation": {"accuracy": 0.9123},
        "finetuning": {
            "kind": "classification", "labels": ["bad", "good"], "model": "mine", "baselines":
            {"majority class": {"accuracy": 0.5}}, "examples": {"train": 900, "validation": 100}, "precision": "fp32",
            "examples_per_step": 32, "hardware": "2 CPU threads", "seconds": 61.0,
        },
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(measured))


def test_a_fine_tuned_model(tmp_path):
    fine_tuned(tmp_path)
    said = describe(str(tmp_path)).splitlines()
    for line in (
        f"{tmp_path} is a text classifier or regressor with early exits",
        "  task                  reviews: classification, 2 labels: bad, good",
        "  examples              900 for training, 100 for validation",
        "  accuracy              0.9123   majority class 0.5000",
        "  after layer 2         trained",
        "  calibrated            no: every text uses all layers",
        f"  electra-exit calibrate {tmp_path} FILE",
        "      choose the exit thresholds",
    ):
        assert line in said


def test_a_calibrated_model(tmp_path):
    fine_tuned(tmp_path, inference_exit_thresholds=[0.9, 0.8125])
    calibration = {"accuracy": 0.91, "full_accuracy": 0.915, "depth": 0.4, "examples_per_second": 300.0,
                   "full_examples_per_second": 150.0}  # fmt: skip
    (tmp_path / "calibration.json").write_text(json.dumps(calibration))
    said = describe(str(tmp_path)).splitlines()
    assert "  after layer 4         trained, calibrated: confidence 0.8125" in said
    assert (
        "  calibrated            accuracy 0.9100 with 40% of the layers, 0.9150 with all; 2.00 times the examples "
        "per second"
    ) in said
    assert "      choose the exit thresholds again" in said


def test_exit_heads_that_no_loss_has_reached(tmp_path):
    model = ElectraEarlyExitForSequenceClassification(tiny_config())
    model.exit_heads.mark_trained(1)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    said = describe(str(tmp_path))
    assert "after layer 2         not trained" in said
    assert "  after layer 4         trained" in said
    assert "calibrate" not in said.split("What you can do")[1]
    assert f"{model.num_parameters():,}" in said


@pytest.mark.parametrize(
    ("model_class", "title"),
    [(ElectraEarlyExitModel, "an encoder without a head"), (ElectraEarlyExitForMaskedLM, "a masked language model")],
)
def test_a_part_alone(tmp_path, model_class, title):
    model_class(tiny_config(exit_policy="none")).to(torch.bfloat16).save_pretrained(tmp_path)
    said = describe(str(tmp_path))
    assert f"{tmp_path} is {title}" in said
    assert "bf16" in said
    assert "recorded              nothing" in said


def test_a_plain_checkpoint(tmp_path):
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    BertModel(config).save_pretrained(tmp_path)
    said = describe(str(tmp_path))
    assert f"{tmp_path} is a plain BERT (BertModel) with 2 layers, 32 wide, no exits" in said
    assert f"electra-exit pretrain domain-adapt --init_from {tmp_path} --train_files FILE" in said


def test_a_run_of_ours_from_its_first_checkpoint_to_its_end(recipe, tmp_path, capsys):  # noqa: F811
    assert cli.main(["pretrain", recipe()]) == 0
    capsys.readouterr()
    run = tmp_path / "run"
    assert cli.main(["info", str(run)]) == 0
    said = capsys.readouterr().out
    assert "4 of 128 tokens, 512 in total" in said
    measured = json.loads((run / "metrics.json").read_text())
    assert f"  ROC-AUC               {measured['evaluation']['roc_auc']:.4f}" in said
    (run / "config.json").unlink()
    (run / "metrics.json").unlink()
    said = describe(str(run))
    assert f"{run / 'checkpoint-4'} is the newest checkpoint of an unfinished run" in said
    assert "  steps                 4 of 4 so far" in said


def test_the_folder_of_several_seeds_is_that_of_the_best(tmp_path):
    for seed in (1, 2):
        (tmp_path / f"seed-{seed}").mkdir()
        fine_tuned(tmp_path / f"seed-{seed}")
    (tmp_path / "metrics.json").write_text(json.dumps({"best": "seed-2"}))
    said = describe(str(tmp_path))
    assert said.startswith(f"{tmp_path / 'seed-2'} is a text classifier or regressor")
    assert f"{tmp_path / 'seed-2'} is the best of 2 fine-tuning runs with different seeds" in said


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: None, "holds no model: it has no config.json"),
        (lambda folder: pretrained(inside(folder, "a")), "holds no model: it has no config.json; models are in a"),
        (lambda folder: (folder / "run.json").write_text("{}"), "holds a run that has not saved a checkpoint yet"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read: Expecting property"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json must hold a JSON object, got []"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'),
         "must be one of electra_early_exit, bert, electra, got 'gpt2'"),
        (lambda folder: pretrained(folder, {"evaluation": []}), "are not in the format of a run: AttributeError"),
        (lambda folder: pretrained(folder, {"training": {}}), "are not in the format of a run: KeyError"),
        (lambda folder: cut(pretrained(folder), folder / "model.safetensors", -10), "is damaged: it has"),
        (lambda folder: cut(pretrained(folder), folder / "model.safetensors", 4), "is not a safetensors file"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_one_sentence(tmp_path, capsys, make, sentence):
    make(tmp_path)
    capsys.readouterr()  # bars of saving, where no test before has switched them off
    assert cli.main(["info", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("electra-exit info: error: ")
    assert sentence in captured.err
    assert len(captured.err.splitlines()) == 1


def inside(folder, name):
    (folder / name).mkdir()
    return folder / name


def cut(_, path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("runs/no/such", "there is no folder runs/no/such"),
     ("nobody/nothing", "there is no folder nobody/nothing, and the Hub cannot be reached to look for"),
     (__file__, "is a file; give the folder of a model")],
)  # fmt: skip
def test_what_is_not_there_is_one_sentence(capsys, name, sentence):
    assert cli.main(["info", name]) == 2
    assert sentence in capsys.readouterr().err


def test_hostile_headers(tmp_path):
    path = tmp_path / "model.safetensors"
    for content in (b"", b"\xff" * 8, (10**7).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"[]",
                    (12).to_bytes(8, "little") + b'{"a": "b"}  '):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(NoModelError, match="is not a safetensors file"):
            Header.read(path)


def test_it_loads_no_torch(tmp_path):
    pretrained(tmp_path)
    code = "import sys; from electra_exit.main import main; main(); print([*sys.modules].count('torch'))"
    run = subprocess.run([sys.executable, "-c", code, "info", str(tmp_path)], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "0", run.stderr
    assert "an ELECTRA discriminator" in run.stdout


OF_THE_HUB = """
import sys
from electra_exit.main import main
sys.exit(main(["info", sys.argv[1]]))
"""


def test_a_model_of_the_hub_whose_weights_are_not_downloaded(loopback, tmp_path):
    folder, hub = tmp_path / "model", empty(loopback)
    folder.mkdir()
    pretrained(folder)
    push = "import sys; from huggingface_hub import HfApi; HfApi().create_repo('alice/told'); "
    push += "HfApi().upload_folder(repo_id='alice/told', folder_path=sys.argv[1])"
    in_a_process(f"{push}; print(0)", hub, tmp_path, str(folder))
    done = in_a_process(OF_THE_HUB, hub, tmp_path, "alice/told", check=False)
    assert done.returncode == 0, done.stderr
    expected = describe(str(folder)).replace(str(folder), "alice/told").splitlines()
    assert [line for line in done.stdout.splitlines() if "MB" not in line] == [
        line for line in expected if "MB" not in line
    ]
    assert "MB, fp32" in done.stdout
    weights = [request for request in hub.requests if request.startswith("GET") and "model.safetensors" in request]
    assert weights
    assert all(request.endswith(("206", "404")) for request in weights), "the header alone"
    done = in_a_process(OF_THE_HUB, hub, tmp_path, "alice/nothing", check=False)
    assert done.returncode == 2
    assert "there is no folder alice/nothing, and no such model on the Hub" in done.stderr
