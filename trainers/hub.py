"""Pushing to the Hub: what may travel, in which commits, and what is said when it fails.

Everything goes through [`push_files`]: one commit that holds a whole model, so that the repository loads after every
commit, and one for the card, which names the first by its hash.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from transformers import Trainer
from transformers.dynamic_module_utils import get_relative_imports
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

import modeling_electra_exit
from modeling_electra_exit import ElectraEarlyExitConfig, __version__

from .checkpoints import MANIFEST
from .model_card import CARD, COMMIT_PLACEHOLDER, FIGURE, REPOSITORY_PLACEHOLDER, render_model_card, write_model_card
from .parsing import Parser, UsageError


logger = logging.getLogger(__name__)

API = HfApi(library_name="electra-early-exit", library_version=__version__)

WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
TOKENIZER = ("tokenizer*.json", "vocab.*", "merges.txt", "spiece.model", "special_tokens_map.json",
             "added_tokens.json", "chat_template.jinja")  # fmt: skip
# The card travels in a commit of its own.
SHARED = ("config.json", *WEIGHTS, *TOKENIZER, "metrics.json", FIGURE)
# Not text: no place for a path or a token, and large.
BINARY = (".safetensors", ".bin", ".pt", ".pth", ".arrow", ".parquet", ".png")


class PushError(UsageError):
    """Nothing was pushed, or not all of it; the message is one line that says what to do. Pushing again is safe."""


def matching(path: str | Path, patterns: Iterable[str]) -> bool:
    """Whether the name of a file is one of those that the patterns describe."""
    return any(fnmatch(os.path.basename(path), pattern) for pattern in patterns)


# ---- What may travel ----


def shared_files(folder: Path) -> dict[str, Path]:
    """The files of a model's folder that a stranger needs: config, weights, code, tokenizer, measurements.

    Everything else stays: a list of what may travel forgets nothing secret, unlike a list of what may not.

    Raises:
        PushError: if the folder does not hold a whole model of ours.
    """
    if not (folder / "config.json").is_file():
        raise PushError(f"{folder} holds no model: it has no config.json")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != ElectraEarlyExitConfig.model_type:
        raise PushError(f"{folder} holds a model of type {config.get('model_type')!r}, not "
                        f"{ElectraEarlyExitConfig.model_type!r}")  # fmt: skip
    files = {path.name: path for path in sorted(folder.iterdir()) if matching(path, SHARED)}
    needed = {*_weight_files(folder), *_code_files(folder, config)}
    if missing := sorted(name for name in needed if not (folder / name).is_file()):
        raise PushError(f"{folder} lacks {', '.join(missing)}; write it again with `save_pretrained`")
    if not any(matching(name, TOKENIZER) for name in files):
        logger.warning(f"{folder} has no tokenizer: whoever loads the model must know which one it was trained with")
    return files | {name: folder / name for name in needed}


def _weight_files(folder: Path) -> set[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return {"model.safetensors"}
    return {index.name, *json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}


def _code_files(folder: Path, config: dict) -> set[str]:
    """The modules that `auto_map` names and what they import from each other, by file name."""
    needed = {f"{reference.split('--')[-1].split('.')[0]}.py" for reference in config.get("auto_map", {}).values()}
    unread = list(needed)
    while unread:
        if (path := folder / unread.pop()).is_file():
            found = {f"{module}.py" for module in get_relative_imports(path)} - needed
            needed |= found
            unread += found
    return needed


def training_state_files(checkpoint: Path) -> dict[str, Path | bytes]:
    """What resuming needs, all that a checkpoint holds but the pickled arguments: those carry the token."""
    files: dict[str, Path | bytes] = {
        path.name: path for path in sorted(checkpoint.iterdir()) if path.is_file() and path.name != TRAINING_ARGS_NAME
    }
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    if best := state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = Path(best).name  # where it lies on this machine is nobody's business
        content = (json.dumps(state, indent=2, sort_keys=True) + "\n").encode()
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        manifest[TRAINER_STATE_NAME] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        files |= {TRAINER_STATE_NAME: content, MANIFEST: json.dumps(manifest, indent=2, sort_keys=True).encode()}
    return files


def check_clean(files: Mapping[str, Path | bytes], token: str | None) -> None:
    """The last look before anything leaves.

    Raises:
        PushError: if a text file holds the token or the path of the home folder.
    """
    secrets = {"the path of your home folder": str(Path.home()), "your token": token or get_token() or ""}
    patterns = {what: re.escape(secret) + r"(?!\w)" for what, secret in secrets.items() if len(secret) > 1}
    for name, source in files.items():
        if name.endswith(BINARY):
            continue
        text = (source if isinstance(source, bytes) else source.read_bytes()).decode("utf-8", errors="replace")
        for what, pattern in patterns.items():
            if re.search(pattern, text):
                raise PushError(f"{name} holds {what}; nothing was pushed. Remove it there and push again")


# ---- How it travels ----


def push_files(
    files: Mapping[str, Path | bytes],
    card: str,
    repo_id: str,
    *,
    kind: str = "model",
    message: str,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    replaces: Sequence[str] = WEIGHTS,
) -> CommitInfo:
    """Commit `files`, then the card.

    Args:
        files: path in the repository -> file, or its content.
        card: text of README.md; the placeholders of repository and commit are filled in.
        kind: "model" or "dataset".
        private: for a repository that is created here. Left out: as the account has it.
        revision: branch, created where there is none. Left out: "main".
        replaces: patterns of names that are deleted where `files` does not have them any more, in the folders that it
            writes to. A forgotten `model.safetensors` would win over new shards.

    Returns:
        What the Hub says of the last commit. Files that have not changed are not sent, and where none has, there is no
        new commit.

    Raises:
        PushError: for whatever went wrong.
    """
    check_clean({**files, CARD: card.encode()}, token)
    with one_sentence(repo_id):
        where = {"repo_type": kind, "token": token}
        repo_id = API.create_repo(repo_id, private=private, exist_ok=True, **where).repo_id
        if revision is not None:
            API.create_branch(repo_id, branch=revision, exist_ok=True, **where)
        where["revision"] = revision
        head = API.repo_info(repo_id, **where)
        folders = {os.path.dirname(name) for name in files}
        stale = [
            sibling.rfilename
            for sibling in head.siblings
            if sibling.rfilename not in files
            and os.path.dirname(sibling.rfilename) in folders
            and matching(sibling.rfilename, replaces)
        ]
        additions = [CommitOperationAdd(name, source) for name, source in files.items()]
        operations = [*(CommitOperationDelete(name) for name in stale), *additions]
        commit = API.create_commit(repo_id, operations, commit_message=message, parent_commit=head.sha, **where)
        pinned = commit.oid if commit.oid != head.sha else _last_change(repo_id, list(files), where)
        text = card.replace(REPOSITORY_PLACEHOLDER, repo_id).replace(COMMIT_PLACEHOLDER, pinned)
        return API.create_commit(
            repo_id,
            [CommitOperationAdd(CARD, text.encode())],
            commit_message=f"{message}: card",
            parent_commit=commit.oid,
            **where,
        )


def _last_change(repo_id: str, names: list[str], where: dict) -> str:
    """The commit that last changed one of these files."""
    known = API.get_paths_info(repo_id, names, expand=True, **where)
    return max((path.last_commit for path in known), key=lambda commit: commit.date).oid


@contextmanager
def one_sentence(repo_id: str) -> Iterator[None]:
    """Whatever the client raises becomes a [`PushError`]."""
    try:
        yield
    except Exception as error:  # the library raises a dozen kinds, from its own to those of the HTTP client
        # "Error while uploading" says nothing; its cause does.
        reason = error.__cause__ if type(error) is RuntimeError and error.__cause__ is not None else error
        status = getattr(getattr(reason, "response", None), "status_code", None)
        raise PushError(_explanation(repo_id, status, reason)) from error


def _explanation(repo_id: str, status: int | None, error: BaseException) -> str:
    again = "push again later: what is there already is not sent twice"
    known = {
        401: f"the Hub does not accept your token for {repo_id}: log in with `hf auth login`, or set HF_TOKEN",
        403: f"your token may not write to {repo_id}: choose a repository of yours, or a token with write access",
        404: f"there is no {repo_id} that your token may see, or not the revision",
        412: f"someone else committed to {repo_id} at the same time; push again",
        429: f"the Hub takes no more requests of yours for now; {again}",
    }
    if status in known:
        return known[status]
    if status is not None and status >= 500:
        return f"the Hub is out of order (status {status}); {again}"
    first_line, *_ = [*str(error).strip().splitlines(), type(error).__name__]
    return f"could not push to {repo_id}: {first_line}; {again}"


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    message: str = "Upload model",
    with_generator: bool = True,
    max_shard_size: str | None = None,
    **where,
) -> CommitInfo:
    """Push a run's folder, or one that `save_pretrained` wrote, with its card.

    Args:
        with_generator: `False` leaves the generator's weights behind; the model in the repository has
            `generator_type="none"`, and its card says so.
        max_shard_size: largest size of a file of weights, such as "5GB". Left out: files as they are.
        **where: `token`, `private` and `revision`, as in [`push_files`].

    Raises:
        PushError: as [`push_files`], or if the folder does not hold a whole model of ours. The folder is only read.
    """
    folder = Path(folder)
    files = shared_files(folder)
    with tempfile.TemporaryDirectory() as rewritten:
        if not with_generator or max_shard_size is not None:
            with one_sentence(repo_id):
                _rewrite(folder, Path(rewritten), with_generator, max_shard_size)
            kept = {name: path for name, path in files.items() if not matching(name, WEIGHTS)}
            files = kept | {path.name: path for path in Path(rewritten).iterdir()}
        if with_generator and (folder / CARD).is_file():
            card = (folder / CARD).read_text(encoding="utf-8")  # perhaps edited by hand
        else:
            card = render_model_card(folder, has_generator=with_generator)
        return push_files(files, card, repo_id, message=message, **where)


def _rewrite(folder: Path, target: Path, with_generator: bool, max_shard_size: str | None) -> None:
    """Save the model anew, in other shards or without its generator."""
    architecture = ElectraEarlyExitConfig.from_pretrained(folder).architectures[0]
    changes = {} if with_generator else {"generator_type": "none"}
    model = getattr(modeling_electra_exit, architecture).from_pretrained(folder, **changes)
    model.save_pretrained(target, **({} if max_shard_size is None else {"max_shard_size": max_shard_size}))


def linked(files: Mapping[str, Path | bytes], folder: Path) -> dict[str, Path | bytes]:
    """The same files under other names in `folder`: an old checkpoint may be deleted while it is being pushed."""
    copies: dict[str, Path | bytes] = {}
    for number, (name, source) in enumerate(files.items()):
        copies[name] = source
        if isinstance(source, Path):
            copies[name] = folder / str(number)
            try:
                os.link(source, copies[name])
            except OSError:  # a file system without hard links
                shutil.copyfile(source, copies[name])
    return copies


class PushingTrainer(Trainer):
    """[`~transformers.Trainer`] of which every push loads, by a stranger and without a secret.

    The library's own pushes forget the code when they push a checkpoint, push all that lies in the folder, and pickle
    the arguments with the token in them.
    """

    def init_hf_repo(self, token=None, private=None):
        with one_sentence(self.args.hub_model_id or Path(self.args.output_dir).name):
            super().init_hf_repo(token, private)

    @property
    def _license(self) -> str | None:
        return getattr(self.args, "model_license", None)

    def create_model_card(self, language=None, license=None, **_):
        """A card that states what this run measured, instead of the draft that calls every model fine-tuned."""
        if self.is_world_process_zero():
            write_model_card(self.args.output_dir, language=language, license=license or self._license)

    def push_to_hub(
        self, commit_message="End of training", blocking=True, token=None, revision=None, private=None, **kwargs
    ) -> CommitInfo | Future | None:
        """Push what is in `output_dir` of the model, its code, tokenizer and card, and nothing else.

        Args: those of [`~transformers.Trainer.push_to_hub`]; `language` and `license` go to the card.

        Raises:
            PushError: in one line. The folder is complete all the same, and [`push_folder`] can repeat the push.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        self.save_state()
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        folder = Path(self.args.output_dir)
        card = (folder / CARD).read_text(encoding="utf-8")
        job = self._push_in_background(shared_files(folder), card, commit_message, token, revision)
        return job.result() if blocking else job

    def _push_from_checkpoint(self, checkpoint_folder):
        """Push the checkpoint itself: unlike `output_dir`, it holds everything, the code included."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done() and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        checkpoint = Path(checkpoint_folder)
        try:
            files: dict[str, Path | bytes] = {**shared_files(checkpoint)}
        except PushError as error:  # weights in the form of another library, for one
            logger.warning(f"{error}. Nothing was pushed, and training goes on")
            return
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            subfolder = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            files |= {f"{subfolder}/{name}": source for name, source in training_state_files(checkpoint).items()}
        card = render_model_card(checkpoint, name=Path(self.args.output_dir).resolve().name, license=self._license)
        links = tempfile.mkdtemp(prefix=".push-", dir=self.args.output_dir)
        message = f"Training in progress, step {self.state.global_step}"
        job = self._push_in_background(linked(files, Path(links)), card, message)
        job.add_done_callback(lambda _: shutil.rmtree(links, ignore_errors=True))
        job.add_done_callback(_warn_of_failure)
        jobs = self.push_in_progress.jobs if self.push_in_progress is not None else []
        self.push_in_progress = PushInProgress([*(earlier for earlier in jobs if not earlier.done()), job])

    def _push_in_background(self, files, card, message, token=None, revision=None) -> Future:
        """One push after the other, in the order of the calls."""
        return API.run_as_future(
            push_files,
            files,
            card,
            self.hub_model_id,
            message=message,
            token=token if token is not None else self.args.hub_token,
            revision=revision if revision is not None else self.args.hub_revision,
        )


def _warn_of_failure(job: Future) -> None:
    if (error := job.exception()) is not None:
        logger.warning(f"{error}. Training goes on, and the next push holds all of this")


# ---- electra-exit push ----


def add_where_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that every command that pushes has."""
    parser.add_argument("repo_id", metavar="REPO_ID", help="repository, such as `me/my-model`; made if there is none")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to; made if there is none (default: main)")
    parser.add_argument("--message", help="message of the commit")


def push_command(argv: Iterable[str]) -> int:
    parser = Parser(
        prog="electra-exit push",
        description="Push a run or a saved model to the Hub: config, weights, code, tokenizer and card, and nothing "
        "else. Pushing again is safe.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder of a run, of a checkpoint or of a saved model")
    add_where_arguments(parser)
    generator = parser.add_mutually_exclusive_group()
    generator.add_argument("--with_generator", action="store_true", default=True, help="the default")
    generator.add_argument("--no-generator", "--no_generator", action="store_false", dest="with_generator",
                           help="leave the generator's weights behind")  # fmt: skip
    parser.add_argument("--max_shard_size", help="largest size of a file of weights, such as 5GB")
    arguments = parser.parse_args(list(argv))
    if not Path(arguments.folder).is_dir():
        raise UsageError(f"no such folder: {arguments.folder}")
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
