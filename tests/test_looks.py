"""Pictures of results: which panels there are, in which colours."""

import math

import matplotlib.image
import numpy as np
import pytest

from tests.test_geotiff import classes, info, noise, write
from util.looks import draw_raster, panels_of

NAMES = ("magnetics reconstruction", "magnetics spread", "magnetics error")


def test_a_reconstruction_is_shown_beside_what_was_observed():
    pixels = np.stack([np.full((4, 5), 2.0), np.ones((4, 5)), np.arange(20.0).reshape(4, 5)])
    panels = panels_of(info(4, 5, names=NAMES, units=("nT",) * 3), pixels)
    assert [panel.title for panel in panels] == ["magnetics observed", *NAMES]
    assert [panel.style for panel in panels] == ["field", "field", "spread", "difference"]
    np.testing.assert_array_equal(panels[0].image, 2 + pixels[2])
    assert panels[0].limits == panels[1].limits and panels[0].unit == "nT"


def test_what_was_measured_is_left_out_of_the_uncertainty():
    pixels = np.array([[[5.0, 6.0]], [[0.0, 2.0]]])
    panels = panels_of(info(1, 2, names=("a filled", "a uncertainty"), units=("m", "m")), pixels)
    assert [panel.style for panel in panels] == ["field", "spread"]
    assert np.isnan(panels[1].image[0, 0]) and panels[1].image[0, 1] == 2


def test_fields_of_one_unit_share_their_colours():
    pixels = np.stack([np.linspace(0, 1, 50), np.linspace(0, 9, 50), np.linspace(0, 99, 50)])[:, None]
    panels = panels_of(info(1, 50, names=("a inferred", "a interpolated", "b"), units=("m", "m", "s")), pixels)
    assert panels[0].limits == panels[1].limits != panels[2].limits


@pytest.mark.parametrize("raster", [info(40, 60), classes(40, 60)])
def test_a_picture_lies_beside_the_raster(tmp_path, raster):
    pixels = noise(raster) if raster.classes is None else np.ones((1, 40, 60), np.uint8)
    path = draw_raster(write(tmp_path, raster, pixels), raster, length_unit="m")
    assert path == tmp_path / "r.png" and matplotlib.image.imread(path).std() > 0.05
    assert math.isnan(info().nodata)
