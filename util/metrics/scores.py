"""Scores of predictions against labels, over batches and processes, as plain numbers.

torchmetrics accumulates counts and sums. All processes must call `compute`, which gathers them and computes the scores
in float64; docs/scoring.md defines them. An undefined score, such as that of a class without labels, is None, not 0,
and excluded from means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from util.metrics.metric_states import ErrorSums, float64_sum, float64_values, gathered, placed
from util.metrics.prospectivity_curves import ranking_scores

IGNORED = -1
"""Target value of unlabelled pixels and points, which are not scored."""

_TOP = 5

_CONSTANT = 1e-9  # truth is constant if its standard deviation is a smaller fraction of its mean


class SegmentationScores:
    """IoU, F1, accuracies and confusion matrix of predicted classes.

    Args:
        names: names of the classes, in order of their numbers.
        device: where counts are stored; with NCCL it must be the GPU of the process.
    """

    def __init__(self, names: Sequence[str], *, device: torch.device | str = "cpu") -> None:
        self.names = list(names)
        self._confusion = placed(MulticlassConfusionMatrix(len(names), validate_args=False), device)

    def update(self, predictions: torch.Tensor, target: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            predictions: (N, K, ...) scores, fractions or logits of classes; or (N, ...) class numbers.
            target: (N, ...) class numbers, -1 = not scored.

        Raises:
            ValueError: shapes do not fit, or predictions are not finite.
        """
        classes, target = _scored_classes(predictions, target, len(self.names), self._confusion.device)
        self._confusion.update(classes.argmax(dim=1) if classes.ndim == 2 else classes, target)

    def compute(self) -> dict[str, Any]:
        """Scores over all processes, plain numbers.

        Returns:
            `mean_iou`, `mean_f1`, `balanced_accuracy`: means over classes that occur in the truth; `accuracy`;
            `count` of scored pixels; `classes`, the number of classes that occur; `iou`, `f1` and `recall` by class
            name, None where the class does not occur; `confusion`, counts, rows = truth, columns = prediction.
        """
        return confusion_scores(gathered(self._confusion), self.names)

    def reset(self) -> None:
        """Clears what was accumulated."""
        self._confusion.reset()


