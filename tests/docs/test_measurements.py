"""The numbers and figures of README.md and docs/ are those of benchmarks/results."""

import re

import pytest

from docs import draw
from docs.measurements import MARKED, ROOT, all_numbers, fill, main, pages


PAGES = {str(page.relative_to(ROOT)): page for page in pages()}
MEASURED = [name for name in PAGES if name in ("README.md", "docs/index.md") or name.startswith("docs/results/")]


@pytest.mark.parametrize("name", PAGES)
def test_the_numbers_of_a_page_are_those_of_the_results(name):
    text = PAGES[name].read_text("utf-8")
    assert fill(text, all_numbers()) == text, "python -m docs.measurements writes them"


@pytest.mark.parametrize("name", MEASURED)
def test_no_measured_number_is_written_by_hand(name):
    text = MARKED.sub("", PAGES[name].read_text("utf-8"))
    text = re.sub(
        r"```.*?```|`[^`]*`|\]\([^)]*\)|<img[^>]*>|(arXiv|Apache|Python)[ :-]*[\d.]+", "", text, flags=re.DOTALL
    )
    assert not re.findall(r"(?<![\w.])\d+\.\d+(?!\.?\w)", text), "mark it, and let docs/measurements.py compute it"


def test_a_number_that_differs_is_found_and_mended(tmp_path, monkeypatch, capsys):
    page = tmp_path / "README.md"
    page.write_text("It takes <!--= exits.time -->0.5<!--/--> of the time; <!--= faults.table --><!--/-->")
    monkeypatch.setattr("docs.measurements.ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["measurements", "--check"])
    assert main() == 1
    monkeypatch.setattr("sys.argv", ["measurements"])
    assert main() == 0
    assert page.read_text().startswith(
        "It takes <!--= exits.time -->0.79<!--/--> of the time; <!--= faults.table -->\n\n| fault |"
    )
    with pytest.raises(KeyError, match=r"exits\.tiem"):
        fill("<!--= exits.tiem --><!--/-->", all_numbers())


@pytest.mark.parametrize("name", draw.DATA)
def test_a_figure_shows_the_results(name):
    assert draw.fingerprint(draw.DATA[name]()) in draw.drawn(name).read_text("utf-8"), "python -m docs.draw draws it"


def test_the_readme_is_short():
    text = PAGES["README.md"].read_text("utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.encode()) <= 9000
