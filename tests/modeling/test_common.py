"""Transformers' common model tests on our classes."""

import unittest

import pytest
import torch
from transformers.models.auto import modeling_auto
from transformers.testing_utils import require_torch, torch_device

from modeling_electra_exit import (
    ElectraEarlyExitConfig,
    ElectraEarlyExitForMaskedLM,
    ElectraEarlyExitForMultipleChoice,
    ElectraEarlyExitForPreTraining,
    ElectraEarlyExitForQuestionAnswering,
    ElectraEarlyExitForSequenceClassification,
    ElectraEarlyExitForTokenClassification,
    ElectraEarlyExitModel,
)
from tests import transformers_suite
from tests.conftest import tiny_config


common = transformers_suite.load("test_modeling_common")
configuration_common = transformers_suite.load("test_configuration_common")


class ModelTester:
    """Configs and inputs, by the names the suite asks for."""

    def __init__(self, parent):
        self.parent = parent
        self.batch_size, self.seq_length, self.is_training = 3, 7, True
        self.num_hidden_layers, self.num_attention_heads, self.hidden_size = 2, 4, 32
        self.num_choices, self.num_labels = 3, 3

    def get_config(self):
        return tiny_config(num_hidden_layers=self.num_hidden_layers, exit_reentry_layers=0, initializer_range=0.02)

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.seq_length)
        config = self.get_config()
        inputs = {
            "input_ids": common.ids_tensor(shape, config.vocab_size),
            "token_type_ids": common.ids_tensor(shape, config.type_vocab_size),
            "attention_mask": common.random_attention_mask(shape),
        }
        return config, inputs


def keeps(setting: str) -> bool:
    """Whether to compare eager attention with SDPA in a setting, such as `18_bf16_pad_left_no_attn_mask_sdpa_kernels`:
    every mask in single precision, and one in each half precision. Which kernel computes SDPA is torch's choice."""
    name = setting.split("_", 1)[1]
    if name.startswith("fp32_"):
        return not name.endswith("_sdpa_kernels")
    return name.endswith("_pad_left_sdpa_kernels")


@require_torch
class ElectraEarlyExitModelTest(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (
        ElectraEarlyExitModel,
        ElectraEarlyExitForPreTraining,
        ElectraEarlyExitForMaskedLM,
        ElectraEarlyExitForSequenceClassification,
        ElectraEarlyExitForTokenClassification,
        ElectraEarlyExitForQuestionAnswering,
        ElectraEarlyExitForMultipleChoice,
    )

    # `torch_dtype` is an argument of transformers' own `from_pretrained`.
    test_bc_torch_dtype = None

    def setUp(self):
        # The suite tells by these tables of names what a class is for, and which labels it takes.
        patch = pytest.MonkeyPatch()
        self.addCleanup(patch.undo)
        for table, model_class in (
            (modeling_auto.MODEL_MAPPING_NAMES, ElectraEarlyExitModel),
            (modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES, ElectraEarlyExitForPreTraining),
            (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, ElectraEarlyExitForMaskedLM),
            (
                modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
                ElectraEarlyExitForSequenceClassification,
            ),
            (modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, ElectraEarlyExitForTokenClassification),
            (modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, ElectraEarlyExitForQuestionAnswering),
            (modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES, ElectraEarlyExitForMultipleChoice),
        ):
            patch.setitem(table, ElectraEarlyExitConfig.model_type, model_class.__name__)
        self.model_tester = ModelTester(self)
        self.config_tester = configuration_common.ConfigTester(
            self, config_class=ElectraEarlyExitConfig, hidden_size=36
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_can_load_ignoring_mismatched_shapes(self):
        # It looks for one classification layer; exits would bring more.
        config = self.model_tester.get_config()
        config.exit_policy = "none"
        self.model_tester.get_config = lambda: config
        super().test_can_load_ignoring_mismatched_shapes()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is ElectraEarlyExitForPreTraining:
            # Where every parameter must get a gradient, the joint objective, since `labels` alone teach the generator
            # nothing; elsewhere `labels`, since the generator's samples differ from call to call.
            if self._testMethodName.startswith("test_training"):
                inputs["mlm_labels"] = inputs["input_ids"].clone().to(torch_device)
            else:
                inputs["labels"] = torch.zeros_like(inputs["input_ids"], device=torch_device)
        return inputs


SDPA = "test_eager_matches_sdpa_inference_"
for name in [name for name in dir(common.ModelTesterMixin) if name.startswith(SDPA)]:
    if not keeps(name.removeprefix(SDPA)):
        setattr(ElectraEarlyExitModelTest, name, None)
