"""main_pretrain with a network small enough for tests: `python -m tests.small_main ...` takes the same options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from unittest import mock

import torch

import main_pretrain
import models_mae_group_channels as models

SMALL = models.ModelSize(32, 1, 2, 8, 32, 1, 2, 8)


def main(argv: Sequence[str], *, pictures: bool = False) -> int:
    """Trains in this process; returns the exit status. Pictures take longer than the training, so they are optional."""
    with ExitStack() as patches:
        patches.enter_context(mock.patch.dict(models.MODEL_SIZES, tiny=SMALL))
        if not pictures:
            patches.enter_context(mock.patch.object(main_pretrain, "draw"))
        return main_pretrain.main(argv)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
