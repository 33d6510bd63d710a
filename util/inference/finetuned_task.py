"""Task, provenance and scores of a fine-tuned checkpoint, and how its classes are stored in a raster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

Colour = tuple[int, int, int]

TESTED = {"blocks": "held-out blocks", "locations": "held-out images", "test table": "test images"}
"""The data that scores were computed on, by the name of the split."""
COUNTS = ("count", "classes")
"""Numbers beside the scores that count what was scored."""


@dataclass(frozen=True)
class Task:
    """What a network was fine-tuned to predict.

    Attributes:
        kind: its name in the table of tasks, `util/finetuning/tasks.py`.
        per_pixel: every pixel is predicted; else one output for a window.
        has_classes: classes are predicted; else values.
        is_ranking: the two classes are background and presence.
        scale: target pixels along the edge of a base-scale pixel.
        units: of the values.
        codes: of the classes, as they lay in the labels; none for values.
        names: of the classes.
        colours: of the classes, '#rrggbb'.
        presences: (x, y) of known presences, CRS units of training; none of other tasks.
        presence_crs: their CRS as WKT.
    """

    kind: str
    per_pixel: bool
    has_classes: bool
    is_ranking: bool
    scale: int
    units: str
    codes: tuple[int | str, ...]
    names: tuple[str, ...]
    colours: tuple[str, ...]
    presences: tuple[tuple[float, float], ...] = ()
    presence_crs: str = ""

    def presences_in(self, crs: str) -> tuple[tuple[float, float], ...]:
        """The known presences if a map is in their CRS, given as WKT."""
        return self.presences if crs == self.presence_crs else ()

    @property
    def outputs(self) -> int:
        """Number of outputs K of the network."""
        return len(self.codes) or 1


class DeclaredTask(Protocol):
    """The properties of a task that decide how it is mapped, as the table of tasks declares them."""

    @property
    def per_pixel(self) -> bool:
        """True if every pixel is predicted."""

    @property
    def has_classes(self) -> bool:
        """True if classes are predicted."""

    @property
    def is_ranking(self) -> bool:
        """True if the two classes are background and presence."""


def task_of(state: Mapping[str, Any], tasks: Mapping[str, DeclaredTask]) -> Task:
    """The task that a checkpoint of main_finetune was fitted to.

    Args:
        state: the checkpoint.
        tasks: the table of tasks.

    Raises:
        ValueError: the table has no such task.
    """
    task = state["task"]
    declared = tasks.get(task["kind"])
    if declared is None:
        raise ValueError(
            f"the checkpoint was fine-tuned for {task['kind']}, expected one of {', '.join(tasks)}; use the version "
            "of the software that wrote it"
        )
    lists = {key: tuple(task[key] or ()) for key in ("codes", "names", "colours")}
    return Task(
        kind=task["kind"],
        per_pixel=declared.per_pixel,
        has_classes=declared.has_classes,
        is_ranking=declared.is_ranking,
        scale=task["scale"],
        units=task["units"] or "",
        presences=tuple((float(x), float(y)) for x, y in state.get("presences") or ()),
        presence_crs=(state.get("ground") or {}).get("crs", ""),
        **lists,
    )


class Predict(Protocol):
    """A fine-tuned network with what turns its outputs into class probabilities or values."""

    def __call__(self, imgs: Tensor, valid: Tensor, native: Sequence[Tensor], *, orientation: int) -> Tensor:
        """Predicts tiles.

        Args:
            imgs: (N, C, H, W) float32, model units.
            valid: (N, C, H, W) bool, True = usable.
            native: native pixels of channel groups, for a model with a stem.
            orientation: 0 = as the tiles lie, 1 to 7 = rotated and mirrored before prediction.

        Returns:
            (N, K, sH, sW) or (N, K) outputs, in the orientation of the tiles.
        """


@dataclass(frozen=True)
class FinetunedNetwork:
    """A fine-tuned network, ready to predict.

    Attributes:
        task: what it predicts.
        predict: predicts tiles.
        orientations: number of orientations that it was trained with; 1 without augmentation.
    """

    task: Task
    predict: Predict
    orientations: int


@dataclass(frozen=True)
class StoredClasses:
    """How classes are written to a raster.

    Attributes:
        codes: of each class, in order of their numbers.
        dtype: `uint8` or `uint16`.
        nodata: a code that no class has.
        classes: code -> (name, (red, green, blue)).
        renumbered: the labels' codes are no whole numbers from 0 to 65535, so classes are 1 to K.
    """

    codes: tuple[int, ...]
    dtype: str
    nodata: int
    classes: Mapping[int, tuple[str, Colour]]
    renumbered: bool


def stored_classes(task: Task) -> StoredClasses:
    """Keeps the labels' own codes where a raster can hold them; nodata is 0, or the highest code that is free."""
    own = all(isinstance(code, int) and 0 <= code <= 65535 for code in task.codes)
    codes = tuple(int(code) for code in task.codes) if own else tuple(range(1, len(task.codes) + 1))
    dtype, most = ("uint8", 255) if max(codes) <= 255 else ("uint16", 65535)
    nodata = 0 if 0 not in codes else next(code for code in range(most, 0, -1) if code not in codes)
    styles = zip(codes, task.names, task.colours, strict=True)
    classes = {code: (name, _colour(text)) for code, name, text in styles}
    return StoredClasses(codes, dtype, nodata, classes, renumbered=not own)


def _colour(text: str) -> Colour:
    digits = text.removeprefix("#")
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:6], 16)


def provenance(state: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a map about the fit that made it: task, method, labels, and scores on held-out labels.

    Args:
        state: a checkpoint of main_finetune.

    Returns:
        Tags; `warning` among them if the labels were split so that scores are inflated.
    """
    split, fold, scores = state["folds"], state["fold"], state["scores"]
    tags = {
        "task": state["task"]["kind"],
        "arm": state["arm"],
        "fold": "none" if fold is None else str(fold),
        "fitted_on": "all labels" if fold is None else f"the training labels of fold {fold}",
        "split": split["split"],
    }
    if scores is None:
        tags["score"] = "not in this checkpoint; see metrics.json of the run that wrote it"
    else:
        summary = scores["arms"][state["arm"]]["summary"]
        shown = {  # a table of classes may have one that is named "mean"
            name: item
            for name, item in summary.items()
            if name not in COUNTS and isinstance(item.get("mean"), int | float)
        }
        numbers = {name: _with_deviation(item) for name, item in shown.items()}
        headline = scores["headline"]
        folds, where = summary[headline]["n"], TESTED.get(split["split"], split["split"])
        tags["score"] = f"{headline} {numbers.get(headline, 'not defined')} on {where}, {folds} fold(s)"
        tags |= {f"score_{name}": text for name, text in numbers.items()}
    if state.get("targets"):
        tags["pretraining_targets"] = ", ".join(layer["name"] for layer in state["targets"])
    return tags | ({"warning": split["warning"]} if split["warning"] else {})


def _with_deviation(number: Mapping[str, Any]) -> str:
    return f"{number['mean']:.4g}" + ("" if number["std"] is None else f" +- {number['std']:.2g}")
