"""Tables of labelled images: which files, of which category, taken where; and where those files lie.

A table may have been written on another machine: paths in it are read with slashes of either kind, and looked for below
the table's own folder, with as much of what is in front of them as is found there. Directories are listed, once each,
instead of asking for file after file, so that all rows of a large table are checked before the first batch.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

TIFF_ENDINGS = (".tif", ".tiff")
ALIASES = {"filename": "image_path", "classname": "category"}
"""Column names of EuroSAT's own tables, for those that the others use."""

SHOWN = 5
"""How many rows a message about several of them names."""


@dataclass(frozen=True)
class SceneTable:
    """The images of a table, in its order.

    Attributes:
        path: the table, or the folder that stands for one.
        paths: files of the images, all there.
        categories: category of each image.
        locations: name of each image's location; images of one location show the same ground.
        rows: line of each image in the table, the header being line 1; empty for a folder.
    """

    path: str
    paths: tuple[str, ...]
    categories: tuple[str, ...]
    locations: tuple[str, ...]
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def where(self, number: int) -> str:
        """How messages name an image: table, row and file."""
        row = f", row {self.rows[number]}" if self.rows else ""
        return f"{self.path}{row}: image {self.paths[number]}"


class Directories:
    """File names by directory; each directory is listed once."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def names(self, folder: str) -> frozenset[str]:
        """Names in a directory, empty if there is no such directory."""
        found = self._names.get(folder)
        if found is None:
            try:
                with os.scandir(folder) as entries:
                    found = frozenset(entry.name for entry in entries)
            except (FileNotFoundError, NotADirectoryError):
                found = frozenset()
            self._names[folder] = found
        return found

    def find(self, folder: str, parts: Sequence[str]) -> str | None:
        """The file that these path components name below a folder, with as many of the leading ones as fit."""
        for start in range(len(parts)):
            place = os.path.join(folder, *parts[start:-1])
            if parts[-1] in self.names(place):
                return os.path.join(place, parts[-1])
        return None


def path_parts(text: str) -> list[str]:
    """Components of a path written on any operating system, without drive letter and leading slashes."""
    parts = [part for part in re.split(r"[\\/]+", text.strip()) if part not in ("", ".")]
    return parts[1:] if len(parts) > 1 and re.fullmatch(r"[A-Za-z]:", parts[0]) else parts


def read_fmow_table(path: str | Path, *, has_ids: bool) -> SceneTable:
    """Reads a table of fMoW images.

    Args:
        path: CSV with a column `category` and either `image_path` or, with `has_ids`, `location_id` and `image_id`,
            which stand for `<split>/<category>/<category>_<location_id>/<category>_<location_id>_<image_id>.tif`. Other
            columns (timestamp, polygon, ...) are not read.
        has_ids: whether images may be named by their numbers.

    Returns:
        The table; all its files are there.

    Raises:
        FileNotFoundError: no such table, or images that are not there; the first of them are named.
        ValueError: no rows, a column that is missing, or an empty cell in one that is needed.
    """
    columns, rows = _read_csv(path)
    by_path = "image_path" in columns
    needed = ["category", "image_path"] if by_path or not has_ids else ["category", "location_id", "image_id"]
    missing = [name for name in needed if name not in columns]
    if missing:
        choice = "category, and image_path" + " or location_id and image_id" * has_ids
        raise ValueError(
            f"{path}: no column {', '.join(missing)} among {', '.join(columns)}; expected the columns {choice} in its "
            "first row"
        )
    cells = [_cells(row, needed, f"{path}, row {line}") for line, row in rows]
    parts = [path_parts(row["image_path"]) for row in cells] if by_path else _published_paths(path, cells)
    locations = [
        f"{row['category']}_{_whole(row['location_id'])}"
        if row.get("location_id")
        else location_of(part, row["category"])
        for (_, row), part in zip(rows, parts, strict=True)
    ]
    return _found(path, parts, [row["category"] for row in cells], locations, [line for line, _ in rows])


def read_euro_sat(path: str | Path) -> SceneTable:
    """Reads EuroSAT: a folder with one of images for each class, or a list of such images.

    Args:
        path: the folder; or a CSV with a column `image_path` (or `Filename`) and perhaps `category` (or `ClassName`);
            or a text file with a path a line, perhaps followed by the number of the class. Where it is not named, the
            class is the folder that the image lies in.

    Returns:
        The table, each image being its own location.

    Raises:
        FileNotFoundError: no such file or folder, or images that are not there.
        ValueError: nothing in it, a column that is missing, an image in no class folder, or numbers that do not go with
            the class folders one by one.
    """
    if Path(path).is_dir():
        return _read_class_folders(Path(path))
    if Path(path).suffix.lower() == ".csv":
        columns, rows = _read_csv(path)
        if "image_path" not in columns:
            raise ValueError(f"{path}: no column image_path (or Filename) among {', '.join(columns)}; add it")
        cells = [_cells(row, ["image_path"], f"{path}, row {line}") for line, row in rows]
        parts = [path_parts(row["image_path"]) for row in cells]
        lines = [line for line, _ in rows]
        named = [row.get("category", "") for _, row in rows]
    else:
        parts, lines = _read_list(path)
        named = [""] * len(parts)
    for line, part, name in zip(lines, parts, named, strict=True):
        if not name and len(part) < 2:
            raise ValueError(
                f"{path}, row {line}: {part[-1]} lies in no class folder; expected <class>/<image>, or a CSV with a "
                "column category"
            )
    categories = [name or part[-2] for part, name in zip(parts, named, strict=True)]
    return _found(path, parts, categories, ["/".join(part) for part in parts], lines)


def location_of(parts: Sequence[str], category: str) -> str:
    """Location of an image by its path: what of its folder or its name is the category and a number.

    `airport/airport_0/airport_0_3_rgb.jpg` was taken at `airport_0`, as was `airport_0_4_rgb.jpg`. An image with
    another kind of name is a location of its own.
    """
    numbered = re.compile(re.escape(category) + r"_\d+(?=$|_)")
    found = [match[0] for part in parts[-2:] if (match := numbered.match(part))]
    return found[0] if found else "/".join(parts)


def _read_csv(path: str | Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names, and (line, cells by column) of each row that is not empty."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; expected a CSV that lists images") from None
    except (UnicodeDecodeError, csv.Error, IsADirectoryError) as error:
        raise ValueError(f"{path}: not a CSV ({error}); expected a comma-separated table in UTF-8") from error
    lines = [(number, row) for number, row in lines if any(row)]
    if len(lines) < 2:
        raise ValueError(f"{path}: {'no rows below its header' if lines else 'empty'}; expected one row an image")
    columns = [ALIASES.get(name.lower(), name.lower()) for name in lines[0][1]]
    return columns, [(number, dict(zip(columns, row, strict=False))) for number, row in lines[1:]]


def _cells(row: dict[str, str], needed: Iterable[str], where: str) -> dict[str, str]:
    """The cells of some columns, none of them empty."""
    for name in needed:
        if not row.get(name):
            raise ValueError(f"{where}: nothing in column {name}; fill it in or take the row out")
    return {name: row[name] for name in needed}


def _whole(text: str) -> str:
    """A number of a table without the decimals that spreadsheets add."""
    return re.sub(r"\.0+$", "", text)


def _published_paths(path: str | Path, cells: Sequence[dict[str, str]]) -> list[list[str]]:
    """Paths of fMoW-Sentinel by category and numbers, below the folder of the table's split."""
    split = _split_folder(Path(path), {row["category"] for row in cells})
    parts = []
    for row in cells:
        location = f"{row['category']}_{_whole(row['location_id'])}"
        parts.append([*split, row["category"], location, f"{location}_{_whole(row['image_id'])}.tif"])
    return parts


