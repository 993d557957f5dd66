"""`electra-exit card`."""

from collections.abc import Sequence
from pathlib import Path

from .parser import Parser


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="electra-exit card",
        description="Render the model card of a run or a saved model again, from the records in its folder.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--license", help="license of the model, such as apache-2.0 (default: as recorded by the run)")
    parser.add_argument("--language", nargs="+", help="language codes, such as en (default: as recorded by the run)")
    arguments = parser.parse_args(list(argv))
    if not any((arguments.folder / name).is_file() for name in ("config.json", "metrics.json")):
        parser.error(f"{arguments.folder} holds no model: it has no config.json")
    from modeling_electra_exit.trainers.runtime.loading import lacks_model
    from modeling_electra_exit.trainers.sharing.model_card import write_model_card

    if lack := lacks_model(arguments.folder):
        parser.error(lack)
    print(write_model_card(arguments.folder, language=arguments.language, license=arguments.license))
    return 0
