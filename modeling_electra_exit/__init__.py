"""ELECTRA with adaptive early exits, for Hugging Face Transformers. Importing this package registers it."""

import transformers

from . import modeling_electra_exit
from .configuration_electra_exit import AUTO_MAP, ElectraEarlyExitConfig, __version__
from .modeling_electra_exit import *  # noqa: F403  what it exports is listed there


for _auto_class, _reference in AUTO_MAP.items():
    _name = _reference.split(".")[1]
    if _auto_class == "AutoConfig":
        transformers.AutoConfig.register(ElectraEarlyExitConfig.model_type, ElectraEarlyExitConfig, exist_ok=True)
    else:
        getattr(transformers, _auto_class).register(
            ElectraEarlyExitConfig, getattr(modeling_electra_exit, _name), exist_ok=True
        )

__all__ = ["ElectraEarlyExitConfig", "__version__", *modeling_electra_exit.__all__]
