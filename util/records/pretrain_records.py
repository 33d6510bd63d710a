"""What a training run leaves behind: log.txt, TensorBoard events, pictures, checkpoints, tables of what was used."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from util.checkpoints import run_checkpoints as ckpt
from util.metrics.skill import REGIONS, Scores
from util.model.layer_losses import LayerChannels
from util.plots.reconstruction import RowImages, reconstruction_figure, save_figure
from util.records.log import JsonLines, Writer, make_writer
from util.training.step_meter import WindowOfSteps

ERRORS = ("rmse", "rmse_mean", "rmse_interpolation")
CLASS_ERRORS = ("cross_entropy", "cross_entropy_majority", "cross_entropy_nearest")
ACCURACIES = ("accuracy", "accuracy_majority", "accuracy_nearest")
LAST_PICTURE = "reconstruction-last.png"


@dataclass(frozen=True)
class LayerReportInfo:
    """What reporting needs of a layer.

    Attributes:
        name: its name.
        unit: of its values; degrees of a circular layer.
        channels: what the model knows of it.
        decode: model units (..., k, h, w) -> values (..., h, w).
    """

    name: str
    unit: str
    channels: LayerChannels
    decode: Callable[[torch.Tensor], torch.Tensor]


class RunFiles:
    """Writes a run's records; does nothing in ranks other than the main one.

    Args:
        output_dir: checkpoints, log.txt, pictures.
        log_dir: TensorBoard events.
        layers: the layers in channel order.
        scales: scales, 1 first.
        scored: for each scale, the layers scored at it.
        enabled: False in ranks that only compute.
    """

    def __init__(
        self,
        output_dir: Path,
        log_dir: Path,
        *,
        layers: Sequence[LayerReportInfo],
        scales: Sequence[int],
        scored: Mapping[int, Sequence[int]],
        enabled: bool,
    ) -> None:
        self.output_dir = output_dir
        self.log_dir = log_dir
        self._layers = tuple(layers)
        self._scales = tuple(scales)
        self._scored = {scale: set(scored[scale]) for scale in scales}
        self._enabled = enabled
        self._writer: Writer = make_writer(None)
        self._lines: JsonLines | None = None
        self._windows: list[tuple[WindowOfSteps, dict[str, Any]]] = []

    def open(self, *, resume_step: int | None) -> Path | None:
        """Opens the records: after a resumed step, or afresh; what an earlier run left from there on is moved aside.

        Returns:
            Where that was moved to, None if there was nothing.
        """
        if not self._enabled:
            return None
        if resume_step is None:
            aside, purge = ckpt.set_aside(self.output_dir, self.log_dir), None
        else:
            aside, purge = ckpt.set_newer_aside(self.output_dir, resume_step), resume_step + 1
        self._lines = JsonLines(self.output_dir / "log.txt", purge_step=purge)
        self._writer = make_writer(self.log_dir, purge_step=purge)
        return aside

    def describe(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Puts tables of facts (options, environment, layers) into TensorBoard."""
        for name, table in tables.items():
            rows = "\n".join(f"| {key} | {value} |" for key, value in table.items())
            self._writer.text(name, f"| | |\n|---|---|\n{rows}")

    def log_training(
        self,
        seen: WindowOfSteps,
        *,
        step: int,
        epoch: int,
        lr: float,
        speed: Mapping[str, float],
        memory_bytes: int,
    ) -> None:
        """Records a window of training steps."""
        record = {"lr": lr, "grad_norm": seen.grad_norm, **speed, "peak_memory_mb": memory_bytes / 2**20}
        self._windows.append((seen, record))
        tags = {
            "train/loss": seen.loss,
            "train/base_loss": seen.base_loss,
            "train/scale_loss": seen.scale_loss,
            "optim/lr": lr,
            "optim/grad_norm": seen.grad_norm,
            "speed/tiles_per_s": speed["tiles_per_s"],
            "speed/wait_share": speed["wait_share"],
            "memory/peak_mb": memory_bytes / 2**20,
        }
        for level, channel, scale, layer in self._entries():
            tags[f"train_layers/{layer.name}_{scale}x"] = float(seen.layer_losses[level, channel])
        self._write({"kind": "train", "step": step, "epoch": epoch, **self._losses([seen]), **record}, tags)

    def _losses(self, windows: Sequence[WindowOfSteps]) -> dict[str, Any]:
        """Training losses averaged over windows, each by its updates; NaN, where nothing was scored, is left out."""

        def mean(values: Iterable[float]) -> float:
            known = [(v, window.updates) for v, window in zip(values, windows, strict=True) if not math.isnan(v)]
            return (
                sum(v * updates for v, updates in known) / sum(updates for _, updates in known) if known else math.nan
            )

        layers: dict[str, dict[str, float]] = {}
        for level, channel, scale, layer in self._entries():
            losses = [float(window.layer_losses[level, channel]) for window in windows]
            layers.setdefault(layer.name, {})[f"{scale}x"] = mean(losses)
        return {
            "train_loss": mean(window.loss for window in windows),
            "train_base_loss": mean(window.base_loss for window in windows),
            "train_scale_loss": mean(window.scale_loss for window in windows),
            "train_layers": layers,
        }

    def log_epoch(self, scores: Scores | None, *, step: int, epoch: int, seconds: float, tiles: int) -> dict[str, Any]:
        """Records the end of an epoch with the held-out scores, in physical units.

        Training losses are means over the epoch, or over what was trained of it since the run was taken up; rate,
        speed, gradient norm and memory are those of its last window.

        Returns:
            The line written: per layer and scale `rmse`, `rmse_mean`, `rmse_interpolation` (units of the layer;
            degrees), or of classes `cross_entropy` and `accuracy` of the model, `_majority` and `_nearest`; `skill`,
            and at finer scales `skill_hidden` and `skill_visible`.
        """
        line: dict[str, Any] = {"kind": "epoch", "step": step, "epoch": epoch, "seconds": round(seconds, 3)}
        line |= self._losses([seen for seen, _ in self._windows]) | self._windows[-1][1]
        self._windows.clear()
        tags: dict[str, float] = {}
        if scores is not None:
            line |= {
                "val_loss": scores.loss,
                "val_base_loss": scores.base_loss,
                "val_scale_loss": scores.scale_loss,
                "val_tiles": tiles,
                "val_views": scores.views,
                "val": self._layer_scores(scores),
            }
            for name in ("val_loss", "val_base_loss", "val_scale_loss"):
                tags[f"val/{name.removeprefix('val_')}"] = line[name]
            for layer, by_scale in line["val"].items():
                for scale, values in by_scale.items():
                    kept = ("skill", "rmse", "accuracy")
                    tags |= {f"val_{key}/{layer}_{scale}": values[key] for key in kept if key in values}
        self._write(line, tags)
        return line

    def _write(self, line: Mapping[str, Any], tags: Mapping[str, float]) -> None:
        """Writes one line of the log, and those of its numbers that are finite to TensorBoard."""
        with self._told_when_full():
            for tag, value in tags.items():
                if math.isfinite(value):
                    self._writer.scalar(tag, value, line["step"])
            if line["kind"] == "epoch":
                self._writer.flush()
            if self._lines is not None:
                self._lines.write(line)

    def draw(self, rows: Sequence[RowImages], *, title: str, epoch: int, step: int, length_unit: str) -> None:
        """Draws reconstructions into TensorBoard and as PNG."""
        if not self._enabled:
            return
        figure = reconstruction_figure(rows, title=title, length_unit=length_unit)
        with self._told_when_full():
            self._writer.figure("reconstruction", figure, step)
            self._writer.flush()
            picture = self.output_dir / f"reconstruction-{epoch}.png"
            save_figure(picture, figure)
            last = self.output_dir / f".{LAST_PICTURE}.tmp"
            last.write_bytes(picture.read_bytes())
            os.replace(last, self.output_dir / LAST_PICTURE)

    def save(self, state: Mapping[str, Any], *, keep: bool) -> None:
        """Writes checkpoint-last.pth and, to keep, checkpoint-<epoch>.pth.

        Raises:
            OSError: the disk is full or the folder not writable; earlier checkpoints are intact.
        """
        if self._enabled:
            with self._told_when_full():
                self._writer.flush()
            ckpt.save_run_checkpoint(self.output_dir, state, epoch_file=keep)

    def restore_epoch_file(self, *, epoch: int, step: int) -> None:
        """Makes up for a checkpoint-<epoch>.pth that a kill prevented, from the checkpoint of that step.

        Raises:
            OSError: it could not be written.
        """
        if self._enabled:
            ckpt.restore_epoch_file(self.output_dir, epoch=epoch, step=step)

    def close(self) -> None:
        """Closes the records; what a full disk has no room for is lost."""
        with suppress(OSError):
            self._writer.close()
        if self._lines is not None:
            with suppress(OSError):
                self._lines.close()

    @contextmanager
    def _told_when_full(self) -> Iterator[None]:
        """Says of a record that cannot be written what is safe and what to do."""
        try:
            yield
        except OSError as error:
            places = " or ".join(dict.fromkeys([str(self.output_dir), str(self.log_dir)]))
            raise OSError(
                f"records in {places} not written: {error.strerror or error}; earlier checkpoints are intact. Free "
                "some space or raise the limit, then go on with --resume auto"
            ) from error

    def _entries(self) -> Iterator[tuple[int, int, int, LayerReportInfo]]:
        """(level, channel, scale, layer) of everything that is scored."""
        for level, scale in enumerate(self._scales):
            for channel, layer in enumerate(self._layers):
                if channel in self._scored[scale]:
                    yield level, channel, scale, layer

    def _layer_scores(self, scores: Scores) -> dict[str, dict[str, dict[str, float]]]:
        skill = scores.skill
        table: dict[str, dict[str, dict[str, float]]] = {}
        for level, channel, scale, layer in self._entries():
            at = (0, level, channel)
            errors = [float(source[at]) for source in (scores.model, scores.mean, scores.interpolation)]
            reports = [float(source[at]) for source in scores.reports]
            if layer.channels.has_fractions:
                values = dict(zip(CLASS_ERRORS, errors, strict=True))
                values |= {name: 1 - report for name, report in zip(ACCURACIES, reports, strict=True)}
            else:
                roots = (math.sqrt(report) if report >= 0 else math.nan for report in reports)
                values = dict(zip(ERRORS, roots, strict=True))
            values["skill"] = float(skill[at])
            if level:
                for region, name in enumerate(REGIONS[1:], start=1):
                    values[f"skill_{name}"] = float(skill[region, level, channel])
            table.setdefault(layer.name, {})[f"{scale}x"] = values
        return table


