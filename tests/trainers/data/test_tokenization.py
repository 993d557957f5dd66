"""The tokenizer that is trained by default keeps what a script writes, also when it is loaded again."""

import unicodedata
from dataclasses import fields
from itertools import permutations

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from modeling_electra_exit.trainers import DataArguments
from modeling_electra_exit.trainers.data.preparation import load_tokenizer
from modeling_electra_exit.trainers.data.tokenization import KINDS, train_tokenizer
from modeling_electra_exit.trainers.errors import DataError
from modeling_electra_exit.trainers.finetuning.encoding import encode
from modeling_electra_exit.trainers.finetuning.tasks import TASKS
from modeling_electra_exit.trainers.sharing.hub import TOKENIZER, shared_files
from tests.trainers.cli.test_cli import recipe, run  # noqa: F401


# A sentence of each script, and what is left of it without its marks.
SCRIPTS = {
    "de": ("er müsste das schöne Mädchen hören", "er musste das schone Madchen horen"),
    "fr": ("le pêcheur a péché à côté", "le pecheur a peche a cote"),
    "pl": ("sąd i sad, łąka i laka", "sad i sad, laka i laka"),
    "tr": ("ölmek ve olmak, kış ve kıs", "olmek ve olmak, kis ve kis"),  # noqa: RUF001
    "cs": ("byt a být, rada a řada", "byt a byt, rada a rada"),
    "el": ("νόμος και νομός", "νομος και νομος"),
    "hi": ("कुल और कल, दिन और दीन", "कल और कल, दन और दन"),
    "bn": ("কাল আর কালি", "কল আর কল"),
    "ja": ("がき ばば ぴん データ", "かき はは ひん テータ"),
    "ar": ("كَتَبَ الوَلَد", "كتب الولد"),
    "he": ("שָׁלוֹם עֲלֵיכֶם", "שלום עליכם"),
    "ko": ("안녕하세요 사람들", "안녕하세요 사람들"),
    "zh": ("他喜欢看书", "他喜欢看书"),
    "th": ("ไม่ใช่ไม้ใหม่", "ไมใชไมใหม"),
    "vi": ("má mà mả mã mạ", "ma ma ma ma ma"),
    # Joiners are marks of a kind: "I want", and the name of a country.
    "fa": ("می‌خواهم", "میخواهم"),
    "si": ("ශ්‍රී ලංකා", "ශ්රී ලංකා"),
}
TEXTS = [text for pair in SCRIPTS.values() for text in pair]


def documents(texts):
    return Dataset.from_dict({"text": texts})


@pytest.fixture(scope="module")
def of_scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    load_tokenizer(DataArguments(), 1500, documents(TEXTS * 5)).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("language", SCRIPTS)
def test_marks_make_other_words_and_come_back(of_scripts, language):
    text, without_marks = SCRIPTS[language]
    ids = of_scripts(text)["input_ids"]
    assert of_scripts.unk_token_id not in ids
    assert (ids != of_scripts(without_marks)["input_ids"]) == (text != without_marks)
    decoded = of_scripts.decode(ids, skip_special_tokens=True)
    expected = " ".join(text) if language == "zh" else text.lower()  # ideographs are words of their own
    assert decoded == expected
    decomposed = unicodedata.normalize("NFD", text)
    assert of_scripts(decomposed)["input_ids"] == ids


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def of_pieces(request, tmp_path_factory):
    """A tokenizer of the other types, as it is saved and loaded."""
    folder = tmp_path_factory.mktemp(request.param)
    load_tokenizer(DataArguments(tokenizer_type=request.param), 1500, documents(TEXTS * 5)).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_the_other_types_keep_marks_and_join_ideographs(of_pieces):
    for text, without_marks in SCRIPTS.values():
        ids = of_pieces(text)["input_ids"]
        assert of_pieces.unk_token_id not in ids
        assert (ids != of_pieces(without_marks)["input_ids"]) == (text != without_marks)
        assert of_pieces.decode(ids, skip_special_tokens=True).strip() == text.lower()
        assert of_pieces(unicodedata.normalize("NFD", text))["input_ids"] == ids


def test_the_other_types_have_the_special_tokens_types_and_offsets_that_the_rest_needs(of_pieces):
    encoded = of_pieces("er hören", "rada", return_offsets_mapping=True)
    tokens = of_pieces.convert_ids_to_tokens(encoded["input_ids"])
    assert [token for token in tokens if token.startswith("[")] == ["[CLS]", "[SEP]", "[SEP]"]
    assert encoded["token_type_ids"] == [0] * (tokens.index("[SEP]") + 1) + [1] * (
        len(tokens) - tokens.index("[SEP]") - 1
    )
    for name in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(of_pieces, f"{name}_token_id") == of_pieces.convert_tokens_to_ids(f"[{name.upper()}]") < 5
    words = ["Mädchen,", "hören", "côté"]
    split = of_pieces(words, is_split_into_words=True, return_offsets_mapping=True)
    assert [*dict.fromkeys(word for word in split.word_ids() if word is not None)] == [0, 1, 2]
    for word, text in enumerate(words):
        spans = [span for of, span in zip(split.word_ids(), split["offset_mapping"], strict=True) if of == word]
        assert (min(start for start, _ in spans), max(end for _, end in spans)) == (0, len(text))
        assert spans == sorted(spans)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_text_makes_the_same_tokenizer_of_at_most_so_many_entries(kind):
    texts = documents([*TEXTS, *(" ".join(words) for words in permutations(["kat", "kot", "tak", "tok", "akt"]))])
    one, other = (train_tokenizer(texts, 400, kind=kind) for _ in range(2))
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    assert len(one) <= 400
    assert sorted(one.get_vocab().values()) == list(range(len(one)))


