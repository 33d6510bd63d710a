"""Layers that hold the labels under another name, codes or units."""

from types import SimpleNamespace

import numpy as np
import pytest
import rasterio

from datasets.finetuning import label_copies
from tests import labelled, surveys
from tests.rasters import write_grid


@pytest.fixture
def grids(tmp_path):
    surveys.write_survey(tmp_path / "grids")
    return tmp_path / "grids"


def warnings_of(caplog):
    return [text for text in caplog.messages if "gives the labels away" in text]


@pytest.fixture
def survey_of(monkeypatch):
    """One layer that is not read, and labels that are (400,) values."""
    monkeypatch.setattr(label_copies, "shown_layers", lambda _: [0])
    encoding = SimpleNamespace(feature_names=lambda: ["value"])
    survey = SimpleNamespace(encodings=[encoding], layers=[SimpleNamespace(name="density")])

    def make(truth):
        labels = truth[None]
        return survey, SimpleNamespace(values=labels, classes=None, scale=1, labelled=lambda *_: np.isfinite(labels))

    return make


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Opens everything that training needs, and trains nothing."""

    def start(grids, labels, *flags):
        given = ["--epochs", "1", "--only_folds", "0", "--no_final", *flags]
        assert labelled.finetune(grids, tmp_path / "output", *given, labels=labels) == 0

    return start


def test_a_copy_with_other_codes_is_named(grids, tmp_path, started, caplog):
    labels = labelled.write_classes(tmp_path)
    with rasterio.open(labels) as source:
        codes = source.read(1)
    write_grid(grids / "units.tif", np.where(codes == 0, np.nan, 100.0 - codes).astype(np.float32))
    started(grids, labels)
    (text,) = warnings_of(caplog)
    assert text.startswith("layer 'units' gives the labels away: its value decides them on 9") or "on 100 %" in text
    assert "--dropped_bands" in text


def test_ordinary_layers_are_no_copies(grids, tmp_path, started, caplog):
    started(grids, labelled.write_classes(tmp_path))
    assert warnings_of(caplog) == []


def test_values_in_other_units_are_named(grids, tmp_path, started, caplog):
    labels = labelled.write_values(tmp_path)
    with rasterio.open(labels) as source:
        values = source.read(1)
    write_grid(grids / "density.tif", (values * 0.001 + 2.0).astype(np.float32), nodata=np.nan)
    started(grids, labels, "--task", "regression")
    (text,) = warnings_of(caplog)
    assert "'density'" in text


@pytest.mark.parametrize(("known", "named"), [(2, 0), (19, 0), (20, 1), (400, 1)])
def test_a_few_pixels_prove_nothing(known, named, survey_of, monkeypatch):
    """Two points always lie on a line."""
    values = np.where(np.arange(400) < known, np.arange(400.0), np.nan)[:, None]
    monkeypatch.setattr(label_copies, "pixel_features", lambda *_, **__: values)
    assert len(label_copies.label_copies(*survey_of(3.0 * np.arange(400.0) - 7.0))) == named
