import json
import sys

import pytest
import yaml
from huggingface_hub import ModelCard

from electra_exit import main as cli
from modeling_electra_exit import ElectraEarlyExitForMaskedLM
from modeling_electra_exit.trainers.runtime.figures import can_draw
from modeling_electra_exit.trainers.sharing.model_card import write_model_card
from tests.conftest import tiny_config, tiny_model


MEASURED = {
    "evaluation": {
        "roc_auc": 0.71234, "average_precision": 0.31, "recall_on_replaced": 0.12, "replaced_rate": 0.1357,
        "calibration_error": 0.0123, "roc_auc_layer_2": 0.65, "average_precision_layer_2": 0.25,
        "calibration_error_layer_2": 0.01, "roc_auc_layer_4": 0.69, "average_precision_layer_4": 0.29,
        "calibration_error_layer_4": 0.02,
    },
    "training": {
        "steps": 1234, "tokens_per_step": 4096, "tokens": 5054464, "tokens_per_second": 21000.5, "precision": "fp32",
        "hardware": "2 CPU threads", "exit_warmup": 0.08, "exit_cooldown": 0.12, "seed": 42,
    },
    "flops": {
        "blocks": 6e12, "discriminator": 7e12, "total": 8e12, "dense_blocks": 8e12, "dense_discriminator": 9e12,
        "dense_total": 1e13, "total_as_published": 9e12, "dense_total_as_published": 1.1e13,
    },
    "parameters": {"discriminator": 2000000, "generator": 10000},
    "data": {
        "description": "local files (a.txt)", "name": "local files", "max_seq_length": 64,
        "counts": {
            name: {"documents": 239, "empty_documents": 0, "tokens": 264190, "sequences": 4128}
            for name in ("train", "validation")
        },
    },
    "versions": {"electra-early-exit": "9.9", "torch": "2.13"},
}  # fmt: skip


def card(tmp_path, measured=MEASURED, **config) -> str:
    tiny_config(**config).save_pretrained(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps(measured))
    return write_model_card(tmp_path).read_text()


@pytest.mark.parametrize(
    "fragment",
    ["0.7123", "| layer 2 | 0.6500 | 0.2500 | 0.0100 |", "| 6 (final) |", "0.750", "1,234 steps of 4,096 tokens",
     "239 documents", '"trust_remote_code": True', "electra-early-exit 9.9", "arXiv:2110.06620", "first 8%",
     "6 layers, hidden size 16", "0.1357", '"revision": "commit-hash", "code_revision": "commit-hash"', "seed 42",
     "4 minutes, excluding evaluation and saving", "No license has been stated",
     "Its exit rule, sizes, data and\nnumbers were unknown"],
)  # fmt: skip
def test_states_what_was_measured(tmp_path, fragment):
    assert fragment in card(tmp_path)


@pytest.mark.parametrize("generator_type", ["mlm", "self"])
def test_a_calibrated_model_has_a_card(tmp_path, generator_type):
    calibrated = {"inference_exit_thresholds": [0.9, 0.8], "inference_exit_temperatures": [1.5, 1.2]}
    assert "after layers 2, 4" in card(tmp_path, generator_type=generator_type, **calibrated)


def test_metadata_is_what_the_hub_reads(tmp_path):
    card(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "transformers"
    assert {result.metric_type: result.metric_value for result in data.eval_results}["roc_auc"] == 0.7123
    assert data.pipeline_tag == "feature-extraction"
    # As the Hub wants it: https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    (entry,) = yaml.safe_load(data.to_yaml())["model-index"]
    for result in entry["results"]:
        assert set(result) == {"task", "dataset", "metrics"}
        assert {"name", "type"} <= set(result["dataset"])
        assert all(isinstance(metric["value"], float) for metric in result["metrics"])


def test_names_the_data_set_license_and_language_of_the_run(tmp_path):
    told = {
        **MEASURED,
        "data": {**MEASURED["data"], "dataset_name": "someone/texts", "language": ["en"]},
        "training": {**MEASURED["training"], "model_license": "apache-2.0"},
    }
    card(tmp_path, told)
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.datasets, data.language, data.license) == ("someone/texts", ["en"], "apache-2.0")


def test_says_how_to_use_the_generator(tmp_path):
    text = card(tmp_path)
    assert 'pipeline("fill-mask", model="path-or-repo-id")' in text
    assert 'AutoModelForMaskedLM.from_pretrained("path-or-repo-id")' in text


def test_the_card_of_a_generator_alone(tmp_path):
    ElectraEarlyExitForMaskedLM.of(tiny_model()).save_pretrained(tmp_path)
    text = write_model_card(tmp_path).read_text()
    assert ModelCard.load(tmp_path / "README.md").data.pipeline_tag == "fill-mask"
    assert "import AutoModelForMaskedLM, AutoTokenizer" in text
    assert "AutoModelForPreTraining" not in text


