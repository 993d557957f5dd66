"""A saved folder in the hands of a stranger: a clean process that cannot import the plugin."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining

from modeling_electra_exit import ElectraEarlyExitForMaskedLM, __version__
from modeling_electra_exit.configuration_electra_exit import AUTO_MAP
from tests.conftest import masked_batch, tiny_model


PACKAGE = Path(__file__).resolve().parents[2] / "modeling_electra_exit"
# `None` in sys.modules makes `import modeling_electra_exit` fail, as it does where the plugin is not installed.
STRANGER = """
import sys
sys.modules["modeling_electra_exit"] = None
import json, torch, transformers
folder, *auto_classes = sys.argv[1:]
try:
    import modeling_electra_exit
except ImportError:
    pass
else:
    raise SystemExit("the plugin must not be importable here")
results = {}
for auto_class in auto_classes:
    kwargs = {} if auto_class == "AutoConfig" else {"output_loading_info": True}
    loaded = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True, **kwargs)
    model, report = loaded if kwargs else (loaded, {"missing_keys": [], "unexpected_keys": []})
    result = results[auto_class] = {"class": type(model).__name__}
    result |= {name: list(report[f"{name}_keys"]) for name in ("missing", "unexpected")}
    if kwargs:
        ids = torch.load(f"{folder}/ids.pt")
        with torch.no_grad():
            output = model.eval()(ids[:, None] if auto_class == "AutoModelForMultipleChoice" else ids)
        result["sum"] = output[0].double().sum().item()
        model.save_pretrained(f"{folder}/again/{auto_class}")
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model().eval()
    model.save_pretrained(folder)
    torch.save(masked_batch()["input_ids"], folder / "ids.pt")
    return model, folder


@pytest.fixture(scope="module")
def strangers(saved):
    """What a stranger finds, by Auto class; in one process, because importing takes longer than loading."""
    command = [sys.executable, "-c", STRANGER, str(saved[1]), *AUTO_MAP]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.strip().split("\n")[-1])


@pytest.mark.parametrize("auto_class", AUTO_MAP)
def test_loads_without_the_plugin_through_every_auto_class(saved, strangers, auto_class):
    (model, folder), result = saved, strangers[auto_class]
    assert result["class"] == AUTO_MAP[auto_class].split(".")[1]
    heads_of_their_own = {
        "classifier",
        "qa_outputs",
        "sequence_summary",
        "exit_modules",
    }  # new, where a task brings its own
    assert {name.split(".")[0] for name in result["missing"]} <= heads_of_their_own
    assert result["unexpected"] == []
    if auto_class == "AutoConfig":
        return
    if result["missing"]:
        assert auto_class not in ("AutoModel", "AutoModelForPreTraining", "AutoModelForMaskedLM")
        return
    ids = masked_batch()["input_ids"]
    parts = {"AutoModelForPreTraining": model, "AutoModelForMaskedLM": ElectraEarlyExitForMaskedLM.of(model)}
    with torch.no_grad():
        expected = parts.get(auto_class, model.electra)(ids)[0].double().sum().item()
    assert result["sum"] == pytest.approx(expected, rel=1e-6)
    # Saved again from there, it still serves every Auto class.
    again = json.loads((folder / "again" / auto_class / "config.json").read_text())
    assert {name: reference.split("--")[-1] for name, reference in again["auto_map"].items()} == AUTO_MAP


def test_the_folder_holds_the_code_and_weights_and_nothing_else(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "configuration_electra_exit.py",
        "conversion.py",
        "exit_criteria.py",
        "exit_policy.py",
        "exit_state.py",
        "generator_head.py",
        "model.safetensors",
        "modeling_electra_exit.py",
        "modeling_heads.py",
        "modeling_masked_lm.py",
    ]


# `strict` of huggingface_hub is what makes transformers check the types of a config's fields; it has no other home.
IMPORTS = {"torch", "transformers", "huggingface_hub", "collections", "contextlib", "dataclasses", "functools", "math",
           "os", "re", "typing"}  # fmt: skip
# Ways to files, other programs, the network, or code from elsewhere. Saving and loading are transformers' own.
FORBIDDEN_NAMES = {"open", "exec", "eval", "compile", "__import__", "__builtins__"}
FORBIDDEN_ATTRIBUTES = {
    "open", "import_module", "getenv", "environ", "system", "popen", "remove",
    "unlink", "rename", "replace", "makedirs", "mkdir", "rmtree", "listdir", "scandir", "read_text", "write_text",
    "read_bytes", "write_bytes", "urlopen", "socket", "hub", "load", "save", "fork", "kill", "load_file", "save_file",
}  # fmt: skip


def code_that_travels():
    return {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.glob("[!_]*.py")}


def test_saved_code_imports_only_torch_and_transformers():
    for name, tree in code_that_travels().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            elif isinstance(node, ast.ImportFrom):
                # What the regular expression that copies the code into checkpoints finds: `from .module import name`.
                assert (node.level, "." in (node.module or ".")) == (1, False), name
                continue
            else:
                continue
            assert {module.split(".")[0] for module in modules} <= IMPORTS, name
            assert not any(module.startswith("huggingface_hub") for module in modules) or modules == [
                "huggingface_hub.dataclasses"
            ], name


def test_code_that_travels_opens_no_file_and_no_socket():
    for name, tree in code_that_travels().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                assert node.id not in FORBIDDEN_NAMES, f"{name}:{node.lineno}"
            elif isinstance(node, ast.Attribute):
                assert node.attr not in FORBIDDEN_ATTRIBUTES, f"{name}:{node.lineno}"


def saved_by(version, folder):
    tiny_model().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["electra_exit_version"] == __version__
    (folder / "config.json").write_text(json.dumps({**config, "electra_exit_version": version}))
    return folder


def test_a_checkpoint_of_a_newer_version_says_what_to_install(tmp_path):
    with pytest.raises(Exception, match=r"written by electra-early-exit 7\.1\.0.*electra-early-exit>=7\.1\.0"):
        AutoModel.from_pretrained(saved_by("7.1.0", tmp_path))


def test_a_checkpoint_of_the_first_development_version_is_refused(tmp_path):
    with pytest.raises(Exception, match=r"written by electra-early-exit 0\.1\.0\.dev0.*pre-train again"):
        AutoModel.from_pretrained(saved_by("0.1.0.dev0", tmp_path))


def test_a_checkpoint_of_a_newer_patch_loads(tmp_path):
    major, minor, *_ = __version__.split(".")
    AutoModel.from_pretrained(saved_by(f"{major}.{minor}.999", tmp_path))


def test_pickled_weights_are_refused_by_default(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for auto_class in (AutoModel, AutoModelForPreTraining):
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            auto_class.from_pretrained(tmp_path)
    asked = AutoModelForPreTraining.from_pretrained(tmp_path, use_safetensors=False)
    assert torch.equal(asked.discriminator_predictions.dense.weight, model.discriminator_predictions.dense.weight)
