"""What is compared in a fine-tuning run: the network as asked for, and baselines on the same folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Method:
    """One way to predict.

    Attributes:
        name: as it stands in tables.
        kind: `network`, `trees`, `forest` or `constant`.
        pretrained: the network starts from the checkpoint's encoder.
        frozen: the network's encoder stays as it is.
    """

    name: str
    kind: str
    pretrained: bool = False
    frozen: bool = False


BASELINES = {
    "scratch": Method("scratch", "network"),
    "probe": Method("probe", "network", pretrained=True, frozen=True),
    "trees": Method("trees", "trees"),
    "forest": Method("forest", "forest"),
    "constant": Method("constant", "constant"),
}


def compared_methods(
    *, has_weights: bool, freeze_encoder: bool, baselines: Sequence[str], no_network: bool = False
) -> list[Method]:
    """The arms of a run, the one that the user asked for first.

    Args:
        has_weights: a checkpoint is given to start from.
        freeze_encoder: the head alone is trained.
        baselines: names of baselines.
        no_network: the baselines alone.

    Raises:
        ValueError: a probe without weights to probe; nothing to fit.
    """
    if no_network and not baselines:
        raise ValueError("--no_network without --baselines: nothing is left to fit; name baselines, such as trees")
    if not has_weights and (freeze_encoder or "probe" in baselines):
        flag = "--freeze_encoder" if freeze_encoder else "--baselines probe"
        raise ValueError(f"{flag} without --finetune: a probe needs a pre-trained encoder; name its checkpoint")
    if freeze_encoder:
        first = BASELINES["probe"]
    elif has_weights:
        first = Method("pretrained", "network", pretrained=True)
    else:
        first = BASELINES["scratch"]
    others = [BASELINES[name] for name in dict.fromkeys(baselines) if no_network or name != first.name]
    return others if no_network else [first, *others]


def choose_folds(count: int, only: Sequence[int] | None) -> list[int]:
    """The folds to run.

    Raises:
        ValueError: one asked for is not there.
    """
    wrong = [fold for fold in only or () if fold >= count]
    if wrong:
        raise ValueError(f"--only_folds {wrong[0]}: there are {count} folds, expected 0 to {count - 1}")
    return sorted(set(only)) if only else list(range(count))


def constant_prediction(class_counts: Sequence[int], mean: float) -> np.ndarray:
    """What is predicted without looking: the shares of the classes in the training labels, or their mean value.

    Args:
        class_counts: training labels of each class; empty for values.
        mean: of the values.

    Returns:
        (K,) float32.
    """
    counts = np.asarray(class_counts, dtype=np.float64)
    return (counts / counts.sum() if len(counts) else np.array([mean])).astype(np.float32)
