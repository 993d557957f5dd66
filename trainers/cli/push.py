"""`electra-exit push`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .hub import check_pushable
from .parser import Parser


def add_where_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that every command that pushes has."""
    parser.add_argument("repo_id", metavar="REPO_ID", help="repository, such as `me/my-model`; made if there is none")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to; made if there is none (default: main)")
    parser.add_argument("--message", help="message of the commit")


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="electra-exit push",
        description="Push a run or a saved model to the Hub: config, weights, code, tokenizer, card, measurements and "
        "the picture of the exits, and nothing else. Pushing again is safe.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder of a run, of a checkpoint or of a saved model")
    add_where_arguments(parser)
    generator = parser.add_mutually_exclusive_group()
    generator.add_argument("--with_generator", action="store_true", default=True, help="the default")
    generator.add_argument("--no-generator", "--no_generator", action="store_false", dest="with_generator",
                           help="omit the generator's weights")  # fmt: skip
    parser.add_argument("--max_shard_size", help="largest size of a file of weights, such as 5GB")
    arguments = parser.parse_args(list(argv))
    folder = Path(arguments.folder)
    if not folder.is_dir():
        parser.error(f"no such folder: {folder}")
    if not (folder / "config.json").is_file():  # said before the Hub is looked for
        from modeling_electra_exit.trainers.runtime.loading import lacks_model

        parser.error(lacks_model(folder))
    check_pushable(parser)
    from modeling_electra_exit.trainers.sharing.hub import push_folder

    from .sentences import show_progress

    show_progress()
    commit = push_folder(
        arguments.folder,
        arguments.repo_id,
        message=arguments.message or "Upload model",
        with_generator=arguments.with_generator,
        max_shard_size=arguments.max_shard_size,
        private=arguments.private,
        revision=arguments.revision,
    )
    print(commit.commit_url)
    return 0
