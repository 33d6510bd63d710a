"""Objectives of fine-tuning: their losses are means over windows, however windows are divided over processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from util.metrics.scores import IGNORED
from util.options.finetune_values import LossSettings

WHOLE = 1 - 1e-4
"""Mixed validity above which a pixel is valid: where both sources are."""

CLASS_WEIGHTS = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}
"""Power of the inverse frequency by which a class is weighted, by the name of the choice."""


def class_weights(counts: Sequence[int], choice: str) -> Tensor:
    """Weights of classes against their imbalance.

    Args:
        counts: training labels of each class.
        choice: a key of `CLASS_WEIGHTS`.

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
        smoothing: fraction of the target that is distributed evenly over all classes.
        per_window: labelled pixels in a window, on average over the training windows.

    Returns:
        Scalar: the sum over labelled pixels, divided by N and by `per_window`. Dividing by a constant makes every
        labelled pixel count the same, whatever windows it is batched with.
    """
    total = F.cross_entropy(
        logits.float(), target, weight=weights, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum"
    )
    return total / (len(logits) * per_window)


def dense_squared_error(output: Tensor, target: Tensor, *, per_window: float) -> Tensor:
    """Squared error at labelled pixels, as `dense_cross_entropy`.

    Args:
        output: (N, 1, h, w), in standard deviations of the targets.
        target: (N, h, w) likewise, NaN = unlabelled.
        per_window: labelled pixels in a window, on average.
    """
    known = torch.isfinite(target)
    difference = output[:, 0].float() - torch.where(known, target, 0.0)
    return (difference.square() * known).sum() / (len(output) * per_window)


def soft_cross_entropy(logits: Tensor, target: Tensor, *, weights: Tensor) -> Tensor:
    """Cross-entropy of windows whose targets may be mixed or smoothed.

    Args:
        logits: (N, K).
        target: (N, K) class probabilities, each row summing to 1.
        weights: (K,) weights of the classes.
    """
    return -(target * weights * F.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()


def smoothed(classes: Tensor, *, count: int, smoothing: float) -> Tensor:
    """(N,) class numbers as (N, K) probabilities, `smoothing` of which is distributed evenly over all K classes."""
    return F.one_hot(classes, count).float() * (1 - smoothing) + smoothing / count


class Objective(Protocol):
    """What a network learns and predicts.

    Attributes:
        per_pixel: targets are (N, h, w); else (N,).
        target_dtype: of the targets.
    """

    per_pixel: bool
    target_dtype: torch.dtype

    def loss(
        self, model: nn.Module, imgs: Tensor, valid: Tensor, target: Tensor, native: Sequence[Tensor] = ()
    ) -> Tensor:
        """Scalar loss of a batch: (N, C, H, W) values and validity, targets, and native pixels for a stem."""

    def predict(self, model: nn.Module, imgs: Tensor, valid: Tensor, native: Sequence[Tensor] = ()) -> Tensor:
        """(N, K) or (N, K, h, w) float32 class probabilities or values in physical units."""


def outputs_of(network: nn.Module, imgs: Tensor, valid: Tensor, native: Sequence[Tensor]) -> Tensor:
    """Outputs of a network, which is given native pixels only where there are any: others need not know of them."""
    return network(imgs, valid, native) if len(native) else network(imgs, valid)


class DenseClasses:
    """Learns and predicts a class at every target pixel.

    Args:
        class_counts: training labels of each class.
        per_window: labelled pixels in a training window, on average.
        weighting: choice of `class_weights`.
        smoothing: label smoothing.
    """

    per_pixel = True
    target_dtype = torch.int64

    def __init__(self, class_counts: Sequence[int], *, per_window: float, weighting: str, smoothing: float) -> None:
        self._weights = class_weights(class_counts, weighting)
        self._per_window, self._smoothing = per_window, smoothing

    def loss(
        self, model: nn.Module, imgs: Tensor, valid: Tensor, target: Tensor, native: Sequence[Tensor] = ()
    ) -> Tensor:
        """Scalar loss of a batch; target (N, h, w) int64, -1 = unlabelled."""
        self._weights = self._weights.to(imgs.device)  # once: each copy would wait for a GPU
        return dense_cross_entropy(
            outputs_of(model, imgs, valid, native),
            target,
            weights=self._weights,
            smoothing=self._smoothing,
            per_window=self._per_window,
        )

    def predict(self, model: nn.Module, imgs: Tensor, valid: Tensor, native: Sequence[Tensor] = ()) -> Tensor:
        """(N, K, h, w) float32 class probabilities."""
        return outputs_of(model, imgs, valid, native).float().softmax(dim=1)


class DenseValues:
    """Learns and predicts a value at every target pixel, in standard deviations of the training labels.

    Args:
        mean: of the training labels, physical units.
        std: their standard deviation.
        per_window: labelled pixels in a training window, on average.
    """

    per_pixel = True
    target_dtype = torch.float32

    def __init__(self, *, mean: float, std: float, per_window: float) -> None:
        self.mean, self.std, self._per_window = mean, std, per_window

    def loss(
        self, model: nn.Module, imgs: Tensor, valid: Tensor, target: Tensor, native: Sequence[Tensor] = ()
    ) -> Tensor:
        """Scalar loss of a batch; target (N, h, w) float32, physical units, NaN = unlabelled."""
        outputs = outputs_of(model, imgs, valid, native)
        return dense_squared_error(outputs, (target - self.mean) / self.std, per_window=self._per_window)

    def predict(self, model: nn.Module, imgs: Tensor, valid: Tensor, native: Sequence[Tensor] = ()) -> Tensor:
        """(N, 1, h, w) float32 values in physical units."""
        return outputs_of(model, imgs, valid, native).float() * self.std + self.mean


class WindowClasses:
    """Learns and predicts one class for a whole window, with mixup, cutmix and erasing as timm does them.

    Validity is mixed along with the values: a mixed pixel is valid where both of its sources are. Erased rectangles
    become invalid, not noise. Both draw from the global generators, which `engine.seed_step` sets before every update.

    Args:
        class_counts: training labels of each class.
        weighting: choice of `class_weights`.
        smoothing: label smoothing.
        mixup: mixup's alpha, 0 = off.
        cutmix: cutmix's alpha, 0 = off.
        erasing: probability that a rectangle of a window is erased.
    """

    per_pixel = False
    target_dtype = torch.int64

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
        self._count, self._smoothing = len(class_counts), smoothing
        self._weights = class_weights(class_counts, weighting)
        self._mix = (
            Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=smoothing, num_classes=self._count)
            if mixup or cutmix
            else None
        )
        self._erase = RandomErasing(erasing, mode="const", device="cpu") if erasing else None

    def loss(
        self, model: nn.Module, imgs: Tensor, valid: Tensor, target: Tensor, native: Sequence[Tensor] = ()
    ) -> Tensor:
        """Scalar loss of a batch; target (N,) int64."""
        if self._erase is not None:
            valid = self._erase(valid.float()) > 0
        if self._mix is not None and len(imgs) % 2 == 0:  # timm mixes pairs: the odd batch at an end stays as it is
            imgs, valid, native, mixed_target = self._mixed(imgs, valid, native, target)
        else:
            mixed_target = smoothed(target, count=self._count, smoothing=self._smoothing)
        self._weights = self._weights.to(imgs.device)  # once: each copy would wait for a GPU
        logits = outputs_of(model, imgs, valid, native)
        return soft_cross_entropy(logits, mixed_target, weights=self._weights)

    def _mixed(
        self, imgs: Tensor, valid: Tensor, native: Sequence[Tensor], target: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """Values, validity, native pixels and targets after mixup or cutmix, all mixed alike.

        Native pixels are sorted by base pixel, so that one call mixes images of all scales.
        """
        assert self._mix is not None
        scales = [image.shape[-1] // imgs.shape[-1] for image in native]
        known = [torch.isfinite(image) for image in native]
        values = [torch.where(ok, image, 0.0) for image, ok in zip(native, known, strict=True)]
        own = [F.pixel_unshuffle(x.float(), s) for x, s in zip([*values, *known], scales * 2, strict=True)]
        parts = [imgs, valid.float(), *own]
        mixed, mixed_target = self._mix(torch.cat(parts, dim=1), target)
        imgs, valid, *own = mixed.split([part.shape[1] for part in parts], dim=1)
        images = [F.pixel_shuffle(x, s) for x, s in zip(own, scales * 2, strict=True)]
        pairs = zip(images[: len(scales)], images[len(scales) :], strict=True)
        return imgs, valid > WHOLE, [torch.where(ok > WHOLE, x, torch.nan) for x, ok in pairs], mixed_target

    def predict(self, model: nn.Module, imgs: Tensor, valid: Tensor, native: Sequence[Tensor] = ()) -> Tensor:
        """(N, K) float32 class probabilities."""
        return outputs_of(model, imgs, valid, native).float().softmax(dim=1)


def pixel_classes(labels: Mapping[str, Any], settings: LossSettings) -> DenseClasses:
    """The objective of a class at every pixel; `labels` are statistics of the training labels, as in a checkpoint."""
    return DenseClasses(
        labels["class_counts"],
        per_window=labels["per_window"],
        weighting=settings.class_weights,
        smoothing=settings.smoothing,
    )


def pixel_values(labels: Mapping[str, Any], settings: LossSettings) -> DenseValues:
    """The objective of a value at every pixel; arguments as in `pixel_classes`."""
    return DenseValues(mean=labels["mean"], std=labels["std"], per_window=labels["per_window"])


def window_classes(labels: Mapping[str, Any], settings: LossSettings) -> WindowClasses:
    """The objective of one class for a window; arguments as in `pixel_classes`."""
    return WindowClasses(
        labels["class_counts"],
        weighting=settings.class_weights,
        smoothing=settings.smoothing,
        mixup=settings.mixup,
        cutmix=settings.cutmix,
        erasing=settings.reprob,
    )
