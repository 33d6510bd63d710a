"""What an exported graph computes: modules with tensors in and tensors out, without branches on the data.

Shape letters: N batch, C channels, H W base-scale pixels, G groups, L patches per group, D encoder width, K outputs, s
scale of the outputs, F raster pixels along the edge of a base pixel, Y layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EncoderGraph(nn.Module):
    """Tokens of a trained network.

    Args:
        network: pre-trained or fine-tuned, with `forward_tokens`.
    """

    outputs = ("tokens", "token_valid")

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, imgs: Tensor, valid: Tensor, *native: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W), model units, validity and native pixels -> tokens (N, G, L, D), validity (N, G, L)."""
        tokens, token_valid = self.network.forward_tokens(imgs, valid, list(native))
        return tokens, token_valid


class PredictionGraph(nn.Module):
    """Predictions of a fine-tuned network: class probabilities, or values in physical units.

    Args:
        network: fine-tuned.
        objective: of its task, with `predict`.
    """

    outputs = ("prediction",)

    def __init__(self, network: nn.Module, objective: Any) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, imgs: Tensor, valid: Tensor, *native: Tensor) -> Tensor:
        """Images (N, C, H, W), model units, validity and native pixels -> (N, K, sH, sW), or (N, K) of windows."""
        return self.objective.predict(self.network, imgs, valid, list(native))


class RasterGraph(nn.Module):
    """The same from one raster with a band for each layer, in physical units, at the finest pixel.

    Transforms, normalising, classes, averages over base pixels and native pixels of stems are those of training
    (`Pyramid`). Predictions of pixels are repeated to the raster's pixels, and NaN where no layer has data in the base
    pixel.

    Args:
        graph: an `EncoderGraph` or `PredictionGraph`.
        pyramid: a `datasets.survey.pyramid.Pyramid` of one aligned bundle of all layers.
        hidden: numbers of layers that the network was not shown, whose bands do not count.
        nodata: stored value that means no data, besides NaN and infinity.
    """

    def __init__(self, graph: Any, pyramid: Any, *, hidden: Sequence[int], nodata: float | None) -> None:
        super().__init__()
        self.inner, self.pyramid, self.nodata, self.outputs = graph, pyramid, nodata, graph.outputs
        layers = len(pyramid.encodings)
        self.shown: Tensor
        self.register_buffer("shown", torch.tensor([k not in hidden for k in range(layers)]).view(1, -1, 1, 1))

    def forward(self, raster: Tensor) -> Any:
        """(N, Y, FH, FW) float32, physical units -> outputs of the inner graph; of pixels (N, K, FH, FW)."""
        known = self.shown & torch.isfinite(raster)
        if self.nodata is not None:  # with room for a factor that was multiplied and divided by
            known = known & ((raster - self.nodata).abs() > 1e-6 * abs(self.nodata))
        sample = self.pyramid([torch.where(known, raster, torch.nan)], [None])
        found = self.inner(sample.imgs, sample.valid, *sample.native)
        if isinstance(found, tuple) or found.ndim != 4:
            return found
        seen = sample.valid.any(dim=1, keepdim=True).to(found.dtype)
        seen, found = (
            F.interpolate(x, scale_factor=float(raster.shape[-1] // x.shape[-1]), mode="nearest") for x in (seen, found)
        )
        return torch.where(seen > 0, found, torch.nan)


def model_inputs(network: Any, count: int) -> tuple[Tensor, ...]:
    """Random images, validity and native pixels, shaped for a network's graph; the same for the same arguments.

    Args:
        network: with `in_chans`, `img_size` and `native_shapes`.
        count: N.
    """
    generator = torch.Generator().manual_seed(count)
    imgs = torch.randn(count, network.in_chans, network.img_size, network.img_size, generator=generator)
    valid = torch.rand(imgs.shape, generator=generator) > 0.2
    shapes = network.native_shapes if network.stems else []
    native = [torch.randn(count, channels, edge, edge, generator=generator) for channels, edge in shapes]
    return imgs, valid, *(_with_gaps(image, generator) for image in native)


def raster_inputs(pyramid: Any, count: int, *, factor: int) -> tuple[Tensor, ...]:
    """A random raster for a `RasterGraph`, with values and classes as in training, and gaps; always the same.

    Args:
        pyramid: of the graph.
        count: N.
        factor: F.
    """
    generator = torch.Generator().manual_seed(count)
    edge = pyramid.input_size * factor
    channels = torch.randn(count, pyramid.channels, edge, edge, generator=generator)
    return (_with_gaps(pyramid.to_physical(channels), generator),)


def _with_gaps(images: Tensor, generator: torch.Generator) -> Tensor:
    """The same with a tenth of the pixels NaN."""
    return torch.where(torch.rand(images.shape, generator=generator) < 0.1, torch.nan, images)
