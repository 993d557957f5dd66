"""`electra-exit pretrain`."""

from collections.abc import Sequence

from .quick import Page, answer


PAGE = Page(
    command="pretrain",
    recipes="",
    usage="electra-exit pretrain RECIPE [--field value ...]",
    examples=(
        "  electra-exit pretrain quickstart --train_time 10min",
        "  electra-exit pretrain electra-small --train_files my.txt --output_dir runs/mine --bf16 auto",
        "  electra-exit pretrain domain-adapt --init_from MODEL --train_files my.txt --output_dir runs/mine",
    ),
    description="Pre-train from a recipe: domain-adapt, electra-base, electra-small, electra-small-fast, quickstart, "
    "or a YAML file of your own. Every field of a recipe is also a flag, and flags override the recipe. The defaults "
    "below apply to fields that the recipe does not set. --help_all lists all flags; --debug shows tracebacks. Repeat "
    "the command to continue an interrupted run.",
    options={
        "text": {
            "train_files FILE ...": "local .txt, .jsonl, .json, .csv or .parquet files, plain or .gz or .xz; folders "
            "of them, patterns such as 'texts/**/*.txt', or - for standard input",
            "dataset_name NAME": "a dataset on the Hub instead of files",
            "validation_files FILE ...": "held-out text (default: 2 % of the documents)",
            "streaming": "tokenize while reading, in constant memory",
            "tokenizer_name NAME": "tokenizer: folder or Hub id (default: train one)",
            "tokenizer_type TYPE": "type of the trained tokenizer: wordpiece, unigram or bpe (default: wordpiece)",
            "vocab_size N": "vocabulary size of the trained tokenizer (default: 30522)",
            "max_seq_length N": "tokens per sequence (default: 128)",
        },
        "start": {
            "continue_from FOLDER": "train a finished run for --max_steps more steps, in another --output_dir",
            "init_from MODEL": "initialize from a BERT, ELECTRA or electra-exit model (folder or Hub id), with its "
            "tokenizer and sizes (default: random weights)",
        },
        "model": {
            "num_hidden_layers N": "layers (default: 12)",
            "hidden_size N": "width of the layers (default: 256)",
        },
        "exits": {
            "exit_policy POLICY": "how to choose the tokens that continue past an exit layer: random, topk or "
            "threshold; none for no exits (default: random)",
            "exit_layers N ...": "layers after which tokens exit (default: one, after a third of the depth or the "
            "first of two)",
            "exit_capacities SHARE ...": "share of the tokens that continue past each exit (default: 1/8, 1/16, ...)",
        },
        "generator": {
            "generator_type TYPE": "source of the replacements: mlm, uniform, unigram, bigram, shuffle, frozen, "
            "cached, self, or module:attribute (default: mlm)",
        },
        "training": {
            "max_steps N": "optimizer steps (default: 1000000)",
            "train_time TIME": "training time instead of --max_steps, such as 2h or 90min",
            "per_device_train_batch_size N": "sequences per step and device (default: 8)",
            "optim NAME": "adamw_torch_fused, muon, or another optimizer of Transformers (default: adamw_torch_fused)",
            "learning_rate RATE": "peak learning rate (default: 0.0005)",
            "warmup_steps N": "warm-up steps; below 1, a share of all steps (default: 10000)",
            "bf16 auto": "train in bf16: true, false, or auto (if the device has fast bf16) (default: false)",
            "seed N": "seed for weights, masks and exits (default: 42)",
            "dry_run": "prepare the data, time a few steps, estimate the duration of the run, and stop",
        },
        "output": {
            "output_dir FOLDER": "folder of the run (default: trainer_output)",
            "logging_steps N": "steps between log lines (default: 500)",
            "eval_strategy steps": "evaluate every --eval_steps steps (default: no)",
            "save_steps N": "steps between checkpoints (default: 500)",
            "push_to_hub": "push the finished run; --hub_model_id names the repository",
        },
    },
)


def run(argv: Sequence[str]) -> int:
    answer(PAGE, argv)
    from modeling_electra_exit.trainers.pretraining.run import pretrain

    from .parsing import parse
    from .sentences import show_progress

    show_progress()
    pretrain(*parse(argv))
    return 0
