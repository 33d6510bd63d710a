"""Exports a trained model: `python -m scripts.export --checkpoint CHECKPOINT --format torch|safetensors|onnx`.

A smaller torch checkpoint, safetensors, or an ONNX graph that runs without torch; each with a model card beside it.
docs/export.md shows how to use them.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.parsers import export_parser
from util.options.early import before_imports

if __name__ == "__main__":  # --help and wrong flags are answered at once: the imports below take seconds
    before_imports(export_parser(__doc__))

import argparse
import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rasterio.crs import CRS
from torch import nn

from datasets.ground.grid import metres_per_unit
from datasets.survey.inference_survey import stored_encodings, stored_native
from datasets.survey.pyramid import Pyramid
from datasets.survey.stack import LayerBundle, Placement
from main_inference import load_network
from util.checkpoints import checkpoint_file
from util.export import graphs, onnx_file
from util.export.files import check_free
from util.export.model_card import card_text, model_facts, write_card
from util.export.weights import write_safetensors, write_torch
from util.finetuning.tasks import TASKS, trained_objective
from util.inference.finetuned_task import task_of
from util.inference.inputs import hidden_channels
from util.options.commands import after_finetuning, after_pretraining
from util.processes.terminal import setup_logging

logger = logging.getLogger("scripts.export")

NEEDED = ("model", "model_config", "layers", "statistics", "options", "version")
"""Keys of a checkpoint that are read."""
SUFFIXES = {"torch": ".pth", "safetensors": ".safetensors", "onnx": ".onnx"}

USAGE = {
    "torch": """import torch
from {module} import {builder}

state = torch.load("{name}", weights_only=True)
network = {builder}({arguments})
network.load_state_dict(state["model"])
network.eval()""",
    "safetensors": """import json
from safetensors import safe_open
from {module} import {builder}

with safe_open("{name}", "pt") as file:
    config = json.loads(file.metadata()["model_config"])
    weights = {{key: file.get_tensor(key) for key in file.keys()}}
