"""Encoder weights for fine-tuning, from a checkpoint of this program or one published with SatMAE or SatMAE++.

Loading is strict: a parameter that only the checkpoint or only the model has is refused unless it is listed below, and
so are different shapes, except of the position embedding, which is interpolated if tiles have another size.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from util.checkpoints.checkpoint_file import CheckpointError, checkpoint_in, load_checkpoint
from util.checkpoints.target_layers import without_targets
from util.model.patches import SENTINEL_GROUPS
from util.model.pos_embed import resize_positions

PRETRAINING_ONLY = (
    "mask_token",
    "decoder_",
    "proj_up_conv.",
    "proj_up_norm.",
    "up_block",
    "subpixel_heads.",
    "texture_head.",
)
"""Prefixes of parameters that only pre-training has; not loaded."""
TASK_ONLY = ("head.",)
"""Prefixes of parameters of a task; not loaded, and new in the model."""
MAY_BE_LEFT_OUT = ("norm.", "fc_norm.", "channel_cls_embed", "stems.")
"""Not loaded if the model has none: `norm` with a mean over tokens, stems with --stem base, the others in pre-training.
"""
MAY_BE_NEW = (*TASK_ONLY, "fc_norm.", "channel_cls_embed", "nodata_token", "stems.")
"""Keep their initial values if the weights have none; so does `norm` if the weights have `fc_norm` instead."""
COMPARED = ("in_chans", "channel_groups", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "channel_embed")
"""Arguments of the encoder that must agree; `img_size` may differ."""
HEAD_WIDTH = 64  # numbers per attention head in every published and named size
_NOT_NEEDED = ("model", "raw_model", "optimizer", "scaler", "rng")


@dataclass(frozen=True)
class EncoderWeights:
    """Weights as read from a file, with the description of their model.

    Attributes:
        path: the file.
        state: parameters by name, on the CPU.
        config: arguments of the model; those of a published encoder are inferred from names and shapes.
        contents: the other contents of the file without the optimiser: `layers`, `statistics`, `options`,
            `base_resolution` and so on; of a published one `args` (a dict) and `epoch`. Target layers of pre-training,
            which the encoder never saw, are listed under `targets` alone.
        published: not written by this program.
    """

    path: Path
    state: dict[str, Tensor]
    config: dict[str, Any]
    contents: dict[str, Any]
    published: bool

    def digest(self) -> str:
        """First digits of a SHA-256 over names and values, to recognise the same weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state.items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class EncoderReport:
    """Names of the parameters that were loaded, skipped, new or interpolated."""

    loaded: tuple[str, ...]
    left_out: tuple[str, ...]
    new: tuple[str, ...]
    interpolated: str  # parameter and both grids; "" if none

    def summary_lines(self) -> list[str]:
        """The report as lines for the log."""
        lines = [f"encoder weights: {len(self.loaded)} tensors loaded"]
        if self.interpolated:
            lines.append(f"interpolated: {self.interpolated}")
        for what, names in (("not needed, not loaded", self.left_out), ("new, not in the file", self.new)):
            if names:
                lines.append(f"{what}: {', '.join(_summary(names))}")
        return lines


def _summary(names: Sequence[str]) -> list[str]:
    """First parts of dotted names, with their numbers of tensors."""
    counts: dict[str, int] = {}
    for name in names:
        first = name.split(".")[0]
        counts[first] = counts.get(first, 0) + 1
    return [f"{first} ({count})" for first, count in counts.items()]


