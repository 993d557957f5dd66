"""The flags that name the columns of labelled examples, the same in every command."""

from .parser import Parser


def add_column_arguments(parser: Parser, labels: bool = True) -> None:
    parser.add_argument("--text_column", help="the text, or lists of words (default: the only candidate)")
    parser.add_argument("--text_pair_column", help="the second text of a pair")
    if labels:
        parser.add_argument(
            "--label_column", nargs="+", default=[],
            help="the labels, by name or number; several columns of 0 and 1 are a label each (default: the only "
            "candidate)",
        )  # fmt: skip
