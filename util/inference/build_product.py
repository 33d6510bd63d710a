"""From options' values to makers: which layers at which scales, what is refused, and what is learned before the loop.

One function for each kind of product. Each takes the `InferenceInputs` and the values of the options that concern it,
and returns a `Product` for the loop of `main_inference`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from util.inference.embeddings import EmbeddingProduct, position_means
from util.inference.engine import Product
from util.inference.finetuned_task import Task
from util.inference.gap_filling import GapFillingProduct
from util.inference.inputs import InferenceInputs
from util.inference.masked_views import MaskedViews
from util.inference.prediction import PixelPredictionProduct, WindowPredictionProduct
from util.inference.reconstruction import ReconstructionProduct
from util.inference.superresolution import SuperresolutionProduct, superresolution_step
from util.mosaics.dense_prediction import Forward
from util.processes import distributed as dist

logger = logging.getLogger(__name__)

ARTIFICIAL_GAPS = 24
"""Gaps made in each layer to learn how to fill real ones; enough for errors at eight distances."""
GAP_TRIES = 1000
POSITION_TILES = 512
"""Tiles over which features are averaged at each place within a tile."""
FINER_TILES = 24
"""Tiles on which the share of the model's detail is found."""


def embeddings(
    inputs: InferenceInputs, *, pool: str, stride: int | None, dtype: str, clusters: int, positions: str
) -> Product:
    """Embeddings at patch stride (None) or finer.

    Raises:
        ValueError: number of classes or stride out of range; no valid pixel.
    """
    if clusters > 255 or clusters == 1:
        raise ValueError(f"--clusters {clusters}: expected 2 to 255, or 0 for none")
    engine = inputs.engine
    stride = stride or engine.model.patch_size
    product = EmbeddingProduct(engine, inputs.ground, pool=pool, stride=stride, dtype=dtype, tags=inputs.tags)
    if positions == "remove":
        product.position_means = position_means(engine, inputs.tiles(POSITION_TILES), inputs.single_tiles())
    return product


def reconstruction(inputs: InferenceInputs, *, views: MaskedViews) -> Product:
    """Every layer at every scale at which it was learned and has pixels here.

    Raises:
        ValueError: there is none; predictions have no units; too few views.
    """
    inputs.refuse_normalised("reconstruction")
    scored = inputs.engine.model.scored_layers
    wanted = {s: [c for c in layers if c in inputs.known[s]] for s, layers in scored.items()}
    if not any(wanted.values()):
        raise ValueError("no layer is as fine as a scale at which the model predicts it; nothing can be reconstructed")
    return ReconstructionProduct(
        inputs.engine, inputs.ground, layers=inputs.layers, wanted=wanted, views=views, tags=inputs.tags
    )


def gapfill(inputs: InferenceInputs, *, views: MaskedViews, max_gap: float | None) -> Product:
    """Layers on their own grids, gaps up to `max_gap` (CRS units; None: half a tile) filled.

    Raises:
        ValueError: no layer can be filled; the gap is wider than a tile; predictions have no units.
    """
    inputs.refuse_normalised("gapfill")
    engine, ground = inputs.engine, inputs.ground
    scored = inputs.continuous("filled: a spline needs measurements; see --output reconstruction")
    finest = {
        c: max(s for s in scored if c in scored[s] and c in inputs.known[s]) for c in scored[1] if c in inputs.known[1]
    }
    measured = [c for c, layer in enumerate(inputs.layers) if layer.encoding.is_continuous]
    left_out = [inputs.layers[c].name for c in measured if c not in finest]
    if not finest:
        raise ValueError("no layer is as fine as the base pixels at which the model predicts it; nothing can be filled")
    if left_out:
        logger.warning("not filled, because the model does not predict them here: %s", ", ".join(left_out))
    present = ((inputs.natives[c], scale) for c, scale in finest.items())
    layers = [replace(native, scale=scale) for native, scale in present if native is not None]
    max_gap = max_gap or engine.model.img_size * ground.base / 2
    product = GapFillingProduct(engine, ground, layers=layers, views=views, max_gap=max_gap, tags=inputs.tags)
    logger.info("filling artificial gaps to see how well it goes")
    product.gap_models = dist.on_main_rank(
        lambda: product.calibrate(inputs.read, inputs.tiles(GAP_TRIES), count=ARTIFICIAL_GAPS)
    )
    for layer in layers:
        gap_model, name = product.gap_models[layer.channel], f"gapfill_{layer.values.file}"
        facts = {
            "method": "thin-plate spline and model detail",
            "share_of_model_detail": f"{gap_model.share:.3f}",
            "uncertainty_follows": f"distance to valid pixels, roughness around to the power of {gap_model.power:g}",
        }
        product.rasters[name] = replace(product.rasters[name], tags={**product.rasters[name].tags, **facts})
        logger.info(
            "layer '%s': %.0f %% of the model's detail is added to the spline; error %.4g to %.4g %s, edge to middle, "
            "times the roughness around to the power of %g",
            layer.values.name,
            100 * gap_model.share,
            gap_model.errors[0],
            gap_model.errors[-1],
            layer.values.unit,
            gap_model.power,
        )
    return product


