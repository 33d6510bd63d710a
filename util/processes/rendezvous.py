"""How the processes of one start of a run find one another where an earlier start of it has left its addresses.

torchrun's store outlives the processes that it starts again, and holds the addresses of the dead under the names by
which the living look for each other: they then connect to nothing, or wait (seen with torch 2.7 and 2.15 over gloo;
pytorch issue 167288 tells the same of NCCL). How often a machine's processes were started does not tell starts apart,
as each machine counts for itself. So the processes first agree on a name of their own.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

POLL_S = 0.01


def rendezvous_prefix(store: Any, *, rank: int, world_size: int, timeout_s: float) -> str:
    """Returns a name that exactly the processes of this start share; every one of them must call it.

    Each but the first asks under a token that nobody used before; the first answers every token that it finds, also
    those of the dead, until all the living have said that they were answered.

    Args:
        store: a `torch.distributed.Store` that all of them reach, whatever it holds.
        rank: of this process.
        world_size: number of processes.
        timeout_s: seconds to wait for the others.

    Raises:
        RuntimeError: the others did not come within the time.
    """
    if rank:
        token = uuid.uuid4().hex
        store.set(f"asks/{rank}", token)
        _wait_until(lambda: store.check([f"answer/{token}"]), timeout_s)
        name = store.get(f"answer/{token}").decode()
        store.add(f"heard/{name}", 1)
        return name
    name = uuid.uuid4().hex
    answered: set[bytes] = set()

    def all_have_heard() -> bool:
        for other in range(1, world_size):
            if store.check([f"asks/{other}"]) and (token := store.get(f"asks/{other}")) not in answered:
                store.set(f"answer/{token.decode()}", name)
                answered.add(token)
        return store.add(f"heard/{name}", 0) == world_size - 1

    _wait_until(all_have_heard, timeout_s)
    return name


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"the others did not come within {timeout_s:.0f} s")
        time.sleep(POLL_S)
