"""Weights as a torch file that our programs take, or as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.checkpoints.checkpoint_file import save_checkpoint
from util.export.files import whole_file

NOT_SHARED = (
    "raw_model",
    "averaged_updates",
    "optimizer",
    "scaler",
    "rng",
    "seen",
    "best",
    "length",
    "facts",
    "presences",
    "epoch",
    "update",
    "trained_s",
    "trained_cpu_s",
)
"""Entries of a checkpoint that only resuming needs, or that hold where labels lie."""


def shared_entries(state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a checkpoint that others need, with paths cut down to the names of files."""
    return {key: _without_folders(value) for key, value in state.items() if key not in NOT_SHARED}


def _without_folders(value: Any) -> Any:
    """The same plain value, every path of a file in it without its folders."""
    if type(value) is str:
        return "|".join(_file_name(part) for part in value.split("|"))
    if type(value) is dict:
        return {key: _without_folders(item) for key, item in value.items()}
    return type(value)(map(_without_folders, value)) if type(value) in (list, tuple) else value


def _file_name(text: str) -> str:
    """The last part of a path; other text as it is."""
    if "\n" in text or "[" in text:  # a CRS as WKT
        return text
    is_path = text.startswith(("/", "./", "../", "~", "\\\\")) or text[1:3] in (":\\", ":/") or "://" in text
    return text.replace("\\", "/").rstrip("/").rpartition("/")[2] if is_path else text


def write_torch(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint without what only resuming needs: for `torch.load`, `--finetune` and `--checkpoint`.

    Raises:
        OSError: it cannot be written.
    """
    save_checkpoint(path, shared_entries(state))


def write_safetensors(path: Path, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes the weights, with `model_config` and the facts of the model card as JSON in the header.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save_file

    weights = {name: tensor.contiguous().clone() for name, tensor in state["model"].items()}
    header = {
        "format": "pt",
        "model_config": json.dumps(state["model_config"]),
        "encodings": json.dumps(state.get("encodings", [])),
        "gridmae": json.dumps(facts),
    }
    with whole_file(path) as temporary:
        save_file(weights, str(temporary), metadata=header)
