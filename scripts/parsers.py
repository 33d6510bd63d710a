"""The parsers of the scripts that users run, without torch, so that --help and wrong flags are answered at once."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from util.options import common as options
from util.options.parser import Parser

ROOT = Path(__file__).resolve().parents[1]


def duration(text: str) -> float:
    """Seconds of a duration such as 90s, 30m, 2h or 1.5d."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip().lower())
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a duration such as 90s, 30m, 2h or 1.5d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def describe_grids_parser(
    doc: str, *, mask_shapes: Sequence[str], scale_heads: Sequence[str], stems: Sequence[str]
) -> Parser:
    """The options of scripts.describe_grids, whose docstring is `doc`."""
    parser = Parser("describe_grids", usage="describe_grids [options]", description=doc.split("\n\n")[0])
    options.add_data_options(parser)
    options.add_model_options(parser, mask_shapes=mask_shapes, scale_heads=scale_heads, stems=stems)
    parser.add_argument(
        "--suggest",
        action="store_true",
        help="propose sizes of pixel, tile and patch, held-out ground and epochs that suit the survey, with the "
        "reasons and the command",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a page to read")
    return parser


def worth_it_parser(doc: str, *, tasks: Sequence[str]) -> Parser:
    """The options of scripts.worth_it, whose docstring is `doc`."""
    parser = Parser("worth_it", description=doc.split("\n\n")[0])
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", help="directory of rasters (the sample survey)")
    data.add_argument("--train_path", help="layers.csv that names them instead")
    data.add_argument("--labels", help="raster or vector file; needed with --data_dir or --train_path")
    data.add_argument("--task", default=tasks[0], choices=tasks)
    data.add_argument("--label_column", help="column of classes or values, where labels are vectors or a CSV")
    data.add_argument("--label_band", type=options.positive_int, default=1, help="band, where labels are a raster (1)")
    _add_study_options(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", default="./worth_it", help="everything goes there (./worth_it)")
    run.add_argument(
        "--plan",
        action="store_true",
        help="print experiments and their cost after trials, an epoch of each arm: minutes",
    )
    run.add_argument("--report_only", action="store_true", help="write the report again, from results.csv")
    run.add_argument(
        "--together",
        nargs="+",
        metavar="DIR",
        help="draw score against cost of several studies into --output_dir, a column for each of these folders; run "
        "nothing",
    )
    run.add_argument("--devices", nargs="+", help="such as cuda:0 cuda:1 (every GPU; without one, the CPU)")
    run.add_argument(
        "--jobs", type=options.positive_int, help="programs at a time on each GPU (1), or on the CPU (cores)"
    )
    run.add_argument("--amp", default="auto", choices=["auto", "fp16", "bf16", "off"], help="mixed precision (auto)")
    run.add_argument("--title", default="", help="heading of the report")
    run.add_argument("--no_progress", action="store_true", help="no progress bar")
    return parser


def _add_study_options(parser: Parser) -> None:
    """What a study compares, on which labels and for how long."""
    study = parser.add_argument_group("study")
    study.add_argument("--budget", type=duration, default="2h", metavar="TIME", help="such as 90m or 2h (2h)")
    study.add_argument("--arms", default=str(ROOT / "study/arms.csv"), help="table of arms (study/arms.csv)")
    study.add_argument("--only_arms", nargs="+", default=[], metavar="ARM", help="these arms alone (all)")
    study.add_argument(
        "--label_fractions", type=float, nargs="+", default=[0.01, 0.1, 1.0], help="shares of the labels (0.01 0.1 1)"
    )
    study.add_argument(
        "--label_blocks",
        type=options.positive_int,
        nargs="+",
        default=[],
        metavar="N",
        help="besides them, labels of so many whole blocks in each fold (none)",
    )
    study.add_argument("--seeds", type=options.positive_int, help="seeds (3, more if the budget allows)")
    study.add_argument("--folds", type=options.positive_int, default=3, help="block folds (3)")
    study.add_argument("--only_folds", type=options.count, nargs="+", metavar="K", help="run only these folds (all)")
    study.add_argument(
        "--pretrain_epochs", type=options.positive_int, default=60, help="longest, epochs of 1,024 tiles (60)"
    )
    study.add_argument(
        "--finetune_epochs", type=options.positive_int, default=30, help="longest, epochs of 256 windows (30)"
    )
    study.add_argument(
        "--patience",
        type=options.count,
        default=0,
        metavar="N",
        help="epochs without a better score on validation blocks after which a fit ends, --finetune_epochs at most; 0: "
        "all fits have the planned length (0)",
    )
    study.add_argument("--model", default="tiny", help="tiny, small, base or large (tiny)")
    study.add_argument("--input_size", type=options.positive_int, default=48, help="tile edge, base pixels (48)")
    study.add_argument(
        "--base_resolution",
        type=options.positive,
        help="edge of a base pixel, CRS units (finest resolution x largest scale of any arm)",
    )
    study.add_argument("--patch_size", type=options.positive_int, default=8, help="base pixels (8)")
    study.add_argument("--pretrain_flags", default="", metavar="'FLAGS'", help="further flags of every pre-training")
    study.add_argument("--finetune_flags", default="", metavar="'FLAGS'", help="further flags of every fine-tuning")


def layer_report_parser(doc: str) -> Parser:
    """The options of scripts.layer_report, whose docstring is `doc`."""
    parser = Parser("layer_report", description=doc.split("\n\n")[0])
    parser.add_argument("--checkpoint", required=True, help="checkpoint of main_pretrain")
    parser.add_argument("--output_dir", default="./layer_report", help="where to write (./layer_report)")
    parser.add_argument("--train_path", help="layers.csv with the layers of training (as in training)")
    parser.add_argument("--val_tiles", type=options.positive_int, default=64, help="most held-out tiles (64)")
    parser.add_argument("--batch_size", type=options.positive_int, default=16, help="tiles per forward pass (16)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    return parser


def known_labels_parser(doc: str) -> Parser:
    """The options of scripts.known_labels, whose docstring is `doc`."""
    parser = Parser("known_labels", description=doc.split("\n\n")[0])
    parser.add_argument("--fold", type=options.count, required=True, help="number of the fold, from 0")
    parser.add_argument("--output", required=True, metavar="FILE", help="GeoTIFF to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--finetuning",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="FLAGS",
        help="last: the flags of main_finetune, which decide layers, labels and folds",
    )
    return parser


def make_sample_survey_parser(doc: str) -> Parser:
    """The options of scripts.make_sample_survey, whose docstring is `doc`."""
    parser = Parser("make_sample_survey", description=doc)
    parser.add_argument("--output_dir", default="sample_survey", help="directory to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rocks (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=2048, help="rows of 100 m, even (default: %(default)s)")
    parser.add_argument("--cols", type=int, default=2048, help="columns of 100 m, even (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing sample survey in that directory")
    return parser


def export_parser(doc: str) -> Parser:
    """The options of scripts.export, whose docstring is `doc`."""
    parser = Parser("export", description=doc.split("\n\n")[0])
    parser.add_argument(
        "--checkpoint", required=True, help="checkpoint of main_pretrain or main_finetune, or its folder"
    )
    parser.add_argument(
        "--format",
        default="torch",
        choices=["torch", "safetensors", "onnx"],
        help="torch: a smaller checkpoint; safetensors: weights and facts; onnx: for programs without torch (torch)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="file to write; its model card FILE.md goes beside it (model.pth, .safetensors, .onnx)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file and its card")
    parser.add_argument("--licence", default="", help="licence of the weights, for the model card (not stated)")
    graph = parser.add_argument_group("onnx")
    graph.add_argument(
        "--part",
        choices=["encoder", "predictions"],
        help="what the graph computes: tokens, or classes and values (predictions if fine-tuned, else encoder)",
    )
    graph.add_argument(
        "--inputs",
        default="model",
        choices=["model", "raster"],
        help="model: images, validity and native pixels in model units; raster: one raster with a band for each layer, "
        "in physical units (model)",
    )
    graph.add_argument(
        "--raster_scale",
        type=options.positive_int,
        help="with raster: its pixels along the edge of a base pixel (the fewest that hold every scale of the model)",
    )
    graph.add_argument("--nodata", type=float, help="with raster: value that means no data, besides NaN (none)")
    return parser
