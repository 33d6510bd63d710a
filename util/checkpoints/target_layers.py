"""Layers that pre-training predicted and never saw: which they are, and a checkpoint without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from util.model.layer_losses import layer_channels

BY_CHANNEL = ("native_scales", "detail_scales")
"""Arguments of an encoder that have a value for each channel."""
OF_DECODER = ("target_groups", "layers", "scored", "channel_weights")
"""Arguments of the masked autoencoder that count channels of targets, and that no encoder has."""


def target_numbers(state: Mapping[str, Any]) -> list[int]:
    """Numbers of the target layers of a checkpoint; none after fine-tuning, whose networks have no targets."""
    config = state["model_config"]
    if not config.get("target_groups"):
        return []
    channels = {c for group in config["channel_groups"][-config["target_groups"] :] for c in group}
    layers = layer_channels(config.get("layers"), config["in_chans"])
    return [number for number, layer in enumerate(layers) if layer.first in channels]


def without_targets(config: Mapping[str, Any], contents: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint as the encoder knows it: layers and channels that it sees, numbered anew.

    Args:
        config: arguments of the masked autoencoder.
        contents: of the checkpoint.

    Returns:
        The arguments of the encoder, and the contents, in which `targets` lists the layers that were left out. Both
        unchanged without target layers.
    """
    targets = target_numbers({"model_config": config})
    if not targets:
        return dict(config), dict(contents)
    groups = config["channel_groups"][: -config["target_groups"]]
    channels = sorted(c for group in groups for c in group)
    kept = [number for number in range(len(contents["layers"])) if number not in targets]
    encoder = {key: value for key, value in config.items() if key not in OF_DECODER}
    encoder |= {"in_chans": len(channels), "channel_groups": [[channels.index(c) for c in group] for group in groups]}
    encoder |= {key: [config[key][c] for c in channels] for key in BY_CHANNEL if config.get(key) is not None}
    options = contents["options"]
    masked = [kept.index(number) for number in options.get("masked_bands") or ()]
    rows = {key: [contents[key][number] for number in kept] for key in ("layers", "statistics", "encodings")}
    left_out = [contents["layers"][number] for number in targets]
    return encoder, {**contents, **rows, "targets": left_out, "options": {**options, "masked_bands": masked}}
