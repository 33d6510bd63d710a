"""Applies a trained model to whole rasters: embeddings, reconstructions, filled gaps and finer grids as GeoTIFFs.

Reads top to bottom: options, data, model, what to make, loop, end. `python -m main_inference --help` lists the options;
docs/inference.md explains the results.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import models_mae_group_channels as models
from datasets.loader import prefetch
from datasets.reopen import ReopenedSurvey, reopen_survey, stored_layers
from util import checkpoint as ckpt
from util import distributed as dist
from util import options
from util.device import amp_policy, describe_environment, peak_memory_bytes, select_device
from util.engine import Stop
from util.finer_products import FinerMaker
from util.gap_products import GapMaker, NativeLayer
from util.geotiff import Parts, RasterInfo, join, limited_cache
from util.log import progress, setup_logging
from util.looks import draw_raster, look_into_embeddings
from util.masked_products import ReconstructionMaker, Views
from util.mosaic import Unit, units_of
from util.products import EmbeddingMaker, Engine, Ground, LayerValues, Maker, Meter, SampleOf, position_means
from util.run_files import check_writable

logger = logging.getLogger("main_inference")

NEEDED = ("model", "model_config", "layers", "statistics", "options", "version")
DECISIVE = (
    "base_resolution pool stride positions dtype draws mask_ratio max_gap overlap seed block_size aoi extent "
    "reproject amp"
).split()
"""Options that must be the same for a stopped run to be continued; checkpoint and layers are compared themselves."""
ARTIFICIAL_GAPS = 24
"""Gaps made in each layer to learn how to fill real ones; enough for errors at eight distances."""
GAP_TRIES = 1000
POSITION_TILES = 512
"""Tiles over which features are averaged at each place within a tile."""


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser("main_inference", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", required=True, help="checkpoint of main_pretrain")
    parser.add_argument("--output", required=True, choices=[*OUTPUTS, "prediction"], help="what to write")
    parser.add_argument("--output_dir", default="./inference", help="where to write it (./inference)")
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", help="directory with the layers, found by name (default: those of the checkpoint)")
    data.add_argument("--train_path", help="layers.csv that names them instead")
    data.add_argument(
        "--base_resolution", type=options.positive, help="ground edge of a base-scale pixel, CRS units (as in training)"
    )
    data.add_argument("--extent", choices=["union", "intersection"], help="ground (as in training)")
    data.add_argument("--reproject", action="store_true", help="warp layers on the fly to the first layer's CRS")
    data.add_argument("--aoi", help="polygons file; nothing is written outside")
    data.add_argument(
        "--missing_layers",
        default="refuse",
        choices=["refuse", "allow"],
        help="allow: run with layers absent, which the results' tags say (refuse)",
    )
    what = parser.add_argument_group("results")
    what.add_argument(
        "--pool", default="mean", choices=["mean", "group"], help="embeddings: over groups, or each (mean)"
    )
    what.add_argument("--stride", type=options.positive_int, help="embeddings: base pixels between them (a patch)")
    what.add_argument(
        "--positions",
        default="remove",
        choices=["remove", "keep"],
        help="embeddings: remove the mean that features have at each place within a tile, or keep it (remove)",
    )
    what.add_argument("--dtype", default="float32", choices=["float32", "float16"], help="embeddings: type (float32)")
    what.add_argument("--clusters", type=options.count, default=0, help="embeddings: classes by k-means, 0 = none (0)")
    what.add_argument("--draws", type=options.positive_int, default=4, help="masked views of a tile (4)")
    what.add_argument("--mask_ratio", type=options.fraction, help="share of tokens hidden in a view (as in training)")
    what.add_argument("--max_gap", type=options.positive, help="gapfill: widest gap filled, CRS units (half a tile)")
    what.add_argument(
        "--overlap", type=options.fraction, default=0.5, help="share of a tile that the next repeats (0.5)"
    )
    what.add_argument("--seed", type=options.count, default=0, help="seed of masks and clusters (0)")
    run = parser.add_argument_group("run")
    run.add_argument("--overwrite", action="store_true", help="replace results that exist")
    run.add_argument("--resume", action="store_true", help="go on with what a stopped run left in the output folder")
    run.add_argument("--batch_size", type=options.positive_int, default=64, help="tiles per forward pass (64)")
    run.add_argument(
        "--block_size",
        type=options.positive_int,
        default=384,
        help="edge of the square that is held in memory at a time, base pixels (384)",
    )
    run.add_argument("--num_workers", type=options.count, default=1, help="squares read ahead, in threads (1)")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    run.add_argument("--amp", default="auto", choices=["auto", "fp16", "bf16", "off"], help="mixed precision (auto)")
    run.add_argument("--no_progress", action="store_true", help="no progress bar")
    run.add_argument("--world_size", type=options.positive_int, default=1, help="processes (set by torchrun)")
    run.add_argument("--local_rank", "--local-rank", type=int, default=-1, help="set by launchers")
    run.add_argument("--dist_url", default="env://", help="where processes meet (env://)")
    return parser


@dataclass(frozen=True)
class Job:
    """The parts of a run that its loop works with."""

    args: argparse.Namespace
    ranks: dist.Ranks
    survey: ReopenedSurvey
    engine: Engine
    maker: Maker
    units: list[Unit]
    parts: Parts

    @property
    def output_dir(self) -> Path:
        """Where results go."""
        return Path(self.args.output_dir)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Returns:
        Exit status: 0 when done; 1 when it failed or was stopped part way; 2 for bad input.
    """
    args = get_args_parser().parse_args(argv)
    ranks = dist.Ranks()
    with ExitStack() as stack:
        try:
            ranks = dist.find_ranks(world_size=args.world_size, local_rank=args.local_rank, dist_url=args.dist_url)
            setup_logging(ranks.rank)
            device = select_device(args.device, local_rank=ranks.local_rank)
            dist.start(ranks, device, dist_url=args.dist_url)
            stack.enter_context(limited_cache())
            job = prepare(args, device, ranks)
        except (ValueError, OSError) as error:
            return dist.report_end(error, program="main_inference", ranks=ranks, status=2)
        except dist.PeerLost as error:
            return dist.report_end(error, program="main_inference", ranks=ranks, status=1)
        try:
            with Stop() as stop:
                if not dist.together(partial(compute, job, stop)):
                    return 1
            dist.on_main(partial(finish, job))
        except (OSError, ValueError, dist.PeerLost) as error:
            return dist.report_end(error, program="main_inference", ranks=ranks, status=1)
        finally:
            dist.shutdown()
    return 0


