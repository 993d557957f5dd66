"""`report.html`: one page with all that a run measured, which needs no other file, and which anybody can read."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from electra_exit.places import TRAINERS
from modeling_electra_exit.trainers.errors import UsageError
from modeling_electra_exit.trainers.sharing.report import expected_curve, write_report
from modeling_electra_exit.trainers.sharing.svg import Series, in_short, line_chart, ticks
from tests.browser import dom, needs_chromium, screenshot
from tests.trainers.sharing.test_model_card import MEASURED


LOG = [
    {"step": step, "loss": 50 / step, "discriminator_loss": 0.5 - step / 4000, "discriminator_auc": 0.5 + step / 3000,
     "generator_loss": 7.0, "exit_loss": 0.6}
    for step in range(100, 1300, 100)
] + [{"step": 600, "eval_roc_auc": 0.69}, {"step": 1200, "eval_roc_auc": 0.712}]  # fmt: skip


def pre_trained(folder, log=LOG, **changes):
    folder.mkdir(exist_ok=True)
    facts = {**MEASURED, "kept_share": [1, 1, 0.5, 0.5, 0.25, 1], **changes}
    (folder / "metrics.json").write_text(json.dumps(facts))
    state = {"global_step": 1234, "max_steps": 1234, "log_history": log}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def fine_tuned(folder, labels=("bad", "<good>")):
    best = folder / "seed-2"
    best.mkdir(parents=True)
    how = {
        "kind": "classification", "labels": list(labels), "model": "mine", "learning_rate": 1e-4, "seconds": 61,
        "examples": {"train": 900, "validation": 100}, "examples_per_step": 32, "hardware": "2 CPU threads",
        "precision": "fp32",
    }  # fmt: skip
    facts = {"task": "reviews", "evaluation": {}, "steps": 90, "finetuning": how}
    (best / "metrics.json").write_text(json.dumps(facts))
    (best / "trainer_state.json").write_text(json.dumps({"global_step": 90, "max_steps": 90, "log_history": LOG}))
    curve = [{"depth": depth, "accuracy": 0.8 + depth / 10} for depth in (0.3, 0.6, 1.0)]
    (best / "calibration.json").write_text(json.dumps({"curve": curve, "accuracy": 0.86, "depth": 0.6}))
    summary = {
        "task": "reviews", "best": "seed-2", "seeds": [1, 2],
        "evaluation": {"accuracy": {"scores": [0.81, 0.8725], "mean": 0.8412}},
        "baselines": {"majority class": {"accuracy": 0.5}},
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(params=[pre_trained, fine_tuned], ids=["pre-training", "fine-tuning"])
def page(request, tmp_path):
    path = write_report(request.param(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    return path


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_a_pre_training_is_on_the_page(tmp_path):
    text = write_report(pre_trained(tmp_path / "run")).read_text()
    for fragment in (
        "<title>run: Pre-training</title>", "<dd>0.7123</dd>", "<dd>5,054,464</dd>", "<dd>4 min 1 s</dd>",
        "ROC-AUC of the discriminator against tokens; the last value is 0.712",
        "Loss of the generator against tokens, from 7.000 to 7.000",
        "100%, 100%, 50%, 50%, 25%, 100%. ROC-AUC of the heads: 0.650 after layer 2, 0.690 after layer 4, 0.712 after",
        '<th scope="row">after layer 2</th><td>0.6500</td>', '<th scope="row">FLOPs of both models</th>',
        "<td>80.0%</td>", "239 documents, 264,190 tokens", "torch 2.13",
    ):  # fmt: skip
        assert fragment in text


def test_what_was_measured_for_a_recipe_stands_beside_the_runs_own_curve(tmp_path):
    path = TRAINERS / "recipes" / "expected" / "quickstart.json"
    expected = json.loads(path.read_text())
    folder = pre_trained(tmp_path / "run")
    (folder / "run.json").write_text(json.dumps({"arguments": {**expected["arguments"], "seed": 7}}))
    assert "expected on held-out text" in write_report(folder).read_text()
    assert expected_curve(folder) == [tuple(point) for point in expected["steps_and_roc_auc"]]
    assert len(expected_curve(folder)) > 5
    (folder / "run.json").write_text(json.dumps({"arguments": {**expected["arguments"], "hidden_size": 64}}))
    assert expected_curve(folder) == []
    assert "expected on held-out text" not in write_report(folder).read_text()


def test_the_expected_curve_is_that_of_the_recipe_as_it_was_measured():
    expected = json.loads((TRAINERS / "recipes" / "expected" / "quickstart.json").read_text())
    recipe = yaml.safe_load((TRAINERS / "recipes" / "quickstart.yaml").read_text())
    assert expected["arguments"].items() <= recipe.items()
    measured = json.loads((Path(__file__).parents[3] / expected["command"].split()[-1]).read_text())
    found = [[point["step"], round(point["own_samples/roc_auc"], 4)] for point in measured["curve"]]
    assert expected["steps_and_roc_auc"] == found


def test_a_fine_tuning_is_on_the_page(tmp_path):
    text = write_report(fine_tuned(tmp_path / "run")).read_text()
    for fragment in (
        "Fine-tuning on reviews", "<dt>Accuracy, best seed</dt><dd>0.8725</dd>",
        '<th scope="row">seed 1</th><td>0.8100</td>', '<th scope="row">mean</th><td>0.8412</td>',
        '<th scope="row">majority class</th><td>0.5000</td>', "bad, &lt;good&gt;",
        "Accuracy against the share of the layers; chosen: 0.860 at 60%", "Loss of all heads against steps",
    ):  # fmt: skip
        assert fragment in text


def test_the_page_is_self_contained(page):
    text = page.read_text()
    elements = Elements(text)
    assert not any(elements.all(tag) for tag in ("script", "link", "img", "iframe"))
    assert "http" not in re.sub(r"<style>.*</style>", "", text, flags=re.S)
    assert "url(" not in text


def test_a_screen_reader_can_tell_what_is_there(page):
    elements = Elements(page.read_text())
    assert elements.all("html") == [{"lang": "en"}]
    assert len(elements.all("title")) == len(elements.all("h1")) == len(elements.all("main")) == 1
    pictures = elements.all("svg")
    assert len(pictures) >= 2
    assert all(picture["role"] == "img" and len(picture["aria-label"]) > 20 for picture in pictures)
    assert {head["scope"] for head in elements.all("th")} == {"col", "row"}
    regions = [attributes for attributes in elements.all("div") if "tabindex" in attributes]
    assert len(regions) == len(elements.all("table"))
    ids = {attributes.get("id") for _, attributes in elements.found}
    assert all(region["aria-labelledby"] in ids for region in regions)


def luminance(color: str) -> float:
    color = color * 2 if len(color) == 3 else color
    parts = [int(color[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""
    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def test_text_and_lines_stand_out_in_light_and_in_dark(page):
    schemes = re.findall(r":root \{(.*?)\}", page.read_text(), re.S)
    assert len(schemes) == 2
    for scheme in schemes:
        colors = dict(re.findall(r"--(\w+): #(\w+)", scheme))
        for back in ("back", "box"):
            assert contrast(colors["text"], colors[back]) >= 7
            assert contrast(colors["soft"], colors[back]) >= 4.5
        assert all(contrast(colors[line], colors["back"]) >= 3 for line in "abc")


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it(page, tmp_path, width):
    """Without a message, and without a page that is wider than the window."""
    probe = page.with_name("probe.html")
    script = "<script>document.title = [innerWidth, document.documentElement.scrollWidth]</script></body>"
    probe.write_text(page.read_text().replace("</body>", script))
    text, console = dom(probe.as_uri(), tmp_path, width=width)
    assert console == []
    inner, wide = map(int, re.search(r"<title>(\d+),(\d+)</title>", text).groups())
    assert wide <= inner
    picture = screenshot(page.as_uri(), tmp_path, tmp_path / "page.png", width=width)
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_what_was_not_recorded_is_left_out(tmp_path):
    folder = pre_trained(tmp_path / "run", log=[], kept_share=[], flops=None, versions={})
    text = write_report(folder).read_text()
    assert "<svg" not in text
    assert "FLOPs" not in text
    assert "0.7123" in text


def test_a_folder_without_a_finished_run_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"holds no finished run: it has no metrics\.json"):
        write_report(tmp_path)


def test_names_of_the_user_are_text_and_no_markup(tmp_path):
    text = write_report(fine_tuned(tmp_path / "run", labels=["<script>alert(1)</script>", '"><b>'])).read_text()
    assert "<script>" not in text
    assert "<b>" not in text
    assert '<text onload="x">' not in line_chart(
        '"><text onload="x">', [Series("<i>", [(0, 1), (1, 2)])], "<u>", "<s>"
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.5, 0.5, [0.4, 0.6]),
        (0, 0, [0, 0.25]),
        (-3, 98, [-50, 0, 50, 100]),
        (1e6, 5e6, [1e6, 2e6, 3e6, 4e6, 5e6]),
    ],
)
def test_axes_have_round_marks_that_hold_all(low, high, expected):
    found = ticks(low, high)
    assert found == pytest.approx(expected)
    assert found[0] <= low
    assert found[-1] >= high


def test_marks_in_short():
    assert [in_short(n) for n in (0.25, 9_999, 20_000, 1.5e6, 0)] == ["0.25", "9999", "20 k", "1.5 M", "0"]


def test_points_stand_where_their_numbers_say():
    svg = line_chart("t", [Series("s", [(0, 0), (1, 1), (2, 0.5)])], "x", "y")
    (path,) = re.findall(r'points="([^"]*)"', svg)
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, place.split(","))) for place in path.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 > y2 > y1
    assert y0 - y2 == pytest.approx(y2 - y1, abs=0.11)
