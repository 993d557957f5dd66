"""The Hub's protocol on 127.0.0.1, as far as an unmodified `huggingface_hub` client uses it to push and to load.

Repositories live in memory. Clients reach it through `HF_ENDPOINT` and need `HF_HUB_DISABLE_XET=1`: large files travel
by git LFS here, the Hub's own xet storage is not spoken. `LoopbackHub.faults` makes it misbehave on purpose.

    with LoopbackHub() as hub:
        hub.users["hf_secret"] = "alice"
        subprocess.run([...], env=hub.environment(tmp_path, "hf_secret"))
        hub.repositories["model", "alice/mini"].head().files
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote


# What the Hub's default .gitattributes sends to LFS.
LARGE_FILES = (".safetensors", ".bin", ".pt", ".pth", ".parquet", ".arrow", ".png")
FIRST_COMMIT = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Blob:
    content: bytes
    is_lfs: bool = False

    @cached_property
    def sha1(self) -> str:
        """Git's name of the file, or of an LFS file's content here."""
        return hashlib.sha1(b"blob %d\0%s" % (len(self.content), self.content)).hexdigest()

    @cached_property
    def oid(self) -> str:
        """What the client compares with to tell whether a file has changed; also its ETag."""
        return hashlib.sha256(self.content).hexdigest() if self.is_lfs else self.sha1


@dataclass
class Commit:
    title: str
    files: dict[str, Blob]
    parent: "Commit | None"

    @cached_property
    def number(self) -> int:
        return 0 if self.parent is None else self.parent.number + 1

    @cached_property
    def sha(self) -> str:
        names = sorted((path, blob.oid) for path, blob in self.files.items())
        return hashlib.sha1(repr((self.title, names, self.parent and self.parent.sha)).encode()).hexdigest()

    @property
    def date(self) -> str:
        return (FIRST_COMMIT + timedelta(seconds=self.number)).strftime("%Y-%m-%dT%H:%M:%S.000Z")

    def history(self) -> "Iterator[Commit]":
        """This commit and those before it, newest first."""
        commit = self
        while commit is not None:
            yield commit
            commit = commit.parent

    def last_to_change(self, path: str) -> "Commit":
        for commit in self.history():
            if commit.parent is None or commit.parent.files.get(path) != commit.files[path]:
                return commit
        raise AssertionError


@dataclass
class Repository:
    kind: str
    name: str
    private: bool = False
    branches: dict[str, Commit] = field(default_factory=dict)

    def __post_init__(self):
        self.branches["main"] = Commit("initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs\n")}, None)

    def head(self, branch: str = "main") -> Commit:
        return self.branches[branch]

    def commits(self, branch: str = "main") -> list[Commit]:
        """Oldest first, without the initial one that the Hub makes itself."""
        return list(self.head(branch).history())[-2::-1]

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision]
        return next((c for head in self.branches.values() for c in head.history() if c.sha == revision), None)


@dataclass
class Fault:
    """Answer the next `times` requests that match with `status`, or without one: read half of what is sent (or send
    half of what is asked for) and cut the connection."""

    method: str
    path: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1


class ProtocolError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class LoopbackHub:
    """A Hub of one process.

    users: token -> user name. A user may write below the own name alone.
    repositories: (kind, "user/name") -> [`Repository`]; kind is "model" or "dataset".
    large_objects: every LFS object ever uploaded, by sha256.
    requests: "METHOD /path status" of everything asked so far; `None` stands for a connection that was cut.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.reset()

    def reset(self):
        self.users: dict[str, str] = {}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []

    def __enter__(self) -> "LoopbackHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """For a process whose client is to talk to this Hub, with caches of its own below `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        asked = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
                 "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
        return {**kept, **asked, **({} if token is None else {"HF_TOKEN": token})}

    def create(self, name: str, kind: str = "model", private: bool = False) -> Repository:
        return self.repositories.setdefault((kind, name), Repository(kind, name, private))

    def everything_pushed(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of every file of every commit of every repository, and of every LFS object."""
        for repository in self.repositories.values():
            for head in repository.branches.values():
                for commit in head.history():
                    for path, blob in commit.files.items():
                        yield f"{repository.name}@{commit.title}:{path}", blob.content
        for oid, content in self.large_objects.items():
            yield f"LFS object {oid}", content

    def _fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


# Segments are matched still quoted, because a revision such as `refs/pr/1` arrives as one quoted segment.
_REPOSITORY = r"(?P<name>[^/]+/[^/]+?)"
_API = rf"/api/(?P<kind>model|dataset)s/{_REPOSITORY}"
_PREFIX = rf"/(?:(?P<datasets>datasets)/)?{_REPOSITORY}"


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    timeout = 60

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("GET", rf"{_API}(?:/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", rf"{_API}/refs", "refs"),
        ("GET", rf"{_API}/commits/(?P<revision>[^/]+)", "commits"),
        ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
        ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("POST", rf"{_API}/branch/(?P<revision>[^/]+)", "branch"),
        ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"{_PREFIX}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
        ("POST", r"/lfs/verify", "lfs_verify"),
        ("HEAD", rf"{_PREFIX}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET", rf"{_PREFIX}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_):
        pass

    def _answer(self):
        path, _, self.query = self.path.partition("?")
        fault = self.hub._fault_for(self.command, path)
        if fault is not None and fault.status is None and self.command in ("POST", "PUT"):
            self.rfile.read(int(self.headers.get("Content-Length", 2)) // 2)
            self._cut(path)
            return
        self.body = self._read_body()
        try:
            if fault is not None and fault.status is not None:
                raise ProtocolError(fault.status, "injected")
            status, headers, content = self._route(path)
        except ProtocolError as error:
            headers = {"X-Error-Message": error.message, **(fault.headers if fault is not None else {})}
            if error.code is not None:
                headers["X-Error-Code"] = error.code
            status, content = error.status, json.dumps({"error": error.message}).encode()
        if fault is not None and fault.status is None:
            self._send(path, status, headers, content, cut_at=len(content) // 2)
        else:
            self._send(path, status, headers, content)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, path: str, status: int, headers: dict, content: bytes, cut_at: int | None = None):
        self.hub.requests.append(f"{self.command} {unquote(path)} {status}")
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut_at])
        if cut_at is not None:
            self._cut(path)

    def _cut(self, path: str):
        self.hub.requests.append(f"{self.command} {unquote(path)} None")
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _route(self, path: str) -> tuple[int, dict, bytes]:
        for method, pattern, name in self.ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                parts = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                with self.hub.lock:
                    answer = getattr(self, name)(**parts)
                return answer if isinstance(answer, tuple) else (200, {}, json.dumps(answer).encode())
        raise ProtocolError(404, f"no such address: {self.command} {path}")

    # ---- Who asks, and for what ----

    def _user(self, required: bool = False) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise ProtocolError(401, "Invalid credentials in Authorization header")
        if required and not token:
            raise ProtocolError(401, "Invalid username or password.")
        return self.hub.users.get(token)

    def _repository(self, kind: str, name: str, write: bool = False) -> Repository:
        user, owner = self._user(required=write), name.split("/")[0]
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and user != owner):
            raise ProtocolError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != owner:
            raise ProtocolError(403, "You don't have the rights to write to this repository")
        return repository

    def _commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.find(revision)
        if commit is None:
            raise ProtocolError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # ---- Repositories ----

    def whoami(self):
        return {"type": "user", "name": self._user(required=True), "orgs": [], "auth": {"type": "access_token"}}

    def create(self):
        asked, user = json.loads(self.body), self._user(required=True)
        owner, kind = asked.get("organization") or user, asked.get("type") or "model"
        name = f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if owner != user:
            raise ProtocolError(403, f"You don't have the rights to create a {kind} under the namespace {owner!r}")
        if (kind, name) in self.hub.repositories:
            answer = {"error": f"You already created this {kind} repo", "url": url}
            return 409, {"X-Error-Message": answer["error"]}, json.dumps(answer).encode()
        self.hub.create(name, kind, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return {"url": url, "name": name, "id": hashlib.sha1(name.encode()).hexdigest()[:24]}

    def validate_yaml(self):
        text = json.loads(self.body)["content"]
        if text.startswith("---") and "\n---" not in text[3:]:
            errors = {"errors": [{"message": "the metadata section is not closed"}], "warnings": []}
            return 400, {}, json.dumps(errors).encode()
        warnings = [] if text.startswith("---") else [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": warnings}

    def info(self, kind, name, revision="main"):
        repository = self._repository(kind, name)
        commit = self._commit(repository, revision)
        return {
            "id": name, "author": name.split("/")[0], "sha": commit.sha, "lastModified": commit.date,
            "private": repository.private, "disabled": False, "gated": False, "tags": [], "downloads": 0, "likes": 0,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }  # fmt: skip

    def refs(self, kind, name):
        branches = self._repository(kind, name).branches.items()
        listed = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit.sha} for n, commit in branches]
        return {"branches": listed, "converts": [], "tags": []}

    def commits(self, kind, name, revision):
        commit = self._commit(self._repository(kind, name), revision)
        return [
            {"id": c.sha, "title": c.title, "message": "", "date": c.date, "authors": []} for c in commit.history()
        ]

    def branch(self, kind, name, revision):
        repository = self._repository(kind, name, write=True)
        if revision in repository.branches:
            raise ProtocolError(409, "Reference already exists")
        asked = json.loads(self.body or b"{}")
        repository.branches[revision] = self._commit(repository, asked.get("startingPoint", "main"))
        return {}

    # ---- Reading ----

    def _entry(self, commit: Commit, path: str, expand: bool) -> dict:
        blob = commit.files[path]
        entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.sha1}
        if blob.is_lfs:
            entry["lfs"] = {"oid": blob.oid, "size": len(blob.content), "pointerSize": 134}
        if expand:
            last = commit.last_to_change(path)
            entry["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
        return entry

    def tree(self, kind, name, revision, path=""):
        commit = self._commit(self._repository(kind, name), revision)
        options = {key: values[-1].lower() == "true" for key, values in parse_qs(self.query).items()}
        below = f"{path}/" if path else ""
        inside = sorted(p for p in commit.files if p.startswith(below))
        if path and not inside:
            raise ProtocolError(404, f"{path} does not exist on {revision!r}", "EntryNotFound")
        entries, folders = [], []
        for file in inside:
            *parents, _ = file.removeprefix(below).split("/")
            folders += [below + "/".join(parents[: depth + 1]) for depth in range(len(parents))]
            if not parents or options.get("recursive"):
                entries.append(self._entry(commit, file, options.get("expand", False)))
        shown = [f for f in dict.fromkeys(folders) if options.get("recursive") or "/" not in f.removeprefix(below)]
        return entries + [{"type": "directory", "path": f, "size": 0, "oid": "0" * 40} for f in shown]

    def paths_info(self, kind, name, revision):
        commit = self._commit(self._repository(kind, name), revision)
        form = parse_qs(self.body.decode())
        expand = form.get("expand", ["false"])[-1].lower() == "true"
        return [self._entry(commit, path, expand) for path in form.get("paths", []) if path in commit.files]

    def resolve(self, name, revision, path, datasets=None):
        commit = self._commit(self._repository("dataset" if datasets else "model", name), revision)
        if path not in commit.files:
            raise ProtocolError(404, f"{path} does not exist", "EntryNotFound")
        blob = commit.files[path]
        headers = {
            "ETag": f'"{blob.oid}"',
            "X-Repo-Commit": commit.sha,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if blob.is_lfs:
            headers |= {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": len(blob.content)}
        if self.command == "HEAD":
            return 200, {**headers, "Content-Length": len(blob.content)}, b""
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            size, first = len(blob.content), int(match[1])
            last = min(int(match[2] or size - 1), size - 1)
            if first >= size:
                raise ProtocolError(416, "Range Not Satisfiable")
            return 206, {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}, blob.content[first : last + 1]
        return 200, headers, blob.content

    # ---- Writing ----

    def preupload(self, kind, name, revision):
        commit = self._commit(self._repository(kind, name, write=True), revision)
        answers = []
        for file in json.loads(self.body)["files"]:
            known = commit.files.get(file["path"])
            large = file["path"].endswith(LARGE_FILES) or file["size"] > 10 * 2**20
            answers.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False,
                            "oid": known.oid if known is not None else None})  # fmt: skip
        return {"files": answers}

    def lfs_batch(self, name, datasets=None):
        self._repository("dataset" if datasets else "model", name, write=True)
        answers = []
        for asked in json.loads(self.body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.large_objects:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs/verify"},
                }
            answers.append(answer)
        return {"transfer": "basic", "objects": answers}

    def lfs_upload(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise ProtocolError(400, "the content does not have the hash that it was announced with")
        self.hub.large_objects[oid] = self.body
        return {}

    def lfs_verify(self):
        asked = json.loads(self.body)
        if len(self.hub.large_objects.get(asked["oid"], b"")) != asked["size"]:
            raise ProtocolError(404, "no such object")
        return {}

    def commit(self, kind, name, revision):
        repository = self._repository(kind, name, write=True)
        if revision not in repository.branches:
            raise ProtocolError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head = repository.branches[revision]
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        if header["value"].get("parentCommit", head.sha) != head.sha:
            raise ProtocolError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for operation in operations:
            self._apply(files, operation["key"], operation["value"])
        repository.branches[revision] = commit = Commit(header["value"]["summary"], files, head)
        return {"success": True, "commitOid": commit.sha, "commitUrl": f"{self.hub.url}/{name}/commit/{commit.sha}"}

    def _apply(self, files: dict[str, Blob], key: str, value: dict):
        path = value["path"]
        if key == "file":
            files[path] = Blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in self.hub.large_objects:
                raise ProtocolError(400, f"{path} points to an object that was never uploaded")
            files[path] = Blob(self.hub.large_objects[value["oid"]], is_lfs=True)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise ProtocolError(404, "A file with this name doesn't exist", "EntryNotFound")
        elif key == "deletedFolder":
            for inside in [p for p in files if p.startswith(path.rstrip("/") + "/")]:
                del files[inside]
        else:
            raise ProtocolError(400, f"unknown operation {key}")
