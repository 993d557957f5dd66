"""Processes forked from a server that has imported everything and done nothing: fresh, without seconds of imports."""

import gc
import multiprocessing

import tests.trainers.cli.test_cli  # noqa: F401  for the server, which imports this module


PROCESSES = multiprocessing.get_context("forkserver")
# What a run imports where it is installed, and at last this module.
PROCESSES.set_forkserver_preload(
    ["matplotlib.backends.backend_agg", "matplotlib.figure", "torch.utils.tensorboard", __name__]
)

gc.collect()
gc.freeze()  # a run's search for garbage stays out of all that