network = {builder}({arguments})
network.load_state_dict(weights)
network.eval()""",
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("{name}")
for entry in (*session.get_inputs(), *session.get_outputs()):
    print(entry.name, entry.type, entry.shape)""",
}
"""Lines that load a file of each format, for its model card."""


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    return export_parser(__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; exit status 2 for bad input."""
    args = get_args_parser().parse_args(argv)
    setup_logging()
    path = Path(args.output or f"model{SUFFIXES[args.format]}")
    try:
        check_options(args)
        check_free(path, overwrite=args.overwrite)
        if path.resolve() == checkpoint_file.checkpoint_in(args.checkpoint).resolve():
            raise ValueError(f"--output {path} is the checkpoint that is exported, which runs go on from; give another")
        state = checkpoint_file.load_checkpoint(args.checkpoint, required=NEEDED)
        network = load_network(state)
        exported = {"format": args.format}
        if args.format == "onnx":
            text = export_onnx(path, network, state, args)
        else:
            facts = model_facts(state, stored_encodings(state), **card_options(args, state, exported))
            text = card_of(path, facts, state)
            if args.format == "torch":
                write_torch(path, state)
            else:
                write_safetensors(path, state, facts)
        card = write_card(path, text)
    except (ValueError, OSError) as error:
        print(f"export: error: {error}", file=sys.stderr)
        return 2
    logger.info("model        %s (%.1f MB)", path, path.stat().st_size / 2**20)
    logger.info("model card   %s", card)
    for line in next_steps(path, card, args.format, is_finetuned="task" in state):
        logger.info("next: %s", line)
    return 0


def next_steps(path: Path, card: Path, form: str, *, is_finetuned: bool) -> list[str]:
    """What to do with an exported model: commands that take it, or where the lines that load it are."""
    if form != "torch":
        return [f"load it with the lines that {card} shows"]
    return after_finetuning(path) if is_finetuned else after_pretraining(path)


def check_options(args: argparse.Namespace) -> None:
    """Refuses options that do not fit together, and formats whose packages are missing.

    Raises:
        ValueError: with what to do.
    """
    raster_only = {"--raster_scale": args.raster_scale, "--nodata": args.nodata}
    given = [flag for flag, value in raster_only.items() if value is not None]
    if args.format == "onnx":
        onnx_file.check_packages()
        if given and args.inputs != "raster":
            raise ValueError(f"{given[0]} with --inputs model: expected --inputs raster, which it belongs to")
    elif args.part or args.inputs != "model" or given:
        flag = "--part" if args.part else "--inputs raster" if args.inputs != "model" else given[0]
        raise ValueError(f"{flag} with --format {args.format}: the file holds all weights; it belongs to --format onnx")


def card_options(args: argparse.Namespace, state: Mapping[str, Any], exported: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `model_facts`."""
    return {"hidden": hidden_channels(state), "licence": args.licence, "exported": exported}


def card_of(path: Path, facts: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """The text of the model card, which is made before the model is written: a file without its card helps nobody."""
    usage = usage_of(path, facts["exported"]["format"], is_finetuned="task" in state)
    return card_text(path.name, facts, usage=usage)


def usage_of(path: Path, form: str, *, is_finetuned: bool) -> str:
    """Lines that load a file."""
    config = 'state["model_config"]' if form == "torch" else "config"
    module, builder, arguments = "models_vit_group_channels", "build_finetune_model", config
    if not is_finetuned:
        module, builder = "models_mae_group_channels", "MaskedAutoencoderGroupChannelViT"
        arguments = f"**{config}"
    return USAGE[form].format(module=module, builder=builder, arguments=arguments, name=path.name)


def export_onnx(path: Path, network: Any, state: Mapping[str, Any], args: argparse.Namespace) -> str:
    """Writes the graph that the options ask for, tries it, and returns the text of its card.

    Raises:
        ValueError: the checkpoint has no such graph, or onnxruntime computes something else.
        OSError: the file cannot be written.
    """
    part = args.part or ("predictions" if "task" in state else "encoder")
    graph, is_dense, class_names = part_graph(network, state, part, checkpoint=args.checkpoint)
    exported: dict[str, Any] = {"format": "onnx", "part": part, "inputs": args.inputs}
    names = ["imgs", "valid", *(f"native_{k}" for k in range(len(network.native_shapes) if network.stems else 0))]
    inputs: onnx_file.Inputs = partial(graphs.model_inputs, network)
    encodings, metadata = stored_encodings(state), {}
    if args.inputs == "raster":
        factor = raster_factor(network, state, args.raster_scale)
        pyramid = raster_pyramid(network, state, factor)
        graph = graphs.RasterGraph(graph, pyramid, hidden=hidden_channels(state), nodata=args.nodata)
        inputs = partial(graphs.raster_inputs, pyramid, factor=factor)
        names, edge = ["raster"], factor * network.img_size
        pixel_m = raster_pixel_m(state, factor)
        exported |= {"raster_pixels_per_base_pixel": factor, "tile_raster_pixels": edge, "nodata": args.nodata}
        if is_dense:
            metadata = onnx_file.deepness_metadata(
                class_names=class_names, layers=len(encodings), tile_size=edge, resolution_m=pixel_m
            )
            if pixel_m is None:
                logger.warning("no resolution in metres: Deepness needs a projected CRS, and its user must state it")
    facts = model_facts(state, encodings, **card_options(args, state, exported))
    card_of(path, facts, state)
    metadata |= {"gridmae": json.dumps(facts)}
    difference = onnx_file.write_onnx(path, graph.eval(), inputs, names=names, metadata=metadata)
    logger.info("onnxruntime agrees with torch: largest difference %.1g, in batches of 1 and 3", difference)
    facts["exported"]["largest_difference_from_torch"] = f"{difference:.1g}"
    return card_of(path, facts, state)


def part_graph(
    network: Any, state: Mapping[str, Any], part: str, *, checkpoint: str
) -> tuple[nn.Module, bool, tuple[str, ...]]:
    """The graph of a part of a model, whether it predicts pixels, and the names of its classes.

    Raises:
        ValueError: predictions of a checkpoint that was not fine-tuned.
    """
    if part == "encoder":
        return graphs.EncoderGraph(network), False, ()
    if "task" not in state:
        raise ValueError(
            f"--part predictions with --checkpoint {checkpoint}: a pre-trained model without a head for a task; "
            "fine-tune it (main_finetune), or export --part encoder"
        )
    task = task_of(state, TASKS)
    graph = graphs.PredictionGraph(network, trained_objective(task.kind, state["training"]))
    return graph, task.per_pixel, task.names if task.has_classes else ()


def raster_factor(network: Any, state: Mapping[str, Any], asked: int | None) -> int:
    """Raster pixels along the edge of a base pixel: as asked, or the fewest that hold every scale of the model.

    Raises:
        ValueError: the number asked for is no multiple of a scale.
    """
    scales = [*network.native_scales, getattr(network, "scale", 1)]
    least = math.lcm(*scales)
    if asked is not None:
        if asked % least:
            raise ValueError(
                f"--raster_scale {asked}: expected a multiple of {least}, which holds the native pixels and outputs "
                f"of the model (scales {sorted(set(scales))})"
            )
        return asked
    trained = state["options"].get("scales") or [1]
    return math.lcm(least, max(trained)) if max(network.native_scales) == 1 else least


def raster_pyramid(network: Any, state: Mapping[str, Any], factor: int) -> Pyramid:
    """How tiles of one raster with all layers, `factor` pixels to a base pixel, become images of the model."""
    encodings, edge = stored_encodings(state), factor * network.img_size
    everything = tuple(range(len(encodings)))
    return Pyramid(
        bundles=[LayerBundle(everything, edge, edge, True, Placement(1.0, 1.0, 0.0, 0.0))],
        tile_rows=edge,
        tile_cols=edge,
        input_size=network.img_size,
        scales=(1,),
        scored={1: everything},
        encodings=encodings,
        native=stored_native(state, encodings).groups,
    )


def raster_pixel_m(state: Mapping[str, Any], factor: int) -> float | None:
    """Edge of a raster pixel in metres; None if the ground of training is unknown or not projected."""
    ground, base = state.get("ground"), state.get("base_resolution")
    if not ground or not base:
        return None
    crs = CRS.from_wkt(ground["crs"])
    return base * metres_per_unit(crs) / factor if crs.is_projected else None


if __name__ == "__main__":
    sys.exit(main())
