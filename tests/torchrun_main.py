"""The small main_pretrain as torchrun starts it, with processes that die: `-m tests.torchrun_main ...`.

GRIDMAE_TEST_KILLS is a JSON list of [rank, when]: the n-th start of the launch ends without a word, as the kernel ends
a process, in that rank; after that optimiser step if `when` is whole, after that many seconds if it is not.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading

import torch

import main_pretrain
from tests import small_main

PR_SET_PDEATHSIG = 1


def die() -> None:
    """Ends this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kills: list[tuple[int, float]]) -> None:
    """Prepares the death of this process, if this start of it is to die."""
    start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if start >= len(kills) or kills[start][0] != int(os.environ["RANK"]):
        return
    when = kills[start][1]
    if isinstance(when, float):
        timer = threading.Timer(when, die)
        timer.daemon = True
        timer.start()
        return
    record = main_pretrain.log_window

    def record_and_die(run, *rest):
        record(run, *rest)
        if run.state.progress.step == when:
            die()

    main_pretrain.log_window = record_and_die


if __name__ == "__main__":
    if sys.platform == "linux":  # dies with torchrun, should a test have to kill that
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    torch.set_num_threads(1)
    arm(json.loads(os.environ.get("GRIDMAE_TEST_KILLS", "[]")))
    sys.exit(small_main.main(sys.argv[1:]))
