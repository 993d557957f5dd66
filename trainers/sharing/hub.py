"""Push to the Hub: select the files, commit them, and explain failures.

[`push_files`] makes every push. It makes one commit with a whole model, so that the repository loads after every
commit, and one with the card, which refers to the first by its hash.
"""

import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from transformers.dynamic_module_utils import get_relative_imports
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

import modeling_electra_exit
from modeling_electra_exit import ElectraEarlyExitConfig, __version__

from ..errors import PushError, UsageError, first_line
from ..runtime.checkpoints import MANIFEST
from ..runtime.compatibility import CompatibleTrainer
from ..runtime.files import read_json
from ..runtime.loading import lacks_model
from .leaks import UnreadableError, first_leak
from .model_card import COMMIT_PLACEHOLDER, REPOSITORY_PLACEHOLDER, render_model_card, write_model_card
from .records import CARD, CURVE, FIGURE, METRICS


logger = logging.getLogger(__name__)

API = HfApi(library_name="electra-early-exit", library_version=__version__)

SHARDS = f"model-{'[0-9]' * 5}-of-{'[0-9]' * 5}.safetensors"
INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", SHARDS, INDEX)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model",
             "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")  # fmt: skip
# Files of a model besides weights and code. The card has a separate commit.
SHARED = ("config.json", *TOKENIZER, METRICS, FIGURE, CURVE)
# Files of a checkpoint that resuming requires besides the model.
TRAINING_STATE = (TRAINER_STATE_NAME, "generator.safetensors", "optimizer.pt", "optimizer.bin", "scheduler.pt",
                  "scaler.pt", "rng_state.pth", "rng_state_[0-9]*.pth", "pytorch_model_fsdp.bin")  # fmt: skip


def matching(path: str | Path, patterns: Iterable[str]) -> bool:
    """Whether the name of a file matches one of the patterns."""
    return any(fnmatchcase(os.path.basename(path), pattern) for pattern in patterns)


# ---- Which files are pushed ----


def plain_files(folder: Path, patterns: Iterable[str]) -> dict[str, Path]:
    """The files of a folder that match the patterns, by name.

    Raises:
        PushError: if one of them is a link, which may lead anywhere on this machine, or not a regular file.
    """
    found = {path.name: path for path in sorted(folder.iterdir()) if matching(path, patterns)}
    for name, path in found.items():
        if not stat.S_ISREG(path.lstat().st_mode):
            kind = "a symbolic link" if path.is_symlink() else "not a regular file"
            raise PushError(
                f"{name} in {folder} is {kind}; nothing was pushed. Replace it with the file itself, or remove it"
            )
    return found


def shared_files(folder: Path) -> dict[str, Path]:
    """The files of a model's folder that are pushed: config, weights, code, tokenizer, measurements and figures.

    This is an allow list, so that unknown files, which may be secret, are never pushed.

    Raises:
        PushError: if the folder does not hold a complete electra-exit model in regular files.
    """
    if "config.json" not in plain_files(folder, ["config.json"]):
        raise PushError(lacks_model(folder))
    config = read_json(folder / "config.json")
    if config.get("model_type") != ElectraEarlyExitConfig.model_type:
        raise PushError(f"`model_type` of {folder} must be {ElectraEarlyExitConfig.model_type!r}, got "
                        f"{config.get('model_type')!r}")  # fmt: skip
    needed = _weight_files(folder) | _code_files(folder, config)
    files = plain_files(folder, {*SHARED, *needed})
    if missing := sorted(needed - files.keys()):
        raise PushError(f"{folder} lacks {', '.join(missing)}; save the model again with `save_pretrained`")
    if not any(matching(name, TOKENIZER) for name in files):
        logger.warning(f"{folder} has no tokenizer; users of the model will not know which one it was trained with")
    return files


def _weight_files(folder: Path) -> set[str]:
    """The single weight file, or the index and its shards. Like Transformers, prefer the single file."""
    if INDEX not in plain_files(folder, [INDEX, "model.safetensors"]) or (folder / "model.safetensors").is_file():
        return {"model.safetensors"}
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise PushError(f"`weight_map` of {folder / INDEX} must map weights to files, got {shards!r:.100}")
    for shard in shards.values():
        if not (isinstance(shard, str) and fnmatchcase(shard, SHARDS)):
            raise PushError(f"`weight_map` of {folder / INDEX} must name files such as "
                            f"model-00001-of-00002.safetensors, got {shard!r:.100}")  # fmt: skip
    return {INDEX, *shards.values()}


