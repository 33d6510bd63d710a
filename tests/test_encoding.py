"""Kinds of layers on disk: how values become channels and come back, and classes of which code is which."""

import math

import numpy as np
import pytest
import torch

from datasets.layers.encoding import Encoding, channel_ranges, encoding_from_dict, linear_encodings
from datasets.layers.kinds import KINDS
from datasets.layers.layer import Layer
from datasets.layers.table import layers_from_directory, read_layers_table, write_layers_table
from datasets.layers.transforms import Transform
from datasets.rasters.handles import close_datasets
from datasets.rasters.open_band import layer_crs, open_band
from datasets.survey.inference_survey import open_inference_survey
from datasets.survey.layer_classes import find_classes
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.survey.stack import Stack, reference_grid
from datasets.survey.statistics import fit_statistics
from datasets.survey.tile_reader import TileReader
from tests.blocks import holdout_blocks
from tests.rasters import ramp, write_grid

NAN = float("nan")
NOTHING_HELD_OUT = holdout_blocks([[False]], 4, 4)
CLASSES = Encoding(
    "categorical",
    centres=(),
    scales=(),
    codes=(3.0, 17.0, 205.0),
    names=("a", "b", "c"),
    frequencies=(0.5, 0.25, 0.25),
)


def encode(encoding, values):
    """Channels (k, rows, cols) and validity (rows, cols) of one window."""
    channels, usable = encoding.encode(torch.tensor(values, dtype=torch.float32)[None])
    return channels[0], usable[0]


class TestContinuous:
    def test_there_and_back(self):
        """Tolerance: a logarithm in float32 is some 1e-7 off, which is not nothing beside 0."""
        encoding = Encoding(transform=Transform("log"), centres=(1.0,), scales=(2.0,))
        channels, usable = encode(encoding, [[math.e, math.e**3, NAN]])
        assert channels.tolist() == [[pytest.approx([0, 1, 0], abs=1e-6)]] and usable.tolist() == [[True, True, False]]
        torch.testing.assert_close(encoding.decode(channels)[0, :2], torch.tensor([math.e, math.e**3]))
        assert not encoding.is_linear and Encoding().is_linear

    def test_linear_encodings(self):
        encodings = linear_encodings([10.0, 0.0], [2.0, 1.0])
        assert encode(encodings[0], [[14.0]])[0].item() == 2
        assert channel_ranges(encodings) == ((0,), (1,))


class TestCircular:
    encoding = Encoding("circular", centres=(0.1, -0.2), scales=(0.5, 0.5))

    def test_cosine_and_sine(self):
        plain = Encoding("circular", centres=(0.0, 0.0), scales=(1.0, 1.0))
        channels, usable = encode(plain, [[0.0, 90.0, 180.0, -90.0, NAN]])
        expected = [[[1.0, 0, -1, 0, 0]], [[0.0, 1, 0, -1, 0]]]
        np.testing.assert_allclose(channels, expected, atol=1e-6)
        assert usable.tolist() == [[True] * 4 + [False]]

    def test_359_and_1_are_neighbours(self):
        channels, _ = encode(self.encoding, [[359.0, 1.0]])
        assert (channels[..., 0] - channels[..., 1]).norm() < 0.1
        mean = channels.mean(dim=2, keepdim=True)
        degrees = self.encoding.decode(mean).item()
        assert min(degrees, 360 - degrees) < 0.01

    def test_back_in_degrees_from_0_to_360(self):
        values = torch.tensor([[0.0, 45.0, 180.0, 270.0, 359.5, -10.0, 725.0]])
        back = self.encoding.decode(self.encoding.encode(values[None])[0])[0]
        expected = values % 360
        difference = (back - expected + 180) % 360 - 180
        assert difference.abs().max() < 1e-3 and back.min() >= 0 and back.max() < 360
        tiny = Encoding("circular", centres=(0.0, 0.0), scales=(1.0, 1.0))
        assert tiny.decode(torch.tensor([[[1.0]], [[-1e-9]]])).item() == 0

    def test_the_mean_vector_costs_1(self, tmp_path):
        """By the spread that training ground gives, whatever the directions are."""
        rng = np.random.default_rng(0)
        path = write_grid(tmp_path / "a.tif", rng.normal(40, 30, size=(40, 40)).astype("float32") % 360)
        statistics, encoding = fit(path, "circular")
        channels, _ = encode(encoding, whole(path))
        assert channels.square().mean().item() == pytest.approx(1, abs=1e-5)
        assert channels.mean(dim=(1, 2)).tolist() == pytest.approx([0, 0], abs=1e-5)
        assert statistics.mean == pytest.approx(40, abs=2) and statistics.std == pytest.approx(30, abs=2)

    def test_a_single_direction_is_refused(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.where(np.arange(16).reshape(4, 4) % 2, 10.0, 370.0).astype("float32"))
        with pytest.raises(ValueError, match="constant \\(10 degrees\\) on training ground, expected values that vary"):
            fit(path, "circular")


