"""Check once whether the Hub can be reached, before importing libraries that would retry for minutes."""

import functools
import os
import re
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from .parser import Parser


PATIENCE = 3.0  # seconds for name resolution, connection and response together
LATE = f"no answer within {PATIENCE:g} seconds"
# Flags whose values may be Hub ids.
MODELS = {"--init_from", "--generator_init_from", "--tokenizer_name", "--model", "--generator_folder",
          "--reference_folder"}  # fmt: skip
DATASETS = {"--dataset_name"}
# The source of the GLUE tasks when no folder is given; the same as in `trainers.finetuning.examples`.
GLUE_ON_THE_HUB = "nyu-mll/glue"
HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def check_reachable(parser: Parser, models: Iterable[str | None] = (), datasets: Iterable[str | None] = ()) -> None:
    """If a name is not a local file, check that the Hub answers. If it does not answer, switch the libraries to their
    caches.

    Raises:
        ParserExit: if the Hub does not answer and a name is not in the cache.
    """
    names = {name: kind for kind, some in (("models", models), ("datasets", datasets)) for name in some if name}
    remote = {name: kind for name, kind in names.items() if HUB_ID.fullmatch(name) and not os.path.exists(name)}
    if not remote or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return
    if (reason := unreachable()) is None:
        return
    go_offline()
    for name, kind in remote.items():
        if not _in_cache(name, kind):
            what = "not a local file or folder" if kind == "models" else "not in the cache"
            parser.error(f"`{name}` is {what}, and the Hub at {endpoint()} cannot be reached: {reason}")
    print(f"the Hub at {endpoint()} cannot be reached ({reason}); using the cache", file=sys.stderr)


def check_pushable(parser: Parser) -> None:
    """Check that the Hub answers before a push.

    Raises:
        ParserExit: if it does not.
    """
    if reason := unreachable():
        parser.error(f"the Hub at {endpoint()} cannot be reached: {reason}; nothing was pushed")


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


@functools.cache
def unreachable() -> str | None:
    """A short reason why the Hub does not answer within [`PATIENCE`]; `None` if it answers, with any status."""
    found = [LATE]

    def ask():
        found[0] = _ask()

    # Socket timeouts do not limit name resolution.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return found[0]


def _ask() -> str | None:
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint(), method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # huggingface_hub brings its own certificates and may succeed
            return None
        return LATE if isinstance(reason, TimeoutError) else str(getattr(reason, "strerror", None) or reason)
    except Exception:  # not HTTP, or an invalid address: huggingface_hub reports that better
        return None
    return None


def go_offline() -> None:
    """Make the libraries read only their caches, whether or not they are already imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            sys.modules[module].HF_HUB_OFFLINE = True


def _in_cache(name: str, kind: str) -> bool:
    """Whether the cache holds any part of `name`. The libraries report missing files themselves."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    prepared = Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME, "datasets")), name.replace("/", "___"))
    downloaded = Path(HF_HUB_CACHE, f"{kind}--{name.replace('/', '--')}")
    return downloaded.exists() or (kind == "datasets" and prepared.exists())
