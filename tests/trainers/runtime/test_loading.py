"""`electra-exit export`: plain ELECTRA with its tokenizer, or one line that says why not."""

import os
import stat
import tempfile
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, ElectraForMaskedLM, ElectraForPreTraining

from electra_exit import main as cli
from modeling_electra_exit import ElectraEarlyExitForSequenceClassification
from tests.conftest import masked_batch, tiny_config, tiny_model


def export(*argv) -> int:
    return cli.main(["export", *map(str, argv)])


def test_export_writes_what_loads_without_the_plugin(tmp_path, tokenizer, capsys):
    model = tiny_model().eval()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "ours")
    assert export(tmp_path / "ours", tmp_path / "plain", "--to", "electra") == 0
    folders = dict(line.split(": ") for line in capsys.readouterr().out.strip().split("\n"))
    plain = ElectraForPreTraining.from_pretrained(folders["discriminator"])
    ids = masked_batch()["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-6, rtol=0)
    generator = ElectraForMaskedLM.from_pretrained(folders["generator"])
    assert torch.equal(generator.generator_predictions.dense.weight, model.generator.predictions.dense.weight)
    for folder in folders.values():
        assert AutoTokenizer.from_pretrained(folder)("a cat runs") == tokenizer("a cat runs")


def test_export_of_what_has_no_plain_form(tmp_path, tokenizer, capsys):
    for part in (tiny_model(norm_position="pre"), tokenizer):
        part.save_pretrained(tmp_path / "pre")
    ElectraEarlyExitForSequenceClassification(tiny_config()).save_pretrained(tmp_path / "classifier")
    BertConfig().save_pretrained(tmp_path / "bert")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("years of work")
    tiny_model().save_pretrained(tmp_path / "ours")
    for folder, output, message in (
        ("pre", "plain", "`norm_position` must be 'post' to write a plain ELECTRA"),
        ("classifier", "plain", "ElectraEarlyExitForMaskedLM, got ElectraEarlyExitForSequenceClass"),
        ("bert", "plain", "must hold an ElectraEarlyExitForPreTraining or an ElectraEarlyExitForMaskedLM, got bert"),
        ("ours", "used", "is not an empty folder; choose an empty or a new one"),
        ("ours", "plain", "no tokenizer in "),
        ("nowhere", "plain", "no model in "),
    ):
        assert export(tmp_path / folder, tmp_path / output, "--to", "electra") == 2
        error = capsys.readouterr().err.strip().split("\n")[-1]
        assert error.startswith("electra-exit export: error: ")
        assert message in error
        assert not (tmp_path / "plain").exists()


@pytest.mark.parametrize(
    ("flags", "message"), [([], "required: --to"), (["--to", "gpt2"], "--to: invalid choice: 'gpt2'")]
)
def test_export_to_nothing_we_know(tmp_path, capsys, flags, message):
    assert export("a", "b", *flags) == 2
    assert message in capsys.readouterr().err


def test_weights_that_only_others_may_read_are_named(tmp_path, capsys):
    with tempfile.TemporaryDirectory() as place:  # not in `tmp_path`, into which only its owner may look
        folder = Path(place, "ours")
        tiny_model().save_pretrained(folder)
        for path, mode in ((Path(place), 0o755), (folder, 0o755), (folder / "model.safetensors", 0)):
            path.chmod(mode)
        user = os.geteuid()
        if user == 0:  # who may read everything
            os.seteuid(12345)
        try:
            assert export(folder, tmp_path / "plain", "--to", "electra") == 2
        finally:
            os.seteuid(user)
    assert capsys.readouterr().err.endswith(f"Permission denied: '{folder / 'model.safetensors'}'\n")


def test_exported_weights_have_the_permissions_of_their_config(tmp_path, tokenizer):
    for part in (tiny_model(), tokenizer):
        part.save_pretrained(tmp_path / "ours")
    assert export(tmp_path / "ours", tmp_path / "plain", "--to", "electra") == 0
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "plain" / "generator").iterdir()}
    assert len(modes) == 1