def fit(path, kind, **options):
    band = open_band(Layer("a", str(path), kind=kind, **options))
    stack = Stack([band], reference_grid([band]))
    classes = find_classes(band)[0] if kind == "categorical" else None
    return fit_statistics(stack, 0, NOTHING_HELD_OUT, classes)


def whole(path):
    band = open_band(Layer("a", str(path), kind_stated=True))
    return band.read(0, 0, band.grid.rows, band.grid.cols)


class TestCategorical:
    def test_one_hot_of_sparse_codes(self):
        channels, usable = encode(CLASSES, [[3.0, 205.0, NAN, 17.0]])
        assert channels.tolist() == [[[1, 0, 0, 0]], [[0, 0, 0, 1]], [[0, 1, 0, 0]]]
        assert usable.tolist() == [[True, True, False, True]]

    def test_the_likeliest_code_comes_back(self):
        shares = torch.tensor([[[0.2, 0.1, NAN]], [[0.5, 0.1, NAN]], [[0.3, 0.8, NAN]]])
        np.testing.assert_array_equal(CLASSES.decode(shares), [[17, 205, NAN]])

    def test_frequencies_make_the_marginal_prediction_cost_1(self):
        entropy = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
        assert CLASSES.loss_scale == pytest.approx(1 / entropy)
        assert CLASSES.means == (0.5, 0.25, 0.25) and Encoding().loss_scale == 1

    def test_codes_as_they_lie_with_their_own_nodata(self, tmp_path):
        codes = np.array([[5, 5, 250], [5, 99, 0]], dtype="uint8")
        path = write_grid(tmp_path / "a.tif", codes, nodata=0)
        statistics, encoding = fit(path, "categorical")
        assert encoding.codes == (5, 99, 250) and encoding.channels == 3
        assert encoding.frequencies == pytest.approx((0.6, 0.2, 0.2)) and statistics.median == 5

    def test_isolated_codes_are_no_dummies(self, tmp_path):
        """-9999 would be taken for no-data in a layer of measurements; of classes it is only remarked on."""
        path = write_grid(tmp_path / "a.tif", np.array([[1, 2], [-9999, 2]], dtype="int16"))
        table, notes = find_classes(open_band(Layer("a", str(path), kind="categorical")))
        assert table.codes == (-9999, 1, 2)
        assert "class code -9999 is often a dummy: taken for a class; set nodata" in notes[0]

    def test_names_and_colours_of_the_file(self, tmp_path):
        colours = {3: (255, 0, 0), 7: (0, 0, 255)}
        path = write_grid(tmp_path / "a.tif", np.array([[3, 7]], dtype="uint8"), colormap=colours)
        table, _ = find_classes(open_band(Layer("a", str(path))))
        assert table.codes == (3, 7) and table.colours == ("#ff0000", "#0000ff") and table.names == ("3", "7")

    def test_a_declared_table_may_hold_more(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.array([[3, 7]], dtype="uint8"))
        (tmp_path / "a.csv").write_text("code,name,colour\n7,basalt,#00ff00\n3,gneiss,\n205,gabbro,\n")
        layer = Layer("a", str(path), kind="categorical", classes=str(tmp_path / "a.csv"))
        table, _ = find_classes(open_band(layer))
        assert (table.codes, table.names) == ((3, 7, 205), ("gneiss", "basalt", "gabbro"))
        assert table.colours[1] == "#00ff00"

    @pytest.mark.parametrize(
        "codes, message",
        [
            (np.arange(400).reshape(20, 20).astype("int16"), "more than 255 classes, expected at most that"),
            (np.array([[1.5, 2.0]], dtype="float32"), "class code 1.5, expected whole numbers up to 16777216"),
            (np.array([[2**25, 1]], dtype="int32"), "class code 33554432, expected whole numbers up to"),
        ],
    )
    def test_what_cannot_be_classes_is_refused(self, tmp_path, codes, message):
        path = write_grid(tmp_path / "a.tif", codes)
        with pytest.raises(ValueError, match=f"layer 'a' .*{message}.*kind=continuous"):
            find_classes(open_band(Layer("a", str(path), kind="categorical")))

    def test_codes_beyond_those_of_the_checkpoint_are_refused_by_name(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.array([[3, 17, 18, 40]], dtype="uint8"))
        with pytest.raises(ValueError, match="layer 'a' .*class code 18, 40 is not among .* checkpoint .3, 17, 205"):
            find_classes(open_band(Layer("a", str(path), kind="categorical")), CLASSES)

    def test_one_class_is_refused(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.array([[3, 0, 3]], dtype="uint8"), nodata=0)
        with pytest.raises(ValueError, match=r"1 class \(3\), expected at least two; leave the layer out"):
            find_classes(open_band(Layer("a", str(path), kind="categorical")))

    def test_one_class_on_training_ground_is_refused(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.repeat([[3] * 8, [7] * 8], 4, axis=0).astype("uint8"))
        band = open_band(Layer("a", str(path), kind="categorical"))
        stack = Stack([band], reference_grid([band]))
        held = holdout_blocks([[False], [True]], 4, 8)
        with pytest.raises(ValueError, match="3 alone on training ground, expected at least two classes; change"):
            fit_statistics(stack, 0, held, find_classes(band)[0])

    def test_warped_classes_are_those_of_the_nearest_pixel(self, tmp_path):
        codes = np.random.default_rng(0).choice([3, 205], size=(60, 60)).astype("uint8")
        path = write_grid(tmp_path / "a.tif", codes, rotation=20.0, nodata=0)
        layer = Layer("a", str(path), kind="categorical")
        band = open_band(layer, reproject_to=layer_crs(layer))
        values = band.read(0, 0, band.grid.rows, band.grid.cols)
        assert set(np.unique(values[np.isfinite(values)])) == {3, 205}


