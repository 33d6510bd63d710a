"""Reading ahead with threads: order, errors, nothing left under way, and threads that stay."""

import threading
import time

import pytest

from datasets.loading.prefetch import prefetch


class Counted:
    """Squares numbers slowly, and knows how many it is at."""

    def __init__(self, broken=None):
        self.asked: list[int] = []
        self.under_way, self.broken = 0, broken
        self.lock = threading.Lock()

    def __call__(self, number):
        with self.lock:
            self.asked.append(number)
            self.under_way += 1
        try:
            if number == self.broken:
                raise OSError(f"tile {number} is broken")
            return slow_square(number)
        finally:
            with self.lock:
                self.under_way -= 1


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
        fetch, found = Counted(broken=4), []
        with pytest.raises(OSError, match="tile 4 is broken"):
            for job, _ in prefetch(range(30), fetch, workers=workers):
                found.append(job)
        assert found == [0, 1, 2, 3] and fetch.under_way == 0

    def test_an_error_among_the_jobs_surfaces_too(self, workers):
        def jobs():
            yield 1
            raise KeyError("no more")

        fetch = Counted()
        with pytest.raises(KeyError, match="no more"):
            list(prefetch(jobs(), fetch, workers=workers))
        assert fetch.under_way == 0

    def test_closed_early_it_reads_no_further(self, workers):
        fetch = Counted()
        source = prefetch(range(10_000), fetch, workers=workers, ahead=2)
        assert [next(source) for _ in range(3)] == [(0, 0), (1, 1), (2, 4)]
        source.close()
        assert fetch.under_way == 0
        count = len(fetch.asked)
        time.sleep(0.02)
        assert len(fetch.asked) == count <= 3 + workers + 2


def test_the_next_epoch_is_read_by_the_same_threads():
    def who(_):
        time.sleep(0.001)
        return threading.get_ident()

    epochs = [{thread for _, thread in prefetch(range(40), who, workers=2)} for _ in range(3)]
    assert len(set.union(*epochs)) <= 2 and threading.get_ident() not in set.union(*epochs)


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
