"""Fills the template of a page: views of runs in, HTML out."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from util.options.version import VERSION
from util.run_page.charts import cell_pixels, draw_chart, draw_histogram, draw_map
from util.run_page.content import Block, Chart, GroundMap, Histogram, View
from util.run_page.pictures import array_uri, picture_uri

TEMPLATE = "report.html.j2"
SMALL = (Chart.kind, GroundMap.kind)
RELOAD_S = 30
"""Seconds after which a browser loads the page of a run again that still goes on."""


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"anchor": anchor, "clock": clock, "side_by_side": side_by_side}
    environment.globals |= {
        "draw_chart": draw_chart,
        "draw_histogram": draw_histogram,
        "draw_map": draw_map,
        "cells_uri": lambda percent: array_uri(cell_pixels(percent)),
        "picture_uri": picture_uri,
        "is_histogram": lambda cell: isinstance(cell, Histogram),
    }
    return environment.get_template(TEMPLATE)


def render(views: Sequence[View], *, title: str, written: float) -> str:
    """The page of the runs of a folder as HTML.

    Args:
        views: the runs, the latest first.
        title: of the page.
        written: seconds since the epoch.
    """
    is_running = any(view.state == "running" for view in views)
    reload_s = RELOAD_S if is_running else 0
    return _template().render(views=views, title=title, written=written, reload_s=reload_s, version=VERSION)


def side_by_side(blocks: Sequence[Block]) -> list[tuple[bool, list[Block]]]:
    """Neighbouring blocks together: (whether they are small enough to stand side by side, the blocks)."""
    return [(small, list(part)) for small, part in groupby(blocks, key=lambda block: block.kind in SMALL)]


def anchor(text: str) -> str:
    """The name of a heading within a page: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"


def clock(seconds: float) -> str:
    """A time in words, of the place where the page is written."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds)).strip()
