"""Layers that hold the labels under another name, codes or units."""

import numpy as np
import pytest
import rasterio

from tests import labelled, surveys
from tests.rasters import write_grid


@pytest.fixture
def grids(tmp_path):
    surveys.write_survey(tmp_path / "grids")
    return tmp_path / "grids"


def warnings_of(caplog):
    return [text for text in caplog.messages if "gives the labels away" in text]


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
