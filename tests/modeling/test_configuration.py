import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, ElectraConfig

from modeling_electra_exit import ElectraEarlyExitConfig
from tests.conftest import tiny_config


def test_defaults_for_twelve_layers_are_those_of_the_design():
    config = ElectraEarlyExitConfig()
    assert (config.exit_layers, config.exit_capacities) == ([4], [0.125])
    assert (config.generator_size, config.discriminator_weight, config.mlm_probability) == (0.25, 50.0, 0.15)
    plain, ours = ElectraConfig().to_dict(), config.to_dict()
    assert [name for name in plain if name != "model_type" and ours[name] != plain[name]] == []


@pytest.mark.parametrize(("depth", "layers"), [(12, [4]), (6, [2]), (3, [1]), (2, [1]), (1, [])])
def test_default_exit_layers_leave_a_layer_to_save(depth, layers):
    config = ElectraEarlyExitConfig(num_hidden_layers=depth)
    assert config.exit_layers == layers
    assert len(config.exit_capacities) == len(layers)
    assert config.exit_reentry_layers == (1 if depth > 2 else 0)


def test_round_trip_through_json_and_auto_config(tmp_path):
    config = tiny_config(exit_layers=[1, 3], exit_capacities=[0.75, 0.5], exit_context="first")
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "electra_early_exit"
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, ElectraEarlyExitConfig)
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()


def test_auto_map_keeps_a_users_own_entries(tmp_path):
    config = tiny_config(auto_map={"AutoModelForMaskedLM": "mine.MyModel"})
    assert config.auto_map["AutoModelForMaskedLM"] == "mine.MyModel"
    assert config.auto_map["AutoModel"].endswith("ElectraEarlyExitModel")


def test_generator_is_narrower_and_as_deep():
    base = ElectraEarlyExitConfig(hidden_size=768, num_attention_heads=12, generator_size=1 / 3)
    generator = base.generator_config()
    assert (generator.hidden_size, generator.num_attention_heads, generator.intermediate_size) == (256, 4, 1024)
    assert generator.num_hidden_layers == 12
    assert not generator.has_exit_heads
    calibrated = tiny_config(inference_exit_thresholds=[0.9, 0.8], inference_exit_temperatures=[1.5, 1.2])
    assert not calibrated.generator_config().has_inference_exits


def test_overrides_while_loading_are_checked(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError):
        AutoConfig.from_pretrained(tmp_path, exit_layers=[4, 2])
    config, unused = AutoConfig.from_pretrained(tmp_path, num_hidden_layers=4, other=1, return_unused_kwargs=True)
    assert (config.num_hidden_layers, config.exit_layers, config.exit_capacities) == (4, [2], [0.5])
    assert unused == {"other": 1}


# (depth of a stored model, its fields, changes, the exit layers and the re-entry that follow)
FOLLOWING = [
    (4, {"exit_policy": "none"}, {"exit_policy": "random"}, [1], 1),
    (2, {"exit_policy": "none"}, {"exit_policy": "random"}, [1], 0),
    # As earlier versions wrote it.
    (2, {"exit_policy": "none", "exit_layers": [], "exit_reentry_layers": 1}, {"exit_policy": "random"}, [1], 0),
    (2, {"exit_policy": "none", "exit_layers": [], "exit_reentry_layers": 1}, {"exit_layers": [1]}, [1], 0),
    (6, {}, {"num_hidden_layers": 2, "exit_layers": [1]}, [1], 0),
    (6, {"exit_reentry_layers": 2}, {"num_hidden_layers": 2, "exit_policy": "random"}, [1], 0),
    (3, {}, {"num_hidden_layers": 2, "exit_reentry_layers": None}, [1], 0),
    (6, {}, {"num_hidden_layers": 2}, [], 0),
    (6, {}, {"exit_policy": "none"}, [2], 1),
    (6, {"exit_reentry_layers": 2}, {"exit_layers": [1, 3]}, [1, 3], 2),
    # A re-entry of 0 is a choice only in a model of more than two layers.
    (2, {}, {"num_hidden_layers": 6}, [1], 1),
    (2, {"exit_policy": "none"}, {"num_hidden_layers": 6, "exit_policy": "random"}, [1], 1),
    (4, {"exit_reentry_layers": 0}, {"num_hidden_layers": 6}, [1], 0),
]