# ---------------------------------------------------------------------------------------------------- before the loop


def prepare(args: argparse.Namespace, device: torch.device, ranks: dist.Ranks) -> Job:
    """Opens checkpoint and rasters, and decides what will be made.

    Raises:
        ValueError, OSError: bad input.
    """
    if args.output == "prediction":
        raise ValueError(
            "--output prediction needs a fine-tuned checkpoint, and this version cannot fine-tune yet; expected one of "
            + ", ".join(OUTPUTS)
        )
    output_dir = Path(args.output_dir)
    dist.on_main(lambda: check_writable(output_dir, flag="--output_dir"))
    environment = describe_environment(device) | {"processes": ranks.world_size}
    logger.info("%s", ", ".join(f"{key} {value}" for key, value in environment.items()))

    # data
    state = ckpt.load_checkpoint(args.checkpoint, required=NEEDED)
    if state["model_config"].get("decoder_depth") is None:
        raise ValueError(
            f"--checkpoint {args.checkpoint}: not a pre-training checkpoint; expected one of main_pretrain"
        )
    survey = dist.together(lambda: open_data(args, state))
    for text in survey.lines():
        logger.info("%s", text)
    if ranks.is_main:
        for text in (*survey.warnings, *(f"layer '{name}' is absent" for name in survey.missing)):
            logger.warning("%s", text)

    # model
    engine = Engine(
        model=load_network(state).to(device),
        device=device,
        autocast=autocast_of(device, args.amp),
        batch_size=args.batch_size,
        overlap=args.overlap,
        meter=Meter(device),
    )

    # what to make
    if args.block_size % engine.model.patch_size:
        raise ValueError(f"--block_size {args.block_size}: expected a multiple of the patch, {engine.model.patch_size}")
    tags = tags_of(args, survey, state)
    maker = dist.together(lambda: OUTPUTS[args.output](args, survey, engine, state, tags))
    job = Job(
        args=args,
        ranks=ranks,
        survey=survey,
        engine=engine,
        maker=maker,
        units=wanted_units(args, survey, maker),
        parts=Parts(output_dir / f".{args.output}.parts"),
    )
    dist.on_main(lambda: begin_or_resume(job, tags))
    return job


