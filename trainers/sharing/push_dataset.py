"""Push prepared data and its tokenizer to the Hub as a dataset with a card: `electra-exit push-dataset`."""

import re
import tempfile
from importlib.resources import files
from pathlib import Path

import pyarrow.compute
from datasets import Dataset, Value, load_from_disk
from huggingface_hub import CommitInfo, DatasetCard, DatasetCardData

from ..errors import PushError, UsageError, first_line
from ..runtime.files import read_json
from .hub import TOKENIZER, plain_files, push_files
from .model_card import COMMIT_PLACEHOLDER, REPOSITORY_PLACEHOLDER, in_markdown


# The report of `electra-exit cache-replacements`, in the folder of the replacements.
REPORT = "cache.json"
# Valid split names in `datasets`.
SPLIT = re.compile(r"\w+(\.\w+)*")


def push_dataset(
    folder: str | Path,
    tokenizer: str | Path,
    repo_id: str,
    *,
    message: str = "Upload dataset",
    description: str | None = None,
    language: list[str] | None = None,
    license: str | None = None,
    **where,
) -> CommitInfo:
    """Push a folder of prepared data, one file per split, with the tokenizer in a subfolder. The folders are not
    changed.

    Args:
        folder: output of `save_to_disk`, whose splits are pushed as Parquet files, or a folder with one
            `<split>.arrow` per split, which are pushed as they are.
        tokenizer: folder of the tokenizer that the ids belong to.
        repo_id: the repository, created if missing.
        message: commit message.
        description, language, license: facts for the card, which states those that are missing.
        **where: `token`, `private` and `revision`, as in [`hub.push_files`].

    Returns:
        The last commit, as the Hub reports it.

    Raises:
        PushError: if a folder holds no prepared data or no tokenizer, or as [`hub.push_files`].
    """
    folder, tokenizer = Path(folder), Path(tokenizer)
    if not tokenizer.is_dir():
        raise PushError(f"no such folder: {tokenizer}; the ids are meaningless without their tokenizer")
    vocabulary = {f"tokenizer/{name}": path for name, path in plain_files(tokenizer, TOKENIZER).items()}
    if not vocabulary:
        raise PushError(f"{tokenizer} holds no tokenizer; the ids are meaningless without theirs")
    with tempfile.TemporaryDirectory() as converted:
        splits = read_splits(folder)
        data = {split: _as_file(split, dataset, folder, Path(converted)) for split, dataset in splits.items()}
        report = plain_files(folder, [REPORT])
        card = render_dataset_card(splits, data, report.get(REPORT), repo_id, description, language, license)
        return push_files(
            {path.name: path for path in data.values()} | report | vocabulary,
            card,
            repo_id,
            kind="dataset",
            message=message,
            replaces=("*.parquet", "*.arrow"),
            **where,
        )


def read_splits(folder: Path) -> dict[str, Dataset]:
    """The splits of a folder, by name; a dataset without named splits is "train".

    Raises:
        PushError: if the folder holds no prepared data, data other than numbers, or links.
    """
    try:
        splits = _load_splits(folder)
    except (UsageError, OSError):
        raise
    except Exception as error:  # a damaged file can raise anything
        raise PushError(f"cannot read prepared data in {folder}: {first_line(error)}") from error
    for split, rows in splits.items():
        for column, feature in rows.features.items():
            kind = getattr(feature, "feature", feature)
            if not (isinstance(kind, Value) and is_number(kind.pa_type)):
                raise PushError(f"the column `{column}` of {split} in {folder} must hold numbers or lists of "
                                f"numbers, such as token ids, got {kind}; remove it")  # fmt: skip
    return splits


def is_number(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)


def _load_splits(folder: Path) -> dict[str, Dataset]:
    if plain_files(folder, ["dataset_dict.json"]):
        names = read_json(folder / "dataset_dict.json")["splits"]
        splits = {_checked(name, folder): _load_saved(folder / name) for name in names}
    elif plain_files(folder, ["state.json"]):
        splits = {"train": _load_saved(folder)}
    else:
        found = plain_files(folder, ["*.arrow"])
        splits = {_checked(path.stem, folder): Dataset.from_file(str(path)) for path in found.values()}
    if not splits:
        raise PushError(f"{folder} holds no prepared data: neither the output of `save_to_disk` nor <split>.arrow")
    return splits


def _checked(split: str, folder: Path) -> str:
    """The name of a split.

    Raises:
        PushError: if it is not a valid name, or is a link, and could lead out of the folder.
    """
    if not (isinstance(split, str) and SPLIT.fullmatch(split)) or (folder / split).is_symlink():
        raise PushError(f"a split in {folder} must have a name such as train and not be a link, got {split!r:.100}")
    return split


def _load_saved(folder: Path) -> Dataset:
    """Load the output of `save_to_disk`, requiring regular files in this folder."""
    present = plain_files(folder, ["*.arrow", "*.json"])
    for entry in read_json(folder / "state.json")["_data_files"]:
        if entry["filename"] not in present:
            raise PushError(f"{folder / 'state.json'} must name files in that folder, got {entry['filename']!r:.100}")
    return load_from_disk(str(folder))


def _as_file(split: str, dataset: Dataset, folder: Path, converted: Path) -> Path:
    if (folder / f"{split}.arrow").is_file():
        return folder / f"{split}.arrow"
    dataset.to_parquet(converted / f"{split}.parquet")
    return converted / f"{split}.parquet"


def render_dataset_card(
    splits: dict[str, Dataset],
    data: dict[str, Path],
    report: Path | None,
    repo_id: str,
    description: str | None,
    language: list[str] | None,
    license: str | None,
) -> str:
    name = repo_id.split("/")[-1]
    card_data = DatasetCardData(
        language=language,
        license=license,
        pretty_name=name,
        tags=["electra", "replaced-token-detection", "tokenized"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": path.name} for split, path in data.items()],
            }
        ],
    )
    template = files("modeling_electra_exit.model_cards").joinpath("dataset.md.jinja").read_text(encoding="utf-8")
    card = DatasetCard.from_template(
        card_data,
        template_str=template,
        name=in_markdown(name),
        description=description,
        license=license,
        splits={split: {"rows": len(rows), "ids": _count_ids(rows)} for split, rows in splits.items()},
        columns={
            in_markdown(column): in_markdown(str(feature))
            for column, feature in next(iter(splits.values())).features.items()
        },
        report=in_markdown(read_json(report)) if report is not None else None,
        repository=REPOSITORY_PLACEHOLDER,
        commit=COMMIT_PLACEHOLDER,
    )
    return f"{card}\n"


def _count_ids(dataset: Dataset) -> dict[str, int]:
    """The total number of entries in each column of lists."""
    lists = (name for name, feature in dataset.features.items() if hasattr(feature, "feature"))
    return {
        in_markdown(name): pyarrow.compute.sum(pyarrow.compute.list_value_length(dataset.data.column(name))).as_py()
        or 0
        for name in lists
    }