@pytest.mark.parametrize(("depth", "stored", "changes", "layers", "reentry"), FOLLOWING)
def test_exits_follow_the_depth_and_the_policy(tmp_path, depth, stored, changes, layers, reentry):
    ElectraEarlyExitConfig(num_hidden_layers=depth, **stored).save_pretrained(tmp_path)
    config = ElectraEarlyExitConfig.from_pretrained(tmp_path, **changes)
    assert (config.exit_layers, config.exit_reentry_layers) == (layers, reentry)
    assert len(config.exit_capacities) == len(layers)


# (fields, what the message must say: the field, the value, and a legal value)
INVALID = [
    ({"classifier_pooling": "max"}, ["classifier_pooling", "'max'", "'first', 'mean'"]),
    ({"exit_policy": "greedy"}, ["exit_policy", "'greedy'", "'topk'", "'random'", "'none'"]),
    ({"exit_signal": "loss"}, ["exit_signal", "'loss'", "'entropy'"]),
    ({"exit_context": "some"}, ["exit_context", "'some'", "'first'"]),
    (
        {"num_hidden_layers": 2, "exit_layers": [1], "exit_reentry_layers": 1},
        ["exit_layers", "must be empty for a model of 2 layers", "[1]"],
    ),
    (
        {"num_hidden_layers": 2, "exit_layers": [2], "exit_reentry_layers": 0},
        ["exit_layers", "[2]", "between 1 and 1"],
    ),
    ({"exit_layers": [4, 2]}, ["exit_layers", "[4, 2]", "strictly increasing", "between 1 and 4"]),
    ({"exit_layers": [5], "exit_capacities": [0.5]}, ["exit_layers", "[5]", "between 1 and 4"]),
    ({"exit_layers": [0, 2]}, ["exit_layers", "[0, 2]"]),
    ({"exit_capacities": [0.5]}, ["exit_capacities", "[0.5]", "each of the 2 exit layers"]),
    ({"exit_capacities": [0.25, 0.5]}, ["exit_capacities", "[0.25, 0.5]", "not increasing"]),
    ({"exit_capacities": [1.5, 0.5]}, ["exit_capacities", "(0, 1]"]),
    ({"exit_capacities": [0.5, 0]}, ["exit_capacities", "(0, 1]"]),
    ({"exit_reentry_layers": 6}, ["exit_reentry_layers", "6", "between 0 and num_hidden_layers - 1"]),
    ({"exit_loss_weight": -1.0}, ["exit_loss_weight", "-1.0", "at least 0"]),
    ({"exit_gain_loss_weight": -1.0}, ["exit_gain_loss_weight", "-1.0", "at least 0"]),
    ({"exit_full_depth_share": 0.0}, ["exit_full_depth_share", "0.0", "(0, 1]"]),
    ({"exit_exploration": 1.2}, ["exit_exploration", "1.2", "between 0 and 1"]),
    ({"generator_type": "gpt"}, ["generator_type", "'gpt'", "'mlm'", "`module:attribute`"]),
    ({"generator_type": "my_module:"}, ["generator_type", "'my_module:'"]),
    ({"generator_type": "self", "generator_head_layer": 3}, ["generator_head_layer", "3", "between 1 and 2"]),
    ({"generator_type": "self", "generator_head_layer": 0}, ["generator_head_layer", "0", "between 1 and 2"]),
    ({"generator_head_layer": 1}, ["generator_head_layer", "1", "`generator_type='self'`"]),
    ({"generator_num_hidden_layers": 0}, ["generator_num_hidden_layers", "at least 1"]),
    ({"generator_size": 0.0}, ["generator_size", "0.0", "positive"]),
    ({"generator_size": 0.5, "generator_num_attention_heads": 3}, ["generator_size", "number of attention heads (3)"]),
    ({"generator_intermediate_size": 0}, ["generator_intermediate_size", "at least 1"]),
    ({"mlm_probability": 1.0}, ["mlm_probability", "1.0", "strictly between 0 and 1"]),
    ({"discriminator_weight": -50.0}, ["discriminator_weight", "-50.0"]),
    ({"num_attention_heads": 5}, ["num_attention_heads", "5", "divisor of hidden_size (32)"]),
    ({"is_decoder": True}, ["is_decoder", "encoder"]),
    ({"exit_layers": "2,4"}, ["exit_layers"]),
    ({"inference_exit_criterion": "luck"}, ["inference_exit_criterion", "'luck'", "'confidence'", "'patience'"]),
    ({"inference_exit_thresholds": [0.9]}, ["inference_exit_thresholds", "[0.9]", "each of the 2 exit layers [2, 4]"]),
    ({"inference_exit_thresholds": [0.9, -1]}, ["inference_exit_thresholds", "at least 0"]),
    (
        {"inference_exit_criterion": "patience", "inference_exit_thresholds": [1, 0]},
        ["inference_exit_thresholds", "at least 1"],
    ),
    ({"inference_exit_temperatures": [1.0, 0.0]}, ["inference_exit_temperatures", "[1.0, 0.0]", "above 0"]),
    ({"exit_reentry_layers": 1.5}, ["exit_reentry_layers"]),
    *(
        ({"exit_policy": "random", name: value}, [name, repr(value), "unset for `exit_policy='random'`"])
        for name, value in (
            ("exit_signal", "expected_gain"),
            ("exit_auc_floor", 0.6),
            ("exit_exploration", 0.2),
            ("exit_gain_loss_weight", 0.05),
            ("exit_entropy_threshold", 0.3),
        )
    ),
    (
        {"exit_policy": "threshold", "exit_entropy_threshold": 0.3, "exit_signal": "entropy"},
        ["exit_signal", "unset"],
    ),
    (
        {"exit_policy": "threshold", "exit_entropy_threshold": 0.3, "exit_capacities": [0.5, 0.5]},
        ["exit_capacities", "no capacities"],
    ),
    ({"exit_entropy_threshold": 0.3}, ["exit_entropy_threshold", "0.3", "unset for `exit_policy='topk'`"]),
    ({"exit_signal": "entropy", "exit_gain_loss_weight": 1.0}, ["exit_gain_loss_weight", "`exit_signal='entropy'`"]),
]