def open_data(args: argparse.Namespace, state: dict[str, Any]) -> ReopenedSurvey:
    """The layers of the checkpoint, on the ground that the options name."""
    if args.data_dir is not None and args.train_path is not None:
        raise ValueError("give one of --data_dir and --train_path, or neither for the layers of the checkpoint")
    trained, statistics = state["options"], state["statistics"]
    base = args.base_resolution or state.get("base_resolution") or trained.get("base_resolution")
    if "categories" in state and (base is None or not (args.data_dir or args.train_path)):
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
    return reopen_survey(
        stored_layers(state["layers"]),
        data_dir=args.data_dir,
        layers_table=args.train_path,
        location=[item["location"] for item in statistics],
        spread=[item["spread"] for item in statistics],
        input_size=state["model_config"]["img_size"],
        scales=state["model_config"]["scales"],
        base_resolution=base,
        finest_scale=max(trained.get("scales") or state["model_config"]["scales"]),
        hidden=trained.get("masked_bands") or (),
        extent=args.extent or trained.get("extent") or "union",
        reproject=args.reproject or bool(trained.get("reproject")),
        aoi=args.aoi,
        allow_missing=args.missing_layers == "allow",
    )


def load_network(state: dict[str, Any]) -> models.MaskedAutoencoderGroupChannelViT:
    """The trained network, for prediction."""
    network = models.MaskedAutoencoderGroupChannelViT(**{**state["model_config"], "grad_checkpointing": False})
    network.load_state_dict(state["model"])
    return network.eval()


def autocast_of(device: torch.device, choice: str) -> Callable[[], AbstractContextManager]:
    """Makes mixed-precision contexts."""
    dtype, _ = amp_policy(device, choice)
    return partial(torch.autocast, device.type, dtype=dtype, enabled=dtype is not None)


def tags_of(args: argparse.Namespace, survey: ReopenedSurvey, state: dict[str, Any]) -> dict[str, str]:
    """What every result says of where it comes from."""
    digest = hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in state["model"].values())).hexdigest()[:16]
    return {
        "software": "GRID-MAE main_inference",
        "version": str(state["version"]),
        "checkpoint": Path(args.checkpoint).name,
        "checkpoint_weights_sha256": digest,
        "layers": ", ".join(layer.name for layer in survey.layers),
        "missing_layers": ", ".join(survey.missing) or "none",
        "output": args.output,
    }


def ground_of(survey: ReopenedSurvey) -> Ground:
    """The base-scale pixels of a survey."""
    grid, (rows, cols) = survey.stack.reference, survey.shape
    return Ground(grid.crs.to_wkt(), grid.left, grid.top, survey.base_resolution, rows, cols)


def layer_values(survey: ReopenedSurvey, state: dict[str, Any]) -> list[LayerValues]:
    """Names, units and statistics of the layers."""
    return [
        LayerValues(layer.name, layer.units, re.sub(r"[^\w.-]+", "_", layer.name), item["location"], item["spread"])
        for layer, item in zip(survey.layers, state["statistics"], strict=True)
    ]


def views_of(args: argparse.Namespace, state: dict[str, Any], *, count: str) -> Views:
    """How tiles are shown: as in training, unless asked otherwise."""
    ratio = state["options"].get("mask_ratio", 0.75) if args.mask_ratio is None else args.mask_ratio
    return Views(mask_ratio=ratio, draws=args.draws, seed=args.seed, count=count)


def refuse_normalised(engine: Engine, output: str) -> None:
    """Refuses models whose predictions have no physical units."""
    if engine.model.norm_pix_loss:
        raise ValueError(
            f"--output {output}: the model was trained with --norm_pix_loss, so its predictions are relative to each "
            "patch and have no physical units; train without it"
        )


def make_embeddings(
    args: argparse.Namespace, survey: ReopenedSurvey, engine: Engine, state: dict[str, Any], tags: dict[str, str]
) -> Maker:
    """Embeddings at patch stride or finer."""
    if args.clusters > 255 or args.clusters == 1:
        raise ValueError(f"--clusters {args.clusters}: expected 2 to 255, or 0 for none")
    stride = args.stride or engine.model.patch_size
    maker = EmbeddingMaker(engine, ground_of(survey), pool=args.pool, stride=stride, dtype=args.dtype, tags=tags)
    if args.positions == "remove":
        maker.position_means = position_means(
            engine, spread_tiles(survey, engine, POSITION_TILES), reader(survey, engine)
        )
    return maker


