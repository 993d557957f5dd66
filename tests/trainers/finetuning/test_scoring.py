import json

import pytest
import torch
from torch.nn import functional as F
from transformers import ElectraConfig, ElectraForPreTraining

from electra_exit import main as cli
from modeling_electra_exit import ElectraEarlyExitForQuestionAnswering
from modeling_electra_exit.trainers.finetuning import scoring
from tests.conftest import tiny_config, tiny_model


TEXTS = ["a cat runs", "the dog", "a bird sees the red house of a cat and the dog runs", "", "cat " * 200]


@pytest.fixture
def checkpoint(tokenizer, tmp_path):
    for part in (tiny_model(), tokenizer):
        part.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def one_by_one(scorer, text, **options):
    ids = scorer.tokenizer(text, truncation=True, max_length=128, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return ids, scorer.model(ids, **options)


@pytest.mark.parametrize("tokens", [1, 40, 8192])  # one text a batch; some; all
def test_scores_are_those_of_each_text_alone_in_its_place(checkpoint, monkeypatch, tokens):
    monkeypatch.setattr(scoring, "BATCH_TOKENS", tokens)
    monkeypatch.setattr(scoring, "WINDOW", 3)
    scorer = scoring.Scorer(checkpoint)
    scores = list(scorer(TEXTS))
    assert len(scores) == len(TEXTS)
    for text, score in zip(TEXTS, scores, strict=True):
        ids, outputs = one_by_one(scorer, text)
        assert len(score.tokens) == len(score.replaced) == ids.shape[1] <= 128
        torch.testing.assert_close(torch.tensor(score.replaced), outputs.logits[0].sigmoid(), atol=1e-5, rtol=1e-5)
        expected = F.logsigmoid(-outputs.logits).sum()
        torch.testing.assert_close(torch.tensor(score.pseudo_log_likelihood), expected, atol=1e-4, rtol=1e-5)
        assert score.exit_layers is None


@pytest.mark.parametrize("threshold", [None, 0.68])
def test_a_tokenizer_that_pads_on_the_left_changes_no_score(checkpoint, threshold):
    scorer = scoring.Scorer(checkpoint, threshold)
    expected = list(scorer(TEXTS))
    scorer.tokenizer.padding_side = "left"
    assert list(scorer(TEXTS)) == expected


def test_exits_do_not_depend_on_the_batch(checkpoint):
    scorer = scoring.Scorer(checkpoint, 0.68)
    scores = list(scorer(TEXTS))
    left = {layer for score in scores for layer in score.exit_layers}
    assert len(left) > 1  # some left, some did not
    for text, score in zip(TEXTS, scores, strict=True):
        alone = next(scorer([text]))
        assert score.exit_layers == alone.exit_layers
        torch.testing.assert_close(torch.tensor(score.replaced), torch.tensor(alone.replaced), atol=1e-5, rtol=1e-5)


def test_scoring_tokenizes_only_the_beginning_of_a_long_text(checkpoint, monkeypatch):
    scorer, met = scoring.Scorer(checkpoint), []
    whole = type(scorer.tokenizer).__call__
    for text in ("a cat runs under the old tree " * 20_000, "x" * 45_000 + " cat" * 30_000, "cat" * 20_000):
        (expected,) = whole(scorer.tokenizer, [text], truncation=True, max_length=128)["input_ids"]
        met.clear()

        def measured(self, texts, *, met=met, **options):
            met.append(max(map(len, [texts] if isinstance(texts, str) else texts)))
            return whole(self, texts, **options)

        with monkeypatch.context() as patch:
            patch.setattr(type(scorer.tokenizer), "__call__", measured)
            (score,) = scorer([text])
        assert score.tokens == scorer.tokenizer.convert_ids_to_tokens(expected)
        assert max(met) <= 80_000


def test_a_torch_for_gpus_scores_on_the_cpu_where_there_is_none(checkpoint, monkeypatch):
    def built_for_cuda(check_available=False):
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", built_for_cuda)
    assert scoring.Scorer(checkpoint).device.type == "cpu"


def test_batches_fit_the_limit_and_cover_all_rows(monkeypatch):
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 20)
    lengths = [7, 3, 50, 5, 5, 4, 1]
    batches = list(scoring.batches_by_length(lengths))
    assert sorted(number for batch in batches for number in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 20 for batch in batches)
    assert len(batches) == 3


