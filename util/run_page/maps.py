"""What the page of main_inference shows of a product: its rasters and pictures, what was read, cost."""

from __future__ import annotations

from pathlib import Path

from util.run_page.common_sections import (
    data_section,
    duration,
    environment_rows,
    next_section,
    run_section,
    view_of,
    warnings_section,
)
from util.run_page.content import Block, Facts, Picture, Section, Table, Text, View
from util.run_page.record import RunRecord


def maps_view(folder: Path, record: RunRecord) -> View:
    """The view of a product of inference.

    Args:
        folder: its --output_dir.
        record: its record.
    """
    rasters = record.facts.get("rasters", [])
    project = record.facts.get("project")
    after = [(f"Open {project} in QGIS, or any of the rasters: their colours lie beside them (.qml).", "")] * bool(
        project
    )
    pictures = [
        Picture(folder / f"{of['name']}.png", f"{of['name']}, whole ground")
        for of in rasters
        if (folder / f"{of['name']}.png").exists()
    ]
    rows = [[f"{of['name']}.tif", of["pixels"], of["pixel"], of["bands"], of["type"], of["size"]] for of in rasters]
    result: list[Block] = (
        [Table("Rasters", ["file", "size", "pixel", "bands", "type", "on disk"], rows)] if rows else []
    )
    took = [of.ended - of.begun for of in record.sessions if of.ended is not None]
    cost = [("took", duration(sum(took)))] if took else []
    sections = [
        Section("Rasters", result or [Text(["They are written when all blocks are done."])]),
        Section("Pictures", pictures),
        next_section(record, after),
        warnings_section(record),
        data_section(record, cells=""),
        Section("Cost", [Facts([*cost, *environment_rows(record)])]),
        run_section(record),
    ]
    return view_of(record, f"Maps: {record.part}", sections)
