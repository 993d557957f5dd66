"""What we override or call of other libraries without their having promised it is as we know it."""

import argparse
import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import accelerate
import datasets
import evaluate
import pytest
import torch
import transformers
from transformers import HfArgumentParser, PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.models.electra.modeling_electra import ElectraPreTrainedModel
from transformers.trainer_callback import ProgressCallback

import modeling_electra_exit
from modeling_electra_exit import trainers
from modeling_electra_exit.trainers.runtime.arguments import ElectraTrainingArguments
from modeling_electra_exit.trainers.runtime.compatibility import arguments_as


ROOT = Path(__file__).resolve().parents[3]
BY_NAME = ("getattr", "setattr", "hasattr", "delattr")
COMPATIBILITY = ROOT / "trainers" / "runtime" / "compatibility.py"

# Owner, name and parameters, in the order of the releases that were tested: a change of one means that its use, and
# the reason for it, is to be read again.
CALLABLES = [
    # trainers/runtime/compatibility.py
    (Trainer, "_prepare_for_training", "self, max_steps, train_dataloader, resume_from_checkpoint"),
    (Trainer, "_run_epoch", "self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, "
     "ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch"),
    (Trainer, "_maybe_log_save_evaluate", "self, tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, "
     "start_time, learning_rate"),
    (Trainer, "_get_grad_norm", "self, model, grad_norm"),
    (Trainer, "_hp_search_setup", "self, trial"),
    (Trainer, "_issue_warnings_after_load", "self, load_result"),
    (Trainer, "_set_signature_columns_if_needed", "self"),
    (Trainer, "_get_dataloader", "self, dataset, description, batch_size, sampler_fn, is_training, dataloader_key"),
    (Trainer, "_prepare_inputs", "self, inputs"),
    (Trainer, "_prepare_input", "self, data"),
    (Trainer, "_get_output_dir", "self, trial"),
    (Trainer, "_save_checkpoint", "self, model, trial"),
    (Trainer, "_save", "self, output_dir, state_dict"),
    (Trainer, "_save_optimizer_and_scheduler", "self, output_dir"),
    (Trainer, "_load_optimizer_and_scheduler", "self, checkpoint"),
    (Trainer, "_push_from_checkpoint", "self, checkpoint_folder"),
    (Trainer, "_finish_current_push", "self"),
    (Trainer, "save_model", "self, output_dir, _internal_call"),
    (datasets.IterableDataset, "_resolve_features", "self"),
    (torch.library.Library, "_destroy", "self"),
    # Public by name, and in no documentation.
    (Trainer, "create_accelerator_and_postprocess", "self"),
    (Trainer, "create_scheduler", "self, num_training_steps, optimizer"),
    (Trainer, "get_optimizer_cls_and_kwargs", "args, model"),
    (Trainer, "init_hf_repo", "self, token, private"),
    (transformers.trainer_utils, "rotate_checkpoints", "output_dir, save_total_limit, best_model_checkpoint, "
     "use_mtime, checkpoint_prefix"),
    (transformers.dynamic_module_utils, "get_relative_imports", "module_file"),
    (transformers.utils.hub, "PushInProgress", "jobs"),
    (torch.multiprocessing.reductions, "StorageWeakRef", "storage"),
    # `evaluate` has it that a metric's own class overrides these: trainers/metrics.
    (evaluate.Metric, "_info", "self"),
    (evaluate.Metric, "_compute", "self, *, predictions, references, **kwargs"),
    # modeling_electra_exit: buffers of a state that keep their dtype; our weights' own initialisation; no draft of a
    # card in a push.
    (torch.nn.Module, "_apply", "self, fn, recurse"),
    (ElectraPreTrainedModel, "_init_weights", "self, module"),
    (PreTrainedModel, "_upload_modified_files", "self, working_dir, repo_id, files_timestamps, commit_message, token, "
     "create_pr, revision, commit_description"),
]  # fmt: skip
# Attributes, of classes where they are there without an instance, and otherwise by a line of the library's source.
ATTRIBUTES = [
    # modeling_electra_exit: what a model says of itself to `from_pretrained`, `save_pretrained` and `device_map`.
    (PreTrainedModel, "_keys_to_ignore_on_load_missing"),
    (PreTrainedModel, "_keys_to_ignore_on_load_unexpected"),
    (PreTrainedModel, "_keep_in_fp32_modules_strict"),
    (PreTrainedModel, "_no_split_modules"),
    (PreTrainedModel, "_can_record_outputs"),
    (PreTrainedModel, "_tied_weights_keys"),
    (PreTrainedModel, "_auto_class"),
    (PreTrainedConfig, "_auto_class"),
    (PreTrainedConfig, "_attn_implementation"),  # a generator in the model computes attention as the model does
    # Listed, for the callbacks that report.
    (transformers.integrations.integration_utils, "INTEGRATION_TO_CALLBACK"),
    (ProgressCallback, "on_log"),
]
SOURCES = [
    (Trainer.create_scheduler, "self._created_lr_scheduler = True"),
    (Trainer.get_train_dataloader, "batch_size=self._train_batch_size"),
    (Trainer._set_signature_columns_if_needed, "if self._signature_columns is None:"),
    (Trainer._save_checkpoint, "run_dir = self._get_output_dir(trial=trial)"),
    (Trainer._get_dataloader, "self.args.dataloader_drop_last"),
    (TrainingArguments, "self.optim = OptimizerNames(self.optim)"),
    (TrainingArguments, "self.lr_scheduler_type = SchedulerType(self.lr_scheduler_type)"),
    (HfArgumentParser, "add_argument_group(dtype._argument_group_name)"),
    (transformers.core_model_loading, 'weight_conversions = getattr(model, "_weight_conversions", None)'),
    (transformers.core_model_loading, "_is_hf_initialized = True"),
    (PreTrainedModel.set_attn_implementation, "requested_implementation != self.config._attn_implementation"),
    (torch.amp.GradScaler, 'getattr(optimizer, "_step_supports_amp_scaling", False)'),
    (torch.amp.GradScaler, "optimizer.found_inf = found_inf"),
    (accelerate.state.AcceleratorState, "self.distributed_type = DistributedType.FSDP"),
    (accelerate.Accelerator, "self.state.fsdp_plugin"),
]
OPERATORS = [
    "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) "
    "-> Tensor Y",
    "aten::_softmax_backward_data(Tensor grad_output, Tensor output, int dim, ScalarType input_dtype) -> Tensor",
    "mkldnn::_is_mkldnn_bf16_supported() -> bool _0",
]


