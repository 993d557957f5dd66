"""Every code block of README.md and docs/ runs, at a tiny size and offline, in the order of its page."""

import io
import json
import lzma
import re

import pytest
import torch

from docs.measurements import ROOT, pages
from electra_exit import main as cli
from tests.docs.blocks import Page, blocks, commands, smaller, tiny
from tests.trainers.sharing.test_hub import COMMANDS


TOKEN = "hf_SecretOfMe"
PAGES = {str(page.relative_to(ROOT)): page for page in pages() if blocks(page)}
# Blocks that are marked as not run. Raise it only for what cannot be run in a test.
NOT_RUN = 26


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A pre-trained checkpoint and one that was fine-tuned from it, by the command line."""
    page = Page(tmp_path_factory.mktemp("trained"), None, None)
    page.make_up("my_text.txt reviews.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(page.folder)
        for line in (
            "pretrain quickstart --exit_policy random --output_dir mine",
            "finetune mine --train_file reviews.csv --output_dir tuned",
        ):
            assert cli.main(tiny(line.split())) == 0
    return page.folder / "mine", page.folder / "tuned" / "seed-42"


@pytest.mark.parametrize("name", PAGES)
def test_the_blocks_of_a_page_run(name, tmp_path, monkeypatch, trained, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    page, scope = Page(tmp_path, *trained), {}
    for block in blocks(PAGES[name]):
        if block.reason:
            continue
        if block.file:
            (tmp_path / block.file).write_text(block.code)
        elif block.language == "bash":
            for program, *arguments in commands(block.code):
                if program == "xzcat":
                    page.make_up(arguments[0])
                    text = lzma.decompress((tmp_path / arguments[0]).read_bytes())
                    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
                    arguments = arguments[3:]
                else:
                    assert program == "electra-exit", f"mark this block as not run, with a reason: {program}"
                run_command(page, arguments, request)
        else:
            page.make_up(block.code)
            if not scope:
                scope |= inputs(page)
            exec(compile(smaller(block.code), name, "exec"), scope)


def run_command(page, arguments, request):
    line = " ".join(arguments)
    page.make_up(re.sub(r"--(output_dir|folder) \S+", "", line))
    if arguments[0] in ("push", "push-dataset") or "--push_to_hub" in arguments:
        loopback = request.getfixturevalue("loopback")
        loopback.users[TOKEN] = "me"
        script = [COMMANDS, json.dumps([tiny(arguments)])]
        done = loopback.processes.run(*script, cwd=page.folder, HOME=str(page.folder / "home"), HF_TOKEN=TOKEN)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.strip().split("\n")[-1]) == [0], (line, done.stderr)
    else:
        assert cli.main(tiny(arguments)) == 0, line


def inputs(page) -> dict:
    """What blocks of Python take for granted: a tokenizer, token ids, a batch of texts."""
    torch.manual_seed(0)
    tokenizer = page.tokenizer
    texts = [page.text() for _ in range(8)]
    return {
        "tokenizer": tokenizer,
        "sequences": tokenizer(texts).input_ids,
        "batch": tokenizer(texts, padding=True, return_tensors="pt"),
    }


def test_few_blocks_are_not_run():
    marked = [(name, block.reason) for name, page in PAGES.items() for block in blocks(page) if block.reason]
    assert len(marked) == NOT_RUN, marked
