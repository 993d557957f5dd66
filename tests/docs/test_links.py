"""Links of README.md, CONTRIBUTING.md and docs/ lead to files and headings that exist, as GitHub shows them."""

import re

import pytest

from docs.measurements import ROOT, pages, without_marks


PAGES = {str(page.relative_to(ROOT)): page for page in [*pages(), ROOT / "CONTRIBUTING.md"]}
LINK = re.compile(r"(?:\]\(|src=\")(?!https?:)([^)\"#\s]*)(?:#([^)\"\s]*))?[)\"]")
COMMAND = re.compile(r"python (?:-m ([\w.]+)|([\w/]+\.py))")


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub and mkdocs derive them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = PAGES[name]
    text = re.sub(r"```.*?```", "", without_marks(page.read_text("utf-8")), flags=re.DOTALL)
    for path, anchor in LINK.findall(text):
        target = (page.parent / path) if path else page
        assert target.exists(), f"{name}: {path}"
        assert not anchor or anchor in anchors(target.read_text("utf-8")), f"{name}: {path}#{anchor}"


@pytest.mark.parametrize("name", PAGES)
def test_named_scripts_exist(name):
    for module, script in COMMAND.findall(PAGES[name].read_text("utf-8")):
        if script or module.startswith(("benchmarks", "research", "docs")):
            assert (ROOT / (script or f"{module.replace('.', '/')}.py")).exists(), f"{name}: {module or script}"
