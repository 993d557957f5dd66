"""`electra-exit push`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .hub import check_pushable
from .parser import Parser


def add_where_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags shared by all push commands."""
    parser.add_argument("repo_id", metavar="REPO_ID", help="repository, such as me/my-model; created if missing")
    parser.add_argument("--private", action="store_true", default=None, help="create a new repository as private")
    parser.add_argument("--revision", help="branch to push to; created if missing (default: main)")
    parser.add_argument("--message", help="commit message")


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="electra-exit push",
        description="Push a run or a saved model to the Hub: config, weights, code, tokenizer, model card, "
        "measurements and the figure of the exits, and nothing else. Pushing again is safe.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder of a run, a checkpoint or a saved model")
    add_where_arguments(parser)
    generator = parser.add_mutually_exclusive_group()
    generator.add_argument("--with_generator", action="store_true", default=True, help="the default")
    generator.add_argument("--no-generator", "--no_generator", action="store_false", dest="with_generator",
                           help="omit the generator's weights")  # fmt: skip
    parser.add_argument("--max_shard_size", help="maximum size of a weight file, such as 5GB")
    arguments = parser.parse_args(list(argv))
    folder = Path(arguments.folder)
    if not folder.is_dir():
        parser.error(f"no such folder: {folder}")
    if not (folder / "config.json").is_file():  # reported before the Hub is contacted
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
