"""Command-line options that several programs share, so that each accepts and refuses the same."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import fields
from typing import Any, TypeVar, cast

T = TypeVar("T")

MODEL_NAMES = ("tiny", "small", "base", "large")
SCENE_TYPES = ("sentinel", "rgb", "euro_sat")
"""Data sets of separate images: values of --dataset_type that `scene_options` goes with."""

GROUND_ONLY = tuple(
    "data_dir data_path layer_dim crs target_layers extent transform reproject aoi cache base_resolution tile_overlap "
    "min_valid val_block val_buffer".split()
)
"""Options that mean something on continuous ground only, or for layers of a table."""


def _number(convert: Callable[[str], float], accept: Callable[[float], bool], expected: str) -> Callable[[str], Any]:
    """Returns a parser of numbers whose errors say what was expected."""

    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = float("nan")
        if not accept(value):
            raise argparse.ArgumentTypeError(f"{text}: expected {expected}")
        return value

    return parse


class _NotGiven(list):
    """Stands for the value of an option that is not on the command line; a list, which options may be appended to."""


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, frozenset[str]]:
    """Parses a command line; returns the options, and the names of those that it gives, be it with their default."""
    args, missing = parser.parse_args(argv), _NotGiven()
    nothing = argparse.Namespace(**dict.fromkeys(vars(args), missing))
    found = vars(parser.parse_args(argv, nothing))
    return args, frozenset(name for name, value in found.items() if value is not missing)


positive_int = _number(int, lambda value: value >= 1, "a whole number of at least 1")
count = _number(int, lambda value: value >= 0, "a whole number of at least 0")
fraction = _number(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")
share = _number(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
positive = _number(float, lambda value: 0 < value < math.inf, "a number above 0")
non_negative = _number(float, lambda value: 0 <= value < math.inf, "a number of at least 0")


BASE_STEM, DEFAULT_STEM = "base", "native"
"""Values of --stem: the encoder of SatMAE++, which sees base pixels alone; and the default."""

DEFAULT_BATCH_SIZE = 32
"""Samples per step and process without --batch_size, and of --batch_size auto without --effective_batch."""


def batch_size(text: str) -> int | str:
    """Parses a number of samples, or `auto`."""
    if text == "auto":
        return text
    try:
        return int(positive_int(text))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or auto") from error


def add_batch_options(parser: argparse._ArgumentGroup, *, what: str) -> None:
    """Adds the options for the number of samples in a step and in an update.

    Args:
        parser: group to add them to.
        what: name of the samples in the help, such as "tiles".
    """
    parser.add_argument(
        "--batch_size",
        type=batch_size,
        default=DEFAULT_BATCH_SIZE,
        metavar="N",
        help=f"{what} per step and process; auto: the most that fit into memory ({DEFAULT_BATCH_SIZE})",
    )
    parser.add_argument(
        "--effective_batch",
        type=positive_int,
        metavar="N",
        help=f"{what} per update over all steps and processes; sets --accum_iter (batch_size x accum_iter x "
        f"processes; with auto {DEFAULT_BATCH_SIZE} x accum_iter x processes)",
    )


def pair(text: str) -> list[str]:
    """Parses NAME=VALUE."""
    name, sign, value = text.rpartition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{text}: expected a name and a value, such as magnetics=asinh")
    return [name, value]


def shape(text: str) -> list[Any]:
    """Parses NAME or NAME=FRACTION."""
    name, sign, value = text.partition("=")
    return [name, non_negative(value) if sign else None]


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the data: layers, reference grid, tiles, held-out ground."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset_type",
        default="grid",
        choices=["grid", "xarray", *SCENE_TYPES],
        help="grid = rasters on disk; xarray = zarr stores, netCDF files and the like (--data_path); sentinel, rgb, "
        "euro_sat = images of fMoW-Sentinel, fMoW-RGB, EuroSAT (grid)",
    )
    data.add_argument("--data_dir", help="directory of rasters; each band is a layer, in the order of file names")
    data.add_argument(
        "--data_path",
        nargs="+",
        metavar="STORE",
        help="xarray: zarr stores, netCDF files or URLs, each variable a layer; STORE#VARIABLE takes one of them",
    )
    data.add_argument("--layer_dim", help="xarray: third dimension of variables whose elements are layers")
    data.add_argument("--crs", help="xarray: CRS of stores without one, such as EPSG:28354")
    data.add_argument(
        "--train_path",
        help="layers.csv, one row per layer, see docs/data.md; or the table of a scene data set, see docs/scenes.md "
        "(without this and --data_dir: the sample survey)",
    )
    data.add_argument(
        "--test_path",
        help="layers.csv of another survey with the same layers, or another table of images, to score instead of the "
        "held-out tiles",
    )
    _add_layer_options(data)
    data.add_argument(
        "--extent",
        default="union",
        choices=["union", "intersection"],
        help="area to use: the union or the intersection of all layers (union)",
    )
    data.add_argument(
        "--transform",
        type=pair,
        nargs="+",
        metavar="LAYER=KIND",
        help="transform of a layer's values before normalising: none, log, asinh or quantile (as in layers.csv)",
    )
    data.add_argument("--reproject", action="store_true", help="warp layers on the fly to the CRS of the first layer")
    data.add_argument("--aoi", help="vector file of polygons; pixels outside count as nodata")
    data.add_argument(
        "--cache",
        default="auto",
        choices=["auto", "ram", "none", "device"],
        help="ram: decode all layers once; none: read windows; auto: ram if the layers take at most a quarter "
        "of memory; device: hold layers, averaged to every scale, on the device of the model (auto)",
    )
    _add_tile_options(parser)


def _add_layer_options(data: argparse._ArgumentGroup) -> None:
    data.add_argument(
        "--dropped_bands",
        type=count,
        nargs="*",
        metavar="N",
        help="numbers of layers to leave out (none; 0 9 10 for sentinel and euro_sat)",
    )
    data.add_argument(
        "--masked_bands",
        type=count,
        nargs="+",
        default=[],
        metavar="N",
        help="numbers of layers, after dropping, that the model sees as nodata (none)",
    )
    data.add_argument(
        "--target_layers",
        nargs="+",
        metavar="LAYER",
        help="names of layers that the model predicts from the others and never sees, such as a geology map (none)",
    )
    data.add_argument(
        "--grouped_bands",
        type=count,
        nargs="+",
        action="append",
        metavar="N",
        help="layer numbers, after dropping, of one channel group; repeat the flag for each group (by resolution)",
    )


def _add_tile_options(parser: argparse.ArgumentParser) -> None:
    tiles = parser.add_argument_group("tiles")
    tiles.add_argument("--input_size", type=positive_int, default=48, help="edge of a tile, base-scale pixels (48)")
    tiles.add_argument("--scales", type=positive_int, nargs="+", default=[1, 2, 4], help="reconstructed scales (1 2 4)")
    tiles.add_argument(
        "--base_resolution",
        type=positive,
        help="size of a base-scale pixel, CRS units (finest resolution x largest scale)",
    )
    tiles.add_argument(
        "--tile_overlap",
        type=fraction,
        default=0.75,
        help="overlap of neighbouring training tiles, fraction of a tile (0.75)",
    )
    tiles.add_argument(
        "--min_valid", type=share, default=0.5, help="smallest valid fraction of a tile, averaged over layers (0.5)"
    )
    tiles.add_argument(
        "--val_fraction", type=fraction, default=0.1, help="fraction of valid ground held out; 0: score nothing (0.1)"
    )
    tiles.add_argument("--val_block", type=count, default=0, help="edge of a held-out block, tiles; 0: automatic (0)")
    tiles.add_argument(
        "--val_buffer",
        type=count,
        default=8,
        help="distance between training tiles and held-out blocks, base-scale pixels (8)",
    )
    tiles.add_argument("--seed", type=count, default=0, help="seed of tiles, masks, weights and held-out blocks (0)")


def add_model_options(
    parser: argparse.ArgumentParser,
    *,
    mask_shapes: Iterable[str] = (),
    scale_heads: Sequence[str] | None = None,
    stems: Sequence[str] | None = None,
) -> None:
    """Adds the options of the network, its masks and the batch size.

    Args:
        parser: where to add them.
        mask_shapes: names accepted by --mask_shape.
        scale_heads: choices of --scale_heads; None accepts any name.
        stems: likewise of --stem.
    """
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_type",
        default="group_c",
        choices=["group_c", "vanilla"],
        help="group_c: separate tokens per channel group; vanilla: one group of all layers (group_c)",
    )
    model.add_argument(
        "--model",
        default="mae_vit_tiny_patch16",
        choices=[f"mae_vit_{name}_patch16" for name in MODEL_NAMES] + list(MODEL_NAMES),
        metavar="NAME",
        help="mae_vit_{tiny,small,base,large}_patch16 (tiny); the patch size is --patch_size",
    )
    model.add_argument("--patch_size", type=positive_int, default=8, help="edge of a patch, base-scale pixels (8)")
    model.add_argument(
        "--stem",
        default=DEFAULT_STEM,
        choices=stems,
        help="native: tokens see every layer at its native pixels; base: base pixels alone, as in SatMAE++; tokens, "
        f"head: parts of native, to compare ({DEFAULT_STEM})",
    )
    model.add_argument(
        "--mask_ratio", type=fraction, default=0.75, help="fraction of the tokens with valid pixels masked (0.75)"
    )
    model.add_argument("--spatial_mask", action="store_true", help="mask the same locations in all channel groups")
    model.add_argument(
        "--mask_shape",
        type=shape,
        nargs="+",
        metavar="SHAPE[=FRACTION]",
        help=f"mask shapes, each with its fraction of the tiles: {', '.join(mask_shapes)} (random)",
    )
    model.add_argument(
        "--layer_dropout", type=fraction, default=0.0, help="probability of leaving a layer out of a training tile (0)"
    )
    model.add_argument("--norm_pix_loss", action="store_true", help="normalise base-scale targets per patch")
    model.add_argument(
        "--scale_heads",
        default="subpixel",
        choices=scale_heads,
        help="heads of finer scales: subpixel (light) or shared (published convolutions) (subpixel)",
    )
    model.add_argument(
        "--grad_checkpointing", action="store_true", help="recompute blocks in the backward pass to save memory"
    )
    add_batch_options(model, what="tiles")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the optimiser, the schedule and the losses."""
    train = parser.add_argument_group("training")
    train.add_argument("--epochs", type=positive_int, default=50, help="total number of epochs (50)")
    train.add_argument(
        "--accum_iter", type=positive_int, default=1, help="steps per update, whose gradients are added (1)"
    )
    train.add_argument("--tiles_per_epoch", type=positive_int, help="tiles per epoch (each training tile once)")
    train.add_argument("--lr", type=positive, help="peak learning rate (1e-3, or from --blr)")
    train.add_argument("--blr", type=positive, help="peak learning rate per 256 tiles: blr x effective batch / 256")
    train.add_argument("--min_lr", type=non_negative, default=0.0, help="final learning rate (0)")
    train.add_argument("--warmup_epochs", type=non_negative, default=3, help="epochs of linear warm-up (3)")
    train.add_argument("--weight_decay", type=non_negative, default=0.05, help="AdamW weight decay (0.05)")
    train.add_argument(
        "--clip_grad", type=positive, default=1.0, help="largest gradient norm; larger gradients are scaled down (1)"
    )
    train.add_argument("--base_loss_weight", type=non_negative, default=0.6, help="weight of the base-scale loss (0.6)")
    train.add_argument(
        "--scale_loss_weight", type=non_negative, default=0.4, help="weight of the loss at finer scales (0.4)"
    )
    train.add_argument(
        "--texture_weight",
        type=non_negative,
        default=0.0,
        help="weight of a third loss: also predict how rough hidden patches are, by direction and distance, from the "
        "finest pixels of each layer of values; not of classes and angles; 0: without (0)",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of device, reading, records and processes."""
    run = parser.add_argument_group("run")
    run.add_argument(
        "--output_dir", default="./output_dir", help="folder for checkpoints, log and pictures (./output_dir)"
    )
    run.add_argument("--log_dir", help="folder for TensorBoard events (output_dir)")
    run.add_argument(
        "--resume",
        default="",
        help="checkpoint to resume from: a path, or auto for the newest intact one in output_dir (new run)",
    )
    run.add_argument("--start_epoch", type=count, default=0, help="epochs that count as done at the start (0)")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (auto)")
    run.add_argument("--amp", default="auto", choices=["auto", "fp16", "bf16", "off"], help="mixed precision (auto)")
    run.add_argument("--compile", action="store_true", help="compile the model with torch.compile; pays off on a GPU")
    run.add_argument("--num_workers", type=count, default=2, help="threads that read ahead (2)")
    run.add_argument(
        "--pin_mem",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="copy batches to a GPU from page-locked memory (on)",
    )
    run.add_argument("--log_every", type=positive_int, default=20, help="updates between log lines (20)")
    run.add_argument("--figure_every", type=count, default=5, help="epochs between pictures; 0: only at the end (5)")
    run.add_argument(
        "--val_tiles", type=positive_int, default=256, help="largest number of held-out tiles to score (256)"
    )
    run.add_argument(
        "--keep_every", type=positive_int, default=10, help="epochs between checkpoints that are kept (10)"
    )
    run.add_argument(
        "--save_minutes",
        type=positive,
        default=10.0,
        help="time between checkpoints within an epoch, minutes (10)",
    )
    run.add_argument("--no_progress", action="store_true", help="hide the progress bar")
    run.add_argument("--world_size", type=positive_int, default=1, help="number of processes; torchrun sets it (1)")
    run.add_argument(
        "--local_rank",
        "--local-rank",
        type=int,
        default=-1,
        help="number of this process on its machine; launchers set it (-1)",
    )
    run.add_argument("--dist_url", default="env://", help="address where the processes meet (env://)")


def tiles_per_update(args: argparse.Namespace, *, world_size: int = 1) -> int:
    """Tiles in an update over all processes, as far as the options say."""
    size = DEFAULT_BATCH_SIZE if args.batch_size == "auto" else args.batch_size
    steps = getattr(args, "accum_iter", 1)
    return int(args.effective_batch or size * steps * world_size)


def chosen(args: argparse.Namespace, given: Iterable[str]) -> dict[str, Any]:
    """The options that the command line gives, by name."""
    return {name: getattr(args, name) for name in given}


def replaced(args: argparse.Namespace, **values: Any) -> argparse.Namespace:
    """Returns a copy of parsed options with other values for some of them."""
    return argparse.Namespace(**{**vars(args), **values})


def fill(kind: type[T], args: argparse.Namespace) -> T:
    """Returns a dataclass whose fields have the names of options, with the values of these."""
    return kind(**{field.name: getattr(args, field.name) for field in fields(cast(Any, kind))})


def process_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `util.processes.program.run_program` that the options give."""
    return {key: getattr(args, key) for key in ("device", "world_size", "local_rank", "dist_url")}


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `datasets.pretraining.pretrain_data.open_source`: `scene_options` or `survey_options`.

    Raises:
        ValueError: options that do not fit together.
    """
    return scene_options(args) if args.dataset_type in SCENE_TYPES else survey_options(args)


def survey_options(args: argparse.Namespace, given: Collection[str] | None = None) -> dict[str, Any]:
    """The fields of `datasets.survey.open_survey.SurveySettings` that the options name, checked for consistency.

    Args:
        args: the options.
        given: names of those that the command line gives, where others are still to be suggested: sizes of tile and
            patch must then fit together only if both are given. None: all options are as they will be.

    Raises:
        ValueError: if sizes, scales or patches do not fit together, or the data are images that lie on no ground.
    """
    if args.dataset_type in SCENE_TYPES:
        raise ValueError(f"--dataset_type {args.dataset_type} is no survey of layers; expected grid")
    is_decided = given is None or {"input_size", "patch_size"} <= set(given)
    patch_size = args.patch_size if is_decided else args.input_size
    check_sizes(input_size=args.input_size, patch_size=patch_size, scales=args.scales)
    return {
        "data_dir": args.data_dir,
        "layers_table": args.train_path,
        **array_options(args),
        "dropped_bands": args.dropped_bands or [],
        "masked_bands": args.masked_bands,
        "target_layers": args.target_layers or [],
        "grouped_bands": args.grouped_bands,
        "one_group": args.model_type == "vanilla",
        "input_size": args.input_size,
        "scales": args.scales,
        "base_resolution": args.base_resolution,
        "extent": args.extent,
        "transforms": {name: value for name, value in args.transform or ()},
        "reproject": args.reproject,
        "aoi": args.aoi,
        "min_valid": args.min_valid,
        "tile_overlap": args.tile_overlap,
        "val_fraction": args.val_fraction,
        "val_block": args.val_block,
        "val_buffer": args.val_buffer,
        "seed": args.seed,
        "cache": args.cache,
        "native": args.stem != BASE_STEM,
    }


def array_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of sources that xarray opens, for `open_survey`.

    Raises:
        ValueError: if the flags do not fit together.
    """
    if args.dataset_type == "xarray" and not args.data_path and not args.train_path:
        raise ValueError("--dataset_type xarray: no --data_path; give a zarr store, a netCDF file or several of them")
    given = [flag for flag in ("data_path", "layer_dim", "crs") if getattr(args, flag)]
    if args.dataset_type != "xarray" and given:
        raise ValueError(f"--{given[0]} is for --dataset_type xarray, not {args.dataset_type}; add it")
    return {"data_path": args.data_path, "layer_dim": args.layer_dim, "crs": args.crs}


def scene_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `datasets.scenes.open_scenes` that the options name, checked for consistency.

    With --test_path nothing else is held out.

    Raises:
        ValueError: no --train_path, options that only mean something on ground, or sizes that do not fit together.
    """
    check_sizes(input_size=args.input_size, patch_size=args.patch_size, scales=args.scales)
    parser = argparse.ArgumentParser()
    add_data_options(parser)
    given = [name for name in GROUND_ONLY if getattr(args, name) != parser.get_default(name)]
    if given:
        raise ValueError(
            f"--{given[0]} does not go with --dataset_type {args.dataset_type}: its images lie on no common ground; "
            "leave it out"
        )
    if args.train_path is None:
        raise ValueError(
            f"--dataset_type {args.dataset_type} needs --train_path, the table of its images; see docs/scenes.md"
        )
    return {
        "dataset_type": args.dataset_type,
        "train_path": args.train_path,
        "dropped_bands": args.dropped_bands,
        "masked_bands": args.masked_bands,
        "grouped_bands": args.grouped_bands,
        "one_group": args.model_type == "vanilla",
        "input_size": args.input_size,
        "scales": args.scales,
        "val_fraction": 0.0 if args.test_path else args.val_fraction,
        "seed": args.seed,
        "native": args.stem != BASE_STEM,
    }


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `build_model` that the options name; a survey names the others."""
    return {
        "img_size": args.input_size,
        "patch_size": args.patch_size,
        "spatial_mask": args.spatial_mask,
        "norm_pix_loss": args.norm_pix_loss,
        "scale_heads": args.scale_heads,
        "stem": args.stem,
        "grad_checkpointing": args.grad_checkpointing,
    }


def check_sizes(*, input_size: int, patch_size: int, scales: Sequence[int]) -> None:
    """Refuses sizes that do not fit together.

    Raises:
        ValueError: naming the flag, its value, and what would fit.
    """
    if input_size % patch_size:
        below = input_size // patch_size * patch_size
        fits = f"{below} or {below + patch_size}" if below else str(patch_size)
        raise ValueError(f"--input_size {input_size} is not a multiple of --patch_size {patch_size}; {fits} would be")
    if 1 not in scales or len(set(scales)) != len(scales):
        raise ValueError(f"--scales {' '.join(map(str, scales))}: expected distinct whole numbers with 1 among them")
