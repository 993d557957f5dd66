"""The flags that name the columns of labelled examples, shared by all commands."""

from .parser import Parser


def add_column_arguments(parser: Parser, labels: bool = True) -> None:
    parser.add_argument("--text_column", help="column of the text, or of lists of words (default: the only candidate)")
    parser.add_argument("--text_pair_column", help="column of the second text of a pair")
    if labels:
        parser.add_argument(
            "--label_column", nargs="+", default=[],
            help="column of the labels, as names or numbers; several 0/1 columns are one label each (default: the "
            "only candidate)",
        )  # fmt: skip
