"""Scores of predictions against labels, over batches and processes, as plain numbers.

Built on torchmetrics: its states are gathered over processes when scores are computed, which every process must do.
The numbers themselves are worked out here, in float64, from counts and sums; docs/scoring.md defines them. A number
that is not defined, such as that of a class which does not occur, is None: never 0, and left out of means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from util.metrics.metric_states import CountSum, ErrorSums, StoredValues, gathered, placed
from util.metrics.prospectivity_curves import BINS, bin_of, bin_scores, ranking_scores

IGNORED = -1
"""Target of what is not labelled, and so not scored."""

_TOP = 5

_CONSTANT = 1e-9  # truth that varies less than this share of its mean is constant: float32 rounds at 6e-8


class SegmentationScores:
    """IoU, F1, accuracies and confusion matrix of predicted classes.

    Args:
        names: of the classes, in order of their numbers.
        device: where counts are kept; with NCCL the process's GPU.
    """

    def __init__(self, names: Sequence[str], *, device: torch.device | str = "cpu") -> None:
        self.names = list(names)
        self._confusion = placed(MulticlassConfusionMatrix(len(names), validate_args=False), device)

    def update(self, predictions: torch.Tensor, target: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            predictions: (N, K, ...) scores, shares or logits of classes; or (N, ...) class numbers.
            target: (N, ...) class numbers, -1 = not scored.

        Raises:
            ValueError: shapes that do not fit, or predictions that are not finite.
        """
        classes, target = _scored_classes(predictions, target, len(self.names), self._confusion.device)
        self._confusion.update(classes.argmax(dim=1) if classes.ndim == 2 else classes, target)

    def compute(self) -> dict[str, Any]:
        """Scores over all processes, plain numbers.

        Returns:
            `mean_iou`, `mean_f1`, `balanced_accuracy`: means over classes that occur in the truth; `accuracy`;
            `count` of scored pixels; `classes`, how many occur; `iou`, `f1` and `recall` by name of the class, None
            where it does not occur; `confusion`, counts, rows = truth, columns = prediction.
        """
        return confusion_scores(gathered(self._confusion), self.names)

    def reset(self) -> None:
        """Forgets everything."""
        self._confusion.reset()


