"""Words and tags in columns, as CoNLL-2002, CoNLL-2003, GermEval 2014 and Universal Dependencies write them."""

import gzip

import pytest

from modeling_electra_exit.trainers.errors import DataError
from modeling_electra_exit.trainers.finetuning.conll import is_conll, read_conll


def read(path, content):
    path.write_text(content, encoding="utf-8")
    rows, columns = read_conll(str(path))
    return rows[columns.text][:], rows[columns.labels[0]][:]


def test_four_columns_between_spaces(tmp_path):
    content = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\n# NN B-NP O\nPeter NNP I-NP B-PER\n"
    words, tags = read(tmp_path / "eng.conll", content)
    assert words == [["EU", "rejects"], ["#", "Peter"]]
    assert tags == [["B-ORG", "O"], ["O", "B-PER"]]


def test_numbered_words_between_tabs_with_comments(tmp_path):
    content = "#\thttp://de [2009]\n1\tdie New\tO\tO\n2\tUni\tB-ORG\tB-LOC\n\n#\tx\n1\t1951\tO\tO\n\n"
    words, tags = read(tmp_path / "NER-de-train.tsv", content)
    assert words == [["die New", "Uni"], ["1951"]]
    assert tags == [["O", "B-LOC"], ["O"]]
    rows, _ = read_conll(str(tmp_path / "NER-de-train.tsv"))
    assert rows["3"][0] == ["O", "B-ORG"]  # the outer tags, by their number


def test_universal_dependencies(tmp_path):
    def line(number, form, upos):
        return "\t".join([number, form, form, upos, *"_" * 6]) + "\n"

    content = (
        "# text = vámonos\n" + line("1-2", "vámonos", "_") + line("1", "vamos", "VERB") + line("2", "nos", "PRON")
    )
    content += line("2.1", "x", "X") + "\n"
    words, tags = read(tmp_path / "es.conllu", content)
    assert (words, tags) == ([["vamos", "nos"]], [["VERB", "PRON"]])


def test_spaces_that_are_part_of_a_word_stay(tmp_path):
    words, _ = read(tmp_path / "x.iob", "10\u00a0000 O\nEuro  B\n")
    assert words == [["10\u00a0000", "Euro"]]


def test_what_is_conll(tmp_path):
    (tmp_path / "table.tsv").write_text("text\tlabel\na\tb\n\n")
    (tmp_path / "words.tsv").write_text("a\tO\n\nb\tO\n")
    with gzip.open(tmp_path / "words.tsv.gz", "wt") as file:
        file.write("a\tO\n\nb\tO\n")
    names = ("table.tsv", "words.tsv", "words.tsv.gz", "x.conll", "x.conll.xz", "x.csv", "x.TXT")
    assert [is_conll(str(tmp_path / name)) for name in names] == [False, True, True, True, True, False, True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a O\n\nb\n", "line 3 of {path} must have 2 columns, as the first line, got 1"),
        ("alone\n", "line 1 of {path} must have 2 columns, as the first line, got 1"),
        ("\n \n", "{path} holds no sentences"),
        ("a O\n" * 600, "{path} has 600 lines and no empty line between sentences"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "words.conll"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_conll(str(path))
    assert message.format(path=path) in str(caught.value)


def test_a_damaged_file_is_named(tmp_path):
    for name, content in (("x.conll.gz", b"no gzip"), ("x.conll", b"\xff O\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"cannot read .*{name} as CoNLL"):
            read_conll(str(tmp_path / name))
