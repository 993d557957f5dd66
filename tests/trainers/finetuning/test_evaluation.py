"""`electra-exit evaluate`: fine-tuned on the way, as it is, or zero-shot, and never begun where it cannot end."""

import itertools
import json
import lzma
import random

import pytest
import torch
from transformers import BertConfig, BertModel

from electra_exit import main as cli
from modeling_electra_exit import ElectraEarlyExitForSequenceClassification
from modeling_electra_exit.trainers.finetuning import evaluation
from tests.conftest import WORDS, tiny_config, tiny_model


PAIRS = [{"sentence_good": "the cat sings", "sentence_bad": "cat the sings", "UID": f"u{i % 2}"} for i in range(6)]


def run(*argv) -> int:
    return cli.main(["evaluate", *map(str, argv)])


@pytest.fixture
def data(tmp_path, tokenizer):
    """`start`, a pre-trained checkpoint; `glue` with two tasks; `blimp.jsonl.xz`."""
    choose = random.Random(0)
    texts = [" ".join(choose.choices(WORDS, k=6)) for _ in range(24)]
    rows = {
        "sst2": [{"sentence": text, "label": int("cat" in text)} for text in texts],
        "stsb": [{"sentence1": a, "sentence2": b, "label": len(a) / 9} for a, b in itertools.pairwise(texts)],
    }
    for task, examples in rows.items():
        (tmp_path / "glue" / task).mkdir(parents=True)
        for split in ("train", "validation"):
            (tmp_path / "glue" / task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, examples)))
    with lzma.open(tmp_path / "blimp.jsonl.xz", "wt") as file:
        file.write("\n".join(map(json.dumps, PAIRS)))
    for part in (tiny_model(), tokenizer):
        part.save_pretrained(tmp_path / "start")
    return tmp_path


def common(data):
    return ["--data_dir", data / "glue", "--output_dir", data / "out", "--max_steps", 2, "--use_cpu", "true"]


def test_a_pretrained_checkpoint(data, capsys, monkeypatch):
    command = [data / "start", "--tasks", "stsb,blimp,sst2", "--blimp", data / "blimp.jsonl.xz", *common(data),
               "--seeds", 0, 1]  # fmt: skip
    assert run(*command) == 0
    printed = capsys.readouterr().out
    result = json.loads((data / "out" / "evaluation.json").read_text())["tasks"]
    assert {task: answer["how"] for task, answer in result.items()} == {
        "stsb": "fine-tuned", "blimp": "zero-shot", "sst2": "fine-tuned"
    }  # fmt: skip
    assert set(result["stsb"]["evaluation"]) == {"pearson", "spearman"}
    assert len(result["sst2"]["evaluation"]["accuracy"]["scores"]) == 2
    # All pairs are the same one: all right, or all wrong.
    assert result["blimp"]["evaluation"]["accuracy"]["mean"] in (0.0, 1.0)
    assert f"{result['sst2']['evaluation']['accuracy']['mean']:.4f} +- " in printed
    # The same command again fine-tunes nothing.
    monkeypatch.setattr(evaluation, "finetune", lambda *arguments: pytest.fail("done before"))
    assert run(*command) == 0
    assert json.loads((data / "out" / "evaluation.json").read_text())["tasks"] == result


def test_a_score_of_other_examples_or_of_another_model_is_not_returned(data, capsys):
    command = [data / "start", "--tasks", "sst2", *common(data)]
    assert run(*command) == 0
    before = (data / "out" / "evaluation.json").read_text()
    examples = data / "glue" / "sst2" / "validation.jsonl"
    content = examples.read_text()
    examples.write_text(content.replace('"label": 1', '"label": 0'))
    assert run(*command) == 2
    assert f"error: {examples} has changed since the run in {data}/out/sst2 began" in capsys.readouterr().err
    examples.write_text(content)
    assert run(*command) == 0
    assert (data / "out" / "evaluation.json").read_text() == before
    tiny_model(initializer_range=0.3).save_pretrained(data / "start")
    assert run(*command) == 2
    assert f"error: {data}/start has changed since" in capsys.readouterr().err
    (data / "out" / "sst2" / "metrics.json").write_text("[]")
    assert run(*command) == 2


