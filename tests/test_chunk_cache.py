"""Chunks that are kept: windows are slices of the array whatever was kept before, and no more is kept than allowed."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.rasters import chunk_cache
from datasets.rasters.chunk_cache import ChunkCache

ARRAY = np.arange(17 * 23, dtype=np.int32).reshape(17, 23)


class Reader:
    """Slices of the array; counts the numbers it gave."""

    def __init__(self):
        self.given = 0

    def __call__(self, row, col, rows, cols):
        self.given += rows * cols
        return ARRAY[row : row + rows, col : col + cols].copy()


def read(cache, window, reader, chunk=(4, 5), name="a"):
    return cache.read(name, window, chunk=chunk, shape=ARRAY.shape, dtype=np.int32, read=reader)


windows = st.tuples(st.integers(0, 16), st.integers(0, 22), st.integers(1, 17), st.integers(1, 23)).map(
    lambda w: (w[0], w[1], min(w[2], 17 - w[0]), min(w[3], 23 - w[1]))
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(windows, min_size=1, max_size=12), st.integers(1, 20_000), st.tuples(st.integers(1, 9), st.integers(1, 30))
)
def test_windows_are_slices_and_room_is_kept(asked, limit, chunk):
    cache, reader = ChunkCache(limit), Reader()
    for window in asked:
        row, col, rows, cols = window
        values = read(cache, window, reader, chunk)
        np.testing.assert_array_equal(values, ARRAY[row : row + rows, col : col + cols])
        values[:] = -1  # the caller's own: nothing that is kept changes
        assert cache.size <= limit


def test_a_chunk_is_decoded_once():
    cache, reader = ChunkCache(10**6), Reader()
    read(cache, (0, 0, 4, 5), reader)
    assert reader.given == 20
    read(cache, (1, 1, 2, 3), reader)
    assert reader.given == 20
    read(cache, (2, 2, 4, 5), reader)  # touches four, three of them new
    assert reader.given == 80
    read(cache, (0, 0, 4, 5), reader, name="b")
    assert reader.given == 100


def test_what_was_used_least_recently_goes_first(monkeypatch):
    monkeypatch.setattr(chunk_cache, "CHUNK_SHARE", 1)
    cache, reader = ChunkCache(3 * 80), Reader()
    for col, expected in ((0, 20), (5, 40), (10, 60), (0, 60), (15, 80), (0, 80), (5, 100)):
        read(cache, (0, col, 4, 5), reader)
        assert reader.given == expected


def test_whole_layers_pass_by():
    cache, reader = ChunkCache(16 * 79), Reader()
    read(cache, (0, 0, 4, 5), reader)
    assert cache.size == 0 and reader.given == 20


def test_threads_read_the_same():
    cache, errors = ChunkCache(600), []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(200):
            row, col = int(rng.integers(0, 12)), int(rng.integers(0, 16))
            if not np.array_equal(read(cache, (row, col, 5, 7), Reader()), ARRAY[row : row + 5, col : col + 7]):
                errors.append((row, col))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_errors_leave_nothing_behind():
    cache = ChunkCache()

    def fails(*window):
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        read(cache, (0, 0, 4, 5), fails)
    assert cache.size == 0