@pytest.mark.parametrize(("fields", "fragments"), INVALID, ids=lambda value: str(value)[:40])
def test_invalid_fields_are_named_with_value_and_legal_values(fields, fragments):
    with pytest.raises(StrictDataclassError) as error:
        tiny_config(**fields)
    message = f"{error.value} {error.value.__cause__}"
    assert not [fragment for fragment in fragments if fragment not in message]


def test_what_the_policy_reads_is_filled_in_and_nothing_else():
    rules = ("exit_signal", "exit_auc_floor", "exit_exploration", "exit_gain_loss_weight")

    def read(**fields):
        return [getattr(ElectraEarlyExitConfig(**fields), name) for name in rules]

    assert read() == [None] * 4
    assert read(exit_policy="topk") == ["expected_gain", 0.6, 0.2, 0.05]
    assert read(exit_policy="topk", exit_signal="entropy") == ["entropy", 0.6, 0.2, None]
    assert read(exit_policy="none", exit_signal="entropy") == ["entropy", None, None, None]


def test_another_policy_can_be_loaded(tmp_path):
    tiny_config(exit_signal="entropy").save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, exit_policy="random")
    assert (config.exit_signal, config.exit_exploration, config.exit_capacities) == (None, None, [0.5, 0.25])
    config = AutoConfig.from_pretrained(tmp_path, exit_policy="threshold", exit_entropy_threshold=0.3)
    assert (config.exit_signal, config.exit_capacities) == (None, [1.0, 1.0])
    with pytest.raises(StrictDataclassError):
        AutoConfig.from_pretrained(tmp_path, exit_policy="random", exit_signal="entropy")
