"""Settings shared by all tests: one torch thread, pictures drawn without a display, processes that start quickly."""

import multiprocessing

import matplotlib
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)  # the tensors are tiny, and pytest-xdist already uses the other cores
# Tests that need several processes fork them from a server that has imported these once.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["util.processes.distributed", "tests.small_main", "tests.labelled", "torch.utils.tensorboard"]
)