def test_the_types_are_the_choices_of_the_flag():
    (field,) = (field for field in fields(DataArguments) if field.name == "tokenizer_type")
    assert field.metadata["choices"] == list(KINDS)
    assert field.default == next(iter(KINDS))


def test_a_unigram_tokenizer_leaves_out_the_rarest_characters_where_they_are_too_many(caplog):
    text = "".join(map(chr, range(0x4E00, 0x4E80)))
    tokenizer = train_tokenizer(documents([text[:40] * 20 + text]), 60, kind="unigram")
    assert len(tokenizer) <= 60
    assert tokenizer.unk_token_id not in tokenizer(text[:40])["input_ids"]
    assert tokenizer.unk_token_id in tokenizer(text[-1])["input_ids"]
    assert "take more than half of the vocabulary" in caplog.text


def test_bytes_need_an_entry_each():
    with pytest.raises(DataError, match="--vocab_size must be at least 261 for --tokenizer_type bpe, got 260"):
        train_tokenizer(documents(["a"]), 260, kind="bpe")


@pytest.mark.parametrize(("kind", "vocab_size"), [("unigram", 60), ("bpe", 280)])
def test_a_run_with_each_type(recipe, tmp_path, kind, vocab_size):  # noqa: F811
    flags = ["--tokenizer_type", kind, "--vocab_size", str(vocab_size), "--max_steps", "2", "--report_to", "none"]
    assert run(recipe(), *flags) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert len(tokenizer) <= vocab_size
    assert {"tokenizer.json", "tokenizer_config.json"} <= shared_files(tmp_path / "run").keys()
    written = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()}
    tokenizer.save_pretrained(tmp_path / "alone")
    assert {path.name for path in (tmp_path / "alone").iterdir()} <= written & {*TOKENIZER}


def test_syllables_are_not_taken_apart(of_scripts):
    tokens = of_scripts.tokenize("안녕하세요 사람들")
    assert sum(len(token.removeprefix("##")) for token in tokens) == 8


def test_marks_are_left_out_on_request():
    tokenizer = load_tokenizer(DataArguments(strip_accents=True), 1500, documents(TEXTS * 5))
    for language in ("de", "fr", "cs", "el", "ar", "he", "ko"):
        text, without_marks = SCRIPTS[language]
        assert tokenizer(text)["input_ids"] == tokenizer(without_marks)["input_ids"]
        expected = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
        decoded = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
        assert decoded == unicodedata.normalize("NFC", expected)


def test_case_is_kept_on_request():
    tokenizer = load_tokenizer(DataArguments(lowercase=False), 1500, documents(TEXTS * 5))
    text = SCRIPTS["de"][0]
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("character", ["ก", "か", "က"])
def test_a_long_sentence_without_spaces_is_known(character):
    mark = "\u0e48" if character == "ก" else ""
    sentence = (character + mark) * 180
    tokenizer = train_tokenizer(documents([sentence, "a cat"]), 200)
    tokens = tokenizer.tokenize(f"{sentence} cat")
    assert "[UNK]" not in tokens
    assert "".join(token.removeprefix("##") for token in tokens) == sentence + "cat"
    assert not any(token[0] == "\u0e48" for token in tokens)  # a mark stays with its letter


def test_control_characters_are_no_text():
    tokenizer = train_tokenizer(documents(["the cat runs"] * 3), 60)
    assert tokenizer.tokenize("\ufeffthe\u00ad c\x00a\ufffdt\nruns") == tokenizer.tokenize("the cat\nruns")


def test_where_characters_are_more_than_entries_the_rarest_are_unknown(caplog):
    frequent, rare = "".join(map(chr, range(0x4E00, 0x4E00 + 50))), "".join(map(chr, range(0x5E00, 0x5E00 + 100)))
    tokenizer = train_tokenizer(documents([frequent * 20 + rare]), 60)
    assert len(tokenizer) <= 60
    assert tokenizer.unk_token_id not in tokenizer(frequent)["input_ids"]
    assert tokenizer.unk_token_id in tokenizer(rare)["input_ids"]
    assert "150 different characters of the text take more than half of the vocabulary, and 95 of them" in caplog.text


def test_a_pair_has_two_types(of_scripts):
    assert set(of_scripts.model_input_names) == {"input_ids", "token_type_ids", "attention_mask"}
    types = of_scripts("byt a být", "rada")["token_type_ids"]
    assert types == sorted(types)
    assert types[0] == 0
    assert types[-2:] == [1, 1]


def test_fine_tuning_gives_pairs_the_types_of_pre_training(of_scripts):
    rows = Dataset.from_dict({"text": ["byt a být"], "text_pair": ["rada"], "labels": [0]})
    (row,) = encode(rows, TASKS["mrpc"], of_scripts, 64)
    first, second = (of_scripts(text, add_special_tokens=False)["input_ids"] for text in ("byt a být", "rada"))
    assert row["input_ids"] == [2, *first, 3, *second, 3]
    assert row["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