def _code_files(folder: Path, config: dict) -> set[str]:
    """The file names of the modules in `auto_map` and of their relative imports."""
    references = config.get("auto_map", {})
    if not isinstance(references, dict):
        raise PushError(f"`auto_map` of {folder / 'config.json'} must map classes to code, got {references!r:.100}")
    needed = {_module_file(folder, str(reference).split("--")[-1].split(".")[0]) for reference in references.values()}
    unread = list(needed)
    while unread:
        if path := plain_files(folder, [name := unread.pop()]).get(name):
            try:
                imported = get_relative_imports(path)
            except UnicodeDecodeError as error:
                raise PushError(f"{path} must be Python in UTF-8: {error}") from error
            found = {_module_file(folder, module) for module in imported} - needed
            needed |= found
            unread += found
    return needed


def _module_file(folder: Path, module: str) -> str:
    """The file name of a module.

    Raises:
        PushError: if it is not a plain module name, which could lead out of the folder.
    """
    if not module.isidentifier():
        raise PushError(f"`auto_map` and the relative imports of {folder} must name modules in that folder, got "
                        f"{module!r:.100}")  # fmt: skip
    return f"{module}.py"


def training_state_files(checkpoint: Path) -> dict[str, Path | bytes]:
    """The files of a checkpoint for resuming, without the pickled arguments, which contain the token. The manifest is
    rewritten to list only these files, and the trainer state to contain no local path."""
    files: dict[str, Path | bytes] = {**shared_files(checkpoint), **plain_files(checkpoint, TRAINING_STATE)}
    state = read_json(checkpoint / TRAINER_STATE_NAME)
    manifest = {name: entry for name, entry in read_json(checkpoint / MANIFEST).items() if name in files}
    if best := state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = Path(best).name  # without the local path
        content = (json.dumps(state, indent=2, sort_keys=True) + "\n").encode()
        manifest[TRAINER_STATE_NAME] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        files[TRAINER_STATE_NAME] = content
    return {**files, MANIFEST: json.dumps(manifest, indent=2, sort_keys=True).encode()}


def check_clean(files: Mapping[str, Path | bytes], token: str | None) -> None:
    """Search the files for secrets before they are pushed.

    Raises:
        PushError: if [`leaks.first_leak`] finds one, or cannot search a file.
    """
    try:
        leak = first_leak(files, token)
    except UnreadableError as error:
        raise PushError(f"{error}, so it cannot be searched for secrets; nothing was pushed") from error
    if leak is not None:
        raise PushError(f"{leak}; nothing was pushed. Remove it and push again")


# ---- How they are pushed ----


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
    """Commit `files`, then the card. Unchanged files are not uploaded, and without changes there is no new commit.

    Args:
        files: path in the repository -> file, or its content.
        card: text of README.md; the placeholders of repository and commit are filled in.
        repo_id: the repository, created if missing.
        kind: "model" or "dataset".
        message: commit message.
        token: Hub token. Default: the stored one.
        private: visibility of a repository that is created here. Default: the account's.
        revision: branch, created if missing. Default: "main".
        replaces: patterns of file names to delete if they are not in `files`, in the folders that `files` writes to.
            Otherwise an old `model.safetensors` would take precedence over new shards.

    Returns:
        The last commit, as the Hub reports it.

    Raises:
        PushError: if anything fails.
    """
    check_clean({**files, CARD: card.encode(), "the commit message": message.encode()}, token)
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
    """The id of the commit that last changed one of these files."""
    known = API.get_paths_info(repo_id, names, expand=True, **where)
    return max((path.last_commit for path in known), key=lambda commit: commit.date).oid


@contextmanager
def one_sentence(repo_id: str) -> Iterator[None]:
    """Raise any error of the Hub client as a one-sentence [`PushError`]."""
    try:
        yield
    except Exception as error:  # the library and its HTTP client raise a dozen kinds
        # "Error while uploading" is uninformative; its cause is not.
        reason = error.__cause__ if type(error) is RuntimeError and error.__cause__ is not None else error
        status = getattr(getattr(reason, "response", None), "status_code", None)
        raise PushError(_explanation(repo_id, status, reason)) from error


def _explanation(repo_id: str, status: int | None, error: BaseException) -> str:
    again = "push again later; files already uploaded are not sent twice"
    known = {
        401: f"the Hub rejects your token for {repo_id}: log in with `hf auth login`, or set HF_TOKEN",
        403: f"your token cannot write to {repo_id}: choose your own repository, or a token with write access",
        404: f"{repo_id} or the revision does not exist, or your token has no access to it",
        412: f"someone else committed to {repo_id} at the same time; push again",
        429: f"the Hub's rate limit is reached; {again}",
    }
    if status in known:
        return known[status]
    if status is not None and status >= 500:
        return f"the Hub has a server error (status {status}); {again}"
    return f"could not push to {repo_id}: {first_line(error)}; {again}"


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    message: str = "Upload model",
    with_generator: bool = True,
    max_shard_size: str | None = None,
    **where,
) -> CommitInfo:
    """Push the folder of a run or of a saved model, with its card. The folder is not changed.

    Args:
        folder: folder of a run, or output of `save_pretrained`.
        repo_id: the repository, created if missing.
        message: commit message.
        with_generator: `False` omits the generator's weights; the pushed model has `generator_type="none"`, and its
            card says so.
        max_shard_size: maximum size of a weight file, such as "5GB". Default: the files as they are.
        **where: `token`, `private` and `revision`, as in [`push_files`].

    Returns:
        The last commit, as the Hub reports it.

    Raises:
        PushError: as [`push_files`], or if the folder does not hold a complete electra-exit model.
    """
    folder = Path(folder)
    files = shared_files(folder)
    with tempfile.TemporaryDirectory() as rewritten:
        if not with_generator or max_shard_size is not None:
            _rewrite(folder, Path(rewritten), with_generator, max_shard_size)
            kept = {name: path for name, path in files.items() if not matching(name, WEIGHTS)}
            files = kept | {path.name: path for path in Path(rewritten).iterdir()}
        if with_generator and CARD in plain_files(folder, [CARD]):
            card = (folder / CARD).read_text(encoding="utf-8", errors="replace")  # keeps manual edits
        else:
            card = render_model_card(folder, has_generator=with_generator)
        return push_files(files, card, repo_id, message=message, **where)


