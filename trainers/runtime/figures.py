"""Figures, drawn where matplotlib is installed."""

import functools
import importlib.util
import logging


logger = logging.getLogger(__name__)


@functools.cache
def can_draw() -> bool:
    """Whether matplotlib is installed. Where it is not, one warning in a process says that figures are missing."""
    installed = importlib.util.find_spec("matplotlib") is not None
    if not installed:
        logger.warning("no figure is drawn: matplotlib is not installed (pip install 'electra-early-exit[demo]')")
    return installed
