"""Reads batches ahead of the training step, in order, with threads.

Threads rather than processes, because slicing and GDAL's decoding release the interpreter lock and nothing is copied.
The threads live as long as the process, so that the files they opened, and decoded blocks, serve the next epoch too.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


AHEAD = 2
"""Jobs in progress beyond the number of workers."""


def read_ahead(workers: int) -> int:
    """Largest number of batches waiting in memory besides the one in training."""
    return workers + AHEAD - 1 if workers else 0


def prefetch(
    jobs: Iterable[Job], fetch: Callable[[Job], Result], *, workers: int, ahead: int = AHEAD
) -> Generator[tuple[Job, Result], None, None]:
    """Yields each job with its result, in the order of the jobs.

    Args:
        jobs: one for each result.
        fetch: called once a job, from any of the threads.
        workers: number of threads; 0 fetches in the caller's thread, one at a time.
        ahead: jobs in progress beyond the number of workers.

    Yields:
        (job, result).

    Raises:
        Exception: whatever `fetch` raised, at the place of its job in the order.
    """
    if workers == 0:
        for job in jobs:
            yield job, fetch(job)
        return
    queue: deque[tuple[Job, Future[Result]]] = deque()
    pool = _threads(workers, os.getpid())
    try:
        for job in jobs:
            queue.append((job, pool.submit(fetch, job)))
            if len(queue) >= workers + ahead:
                done, future = queue.popleft()
                yield done, future.result()
        while queue:
            done, future = queue.popleft()
            yield done, future.result()
    finally:  # the caller may close the files once this returns
        for _, future in queue:
            future.cancel()
        wait([future for _, future in queue])


@cache
def _threads(workers: int, pid: int) -> ThreadPoolExecutor:
    """The threads of a process. After a fork they belong to the parent, so the child creates its own."""
    return ThreadPoolExecutor(max_workers=workers, thread_name_prefix="tiles")
