"""`electra-exit cache-replacements`."""

from collections.abc import Sequence
from pathlib import Path

from .parser import Parser
from .quick import check_flags


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="electra-exit cache-replacements",
        usage="electra-exit cache-replacements RECIPE --folder FOLDER [--draws N] [--field value ...]",
        description="Sample several replacements for every token of a recipe's text, with the generator named by the "
        "recipe or --generator_type. Train on them with `electra-exit pretrain RECIPE --generator_type cached "
        "--generator_folder FOLDER`. Every field of a recipe is also a flag; see `electra-exit pretrain --help`.",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="name of a packaged recipe, or path of a YAML file")
    parser.add_argument("--folder", type=Path, required=True, help="output folder; must not exist")
    parser.add_argument("--draws", type=int, default=4, help="replacements per token (default: %(default)s)")
    args, flags = parser.parse_known_args(list(argv))
    check_flags(parser, flags)
    if args.draws < 1:
        parser.error(f"--draws must be at least 1, got {args.draws}")
    if args.folder.exists():
        parser.error(f"{args.folder} exists; choose another --folder, or remove it")
    from modeling_electra_exit.trainers.pretraining.cached_replacements import cache_replacements

    from .parsing import parse
    from .sentences import show_progress

    show_progress()
    config_fields, data_args, training_args, _ = parse([args.recipe, *flags])
    print(describe(cache_replacements(config_fields, data_args, training_args, args.folder, args.draws)))
    return 0


def describe(report: dict) -> str:
    """Time, size and replacement quality, one line per split."""
    lines = [f"{report['draws']} replacements per token, sampled by `{report['generator_type']}`"]
    for split, found in report["splits"].items():
        lines.append(
            f"  {split}: {found['tokens']:,} tokens in {found['seconds']:,.1f} s, {found['bytes'] / 1e6:,.1f} MB "
            f"({found['bytes'] / found['tokens']:.1f} bytes per token); {found['equal_rate']:.1%} equal the original"
        )
    return "\n".join(lines)
