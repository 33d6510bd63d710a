"""What a page shows, as plain values: blocks in sections, sections in the view of a run. Nothing here is HTML yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Line:
    """A curve of a chart.

    Attributes:
        name: what it shows.
        points: (x, y); those that are None, NaN or infinite are left out.
        number: decides the colour, which stays the same in charts that lack other curves; None: its place in the chart.
    """

    name: str
    points: Sequence[tuple[Any, Any]]
    number: int | None = None


@dataclass(frozen=True)
class Chart:
    """Curves over a common axis.

    Attributes:
        title: what they show.
        x: label of the horizontal axis.
        y: label of the vertical one, with its unit.
        lines: the curves.
        level: value at which a horizontal line is drawn, such as 0 for skill.
        note: a sentence below.
    """

    kind: ClassVar[str] = "chart"
    title: str
    x: str
    y: str
    lines: Sequence[Line]
    level: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Histogram:
    """A small histogram in a cell of a table; `label` says it in words."""

    counts: Sequence[int]
    low: str
    high: str
    label: str


Cell = str | Histogram


@dataclass(frozen=True)
class Table:
    """A table; numbers are text already.

    Attributes:
        caption: what it holds.
        head: names of the columns.
        rows: cells.
        note: a sentence below.
    """

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """Names with values."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    kind: ClassVar[str] = "text"
    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Alerts:
    """Warnings, each with how often it was said."""

    kind: ClassVar[str] = "alerts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Commands:
    """What to do next: a sentence, and the command or an empty text."""

    kind: ClassVar[str] = "commands"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """A PNG of the run.

    Attributes:
        file: where it is.
        title: below it, and in place of it.
    """

    kind: ClassVar[str] = "picture"
    file: Path
    title: str


@dataclass(frozen=True)
class GroundMap:
    """A map of the ground, as `datasets.survey.overview.ground_map` describes it, and what its cells show."""

    kind: ClassVar[str] = "map"
    title: str
    ground: Mapping[str, Any]
    cells: str


@dataclass(frozen=True)
class Document:
    """Text that is marked up already and safe."""

    kind: ClassVar[str] = "document"
    html: Markup


Block = Chart | Table | Facts | Text | Alerts | Commands | Picture | GroundMap | Document


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class View:
    """All that a page shows of a run.

    Attributes:
        title: what was done.
        state: `running`, `finished`, `stopped` or `failed`.
        progress: how far it is, such as "epoch 3 of 25".
        message: why it failed.
        when: when it began and ended, in words.
        command: the command line of the last start.
        sections: the rest.
    """

    title: str
    state: str
    progress: str
    message: str
    when: str
    command: str
    sections: Sequence[Section]
