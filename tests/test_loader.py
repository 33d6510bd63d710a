"""Reading ahead with threads: order, errors, and threads that end."""

import threading
import time

import pytest

from datasets.loader import prefetch


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("tiles")]


def slow_square(number):
    time.sleep(0.004 * (number % 3 == 0))  # some jobs overtake others
    return number * number


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
class TestPrefetch:
    def test_order_is_kept(self, workers):
        found = list(prefetch(range(30), slow_square, workers=workers))
        assert found == [(n, n * n) for n in range(30)]

    def test_nothing_to_do(self, workers):
        assert list(prefetch([], slow_square, workers=workers)) == []

    def test_an_error_surfaces_at_its_place(self, workers):
        def fetch(number):
            if number == 4:
                raise OSError("tile 4 is broken")
            return slow_square(number)

        source, found = prefetch(range(30), fetch, workers=workers), []
        with pytest.raises(OSError, match="tile 4 is broken"):
            for job, _ in source:
                found.append(job)
        assert found == [0, 1, 2, 3]
        assert not reading_threads()

    def test_an_error_among_the_jobs_surfaces_too(self, workers):
        def jobs():
            yield 1
            raise KeyError("no more")

        with pytest.raises(KeyError, match="no more"):
            list(prefetch(jobs(), slow_square, workers=workers))
        assert not reading_threads()

    def test_closing_early_ends_the_threads_and_reads_no_further(self, workers):
        asked: list[int] = []

        def fetch(number):
            asked.append(number)
            return slow_square(number)

        source = prefetch(range(10_000), fetch, workers=workers, ahead=2)
        assert [next(source) for _ in range(3)] == [(0, 0), (1, 1), (2, 4)]
        source.close()
        assert not reading_threads()
        count = len(asked)
        time.sleep(0.02)
        assert len(asked) == count <= 3 + workers + 2


def test_no_more_than_the_wanted_number_is_under_way():
    asked: list[int] = []
    source = prefetch(iter(range(100)), asked.append, workers=3, ahead=2)
    for number, _ in source:
        assert len(asked) <= number + 1 + 3 + 2
    assert sorted(asked) == list(range(100))


def test_without_workers_nothing_is_read_before_it_is_asked_for():
    asked: list[int] = []
    source = prefetch(range(5), asked.append, workers=0)
    assert asked == []
    next(source)
    assert asked == [0]
