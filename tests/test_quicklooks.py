"""Pictures of results: which panels there are, in which colours."""

import math
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.test_cog_writer import classes, info, noise, write
from util.geotiff.parts import Parts, read_part
from util.inference import quicklooks as looks
from util.inference.quicklooks import _first_three, _shown, draw_raster, embedding_quicklooks, panels_of
from util.plots.maps import Panel

NAMES = ("magnetics reconstruction", "magnetics spread", "magnetics error")


def test_a_reconstruction_is_shown_beside_what_was_observed():
    pixels = np.stack([np.full((4, 5), 2.0), np.ones((4, 5)), np.arange(20.0).reshape(4, 5)])
    panels = panels_of(info(4, 5, names=NAMES, units=("nT",) * 3), pixels)
    assert [panel.title for panel in panels] == ["magnetics observed", *NAMES]
    assert [panel.style for panel in panels] == ["field", "field", "magnitude", "difference"]
    np.testing.assert_array_equal(panels[0].image, 2 + pixels[2])
    assert panels[0].limits == panels[1].limits and panels[0].unit == "nT"


def test_what_was_measured_is_left_out_of_the_uncertainty():
    pixels = np.array([[[5.0, 6.0]], [[0.0, 2.0]]])
    panels = panels_of(info(1, 2, names=("a filled", "a uncertainty"), units=("m", "m")), pixels)
    assert [panel.style for panel in panels] == ["field", "magnitude"]
    assert np.isnan(panels[1].image[0, 0]) and panels[1].image[0, 1] == 2


def test_fields_of_one_unit_share_their_colours():
    pixels = np.stack([np.linspace(0, 1, 50), np.linspace(0, 9, 50), np.linspace(0, 99, 50)])[:, None]
    panels = panels_of(info(1, 50, names=("a inferred", "a interpolated", "b"), units=("m", "m", "s")), pixels)
    assert panels[0].limits == panels[1].limits != panels[2].limits


def test_shares_are_drawn_from_none_to_all_and_the_largest_ones_only(tmp_path):
    names = tuple(f"class error {k}" for k in range(14)) + ("last error",)
    raster = info(6, 8, names=names, units=("",) * 15, limits=(0.0, 1.0))
    pixels = np.full((15, 6, 8), 0.01, np.float32)
    pixels[[1, 5]] = 0.0
    pixels[14] = 0.8
    panels = panels_of(raster, pixels)
    assert {panel.style for panel in panels} == {"field"} and {panel.limits for panel in panels} == {(0.0, 1.0)}
    shown, bands = _shown(write(tmp_path, raster, pixels), raster)
    assert len(bands) == 12 and 15 in bands and not {2, 6} & set(bands) and shown.names[-1] == "last error"


def test_a_picture_says_how_good_a_prediction_is(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(looks, "map_figure", lambda *_, title, **__: seen.append(title) or Figure())
    tags = {"score": "mean_iou 0.5 +- 0.1 on held-out blocks, 5 fold(s)", "warning": "scores are inflated", "task": "x"}
    raster = info(4, 5, names=("entropy",), units=("",), limits=(0.0, 1.0), tags=tags)
    draw_raster(write(tmp_path, raster, noise(raster)), raster, length_unit="m")
    assert seen == [f"r\n{tags['score']}\n{tags['warning']}"]


@pytest.mark.parametrize("raster", [info(40, 60), classes(40, 60)])
def test_a_picture_lies_beside_the_raster(tmp_path, raster):
    pixels = noise(raster) if raster.classes is None else np.ones((1, 40, 60), np.uint8)
    path = draw_raster(write(tmp_path, raster, pixels), raster, length_unit="m")
    assert path == tmp_path / "r.png" and matplotlib.image.imread(path).std() > 0.05
    assert math.isnan(info().nodata)


def test_two_components_are_filled_up_to_three_colours():
    found = _first_three(np.array([[1.0, np.nan], [2.0, np.nan]]))
    np.testing.assert_array_equal(found, [[1, np.nan], [2, np.nan], [0, np.nan]])
    assert len(_first_three(np.zeros((16, 2)))) == 3


def test_embeddings_of_groups_that_never_have_data_together_have_colours_and_classes(tmp_path):
    """Bands of one group are known in the west, those of another in the east, and those of a third nowhere."""
    raster = info(8, 12, names=tuple("abcdef"), units=("",) * 6)
    pixels = noise(raster)
    pixels[:2, :, 6:], pixels[2:4, :, :6], pixels[4:], pixels[:, 0, 0] = (np.nan,) * 4
    parts, into = Parts(tmp_path / "parts"), Parts(tmp_path / "derived")
    parts.open({}, resume=False)
    parts.write(0, 0, {"embeddings": (raster, pixels, 0, 0)})
    found = embedding_quicklooks(raster, parts.of("embeddings"), into, clusters=2, seed=0)
    assert list(found) == ["embeddings_pca", "embeddings_clusters"]
    known = np.isfinite(pixels).any(axis=0)
    for name in found:
        ((path, *_),) = into.of(name)
        assert ((read_part(path) > 0) == known).all()


@pytest.mark.parametrize("places, made", [(1, []), (3, ["embeddings_pca", "embeddings_clusters"])])
def test_fewer_places_than_classes_end_with_a_warning_and_not_with_an_error(tmp_path, caplog, places, made):
    raster = info(1, 4, names=("a", "b"), units=("", ""))
    pixels = noise(raster)
    pixels[:, 0, places:] = np.nan
    parts, into = Parts(tmp_path / "parts"), Parts(tmp_path / "derived")
    parts.open({}, resume=False)
    parts.write(0, 0, {"embeddings": (raster, pixels, 0, 0)})
    assert list(embedding_quicklooks(raster, parts.of("embeddings"), into, clusters=5, seed=0)) == made
    assert "a single place" in caplog.text if places == 1 else "only 3 places have an embedding" in caplog.text
    assert all(read_part(path).max() <= 3 for path, *_ in (into.of("embeddings_clusters") if made else ()))


def test_all_classes_stand_in_the_legend_and_absent_ones_say_so(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(looks, "map_figure", lambda panels, **__: seen.append(panels) or Figure())
    raster = classes(4, 5)
    code = min(raster.classes)
    draw_raster(write(tmp_path, raster, np.full((1, 4, 5), code, np.uint8)), raster, length_unit="m")
    (panel,) = seen[0]
    assert panel.title == f"1 of {len(raster.classes)} classes occur" and set(panel.classes) == set(raster.classes)
    assert [name.endswith(" (not here)") for name, _ in panel.classes.values()] == [k != code for k in panel.classes]


def test_points_and_maps_beside_are_drawn(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(looks, "map_figure", lambda panels, **how: seen.append((panels, how["corner"])) or Figure())
    raster = replace(info(4, 5), points=((1.0, 2.0),), point_name="deposits")
    draw_raster(write(tmp_path, raster, noise(raster)), raster, length_unit="m", beside=[Panel("gravity", np.eye(3))])
    panels, corner = seen[0]
    assert panels[0].points.tolist() == [[1.0, 2.0]] and panels[0].point_name == "deposits"
    assert panels[-1].title == "gravity" and (corner.left, corner.top) == (raster.left, raster.top)
