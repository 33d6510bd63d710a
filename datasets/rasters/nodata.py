"""Which stored numbers are data: nodata values, undeclared dummies, and statistics over what remains.

Everything here is pure NumPy on arrays of the file's own type: a nodata value is compared before any scaling
or narrowing, because -99999.9 stored as float32 is no longer -99999.9, and int16 codes lose their meaning
once scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from datasets.layers.moments import RunningMoments

# No geophysical quantity reaches 1e30 in any unit in use, and every "huge" dummy (1e30, -1e32, 1.70141e38,
# -3.4e38) does.
HUGE = 1e30

# Values that software writes for "no data" without declaring it: decimal habits, limits of the integer types,
# Surfer/Geosoft.
KNOWN_DUMMIES = (
    *(sign * float("9" * digits) for digits in range(3, 8) for sign in (-1, 1)),
    *(sign * power for power in (1e10, 1e20) for sign in (-1, 1)),
    *(-32768.0, -32767.0, 32767.0, 65535.0, -2147483648.0, -2147483647.0, 2147483647.0, 4294967295.0),
    *(-(2.0**63), 2.0**63, 2.0**64),  # of 64 bits: as doubles, which cannot hold the largest exactly
)

# Besides those, the limits of 8-bit types but 0, by NumPy name. They are everyday values of images, so more is asked of
# them (see `NodataScan.classify_nodata_candidates`).
BYTE_DUMMIES = {"uint8": (255.0,), "int8": (-128.0, 127.0)}

# Doubtful limits of 8-bit types are worth a warning only if this fraction of the others' range lies between.
_BYTE_GAP = 0.1

# Whole numbers occur by chance in integer data: a known dummy within the range of the others is worth a
# note only where it is this many times as frequent as the average number there.
_SPIKE = 10.0

# At most this many distinct whole numbers in a layer look like classes rather than measurements.
FEW_DISTINCT = 16


def in_dtype(value: float, dtype: str) -> float | int | None:
    """Return ``value`` as a pixel of type ``dtype`` would hold it, or None if such a pixel cannot hold it.

    Args:
        value: nodata value as declared by the file or given by the user, in stored (unscaled) units.
        dtype: NumPy name of the file's type.
    """
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        if not np.isfinite(value) or value != int(value):
            return None
        limits = np.iinfo(kind)
        if value == float(limits.max):  # a double rounds the largest of 64 bits just past the type's range
            return int(limits.max)
        return int(value) if limits.min <= int(value) <= limits.max else None
    with np.errstate(over="ignore"):
        return float(kind.type(value))


def stored_values(values: Sequence[float], dtype: str) -> tuple[float, ...]:
    """Return every stored number that means one of ``values`` in a file of type ``dtype``, without repeats.

    In a float64 file a dummy may have passed through float32 on its way, so both roundings count. Values that
    are not finite or beyond `HUGE` are left out: they are invalid anyway.
    """
    found: list[float] = []
    for value in values:
        candidates = [in_dtype(value, dtype)]
        if np.dtype(dtype) == np.float64:
            candidates.append(in_dtype(value, "float32"))
        for candidate in candidates:
            if candidate is not None and abs(candidate) < HUGE and candidate not in found:
                found.append(candidate)
    return tuple(found)


def listed(values: Sequence[float]) -> str:
    """Return numbers as a message shows them."""
    return ", ".join(f"{value:.9g}" for value in values)


def invalid_pixels(raw: np.ndarray, values: Sequence[float]) -> np.ndarray | None:
    """Return where ``raw`` holds no data: not finite, at least `HUGE` in size, or equal to one of ``values``.

    Args:
        raw: pixels in the file's own type, any shape.
        values: stored numbers that mean nodata (see `stored_values`).

    Returns:
        Boolean array like ``raw``, True = invalid; None when no pixel is.
    """
    if not raw.size:
        return None
    with np.errstate(invalid="ignore"):
        low, high = raw.min(), raw.max()  # NaN if any pixel is; two quick passes that suffice for most windows
    invalid: np.ndarray | None = None
    if raw.dtype.kind == "f" and not (low > -HUGE and high < HUGE):
        with np.errstate(invalid="ignore"):
            invalid = ~(np.abs(raw) < raw.dtype.type(HUGE))  # NaN compares False, hence the negation
    for value in values:
        if invalid is None and not low <= value <= high:
            continue
        same = raw == raw.dtype.type(value)
        if invalid is None:
            invalid = same if same.any() else None
        else:
            np.logical_or(invalid, same, out=invalid)
    return invalid


def to_physical(raw: np.ndarray, invalid: np.ndarray | None, *, scale: float, offset: float) -> np.ndarray:
    """Return ``raw * scale + offset`` as float32 with NaN where invalid or beyond float32's range.

    The product is formed in float64. An array that is float32 and unscaled already is changed in place.
    """
    if scale != 1.0 or offset != 0.0:
        with np.errstate(over="ignore", invalid="ignore"):
            values = (raw.astype(np.float64) * scale + offset).astype(np.float32)
        values[~np.isfinite(values)] = np.nan
    else:
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(raw, dtype=np.float32)
    if invalid is not None:
        values[invalid] = np.nan
    return values


@dataclass
class NodataScan:
    """Stored numbers seen in a scan: statistics, possible dummies, distinct values.

    Attributes:
        dtype: the file's type, in which dummies are compared.
        data: moments of the valid numbers that are no known dummy, stored units.
        dummies: how often each known dummy occurs.
        pixels: number of pixels seen, valid or not.
        zeros: number of valid pixels that hold exactly 0.
        ends: the smallest and the largest valid number that is no known dummy, and how many pixels hold it.
        distinct: the distinct whole numbers seen, or None once they are too many or not whole.
        recognise: False where numbers are class codes, of which none is taken for a dummy.
    """

    dtype: str
    data: RunningMoments = field(default_factory=RunningMoments)
    dummies: dict[float, int] = field(default_factory=dict)
    pixels: int = 0
    zeros: int = 0
    ends: list[tuple[float, int]] = field(default_factory=lambda: [(np.inf, 0), (-np.inf, 0)])
    distinct: set[float] | None = field(default_factory=set)
    recognise: bool = True

    def __post_init__(self) -> None:
        """Choose the dummies that this type can hold."""
        known = (*KNOWN_DUMMIES, *BYTE_DUMMIES.get(self.dtype, ()))
        self._known = stored_values(known if self.recognise else (), self.dtype)

    def add(self, raw: np.ndarray, invalid: np.ndarray | None) -> None:
        """Count one chunk of stored pixels; ``invalid`` marks those already known to hold no data."""
        self.pixels += raw.size
        kept = raw.ravel() if invalid is None else raw[~invalid]
        if not kept.size:
            return
        low, high = kept.min(), kept.max()
        if low <= 0 <= high:
            self.zeros += kept.size - int(np.count_nonzero(kept))
        for value in self._known:
            if low <= value <= high:
                same = kept == kept.dtype.type(value)
                found = int(np.count_nonzero(same))
                if found:
                    self.dummies[value] = self.dummies.get(value, 0) + found
                    kept = kept[~same]
        self._count_distinct(kept)
        self._count_ends(kept)
        self.data.add(kept.astype(np.float64))

    def _count_ends(self, kept: np.ndarray) -> None:
        if not kept.size:
            return
        for number, (end, sign) in enumerate(((kept.min(), 1), (kept.max(), -1))):
            value, count = self.ends[number]
            if sign * float(end) <= sign * value:
                found = int(np.count_nonzero(kept == end))
                self.ends[number] = (float(end), found + count * (float(end) == value))

    def _count_distinct(self, kept: np.ndarray) -> None:
        for part in (
            kept[:4096],
            kept,
        ):  # the short part suffices for nearly every layer, without sorting the chunk
            if self.distinct is not None:
                self.distinct.update(np.unique(part).tolist())
                if len(self.distinct) > FEW_DISTINCT or any(value != int(value) for value in self.distinct):
                    self.distinct = None

    def _occurs_by_chance(self, value: float, count: int) -> bool:
        data = self.data
        if value in BYTE_DUMMIES.get(self.dtype, ()):
            return self._distance(value) <= _BYTE_GAP * (data.maximum - data.minimum)
        whole = np.dtype(self.dtype).kind in "iu"
        steps = data.maximum - data.minimum + 1
        return whole and data.minimum < value < data.maximum and count <= _SPIKE * data.count / steps

    def _distance(self, value: float) -> float:
        """How far a number lies from the range of the data."""
        return max(self.data.minimum - value, value - self.data.maximum, 0.0)

    def _is_isolated(self, value: float) -> bool:
        if not self.data.count or self._distance(value) <= self.data.maximum - self.data.minimum:
            return False
        if value not in BYTE_DUMMIES.get(self.dtype, ()) or self.distinct is None:
            return True
        steps = np.diff(sorted(self.distinct))
        return bool(steps.size) and 2 * steps.max() < self._distance(value)

    def classify_nodata_candidates(self) -> tuple[tuple[float, ...], tuple[tuple[float, int], ...]]:
        """Decide which known dummies present are nodata, and count the others back in as data.

        A known dummy is nodata when it is isolated: farther from the nearest other valid value than the whole
        range of the others. Nearest first, so that a dummy taken for data widens the range for the next. A limit of an
        8-bit type is nodata only if the others hold at least two values and no step between them is half as large:
        masks of 0 and 255, and levels such as 0, 127 and 255, are data.

        Returns:
            The values that are nodata, and (value, count) of doubtful ones that were taken for data.
        """
        isolated: list[float] = []
        doubtful: list[tuple[float, int]] = []
        remaining = dict(self.dummies)
        while remaining:
            value = min(remaining, key=lambda each: (self._distance(each), each)) if self.data.count else min(remaining)
            count = remaining.pop(value)
            if self._is_isolated(value):
                isolated.append(value)
            else:
                if not self._occurs_by_chance(value, count):
                    doubtful.append((value, count))
                self.data.merge(RunningMoments(count, value, 0.0, value, value))
                if self.distinct is not None:
                    self.distinct.add(value)
        return tuple(isolated), tuple(doubtful)