def make_reconstruction(
    args: argparse.Namespace, survey: ReopenedSurvey, engine: Engine, state: dict[str, Any], tags: dict[str, str]
) -> Maker:
    """Every layer at every scale at which it was learned and has pixels here."""
    refuse_normalised(engine, args.output)
    wanted = {s: [c for c in channels if c in survey.known[s]] for s, channels in engine.model.scored.items()}
    if not any(wanted.values()):
        raise ValueError("no layer is as fine as a scale at which the model predicts it; nothing can be reconstructed")
    return ReconstructionMaker(
        engine,
        ground_of(survey),
        layers=layer_values(survey, state),
        wanted=wanted,
        views=views_of(args, state, count="hidden"),
        tags=tags,
    )


def make_superresolution(
    args: argparse.Namespace, survey: ReopenedSurvey, engine: Engine, state: dict[str, Any], tags: dict[str, str]
) -> Maker:
    """Layers that are coarser here than where the model learned to predict them."""
    refuse_normalised(engine, args.output)
    scored, shown = engine.model.scored, [c for c in survey.known[1] if c in engine.model.scored[1]]
    wanted = {s: [c for c in scored[s] if c in shown and c not in survey.known[s]] for s in scored}
    if not any(wanted.values()):
        learned = "; ".join(
            f"'{layer.name}' down to {survey.base_resolution / max(s for s in scored if c in scored[s]):g}"
            for c, layer in enumerate(survey.layers)
            if c in scored[1]
        )
        raise ValueError(
            "--output superresolution: every layer here is as fine as the model has ever seen it, and it has no "
            f"prediction for a layer at pixels it was never shown (it learned {learned}, CRS units). Give layers that "
            "are coarser than those of training, or train on a survey where this layer is finer"
        )
    steps = [(c, s, max(k for k in scored if c in survey.known[k] and s % k == 0)) for s in scored for c in wanted[s]]
    maker = FinerMaker(
        engine,
        ground_of(survey),
        layers=layer_values(survey, state),
        wanted=steps,
        views=views_of(args, state, count="visible"),
        tags=tags,
    )
    tiles = spread_tiles(survey, engine, ARTIFICIAL_GAPS)
    maker.shares = dist.on_main(lambda: maker.calibrate(partial(read_unit, survey), tiles))
    for (c, s), share in maker.shares.items():
        info = maker.rasters[maker.name(c, s)]
        maker.rasters[maker.name(c, s)] = replace(info, tags={**info.tags, "share_of_model_detail": f"{share:.3f}"})
        name = survey.layers[c].name
        logger.info("layer '%s' at %dx: %.0f %% of the model's detail is added to interpolation", name, s, 100 * share)
    return maker


def make_gapfill(
    args: argparse.Namespace, survey: ReopenedSurvey, engine: Engine, state: dict[str, Any], tags: dict[str, str]
) -> Maker:
    """Layers on their own grids, gaps filled."""
    refuse_normalised(engine, args.output)
    ground, values, model = ground_of(survey), layer_values(survey, state), engine.model
    finest = {
        c: max(s for s in model.scored if c in model.scored[s] and c in survey.known[s])
        for c in model.scored[1]
        if c in survey.known[1]
    }
    left_out = [layer.name for c, layer in enumerate(survey.layers) if c not in finest]
    if not finest:
        raise ValueError("no layer is as fine as the base pixels at which the model predicts it; nothing can be filled")
    if left_out:
        logger.warning("not filled, because the model does not predict them here: %s", ", ".join(left_out))
    layers = []
    for c, scale in finest.items():
        grid, place, reference = survey.stack.bands[c].grid, survey.stack.placements[c], survey.stack.reference
        layers.append(
            NativeLayer(
                channel=c,
                values=values[c],
                scale=scale,
                left=grid.left,
                top=grid.top,
                resolution_x=grid.resolution_x,
                resolution_y=grid.resolution_y,
                rows=grid.rows,
                cols=grid.cols,
                ratio_yx=(
                    place.ratio_y * ground.base / reference.resolution_y,
                    place.ratio_x * ground.base / reference.resolution_x,
                ),
                offset_yx=(place.offset_y, place.offset_x),
            )
        )
    max_gap = args.max_gap or model.img_size * ground.base / 2
    views = views_of(args, state, count="hidden")
    maker = GapMaker(engine, ground, layers=layers, views=views, max_gap=max_gap, tags=tags)
    logger.info("filling artificial gaps to see how well it goes")
    tiles = spread_tiles(survey, engine, GAP_TRIES)
    maker.fillings = dist.on_main(lambda: maker.calibrate(partial(read_unit, survey), tiles, count=ARTIFICIAL_GAPS))
    for layer in layers:
        filling, name = maker.fillings[layer.channel], f"gapfill_{layer.values.file}"
        facts = {"method": "thin-plate spline and model detail", "share_of_model_detail": f"{filling.share:.3f}"}
        maker.rasters[name] = replace(maker.rasters[name], tags={**maker.rasters[name].tags, **facts})
        logger.info(
            "layer '%s': %.0f %% of the model's detail is added to the spline; error %.4g to %.4g %s, edge to middle",
            layer.values.name,
            100 * filling.share,
            filling.errors[0],
            filling.errors[-1],
            layer.values.unit,
        )
    return maker


