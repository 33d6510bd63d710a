"""Time of a training step by recipe: the published one, that of main_pretrain, and that with one switch changed."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers import LayerNorm2d
from timm.models.vision_transformer import Attention
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from models_mae_group_channels import SCALE_HEADS, MaskedAutoencoderGroupChannelViT, build_model
from scripts.benchmarks.common import describe_machine, time_in_turn
from util.hardware.malloc import default_malloc, keep_freed_memory
from util.training.engine import Updater, make_adamw
from util.training.flops import head_share, step_cost


@dataclass(frozen=True)
class Recipe:
    """How a step is computed; the defaults are those of main_pretrain."""

    heads: str = "subpixel"
    fused_attention: bool = True
    fused_adamw: bool = True
    fused_norms: bool = True
    kept_memory: bool = True
    reads_loss: bool = False  # every step, which waits for the GPU
    checkpointing: bool = False
    compiled: bool = False
    amp: str = ""  # as on the command line


OURS = Recipe()
RECIPES = {
    "ours": OURS,
    "shared_heads": replace(OURS, heads="shared"),
    "published": Recipe("shared", False, False, False, False, True),
    "no_fused_attention": replace(OURS, fused_attention=False),
    "no_fused_adamw": replace(OURS, fused_adamw=False),
    "no_kept_memory": replace(OURS, kept_memory=False),
    "shared_no_fused_norms": replace(OURS, heads="shared", fused_norms=False),
}
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


def make_model(name: str, recipe: Recipe, **arguments: Any) -> MaskedAutoencoderGroupChannelViT:
    """The model of a recipe."""
    model = build_model(name, scale_heads=recipe.heads, grad_checkpointing=recipe.checkpointing, **arguments)
    for module in list(model.modules()):
        if isinstance(module, Attention) and not recipe.fused_attention:
            module.fused_attn = False
        for child_name, child in list(module.named_children()):
            if isinstance(child, LayerNorm2d) and not recipe.fused_norms:
                setattr(module, child_name, WrittenOutNorm2d(child))
    return model


def make_batch(
    model: MaskedAutoencoderGroupChannelViT, *, batch_size: int, device: torch.device, seed: int = 0
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Images of every scale, their validity and the noise of masks, on the device."""
    generator = torch.Generator().manual_seed(seed)
    edges = [model.img_size * s for s in model.scales]
    images = [torch.randn(batch_size, model.in_chans, edge, edge, generator=generator).to(device) for edge in edges]
    noise = torch.rand(batch_size, model.num_groups * model.num_patches, generator=generator).to(device)
    return images, [torch.ones_like(image, dtype=torch.bool) for image in images], noise


def make_step(
    model: MaskedAutoencoderGroupChannelViT,
    recipe: Recipe,
    *,
    batches: Sequence[tuple[list[Tensor], list[Tensor], Tensor]],
    amp: str,
    compiled: bool = False,
    lr: float = 1e-4,
) -> Callable[[], Tensor]:
    """The training step of a recipe, on each batch in turn; it returns the total loss."""
    device, amp = next(model.parameters()).device, recipe.amp or amp
    groups = param_groups_weight_decay(model, 0.05)
    updater = (Updater if recipe.fused_adamw else LoopUpdater)(
        model,
        make_adamw(groups, lr=lr)
        if recipe.fused_adamw
        else torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), foreach=False, fused=False),
        amp_dtype={"off": None, "fp16": torch.float16, "bf16": torch.bfloat16}[amp],
        scaler=torch.amp.GradScaler(device.type, enabled=amp == "fp16"),
        device_type=device.type,
        clip_grad=1.0,
    )
    forward = torch.compile(model) if compiled or recipe.compiled else model
    count = 0

    def step() -> Tensor:
        nonlocal count
        images, valid, noise = batches[count % len(batches)]
        count += 1
        with updater.autocast():
            loss, ms_loss, _, _ = forward(images[0], images[1:], valid=valid[0], valid_up=valid[1:], noise=noise)
        total = 0.6 * loss + 0.4 * ms_loss
        updater.backward(total)
        if recipe.reads_loss:
            total.item()
        updater.step(lr)
        return total.detach()

    return step


def matmul_flops(device: torch.device, amp: str, *, edge: int = 2048) -> Callable[[], Tensor]:
    """A product of two square matrices in the precision of a step, as the highest rate that the device reaches."""
    dtype = {"off": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[amp]
    a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b


def run_step(args: argparse.Namespace) -> dict[str, Any]:
    """Times recipes of each model side by side."""
    device = torch.device(args.device)
    rows = []
    for name in args.models:
        jobs: dict[str, Callable[[], object]] = {"matmul": matmul_flops(device, args.amp, edge=args.matmul_edge)}
        flops = {"matmul": 2.0 * args.matmul_edge**3}
        for recipe_name in args.recipes:
            recipe = RECIPES[recipe_name]
            torch.manual_seed(0)
            model = make_model(name, recipe, **_shape(args)).to(device)
            batch = make_batch(model, batch_size=args.batch_size, device=device)
            jobs[recipe_name] = make_step(model, recipe, batches=[batch], amp=args.amp, compiled=args.compile)
            plain = make_model(name, replace(OURS, heads=recipe.heads), **_shape(args))
            flops[recipe_name] = float(step_cost(plain, batch_size=args.batch_size).step_flops)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        times = time_in_turn(jobs, repeats=args.repeats, warmup=args.warmup, device=device, before=_set_memory)
        rows += _rows(name, args, times, flops)
        jobs.clear()
        gc.collect()
    return {"machine": describe_machine(device), "rows": rows}


def _set_memory(recipe_name: str) -> None:
    if SWITCHES.get(recipe_name, OURS).kept_memory:
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
    reference = times.get("published", next(iter(times.values())))
    return [
        {
            "model": name,
            "recipe": recipe,
            "tiles_per_s": args.batch_size / found["median_s"],
            "step_s": found["median_s"],
            "q25_s": found["q25_s"],
            "q75_s": found["q75_s"],
            "cpu_s": found["cpu_s"],
            "times_published": reference["median_s"] / found["median_s"] if "published" in times else None,
            "times_published_cpu": reference["cpu_s"] / found["cpu_s"] if "published" in times else None,
            "gflop": flops[recipe] / 1e9,
            "gflop_per_s": flops[recipe] / found["median_s"] / 1e9,
            "of_matmul": flops[recipe] / found["median_s"] / ceiling,
            "of_matmul_cpu": flops[recipe] / found["cpu_s"] / (flops["matmul"] / times["matmul"]["cpu_s"]),
        }
        for recipe, found in times.items()
        if recipe != "matmul"
    ]


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
