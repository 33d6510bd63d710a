"""Settings of pre-training that suit the size of a survey, with the reasons; and warnings where settings do not.

The defaults are made for surveys of thousands of pixels along an edge. On a small one they leave a handful of tiles, an
update an epoch and one held-out tile, so that nothing is learned and the score means nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rasterio.crs import CRS

from datasets.ground.grid import length_text
from datasets.survey.open_survey import SurveySettings, TileTrials, open_trials
from datasets.survey.scales_and_groups import MAX_NATIVE_SCALE
from datasets.survey.stack import longest_edge
from datasets.survey.tiles import TileIndex

logger = logging.getLogger(__name__)

LEAST_UPDATES = 500
"""Optimiser updates below which a run has hardly begun to learn: a rule of thumb."""

LEAST_HELD_OUT = 8
"""Held-out tiles below which skill is decided by where they happen to lie."""

LEAST_TRAINING = 100
"""Training tiles (overlapping) that a suggestion leaves beside held-out ground."""

MOST_PASSES = 400
"""Times that each training tile may be shown, at other places and under other masks, before it is learned by heart."""

TILE_SIZES = ((48, 8), (24, 4), (16, 4))
"""Edges of tile and patch that are tried, base pixels: 6 x 6 patches of 8, then of 4, then 4 x 4 of 4."""

HELD_OUT_FRACTIONS = (0.1, 0.15, 0.2, 0.25)
EPOCH_TILES, EPOCHS = 512, 50
"""Least number of tiles of a suggested epoch, and its usual number of epochs."""

OPTIONS = (
    "base_resolution input_size patch_size scales tiles_per_epoch val_fraction val_buffer epochs warmup_epochs".split()
)
"""Options of main_pretrain that a suggestion decides, unless they are given."""


@dataclass(frozen=True)
class Suggestion:
    """Settings for a survey.

    Attributes:
        options: options of main_pretrain that are to be given, by name.
        training_tiles: training tiles with them.
        held_out_tiles: held-out tiles with them.
        updates: updates of the whole run.
        reasons: a sentence for each choice.
        shortfalls: what no settings can mend on this survey; empty if all is well.
    """

    options: dict[str, Any]
    training_tiles: int
    held_out_tiles: int
    updates: int
    reasons: tuple[str, ...]
    shortfalls: tuple[str, ...] = field(default=())

    def flags(self) -> list[str]:
        """The options as words of a command line."""
        words = []
        for name, value in self.options.items():
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(f"{number:.15g}" for number in values)]
        return words

    def lines(self) -> list[str]:
        """What is suggested and why, as lines to print."""
        found = (
            f"suggested: {self.training_tiles} training and {self.held_out_tiles} held-out tiles, {self.updates} "
            f"updates in all"
        )
        return [found, *(f"    {text}" for text in self.reasons), *(f"    but {text}" for text in self.shortfalls)]


@dataclass(frozen=True)
class _Trial:
    """Sizes that were tried, and the tiles that they give."""

    sizes: dict[str, Any]
    patch_size: int
    tiles: TileIndex

    @property
    def missing(self) -> float:
        """By how much it falls short of enough tiles; 0 if it does not."""
        held_out, training = len(self.tiles.val) / LEAST_HELD_OUT, len(self.tiles.train) / LEAST_TRAINING
        return max(1 - held_out, 0) + max(1 - training, 0)


def suggest(settings: SurveySettings, given: Mapping[str, Any], *, tiles_per_update: int) -> Suggestion:
    """Settings for a survey: the largest tiles that leave enough of them to train on and to score.

    Args:
        settings: which layers, and sizes that are used where the command line gives them.
        given: options that the command line gives, by name; they are kept.
        tiles_per_update: tiles in an update, over all processes.

    Raises:
        ValueError: the layers cannot be used, or no size fits the survey.
        FileNotFoundError: a file does not exist.
    """
    trials = open_trials(settings)
    crs = trials.stack.reference.crs
    finest = max(trials.stack.reference.resolution_x, trials.stack.reference.resolution_y)
    coarsest = max(longest_edge(band) for band in trials.bands)
    lengths = [length for length in trials.correlation_lengths() if not math.isnan(length)]
    best = _best_trial(trials, given, finest=finest, coarsest=coarsest, length=max(lengths, default=math.nan))
    options, training = dict(best.sizes), len(best.tiles.train)
    options["patch_size"] = best.patch_size
    options |= _length(training, given, tiles_per_update=tiles_per_update)
    epochs, tiles = options["epochs"], options["tiles_per_epoch"] or training
    updates = epochs * math.ceil(tiles / tiles_per_update)
    held_out = len(best.tiles.val)
    reasons = _reasons(options, best, finest=finest, coarsest=coarsest, given=given, updates=updates, crs=crs)
    shortfalls = short_run(updates=updates, held_out=held_out, scores=bool(options["val_fraction"]))
    if training < LEAST_TRAINING:
        shortfalls.append(f"{training} training tiles, fewer than {LEAST_TRAINING}: they will be learned by heart")
    if epochs * tiles > MOST_PASSES * training:
        shortfalls.append(
            f"each of {training} training tiles is shown {epochs * tiles / training:.0f} times: watch the held-out "
            "loss, and stop where it rises"
        )
    chosen = {name: options[name] for name in OPTIONS if name not in given and options[name] is not None}
    return Suggestion(chosen, training, held_out, updates, tuple(reasons), tuple(shortfalls))


def suggested_options(
    survey_options: Mapping[str, Any], given: Mapping[str, Any], *, tiles_per_update: int
) -> dict[str, Any]:
    """Logs what `suggest` finds; returns the options that it decides.

    Args:
        survey_options: fields of `SurveySettings`.
        given: options that the command line gives.
        tiles_per_update: tiles in an update, over all processes.

    Raises:
        ValueError, FileNotFoundError: as `suggest`.
    """
    found = suggest(SurveySettings(**survey_options), given, tiles_per_update=tiles_per_update)
    for text in found.lines():
        logger.info("%s", text)
    return found.options


def short_run(*, updates: int, held_out: int, scores: bool = True) -> list[str]:
    """Warnings about a run that is too short, or scored on too little ground, to say anything.

    Args:
        updates: of the whole run.
        held_out: held-out tiles.
        scores: whether ground is to be held out at all.
    """
    found = []
    if updates < LEAST_UPDATES:
        found.append(
            f"only {updates} update{'s' * (updates != 1)} in the whole run, fewer than the {LEAST_UPDATES} that it "
            "takes to learn anything"
        )
    if scores and held_out < LEAST_HELD_OUT:
        found.append(
            f"only {held_out} held-out tile{'s' * (held_out != 1)}, fewer than {LEAST_HELD_OUT}: skill depends on "
            "where they happen to lie"
        )
    return found


def _best_trial(
    trials: TileTrials, given: Mapping[str, Any], *, finest: float, coarsest: float, length: float
) -> _Trial:
    """The first sizes that leave enough tiles, from large tiles to small; else those that come nearest.

    Raises:
        ValueError: no size fits.
    """
    best, error = None, None
    for sizes, patch_size in _sizes(trials.settings, given, finest=finest, coarsest=coarsest):
        for buffer in _buffers(trials.settings, given, base=sizes["base_resolution"], length=length):
            for held_out in (given["val_fraction"],) if "val_fraction" in given else HELD_OUT_FRACTIONS:
                tried = sizes | {"val_buffer": buffer, "val_fraction": held_out}
                try:
                    trial = _Trial(tried, patch_size, trials.tiles(**tried))
                except ValueError as refused:
                    error = error or refused
                    continue
                if best is None or trial.missing < best.missing:
                    best = trial
                if not trial.missing or (not held_out and len(trial.tiles.train) >= LEAST_TRAINING):
                    return trial
    if best is None:
        size, largest = given.get("input_size"), TILE_SIZES[0][1]
        raise error or ValueError(
            f"--input_size {size}: no patch of 2 to {largest} base pixels divides it; give another size, or a "
            "--patch_size that does"
        )
    return best


def _sizes(
    settings: SurveySettings, given: Mapping[str, Any], *, finest: float, coarsest: float
) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields sizes of tiles from large to small, each with its patch size; what is given is kept."""
    scales = sorted(settings.scales)
    tried = []
    for scale in [scales] if "scales" in given else [[s for s in scales if s <= top] for top in reversed(scales)]:
        base = settings.base_resolution or finest * max(scale)
        bases = [base]
        if "base_resolution" not in given and scale == scales:  # a token should hold pixels of every layer
            while TILE_SIZES[0][1] * bases[0] < 2 * coarsest and 2 * bases[0] <= MAX_NATIVE_SCALE * finest:
                bases.insert(0, 2 * bases[0])
        tried += [(base, size, scale) for base in bases[:-1] for size in TILE_SIZES[:1]]
        tried += [(bases[-1], size, scale) for size in TILE_SIZES]
    for base, (tile, patch), scale in tried:
        patch = given.get("patch_size", patch)
        tile = given.get("input_size", max(tile // patch, 1) * patch)
        if "patch_size" not in given:
            patch = max((edge for edge in range(2, patch + 1) if tile % edge == 0), default=patch)
        if tile % patch == 0:
            yield {"base_resolution": base, "input_size": tile, "scales": list(scale)}, patch


def _buffers(settings: SurveySettings, given: Mapping[str, Any], *, base: float, length: float) -> list[int]:
    """Distances of training from held-out ground to try, base pixels: that over which values resemble each other."""
    if "val_buffer" in given or not math.isfinite(length):
        return [settings.val_buffer]
    return sorted({math.ceil(length / base), math.ceil(length / base / 2), settings.val_buffer}, reverse=True)


def _length(training: int, given: Mapping[str, Any], *, tiles_per_update: int) -> dict[str, Any]:
    """Tiles an epoch, epochs and warm-up that give at least `LEAST_UPDATES` updates."""
    wanted = None if training >= EPOCH_TILES else max(EPOCH_TILES // tiles_per_update, 1) * tiles_per_update
    tiles = given.get("tiles_per_epoch", wanted)
    updates = math.ceil((tiles or training) / tiles_per_update)
    epochs = given.get("epochs", max(EPOCHS, math.ceil(LEAST_UPDATES / updates)))
    default = 3.0
    warmup = given.get("warmup_epochs", default if epochs > 2 * default else epochs / 10)
    return {"tiles_per_epoch": tiles, "epochs": epochs, "warmup_epochs": None if warmup == default else warmup}


def _reasons(
    options: Mapping[str, Any],
    trial: _Trial,
    *,
    finest: float,
    coarsest: float,
    given: Collection[str],
    updates: int,
    crs: CRS,
) -> list[str]:
    """A line for each choice: the options, and why."""
    base, tile, patch = options["base_resolution"], options["input_size"], options["patch_size"]

    def length(value: float) -> str:
        return length_text(value, crs)

    rows, cols = (size / edge for size, edge in zip(trial.tiles.shape, _edges(trial.tiles), strict=True))
    fraction, buffer = options["val_fraction"], options["val_buffer"]
    lines = [
        (
            ("base_resolution", "scales"),
            f"--base_resolution {base:.15g} --scales {_words(options['scales'])}: the finest layer has pixels of "
            f"{length(finest)}, the coarsest of {length(coarsest)}; details of "
            f"{', '.join(length(base / s) for s in options['scales'])} are scored, where layers have them",
        ),
        (
            ("input_size", "patch_size"),
            f"--input_size {tile} --patch_size {patch}: a tile of {length(tile * base)}, a patch of "
            f"{length(patch * base)}; the "
            f"survey is {cols:.1f} x {rows:.1f} tiles wide and high",
        ),
        (
            ("val_fraction", "val_buffer"),
            f"--val_fraction {fraction:g} --val_buffer {buffer}: {len(trial.tiles.val)} held-out tiles, "
            f"{length(buffer * base)} away from {len(trial.tiles.train)} training tiles",
        ),
        (
            ("tiles_per_epoch", "epochs"),
            f"--epochs {options['epochs']} of {options['tiles_per_epoch'] or len(trial.tiles.train)} tiles: "
            f"{updates} updates, and at least {LEAST_UPDATES} are needed",
        ),
    ]
    return [text + " (as given)" * all(name in given for name in names) for names, text in lines]


def _edges(tiles: TileIndex) -> tuple[int, int]:
    return tiles.height, tiles.width


def _words(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)
