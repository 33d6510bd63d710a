"""Checks that all processes resume from the same checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from util.processes import distributed as dist


def require_same_step(state: Mapping[str, Any] | None, name: str) -> None:
    """Refuses to resume when processes found different checkpoints.

    Args:
        state: contents of the checkpoint that this process found, None if it found none.
        name: beginning of the error message: what is resumed, or the flag that names it.

    Raises:
        ValueError: naming the first process that differs, in every process.
    """
    steps = dist.gather_objects(None if state is None else state["step"])
    for rank, step in enumerate(steps):
        if step != steps[0]:
            first, other = ("none" if s is None else f"a checkpoint of step {s}" for s in (steps[0], step))
            error = ValueError(
                f"{name}: process 0 found {first}, process {rank} {other}; expected the same: "
                "--output_dir must lie on a disk that all machines share"
            )
            raise dist.mark_shared(error)
