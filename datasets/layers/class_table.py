"""Class tables: the codes of labels, their numbers from 0 to K - 1, their names and colours."""

from __future__ import annotations

import colorsys
import csv
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

logger = logging.getLogger(__name__)

Code: TypeAlias = int | str

MAX_CLASSES = 255
"""Most classes that labels may have: a map of geology has tens; more are measurements, or identifiers."""

_LISTED = 12  # codes shown in a message
_GOLDEN = 0.618034  # fraction of the hue circle from one class to the next: neighbours differ, no hue repeats


@dataclass(frozen=True)
class ClassTable:
    """Classes in the order of their numbers, 0 to K - 1.

    Attributes:
        codes: as stored in the file.
        names: for maps and reports.
        colours: '#rrggbb'.
        counts: labelled target pixels of each, or points.
    """

    codes: tuple[Code, ...]
    names: tuple[str, ...]
    colours: tuple[str, ...]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.codes)


def sorted_codes(codes: Iterable[Code]) -> tuple[Code, ...]:
    """Return codes in the order of their numbers: whole numbers by size, then texts alphabetically."""
    return tuple(sorted(set(codes), key=lambda code: (isinstance(code, str), code)))


def listed_codes(codes: Sequence[Code]) -> str:
    """Return codes as a message shows them."""
    shown = ", ".join(repr(code) for code in codes[:_LISTED])
    return shown + (f" and {len(codes) - _LISTED} more" if len(codes) > _LISTED else "")


def check_class_count(codes: Sequence[Code], where: str) -> None:
    """Refuse more than `MAX_CLASSES` classes.

    Raises:
        ValueError: there are more.
    """
    if len(codes) > MAX_CLASSES:
        raise ValueError(
            f"{where}: more than {MAX_CLASSES} different codes ({listed_codes(codes)}), expected classes; if they are "
            "measurements, use --task regression; if they are identifiers, choose another column or group them first"
        )


def unknown_codes(counts: Mapping[Code, int], known: Sequence[Code] | None, where: str) -> None:
    """Refuse codes that occur but that a trained model does not know.

    Args:
        counts: how often each code occurs.
        known: codes of the trained model; None: no model, every code is allowed.
        where: names the labels in messages.

    Raises:
        ValueError: there are such codes; the message gives each with its count.
    """
    if known is None:
        return
    unknown = [code for code, count in counts.items() if count and code not in known]
    if unknown:
        found = ", ".join(f"{code!r} ({counts[code]} times)" for code in unknown[:_LISTED])
        raise ValueError(
            f"{where}: {len(unknown)} class(es) that the model was not trained on: {found}; expected "
            f"{listed_codes(known)}; recode the labels, or declare these codes as nodata (--label_nodata takes one)"
        )


def make_class_table(
    counts: Mapping[Code, int],
    *,
    where: str,
    known: Sequence[Code] | None = None,
    names: Mapping[Code, str] | None = None,
    colours: Mapping[Code, str] | None = None,
    classes_csv: str | Path | None = None,
) -> ClassTable:
    """Number the classes that occur, or those of a trained model, and name them.

    Args:
        counts: labelled pixels, or points, of each code.
        where: names the labels in messages.
        known: codes of a trained model, in its order; None: the codes that occur, sorted.
        names: names that the labels come with.
        colours: colours that the labels come with, '#rrggbb'.
        classes_csv: table of code, name and, optionally, colour; it takes precedence.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a code that the model does not know; fewer than two classes and no trained model; a class table
            that cannot be used or does not name every class.
    """
    unknown_codes(counts, known, where)
    codes = sorted_codes(code for code, count in counts.items() if count) if known is None else tuple(known)
    if known is None and len(codes) < 2:
        only = f"one class only ({codes[0]!r})" if codes else "no class"
        raise ValueError(
            f"{where}: {only} on this ground, expected at least two to tell apart; label the others too (unlabelled "
            "ground is not background), or for presence-only points leave out --label_column"
        )
    names, colours = dict(names or {}), dict(colours or {})
    if classes_csv is not None:
        given_names, given_colours = read_classes_csv(classes_csv, codes)
        names |= given_names
        colours |= given_colours
    return ClassTable(
        codes=codes,
        names=_different(codes, [names.get(code, "").strip() or str(code) for code in codes]),
        colours=tuple(colours.get(code, "") or default_colour(number) for number, code in enumerate(codes)),
        counts=tuple(int(counts.get(code, 0)) for code in codes),
    )


