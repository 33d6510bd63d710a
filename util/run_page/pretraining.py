"""What the page of main_pretrain shows: skill and losses, the reconstruction, what was read, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from util.checkpoints.checkpoint_file import LAST
from util.metrics.verdict import skill_verdict
from util.options.commands import after_pretraining
from util.run_page.common_sections import (
    curves_command,
    data_section,
    duration,
    environment_rows,
    log_lines,
    next_section,
    number,
    run_section,
    signed,
    view_of,
    warnings_section,
)
from util.run_page.content import Block, Chart, Facts, Line, Picture, Section, Table, Text, View
from util.run_page.record import RunRecord

Lines = Sequence[Mapping[str, Any]]

PICTURE = "reconstruction-last.png"
ERRORS = (("rmse", "rmse_interpolation", "rmse_mean"), ("accuracy", "accuracy_nearest", "accuracy_majority"))
"""Of values and of classes: scores of the model, of interpolation or the nearest class, of the mean or the majority."""


def pretraining_view(folder: Path, record: RunRecord) -> View:
    """The view of a pre-training.

    Args:
        folder: its --output_dir.
        record: its record.
    """
    lines = log_lines(folder / "log.txt")
    epochs = [line for line in lines if line.get("kind") == "epoch"]
    after = [
        (text, line)
        for text, line in zip(
            ("Maps of what it learned:", "Fine-tuning on labels:"), after_pretraining(folder / LAST), strict=True
        )
    ]
    after.append(curves_command(folder, record))
    sections = [
        _result(epochs, record),
        next_section(record, after),
        warnings_section(record),
        Section("Curves", _curves(epochs, [line for line in lines if line.get("kind") == "train"])),
        _pictures(folder),
        data_section(
            record, cells="ground with valid pixels, averaged over layers", title="Ground, tiles and held-out blocks"
        ),
        _cost(epochs, record),
        run_section(record),
    ]
    return view_of(record, "Pre-training", sections)


def _pictures(folder: Path) -> Section | None:
    path = folder / PICTURE
    return Section("Reconstruction", [Picture(path, "Reconstruction of a held-out tile")]) if path.exists() else None


def _result(epochs: Lines, record: RunRecord) -> Section:
    """The verdict and the table of scores of the last epoch that was scored."""
    scored = [line for line in epochs if line.get("val")]
    if not scored:
        why = "Nothing is held out, so nothing is scored." if epochs else "No epoch is done yet."
        return Section("Skill on held-out ground", [Text([why])])
    last, units = scored[-1], {of["name"]: of["unit"] for of in record.overview.get("layers", [])}
    regions = [name for name in ("hidden", "visible") if any(f"skill_{name}" in v for _, _, v in _scores(last))]
    head = [
        "layer",
        "scale",
        "skill",
        *(f"skill, {name}" for name in regions),
        "score",
        "model",
        "interpolation",
        "constant",
    ]
    rows = []
    for layer, scale, values in _scores(last):
        keys = ERRORS["accuracy" in values]
        what = "accuracy" if "accuracy" in values else f"RMSE, {units.get(layer) or 'units of the layer'}"
        skills = [signed(values.get(f"skill_{name}")) for name in regions]
        rows.append(
            [layer, scale, signed(values.get("skill")), *skills, what, *(number(values.get(key)) for key in keys)]
        )
    note = (
        "Skill is 1 - squared error / that of interpolation or of the constant, whichever is better: 1 is perfect, "
        "below 0 the model is worse. The constant is the mean, or the commonest class. "
        f"{last['val_tiles']} held-out tiles"
        + (
            f", each under {last['val_views'] / last['val_tiles']:.0f} masks."
            if last["val_views"] > last["val_tiles"]
            else "."
        )
    )
    caption = f"Scores after epoch {last['epoch']}"
    verdict = skill_verdict(last["val"])
    blocks: list[Block] = [Text([verdict[:1].upper() + verdict[1:] + "."])] if verdict else []
    return Section("Skill on held-out ground", [*blocks, Table(caption, head, rows, note=note)])


def _scores(line: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(layer, scale, scores) of an epoch."""
    return [(layer, scale, values) for layer, scales in line.get("val", {}).items() for scale, values in scales.items()]


def _curves(epochs: Lines, windows: Lines) -> list[Block]:
    """Losses and skill by epoch; before the first one has ended, the loss by update."""
    if not epochs:
        points = [(line["step"], line["train_loss"]) for line in windows]
        return [Chart("Training loss", "update", "loss, model units", [Line("training", points)])] if points else []
    lines = [Line("training", [(line["epoch"], line["train_loss"]) for line in epochs])]
    if any("val_loss" in line for line in epochs):
        lines.append(Line("held-out", [(line["epoch"], line.get("val_loss")) for line in epochs]))
    charts: list[Block] = [Chart("Loss", "epoch", "loss, model units", lines)]
    skills: dict[str, dict[str, list[tuple[float, float | None]]]] = {}
    for line in epochs:
        for layer, scale, values in _scores(line):
            skills.setdefault(scale, {}).setdefault(layer, []).append((line["epoch"], values.get("skill")))
    layers = list(dict.fromkeys(layer for by_layer in skills.values() for layer in by_layer))
    note = "Dashed: as good as interpolation or the constant."
    for scale, by_layer in skills.items():
        curves = [Line(layer, points, layers.index(layer)) for layer, points in by_layer.items()]
        charts.append(Chart(f"Skill at {scale}, held-out tiles", "epoch", "skill", curves, level=0.0, note=note))
    return charts


def _cost(epochs: Lines, record: RunRecord) -> Section:
    """Time, speed, memory, and on what."""
    rows = environment_rows(record)
    blocks: list[Block] = [Facts(rows)]
    if epochs:
        last = epochs[-1]
        of_run = [
            ("training", f"{duration(last['seconds'])}, without scores and pictures"),
            ("an epoch", duration(last["seconds"] / last["epoch"])),
            ("speed", f"{number(last['tiles_per_s'], 3)} tiles/s"),
            ("waiting for data", f"{100 * last['wait_share']:.1f} % of the time"),
            ("peak memory", f"{last['peak_memory_mb']:,.0f} MiB"),
        ]
        if last.get("cpu_seconds"):
            of_run.append(("processor", f"{duration(last['cpu_seconds'])} of all cores together"))
        speed = Line("tiles/s", [(line["epoch"], line["tiles_per_s"]) for line in epochs])
        rate = Line("learning rate", [(line["epoch"], line["lr"]) for line in epochs])
        blocks = [Facts([*of_run, *rows]), Chart("Speed", "epoch", "tiles/s", [speed])]
        blocks.append(Chart("Learning rate", "epoch", "learning rate", [rate]))
    return Section("Cost", blocks)
