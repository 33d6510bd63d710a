"""Applies a trained model to whole rasters: embeddings, reconstructions, filled gaps, finer grids, predictions.

Reads top to bottom: options, data, model, product, loop, end. `python -m main_inference --help` lists the options;
docs/inference.md explains the results. Products are declared in util/inference/products.py.
"""

from __future__ import annotations

from util.options.early import before_imports, early_parser

if __name__ == "__main__":  # --help and wrong flags are answered at once: the imports below take seconds
    before_imports(early_parser("main_inference", __doc__))

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import models_mae_group_channels as models
import models_vit_group_channels as finetune_models
from datasets.layers.paths import file_of, sheet_paths
from datasets.loading.augment import ROTATIONS, rotated_back, rotated_native, rotated_tiles
from datasets.loading.prefetch import prefetch
from datasets.survey.inference_survey import (
    InferenceSurvey,
    open_inference_survey,
    stored_base_crs,
    stored_encodings,
    stored_layers,
    stored_native,
)
from datasets.survey.preview import layer_previews
from util.checkpoints import checkpoint_file
from util.checkpoints.target_layers import target_numbers
from util.finetuning.tasks import TASKS, trained_objective
from util.geotiff.parts import Parts, limited_cache
from util.geotiff.raster_spec import RasterSpec
from util.hardware.device import amp_policy, describe_environment
from util.inference import results
from util.inference.engine import Engine, Meter
from util.inference.finetuned_task import FinetunedNetwork, task_of
from util.inference.inputs import (
    InferenceInputs,
    ground_of,
    hidden_channels,
    layer_values,
    native_layers,
    raster_tags,
)
from util.inference.product import Product
from util.inference.products import PRODUCTS, check_checkpoint
from util.inference.qgis import source_layers
from util.inference.tile_progress import TileProgress
from util.mosaics.mosaic import Block, blocks_of, blocks_of_rank
from util.options import common as options
from util.options import inference as inference_options
from util.options.programs import inference_parser
from util.plots.maps import Panel, layer_panels
from util.processes import distributed as dist
from util.processes import torchrun_restarts as restarts
from util.processes.program import run_program
from util.processes.signals import Stop
from util.processes.terminal import progress_bar
from util.records.log import claim_output_folders
from util.run_page.page import RunPage

logger = logging.getLogger("main_inference")

NEEDED = ("model", "model_config", "layers", "statistics", "options", "version")
"""Keys of a checkpoint that inference reads."""


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    return inference_parser(__doc__, {name: entry.help for name, entry in PRODUCTS.items()})


