"""The edge of every command: what libraries throw becomes one sentence, and no stream ends a run."""

import errno
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from electra_exit import console
from electra_exit import main as cli
from electra_exit.parsing import read_recipe
from modeling_electra_exit import ElectraEarlyExitForSequenceClassification, ElectraEarlyExitForTokenClassification
from modeling_electra_exit.trainers.errors import UsageError, reason
from modeling_electra_exit.trainers.generators.registry import build_generator
from modeling_electra_exit.trainers.runtime.files import read_json
from tests.conftest import tiny_config, tiny_model
from tests.forked import PROCESSES
from tests.trainers.cli.test_cli import RECIPE
from tests.trainers.generators.test_generators import corpus_of


def command_that_raises(monkeypatch, error):
    def run(argv):
        raise error

    module = f"{cli.__package__}.raises"
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(run=run))
    monkeypatch.setitem(cli.COMMANDS, "raises", "raise an error")


# ---- Sentences ----


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UsageError("`a` must be b"), 2, "`a` must be b"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 2, "Permission denied: /x/y"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "No space left on device: /x/y"),
        (MemoryError(), 1, "out of memory: MemoryError"),
        (KeyError("weights"), 1, "unexpected KeyError: 'weights' (at main.py:"),
        (ValueError("first\nsecond"), 1, "unexpected ValueError: first (at main.py:"),
        (RecursionError(), 1, "unexpected RecursionError (at main.py:"),
        (SystemExit(0), 1, "called sys.exit(0) before the command finished"),
        (type("PanicException", (BaseException,), {})("in Rust"), 1, "unexpected PanicException: in Rust"),
    ],
)
def test_every_exception_becomes_one_sentence(monkeypatch, capsys, error, status, said):
    command_that_raises(monkeypatch, error)
    assert cli.main(["raises"]) == status
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith("electra-exit raises: error: ")
    assert said in line


@pytest.mark.parametrize("argv", [["--debug", "raises", "x"], ["raises", "x", "--debug"], ["raises", "x"]])
def test_debug_shows_the_traceback(monkeypatch, capsys, argv):
    if "--debug" not in argv:
        monkeypatch.setenv("ELECTRA_EXIT_DEBUG", "1")
    command_that_raises(monkeypatch, KeyError("weights"))
    assert cli.main(argv) == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert said.strip().split("\n")[-1].startswith("electra-exit raises: error: unexpected KeyError")


def test_ctrl_c_in_the_middle_of_an_import_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "electra_exit.sentences", None)  # what it imports cannot be imported again
    command_that_raises(monkeypatch, KeyboardInterrupt())
    assert cli.main(["raises"]) == 130
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith("interrupted; the same command continues")


def test_a_reason_is_that_of_the_cause_and_of_a_worker():
    error = RuntimeError("An error occurred while generating")
    error.__cause__ = OSError("the disk is full")
    assert reason(error) == "RuntimeError: An error occurred while generating (the disk is full)"
    worker = 'Caught ValueError in worker 0.\nOriginal Traceback (most recent call last):\n  File "x"\nValueError: bad'
    assert reason(RuntimeError(worker)) == "RuntimeError: ValueError: bad"
    assert reason(KeyError()) == "KeyError"


# ---- What is read ----


