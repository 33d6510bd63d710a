"""Says which layer can be predicted from which others: `python -m scripts.layer_report --checkpoint CHECKPOINT`.

Skill on held-out ground with whole groups of layers hidden or shown, as layer_report.csv and layer_report.png. It tells
which survey the others had already told.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.parsers import layer_report_parser
from util.options.early import before_imports

if __name__ == "__main__":  # --help and wrong flags are answered at once: the imports below take seconds
    before_imports(layer_report_parser(__doc__))

import argparse
import csv
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import models_mae_group_channels as models
from datasets.loading.token_masks import Masks
from datasets.survey.inference_survey import stored_encodings, stored_layers
from datasets.survey.open_layers import TrainedLayers
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.survey.survey import Survey
from util.checkpoints import checkpoint_file
from util.hardware.device import select_device
from util.metrics.cross_layer_skill import CrossLayerScore, ShownGroups, cross_layer_scores
from util.metrics.skill import ScoredLayer
from util.options import common as options
from util.options.commands import after_pretraining
from util.plots.cross_layer_skill import matrix_figure
from util.plots.reconstruction import save_figure
from util.processes.terminal import setup_logging
from util.records.log import check_writable

logger = logging.getLogger("scripts.layer_report")

NEEDED = ("model", "model_config", "layers", "statistics", "options")
REPORT_EPOCH = -1
"""Own tokens that are shown are drawn as those of this epoch: always the same."""


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    return layer_report_parser(__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; exit status 2 for bad input."""
    args = get_args_parser().parse_args(argv)
    setup_logging()
    folder = Path(args.output_dir)
    try:
        check_writable(folder, flag="--output_dir")
        device = select_device(args.device)
        state = checkpoint_file.load_checkpoint(args.checkpoint, required=NEEDED)
        network = load_network(args.checkpoint, state).to(device)
        survey = open_data(state, args.train_path)
        scores = cross_layer_scores(
            network,
            batches(survey, network, device, most=args.val_tiles, batch_size=args.batch_size, options=state["options"]),
            layers=[
                ScoredLayer(channels, e.decode, e.physical_per_model_unit, e.means, e.period)
                for channels, e in zip(network.layers, survey.encodings, strict=True)
            ],
            groups=survey.groups,
            scored=network.scored_layers[1],
            mask_ratio=state["options"].get("mask_ratio", 0.75),
        )
    except (ValueError, OSError) as error:
        print(f"layer_report: error: {error}", file=sys.stderr)
        return 2
    names = ["+".join(survey.layers[c].name for c in group) for group in survey.groups]
    write_table(folder / "layer_report.csv", survey, names, scores)
    draw(folder / "layer_report.png", survey, names, scores)
    print("\n".join(table_lines(survey, names, scores)))
    logger.info("table    %s", folder / "layer_report.csv")
    logger.info("picture  %s", folder / "layer_report.png")
    for line in after_pretraining(Path(args.checkpoint)):
        logger.info("next: %s", line)
    return 0


def load_network(path: str, state: dict[str, Any]) -> models.MaskedAutoencoderGroupChannelViT:
    """The trained network.

    Raises:
        ValueError: it cannot hide single groups, or predicts no physical values.
    """
    config = state["model_config"]
    if config.get("decoder_depth") is None:
        raise ValueError(f"--checkpoint {path}: not a pre-training checkpoint; expected one of main_pretrain")
    if config.get("target_groups"):
        raise ValueError(
            f"--checkpoint {path}: trained with --target_layers, whose layers are never shown; expected a model that "
            "sees every layer. How well targets are predicted stands in the run's log.txt and report.html"
        )
    for flag in ("spatial_mask", "norm_pix_loss"):
        if config.get(flag):
            raise ValueError(f"--checkpoint {path}: trained with --{flag}, expected a model without it; train one")
    if len(config["channel_groups"]) < 2:
        raise ValueError(
            f"--checkpoint {path}: one group of layers, expected at least two, since layers of a group are hidden "
            "together; train with a group for each layer (column `group` of layers.csv, or --grouped_bands)"
        )
    network = models.MaskedAutoencoderGroupChannelViT(**{**config, "grad_checkpointing": False})
    network.load_state_dict(state["model"])
    return network.eval()


def open_data(state: dict[str, Any], layers_table: str | None) -> Survey:
    """The survey of training with its held-out ground, in the units of training.

    Raises:
        ValueError, OSError: it cannot be opened, or nothing was held out.
    """
    parser = argparse.ArgumentParser()
    options.add_data_options(parser)
    options.add_model_options(parser)
    defaults = vars(parser.parse_args([])) | {"stem": state["model_config"].get("stem", options.BASE_STEM)}
    trained = argparse.Namespace(**{**defaults, **state["options"]})  # older ones lack new options
    if trained.dataset_type in options.SCENE_TYPES:
        raise ValueError(
            f"trained on {trained.dataset_type} images, expected layers of one ground (--dataset_type grid)"
        )
    encodings = stored_encodings(state)
    chosen = options.survey_options(trained)
    if layers_table is not None:
        chosen |= {"data_dir": None, "layers_table": layers_table}
    known = TrainedLayers(stored_layers(state["layers"]), encodings)
    survey = open_survey(SurveySettings(**chosen, trained=known))
    if not len(survey.tiles.val):
        raise ValueError("no held-out tiles (--val_fraction of training), expected some to score; train with some")
    return survey


