"""Everything that makes a checkpoint: data, objective, Trainer and command line. Imported as
`modeling_electra_exit.trainers`."""

from .arguments import DataArguments, ElectraEarlyExitTrainingArguments
from .calibration import calibrate_exits
from .collator import DataCollatorForReplacedTokenDetection
from .muon import ElectraMuon
from .optimization import ElectraAdamW
from .trainer import ElectraEarlyExitTrainer


__all__ = [
    "DataArguments",
    "DataCollatorForReplacedTokenDetection",
    "ElectraAdamW",
    "ElectraEarlyExitTrainer",
    "ElectraEarlyExitTrainingArguments",
    "ElectraMuon",
    "calibrate_exits",
]
