"""The kinds of layers. To add one, write a file with a subclass of `Kind` and add a line to `KINDS`."""

from __future__ import annotations

from datasets.layers.categorical import Categorical
from datasets.layers.circular import Circular
from datasets.layers.continuous import Continuous
from datasets.layers.kind import Kind
from datasets.layers.layer import Layer

AXIAL = Circular(
    "axial", "axes, such as strikes: degrees clockwise from north, period 180", ground_turns=2, period=180.0
)
PHASE = Circular("phase", "angles that are no directions on the ground, degrees", ground_turns=0)

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Continuous(), Categorical(), Circular(), AXIAL, PHASE)}
"""Choices of the column `kind`; the first is the default."""

CLASSES = Categorical().name
"""Kind of layers whose files say that their numbers are codes of classes."""


def kind_of(layer: Layer) -> Kind:
    """The kind of a layer.

    Raises:
        ValueError: there is no kind of that name.
    """
    if layer.kind not in KINDS:
        raise ValueError(f"{layer.where}: kind is '{layer.kind}', expected one of {', '.join(KINDS)}; correct it")
    return KINDS[layer.kind]


def check_layer_kind(layer: Layer) -> None:
    """Refuse settings of a layer that do not suit its kind.

    Raises:
        ValueError: the kind is unknown, or has no use for the layer's transform or unit.
    """
    kind_of(layer).check(layer)
