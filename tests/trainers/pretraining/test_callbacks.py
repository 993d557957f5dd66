"""What the terminal shows while a run trains."""

import logging
import os
import re
import shutil
import sys

import pytest
from transformers import TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from electra_exit.sentences import AboveBars
from modeling_electra_exit.trainers.pretraining.callbacks import one_line, show_lines
from tests.trainers.pretraining.test_trainer import make_trainer


STEP = {
    "loss": 21.3712, "grad_norm": 2.1, "learning_rate": 0.00091, "discriminator_auc": 0.8123, "generator_loss": 5.2149,
    "exit_loss": 0.4, "generator_equal_rate": 0.02, "tokens_per_second": 17573, "kept_layer_1": 1.0, "epoch": 1.2,
}  # fmt: skip
EVALUATION = {"eval_loss": 21.0, "eval_roc_auc": 0.81234, "eval_average_precision": 0.45126, "epoch": 1.2}


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        (STEP, "12500/1000000  loss 21.37  ROC-AUC 0.812  17,573 tokens/s  generator 5.21"),
        (EVALUATION, "12500/1000000  held out  ROC-AUC 0.8123  average precision 0.4513"),
        ({"loss": 0.61234, "learning_rate": 1e-5}, "12500/1000000  loss 0.6123  lr 1.0e-05"),
        ({"train_runtime": 5.0}, ""),
    ],
)
def test_a_log_is_one_line_that_fits(monkeypatch, logs, line):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((80, 24)))
    assert one_line(logs, TrainerState(global_step=12500, max_steps=1_000_000)) == line
    assert len(line) <= 80


def test_a_wider_terminal_shows_more_and_a_narrow_one_less(monkeypatch):
    state = TrainerState(global_step=1, max_steps=2)
    lengths = []
    for columns in (200, 60, 30, 1):
        monkeypatch.setattr(shutil, "get_terminal_size", lambda columns=columns: os.terminal_size((columns, 24)))
        lengths.append(len(one_line(STEP, state)))
        assert lengths[-1] <= max(columns, 3)
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > 90


def test_without_a_bar_too_the_lines_take_the_place_of_dictionaries(tokenizer, tmp_path, capsys):
    trainer = make_trainer(tokenizer, tmp_path, max_steps=2)
    show_lines(trainer)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert not {PrinterCallback, ProgressCallback} & set(kinds)
    trainer.train()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(
        re.match(rf"{n}/2  loss [\d.]+  ROC-AUC 0\.\d+  [\d,]+ tokens/s", line) for n, line in enumerate(lines, 1)
    )


def test_an_alarm_has_a_line_of_its_own(capsys):
    from tqdm import tqdm

    handler = AboveBars(sys.stderr)
    with tqdm(total=3, file=sys.stderr, ncols=40) as bar:
        bar.update(1)
        handler.emit(logging.makeLogRecord({"msg": "the generator is too easy", "levelno": logging.WARNING}))
    shown = capsys.readouterr().err
    (before,) = re.findall(r"([^\n]*)the generator is too easy\n", shown)
    assert before.endswith("\r"), "the bar is cleared first"
