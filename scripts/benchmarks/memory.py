"""Peak memory of training: as it is predicted from the options, and as a process of its own then takes it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import torch

from models_mae_group_channels import MaskedAutoencoderGroupChannelViT, build_model
from scripts.benchmarks.common import describe_machine
from util.hardware.device import amp_policy, peak_memory_bytes, used_memory_bytes
from util.hardware.malloc import keep_freed_memory
from util.training.memory_forecast import CUDA_CONTEXT, MIB, Step, base_bytes, forecast, pretraining_step

STEPS = 3
"""Updates that are measured: the first two have the peak but for a few per cent."""


def run_memory(args: argparse.Namespace) -> dict[str, Any]:
    """A row for each model, number of layers, heads, with and without checkpointing."""
    rows = []
    for name in args.models:
        model, _, batch = name.partition("=")
        for layers in args.layers:
            for heads in args.heads:
                for again in args.checkpointing:
                    case = {
                        "model": model,
                        "batch": int(batch or args.batch_size),
                        "layers": layers,
                        "heads": heads,
                        "checkpointing": again == "yes",
                    }
                    shape = {"input_size": args.input_size, "patch_size": args.patch_size}
                    shape |= {"device": args.device, "amp": args.amp}
                    rows.append(case | _row(case | shape, measures=not args.predict_only))
    return {"machine": describe_machine(torch.device("cpu")), "rows": rows}


def _row(case: dict[str, Any], *, measures: bool) -> dict[str, Any]:
    """Prediction and measurement of a case, in MiB."""
    base = CUDA_CONTEXT if case["device"] == "cuda" else base_bytes(torch.device("cpu"))
    taken = None
    if measures:
        command = [sys.executable, "-m", "scripts.benchmarks.memory", json.dumps(case)]
        found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        base, taken = found["base"], found["peak"]
    with torch.device("meta"):
        step = make_step(case, make_model(case))
    predicted = forecast(step, case["batch"], device_type=case["device"], base=base)
    return {
        "tensors_mib": predicted.tensors / MIB,
        "base_mib": base / MIB,
        "predicted_mib": predicted.total / MIB,
        "measured_mib": None if taken is None else taken / MIB,
        "ratio": None if taken is None else predicted.total / taken,
        "ratio_above_base": None if taken is None else (predicted.total - base) / (taken - base),
    }


def make_model(case: dict[str, Any]) -> MaskedAutoencoderGroupChannelViT:
    """The model of a case; layers are dealt to two groups."""
    return build_model(
        case["model"],
        img_size=case["input_size"],
        patch_size=case["patch_size"],
        in_chans=case["layers"],
        channel_groups=[list(range(case["layers"]))[k::2] for k in range(min(2, case["layers"]))],
        scale_heads=case["heads"],
        grad_checkpointing=case["checkpointing"],
    )


def make_step(case: dict[str, Any], model: MaskedAutoencoderGroupChannelViT) -> Step:
    """The step of a case, as pre-training does it."""
    amp_dtype, _ = amp_policy(torch.device("cpu"), case["amp"])
    return pretraining_step(model, mask_ratio=0.75, amp_dtype=amp_dtype)


def measure(case: dict[str, Any]) -> dict[str, int]:
    """Bytes taken before the model, and at the peak of a few updates, in this process."""
    device = torch.device(case["device"])
    if device.type == "cuda":
        torch.zeros(1, device=device)
    keep_freed_memory()
    base = base_bytes(device)
    torch.manual_seed(0)
    model = make_model(case).to(device).train()
    step = make_step(case, model)
    updater, kept = step.updater(model, device.type), None
    batch = step.make_batch(case["batch"], device)
    for _ in range(STEPS):
        with updater.autocast():
            loss, kept = step.loss(model, batch)
        updater.backward(loss)
        updater.step(1e-4)
    del kept
    return {"base": base, "peak": used_memory_bytes(device) if device.type == "cuda" else peak_memory_bytes(device)}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
