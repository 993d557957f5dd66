"""`electra-exit info`: describe a model, its scores and the commands that apply to it.

It is fast because it reads only JSON and the headers of the weight files, and loads neither torch nor the model.
"""

import functools
import json
import math
import re
import shlex
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .hub import check_reachable
from .parser import Parser


OURS = "electra_early_exit"
# Descriptions of the model classes, by the end of their names.
KINDS = {
    "ForPreTraining": "an ELECTRA discriminator",
    "ForMaskedLM": "a masked language model, the generator of a pre-training run",
    "ForSequenceClassification": "a text classifier or regressor",
    "ForTokenClassification": "a token classifier",
    "ForQuestionAnswering": "an extractive question-answering model",
    "ForMultipleChoice": "a multiple-choice model",
    "Model": "an encoder without a head",
}
TASKS = {"single_label_classification": "one label per text", "multi_label_classification": "several labels per text",
         "regression": "one number per text"}  # fmt: skip
# Model types of plain checkpoints that `finetune` and `pretrain --init_from` accept.
PLAIN = ("bert", "electra")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# A header has a few hundred bytes per tensor; a greater length is not a header's.
LARGEST_HEADER = 100_000_000
METRICS = {"roc_auc": "ROC-AUC", "average_precision": "average precision", "recall_on_replaced": "recall on replaced",
           "calibration_error": "calibration error"}  # fmt: skip


class NoModelError(Exception):
    """There is no model to describe. The message is one sentence."""


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="electra-exit info",
        description="Show what a model is, its scores, which of its exits are trained and calibrated, and which "
        "commands apply to it. Reads JSON and the headers of the weight files; does not load the model.",
    )
    parser.add_argument("model", metavar="FOLDER", help="run, checkpoint or saved model: folder or Hub id")
    name = parser.parse_args(list(argv)).model
    check_reachable(parser, [name])
    try:
        print(describe(name))
    except NoModelError as error:
        parser.error(str(error))
    return 0


# ---- Files ----


@dataclass
class Header:
    """The header of a safetensors file.

    tensors: `dtype`, `shape` and `data_offsets` of each tensor, by name.
    bytes: file size in bytes.
    path, start: the file and the offset of its data in bytes; `None` and 0 if it was not downloaded.
    """

    tensors: dict[str, dict]
    bytes: int
    path: Path | None = None
    start: int = 0

    @classmethod
    def read(cls, path: Path) -> "Header":
        """Read the header of a local file.

        Raises:
            NoModelError: if it is not a safetensors file, or its size does not match its header.
        """
        size = path.stat().st_size
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > min(size, LARGEST_HEADER):
                    raise ValueError("its header is longer than the file")
                tensors = json.loads(file.read(length))
            tensors.pop("__metadata__", None)
            end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, struct.error) as error:
            raise NoModelError(f"{path} is not a safetensors file: {' '.join(str(error).split())}") from error
        if end != size:
            raise NoModelError(f"{path} is damaged: it has {size:,} bytes instead of {end:,}")
        return cls(tensors, size, path, 8 + length)

    def integer(self, name: str) -> int:
        """The value of a tensor with a single 64-bit integer. The file must be local."""
        with self.path.open("rb") as file:
            file.seek(self.start + self.tensors[name]["data_offsets"][0])
            return struct.unpack("<q", file.read(8))[0]


class Folder:
    """The files of a model in a local folder."""

    def __init__(self, path: Path):
        self.path = path

    def json(self, name: str) -> dict:
        """The content of a JSON file; empty if there is no such file.

        Raises:
            NoModelError: if the file does not hold a JSON object.
        """
        path = self.file(name)
        if path is None:
            return {}
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise NoModelError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise NoModelError(f"{path} must hold a JSON object, got {content!r:.60}")
        return content

    def file(self, name: str) -> Path | None:
        path = self.path / name
        return path if path.is_file() else None

    def header(self, name: str) -> Header | None:
        """The header of a weight file; `None` if there is no such file."""
        path = self.file(name)
        return None if path is None else Header.read(path)


