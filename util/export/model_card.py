"""What an exported model is: facts for headers of files, and the model card, a page to read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from util.checkpoints.target_layers import target_numbers
from util.export.files import card_path, whole_file
from util.inference.finetuned_task import provenance

NO_LICENCE = "not stated; ask whoever trained the model"


def model_facts(
    state: Mapping[str, Any],
    encodings: Sequence[Any],
    *,
    hidden: Sequence[int],
    licence: str,
    exported: Mapping[str, Any],
) -> dict[str, Any]:
    """Facts about a model as plain values: layers, statistics, pixels, ground, task and scores.

    Args:
        state: the checkpoint.
        encodings: per layer, how its values become channels.
        hidden: numbers of layers that the model was not shown.
        licence: of the weights; empty if nobody has stated one.
        exported: what the file holds: `format`, `part` and so on.
    """
    config, first, layers, targets = state["model_config"], 0, list[dict[str, Any]](), target_numbers(state)
    for number, (layer, encoding) in enumerate(zip(state["layers"], encodings, strict=True)):
        facts = {key: layer.get(key) for key in ("name", "units", "kind", "transform", "normalize")}
        facts |= {"shown": number not in hidden, "channels": list(range(first, first + encoding.channels))}
        facts |= {"target": True} if number in targets else {}
        facts["native_pixels_per_base_pixel"] = (config.get("native_scales") or {first: 1})[first]
        facts |= {"centres": list(encoding.centres), "scales": list(encoding.scales)}
        facts["classes"] = {f"{code:g}": name for code, name in zip(encoding.codes, encoding.names, strict=True)}
        layers.append(facts | {key: state["statistics"][number].get(key) for key in ("mean", "std", "median", "count")})
        first += encoding.channels
    found = {
        "version": state["version"],
        "licence": licence or NO_LICENCE,
        "exported": dict(exported),
        "tile_base_pixels": config["img_size"],
        "patch_base_pixels": config["patch_size"],
        "base_pixel_crs_units": state.get("base_resolution"),
        "stem": config.get("stem", "base"),
        "channel_groups": config["channel_groups"],
        "ground": _ground(state),
        "layers": layers,
    }
    if "task" in state:
        task = {key: state["task"].get(key) for key in ("kind", "units", "scale", "names", "codes")}
        found |= {"task": task, "training": provenance(state)}
    return _plain(found)


def _ground(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """CRS and bounds of training ground; None for images, which lie on no common ground."""
    found = state.get("ground") or {}
    return {key: found[key] for key in ("crs", "bounds")} if "bounds" in found else None


def _plain(value: Any) -> Any:
    """The same for JSON: lists for tuples, None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_card(path: Path, text: str) -> Path:
    """Writes the model card beside an exported file and returns its path.

    Args:
        path: the exported file.
        text: of `card_text`.

    Raises:
        OSError: it cannot be written.
    """
    card = card_path(path)
    with whole_file(card) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return card


def card_text(name: str, facts: Mapping[str, Any], *, usage: str) -> str:
    """The model card in Markdown.

    Args:
        name: of the exported file.
        facts: of `model_facts`.
        usage: lines of Python that load the file.
    """
    parts = [f"# {name}", _purpose(facts), "## Use", f"```python\n{usage}\n```", "## Layers", _layer_table(facts)]
    for layer in facts["layers"]:
        if layer["classes"]:
            classes = ", ".join(f"{code} {text}" for code, text in layer["classes"].items())
            parts.append(f"Classes of {layer['name']}: {classes}.")
    parts += ["## Pixels and ground", _pixels(facts)]
    if "task" in facts:
        lines = [f"- {key.replace('_', ' ')}: {value}" for key, value in facts["training"].items()]
        parts += ["## Training and scores", "\n".join(lines)]
    else:
        targets = ", ".join(layer["name"] for layer in facts["layers"] if layer.get("target"))
        taught = f"to predict {targets}, whose values it has learned wherever they were known" if targets else ""
        parts += [
            "## Training and scores",
            f"Pre-trained {taught or 'without labels'}. Skill on held-out ground is in `log.txt` of the run; the "
            "checkpoint has none.",
        ]
    parts += [
        "## Limits",
        "Predictions hold for layers of the same quantities, units and processing as in training, at the same base "
        "pixel. Nothing was tested on other ground than that named above.",
        "## Licence",
        f"Weights: {facts['licence']}. The software GRID-MAE {facts['version']} is under Apache-2.0.",
    ]
    return "\n\n".join(parts) + "\n"


def _purpose(facts: Mapping[str, Any]) -> str:
    """What the model does, in a few sentences."""
    task = facts.get("task")
    what = "A masked autoencoder of GRID-MAE, pre-trained on the layers below."
    if task:
        names = ", ".join(map(str, task["names"] or ())) or f"values{' in ' if task['units'] else ''}{task['units']}"
        what = f"A network of GRID-MAE, fine-tuned for {task['kind']}: {names}."
    exported = [f"{key.replace('_', ' ')} {value}" for key, value in facts["exported"].items()]
    return f"{what}\n\nExported: {', '.join(exported)}."


def _layer_table(facts: Mapping[str, Any]) -> str:
    """The layers in their order, with statistics of training ground."""
    rows = [
        "| | layer | kind | units | transform | centre | scale | mean | std | channels | native |",
        "|---" * 11 + "|",
    ]
    for number, layer in enumerate(facts["layers"]):
        centre, scale = (" ".join(f"{x:.6g}" for x in layer[key]) for key in ("centres", "scales"))
        kind = layer["kind"] if layer["shown"] else f"{layer['kind']}, not shown to the model"
        kind += ", but predicted" if layer.get("target") else ""
        channels = " ".join(map(str, layer["channels"]))
        values = [number, layer["name"], kind, layer["units"], layer["transform"], centre, scale]
        values += ["" if layer["classes"] else f"{layer[key]:.6g}" for key in ("mean", "std")]
        values += [channels, layer["native_pixels_per_base_pixel"]]
        rows.append("| " + " | ".join(str(value).replace("|", "/") for value in values) + " |")
    notes = (
        "Model units are (transformed value - centre) / scale. Mean and std are of training ground, in units. "
        "`native`: native pixels along the edge of a base pixel that the model sees."
    )
    return "\n".join(rows) + "\n\n" + notes


def _pixels(facts: Mapping[str, Any]) -> str:
    """Sizes and ground, a line each."""
    base, tile, ground = facts["base_pixel_crs_units"], facts["tile_base_pixels"], facts["ground"]
    lines = [f"- base pixel: {base:g} CRS units" if base else "- base pixel: that of the images"]
    lines += [f"- tile: {tile} x {tile} base pixels", f"- patch: {facts['patch_base_pixels']} base pixels"]
    lines += [f"- stem: {facts['stem']}", f"- channel groups: {facts['channel_groups']}"]
    if ground:
        bounds = ", ".join(f"{x:.10g}" for x in ground["bounds"])
        name = ground["crs"].split('"')[1] if '"' in ground["crs"] else ground["crs"]
        lines.append(f"- ground of training: left, bottom, right, top {bounds} in {name}")
    return "\n".join(lines)
