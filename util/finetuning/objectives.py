"""Losses of fine-tuning: each a mean over windows, whatever processes these are dealt to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from util.options.finetune import CLASS_WEIGHTS

UNLABELLED = -1


def class_weights(counts: Sequence[int], choice: str) -> Tensor:
    """Weights of classes against their imbalance.

    Args:
        counts: training labels of each class.
        choice: `none`, `sqrt` (inverse square root of the frequency) or `balanced` (inverse frequency).

    Returns:
        (K,) float32; the mean weight of a training label is 1, and a class without labels has weight 0.
    """
    number = torch.tensor(counts, dtype=torch.float64)
    weights = torch.where(number > 0, number.clamp_min(1) ** -CLASS_WEIGHTS[choice], 0.0)
    return (weights * number.sum() / (weights * number).sum()).float()


def dense_cross_entropy(
    logits: Tensor, target: Tensor, *, weights: Tensor, smoothing: float, per_window: float
) -> Tensor:
    """Cross-entropy at labelled pixels.

    Args:
        logits: (N, K, h, w).
        target: (N, h, w) int64 class numbers, -1 = unlabelled.
        weights: (K,) weights of the classes.
        smoothing: share of the target that is spread over all classes.
        per_window: labelled pixels in a window, on average over the training windows.

    Returns:
        Scalar: the sum over labelled pixels, divided by N and by `per_window`. Dividing by a constant makes every
        labelled pixel count the same, whatever windows it is batched with.
    """
    total = F.cross_entropy(
        logits.float(), target, weight=weights, ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="sum"
    )
    return total / (len(logits) * per_window)


def dense_squared_error(output: Tensor, target: Tensor, *, per_window: float) -> Tensor:
    """Squared error at labelled pixels, as `dense_cross_entropy`.

    Args:
        output: (N, 1, h, w), in units of the targets' spread.
        target: (N, h, w) likewise, NaN = unlabelled.
        per_window: labelled pixels in a window, on average.
    """
    known = torch.isfinite(target)
    difference = output[:, 0].float() - torch.where(known, target, 0.0)
    return (difference.square() * known).sum() / (len(output) * per_window)


def soft_cross_entropy(logits: Tensor, shares: Tensor, *, weights: Tensor) -> Tensor:
    """Cross-entropy of windows with targets that may be mixed or smoothed.

    Args:
        logits: (N, K).
        shares: (N, K), each row summing to 1.
        weights: (K,) weights of the classes.
    """
    return -(shares * weights * F.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()


def smoothed(classes: Tensor, *, kinds: int, smoothing: float) -> Tensor:
    """(N,) class numbers as (N, K) shares, `smoothing` of which is spread over all classes."""
    return F.one_hot(classes, kinds).float() * (1 - smoothing) + smoothing / kinds


class DenseClasses:
    """Learns and predicts a class at every target pixel.

    Args:
        class_counts: training labels of each class.
        per_window: labelled pixels in a training window, on average.
        weighting: choice of `class_weights`.
        smoothing: label smoothing.
    """

    def __init__(self, class_counts: Sequence[int], *, per_window: float, weighting: str, smoothing: float) -> None:
        self._weights = class_weights(class_counts, weighting)
        self._per_window, self._smoothing = per_window, smoothing

    def loss(self, model: nn.Module, imgs: Tensor, valid: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of a batch; target (N, h, w) int64, -1 = unlabelled."""
        return dense_cross_entropy(
            model(imgs, valid),
            target,
            weights=self._weights.to(imgs.device),
            smoothing=self._smoothing,
            per_window=self._per_window,
        )

    def predict(self, model: nn.Module, imgs: Tensor, valid: Tensor) -> Tensor:
        """(N, K, h, w) float32 class shares."""
        return model(imgs, valid).float().softmax(dim=1)


class DenseValues:
    """Learns and predicts a value at every target pixel; the network works in units of the training labels' spread.

    Args:
        mean: of the training labels, physical units.
        std: their standard deviation.
        per_window: labelled pixels in a training window, on average.
    """

    def __init__(self, *, mean: float, std: float, per_window: float) -> None:
        self.mean, self.std, self._per_window = mean, std, per_window

    def loss(self, model: nn.Module, imgs: Tensor, valid: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of a batch; target (N, h, w) float32, physical units, NaN = unlabelled."""
        return dense_squared_error(model(imgs, valid), (target - self.mean) / self.std, per_window=self._per_window)

    def predict(self, model: nn.Module, imgs: Tensor, valid: Tensor) -> Tensor:
        """(N, 1, h, w) float32 values in physical units."""
        return model(imgs, valid).float() * self.std + self.mean


class WindowClasses:
    """Learns and predicts one class for a whole window, with mixup, cutmix and erasing as timm does them.

    Validity is mixed along with the values: a mixed pixel is valid where all that went into it is. Erased rectangles
    become invalid, not noise. Both draw from the global generators, which `engine.seed_step` sets before every update.

    Args:
        class_counts: training labels of each class.
        weighting: choice of `class_weights`.
        smoothing: label smoothing.
        mixup: mixup's alpha, 0 = off.
        cutmix: cutmix's alpha, 0 = off.
        erasing: probability that a rectangle of a window is erased.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        *,
        weighting: str,
        smoothing: float,
        mixup: float,
        cutmix: float,
        erasing: float,
    ) -> None:
        self._kinds, self._smoothing = len(class_counts), smoothing
        self._weights = class_weights(class_counts, weighting)
        self._mix = (
            Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=smoothing, num_classes=self._kinds)
            if mixup or cutmix
            else None
        )
        self._erase = RandomErasing(erasing, mode="const", device="cpu") if erasing else None

    def loss(self, model: nn.Module, imgs: Tensor, valid: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of a batch; target (N,) int64."""
        if self._erase is not None:
            valid = self._erase(valid.float()) > 0
        if self._mix is not None and len(imgs) % 2 == 0:  # timm mixes pairs: the odd batch at an end stays as it is
            channels = imgs.shape[1]
            both, shares = self._mix(torch.cat([imgs, valid.float()], dim=1), target)
            imgs, valid = both[:, :channels], both[:, channels:] > 1 - 1e-4
        else:
            shares = smoothed(target, kinds=self._kinds, smoothing=self._smoothing)
        return soft_cross_entropy(model(imgs, valid), shares, weights=self._weights.to(imgs.device))

    def predict(self, model: nn.Module, imgs: Tensor, valid: Tensor) -> Tensor:
        """(N, K) float32 class shares."""
        return model(imgs, valid).float().softmax(dim=1)


Objective = DenseClasses | DenseValues | WindowClasses


def trained_objective(kind: str, training: Mapping[str, Any]) -> Objective:
    """What a finished fit learned, to predict with.

    Args:
        kind: `segmentation`, `regression`, `classification` or `prospectivity`.
        training: facts of the training labels, as a checkpoint holds them.
    """
    if kind == "regression":
        return DenseValues(mean=training["mean"], std=training["std"], per_window=training["per_window"])
    counts = training["class_counts"]
    if kind == "segmentation":
        return DenseClasses(counts, per_window=training["per_window"], weighting="none", smoothing=0.0)
    return WindowClasses(counts, weighting="none", smoothing=0.0, mixup=0.0, cutmix=0.0, erasing=0.0)
