"""State needed to resume exactly: random generators, and the options and data that must not have changed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch


def collect_rng_state(device: torch.device | None = None) -> dict[str, Any]:
    """Returns the states of the global generators of Python, numpy, torch and a CUDA device as plain data."""
    name, keys, position, has_gauss, cached = cast(tuple, np.random.get_state(legacy=True))
    version, internal, gauss_next = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [
            str(name),
            torch.tensor([int(key) for key in keys]),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "python": [version, torch.tensor(internal), gauss_next],
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng_state(state: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Puts the generators back as `collect_rng_state` found them; CUDA's where both have such a device."""
    torch.set_rng_state(state["torch"].cpu())
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.asarray(keys.tolist(), dtype=np.uint32), position, has_gauss, cached))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss_next))
    if device is not None and device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def check_same_configuration(saved: Mapping[str, Any], current: Mapping[str, Any], what: str) -> None:
    """Checks that a run is continued with the configuration that it was begun with.

    Args:
        saved: configuration in the checkpoint, nested dicts and lists of plain values.
        current: the one of this run. Tuples equal lists, and a key 1 equals a key "1", as after JSON.
        what: what they configure, for the message, such as "model" or "layers".

    Raises:
        ValueError: they differ; names every key that does, with both values.
    """
    left, right = dict(_flatten(saved, "")), dict(_flatten(current, ""))
    lines = []
    for key in [*left, *(key for key in right if key not in left)]:
        old, new = left.get(key, "(absent)"), right.get(key, "(absent)")
        if old != new and not (old != old and new != new):  # NaN equals NaN here
            lines.append(f"{key}: checkpoint {old!r}, now {new!r}")
    if lines:
        raise ValueError(
            f"{what} of the checkpoint differs from this run's in {len(lines)} value(s): " + "; ".join(lines) + ". "
            "Give the same values to continue that run, or start afresh without --resume in another "
            "--output_dir"
        )


def _flatten(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yields (dotted place, plain value) of every leaf; an empty dict or list is a leaf."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple) and value:
        for index, item in enumerate(value):
            yield from _flatten(item, f"{place}[{index}]")
    else:
        yield place, list(value) if isinstance(value, tuple) else value