def _rewrite(folder: Path, target: Path, with_generator: bool, max_shard_size: str | None) -> None:
    """Save the model to `target` with other shards or without its generator.

    Raises:
        PushError: if it cannot be loaded, or `max_shard_size` is invalid.
    """
    changes = {} if with_generator else {"generator_type": "none"}
    try:
        architecture = ElectraEarlyExitConfig.from_pretrained(folder).architectures[0]
        model = getattr(modeling_electra_exit, architecture).from_pretrained(folder, **changes)
        model.save_pretrained(target, **({} if max_shard_size is None else {"max_shard_size": max_shard_size}))
    except Exception as error:  # a damaged file can raise anything
        raise PushError(f"the model in {folder} cannot be converted: {first_line(error)}") from error


def linked(files: Mapping[str, Path | bytes], folder: Path) -> dict[str, Path | bytes]:
    """Hard links to the files in `folder`, because training may delete an old checkpoint while it is being pushed."""
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


class PushingTrainer(CompatibleTrainer):
    """[`~transformers.Trainer`] whose pushes load anywhere and contain no secrets.

    Transformers' own pushes omit the code of a checkpoint, include every file in the folder, and pickle the arguments
    with the token.
    """

    def init_hf_repo(self, token=None, private=None):
        with one_sentence(self.args.hub_model_id or Path(self.args.output_dir).name):
            super().init_hf_repo(token, private)

    @property
    def _license(self) -> str | None:
        return getattr(self.args, "model_license", None)

    def create_model_card(self, language=None, license=None, **_):
        """Write a card with this run's measurements, instead of Transformers' draft for fine-tuned models."""
        if self.is_world_process_zero():
            write_model_card(self.args.output_dir, language=language, license=license or self._license)

    def push_to_hub(
        self, commit_message="End of training", blocking=True, token=None, revision=None, private=None, **kwargs
    ) -> CommitInfo | Future | None:
        """Push the model in `output_dir` with its code, tokenizer and card, and nothing else.

        Args: those of [`~transformers.Trainer.push_to_hub`]; `language` and `license` are for the card.

        Raises:
            PushError: if the push fails. The folder is complete, and [`push_folder`] can repeat the push.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_unpushed()
        self.save_state()
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self.finish_push()
        folder = Path(self.args.output_dir)
        card = (folder / CARD).read_text(encoding="utf-8")
        job = self._push_in_background(shared_files(folder), card, commit_message, token, revision)
        return job.result() if blocking else job

    def push_checkpoint(self, checkpoint):
        """Push the checkpoint itself, because unlike `output_dir` it contains the code."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done() and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            files: dict[str, Path | bytes] = {**shared_files(checkpoint)}
            if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                subfolder = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
                files |= {f"{subfolder}/{name}": source for name, source in training_state_files(checkpoint).items()}
        except UsageError as error:  # for example, weights in the format of another library
            logger.warning(f"{error}. Nothing was pushed; training continues")
            return
        card = render_model_card(checkpoint, name=Path(self.args.output_dir).resolve().name, license=self._license)
        links = tempfile.mkdtemp(prefix=".push-", dir=self.args.output_dir)
        message = f"Training in progress, step {self.state.global_step}"
        job = self._push_in_background(linked(files, Path(links)), card, message)
        job.add_done_callback(lambda _: shutil.rmtree(links, ignore_errors=True))
        job.add_done_callback(_warn_of_failure)
        jobs = self.push_in_progress.jobs if self.push_in_progress is not None else []
        self.push_in_progress = PushInProgress([*(earlier for earlier in jobs if not earlier.done()), job])

    def _push_in_background(self, files, card, message, token=None, revision=None) -> Future:
        """Queue a push. Pushes run one at a time, in the order of the calls."""
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
        logger.warning(f"{error}. Training continues; the next push includes these changes")