class ClassificationScores:
    """Top-1 and top-5 accuracy, balanced accuracy, F1 and confusion matrix of tiles, scenes or points.

    Args:
        names: names of the classes, in order of their numbers.
        device: where counts are stored; with NCCL it must be the GPU of the process.
    """

    def __init__(self, names: Sequence[str], *, device: torch.device | str = "cpu") -> None:
        self.names = list(names)
        self._confusion = placed(MulticlassConfusionMatrix(len(names), validate_args=False), device)
        self._in_top = float64_sum(device)

    def update(self, predictions: torch.Tensor, target: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            predictions: (N, K) scores, fractions or logits of classes.
            target: (N,) class numbers, -1 = not scored.

        Raises:
            ValueError: shapes do not fit, or predictions are not finite.
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
            `top1`, and `top5` where there are 6 classes or more, as fractions of all scored; other scores as in
            `SegmentationScores.compute`.
        """
        scores = confusion_scores(gathered(self._confusion), self.names)
        scores["top1"] = scores.pop("accuracy")
        if len(self.names) > _TOP:
            scores["top5"] = _ratio(float(gathered(self._in_top)), scores["count"])
        return scores

    def reset(self) -> None:
        """Clears what was accumulated."""
        self._confusion.reset()
        self._in_top.reset()


class RegressionScores:
    """RMSE, MAE, bias and R2 of predicted values, in their own units.

    Args:
        device: where sums are stored; with NCCL it must be the GPU of the process.
    """

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        self._errors = placed(ErrorSums(), device)

    def update(self, predictions: torch.Tensor, target: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            predictions: values of any shape, physical units.
            target: the same shape; NaN = not scored.

        Raises:
            ValueError: shapes do not fit, or predictions are not finite.
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
            `rmse`, `mae`, `bias` (mean of prediction minus truth); `r2` against the mean of the scored truth, None if
            the truth is constant or a single value; `count` of scored pixels; `truth_mean` and `truth_std`.
        """
        count, mean, squares, absolute, signed, squared = gathered(self._errors).tolist()
        return {
            "rmse": math.sqrt(squared / count) if count else None,
            "mae": _ratio(absolute, count),
            "bias": _ratio(signed, count),
            "r2": 1 - squared / squares if squares > count * (_CONSTANT * mean) ** 2 else None,
            "count": int(count),
            "truth_mean": mean if count else None,
            "truth_std": math.sqrt(squares / count) if count else None,
        }

    def reset(self) -> None:
        """Clears what was accumulated."""
        self._errors.reset()


class ProspectivityScores:
    """ROC-AUC, average precision, Brier score, success-rate and calibration curve of scored windows.

    Args:
        device: where scores are stored; with NCCL it must be the GPU of the process.
    """

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        self._scores = float64_values(device)
        self._truth = float64_values(device)

    def update(self, scores: torch.Tensor, target: torch.Tensor) -> None:
        """Adds windows of deposits and background.

        Args:
            scores: from 0 to 1, any shape.
            target: the same shape; 1 = deposit, 0 = background, -1 = not scored.

        Raises:
            ValueError: shapes do not fit, or scores are not from 0 to 1.
        """
        if scores.shape != target.shape:
            raise ValueError(
                f"scores of shape {tuple(scores.shape)} and target of shape {tuple(target.shape)}: expected the same"
            )
        device = self._scores.device
        scores, target = scores.detach().to(device).double(), target.detach().to(device)
        scored = target != IGNORED
        self._scores.update(_check_unit_interval(scores[scored]))
        self._truth.update(target[scored].double())

    def compute(self) -> dict[str, Any]:
        """Scores over all processes, plain numbers.

        Returns:
            `roc_auc`, `average_precision`, `brier`, `success_area`; `captured`, the fraction of deposits in the 1, 5,
            10 and 20 % of windows ranked highest; `deposits` and `count` of all scored; `prevalence`, the average
            precision of chance; `success_rate`, lists `ground` (fractions of windows) and `deposits`; `calibration`,
            lists `predicted`, `observed` and `count`. Rankings are None unless there are both deposits and background.
        """
        scores, truth = (
            torch.as_tensor(gathered(metric), dtype=torch.float64).cpu() for metric in (self._scores, self._truth)
        )
        brier = float((scores - truth).square().mean()) if len(scores) else None
        return {**ranking_scores(scores.numpy(), truth.numpy()), "brier": brier}

    def reset(self) -> None:
        """Clears what was accumulated."""
        self._scores.reset()
        self._truth.reset()


def confusion_scores(confusion: torch.Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Scores from a confusion matrix; see `SegmentationScores.compute`.

    Args:
        confusion: (K, K) counts, rows = truth, columns = prediction.
        names: names of the classes.
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
    """Mean and standard deviation of scores over folds.

    Args:
        per_fold: scores of each fold, as `compute` gives them.

    Returns:
        The same nested keys. Each number becomes `mean`, `std` (of the sample, ddof = 1; None for a single fold) and
        `n`, the number of folds in which it is defined. Lists (curves, matrices) and texts are omitted.
    """
    summary: dict[str, Any] = {}
    for key in dict.fromkeys(key for scores in per_fold for key in scores):
        found = [scores[key] for scores in per_fold if key in scores]
        if any(isinstance(value, Mapping) for value in found):
            nested = summarise([value for value in found if isinstance(value, Mapping)])
            summary.update({key: nested} if nested else {})
        elif not any(isinstance(value, list | str | bool) for value in found):
            summary[key] = _mean_and_std([value for value in found if value is not None and math.isfinite(value)])
    return summary


def confusion_table(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> list[list[str]]:
    """Rows of a CSV file: a column for each predicted class, a row for each true class."""
    rows = [[name, *(str(count) for count in counts)] for name, counts in zip(names, confusion, strict=True)]
    return [["truth \\ prediction", *names], *rows]


def _mean_and_std(values: Sequence[float]) -> dict[str, Any]:
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
    """Predictions at labelled pixels, (n, K) scores or (n,) class numbers, and their truth (n,)."""
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


def _check_unit_interval(scores: torch.Tensor) -> torch.Tensor:
    if scores.numel() and not bool(((scores >= 0) & (scores <= 1)).all()):
        raise ValueError(
            f"scores from {float(scores.min()):g} to {float(scores.max()):g}: expected numbers from 0 to 1; apply a "
            "sigmoid to logits"
        )
    return scores
