"""ELECTRA with adaptive early exits, for Hugging Face Transformers. Importing this package registers it."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from .configuration_electra_exit import ElectraEarlyExitConfig
from .modeling_electra_exit import (
    ElectraEarlyExitForPreTraining,
    ElectraEarlyExitForPreTrainingOutput,
    ElectraEarlyExitModel,
    ElectraEarlyExitModelOutput,
    ElectraEarlyExitPreTrainedModel,
)


__version__ = "0.1.0.dev0"

AutoConfig.register(ElectraEarlyExitConfig.model_type, ElectraEarlyExitConfig, exist_ok=True)
AutoModel.register(ElectraEarlyExitConfig, ElectraEarlyExitModel, exist_ok=True)
AutoModelForPreTraining.register(ElectraEarlyExitConfig, ElectraEarlyExitForPreTraining, exist_ok=True)

__all__ = [
    "ElectraEarlyExitConfig",
    "ElectraEarlyExitForPreTraining",
    "ElectraEarlyExitForPreTrainingOutput",
    "ElectraEarlyExitModel",
    "ElectraEarlyExitModelOutput",
    "ElectraEarlyExitPreTrainedModel",
]