def test_a_fine_tuned_checkpoint_is_evaluated_as_it_is(data, capsys):
    assert run(data / "start", "--tasks", "sst2", *common(data)) == 0
    before = json.loads((data / "out" / "evaluation.json").read_text())["tasks"]["sst2"]["evaluation"]
    model = data / "out" / "sst2" / "seed-42"
    again = [*common(data)[:2], "--output_dir", data / "again", "--use_cpu", "true"]
    assert run(model, "--tasks", "sst2", *again) == 0
    after = json.loads((data / "again" / "evaluation.json").read_text())["tasks"]["sst2"]
    assert after == {"how": "as it is", "evaluation": before}
    assert sorted(path.name for path in (data / "again").iterdir()) == ["evaluation.json"]  # nothing was trained
    capsys.readouterr()
    assert run(model, "--tasks", "stsb", *again) == 2
    assert "`num_labels` of " in capsys.readouterr().err
    assert run(model, "--tasks", "sst2,blimp", "--blimp", data / "blimp.jsonl.xz", *again) == 2
    assert "requires a discriminator" in capsys.readouterr().err


def test_blimp_by_hand(data):
    """The sentence whose tokens together are less likely replaced wins; padding is not asked."""
    model = tiny_model().eval()
    pairs = [("the old cat sings", "cat"), ("a dog", "dog a near the house"), ("the bird", "the bird")]
    rows = [{"sentence_good": good, "sentence_bad": bad, "UID": "u"} for good, bad in pairs]
    (data / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    accuracy = evaluation.judge_blimp(data / "start", data / "pairs.jsonl")["accuracy"]
    tokenizer = evaluation.read_tokenizer(str(data / "start"))

    def score(sentence):
        with torch.no_grad():
            logits = model(**tokenizer(sentence, return_tensors="pt")).logits
        return torch.nn.functional.logsigmoid(-logits).sum().item()

    wins = [1.0 if score(good) > score(bad) else 0.0 for good, bad in pairs[:2]]
    assert accuracy == pytest.approx((sum(wins) + 0.5) / 3)  # a tie counts half


MISTAKES = [
    (["{start}", "--tasks", "sst2,squad"], "--tasks must be among cola, "),
    (["{start}", "--tasks", "sst2,squad"], "and blimp, got 'squad'"),
    (["{start}", "--tasks", "blimp"], "the task blimp requires --blimp FILE"),
    (["{start}", "--tasks", "blimp", "--blimp", "/nowhere"], "no such file: /nowhere"),
    (
        ["{bert}", "--tasks", "blimp", "--blimp", "{blimp}"],
        "requires a discriminator: one of ElectraEarlyExitForPreTrain",
    ),
    (["{start}", "--tasks", "sst2,rte"], "no such file: "),  # before sst2 is begun
    (
        ["{start}", "--tasks", "sst2", "--task", "cola"],
        "--task is not a flag of `evaluate`; name the tasks with --tasks",
    ),
    (["{start}", "--tasks", "sst2", "--lerning_rate", "1"], "unknown field `lerning_rate`"),
    (["{start}"], "must be fine-tuned, got ElectraEarlyExitForPreTraining; or name tasks with --tasks"),
    (["{other}"], "`validation_file` must name examples of the model's task, got None; or name --tasks"),
    (["{other}", "--tasks", "sst2"], "`finetuning_task` of "),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[m[1][:30] for m in MISTAKES])
def test_mistakes_are_one_line_and_begin_nothing(data, tokenizer, capsys, arguments, message):
    BertModel(BertConfig(vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=32)).save_pretrained(data / "bert")  # fmt: skip
    other = ElectraEarlyExitForSequenceClassification(tiny_config(finetuning_task="cola"))
    for part in (other, tokenizer):
        part.save_pretrained(data / "other")
    places = {name: data / name for name in ("start", "bert", "other")} | {"blimp": data / "blimp.jsonl.xz"}
    assert run(*(argument.format(**places) for argument in arguments), *common(data)) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("electra-exit evaluate: error: ")
    assert message in error
    assert not (data / "out").exists()


def test_blimp_without_a_column(data, capsys):
    (data / "bad.jsonl").write_text('{"sentence_good": "a", "UID": "u"}\n')
    assert run(data / "start", "--tasks", "blimp", "--blimp", data / "bad.jsonl", *common(data)) == 2
    assert "must have the column `sentence_bad`, got sentence_good, UID" in capsys.readouterr().err
