"""Reads batches ahead of the training step, in order, with threads.

Threads, because slicing and GDAL's decoding release the interpreter lock and nothing is copied between processes. They
live as long as the process: files that a thread has opened, and blocks decoded from them, serve the next epoch too.
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
"""Jobs under way beyond the number of workers."""


def read_ahead(workers: int) -> int:
    """Most batches that wait in memory besides the one that is trained on."""
    return workers + AHEAD - 1 if workers else 0


def prefetch(
    jobs: Iterable[Job], fetch: Callable[[Job], Result], *, workers: int, ahead: int = AHEAD
) -> Generator[tuple[Job, Result], None, None]:
    """Yields each job with its result, in the order of the jobs.

    Args:
        jobs: what to fetch.
        fetch: called once a job, from any of the threads.
        workers: number of threads; 0 fetches in the caller's thread when asked.
        ahead: jobs under way beyond the number of workers.

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
    finally:  # the caller may close what is read from once this returns
        for _, future in queue:
            future.cancel()
        wait([future for _, future in queue])


@cache
def _threads(workers: int, pid: int) -> ThreadPoolExecutor:
    """The threads of a process; after a fork they are the parent's, so that the child makes its own."""
    return ThreadPoolExecutor(max_workers=workers, thread_name_prefix="tiles")
