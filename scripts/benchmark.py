"""Benchmarks: each subcommand prints a table, or one JSON object.

python -m scripts.benchmark loader      tiles a second from memory and from files
python -m scripts.benchmark step        a training step, compared with the published recipe
python -m scripts.benchmark numerics    effect of each switch of a step on the loss
python -m scripts.benchmark heads       FLOPs of the cross-scale heads
python -m scripts.benchmark scale       opening and reading rasters of 4,000 and of 100,000 pixels along an edge
python -m scripts.benchmark scaling     time and cost on 1, 8 and 64 GPUs, estimated, not measured
python -m scripts.benchmark inference   mapping a raster, compared with the encoder alone
python -m scripts.benchmark memory      peak memory of training, predicted and measured
python -m scripts.benchmark scenes      reading images for --dataset_type rgb and sentinel, compared with OpenCV
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from models_mae_group_channels import MODEL_SIZES, SCALE_HEADS, STEMS
from scripts.benchmarks import gpu_scaling as bench_scaling
from scripts.benchmarks import inference as bench_inference
from scripts.benchmarks import loader as bench_loader
from scripts.benchmarks import memory as bench_memory
from scripts.benchmarks import raster_size as bench_scale
from scripts.benchmarks import scenes as bench_scenes
from scripts.benchmarks import step as bench_step
from scripts.benchmarks.common import table
from util.options.common import positive_int
from util.options.parser import Parser


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = Parser("benchmark", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_loader(commands.add_parser("loader", help="tiles a second, from memory and from files"))
    _add_step(commands.add_parser("step", help="forward, backward and update of a batch, by recipe"))
    _add_numerics(commands.add_parser("numerics", help="effect of each switch on the loss"))
    _add_heads(commands.add_parser("heads", help="fraction of forward FLOPs in the cross-scale heads"))
    _add_scale(commands.add_parser("scale", help="time and memory until the first batch, by size of raster"))
    bench_scaling.add_options(commands.add_parser("scaling", help="time and cost on many GPUs, estimated"))
    _add_inference(commands.add_parser("inference", help="mapping a raster, compared with the encoder alone"))
    _add_memory(commands.add_parser("memory", help="peak memory, predicted and measured"))
    bench_scenes.add_options(commands.add_parser("scenes", help="reading and resizing separate images"))
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        command.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = torch's choice (0)")
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    return get_args_parser().parse_args(argv)


def _add_loader(command: argparse.ArgumentParser) -> None:
    command.add_argument("--size", type=positive_int, default=4000, help="edge of the raster, 100 m pixels (4000)")
    command.add_argument("--input_size", type=positive_int, default=96, help="tile edge, base pixels of 400 m (96)")
    command.add_argument("--tiles", type=positive_int, default=256, help="tiles in a run (256)")
    command.add_argument("--batch_size", type=positive_int, default=32, help="tiles a batch (32)")
    command.add_argument("--workers", type=positive_int, nargs="*", default=[1, 2], help="reading threads (1 2)")
    command.add_argument("--repeats", type=positive_int, default=5, help="timed runs of each way (5)")
    command.add_argument("--device", choices=("cpu", "cuda"), help="also put tiles onto this device (none)")


def _add_shape(command: argparse.ArgumentParser, *, input_size: int) -> None:
    command.add_argument("--input_size", type=positive_int, default=input_size, help=f"base pixels ({input_size})")
    command.add_argument("--patch_size", type=positive_int, default=8, help="base pixels (8)")


def _add_step(command: argparse.ArgumentParser) -> None:
    _add_shape(command, input_size=96)
    command.add_argument("--models", nargs="+", default=["tiny"], help=f"out of {', '.join(MODEL_SIZES)} (tiny)")
    command.add_argument(
        "--recipes",
        "--recipe",
        nargs="+",
        default=["ours", "published"],
        choices=list(bench_step.COMPARED),
        help="(ours published)",
    )
    command.add_argument("--layers", type=positive_int, default=2, help="number of layers (2)")
    command.add_argument("--groups", type=positive_int, default=2, help="number of channel groups (2)")
    command.add_argument("--batch_size", type=positive_int, default=8, help="tiles a step (8)")
    command.add_argument("--repeats", type=positive_int, default=5, help="timed steps of each (5)")
    command.add_argument("--warmup", type=int, default=1, help="steps of each before (1)")
    command.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    command.add_argument("--amp", choices=("off", "fp16", "bf16"), default="off", help="autocast (off)")
    command.add_argument(
        "--ways", nargs="+", choices=bench_step.WAYS, default=["eager"], help="how a step is computed (eager)"
    )
    command.add_argument("--profile", action="store_true", help="count kernels also on a CPU, as is done on a GPU")
    command.add_argument(
        "--matmul_edge", type=positive_int, default=2048, help="matrices that measure the ceiling (2048)"
    )


def _add_numerics(command: argparse.ArgumentParser) -> None:
    _add_shape(command, input_size=32)
    command.add_argument("--model", default="tiny", help="(tiny)")
    on_any_device = [*bench_step.RECIPES, "checkpointing", "bf16"]
    command.add_argument(
        "--recipes",
        nargs="+",
        default=on_any_device,
        choices=list(bench_step.SWITCHES),
        help="(all but fp16, compiled)",
    )
    command.add_argument("--layers", type=positive_int, default=2, help="number of layers (2)")
    command.add_argument("--groups", type=positive_int, default=2, help="number of channel groups (2)")
    command.add_argument("--batch_size", type=positive_int, default=4, help="tiles a step (4)")
    command.add_argument("--steps", type=positive_int, default=200, help="(200)")
    command.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")


def _add_heads(command: argparse.ArgumentParser) -> None:
    _add_shape(command, input_size=96)
    command.add_argument("--models", nargs="+", default=list(MODEL_SIZES), help="sizes (all)")
    command.add_argument("--layers", nargs="+", type=positive_int, default=[2, 8, 20], help="numbers (2 8 20)")


def _add_scale(command: argparse.ArgumentParser) -> None:
    command.add_argument("--sizes", nargs="+", type=positive_int, default=[4000, 100_000], help="edges (4000 100000)")
    command.add_argument("--repeats", type=positive_int, default=20, help="timed batches of 32 tiles (20)")


def _add_inference(command: argparse.ArgumentParser) -> None:
    _add_shape(command, input_size=48)
    command.add_argument("--models", nargs="+", default=["tiny"], help=f"out of {', '.join(MODEL_SIZES)} (tiny)")
    command.add_argument("--size", type=positive_int, default=2048, help="edge of the raster, 100 m pixels (2048)")
    command.add_argument("--batch_size", type=positive_int, default=64, help="tiles per forward pass (64)")
    command.add_argument("--repeats", type=positive_int, default=3, help="timed runs (3)")
    command.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    command.add_argument("--amp", choices=("auto", "off", "fp16", "bf16"), default="auto", help="autocast (auto)")


def _add_memory(command: argparse.ArgumentParser) -> None:
    _add_shape(command, input_size=96)
    command.add_argument(
        "--models",
        nargs="+",
        default=["tiny=32", "small=16", "base=8"],
        metavar="NAME[=BATCH]",
        help="sizes, with tiles a step (tiny=32 small=16 base=8)",
    )
    command.add_argument("--batch_size", type=positive_int, default=8, help="tiles a step where none are named (8)")
    command.add_argument("--layers", nargs="+", type=positive_int, default=[2, 10], help="numbers (2 10)")
    command.add_argument(
        "--heads", nargs="+", choices=list(SCALE_HEADS), default=["subpixel"], help="cross-scale heads (subpixel)"
    )
    command.add_argument(
        "--checkpointing", nargs="+", choices=("no", "yes"), default=["no", "yes"], help="recompute blocks (no yes)"
    )
    command.add_argument("--stems", nargs="+", choices=STEMS, default=["native"], help="stems (native)")
    command.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where it runs (cpu)")
    command.add_argument("--amp", choices=("off", "fp16", "bf16"), default="off", help="autocast (off)")
    command.add_argument("--predict_only", action="store_true", help="count tensors alone; measure nothing")


RUN: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "loader": bench_loader.run_loader,
    "step": bench_step.run_step,
    "numerics": bench_step.run_numerics,
    "heads": bench_step.run_heads,
    "scale": bench_scale.run_scale,
    "scaling": bench_scaling.run_scaling,
    "inference": bench_inference.run_inference,
    "memory": bench_memory.run_memory,
    "scenes": bench_scenes.run_scenes,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one benchmark; returns the exit status."""
    args = parse_arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        result = RUN[args.command](args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result["arguments"] = {key: value for key, value in vars(args).items() if key != "json"}
    print(json.dumps(result) if args.json else as_text(result))
    return 0


def as_text(result: dict[str, Any]) -> str:
    """Machine, options, table and facts as a page to read."""
    lines = [
        ", ".join(f"{key} {value}" for key, value in result[part].items())
        for part in ("machine", "arguments")
        if part in result
    ]
    facts = [f"{key}: {value}" for key, value in result.get("facts", {}).items()]
    return "\n".join([*lines, table(result["rows"]), *facts])


if __name__ == "__main__":
    raise SystemExit(main())
