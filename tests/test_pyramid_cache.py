"""Tiles cut from the survey pooled once are those pooled one by one; what cannot be pooled is read as before."""

import numpy as np
import pytest
import torch

from datasets.survey import pyramid_cache as pooled
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.survey.pyramid_cache import PyramidCache, choose_reader, pyramid_bytes, to_sample, why_not_cached
from datasets.survey.tile_reader import TileReader
from tests.rasters import write_grid
from tests.spheres import write_global

CPU = torch.device("cpu")


def field(rows, cols, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, cols)).astype(np.float32)
    values[rng.random((rows, cols)) < 0.2] = np.nan
    return values


def survey(folder, *, coarse=200.0, shift=0.0, **options):
    """Two layers of 100 m and one coarser one that reaches further north and less far east."""
    folder.mkdir(exist_ok=True)
    write_grid(folder / "a.tif", field(70, 90, 0))
    write_grid(
        folder / "b.tif",
        field(round(8000 / coarse), round(8000 / coarse), 1),
        resolution=coarse,
        top=6_000_400.0,
        left=500_000.0 + shift,
    )
    write_grid(folder / "c.tif", field(70, 90, 2))
    given = {"input_size": 8, "scales": (1, 2, 4), "val_fraction": 0.0, "min_valid": 0.1}
    return open_survey(SurveySettings(data_dir=str(folder), **(given | options)))


def both(opened, origins=None):
    """(cut from the pooled survey, pooled tile by tile), as lists of tensors."""
    origins = opened.tiles.epoch(seed=3, epoch=1) if origins is None else origins
    samples = (
        PyramidCache(opened, CPU).read(origins),
        to_sample(TileReader(opened.stack, opened.bundles).read(origins), opened.pyramid(), CPU),
    )
    return [[s.imgs, s.valid, *s.imgs_up, *s.valid_up] for s in samples]


@pytest.mark.parametrize(
    "options", [{}, {"cache": "none"}, {"masked_bands": [0]}, {"scales": (1, 3), "base_resolution": 600.0}]
)
def test_bit_for_bit_where_pixels_divide_base_pixels(tmp_path, options):
    ours, theirs = both(survey(tmp_path, **options))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert ours[1].any() and not ours[1].all()


def mixed_survey(folder, **options):
    """Layers of every kind and transform, one of them coarser and without the finest scale: eleven channels of six."""
    rng = np.random.default_rng(5)
    classes = rng.choice([3, 17, 205], size=(70, 90)).astype("uint8")
    classes[10:30, :25] = 0
    write_grid(folder / "lithology.tif", classes, nodata=0)
    write_grid(folder / "azimuth.tif", field(70, 90, 0) * 90 % 360)
    write_grid(folder / "radiometrics.tif", np.exp(field(35, 45, 1)), resolution=200.0)
    write_grid(folder / "soil.tif", rng.choice([1, 2, 9], size=(35, 45)).astype("uint8"), resolution=200.0)
    write_grid(folder / "magnetics.tif", np.sinh(3 * field(70, 90, 2)))
    write_grid(folder / "uranium.tif", np.exp(field(70, 90, 3)))
    (folder / "layers.csv").write_text(
        "path,kind,transform\nlithology.tif,categorical,\nazimuth.tif,circular,\nradiometrics.tif,continuous,log\n"
        "soil.tif,categorical,\nmagnetics.tif,continuous,asinh\nuranium.tif,continuous,quantile\n"
    )
    given = {"input_size": 8, "scales": (1, 2, 4), "val_fraction": 0.0, "min_valid": 0.1}
    return open_survey(SurveySettings(layers_table=str(folder / "layers.csv"), **(given | options)))


@pytest.mark.parametrize("options", [{}, {"cache": "none"}, {"scales": (1, 2, 6)}, {"masked_bands": [0]}])
def test_layers_of_every_kind_bit_for_bit(tmp_path, options):
    """Shares of classes, cosines and sines, logarithms: what is averaged are channels, not what lies in the files."""
    opened = mixed_survey(tmp_path, **options)
    ours, theirs = both(opened)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    imgs, valid, finest = ours[0], ours[1], ours[-1]
    assert imgs.shape[1] == opened.pyramid().channels == 3 + 2 + 1 + 3 + 1 + 1
    soil = imgs[:, 6:9].sum(dim=1)[valid[:, 6]]
    torch.testing.assert_close(soil, torch.ones_like(soil))
    assert ((imgs[:, 6:9] > 0) & (imgs[:, 6:9] < 1)).any()  # shares, not classes
    assert not finest[:, [5, 6, 7, 8]].any() and finest[:, 9].any()  # 200 m are not scored at the finest scale
    assert pyramid_bytes(opened) == PyramidCache(opened, CPU).memory_bytes


