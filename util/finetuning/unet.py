"""A U-Net from scratch as a baseline: segmentation_models_pytorch, every layer resampled to the finest pixels.

Values and validity of all layers are its input channels. Its outputs are averaged to the pixels of the labels. It is
trained and predicts like any other network of the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENCODER = "resnet18"
"""Encoder of the U-Net, as segmentation_models_pytorch names it."""

UNET_KIND = "unet"
"""`kind` of its `config`."""

# The encoder halves the image five times. Twice as much leaves four pixels at its end, enough for batch normalisation
# of a single window.
_HALVED, _SMALLEST = 32, 64

_MOST = 6e4
"""Values that are larger, in model units, are taken for this: fp16 ends at 65504."""


def _segmentation_models() -> ModuleType:
    """The package, which nothing else needs.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise ValueError(
            f"--baselines unet needs segmentation_models_pytorch ({error}): pip install segmentation-models-pytorch, "
            "or leave unet out"
        ) from error
    return segmentation_models_pytorch


class UNet(nn.Module):
    """A U-Net on all layers in their finest pixels; for classes of windows its encoder with a linear map of its mean.

    Args:
        in_chans: channels of the layers C.
        outputs: number of outputs K.
        per_pixel: predicts pixels; else windows.
        img_size: base pixels along the edge of a window.
        patch_size: of the networks it is compared with: tiles start on whole patches in prediction.
        zoom: input pixels along the edge of a base pixel.
        scale: target pixels along the edge of a base pixel.

    Attributes:
        config: arguments with which `build_unet` rebuilds it.

    Raises:
        ValueError: segmentation_models_pytorch is not installed.
    """

    def __init__(
        self, *, in_chans: int, outputs: int, per_pixel: bool, img_size: int, patch_size: int, zoom: int, scale: int
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "kind": UNET_KIND,
            "in_chans": in_chans,
            "outputs": outputs,
            "per_pixel": per_pixel,
            "img_size": img_size,
            "patch_size": patch_size,
            "zoom": zoom,
            "scale": scale,
        }
        self.img_size, self.patch_size, self._edge = img_size, patch_size, img_size * scale
        smp = _segmentation_models()
        arguments = {"encoder_name": ENCODER, "encoder_weights": None, "in_channels": 2 * in_chans}
        whole = smp.Unet(**arguments, classes=outputs)
        self.encoder = whole.encoder
        self.decoder = whole.decoder if per_pixel else None
        pooled = smp.base.ClassificationHead(self.encoder.out_channels[-1], classes=outputs)
        self.head = whole.segmentation_head if per_pixel else pooled

    def forward(self, imgs: Tensor, valid: Tensor) -> Tensor:
        """Predict.

        Args:
            imgs: (N, C, H, W), model units, 0 where invalid; H = W = img_size * zoom.
            valid: (N, C, H, W) bool, True = usable.

        Returns:
            (N, K, img_size * scale, img_size * scale) outputs at target pixels, or (N, K) of windows.
        """
        rows, cols = imgs.shape[-2:]
        image = torch.cat([imgs.clamp(-_MOST, _MOST), valid.to(imgs.dtype)], dim=1)
        image = F.pad(image, (0, _padding(cols), 0, _padding(rows)))  # invalid, as ground outside of the layers
        features = self.encoder(image)
        if self.decoder is None:
            return self.head(features[-1])
        outputs = self.head(self.decoder(features))[..., :rows, :cols]
        if rows >= self._edge:
            return F.adaptive_avg_pool2d(outputs, self._edge)
        return F.interpolate(outputs, size=self._edge, mode="bilinear", align_corners=False)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns for timm's `param_groups_layer_decay`: the encoder, then the rest."""
        return {"stem": r"^encoder", "blocks": r"^(?:decoder|head)"}

    def no_weight_decay(self) -> set[str]:
        """No names; timm excludes vectors by itself."""
        return set()


def _padding(size: int) -> int:
    """Pixels to add to an edge."""
    return max(_SMALLEST, -(-size // _HALVED) * _HALVED) - size


def new_unet(config: Mapping[str, Any], survey: Any) -> UNet:
    """A U-Net in place of another network, in the pixels of the finest layer that is shown.

    Args:
        config: of the other network, as `models_vit_group_channels.build_finetune_model` takes it.
        survey: the layers, with their `pyramid` and which of them are `hidden`.

    Raises:
        ValueError: segmentation_models_pytorch is not installed.
    """
    per_pixel = config["kind"] == "dense"
    return UNet(
        in_chans=config["in_chans"],
        outputs=config["num_outputs" if per_pixel else "num_classes"],
        per_pixel=per_pixel,
        img_size=config["img_size"],
        patch_size=config["patch_size"],
        zoom=survey.pyramid.finest_zoom(survey.hidden),
        scale=config["scale"] if per_pixel else 1,
    )


def build_unet(config: Mapping[str, Any]) -> UNet:
    """The U-Net of a checkpoint, from its `config`.

    Raises:
        ValueError: segmentation_models_pytorch is not installed.
    """
    return UNet(**{key: value for key, value in config.items() if key != "kind"})
