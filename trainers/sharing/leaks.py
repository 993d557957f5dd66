"""The check before a push: search every file for Hub tokens and for the path of the home folder."""

import json
import mmap
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_token
from huggingface_hub.utils import get_stored_tokens


# The form of Hub tokens.
TOKEN_FORM = re.compile(rb"hf_\w{20,}")
# Maximum size of the decompressed text in an image, in bytes.
MAX_PICTURE_TEXT = 2**24
JSON_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class UnreadableError(ValueError):
    """A file cannot be searched because it is not in the format of its suffix."""


def first_leak(files: Mapping[str, Path | bytes], token: str | None = None) -> str | None:
    """A description of the first secret found, with the name of its file, or `None`.

    The search covers the name and the raw bytes of each file, JSON with its escapes resolved, the header of
    safetensors files, and the text in PNG files. It does not decode compressed columns, archives or pixels.

    Args:
        files: name -> file, or its content.
        token: a token to search for that is not stored on this machine.

    Raises:
        UnreadableError: if a safetensors or PNG file is malformed.
    """
    secrets = [("a Hub token", TOKEN_FORM)]
    secrets += [("your token", re.compile(re.escape(known.encode()))) for known in known_tokens(token)]
    secrets += [
        ("the path of your home folder", re.compile(re.escape(path.encode("utf-8", "surrogateescape")) + rb"(?!\w)"))
        for path in home_paths()
    ]
    for name, source in files.items():
        with _opened(source) as content:
            for reading in readings(name, content):
                for what, pattern in secrets:
                    if pattern.search(reading):
                        return f"{name} holds {what}"
    return None


def known_tokens(token: str | None = None) -> set[str]:
    """All Hub tokens stored on this machine or in its environment, in use or not, and `token`."""
    found = {token, get_token(), *get_stored_tokens().values()}
    found |= {os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}
    if os.path.isfile(constants.HF_TOKEN_PATH):
        found.add(Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8", errors="replace").strip())
    return {known for known in found if known}


def home_paths() -> set[str]:
    """The home folder according to the environment and to the user database, with and without links resolved."""
    names = {os.path.expanduser("~")}
    try:
        import pwd

        names.add(pwd.getpwuid(os.getuid()).pw_dir)
    except (ImportError, KeyError):  # not a Unix system, or a user missing from the database
        pass
    names |= {os.path.realpath(name) for name in names}
    return {name for name in names if len(name) > 1 and os.path.isabs(name)}


@contextmanager
def _opened(source: Path | bytes) -> Iterator[bytes | mmap.mmap]:
    """The bytes of a file, memory-mapped because it may not fit into memory."""
    if isinstance(source, bytes) or not os.path.getsize(source):
        yield source if isinstance(source, bytes) else b""
        return
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def readings(name: str, content: bytes | mmap.mmap) -> Iterator[bytes | mmap.mmap]:
    """The byte strings to search for a file: its name, its content, and its decoded text in UTF-8."""
    yield os.fsencode(name)
    yield content
    if name.endswith(".json"):
        yield unescaped(content[:])
    elif name.endswith(".safetensors"):
        yield unescaped(_safetensors_header(name, content))
    elif name.endswith(".png"):
        for text in _png_texts(name, content[:]):
            yield from (text, text.decode("latin-1").encode())  # UTF-8 or Latin-1, depending on the chunk


def unescaped(content: bytes) -> bytes:
    """Text with JSON escapes resolved, in UTF-8. It is not parsed, so duplicate keys and invalid JSON are kept."""
    text = content.decode(json.detect_encoding(content), errors="replace")
    text = JSON_ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else " " if m[2] in "bfnrt" else m[2], text)
    # A surrogate pair of escapes is one character.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _safetensors_header(name: str, content: bytes | mmap.mmap) -> bytes:
    size = int.from_bytes(content[:8], "little")
    if not 2 <= size <= len(content) - 8:
        raise UnreadableError(f"{name} is not a safetensors file")
    return content[8 : 8 + size]


def _png_texts(name: str, content: bytes) -> Iterator[bytes]:
    """The chunks of a PNG, with compressed text decompressed (PNG specification, 11.3.3)."""
    if not content.startswith(PNG_SIGNATURE):
        raise UnreadableError(f"{name} is not a PNG file")
    at = len(PNG_SIGNATURE)
    while at < len(content):
        try:
            size, kind = struct.unpack_from(">I4s", content, at)
        except struct.error as error:
            raise UnreadableError(f"{name} is not a PNG file: it ends in the middle of a chunk") from error
        data, at = content[at + 8 : at + 8 + size], at + 12 + size
        yield kind + data
        keyword, _, rest = data.partition(b"\0")
        if kind in (b"zTXt", b"iCCP"):  # compression method, then the text
            yield keyword + b" " + _inflated(name, rest[1:])
        elif kind == b"iTXt" and rest[:1] == b"\1":  # flag, method, language, translated keyword, then the text
            yield keyword + b" " + _inflated(name, rest[2:].split(b"\0", 2)[-1])


def _inflated(name: str, data: bytes) -> bytes:
    unpack = zlib.decompressobj()
    try:
        text = unpack.decompress(data, MAX_PICTURE_TEXT)
    except zlib.error as error:
        raise UnreadableError(f"{name} is not a PNG file: {error}") from error
    if unpack.unconsumed_tail:
        raise UnreadableError(f"{name} holds more than {MAX_PICTURE_TEXT:,} bytes of text")
    return text