def score_lines(line: Mapping[str, Any], units: Mapping[str, str]) -> list[str]:
    """The held-out part of an epoch's record as a table to read."""
    rows = []
    for layer, by_scale in line.get("val", {}).items():
        for scale, v in by_scale.items():
            parts = [f"{name} {v[f'skill_{name}']:+.3f}" for name in REGIONS[1:] if f"skill_{name}" in v]
            keys = ACCURACIES if "accuracy" in v else ERRORS
            model, constant, filled = (f"{key.rpartition('_')[2]} {v[key]:10.4g}" for key in keys)
            errors = f"{model}  {filled}  {constant} {units.get(layer, ''):<6}"
            rows.append(
                f"  {layer:<20} {scale:>3}  {errors} skill {v['skill']:+.3f}"
                + (f" ({', '.join(parts)})" if parts else "")
            )
    return rows


def reconstruction_rows(
    *,
    layers: Sequence[LayerReportInfo],
    scales: Sequence[int],
    scored: Mapping[int, Sequence[int]],
    base_pixel: tuple[float, float],
    targets: Sequence[torch.Tensor],
    valid: Sequence[torch.Tensor],
    images: Mapping[int, torch.Tensor],
    hidden: torch.Tensor,
) -> list[RowImages]:
    """Makes the rows of a reconstruction figure from one tile.

    Args:
        layers: the layers in channel order.
        scales: scales, 1 first.
        scored: for each scale, the layers scored at it.
        base_pixel: width and height of a base-scale pixel, length units.
        targets: per scale (C, sH, sW), model units.
        valid: likewise bool.
        images: predictions by scale, (C, sH, sW), model units.
        hidden: (C, H, W) bool, True inside hidden tokens.

    Returns:
        One row for each layer and scale that is scored, in physical units. At the base scale, where visible pixels
        are not predicted, the reconstruction shows them as they were given.
    """
    nan = torch.tensor(float("nan"))
    rows = []
    for number, layer in enumerate(layers):
        first = layer.channels.first
        part = slice(first, first + layer.channels.count)
        image = torch.where(valid[0][first], targets[0][part], nan)
        for level, scale in enumerate(scales):
            if number not in scored[scale]:
                continue
            prediction = images[scale][part].float()
            if level == 0:
                prediction = torch.where(hidden[first], prediction, targets[0][part])
            arrays = [
                image,
                torch.where(hidden[first], nan, image),
                torch.where(valid[level][first], prediction, nan),
                torch.where(valid[level][first], targets[level][part], nan),
            ]
            shown, visible, rebuilt, target = [layer.decode(array).numpy() for array in arrays]
            width, height = (edge / scale for edge in base_pixel)
            row = RowImages(layer.name, layer.unit, scale, width, shown, visible, rebuilt, target)
            rows.append(replace(row, kind=layer.channels.kind, pixel_height=height))
    return rows