def test_a_file_becomes_json_lines(checkpoint, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("a cat runs\n\nthe dog\n")
    assert cli.main(["score", checkpoint, str(tmp_path / "text.txt"), "--output", str(tmp_path / "scores.jsonl")]) == 0
    entries = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [len(entry["tokens"]) for entry in entries] == [5, 2, 4]
    assert entries[0].keys() == {"tokens", "replaced", "pseudo_log_likelihood"}
    error = capsys.readouterr().err
    assert "3 texts, 11 tokens" in error
    assert cli.main(["score", checkpoint, str(tmp_path / "text.txt"), "--exit_entropy_threshold", "0.68"]) == 0
    assert "exit_layers" in json.loads(capsys.readouterr().out.splitlines()[0])


def test_the_file_that_is_named_is_scored_and_no_other(checkpoint, tmp_path, capsys):
    (tmp_path / "data[1].txt").write_text("This is the file whose name holds brackets.\n")
    (tmp_path / "data1.txt").write_text("This is another file.\nIt has two lines.\n")
    assert cli.main(["score", checkpoint, str(tmp_path / "data[1].txt")]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "1 texts" in captured.err


def test_words_and_numbers_in_a_csv_are_text(checkpoint, tmp_path, capsys):
    (tmp_path / "texts.csv").write_text('text,n\nnull,1\nNA,2\nNone,3\nnan,4\n"the word null in a sentence",5\n42,6\n')
    assert cli.main(["score", checkpoint, str(tmp_path / "texts.csv")]) == 0
    scores = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(scores) == 6
    assert all(len(score["tokens"]) > 2 for score in scores)


def test_a_plain_electra_checkpoint_can_be_scored(tokenizer, tmp_path):
    config = {name: getattr(tiny_config(), name) for name in ("vocab_size", "embedding_size", "hidden_size",
              "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")}  # fmt: skip
    plain = ElectraForPreTraining(ElectraConfig(**config)).eval()
    for part in (plain, tokenizer):
        part.save_pretrained(tmp_path)
    score = next(scoring.Scorer(str(tmp_path))(["a cat runs"]))
    with torch.no_grad():
        expected = plain(tokenizer("a cat runs", return_tensors="pt")["input_ids"]).logits[0].sigmoid()
    torch.testing.assert_close(torch.tensor(score.replaced), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["{folder}/model", "{folder}/none.txt"], "no such file: "),
        (["{folder}/none", "{folder}/text.txt"], "no model in "),
        (["{folder}/answers", "{folder}/text.txt"], "must hold a pre-trained discriminator, got Electra"),
        (["{folder}/dense", "{folder}/text.txt", "--exit_entropy_threshold", "0.5"],
         "--exit_entropy_threshold requires exit heads"),
        (["{folder}/model", "{folder}/text.txt", "--exit_entropy_threshold", "-1"], "exit_entropy_threshold"),
        (["{folder}/model", "{folder}/text.txt", "--text_column", "body"], "must have the column `body`, got text"),
        (["{folder}/model", "{folder}/numbers.jsonl"], "the column `text` of {folder}/numbers.jsonl must hold text"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_one_line(checkpoint, tokenizer, tmp_path, capsys, flags, message):
    ElectraEarlyExitForQuestionAnswering(tiny_config()).save_pretrained(tmp_path / "answers")
    for part in (tiny_model(exit_policy="none"), tokenizer):
        part.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text("a cat runs\n")
    (tmp_path / "numbers.jsonl").write_text('{"text": 1}\n')
    assert cli.main(["score", *(flag.format(folder=tmp_path) for flag in flags)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("electra-exit score: error: ")
    assert message.format(folder=tmp_path) in error


def test_the_input_is_not_written_over(checkpoint, tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("a cat runs\n")
    (tmp_path / "link.txt").symlink_to(path)
    for output in (path, tmp_path / "link.txt"):
        assert cli.main(["score", checkpoint, str(path), "--output", str(output)]) == 2
        assert f"--output {output} is the input file; name another file" in capsys.readouterr().err
    assert path.read_text() == "a cat runs\n"