class Repository(Folder):
    """The files of a model on the Hub or in its cache. Weight files are not downloaded."""

    def __init__(self, name: str):
        self.name = name

    def file(self, name: str) -> Path | None:
        from huggingface_hub import hf_hub_download

        with self._naming_errors():
            return Path(hf_hub_download(self.name, name))
        return None

    def header(self, name: str) -> Header | None:
        from huggingface_hub import HfApi, try_to_load_from_cache

        if isinstance(cached := try_to_load_from_cache(self.name, name), str):
            return Header.read(Path(cached))
        with self._naming_errors():
            found = HfApi().parse_safetensors_file_metadata(self.name, name).tensors
            tensors = {
                n: {"dtype": t.dtype, "shape": t.shape, "data_offsets": t.data_offsets} for n, t in found.items()
            }
            return Header(tensors, max(t["data_offsets"][1] for t in tensors.values()))
        return None

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """Ignore a file that is not in the repository; raise any other error as [`NoModelError`]."""
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

        try:
            yield
        except LocalEntryNotFoundError as error:
            raise NoModelError(
                f"there is no folder {self.name}, and the Hub cannot be reached to look for a model of that name"
            ) from error
        except EntryNotFoundError:
            pass
        except RepositoryNotFoundError as error:
            raise NoModelError(f"there is no folder {self.name}, and no such model on the Hub") from error
        except Exception as error:  # the library and its HTTP client raise a dozen kinds
            raise NoModelError(f"{self.name} cannot be read from the Hub: {str(error).splitlines()[0]}") from error


def find(name: str) -> tuple[Folder, list[str]]:
    """The files of the model that `name` refers to, and notes on which model was chosen.

    Args:
        name: a folder (of a run, a checkpoint or a saved model) or a Hub id.

    Raises:
        NoModelError: if there is no model.
    """
    path = Path(name)
    if path.is_file():
        raise NoModelError(f"{name} is a file; give the folder of a model")
    if not path.is_dir():
        if not HUB_ID.fullmatch(name):
            raise NoModelError(f"there is no folder {name}")
        return Repository(name), []
    if (path / "config.json").is_file():
        return Folder(path), []
    if isinstance(best := Folder(path).json("metrics.json").get("best"), str):
        seeds = len(list(path.glob("seed-*/config.json")))
        return Folder(path / best), [f"{path / best} is the best of {seeds} fine-tuning runs with different seeds"]
    checkpoints = sorted(path.glob("checkpoint-*/config.json"), key=lambda found: found.stat().st_mtime)
    if checkpoints:
        newest = checkpoints[-1].parent
        return Folder(newest), [f"{newest} is the newest checkpoint of an unfinished run"]
    if (path / "run.json").is_file():
        raise NoModelError(f"{name} holds a run that has not saved a checkpoint yet")
    inner = sorted(found.parent.name for found in path.glob("*/config.json"))
    models = f"; models are in {', '.join(inner[:4])}{', ...' if len(inner) > 4 else ''}" if inner else ""
    raise NoModelError(f"{name} holds no model: it has no config.json{models}")


# ---- The weights ----


class Weights:
    """The names, dtypes and shapes of a model's weights, from the headers of its files.

    Raises:
        NoModelError: if a file is damaged.
    """

    def __init__(self, files: Folder):
        index = files.json("model.safetensors.index.json")
        names = sorted(set(index.get("weight_map", {}).values())) or ["model.safetensors"]
        self.headers = [header for header in map(files.header, names) if header is not None]
        self.tensors = {name: tensor for header in self.headers for name, tensor in header.tensors.items()}
        self.bytes = sum(header.bytes for header in self.headers)

    def parameters(self, prefix: str = "") -> int:
        """The number of parameters whose names start with `prefix`, not counting counters and exit statistics."""
        return sum(
            math.prod(tensor["shape"])
            for name, tensor in self.tensors.items()
            if name.startswith(prefix) and not name.startswith("exit_state.") and tensor["dtype"] != "I64"
        )

    @property
    def dtypes(self) -> list[str]:
        names = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
        found = {tensor["dtype"] for tensor in self.tensors.values()} - {"I64"}
        return sorted(names.get(dtype, dtype) for dtype in found)

    def trained_exits(self, layers: list[int]) -> dict[int, bool]:
        """For each exit layer of a fine-tuned model, whether its head was trained at that layer; empty if unknown."""
        marks = {
            int(name.rsplit("_", 1)[1]): header.integer(name)
            for header in self.headers
            for name in header.tensors
            if re.search(r"\.trained_at_\d+$", name) and header.path is not None
        }
        return {layer: marks.get(number) == layer for number, layer in enumerate(layers)} if marks else {}


# ---- Description ----


def describe(name: str) -> str:
    """The description of a model as text.

    Raises:
        NoModelError: if there is no model, or none of a supported type.
    """
    files, notes = find(name)
    config = files.json("config.json")
    if not config and isinstance(files, Repository):
        raise NoModelError(f"{name} on the Hub holds no model: it has no config.json")
    model_type = config.get("model_type")
    if model_type in PLAIN:
        return _plain(name, config)
    if model_type != OURS:
        known = ", ".join((OURS, *PLAIN))
        raise NoModelError(f"`model_type` of {name} must be one of {known}, got {model_type!r}")
    place = str(getattr(files, "path", name))
    try:
        return Description(place, config, files, notes).text()
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise NoModelError(
            f"the records in {place} are not in the format of a run: {type(error).__name__}: {error}"
        ) from error


