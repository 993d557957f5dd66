"""What a push must not take along: found wherever it hides, refused in one sentence, and never sent."""

import io
import json
import zlib
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from modeling_electra_exit.trainers.errors import PushError
from modeling_electra_exit.trainers.sharing import leaks
from modeling_electra_exit.trainers.sharing.hub import check_clean, push_folder, shared_files, training_state_files
from modeling_electra_exit.trainers.sharing.model_card import render_model_card
from modeling_electra_exit.trainers.sharing.push_dataset import push_dataset, render_dataset_card
from tests.trainers.sharing.test_hub import empty, in_a_process


MINE = "hf_mine"
STORED = "hf_anotherOneOfMine"
ANY = "hf_" + "A1b2C3d4E5f6G7h8I9j0"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder that a link leads to, and a machine that knows two tokens, one of them in use."""
    (tmp_path / "disk" / "alice").mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "alice"))
    monkeypatch.setattr(leaks, "get_token", lambda: MINE)
    monkeypatch.setattr(leaks, "get_stored_tokens", lambda: {"work": STORED})
    return tmp_path / "home" / "alice"


def picture(**texts) -> bytes:
    """A PNG that says something beside what it shows."""
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for keyword, (text, kind) in texts.items():
        (info.add_itxt if kind == "iTXt" else info.add_text)(keyword, text, zip=kind != "tEXt")
    Image.new("L", (2, 2)).save(file, "png", pnginfo=info)
    return file.getvalue()


def weights(path: Path, **metadata) -> bytes:
    save_file({"a": torch.zeros(2)}, path, metadata)
    return path.read_bytes()


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in text)


@pytest.mark.parametrize(
    ("secret", "what"),
    [
        (MINE, "your token"),
        (f"{MINE}s", "your token"),
        (STORED, "your token"),
        (ANY, "a Hub token"),
        ("{home}/corpus.txt", "the path of your home folder"),
        ("{disk}/alice", "the path of your home folder"),
    ],
)
def test_secrets_are_found_wherever_they_hide(tmp_path, home, secret, what):
    secret = secret.format(home=home, disk=tmp_path / "disk")
    files = {
        "README.md": f"see {secret}, please".encode(),
        "chat_template.jinja": f"x{secret}".encode(),
        "metrics.json": json.dumps({"a": [{"b": secret}]}).encode(),
        "config.json": json.dumps({secret: 1}).replace("/", "\\/").replace("e", "\\u0065").encode(),
        "tokenizer_config.json": f'{{"a": "{escaped(secret)}\\n", "a": "given twice"}}'.encode(),
        "vocab.json": json.dumps({"a": secret}).encode("utf-16"),
        "tokenizer.json": f'{{"cut off": "{escaped(secret)}'.encode(),
        "model.safetensors": weights(tmp_path / "w", note=secret),
        "exit_profile.png": picture(Comment=(secret, "tEXt")),
        "zipped.png": picture(Comment=(secret, "zTXt")),
        "international.png": picture(Comment=(secret, "iTXt")),
        "train.arrow": b"ARROW1\0\0" + secret.encode(),
        "optimizer.pt": b"PK\3\4" + secret.encode(),
    }
    for name, content in files.items():
        (tmp_path / "file").write_bytes(content)
        for source in (content, tmp_path / "file"):
            with pytest.raises(PushError, match=f"^{name} holds {what}; nothing was pushed"):
                check_clean({"harmless": b"", name: source}, None)
    with pytest.raises(PushError, match="holds"):
        check_clean({f"{ANY}.json": b"{}"}, None)
    with pytest.raises(PushError, match="holds your token"):
        check_clean({"README.md": b"not stored, a secret"}, "a secret")


def test_what_is_no_secret_passes(tmp_path, home):
    harmless = {
        "README.md": f"{home}s hf_ hf_short hf_min; {tmp_path}/other".encode(),
        "metrics.json": b'{"a": "\\\\u0068f_ \\ud83d\\ude00 \\n"}',
        "model.safetensors": weights(tmp_path / "w", format="pt"),
        "exit_profile.png": picture(Comment=("a cat", "zTXt")),
        "empty.txt": b"",
    }
    check_clean(harmless, None)
    for name, content in harmless.items():
        (tmp_path / name).write_bytes(content)
    check_clean({name: tmp_path / name for name in harmless}, None)


def test_what_cannot_be_searched_is_not_pushed(home):
    bomb = picture(Comment=("x" * 2**25, "zTXt"))
    assert len(bomb) < 2**17
    for name, content, message in (
        ("model.safetensors", b"\xff" * 64, "is not a safetensors file"),
        ("model.safetensors", b"", "is not a safetensors file"),
        ("exit_profile.png", b"GIF89a", "is not a PNG file"),
        ("exit_profile.png", picture() + b"123", "is not a PNG file: it ends in the middle of a chunk"),
        ("exit_profile.png", bomb, "holds more than 16,777,216 bytes of text"),
        (
            "exit_profile.png",
            picture(Comment=("a", "zTXt")).replace(zlib.compress(b"a"), b"no zlib.."),
            "is not a PNG file",
        ),
    ):
        with pytest.raises(PushError, match=rf"{name} {message}.*cannot be searched for secrets; nothing was pushed"):
            check_clean({name: content}, None)


# ---- Which files ----


def edit(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "name",
    ["vocab.txt", "tokenizer.json", "config.json", "model.safetensors", "exit_policy.py", "metrics.json",
     "exit_profile.png", "README.md"],
)  # fmt: skip
def test_a_link_in_the_place_of_a_file_is_refused(tmp_path, model_folder, name):
    (tmp_path / "id_ed25519").write_text("private")
    (model_folder / name).unlink(missing_ok=True)
    (model_folder / name).symlink_to(tmp_path / "id_ed25519")
    with pytest.raises(PushError, match=rf"^{name} in {model_folder} is a symbolic link; nothing was pushed"):
        push_folder(model_folder, "alice/mini")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModel": "../../secret.Model"}}, "must name modules in that folder, got ''"),
        ({"auto_map": {"AutoModel": "a/b.Model"}}, "must name modules in that folder, got 'a/b'"),
        ({"auto_map": {"AutoModel": ["a.A", "b.B"]}}, "must name modules in that folder"),
        ({"auto_map": ["modeling_electra_exit"]}, "`auto_map` of .* must map classes to code, got \\['modeling"),
        ({"model_type": ["x"]}, "must be 'electra_early_exit', got \\['x'\\]"),
    ],
)
def test_code_comes_from_the_folder_alone(model_folder, change, message):
    edit(model_folder / "config.json", **change)
    with pytest.raises(PushError, match=message):
        shared_files(model_folder)


def test_code_that_imports_from_elsewhere_is_refused(model_folder):
    with (model_folder / "exit_state.py").open("a") as file:
        file.write("\n# from ./../../secret import x\nfrom ./../../secret import x\n")
    with pytest.raises(PushError, match=r"must name modules in that folder, got '/../../secret'"):
        shared_files(model_folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "`weight_map` of .* must map weights to files, got None"),
        ({"weight_map": []}, "must map weights to files, got \\[\\]"),
        ({"weight_map": {"a": "../secret.safetensors"}}, "must name files such as .*, got '../secret"),
        ({"weight_map": {"a": "vocab.pkl"}}, "must name files such as .*, got 'vocab.pkl'"),
        ({"weight_map": {"a": 1}}, "must name files such as .*, got 1"),
        ([], "must hold a JSON object, got \\[\\]"),
    ],
)
def test_weights_come_from_the_folder_alone(model_folder, index, message):
    (model_folder / "model.safetensors").unlink()
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Exception, match=message) as refusal:
        shared_files(model_folder)
    assert "UsageError" in {kind.__name__ for kind in type(refusal.value).mro()}


def test_what_is_not_on_the_list_stays(model_folder):
    before = set(shared_files(model_folder))
    for name in ("vocab.pkl", "vocab.txt.bak", "tokenizer_notes.json", "model-1.safetensors", "id_ed25519", ".env"):
        (model_folder / name).write_text("private")
    (model_folder / "link").symlink_to(model_folder / ".env")
    assert set(shared_files(model_folder)) == before


def test_of_a_checkpoint_only_what_resuming_needs(model_folder):
    for name in ("optimizer.pt", "rng_state_1.pth", "notes.txt", "training_args.bin"):
        (model_folder / name).write_text("x")
    (model_folder / "trainer_state.json").write_text("{}")
    (model_folder / "manifest.json").write_text(json.dumps({"optimizer.pt": {}, "notes.txt": {}, "../x": {}}))
    files = training_state_files(model_folder)
    assert {"optimizer.pt", "rng_state_1.pth"} <= files.keys()
    assert not {"notes.txt", "training_args.bin"} & files.keys()
    assert json.loads(files["manifest.json"]) == {"optimizer.pt": {}}
    (model_folder / "scheduler.pt").symlink_to(model_folder / "notes.txt")
    with pytest.raises(PushError, match=r"scheduler\.pt in .* is a symbolic link"):
        training_state_files(model_folder)


# ---- Data sets ----


@pytest.fixture
def prepared(tmp_path, tokenizer):
    folder = tmp_path / "prepared"
    Dataset.from_dict({"input_ids": [[2, 7, 3]]}).save_to_disk(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"_data_files": [{"filename": "../other/data-00000-of-00001.arrow"}]},
            "must name files in that folder, got '../other/",
        ),
        ({"_data_files": 7}, "cannot read prepared data in"),
        ({"_data_files": []}, "cannot read prepared data in"),
    ],
)
def test_prepared_data_comes_from_its_folder_alone(tmp_path, prepared, state, message):
    Dataset.from_dict({"input_ids": [[1]]}).save_to_disk(tmp_path / "other")
    edit(prepared / "state.json", **state)
    with pytest.raises(PushError, match=message):
        push_dataset(prepared, prepared, "alice/data")


def test_splits_elsewhere_links_and_columns_of_text_are_refused(tmp_path, prepared, tokenizer):
    def refused(message):
        with pytest.raises(PushError, match=message):
            push_dataset(prepared, tmp_path / "prepared", "alice/data")

    (prepared / "dataset_dict.json").write_text('{"splits": ["../other"]}')
    refused("a split in .* must have a name such as train and not be a link, got '../other'")
    (prepared / "dataset_dict.json").write_text('{"splits": ["linked"]}')
    (prepared / "linked").symlink_to(tmp_path)
    refused("a split in .* must have a name such as train and not be a link, got 'linked'")
    (prepared / "dataset_dict.json").unlink()
    (arrow,) = prepared.glob("*.arrow")
    arrow.rename(tmp_path / "elsewhere.arrow")
    arrow.symlink_to(tmp_path / "elsewhere.arrow")
    refused("arrow in .* is a symbolic link")
    arrow.unlink()
    arrow.write_bytes(b"ARROW1 or not")
    refused("cannot read prepared data in")
    Dataset.from_dict({"text": ["a diary"]}).save_to_disk(prepared)
    refused("the column `text` of train in .* must hold numbers or lists of numbers, such as token ids, got Value")


# ---- Cards ----

HOSTILE = '<img src=x onerror="alert(1)">[a](javascript:b)|`<script>`'


def test_no_html_of_a_name_reaches_a_cards_body(tmp_path, model_folder, prepared):
    (model_folder / "metrics.json").write_text(json.dumps({
        "data": {"description": f"the data set {HOSTILE}", "name": HOSTILE, "dataset_name": None, "max_seq_length": 8,
                 "counts": {"train": {"documents": 1, "tokens": 2, "sequences": 3}, "validation": {"documents": 1}}},
        "training": {"steps": 1, "tokens_per_step": 1, "tokens": 1, "precision": HOSTILE, "hardware": HOSTILE,
                     "seed": HOSTILE, "exit_warmup": 0.1, "exit_cooldown": 0.1},
        "versions": {"electra-early-exit": HOSTILE, HOSTILE: "1"},
    }))  # fmt: skip
    edit(model_folder / "config.json", architectures=[HOSTILE])
    rows = {"train": Dataset.from_dict({HOSTILE: [[1, 2]]})}
    (tmp_path / "cache.json").write_text(json.dumps({"generator_type": HOSTILE, "draws": HOSTILE}))
    for card in (
        render_model_card(model_folder, name=HOSTILE),
        render_dataset_card(rows, {"train": Path("train.parquet")}, tmp_path / "cache.json", f"a/{HOSTILE}", None,
                            None, None),
    ):  # fmt: skip
        body = card.split("\n---\n", 1)[1]
        assert "&lt;img" in body
        for fragment in ("<img", "<script", "[a]("):
            assert fragment not in body


# ---- From end to end ----

# Pushes again and again; takes away what each refusal names, as a user would, until nothing is refused.
PERSISTENT = """
import json, sys
from pathlib import Path
from modeling_electra_exit.trainers.sharing import hub
folder, restore = Path(sys.argv[1]), Path(sys.argv[2])
refusals = []
for _ in range(40):
    try:
        hub.push_folder(folder, "alice/seeded", message="Seeded")
        break
    except hub.PushError as error:
        refusals.append(str(error))
    named = refusals[-1].split(" ")[0]
    (folder / named).unlink()
    if (restore / named).exists():
        (folder / named).write_bytes((restore / named).read_bytes())
