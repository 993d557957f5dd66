"""`electra-exit push-dataset`."""

from collections.abc import Sequence
from pathlib import Path

from .hub import check_pushable
from .parser import Parser
from .push import add_where_arguments


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="electra-exit push-dataset",
        description="Push prepared data and its tokenizer to the Hub as a dataset with a card.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path,
                        help="output of `save_to_disk` or of `electra-exit cache-replacements`")  # fmt: skip
    add_where_arguments(parser)
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer (default: FOLDER)")
    parser.add_argument("--description", help="source of the text and how it was prepared")
    parser.add_argument("--language", nargs="+", help="language codes, such as en")
    parser.add_argument("--license", help="license of the text, such as cc-by-sa-3.0")
    arguments = parser.parse_args(list(argv))
    if not arguments.folder.is_dir():
        parser.error(f"no such folder: {arguments.folder}")
    check_pushable(parser)
    from modeling_electra_exit.trainers.sharing.push_dataset import push_dataset

    from .sentences import show_progress

    show_progress()
    commit = push_dataset(
        arguments.folder,
        arguments.tokenizer or arguments.folder,
        arguments.repo_id,
        message=arguments.message or "Upload dataset",
        description=arguments.description,
        language=arguments.language,
        license=arguments.license,
        private=arguments.private,
        revision=arguments.revision,
    )
    print(commit.commit_url)
    return 0
