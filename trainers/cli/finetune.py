"""`electra-exit finetune`."""

from collections.abc import Sequence
from pathlib import Path

from .quick import Page, answer


PAGE = Page(
    command="finetune",
    recipes="finetuning",
    usage="electra-exit finetune MODEL_OR_RECIPE [--field value ...]",
    examples=(
        "  electra-exit finetune runs/mine --train_file reviews.csv --output_dir runs/reviews",
        "  electra-exit finetune glue-small --model runs/mine --task rte --data_dir glue",
    ),
    description="Fine-tune an electra-exit, ELECTRA or BERT checkpoint, once per seed, on your own examples or a GLUE "
    "task. A recipe is glue-base, glue-large or glue-small (ELECTRA's published settings), small-models (models of "
    "at most a few million parameters) or a YAML file of your own. Every field of a recipe is also a flag, and flags "
    "override the recipe. --help_all lists all flags; --debug shows tracebacks. Repeat the command to continue an "
    "interrupted run.",
    options={
        "your task": {
            "train_file FILE": "examples: .csv or .tsv with a header, .jsonl, .json or .parquet; or CoNLL (.conll, "
            ".conllu, .iob, .bio, .txt), one word per line; plain or .gz or .xz",
            "validation_file FILE": "evaluation examples, in the same formats (default: hold out a share of the "
            "training examples)",
            "text_column NAME": "column of the text, or of lists of words (default: the only candidate)",
            "text_pair_column NAME": "column of the second text of a pair",
            "label_column NAME ...": "column of the labels; several 0/1 columns are one label each (default: the only "
            "candidate)",
            "task_type TYPE": "classification, multi_label, regression or tagging (default: regression for "
            "fractions, multi_label for lists of labels, tagging for lists of words, classification otherwise)",
            "validation_fraction SHARE": "share of the examples of each label that is held out (default: 0.1)",
            "dataset_name NAME": "a dataset on the Hub instead of files",
        },
        "a GLUE task": {
            "task TASK": "cola, sst2, mrpc, stsb, qqp, mnli, qnli or rte",
            "data_dir FOLDER": "folder with TASK/train.jsonl and TASK/validation.jsonl (default: nyu-mll/glue on the "
            "Hub)",
        },
        "model": {
            "model MODEL": "the checkpoint (folder or Hub id), if a recipe comes first",
            "max_seq_length N": "maximum tokens per example (default: 128)",
            "exit_policy none": "fine-tune without exit heads",
            "exit_layers N ...": "layers with exit heads (default: those of the checkpoint)",
            "classifier_pooling mean": "classify texts from the mean of all tokens instead of the first token",
        },
        "training": {
            "seeds N ...": "fine-tune once with each of these seeds (default: once, with --seed)",
            "num_train_epochs N": "passes over the data (default: 10 for rte, stsb and own tasks with fewer than "
            "6,000 examples; else 3)",
            "max_train_examples N": "train on this many examples, sampled with the seed",
            "per_device_train_batch_size N": "examples per step and device (default: 32)",
            "learning_rate RATE": "peak learning rate of the head (default: 0.0001)",
            "layerwise_lr_decay FACTOR": "ratio of a layer's learning rate to that of the layer above (default: 0.8)",
            "warmup_steps N": "warm-up steps; below 1, a share of all steps (default: 0.1)",
            "bf16 auto": "train in bf16: true, false, or auto (if the device has fast bf16) (default: false)",
        },
        "output": {
            "output_dir FOLDER": "output folder, with one subfolder per seed (default: trainer_output)",
            "logging_steps N": "steps between log lines; below 1, a share of all steps (default: 0.1)",
        },
    },
    or_model=True,
)


def run(argv: Sequence[str]) -> int:
    answer(PAGE, argv)
    from modeling_electra_exit.trainers.finetuning.run import finetune, spread

    from .parsing import FINETUNE, parse
    from .sentences import show_progress

    show_progress()
    arguments = parse(argv, FINETUNE)
    summary = finetune(*arguments)
    print(f"\n{summary['task']}, fine-tuned from {summary['model']} with {len(summary['seeds'])} seed(s)")
    for name, measured in summary["evaluation"].items():
        beside = "".join(f"   {which} {found[name]:.4f}" for which, found in summary["baselines"].items())
        print(f"  {name:22}{spread(measured)}{beside}")
    print(f"best: {Path(arguments[2].output_dir) / summary['best']}")
    return 0
