"""Runs every check and benchmark that needs a GPU, and writes one report: gpu_report.md and gpu_report.json.

A part that fails does not stop the others; the end names it, and the exit status is 1. The report is written after each
part, so that a check that is stopped leaves what it has found. Nothing is downloaded.
`--rehearse` runs the same commands with tiny sizes on the CPU, to find mistakes in them where there is no GPU; its
figures say nothing about any GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from util.options.parser import Parser

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = {"quick": 8 * 60.0, "whole": 45 * 60.0}
"""Of all parts together; a part gets what is left of it, and no more than its own limit."""
TEST_LIMIT_S, BENCHMARK_LIMIT_S = 1200.0, 900.0
WAYS = ("eager", "compiled", "graphs")
PRECISIONS = ("float32", "float16", "bfloat16")
NO_NETWORK = (
    "Without a network: on a machine that has one, and the same system and Python, run "
    "`pip download -r requirements.txt -r requirements-dev.txt -c constraints-v100.txt -d wheels` (constraints.txt for "
    "newer cards); carry `wheels` over; there, `pip install --no-index --find-links wheels -r requirements.txt "
    "-r requirements-dev.txt -c constraints-v100.txt`, and give that interpreter as GRIDMAE_PYTHON."
)


@dataclass(frozen=True)
class Part:
    """One part of the check: `run` returns what it found, and raises if it failed."""

    name: str
    run: Callable[[], dict[str, Any]]


class PartFailed(Exception):
    """A part ended without a result; the message says why."""


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = Parser("gpu_check", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer models and repeats")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU; checks the commands alone")
    parser.add_argument("--output_dir", default=".", help="folder of gpu_report.md and gpu_report.json (.)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all parts; returns 0, or 1 if a part failed."""
    args = get_args_parser().parse_args(argv)
    end = time.monotonic() + LIMIT_S["quick" if args.quick else "whole"]
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    listed = parts(quick=args.quick, rehearse=args.rehearse, end=end)
    found: list[dict[str, Any]] = []
    for part in listed:
        found.append(run_part(part))
        missing = [other.name for other in listed[len(found) :]]
        report = {"rehearsal": args.rehearse, "quick": args.quick, "parts": found, "not reached": missing}
        (folder / "gpu_report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        (folder / "gpu_report.md").write_text(as_markdown(report), encoding="utf-8")
    failed = [part["name"] for part in found if part["error"]]
    print(f"{folder / 'gpu_report.md'}: {len(found) - len(failed)} of {len(found)} parts passed")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_part(part: Part) -> dict[str, Any]:
    """Runs a part; its failure is part of what is returned."""
    print(f"{part.name} ...", file=sys.stderr, flush=True)
    begin, result, error = time.monotonic(), {}, ""
    try:
        result = part.run()
    except Exception as failure:  # whatever it is, the other parts are still worth running
        error = f"{type(failure).__name__}: {failure}"
        print(error, file=sys.stderr, flush=True)
    return {"name": part.name, "seconds": time.monotonic() - begin, "error": error, "result": result}


def parts(*, quick: bool, rehearse: bool, end: float = math.inf) -> list[Part]:
    """All parts in order: environment, tests, benchmarks; `end` is when the last must be done, by `time.monotonic`."""
    device = "cpu" if rehearse else "cuda"
    files = ["test_gpu_lane", "test_gpu_runs", "test_cuda_graphs", "test_graph_capture"]
    tests = [f"tests/{name}.py" for name in files] if rehearse else ["-m", "gpu"]
    listed = [
        Part("environment", lambda: environment(device)),
        Part("tests", lambda: {"summary": run(["-m", "pytest", "-q", *tests], left(end, TEST_LIMIT_S))[-3000:]}),
    ]
    for name, flags in benchmarks(quick=quick, rehearse=rehearse):
        listed.append(Part(f"benchmark {name}", lambda flags=flags: benchmark(flags, end)))  # type: ignore[misc]
    return listed


def environment(device_name: str) -> dict[str, Any]:
    """Versions and device, whether a matrix product in each precision is right, and which attention torch chooses.

    Raises:
        PartFailed: a product in float32 or float16 fails or is wrong; bfloat16 is stated alone.
    """
    import torch
    from torch.nn.attention import SDPBackend

    from util.hardware.device import describe_environment, select_device

    device = select_device(device_name)
    products, attention = {}, {}
    for name in PRECISIONS:
        try:
            a = torch.ones(64, 64, dtype=getattr(torch, name), device=device)
            products[name] = "right" if bool(((a @ a) == 64).all()) else "wrong"
            q = a.expand(2, 3, 64, 64)  # (N, heads, tokens, width), as in the models
            attention[name] = SDPBackend(torch._fused_sdp_choice(q, q, q)).name
        except RuntimeError as error:
            products.setdefault(name, str(error).splitlines()[0])
    if any(products[name] != "right" for name in ("float32", "float16")):
        raise PartFailed(f"matrix products: {products}")
    return {
        **describe_environment(device),
        **{f"product in {name}": found for name, found in products.items()},
        **{f"attention in {name}": found for name, found in attention.items()},
    }


def benchmarks(*, quick: bool, rehearse: bool) -> list[tuple[str, list[str]]]:
    """Name and arguments of each benchmark."""
    if rehearse:
        tiny = "--input_size 16 --repeats 1 --batch_size 1 --models tiny"
        step = f"step {tiny} --warmup 0 --matmul_edge 64 --profile --recipes"
        plain = [way for way in WAYS if way != "compiled"]  # compiling takes a CPU minutes
        loader = "loader --size 256 --input_size 16 --tiles 8 --batch_size 4 --workers 1 --repeats 1 --device cpu"
        return [
            ("step", [*step.split(), "ours", "base_stem", "published", "--ways", *plain]),
            ("step, compiled", [*step.split(), "ours", "--ways", "compiled"]),
            ("loader", loader.split()),
            ("inference", f"inference {tiny} --size 256".split()),
            ("memory", "memory --models tiny=1 --layers 2 --input_size 16 --checkpointing no".split()),
        ]
    models = "tiny base" if quick else "tiny small base large"
    repeats = 10 if quick else 30
    found = []
    for layers in (2,) if quick else (2, 10):
        for amp in ("fp16", "bf16"):
            flags = f"step --device cuda --models {models} --layers {layers} --amp {amp} --batch_size 32"
            flags += f" --repeats {repeats} --warmup 5 --matmul_edge 8192 --recipes ours base_stem published"
            found.append((f"step, {layers} layers, {amp}", [*flags.split(), "--ways", *WAYS]))
    found.append(("loader", f"loader --repeats {3 if quick else 5} --workers 1 2 4 8 --device cuda".split()))
    found.append(("inference", f"inference --device cuda --models {models}".split()))
    found.append(("memory", "memory --device cuda --amp fp16 --models tiny=32 small=16 base=8 large=8".split()))
    return found


def left(end: float, most_s: float) -> float:
    """Seconds that a part may take.

    Raises:
        PartFailed: none are left.
    """
    seconds = min(end - time.monotonic(), most_s)
    if seconds <= 0:
        raise PartFailed("not begun: the time of the whole check is up")
    return seconds


def benchmark(flags: Sequence[str], end: float) -> dict[str, Any]:
    """What a benchmark has printed.

    Raises:
        PartFailed: it failed.
    """
    return json.loads(run(["-m", "scripts.benchmark", *flags, "--json"], left(end, BENCHMARK_LIMIT_S)))


def run(arguments: Sequence[str], limit_s: float) -> str:
    """Standard output of this Python with some arguments.

    Raises:
        PartFailed: its exit status is not 0, or it took too long.
    """
    command = [sys.executable, *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        raise PartFailed(f"not done after {limit_s:.0f} s: {said.strip()[-2000:]}") from error
    if done.returncode:
        raise PartFailed(f"exit status {done.returncode}: {(done.stdout + done.stderr).strip()[-2000:]}")
    return done.stdout


def as_markdown(report: dict[str, Any]) -> str:
    """The report as text with tables."""
    lines = ["# GPU report", ""]
    if report["rehearsal"]:
        lines += ["**A rehearsal on a CPU: nothing ran on a GPU, and no figure here says anything about one.**", ""]
    if report["not reached"]:
        lines += [f"**Stopped before the end.** Not reached: {', '.join(report['not reached'])}.", ""]
    for part in report["parts"]:
        lines += [f"## {part['name']}", "", f"{part['seconds']:.0f} s", ""]
        lines += [f"**Failed**: {part['error']}", ""] if part["error"] else [*_result(part["result"]), ""]
    return "\n".join([*lines, "## Without a network", "", NO_NETWORK, ""])


def _result(result: dict[str, Any]) -> list[str]:
    rows = result.get("rows")
    if not rows:
        return [f"- {key}: {value}" for key, value in result.items()]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, ["---"] * len(columns), *([_cell(row.get(c)) for c in columns] for row in rows)]
    return [", ".join(f"{k} {v}" for k, v in result.get("machine", {}).items()), ""] + [
        f"| {' | '.join(line)} |" for line in cells
    ]


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
