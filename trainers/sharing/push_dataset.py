"""`electra-exit push-dataset`: prepared data and its tokenizer as a data set on the Hub, with a card."""

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


# What `electra-exit cache-replacements` says of the replacements that lie beside it.
REPORT = "cache.json"
# Names of splits, as `datasets` has them.
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
    """Push a folder of prepared data, a file a split, with the tokenizer in a folder of its own.

    Args:
        folder: written by `save_to_disk`, whose splits become Parquet files here, or one `<split>.arrow` a split,
            which travel as they are.
        tokenizer: folder of the tokenizer that the ids belong to.
        description, language, license: facts for the card, which says what is missing.
        **where: `token`, `private` and `revision`, as in [`hub.push_files`].

    Raises:
        PushError: if a folder does not hold what it should, or as [`hub.push_files`]. The folders are only read.
    """
    folder, tokenizer = Path(folder), Path(tokenizer)
    if not tokenizer.is_dir():
        raise PushError(f"no such folder: {tokenizer}; ids mean nothing without their tokenizer")
    vocabulary = {f"tokenizer/{name}": path for name, path in plain_files(tokenizer, TOKENIZER).items()}
    if not vocabulary:
        raise PushError(f"{tokenizer} holds no tokenizer; ids mean nothing without theirs")
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
    """The splits of a folder, by name; one without names is "train".

    Raises:
        PushError: if the folder holds no prepared data, or anything but plain files of numbers.
    """
    try:
        splits = _load_splits(folder)
    except (UsageError, OSError):
        raise
    except Exception as error:  # the library raises whatever a damaged file leads it to
        raise PushError(f"{folder} holds no prepared data that can be read: {first_line(error)}") from error
    for split, rows in splits.items():
        for column, feature in rows.features.items():
            kind = getattr(feature, "feature", feature)
            if not (isinstance(kind, Value) and is_number(kind.pa_type)):
                raise PushError(f"the column `{column}` of {split} in {folder} must hold numbers or lists of "
                                f"them, such as token ids, got {kind}; leave it out")  # fmt: skip
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
        raise PushError(f"{folder} holds no prepared data: neither what `save_to_disk` writes, nor <split>.arrow")
    return splits


def _checked(split: str, folder: Path) -> str:
    """Raises: PushError for what is no name of a split, and may lead out of the folder."""
    if not (isinstance(split, str) and SPLIT.fullmatch(split)) or (folder / split).is_symlink():
        raise PushError(f"a split in {folder} must be a name such as train, and no link, got {split!r:.100}")
    return split


def _load_saved(folder: Path) -> Dataset:
    """What `save_to_disk` wrote, from plain files of this folder alone."""
    present = plain_files(folder, ["*.arrow", "*.json"])
    for entry in read_json(folder / "state.json")["_data_files"]:
        if entry["filename"] not in present:
            raise PushError(
                f"{folder / 'state.json'} names {entry['filename']!r:.100}, which is no file of that folder"
            )
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
    """How many entries the columns of lists hold in all."""
    lists = (name for name, feature in dataset.features.items() if hasattr(feature, "feature"))
    return {
        in_markdown(name): pyarrow.compute.sum(pyarrow.compute.list_value_length(dataset.data.column(name))).as_py()
        or 0
        for name in lists
    }
