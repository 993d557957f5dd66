"""No training step waits for its device, and an exit at inference once: followed without a device, and without values.

`meta` is there in every build of PyTorch. Fake tensors of `cuda` need a build for it, not a GPU.
"""

import contextlib
import copy

import pytest
import torch

from modeling_electra_exit import modeling_electra_exit
from modeling_electra_exit.exit_policy import POLICIES, Ranking, entropy_excess
from modeling_electra_exit.trainers import ElectraMuon
from modeling_electra_exit.trainers.generators.neural import Frozen
from tests.conftest import masked_batch, tiny_config, tiny_model, trained_exits
from tests.modeling.test_heads import ANSWER, CHOICE, SEQUENCE, TOKEN, batch_of, examples, head_model
from tests.trainers.generators.test_generators import frozen_context, saved_masked_lm
from tests.trainers.pretraining.test_trainer import make_trainer


DEVICES = [
    "meta",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this PyTorch knows no CUDA")
    ),
]
STEPS = {
    "dense": {"exit_policy": "none"},
    "random": {"exit_policy": "random"},
    "topk": {"exit_signal": "expected_gain", "exit_auc_floor": 0.6, "exit_context": "first"},
    "distilled": {"exit_distillation_weight": 1.0, "exit_context": "none", "norm_position": "pre"},
    "unigram": {"generator_type": "unigram"},  # and whatever else corrupts batches before the step
    "self": {"generator_type": "self"},
    "none": {"generator_type": "none"},
}


@pytest.fixture
def launches(load):
    return load("launches")


def with_positions(batch: dict, places: int = 12) -> dict:
    """A batch as the collator sends it: rows have fewer chosen tokens than places."""
    positions = torch.full((len(batch["input_ids"]), places), -1)
    for row, labels in zip(positions, batch["mlm_labels"], strict=True):
        found = (labels != -100).nonzero().squeeze(1)
        row[: len(found)] = found
    return {**batch, "masked_positions": positions, "noise_seeds": torch.arange(len(positions))}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("fields", STEPS.values(), ids=STEPS)
def test_a_training_step_waits_for_no_device(launches, device, fields, padding):
    calls = launches.follow_step(tiny_config(**fields), device, 4, 64, padding=padding)
    assert calls.waits == []
    assert calls.launches.total() > 300


@pytest.mark.parametrize("padding", [False, True])
def test_a_threshold_waits_for_its_number_of_tokens_alone(launches, monkeypatch, padding):
    """What the device would say is made up."""
    asked = []

    def threshold(evidence, num_kept, config):
        asked.append(num_kept)
        return Ranking(entropy_excess(evidence, config), 16)

    monkeypatch.setitem(POLICIES, "threshold", threshold)
    config = tiny_config(exit_policy="threshold", exit_entropy_threshold=0.5)
    assert launches.follow_step(config, "meta", 4, 64, padding=padding).waits == []
    assert len(asked) == len(config.exit_layers) == 2


