"""Columns of labels: classes or values of features, without nodata; numbers as people write them."""

from __future__ import annotations

import logging
import re

import geopandas
import numpy as np
import pandas

from datasets.layers.class_table import Code, check_class_count, sorted_codes
from datasets.rasters.nodata import HUGE, KNOWN_DUMMIES, NodataScan, invalid_pixels, listed, stored_values

logger = logging.getLogger(__name__)

_DECIMAL_COMMA = r"[+-]?\d+(?:,\d+)?(?:[eE][+-]?\d+)?"
# 511,251 may be a fraction or half a million.
_PERHAPS_THOUSANDS = r"[+-]?[1-9]\d{0,2},\d{3}"
# 7 000 000; 7.000.000,5; 7'000'000; 511251,9
_SEPARATED = re.compile(r"[+-]?\d{1,3}(?:[\s.,'’]\d{3})+(?:[.,]\d+)?|[+-]?\d*,\d+")
# <5, > 100
_LIMIT = re.compile(r"[<>≤≥]\s*=?\s*[+-]?[\d.,]+\s*\D*")
# 5 ppm, 12.5%
_WITH_UNIT = re.compile(r"[+-]?\d+(?:\.\d+)?\s*(?:%|‰|ppm|ppb|ppt|wt%|g/t|mg/kg|nT|mGal|m|km|ft)", re.IGNORECASE)
# 34 30 15 S; 34°30'15"; -34:30:15.5; 34.5S
_SEXAGESIMAL = re.compile(
    r"[NSEW]?\s*[+-]?\d+(?:[.,]\d+)?(?:\s*[°ºdms:'′’\"″\s]\s*(?:\d+(?:[.,]\d+)?)?)*\s*[NSEW]?", re.IGNORECASE
)

# Texts that programs write for a missing number, in lower case. Among names of classes they are names like any other.
_MISSING = (
    *("na", "n/a", "#na", "#n/a", "#n/a n/a", "<na>", "nan", "-nan", "null", "none"),
    *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
)


def choose_column(frame: geopandas.GeoDataFrame, column: str | None, where: str) -> str:
    """Return the attribute to use: the one named, or the only one there is.

    Raises:
        ValueError: there is no such column, or none is named and there are several.
    """
    there = [str(name) for name in frame.columns if name != frame.geometry.name]
    if column is None and len(there) == 1:
        return there[0]
    if column is None or column not in there:
        asked = "no --label_column is given" if column is None else f"there is no column '{column}'"
        expected = f"expected one of: {', '.join(there) or 'none, it has no attributes'}"
        if set(frame.geom_type) <= {"Point", "MultiPoint"}:
            expected += "; points that only say where something is, such as deposits, are for --task classification"
        raise ValueError(f"{where}: {asked}; {expected}")
    return column


def with_codes(
    frame: geopandas.GeoDataFrame, column: str, where: str, nodata: float | None = None
) -> tuple[geopandas.GeoDataFrame, tuple[Code, ...]]:
    """Return the features that have a class, and its code: a whole number, or a text.

    Args:
        frame: the features.
        column: holds the classes.
        where: names the labels in messages.
        nodata: number that means unlabelled; others are recognised (see `nodata_in`).

    Raises:
        ValueError: numbers that are not whole, or too many classes.
    """
    values = with_decimal_points(frame[column])
    if pandas.api.types.is_numeric_dtype(values) or pandas.api.types.is_bool_dtype(values):
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        absent = ~np.isfinite(numbers)
        dummy = nodata_in(numbers, nodata, f"{where}: column '{column}'")
        known = ~(absent | dummy)
        broken = numbers[known & (numbers != np.rint(numbers))]
        if broken.size:
            raise ValueError(
                f"{where}: column '{column}' holds {broken[0]:.9g}, which is no class code, expected whole numbers or "
                "text; if these are measurements, use --task regression"
            )
        codes: tuple[Code, ...] = tuple(int(value) for value in values[known])
    else:
        texts = values.astype("string").str.strip()
        absent = ~(texts.notna() & (texts != "")).to_numpy(dtype=bool)
        dummy = _nodata_in_texts(texts, nodata, f"{where}: column '{column}'")
        known = ~(absent | dummy)
        names = tuple(str(text) for text in texts[known])
        codes = names
        _warn_of_missing(names, f"{where}: column '{column}'")
        _warn_of_spellings(set(names), f"{where}: column '{column}'")
    if absent.any():
        logger.warning("%s: %d of %d features have no '%s': not used", where, absent.sum(), len(absent), column)
    check_class_count(sorted_codes(codes), where)
    return frame[known], codes


