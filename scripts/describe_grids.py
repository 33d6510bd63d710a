"""Says what would be read, and how, before any training: `python -m scripts.describe_grids --data_dir DIR [--json]`.

Takes the data, tile and model options of `main_pretrain`, and accepts and refuses exactly what it does.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.parsers import describe_grids_parser
from util.options import table_names
from util.options.early import before_imports

if __name__ == "__main__":  # --help and wrong flags are answered at once: the imports below take seconds
    before_imports(describe_grids_parser(__doc__, **table_names.PRETRAIN))

import argparse
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rasterio.crs import CRS

import models_mae_group_channels as models
from datasets.ground.grid import crs_name, length_unit
from datasets.layers.encoding import Encoding
from datasets.layers.kinds import KINDS
from datasets.layers.layer import NO_TRANSFORM
from datasets.layers.paths import sheet_paths, shown_path
from datasets.loading.token_masks import MASK_SHAPES, new_masks
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.survey.open_test_survey import open_test_survey
from datasets.survey.suggestion import LEAST_UPDATES, Suggestion, short_run, suggest
from datasets.survey.survey import Survey
from datasets.synthetic.sample_survey import default_survey
from util.options import common as options
from util.options import pretrain as pretrain_options
from util.options.commands import command, without_flags
from util.processes.terminal import setup_logging
from util.training.flops import StepCost, step_cost
from util.training.memory import count_tensors
from util.training.setup import require_something_to_learn
from util.training.training_step import pretraining_step


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    names = {"mask_shapes": tuple(MASK_SHAPES), "scale_heads": tuple(models.SCALE_HEADS), "stems": tuple(models.STEMS)}
    return describe_grids_parser(__doc__, **names)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; exit status 2 for bad input."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args, given = options.parsed(get_args_parser(), argv)
    setup_logging()
    logging.getLogger("datasets").setLevel(logging.WARNING)
    suggestion = None
    try:
        if args.dataset_type == "grid" and not (args.data_dir or args.train_path or args.data_path):
            args.train_path = str(default_survey() / "layers.csv")
        if args.suggest:
            updates = {"tiles_per_update": options.tiles_per_update(args)}
            settings = SurveySettings(**options.survey_options(args, given))
            suggestion = suggest(settings, options.chosen(args, given), **updates)
            args = options.replaced(args, **suggestion.options)
        settings = SurveySettings(**options.survey_options(args))
        survey = open_survey(settings)
        scored = open_test_survey(survey, args.test_path, settings=settings) if args.test_path else survey
        network = models.build_model(args.model, **options.model_options(args), **survey.channel_options())
        new_masks(**pretrain_options.mask_options(args), groups=network.encoded_groups)
        require_something_to_learn(network, mask_ratio=args.mask_ratio, loss_weights=(1.0, 1.0))
        if args.batch_size == "auto":
            raise ValueError("--batch_size auto: expected a number here; main_pretrain --dry_run says what fits")
        cost = step_cost(network, batch_size=args.batch_size, mask_ratio=args.mask_ratio)
        step = pretraining_step(network, mask_ratio=args.mask_ratio)
        memory = count_tensors(step, batch_size=args.batch_size)
    except (ValueError, OSError) as error:
        print(f"describe_grids: error: {error}", file=sys.stderr)
        return 2
    facts = describe(survey, cost, memory, model=args.model, batch_size=args.batch_size, patch_size=args.patch_size)
    facts["tiles"]["val"] = len(scored.held_out_tiles)
    if scored is not survey:
        more = scored.training_warnings(args.patch_size)
        facts["warnings"] = list(dict.fromkeys([*facts["warnings"], *more]))
    few = short_run(updates=LEAST_UPDATES, held_out=facts["tiles"]["val"], scores=args.val_fraction > 0)
    words = without_flags(argv, "--suggest", "--json")
    if suggestion is not None:
        line = command("main_pretrain", *words, *suggestion.flags())
        facts["suggestion"] = suggestion_entry(suggestion, line)
    else:
        facts["warnings"] += [f"{text}; --suggest proposes settings" for text in few]
        facts["next"] = command("main_pretrain", *words, *["--auto"] * bool(few))
    try:
        print(json.dumps(facts, indent=2, allow_nan=False) if args.json else as_text(facts), flush=True)
    except OSError as error:
        print(f"describe_grids: error: the report cannot be written: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def suggestion_entry(suggestion: Suggestion, line: str) -> dict[str, Any]:
    """A suggestion as an object for JSON, with the command that takes it."""
    return {**asdict(suggestion), "lines": suggestion.lines(), "command": line}


def describe(
    survey: Survey, cost: StepCost, memory: int, *, model: str, batch_size: int, patch_size: int
) -> dict[str, Any]:
    """What a survey is, as one object for JSON; values in physical units over valid pixels; bytes of the tensors of a
    step in float32.
    """
    reference, base = survey.stack.reference, survey.base_resolution
    layers = [_layer_entry(survey, channel) for channel in range(len(survey.layers))]
    return {
        "layers": layers,
        "reference": {
            "crs": reference.crs.to_string(),
            "resolution": [reference.resolution_x, reference.resolution_y],
            "unit": length_unit(reference.crs),
            "shape": [reference.rows, reference.cols],
            "bounds": list(reference.bounds),
        },
        "base_resolution": base,
        "tile": {"pixels": survey.input_size, "ground": base * survey.input_size, "patch_ground": base * patch_size},
        "scales": list(survey.scales),
        "scored": {
            layer.name: [scale for scale in survey.scales if channel in survey.scored[scale]]
            for channel, layer in enumerate(survey.layers)
        },
        "groups": [[survey.layers[c].name for c in group] for group in survey.groups],
        "tiles": {"train": len(survey.tiles.train), "val": len(survey.tiles.val)},
        "estimate": {
            "model": model,
            "parameters": cost.parameters,
            "batch_size": batch_size,
            "flops_per_step": cost.step_flops,
            "forward_flops_per_step": cost.forward_flops,
            "head_share": cost.head_share,
            "memory_bytes": memory,
            "layers_in_memory": survey.stack.in_memory,
            "layers_bytes": survey.stack.memory_bytes,
        },
        "warnings": survey.training_warnings(patch_size),
    }


def _layer_entry(survey: Survey, channel: int) -> dict[str, Any]:
    """One layer of the description."""
    band, summary = survey.stack.bands[channel], survey.summaries[channel]
    layer = band.layer
    return {
        "name": layer.name,
        "path": str(layer.path),
        "sheets": len(sheet_paths(layer.path)),
        "band": layer.band,
        "kind": layer.kind,
        "transform": layer.transform,
        "loss": layer.loss or "as usual",
        "classes": _classes(survey.encodings[channel]),
        "units": layer.units,
        "crs": band.grid.crs.to_string(),
        "length_unit": length_unit(band.grid.crs),
        "resolution": [band.grid.resolution_x, band.grid.resolution_y],
        "shape": [band.grid.rows, band.grid.cols],
        "dtype": band.dtype,
        "nodata": _nodata([*band.stated, *summary.dummies]),
        "nodata_rule": band.nodata_rule,
        "valid_fraction": summary.valid_fraction,
        "min": summary.minimum,
        "max": summary.maximum,
        "mean": summary.mean,
        "std": summary.std,
        "sampled": summary.sampled,
        "suspicious": [*band.notes, *summary.suspicious],
        "group": next(g for g, group in enumerate(survey.groups) if channel in group),
        "correlation_length": _finite(survey.correlation_cells[channel] * survey.base_resolution),
    }


def _classes(encoding: Encoding) -> list[dict[str, Any]]:
    """Codes, names and frequencies of a categorical layer's classes; none of other layers."""
    rows = zip(encoding.codes, encoding.names, encoding.frequencies, strict=True)
    return [{"code": code, "name": name, "frequency": share} for code, name, share in rows]


