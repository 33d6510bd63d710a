"""Applies a trained model to whole rasters: embeddings, reconstructions, filled gaps, finer grids, predictions.

Reads top to bottom: options, data, model, what to make, loop, end. `python -m main_inference --help` lists the options;
docs/inference.md explains the results.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import models_mae_group_channels as models
import models_vit_group_channels as finetune_models
from datasets.loading.augment import TURNS, rotated, rotated_back
from datasets.loading.prefetch import prefetch
from datasets.survey.inference_survey import InferenceSurvey, open_inference_survey, stored_encodings, stored_layers
from util.checkpoints import checkpoint_file
from util.finetuning.objectives import trained_objective
from util.geotiff.parts import Parts, limited_cache
from util.geotiff.raster_spec import RasterSpec
from util.hardware.device import amp_policy, describe_environment, select_device
from util.hardware.malloc import keep_freed_memory
from util.inference import build_product as makers
from util.inference import finetuned_task as finetuned
from util.inference import results
from util.inference.engine import Engine, Meter, Product
from util.inference.inputs import InferenceInputs, ground_of, layer_values, native_layers
from util.inference.masked_views import MaskedViews
from util.mosaics.dense_prediction import Forward
from util.mosaics.mosaic import Block, blocks_of, blocks_of_rank
from util.options import common as options
from util.options import inference as inference_options
from util.processes import distributed as dist
from util.processes import torchrun_restarts as restarts
from util.processes.signals import Stop
from util.processes.terminal import progress_bar, setup_logging
from util.records.log import check_writable

logger = logging.getLogger("main_inference")

NEEDED = ("model", "model_config", "layers", "statistics", "options", "version")
OF_FINETUNED = ("embeddings", "prediction")
"""What a fine-tuned checkpoint can make; one of pre-training makes everything but predictions."""


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser("main_inference", description=__doc__.split("\n\n")[0])
    inference_options.add_source_options(parser, outputs=list(MAKERS))
    inference_options.add_result_options(parser)
    inference_options.add_run_options(parser)
    return parser


@dataclass(frozen=True)
class InferenceRun:
    """The parts of a run that its loop works with."""

    args: argparse.Namespace
    ranks: dist.Ranks
    survey: InferenceSurvey
    engine: Engine
    product: Product
    blocks: list[Block]
    parts: Parts


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Returns:
        Exit status: 0 when done; 1 when it failed or was stopped part way; 2 for bad input.
    """
    args = get_args_parser().parse_args(argv)
    ranks = dist.Ranks()
    end = partial(dist.report_end, program="main_inference")
    with ExitStack() as stack:
        try:
            ranks = dist.find_ranks(world_size=args.world_size, local_rank=args.local_rank, dist_url=args.dist_url)
            setup_logging(ranks.rank)
            keep_freed_memory()
            device = select_device(args.device, local_rank=ranks.local_rank)
            dist.start(ranks, device, dist_url=args.dist_url)
            stack.enter_context(limited_cache())
            job = prepare(args, device, ranks)
        except (ValueError, OSError) as error:
            return end(error, ranks=ranks, status=2)
        except (dist.PeerLost, KeyboardInterrupt) as error:
            return end(error, ranks=ranks, status=1)
        try:
            with Stop("stopping after this square; Ctrl-C again to stop at once") as stop:
                if not dist.on_all(partial(compute, job, stop)):
                    return 1
            dist.on_main_rank(partial(finish, job))
        except (OSError, ValueError, dist.PeerLost, KeyboardInterrupt) as error:
            return end(error, ranks=ranks, status=1)
        finally:
            dist.shutdown()
    return 0


# ---------------------------------------------------------------------------------------------------- before the loop


