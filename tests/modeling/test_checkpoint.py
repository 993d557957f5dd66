"""A saved folder in the hands of a stranger: a clean process that cannot import the plugin."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_electra_exit.configuration_electra_exit import AUTO_MAP
from tests.conftest import masked_batch, tiny_model


PACKAGE = Path(__file__).resolve().parents[2] / "modeling_electra_exit"

# `None` in sys.modules makes `import modeling_electra_exit` fail, as it does where the plugin is not installed.
STRANGER = """
import sys
sys.modules["modeling_electra_exit"] = None
import json, torch, transformers
folder, auto_class = sys.argv[1:]
try:
    import modeling_electra_exit
except ImportError:
    pass
else:
    raise SystemExit("the plugin must not be importable here")
kwargs = {} if auto_class == "AutoConfig" else {"output_loading_info": True}
loaded = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True, **kwargs)
model, report = loaded if kwargs else (loaded, {"missing_keys": [], "unexpected_keys": []})
result = {"class": type(model).__name__}
result |= {name: list(report[f"{name}_keys"]) for name in ("missing", "unexpected")}
if kwargs:
    ids = torch.load(f"{folder}/ids.pt")
    with torch.no_grad():
        output = model.eval()(ids[:, None] if auto_class == "AutoModelForMultipleChoice" else ids)
    result["sum"] = output[0].double().sum().item()
    model.save_pretrained(f"{folder}/again")
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model().eval()
    model.save_pretrained(folder)
    torch.save(masked_batch()["input_ids"], folder / "ids.pt")
    return model, folder


@pytest.mark.parametrize("auto_class", AUTO_MAP)
def test_loads_without_the_plugin_through_every_auto_class(saved, auto_class):
    model, folder = saved
    run = subprocess.run([sys.executable, "-c", STRANGER, str(folder), auto_class], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.strip().split("\n")[-1])
    assert result["class"] == AUTO_MAP[auto_class].split(".")[1]
    heads_of_their_own = {
        "classifier",
        "qa_outputs",
        "sequence_summary",
        "exit_classifiers",
    }  # new, where a task brings its own
    assert {name.split(".")[0] for name in result["missing"]} <= heads_of_their_own
    assert result["unexpected"] == []
    if auto_class == "AutoConfig":
        return
    if result["missing"]:
        assert auto_class not in ("AutoModel", "AutoModelForPreTraining")
        return
    ids = masked_batch()["input_ids"]
    with torch.no_grad():
        expected = (model if auto_class == "AutoModelForPreTraining" else model.electra)(ids)[0].double().sum().item()
    assert result["sum"] == pytest.approx(expected, rel=1e-6)
    # Saved again from there, it still serves every Auto class.
    again = json.loads((folder / "again" / "config.json").read_text())
    assert {name: reference.split("--")[-1] for name, reference in again["auto_map"].items()} == AUTO_MAP


def test_the_folder_holds_the_code_and_weights_and_nothing_else(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "configuration_electra_exit.py",
        "exit_policy.py",
        "exit_state.py",
        "model.safetensors",
        "modeling_electra_exit.py",
        "modeling_heads.py",
    ]


def test_code_that_travels_imports_torch_and_transformers_alone():
    allowed = {"torch", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)
    for path in PACKAGE.glob("[!_]*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            assert {name.split(".")[0] for name in names} <= allowed, path.name
