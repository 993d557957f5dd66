"""The unmodified client against the loopback Hub: what the tests of sharing stand on."""

import json
import subprocess
import sys

import pytest

from tests.loopback_hub import Fault, LoopbackHub


PREAMBLE = """
import json, sys
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors, hf_hub_download
api = HfApi()
def add(path, content): return CommitOperationAdd(path, content)
def commit(repo, *operations, **kwargs):
    return api.create_commit(repo, list(operations), commit_message="a commit", **kwargs).oid
def failure(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except errors.HfHubHTTPError as error:
        return type(error).__name__, error.response.status_code
"""


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        hub.users |= {"hf_alice": "alice", "hf_bob": "bob"}
        yield hub


@pytest.fixture
def client(hub, tmp_path):
    def run(script, token="hf_alice"):
        """Run `script` in a process of its own; returns what it assigns to `result`."""
        command = [sys.executable, "-c", f"{PREAMBLE}\n{script}\nprint(json.dumps(result))"]
        environment = hub.environment(tmp_path, token)
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().split("\n")[-1])

    return run


def test_what_is_committed_is_what_is_downloaded(hub, client):
    result = client("""
url = api.create_repo("mini", private=True)
again = api.create_repo("alice/mini", exist_ok=True)
first = commit("alice/mini", add("a/config.json", b"{}"), add("model.safetensors", bytes(range(256)) * 40))
same = commit("alice/mini", add("a/config.json", b"{}"), add("model.safetensors", bytes(range(256)) * 40))
second = commit("alice/mini", add("a/config.json", b"[]"), CommitOperationDelete("model.safetensors"))
api.create_branch("alice/mini", branch="try/this", revision=first)
api.create_branch("alice/mini", branch="try/this", exist_ok=True)
third = commit("alice/mini", add("b.txt", b"hello"), revision="try/this", parent_commit=first)
result = {
    "url": [url.repo_id, again.repo_id, api.whoami()["name"]],
    "commits": [first, same, second, third],
    "head": [api.repo_info("alice/mini").sha, api.repo_info("alice/mini", revision="try/this").sha],
    "branches": sorted(branch.name for branch in api.list_repo_refs("alice/mini").branches),
    "titles": [c.title for c in api.list_repo_commits("alice/mini")],
    "files": [api.list_repo_files("alice/mini", revision=r) for r in (first, "main", "try/this")],
    "top": [entry.path for entry in api.list_repo_tree("alice/mini", revision=first)],
    "below": [entry.path for entry in api.list_repo_tree("alice/mini", "a", recursive=True)],
    "changed_by": [p.last_commit.oid for p in
                   api.get_paths_info("alice/mini", ["b.txt", "model.safetensors"], expand=True, revision="try/this")],
    "read": [open(hf_hub_download("alice/mini", "a/config.json", revision=r)).read() for r in (first, None)],
    "size": len(open(hf_hub_download("alice/mini", "model.safetensors", revision=first), "rb").read()),
}
""")
    first, same, second, third = result["commits"]
    assert same == first  # nothing had changed
    assert len({first, second, third}) == 3
    assert result["url"] == ["alice/mini", "alice/mini", "alice"]
    assert result["head"] == [second, third]
    assert result["branches"] == ["main", "try/this"]
    assert result["titles"] == ["a commit", "a commit", "initial commit"]
    assert [sorted(files) for files in result["files"]] == [
        [".gitattributes", "a/config.json", "model.safetensors"],
        [".gitattributes", "a/config.json"],
        [".gitattributes", "a/config.json", "b.txt", "model.safetensors"],
    ]
    assert sorted(result["top"]) == [".gitattributes", "a", "model.safetensors"]
    assert result["below"] == ["a/config.json"]
    assert result["changed_by"] == [third, first]
    assert result["read"] == ["{}", "[]"]
    assert result["size"] == 10240
    assert hub.repositories["model", "alice/mini"].private
    assert sum(request.startswith("PUT /lfs/") for request in hub.requests) == 1


def test_what_is_forbidden_is_refused(hub, client):
    hub.create("bob/public")
    hub.create("bob/secret", private=True)
    parent = hub.create("alice/own").head().sha
    result = client(f"""
commit("alice/own", add("b", b"1"))
other = HfApi(token="hf_wrong")
result = [
    failure(api.create_repo, "bob/new"),
    failure(commit, "bob/public", add("a", b"1")),
    failure(api.repo_info, "bob/secret"),
    failure(api.repo_info, "alice/none"),
    failure(api.repo_info, "alice/own", revision="none"),
    failure(hf_hub_download, "alice/own", "none"),
    failure(api.create_repo, "own"),
    failure(api.create_branch, "alice/own", branch="main"),
    failure(other.whoami),
    failure(other.create_repo, "own"),
    failure(commit, "alice/own", add("c", b"1"), parent_commit="{parent}"),
]
""")
    assert result == [
        ["HfHubHTTPError", 403],
        ["HfHubHTTPError", 403],
        ["RepositoryNotFoundError", 404],
        ["RepositoryNotFoundError", 404],
        ["RevisionNotFoundError", 404],
        ["RemoteEntryNotFoundError", 404],
        ["HfHubHTTPError", 409],
        ["HfHubHTTPError", 409],
        ["HfHubHTTPError", 401],
        ["HfHubHTTPError", 401],
        ["HfHubHTTPError", 412],
    ]


def test_the_client_recovers_from_injected_faults(hub, client):
    hub.faults = [
        Fault("PUT", "/lfs/"),
        Fault("POST", "/preupload/", status=429, headers={"Retry-After": "0"}),
        Fault("POST", "objects/batch", status=503),
        Fault("GET", "/resolve/"),
    ]
    result = client("""
api.create_repo("mini")
commit("alice/mini", add("model.safetensors", bytes(range(256)) * 40))
result = len(open(hf_hub_download("alice/mini", "model.safetensors"), "rb").read())
""")
    assert result == 10240
    assert all(fault.times == 0 for fault in hub.faults)


def test_ranges_hashes_and_unknown_addresses(hub, client):
    result = client(f"""
from huggingface_hub.utils import get_session
api.create_repo("mini")
commit("alice/mini", add("digits.bin", b"0123456789"))
url = api.endpoint + "/alice/mini/resolve/main/digits.bin"
def get(part): return get_session().get(url, headers={{"Range": part}})
parts = [get("bytes=7-"), get("bytes=2-4"), get("bytes=10-")]
result = [
    [(part.status_code, part.headers.get("Content-Range")) for part in parts],
    [part.text for part in parts[:2]],
    get_session().put(api.endpoint + "/lfs/{"0" * 64}", content=b"other").status_code,
    get_session().get(api.endpoint + "/nowhere").status_code,
]
""")
    assert result == [
        [[206, "bytes 7-9/10"], [206, "bytes 2-4/10"], [416, None]],
        ["789", "234"],
        400,
        404,
    ]
