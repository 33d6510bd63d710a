"""Records of a pre-training run: log.txt, TensorBoard events, pictures and checkpoints."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from util.checkpoints import run_checkpoints as ckpt
from util.hardware.system import replace_file
from util.metrics.held_out import TrainingData
from util.metrics.skill import REGIONS, ScoredBatch, Scores
from util.metrics.verdict import skill_verdict
from util.model.layer_losses import LayerChannels
from util.options.commands import after_pretraining
from util.plots.reconstruction import RowImages, reconstruction_figure, save_figure
from util.records import tags as tag
from util.records.log import JsonLines, Writer, make_writer
from util.run_page.page import PAGE, RunPage
from util.run_page.record import read_records
from util.training.state import Progress
from util.training.step_meter import WindowOfSteps
from util.training.timer import TimeLeft

logger = logging.getLogger(__name__)

ERRORS = ("rmse", "rmse_mean", "rmse_interpolation")
CLASS_ERRORS = ("cross_entropy", "cross_entropy_majority", "cross_entropy_nearest")
ACCURACIES = ("accuracy", "accuracy_majority", "accuracy_nearest")
LAST_PICTURE = "reconstruction-last.png"
PAGE_WAIT_S = 60.0
"""How old the page may be before it is written within an epoch."""


@dataclass(frozen=True)
class LayerReportInfo:
    """What the records need to know about a layer.

    Attributes:
        name: name of the layer.
        unit: unit of its values; degrees for a circular layer.
        channels: its channels in the model.
        decode: model units (..., k, h, w) -> physical values (..., h, w).
        period: of angles, degrees after which they repeat.
        classes: class code -> (name, '#rrggbb') of a layer of classes; None of others.
    """

    name: str
    unit: str
    channels: LayerChannels
    decode: Callable[[torch.Tensor], torch.Tensor]
    period: float = 360.0
    classes: Mapping[float, tuple[str, str]] | None = None


class RunFiles:
    """Writes the records of a run; does nothing in ranks other than the main one.

    Args:
        output_dir: folder for checkpoints, log.txt and pictures.
        log_dir: folder for TensorBoard events, None for `output_dir`.
        data: the training data.
        channels: the channels of each layer in the model.
        epochs: total number of epochs.
        enabled: False in ranks other than the main one.
    """

    def __init__(
        self,
        output_dir: str | Path,
        log_dir: str | Path | None,
        data: TrainingData,
        channels: Sequence[LayerChannels],
        *,
        epochs: int,
        enabled: bool,
    ) -> None:
        self._epochs, self._time_left = epochs, TimeLeft()
        self.output_dir = Path(output_dir)
        self.log_dir = Path(log_dir or output_dir)
        self._layers = tuple(
            LayerReportInfo(
                layer.name,
                encoding.unit(layer.units),
                part,
                encoding.decode,
                encoding.period,
                classes=_classes_of(encoding) if part.has_fractions else None,
            )
            for layer, encoding, part in zip(data.layers, data.encodings, channels, strict=True)
        )
        self._scales = tuple(data.scales)
        self._scored = {scale: set(data.scored[scale]) for scale in data.scales}
        self._enabled = enabled
        self._overview, self._is_resumed = data.overview, False
        self._page = RunPage(self.output_dir, "main_pretrain", enabled=enabled)
        self._writer: Writer = make_writer(None)
        self._lines: JsonLines | None = None
        self._scores: Mapping[str, Any] = {}
        self._options: Mapping[str, Any] = {}
        self._final: Mapping[str, float] = {}
        self._windows: list[tuple[WindowOfSteps, dict[str, Any]]] = []

    def open(self, *, resume_step: int | None) -> None:
        """Opens the records and moves aside files of an earlier run that would be overwritten.

        Args:
            resume_step: step from which the run is resumed; None for a new run.
        """
        if not self._enabled:
            return
        if resume_step is None:
            recorded = [run.facts.get("log_dir") for run in read_records(self.output_dir)]
            aside, purge = ckpt.set_aside(self.output_dir, self.log_dir, recorded=recorded), None
        else:
            aside, purge = ckpt.set_newer_aside(self.output_dir, resume_step), resume_step + 1
        self._time_left, self._is_resumed = TimeLeft(), resume_step is not None
        self._lines = JsonLines(self.output_dir / "log.txt", purge_step=purge)
        self._writer = make_writer(self.log_dir, purge_step=purge)
        if aside is not None:
            what = "an earlier run" if resume_step is None else "newer checkpoints"
            logger.warning("%s held %s: now in %s", self.output_dir, what, aside)

    def describe(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Shows tables of values, `options` and `environment` among them, in TensorBoard, and begins the page."""
        self._options = tables.get("options", {})
        for name, table in tables.items():
            rows = "\n".join(f"| {key} | {value} |" for key, value in table.items())
            self._writer.text(name, f"| | |\n|---|---|\n{rows}")
        self._page.begin(
            resumed=self._is_resumed,
            options=self._options,
            environment=tables.get("environment", {}),
            overview=self._overview,
            facts={"log_dir": str(self.log_dir)},
        )

    def log_training(
        self,
        window: WindowOfSteps,
        progress: Progress,
        *,
        lr: float,
        speed: Mapping[str, float],
        memory_bytes: int,
        scaling: Mapping[str, float] | None = None,
    ) -> None:
        """Records a window of training steps; `scaling` is what a gradient scaler did (`Updater.require_updates`)."""
        record = {"lr": lr, "grad_norm": window.grad_norm, **speed, "peak_memory_mb": memory_bytes / 2**20}
        self._windows.append((window, record))
        tags = {
            f"{tag.LOSS}/training": window.loss,
            f"{tag.LOSS}/training_base": window.base_loss,
            f"{tag.LOSS}/training_finer": window.scale_loss,
            **({} if window.texture_loss is None else {f"{tag.LOSS}/training_texture": window.texture_loss}),
            f"{tag.OPTIMISER}/lr": lr,
            f"{tag.OPTIMISER}/grad_norm": window.grad_norm,
            f"{tag.SPEED}/tiles_per_s": speed["tiles_per_s"],
            f"{tag.SPEED}/wait_share": speed["wait_share"],
            f"{tag.MEMORY}/peak_mb": memory_bytes / 2**20,
        }
        tags |= {f"{tag.OPTIMISER}/{name}": value for name, value in (scaling or {}).items()}
        for level, channel, scale, layer in self._entries():
            tags[f"{tag.LAYER_LOSS}/{layer.name}_{scale}x"] = float(window.layer_losses[level, channel])
        self._write(
            {
                "kind": "train",
                "step": progress.step,
                "epoch": progress.epoch + 1,
                **self._losses([window]),
                **record,
                **(scaling or {}),
            },
            tags,
        )
        self._page.update(progress=self._progress(progress.epoch, self._time_left.note), wait_s=PAGE_WAIT_S)

    def _progress(self, epochs_done: int, note: str = "") -> str:
        """How far the run is, for its page."""
        return f"{epochs_done} of {self._epochs} epochs done{note}"

    def epoch_name(self, epochs_done: int) -> str:
        """The epoch that begins after these, for its progress bar, with the time left of the whole run once known."""
        return f"epoch {epochs_done + 1} of {self._epochs}{self._time_left.note}"

    def _losses(self, windows: Sequence[WindowOfSteps]) -> dict[str, Any]:
        """Training losses averaged over windows, weighted by updates; NaN, where nothing was scored, is ignored."""

        def mean(values: Iterable[float]) -> float:
            known = [(v, window.updates) for v, window in zip(values, windows, strict=True) if not math.isnan(v)]
            return (
                sum(v * updates for v, updates in known) / sum(updates for _, updates in known) if known else math.nan
            )

        layers: dict[str, dict[str, float]] = {}
        for level, channel, scale, layer in self._entries():
            losses = [float(window.layer_losses[level, channel]) for window in windows]
            layers.setdefault(layer.name, {})[f"{scale}x"] = mean(losses)
        textures = [window.texture_loss for window in windows if window.texture_loss is not None]
        return {
            "train_loss": mean(window.loss for window in windows),
            "train_base_loss": mean(window.base_loss for window in windows),
            "train_scale_loss": mean(window.scale_loss for window in windows),
            **({"train_texture_loss": mean(textures)} if textures else {}),
            "train_layers": layers,
        }

    def log_epoch(self, scores: Scores | None, *, step: int, epoch: int, seconds: float, tiles: int) -> dict[str, Any]:
        """Records and logs the end of an epoch with the held-out scores, in physical units.

        Training losses are means over the epoch, or over its part since the run was resumed; learning rate, speed,
        gradient norm and memory are those of the last window.

        Args:
            scores: held-out scores, None if nothing is held out.
            step: optimiser steps done.
            epoch: number of the epoch, from 1.
            seconds: seconds trained so far.
            tiles: number of held-out tiles.

        Returns:
            The line written: per layer and scale `rmse`, `rmse_mean`, `rmse_interpolation` (units of the layer;
            degrees), or of classes `cross_entropy` and `accuracy` of the model, `_majority` and `_nearest`; `skill`,
            and at finer scales `skill_hidden` and `skill_visible` where visible tokens are scored.
        """
        line: dict[str, Any] = {"kind": "epoch", "step": step, "epoch": epoch, "seconds": round(seconds, 3)}
        line |= self._losses([window for window, _ in self._windows]) | self._windows[-1][1]
        self._windows.clear()
        tags: dict[str, float] = {}
        if scores is not None:
            line |= {
                "val_loss": scores.loss,
                "val_base_loss": scores.base_loss,
                "val_scale_loss": scores.scale_loss,
                **({} if scores.texture_loss is None else {"val_texture_loss": scores.texture_loss}),
                "val_tiles": tiles,
                "val_views": scores.views,
                "val": self._layer_scores(scores),
            }
            parts = {"loss": "", "base_loss": "_base", "scale_loss": "_finer", "texture_loss": "_texture"}
            tags |= {
                f"{tag.LOSS}/held_out{p}": line[f"val_{name}"] for name, p in parts.items() if f"val_{name}" in line
            }
            for layer, by_scale in line["val"].items():
                for scale, values in by_scale.items():
                    kept = {"skill": tag.SKILL, "rmse": tag.ERROR, "accuracy": tag.ERROR}
                    ends = {"accuracy": "_accuracy"}
                    tags |= {
                        f"{group}/{layer}_{scale}{ends.get(key, '')}": values[key]
                        for key, group in kept.items()
                        if key in values
                    }
        self._write(line, tags)
        units = {layer.name: layer.unit for layer in self._layers}
        left = self._time_left.after_epoch(epoch, self._epochs)
        for text in epoch_summary(line, units, epochs=self._epochs, left=left):
            logger.info("%s", text)
        self._scores = line.get("val", {})
        self._final = {f"final/{name}": v for name, v in tags.items() if name.startswith((tag.SKILL, tag.LOSS))}
        self._page.update(progress=self._progress(epoch, self._time_left.note))
        return line

    def log_paths(self) -> None:
        """Logs what the last skill says, where the results are, and the commands that use them."""
        if verdict := skill_verdict(self._scores):
            logger.info("%s", verdict)
            self._writer.hparams(self._options, self._final)
        logger.info("checkpoint   %s", self.output_dir / ckpt.LAST)
        if (self.output_dir / LAST_PICTURE).exists():
            logger.info("picture      %s", self.output_dir / LAST_PICTURE)
        logger.info("tensorboard  tensorboard --logdir %s", self.log_dir)
        for line in after_pretraining(self.output_dir / ckpt.LAST):
            logger.info("next: %s", line)
        logger.info("page         %s", self.output_dir / PAGE)
        self._page.finish()

    def _write(self, line: Mapping[str, Any], tags: Mapping[str, float]) -> None:
        """Writes one line of the log, and its finite numbers to TensorBoard."""
        with self._explained_when_full():
            units = {f"{layer.name}_{scale}x": layer.unit for _, _, scale, layer in self._entries()}
            for name, value in tags.items():
                if math.isfinite(value):
                    text = tag.about(name, units.get(name.partition("/")[2], ""))
                    self._writer.scalar(name, value, line["step"], about=text)
            if line["kind"] == "epoch":
                self._writer.flush()
            if self._lines is not None:
                self._lines.write(line)

    def draw(
        self,
        batch: ScoredBatch,
        images: Mapping[int, torch.Tensor],
        hidden: torch.Tensor,
        hidden_alone: bool,
        progress: Progress,
        *,
        base_pixel: tuple[float, float],
        length_unit: str,
    ) -> None:
        """Draws the reconstruction of a held-out tile as PNG and into TensorBoard.

        Args:
            batch: a batch of that tile alone.
            images: predictions by scale, (1, C, sH, sW), model units.
            hidden: (1, C, H, W) bool, True inside masked tokens.
            hidden_alone: finer scales, too, are scored inside masked tokens alone.
            progress: how far the run is.
            base_pixel: width and height of a base-scale pixel, length units.
            length_unit: unit of `base_pixel`.
        """
        if not self._enabled:
            return
        rows = reconstruction_rows(
            layers=self._layers,
            scales=self._scales,
            scored=self._scored,
            base_pixel=base_pixel,
            targets=[target[0].cpu() for target in (batch.imgs, *batch.imgs_up)],
            valid=[valid[0].cpu() for valid in (batch.valid, *batch.valid_up)],
            images={scale: image[0].cpu() for scale, image in images.items()},
            hidden=hidden[0].cpu(),
            hidden_alone=hidden_alone,
        )
        skills = {(name, int(s[:-1])): v.get("skill") for name, of in self._scores.items() for s, v in of.items()}
        rows = [replace(row, skill=skills.get((row.layer, row.scale))) for row in rows]
        title = f"held-out tile after epoch {progress.epoch} of {self._epochs}; skill is that of all held-out tiles"
        figure = reconstruction_figure(rows, title=title, length_unit=length_unit)
        with self._explained_when_full():
            for layer in dict.fromkeys(row.layer for row in rows):  # of all at once nothing can be read in its frame
                part = reconstruction_figure(
                    [r for r in rows if r.layer == layer], title=title, length_unit=length_unit
                )
                self._writer.figure(f"reconstruction/{layer}", part, progress.step)
            self._writer.flush()
            picture = self.output_dir / f"reconstruction-{progress.epoch}.png"
            save_figure(picture, figure)
            last = self.output_dir / f".{LAST_PICTURE}.tmp"
            last.write_bytes(picture.read_bytes())
            replace_file(last, self.output_dir / LAST_PICTURE)

    def save(self, state: Mapping[str, Any], *, keep: bool) -> None:
        """Writes checkpoint-last.pth and, if `keep`, checkpoint-<epoch>.pth.

        Raises:
            OSError: the disk is full or the folder not writable; earlier checkpoints are intact.
        """
        if self._enabled:
            with self._explained_when_full():
                self._writer.flush()
            ckpt.save_run_checkpoint(self.output_dir, state, epoch_file=keep)

    def restore_epoch_file(self, *, epoch: int, step: int) -> None:
        """Writes a checkpoint-<epoch>.pth that is missing because the run was killed, from the checkpoint of that step.

        Raises:
            OSError: it could not be written.
        """
        if self._enabled:
            ckpt.restore_epoch_file(self.output_dir, epoch=epoch, step=step)

    def close(self, error: BaseException | None = None) -> None:
        """Closes the records; what does not fit on a full disk is lost.

        Args:
            error: what ended the run, for its page.
        """
        self._page.end(error)
        with suppress(OSError):
            self._writer.close()
        if self._lines is not None:
            with suppress(OSError):
                self._lines.close()

    @contextmanager
    def _explained_when_full(self) -> Iterator[None]:
        """Adds to the error of a record that cannot be written what is safe and what to do."""
        try:
            yield
        except OSError as error:
            places = " or ".join(dict.fromkeys([str(self.output_dir), str(self.log_dir)]))
            raise OSError(
                f"records in {places} not written: {error.strerror or error}; earlier checkpoints are intact. Free "
                "some space or raise the limit, then go on with --resume auto"
            ) from error

    def _entries(self) -> Iterator[tuple[int, int, int, LayerReportInfo]]:
        """Yields (level, channel, scale, layer) for each scored layer and scale."""
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
            if level and float(scores.counts[2, level, channel]):  # else all that is scored is hidden
                for region, name in enumerate(REGIONS[1:], start=1):
                    values[f"skill_{name}"] = float(skill[region, level, channel])
            table.setdefault(layer.name, {})[f"{scale}x"] = values
        return table


