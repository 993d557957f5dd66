"""Optional figures, which require matplotlib."""

import functools
import importlib.util
import logging


logger = logging.getLogger(__name__)


@functools.cache
def can_draw() -> bool:
    """Whether matplotlib is installed. If not, warn once per process that figures are missing."""
    installed = importlib.util.find_spec("matplotlib") is not None
    if not installed:
        logger.warning("no figure is drawn: matplotlib is not installed (pip install 'electra-early-exit[demo]')")
    return installed