@pytest.mark.parametrize("padding", [False, True])
def test_a_frozen_generator_waits_for_no_device(launches, tokenizer, tmp_path, padding):
    saved_masked_lm(tmp_path, tokenizer)
    generator = Frozen(frozen_context(tokenizer, tmp_path, generator_folder=str(tmp_path)))
    generator.model._model.to("meta")
    config = tiny_config(vocab_size=len(tokenizer))
    batch = launches.batch_of(config, 4, 64, "meta", padding=padding)
    with launches.DeviceCalls() as calls:
        corrupted = generator.corrupt(batch, 0.5)
    assert calls.waits == []
    assert corrupted["labels"].shape == (4, 64)
    del batch["masked_positions"]
    with launches.DeviceCalls() as calls, pytest.raises(NotImplementedError, match="nonzero"):
        generator.corrupt(batch, 0.5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding", [False, True])
def test_the_generator_of_the_model_itself_waits_for_no_device(
    launches, tokenizer, tmp_path, monkeypatch, device, padding
):
    """The whole loss of a training step: what the generator remembers is used, computed and remembered."""
    trainer = make_trainer(tokenizer, tmp_path, tiny_model(generator_type="self", vocab_size=len(tokenizer)))
    trainer.state.max_steps = 10
    monkeypatch.setitem(trainer.args.__dict__, "_setup_devices", torch.device(device))
    with launches.without_values(device):
        for name, value in vars(trainer.generator).items():
            if isinstance(value, torch.Tensor):
                setattr(trainer.generator, name, torch.empty(value.shape, dtype=value.dtype, device=device))
        with torch.device(device):
            trainer.model = type(trainer.model)(trainer.model.config).train()
        batch = launches.batch_of(trainer.model.config, 4, 64, device, padding=padding)
        del batch["labels"]
        with launches.DeviceCalls() as calls:
            trainer.compute_loss(trainer.model, batch)
        assert calls.waits == []
        assert calls.launches["index_copy_"] == 1
        del batch["masked_positions"]
        with launches.DeviceCalls() as calls, contextlib.suppress(NotImplementedError, RuntimeError):
            trainer.compute_loss(trainer.model, batch)
        assert "nonzero" in calls.waits[0]


def test_places_give_what_a_frozen_generator_gives_without(tokenizer, tmp_path, monkeypatch):
    """As many entries as places are drawn for, and those that only fill up go nowhere."""
    saved_masked_lm(tmp_path, tokenizer)
    generator = Frozen(frozen_context(tokenizer, tmp_path, generator_folder=str(tmp_path)))
    with torch.no_grad():  # one and the same token everywhere
        generator.model._model.generator_lm_head.bias[9] = 1e4
    batch = {name: value.clamp_max(len(tokenizer) - 1) for name, value in masked_batch(padding=8).items()}
    batch["mlm_labels"][2, 5:] = -100
    batch = with_positions(batch)
    expected = generator.corrupt(batch, 0.5)
    monkeypatch.setattr(modeling_electra_exit, "in_graph", lambda: True)
    found = generator.corrupt(batch, 0.5)
    for name in ("input_ids", "labels"):
        assert torch.equal(found[name], expected[name])
    assert (found["input_ids"][batch["mlm_labels"] != -100] == 9).all()


def test_places_give_the_proposals_that_the_mask_alone_gives(monkeypatch):
    model = tiny_model(generator_type="self").train()
    with torch.no_grad():
        model.generator.lm_head.bias[9] = 1e4
    batch = with_positions(masked_batch(padding=8))
    mask = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    for row, columns in enumerate([[3, 40], [], [1, 2, 30], list(range(12))]):
        mask[row, columns] = True
    batch |= {"proposal_mask": mask, "labels": batch["input_ids"] % 2}
    found = []
    for in_graph in (False, True):
        monkeypatch.setattr(modeling_electra_exit, "in_graph", lambda value=in_graph: value)
        found.append(model(**batch).proposals)
    assert torch.equal(found[0], torch.where(mask, 9, -100))
    assert torch.equal(*found)


def test_without_the_places_a_step_looks_for_them_and_waits(launches):
    model = tiny_model().train().to("meta")
    batch = launches.batch_of(model.config, 4, 64, "meta")
    del batch["masked_positions"]
    with launches.DeviceCalls() as calls, pytest.raises(NotImplementedError, match="nonzero"):
        model(**batch)
    assert len(calls.waits) == 1
    assert "nonzero" in calls.waits[0]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.where(x > 0, x, torch.zeros(())),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).all()),
        lambda x: x.cpu(),
        lambda x: torch.tensor(1.0, device="meta") + x,
    ],
)
def test_what_waits_is_counted(launches, wait):
    # Without a value it cannot go on.
    with launches.DeviceCalls() as calls, contextlib.suppress(RuntimeError, NotImplementedError):
        wait(torch.empty(3, device="meta"))
    assert calls.waits


def test_exits_cost_few_launches(launches):
    small = {"num_hidden_layers": 12, "exit_layers": [3], "exit_capacities": [0.5], "exit_policy": "random"}
    dense, exits = (
        launches.follow_step(tiny_config(**fields), "meta", 4, 64).launches.total()
        for fields in ({**small, "exit_policy": "none"}, small)
    )
    assert dense < exits < dense + 55  # whatever the number of layers


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model_class", [SEQUENCE, TOKEN, ANSWER, CHOICE])
@pytest.mark.parametrize("answers", ["none", "some", "all"])
def test_an_exit_at_inference_waits_once(launches, monkeypatch, device, model_class, answers):
    """What the device would say is made up: how many exit, how many stay, and how long they are."""
    asked = []

    def fetch(*numbers):
        asked.append(len(numbers))
        return {"none": [0, 3, 10], "some": [1, 2, 9], "all": [3, 0, 0]}[answers][: len(numbers)]

    monkeypatch.setattr(modeling_electra_exit, "fetch", fetch)
    model = trained_exits(head_model(model_class, num_hidden_layers=4, exit_layers=[1, 2])).eval()
    model.config.inference_exit_thresholds = [0.5, 0.5]
    batch = batch_of(examples(model_class)[:3])
    with launches.without_values(device), torch.no_grad():
        if device == "cuda":
            with torch.device(device):  # moving fake parameters fails while something has a weak reference to one
                model = type(model)(model.config).eval()
        else:
            model = model.to(device)
        trained_exits(model)
        batch = {name: torch.zeros(value.shape, dtype=value.dtype, device=device) for name, value in batch.items()}
        with launches.DeviceCalls() as calls:
            model(**batch)
    assert calls.waits == []
    assert len(asked) == (1 if answers == "all" else 2)


