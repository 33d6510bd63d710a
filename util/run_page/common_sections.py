"""Parts of a page that all programs share: state, what was read, options, cost, warnings."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from util.options.commands import command
from util.options.early import PARSERS
from util.run_page.charts import number_text
from util.run_page.content import Alerts, Block, Cell, Commands, Facts, GroundMap, Histogram, Section, Table, Text, View
from util.run_page.record import RunRecord, Session
from util.run_page.used_options import differing_options
from util.training.timer import duration_text

ENDED = {
    "running": "still running",
    "finished": "finished",
    "stopped": "stopped before its end",
    "failed": "failed",
}


def view_of(record: RunRecord, title: str, sections: Iterable[Section | None]) -> View:
    """The view of a run with the sections that have any block.

    Args:
        record: of the run.
        title: what was done.
        sections: in their order; those without blocks are left out.
    """
    last = record.sessions[-1]
    kept = [section for section in sections if section is not None and section.blocks]
    begun, ended = clock_text(record.sessions[0].begun), ""
    if last.ended is not None:
        ended = f", {last.state} {clock_text(last.ended)}"
    starts = f", in {len(record.sessions)} starts" if len(record.sessions) > 1 else ""
    when = f"Begun {begun}{ended}{starts}."
    return View(title, last.state, record.progress, last.message, when, last.command, kept)


def log_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.txt; a last one that is written just now, or cut short, is left out."""
    lines = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file, empty if it is not there or not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def number(value: Any, digits: int = 4) -> str:
    """A number as a cell shows it; a dash in place of none."""
    return "-" if value is None or value != value else f"{value:.{digits}g}"


def signed(value: Any) -> str:
    """A skill as a cell shows it."""
    return "-" if value is None or value != value else f"{value:+.3f}"


def duration(seconds: float | None) -> str:
    """A duration in words; a dash in place of none."""
    return "-" if seconds is None else duration_text(seconds)


# ---------------------------------------------------------------------------------------------------- what was read


def data_section(record: RunRecord, *, cells: str, title: str = "") -> Section:
    """What was read: numbers of tiles, a map, and a table of layers with histograms.

    Args:
        record: of the run.
        cells: what the shaded cells of the map are.
        title: of the map; a map without anything on it is left out.
    """
    overview, blocks = record.overview, list[Block]()
    if overview.get("counts"):
        blocks.append(Facts([(name, text) for name, text in overview["counts"]]))
    ground = overview.get("map", {})
    if title and (
        ground.get("cells") or ground.get("rectangles") or any(of["places"] for of in ground.get("points", []))
    ):
        blocks.append(GroundMap(title, ground, cells))
    if overview.get("layers"):
        blocks.append(layers_table(overview["layers"]))
    return Section("What was read", blocks)


def layers_table(layers: Sequence[Mapping[str, Any]]) -> Table:
    """Layers with their pixels, values and histograms; columns that no layer has are left out."""
    has = {
        key: any(layer.get(key) not in (None, "") for layer in layers)
        for key in ("pixel", "transform", "scored", "group")
    }
    head = ["layer", "values", "unit", "kind"]
    head += ["pixel", "size", "valid"] * has["pixel"] + ["transform"] * has["transform"]
    head += ["scored at"] * has["scored"] + ["group"] * has["group"] + ["file"]
    rows = []
    for layer in layers:
        row: list[Cell] = [layer["name"], _histogram(layer), layer["unit"] or "-", layer["kind"]]
        if has["pixel"]:
            valid = layer.get("valid")
            share = "-" if valid is None else f"{100 * valid:.0f} %"
            row += [layer.get("pixel", "-"), layer.get("pixels", "-"), share]
        row += [layer["transform"] or "-"] * has["transform"]
        row += [layer.get("scored") or "no scale"] * has["scored"]
        row += [str(layer["group"]) if layer["group"] is not None else "-"] * has["group"]
        rows.append([*row, layer["file"]])
    note = "Histograms are of a sample of each layer, without the outermost 0.5 % of values on either side"
    return Table("Layers", head, rows, note=f"{note}; layers of a group share tokens." if has["group"] else f"{note}.")


def _histogram(layer: Mapping[str, Any]) -> Cell:
    """The histogram of a layer, or why there is none."""
    found = layer.get("histogram")
    if not found:
        return layer.get("state") or "no valid value in the sample"
    if "names" in found:
        parts = [
            f"{name} {100 * count / found['values']:.0f} %"
            for name, count in zip(found["names"], found["counts"], strict=True)
        ]
        return Histogram(found["counts"], found["names"][0], found["names"][-1], f"{layer['name']}: {', '.join(parts)}")
    low, high = number_text(round_to(found["low"], 4)), number_text(round_to(found["high"], 4))
    return Histogram(found["counts"], low, high, f"{layer['name']}: {low} to {high} {layer['unit']}".strip())


def round_to(value: float, digits: int) -> float:
    """A number rounded to some digits."""
    return float(f"{value:.{digits}g}")


# ------------------------------------------------------------------------------------------------- how it was run


def run_section(record: RunRecord) -> Section:
    """The command, when it was started and how it ended, and the options that differ from the defaults."""
    rows = [
        [
            str(number),
            clock_text(of.begun),
            duration(None if of.ended is None else of.ended - of.begun),
            _end(of),
            of.command,
        ]
        for number, of in enumerate(record.sessions, start=1)
    ]
    blocks: list[Block] = [Table("Starts of the program", ["start", "begun", "took", "then", "command"], rows)]
    options = differing_options(record.program, record.options, record.words)
    if options:
        blocks.append(Table("Options that differ from the defaults", ["option", "value", "default", "origin"], options))
    elif record.program in PARSERS:
        blocks.append(Text(["All options are at their defaults."]))
    return Section("How it was run", blocks)


def clock_text(seconds: float) -> str:
    """A time in words."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _end(session: Session) -> str:
    return f"{ENDED.get(session.state, session.state)}{': ' if session.message else ''}{session.message}"


def environment_rows(record: RunRecord) -> list[tuple[str, str]]:
    """Device, versions and number of processes of the last start."""
    return [(key, str(value)) for key, value in record.sessions[-1].environment.items()]


def warnings_section(record: RunRecord) -> Section:
    """All warnings, or the sentence that there was none."""
    rows = [(of["text"], f"(said {of['times']} times)" if of["times"] > 1 else "") for of in record.warnings]
    title = f"Warnings ({len(rows)})" if rows else "Warnings"
    return Section(title, [Alerts(rows) if rows else Text(["None."])])


def next_section(record: RunRecord, after: Sequence[tuple[str, str]]) -> Section:
    """What to do next: `after` once the run is finished, else how to go on with it."""
    state, again = record.sessions[-1].state, record.facts.get("resume_command", "")
    if state == "finished":
        return Section("Next", [Commands(after)] if after else [])
    if state == "running":
        text = "The run goes on. Stopped by Ctrl-C it saves first; this command then continues it."
    elif state == "failed":
        text = "Remove what made it fail, then continue it where it was saved last."
    else:
        text = "Continue it where it stopped."
    return Section("Next", [Commands([(text, again)])] if again else [])


def curves_command(folder: Path, record: RunRecord) -> tuple[str, str]:
    """How to see the curves of a training in TensorBoard."""
    return "Curves in TensorBoard:", command("tensorboard.main", "--logdir", record.facts.get("log_dir", folder))