def batches(
    survey: Survey, network: Any, device: torch.device, *, most: int, batch_size: int, options: Mapping[str, Any]
) -> Iterator[tuple[Tensor, Tensor, Tensor, Sequence[Tensor]]]:
    """Yields held-out tiles, spread evenly, the noise that decides which own tokens are shown, and native pixels."""
    origins = survey.tiles.val
    if len(origins) > most:
        origins = origins[np.linspace(0, len(origins) - 1, most).round().astype(int)]
    side = network.img_size // network.patch_size
    masks = Masks((("random", 1.0),), groups=network.num_groups, side=side, spatial=False, mask_ratio=0.5)
    reader, pyramid = survey.reader(), survey.pyramid()
    for k in range(0, len(origins), batch_size):
        numbers = np.arange(k, min(k + batch_size, len(origins)))
        sample = pyramid(*reader.read(origins[numbers]).to(device).parts)
        noise = masks.noise(numbers, seed=options.get("seed", 0), epoch=REPORT_EPOCH)
        uniform = torch.from_numpy(noise).to(device).unflatten(1, (network.num_groups, -1))
        yield sample.imgs, sample.valid, uniform, sample.native


def shown_text(shown: ShownGroups, names: Sequence[str]) -> str:
    """The shown groups in words."""
    return " and ".join([f"part of {names[shown.target]}"] * shown.own + [names[g] for g in shown.others])


def write_table(
    path: Path, survey: Survey, names: Sequence[str], scores: Mapping[tuple[int, ShownGroups], CrossLayerScore]
) -> None:
    """Writes all numbers, a row for each layer and choice of shown groups."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["layer", "kind", "shown", "skill", "measure", "model", "constant", "pixels"])
        for (c, shown), score in scores.items():
            classes = survey.encodings[c].is_classes
            values = [1 - x if classes else math.sqrt(x) for x in (score.report, score.constant_report)]
            row = [survey.layers[c].name, survey.encodings[c].kind, shown_text(shown, names), f"{score.skill:.4f}"]
            writer.writerow([*row, "accuracy" if classes else "rmse", *(f"{v:.6g}" for v in values), score.pixels])


def skill_of(scores: Mapping[tuple[int, ShownGroups], CrossLayerScore], layer: int, shown: ShownGroups) -> float:
    """Skill of a layer predicted from the shown groups; NaN where it has none."""
    return scores[layer, shown].skill if (layer, shown) in scores else math.nan


def matrices(
    survey: Survey, scores: Mapping[tuple[int, ShownGroups], CrossLayerScore]
) -> tuple[list[int], list[list[float]], list[list[float]]]:
    """The scored layers; their skill from each group alone; and what skill is lost without it."""
    group_of = {c: g for g, group in enumerate(survey.groups) for c in group}
    layers = sorted({c for c, _ in scores})
    alone, lost = [], []
    for c in layers:
        target, count = group_of[c], len(survey.groups)
        rest = tuple(g for g in range(count) if g != target)
        everything = skill_of(scores, c, ShownGroups(target, True, rest))
        alone.append(
            [skill_of(scores, c, ShownGroups(target, g == target, () if g == target else (g,))) for g in range(count)]
        )
        without = (ShownGroups(target, g != target, tuple(h for h in rest if h != g)) for g in range(count))
        lost.append([everything - skill_of(scores, c, shown) for shown in without])
    return layers, alone, lost


def draw(
    path: Path, survey: Survey, names: Sequence[str], scores: Mapping[tuple[int, ShownGroups], CrossLayerScore]
) -> None:
    """Draws both matrices."""
    layers, alone, lost = matrices(survey, scores)
    titles = (("predicted from this group alone", alone), ("lost when this group is hidden", lost))
    save_figure(path, matrix_figure(titles, rows=[survey.layers[c].name for c in layers], columns=names))


def table_lines(
    survey: Survey, names: Sequence[str], scores: Mapping[tuple[int, ShownGroups], CrossLayerScore]
) -> list[str]:
    """A table to read: skill of each layer from each group alone, from all others, and from everything."""
    layers, alone, _ = matrices(survey, scores)
    rows = [["skill of", *(f"from {name}" for name in names), "from all others", "from all"]]
    for c, skills in zip(layers, alone, strict=True):
        target = next(g for g, group in enumerate(survey.groups) if c in group)
        rest = tuple(g for g in range(len(names)) if g != target)
        numbers = [*skills, *(skill_of(scores, c, ShownGroups(target, own, rest)) for own in (False, True))]
        shown = [f"{skill:+.3f}" if math.isfinite(skill) else "-" for skill in numbers]
        shown[target] += " (itself)"
        rows.append([survey.layers[c].name, *shown])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return [*lines, "0 is no better than the layer's mean or commonest class, 1 is perfect"]


if __name__ == "__main__":
    sys.exit(main())
