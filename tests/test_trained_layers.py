"""Layers of another raster, read as training read its own: kinds, classes, transforms and recognised nodata."""

import numpy as np
import pytest
import torch

from datasets.layers.encoding import Encoding
from datasets.layers.layer import Layer
from datasets.layers.transforms import Transform
from datasets.survey.inference_survey import open_inference_survey, stored_layers
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.survey.open_test_survey import open_test_survey
from tests.rasters import write_grid

SMALL = {"input_size": 4, "scales": (1,), "base_resolution": 100.0, "val_buffer": 0}


def noise(seed=0, size=32):
    """Positive values, (size, size) float32."""
    return np.exp(np.random.default_rng(seed).normal(size=(size, size))).astype(np.float32)


def survey(folder, table="", **options):
    if table:
        (folder / "layers.csv").write_text(table)
        return open_survey(SurveySettings(layers_table=str(folder / "layers.csv"), **(SMALL | options)))
    return open_survey(SurveySettings(data_dir=str(folder), **(SMALL | options)))


def folder(path, **layers):
    path.mkdir()
    for name, values in layers.items():
        write_grid(path / f"{name}.tif", *values) if isinstance(values, tuple) else write_grid(
            path / f"{name}.tif", values
        )
    return path


def as_test_survey(opened, path, table):
    (path / "layers.csv").write_text(table)
    return open_test_survey(opened, str(path / "layers.csv"), settings=SurveySettings(**SMALL))


def reopened(opened, path, **options):
    """The layers of a survey, by name among the rasters of another folder."""
    return open_inference_survey(
        opened.layers,
        data_dir=str(path),
        encodings=opened.encodings,
        input_size=4,
        scales=(1,),
        base_resolution=100.0,
        finest_scale=1,
        **options,
    )


def sample_of(opened, other):
    """All tiles of a test survey as the model of the first one gets them."""
    return opened.pyramid(other)(*other.reader().read(other.tiles.val).parts)


class TestTransforms:
    def test_a_value_that_a_transform_cannot_take_is_invalid(self):
        encoding = Encoding(transform=Transform("log"))
        channels, usable = encoding.encode(torch.tensor([[[0.0, 1.0, -2.0, np.nan]]]))
        assert usable.tolist() == [[[False, True, False, False]]]
        assert channels.tolist() == [[[[0.0, 0.0, 0.0, 0.0]]]]

    def test_a_test_survey_takes_the_transform_of_training(self, tmp_path):
        """Zeros under a logarithm are invalid there, before coverage is counted, and said."""
        opened = survey(folder(tmp_path / "a", k=noise()), "path,transform\nk.tif,log\n")
        values = noise(1)
        values[:16, :16] = 0
        other = as_test_survey(opened, folder(tmp_path / "b", k=values), "path\nk.tif\n")
        assert other.encodings[0].transform.kind == "log"
        assert other.summaries[0].valid_fraction == 0.75 and other.summaries[0].minimum > 0
        assert np.isnan(other.stack.read(0, 0, 0, 16, 16)).all()
        assert not len([tile for tile in other.tiles.val if (tile < 12).all()])  # nothing valid to score there
        sample = sample_of(opened, other)
        assert sample.imgs.isfinite().all() and sample.valid.any()
        assert any("layer 'k': values of 0 and below" in text and "log" in text for text in other.warnings)

    def test_stored_numbers_with_a_scale(self, tmp_path):
        """Physical values decide: stored 1 to 20 less 10 are valid from 11 on."""
        opened = survey(folder(tmp_path / "a", k=noise()), "path,transform\nk.tif,log\n")
        stored = np.tile(np.arange(1, 33, dtype=np.int16), (32, 1))
        (tmp_path / "b").mkdir()
        write_grid(tmp_path / "b" / "k.tif", stored, scale=0.5, offset=-5.0)
        other = reopened(opened, tmp_path / "b")
        assert np.isfinite(other.stack.read(0, 0, 0, 1, 32)[0]).tolist() == [False] * 10 + [True] * 22
        assert any("layer 'k': values of 0 and below" in text for text in other.warnings)

    def test_training_still_refuses_them(self, tmp_path):
        with pytest.raises(ValueError, match="smallest value 0, expected values above 0 for transform log"):
            survey(folder(tmp_path / "a", k=np.eye(32, dtype=np.float32)), "path,transform\nk.tif,log\n")


