"""A survey of two layers with holes, small enough to train on in a second, and ways to train on it and look at it."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import small_main
from tests.rasters import write_grid

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
RESOLUTIONS = {"gravity": 200.0, "magnetics": 100.0}
TILES = 49
"""Training tiles of the survey with `FLAGS`: windows of 64 pixels every 16 on 160 x 160, all at least half valid."""

FLAGS = (
    "--input_size 16 --patch_size 4 --batch_size 8 --lr 0.001 --warmup_epochs 1 --epochs 2 --val_fraction 0 "
    "--num_workers 0 --log_every 1 --device cpu --no_progress --val_tiles 9"
).split()
"""Quick to train: 7 updates an epoch, the last of a single tile; nothing is held out, so nothing is scored or drawn."""

HELD_OUT = "--val_fraction 0.1 --val_buffer 0".split()
"""Holds out one tile of the survey, which leaves fewer to train on."""


def write_survey(folder: Path, *, size: int = 160, under_nodata: float = -99999.0) -> Path:
    """Writes gravity.tif (200 m) and magnetics.tif (100 m), each with two holes, and a table of both.

    Args:
        folder: made if missing.
        size: rows and columns of the 100 m grid, even; at least 64.
        under_nodata: what is stored in the holes. Both layers declare it as nodata (NaN needs no declaration).

    Returns:
        The folder; `layers.csv` in it names the layers in the order in which the folder is read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    lines = ["name,path,units"]
    for (name, resolution), unit in zip(RESOLUTIONS.items(), ("mGal", "nT"), strict=True):
        count = round(size * 100.0 / resolution)
        y, x = (np.mgrid[:count, :count] + 0.5) * resolution / 1000.0  # kilometres
        values = 40 * np.sin(1.7 * x) * np.cos(1.3 * y) + 15 * np.sin(2.9 * y + x) + rng.normal(size=x.shape)
        values[(y < 2.0) & (x < 3.0)] = under_nodata
        values[(np.hypot(x - 11.0, y - 8.0) < 1.5) & (name == "magnetics")] = under_nodata
        values[(y > 12.0) & (x < 2.0) & (name == "gravity")] = under_nodata
        write_grid(folder / f"{name}.tif", values.astype(np.float32), resolution=resolution, nodata=under_nodata)
        lines.append(f"{name},{name}.tif,{unit}")
    (folder / "layers.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def arguments(survey: Path, output: Path, *flags: str) -> list[str]:
    """The command line that trains on a survey; later flags replace earlier ones."""
    return ["--data_dir", str(survey), "--output_dir", str(output), *FLAGS, *flags]


def start_of_launch(monkeypatch: Any, number: int, name: str = "launch") -> None:
    """Makes this process believe that torchrun starts it for the n-th time, counted from 0."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)


def train(survey: Path, output: Path, *flags: str, pictures: bool = False) -> int:
    """Trains the small model in this process; returns the exit status."""
    return small_main.main(arguments(survey, output, *flags), pictures=pictures)


def environment() -> dict[str, str]:
    """The environment of a program started from a test: one thread, the loopback, and none of torchrun's variables."""
    kept = {k: v for k, v in os.environ.items() if k not in TORCHRUN_VARIABLES}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path, "MPLBACKEND": "Agg"}


