"""`electra-exit export`."""

from collections.abc import Sequence
from pathlib import Path

from .hub import check_reachable
from .parser import Parser


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="electra-exit export",
        description="Write the discriminator and the generator of a pre-trained checkpoint as plain ELECTRA models, "
        "which load without this package. Exit heads are dropped.",
    )
    parser.add_argument("checkpoint", metavar="FOLDER", help="a pre-trained checkpoint, folder or Hub id")
    parser.add_argument("output", metavar="OUT", type=Path, help="output folder, with one subfolder per model")
    parser.add_argument("--to", choices=["electra"], required=True, help="the architecture to write")
    args = parser.parse_args(list(argv))
    check_reachable(parser, [args.checkpoint])
    from modeling_electra_exit.trainers.runtime.loading import export_electra

    for part, folder in export_electra(args.checkpoint, args.output).items():
        print(f"{part}: {folder}")
    return 0
