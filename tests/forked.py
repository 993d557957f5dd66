"""Processes forked from a server that has imported everything and done nothing: fresh, without seconds of imports.

The server imports this module, and so what is imported here.
"""

import contextlib
import gc
import multiprocessing
from importlib import import_module

import tests.trainers.cli.test_cli  # noqa: F401


# What a run imports where it is installed.
for name in ("matplotlib.backends.backend_agg", "matplotlib.figure", "torch.utils.tensorboard"):
    with contextlib.suppress(ImportError):
        import_module(name)

gc.collect()
gc.freeze()  # a run's search for garbage stays out of all that

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])
