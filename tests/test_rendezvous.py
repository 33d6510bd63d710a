"""Processes that agree on a name, played by threads over one store that holds what the dead have left."""

import threading
from datetime import timedelta

import pytest
import torch.distributed

from util.processes.rendezvous import rendezvous_prefix


def meet(store, *, world_size: int = 4) -> list[str]:
    """The names that the processes of one start get."""
    names = [""] * world_size

    def one(rank: int) -> None:
        names[rank] = rendezvous_prefix(store, rank=rank, world_size=world_size, timeout_s=20)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in reversed(range(world_size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return names


@pytest.fixture
def store():
    """A store within this process."""
    made = torch.distributed.HashStore()
    made.set_timeout(timedelta(seconds=20))
    return made


def test_each_start_has_a_name_of_its_own(store):
    starts = [meet(store) for _ in range(5)]
    assert all(len(set(names)) == 1 for names in starts)
    assert len({names[0] for names in starts}) == 5


def test_the_dead_are_not_waited_for(store):
    """Of an earlier start some had asked, and one was answered, before it was killed."""
    for rank in (1, 3):
        store.set(f"asks/{rank}", f"token of a dead {rank}")
    store.set("answer/token of a dead 1", "name of the dead")
    names = meet(store)
    assert len(set(names)) == 1 and names[0] != "name of the dead"


def test_one_process_needs_nobody(store):
    assert rendezvous_prefix(store, rank=0, world_size=1, timeout_s=1)


@pytest.mark.parametrize("rank", [0, 1])
def test_others_who_never_come(store, rank):
    store.set("asks/1", "token of the dead")
    with pytest.raises(RuntimeError, match="the others did not come within 0 s"):
        rendezvous_prefix(store, rank=rank, world_size=2, timeout_s=0.05)