def with_values(
    frame: geopandas.GeoDataFrame, column: str, where: str, nodata: float | None = None
) -> tuple[geopandas.GeoDataFrame, np.ndarray]:
    """Return the features that have a value, and the values, (n,) float32; arguments as of `with_codes`.

    Raises:
        ValueError: something that is no number.
    """
    numbers = parse_numbers(
        frame[column], where, otherwise="choose another column, or for classes use --task segmentation"
    )
    absent = ~np.isfinite(numbers)
    if absent.any():
        logger.warning("%s: %d of %d features have no value: not used", where, absent.sum(), len(absent))
    known = ~(absent | nodata_in(numbers, nodata, f"{where}: column '{column}'"))
    return frame[known], numbers[known].astype(np.float32)


def nodata_in(numbers: np.ndarray, nodata: float | None, where: str) -> np.ndarray:
    """Return which numbers mean unlabelled, by the rules for rasters, and warn of those that nobody declared.

    Args:
        numbers: (n,) float64, NaN where there is none.
        nodata: a number declared as nodata.
        where: names the column in the warning.

    Returns:
        (n,) bool: declared, at least 1e30 in size, or recognised by `NodataScan`. NaN are not among them, nor are
        doubtful dummies, of which a warning is given.
    """
    finite = np.isfinite(numbers)
    declared = np.isin(numbers, () if nodata is None else stored_values([nodata], "float64"))
    huge = invalid_pixels(numbers, ())
    huge = np.zeros(len(numbers), dtype=bool) if huge is None else huge & finite & ~declared
    scan = NodataScan("float64")
    scan.add(numbers, declared | huge | ~finite)
    if (numbers[finite] == np.rint(numbers[finite])).all():
        scan.dtype = "int64"  # a known dummy may occur by chance among whole numbers
    dummies, doubtful = scan.classify_nodata_candidates()
    for value, count in doubtful:
        warn_of_doubtful_nodata(value, f"{count} of {len(numbers)} features", where)
    undeclared = huge | np.isin(numbers, stored_values(dummies, "float64"))
    _warn_of_nodata(np.unique(numbers[undeclared]).tolist(), int(undeclared.sum()), len(numbers), where)
    return declared | undeclared


def _nodata_in_texts(texts: pandas.Series, nodata: float | None, where: str) -> np.ndarray:
    """The same among names of classes: a known dummy, where other names are no numbers."""
    numbers = pandas.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    declared = np.isin(numbers, () if nodata is None else stored_values([nodata], "float64"))
    is_number = np.isfinite(numbers) & ~declared
    dummy = is_number & (np.isin(numbers, KNOWN_DUMMIES) | (np.abs(numbers) >= HUGE))
    if (is_number & ~dummy).any() or not (texts.notna().to_numpy(dtype=bool) & ~is_number).any():
        for value in np.unique(numbers[dummy]).tolist():
            warn_of_doubtful_nodata(value, f"{(numbers == value).sum()} of {len(numbers)} features", where)
        dummy = np.zeros(len(numbers), dtype=bool)
    _warn_of_nodata(np.unique(numbers[dummy]).tolist(), int(dummy.sum()), len(numbers), where)
    return declared | dummy


def _warn_of_spellings(names: set[str], where: str) -> None:
    """Warn of names that differ in capitals or spaces alone: each is a class of its own."""
    spellings: dict[str, list[str]] = {}
    for name in sorted(names):
        spellings.setdefault("".join(name.lower().split()), []).append(name)
    alike = [", ".join(map(repr, group)) for group in spellings.values() if len(group) > 1]
    if alike:
        logger.warning(
            "%s: names that differ in capitals or spaces alone are classes of their own: %s; spell them alike if they "
            "mean the same",
            where,
            "; ".join(alike),
        )


def _warn_of_missing(names: tuple[str, ...], where: str) -> None:
    """Warn of names that programs write for a missing value; None is an everyday class, such as of alteration."""
    found = sorted({name for name in names if name.lower() in _MISSING and name.lower() != "none"})
    for name in found:
        logger.warning(
            "%s: %d of %d features hold '%s': taken for a class; leave these cells empty if it means no data",
            where,
            names.count(name),
            len(names),
            name,
        )