def read_encoder_weights(path: str | os.PathLike[str]) -> EncoderWeights:
    """Reads a checkpoint of this program, checked byte for byte, or a published one, without running any code in it.

    Args:
        path: a file of `save_checkpoint` from pre-training or fine-tuning, or a published .pth: a dict
            with the parameters under `model` and the options, an argparse.Namespace, under `args`.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged, incomplete, without an encoder, or holding anything but plain data, tensors and that
            Namespace (a pickle that would run code is refused, not run).
    """
    path = checkpoint_in(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"weights {path}: no such file; give the path of a checkpoint, such as checkpoint-last.pth in an output_dir"
        )
    ours = _has_our_checksum(path)
    contents = load_checkpoint(path, required=("model", "model_config")) if ours else _load_published(path)
    if ours and contents["model_config"].get("kind") == "unet":
        raise CheckpointError(
            f"weights {path}: a U-Net, a baseline of main_finetune without an encoder of ours; give a checkpoint of "
            "main_pretrain, or of another method"
        )
    state = contents.get("model")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"weights {path}: expected a dict of tensors under 'model', found {type(state).__name__}; give a "
            "checkpoint as training wrote it"
        )
    rest = {key: value for key, value in contents.items() if key not in _NOT_NEEDED}
    args = rest.get("args")
    if isinstance(args, argparse.Namespace):
        rest["args"] = vars(args)
    if ours:
        config, rest = without_targets(contents["model_config"], rest)
    else:
        state = {name: tensor.clone() for name, tensor in state.items()}  # out of the file
        config = _config_from_shapes(path, state, rest.get("args"))
    return EncoderWeights(path, dict(state), config, rest, published=not ours)


def _has_our_checksum(path: Path) -> bool:
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as file:
        return file.comment.startswith(b"GRID-MAE ")
    return False