def test_says_nothing_of_exits_or_a_generator_that_are_not_there(tmp_path):
    measured = {**MEASURED, "parameters": {"discriminator": 2000000, "generator": 0}}
    text = card(tmp_path, measured, exit_policy="none", generator_type="none")
    for fragment in ("the generator it was trained with", "dense phases", "more in the generator", "fill-mask"):
        assert fragment not in text


def test_missing_records_are_omitted(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    text = write_model_card(tmp_path).read_text()
    for missing in ("## Evaluation", "Training cost", "Every number below", "Versions:", "model-index", "license:",
                    "language:", "datasets:", "parameters", "None", "Undefined"):  # fmt: skip
        assert missing not in text
    assert "Not recorded with this checkpoint." in text
    assert not (tmp_path / "exit_profile.png").exists()


def test_the_learning_curve_is_drawn_and_shown(tmp_path):
    if not can_draw():
        pytest.skip("matplotlib is not installed")
    log = [{"step": step, "discriminator_loss": 0.4, "discriminator_auc": 0.6} for step in (10, 20)]
    state = {"global_step": 20, "max_steps": 20, "log_history": [*log, {"step": 20, "eval_roc_auc": 0.61}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert "](learning_curve.png)" in card(tmp_path)
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_an_unfinished_run_shows_its_progress_and_last_evaluation(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    evaluation = {f"eval_{name}": value for name, value in MEASURED["evaluation"].items()}
    speeds = [{"exits_active": active, "tokens_per_second": 100 + 50 * active} for active in (0.0, 1.0) for _ in "abc"]
    log = [{"eval_roc_auc": 0.1}, {**evaluation, "step": 500}, *speeds]
    state = {"global_step": 1500, "max_steps": 3200, "log_history": log}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    text = write_model_card(tmp_path).read_text()
    assert "This card was written during training, at step 1,500 of 3,200." in text
    assert "| layer 2 | 0.6500 | 0.2500 | 0.0100 |" in text
    assert "150 tokens per second with exits active, 100 in" in text
    assert "time ratio 0.67" in text
    assert "fine-tuned" not in text


def test_the_command_renders_it_again_with_license_and_language(tmp_path, capsys):
    card(tmp_path)
    (tmp_path / "README.md").unlink()
    assert cli.main(["card", str(tmp_path), "--license", "mit", "--language", "de", "ko"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.language) == ("mit", ["de", "ko"])
    assert "No license has been stated" not in (tmp_path / "README.md").read_text()
    assert cli.main(["card", str(tmp_path / "nowhere")]) == 2
    assert "holds no model: it has no config.json" in capsys.readouterr().err


def test_shows_the_exit_profile(tmp_path):
    text = card(tmp_path, {**MEASURED, "kept_share": [1.0, 1.0, 0.5, 0.5, 0.25, 1.0]})
    assert "](exit_profile.png)" in text
    assert (tmp_path / "exit_profile.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "dense").mkdir()
    assert "exit_profile" not in card(tmp_path / "dense", exit_policy="none")


def test_says_after_which_layers_tokens_exit(tmp_path):
    (tmp_path / "two").mkdir()
    assert "| after layer 2; " in card(tmp_path, exit_layers=[2], exit_capacities=[0.125])
    assert "| after layers 1, 2; " in card(tmp_path / "two", exit_layers=[1, 2], exit_capacities=[0.5, 0.25])


def test_says_which_random_tokens_stood_in_for_a_generator(tmp_path):
    assert "| replacements | random tokens with their frequencies in the text |" in card(
        tmp_path, generator_type="unigram"
    )


def test_a_figure_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    measured = {**MEASURED, "kept_share": [1.0, 1.0, 0.5, 0.5, 0.25, 1.0]}

    def half(figure, path, **kwargs):
        path.write_bytes(b"\x89PNG")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    text = card(tmp_path, measured)
    assert "exit_profile.png of the model card failed; the run continues without it: [Errno 28]" in caplog.text
    assert "exit_profile.png" not in text
    assert not (tmp_path / "exit_profile.png").exists()


def test_a_run_without_matplotlib_logs_one_message(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    can_draw.cache_clear()
    measured = {**MEASURED, "kept_share": [1.0, 1.0, 0.5, 0.5, 0.25, 1.0]}
    texts = [card(tmp_path, measured) for _ in range(2)]
    can_draw.cache_clear()
    assert not any("exit_profile.png" in text for text in texts)
    assert [record.getMessage() for record in caplog.records] == [
        "no figure is drawn: matplotlib is not installed (pip install 'electra-early-exit[demo]')"
    ]
