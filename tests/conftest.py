"""Settings of all tests: one torch thread, no display, processes that start quickly, quick garbage collection."""

import atexit
import gc
import multiprocessing

import matplotlib
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)  # the tensors are tiny, and pytest-xdist already uses the other cores
# Tests that need several processes fork them from a server that has imported these once.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["util.processes.distributed", "tests.small_main", "tests.labelled", "tests.small_maps", "torch.utils.tensorboard"]
)


def pytest_collection_finish() -> None:
    """What has been imported and collected stays: each of the many collections would look through all of it."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)