def _split_folder(table: Path, categories: set[str]) -> list[str]:
    """The folder, beside a table, that holds folders of its categories: the one that the table is named after, else
    the table's own, else the only one.
    """
    directories = Directories()
    beside = directories.names(str(table.parent))
    holding = sorted(name for name in beside if directories.names(str(table.parent / name)) & categories)
    named = [name for name in holding if re.match(re.escape(name) + r"(?![A-Za-z])", table.stem)]
    if named:
        return [max(named, key=len)]
    if beside & categories:
        return []
    if len(holding) == 1:
        return holding
    if holding:
        raise ValueError(
            f"{table}: its images may lie in {', '.join(holding)}; expected one such folder beside it; name the table "
            "after the folder (val.csv for val), or give it a column image_path"
        )
    example = min(categories)
    raise FileNotFoundError(
        f"{table}: no folder {table.parent / table.stem / example} nor {table.parent / example} nor any other "
        f"<split>/{example} beside the table; put the table beside the folders of its images, or give it a column "
        "image_path"
    )


def _found(
    table: str | Path, parts: list[list[str]], categories: list[str], locations: list[str], lines: list[int]
) -> SceneTable:
    """Looks for all images of a table.

    Raises:
        FileNotFoundError: naming the first rows whose images are not there.
    """
    folder, directories = os.path.dirname(os.path.abspath(table)), Directories()
    paths = [directories.find(folder, part) for part in parts]
    lost = [number for number, path in enumerate(paths) if path is None]
    if lost:
        first = lost[0]
        others = f" (so are those of {len(lost) - 1} other rows: {_listed([lines[k] for k in lost[1:]])})"
        raise FileNotFoundError(
            f"{table}, row {lines[first]}: image not there, looked for {os.path.join(folder, *parts[first])}"
            f"{others if len(lost) > 1 else ''}; put it there, or take its row out"
        )
    return SceneTable(str(table), tuple(map(str, paths)), tuple(categories), tuple(locations), tuple(lines))


def _listed(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:SHOWN])) + ", ..." * (len(rows) > SHOWN)


def _read_class_folders(folder: Path) -> SceneTable:
    """A folder with a folder of GeoTIFFs for each class."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    found = [
        (name, str(path))
        for name in names
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in TIFF_ENDINGS
    ]
    if not found:
        raise ValueError(
            f"{folder}: no GeoTIFFs in folders of it ({', '.join(names[:SHOWN]) or 'there are none'}); expected a "
            "folder of .tif files for each class"
        )
    categories, paths = zip(*found, strict=True)
    return SceneTable(str(folder), tuple(paths), tuple(categories), tuple(paths), ())


def _read_list(path: str | Path) -> tuple[list[list[str]], list[int]]:
    """Path components and line numbers of a text file of paths, whose class numbers go with the class folders."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file or folder; expected a folder of classes or a list") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text ({error}); expected a path a line, in UTF-8") from error
    parts, numbers = [], []
    label_of: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = re.fullmatch(r"(.*\S)\s+(\d+)", line.strip())
        text, label = found.groups() if found else (line, "none")
        parts.append(path_parts(text))
        numbers.append(number)
        folder = parts[-1][-2] if len(parts[-1]) > 1 else ""
        expected = label_of.setdefault(folder, label)
        others = [name for name, other in label_of.items() if other == label != "none" and name != folder]
        if label != expected or others:
            raise ValueError(
                f"{path}, row {number}: class number {label} for an image in the folder '{folder}', expected "
                f"{f'another than that of {others[0]}' if others else f'{expected} as in the rows before'}; each class "
                "folder has one number"
            )
    if not parts:
        raise ValueError(f"{path}: empty; expected a path a line")
    return parts, numbers
