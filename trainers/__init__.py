"""Everything that makes a checkpoint: data, objective, Trainer and command line. Imported as
`modeling_electra_exit.trainers`."""

from .data.arguments import DataArguments
from .finetuning.calibration import calibrate_exits
from .pretraining.collator import DataCollatorForReplacedTokenDetection
from .pretraining.trainer import ElectraEarlyExitTrainer
from .runtime.arguments import ElectraEarlyExitTrainingArguments
from .runtime.muon import ElectraMuon
from .runtime.optimization import ElectraAdamW


__all__ = [
    "DataArguments",
    "DataCollatorForReplacedTokenDetection",
    "ElectraAdamW",
    "ElectraEarlyExitTrainer",
    "ElectraEarlyExitTrainingArguments",
    "ElectraMuon",
    "calibrate_exits",
]
