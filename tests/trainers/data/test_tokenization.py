"""The tokenizer that is trained by default keeps what a script writes, also when it is loaded again."""

import unicodedata

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from modeling_electra_exit.trainers import DataArguments
from modeling_electra_exit.trainers.data.preparation import load_tokenizer
from modeling_electra_exit.trainers.data.tokenization import train_tokenizer
from modeling_electra_exit.trainers.finetuning.encoding import encode
from modeling_electra_exit.trainers.finetuning.tasks import TASKS


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