def _load_published(path: Path) -> dict[str, Any]:
    """Reads a file without our checksum; large tensors stay in the file until they are copied."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"weights {path}: refused, it holds Python objects other than tensors, plain data and an "
            f"argparse.Namespace, or is no checkpoint at all ({reason}); loading such objects can run any program. "
            "Use a file as published by its authors"
        ) from error
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(
            f"weights {path}: cannot be read ({reason}); the file is cut short, damaged or no checkpoint, fetch it "
            "again"
        ) from error
    if isinstance(contents, dict) and "model_config" in contents:
        raise CheckpointError(
            f"weights {path}: written by this program, but its checksum is missing, so it is damaged or was saved "
            "anew; use the file as training wrote it"
        )
    return contents if isinstance(contents, dict) else {"model": contents}


def _config_from_shapes(path: Path, state: Mapping[str, Tensor], args: Any) -> dict[str, Any]:
    """Infers the arguments of an encoder from its parameters.

    Arguments that shapes do not determine come from the options, or else are those published: heads of width 64, and
    for groups of 4, 4 and 2 channels those of SatMAE; other groups hold consecutive channels.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    sizes: list[int] = []
    while len(shape := shapes.get(f"patch_embed.{len(sizes)}.proj.weight", ())) == 4:
        sizes.append(shape[1])
    needed = ("pos_embed", "channel_embed", "blocks.0.mlp.fc1.weight")
    if not sizes or any(name not in shapes for name in needed):
        raise CheckpointError(
            f"weights {path}: no grouped-channel encoder: expected patch_embed.0.proj.weight, {', '.join(needed)} "
            f"under 'model', found {', '.join(list(shapes)[:4]) or 'nothing'}, ...; only models with channel groups "
            "(model_type group_c) fit"
        )
    width, patch_size = shapes["patch_embed.0.proj.weight"][0], shapes["patch_embed.0.proj.weight"][2]
    options = args if isinstance(args, dict) else {}
    return {
        "img_size": _grid_edge(shapes["pos_embed"][1]) * patch_size,
        "patch_size": patch_size,
        "in_chans": sum(sizes),
        "channel_groups": _published_groups(sizes, options.get("grouped_bands")),
        "channel_embed": shapes["channel_embed"][2],
        "embed_dim": width,
        "depth": _count_blocks(shapes),
        "num_heads": max(width // HEAD_WIDTH, 1),
        "mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / width,
    }


def _published_groups(sizes: Sequence[int], stated: Any) -> list[list[int]]:
    for groups in (stated, SENTINEL_GROUPS):
        if groups and [len(group) for group in groups] == list(sizes):
            return [[int(c) for c in group] for group in groups]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def _grid_edge(positions: int) -> int:
    """Edge of the square grid of patches; the first position is that of the class token."""
    return round((positions - 1) ** 0.5)


def _count_blocks(names: Mapping[str, Any]) -> int:
    return len({match[1] for name in names if (match := re.match(r"blocks\.(\d+)\.", name))})


def load_encoder(model: nn.Module, weights: EncoderWeights) -> EncoderReport:
    """Loads encoder weights into a model for fine-tuning, strictly.

    Args:
        model: of `models_vit_group_channels`, with its `config`; not wrapped. Unchanged if anything is refused.
        weights: from `read_encoder_weights`.

    Returns:
        Names of the parameters loaded, skipped and new.

    Raises:
        ValueError: the encoders differ in anything but the number of patches, or a name is missing or unknown.
    """
    _check_same_encoder(weights, model.config)
    state, own = dict(weights.state), model.state_dict()
    interpolated = ""
    if "pos_embed" in state and state["pos_embed"].shape[1] != own["pos_embed"].shape[1]:
        grids = [_grid_edge(tensors["pos_embed"].shape[1]) for tensors in (state, own)]
        state["pos_embed"] = resize_positions(state["pos_embed"].float(), grids[1])
        interpolated = f"pos_embed from {grids[0]} x {grids[0]} to {grids[1]} x {grids[1]} patches"
    left_out = [name for name in state if _is_left_out(name, own)]
    new = [name for name in own if _is_new(name, state)]
    unknown = [name for name in state if name not in own and name not in left_out]
    missing = [name for name in own if name not in state and name not in new]
    unequal = [
        f"{name}: weights {tuple(state[name].shape)}, model {tuple(own[name].shape)}"
        for name in own
        if name in state and name not in left_out and state[name].shape != own[name].shape
    ]
    if unknown or missing or unequal:
        parts = {"not in the model": unknown, "not in the weights": missing, "of another shape": unequal}
        found = "; ".join(f"{what}: {', '.join(names[:6])}" for what, names in parts.items() if names)
        raise ValueError(
            f"weights {weights.path}: {len(unknown) + len(missing) + len(unequal)} parameters do not fit the encoder "
            f"({found}); expected the names and shapes of SatMAE++ or of this program. Use a checkpoint of such a "
            "model, or train from scratch"
        )
    loaded = [name for name in own if name in state and name not in left_out]
    started = {name: torch.zeros_like(own[name]) for name in new if name.startswith("stems.") and ".proj." in name}
    model.load_state_dict({**own, **started, **{name: state[name] for name in loaded}}, strict=True)
    return EncoderReport(tuple(loaded), tuple(left_out), tuple(new), interpolated)


def _is_left_out(name: str, own: Mapping[str, Any]) -> bool:
    """Whether a weight is not loaded into this model, by the lists above."""
    return name.startswith((*PRETRAINING_ONLY, *TASK_ONLY)) or (name not in own and name.startswith(MAY_BE_LEFT_OUT))


def _is_new(name: str, state: Mapping[str, Any]) -> bool:
    """Whether a parameter keeps its initial value, by the lists above."""
    if name.startswith(TASK_ONLY):
        return True
    pooled = any(key.startswith("fc_norm.") for key in state)
    return name not in state and name.startswith((*MAY_BE_NEW, "norm.") if pooled else MAY_BE_NEW)


def _check_same_encoder(weights: EncoderWeights, config: Mapping[str, Any]) -> None:
    """Raises ValueError naming every argument of the encoder that differs, with both values."""
    names = [str(layer["name"]) for layer in weights.contents.get("layers", []) if isinstance(layer, Mapping)]
    differing = []
    for key in COMPARED:
        theirs, mine = _plain(weights.config.get(key)), _plain(config.get(key))
        if theirs != mine:
            differing.append(f"{key}: weights {theirs}, model {mine}")
    if not differing:
        return
    layers = f" (their layers: {', '.join(f'{i} {name}' for i, name in enumerate(names))})" if names else ""
    raise ValueError(
        f"weights {weights.path}{layers} belong to another encoder than the model's: {'; '.join(differing)}. Build the "
        "model with the layers, groups and sizes of the weights, or train from scratch without them"
    )


def _plain(value: Any) -> Any:
    """Tuples as lists, and whole numbers as int, so that a config equals itself after JSON."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
