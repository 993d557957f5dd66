"""The demo of a model as the folder of a Space."""

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

A model of electra-early-exit {version} to try: type a text, and see what the model says of it.
"""


def write_space(checkpoint: str, name: str, folder: Path) -> Path:
    """Write a Space that shows the demo of a model: `app.py`, `requirements.txt`, `README.md`, and the model itself.

    Args:
        checkpoint: a folder, whose files that travel are copied to `model`; or a Hub id, which the Space loads.
        name: what the page is called.

    Raises:
        UsageError: if `folder` is in use, or the checkpoint is no whole model of ours.
        WriteError: if something cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is in use; choose a folder that is empty or not there yet")
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