@pytest.mark.parametrize("options", [{"coarse": 250.0}, {"shift": 70.0}])
def test_up_to_rounding_where_they_do_not(tmp_path, options):
    ours, theirs = both(survey(tmp_path, **options))
    for a, b in zip(ours, theirs, strict=True):
        if a.dtype == torch.bool:
            assert torch.equal(a, b)
        else:  # sums of at most some tens of numbers of size 1 in float32
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_last_tile_of_a_survey_of_odd_size(tmp_path):
    opened = survey(tmp_path)
    rows, cols = opened.stack.reference.rows, opened.stack.reference.cols
    step, edge = opened.tiles.step, opened.tiles.height
    last = np.array([[(rows - edge) // step * step, (cols - edge) // step * step], [0, 0]])
    ours, theirs = both(opened, last)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_cutting_on_a_device_equals_cutting_on_the_host(tmp_path):
    opened = survey(tmp_path)
    made = PyramidCache(opened, CPU)
    corners = opened.tiles.train[:5] // opened.tiles.step
    for source, members, scale in ((made._values[2], [0, 2], 4), (made._valid[0], [0, 1, 2], 1)):
        arguments = (source, corners * scale, 8 * scale, members, 3)
        assert torch.equal(pooled._cut_on_host(*arguments), pooled._cut_on_device(*arguments))


def test_memory_is_five_bytes_for_each_pixel_of_each_scored_scale(tmp_path):
    opened = survey(tmp_path)  # 80 rows and 90 columns of 100 m: 20 x 22 base pixels
    assert pyramid_bytes(opened) == PyramidCache(opened, CPU).memory_bytes == 5 * 20 * 22 * (3 + 3 * 4 + 2 * 16)


class TestChoice:
    def test_pooled_on_a_cpu_where_it_fits(self, tmp_path, monkeypatch):
        opened = survey(tmp_path)
        assert isinstance(choose_reader(opened, CPU), PyramidCache)
        needed = pyramid_bytes(opened) + opened.stack.memory_bytes
        monkeypatch.setattr(pooled, "memory_limit", lambda: needed * 3)
        assert isinstance(choose_reader(opened, CPU, local_ranks=3), PyramidCache)
        assert isinstance(choose_reader(opened, CPU, local_ranks=4), TileReader)

    def test_native_pixels_where_a_gpu_pools_or_files_are_read_by_window(self, tmp_path):
        opened = survey(tmp_path)
        assert isinstance(choose_reader(opened, torch.device("cuda")), TileReader)
        assert isinstance(choose_reader(opened, CPU, cache="none"), TileReader)
        assert isinstance(choose_reader(survey(tmp_path, cache="none"), CPU), TileReader)

    def test_kept_on_the_device_when_asked(self, tmp_path, monkeypatch):
        opened = survey(tmp_path, cache="none")
        assert isinstance(choose_reader(opened, CPU, cache="device"), PyramidCache)
        monkeypatch.setattr(pooled, "memory_limit", lambda: 1000.0)
        with pytest.raises(ValueError, match=r"--cache device: the layers take \d+ MiB there, expected at most 0 MiB"):
            choose_reader(opened, CPU, cache="device")

    def test_tiles_that_start_between_base_pixels(self, tmp_path):
        opened = survey(tmp_path, scales=(1, 2), base_resolution=250.0)
        assert "tiles do not start on base pixels" in why_not_cached(opened)
        assert isinstance(choose_reader(opened, CPU), TileReader)
        with pytest.raises(ValueError, match="--cache device: tiles do not start on base pixels.* of 250 "):
            choose_reader(opened, CPU, cache="device")
        with pytest.raises(ValueError, match="tiles do not start on base pixels"):
            PyramidCache(opened, CPU)

    def test_layers_that_go_round(self, tmp_path):
        """Tiles cross the edge of the grid: no slice of it holds them."""
        write_global(tmp_path / "globe.tif", 5.0)
        opened = open_survey(
            SurveySettings(
                data_dir=str(tmp_path), input_size=8, scales=(1, 2), val_buffer=0, val_fraction=0.0, min_valid=0.1
            )
        )
        origins = opened.tiles.epoch(seed=0, epoch=0)
        assert (origins[:, 1] + opened.tiles.width > opened.stack.reference.cols).any()
        assert isinstance(choose_reader(opened, CPU), TileReader)
        with pytest.raises(ValueError, match="--cache device: the layers wrap around a planet"):
            choose_reader(opened, CPU, cache="device")


def test_a_sample_moves_and_is_kept_as_it_is(tmp_path):
    opened = survey(tmp_path)
    tiles = PyramidCache(opened, CPU).read(opened.tiles.train[:2])
    moved = to_sample(tiles, opened.pyramid(), CPU)
    assert torch.equal(moved.imgs, tiles.imgs) and len(moved.valid_up) == 2


@pytest.mark.gpu
def test_on_a_gpu_without_a_copy_of_pixels(tmp_path):
    opened, device = survey(tmp_path), torch.device("cuda")
    origins = opened.tiles.train[:5]
    ours = choose_reader(opened, device, cache="device").read(origins)
    theirs = to_sample(TileReader(opened.stack, opened.bundles).read(origins), opened.pyramid(), device)
    assert ours.imgs.is_cuda
    for a, b in zip(ours.imgs_up, theirs.imgs_up, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
