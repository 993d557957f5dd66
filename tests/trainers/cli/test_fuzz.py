"""Command lines and run folders at random: each ends in success or in one sentence, never in a traceback."""

import contextlib
import io
import json
import math
import os
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from electra_exit import main as cli
from electra_exit.flags import config_flags
from electra_exit.parsing import FINETUNE, PRETRAIN, Command, build_parser
from electra_exit.pretrain import PAGE
from modeling_electra_exit import ElectraEarlyExitForSequenceClassification
from modeling_electra_exit.trainers.finetuning import run as finetuning
from modeling_electra_exit.trainers.pretraining import run as pretraining
from tests.conftest import tiny_config, tiny_model, trained_exits, write_corpus
from tests.trainers.cli.test_cli import RECIPE


bounded = settings(
    max_examples=int(os.environ.get("ELECTRA_EXIT_FUZZ", "20")),  # thousands find more, in an hour
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def outcome(argv) -> tuple[int, str]:
    """Exit status and what was said on standard error."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(argv)
    return status, said.getvalue()


def check(argv, expected=(0, 2)):
    status, said = outcome(argv)
    assert status in expected, (argv, said)
    assert "Traceback" not in said
    if status != 0:
        last = said.strip().split("\n")[-1]
        assert re.match(r"electra-exit( [a-z-]*)?: error: ", last), said


# ---- Folders ----

WRITTEN = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "metrics.json", "README.md",
           "trainer_state.json", "run.json", "exit_profile.png", "exit_policy.py")  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    return furnish(tmp_path_factory.mktemp("fuzz"), tokenizer)


def furnish(place: Path, tokenizer) -> Path:
    """A folder with one of a run, one of a classifier, text and examples."""
    for name, model in (
        ("run", tiny_model()),
        ("classifier", trained_exits(ElectraEarlyExitForSequenceClassification(tiny_config()))),
    ):
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    (place / "run" / "metrics.json").write_text(json.dumps({
        "evaluation": {"roc_auc": 0.9, "average_precision": 0.5, "calibration_error": 0.1, "roc_auc_layer_2": 0.8,
                       "average_precision_layer_2": 0.4, "calibration_error_layer_2": 0.2,
                       "recall_on_replaced": 0.1, "replaced_rate": 0.1},
        "data": {"description": "made up", "name": "none", "dataset_name": None, "max_seq_length": 8,
                 "counts": {"train": {"documents": 1, "tokens": 2, "sequences": 3}, "validation": {"documents": 1}}},
        "kept_share": [1, 1, 0.5, 0.5, 0.5, 1], "versions": {"torch": "2"},
    }))  # fmt: skip
    state = {"global_step": 1, "max_steps": 2, "log_history": [{"step": 1, "eval_roc_auc": 0.5}]}
    (place / "run" / "trainer_state.json").write_text(json.dumps(state))
    (place / "run" / "run.json").write_text(json.dumps({"seed": 1}))
    (place / "run" / "README.md").write_text("---\nlicense: mit\n---\n")
    (place / "run" / "exit_profile.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    pair = {"sentence_good": "a cat runs", "sentence_bad": "cat a runs", "UID": "order"}
    (place / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    example = {"sentence": "a cat runs", "label": 1}
    (place / "cola.jsonl").write_text(f"{json.dumps(example)}\n" * 4)
    write_corpus(place / "corpus.txt", documents=8)
    (place / "text.txt").write_text("a cat runs\n\nthe dog\n")
    (place / "examples.jsonl").write_text('{"text": "a cat", "label": 0}\n{"text": "the dog", "label": 1}\n' * 4)
    return place


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
damages = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("bytes"), st.binary(max_size=64)),
    st.tuples(st.just("json"), anything),
    st.tuples(st.just("field"), st.tuples(st.integers(0, 1000), anything)),
    st.tuples(st.just("link"), st.just("/dev/null")),
    st.tuples(st.just("folder"), st.none()),
    st.tuples(st.just("gone"), st.none()),
)


def harm(path: Path, how: str, what) -> None:
    content = path.read_bytes() if path.is_file() else b""
    path.unlink(missing_ok=True)
    if how == "cut":
        path.write_bytes(content[: int(what * len(content))])
    elif how == "bytes":
        path.write_bytes(what)
    elif how == "json":
        path.write_text(json.dumps(what))
    elif how == "field":
        path.write_bytes(_with_field(content, *what))
    elif how == "link":
        path.symlink_to(what)
    elif how == "folder":
        path.mkdir()


def _with_field(content: bytes, number: int, value) -> bytes:
    """JSON with one of its values, at any depth, replaced."""
    try:
        holder = read = json.loads(content)
    except ValueError:
        return content
    while isinstance(holder, (dict, list)) and holder:
        keys = sorted(holder) if isinstance(holder, dict) else range(len(holder))
        key, number = keys[number % len(keys)], number // len(keys)
        if not isinstance(holder[key], (dict, list)) or number % 3 == 0:
            holder[key] = value
            break
        holder = holder[key]
    return json.dumps(read).encode()


COMMANDS_ON_FOLDERS = (
    ["card", "{run}"],
    ["push", "{run}", "alice/none"],
    ["push", "{run}", "alice/none", "--no-generator"],
    ["score", "{run}", "{place}/text.txt"],
    ["export", "{run}", "{out}", "--to", "electra"],
    ["evaluate", "{run}", "--tasks", "blimp", "--blimp", "{place}/pairs.jsonl", "--output_dir", "{out}"],
    ["push-dataset", "{run}", "alice/none"],
    ["calibrate", "{run}", "{place}/examples.jsonl", "--max_accuracy_drop", "0.9"],
)  # fmt: skip


@bounded
@given(
    command=st.sampled_from(COMMANDS_ON_FOLDERS),
    harms=st.lists(
        st.tuples(st.sampled_from(WRITTEN), damages), min_size=1, max_size=2, unique_by=lambda harm: harm[0]
    ),
)
def test_commands_on_damaged_folders(place, command, harms):
    run, out = place / "damaged", place / "out"
    for folder in (run, out):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(place / ("classifier" if command[0] == "calibrate" else "run"), run)
    for name, (how, what) in harms:
        harm(run / name, how, what)
    check([part.format(run=run, out=out, place=place) for part in command])


def test_commands_on_a_folder_as_it_was_written(place):
    for command in COMMANDS_ON_FOLDERS:
        folder = place / ("classifier" if command[0] == "calibrate" else "run")
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(place / "out")
        argv = [part.format(run=folder, out=place / "out", place=place) for part in command]
        check(argv, expected=(2,) if command[0].startswith("push") else (0,))  # there is no Hub here


# ---- Command lines ----

# Training flags that change the process for the tests that come after this one are left out.
ASKED = {
    *config_flags(),
    *(flag.split()[0] for group in PAGE.options.values() for flag in group),
    "exit_warmup",
    "exit_cooldown",
    "exit_loss_warmup",
    "profile_step",
    "generator_folder",
    "reference_folder",
    "generator_temperature",
    "corpus_init",
    "adam_epsilon",
    "hub_token",
}
ASKED -= {"torch_compile", "bf16"}  # fmt: skip
NUMBERS = {
    int: st.integers(-3, 100),
    float: st.floats(-2, 2) | st.sampled_from([0.0, 1.0, 1e-3, 1e30, math.nan, math.inf]),
}
words = st.one_of(
    st.sampled_from(["{place}", "{place}/text.txt", "{place}/run", "{place}/nowhere", "/dev/null", "..", "/", ""]),
    st.sampled_from(["os:system", "json:loads", "true", "nan", "1e400", "-1", "mlm", "unigram", "steps", "[]"]),
    st.text(max_size=6).filter(lambda text: "\0" not in text),
)  # fmt: skip


def flag_with_values(action) -> st.SearchStrategy[list[str]]:
    """A flag with as many values of its kind as it takes, and now and then with anything."""
    own = st.sampled_from(list(action.choices)) if action.choices else NUMBERS.get(action.type, words)
    fitting = st.lists(own, min_size=1, max_size=3 if action.nargs in ("+", "*") else 1)
    held = st.one_of(fitting, fitting, fitting, st.lists(words, max_size=2))
    return held.map(lambda values: [f"--{action.dest}={values[0]}"] if len(values) == 1 else
                    [f"--{action.dest}", *map(str, values)])  # fmt: skip


def flags_of(command: Command) -> st.SearchStrategy[list[str]]:
    data = {field.name for field in fields(command.data)} - {"dataset_name", "demo_corpus", "num_proc"}
    actions = [action for action in build_parser(command)._actions if action.dest in ASKED | data]
    several = st.lists(st.sampled_from(actions).flatmap(flag_with_values), min_size=1, max_size=3)
    return several.map(lambda flags: [word for flag in flags for word in flag])


def commands_to_train() -> st.SearchStrategy[list[str]]:
    pretrain, finetune = flags_of(PRETRAIN), flags_of(FINETUNE)
    to = ["--output_dir", "{out}"]
    task = ["--train_file", "{place}/cola.jsonl", "--validation_file", "{place}/cola.jsonl", *to]
    return st.one_of(
        pretrain.map(lambda flags: ["pretrain", "{place}/recipe.yaml", *to, *flags]),
        pretrain.map(lambda flags: ["pretrain", "{place}/recipe.yaml", *to, *flags]),
        pretrain.map(lambda flags: ["cache-replacements", "{place}/recipe.yaml", "--folder", "{out}",
                                    "--generator_type", "unigram", *flags]),
        finetune.map(lambda flags: ["finetune", "{place}/run", "--task", "cola", *task, *flags]),
        finetune.map(lambda flags: ["evaluate", "{place}/run", "--tasks", "cola", *task, *flags]),
    )  # fmt: skip


@contextlib.contextmanager
def no_training(place: Path):
    """Commands go all the way to the first step; what comes then, other tests try."""
    shutil.rmtree(place / "out", ignore_errors=True)
    recipe = {**RECIPE, "vocab_size": 120, "tokenizer_name": str(place / "run"), "num_proc": 1, "report_to": "none",
              "train_files": [str(place / "corpus.txt")]}  # fmt: skip
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(pretraining, "train", lambda *_: None)
        patch.setattr(pretraining, "report", lambda *_: None)
        patch.setattr(finetuning.FineTuningTrainer, "train", lambda *_, **__: None)
        yield


def filled(argv: list[str], place: Path) -> list[str]:
    return [word.replace("{place}", str(place)).replace("{out}", str(place / "out")) for word in argv]


@bounded
@given(argv=commands_to_train())
def test_flags(place, argv):
    with no_training(place):
        check(filled(argv, place), (0, 1, 2))


@bounded
@given(
    command=st.sampled_from([*cli.COMMANDS, "nothing", ""]),
    argv=st.lists(
        st.sampled_from(["--help", "--help_all", "--debug=x", "--version", "-h", "--", "-", "--to", "electra",
                         "--output", "exits", "--report_only", "@x", "{place}/recipe.yaml"])
        | words,
        max_size=4,
    ),
)  # fmt: skip
def test_words(place, command, argv):
    with no_training(place):
        check([command, *filled(argv or ["x"], place)], (0, 1, 2))


@bounded
@given(
    st.text(max_size=30)
    | st.dictionaries(st.sampled_from(sorted(ASKED)) | st.text(max_size=4), anything, max_size=3).map(yaml.safe_dump)
)
def test_recipes(place, text):
    with no_training(place):
        (place / "strange.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        check(["pretrain", str(place / "strange.yaml"), "--output_dir", str(place / "out")])