def epoch_summary(line: Mapping[str, Any], units: Mapping[str, str], *, epochs: int, left: str = "") -> list[str]:
    """Returns an epoch's record as text: losses and speed, then a table of held-out scores.

    Args:
        line: the record, from `RunFiles.log_epoch`.
        units: unit of each layer by name.
        epochs: total number of epochs.
        left: time until the run ends.
    """
    held_out = f"{line['val_loss']:.4f}" if "val_loss" in line else "-"
    rows = [
        f"epoch {line['epoch']} of {epochs}: loss {line['train_loss']:.4f}, held-out loss {held_out}, "
        f"{line['tiles_per_s']:.0f} tiles/s, waited {100 * line['wait_share']:.1f} %, {line['seconds']:.0f} s"
        + (f"; {left} left" if left else "")
    ]
    for layer, by_scale in line.get("val", {}).items():
        for scale, v in by_scale.items():
            parts = [f"{name} {v[f'skill_{name}']:+.3f}" for name in REGIONS[1:] if f"skill_{name}" in v]
            keys = ACCURACIES if "accuracy" in v else ERRORS
            model, constant, filled = (f"{key.rpartition('_')[2]} {v[key]:10.4g}" for key in keys)
            unit = "" if "accuracy" in v else units.get(layer, "")
            errors = f"{model}  {filled}  {constant} {unit:<6}"
            rows.append(
                f"  {layer:<20} {scale:>3}  {errors} skill {v['skill']:+.3f}"
                + (f" ({', '.join(parts)})" if parts else "")
            )
    return rows