def as_text(facts: dict[str, Any]) -> str:
    """The same as a page to read."""
    lines, unit = [], facts["reference"]["unit"]
    for number, layer in enumerate(facts["layers"]):
        resolution = " x ".join(f"{r:g}" for r in layer["resolution"])
        layer_unit = f" {layer['length_unit']}".rstrip()
        scored = " ".join(f"{scale}x" for scale in facts["scored"][layer["name"]]) or "no scale"
        length = layer["correlation_length"]
        length = "over a third of the survey, or unknown" if length is None else _length(length, unit)
        lines += [
            f"layer {number}  {layer['name']}  "
            f"({shown_path(layer['path'])}, band {layer['band']}, {layer['kind']}, {layer['dtype']})",
            f"    {layer['shape'][1]} x {layer['shape'][0]} pixels of {resolution}{layer_unit}, "
            + crs_name(CRS.from_string(layer["crs"])),
            f"    {100 * layer['valid_fraction']:.1f} % valid; {layer['nodata_rule']}",
            f"    {_values(layer)}; autocorrelation length {length}",
            f"    group {layer['group']}, scored at {scored}",
        ]
    reference, tile, estimate = facts["reference"], facts["tile"], facts["estimate"]
    memory = "held in memory" if estimate["layers_in_memory"] else "read by window"
    crs = crs_name(CRS.from_string(reference["crs"]))
    lines += [
        f"reference grid  {reference['shape'][1]} x {reference['shape'][0]} pixels of "
        f"{' x '.join(f'{r:g}' for r in reference['resolution'])} {unit}, {crs}",
        f"base pixel      {facts['base_resolution']:g} {unit}; scales "
        + ", ".join(f"{s}x = {facts['base_resolution'] / s:g} {unit}" for s in facts["scales"]),
        f"tile            {tile['pixels']} base pixels = {_length(tile['ground'], unit)}; a patch covers "
        f"{_length(tile['patch_ground'], unit)}",
        f"tiles           {facts['tiles']['train']} for training, {facts['tiles']['val']} held out",
        f"layers          {estimate['layers_bytes'] / 2**20:.1f} MiB as float32, {memory}",
        f"model           {estimate['model']}, {estimate['parameters'] / 1e6:.2f} M parameters; a step of "
        f"{estimate['batch_size']} tiles takes {estimate['flops_per_step'] / 1e9:.1f} GFLOP and about "
        f"{estimate['memory_bytes'] / 2**30:.2f} GiB; finer scales are {100 * estimate['head_share']:.1f} % of forward",
    ]
    lines += [f"warning: {text}" for text in facts["warnings"]]
    found = facts.get("suggestion", {"lines": [], "command": facts.get("next", "")})
    return "\n".join([*lines, *[""] * bool(found["lines"]), *found["lines"], "", f"next: {found['command']}"])