class ClassificationScores:
    """Top-1 and top-5 accuracy, balanced accuracy, F1 and confusion matrix of tiles, scenes or points.

    Args:
        names: of the classes, in order of their numbers.
        device: where counts are kept; with NCCL the process's GPU.
    """

    def __init__(self, names: Sequence[str], *, device: torch.device | str = "cpu") -> None:
        self.names = list(names)
        self._confusion = placed(MulticlassConfusionMatrix(len(names), validate_args=False), device)
        self._in_top = placed(CountSum(()), device)

    def update(self, predictions: torch.Tensor, target: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            predictions: (N, K) scores, shares or logits of classes.
            target: (N,) class numbers, -1 = not scored.

        Raises:
            ValueError: shapes that do not fit, or predictions that are not finite.
        """
        if predictions.ndim != 2:
            raise ValueError(f"predictions of shape {tuple(predictions.shape)}: expected (N, {len(self.names)})")
        scores, target = _scored_classes(predictions, target, len(self.names), self._confusion.device)
        self._confusion.update(scores.argmax(dim=1), target)
        if len(self.names) > _TOP:
            in_top = (scores.topk(_TOP, dim=1).indices == target[:, None]).any(dim=1)
            self._in_top.update(in_top.sum().double())

    def compute(self) -> dict[str, Any]:
        """Scores over all processes, plain numbers.

        Returns:
            `top1`, and `top5` where there are 6 classes or more, shares of all scored; the rest as
            `SegmentationScores.compute`.
        """
        scores = confusion_scores(gathered(self._confusion), self.names)
        scores["top1"] = scores.pop("accuracy")
        if len(self.names) > _TOP:
            scores["top5"] = _ratio(float(gathered(self._in_top)), scores["count"])
        return scores

    def reset(self) -> None:
        """Forgets everything."""
        self._confusion.reset()
        self._in_top.reset()


class RegressionScores:
    """RMSE, MAE, bias and R2 of predicted values, in the units they come in; exact for any number of pixels.

    torchmetrics' own R2Score takes sums below 1e-4 for zero, which units such as tesla would not survive.

    Args:
        device: where sums are kept; with NCCL the process's GPU.
    """

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        self._errors = placed(ErrorSums(), device)

    def update(self, predictions: torch.Tensor, target: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            predictions: values of any shape, physical units.
            target: likewise, NaN = not scored.

        Raises:
            ValueError: shapes that do not fit, or predictions that are not finite.
        """
        if predictions.shape != target.shape:
            raise ValueError(
                f"predictions of shape {tuple(predictions.shape)} and target of shape {tuple(target.shape)}: expected "
                "the same"
            )
        device = self._errors.device
        predictions, target = predictions.detach().to(device).double(), target.detach().to(device).double()
        scored = ~target.isnan()
        self._errors.update(_finite(predictions[scored]), target[scored])

    def compute(self) -> dict[str, Any]:
        """Scores over all processes, plain numbers.

        Returns:
            `rmse`, `mae`, `bias` (mean of prediction minus truth); `r2` against the mean of the scored truth itself,
            None where that is constant or single; `count` of scored pixels; `truth_mean` and `truth_std` (of all
            scored).
        """
        count, mean, spread, absolute, signed, squared = gathered(self._errors).tolist()
        return {
            "rmse": math.sqrt(squared / count) if count else None,
            "mae": _ratio(absolute, count),
            "bias": _ratio(signed, count),
            "r2": 1 - squared / spread if spread > count * (_CONSTANT * mean) ** 2 else None,
            "count": int(count),
            "truth_mean": mean if count else None,
            "truth_std": math.sqrt(spread / count) if count else None,
        }

    def reset(self) -> None:
        """Forgets everything."""
        self._errors.reset()


class ProspectivityScores:
    """ROC-AUC, average precision, Brier score, success-rate and calibration curve of scores from 0 to 1.

    Points are kept one by one and scored exactly; those of dense maps, of which there may be any number, are counted
    in `rankings.BINS` bins, finest near 0 and 1, within which they rank alike.

    Args:
        dense: count in bins instead of keeping every score.
        device: where scores and counts are kept; with NCCL the process's GPU.
    """

    def __init__(self, *, dense: bool = False, device: torch.device | str = "cpu") -> None:
        self._dense = dense
        self._points = placed(StoredValues(2), device)
        self._binned = placed(CountSum((2, BINS)), device)
        self._ground = placed(CountSum((BINS,)), device)
        self._squares = placed(CountSum((2,)), device)

    def update(self, scores: torch.Tensor, target: torch.Tensor) -> None:
        """Adds points, or pixels, whose truth is known.

        Args:
            scores: from 0 to 1, any shape.
            target: likewise, 1 = deposit, 0 = none known (or background), -1 = not scored.

        Raises:
            ValueError: shapes that do not fit, or scores that are not from 0 to 1.
        """
        if scores.shape != target.shape:
            raise ValueError(
                f"scores of shape {tuple(scores.shape)} and target of shape {tuple(target.shape)}: expected the same"
            )
        device = self._points.device
        scores, target = scores.detach().to(device).double(), target.detach().to(device)
        scored = target != IGNORED
        scores, target = _within_one(scores[scored]), target[scored].long()
        if self._dense:
            found = torch.bincount(bin_of(scores) + BINS * target, minlength=2 * BINS)
            self._binned.update(found.reshape(2, BINS).double())
            error = (scores - target).square().sum()
            self._squares.update(torch.stack([error, torch.full_like(error, len(scores))]))
        else:
            self._points.update(torch.stack([scores, target.double()], dim=1))

    def update_ground(self, scores: torch.Tensor) -> None:
        """Adds scores of ground, of which the success-rate curve counts the share; any shape, NaN = no ground.

        Raises:
            ValueError: scores that are not from 0 to 1.
        """
        scores = scores.detach().to(self._ground.device).double()
        scores = _within_one(scores[~scores.isnan()])
        self._ground.update(torch.bincount(bin_of(scores), minlength=BINS).double())

    def compute(self) -> dict[str, Any]:
        """Scores over all processes, plain numbers.

        Returns:
            `roc_auc`, `average_precision`, `brier`, `success_area`; `captured`, the share of deposits within the best
            1, 5, 10 and 20 % of the ground; `deposits` and `count` of all scored; `prevalence`, what average
            precision is by chance; `success_rate` (`ground`, `deposits`: lists) and `calibration` (`predicted`,
            `observed`, `count`: lists). None where only one kind was scored.
        """
        binned, squares = gathered(self._binned), gathered(self._squares)
        ground = gathered(self._ground)
        if self._dense:
            scores, positive, negative = bin_scores(), binned[1], binned[0]
            brier = _ratio(float(squares[0]), float(squares[1]))
        else:
            rows = gathered(self._points)
            scores, positive = rows[:, 0], rows[:, 1]
            negative = 1 - positive
            brier = float((scores - positive).square().mean()) if len(rows) else None
        on_ground = ground.cpu().numpy() if ground.sum() > 0 else None
        numbers = ranking_scores(scores.cpu().numpy(), positive.cpu().numpy(), negative.cpu().numpy(), ground=on_ground)
        return {**numbers, "brier": brier}

    def reset(self) -> None:
        """Forgets everything."""
        for metric in (self._points, self._binned, self._ground, self._squares):
            metric.reset()


def confusion_scores(confusion: torch.Tensor, names: Sequence[str]) -> dict[str, Any]:
    """What follows from a confusion matrix; see `SegmentationScores.compute`.

    Args:
        confusion: (K, K) counts, rows = truth, columns = prediction.
        names: of the classes.
    """
    counts = confusion.double().cpu()
    right, truth, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    occurs = truth > 0
    values = {
        "iou": right / (truth + predicted - right),
        "f1": 2 * right / (truth + predicted),
        "recall": right / truth,
    }
    by_class = {
        key: {name: float(value) if here else None for name, value, here in zip(names, of, occurs, strict=True)}
        for key, of in values.items()
    }
    means = {key: float(of[occurs].mean()) if occurs.any() else None for key, of in values.items()}
    return {
        "mean_iou": means["iou"],
        "mean_f1": means["f1"],
        "balanced_accuracy": means["recall"],
        "accuracy": _ratio(float(right.sum()), float(counts.sum())),
        "count": int(counts.sum()),
        "classes": int(occurs.sum()),
        **by_class,
        "confusion": confusion.long().cpu().tolist(),
    }


def summarise(per_fold: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread of scores over folds.

    Args:
        per_fold: scores of each fold, as `compute` gives them.

    Returns:
        The same keys, nested alike; in place of each number `mean`, `std` (of a sample: ddof 1; None of a single one)
        and `n`, the folds in which it is defined. Lists (curves, matrices) and texts are left out.
    """
    summary: dict[str, Any] = {}
    for key in dict.fromkeys(key for scores in per_fold for key in scores):
        found = [scores[key] for scores in per_fold if key in scores]
        if any(isinstance(value, Mapping) for value in found):
            nested = summarise([value for value in found if isinstance(value, Mapping)])
            summary.update({key: nested} if nested else {})
        elif not any(isinstance(value, list | str | bool) for value in found):
            summary[key] = _mean_and_spread([value for value in found if value is not None and math.isfinite(value)])
    return summary


def confusion_table(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> list[list[str]]:
    """Rows of a CSV file: classes of the prediction across, of the truth down."""
    rows = [[name, *(str(count) for count in counts)] for name, counts in zip(names, confusion, strict=True)]
    return [["truth \\ prediction", *names], *rows]


def _mean_and_spread(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"mean": None, "std": None, "n": 0}
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return {"mean": mean, "std": math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else None, "n": len(values)}


def _ratio(value: float, count: float) -> float | None:
    return value / count if count else None


def _scored_classes(
    predictions: torch.Tensor, target: torch.Tensor, kinds: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions, (n, K) scores or (n,) classes, and truth (n,) of what is labelled."""
    has_scores = predictions.ndim == target.ndim + 1
    shape = (predictions.shape[0], *predictions.shape[2:]) if has_scores else predictions.shape
    if shape != target.shape or (has_scores and predictions.shape[1] != kinds):
        raise ValueError(
            f"predictions of shape {tuple(predictions.shape)} and target of shape {tuple(target.shape)}: expected "
            f"(N, {kinds}, ...) or class numbers, and (N, ...)"
        )
    predictions, target = predictions.detach().to(device), target.detach().to(device).long()
    scored = target != IGNORED
    if not has_scores:
        return predictions.long()[scored], target[scored]
    return _finite(predictions.movedim(1, -1)[scored]), target[scored]


def _finite(predictions: torch.Tensor) -> torch.Tensor:
    wrong = int((~predictions.isfinite()).sum())
    if wrong:
        raise ValueError(
            f"{wrong} of {predictions.numel()} predictions to score are not finite; did the loss diverge? Lower --lr"
        )
    return predictions


def _within_one(scores: torch.Tensor) -> torch.Tensor:
    if scores.numel() and not bool(((scores >= 0) & (scores <= 1)).all()):
        raise ValueError(
            f"scores from {float(scores.min()):g} to {float(scores.max()):g}: expected numbers from 0 to 1, such as "
            "those of a sigmoid"
        )
    return scores
