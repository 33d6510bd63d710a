"""Pictures: limits known on paper, what each panel shows, and a file that is whole or absent."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from util.plots import reconstruction as figures
from util.plots.maps import Panel, map_figure
from util.plots.reconstruction import RowImages


def make_row(**changes) -> RowImages:
    """A 4 by 4 tile at scale 2: the value is the row number, the left half hidden, one target pixel unknown."""
    image = np.repeat(np.arange(4.0)[:, None], 4, axis=1)
    visible = image.copy()
    visible[:, :2] = np.nan
    target = np.kron(image, np.ones((2, 2)))
    target[0, 0] = np.nan
    values = dict(
        layer="gravity",
        unit="mGal",
        scale=2,
        pixel_size=200.0,
        image=image,
        visible=visible,
        reconstruction=np.nan_to_num(target) + 0.5,
        target=target,
    )
    return RowImages(**(values | changes))


def panels(figure) -> list:
    """The axes that hold pictures, by rows: without the colour bars."""
    return [axis for axis in figure.axes if axis.images]


def shown(axis) -> np.ndarray:
    """What a panel shows, NaN where it is grey."""
    return np.ma.filled(axis.images[0].get_array().astype(float), np.nan)


def test_a_row_shows_input_masked_input_reconstruction_target_and_error():
    row = make_row()
    axes = panels(figures.reconstruction_figure([row]))
    assert [axis.get_title() for axis in axes] == ["input", "masked input", "reconstruction", "target", "error"]
    for axis, expected in zip(axes, (row.image, row.visible, row.reconstruction, row.target), strict=False):
        np.testing.assert_array_equal(shown(axis), expected)
    error = np.full((8, 8), 0.5)
    error[0, 0] = np.nan
    np.testing.assert_array_equal(shown(axes[4]), error)


def test_limits_are_shared_in_a_row_and_the_error_is_centred_on_zero():
    axes = panels(figures.reconstruction_figure([make_row()]))
    limits = {axis.images[0].get_clim() for axis in axes[:4]}
    assert limits == {(0.0, 3.0)}
    assert axes[4].images[0].get_clim() == (-0.5, 0.5)


def test_every_panel_covers_the_same_ground_with_north_up():
    for axis in panels(figures.reconstruction_figure([make_row()])):
        assert list(axis.images[0].get_extent()) == [0, 8, 8, 0]
        assert axis.images[0].origin == "upper"


def test_invalid_is_light_grey():
    for axis in panels(figures.reconstruction_figure([make_row()])):
        np.testing.assert_allclose(axis.images[0].cmap(np.ma.masked), (0.85, 0.85, 0.85, 1.0))


def test_rows_say_layer_scale_pixel_size_extent_and_unit():
    figure = figures.reconstruction_figure(
        [make_row(), make_row(layer="magnetics", unit="nT", scale=2, pixel_size=0.002, scored=False)],
        title="tile 7",
        length_unit="degree",
    )
    axes = panels(figure)
    assert len(axes) == 10 and [text.get_text() for text in figure.texts] == ["tile 7"]
    assert axes[0].get_ylabel() == "gravity\nscale 2: 200 degree pixels\n1600 x 1600 degree"
    assert axes[5].get_ylabel() == "magnetics (not scored)\nscale 2: 0.002 degree pixels\n0.016 x 0.016 degree"
    bars = [axis.get_ylabel() for axis in figure.axes if not axis.images]
    assert bars == ["mGal", "mGal", "nT", "nT"]


def test_extents_in_metres_are_given_in_kilometres():
    axes = panels(figures.reconstruction_figure([make_row()]))
    assert axes[0].get_ylabel() == "gravity\nscale 2: 200 m pixels\n1.6 x 1.6 km"


def test_pixels_that_are_not_square_say_width_and_height():
    axes = panels(figures.reconstruction_figure([make_row(pixel_size=55_800.0, pixel_height=111_412.3)]))
    assert axes[0].get_ylabel() == "gravity\nscale 2: 5.58e+04 x 1.114e+05 m pixels\n446.4 x 891.3 km"


def test_scale_bars_are_in_lengths_on_the_ground():
    panels = [Panel("a", np.zeros((10, 20)))]
    (axis, *_) = map_figure(panels, pixel_size=55_800.0, length_unit="m", where="at latitude 60").axes
    assert [text.get_text() for text in axis.texts] == ["200 km at latitude 60"]
    (axis, *_) = map_figure(panels, pixel_size=50.0, length_unit="m").axes
    assert [text.get_text() for text in axis.texts] == ["200 m"]


def test_robust_limits():
    ramp = np.arange(101.0)
    assert figures.robust_limits([ramp]) == (2.0, 98.0)
    assert figures.robust_limits([ramp[:50], np.append(ramp[50:], [np.nan, np.inf])]) == (2.0, 98.0)
    assert figures.robust_limits([np.array([5.0] * 200 + [7.0])]) == (5.0, 7.0)  # quantiles equal, values not
    assert figures.robust_limits([np.array([200.0, 200.0])]) == (198.0, 202.0)
    assert figures.robust_limits([np.zeros(3)]) == (-1.0, 1.0)
    assert figures.robust_limits([np.full((2, 2), np.nan)]) == (0.0, 1.0)


def test_error_limit():
    assert figures.error_limit(np.append(np.arange(101.0), np.nan) - 100) == 98.0
    assert figures.error_limit(np.zeros(4)) == 1.0
    assert figures.error_limit(np.full(4, np.nan)) == 1.0
    assert figures.error_limit(np.array([0.0] * 200 + [3.0])) == 3.0


def test_a_tile_without_any_data_can_be_drawn(tmp_path):
    nothing = np.full((4, 4), np.nan)
    row = make_row(image=nothing, visible=nothing, reconstruction=nothing, target=nothing)
    figures.save_figure(tmp_path / "empty.png", figures.reconstruction_figure([row]))
    assert imread(tmp_path / "empty.png").ndim == 3


def test_saving_leaves_one_png_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "pictures" / "epoch-1.png"
    figure = figures.reconstruction_figure([make_row()], title="tile 7")
    figures.save_figure(path, figure)
    figures.save_figure(path, figure, dpi=50)
    assert [file.name for file in path.parent.iterdir()] == ["epoch-1.png"]
    width, height = figure.get_size_inches() * 50
    assert imread(path).shape[:2] == (int(height), int(width))


def test_a_failed_save_leaves_the_older_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    figure = figures.reconstruction_figure([make_row()])
    figures.save_figure(path, figure)
    before = path.read_bytes()

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        figures.save_figure(path, figure)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"] and path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((1, 4, 4))}, r"row 'gravity' at scale 2: image has shape \(1, 4, 4\), expected \(H, W\)"),
        ({"visible": np.zeros((4, 5))}, r"image \(4, 4\) and visible \(4, 5\) differ in shape"),
        ({"target": np.zeros((4, 4))}, r"reconstruction \(8, 8\) and target \(4, 4\) differ in shape"),
    ],
)
def test_images_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        figures.reconstruction_figure([make_row(**changes)])


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="expected at least one row"):
        figures.reconstruction_figure([])


def test_a_row_says_its_skill_and_every_bar_its_unit():
    rows = [make_row(skill=-0.123), make_row(unit="", skill=float("nan"))]
    figure = figures.reconstruction_figure(rows)
    labels = [axis.get_ylabel() for axis in panels(figure)[::5]]
    assert labels[0].endswith("\nskill -0.12") and "skill" not in labels[1]
    units = [axis.get_ylabel() for axis in figure.axes if not axis.images]
    assert units == ["mGal", "mGal", "unit not stated", "unit not stated"]


def test_classes_have_their_names_and_colours_whatever_their_codes():
    """Codes 1, 2 and 90 are three colours, of which one does not occur."""
    codes = np.array([[1.0, 90.0], [np.nan, 90.0]])
    classes = {90.0: ("basalt", "#00ff00"), 1.0: ("granite_of_the_eastern_range", "#ff0000"), 2.0: ("water", "#0000ff")}
    row = figures.RowImages("geology", "", 1, 100.0, codes, codes, codes[::-1], codes, classes=classes)
    figure = figures.reconstruction_figure([row])
    axes = [axis for axis in figure.axes if axis.images]
    drawn = [axis.images[0] for axis in axes]
    np.testing.assert_array_equal(drawn[0].get_array().filled(np.nan), [[0, 2], [np.nan, 2]])
    assert [to_hex(drawn[0].to_rgba(number)) for number in range(3)] == ["#ff0000", "#0000ff", "#00ff00"]
    bars = [axis for axis in figure.axes if not axis.images]
    assert [text.get_text() for text in bars[0].get_yticklabels()] == ["granite_o...rn_range", "water", "basalt"]
    assert bars[1].get_ylabel() == "1 = wrong class"
    np.testing.assert_array_equal(drawn[4].get_array().filled(np.nan), [[np.nan, 0], [np.nan, 0]])
