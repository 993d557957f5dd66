"""Write the demo of a model as a Space."""

import re
import shutil
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from modeling_electra_exit import __version__

from ..errors import UsageError
from ..runtime.files import naming_write_errors
from .hub import check_clean, shared_files


README = """---
title: {title}
sdk: gradio
sdk_version: {gradio}
app_file: app.py
python_version: "3.12"
---

# {title}

A demo of a model of electra-early-exit {version}: enter a text to see the model's output.
"""


def write_space(checkpoint: str, name: str, folder: Path) -> Path:
    """Write a Space with the demo of a model: `app.py`, `requirements.txt`, `README.md`, and the model itself.

    Args:
        checkpoint: a folder, whose files are copied to `model` as for a push; or a Hub id, which the Space loads.
        name: title of the page.
        folder: output folder; must be empty or not exist.

    Returns:
        `folder`.

    Raises:
        UsageError: if `folder` is not empty, or the checkpoint is not a complete electra-exit model.
        WriteError: if something cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} must be an empty or new folder")
    model = shared_files(Path(checkpoint)) if Path(checkpoint).is_dir() else {}
    check_clean(model, None)
    where = "model" if model else checkpoint
    app = files("modeling_electra_exit.trainers.sharing").joinpath("demo.py").read_text(encoding="utf-8")
    app = re.sub(r"^CHECKPOINT = .*$", f"CHECKPOINT = {where!r}", app, flags=re.MULTILINE)
    app = re.sub(r"^NAME = .*$", f"NAME = {name!r}", app, flags=re.MULTILINE)
    title = re.sub(r"[^\w .-]", "-", name)
    texts = {
        "app.py": app,
        "requirements.txt": f"torch=={version('torch').split('+')[0]}\ntransformers=={version('transformers')}\n",
        "README.md": README.format(title=title, gradio=version("gradio"), version=__version__),
    }
    with naming_write_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
        if model:
            (folder / "model").mkdir()
        for file, path in model.items():
            shutil.copyfile(path, folder / "model" / file)
    return folder