def _different(codes: Sequence[Code], names: Sequence[str]) -> tuple[str, ...]:
    """The names of classes; of those that several codes share, each with its code, as scores are listed by name."""
    counts = Counter(names)
    return tuple(f"{name} ({code})" if counts[name] > 1 else name for code, name in zip(codes, names, strict=True))


def default_colour(number: int) -> str:
    """Return a colour for a class that has none: hues a golden section apart, three alternating lightnesses."""
    red, green, blue = colorsys.hls_to_rgb((0.02 + number * _GOLDEN) % 1.0, (0.62, 0.46, 0.74)[number % 3], 0.6)
    return as_colour((round(255 * red), round(255 * green), round(255 * blue)))


def as_colour(rgb: Sequence[int]) -> str:
    """Return '#rrggbb' of red, green and blue from 0 to 255."""
    return "#" + bytes(rgb[:3]).hex()


def read_classes_csv(path: str | Path, codes: Sequence[Code]) -> tuple[dict[Code, str], dict[Code, str]]:
    """Read the names and colours of classes from a table with the columns `code`, `name` and, optional, `colour`.

    Other columns are ignored. Codes of the table that do not occur are left out with a warning.

    Args:
        path: the table, comma-separated, UTF-8.
        codes: the codes to be named, whole numbers or texts.

    Returns:
        Names by code, and colours by code.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it lacks a column, a row cannot be used, a code is there twice, or one of `codes` is missing.
    """
    where = f"class table {path}"
    rows = read_class_rows(Path(path).expanduser(), where)
    names: dict[Code, str] = {}
    colours: dict[Code, str] = {}
    for number, row in rows:
        code = _parse_code(row["code"], codes)
        if code in names:
            raise ValueError(f"{where}, row {number}: code {code!r} is there twice, expected once; remove one")
        names[code] = row["name"]
        if row["colour"]:
            if not re.fullmatch(r"#[0-9a-fA-F]{6}", row["colour"]):
                raise ValueError(
                    f"{where}, row {number}: colour '{row['colour']}', expected '#rrggbb' such as '#6eaf5a', or nothing"
                )
            colours[code] = row["colour"].lower()
    missing = [code for code in codes if code not in names]
    if missing:
        raise ValueError(
            f"{where}: does not name the code(s) {listed_codes(missing)} of the labels; add a row for each, or declare "
            "codes that are not classes as nodata in the labels"
        )
    extra = [code for code in names if code not in codes]
    if extra:
        logger.warning("%s: code(s) %s do not occur in the labels on this ground: left out", where, listed_codes(extra))
    return names, colours


def read_class_rows(path: Path, where: str) -> list[tuple[int, dict[str, str]]]:
    """Rows of a table of classes with their numbers in the file, as code, name and colour.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it is not such a table, or a row has no code.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{where}: no such file; --label_classes takes a CSV with the columns code, name, colour, as does column "
            "'classes' of layers.csv"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = [name.strip().lower() for name in next(reader, [])]
            lines = [(reader.line_num, line) for line in reader if any(cell.strip() for cell in line)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{where}: cannot be read as comma-separated UTF-8 text ({error}); save it as such") from error
    header = ["colour" if name == "color" else name for name in header]
    lacking = [name for name in ("code", "name") if name not in header]
    if lacking:
        raise ValueError(
            f"{where}: lacks the column(s) {', '.join(lacking)}; it has {', '.join(header) or 'none'}; expected code, "
            "name and, if wanted, colour, separated by commas"
        )
    rows = []
    for number, line in lines:
        cells = dict(zip(header, (cell.strip() for cell in line), strict=False))
        if not cells.get("code"):
            raise ValueError(f"{where}, row {number}: no code, expected one; fill it in or remove the row")
        rows.append((number, {name: cells.get(name, "") for name in ("code", "name", "colour")}))
    return rows


def _parse_code(text: str, codes: Sequence[Code]) -> Code:
    """The code in a cell: a whole number if the labels hold whole numbers."""
    if any(isinstance(code, int) for code in codes):
        try:
            value = float(text)
        except ValueError:
            return text
        return int(value) if value.is_integer() else text
    return text
