"""Reads batches ahead of the training step, in order, with threads.

Threads, because slicing and GDAL's decoding release the interpreter lock and nothing is copied between processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
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
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="tiles")
    try:
        for job in jobs:
            queue.append((job, pool.submit(fetch, job)))
            if len(queue) >= workers + ahead:
                done, future = queue.popleft()
                yield done, future.result()
        while queue:
            done, future = queue.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
