"""ELECTRA with early exits, for Hugging Face Transformers. Importing this package registers it."""

import transformers

from . import modeling_electra_exit, modeling_heads, modeling_masked_lm
from .configuration_electra_exit import AUTO_MAP, ElectraEarlyExitConfig, __version__
from .modeling_electra_exit import *  # noqa: F403  exports are listed in `__all__` there
from .modeling_heads import *  # noqa: F403
from .modeling_masked_lm import *  # noqa: F403


__all__ = [
    "ElectraEarlyExitConfig",
    "__version__",
    *modeling_electra_exit.__all__,
    *modeling_heads.__all__,
    *modeling_masked_lm.__all__,
]

for _auto_class, _reference in AUTO_MAP.items():
    if _auto_class == "AutoConfig":
        transformers.AutoConfig.register(ElectraEarlyExitConfig.model_type, ElectraEarlyExitConfig, exist_ok=True)
    else:
        _model_class = globals()[_reference.split(".")[1]]
        getattr(transformers, _auto_class).register(ElectraEarlyExitConfig, _model_class, exist_ok=True)