def test_places_give_the_step_that_labels_alone_give(monkeypatch):
    """Rows that are filled up add zeros to sums, in another order: equal but for rounding."""
    model, batch = tiny_model(exit_policy="random").train(), with_positions(masked_batch(padding=8))
    batch["mlm_labels"][2, 5:] = -100
    batch["mlm_labels"][3, 0] = 7  # where entries that fill up would point, if they pointed anywhere
    batch = with_positions(batch)

    def step():
        model.zero_grad()
        outputs = model(**batch)
        outputs.loss.backward()
        return outputs, [parameter.grad.clone() for parameter in model.parameters()]

    looked_for, expected = step()
    # As on any device but a CPU.
    monkeypatch.setattr(modeling_electra_exit, "in_graph", lambda: True)
    given, found = step()
    assert torch.equal(given.corrupted_ids, looked_for.corrupted_ids)
    torch.testing.assert_close(given.loss, looked_for.loss, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(given.generator_loss, looked_for.generator_loss, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_places_of_another_batch_are_refused():
    batch = with_positions(masked_batch())
    with pytest.raises(ValueError, match=r"`masked_positions` must be of shape \(batch, places\) with a batch of 4"):
        tiny_model()(**{**batch, "masked_positions": batch["masked_positions"][:2]})


def test_a_step_is_one_graph_and_compiled_once():
    """Whatever is masked, padded and drawn, and while the exits' loss warms up."""
    eager = tiny_model(num_hidden_layers=2, exit_layers=[1], exit_capacities=[0.5], exit_reentry_layers=0).train()
    eager.config.exit_policy = "random"
    compiled = copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled.compile(backend="eager", fullgraph=True, dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed, (padding, scale) in enumerate([(8, 0.25), (4, 1.0)]):
            batch = with_positions(masked_batch(padding=padding, seed=seed))
            batch["exit_loss_scale"] = torch.full((), scale)
            losses = [model(**batch).loss for model in (eager, compiled)]
            torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
            losses[1].backward()
            assert all(parameter.grad is not None for parameter in compiled.parameters())


@pytest.mark.parametrize("policy", ["random", "topk"])
def test_arithmetic_on_ranges_fits_into_32_bits(policy):
    """Inductor folds sums and products of ranges into index expressions, which Triton computes in 32 bits: larger
    numbers do not compile for a GPU."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.graph)
        return graph.forward

    model = tiny_model(num_hidden_layers=3, exit_policy=policy).train()
    torch._dynamo.reset()
    model.compile(backend=backend, fullgraph=True)
    model(**with_positions(masked_batch(padding=8)))
    torch._dynamo.reset()
    folded = {"arange", "add", "sub", "mul", "neg", "unsqueeze", "view", "reshape", "expand", "getitem"}
    ranges = set()
    for node in graphs[0].nodes:
        name = getattr(node.target, "__name__", node.target)
        if name == "arange" or (name in folded and ranges.intersection(node.all_input_nodes)):
            ranges.add(node)
            numbers = [value for value in node.args if type(value) is int]
            assert all(abs(number) < 2**31 for number in numbers), f"{node.format_node()}\n{node.stack_trace}"
    assert len(ranges) > 3


def test_the_launches_of_a_muon_update_do_not_depend_on_the_number_of_matrices(launches):
    counts = []
    for number in (2, 20):
        matrices = [torch.nn.Parameter(torch.empty(8, 8, device="meta")) for _ in range(number)]
        optimizer = ElectraMuon(matrices, matrices, lr=1e-3)
        for _ in range(2):  # the first update also creates the momentum buffers
            for matrix in matrices:
                matrix.grad = torch.empty_like(matrix)
            with launches.DeviceCalls() as calls:
                optimizer.step()
        assert calls.waits == []
        counts.append(sum(calls.launches.values()))
    assert counts[0] == counts[1] < 40