def warn_of_doubtful_nodata(value: float, count: str, where: str) -> None:
    """Warn of a known dummy that is too near the other values to be recognised as nodata.

    Args:
        value: the number, as it is stored.
        count: how many hold it, and of what, such as `99 pixels`.
        where: names the labels.
    """
    logger.warning(
        "%s: %s hold %.9g, often a dummy, but other values are near it: taken for data; if it means no data: "
        "--label_nodata %.9g",
        where,
        count,
        value,
        value,
    )


def _warn_of_nodata(values: list[float], count: int, total: int, where: str) -> None:
    if values:
        logger.warning(
            "%s holds %s (%d of %d features), not declared as nodata but far from all other values: taken for "
            "unlabelled; name it by --label_nodata, or leave these cells empty, to settle it",
            where,
            listed(values),
            count,
            total,
        )


def parse_numbers(column: pandas.Series, where: str, *, otherwise: str = "correct it, or leave it empty") -> np.ndarray:
    """Return a column as (n,) float64, NaN where it is empty. Nothing is dropped that cannot be read.

    Args:
        column: numbers, or texts of numbers; its index is named for what it counts (row, feature).
        where: names the labels in the message.
        otherwise: what to do with a text that resembles no number.

    Raises:
        ValueError: a text is no number; names row, column, text, and what to do. Or it holds dates or times.
    """
    _check_no_dates(column, where, otherwise)
    column = with_decimal_points(without_missing(column))
    values = pandas.to_numeric(column, errors="coerce")
    texts = column.astype("string").str.strip()
    wrong = (values.isna() & column.notna() & (texts != "")).to_numpy(dtype=bool, na_value=False)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        text = str(texts.iloc[first])
        raise ValueError(
            f"{where}, {column.index.name or 'feature'} {column.index[first]}: column '{column.name}' holds "
            f"{text[:60]!r}, expected numbers{_remedy(text) or f'; {otherwise}'}"
        )
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def _check_no_dates(column: pandas.Series, where: str, otherwise: str) -> None:
    """Refuse dates and times, which pandas would turn into a count of time since 1970.

    Raises:
        ValueError: the column holds them.
    """
    kind = pandas.api.types.infer_dtype(column, skipna=True)
    if kind.startswith(("date", "time")):
        there = column.dropna()
        example = f", such as {there.iloc[0]}" if len(there) else ""
        raise ValueError(
            f"{where}: column '{column.name}' holds dates or times{example}, expected numbers; {otherwise}"
        )


def _remedy(text: str) -> str:
    """What to do with a text that resembles a number; empty if it does not."""
    if _LIMIT.fullmatch(text):
        return (
            "; for a value beyond a limit of detection write a number, such as half the limit, or leave the cell empty"
        )
    if _WITH_UNIT.fullmatch(text):
        return " without their unit, which belongs into the name of the column"
    if _SEPARATED.fullmatch(text):
        return (
            " such as 511251.9; write decimal points and no thousands separators (decimal commas are read if all of "
            "the column has them, and none may be a thousands separator)"
        )
    if _SEXAGESIMAL.fullmatch(text):
        return (
            " such as -34.504; write decimal degrees: degrees + minutes / 60 + seconds / 3600, south and west negative"
        )
    return ""


def without_missing(column: pandas.Series) -> pandas.Series:
    """Return a column with nothing in place of texts that mean a missing number: NA, N/A, nan, null and the like."""
    if pandas.api.types.is_numeric_dtype(column):
        return column
    texts = column.astype("string").str.strip().str.lower()
    missing = texts.isin(_MISSING).to_numpy(dtype=bool)
    return column.mask(missing) if missing.any() else column


def with_decimal_points(column: pandas.Series) -> pandas.Series:
    """Return a column of texts as numbers if all are numbers with decimal commas; any other column as it is.

    Whole numbers may be among them. 511,251 could be half a million: such commas count as decimal only where another
    number of the column shows it.
    """
    if pandas.api.types.is_numeric_dtype(column):
        return column
    texts = without_missing(column).astype("string").str.strip()
    there = texts[texts.notna() & (texts != "")]
    commas = there[there.str.contains(",", regex=False)]
    if commas.empty or not there.str.fullmatch(_DECIMAL_COMMA).all() or commas.str.fullmatch(_PERHAPS_THOUSANDS).all():
        return column
    return pandas.to_numeric(texts.str.replace(",", "."), errors="coerce").astype("Float64")