print(json.dumps(refusals))
"""


def texts_of(name: str, content: bytes):
    """Everything that a stranger can read in a pushed file, by the ordinary readers of its kind."""
    yield content.decode("latin-1")
    yield content.decode("utf-8", "replace")
    if name.endswith(".json"):
        pairs = []
        json.loads(content, object_pairs_hook=lambda found: pairs.extend(found) or dict(found))
        yield repr(pairs)
    if name.endswith(".png"):
        yield repr(Image.open(io.BytesIO(content)).text)
    if name.endswith(".safetensors"):
        yield content[8 : 8 + int.from_bytes(content[:8], "little")].decode("unicode_escape")


def test_no_seeded_leak_is_pushed(tmp_path, model_folder, loopback):
    home = tmp_path / "home" / "alice"
    (tmp_path / "disk" / "alice").mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    key = home / "id_ed25519"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    (model_folder / "metrics.json").write_text("{}")
    (model_folder / "exit_profile.png").write_bytes(picture())
    (model_folder / "README.md").write_text("---\nlicense: mit\n---\n")
    clean = tmp_path / "clean"
    clean.mkdir()
    for path in model_folder.iterdir():
        (clean / path.name).write_bytes(path.read_bytes())

    secrets = [MINE, ANY, str(home), str(tmp_path / "disk" / "alice"), key.read_text(), "a pickle"]
    (model_folder / "vocab.txt").symlink_to(key)
    (model_folder / "vocab.pkl").write_text("a pickle")
    edit(model_folder / "tokenizer_config.json", note=f"{ANY}x")
    (model_folder / "metrics.json").write_text(json.dumps({"where": f"{home}/x"}).replace("/", "\\/"))
    (model_folder / "config.json").write_text(
        (model_folder / "config.json").read_text().replace("{", f'{{"a": "{escaped(MINE)}",', 1)
    )
    save_file(
        load_file(model_folder / "model.safetensors"), model_folder / "model.safetensors", {"format": "pt", "by": ANY}
    )
    (model_folder / "exit_profile.png").write_bytes(picture(Comment=(str(tmp_path / "disk" / "alice" / "x"), "zTXt")))
    (model_folder / "README.md").write_text(f"{MINE}s")
    (model_folder / "exit_state.py").unlink()
    (model_folder / "exit_state.py").symlink_to(key)

    hub = empty(loopback)
    hub.users = {MINE: "alice"}
    refusals = in_a_process(PERSISTENT, hub, home, str(model_folder), str(clean), token=MINE)
    pushed = list(hub.everything_pushed())
    heads = hub.repositories["model", "alice/seeded"].commits()
    assert len(refusals) == 8
    assert all("nothing was pushed" in refusal and "\n" not in refusal for refusal in refusals)
    assert [commit.title for commit in heads] == ["Seeded", "Seeded: card"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "metrics.json"} <= heads[-1].files.keys()
    for name, content in pushed:
        for text in texts_of(name, content):
            for secret in secrets:
                assert secret not in text, name
