"""The page on which a model is tried: what it says, that it asks nobody else, and that everybody can use it."""

import json
import re
import socket
import subprocess
import sys

import pytest
import torch
import yaml

from electra_exit import main as cli
from modeling_electra_exit import (
    ElectraEarlyExitForPreTraining,
    ElectraEarlyExitForSequenceClassification,
    ElectraEarlyExitForTokenClassification,
    ElectraEarlyExitModel,
)
from tests.browser import dom, needs_chromium, screenshot
from tests.conftest import tiny_config, trained_exits


pytest.importorskip("gradio", reason="the extra `web` is not installed")

from fastapi.testclient import TestClient

from modeling_electra_exit.trainers.sharing.demo import Demo, launch, page
from modeling_electra_exit.trainers.sharing.space import write_space


LABELS = {"id2label": {0: "bad", 1: "<good>"}, "label2id": {"bad": 0, "<good>": 1}}
ALWAYS = {"inference_exit_thresholds": [0.0, 0.0]}  # every answer is certain enough


def saved(folder, model_class, tokenizer, **fields):
    torch.manual_seed(0)
    model = model_class(tiny_config(vocab_size=len(tokenizer), **fields))
    if hasattr(model, "exit_heads"):
        trained_exits(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def detector(tmp_path, tokenizer):
    return saved(tmp_path / "detector", ElectraEarlyExitForPreTraining, tokenizer)


def classifier(tmp_path, tokenizer, **fields):
    return saved(tmp_path / "classifier", ElectraEarlyExitForSequenceClassification, tokenizer, **LABELS, **fields)


def test_each_token_has_its_probability(detector, tokenizer):
    demo = Demo(detector)
    said = demo.answer("the cat <b> sleeps")
    encoded = tokenizer("the cat <b> sleeps", return_tensors="pt")
    with torch.no_grad():
        expected = demo.model(**encoded).logits.sigmoid()[0, 1:-1].tolist()
    found = re.findall(r'<li style="--p: ([\d.]+)">(.*?)<small>(\d+)%</small></li>', said)
    assert [float(p) for p, _, _ in found] == pytest.approx(expected, abs=5e-4)
    assert [int(percent) for _, _, percent in found] == [round(100 * p) for p in expected]
    assert "<b> sleeps" not in said
    probability, likely = max(zip(expected, tokenizer.tokenize("the cat <b> sleeps"), strict=True))
    which = "Most likely replaced" if probability >= 0.5 else "No token looks replaced; the most likely is"
    assert f"<p>{which}: <b>{likely}</b>, {probability:.0%}.</p>" in said.replace("&lt;", "<").replace("&gt;", ">")


def test_a_label_and_the_layers_that_were_saved(tmp_path, tokenizer):
    demo = Demo(classifier(tmp_path, tokenizer, **ALWAYS))
    said = demo.answer("the cat sleeps")
    assert "Exited after layer 2 of 6: 67% of the layers saved." in said
    assert re.search(r'<p class="answer">(bad|&lt;good&gt;)</p>', said)
    shares = [float(share) for share in re.findall(r"<td>([\d.]+)%</td>", said)]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "Computed by all 6 layers: this model has no calibrated exits."),
        ({"inference_exit_thresholds": [1.0, 1.0]}, "Exited after layer 6 of 6: 0% of the layers saved."),
        ({"problem_type": "multi_label_classification"}, "<table>"),
        ({"problem_type": "regression", "id2label": {0: "x"}, "label2id": {"x": 0}}, '<p class="answer">'),
    ],
)
def test_other_heads_and_thresholds(tmp_path, tokenizer, fields, expected):
    fields = {**LABELS, **fields}
    folder = saved(tmp_path / "model", ElectraEarlyExitForSequenceClassification, tokenizer, **fields)
    assert expected in Demo(folder).answer("the cat sleeps")


def test_words_have_tags_and_layers(tmp_path, tokenizer):
    folder = saved(tmp_path / "tagger", ElectraEarlyExitForTokenClassification, tokenizer, **LABELS, **ALWAYS)
    said = Demo(folder).answer("the cat sleeps")
    assert re.findall(r'<th scope="row">(\w+)</th>', said) == ["the", "cat", "sleeps"]
    assert said.count("<td>2</td>") == 3
    assert "Exited after 2.0 layers on average of 6: 67% of the layers saved." in said


def test_an_empty_text_is_answered(detector):
    assert "Enter a text first" in Demo(detector).answer("  ")


def test_a_pair_has_a_second_box(tmp_path, tokenizer):
    folder = classifier(tmp_path, tokenizer)
    (tmp_path / "classifier" / "metrics.json").write_text(json.dumps({"finetuning": {"text_columns": ["a", "b"]}}))
    demo = Demo(folder)
    assert demo.pairs
    assert demo.answer("the cat", "sleeps") != demo.answer("the cat", "near the house")