def prepare(args: argparse.Namespace, device: torch.device, ranks: dist.Ranks) -> InferenceRun:
    """Opens checkpoint and rasters, and decides what will be made.

    Raises:
        ValueError, OSError: bad input.
    """
    inference_options.check(args)
    output_dir = Path(args.output_dir)
    dist.on_main_rank(lambda: check_writable(output_dir, flag="--output_dir"))
    if restarts.was_restarted(output_dir):
        args.resume = args.overwrite = True  # what lies there now is this run's own, or was to be replaced
    environment = describe_environment(device) | {"processes": ranks.world_size}
    logger.info("%s", ", ".join(f"{key} {value}" for key, value in environment.items()))

    # data
    state = checkpoint_file.load_checkpoint(args.checkpoint, required=NEEDED)
    survey = dist.on_all(lambda: open_data(args, state))
    for text in survey.summary_lines():
        logger.info("%s", text)
    if ranks.is_main:
        for text in (*survey.warnings, *(f"layer '{name}' is absent" for name in survey.missing)):
            logger.warning("%s", text)

    # model
    dtype, _ = amp_policy(device, args.amp)
    engine = Engine(
        model=load_network(args.checkpoint, state, output=args.output).to(device),
        device=device,
        autocast=partial(torch.autocast, device.type, dtype=dtype, enabled=dtype is not None),
        batch_size=args.batch_size,
        overlap=args.overlap,
        meter=Meter(device),
        wrap_columns=survey.wrap_columns,
    )

    # what to make
    if args.block_size % engine.model.patch_size:
        raise ValueError(f"--block_size {args.block_size}: expected a multiple of the patch, {engine.model.patch_size}")
    inputs = InferenceInputs(
        engine=engine,
        ground=ground_of(survey),
        layers=layer_values(survey),
        natives=native_layers(survey),
        known=survey.known,
        read=partial(read_unit, survey),
        tags=tags_of(args, survey, state),
    )
    product = dist.on_all(lambda: MAKERS[args.output](args, inputs, state))
    blocks = [block for block in blocks_of(*product.extent(), edge=args.block_size) if survey.is_wanted(*block.edges)]
    if not blocks:
        raise ValueError(f"--aoi {args.aoi}: its polygons do not touch the layers' ground; check its coordinates")
    job = InferenceRun(args, ranks, survey, engine, product, blocks, Parts(output_dir / f".{args.output}.parts"))
    facts = {**inputs.tags, **inference_options.decisive(args), "ground": list(survey.shape)}
    facts["files"] = [[layer.name, layer.path, layer.band] for layer in survey.layers]
    dist.on_main_rank(lambda: begin_or_resume(job, facts))
    restarts.mark_started(output_dir)
    return job


def open_data(args: argparse.Namespace, state: dict[str, Any]) -> InferenceSurvey:
    """The layers of the checkpoint, on the ground that the options name."""
    if args.data_dir is not None and args.train_path is not None:
        raise ValueError("give one of --data_dir and --train_path, or neither for the layers of the checkpoint")
    trained = state["options"]
    scales = (1,) if args.output == "embeddings" else state["model_config"].get("scales", (1,))  # what it looks at
    base = args.base_resolution or state.get("base_resolution") or trained.get("base_resolution")
    if trained.get("dataset_type") in options.SCENE_TYPES and (base is None or not (args.data_dir or args.train_path)):
        names = ", ".join(layer["name"] for layer in state["layers"])
        raise ValueError(
            f"--checkpoint {args.checkpoint}: trained on images (--dataset_type {trained['dataset_type']}), not on "
            f"ground; give rasters named as its bands ({names}) with --data_dir or --train_path, and the "
            "--base_resolution at which to look at them"
        )
    if base is None and (args.data_dir or args.train_path):
        raise ValueError(
            f"--checkpoint {args.checkpoint}: written by a version that did not note the base resolution; give that of "
            "training, --base_resolution"
        )
    return open_inference_survey(
        stored_layers(state["layers"]),
        data_dir=args.data_dir,
        layers_table=args.train_path,
        encodings=stored_encodings(state),
        input_size=state["model_config"]["img_size"],
        scales=scales,
        base_resolution=base,
        finest_scale=max(trained.get("scales") or scales),
        hidden=hidden_channels(state),
        extent=args.extent or trained.get("extent") or "union",
        reproject=args.reproject or bool(trained.get("reproject")),
        aoi=args.aoi,
        allow_missing=args.missing_layers == "allow",
    )