def reconstruction_rows(
    *,
    layers: Sequence[LayerReportInfo],
    scales: Sequence[int],
    scored: Mapping[int, Collection[int]],
    base_pixel: tuple[float, float],
    targets: Sequence[torch.Tensor],
    valid: Sequence[torch.Tensor],
    images: Mapping[int, torch.Tensor],
    hidden: torch.Tensor,
    hidden_alone: bool = False,
) -> list[RowImages]:
    """Returns the rows of a reconstruction figure of one tile.

    Args:
        layers: the layers in channel order.
        scales: scales, 1 first.
        scored: for each scale, the numbers of the layers scored at it.
        base_pixel: width and height of a base-scale pixel, length units.
        targets: per scale (C, sH, sW), model units.
        valid: likewise bool, True where known.
        images: predictions by scale, (C, sH, sW), model units.
        hidden: (C, H, W) bool, True inside hidden tokens.
        hidden_alone: the model predicts pixels of hidden tokens alone, at every scale.

    Returns:
        One row per scored layer and scale, in physical units. Where visible pixels are not predicted, as at the base
        scale, the reconstruction shows their true values.
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
            if level == 0 or hidden_alone:
                inside = hidden[first].repeat_interleave(scale, -1).repeat_interleave(scale, -2)
                prediction = torch.where(inside, prediction, targets[level][part])
            arrays = [
                image,
                torch.where(hidden[first], nan, image),
                torch.where(valid[level][first], prediction, nan),
                torch.where(valid[level][first], targets[level][part], nan),
            ]
            shown, visible, rebuilt, target = [layer.decode(array).numpy() for array in arrays]
            width, height = (edge / scale for edge in base_pixel)
            row = RowImages(layer.name, layer.unit, scale, width, shown, visible, rebuilt, target)
            angle, classes = layer.channels.is_angle, layer.classes
            rows.append(replace(row, is_angle=angle, classes=classes, pixel_height=height, period=layer.period))
    return rows


def _classes_of(encoding: Any) -> dict[float, tuple[str, str]]:
    """Names and colours of the classes of a `datasets.layers.encoding.Encoding`, by code."""
    named = zip(encoding.codes, encoding.names, encoding.colours, strict=True)
    return {code: (name, colour) for code, name, colour in named}
