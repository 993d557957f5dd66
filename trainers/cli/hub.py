"""Whether the Hub can be reached, asked once and before the libraries are imported, which would try for minutes."""

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


PATIENCE = 3.0  # seconds for a name server, a connection and an answer, all together
LATE = f"no answer within {PATIENCE:g} seconds"
# Flags whose values may be names on the Hub.
MODELS = {"--init_from", "--generator_init_from", "--tokenizer_name", "--model", "--generator_folder",
          "--reference_folder"}  # fmt: skip
DATASETS = {"--dataset_name"}
# Where the tasks of GLUE come from without a folder of theirs, as `trainers.finetuning.examples` says, too.
GLUE_ON_THE_HUB = "nyu-mll/glue"
HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def check_reachable(parser: Parser, models: Iterable[str | None] = (), datasets: Iterable[str | None] = ()) -> None:
    """For names that are no files here: see whether the Hub answers. Where it does not, the libraries use their cache
    from now on, and a name that is not in there ends the command.

    Raises:
        ParserExit: with one sentence.
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
            what = "no file or folder here" if kind == "models" else "not in the cache"
            parser.error(f"`{name}` is {what}, and the Hub at {endpoint()} cannot be reached: {reason}")
    print(f"the Hub at {endpoint()} cannot be reached ({reason}): what is in the cache is used", file=sys.stderr)


def check_pushable(parser: Parser) -> None:
    """Raises: ParserExit, with one sentence, where the Hub does not answer."""
    if reason := unreachable():
        parser.error(f"the Hub at {endpoint()} cannot be reached: {reason}; nothing was pushed")


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


@functools.cache
def unreachable() -> str | None:
    """Why the Hub does not answer within [`PATIENCE`], in a few words; `None` where it does, whatever it says."""
    found = [LATE]

    def ask():
        found[0] = _ask()

    # A name server may take longer than any limit that a socket knows.
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
        if isinstance(reason, ssl.SSLError):  # the client has certificates of its own
            return None
        return LATE if isinstance(reason, TimeoutError) else str(getattr(reason, "strerror", None) or reason)
    except Exception:  # what answers speaks no HTTP, or is no address: the client's own error says it
        return None
    return None


def go_offline() -> None:
    """Let the libraries read their caches alone, whether they are imported already or not."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            sys.modules[module].HF_HUB_OFFLINE = True


def _in_cache(name: str, kind: str) -> bool:
    """Whether there is anything of it; what is missing there is the libraries' to say."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    prepared = Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME, "datasets")), name.replace("/", "___"))
    downloaded = Path(HF_HUB_CACHE, f"{kind}--{name.replace('/', '--')}")
    return downloaded.exists() or (kind == "datasets" and prepared.exists())
