"""What a resumed run needs: states of random generators, and the options and data that must not have changed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, cast

import numpy as np
import torch

from util.options.version import VERSION


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
    """Restores the generators from `collect_rng_state`; CUDA's if both machines have such a device."""
    torch.set_rng_state(state["torch"].cpu())
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.asarray(keys.tolist(), dtype=np.uint32), position, has_gauss, cached))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss_next))
    if device is not None and device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


class TrainingData(Protocol):
    """The parts of training data that a checkpoint describes: layers, their statistics and encodings."""

    @property
    def layers(self) -> Sequence[Any]:
        """The layers in order."""

    @property
    def statistics(self) -> Sequence[Any]:
        """Statistics of each layer."""

    @property
    def encodings(self) -> Sequence[Any]:
        """Encoding of each layer."""

    def record(self) -> dict[str, Any]:
        """Further values to store."""


class Batches(Protocol):
    """The numbers of tiles that a resumed run must share."""

    @property
    def tiles(self) -> int:
        """Tiles in an epoch."""

    @property
    def effective_batch(self) -> int:
        """Tiles in an update, over all processes."""


def describe_run(
    data: TrainingData,
    batches: Batches,
    model_config: Mapping[str, Any],
    *,
    options: Mapping[str, Any],
    decisive: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the part of a checkpoint that stays the same during a run.

    Args:
        data: the training data.
        batches: their batches.
        model_config: arguments that rebuild the network.
        options: all options of the run.
        decisive: the options that a resumed run must share.

    Returns:
        The entries of the checkpoint. "facts" holds what must be the same for a run to be resumed exactly.
    """
    facts = {
        "options": dict(decisive),
        "effective batch (batch_size x accum_iter x processes)": batches.effective_batch,
        "layers": [
            {"name": layer.name, "kind": layer.kind, "units": layer.units}
            | ({} if layer.transform == "none" else {"transform": layer.transform})
            | ({"classes": list(encoding.codes)} if encoding.codes else {})
            for layer, encoding in zip(data.layers, data.encodings, strict=True)
        ],
        "model": _decisive_config(model_config),
        "tiles an epoch": batches.tiles,
        "statistics": [
            {"name": item.name, "location": f"{item.centre:.6g}", "spread": f"{item.scale:.6g}"}
            | ({"detail": f"{item.detail:.6g}"} if item.detail else {})
            for item in data.statistics
        ],
    }
    return {
        "model_config": dict(model_config),
        "layers": [asdict(layer) for layer in data.layers],
        "statistics": [item.as_dict() for item in data.statistics],
        "encodings": [encoding.plain() for encoding in data.encodings],
        "options": dict(options),
        "version": VERSION,
        **data.record(),
        "facts": facts,
    }


def _decisive_config(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a network that a resumed run must share.

    The `form` of a layer is left out: it follows from its kind, and older checkpoints lack it, as they lack stems. The
    detail of layers is compared among the statistics, which are rounded.
    """
    aside = {"grad_checkpointing", "detail_scales"}
    if model_config.get("stem", "base") == "base":
        aside |= {"stem", "native_scales"}
    config = {key: value for key, value in model_config.items() if key not in aside}
    if config.get("layers") is not None:
        config["layers"] = [{key: value for key, value in row.items() if key != "form"} for row in config["layers"]]
    return config


def check_same_run(state: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Checks that a checkpoint is of a run like the one described, part by part: options first.

    Args:
        state: the checkpoint.
        description: from `describe_run`.

    Raises:
        ValueError: naming every difference in the first part that differs.
    """
    for what, value in description["facts"].items():
        check_same_configuration({what: state.get("facts", {}).get(what)}, {what: value}, what)


def check_same_configuration(saved: Mapping[str, Any], current: Mapping[str, Any], what: str) -> None:
    """Checks that a run is resumed with the configuration that it was started with.

    Args:
        saved: configuration in the checkpoint, nested dicts and lists of plain values.
        current: configuration of this run. Tuples equal lists, and a key 1 equals a key "1", as after JSON.
        what: name of the configuration in the message, such as "model" or "layers".

    Raises:
        ValueError: they differ; names every differing key with both values.
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
