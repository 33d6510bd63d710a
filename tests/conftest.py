"""Settings shared by all tests: one torch thread, and pictures drawn without a display."""

import matplotlib
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)  # the tensors are tiny, and pytest-xdist already uses the other cores
