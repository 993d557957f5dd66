"""Imports point one way: from the command line down to what travels with a checkpoint."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
# A room may import what stands to its right, or on the same floor; rooms of one floor do not import each other.
FLOORS = (
    {"research"},
    {"cli"},
    {"finetuning"},
    {"pretraining"},
    {"sharing", "generators"},
    {"data"},
    {"runtime", "metrics"},
    {"errors"},
    {"modeling_electra_exit"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
CODE = [
    path
    for folder in ("modeling_electra_exit", "trainers", "research")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != ROOT / "trainers" / "__init__.py"  # the public names, of all rooms
]


def room_of(path: Path) -> str:
    package, *parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if package == "trainers" else package


def imports(path: Path, at_once: bool = False) -> set[Path]:
    """The files of ours that a file imports, wherever in it, or `at_once`: when it is imported itself."""
    files, tree = set(), ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = path.parents[node.level - 1]
                names = (node.module or "").split(".") if node.module else []
            else:
                base, names = ROOT, located(node.module)
            for name in node.names:
                files |= found(base.joinpath(*names), name.name)
        elif isinstance(node, ast.Import):
            for name in node.names:
                files |= found(ROOT.joinpath(*located(name.name)), "")
    return files - {path}


def located(module: str) -> list[str]:
    """Where in the tree a module of ours is."""
    for package, folder in (("modeling_electra_exit.trainers", "trainers"), ("electra_exit", "trainers/cli")):
        if module == package or module.startswith(f"{package}."):
            return [*folder.split("/"), *module.removeprefix(package).split(".")[1:]]
    return module.split(".")


def found(folder: Path, name: str) -> set[Path]:
    for path in (
        folder / f"{name}.py",
        folder / name / "__init__.py",
        folder.with_suffix(".py"),
        folder / "__init__.py",
    ):
        if path.is_file():
            return {path}
    return set()


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_runs_back_up(path):
    here = room_of(path)
    for target in imports(path):
        if target == ROOT / "trainers" / "__init__.py":
            pytest.fail(f"{path} imports the public names of all rooms")
        there = room_of(target)
        allowed = there == here or FLOOR[there] > FLOOR[here]
        assert allowed, f"{path.relative_to(ROOT)} imports {target.relative_to(ROOT)}"


def test_no_two_files_import_each_other():
    graph = {path: imports(path, at_once=True) for path in CODE}
    done = set()

    def visit(path, above):
        assert path not in above, " -> ".join(str(p.relative_to(ROOT)) for p in (*above, path))
        if path not in done:
            for target in graph.get(path, ()):
                visit(target, (*above, path))
            done.add(path)

    for path in CODE:
        visit(path, ())


def test_imports_are_seen():
    run = ROOT / "trainers" / "pretraining" / "run.py"
    assert {ROOT / "trainers" / "pretraining" / "trainer.py", ROOT / "trainers" / "errors.py"} <= imports(run)
    assert ROOT / "modeling_electra_exit" / "__init__.py" in imports(run)
    assert run in imports(ROOT / "trainers" / "cli" / "pretrain.py")
