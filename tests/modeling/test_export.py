"""Exits in a graph: traced, exported and compiled models give the answers of the eager one, at any batch size."""

import copy

import pytest
import torch
from torch import nn

from tests.conftest import tiny_model
from tests.modeling.test_heads import ANSWER, CHOICE, SEQUENCE, TOKEN, batch_of, examples, head_model, set_thresholds


CASES = [
    (SEQUENCE, "confidence", {"classifier_pooling": "mean"}),
    (SEQUENCE, "patience", {"initializer_range": 0.2}),
    (ANSWER, "entropy", {}),
    (CHOICE, "confidence", {}),
    (TOKEN, "confidence", {"exit_context": "all"}),
    (TOKEN, "patience", {"exit_context": "none"}),
]


class Answers(nn.Module):
    """The tensors of a model's output, which is what a graph returns."""

    def __init__(self, model, **options):
        super().__init__()
        self.model, self.options = model, options

    def forward(self, input_ids, attention_mask):
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **self.options)
        return tuple(
            outputs[name] for name in ("logits", "start_logits", "end_logits", "exit_layers") if name in outputs
        )


def with_exits(model_class, criterion, overrides):
    model = head_model(model_class, num_hidden_layers=4, **{"exit_layers": [1, 2], **overrides}).eval()
    with torch.no_grad():
        if model_class is TOKEN:
            model.config.inference_exit_criterion = criterion
            model.config.inference_exit_thresholds = {"confidence": [0.7, 0.6], "patience": [1, 1]}[criterion]
        else:
            set_thresholds(model, criterion)
            model.config.inference_exit_thresholds = model.config.inference_exit_thresholds[
                : len(model.config.exit_layers)
            ]
    return Answers(model).eval()


def batches(model_class):
    """Three of different sizes."""
    return [batch_of(examples(model_class, seed)[:count]) for seed, count in ((0, 6), (1, 3), (2, 1))]


def compare(graph, eager: Answers, inputs: list[dict]):
    """`graph` (a function of a batch) answers as the model does; some exit and some do not."""
    seen = set()
    for batch in inputs:
        with torch.no_grad():
            expected = eager(**batch)
        found = graph(batch)
        real = batch["attention_mask"].bool()
        for one, other in zip(found, expected, strict=True):
            where = real if other.shape[:2] == real.shape else ...
            torch.testing.assert_close(torch.as_tensor(one)[where], other[where], atol=1e-5, rtol=1e-4)
        seen |= set(expected[-1][real if expected[-1].dim() == 2 else ...].flatten().tolist())
    assert len(seen) > 1


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("model_class", "criterion", "overrides"), CASES)
def test_a_trace_answers_as_the_model(model_class, criterion, overrides):
    eager = with_exits(model_class, criterion, overrides)
    inputs = batches(model_class)
    traced = torch.jit.trace(eager, tuple(inputs[0].values()))
    compare(lambda batch: traced(**batch), eager, inputs)


@pytest.mark.parametrize(("model_class", "criterion", "overrides"), [CASES[0], CASES[4]])
def test_a_full_graph_answers_as_the_model(model_class, criterion, overrides):
    eager = with_exits(model_class, criterion, overrides)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend="eager", dynamic=True)
    compare(lambda batch: compiled(**batch), eager, batches(model_class)[:1])  # others are compiled anew, for seconds


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_of_the_discriminator_answers_as_the_model():
    model = tiny_model(exit_policy="threshold", exit_entropy_threshold=[0.47, 0.67], num_hidden_layers=4).eval()
    eager = Answers(model, exit_policy="threshold").eval()
    inputs = batches(TOKEN)
    traced = torch.jit.trace(eager, tuple(inputs[0].values()))
    compare(lambda batch: traced(**batch), eager, inputs)


class HiddenStates(Answers):
    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_hidden_states_in_a_graph_are_those_of_the_model():
    eager = HiddenStates(with_exits(SEQUENCE, "confidence", {}).model).eval()
    inputs = batches(SEQUENCE)
    traced = torch.jit.trace(eager, tuple(inputs[0].values()))
    for batch in inputs:
        real = batch["attention_mask"].bool()
        with torch.no_grad():
            for one, other in zip(traced(**batch), eager(**batch), strict=True):
                torch.testing.assert_close(one[real], other[real], atol=1e-5, rtol=1e-4)


def run_onnx(path, batch):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {name: value.numpy() for name, value in batch.items()})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model_class", "criterion", "overrides"), [CASES[0], CASES[3], CASES[4]])
def test_onnx_by_torchscript_answers_as_the_model(tmp_path, model_class, criterion, overrides):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    eager = with_exits(model_class, criterion, overrides)
    inputs = batches(model_class)
    axes = {0: "batch", inputs[0]["input_ids"].dim() - 1: "sequence"}
    torch.onnx.export(
        eager, tuple(inputs[0].values()), str(tmp_path / "model.onnx"), input_names=list(inputs[0]), dynamo=False,
        dynamic_axes=dict.fromkeys(inputs[0], axes),
    )  # fmt: skip
    compare(lambda batch: run_onnx(tmp_path / "model.onnx", batch), eager, inputs)


@pytest.mark.filterwarnings("ignore")
def test_exported_and_onnx_made_of_it_answer_as_the_model(tmp_path):
    eager = with_exits(SEQUENCE, "confidence", {"exit_layers": [2]})
    inputs = batches(SEQUENCE)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(eager, (), kwargs=inputs[0], dynamic_shapes=dict.fromkeys(inputs[0], axes))
    compare(lambda batch: exported.module()(**batch), eager, inputs)
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.onnx.export(exported, f=str(tmp_path / "model.onnx"), dynamo=True, verbose=False, optimize=False)
    compare(lambda batch: run_onnx(tmp_path / "model.onnx", batch), eager, inputs)