def read_unit(survey: InferenceSurvey, block: Block) -> Any:
    """The ground of a block."""
    return survey.read(*block.edges)


def hidden_channels(state: dict[str, Any]) -> Sequence[int]:
    """Channels that the network never saw: of pre-training its masked ones, of fine-tuning also labels among them."""
    return state["hidden"] if "task" in state else state["options"].get("masked_bands") or ()


def load_network(path: str, state: dict[str, Any], *, output: str) -> torch.nn.Module:
    """The trained network, for prediction.

    Raises:
        ValueError: the checkpoint holds another kind of model, or one that cannot make the output.
    """
    config = {**state["model_config"], "grad_checkpointing": False}
    is_finetuned = "task" in state
    if not is_finetuned and config.get("decoder_depth") is None:
        raise ValueError(f"--checkpoint {path}: expected one of main_pretrain or main_finetune; give its path")
    if output == "prediction" and not is_finetuned:
        raise ValueError(
            f"--output prediction: {path} is of pre-training, which learns no labels; fine-tune it first: "
            f"python -m main_finetune --finetune {path} --labels LABELS"
        )
    if is_finetuned and output not in OF_FINETUNED:
        raise ValueError(
            f"--output {output}: {path} was fine-tuned for {state['task']['kind']} and has no decoder that could "
            f"rebuild layers; give the checkpoint of main_pretrain, or one of --output {', '.join(OF_FINETUNED)}"
        )
    network = (
        finetune_models.build_finetune_model(config)
        if is_finetuned
        else models.MaskedAutoencoderGroupChannelViT(**config)
    )
    network.load_state_dict(state["model"])
    return network.eval()


def tags_of(args: argparse.Namespace, survey: InferenceSurvey, state: dict[str, Any]) -> dict[str, str]:
    """What every result says of where it comes from."""
    digest = hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in state["model"].values())).hexdigest()[:16]
    tags = {
        "software": "GRID-MAE main_inference",
        "version": str(state["version"]),
        "checkpoint": Path(args.checkpoint).name,
        "checkpoint_weights_sha256": digest,
        "layers": ", ".join(layer.name for layer in survey.layers),
        "missing_layers": ", ".join(survey.missing) or "none",
        "output": args.output,
    }
    if "task" in state:
        hidden = [survey.layers[channel].name for channel in hidden_channels(state)]
        tags |= finetuned.provenance(state) | {"hidden_layers": ", ".join(hidden) or "none"}
    return tags


def views_of(args: argparse.Namespace, state: dict[str, Any], *, count: str = "hidden") -> MaskedViews:
    """How tiles are shown: as in training, unless asked otherwise."""
    ratio = state["options"].get("mask_ratio", 0.75) if args.mask_ratio is None else args.mask_ratio
    return MaskedViews(mask_ratio=ratio, draws=args.draws, seed=args.seed, count=count)


