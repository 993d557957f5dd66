"""Hooks of mkdocs: generate the reference from the code, and resolve links from pages into the repository.

`mkdocs.yml` names this file. A line `<!-- reference: KIND NAME -->` becomes a table or the help of a command.
"""

import argparse
import dataclasses
import importlib
import io
import re
import shutil
import sys
import tomllib
from contextlib import redirect_stdout
from pathlib import Path
from posixpath import normpath

from mkdocs.structure.files import File


ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ROOT / "build" / "docs-packages"  # as in mkdocs.yml
# Reports and cards outside `docs/` that become pages of the site.
OUTSIDE = ("benchmarks/results/**/*.md", "benchmarks/results/**/*.png", "model_cards/*/*.md", "model_cards/*/*.png")
REFERENCE = re.compile(r"^<!-- reference: (\w+) ([\w.-]+) -->$", re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+)([^)#\s]+)(#[^)\s]*)?\)")


def on_startup(command, dirty):
    """Copy the packages for mkdocstrings as they are imported: `trainers/` is `modeling_electra_exit.trainers`."""
    shutil.rmtree(PACKAGES, ignore_errors=True)
    code = PACKAGES / "modeling_electra_exit"  # copies, because griffe does not follow links
    shutil.copytree(ROOT / "modeling_electra_exit", code)
    shutil.copytree(ROOT / "trainers", code / "trainers")


def on_config(config):
    sys.path.insert(0, str(ROOT))  # not at the top, because mkdocs restores the path after importing this file
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    config.repo_url = project.get("urls", {}).get("Repository")
    return config


def on_files(files, config):
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    from docs.measurements import without_marks

    markdown = REFERENCE.sub(lambda found: REFERENCES[found[1]](found[2]), without_marks(markdown))
    folder = "" if page.file.src_uri.startswith(("benchmarks/", "model_cards/")) else "docs/"
    here = folder + page.file.src_uri.rpartition("/")[0]
    return LINK.sub(lambda found: _link(found, here, config, files), markdown)


def _link(found, here: str, config, files) -> str:
    """Resolve a link out of `docs/` to a page of the site, to the repository, or else to the name of the file."""
    picture, text, up, target, anchor = found.groups(default="")
    path = normpath(f"{here}/{up}{target}")
    if path.startswith("docs/"):
        return found[0]
    assert (ROOT / path).exists(), f"{here}: no file {path}"
    if files.get_file_from_path(path):
        depth = here.removeprefix("docs").strip("/").count("/") + (here not in ("docs", "docs/"))
        return f"{picture}[{text}]({'../' * depth}{path}{anchor})"
    return f"[{text}]({config.repo_url}/blob/main/{path})" if config.repo_url else f"{text} (`{path}`)"


# ---- The reference ----


def _table(rows: list[tuple[str, str, str]]) -> str:
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(["| field | default | meaning |", "|---|---|---|", *lines])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _code(value) -> str:
    return f"`{value}`"


def _row(name: str, text: str) -> tuple[str, str, str]:
    """A row of [`_table`] from a help text that ends with the default."""
    text, default = re.match(r"(?s)(.*?)(?: \(default: (.*)\))?$", text).groups()
    return _code(name), _code(default) if default else "", text


def config_fields(name: str) -> str:
    """A table of the fields that a config class adds to its parents, from its docstring."""
    from electra_exit.flags import _described_fields

    cls = getattr(importlib.import_module("modeling_electra_exit"), name)
    return _table([_row(*described) for described in _described_fields(cls.__doc__).items()])


def argument_fields(name: str) -> str:
    """A table of the fields that a dataclass of arguments declares itself, with their help."""
    module, _, attribute = name.rpartition(".")
    cls = getattr(importlib.import_module(f"modeling_electra_exit.trainers.{module}"), attribute)
    rows = []
    for field in dataclasses.fields(cls):
        if field.name in vars(cls).get("__annotations__", {}):
            default = field.default_factory() if field.default is dataclasses.MISSING else field.default
            rows.append((_code(field.name), _code(default), field.metadata.get("help", "")))
    return _table(rows)


def command(name: str) -> str:
    """The output of `electra-exit NAME --help`."""
    from electra_exit import main

    printed = io.StringIO()
    with redirect_stdout(printed):
        assert main.main([*([] if name == "electra-exit" else [name]), "--help"]) == 0, name
    return f"```text\n{printed.getvalue().rstrip()}\n```"


def flags(name: str) -> str:
    """Tables of all flags of a command that takes a recipe, one per group."""
    from electra_exit import parsing

    sections = []
    for group in parsing.build_parser(getattr(parsing, name))._action_groups:
        shown = [a for a in group._group_actions if a.option_strings and a.help != argparse.SUPPRESS]
        if shown:
            rows = [_row(f"--{action.dest}", (action.help or "").replace("%%", "%")) for action in shown]
            sections.append(f"### {group.title}\n\n{_table(rows)}")
    return "\n\n".join(sections)


REFERENCES = {"config": config_fields, "arguments": argument_fields, "command": command, "flags": flags}
