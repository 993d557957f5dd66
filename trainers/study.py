"""Studies: a matrix of runs, each judged alike. `electra-exit study NAME`, with the recipes in `studies/`."""

import argparse
import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import transformers
import yaml
from transformers import AutoConfig, AutoTokenizer

from .data import load_documents, load_tokenizer, pack
from .generators import build_generator
from .judge import judge_blimp, judge_glue, judge_held_out
from .parsing import Parser, UsageError, parse_fields, yaml_names
from .pretraining import METRICS_FILE, pretrain
from .study_report import write_report


logger = logging.getLogger(__name__)

STUDIES = files(__package__).joinpath("studies")


@dataclass
class Run:
    """One arm, of one stage, with one seed."""

    stage: str
    arm: str
    seed: int
    fields: dict
    judges: list[str]

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.arm}/seed-{self.seed}"

    @property
    def result_file(self) -> str:
        return f"{self.stage}-{self.arm}-seed{self.seed}.json"


def study_command(argv: Sequence[str]) -> int:
    args = study_parser().parse_args(list(argv))
    study = yaml.safe_load(STUDIES.joinpath(f"{args.study}.yaml").read_text(encoding="utf-8"))
    runs = read_runs(study)
    for path in (args.blimp, args.glue):
        if path is not None and not path.exists():
            raise UsageError(f"no such file or folder: {path}")
    results = args.results or args.output_dir / args.study / "results"
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("the report's figures need matplotlib: pip install 'electra-early-exit[study]'")
    if not args.report_only:
        if not args.train_files:
            raise UsageError("give the text with --train_files, or --report_only")
        run_study(study, chosen_runs(runs, args), args, results)
    print(write_report(runs, results))
    return 0


def study_parser() -> Parser:
    parser = Parser(
        prog="electra-exit study",
        description="Run and judge the arms of a study that have no result yet, one JSON each, and write its report. "
        "The same command continues where it was interrupted; several may run at once on different arms.",
    )
    parser.add_argument("study", choices=yaml_names(STUDIES))
    parser.add_argument("--train_files", nargs="+", help="the text; see `electra-exit pretrain --help`")
    parser.add_argument("--blimp", type=Path, help="BLiMP as JSON Lines, plain or .xz; left out: not judged by it")
    parser.add_argument("--glue", type=Path, help="folder of GLUE tasks as JSON Lines; left out: not judged by them")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/study"), help="of the runs (default: %(default)s)"
    )
    parser.add_argument("--results", type=Path, help="of the JSON files and the report (default: in the former)")
    parser.add_argument("--stages", nargs="+", help="only these (default: all)")
    parser.add_argument("--arms", nargs="+", help="only these (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these (default: all)")
    parser.add_argument("--report_only", action="store_true", help="write the report of the results there are")
    return parser


def read_runs(study: dict) -> list[Run]:
    """The runs of a study, in the order of its stages, seeds and arms."""
    return [
        Run(
            name,
            arm,
            seed,
            {**study["base"], **stage.get("fields", {}), **study["arms"][arm], "seed": seed},
            stage["judges"],
        )
        for name, stage in study["stages"].items()
        for seed in stage["seeds"]
        for arm in stage["arms"]
    ]


def chosen_runs(runs: list[Run], args: argparse.Namespace) -> list[Run]:
    """Those that the flags name.

    Raises:
        UsageError: for a stage, arm or seed that the study does not have.
    """
    for flag, field in (("stages", "stage"), ("arms", "arm"), ("seeds", "seed")):
        if (wanted := getattr(args, flag)) is None:
            continue
        known = list(dict.fromkeys(getattr(run, field) for run in runs))
        if unknown := [value for value in wanted if value not in known]:
            raise UsageError(
                f"--{flag}: no {', '.join(map(str, unknown))} here; there are {', '.join(map(str, known))}"
            )
        runs = [run for run in runs if getattr(run, field) in wanted]
    return runs


def run_study(study: dict, runs: list[Run], args: argparse.Namespace, results: Path) -> None:
    """Run and judge what has no result yet."""
    folder = args.output_dir / args.study
    tokenizer = study_tokenizer(folder / "tokenizer", study["base"], args.train_files)
    for run in runs:
        places = {
            "train_files": args.train_files,
            "tokenizer_name": str(tokenizer),
            "output_dir": str(folder / run.name),
        }
        path = results / run.result_file
        if path.exists():
            if (made := json.loads(path.read_text(encoding="utf-8"))["fields"]) != run.fields:
                changed = sorted(n for n in made.keys() | run.fields.keys() if made.get(n) != run.fields.get(n))
                raise UsageError(f"{path} was made with other fields ({', '.join(changed)}); remove it to run it anew")
            continue
        arguments = parse_fields({**run.fields, **places})
        if not (folder / run.name / METRICS_FILE).exists():
            logger.info(f"running {run.name}")
            pretrain(*arguments, show=False)
        logger.info(f"judging {run.name}")
        result = collect(run, folder / run.name) | {"judged": judge(study, run, folder / run.name, arguments[1], args)}
        results.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(path)  # so that a file that is there is whole


def study_tokenizer(folder: Path, base: dict, train_files: list[str]) -> Path:
    """One tokenizer for all arms, trained once."""
    if not folder.exists():
        _, data_args, _, _ = parse_fields({**base, "train_files": train_files, "output_dir": str(folder)})
        load_tokenizer(data_args, base["vocab_size"], load_documents(data_args)["train"]).save_pretrained(folder)
    return folder


def collect(run: Run, folder: Path) -> dict:
    """What a finished run wrote down, without where it was run: its measurements, and its log by the step."""
    measured = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    log, seconds = {}, None
    for entry in history:
        seconds = entry.get("train_runtime", seconds)
        kept = {
            name: value
            for name, value in entry.items()
            if name.startswith(("eval_roc_auc", "eval_average", "exit_", "kept_"))
            or name in ("discriminator_loss", "discriminator_auc", "generator_equal_rate")
        }
        if kept and "train_runtime" not in entry:
            log.setdefault(entry["step"], {"step": entry["step"]}).update(kept)
    return {
        "name": run.name,
        "stage": run.stage,
        "arm": run.arm,
        "seed": run.seed,
        "fields": run.fields,
        "log": [log[step] for step in sorted(log)],
        "train_runtime": seconds,
        **{part: measured[part] for part in ("training", "flops", "parameters", "kept_share", "versions")},
    }


def judge(study: dict, run: Run, folder: Path, data_args, args: argparse.Namespace) -> dict:
    """Ask the questions that the run's stage asks, as far as the data for them were given."""
    settings, answers = study["judges"], {}
    if "held_out" in run.judges:
        tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
        packed, _ = pack(load_documents(data_args), tokenizer, data_args.max_seq_length, data_args.num_proc)
        replacements = build_generator(config, packed["train"], tokenizer)
        answers["held_out"] = judge_held_out(
            folder, packed["validation"], replacements, config.mlm_probability, **settings["held_out"]
        )
    if "blimp" in run.judges and args.blimp is not None:
        answers["blimp"] = judge_blimp(folder, args.blimp, **settings["blimp"])
    if "glue" in run.judges and args.glue is not None:
        transformers.utils.logging.set_verbosity_error()  # that a new head is new is no news
        for task, options in settings["glue"].items():
            answers[task] = judge_glue(folder, args.glue, task, seed=run.seed, **options)
    return answers
