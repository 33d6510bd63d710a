"""Maps with colour bars and scale bars."""

import numpy as np
import pytest

from util.plots.maps import Corner, Panel, bar_label, bar_length, map_figure

CLASSES = {1: ("basalt", (200, 30, 30)), 2: ("granite", (30, 30, 200))}


@pytest.mark.parametrize(("width", "expected"), [(100, 20), (1000, 200), (66_667, 20_000), (16.7, 5), (0.04, 0.01)])
def test_scale_bars_are_round_and_at_most_three_tenths(width, expected):
    assert bar_length(width) == pytest.approx(expected)


def test_labels():
    assert (
        bar_label(500, "m") == "500 m"
        and bar_label(20_000, "m") == "20 km"
        and bar_label(0.5, "degree") == "0.5 degree"
    )


def test_panels():
    image = np.random.default_rng(0).normal(size=(20, 30))
    panels = [
        Panel("a", image, "nT"),
        Panel("b", np.abs(image), style="magnitude"),
        Panel("c", image, style="difference"),
        Panel("d", np.zeros((3, 20, 30)), style="colours"),
        Panel("e", np.ones((20, 30)), classes=CLASSES),
        Panel("f", np.full((20, 30), np.nan), limits=(0.0, 4.0)),
    ]
    figure = map_figure(panels, pixel_size=100.0, length_unit="m", title="all")
    axes = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in axes] == list("abcdef")
    low, high = axes[2].images[0].get_clim()
    assert low == -high < 0 and axes[1].images[0].get_clim()[0] == 0 and axes[5].images[0].get_clim() == (0.0, 4.0)
    assert axes[0].images[0].get_extent() == [0, 3000, 0, 2000]
    assert {text.get_text() for axis in axes for text in axis.texts} == {"500 m"}
    names = [label.get_text() for axis in figure.axes for label in axis.get_yticklabels()]
    assert "basalt" in names and "granite" in names


def test_names_stand_in_the_middle_of_their_colours():
    """Also where codes lie apart."""
    codes = {3: ("basalt", (200, 30, 30)), 7: ("granite", (30, 30, 200)), 12: ("schist", (30, 200, 30))}
    figure = map_figure([Panel("a", np.full((4, 4), 7.0), classes=codes)], pixel_size=1.0, length_unit="m")
    assert figure.axes[1].get_yticks().tolist() == [4.5, 9.0, 12.0]


def test_many_panels_stand_in_rows_of_four():
    panels = [Panel(str(number), np.ones((4, 4))) for number in range(6)]
    figure = map_figure(panels, pixel_size=1.0, length_unit="m")
    width, height = figure.get_size_inches()
    titled = [axis for axis in figure.axes if axis.get_title()]
    assert len(titled) == 6 and len({round(axis.get_subplotspec().rowspan.start) for axis in titled}) == 2
    assert width == 4 * 4.9 and height == pytest.approx(2 * 4.9)


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="nothing to draw: expected at least one panel"):
        map_figure([], pixel_size=1.0, length_unit="m")


def edge_labels(axis):
    return [[text.get_text() for text in labels] for labels in (axis.get_xticklabels(), axis.get_yticklabels())]


def test_coordinates_stand_along_the_edges_in_kilometres():
    """A map of 40 x 30 km whose corner is at easting 500 km and northing 6000 km."""
    corner = Corner(left=500_000.0, top=6_000_000.0, unit="m")
    panels = [Panel(name, np.ones((30, 40)), "nT") for name in "ab"]
    figure = map_figure(panels, pixel_size=1000.0, length_unit="m", corner=corner)
    first, second = (axis for axis in figure.axes if axis.get_title())
    assert edge_labels(first) == [["500", "510", "520", "530", "540"], ["5970", "5980", "5990", "6000"]]
    assert first.get_xticks().tolist() == [0, 10_000, 20_000, 30_000, 40_000]
    assert first.get_yticks().tolist() == [0, 10_000, 20_000, 30_000]
    assert (first.get_xlabel(), first.get_ylabel()) == ("easting, km", "northing, km")
    assert second.get_ylabel() == "" and second.get_xlabel() == "easting, km"


def test_coordinates_of_degrees_and_of_feet():
    degrees = Corner(left=10.0, top=50.0, unit="degrees", unit_length=70_000.0)
    axis = map_figure([Panel("a", np.ones((4, 4)))], pixel_size=7000.0, length_unit="m", corner=degrees).axes[0]
    assert edge_labels(axis)[0] == ["10", "10.1", "10.2", "10.3", "10.4"] and axis.get_xlabel() == "longitude, degrees"
    assert axis.get_xticks()[-1] == pytest.approx(28_000)
    feet = Corner(left=0.0, top=9000.0, unit="US survey foot", unit_length=0.3048)
    axis = map_figure([Panel("a", np.ones((9, 9)))], pixel_size=304.8, length_unit="m", corner=feet).axes[0]
    assert axis.get_ylabel() == "northing, US survey foot" and "4000" in edge_labels(axis)[1]


def test_points_lie_where_their_coordinates_say_and_are_counted():
    """Of three points one is off the map."""
    corner = Corner(left=500_000.0, top=6_000_000.0, unit="m")
    points = np.array([[500_500.0, 5_999_500.0], [502_000.0, 5_998_000.0], [400_000.0, 5_999_000.0]])
    panel = Panel("probability", np.ones((30, 40)), points=points, point_name="deposits")
    axis = map_figure([panel], pixel_size=100.0, length_unit="m", corner=corner).axes[0]
    assert axis.get_title() == "probability; circles: 2 deposits"
    assert axis.collections[-1].get_offsets().tolist() == [[500.0, 2500.0], [2000.0, 1000.0]]


def test_every_bar_has_a_unit_or_says_that_it_is_not_stated():
    panels = [Panel("a", np.eye(4), "mGal"), Panel("b", np.eye(4))]
    figure = map_figure(panels, pixel_size=1.0, length_unit="m")
    labels = [axis.get_ylabel() for axis in figure.axes if not axis.get_title()]
    assert labels == ["mGal", "unit not stated"]
