"""GRID-MAE from Python, in a notebook for example: the programs as functions that take their flags as keywords.

    import gridmae

    survey = gridmae.open_survey(data_dir="grids")
    pretrained = gridmae.pretrain(data_dir="grids", epochs=20, output_dir="pretrained")
    finetuned = gridmae.finetune(finetune=pretrained.checkpoint, labels="lithology.tif", output_dir="finetuned")
    maps = gridmae.predict(checkpoint=finetuned.checkpoint, output="prediction", output_dir="maps")

A keyword is a flag without its dashes, with the same default (docs/flags.md): True and False switch flags on and off,
lists give several values, lists of lists repeat the flag (`grouped_bands=[[0, 1], [2]]`), None is the default. Each
function runs a main program in this process, so that results and files are those of the command line. `quiet=True`
keeps the log and progress bars off; warnings stay.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import main_finetune
import main_inference
import main_pretrain
from datasets.rasters.handles import close_datasets
from datasets.rasters.xarray_store import forget_all
from datasets.survey import open_survey as surveys
from datasets.survey.survey import Survey
from util.checkpoints.checkpoint_file import LAST
from util.options import common
from util.records.finetune_records import EVALUATION, METRICS
from util.run_page.record import RECORD, read_records

__all__ = ["Finetuned", "Maps", "Pretrained", "finetune", "open_survey", "predict", "pretrain"]


@dataclass(frozen=True)
class Pretrained:
    """What a pre-training left.

    Attributes:
        folder: `--output_dir`, with log, pictures and checkpoints.
        checkpoint: the last one, for `finetune` and `predict`.
        epochs: for each finished epoch, its line of log.txt: losses and, on held-out ground, scores and skill. A dry
            run has none, and leaves no checkpoint.
    """

    folder: Path
    checkpoint: Path
    epochs: list[dict[str, Any]]

    @property
    def skill(self) -> dict[str, dict[str, float]]:
        """For each layer the skill at each scale after the last epoch: 1 is perfect, 0 no better than interpolation."""
        scored = self.epochs[-1].get("val", {}) if self.epochs else {}
        return {
            layer: {scale: found["skill"] for scale, found in scales.items() if "skill" in found}
            for layer, scales in scored.items()
        }


@dataclass(frozen=True)
class Finetuned:
    """What a fine-tuning left.

    Attributes:
        folder: `--output_dir`, with scores, pictures and checkpoints.
        checkpoint: of the last fit, on all labels, for `predict`; not there if that fit was left out. With `eval` the
            one that was scored.
        metrics: contents of metrics.json; with `eval` of evaluation.json.
    """

    folder: Path
    checkpoint: Path
    metrics: dict[str, Any]

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """For each compared method the mean of every score over the folds, on test ground.

        With `eval` there is one, `checkpoint`.
        """
        if "arms" not in self.metrics:
            test = self.metrics["test"].items()
            return {"checkpoint": {name: value for name, value in test if isinstance(value, int | float)}}
        return {
            method: {name: number["mean"] for name, number in of_method["summary"].items() if "mean" in number}
            for method, of_method in self.metrics["arms"].items()
        }


@dataclass(frozen=True)
class Maps:
    """What an inference left.

    Attributes:
        folder: `--output_dir`.
        rasters: the GeoTIFFs in it.
        pictures: the pictures in it.
    """

    folder: Path
    rasters: list[Path]
    pictures: list[Path]


def open_survey(**options: Any) -> Survey:
    """The layers that main_pretrain would train on, opened and scanned, with tiles and statistics.

    Args:
        **options: flags of main_pretrain about data and model; `train_path` or `data_dir` names the layers.

    Raises:
        ValueError, OSError: bad input, as main_pretrain refuses it.
    """
    args, _ = _parsed(main_pretrain.get_args_parser(), options)
    _forget_files()
    return surveys.open_survey(surveys.SurveySettings(**common.survey_options(args)))


def pretrain(*, quiet: bool = False, **options: Any) -> Pretrained:
    """Pre-trains on layers, as `python -m main_pretrain` does.

    Args:
        quiet: keeps log and progress bar off.
        **options: its flags.

    Raises:
        ValueError: bad input; RuntimeError: the run failed or was stopped.
    """
    args = _run("main_pretrain", main_pretrain, options, quiet=quiet)
    folder = Path(args.output_dir)
    lines = [] if args.dry_run else (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    epochs = [line for line in map(json.loads, lines) if line["kind"] == "epoch"]
    return Pretrained(folder, folder / LAST, epochs)


def finetune(*, quiet: bool = False, **options: Any) -> Finetuned:
    """Fine-tunes on labels and scores on held-out ground, as `python -m main_finetune` does.

    Args:
        quiet: keeps log and progress bar off.
        **options: its flags.

    Raises:
        ValueError: bad input; RuntimeError: the run failed or was stopped.
    """
    args = _run("main_finetune", main_finetune, options, quiet=quiet)
    folder = Path(args.output_dir)
    metrics = json.loads((folder / (EVALUATION if args.eval else METRICS)).read_text(encoding="utf-8"))
    return Finetuned(folder, Path(metrics["checkpoint"]) if args.eval else folder / LAST, metrics)


def predict(*, quiet: bool = False, **options: Any) -> Maps:
    """Writes maps of whole rasters, as `python -m main_inference` does.

    Args:
        quiet: keeps log and progress bar off.
        **options: its flags.

    Raises:
        ValueError: bad input; RuntimeError: the run failed or was stopped.
    """
    args = _run("main_inference", main_inference, options, quiet=quiet)
    folder = Path(args.output_dir)
    return Maps(folder, sorted(folder.glob("*.tif")), sorted(folder.glob("*.png")))


def _run(name: str, program: Any, options: Mapping[str, Any], *, quiet: bool) -> argparse.Namespace:
    """Runs a main program in this process and returns its options.

    Raises:
        ValueError: exit status 2; RuntimeError: any other than 0, or the run was stopped before its end.
    """
    args, argv = _parsed(program.get_args_parser(), options)
    argv += ["--no_progress"] * (quiet and "no_progress" not in options)
    _forget_files()
    begun = time.time()
    with _said(quiet=quiet) as said:
        status = program.main(argv)
    if status:
        errors = [line for line in "".join(said).splitlines() if line.startswith(f"{name}: error")]
        message = errors[-1] if errors else f"{name} ended with exit status {status}; its log says why"
        raise (ValueError if status == 2 else RuntimeError)(message)
    _require_finished(name, Path(args.output_dir), begun)
    return args


def _require_finished(name: str, folder: Path, begun: float) -> None:
    """Checks that a run did all it should: one that a signal stopped ends with exit status 0, too.

    Args:
        name: of the program.
        folder: its output folder; runs that write no report.json, such as dry ones, pass.
        begun: when it was started, seconds since the epoch; older records do not count.

    Raises:
        RuntimeError: it did not.
    """
    for record in read_records(folder):
        session = record.sessions[-1] if record.sessions else None
        if record.program == name and session and session.begun >= begun and session.state != "finished":
            raise RuntimeError(
                f"{name}: {session.state}, expected finished ({folder / RECORD}); what is done is saved: call it again "
                "with resume='auto'"
            )


def _forget_files() -> None:
    """Closes what an earlier call left open: files may have been corrected since."""
    close_datasets()
    forget_all()


def _parsed(parser: argparse.ArgumentParser, options: Mapping[str, Any]) -> tuple[argparse.Namespace, list[str]]:
    """Options and command line for keywords.

    Raises:
        ValueError: an unknown keyword, or a wrong value.
    """
    argv, message = _command_line(parser, options), io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return parser.parse_args(argv), argv
    except SystemExit:
        raise ValueError(message.getvalue().strip()) from None


def _command_line(parser: argparse.ArgumentParser, options: Mapping[str, Any]) -> list[str]:
    """The flags that keywords stand for."""
    argv: list[str] = []
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, bool):
            off = f"--no-{name}"
            argv += [f"--{name}"] if value else [off] if off in parser._option_string_actions else []
        elif isinstance(value, list | tuple) and value and all(isinstance(item, list | tuple) for item in value):
            argv += [word for item in value for word in (f"--{name}", *map(str, item))]
        elif isinstance(value, list | tuple):
            argv += [f"--{name}", *map(str, value)]
        else:
            argv += [f"--{name}={value}"]
    return argv


class _Heard(io.TextIOBase):
    """A stream that also keeps what is written to another."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.parts = stream, list[str]()

    def write(self, text: str) -> int:
        self.parts.append(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()


@contextlib.contextmanager
def _said(*, quiet: bool) -> Iterator[list[str]]:
    """Gives what is written to standard error meanwhile; quiet, without messages below warnings."""
    level = logging.root.manager.disable
    heard = _Heard(sys.stderr)
    try:
        logging.disable(logging.INFO if quiet else level)
        with contextlib.redirect_stderr(heard):
            yield heard.parts
    finally:
        logging.disable(level)