def _plain(name: str, config: dict) -> str:
    sizes = f"{config.get('num_hidden_layers')} layers, {config.get('hidden_size')} wide"
    return "\n".join([
        f"{name} is a plain {config['model_type'].upper()} ({_architecture(config)}) with {sizes}, no exits", "",
        *_commands(_starts(shlex.quote(name))),
    ])  # fmt: skip


def _architecture(config: dict) -> str:
    return (config.get("architectures") or ["unknown"])[0]


def _starts(model: str) -> dict[str, str]:
    return {
        f"electra-exit finetune {model} --train_file FILE": "fine-tune it for your own task",
        f"electra-exit pretrain domain-adapt --init_from {model} --train_files FILE": "adapt it to your own text",
    }


def _commands(commands: dict[str, str]) -> list[str]:
    return ["What you can do with it", *(f"  {command}\n      {what}" for command, what in commands.items())]


class Description:
    """The description of an electra-exit model, section by section."""

    def __init__(self, place: str, config: dict, files: Folder, notes: list[str]):
        self.place, self.config, self.notes = place, config, notes
        self.weights = Weights(files)
        self.metrics, self.state = files.json("metrics.json"), files.json("trainer_state.json")
        self.calibration = files.json("calibration.json")
        architecture = _architecture(config)
        self.kind = next((kind for kind in KINDS if architecture.endswith(kind)), "Model")
        self.layers = config.get("exit_layers") or []
        self.has_exits = config.get("exit_policy") != "none" and bool(self.layers)
        self.has_generator = config.get("generator_type") == "mlm" and self.kind == "ForPreTraining"
        self.fine_tuned = self.kind not in ("ForPreTraining", "ForMaskedLM", "Model")

    def text(self) -> str:
        title = KINDS[self.kind] + (" with early exits" if self.has_exits else "")
        title += ", and the generator it was trained with" if self.has_generator else ""
        lines = [f"{self.place} is {title}", *self.notes]
        sections = {
            "Size": self._size(),
            "Objective": self._objective() if self.kind == "ForPreTraining" else {},
            "Training": self._training(),
            "Measured": self._measured(),
            "Exits": self._exits(),
        }
        for heading, entries in sections.items():
            if entries:
                lines += ["", heading, *(f"  {name:22}{value}" for name, value in entries.items())]
        return "\n".join([*lines, "", *_commands(self._next())])

    def _size(self) -> dict[str, str]:
        config, weights = self.config, self.weights
        generator = weights.parameters("generator.")
        parts = f", of which {generator:,} in the generator" if generator and self.has_generator else ""
        pre = config.get("norm_position") == "pre"
        size = {
            "parameters": f"{weights.parameters():,}{parts}",
            "weights": f"{weights.bytes / 1e6:,.1f} MB, {' and '.join(weights.dtypes)}",
        }
        return {
            **(size if weights.tensors else {"weights": "no weight files"}),
            "layers": f"{config['num_hidden_layers']}, {config['hidden_size']} wide, {config['num_attention_heads']} "
            f"attention heads, LayerNorm {'before' if pre else 'after'} each block",
            "vocabulary": f"{config['vocab_size']:,} tokens",
            "longest sequence": f"{config['max_position_embeddings']} tokens",
        }

    def _objective(self) -> dict[str, str]:
        config = self.config
        said = {"replacements by": config.get("generator_type", "mlm")}
        if self.has_exits:
            shares = ", ".join(f"{share:.4g}" for share in config["exit_capacities"])
            layers = _list(self.layers)
            said["exits"] = f"{config['exit_policy']}, after layers {layers}; {shares} of the tokens continue"
        return said

    def _training(self) -> dict[str, str]:
        if "finetuning" in self.metrics:
            return self._fine_tuning(self.metrics["finetuning"])
        if "training" in self.metrics:
            return self._pre_training(self.metrics["training"], self.metrics.get("data", {}))
        if "global_step" in self.state:
            return {"steps": f"{self.state['global_step']:,} of {self.state.get('max_steps', 0):,} so far"}
        return {"recorded": "nothing"}

    def _fine_tuning(self, how: dict) -> dict[str, str]:
        labels, examples = how["labels"], how["examples"]
        names = f", {len(labels)} labels: {_list(labels)}" if len(labels) > 1 else ""
        return {
            "task": f"{self.metrics['task']}: {how['kind']}{names}",
            "from": how["model"],
            "examples": f"{examples['train']:,} for training, {examples['validation']:,} for validation",
            "steps": f"{self.metrics['steps']:,} of {how['examples_per_step']} examples",
            "computed on": f"{how['hardware']} in {how['precision']}, {_duration(how['seconds'])}",
        }

    def _pre_training(self, how: dict, data: dict) -> dict[str, str]:
        counts, text = data.get("counts", {}).get("train"), data.get("description", "not recorded")
        speed = how.get("tokens_per_second")
        return {
            "text": text + (f": {counts['documents']:,} documents, {counts['tokens']:,} tokens" if counts else ""),
            "steps": f"{how['steps']:,} of {how['tokens_per_step']:,} tokens, {how['tokens']:,} in total",
            "computed on": f"{how['hardware']} in {how['precision']}"
            + (f", {_duration(how['tokens'] / speed)}" if speed else ""),
        }

    def _measured(self) -> dict[str, str]:
        evaluation, baselines = self.metrics.get("evaluation", {}), {}
        if finetuning := self.metrics.get("finetuning", {}):
            baselines = finetuning.get("baselines", {})
            names = {name: name.replace("_", " ") for name in evaluation}
        else:
            if not evaluation:
                logged = [entry for entry in self.state.get("log_history", []) if "eval_roc_auc" in entry]
                evaluation = {name.removeprefix("eval_"): x for name, x in logged[-1].items()} if logged else {}
            names = {name: title for name, title in METRICS.items() if name in evaluation}
        chance = {"roc_auc": 0.5, "average_precision": evaluation.get("replaced_rate")}
        found = {}
        for name, title in names.items():
            beside = "".join(f"   {which} {scores[name]:.4f}" for which, scores in baselines.items() if name in scores)
            if not baselines and chance.get(name) is not None:
                beside = f"   chance {chance[name]:.4f}"
            found[title] = f"{evaluation[name]:.4f}{beside}"
        return found

    def _exits(self) -> dict[str, str]:
        if not self.has_exits:
            return {}
        config, evaluation = self.config, self.metrics.get("evaluation", {})
        found = {}
        for number, layer in enumerate(self.layers):
            if not self.fine_tuned:
                auc = evaluation.get(f"roc_auc_layer_{layer}")
                found[f"after layer {layer}"] = "" if auc is None else f"ROC-AUC {auc:.4f}"
                continue
            trained = self.trained.get(layer)
            state = "not trained" if trained is False else "trained"
            if (thresholds := config.get("inference_exit_thresholds")) is not None:
                state += f", calibrated: {config['inference_exit_criterion']} {thresholds[number]:.4g}"
            found[f"after layer {layer}"] = state
        found = {name: state for name, state in found.items() if state}
        if measured := self.calibration:
            speed = measured["examples_per_second"] / measured["full_examples_per_second"]
            found["calibrated"] = (
                f"accuracy {measured['accuracy']:.4f} with {measured['depth']:.0%} of the layers, "
                f"{measured['full_accuracy']:.4f} with all; {speed:.2f} times the examples per second"
            )
        elif self.fine_tuned and config.get("inference_exit_thresholds") is None:
            found["calibrated"] = "no: every text uses all layers"
        return found

    @functools.cached_property
    def trained(self) -> dict[int, bool]:
        return self.weights.trained_exits(self.layers)

    def _next(self) -> dict[str, str]:
        model, config = shlex.quote(self.place), self.config
        task = self.kind in ("ForSequenceClassification", "ForTokenClassification")
        calibrates = task and self.has_exits and config.get("problem_type") != "regression"
        found = {}
        if self.kind == "ForPreTraining":
            found[f"electra-exit score {model} FILE"] = "estimate for each token of a text whether it was replaced"
            found[f"electra-exit evaluate {model} --tasks TASKS"] = "evaluate it on GLUE and BLiMP"
        if self.kind in ("ForPreTraining", "ForMaskedLM", "Model"):
            found |= _starts(model)
        if task:
            found[f"electra-exit score {model} FILE"] = "predict"
            found[f"electra-exit evaluate {model} --validation_file FILE"] = "evaluate it on other examples"
        if calibrates and False not in self.trained.values():
            again = " again" if config.get("inference_exit_thresholds") is not None else ""
            found[f"electra-exit calibrate {model} FILE"] = f"choose the exit thresholds{again}"
        if self.kind in ("ForPreTraining", "ForMaskedLM") and config.get("norm_position") != "pre":
            found[f"electra-exit export {model} OUT --to electra"] = "export it as plain ELECTRA"
        if self.has_generator or self.kind == "ForMaskedLM":
            found[f"transformers.pipeline('fill-mask', model='{self.place}')"] = "fill masks, in Python"
        if task or self.kind == "ForPreTraining":
            found[f"electra-exit demo {model}"] = "try it on a local web page"
        found[f"electra-exit push {model} REPO_ID"] = "push it to the Hub"
        return found


def _list(values: Sequence) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")


def _duration(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} seconds"
