"""Measure the model: `heads` counts FLOPs of the cross-scale heads, `step` times steps side by side.

python -m scripts.benchmark heads
python -m scripts.benchmark step --model tiny --input_size 48 --layers 2 --batch_size 16
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import timm
import torch
from torch import Tensor

from models_mae_group_channels import MODEL_SIZES, SCALE_HEADS, MaskedAutoencoderGroupChannelViT, build_model
from util.cost import head_share


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    heads = commands.add_parser("heads", help="share of forward FLOPs spent in the cross-scale heads")
    step = commands.add_parser("step", help="time of a step: forward, backward and AdamW")
    for command, size in ((heads, 96), (step, 48)):
        command.add_argument("--input_size", type=int, default=size, help=f"base-scale pixels (default {size})")
        command.add_argument("--patch_size", type=int, default=8, help="base pixels (default 8)")
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    heads.add_argument("--models", nargs="+", default=list(MODEL_SIZES), help="sizes (default all)")
    heads.add_argument("--layers", nargs="+", type=int, default=[2, 8, 20], help="numbers (default 2 8 20)")
    step.add_argument("--model", default="tiny", help="size (default tiny)")
    step.add_argument("--layers", type=int, default=2, help="number of layers (default 2)")
    step.add_argument("--groups", type=int, default=2, help="number of channel groups (default 2)")
    step.add_argument("--heads", nargs="+", default=list(SCALE_HEADS), choices=SCALE_HEADS, help="default both")
    step.add_argument("--batch_size", type=int, default=16, help="tiles a step (default 16)")
    step.add_argument("--steps", type=int, default=20, help="timed steps of each (default 20)")
    step.add_argument("--warmup", type=int, default=3, help="steps of each before timing (default 3)")
    step.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = torch's choice (default 0)")
    step.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    step.add_argument("--amp", choices=("off", "fp16", "bf16"), default="off", help="autocast (default off)")
    return parser.parse_args(argv)


def divide(layers: int, groups: int) -> list[list[int]]:
    """Divide layers into groups as even as can be."""
    return [list(range(layers))[i::groups] for i in range(min(groups, layers))]


def count_heads(*, models: Sequence[str], layers: Sequence[int], input_size: int, patch_size: int) -> list[dict]:
    """Head shares of forward FLOPs: a row for each model, number of layers, and one or two groups."""
    rows = []
    for name in models:
        for count in layers:
            for groups in (1, 2):
                row: dict = {"model": name, "layers": count, "groups": groups}
                for heads in SCALE_HEADS:
                    with torch.device("meta"):
                        model = build_model(
                            name,
                            img_size=input_size,
                            patch_size=patch_size,
                            in_chans=count,
                            channel_groups=divide(count, groups),
                            scale_heads=heads,
                        )
                    row[heads] = head_share(model)
                rows.append(row)
    return rows


def make_step(
    model: MaskedAutoencoderGroupChannelViT, *, batch_size: int, amp: str, device: torch.device
) -> Callable[[], None]:
    """A training step on random tiles that stay on the device."""
    generator = torch.Generator().manual_seed(0)
    edges = [model.img_size * s for s in model.scales]
    images = [torch.randn(batch_size, model.in_chans, edge, edge, generator=generator).to(device) for edge in edges]
    valid: list[Tensor] = [torch.ones_like(image, dtype=torch.bool) for image in images]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=amp != "off"):
            loss, ms_loss, _, _ = model(images[0], images[1:], valid=valid[0], valid_up=valid[1:])
        scaler.scale(0.6 * loss + 0.4 * ms_loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def time_side_by_side(steps: dict[str, Callable[[], None]], *, count: int, warmup: int) -> dict[str, dict]:
    """Time steps in turn, so that whatever else the machine does falls on all alike; seconds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(warmup + count):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if i >= warmup:
                times[name].append(time.perf_counter() - start)
    return {
        name: {"median_s": statistics.median(values), "min_s": min(values), "max_s": max(values)}
        for name, values in times.items()
    }


def describe_machine(device: torch.device, threads: int) -> dict:
    """Hardware and versions that a time belongs to."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": f"{device.type} {name or platform.machine()}",
        "threads": threads,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def run_heads(args: argparse.Namespace) -> dict:
    """Count, and print the table unless JSON is wanted."""
    rows = count_heads(models=args.models, layers=args.layers, input_size=args.input_size, patch_size=args.patch_size)
    if not args.json:
        print(f"Share of forward FLOPs in the cross-scale heads: {args.input_size} pixels, patch")
        print(f"{args.patch_size}, mask ratio 0.75, scales 1 2 4, every layer scored at every scale.")
        print(f"{'model':8}{'layers':>8}{'groups':>8}{'subpixel':>12}{'shared':>12}")
        for row in rows:
            print(
                f"{row['model']:8}{row['layers']:>8}{row['groups']:>8}"
                f"{100 * row['subpixel']:>10.1f} %{100 * row['shared']:>10.1f} %"
            )
    return {"input_size": args.input_size, "patch_size": args.patch_size, "rows": rows}


def run_step(args: argparse.Namespace) -> dict:
    """Time, and print the table unless JSON is wanted."""
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    steps = {}
    for heads in args.heads:
        model = build_model(
            args.model,
            img_size=args.input_size,
            patch_size=args.patch_size,
            in_chans=args.layers,
            channel_groups=divide(args.layers, args.groups),
            scale_heads=heads,
        )
        steps[heads] = make_step(model.to(device), batch_size=args.batch_size, amp=args.amp, device=device)
    result = {
        "machine": describe_machine(device, torch.get_num_threads()),
        "arguments": {k: v for k, v in vars(args).items() if k != "json"},
        "times": time_side_by_side(steps, count=args.steps, warmup=args.warmup),
    }
    if not args.json:
        print(", ".join(f"{k} {v}" for k, v in result["machine"].items()))
        print(f"{args.model}, {args.layers} layers in {args.groups} groups, {args.input_size} pixels, ", end="")
        print(f"batch {args.batch_size}, amp {args.amp}, {args.steps} steps of each in turn")
        for heads, values in result["times"].items():
            print(
                f"{heads:10} median {1e3 * values['median_s']:8.1f} ms  ({1e3 * values['min_s']:.1f} to "
                f"{1e3 * values['max_s']:.1f})  {args.batch_size / values['median_s']:8.1f} tiles/s"
            )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns the exit status."""
    args = parse_arguments(argv)
    try:
        result = run_heads(args) if args.command == "heads" else run_step(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