class Started:
    """A training process of the small model, forked from a server that has all imported (conftest.py): quick to start.

    Args:
        arguments: its command line.
        message_file: gets its standard error.
        before: called in the process before training, for limits and sabotage; must be importable.
        variables: of its environment.
        program: takes the command line and returns the exit status; must be importable.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        message_file: Path,
        *,
        before: Callable[[], None] | None = None,
        variables: Mapping[str, str] | None = None,
        program: Callable[[Sequence[str]], int] = small_main.main,
    ) -> None:
        self._message_file = message_file
        context = multiprocessing.get_context("forkserver")
        self.process = context.Process(
            target=_train_and_exit,
            args=(program, list(arguments), str(message_file), before, variables or {}),
            daemon=True,
        )
        self.process.start()

    @property
    def message(self) -> str:
        """What it has written to standard error."""
        return self._message_file.read_text(encoding="utf-8") if self._message_file.exists() else ""

    def wait(self, limit_s: float = 120.0) -> tuple[int, str]:
        """Waits for its end; returns exit status (minus the signal's number, if killed) and standard error."""
        self.process.join(limit_s)
        hangs = self.process.is_alive()
        self.process.kill()
        self.process.join()
        assert not hangs, f"still running after {limit_s} s:\n{self.message}"
        return int(self.process.exitcode or 0), self.message

    def wait_for(self, condition: Callable[[], bool], limit_s: float = 120.0) -> None:
        """Waits until something is so, while the process runs."""
        end = time.monotonic() + limit_s
        while not condition():
            assert self.process.is_alive() and time.monotonic() < end, self.message
            time.sleep(0.002)


def _train_and_exit(
    program: Callable[[Sequence[str]], int],
    arguments: list[str],
    message_file: str,
    before: Callable[[], None] | None,
    variables: Mapping[str, str],
) -> None:
    for name in TORCHRUN_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update({"GLOO_SOCKET_IFNAME": "lo", **variables})
    torch.set_num_threads(1)
    sys.stderr = open(message_file, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - open until the process ends
    os.dup2(sys.stderr.fileno(), 2)
    if before is not None:
        before()
    sys.exit(program(arguments))


def run_ranks(
    arguments: Sequence[str],
    folder: Path,
    *,
    world_size: int = 2,
    limit_s: float = 120.0,
    before: Sequence[Callable[[], None] | None] = (),
    variables: Mapping[str, str] | None = None,
    program: Callable[[Sequence[str]], int] = small_main.main,
) -> list[tuple[int, str]]:
    """Runs the processes of one run; returns exit status and standard error of each, in order of rank."""
    meeting = folder / f"meet-{uuid.uuid4().hex}"
    together = ["--world_size", str(world_size), "--dist_url", f"file://{meeting}"]
    actions = [*before, *[None] * (world_size - len(before))]
    processes = [
        Started(
            [*arguments, *together, "--local_rank", str(rank)],
            folder / f"rank-{rank}.err",
            before=action,
            variables=variables,
            program=program,
        )
        for rank, action in enumerate(actions)
    ]
    return [process.wait(limit_s) for process in processes]


def checkpoint(output: Path, name: str = "last") -> dict[str, Any]:
    """The contents of a checkpoint of a run, loaded as anyone would."""
    return torch.load(output / f"checkpoint-{name}.pth", map_location="cpu", weights_only=True)


def log(output: Path, kind: str = "train") -> list[dict[str, Any]]:
    """The lines of log.txt of one kind."""
    lines = [json.loads(line) for line in (output / "log.txt").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses(output: Path) -> list[tuple[int, float, float, float]]:
    """(step, total, base-scale, finer-scale loss) of each training line of the log."""
    return [
        (line["step"], line["train_loss"], line["train_base_loss"], line["train_scale_loss"]) for line in log(output)
    ]


def same_bits(first: Any, second: Any) -> bool:
    """Whether two nested structures of tensors and plain values are equal bit for bit (NaN equals itself)."""
    if isinstance(first, torch.Tensor):
        return (
            first.dtype == second.dtype
            and first.shape == second.shape
            and first.numpy().tobytes() == second.numpy().tobytes()
        )
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_bits(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same_bits, first, second))
    return first == second or (first != first and second != second)


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Largest difference of any weight, relative to the largest weight of its tensor.

    The biases of attention's keys are left out. They shift all scores of a query alike, which softmax takes out again:
    their gradient is zero but for rounding, and Adam makes steps of full length of that rounding.
    """
    assert first.keys() == second.keys()
    worst = 0.0
    for name in first:
        one, other = first[name].double(), second[name].double()
        if name.endswith("attn.qkv.bias"):
            one, other = (bias.view(3, -1)[[0, 2]] for bias in (one, other))
        worst = max(worst, float((one - other).abs().max() / one.abs().max().clamp_min(1e-12)))
    return worst


def assert_weights_agree(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Weights of runs that differ only in the order of float32 sums: to 1e-4 of the largest of their tensor.

    2e-5 was seen, on torch 2.7 with three ranks, in biases that start at zero. The light heads' detail starts with
    gradients of zero, from whose rounding Adam makes steps: 5e-3 there (5e-4 was seen).
    """
    detail = [{k: w for k, w in part.items() if ".amplitudes." in k or ".patterns" in k} for part in (first, second)]
    others = [{k: w for k, w in part.items() if k not in detail[0]} for part in (first, second)]
    assert detail[0] and largest_difference(*detail) < 5e-3
    assert largest_difference(*others) < 1e-4


def largest_loss_difference(first: Path, second: Path) -> float:
    """Largest relative difference between the logged training losses of two runs with the same steps."""
    one, other = np.array(losses(first)), np.array(losses(second))
    assert (one[:, 0] == other[:, 0]).all()
    return float((np.abs(one - other) / one.clip(1e-12))[:, 1:].max())
