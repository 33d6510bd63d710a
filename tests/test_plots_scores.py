"""Pictures of scores: what they show, that the warning is on them, and what they refuse."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from util.plots.maps import Panel
from util.plots.names import short_name
from util.plots.reconstruction import save_figure
from util.plots.score_maps import class_legend, class_maps, fold_legend, point_maps, value_maps
from util.plots.scores import calibration_figure, confusion_figure, methods_figure, success_rate_figure

WARNING = "random split: scores are inflated"
GROUND = {"pixel_size": 100.0, "length_unit": "m"}
CLASSES = {"names": ["host", "ore"], "colours": ["#102030", "#ff8000"]}


def shown(axis):
    """What a map shows, NaN where it is grey."""
    return np.ma.filled(axis.images[0].get_array().astype(float), np.nan)


def maps_of(figure):
    return [axis for axis in figure.axes if axis.images]


def every_figure():
    curve = {"ground": [0.0, 0.5, 1.0], "deposits": [0.0, 1.0, 1.0]}
    bins = {"predicted": [0.1, 0.6], "observed": [0.0, 0.5], "count": [90, 10]}
    classes, values = np.array([[0, 1], [1, -1]]), np.array([[1.0, 2.0], [3.0, np.nan]])
    head = {"title": "A title", "warning": WARNING}
    points = (np.array([[0.5, 0.5], [1.5, 0.2]]), np.array([0, 1]))
    return [
        confusion_figure([[3, 1], [0, 2]], ["host", "ore"], **head),
        calibration_figure({"fold 0": bins}, **head),
        success_rate_figure({"fold 0": curve}, **head),
        methods_figure({"a": [0.5, None], "b": [0.4, 0.2]}, score="mean IoU", **head),
        class_maps(classes, classes, classes, **CLASSES, **GROUND, **head),
        value_maps(values, values, classes, unit="nT", **GROUND, **head),
        point_maps(*points, points[1], points[1], **CLASSES, shape=(2, 2), **GROUND, **head),
        point_maps(*points, np.array([0.2, 0.7]), points[1], **CLASSES, shape=(2, 2), **GROUND, **head),
    ]


@pytest.mark.parametrize("number", range(8))
def test_the_warning_is_in_the_title_and_red(number, tmp_path):
    figure = every_figure()[number]
    title = figure._suptitle
    assert "A title" in title.get_text() and WARNING in title.get_text().replace("\n", " ")
    assert to_hex(title.get_color()) == "#a50f15"
    save_figure(tmp_path / "figure.png", figure, dpi=40)
    assert imread(tmp_path / "figure.png").std() > 0


def test_confusion_is_coloured_by_share_and_written_in_counts():
    figure = confusion_figure([[30_000, 10_000, 0], [0, 2, 0], [0, 0, 0]], ["a", "b", "c"])
    np.testing.assert_allclose(shown(figure.axes[0]), [[0.75, 0.25, 0], [0, 1, 0], [np.nan] * 3])
    assert [text.get_text() for text in figure.axes[0].texts] == ["30k", "10k", "0", "0", "2", "0", "0", "0", "0"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]


def test_long_names_are_cut_in_the_middle_and_differ():
    """Names without an early space, and names that begin alike, as those of rock units do."""
    assert short_name("granite", 7) == "granite" and short_name(" granite\n rock ", 12) == "granite rock"
    assert short_name("abcdefghijklmnop", 9) == "abc...nop" and short_name("abcdefghijklmno", 10) == "abcd...mno"
    names = ["Metasedimentary_undifferentiated_fresh", "Metasedimentary_undifferentiated_weathered"]
    figure = confusion_figure(np.eye(2), names)
    drawn = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    legend = [name for name, _ in class_legend(names, ["#000000", "#ffffff"]).values()]
    assert drawn == legend == ["Metasedimenta...tiated_fresh", "Metasedimenta...ed_weathered"]


def test_counts_of_many_classes_are_not_written():
    assert not confusion_figure(np.eye(25), [str(k) for k in range(25)]).axes[0].texts


def test_class_maps_show_truth_prediction_error_and_folds():
    truth, predicted, folds = np.array([[0, 1, -1, 1]]), np.array([[0, 0, 1, -1]]), np.array([[1, 0, -1, 1]])
    axes = maps_of(class_maps(truth, predicted, folds, **CLASSES, **GROUND))
    np.testing.assert_array_equal(shown(axes[0]), [[0, 1, np.nan, 1]])
    np.testing.assert_array_equal(shown(axes[1]), [[0, 0, 1, np.nan]])
    np.testing.assert_array_equal(shown(axes[2]), [[0, 1, np.nan, np.nan]])
    np.testing.assert_array_equal(shown(axes[3]), [[1, 0, np.nan, 1]])
    assert [axis.get_title() for axis in axes] == ["truth", "prediction", "wrong: 50 % of pixels", "folds"]
    assert to_hex(axes[0].images[0].to_rgba(1)) == "#ff8000"


def test_layers_lie_below_the_maps_on_the_same_ground():
    """Two layers, of other pixels than the labels: in a second row, with their units, and points stay above."""
    layers = [Panel("gravity", np.arange(4.0).reshape(2, 2), "mGal"), Panel("magnetics", np.zeros((8, 8)), "nT")]
    zeros, points = np.zeros((4, 4)), (np.array([[0.5, 0.5], [1.5, 0.2]]), np.array([0, 1]))
    figures = [
        class_maps(zeros, zeros, zeros, **CLASSES, **GROUND, layers=layers),
        value_maps(zeros, zeros, zeros, unit="%", **GROUND, layers=layers),
        point_maps(*points, points[1], points[1], **CLASSES, shape=(4, 4), **GROUND, layers=layers),
    ]
    for figure in figures:
        axes = maps_of(figure)
        assert [axis.get_title() for axis in axes[4:]] == ["gravity", "magnetics"]
        assert axes[4].images[0].get_extent() == axes[0].images[0].get_extent()
        assert {"mGal", "nT"} <= {axis.get_ylabel() for axis in figure.axes}
        assert not axes[4].collections
    assert len(maps_of(class_maps(zeros, zeros, zeros, **CLASSES, **GROUND))) == 4


def test_truth_and_prediction_share_their_limits():
    truth = np.linspace(-10, 10, 100).reshape(10, 10)
    axes = maps_of(value_maps(truth, truth / 5 + 1, np.zeros((10, 10)), unit="nT", **GROUND))
    assert axes[0].images[0].get_clim() == axes[1].images[0].get_clim() == pytest.approx((-9.6, 9.6))
    np.testing.assert_allclose(shown(axes[2]), 1 - 0.8 * truth)


def test_points_lie_where_they_are_on_ground_coarser_than_them():
    """Ground of 1000 x 500 pixels of 100 m, drawn at 5 pixels each; the last point belongs to no fold."""
    places = np.array([[0.0, 0.0], [1000.0, 500.0], [500.0, 250.0]])
    truth = np.array([0, 1, 1])
    figure = point_maps(places, truth, truth, np.array([0, 1, -1]), **CLASSES, shape=(1000, 500), **GROUND)
    axes = maps_of(figure)
    np.testing.assert_allclose(axes[0].collections[0].get_offsets(), [[0, 100_000], [50_000, 0], [25_000, 50_000]])
    assert axes[0].images[0].get_extent() == [0, 50_000, 0, 100_000]
    assert len(axes[3].collections[0].get_offsets()) == 2
    assert axes[2].get_title() == "wrong: 0 % of points"


def test_arms_show_every_fold_and_the_mean():
    figure = methods_figure({"pre-trained": [0.5, None], "from scratch": [0.4, 0.2]}, score="mean IoU")
    heights = [float(collection.get_offsets()[0, 1]) for collection in figure.axes[0].collections[:1]]
    assert heights == [0.5]
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.5", "0.3"]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["fold 0", "fold 1"]


def test_curves_without_points_are_left_out():
    empty = {"ground": [], "deposits": []}
    figure = success_rate_figure({"fold 0": empty, "fold 1": {"ground": [0.0, 1.0], "deposits": [0.0, 1.0]}})
    assert figure.axes[0].get_xlabel() == "windows ranked highest (deposits and background), %"
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "fold 1 (area 0.50)",
        "chance (area 0.50)",
    ]
    nothing = {"predicted": [], "observed": [], "count": []}
    assert len(calibration_figure({"fold 0": nothing}).axes[0].lines) == 1


def test_many_folds_have_a_colour_each():
    assert len({colour for _, colour in fold_legend(np.arange(12)).values()}) == 12


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: confusion_figure([[1, 2]], ["a", "b"]), r"shape \(1, 2\): expected \(2, 2\) for 2 names"),
        (
            lambda: class_maps(np.zeros((2, 2)), np.zeros((2, 3)), np.zeros((2, 2)), **CLASSES, **GROUND),
            r"maps differ in shape: truth \(2, 2\), prediction \(2, 3\)",
        ),
        (lambda: methods_figure({"a": [1.0], "b": []}, score="x"), "methods differ in number of folds: 'a' 1, 'b' 0"),
        (lambda: methods_figure({}, score="x"), "methods differ in number of folds: none"),
        (
            lambda: point_maps(
                np.zeros((2, 2)), np.zeros(2), np.zeros(3), np.zeros(2), **CLASSES, shape=(2, 2), **GROUND
            ),
            r"points differ in number: \[2, 3\]",
        ),
    ],
)
def test_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