def test_encodings_travel_as_plain_data():
    for encoding in (CLASSES, Encoding("circular", centres=(0.1, 0.2)), Encoding(transform=Transform("asinh", 1, 2))):
        plain = encoding.plain()
        assert encoding_from_dict(plain) == encoding
        assert not any(isinstance(value, tuple) for value in [*plain.values(), *plain["transform"].values()])


def test_names_in_checkpoints_stay():
    """Checkpoints call centres `locations`, scales `spreads`, and means of training ground `centres`."""
    plain = Encoding(centres=(3.0,), scales=(2.0,), training_means=(0.5,)).plain()
    assert (plain["locations"], plain["spreads"], plain["centres"]) == ([3.0], [2.0], [0.5])
    assert {"scales", "training_means"}.isdisjoint(plain)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_kind_has_one_nature_and_whole_bands(kind):
    codes = {"codes": (1.0, 4.0), "names": ("a", "b"), "frequencies": (0.5, 0.5)} if kind.is_classes else {}
    encoding = kind.unfitted(Encoding(kind.name, **codes))
    assert [kind.is_continuous, kind.is_classes, kind.is_angle].count(True) == 1
    channels, usable = encoding.encode(torch.tensor([[[1.0, 4.0]]]))
    assert channels.shape == (1, encoding.channels, 1, 2) and len(encoding.means) == encoding.channels
    assert usable.all() and encoding.decode(channels)[0, 0].tolist() == pytest.approx([1, 4], abs=1e-4)
    seen = channels[0].numpy()
    bands = encoding.reconstruction_bands(seen, np.zeros_like(seen), seen)
    assert bands.shape == (len(encoding.band_names), 1, 2) and bands[2].tolist() == [[0, 0]]
    assert len(encoding.feature_names()) == len(list(encoding.features(np.ones((2, 2)))))


class TestTable:
    def test_columns_are_read_and_written(self, tmp_path):
        write_grid(tmp_path / "a.tif", ramp(4, 4))
        write_grid(tmp_path / "b.tif", ramp(4, 4, "uint8"))
        (tmp_path / "b.csv").write_text("code,name\n")
        header = "path,kind,transform,loss,loss_weight,classes\n"
        (tmp_path / "layers.csv").write_text(header + "a.tif,,asinh,huber,2,\nb.tif,categorical,,,,b.csv\n")
        layers = read_layers_table(tmp_path / "layers.csv")
        assert (layers[0].transform, layers[0].loss, layers[0].loss_weight) == ("asinh", "huber", 2)
        assert (layers[1].kind, layers[1].classes, layers[1].loss) == ("categorical", str(tmp_path / "b.csv"), "")
        write_layers_table(tmp_path / "again.csv", layers)
        assert read_layers_table(tmp_path / "again.csv") == layers

    @pytest.mark.parametrize("column, value", [("transform", "sqrt"), ("normalize", "median")])
    def test_unknown_values_are_refused(self, tmp_path, column, value):
        write_grid(tmp_path / "a.tif", ramp(4, 4))
        (tmp_path / "layers.csv").write_text(f"path,{column}\na.tif,{value}\n")
        with pytest.raises(ValueError, match=f"row 2, column '{column}': '{value}', expected one of"):
            read_layers_table(tmp_path / "layers.csv")


