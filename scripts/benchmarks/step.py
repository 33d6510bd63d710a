"""Time of a training step by recipe: the published one, that of main_pretrain, and that with one switch changed."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from models_mae_group_channels import SCALE_HEADS, build_model
from models_vit_group_channels import build_finetune_model
from scripts.benchmarks.common import describe_machine, time_in_turn
from scripts.benchmarks.recorded_graph import recorded_graphs
from util.hardware.device import is_out_of_memory, wait_for
from util.hardware.malloc import default_malloc, keep_freed_memory
from util.training.cuda_graphs import WARM_UP, GraphedUpdater
from util.training.engine import Updater, make_adamw
from util.training.flops import count_flops, head_share, step_cost

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Recipe:
    """How a step is computed; the defaults are those of main_pretrain."""

    stem: str = "native"
    heads: str = "subpixel"
    fused_attention: bool = True
    fused_adamw: bool = True
    fused_norms: bool = True
    kept_memory: bool = True
    reads_loss: bool = False  # every step, which waits for the GPU
    checkpointing: bool = False
    compiled: bool = False
    amp: str = ""  # as on the command line
    finetunes: bool = False  # segmentation instead of pre-training


OURS = Recipe()
RECIPES = {
    "ours": OURS,
    "shared_heads": replace(OURS, stem="base", heads="shared"),
    "published": Recipe("base", "shared", False, False, False, False, True),
    "no_fused_attention": replace(OURS, fused_attention=False),
    "no_fused_adamw": replace(OURS, fused_adamw=False),
    "no_kept_memory": replace(OURS, kept_memory=False),
    "shared_no_fused_norms": replace(OURS, stem="base", heads="shared", fused_norms=False),
}
COMPARED = {
    **RECIPES,
    "base_stem": replace(OURS, stem="base"),
    "finetune": replace(OURS, finetunes=True),
    "finetune_base_stem": replace(OURS, stem="base", finetunes=True),
}
"""Recipes whose speed is compared; some compute other losses."""
WAYS = ("eager", "compiled", "graphs")
"""Ways to compute a step: kernel by kernel, with a compiled model, or as CUDA graphs."""
CLASSES = 11
"""Number of classes of the segmentation."""
SWITCHES = {
    **RECIPES,
    "checkpointing": replace(OURS, checkpointing=True),
    "bf16": replace(OURS, amp="bf16"),
    "fp16": replace(OURS, amp="fp16"),
    "compiled": replace(OURS, compiled=True),
}
"""Recipes and training options that may change the loss."""


class WrittenOutNorm2d(nn.Module):
    """Layer norm over channels as the published code writes it: means and differences, one after another."""

    def __init__(self, norm: LayerNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in and out."""
        centred = x - x.mean(dim=1, keepdim=True)
        std = torch.sqrt(centred.pow(2).mean(dim=1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * (centred / std) + self.bias[:, None, None]


class LoopUpdater(Updater):
    """Updates with an optimiser that loops over parameters instead of fusing them."""

    def step(self, lr: float) -> Tensor:
        """Clips, updates and clears."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=False)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm


def divide(layers: int, groups: int) -> list[list[int]]:
    """Divides layers into groups of nearly equal size."""
    return [list(range(layers))[i::groups] for i in range(min(groups, layers))]


def make_model(name: str, recipe: Recipe, **arguments: Any) -> Any:
    """The model of a recipe; native pixels are 4 along a base pixel in the first group and 2 in the others."""
    if recipe.stem != "base":
        first = arguments["channel_groups"][0]
        arguments["native_scales"] = [4 if c in first else 2 for c in range(arguments["in_chans"])]
        arguments["detail_scales"] = [0.5] * arguments["in_chans"]
    arguments |= {"stem": recipe.stem, "grad_checkpointing": recipe.checkpointing}
    if recipe.finetunes:
        return build_finetune_model({"kind": "dense", "size": name, "num_outputs": CLASSES, **arguments})
    model = build_model(name, scale_heads=recipe.heads, **arguments)
    model.fused_attention = None if recipe.fused_attention else False
    for module in list(model.modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, LayerNorm2d) and not recipe.fused_norms:
                setattr(module, child_name, WrittenOutNorm2d(child))
    return model


class StepBatch(NamedTuple):
    """Random inputs of a step.

    Attributes:
        images: (N, C, sH, sW) of every scale.
        valid: their validity.
        noise: (N, G*L), of the masks.
        native: native pixels of the groups, if the model has a stem.
        target: (N, H, W) int64 classes, for fine-tuning.
    """

    images: list[Tensor]
    valid: list[Tensor]
    noise: Tensor
    native: list[Tensor]
    target: Tensor


def make_batch(model: Any, *, batch_size: int, device: torch.device, seed: int = 0) -> StepBatch:
    """Random inputs of a step, on the device."""
    generator = torch.Generator().manual_seed(seed)

    def normal(channels: int, edge: int) -> Tensor:
        return torch.randn(batch_size, channels, edge, edge, generator=generator).to(device)

    images = [normal(model.in_chans, model.img_size * s) for s in getattr(model, "scales", (1,))]
    noise = torch.rand(batch_size, model.num_groups * model.num_patches, generator=generator).to(device)
    valid = [torch.ones_like(image, dtype=torch.bool) for image in images]
    native = [normal(channels, edge) for channels, edge in model.native_shapes]
    target = torch.randint(CLASSES, (batch_size, model.img_size, model.img_size), generator=generator).to(device)
    return StepBatch(images, valid, noise, native, target)


def total_loss(forward: Any, batch: StepBatch, *, finetunes: bool) -> Tensor:
    """The loss of a step."""
    images, valid, noise, native, target = batch
    if finetunes:
        return F.cross_entropy(forward(images[0], valid[0], native).float(), target)
    loss, ms_loss, _, _ = forward(images[0], images[1:], valid=valid[0], valid_up=valid[1:], noise=noise, native=native)
    return 0.6 * loss + 0.4 * ms_loss


def make_step(
    model: Any,
    recipe: Recipe,
    *,
    batches: Sequence[StepBatch],
    amp: str,
    way: str = "eager",
    lr: float = 1e-4,
) -> Callable[[], Tensor]:
    """The training step of a recipe, on each batch in turn; it returns the total loss, until the next step."""
    device, amp = next(model.parameters()).device, recipe.amp or amp
    groups = param_groups_weight_decay(model, 0.05)
    kind = partial(GraphedUpdater, choice="on") if way == "graphs" else Updater
    updater = (kind if recipe.fused_adamw else LoopUpdater)(
        model,
        make_adamw(groups, lr=lr)
        if recipe.fused_adamw
        else torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), foreach=False, fused=False),
        amp_dtype={"off": None, "fp16": torch.float16, "bf16": torch.bfloat16}[amp],
        scaler=torch.amp.GradScaler(device.type, enabled=amp == "fp16"),
        device_type=device.type,
        clip_grad=1.0,
    )
    forward = torch.compile(model) if way == "compiled" or recipe.compiled else model
    count = 0

    def backward(batch: StepBatch, weight: float | Tensor) -> Tensor:
        with updater.autocast():
            total = total_loss(forward, batch, finetunes=recipe.finetunes)
        updater.backward(total * weight)
        return total.detach()

    def step() -> Tensor:
        nonlocal count
        total = updater.accumulate(backward, batches[count % len(batches)], 1.0)
        count += 1
        if recipe.reads_loss:
            total.item()
        updater.step(lr)
        return total

    return step


def matmul_flops(device: torch.device, amp: str, *, edge: int = 2048) -> Callable[[], Tensor]:
    """A product of two square matrices in the precision of a step, as the highest rate that the device reaches."""
    dtype = {"off": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[amp]
    a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b


def run_step(args: argparse.Namespace) -> dict[str, Any]:
    """Times recipes of each model side by side, each in several ways; CUDA graphs have a stand-in on a CPU.

    What a GPU cannot hold at once is timed apart, and the row says so; so does that of a step that does not fit alone.
    """
    device = torch.device(args.device)
    pairs = [  # the published recipe is computed as published alone
        (recipe, way)
        for recipe, way in product(args.recipes, args.ways)
        if way == "eager" or COMPARED[recipe].fused_adamw
    ]
    rows = [row for name in args.models for row in _rows_that_fit(name, pairs, args, device)]
    return {"machine": describe_machine(device), "rows": rows}


def _rows_that_fit(
    name: str, pairs: Sequence[tuple[str, str]], args: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """Rows of recipes and ways of one model: side by side, or apart where a GPU cannot hold all of them at once."""
    try:
        return _side_by_side(name, pairs, args, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()
    torch.cuda.empty_cache()
    if len(pairs) == 1:
        return [{"model": name, "recipe": pairs[0][0], "way": pairs[0][1], "note": "does not fit into memory"}]
    recipes = list(dict.fromkeys(recipe for recipe, _ in pairs))
    parts = [[pair for pair in pairs if pair[0] == recipe] for recipe in recipes]
    parts = parts if len(parts) > 1 else [[pair] for pair in pairs]
    return [
        row | {"note": row.get("note", "apart")} for part in parts for row in _rows_that_fit(name, part, args, device)
    ]


def _side_by_side(
    name: str, pairs: Sequence[tuple[str, str]], args: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """Rows of recipes and ways of one model, timed in turn."""
    jobs: dict[str, Callable[[], object]] = {"matmul": matmul_flops(device, args.amp, edge=args.matmul_edge)}
    flops, warmup = {"matmul": 2.0 * args.matmul_edge**3}, args.warmup
    for recipe_name, way in pairs:
        recipe = COMPARED[recipe_name]
        torch.manual_seed(0)
        model = make_model(name, recipe, **_shape(args)).to(device)
        batch = make_batch(model, batch_size=args.batch_size, device=device)
        job = f"{recipe_name} {way}"
        jobs[job] = make_step(model, recipe, batches=[batch], amp=args.amp, way=way)
        flops[job] = float(_step_flops(name, recipe, args))
        warmup = max(warmup, WARM_UP + 1 if way == "graphs" else 0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with recorded_graphs() if device.type == "cpu" and "graphs" in args.ways else nullcontext():
        times = time_in_turn(jobs, repeats=args.repeats, warmup=warmup, device=device, before=_set_memory)
        found = _rows(name, args, times, flops)
        for row in found if device.type == "cuda" or args.profile else ():
            row |= device_use(jobs[f"{row['recipe']} {row['way']}"], device, step_s=row["step_s"])
    jobs.clear()
    gc.collect()
    return found


def device_use(job: Callable[[], object], device: torch.device, *, step_s: float, steps: int = 3) -> dict[str, float]:
    """Kernels and copies that a step starts, and the fraction of its time in which the device works on any of them.

    Args:
        job: a step.
        device: where it computes; on a CPU, operations take the place of kernels.
        step_s: seconds of a step without the profiler, which delays the host and not the device.
        steps: steps that are profiled.
    """
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(steps):
            job()
        wait_for(device)
    events = [e for e in profile.events() if e.device_type.name.lower() == device.type]
    busy_s = covered([(e.time_range.start, e.time_range.end) for e in events]) / 1e6
    return {"launches": len(events) / steps, "device_busy": busy_s / steps / step_s}


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of all spans together, counted once where they overlap."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _step_flops(name: str, recipe: Recipe, args: argparse.Namespace) -> int:
    """FLOPs of a step, forward and backward, as of fused operations; on a GPU, where all tokens have stems."""
    plain = make_model(name, replace(recipe, fused_attention=True, fused_norms=True), **_shape(args))
    if not recipe.finetunes:
        return step_cost(plain, batch_size=args.batch_size).step_flops
    plain, device = plain.to("meta"), torch.device("meta")
    batch = StepBatch(*(_to(part, device) for part in make_batch(plain, batch_size=args.batch_size, device=CPU)))
    return count_flops(lambda: total_loss(plain, batch, finetunes=True))[1]


def _to(part: Any, device: torch.device) -> Any:
    return [tensor.to(device) for tensor in part] if isinstance(part, list) else part.to(device)


def _set_memory(job: str) -> None:
    if {**COMPARED, **SWITCHES}.get(job.partition(" ")[0], OURS).kept_memory:
        keep_freed_memory()
    else:
        default_malloc()


def _shape(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "img_size": args.input_size,
        "patch_size": args.patch_size,
        "in_chans": args.layers,
        "channel_groups": divide(args.layers, args.groups),
    }


def _rows(
    name: str, args: argparse.Namespace, times: dict[str, dict[str, float]], flops: dict[str, float]
) -> list[dict[str, Any]]:
    ceiling = flops["matmul"] / times["matmul"]["median_s"]
    reference = times.get("published eager")
    eager = {job.partition(" ")[0]: found for job, found in times.items() if job.endswith(" eager")}
    return [
        {
            "model": name,
            "recipe": job.partition(" ")[0],
            "way": job.partition(" ")[2],
            "tiles_per_s": args.batch_size / found["median_s"],
            "step_s": found["median_s"],
            "q25_s": found["q25_s"],
            "q75_s": found["q75_s"],
            "cpu_s": found["cpu_s"],
            "times_eager": _ratio(eager.get(job.partition(" ")[0]), found, "median_s"),
            "times_published": _ratio(reference, found, "median_s"),
            "times_published_cpu": _ratio(reference, found, "cpu_s"),
            "gflop": flops[job] / 1e9,
            "gflop_per_s": flops[job] / found["median_s"] / 1e9,
            "of_matmul": flops[job] / found["median_s"] / ceiling,
            "of_matmul_cpu": flops[job] / found["cpu_s"] / (flops["matmul"] / times["matmul"]["cpu_s"]),
        }
        for job, found in times.items()
        if job != "matmul"
    ]


def _ratio(reference: dict[str, float] | None, found: dict[str, float], key: str) -> float | None:
    """How many times as fast as the reference; None without one."""
    return None if reference is None else reference[key] / found[key]


def run_numerics(args: argparse.Namespace) -> dict[str, Any]:
    """Trains with each switch changed in turn; compares the losses with those of the defaults."""
    device = torch.device(args.device)
    losses: dict[str, Tensor] = {}
    for recipe_name in args.recipes:
        recipe = SWITCHES[recipe_name]
        torch.manual_seed(0)
        model = make_model(args.model, recipe, **_shape(args)).to(device)
        batches = [make_batch(model, batch_size=args.batch_size, device=device, seed=k) for k in range(8)]
        step = make_step(model, recipe, batches=batches, amp="off", lr=1e-3)
        _set_memory(recipe_name)
        losses[recipe_name] = torch.stack([step() for _ in range(args.steps)]).double().cpu()
    rows = []
    for recipe_name, found in losses.items():
        heads = SWITCHES[recipe_name].heads
        base = losses.get("ours" if heads == "subpixel" else "shared_heads", found)
        difference = (found - base).abs() / base
        rows.append(
            {
                "recipe": recipe_name,
                "first_loss": float(found[0]),
                "last_loss": float(found[-1]),
                "largest_difference": float(difference.max()),
                "last_difference": float(difference[-1]),
            }
        )
    return {"machine": describe_machine(device), "rows": rows}


def run_heads(args: argparse.Namespace) -> dict[str, Any]:
    """Fraction of forward FLOPs in the cross-scale heads: a row for each model, number of layers and of groups."""
    rows = []
    for name in args.models:
        for count in args.layers:
            for groups in (1, 2):
                row: dict[str, Any] = {"model": name, "layers": count, "groups": groups}
                for heads in SCALE_HEADS:
                    with torch.device("meta"):
                        model = build_model(
                            name,
                            img_size=args.input_size,
                            patch_size=args.patch_size,
                            in_chans=count,
                            channel_groups=divide(count, groups),
                            scale_heads=heads,
                        )
                    row[heads] = head_share(model)
                rows.append(row)
    return {"rows": rows}