OUTPUTS = {
    "embeddings": make_embeddings,
    "reconstruction": make_reconstruction,
    "gapfill": make_gapfill,
    "superresolution": make_superresolution,
}


def read_unit(survey: ReopenedSurvey, unit: Unit) -> Any:
    """The ground of a unit."""
    return survey.read(unit.top, unit.left, unit.bottom, unit.right)


def spread_tiles(survey: ReopenedSurvey, engine: Engine, most: int) -> np.ndarray:
    """(n, 2) origins of some tiles, spread over the survey in no regular order."""
    rows, cols = engine.lattice(ground_of(survey))
    numbers = np.random.default_rng(most).permutation(len(rows) * len(cols))[:most]
    return np.stack([rows[numbers // len(cols)], cols[numbers % len(cols)]], axis=1)


def reader(survey: ReopenedSurvey, engine: Engine) -> SampleOf:
    """Reads single tiles, wherever they lie."""
    size = engine.model.img_size

    def sample(origins: np.ndarray) -> Any:
        top, left = (int(x) for x in origins[0])
        return survey.read(top, left, top + size, left + size).sample(origins, engine.device)

    return sample


def wanted_units(args: argparse.Namespace, survey: ReopenedSurvey, maker: Maker) -> list[Unit]:
    """Squares of ground to compute, those of the area of interest if there is one."""
    units = units_of(*maker.extent(), edge=args.block_size)
    if survey.aoi is None:
        return units
    grid, base = survey.stack.reference, survey.base_resolution
    left, bottom, right, top = survey.aoi.bounds
    found = [
        unit
        for unit in units
        if grid.left + unit.left * base < right
        and grid.left + unit.right * base > left
        and grid.top - unit.top * base > bottom
        and grid.top - unit.bottom * base < top
    ]
    if not found:
        raise ValueError(f"--aoi {args.aoi}: its polygons do not touch the layers' ground; check its coordinates")
    return found


def final_names(job: Job) -> list[str]:
    """Names of the rasters that will be written."""
    names = list(job.maker.rasters)
    if job.args.output == "embeddings":
        names += ["embeddings_pca"] + ["embeddings_clusters"] * bool(job.args.clusters)
    return names


def begin_or_resume(job: Job, tags: dict[str, str]) -> None:
    """Refuses to replace results unasked, and makes room for parts.

    Raises:
        ValueError: a result exists, or parts are of another job.
    """
    args = job.args
    existing = [
        job.output_dir / f"{name}.tif" for name in final_names(job) if (job.output_dir / f"{name}.tif").exists()
    ]
    resumes = args.resume and job.parts.folder.exists()
    if existing and not args.overwrite and not resumes:
        raise ValueError(f"{existing[0]} exists; give --overwrite to replace it, or another --output_dir")
    kept = (
        "pool",
        "stride",
        "positions",
        "dtype",
        "draws",
        "mask_ratio",
        "max_gap",
        "overlap",
        "seed",
        "block_size",
        "aoi",
        "amp",
    )
    facts = {key: getattr(args, key) for key in kept}
    files = [[layer.name, layer.path, layer.band] for layer in job.survey.layers]
    job.parts.open({**tags, **facts, "files": files, "ground": list(job.survey.shape)}, resume=args.resume)
    done = sum(job.parts.is_done(unit.row, unit.col) for unit in job.units)
    if done:
        logger.info("%d of %d squares were done before", done, len(job.units))


# ------------------------------------------------------------------------------------------------------------ the loop


def compute(job: Job, stop: Stop) -> bool:
    """Makes this rank's squares, those of some rows of squares.

    Returns:
        False if a signal stopped it; what is done is kept.

    Raises:
        OSError: a raster could not be read, or a part not written.
    """
    args, ranks, survey, maker = job.args, job.ranks, job.survey, job.maker
    mine = [unit for unit in my_rows(job.units, ranks) if not job.parts.is_done(unit.row, unit.col)]

    def read(unit: Unit) -> Any:
        return read_unit(survey, unit.grown(maker.reach))

    bar = progress(total=len(mine), desc=args.output, unit="square", enabled=ranks.is_main and not args.no_progress)
    job.engine.meter.restart()
    for unit, window in prefetch(mine, read, workers=args.num_workers, ahead=1):
        arrays = {
            name: (info, masked(pixels, info, row, col, survey), row, col)
            for name, (info, pixels, row, col) in maker.make(unit, window).items()
        }
        job.parts.write(unit.row, unit.col, arrays)
        bar.update(1)
        if stop.signal is not None:
            break
    bar.close()
    log_speed(job, rank=ranks.rank)
    if dist.any_rank(stop.signal is not None):
        logger.warning("stopped by a signal; what is done is kept: go on with --resume")
        return False
    return True


def my_rows(units: Sequence[Unit], ranks: dist.Ranks) -> list[Unit]:
    """The units of this rank: those of neighbouring rows."""
    rows = sorted({unit.row for unit in units})
    mine = set(np.array_split(np.array(rows), ranks.world_size)[ranks.rank].tolist())
    return [unit for unit in units if unit.row in mine]


def masked(pixels: np.ndarray, info: RasterInfo, row: int, col: int, survey: ReopenedSurvey) -> np.ndarray:
    """The same pixels, NaN outside the area of interest."""
    if survey.aoi is None:
        return pixels
    inside = survey.inside(info.window_transform(row, col), *pixels.shape[1:])
    return np.where(inside, pixels, np.nan).astype(pixels.dtype)


def log_speed(job: Job, *, rank: int) -> None:
    """Says how fast it went."""
    meter = job.engine.meter
    elapsed = max(meter.elapsed(), 1e-9)
    logger.info(
        "rank %d: %d tile views in %.1f s, %.1f a second; %.0f %% of the time outside the network; "
        "peak memory %.0f MiB",
        rank,
        meter.tiles,
        elapsed,
        meter.tiles / elapsed,
        100 * (1 - meter.network_s / elapsed),
        peak_memory_bytes(job.engine.device) / 2**20,
    )


# ------------------------------------------------------------------------------------------------------------- the end


def finish(job: Job) -> None:
    """Joins the parts into files under their final names, and draws them; in the main process."""
    derived = Parts(job.parts.folder / "derived")
    rasters = {name: (info, job.parts) for name, info in job.maker.rasters.items()}
    if job.args.output == "embeddings":
        looks = look_into_embeddings(
            job.maker.rasters["embeddings"],
            job.parts.of("embeddings"),
            derived,
            clusters=job.args.clusters,
            seed=job.args.seed,
        )
        rasters |= {name: (info, derived) for name, info in looks.items()}
    for name, (info, parts) in rasters.items():
        path = job.output_dir / f"{name}.tif"
        found = parts.of(name)
        if not found:
            raise ValueError(f"{path}: no valid pixel in it, so it is not written; check the layers and --aoi")
        join(path, info, found)
        logger.info("raster   %s", path)
    crs = job.survey.stack.reference.crs
    unit = "degree" if crs.is_geographic else "m" if crs.linear_units.startswith("met") else crs.linear_units
    for name, (info, _) in rasters.items():
        if name != "embeddings":
            logger.info("picture  %s", draw_raster(job.output_dir / f"{name}.tif", info, length_unit=unit))
    job.parts.remove()


if __name__ == "__main__":
    sys.exit(main())
