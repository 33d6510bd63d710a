"""The methods that a fine-tuning run compares on the same folds: networks, and baselines that are none.

A method is declared by one line of `BASELINES`; one that is no network brings a function that fits it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from util.finetuning.predictors import (
    BaselineInputs,
    Predictor,
    fit_constant,
    fit_forest,
    fit_random_features,
    fit_trees,
    fit_trees_and_embeddings,
)
from util.finetuning.unet import UNET_KIND, build_unet, new_unet


@dataclass(frozen=True)
class Method:
    """One way to predict.

    Attributes:
        name: its name in tables and folders.
        pretrained: the network starts from the checkpoint's encoder, or features are taken from it.
        frozen: the network's encoder is not trained.
        head: per-pixel head of the network. A probe measures what the features hold, so nothing but a linear map
            stands between them and the labels.
        build: builds another network in place of the encoder with a head, out of the latter's arguments and the survey.
        fit: fits a method that is no network, and returns its predictor and its costs; None for a network.
        needs_pixels: learns from single pixels of a survey, which images do not offer.
    """

    name: str
    pretrained: bool = False
    frozen: bool = False
    head: str = "upsample"
    build: Callable[..., Any] | None = None
    fit: Callable[[BaselineInputs], tuple[Predictor, dict[str, Any]]] | None = None
    needs_pixels: bool = False

    @property
    def is_network(self) -> bool:
        """Whether a network is trained."""
        return self.fit is None

    @property
    def is_encoder(self) -> bool:
        """Whether the network is the encoder with a head, with which main_inference makes maps."""
        return self.is_network and self.build is None

    def new_network(self, config: Mapping[str, Any], survey: Any, encoder: Callable[..., Any]) -> Any:
        """The method's network before training.

        Args:
            config: arguments of the encoder with a head.
            survey: the layers.
            encoder: builds the encoder with a head.
        """
        return encoder(config) if self.build is None else self.build(config, survey)


PRETRAINED = Method("pretrained", pretrained=True)
"""The method of a run with --finetune."""
SCRATCH = Method("scratch")
"""The method of a run without."""
PROBE = Method("probe", pretrained=True, frozen=True, head="linear")
"""The method of a run with --freeze_encoder."""

BASELINES = {
    method.name: method
    for method in (
        SCRATCH,
        PROBE,
        Method("unet", build=new_unet),
        Method("trees", fit=fit_trees, needs_pixels=True),
        Method("forest", fit=fit_forest, needs_pixels=True),
        Method("rcf", fit=fit_random_features, needs_pixels=True),
        Method("trees+embeddings", pretrained=True, fit=fit_trees_and_embeddings, needs_pixels=True),
        Method("constant", fit=fit_constant),
    )
}
"""Methods by the value of --baselines."""
DEFAULT_BASELINES = ("scratch", "trees", "constant")
"""Baselines of the bare flag."""


def compared_methods(
    *, has_weights: bool, freeze_encoder: bool, baselines: Sequence[str], no_network: bool = False
) -> list[Method]:
    """The methods of a run, the main one first.

    Args:
        has_weights: a checkpoint is given to start from.
        freeze_encoder: only the head is trained.
        baselines: names of baselines.
        no_network: only the baselines.

    Raises:
        ValueError: a method that needs pre-trained weights, and there are none; nothing to fit.
    """
    if no_network and not baselines:
        raise ValueError("--no_network without --baselines: nothing is left to fit; name baselines, such as trees")
    needing = [f"--baselines {name}" for name in baselines if BASELINES[name].pretrained]
    needing = ["--freeze_encoder", *needing] if freeze_encoder else needing
    if needing and not has_weights:
        what = "a probe needs" if freeze_encoder or needing[0].endswith(PROBE.name) else "its features need"
        raise ValueError(f"{needing[0]} without --finetune: {what} a pre-trained encoder; name its checkpoint")
    first = PROBE if freeze_encoder else PRETRAINED if has_weights else SCRATCH
    others = [BASELINES[name] for name in dict.fromkeys(baselines) if no_network or name != first.name]
    return others if no_network else [first, *others]


def has_last_fit(methods: Sequence[Method]) -> bool:
    """Whether the main method can map all ground once it is fitted on all labels."""
    return methods[0].is_encoder or methods[0].needs_pixels


def trained_network(config: Mapping[str, Any], encoder: Callable[..., Any]) -> Any:
    """The network of a checkpoint, from its `config`; `encoder` builds the encoder with a head."""
    return build_unet(config) if config.get("kind") == UNET_KIND else encoder(config)


def choose_folds(count: int, only: Sequence[int] | None) -> list[int]:
    """The folds to run.

    Raises:
        ValueError: one asked for is not there.
    """
    wrong = [fold for fold in only or () if fold >= count]
    if wrong:
        raise ValueError(f"--only_folds {wrong[0]}: there are {count} folds, expected 0 to {count - 1}")
    return sorted(set(only)) if only else list(range(count))