def test_what_reads_no_text_is_refused(tmp_path, tokenizer, capsys):
    folder = saved(tmp_path / "encoder", ElectraEarlyExitModel, tokenizer)
    with pytest.raises(ValueError, match=r"must be a pre-trained model .* got ElectraEarlyExitModel"):
        Demo(folder)
    assert cli.main(["demo", folder]) == 2
    assert "must be a pre-trained model" in capsys.readouterr().err
    assert cli.main(["demo", str(tmp_path)]) == 2
    assert "holds no model: it has no config.json; models are in encoder" in capsys.readouterr().err


@pytest.fixture
def served(detector, monkeypatch):
    """The page's address, while every connection to another machine fails."""
    connect = socket.socket.connect

    def to_this_machine(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            asked.append(address)
            raise OSError(f"no network: {address}")
        return connect(self, address)

    asked: list = []
    monkeypatch.setattr(socket.socket, "connect", to_this_machine)
    blocks = page(Demo(detector), "detector")
    _, url, shared = launch(blocks, server_name="127.0.0.1", quiet=True, prevent_thread_lock=True)
    yield blocks, url, shared
    blocks.close(verbose=False)
    assert asked == []


def test_the_page_is_served_locally_only(served):
    blocks, url, shared = served
    assert url.startswith("http://127.0.0.1:")
    assert not shared
    assert not blocks.analytics_enabled
    text = TestClient(blocks.app).get("/").text
    assert '<html\n\tlang="en"' in text
    config = TestClient(blocks.app).get("/config").json()
    assert config["title"] == "detector: electra-early-exit"
    labels = [part["props"].get("label") for part in config["components"] if part["type"] == "textbox"]
    assert labels == ["Text", "Second text"]
    assert not config["analytics_enabled"]
    outside = re.findall(r"""(?:src|href)=["'](https?://[^"']*)""", text)
    assert outside == [], "neither fonts nor scripts of others"


def test_the_button_runs_the_model(served, detector):
    from gradio_client import Client

    _, url, _ = served
    client = Client(url, verbose=False, analytics_enabled=False)
    assert client.predict("the dog runs", "", api_name="/predict") == Demo(detector).answer("the dog runs")


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_what_the_model_says(served, tmp_path, width):
    _, url, _ = served
    text, console = dom(url, tmp_path, width=width, wait_ms=20_000)
    assert re.search(r'<ul class="tokens" aria-label="tokens"><li style="--p: 0\.\d+">', text)
    assert re.search(r"<textarea[^>]*>", text)
    assert 'role="status"' in text
    assert [line for line in console if "Error" in line] == []
    assert len(screenshot(url, tmp_path, tmp_path / "page.png", width=width, wait_ms=20_000)) > 10_000


def test_a_space_has_all_it_needs_and_runs_without_the_package(detector, tmp_path):
    folder = write_space(detector, "my detector", tmp_path / "space")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "app.py", "model", "requirements.txt"]
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert front["sdk"] == "gradio"
    assert front["app_file"] == "app.py"
    assert {"config.json", "model.safetensors", "tokenizer.json", "modeling_electra_exit.py"} <= {
        path.name for path in (folder / "model").iterdir()
    }
    assert re.fullmatch(r"torch==[\d.]+\ntransformers==[\d.]+\n", (folder / "requirements.txt").read_text())
    code = "import sys; sys.modules['modeling_electra_exit'] = None; import app; "
    code += "demo = app.Demo(app.CHECKPOINT, trust_remote_code=True); app.page(demo, app.NAME); "
    code += "print(app.NAME, demo.answer('the cat sleeps'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("my detector <div")
    assert done.stdout.strip().removeprefix("my detector ") == Demo(detector).answer("the cat sleeps")


def test_the_command_writes_a_space_and_refuses_a_folder_in_use(detector, tmp_path, capsys):
    out = tmp_path / "space"
    assert cli.main(["demo", detector, "--space", str(out)]) == 0
    assert f"hf upload USER/NAME {out} --repo-type space" in capsys.readouterr().out
    assert cli.main(["demo", detector, "--space", str(out)]) == 2
    assert f"{out} must be an empty or new folder" in capsys.readouterr().err


def test_the_command_serves_until_it_is_told_to_end(detector, monkeypatch, capsys):
    from gradio import Blocks

    monkeypatch.setattr(Blocks, "block_thread", lambda self: None)
    assert cli.main(["demo", detector]) == 0
    assert re.search(r"http://127\.0\.0\.1:\d+/ \(press Ctrl-C to stop\)", capsys.readouterr().out)
