"""Run a study, a matrix of runs that are evaluated in the same way: `python -m research.study NAME`. The studies are
defined in `studies/`."""

import argparse
import importlib.util
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import yaml
from datasets import Dataset, Features, Value, load_from_disk
from datasets import Sequence as SequenceFeature
from filelock import FileLock
from transformers import AutoConfig, AutoTokenizer

from electra_exit.main import report
from electra_exit.parser import Parser
from electra_exit.parsing import parse_fields
from electra_exit.places import yaml_names
from electra_exit.sentences import show_progress
from modeling_electra_exit.configuration_electra_exit import without_unread
from modeling_electra_exit.trainers.data.packing import pack
from modeling_electra_exit.trainers.data.preparation import load_tokenizer
from modeling_electra_exit.trainers.data.reading import load_documents
from modeling_electra_exit.trainers.errors import UsageError
from modeling_electra_exit.trainers.finetuning.blimp import judge_blimp
from modeling_electra_exit.trainers.generators.cached import CACHE_REPORT
from modeling_electra_exit.trainers.generators.registry import IN_MODEL, build_generator
from modeling_electra_exit.trainers.pretraining.cached_replacements import cache_replacements
from modeling_electra_exit.trainers.pretraining.collator import DataCollatorForReplacedTokenDetection, build_collator
from modeling_electra_exit.trainers.pretraining.run import build_trainer, prepare_run, pretrain
from modeling_electra_exit.trainers.pretraining.starting import starting_point
from modeling_electra_exit.trainers.runtime.depths import read_depths
from modeling_electra_exit.trainers.runtime.files import read_json, write_json
from modeling_electra_exit.trainers.runtime.run_folder import METRICS_FILE, fingerprints

from .judge import BATCH, judge_entities, judge_glue, judge_held_out
from .report import write_report
from .results import RATE_MARK, measured_seconds, timing_file
from .routing import Routing, recipe_of, trainer_class
from .step_timing import peak_memory, time_steps


logger = logging.getLogger(__name__)

STUDIES = Path(__file__).with_name("studies")
# The entries of a run's log and of its last evaluation that a result keeps.
KEPT_IN_LOG = re.compile(
    r"eval_\w*(roc_auc|average_precision)|exit_|kept_|discriminator_(loss|auc)$|generator_(loss|equal_rate)$"
)
# The evaluations that use a learned router.
ROUTED_JUDGES = {"held_out", "entities"}
OWN_GENERATOR = ("roc_auc", "generator_equal_rate", "replacement_log_probability", "original_log_probability")


@dataclass
class Run:
    """A run of one arm in one stage with one seed.

    fields: the fields of its recipe and, beside them, its [`Routing`] if it has one.
    judges: the evaluations of its stage.
    """

    stage: str
    arm: str
    seed: int
    fields: dict
    judges: list[str]

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.arm}/seed-{self.seed}"

    @property
    def routing(self) -> Routing | None:
        return Routing.of(self.fields)

    @property
    def result_file(self) -> str:
        return f"{self.stage}-{self.arm}-seed{self.seed}.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study. Returns the exit status; see [`electra_exit.main.report`]."""
    show_progress()
    return report(study_command, sys.argv[1:] if argv is None else argv, "python -m research.study")


def study_command(argv: Sequence[str]) -> int:
    args = study_parser().parse_args(list(argv))
    study = read_study(args.study)
    runs = read_runs(study)
    for path in (args.blimp, args.glue, args.entities):
        if path is not None and not path.exists():
            raise UsageError(f"no such file or folder: {path}")
    results = args.results or args.output_dir / args.study / "results"
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("the report's figures require matplotlib: pip install 'electra-early-exit[study]'")
    if not args.report_only:
        if not args.train_files:
            raise UsageError("--train_files must name the text, got none; or give --report_only")
        (time_study if args.time_steps else run_study)(study, chosen_runs(runs, args), args, results)
    print(write_report(args.study, study, results))
    return 0


