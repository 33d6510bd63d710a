"""Weights as a torch file that our programs take, or as safetensors."""

from __future__ import annotations

import json
import re
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


PATHS = frozenset(
    "aoi classes data_dir data_path dist_url finetune label_classes labels labels_file log_dir output_dir path resume "
    "table test_path train_path".split()
)
"""Keys of options and layers whose texts are paths, also relative ones."""

_WKT = re.compile(r"\s*[A-Z_]+\s*\[\s*\"")
_URL = re.compile(r"[A-Za-z][\w+.-]+://")
_DRIVER = re.compile(r"[A-Za-z]\w+:(\d+:)?")
"""What GDAL writes before a file: `NETCDF:`, `GTIFF_DIR:1:`; drives of Windows have one letter."""
_QUOTED_FILE = re.compile(r'"(?P<file>[^"]*)"(?P<rest>.*)', re.DOTALL)
_FILE = re.compile(r"(?P<file>(?:[A-Za-z]:[\\/])?[^:]*)(?P<rest>.*)", re.DOTALL)
_ABSOLUTE = re.compile(r'"?(/|\./|\.\./|~|\\\\|[A-Za-z]:[\\/])')


def shared_entries(state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a checkpoint that others need, with paths cut down to the names of files."""
    return {key: _without_folders(value, is_path=key in PATHS) for key, value in state.items() if key not in NOT_SHARED}


def _without_folders(value: Any, *, is_path: bool) -> Any:
    """The same plain value, every path of a file in it without its folders; texts are paths, or may be."""
    if type(value) is str:
        parts = value.split("|")  # sheets
        return "|".join(without_folders(part) if is_path or _looks_like_path(part) else part for part in parts)
    if type(value) is dict:
        return {key: _without_folders(item, is_path=key in PATHS) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_folders(item, is_path=is_path) for item in value)
    return value


def _looks_like_path(text: str) -> bool:
    """Whether a text is an absolute path or a URL, also after `xarray:` or the name of a driver; no CRS is."""
    if _WKT.match(text) or "\n" in text:
        return False
    driver = _DRIVER.match(text)
    named = text[driver.end() :] if driver else text
    return any(form.match(part) for form in (_ABSOLUTE, _URL) for part in (text, named))


def without_folders(path: str) -> str:
    """The path of a layer or file without its folders, and a URL without host and query; the variable stays."""
    store, mark, variable = path.rpartition("#")
    if path.startswith("xarray:") and mark:
        return f"xarray:{_last_part(store.removeprefix('xarray:'))}#{variable}"
    driver = None if _URL.match(path) else _DRIVER.match(path)
    if driver is None:
        return _last_part(path)
    named = path[driver.end() :]
    quoted = _QUOTED_FILE.fullmatch(named)
    found = quoted or _FILE.fullmatch(named)
    assert found is not None  # `_FILE` matches any text
    quote = '"' if quoted else ""
    return f"{driver[0]}{quote}{_last_part(found['file'])}{quote}{found['rest']}"


def _last_part(path: str) -> str:
    """What follows the last slash of a path."""
    path = path.partition("?")[0] if _URL.match(path) else path
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


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