def shown(parameters) -> str:
    """Names of parameters, with a star where a call must name them, or may name more."""
    words, starred = [], False
    for parameter in parameters:
        if parameter.kind == parameter.KEYWORD_ONLY and not starred:
            words, starred = [*words, "*"], True
        words.append(
            {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "") + parameter.name
        )
    return ", ".join(words)


@pytest.mark.parametrize(
    ("owner", "name", "parameters"), CALLABLES, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_callable_has_the_expected_signature(owner, name, parameters):
    assert shown(inspect.signature(getattr(owner, name)).parameters.values()) == parameters


@pytest.mark.parametrize(("owner", "name"), ATTRIBUTES)
def test_an_attribute_is_there(owner, name):
    assert hasattr(owner, name)


@pytest.mark.parametrize(("owner", "line"), SOURCES)
def test_an_attribute_is_read_where_we_set_it(owner, line):
    assert line in inspect.getsource(owner)


@pytest.mark.parametrize("schema", OPERATORS)
def test_an_operator_has_the_expected_schema(schema):
    namespace, name = schema.split("(")[0].split("::")
    assert str(getattr(getattr(torch.ops, namespace), name).default._schema) == schema


# ---- Nothing else ----


def modules():
    for package in (modeling_electra_exit, trainers):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            # Without the command line, and the file of a metric: it would take the place of the function of its name.
            if not re.search(r"\.(trainers\.cli|trainers\.metrics\.\w+|model_cards)(\.|$)", found.name):
                yield importlib.import_module(found.name)


def test_every_private_method_that_we_override_is_in_the_table():
    known = {name for _, name, _ in CALLABLES} | {name for _, name in ATTRIBUTES}
    unknown = set()
    for module in modules():
        ours = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
        for cls in ours:
            bases = [
                base for base in cls.__mro__ if base.__module__.startswith(("transformers.", "torch.nn", "evaluate"))
            ]
            overridden = {name for base in bases for name in vars(base) if re.match("_[a-z]", name)} & set(vars(cls))
            unknown |= {f"{cls.__name__}.{name}" for name in overridden - known}
            if issubclass(cls, Trainer) and cls.__name__ != "CompatibleTrainer":
                assert not overridden, f"{cls.__name__} must override the public methods of CompatibleTrainer"
    assert not unknown


def test_only_one_module_uses_private_parts():
    """Read from the code: a private attribute of anything but `self`, or of `self` where the library defines it."""
    of_trainer = set(re.findall(r"\bself\.(_[a-z]\w*)", inspect.getsource(Trainer))) | set(vars(Trainer))
    allowed = {"_replace", "_asdict", "_fields"} | set(dir(argparse.ArgumentParser()))  # named tuples', and argparse's
    of_ours = {"_epoch"}  # of a collator, which may be somebody else's
    found = []
    for path in sorted((ROOT / "trainers").rglob("*.py")):
        if path == COMPATIBILITY:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "_internal_call":
                found.append(f"{path.relative_to(ROOT)}:{node.value.lineno} {node.arg}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_NAME:
                name = node.args[1]
                if isinstance(name, ast.Constant) and re.match("_[a-z]", name.value) and name.value not in of_ours:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {name.value}")
            if not isinstance(node, ast.Attribute) or not re.match("_[a-z]", node.attr) or node.attr in allowed:
                continue
            ours = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not ours or (path.name in ("trainer.py", "hub.py") and node.attr in of_trainer):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.attr}")
    assert not found


# ---- What the module adds ----


def test_replaced_arguments_are_restored_after_an_error(tmp_path):
    args = ElectraTrainingArguments(tmp_path, optim="muon", dataloader_drop_last=True)

    def fail():
        with arguments_as(args, dataloader_drop_last=False):
            assert (args.dataloader_drop_last, args.optim) == (False, "muon")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert args.dataloader_drop_last is True
