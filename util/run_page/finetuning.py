"""What the page of main_finetune shows: scores of all methods, curves of the fits, figures, labels and folds, cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from util.checkpoints.checkpoint_file import LAST
from util.options.commands import after_finetuning
from util.run_page.common_sections import (
    curves_command,
    data_section,
    duration,
    environment_rows,
    log_lines,
    next_section,
    number,
    read_json,
    run_section,
    view_of,
    warnings_section,
)
from util.run_page.content import Block, Chart, Facts, Line, Picture, Section, Table, Text, View
from util.run_page.record import RunRecord

Lines = Sequence[Mapping[str, Any]]

FIGURES = {
    "scores": "Scores of all methods on test ground",
    "map": "Truth, prediction, error and folds; every pixel or example as predicted where it was tested",
    "confusion": "Confusion matrix of the main method, all folds",
    "success_rate": "Success rate of the main method",
    "calibration": "Calibration of the main method",
}
"""Pictures of a run, in the order of the page."""
BASELINE_MAPS = "baseline_maps"
"""Folder of the maps of trees, each in a folder of its own."""
MOST_METHODS = 4
"""Methods whose curves are drawn."""
COSTS = (
    ("seconds", "time", duration),
    ("train_seconds", "training", duration),
    ("epochs", "epochs", lambda value: number(value, 3)),
    ("train_windows", "windows", lambda value: f"{value:,.0f}"),
    ("trained_weights", "trained weights", lambda value: f"{value:,.0f}"),
    ("train_flops", "operations", lambda value: f"{value:.2g}"),
    ("peak_memory_mb", "peak memory, MiB", lambda value: f"{value:,.0f}"),
)
"""Key in scores.json, column, and how it is written, of the costs of a fit."""


def finetuning_view(folder: Path, record: RunRecord) -> View:
    """The view of a fine-tuning.

    Args:
        folder: its --output_dir.
        record: its record.
    """
    lines = log_lines(folder / "log.txt")
    scores = [line for line in lines if line.get("kind") == "score"]
    epochs = [line for line in lines if line.get("kind") == "epoch"]
    after = [("A map of the whole survey:", line) for line in after_finetuning(folder / LAST)]
    if not record.facts.get("has_final", True):
        after = []
    projects = [path.relative_to(folder).as_posix() for path in sorted(folder.glob(f"{BASELINE_MAPS}/*/maps.qgs"))]
    after += [(f"Open {path} in QGIS: what these trees predict.", "") for path in projects]
    after.append(curves_command(folder, record))
    pictures = [
        Picture(folder / f"{name}.png", title) for name, title in FIGURES.items() if (folder / f"{name}.png").exists()
    ]
    maps = sorted(folder.glob(f"{BASELINE_MAPS}/*/*.png"))
    pictures += [Picture(path, f"{path.parent.name}, fitted on all labels: {path.stem}") for path in maps]
    sections = [
        _result(folder, record, scores),
        next_section(record, after),
        warnings_section(record),
        Section("Pictures", pictures),
        Section("Curves", _curves(epochs, record)),
        _with_labels(data_section(record, cells="labelled ground", title="Labels and folds"), record),
        _cost(scores, record),
        run_section(record),
    ]
    return view_of(record, f"Fine-tuning: {record.facts.get('task', 'labels')}", sections)


def _result(folder: Path, record: RunRecord, scores: Lines) -> Section:
    """Scores of the methods: mean and standard deviation over folds, and the score that speaks for the task by fold."""
    title = "Scores on test ground"
    if not scores:
        return Section(title, [Text(["No fit is done yet."])])
    headline, columns = record.facts.get("headline", ""), record.facts.get("columns", [])
    columns = [name for name in columns if any(line["test"].get(name) is not None for line in scores)]
    unit = record.overview.get("label_unit", "")
    methods = [name for name in record.facts.get("methods", []) if any(line["arm"] == name for line in scores)]
    folds = sorted({line["fold"] for line in scores})
    rows = []
    for method in methods:
        tests = [line["test"] for line in scores if line["arm"] == method]
        rows.append([method, *(_mean_and_std([test.get(name) for test in tests]) for name in columns), str(len(tests))])
    split = record.overview.get("folds", {})
    note = f"Means ± standard deviations over folds, {split.get('split', '')} split"
    heads = [f"{name}, {unit}" if unit and name in ("rmse", "mae") else name for name in columns]
    blocks: list[Block] = [Table("Scores of all methods", ["method", *heads, "folds"], rows, note=f"{note}.")]
    if len(folds) > 1 and headline:
        found = {(line["arm"], line["fold"]): line["test"].get(headline) for line in scores}
        by_fold = [[method, *(number(found.get((method, fold))) for fold in folds)] for method in methods]
        blocks.append(Table(f"{headline} of each fold", ["method", *(f"fold {fold}" for fold in folds)], by_fold))
    warning = read_json(folder / "metrics.json").get("warning") or split.get("warning")
    return Section(title, ([Text([f"WARNING: {warning}"])] if warning else []) + blocks)


def _mean_and_std(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.2g}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.4g}{spread}"


def _curves(epochs: Lines, record: RunRecord) -> list[Block]:
    """Training loss and validation score by epoch: a chart for each method, a curve for each fold."""
    methods = list(dict.fromkeys(line["arm"] for line in epochs))
    charts: list[Block] = []
    for method in methods[:MOST_METHODS]:
        for key, title, unit in (
            ("loss", "training loss", "loss"),
            ("validation", "validation score", record.facts.get("headline", "score")),
        ):
            curves: dict[Any, list[tuple[float, float]]] = {}
            for line in epochs:
                if line["arm"] == method and line.get(key) is not None:
                    curves.setdefault(line["fold"], []).append((line["epoch"], line[key]))
            named = [Line("all labels" if fold is None else f"fold {fold}", of) for fold, of in curves.items()]
            charts += [Chart(f"{method}: {title}", "epoch", unit, named)] if named else []
    return charts


def _with_labels(section: Section, record: RunRecord) -> Section:
    """The section of the data with tables of labels: by fold, and of each class."""
    folds = record.overview.get("folds", {})
    blocks, tested, trained = list(section.blocks), folds.get("tested"), folds.get("trained")
    if not isinstance(tested, list) or not isinstance(trained, list):
        if folds:
            facts = [(key, str(folds[key])) for key in ("split", "tested", "trained") if key in folds]
            blocks.append(Facts([("images " * (key != "split") + key, text) for key, text in facts]))
        return Section(section.title, blocks)
    counts = folds.get("blocks") or ["-"] * len(tested)
    rows = [
        [f"fold {fold}", str(n), f"{test:,}", f"{train:,}"]
        for fold, (n, test, train) in enumerate(zip(counts, tested, trained, strict=False))
    ]
    note = f"Split: {folds['split']}, with a buffer of {folds['buffer']} base pixels, seed {folds['seed']}."
    blocks.append(Table("Labels by fold", ["fold", "blocks", "labels tested", "labels trained on"], rows, note=note))
    names, by_class = record.overview.get("classes", []), folds.get("tested_classes") or []
    if names and by_class and all(isinstance(row, list) and len(row) == len(names) for row in by_class):
        head = ["class", *(f"fold {fold}" for fold in range(len(by_class))), "all"]
        table = [
            [str(name), *(f"{row[k]:,}" for row in by_class), f"{sum(row[k] for row in by_class):,}"]
            for k, name in enumerate(names)
        ]
        blocks.append(Table("Tested labels by class", head, table))
    return Section(section.title, blocks)


def _cost(scores: Lines, record: RunRecord) -> Section:
    """Costs of the fits of each method, means over folds, and on what they ran."""
    blocks: list[Block] = [Facts(environment_rows(record))]
    kept = [item for item in COSTS if any(line.get(item[0]) is not None for line in scores)]
    rows = []
    for method in dict.fromkeys(line["arm"] for line in scores):
        cells = []
        for key, _, text in kept:
            values = [line[key] for line in scores if line["arm"] == method and line.get(key) is not None]
            cells.append(text(statistics.fmean(values)) if values else "-")
        rows.append([method, *cells])
    if rows:
        head = ["method", *(name for _, name, _ in kept)]
        note = "Means over the folds that are done; memory is the peak of the process up to then."
        blocks.insert(0, Table("Cost of a fit", head, rows, note=note))
    return Section("Cost", blocks)