def study_parser() -> Parser:
    parser = Parser(
        prog="python -m research.study",
        description="Run and evaluate the arms of a study that have no result yet, and write its report. Each run "
        "has a JSON file of results. Repeat the command to continue an interrupted study, or to add an evaluation to "
        "finished runs whose checkpoints are still in --output_dir; several commands may run different arms at once.",
    )
    parser.add_argument("study", choices=yaml_names(STUDIES))
    parser.add_argument("--train_files", nargs="+", help="the text; see `electra-exit pretrain --help`")
    parser.add_argument("--blimp", type=Path, help="BLiMP as JSON Lines, plain or .xz (default: skip BLiMP)")
    parser.add_argument("--glue", type=Path, help="folder of GLUE tasks as JSON Lines (default: skip GLUE)")
    parser.add_argument(
        "--entities", type=Path, help="folder of WNUT-17 as JSON Lines (default: skip the probe for named entities)"
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/study"), help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument("--results", type=Path, help="folder of results and report (default: within --output_dir)")
    parser.add_argument("--stages", nargs="+", help="only these stages (default: all)")
    parser.add_argument("--arms", nargs="+", help="only these arms (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these seeds (default: all)")
    parser.add_argument(
        "--time_steps",
        type=int,
        metavar="N",
        help="time N turns of a few steps of each arm instead of running it; the report then uses these times, in "
        "which other load on the machine affects all arms equally",
    )
    parser.add_argument("--report_only", action="store_true", help="only write the report of the existing results")
    return parser


def read_study(name: str) -> dict:
    """A packaged study. A study that `extends` another inherits its entries and overrides some."""
    study = yaml.safe_load(STUDIES.joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    return {**read_study(study["extends"]), **study} if "extends" in study else study


def read_runs(study: dict) -> list[Run]:
    """The runs of a study, in the order of its stages, seeds and arms. If a stage has `learning_rates`, each of its
    arms is run with all of them; if it has `steps`, each arm has its own number of steps.

    Raises:
        UsageError: if the routing of an arm is malformed, or not known to an evaluation of its stage; or if the study
            does not define how to corrupt its held-out text.
    """
    if not study.get("corruptions") and study["base"].get("generator_type", "mlm") in IN_MODEL:
        raise UsageError(
            "the study must define `corruptions`, because the `generator_type` of its base, "
            f"{study['base'].get('generator_type', 'mlm')}, cannot corrupt the held-out text without a model"
        )
    runs = [
        Run(
            name,
            arm if rate is None else f"{arm}{RATE_MARK}{rate:g}",
            seed,
            {
                **without_unread(
                    {**study["base"], **stage.get("fields", {}), **study["arms"][arm]}, study["arms"][arm]
                ),
                **({"max_steps": stage["steps"][arm]} if "steps" in stage else {}),
                **({} if rate is None else {"learning_rate": rate}),
                "seed": seed,
            },
            stage["judges"],
        )
        for name, stage in study["stages"].items()
        for seed in stage["seeds"]
        for arm in stage["arms"]
        for rate in stage.get("learning_rates", [None])
    ]
    for run in runs:
        if run.routing is not None and run.routing.learned and set(run.judges) - ROUTED_JUDGES:
            raise UsageError(
                f"the judges of stage {run.stage} must be among {', '.join(sorted(ROUTED_JUDGES))} for the arm "
                f"{run.arm}, whose router no other evaluation knows, got {', '.join(run.judges)}"
            )
    return runs


def chosen_runs(runs: list[Run], args: argparse.Namespace) -> list[Run]:
    """The runs that the flags select.

    Raises:
        UsageError: if the study does not have a stage, arm or seed.
    """
    for flag, field in (("stages", "stage"), ("arms", "arm"), ("seeds", "seed")):
        if (wanted := getattr(args, flag)) is None:
            continue
        known = list(dict.fromkeys(getattr(run, field) for run in runs))
        if unknown := [value for value in wanted if value not in known]:
            raise UsageError(
                f"--{flag} must be among {', '.join(map(str, known))}, got {', '.join(map(str, unknown))}"
            )
        runs = [run for run in runs if getattr(run, field) in wanted]
    return runs


def time_study(study: dict, runs: list[Run], args: argparse.Namespace, results: Path) -> None:
    """Time the steps of each arm, at one learning rate, and write one file per stage, with their peak memory on Linux.
    Arms whose depth changes have times for each of their depths."""
    folder = args.output_dir / args.study
    common, shared = shared_places(study, args)
    results.mkdir(parents=True, exist_ok=True)
    for stage in dict.fromkeys(run.stage for run in runs):
        arms = {run.arm.split(RATE_MARK)[0]: run for run in runs if run.stage == stage}
        trainers, memory = {}, {}
        for arm, run in arms.items():
            places = {**shared, "output_dir": str(folder / "timing"), **_own_places(run.fields, common)}
            places["corpus_init"] = False  # takes minutes and does not affect the step time
            for depth, fields in fields_by_depth(run.fields).items():
                arguments = parse_fields({**recipe_of(fields), **places})
                trainers[arm, depth], *_ = build_trainer(*arguments[:3], trainer_class=trainer_class(run.routing))
                if sys.platform == "linux":
                    memory[arm, depth] = {"peak_bytes": peak_memory({**fields, **places})}
        seconds = {}
        for (arm, depth), timed in time_steps(trainers, args.time_steps).items():
            found = {**timed, **memory.get((arm, depth), {})}
            if depth is None:
                seconds[arm] = found
            else:
                seconds.setdefault(arm, {})[depth] = found
        path = results / timing_file(stage)
        path.write_text(json.dumps(seconds, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def fields_by_depth(fields: dict) -> dict[str | None, dict]:
    """The fields of a run without a depth schedule, for each of its depths; for `None` if it has only one."""
    if fields.get("depth_schedule") is None:
        return {None: fields}
    deepest, alone = fields["num_hidden_layers"], {**fields, "depth_schedule": None}
    # The generator is the same at all depths.
    alone["generator_num_hidden_layers"] = fields.get("generator_num_hidden_layers") or deepest
    return {
        str(depth): {**alone, "num_hidden_layers": depth}
        for depth in read_depths(fields["depth_schedule"], deepest).depths
    }


def shared_places(study: dict, args: argparse.Namespace) -> tuple[Path, dict]:
    """The folder that all runs of a study and of the study it extends share, and the fields of [`make_shared`]."""
    common = args.output_dir / study.get("extends", args.study)
    common.mkdir(parents=True, exist_ok=True)
    with FileLock(common / "shared.lock"):  # other processes may run other arms
        check_text(common, args.train_files)
        return common, make_shared(study, common, args.train_files)


def check_text(folder: Path, train_files: list[str]) -> None:
    """Record the text of a study when it starts.

    Raises:
        UsageError: if the text differs from the recorded one, on which tokenizer, models and results depend.
    """
    path, now = folder / "text.json", fingerprints(train_files)
    if not path.exists():
        write_json(path, now)
    elif list(read_json(path).values()) != list(now.values()):
        raise UsageError(
            f"{', '.join(train_files)} must be the text that the study in {folder} started with; restore it, or "
            "choose another --output_dir"
        )


def run_study(study: dict, runs: list[Run], args: argparse.Namespace, results: Path) -> None:
    """Run and evaluate the runs that have no result yet, and add missing evaluations to results whose run is kept."""
    folder = args.output_dir / args.study
    common, shared = shared_places(study, args)
    corrupted = {name: load_from_disk(common / "corruptions" / name) for name in study.get("corruptions", {})}
    results.mkdir(parents=True, exist_ok=True)
    for run in runs:
        places = {**shared, "output_dir": str(folder / run.name), **_own_places(run.fields, common)}
        path, finished = results / run.result_file, (folder / run.name / METRICS_FILE).exists()
        result = known_result(path, run)
        if result is not None and not finished:
            continue
        config_fields, data_args, training_args, given = parse_fields({**recipe_of(run.fields), **places})
        if run.routing is not None:
            given["routing"] = run.fields["routing"]  # recorded, so that the run does not resume with another one
        if not finished:
            logger.info(f"running {run.name}")
            pretrain(
                config_fields, data_args, training_args, given, show=False, evaluated=corrupted,
                trainer_class=trainer_class(run.routing),
            )  # fmt: skip
        if result is None:
            result = {**collect(run, folder / run.name), "given": cost_of_given(study, run.fields, common)}
        known = result.get("judged", {})
        judged = judge(study, run, folder / run.name, corrupted, data_args, args, known)
        if judged != known:
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps({**result, "judged": judged}, indent=1, sort_keys=True) + "\n", "utf-8")
            temporary.replace(path)  # so that an existing file is always complete


def known_result(path: Path, run: Run) -> dict | None:
    """The result of a run if it has one.

    Raises:
        UsageError: if it is of a run with other fields.
    """
    if not path.exists():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    if (made := result["fields"]) != run.fields:
        changed = sorted(n for n in made.keys() | run.fields.keys() if made.get(n) != run.fields.get(n))
        raise UsageError(f"{path} has different fields ({', '.join(changed)}); remove it to repeat the run")
    return result


# ---- Files shared by all runs of a study ----


def make_shared(study: dict, folder: Path, train_files: list[str]) -> dict:
    """Create the files that all runs share, unless they exist: the tokenizer, and those that the study defines among
    masked language models (`references`), replacements (`caches`) and corrupted held-out sets (`corruptions`).

    Returns:
        The fields of all runs with the paths of these files.
    """
    base = study["base"]
    shared = {"train_files": train_files, "tokenizer_name": str(_tokenizer(folder / "tokenizer", base, train_files))}

    def arguments_of(fields: dict) -> tuple:
        output = {"output_dir": str(folder / "unused")}
        return parse_fields({**base, **output, **fields, **shared, **_own_places(fields, folder)})

    for name, fields in study.get("references", {}).items():
        output = folder / "references" / name
        if not (output / METRICS_FILE).exists():
            logger.info(f"training the reference {name}")
            pretrain(*arguments_of({**fields, "output_dir": str(output)}), show=False)
    for name, cache in study.get("caches", {}).items():
        if not (path := folder / "caches" / name).exists():
            logger.info(f"sampling the replacements {name}")
            with _whole(path) as unfinished:
                cache_replacements(*arguments_of(cache["fields"])[:3], unfinished, cache["draws"])
    for name, fields in study.get("corruptions", {}).items():
        if not (path := folder / "corruptions" / name).exists():
            logger.info(f"corrupting the held-out text: {name}")
            with _whole(path) as unfinished:
                corrupt_held_out(*arguments_of(fields)[:3]).save_to_disk(unfinished)
    if "reference" in study:
        shared["reference_folder"] = str(folder / "references" / study["reference"])
    return shared


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `path` at the end, so that an existing `path` is always complete."""
    unfinished = path.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    yield unfinished
    unfinished.rename(path)


def _own_places(fields: dict, folder: Path) -> dict:
    """The path of the generator's folder, which a study names relative to the folder that its runs share."""
    return {"generator_folder": str(folder / fields["generator_folder"])} if "generator_folder" in fields else {}


def _tokenizer(folder: Path, base: dict, train_files: list[str]) -> Path:
    if not folder.exists():
        _, data_args, _, _ = parse_fields({**base, "train_files": train_files, "output_dir": str(folder)})
        load_tokenizer(data_args, base["vocab_size"], load_documents(data_args)["train"]).save_pretrained(folder)
    return folder


def corrupt_held_out(config_fields: dict, data_args, training_args) -> Dataset:
    """The held-out sequences of a run, corrupted once by a generator outside the model.

    Returns:
        A dataset with `input_ids` and `labels`, and `token_type_ids` if there are two segments.
    """
    start = starting_point(config_fields, data_args, training_args)
    config, packed, tokenizer, _ = prepare_run(config_fields, data_args, start)
    collate, generator = build_collator(config, packed["train"], tokenizer, training_args)
    features = Features({**packed["validation"].features, "labels": SequenceFeature(Value("uint8"))})
    columns = {name: [] for name in features}
    torch.manual_seed(training_args.seed)
    for rows in packed["validation"].iter(BATCH):
        batch = collate([dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)])
        if generator is not None:
            batch = generator.corrupt(batch, 1.0)
        for i, row in enumerate(rows["input_ids"]):
            for name, column in columns.items():
                column.append(batch[name][i, : len(row)].tolist())
    return Dataset.from_dict(columns, features)


# ---- One run ----


def collect(run: Run, folder: Path) -> dict:
    """The result of a finished run, without local paths: its measurements, and its log by step."""
    measured = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    log, seconds = {}, None
    for entry in history:
        seconds = entry.get("train_runtime", seconds)
        kept = {name: value for name, value in entry.items() if KEPT_IN_LOG.match(name)}
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
        **({"depths": depths} if (depths := read_json(folder / "config.json").get("pretraining_depths")) else {}),
        "generator": {name: measured["evaluation"][name] for name in OWN_GENERATOR if name in measured["evaluation"]},
        **{part: measured[part] for part in ("training", "flops", "parameters", "kept_share", "versions")},
    }


def cost_of_given(study: dict, fields: dict, common: Path) -> dict[str, float]:
    """Prior costs of a run's generator, as `flops` and `seconds`: those of a pre-trained model, or of cached
    replacements and the model that they come from."""
    cost = {"flops": 0.0, "seconds": 0.0}
    while "generator_folder" in fields:
        kind, name = fields["generator_folder"].split("/")
        folder = common / kind / name
        if kind == "references":
            measured, fields = json.loads((folder / METRICS_FILE).read_text("utf-8")), study[kind][name]
            spent = {"flops": measured["flops"]["total"], "seconds": measured_seconds(measured["training"])}
        else:
            fields = study[kind][name]["fields"]
            spent = json.loads((folder / CACHE_REPORT).read_text("utf-8"))["splits"]["train"]
        cost = {name: total + spent[name] for name, total in cost.items()}
    return cost


def judge(
    study: dict,
    run: Run,
    folder: Path,
    corrupted: dict[str, Dataset],
    data_args,
    args: argparse.Namespace,
    known: dict[str, dict],
) -> dict[str, dict]:
    """Run the evaluations of the run's stage for which data was given, except those that are `known`. Returns the
    results by evaluation, including `known`."""
    settings, evaluations = study["judges"], {}
    if "held_out" in run.judges and corrupted:
        for name, sequences in corrupted.items():
            evaluations[f"held_out_{name}"] = partial(judge_corrupted, folder, sequences, run.routing)
    elif "held_out" in run.judges:
        evaluations["held_out"] = partial(
            corrupt_and_judge, folder, data_args, study["base"]["generator_type"], settings["held_out"], run.routing
        )
    if "entities" in run.judges and args.entities is not None:
        evaluations["entities"] = partial(judge_entities, folder, args.entities, run.routing)
    if "blimp" in run.judges and args.blimp is not None:
        evaluations["blimp"] = partial(judge_blimp, folder, args.blimp, **settings["blimp"])
    if "glue" in run.judges and args.glue is not None:
        for task, options in settings["glue"].items():
            evaluations[task] = partial(judge_glue, folder, args.glue, task, seed=run.seed, **options)
    missing = {name: evaluate for name, evaluate in evaluations.items() if name not in known}
    if missing:
        logger.info(f"evaluating {run.name}: {', '.join(missing)}")
    return {**known, **{name: evaluate() for name, evaluate in missing.items()}}


def judge_corrupted(folder: Path, sequences: Dataset, routing: Routing | None) -> dict:
    """[`judge_held_out`] on sequences that are already corrupted."""
    collate = DataCollatorForReplacedTokenDetection(AutoTokenizer.from_pretrained(folder))
    return judge_held_out(folder, sequences, collate, routing)


def corrupt_and_judge(folder: Path, data_args, generator_type: str, options: dict, routing: Routing | None) -> dict:
    """[`judge_held_out`] on the held-out text of a run, corrupted in the same way for all runs of a study, whatever
    their own generators."""
    config, documents = AutoConfig.from_pretrained(folder, generator_type=generator_type), load_documents(data_args)
    # The same tokenizer as in the run, so that the packed text is found in the cache.
    tokenizer = load_tokenizer(data_args, config.vocab_size, documents["train"])
    packed, _ = pack(
        documents, tokenizer, data_args.max_seq_length, data_args.num_proc, data_args.segments,
        data_args.data_split_seed,
    )  # fmt: skip
    replacements = build_generator(config, packed["train"], tokenizer)
    collate = DataCollatorForReplacedTokenDetection(
        tokenizer, None, config.mlm_probability, replacements=replacements, **options
    )
    return judge_held_out(folder, packed["validation"], collate, routing)


if __name__ == "__main__":
    sys.exit(main())
