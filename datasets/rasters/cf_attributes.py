"""Attributes of netCDF and zarr variables that say which stored numbers are data: CF conventions, netCDF User's Guide.

Attributes of one variable come as a mapping from name to number, array or text, as xarray, h5py or GDAL give them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from datasets.rasters.nodata import in_dtype

NO_LIMITS = (-math.inf, math.inf)


def numbers(attributes: Mapping[str, Any], key: str, where: str) -> np.ndarray:
    """The numbers of an attribute as a one-dimensional array; empty if there is no such attribute.

    Raises:
        ValueError: the attribute is not made of numbers; names layer, attribute and value.
    """
    if key not in attributes:
        return np.empty(0)
    values = np.atleast_1d(np.asarray(attributes[key])).ravel()
    if values.dtype.kind in "iuf":
        return values
    try:
        return np.array([float(each.decode() if isinstance(each, bytes) else str(each)) for each in values.tolist()])
    except ValueError as error:
        raise ValueError(
            f"{where}: attribute {key} is {_shown(attributes[key])}, expected a number; correct or remove the attribute"
        ) from error


def number(attributes: Mapping[str, Any], key: str, default: float, where: str) -> float:
    """The number of an attribute, or a default if there is no such attribute.

    Raises:
        ValueError: the attribute is not one number.
    """
    if key not in attributes:
        return default
    found = numbers(attributes, key, where)
    if len(found) != 1:
        raise ValueError(
            f"{where}: attribute {key} is {_shown(attributes[key])}, expected one number; correct it, or write merged "
            "variables to files of their own"
        )
    return float(found[0])


def actual_dtype(attributes: Mapping[str, Any], stored: np.dtype) -> np.dtype:
    """The type of stored whole numbers once `_Unsigned` is taken into account, in this machine's byte order."""
    stored = np.dtype(stored).newbyteorder("=")
    unsigned = str(attributes.get("_Unsigned", "")).lower()
    if (stored.kind, unsigned) in (("i", "true"), ("u", "false")):
        return np.dtype(f"{'u' if stored.kind == 'i' else 'i'}{stored.itemsize}")
    return stored


def fill_values(attributes: Mapping[str, Any], stored: np.dtype, where: str) -> list[float]:
    """The numbers that `_FillValue` and `missing_value` declare as no data, without repeats.

    Raises:
        ValueError: an attribute is not made of numbers.
    """
    found: list[float] = []
    for key in ("_FillValue", "missing_value"):
        for value in numbers(attributes, key, where):
            actual = _as_stored(value, stored, actual_dtype(attributes, stored))
            if actual not in found and not (math.isnan(actual) and any(map(math.isnan, found))):
                found.append(actual)
    return found


def valid_limits(attributes: Mapping[str, Any], stored: np.dtype, where: str) -> tuple[tuple[float, float], list[str]]:
    """The smallest and largest stored number that is data, by `valid_range`, or `valid_min` and `valid_max`.

    Limits are stored numbers, unless their type is that of the unpacked values: then they limit physical values
    (netCDF User's Guide, appendix A), and are converted.

    Args:
        attributes: of the variable.
        stored: type that the file declares, before `_Unsigned`.
        where: layer and file, for messages.

    Returns:
        (smallest, largest), and warnings.

    Raises:
        ValueError: the attributes are not numbers, not as many as expected, or leave no valid number.
    """
    given = _given_limits(attributes, where)
    actual = actual_dtype(attributes, stored)
    scale, offset = (number(attributes, key, at, where) for key, at in (("scale_factor", 1.0), ("add_offset", 0.0)))
    unpacked = (scale, offset) != (1.0, 0.0) and any(
        _of_unpacked_type(attributes, key, np.dtype(stored)) for key in ("valid_range", "valid_min", "valid_max")
    )
    low, high = (
        default if value is None else float(value) if unpacked else _as_stored(value, stored, actual)
        for value, default in zip(given, NO_LIMITS, strict=True)
    )
    if not low <= high:
        raise ValueError(
            f"{where}: valid numbers from {low:.9g} to {high:.9g} by valid_range, valid_min or valid_max, expected the "
            "smallest first; correct or remove these attributes"
        )
    if not unpacked:
        return (low, high), []
    warning = (
        f"valid limits {low:.9g} to {high:.9g} are not of the stored type {np.dtype(stored).name}: taken for limits of "
        "the physical values (stored * scale_factor + add_offset)"
    )
    low, high = sorted((limit - offset) / scale for limit in (low, high))
    low, high = low - 1e-6 * abs(low), high + 1e-6 * abs(high)  # limits themselves are valid, whatever rounding does
    if actual.kind != "f":
        low, high = _rounded(low - 0.01, math.ceil), _rounded(high + 0.01, math.floor)
    return (low, high), [warning]


def limits_rule(limits: tuple[float, float]) -> list[str]:
    """What valid limits make invalid, in words."""
    return [] if limits == NO_LIMITS else [f"outside the valid range {limits[0]:.9g} to {limits[1]:.9g}"]


def _given_limits(attributes: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    """Smallest and largest valid number as the attributes state them, None where they state none."""
    if "valid_range" not in attributes:
        for key in ("valid_min", "valid_max"):
            number(attributes, key, 0.0, where)
        low, high = (numbers(attributes, key, where) for key in ("valid_min", "valid_max"))
        return low[0] if len(low) else None, high[0] if len(high) else None
    found = numbers(attributes, "valid_range", where)
    if len(found) != 2:
        raise ValueError(
            f"{where}: attribute valid_range is {_shown(attributes['valid_range'])}, expected two numbers, the "
            "smallest and the largest; correct or remove the attribute"
        )
    return found[0], found[1]


def _of_unpacked_type(attributes: Mapping[str, Any], key: str, stored: np.dtype) -> bool:
    """Whether an attribute has the type of unpacked values and not that of stored ones; types of texts are unknown."""
    if key not in attributes or np.asarray(attributes[key]).dtype.kind not in "iuf":
        return False
    limit = np.asarray(attributes[key]).dtype.newbyteorder("=")
    if stored.kind != "f":
        return limit.kind == "f"
    packing = [np.asarray(attributes[k]).dtype for k in ("scale_factor", "add_offset") if k in attributes]
    typed = isinstance(attributes[key], np.generic | np.ndarray)  # JSON knows one type of decimal numbers only
    return typed and limit.itemsize > stored.itemsize and limit == np.result_type(*packing)


def _as_stored(value: Any, stored: np.dtype, actual: np.dtype) -> float:
    """An attribute's number, with the sign that `_Unsigned` gives to numbers of the stored type."""
    number = float(value)
    if np.dtype(stored).kind != actual.kind and in_dtype(number, np.dtype(stored).name) is not None:
        return float(np.array(int(number), dtype=np.dtype(stored).newbyteorder("=")).view(actual))
    return number


def _rounded(limit: float, how: Callable[[float], int]) -> float:
    return float(how(limit)) if math.isfinite(limit) else limit


def _shown(value: Any) -> str:
    """An attribute's value as a message shows it."""
    text = str(np.asarray(value).tolist())
    return text if len(text) <= 60 else f"{text[:60]}..."
