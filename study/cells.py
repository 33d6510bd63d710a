"""Cells of a table of results: text to values and back. Readers raise a bare ValueError; the table says where."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

ERRORS = 5
"""Sums of errors of a block: n, squared error, absolute error, truth, squared truth."""


def as_text(value: float | None) -> str:
    """The shortest text that reads back as the number; nothing for None and NaN."""
    if value is None or math.isnan(value):
        return ""
    whole = float(value).is_integer() and abs(value) < 2**53
    return str(int(value)) if whole else repr(float(value))


def read_name(text: str) -> str:
    """A name; ValueError if blank."""
    if not text.strip():
        raise ValueError
    return text


def read_one_of(names: Sequence[str]) -> Callable[[str], str]:
    """A reader of one of some names; ValueError of any other."""
    return lambda text: names[names.index(text)]


def read_score(text: str) -> float:
    """A finite number, NaN for nothing."""
    if text and not math.isfinite(float(text)):
        raise ValueError
    return float(text) if text else math.nan


def read_share(text: str) -> float:
    """A number above 0 up to 1."""
    if not 0 < float(text) <= 1:
        raise ValueError
    return float(text)


def read_count(text: str) -> int:
    """A whole number, 0 or more."""
    if int(text) < 0:
        raise ValueError
    return int(text)


def read_cost(text: str) -> float | None:
    """A number, 0 or more, None for nothing."""
    if text and not 0 <= float(text) < math.inf:
        raise ValueError
    return float(text) if text else None


def read_numbers(text: str) -> np.ndarray:
    """Finite numbers, float64; none for nothing."""
    numbers = np.array(text.split(), dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError
    return numbers


def read_counts(text: str) -> np.ndarray:
    """Whole numbers, 0 or more, int64; one at least."""
    counts = np.array(text.split(), dtype=np.int64)
    if not len(counts) or (counts < 0).any():
        raise ValueError
    return counts


def read_errors(text: str) -> np.ndarray:
    """The five sums of errors, float64."""
    numbers = read_numbers(text)
    if len(numbers) != ERRORS:
        raise ValueError
    return numbers
