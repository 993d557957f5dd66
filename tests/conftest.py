"""Tiny data and models that the tests make themselves. Nothing here may need a network, a GPU or the user's caches."""

import gc
import os
import tempfile


# Read when Hugging Face libraries are imported, so set before anything below imports them. Workers inherit it.
if "ELECTRA_EXIT_TEST_HOME" not in os.environ:
    os.environ["ELECTRA_EXIT_TEST_HOME"] = tempfile.mkdtemp(prefix="electra-exit-tests-")
os.environ["HF_HOME"] = os.environ["ELECTRA_EXIT_TEST_HOME"]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in parallel processes

import random
import shutil

import pytest
import torch
from transformers import BertTokenizer

from modeling_electra_exit import ElectraEarlyExitConfig, ElectraEarlyExitForPreTraining
from modeling_electra_exit.exit_policy import SIGNALS
from tests.fork_server import ForkServer
from tests.loopback_hub import LoopbackHub


torch.set_num_threads(1)


def pytest_collection_finish():
    # Half a million objects of imported modules: the Trainer searches them all for garbage after every run.
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):  # the process that started the workers
        shutil.rmtree(os.environ["ELECTRA_EXIT_TEST_HOME"], ignore_errors=True)


def tiny_config(**overrides) -> ElectraEarlyExitConfig:
    """Six layers, exits after the second and the fourth that rank from the first step, no dropout."""
    settings = {
        "vocab_size": 120,
        "embedding_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,
        "generator_size": 0.5,
        "exit_policy": "topk",
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
    }
    if overrides.get("exit_policy", "topk") == "topk":
        settings |= {"exit_signal": "sampled_entropy", "exit_auc_floor": 0.0}
    fields = {**settings, **overrides}
    depth = fields["num_hidden_layers"]
    last = depth - fields.get("exit_reentry_layers", 1) - 1
    fields.setdefault("exit_layers", sorted({at for at in (depth // 3, 2 * depth // 3) if 1 <= at <= last}))
    if fields["exit_policy"] != "threshold":
        fields.setdefault("exit_capacities", [0.5 ** (i + 1) for i in range(len(fields["exit_layers"]))])
    return ElectraEarlyExitConfig(**fields)


def tiny_model(**overrides) -> ElectraEarlyExitForPreTraining:
    torch.manual_seed(0)
    return ElectraEarlyExitForPreTraining(tiny_config(**overrides))


# Every rule by which tokens exit in pre-training, with the fields that it reads.
EXIT_RULES = [
    {"exit_policy": "random"},
    {"exit_policy": "threshold", "exit_entropy_threshold": 0.3},
    *({"exit_policy": "topk", "exit_signal": signal} for signal in SIGNALS),
]


def rule_name(rule: dict) -> str:
    return rule.get("exit_signal", rule["exit_policy"])


def trained_exits(model):
    """The model, a fine-tuning head, whose exit heads count as trained: what it answers is not what is tested."""
    for number in range(len(model.config.exit_layers) if model.exit_heads is not None else 0):
        model.exit_heads.mark_trained(number)
    return model


MASK_ID = 4


def masked_batch(batch_size=4, length=64, padding=0, seed=0) -> dict[str, torch.Tensor]:
    """Masked ids with their labels; row i > 0 ends in `padding` padding tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 120, (batch_size, length), generator=generator)
    ids[:, 0], ids[:, -1] = 2, 3
    labels = torch.full_like(ids, -100)
    labels[:, 3:13] = ids[:, 3:13]
    ids[:, 3:12] = MASK_ID  # the tenth masked position keeps its token
    batch = {"input_ids": ids, "mlm_labels": labels}
    if padding:
        batch["attention_mask"] = torch.ones_like(ids)
        batch["attention_mask"][1:, -padding:] = 0
        ids[1:, -padding:] = 0
        labels[1:, -padding:] = -100
    return batch


WORDS = ["the", "a", "cat", "dog", "bird", "tree", "house", "runs", "sleeps", "sings", "under", "over", "near", "old"]


def write_corpus(path, documents=60, seed=0):
    """A text file of made-up documents, blank lines between them."""
    choose = random.Random(seed)
    texts = [
        " ".join(" ".join(choose.choices(WORDS, k=8)).capitalize() + "." for _ in range(choose.randint(2, 6)))
        for _ in range(documents)
    ]
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.txt")


@pytest.fixture(scope="session")
def tokenizer():
    return BertTokenizer().train_new_from_iterator([" ".join(WORDS)] * 20, 120, show_progress=False)


@pytest.fixture(scope="session")
def loopback(tmp_path_factory):
    """A Hub, and in `processes` a server of processes whose client talks to it."""
    with LoopbackHub() as hub:
        hub.processes = ForkServer(hub.environment(tmp_path_factory.mktemp("hub") / "cache"))
        yield hub
        hub.processes.close()


@pytest.fixture
def model_folder(tmp_path, tokenizer):
    """A model as it is saved, with its code and its tokenizer."""
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
