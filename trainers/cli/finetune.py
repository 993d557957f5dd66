"""`electra-exit finetune`."""

from collections.abc import Sequence


def run(argv: Sequence[str]) -> int:
    from modeling_electra_exit.trainers.finetuning.run import finetune, spread
    from modeling_electra_exit.trainers.finetuning.tasks import TASKS

    from .parsing import FINETUNE, parse
    from .sentences import show_progress

    show_progress()
    summary = finetune(*parse(argv, FINETUNE))
    print(f"\n{summary['task']}, fine-tuned from {summary['model']} with {len(summary['seeds'])} seed(s)")
    for name in TASKS[summary["task"]].metrics:
        print(f"  {name:22}{spread(summary['evaluation'][name])}")
    return 0