@dataclass(frozen=True)
class InferenceRun:
    """What the loop works with.

    Attributes:
        survey: the rasters.
        engine: the network.
        product: what is computed.
        blocks: the blocks of ground, of all ranks.
        parts: the folder of finished blocks.
        output: value of --output.
        output_dir: where results go.
        ranks: which process this is.
        page: says what the run did.
        num_workers: threads that read blocks ahead.
        show_progress: whether a progress bar is shown.
    """

    survey: InferenceSurvey
    engine: Engine
    product: Product
    blocks: list[Block]
    parts: Parts
    output: str
    output_dir: Path
    ranks: dist.Ranks
    page: RunPage
    num_workers: int
    show_progress: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Returns:
        Exit status: 0 when done; 1 when it failed or was stopped part way; 2 for bad input.
    """
    args = get_args_parser().parse_args(argv)
    with limited_cache():
        return run_program(
            "main_inference",
            prepare=partial(prepare, args),
            work=work,
            close=lambda run, error: run.page.end(error),
            stop_message="stopping after this block; Ctrl-C again to stop at once",
            **options.process_options(args),
        )


def work(run: InferenceRun, stop: Stop) -> int:
    """Computes the blocks and writes the results; returns the exit status, 1 if a signal stopped it."""
    finished = dist.on_all(partial(compute, run, stop))
    if dist.any_rank(not finished):  # asked after `on_all`: a rank that failed inside it would not take part
        logger.warning("stopped by a signal; finished blocks are stored: continue with --resume")
        return 1
    beside = partial(input_panels, run.survey) if PRODUCTS[run.output].shows_inputs else None
    layers = dist.on_main_rank(lambda: source_layers(run.survey, layer_previews(run.survey)))
    place = {**run.survey.map_scale, "beside": beside, "layers": layers}
    written = dist.on_main_rank(lambda: results.finish(run.output_dir, run.parts, run.product, **place))
    run.page.add(written)
    run.page.finish()
    return 0


# ---------------------------------------------------------------------------------------------------- before the loop


def prepare(args: argparse.Namespace, device: torch.device, ranks: dist.Ranks) -> InferenceRun:
    """Opens checkpoint and rasters, builds the product, and divides the ground into blocks.

    Raises:
        ValueError, OSError: bad input.
    """
    own_options = inference_options.product_options(args, {name: entry.options for name, entry in PRODUCTS.items()})
    output_dir = Path(args.output_dir)
    claim_output_folders(args.output_dir)
    restarted = restarts.was_restarted(output_dir)  # what lies there is this run's own, or was to be replaced
    environment = describe_environment(device) | {"processes": ranks.world_size}
    logger.info("%s", ", ".join(f"{key} {value}" for key, value in environment.items()))

    # data
    state = checkpoint_file.load_checkpoint(args.checkpoint, required=NEEDED)
    survey = dist.on_all(lambda: open_data(args, state))
    survey.log_summary(with_warnings=ranks.is_main)

    # model
    check_checkpoint(PRODUCTS[args.output], args.checkpoint, state)
    engine = build_engine(args, load_network(state), survey, device)

    # product
    inputs = InferenceInputs(
        engine=engine,
        ground=ground_of(survey),
        layers=layer_values(survey),
        natives=native_layers(survey),
        known=survey.known,
        read=partial(read_block, survey),
        tags=raster_tags(state, survey, checkpoint=args.checkpoint, output=args.output),
        mask_ratio=state["options"].get("mask_ratio", 0.75),
        seed=args.seed,
        finetuned=finetuned_network(engine.model, state) if "task" in state else None,
    )
    product = dist.on_all(lambda: PRODUCTS[args.output].build(inputs, **own_options))
    run = InferenceRun(
        survey=survey,
        engine=engine,
        product=product,
        blocks=wanted_blocks(args, product, survey),
        parts=Parts(output_dir / f".{args.output}.parts"),
        output=args.output,
        output_dir=output_dir,
        ranks=ranks,
        page=RunPage(output_dir, "main_inference", part=args.output, enabled=ranks.is_main),
        num_workers=args.num_workers,
        show_progress=ranks.is_main and not args.no_progress,
    )
    sources = results.sources_of(survey, lambda path: [file_of(sheet) for sheet in sheet_paths(path)])
    settings = {**inputs.tags, **inference_options.decisive(args), **sources}
    overwrite, resume = args.overwrite or restarted, args.resume or restarted
    dist.on_main_rank(lambda: begin_or_resume(run, settings, overwrite=overwrite, resume=resume))
    restarts.mark_started(output_dir)
    about: dict[str, Any] = {"options": vars(args), "environment": environment, "overview": survey.overview}
    run.page.begin(resumed=resume, resume_flags=("--resume",), **about)
    return run


def open_data(args: argparse.Namespace, state: dict[str, Any]) -> InferenceSurvey:
    """The layers of the checkpoint, on the ground that the options name."""
    if args.data_dir is not None and args.train_path is not None:
        raise ValueError("give one of --data_dir and --train_path, or neither for the layers of the checkpoint")
    trained, encodings = state["options"], stored_encodings(state)
    scales = (1,) if PRODUCTS[args.output].base_scale_only else state["model_config"].get("scales", (1,))
    return open_inference_survey(
        stored_layers(state["layers"]),
        data_dir=args.data_dir,
        layers_table=args.train_path,
        encodings=encodings,
        input_size=state["model_config"]["img_size"],
        scales=scales,
        base_resolution=base_resolution(args, state),
        base_crs=None if args.base_resolution else stored_base_crs(state),
        finest_scale=max(trained.get("scales") or scales),
        hidden=hidden_channels(state),
        targets=target_numbers(state),
        extent=args.extent or trained.get("extent") or "union",
        reproject=args.reproject or bool(trained.get("reproject")),
        aoi=args.aoi,
        allow_missing=args.missing_layers == "allow",
        native=stored_native(state, encodings),
    )


def base_resolution(args: argparse.Namespace, state: dict[str, Any]) -> float | None:
    """Edge of a base-scale pixel, CRS units; None if it follows from the layers of the checkpoint.

    Raises:
        ValueError: it must be given, and is not.
    """
    trained = state["options"]
    base = args.base_resolution or state.get("base_resolution") or trained.get("base_resolution")
    has_rasters = bool(args.data_dir or args.train_path)
    if trained.get("dataset_type") in options.SCENE_TYPES and (base is None or not has_rasters):
        names = ", ".join(layer["name"] for layer in state["layers"])
        raise ValueError(
            f"--checkpoint {args.checkpoint}: trained on images (--dataset_type {trained['dataset_type']}), not on "
            f"ground; give rasters named as its bands ({names}) with --data_dir or --train_path, and the "
            "--base_resolution at which to read them"
        )
    if base is None and has_rasters:
        raise ValueError(
            f"--checkpoint {args.checkpoint}: written by a version that did not store the base resolution; give that "
            "of training, --base_resolution"
        )
    return base


def load_network(state: dict[str, Any]) -> torch.nn.Module:
    """The trained network of a checkpoint, for prediction.

    Raises:
        ValueError: it is a baseline.
    """
    config = {**state["model_config"], "grad_checkpointing": False}
    if config.get("kind") == "unet":
        raise ValueError(
            "--checkpoint: a U-Net, which is a baseline of main_finetune that makes no maps; give the checkpoint of "
            "another arm, or of the last fit"
        )
    network = (
        finetune_models.build_finetune_model(config)
        if "task" in state
        else models.MaskedAutoencoderGroupChannelViT(**config)
    )
    network.load_state_dict(state["model"])
    return network.eval()


def build_engine(
    args: argparse.Namespace, network: torch.nn.Module, survey: InferenceSurvey, device: torch.device
) -> Engine:
    """The network on its device, and how to run it.

    Raises:
        ValueError: blocks do not consist of whole patches.
    """
    if args.block_size % network.patch_size:
        raise ValueError(f"--block_size {args.block_size}: expected a multiple of the patch, {network.patch_size}")
    dtype, _ = amp_policy(device, args.amp)
    return Engine(
        model=network.to(device),
        device=device,
        autocast=partial(torch.autocast, device.type, dtype=dtype, enabled=dtype is not None),
        batch_size=args.batch_size,
        overlap=args.overlap,
        meter=Meter(device),
        wrap_columns=survey.wrap_columns,
    )


def finetuned_network(network: torch.nn.Module, state: dict[str, Any]) -> FinetunedNetwork:
    """A fine-tuned network with its task; predicts tiles in any of their eight orientations."""
    task = task_of(state, TASKS)
    objective = trained_objective(task.kind, state["training"])
    turned = stored_encodings(state) if state.get("turns_directions") else ()  # older training turned pixels alone
    groups = [[turned[layer] for layer in group.layers] for group in stored_native(state, turned).groups]

    def predict(
        imgs: torch.Tensor, valid: torch.Tensor, native: Sequence[torch.Tensor], *, orientation: int
    ) -> torch.Tensor:
        turns = torch.full((len(imgs),), orientation)
        own = rotated_native(native, turns, groups)
        outputs = objective.predict(network, *rotated_tiles(imgs, valid, turns, turned), own)
        return rotated_back(outputs, turns) if task.per_pixel else outputs

    return FinetunedNetwork(task, predict, orientations=1 if state["options"].get("no_augment") else ROTATIONS)


def wanted_blocks(args: argparse.Namespace, product: Product, survey: InferenceSurvey) -> list[Block]:
    """The blocks of ground to compute, for all ranks.

    Raises:
        ValueError: there are none in the area of interest.
    """
    blocks = [block for block in blocks_of(*product.extent(), edge=args.block_size) if survey.is_wanted(*block.edges)]
    if not blocks:
        raise ValueError(f"--aoi {args.aoi}: its polygons do not touch the layers' ground; check its coordinates")
    return blocks


def begin_or_resume(run: InferenceRun, settings: dict[str, Any], *, overwrite: bool, resume: bool) -> None:
    """Refuses to replace results unless asked to, and opens the folder of parts; in the main process."""
    names = [*run.product.rasters, *run.product.derived]
    results.begin_or_resume(run.output_dir, run.parts, names=names, job=settings, overwrite=overwrite, resume=resume)
    done = sum(run.parts.is_done(block.row, block.col) for block in run.blocks)
    if done:
        logger.info("%d of %d blocks were done before", done, len(run.blocks))


# ------------------------------------------------------------------------------------------------------------ the loop


def compute(run: InferenceRun, stop: Stop) -> bool:
    """Computes the blocks of this rank and writes them as parts, without exchange with other ranks.

    Returns:
        False if a signal stopped this rank; finished blocks stay on disk.

    Raises:
        OSError: a raster could not be read, or a part not written.
    """
    survey, product, ranks, meter = run.survey, run.product, run.ranks, run.engine.meter
    own = blocks_of_rank(run.blocks, rank=ranks.rank, count=ranks.world_size)
    todo = [block for block in own if not run.parts.is_done(block.row, block.col)]

    def read(block: Block) -> Any:
        return read_block(survey, block.grown(product.reach))

    tiles = [len(run.engine.tiles_of(block, product.ground)) for block in todo]
    bar = progress_bar(total=sum(tiles), desc=run.output, unit="tile", enabled=run.show_progress)
    progress = TileProgress(bar, tiles)
    meter.restart(watch=progress.within)
    for number, (block, window) in enumerate(prefetch(todo, read, workers=run.num_workers, ahead=1), start=1):
        arrays = {
            name: (spec, masked(pixels, spec, row, col, survey), row, col)
            for name, (spec, pixels, row, col) in product.make(block, window).items()
        }
        run.parts.write(block.row, block.col, arrays)
        progress.end_block()
        run.page.update(progress=f"{number} of {len(todo)} blocks done")
        if stop.signal is not None:
            break
    bar.close()
    logger.info("rank %d: %s", ranks.rank, meter.summary())
    return stop.signal is None


def read_block(survey: InferenceSurvey, block: Block) -> Any:
    """The pixels of all layers in a block."""
    return survey.read(*block.edges)


def input_panels(survey: InferenceSurvey) -> list[Panel]:
    """Maps of the layers, to be drawn beside what was predicted from them."""
    return layer_panels(layer_previews(survey))


def masked(pixels: np.ndarray, spec: RasterSpec, row: int, col: int, survey: InferenceSurvey) -> np.ndarray:
    """The same pixels, nodata outside the area of interest."""
    if survey.aoi is None:
        return pixels
    inside = survey.inside(spec.window_transform(row, col), *pixels.shape[1:])
    return np.where(inside, pixels, spec.nodata).astype(pixels.dtype)


if __name__ == "__main__":
    sys.exit(main())