def prediction(args: argparse.Namespace, inputs: InferenceInputs, state: dict[str, Any]) -> Product:
    """What a fine-tuned network predicts, as `makers.prediction` has it."""
    task = finetuned.task_of(state)
    objective = trained_objective(task.kind, state["training"])
    was_turned = not state["options"].get("no_augment")
    views = args.views or (TURNS if task.kind == "regression" and was_turned else 1)
    if views > 1 and not was_turned:
        logger.warning("--views %d: the model was trained with --no_augment and has seen nothing turned", views)
    logger.info("%s, fitted on %s: %s", task.kind, inputs.tags["fitted_on"], inputs.tags["score"])
    if "warning" in inputs.tags:
        logger.warning("%s", inputs.tags["warning"])

    def view(turn: int) -> Forward:
        def forward(imgs: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
            turns = torch.full((len(imgs),), turn)
            outputs = objective.predict(inputs.engine.model, rotated(imgs, turns), rotated(valid, turns))
            return rotated_back(outputs, turns) if task.is_dense else outputs

        return forward

    return makers.prediction(inputs, task=task, views=[view(turn) for turn in range(views)], stride=args.stride)


MAKERS: dict[str, Callable[[argparse.Namespace, InferenceInputs, dict[str, Any]], Product]] = {
    "embeddings": lambda args, inputs, state: makers.embeddings(
        inputs,
        pool=args.pool,
        stride=args.stride,
        dtype=args.dtype,
        clusters=args.clusters,
        positions=args.positions,
    ),
    "reconstruction": lambda args, inputs, state: makers.reconstruction(inputs, views=views_of(args, state)),
    "gapfill": lambda args, inputs, state: makers.gapfill(inputs, views=views_of(args, state), max_gap=args.max_gap),
    "superresolution": lambda args, inputs, state: makers.superresolution(
        inputs, views=views_of(args, state, count="visible")
    ),
    "prediction": prediction,
}
"""What to make, by `--output`: options, what the model is applied to and the checkpoint -> a product."""


def begin_or_resume(job: InferenceRun, facts: dict[str, Any]) -> None:
    """Refuses to replace results unasked, and makes room for parts."""
    args = job.args
    names = results.quicklook_names(job.product.rasters, clusters=args.clusters)
    results.begin_or_resume(
        Path(args.output_dir), job.parts, names=names, job=facts, overwrite=args.overwrite, resume=args.resume
    )
    done = sum(job.parts.is_done(block.row, block.col) for block in job.blocks)
    if done:
        logger.info("%d of %d squares were done before", done, len(job.blocks))


# ------------------------------------------------------------------------------------------------------------ the loop


def compute(job: InferenceRun, stop: Stop) -> bool:
    """Makes this rank's squares, those of some rows of squares.

    Returns:
        False if a signal stopped it; what is done is kept.

    Raises:
        OSError: a raster could not be read, or a part not written.
    """
    args, ranks, survey, product, meter = job.args, job.ranks, job.survey, job.product, job.engine.meter
    mine = [
        block
        for block in blocks_of_rank(job.blocks, rank=ranks.rank, count=ranks.world_size)
        if not job.parts.is_done(block.row, block.col)
    ]

    def read(block: Block) -> Any:
        return read_unit(survey, block.grown(product.reach))

    bar = progress_bar(total=len(mine), desc=args.output, unit="square", enabled=ranks.is_main and not args.no_progress)
    meter.restart()
    for block, window in prefetch(mine, read, workers=args.num_workers, ahead=1):
        arrays = {
            name: (spec, masked(pixels, spec, row, col, survey), row, col)
            for name, (spec, pixels, row, col) in product.make(block, window).items()
        }
        job.parts.write(block.row, block.col, arrays)
        bar.update(1)
        if stop.signal is not None:
            break
    bar.close()
    logger.info("rank %d: %s", ranks.rank, meter.summary())
    if dist.any_rank(stop.signal is not None):
        logger.warning("stopped by a signal; what is done is kept: go on with --resume")
        return False
    return True


def masked(pixels: np.ndarray, spec: RasterSpec, row: int, col: int, survey: InferenceSurvey) -> np.ndarray:
    """The same pixels, nodata outside the area of interest."""
    if survey.aoi is None:
        return pixels
    inside = survey.inside(spec.window_transform(row, col), *pixels.shape[1:])
    return np.where(inside, pixels, spec.nodata).astype(pixels.dtype)


# ------------------------------------------------------------------------------------------------------------- the end


def finish(job: InferenceRun) -> None:
    """Joins the parts into files under their final names, and draws them; in the main process."""
    results.finish(
        Path(job.args.output_dir),
        job.parts,
        job.product.rasters,
        clusters=job.args.clusters,
        seed=job.args.seed,
        **job.survey.map_scale,
    )


if __name__ == "__main__":
    sys.exit(main())
