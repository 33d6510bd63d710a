"""A graph as an ONNX file: written by torch's exporter, tried in onnxruntime, with metadata for its users."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from util.export.files import whole_file

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Largest difference from torch, relative to the largest value of an output if that is above 1."""
BATCHES = (1, 3)
"""Numbers of samples that a written graph is tried with."""

Inputs = Callable[[int], tuple[Tensor, ...]]
"""Random inputs of a graph for a number of samples."""


def check_packages() -> None:
    """Checks that what the format needs is installed.

    Raises:
        ValueError: a package is missing.
    """
    missing = [name for name in PACKAGES if not _is_installed(name)]
    if missing:
        raise ValueError(
            f"--format onnx needs the package(s) {', '.join(missing)}, not installed; "
            "pip install -r requirements-export.txt, or export with --format torch or safetensors"
        )


def _is_installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def write_onnx(
    path: Path, graph: nn.Module, inputs: Inputs, *, names: Sequence[str], metadata: Mapping[str, str]
) -> float:
    """Writes a graph, whose batch size stays free, and compares it with torch before the file appears.

    Args:
        path: the file.
        graph: one of `graphs.py`, in evaluation mode.
        inputs: gives random inputs.
        names: of the inputs.
        metadata: what the file says about the model.

    Returns:
        Largest difference from torch, see `TOLERANCE`.

    Raises:
        ValueError: onnxruntime computes something else than torch.
        OSError: the file cannot be written.
    """
    program = _exported(graph, inputs(2), names)
    for node in program.model.graph.all_nodes():  # where each comes from in the sources, with this machine's folders
        node.metadata_props.clear()
    program.model.metadata_props.update(metadata)
    with whole_file(path) as temporary:
        program.save(temporary)
        difference = max(_difference(temporary, graph, inputs(count)) for count in BATCHES)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{path}: onnxruntime differs from torch by {difference:.2g}, expected at most {TOLERANCE:g}; nothing "
                "was written. Use --format torch, and report the versions of torch, onnx and onnxruntime"
            )
    return difference


def _exported(graph: Any, example: tuple[Tensor, ...], names: Sequence[str]) -> Any:
    """The ONNX program that torch makes of a graph."""
    batch = torch.export.Dim("batch", min=1, max=2**16)
    shapes: list[Any] = [{0: batch} for _ in example]
    if len(shapes) > 2:  # native pixels are one argument of variable length
        shapes = [*shapes[:2], tuple(shapes[2:])]
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of parts of the graph that are not folded into constants
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of names of axes, which the inputs share
            return torch.onnx.export(
                graph,
                example,
                dynamo=True,
                dynamic_shapes=tuple(shapes),
                input_names=list(names),
                output_names=list(graph.outputs),
                custom_translation_table=_translations(),
                verbose=False,
            )
    finally:
        logging.disable(level)


def _translations() -> dict[Any, Callable[..., Any]]:
    """ONNX for operators that torch's exporter lacks."""
    from onnxscript import opset18

    op: Any = opset18

    def copysign(size: Any, sign: Any) -> Any:
        size = op.Abs(size)
        return op.Where(op.Less(sign, op.CastLike(0.0, sign)), op.Neg(size), size)

    def searchsorted(places: Any, values: Any, **_: Any) -> Any:
        """How many of the increasing places lie below each value, by bisection."""
        count = int(places.shape[0])
        index, step = op.Expand(op.Constant(value_int=0), op.Shape(values)), 1 << (count.bit_length() - 1)
        while count and step:
            further = op.Add(index, op.Constant(value_int=step))
            inside = op.Min(further, op.Constant(value_int=count))
            place = op.Gather(places, op.Sub(inside, op.Constant(value_int=1)))
            index = op.Where(op.And(op.Less(place, values), op.Equal(inside, further)), further, index)
            step //= 2
        return index

    return {torch.ops.aten.copysign.Tensor: copysign, torch.ops.aten.searchsorted.Tensor: searchsorted}


def _difference(path: Path, graph: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Largest difference between onnxruntime and torch; infinite if they are NaN in different places."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    fed = {entry.name: tensor.numpy() for entry, tensor in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        expected = graph(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    worst = 0.0
    for found, tensor in zip(session.run(None, fed), expected, strict=True):
        one, other = np.asarray(found, np.float64), tensor.double().numpy()
        if one.shape != other.shape or (np.isnan(one) != np.isnan(other)).any():
            return float("inf")
        known = ~np.isnan(one)
        if known.any():
            worst = max(worst, float(np.abs(one - other)[known].max() / max(1.0, np.abs(other[known]).max())))
    return worst


def deepness_metadata(
    *, class_names: Sequence[str], layers: int, tile_size: int, resolution_m: float | None
) -> dict[str, str]:
    """Metadata of a `RasterGraph` that predicts pixels, for the plugin Deepness of QGIS.

    The plugin divides pixels by 255 before it standardises them; the standard deviation stated here undoes that.

    Args:
        class_names: in order; none for values.
        layers: number of bands.
        tile_size: edge of a tile, raster pixels.
        resolution_m: edge of a raster pixel, metres; None if the CRS has no such unit.

    References: the plugin's page "Adding metadata to ONNX model" and its class ModelBase.
    """
    stated: dict[str, Any] = {
        "model_type": "Segmentor" if class_names else "Regressor",
        "class_names": {str(k): name for k, name in enumerate(class_names or ["prediction"])},
        "tile_size": tile_size,
        "tiles_overlap": 50,
        "standardization_mean": [0.0] * layers,
        "standardization_std": [1 / 255] * layers,
    }
    if resolution_m is not None:
        stated["resolution"] = 100 * resolution_m
    stated |= {"seg_thresh": 0.0, "seg_small_segment": 0} if class_names else {"reg_output_scaling": 1.0}
    return {key: json.dumps(value) for key, value in stated.items()}
