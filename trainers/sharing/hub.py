"""Pushing to the Hub: what may travel, in which commits, and what is said when it fails.

Everything goes through [`push_files`]: one commit that holds a whole model, so that the repository loads after every
commit, and one for the card, which names the first by its hash.
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
# Of a model, beside its weights and code. The card travels in a commit of its own.
SHARED = ("config.json", *TOKENIZER, METRICS, FIGURE, CURVE)
# Of a checkpoint, what resuming needs beside the model.
TRAINING_STATE = (TRAINER_STATE_NAME, "generator.safetensors", "optimizer.pt", "optimizer.bin", "scheduler.pt",
                  "scaler.pt", "rng_state.pth", "rng_state_[0-9]*.pth", "pytorch_model_fsdp.bin")  # fmt: skip


def matching(path: str | Path, patterns: Iterable[str]) -> bool:
    """Whether the name of a file is one of those that the patterns describe."""
    return any(fnmatchcase(os.path.basename(path), pattern) for pattern in patterns)


# ---- What may travel ----


def plain_files(folder: Path, patterns: Iterable[str]) -> dict[str, Path]:
    """The files of a folder that the patterns name, by name.

    Raises:
        PushError: if one of them is a link or no file: what it leads to may be anything on this machine.
    """
    found = {path.name: path for path in sorted(folder.iterdir()) if matching(path, patterns)}
    for name, path in found.items():
        if not stat.S_ISREG(path.lstat().st_mode):
            kind = "a symbolic link" if path.is_symlink() else "no file"
            raise PushError(
                f"{name} of {folder} is {kind}; nothing was pushed. Put the file itself there, or remove it"
            )
    return found


def shared_files(folder: Path) -> dict[str, Path]:
    """The files of a model's folder that a stranger needs: config, weights, code, tokenizer, measurements.

    Everything else stays: a list of what may travel forgets nothing secret, unlike a list of what may not.

    Raises:
        UsageError: if the folder does not hold a whole model of ours, of plain files.
    """
    if "config.json" not in plain_files(folder, ["config.json"]):
        raise PushError(lacks_model(folder))
    config = read_json(folder / "config.json")
    if config.get("model_type") != ElectraEarlyExitConfig.model_type:
        raise PushError(f"{folder} holds a model of type {config.get('model_type')!r}, not "
                        f"{ElectraEarlyExitConfig.model_type!r}")  # fmt: skip
    needed = _weight_files(folder) | _code_files(folder, config)
    files = plain_files(folder, {*SHARED, *needed})
    if missing := sorted(needed - files.keys()):
        raise PushError(f"{folder} lacks {', '.join(missing)}; write it again with `save_pretrained`")
    if not any(matching(name, TOKENIZER) for name in files):
        logger.warning(f"{folder} has no tokenizer; users of the model need to know which one it was trained with")
    return files


def _weight_files(folder: Path) -> set[str]:
    """The one file of weights, or the index and its shards; Transformers prefers the former, too."""
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
    """The modules that `auto_map` names and what they import from each other, by file name."""
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
    """Raises: PushError for what is no name of a module, and may lead out of the folder."""
    if not module.isidentifier():
        raise PushError(f"the code of {folder} must be modules beside its config.json, got {module!r:.100}; "
                        "see `auto_map` there and the relative imports")  # fmt: skip
    return f"{module}.py"


def training_state_files(checkpoint: Path) -> dict[str, Path | bytes]:
    """A checkpoint with what resuming needs, all but the pickled arguments: those carry the token. The manifest and
    the state that travel are rewritten: they list no more than what does, and no place on this machine."""
    files: dict[str, Path | bytes] = {**shared_files(checkpoint), **plain_files(checkpoint, TRAINING_STATE)}
    state = read_json(checkpoint / TRAINER_STATE_NAME)
    manifest = {name: entry for name, entry in read_json(checkpoint / MANIFEST).items() if name in files}
    if best := state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = Path(best).name  # without the path on this machine
        content = (json.dumps(state, indent=2, sort_keys=True) + "\n").encode()
        manifest[TRAINER_STATE_NAME] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        files[TRAINER_STATE_NAME] = content
    return {**files, MANIFEST: json.dumps(manifest, indent=2, sort_keys=True).encode()}


def check_clean(files: Mapping[str, Path | bytes], token: str | None) -> None:
    """The last look before anything leaves.

    Raises:
        PushError: for what [`leaks.first_leak`] finds, or cannot search.
    """
    try:
        leak = first_leak(files, token)
    except UnreadableError as error:
        raise PushError(f"{error}, so it was not searched for secrets; nothing was pushed") from error
    if leak is not None:
        raise PushError(f"{leak}; nothing was pushed. Remove it there and push again")


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
    check_clean({**files, CARD: card.encode(), "the message of the commit": message.encode()}, token)
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
    """Push a run's folder, or one that `save_pretrained` wrote, with its card.

    Args:
        with_generator: `False` omits the generator's weights; the model in the repository has
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
            _rewrite(folder, Path(rewritten), with_generator, max_shard_size)
            kept = {name: path for name, path in files.items() if not matching(name, WEIGHTS)}
            files = kept | {path.name: path for path in Path(rewritten).iterdir()}
        if with_generator and CARD in plain_files(folder, [CARD]):
            card = (folder / CARD).read_text(encoding="utf-8", errors="replace")  # perhaps edited by hand
        else:
            card = render_model_card(folder, has_generator=with_generator)
        return push_files(files, card, repo_id, message=message, **where)


def _rewrite(folder: Path, target: Path, with_generator: bool, max_shard_size: str | None) -> None:
    """Save the model anew, in other shards or without its generator.

    Raises:
        PushError: if it cannot be loaded, or `max_shard_size` is no size.
    """
    changes = {} if with_generator else {"generator_type": "none"}
    try:
        architecture = ElectraEarlyExitConfig.from_pretrained(folder).architectures[0]
        model = getattr(modeling_electra_exit, architecture).from_pretrained(folder, **changes)
        model.save_pretrained(target, **({} if max_shard_size is None else {"max_shard_size": max_shard_size}))
    except Exception as error:  # the library raises whatever a damaged file leads it to
        raise PushError(f"the model in {folder} cannot be saved anew: {first_line(error)}") from error


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


class PushingTrainer(CompatibleTrainer):
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
        """Push the checkpoint itself: unlike `output_dir`, it holds everything, the code included."""
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
        except UsageError as error:  # weights in the form of another library, for one
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
        logger.warning(f"{error}. Training continues; the next push includes these changes")