def aliased(first: str, line: str) -> str:
    """Each line names the one before ten times."""
    letters = "abcdefghijk"
    lines = (line.format(before=", ".join([f"*{a}"] * 10), name=b) for a, b in pairwise(letters))
    return "\n".join([f"a: &a {first}", *lines])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (aliased("[x]", "{name}: &{name} [{before}]"), "must have at most 10,000 values with its aliases resolved"),
        (aliased("{x: 1}", "{name}: &{name} {{<<: [{before}]}}"), "must have at most 10,000 values"),
        ("a: &a [*a]", "must have at most 10,000 values"),
        ("[" * 1000, "is nested too deeply"),
        ("a: 2024-99-99", "is not valid YAML: month must be in 1..12"),
        ("a: !!bool perhaps", "is not valid YAML"),
        ("a: !!python/object:os.system x", "is not valid YAML: could not determine a constructor"),
        ("a: 1\n---\nb: 2", "is not valid YAML: expected a single document"),
    ],
)  # fmt: skip
def test_recipes_that_explode_or_are_none(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    start = time.perf_counter()
    with pytest.raises(UsageError, match=message):
        read_recipe(str(tmp_path / "recipe.yaml"))
    assert time.perf_counter() - start < 5


def test_recipes_with_some_aliases_are_recipes(tmp_path):
    (tmp_path / "recipe.yaml").write_text("a: &a [1, 2]\nb: *a\nbase: &base {c: 1}\nd: {<<: *base, e: 2}\n")
    recipe = {"a": [1, 2], "b": [1, 2], "base": {"c": 1}, "d": {"c": 1, "e": 2}}
    assert read_recipe(str(tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[1]", b"null", b"[" * 100_000])
def test_json_that_is_no_object(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UsageError, match=rf"^{tmp_path / 'a.json'} (cannot be read|must hold a JSON object)"):
        read_json(tmp_path / "a.json")


# ---- A user's generator ----

STRANGE = {
    "syntax": "def (:\n",
    "leaves": "import sys\nsys.exit(0)\n",
    "raises": "raise RuntimeError('at import')\n",
    "kinds": """
import sys
from modeling_electra_exit.trainers.generators import Replacements
called = []
def anything(*arguments): called.append(arguments)
def of_something(path): called.append(path)
class Other:
    def __init__(self, context): called.append(context)
class Mine(Replacements):
    def __init__(self, context=None): pass
    def __call__(self, row, positions, generator, **columns): return row[positions]
class Failing(Replacements):
    def __init__(self, context): raise KeyError("corpus")
class Leaving(Replacements):
    def __init__(self, context): sys.exit(0)
instance = Mine()
def nothing(context): return None
def function(context): return Mine()
""",
}


@pytest.fixture
def strange(tmp_path, monkeypatch):
    for name, text in STRANGE.items():
        (tmp_path / f"strange_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in STRANGE:
        sys.modules.pop(f"strange_{name}", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:system", "must name a subclass of Replacements or StepGenerator, or a function with one "
                      "argument named `context` that returns an instance, got <built-in function system>"),
        ("shutil:rmtree", "must name a subclass of"),
        ("math:pi", "must name a subclass of .*, got 3.14"),
        ("strange_kinds:anything", "must name a subclass"),
        ("strange_kinds:of_something", "must name a subclass"),
        ("strange_kinds:Other", "must name a subclass"),
        ("strange_kinds:nothing", "must return a Replacements or StepGenerator, got None"),
        ("strange_kinds:Failing", "KeyError: 'corpus'; use --debug for the traceback"),
        ("strange_kinds:Leaving", r"its code called sys.exit\(0\)"),
        ("strange_syntax:x", "SyntaxError: invalid syntax"),
        ("strange_leaves:x", r"its code called sys.exit\(0\)"),
        ("strange_raises:x", "RuntimeError: at import"),
    ],
)  # fmt: skip
def test_a_generator_is_looked_at_before_it_is_called(tokenizer, strange, name, message):
    with pytest.raises(UsageError, match=rf"^generator_type '{name}'.*{message}"):
        build_generator(tiny_config(generator_type=name), corpus_of(tokenizer), tokenizer)
    if "strange_kinds" in sys.modules:
        assert sys.modules["strange_kinds"].called == []


@pytest.mark.parametrize("name", ["Mine", "instance", "function"])
def test_a_class_an_instance_and_a_function_are_generators(tokenizer, strange, name):
    made = build_generator(tiny_config(generator_type=f"strange_kinds:{name}"), corpus_of(tokenizer), tokenizer)
    assert type(made).__name__ == "Mine"


def test_a_generator_that_exits_trains_nothing_and_says_so(tmp_path, corpus, strange, capsys, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    fields = {**RECIPE, "vocab_size": 120, "tokenizer_name": str(tmp_path / "tokenizer"), "train_files": [str(corpus)],
              "output_dir": str(tmp_path / "run"), "generator_type": "strange_leaves:x"}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    assert cli.main(["pretrain", str(tmp_path / "recipe.yaml")]) == 2
    assert "its code called sys.exit(0)" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.json").exists()


# ---- Text, labels and batches ----


@pytest.fixture
def folders(tmp_path, tokenizer):
    for name, model in (
        ("model", tiny_model()),
        ("texts", ElectraEarlyExitForSequenceClassification(tiny_config())),
        ("words", ElectraEarlyExitForTokenClassification(tiny_config())),
    ):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


def test_columns_that_hold_no_text_or_not_everywhere(folders, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    rows = {
        "number.jsonl": [{"text": 1}],
        "list.jsonl": [{"text": ["a"]}],
        "null.jsonl": [{"text": "a", "label": 0}, {"text": None, "label": 1}],
        "label.jsonl": [{"text": "a", "label": 0}, {"text": "b", "label": None}],
        "words.jsonl": [{"text": ["a", None], "label": [0, 1]}],
    }
    for name, lines in rows.items():
        Path(name).write_text("\n".join(map(json.dumps, lines)) + "\n")
    Path("text.txt").write_text("a cat\n")
    for argv, message in (
        (["score", "model", "number.jsonl"], "the column `text` of number.jsonl must hold text, got Value('int64')"),
        (["score", "model", "list.jsonl"], "the column `text` of list.jsonl must hold text, got List"),
        (["score", "model", "text.txt", "--output", "nowhere/x"], "No such file or directory: nowhere/x"),
        (["score", "model", "text.txt", "--output", "model"], "Is a directory: model"),
        (
            ["calibrate", "texts", "null.jsonl"],
            "1 of 2 rows of null.jsonl lack a text or a label: row 2 lacks `text`",
        ),
        (
            ["calibrate", "texts", "label.jsonl"],
            "1 of 2 rows of label.jsonl lack a text or a label: row 2 lacks `label`",
        ),
        (
            ["calibrate", "words", "words.jsonl"],
            "1 of 1 rows of words.jsonl lack a text or a label: row 1 lacks `text`",
        ),
    ):
        assert cli.main(argv) == 2
        assert message in capsys.readouterr().err.strip().split("\n")[-1]


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_a_batch_without_a_token(shape):
    ids = torch.zeros(shape, dtype=torch.long)
    for kind in (ElectraEarlyExitForTokenClassification, ElectraEarlyExitForSequenceClassification):
        for mode in (True, False):
            with pytest.raises(ValueError, match=rf"^a batch needs .*, got shape \({shape[0]}, {shape[1]}\)"):
                kind(tiny_config()).train(mode)(ids)


def test_a_tokenizer_that_does_not_fit_is_refused_before_anything_is_written(folders, capsys):
    path = folders / "model" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["cat"] = 10**9
    path.write_text(json.dumps(tokenizer))
    (folders / "text.txt").write_text("a cat\n")
    for argv in (["score", "{}/model", "{}/text.txt"], ["export", "{}/model", "{}/out", "--to", "electra"]):
        assert cli.main([word.format(folders) for word in argv]) == 2
        assert "must be below the model's `vocab_size`, 120, got 1000000000" in capsys.readouterr().err
    assert not (folders / "out").exists()


def test_code_of_a_checkpoint_is_not_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (tmp_path / "config.json").write_text('{"model_type": "nope", "auto_map": {"AutoConfig": "a.B"}}')
    (tmp_path / "a.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "x.txt").write_text("a cat runs\n")
    assert cli.main(["score", str(tmp_path), str(tmp_path / "x.txt")]) == 2
    assert "contains custom code" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path), str(tmp_path / "out"), "--to", "electra"]) == 2
    assert "contains custom code" in capsys.readouterr().err


# ---- Streams ----

# Only the standard library, so that a process takes no time.
STREAMS = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("console", sys.argv[1])
console = importlib.util.module_from_spec(spec)
spec.loader.exec_module(console)
try:
    with console.lasting_streams(carries_answer=sys.argv[2] == "answer"):
        for number in range(20_000):
            print(f"line {number}: caf\\u00e9 \\u2026")
        print("said", file=sys.stderr)
except console.OutputError as error:
    print(error, file=sys.stderr)
    sys.exit(error.status)
opened = open("file.txt", "w")
sys.exit(0 if opened.fileno() > 2 else 99)
"""


def stream(tmp_path, what, stdout, encoding="utf-8", **options):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    argv = [sys.executable, "-c", STREAMS, console.__file__, what]
    done = subprocess.run(argv, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, env=environment,
                          cwd=tmp_path, timeout=60, **options)  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done


@pytest.fixture
def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def test_a_reader_that_had_enough(tmp_path, closed_pipe):
    done = stream(tmp_path, "answer", closed_pipe)
    assert (done.returncode, done.stderr) == (141, "could not write all output: Broken pipe\n")
    done = stream(tmp_path, "no answer", closed_pipe)
    assert (done.returncode, done.stderr) == (0, "standard output failed (Broken pipe); continuing without it\nsaid\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")
def test_a_full_disk_behind_the_output(tmp_path):
    with open("/dev/full", "w") as full:
        done = stream(tmp_path, "answer", full)
        assert (done.returncode, "No space left on device" in done.stderr) == (1, True)
        done = stream(tmp_path, "no answer", full)
        assert (done.returncode, done.stderr.count("No space left on device")) == (0, 1)


def test_closed_streams(tmp_path):
    done = stream(tmp_path, "answer", None, preexec_fn=lambda: os.close(1))
    assert (done.returncode, "Bad file descriptor" in done.stderr) == (1, True)
    assert stream(tmp_path, "no answer", None, preexec_fn=lambda: os.close(1)).returncode == 0
    assert (
        stream(tmp_path, "no answer", subprocess.DEVNULL, preexec_fn=lambda: (os.close(0), os.close(2))).returncode
        == 0
    )


def test_an_ascii_terminal(tmp_path):
    done = stream(tmp_path, "answer", subprocess.PIPE, "ascii")
    assert done.returncode == 0
    assert done.stdout.startswith("line 0: caf\\xe9 \\u2026\n")


def command_lines(cases, folder):
    """In a process of its own: commands whose output, in ASCII, goes into a pipe that has a reader or none."""
    os.chdir(folder)
    os.dup2(os.open("stderr.txt", os.O_WRONLY | os.O_CREAT), 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii")
    kept, results = os.dup(1), []
    for where, argv in cases:
        reader, writer = os.pipe()
        if where == "closed":
            os.close(reader)
        os.dup2(writer, 1)
        os.close(writer)
        results.append(cli.main(argv))
        os.dup2(kept, 1)
        if where != "closed":
            results.append(os.read(reader, 2**16).decode())
    Path("results.json").write_text(json.dumps(results))


def test_commands_outlive_their_output(folders, tokenizer):
    """A run ends whatever becomes of the terminal; an answer that is not read ends the command; JSON stays JSON."""
    words = ["un caf\u00e9 noir \u2026 \U0001f600 et la suite"] * 3
    (folders / "corpus.txt").write_text("\n\n".join(f"{' '.join(words)}. {number} ici la." for number in range(40)))
    (folders / "caf\u00e9.txt").write_text("un caf\u00e9 \U0001f600\n")
    (folders / "many.txt").write_text("a cat runs\n" * 3000)
    fields = {**RECIPE, "train_files": [str(folders / "corpus.txt")], "max_steps": 2, "report_to": "none"}
    (folders / "recipe.yaml").write_text(yaml.safe_dump(fields))
    cases = [
        ("closed", ["score", "model", "many.txt"]),
        ("closed", ["pretrain", "recipe.yaml", "--output_dir", "closed"]),
        ("open", ["pretrain", "recipe.yaml", "--output_dir", "ascii"]),
        ("open", ["score", "ascii", "caf\u00e9.txt"]),
    ]
    process = PROCESSES.Process(target=command_lines, args=(cases, folders))
    process.start()
    process.join(400)
    said = (folders / "stderr.txt").read_text()
    assert process.exitcode == 0, said
    assert "Traceback" not in said
    results = json.loads((folders / "results.json").read_text())
    score, closed, ascii_status, report, second, answer = results
    assert (score, closed, ascii_status, second) == (141, 0, 0, 0)
    assert "could not write all output: Broken pipe" in said
    for name in ("closed", "ascii"):
        assert (folders / name / "metrics.json").exists()
    assert "Load it:" in report
    assert any("\u00e9" in token or "\U0001f600" in token for token in json.loads(answer)["tokens"])
