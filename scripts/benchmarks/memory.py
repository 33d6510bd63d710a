"""Peak memory of training, predicted from trials of smaller batches and measured, each case in its own process."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import product
from typing import Any

import torch

from models_mae_group_channels import MaskedAutoencoderGroupChannelViT, build_model
from scripts.benchmarks.common import describe_machine
from util.hardware.device import amp_policy, memory_limit_bytes, peak_memory_bytes, used_memory_bytes
from util.hardware.malloc import keep_freed_memory
from util.training.memory import MIB, count_tensors, memory_trials
from util.training.training_step import TrainingStep, pretraining_step

STEPS = 3
"""Updates that are measured: the peak grows by a few per cent at most after the second."""


def run_memory(args: argparse.Namespace) -> dict[str, Any]:
    """A row for each combination of model, number of layers, heads and checkpointing."""
    shape = {"input_size": args.input_size, "patch_size": args.patch_size, "device": args.device, "amp": args.amp}
    rows = []
    cases = product(args.models, args.layers, args.heads, args.checkpointing, args.stems)
    for name, layers, heads, again, stem in cases:
        model, _, batch = name.partition("=")
        case = {
            "model": model,
            "batch": int(batch or args.batch_size),
            "layers": layers,
            "heads": heads,
            "checkpointing": again == "yes",
            "stem": stem,
        }
        rows.append(case | _row(case | shape, measures=not args.predict_only))
    return {"machine": describe_machine(torch.device("cpu")), "rows": rows}


def _row(case: dict[str, Any], *, measures: bool) -> dict[str, Any]:
    """Bytes of tensors, the predicted and the measured peak, in MiB."""
    with torch.device("meta"):
        step = make_step(case, make_model(case))
    row: dict[str, Any] = {"tensors_mib": count_tensors(step, batch_size=case["batch"]) / MIB}
    if not measures:
        return row
    command = [sys.executable, "-m", "scripts.benchmarks.memory", json.dumps(case)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return row | {
        "base_mib": found["base"] / MIB,
        "predicted_mib": found["predicted"] / MIB,
        "measured_mib": found["peak"] / MIB,
        "ratio": found["predicted"] / found["peak"],
    }


def make_model(case: dict[str, Any]) -> MaskedAutoencoderGroupChannelViT:
    """The model of a case; layers are divided into two groups, of 4 and 2 native pixels along a base pixel."""
    return build_model(
        case["model"],
        img_size=case["input_size"],
        patch_size=case["patch_size"],
        in_chans=case["layers"],
        channel_groups=[list(range(case["layers"]))[k::2] for k in range(min(2, case["layers"]))],
        scale_heads=case["heads"],
        grad_checkpointing=case["checkpointing"],
        stem=case["stem"],
        native_scales=[4 - 2 * (k % 2) for k in range(case["layers"])],
        detail_scales=[0.5] * case["layers"],
    )


def make_step(case: dict[str, Any], model: MaskedAutoencoderGroupChannelViT) -> TrainingStep:
    """The step of a case, as pre-training does it."""
    # Without a GPU that of one is predicted: precision must then be named, or is that of the CPU.
    device = torch.device(case["device"] if torch.cuda.is_available() else "cpu")
    amp_dtype, _ = amp_policy(device, case["amp"])
    return pretraining_step(model, amp_dtype=amp_dtype)


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Bytes in use before the model, the predicted peak, and the measured one of a few updates, in this process."""
    device = torch.device(case["device"])
    if device.type == "cuda":
        torch.zeros(1, device=device)
    keep_freed_memory()
    base = used_memory_bytes(device)
    torch.manual_seed(0)
    model = make_model(case).to(device).train()
    step = make_step(case, model)
    trials = memory_trials(step, model, device=device, accumulates=False, shares_gradients=False, batches_ahead=0)
    trials.try_small(max(1, case["batch"] // 2), memory_limit_bytes(device))
    predicted = trials.expected(case["batch"])
    updater = step.updater(model, device.type)
    batch = step.make_batch(case["batch"], device)
    for _ in range(STEPS):
        with updater.autocast():
            loss, results = step.loss(model, batch)
        updater.backward(loss)
        updater.step(1e-4)
    del results
    peak = used_memory_bytes(device) if device.type == "cuda" else peak_memory_bytes(device)
    return {"base": base, "predicted": predicted, "peak": peak}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