@pytest.fixture
def mixed(tmp_path):
    """A field, its direction, and classes cut out of it, 64 x 64 pixels of 100 m, each with a hole."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64] / 10
    field = np.sin(2 * x) * np.cos(1.5 * y) + 0.1 * rng.normal(size=(64, 64))
    write_grid(tmp_path / "azimuth.tif", np.where((x < 1) & (y < 1), NAN, (field * 400) % 360).astype("float32"))
    classes = np.select([field > 0.4, field > -0.2], [205, 17], 3).astype("uint8")
    classes[20:30, 40:50] = 0
    write_grid(tmp_path / "lithology.tif", classes, nodata=0, colormap={3: (1, 2, 3), 17: (4, 5, 6), 205: (7, 8, 9)})
    write_grid(tmp_path / "magnetics.tif", (100 * np.sinh(3 * field)).astype("float32"))
    (tmp_path / "layers.csv").write_text(
        "path,kind,transform,group\nmagnetics.tif,,asinh,a\nazimuth.tif,circular,,a\nlithology.tif,categorical,,b\n"
    )
    return tmp_path


def write_anew(path, codes, **options):
    """Replaces a raster, which must not be open any more."""
    close_datasets()
    write_grid(path, codes, **options)


def open_mixed(folder, **options):
    arguments = {"layers_table": str(folder / "layers.csv"), "input_size": 4, "scales": (1, 2, 4), "val_fraction": 0.0}
    return open_survey(SurveySettings(**(arguments | options)))


class TestSurvey:
    def test_channels_of_layers(self, mixed):
        survey = open_mixed(mixed)
        options = survey.channel_options()
        assert survey.channels == ((0,), (1, 2), (3, 4, 5)) and options["in_chans"] == 6
        assert options["channel_groups"] == ((0, 1, 2), (3, 4, 5)) and options["scored"][4] == (0, 1, 2, 3, 4, 5)
        assert [row["kind"] for row in options["layers"]] == ["continuous", "circular", "categorical"]
        assert [row["form"] for row in options["layers"]] == ["values", "angle", "fractions"]
        assert (
            "3 classes, the commonest" in survey.summary_lines()[2] and "transform asinh" in survey.summary_lines()[0]
        )

    def test_coarser_pixels_hold_class_shares_and_mean_directions(self, mixed):
        """Each base pixel against its 4 x 4 native ones, counted by hand."""
        survey = open_mixed(mixed)
        sample = survey.pyramid()(*reader(survey).read(np.array([[16, 40]])).parts)
        codes = whole(mixed / "lithology.tif")[16:32, 40:56].reshape(4, 4, 4, 4).transpose(0, 2, 1, 3).reshape(4, 4, 16)
        for k, code in enumerate((3, 17, 205)):
            with np.errstate(invalid="ignore"):
                share = (codes == code).sum(axis=2) / np.isfinite(codes).sum(axis=2)
            np.testing.assert_allclose(sample.imgs[0, 3 + k], np.nan_to_num(share), atol=1e-6)
        assert (sample.valid[0, 3] == torch.from_numpy(np.isfinite(codes).any(axis=2))).all()
        angles = np.deg2rad(whole(mixed / "azimuth.tif")[16:32, 40:56]).reshape(4, 4, 4, 4)
        vector = np.stack([np.cos(angles).mean(axis=(1, 3)), np.sin(angles).mean(axis=(1, 3))])
        degrees = survey.pyramid().to_physical(sample.imgs)[0, 1]
        expected = np.rad2deg(np.arctan2(vector[1], vector[0])) % 360
        np.testing.assert_allclose(degrees, expected, atol=1e-2)

    def test_transformed_layers_come_back_in_physical_units(self, mixed):
        survey = open_mixed(mixed)
        sample = survey.pyramid()(*reader(survey).read(np.array([[16, 40]])).parts)
        finest = torch.cat([sample.imgs_up[1]])
        back = survey.pyramid().to_physical(finest)[0, 0]
        np.testing.assert_allclose(back, whole(mixed / "magnetics.tif")[16:32, 40:56], rtol=1e-4, atol=1e-3)

    def test_what_lies_under_nodata_changes_nothing(self, mixed):
        before = open_mixed(mixed)
        classes = whole(mixed / "lithology.tif")
        codes = np.where(np.isnan(classes), 99, classes).astype("uint8")
        write_anew(mixed / "lithology.tif", codes, nodata=99)
        after = open_mixed(mixed)
        assert before.encodings[2].codes == after.encodings[2].codes
        assert before.encodings[2].frequencies == after.encodings[2].frequencies
        samples = [s.pyramid()(*reader(s).read(np.array([[16, 40]])).parts) for s in (before, after)]
        for one, other in zip(samples[0][:2], samples[1][:2], strict=True):
            assert torch.equal(one, other)

    def test_relabelled_codes_change_nothing(self, mixed):
        """In the same order they are the same channels."""
        before = open_mixed(mixed)
        classes = whole(mixed / "lithology.tif")
        moved = np.select([classes == 3, classes == 17, classes == 205], [101, 7000, 30000], -1).astype("int16")
        write_anew(mixed / "lithology.tif", moved, nodata=-1)
        after = open_mixed(mixed)
        assert after.encodings[2].codes == (101, 7000, 30000)
        assert after.channel_options() == before.channel_options()
        samples = [s.pyramid()(*reader(s).read(np.array([[16, 40]])).parts) for s in (before, after)]
        assert torch.equal(samples[0].imgs, samples[1].imgs)

    def test_classes_recognised_from_a_colour_table_are_said_so(self, mixed):
        (mixed / "layers.csv").write_text("path\nmagnetics.tif\nlithology.tif\n")
        survey = open_mixed(mixed)
        assert survey.encodings[1].kind == "categorical"
        assert any("layer 'lithology': the band has a colour table: taken for" in text for text in survey.warnings)

    def test_flag_and_table_give_the_same_transform(self, mixed):
        (mixed / "layers.csv").write_text("path\nmagnetics.tif\n")
        survey = open_mixed(mixed, transforms={"magnetics": "asinh"})
        assert survey.layers[0].transform == "asinh" and not survey.encodings[0].is_linear

    def test_a_hidden_layer_keeps_its_channels(self, mixed):
        survey = open_mixed(mixed, masked_bands=[2])
        assert survey.channel_options()["in_chans"] == 6 and survey.scored[1] == (0, 1)
        assert not survey.pyramid()(*reader(survey).read(np.array([[16, 40]])).parts).valid[:, 3:].any()


class TestReopened:
    def reopen(self, survey, folder, **options):
        return open_inference_survey(
            survey.layers,
            encodings=survey.encodings,
            data_dir=str(folder),
            input_size=4,
            scales=(1, 2, 4),
            base_resolution=survey.base_resolution,
            finest_scale=4,
            **options,
        )

    def test_layers_are_read_as_in_training(self, mixed):
        """Found in a directory, where nobody says that the azimuths are such."""
        survey = open_mixed(mixed)
        assert {layer.kind for layer in layers_from_directory(mixed)} == {"continuous"}
        again = self.reopen(survey, mixed)
        assert [layer.kind for layer in again.layers] == ["continuous", "circular", "categorical"]
        window = again.read(4, 10, 8, 14)
        one, other = (
            window.sample(np.array([[4, 10]]), torch.device("cpu")),
            survey.pyramid()(*reader(survey).read(np.array([[16, 40]])).parts),
        )
        torch.testing.assert_close(one.imgs, other.imgs)

    def test_new_codes_are_refused(self, mixed):
        survey = open_mixed(mixed)
        codes = np.nan_to_num(whole(mixed / "lithology.tif"), nan=0).astype("uint8")
        codes[0, 0] = 44
        write_anew(mixed / "lithology.tif", codes, nodata=0)
        with pytest.raises(ValueError, match="layer 'lithology' .*class code 44 is not among the classes"):
            self.reopen(survey, mixed)

    def test_another_kind_is_refused(self, mixed):
        survey = open_mixed(mixed)
        (mixed / "layers.csv").write_text("path,kind\nmagnetics.tif,\nazimuth.tif,continuous\nlithology.tif,\n")
        with pytest.raises(ValueError, match="layer 'azimuth' .*kind is continuous, expected circular as in training"):
            open_inference_survey(
                survey.layers,
                encodings=survey.encodings,
                layers_table=str(mixed / "layers.csv"),
                input_size=4,
                scales=(1,),
                base_resolution=400.0,
                finest_scale=4,
            )


def reader(survey):
    return TileReader(survey.stack, survey.bundles)