def superresolution(inputs: InferenceInputs, *, views: MaskedViews) -> Product:
    """Layers at the finer scales that the model learned them at, or that their neighbours have.

    Raises:
        ValueError: there is none; predictions have no units.
    """
    inputs.refuse_normalised("superresolution")
    scored = inputs.continuous("refined: only interpolation between measurements can be")
    known = inputs.known
    steps, beyond = [], []
    for channel in (c for c in known[1] if c in scored[1]):
        for scale in (s for s in scored if channel not in known[s] and (known[s] or channel in scored[s])):
            step = superresolution_step(channel, scale, known=known, scored=scored)
            if step is None:
                beyond.append(f"'{inputs.layers[channel].name}' at {inputs.ground.base / scale:g}")
            else:
                steps.append(step)
    if not steps:
        raise ValueError(
            "--output superresolution: no layer here is coarser than a neighbour or than in training, or the model "
            f"cannot refine it ({_learned(inputs, scored)}, CRS units). Give a layer that is coarser than another, "
            "and that the model was trained to predict at a scale finer than the base pixels"
        )
    if beyond:
        logger.warning(
            "not predicted, since the model was not trained to refine these layers: %s (%s, CRS units)",
            ", ".join(beyond),
            _learned(inputs, scored),
        )
    product = SuperresolutionProduct(
        inputs.engine, inputs.ground, layers=inputs.layers, steps=steps, views=views, tags=inputs.tags
    )
    product.shares = dist.on_main_rank(lambda: product.calibrate(inputs.read, inputs.tiles(FINER_TILES)))
    for (c, s), share in product.shares.items():
        spec = product.rasters[product.name(c, s)]
        product.rasters[product.name(c, s)] = replace(spec, tags={**spec.tags, "share_of_model_detail": f"{share:.3f}"})
        name = inputs.layers[c].name
        logger.info("layer '%s' at %dx: %.0f %% of the model's detail is added to interpolation", name, s, 100 * share)
    return product


def prediction(inputs: InferenceInputs, *, task: Task, views: Sequence[Forward], stride: int | None) -> Product:
    """What a fine-tuned network predicts: of pixels, or of windows around cells of a lattice.

    Args:
        inputs: what it is applied to.
        task: what it predicts.
        views: ways to look at a tile.
        stride: edge of a cell, base-scale pixels (None: a patch); for windows only.

    Raises:
        ValueError: the stride does nothing, or is larger than a window.
    """
    engine, ground, tags = inputs.engine, inputs.ground, {**inputs.tags, "views": str(len(views))}
    if not task.is_dense:
        step = stride or engine.model.patch_size
        return WindowPredictionProduct(engine, ground, task=task, views=views, stride=step, tags=tags)
    if stride is not None:
        raise ValueError(
            f"--stride {stride} does nothing for --output prediction of {task.kind}: every pixel is predicted, at "
            f"{ground.base / task.scale:g} CRS units"
        )
    return PixelPredictionProduct(engine, ground, task=task, views=views, tags=tags)


def _learned(inputs: InferenceInputs, scored: Mapping[int, Sequence[int]]) -> str:
    """Down to which pixels the model was trained to predict each layer, in words."""
    finest = {c: max(s for s in scored if c in scored[s]) for c in scored[1]}
    return "it learned " + "; ".join(
        f"'{inputs.layers[c].name}' down to {inputs.ground.base / s:g}" for c, s in finest.items()
    )