class TestKinds:
    CODES = np.random.default_rng(0).integers(1, 4, size=(32, 32)).astype(np.uint8)

    def test_a_test_survey_takes_kind_and_classes_of_training(self, tmp_path):
        """The kind of a band with a colour table holds for one without."""
        (tmp_path / "a").mkdir()
        write_grid(tmp_path / "a" / "k.tif", self.CODES, colormap={k: (k, 0, 0) for k in (1, 2, 3)})
        opened = survey(tmp_path / "a")
        other = as_test_survey(opened, folder(tmp_path / "b", k=np.minimum(self.CODES, 2)), "path\nk.tif\n")
        assert other.encodings[0].codes == opened.encodings[0].codes == (1.0, 2.0, 3.0)
        assert torch.equal(sample_of(opened, other).imgs.sum(dim=1), torch.ones(len(other.tiles.val), 4, 4))

    def test_another_kind_is_refused(self, tmp_path):
        opened = survey(folder(tmp_path / "a", k=noise()))
        with pytest.raises(ValueError, match=r"layer 'k' .*kind is circular, expected continuous as in training"):
            as_test_survey(opened, folder(tmp_path / "b", k=noise(1)), "path,kind\nk.tif,circular\n")


class TestRecognisedNodata:
    """-9999 stands far from the values of training: it is no-data there, and in every other raster."""

    @pytest.fixture
    def opened(self, tmp_path):
        values = noise()
        values[:4] = -9999
        return survey(folder(tmp_path / "a", k=values, m=noise(2)))

    def test_it_is_stored_with_the_layer(self, opened):
        assert [layer.dummies for layer in opened.layers] == [(-9999.0,), ()]
        assert stored_layers([{"name": "k", "path": "k.tif", "dummies": [-9999.0]}])[0].dummies == (-9999.0,)
        assert stored_layers([{"name": "k", "path": "k.tif"}])[0] == Layer("k", "k.tif")

    def test_a_raster_of_nothing_else_is_invalid(self, opened, tmp_path):
        """Alone it would be taken for data: nothing is far from it."""
        constant = np.full((32, 32), -9999, np.float32)
        found = reopened(opened, folder(tmp_path / "b", k=constant, m=noise(3)))
        assert np.isnan(found.stack.read(0, 0, 0, 32, 32)).all()
        assert found.summaries[0].valid_fraction == 0
        text = " ".join(found.warnings)
        assert "layer 'k': -9999 counts as no-data, as recognised in training" in text
        assert "layer 'k': all nodata: none of 1024 pixels is valid" in text and "shown as no-data" in text

    def test_a_few_values_near_it_do_not_make_it_data(self, opened, tmp_path):
        values = np.full((32, 32), -9999, np.int16)
        values[0] = -8000
        found = reopened(opened, folder(tmp_path / "b", k=values, m=noise(3)))
        assert np.isfinite(found.stack.read(0, 0, 0, 32, 32)).sum() == 32

    def test_in_a_test_survey_too(self, opened, tmp_path):
        values = np.full((32, 32), -9999, np.float32)
        found = as_test_survey(opened, folder(tmp_path / "b", k=values, m=noise(3)), "path\nk.tif\nm.tif\n")
        assert np.isnan(found.stack.read(0, 0, 0, 32, 32)).all()

    def test_no_layer_left_is_refused(self, opened, tmp_path):
        constant = np.full((32, 32), -9999, np.float32)
        path = folder(tmp_path / "b", k=constant, m=constant)
        write_grid(path / "m.tif", constant, nodata=-9999)
        with pytest.raises(ValueError, match=r"none of the 2 layers has a valid pixel: layer 'k': -9999 counts as no"):
            reopened(opened, path)

    def test_a_layer_without_it_says_nothing(self, opened, tmp_path):
        found = reopened(opened, folder(tmp_path / "b", k=noise(4), m=noise(3)))
        assert not [text for text in found.warnings if "'m'" in text]


@pytest.mark.parametrize(
    "normalize, factor, warned",
    [("none", 1, False), ("none", 1000, False), ("robust", 1, False), ("robust", 1000, True), ("standard", 1000, True)],
)
def test_values_are_compared_with_the_mean_of_training(tmp_path, normalize, factor, warned):
    """Values about 50,000 whose encoding has centre 0 and scale 1, or the median; the same, and in another unit."""
    values = 5e4 + 30 * noise()
    opened = survey(folder(tmp_path / "a", x=values), f"path,normalize\nx.tif,{normalize}\n")
    texts = reopened(opened, folder(tmp_path / "b", x=factor * values)).warnings
    assert any("are the units the same?" in text for text in texts) == warned
    if warned:
        assert any(f"in training they were {opened.statistics[0].mean:.6g} with" in text for text in texts)