def _length(length: float, unit: str) -> str:
    """A length with its unit, in kilometres from 1000 m on."""
    return f"{length / 1000:.4g} km" if unit == "m" and length >= 1000 else f"{length:.4g} {unit}".rstrip()


def _values(layer: dict[str, Any]) -> str:
    """What the values of a layer are, in one line."""
    if layer["classes"]:
        common = sorted(layer["classes"], key=lambda row: -row["frequency"])
        shown = ", ".join(f"{row['code']:g} {row['name']} {100 * row['frequency']:.0f} %" for row in common[:6])
        return f"{len(common)} classes, commonest first: {shown}{' ...' * (len(common) > 6)}"
    kind = KINDS[layer["kind"]]
    units = layer["units"] or kind.unit("")
    text = f"{layer['min']:.6g} to {layer['max']:.6g}{' ' * bool(units)}{units}"
    if kind.is_angle:
        return text
    text += f", mean {layer['mean']:.6g}, spread {layer['std']:.6g}"
    return text if layer["transform"] == NO_TRANSFORM else f"{text}, transform {layer['transform']}"


def _nodata(values: Sequence[float]) -> float | str | list[float | str] | None:
    """One value as it is, several as a list, none as null; what JSON cannot write as text."""
    plain = [value if math.isfinite(value) else str(value) for value in map(float, values)]
    return None if not plain else plain[0] if len(plain) == 1 else plain


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
