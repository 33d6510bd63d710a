"""Whole rasters out: places, edges, resuming, ranks and batches; with an identity for a model, and with a small one."""

import gc
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import weakref
import xml.etree.ElementTree as ET
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch

import main_inference
import models_mae_group_channels as models
from datasets.layers.encoding import Encoding
from datasets.layers.layer import Layer
from datasets.rasters.handles import close_datasets
from datasets.survey.coverage import overlap_matrix
from datasets.survey.inference_survey import open_inference_survey, stored_layers
from datasets.survey.open_survey import SurveySettings, open_survey
from scripts import measure_gapfill, measure_superresolution
from tests import small_maps
from tests.rasters import write_grid
from tests.surveys import TORCHRUN_VARIABLES, start_of_launch, write_survey
from util.checkpoints.checkpoint_file import load_checkpoint, save_checkpoint
from util.inference import results
from util.inference.embeddings import EmbeddingProduct
from util.inference.engine import Engine, Meter
from util.inference.gap_filling import GapFillingProduct, _record_gap_model
from util.inference.gap_spline import RING
from util.inference.inputs import file_names, ground_of
from util.inference.layers import LayerValues, NativeLayer
from util.inference.masked_views import MaskedViews
from util.inference.reconstruction import ReconstructionProduct
from util.model.layer_losses import LayerChannels
from util.mosaics.mosaic import blocks_of

CPU = torch.device("cpu")
SIZE, PATCH = 16, 4
KINDS = ("embeddings", "reconstruction", "gapfill", "superresolution")
PAGE = ("report.html", "report.json")


# ------------------------------------------------------------------------------------------------ a model that copies


class Copy:
    """Stands in for the network: it predicts what it was given, and its features are means of patches."""

    def __init__(self, scales=(1, 2), channels=1):
        self.img_size, self.patch_size, self.encoded_groups = SIZE, PATCH, 1
        self.pos_embed = torch.zeros(1, 1, channels)
        self.channel_embed = torch.zeros(1, 1, 0)
        self.scales, self.norm_pix_loss, self.target_layers = scales, False, ()
        self.layers = [LayerChannels(c) for c in range(channels)]

    def valid_positions(self, valid):
        return torch.nn.functional.max_pool2d(valid.float().amax(1, keepdim=True), PATCH).flatten(1) > 0

    def forward_tokens(self, imgs, valid, native):
        total = torch.nn.functional.avg_pool2d(imgs * valid, PATCH)
        weight = torch.nn.functional.avg_pool2d(valid.float(), PATCH)
        features = (total / weight.clamp_min(1e-9)).flatten(2).transpose(1, 2)[:, None]
        return features, self.valid_positions(valid)[:, None]

    def reconstruct(self, imgs, valid, native, *, noise, keep):
        hidden = (noise.argsort(dim=1).argsort(dim=1) >= keep)[:, None].expand(-1, imgs.shape[1], -1)
        fine = {s: torch.nn.functional.interpolate(imgs, scale_factor=s, mode="nearest") for s in self.scales}
        return fine, hidden


def engine(model, batch_size=7):
    return Engine(
        model=model,
        device=CPU,
        autocast=lambda: torch.autocast("cpu", enabled=False),
        batch_size=batch_size,
        overlap=0.5,
        meter=Meter(CPU),
    )


def reopen(folder, *, base=400.0, scales=(1, 2), **options):
    """All rasters of a folder, in model units that are physical ones."""
    layers = main_layers(folder)
    return open_inference_survey(
        layers,
        encodings=[Encoding()] * len(layers),
        input_size=SIZE,
        scales=scales,
        base_resolution=base,
        finest_scale=max(scales),
        **options,
    )


def main_layers(folder):
    from datasets.layers.table import layers_from_directory

    return layers_from_directory(folder)


def run(product, survey, *, edge=24):
    """Makes every unit and puts the parts in place: name -> (B, rows, cols)."""
    found = {name: np.full((len(i.names), i.rows, i.cols), np.nan, np.float32) for name, i in product.rasters.items()}
    for block in blocks_of(*product.extent(), edge=edge):
        around = block.grown(product.reach)
        window = survey.read(around.top, around.left, around.bottom, around.right)
        for name, (_, pixels, row, col) in product.make(block, window).items():
            place = found[name][:, row : row + pixels.shape[1], col : col + pixels.shape[2]]
            assert np.isnan(place).all()  # units do not overlap
            place[:] = pixels
    return found


def values(survey):
    return [LayerValues(layer.name, "", layer.name, Encoding()) for layer in survey.layers]


def filling(survey, *, max_gap):
    """Gap filling of the only layer of a survey, of 100 m, by a model that copies."""
    grid = survey.stack.bands[0].grid
    layer = NativeLayer(
        channel=0,
        values=values(survey)[0],
        scale=1,
        left=grid.left,
        top=grid.top,
        resolution_x=100.0,
        resolution_y=100.0,
        rows=grid.rows,
        cols=grid.cols,
        ratio_yx=(4.0, 4.0),
        offset_yx=(0.0, 0.0),
    )
    views = MaskedViews(0.75, 2, 0)
    return GapFillingProduct(
        engine(Copy((1,))), ground_of(survey), layers=[layer], views=views, max_gap=max_gap, tags={}
    )


def plane(rows, cols, resolution, *, left=500_000.0, top=6_000_000.0):
    """Values a pixel's mean easting + 2 x northing, in kilometres from the corner: exact under averaging."""
    x = (np.arange(cols) + 0.5) * resolution / 1000
    y = -(np.arange(rows) + 0.5) * resolution / 1000
    return (x[None] + 2 * y[:, None]).astype(np.float32)


class TestIdentity:
    @pytest.mark.parametrize(("rows", "cols", "resolution"), [(211, 307, 100.0), (37, 131, 100.0), (151, 163, 150.0)])
    def test_round_trip_for_awkward_sizes(self, tmp_path, rows, cols, resolution):
        """Prime sizes, a tile taller than the survey, and base pixels of 2.67 native ones: tiles -> mosaic."""
        write_grid(tmp_path / "a.tif", plane(rows, cols, resolution), resolution=resolution)
        survey = reopen(tmp_path, scales=(1,))
        product = ReconstructionProduct(
            engine(Copy((1,))),
            ground_of(survey),
            layers=values(survey),
            wanted={1: [0]},
            views=MaskedViews(0.75, 2, 0),
            tags={},
        )
        pixels = run(product, survey)["reconstruction_a_1x"]
        assert pixels.shape[1:] == (-(-rows * resolution // 400), -(-cols * resolution // 400))
        assert np.isfinite(pixels).all()  # every pixel was hidden at least once
        np.testing.assert_allclose(pixels[1:], 0, atol=3e-5)  # no spread, no error
        down, across = (
            overlap_matrix(np.arange(size + 1) * 400 / resolution, count)
            for size, count in zip(pixels.shape[1:], (rows, cols), strict=True)
        )
        shared = down.sum(axis=1) @ across.sum(axis=1).T  # native pixels under each base pixel
        expected = (down @ plane(rows, cols, resolution).astype(float) @ across.T) / shared
        np.testing.assert_allclose(pixels[0], np.asarray(expected), atol=3e-5)

    def test_point_of_known_position(self, tmp_path):
        """The value of a plane at the middle of a result is that of its place on the ground, at any stride."""
        write_grid(tmp_path / "a.tif", plane(190, 230, 100.0))
        survey = reopen(tmp_path)
        for stride in (4, 2, 1):
            product = EmbeddingProduct(
                engine(Copy()), ground_of(survey), pool="mean", stride=stride, dtype="float32", tags={}
            )
            info = product.rasters["embeddings"]
            pixels = run(product, survey)["embeddings"][0]
            row, col = info.rows // 2, info.cols // 3
            x, y = info.left + (col + 0.5) * info.resolution_x, info.top - (row + 0.5) * info.resolution_y
            np.testing.assert_allclose(pixels[row, col], (x - 500_000) / 1000 + 2 * (y - 6_000_000) / 1000, atol=1e-4)
            assert info.resolution_x == stride * 400 and np.isfinite(pixels).all()
            assert info.left <= 500_000 and info.left + info.cols * info.resolution_x >= 523_000
            assert info.top >= 6_000_000 and info.top - info.rows * info.resolution_y <= 5_981_000

    def test_ragged_outline(self, tmp_path):
        image = plane(200, 200, 100.0)
        y, x = np.mgrid[:200, :200]
        image[(y - 100) ** 2 + (x - 90) ** 2 > 85**2] = np.nan
        write_grid(tmp_path / "a.tif", image, nodata=np.nan)
        survey = reopen(tmp_path)
        product = EmbeddingProduct(engine(Copy()), ground_of(survey), pool="group", stride=4, dtype="float32", tags={})
        pixels = run(product, survey)["embeddings"][0]
        known = np.isfinite(np.pad(image, ((0, 8), (0, 8)), constant_values=np.nan))
        expected = known.reshape(13, 16, 13, 16).any(axis=(1, 3))
        assert np.array_equal(np.isfinite(pixels), expected)

    def test_gaps_on_a_plane(self, tmp_path):
        image = plane(200, 203, 100.0)
        holed = image.copy()
        holed[60:75, 40:110] = np.nan  # 1.5 km wide
        holed[120:170, 100:150] = np.nan  # 5 km wide
        write_grid(tmp_path / "a.tif", holed, nodata=np.nan)
        survey = reopen(tmp_path, scales=(1,))
        product = filling(survey, max_gap=2000.0)
        product.gap_models = product.calibrate(
            lambda u: survey.read(u.top, u.left, u.bottom, u.right), np.array([[4, 0], [4, 24], [28, 0]]), count=3
        )
        filled, sigma = run(product, survey)["gapfill_a"]
        known = np.isfinite(holed)
        assert np.array_equal(filled[known], image[known]) and (sigma[known] == 0).all()
        assert np.isfinite(filled[60:75, 40:110]).all() and (sigma[60:75, 40:110] >= 0).all()
        np.testing.assert_allclose(filled[60:75, 40:110], image[60:75, 40:110], atol=0.5)
        assert np.isnan(filled[130:160, 110:140]).all() and np.isnan(sigma[130:160, 110:140]).all()

    def test_calibration_where_only_small_gaps_fit(self, tmp_path, caplog):
        """A stripe of valid pixels as wide as a gap of three tenths and its ring: each tile gives one of that size."""
        image = plane(100, 203, 100.0)
        image[: 48 - 3 - RING] = image[48 + 3 + RING :] = np.nan
        write_grid(tmp_path / "a.tif", image, nodata=np.nan)
        survey = reopen(tmp_path, scales=(1,))
        product = filling(survey, max_gap=2000.0)

        def read(block):
            return survey.read(*block.edges)

        tiles = np.array([[4, col] for col in (0, 8, 16, 24, 30)])
        (model,) = product.calibrate(read, tiles, count=4).values()
        assert model.gaps == 4
        _record_gap_model(product, product.layers[0], model)
        assert product.rasters["gapfill_a"].tags["artificial_gaps"] == "4"
        assert "layer 'a': only 4 artificial gaps found enough valid ground, expected 6 or more" in caplog.text


# ------------------------------------------------------------------------------------------------------ a small model


def make_checkpoint(survey_dir: Path, path: Path, **model) -> Path:
    """A checkpoint of untrained weights, with the statistics that training would have found."""
    survey = open_survey(
        SurveySettings(
            layers_table=str(survey_dir / "layers.csv"),
            input_size=SIZE,
            scales=(1, 2, 4),
            val_fraction=0.0,
            min_valid=0.3,
            cache="none",
        )
    )
    torch.manual_seed(0)
    network = models.MaskedAutoencoderGroupChannelViT(
        img_size=SIZE,
        patch_size=PATCH,
        in_chans=len(survey.stack),
        channel_groups=survey.groups,
        **{
            "channel_embed": 8,
            "embed_dim": 32,
            "depth": 1,
            "num_heads": 2,
            "decoder_channel_embed": 8,
            "decoder_embed_dim": 32,
            "decoder_depth": 1,
            "decoder_num_heads": 2,
            "scales": survey.scales,
            "scored": survey.scored,
            "scale_heads": "subpixel",
        }
        | model,
    )
    state = {
        "model": network.state_dict(),
        "model_config": network.config,
        "layers": [asdict(layer) for layer in survey.layers],
        "statistics": [item.as_dict() for item in survey.statistics],
        "options": {"scales": [1, 2, 4], "mask_ratio": 0.75, "extent": "union", "masked_bands": []},
        "version": "test",
        **survey.record(),
    }
    save_checkpoint(path, state)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A survey of gravity (200 m) and magnetics (100 m) with holes, and a model of it."""
    folder = tmp_path_factory.mktemp("trained")
    survey = write_survey(folder / "survey")
    return SimpleNamespace(survey=survey, checkpoint=make_checkpoint(survey, folder / "checkpoint-last.pth"))


def arguments(trained, output_dir, output, *more):
    return [
        *("--checkpoint", str(trained.checkpoint), "--output", output, "--output_dir", str(output_dir)),
        *("--device", "cpu", "--no_progress", "--block_size", "24", *more),
    ]


def infer(trained, output_dir, output="embeddings", *more, status=0, pictures=False):
    assert small_maps.infer(arguments(trained, output_dir, output, *more), pictures=pictures) == status
    return Path(output_dir)


def pixels_of(path):
    with rasterio.open(path) as file:
        return file.read()


class TestOutputs:
    @pytest.mark.parametrize("output", KINDS)
    def test_every_file_reads_back(self, trained, tmp_path, output):
        """As any program would find it: a cloud-optimised GeoTIFF that says where it lies, and a picture beside it."""
        more = ("--clusters", "3") if output == "embeddings" else ()
        out = infer(trained, tmp_path, output, *more, pictures=True)
        files = sorted(out.glob("*.tif"))
        assert files
        for path in files:
            with rasterio.open(path) as file:
                assert file.crs.to_epsg() == 28354 and file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                assert file.profile["tiled"] and file.profile["compress"] == "deflate"
                assert file.bounds.left == 500_000 and file.bounds.top == 6_000_000
                assert file.nodata == 0 if file.dtypes[0] == "uint8" else np.isnan(file.nodata)
                assert all(file.descriptions) and file.tags()["output"] == output
                mask, pixels = file.read_masks(1) > 0, file.read(1)
                assert 0.5 < mask.mean() < 1 and np.isfinite(pixels[mask]).all()
            assert path.with_suffix(".png").exists() == (path.stem != "embeddings")
            if importlib.util.find_spec("rio_cogeo") is not None:
                from rio_cogeo.cogeo import cog_validate

                valid, errors, warnings = cog_validate(path)
                assert valid and not errors and not warnings

    def test_embeddings(self, trained, tmp_path):
        out = infer(trained, tmp_path, "embeddings", "--clusters", "3", "--num_workers", "0", pictures=True)
        endings = (
            ".tif",
            ".qml",
            "_pca.tif",
            "_pca.qml",
            "_pca.png",
            "_clusters.tif",
            "_clusters.qml",
            "_clusters.png",
        )
        expected = {f"embeddings{ending}" for ending in (*endings, "_clusters.tif.aux.xml")}
        assert {path.name for path in out.iterdir()} == {*expected, "maps.qgs", "report.html", "report.json"}
        with rasterio.open(out / "embeddings.tif") as file:
            assert (file.count, file.shape, file.res) == (32, (10, 10), (1600.0, 1600.0))
            assert file.crs.to_epsg() == 28354 and (file.transform.c, file.transform.f) == (500_000, 6_000_000)
            tags = file.tags()
            assert tags["checkpoint"] == "checkpoint-last.pth" and tags["layers"] == "gravity, magnetics"
            assert tags["version"] == "test" and tags["missing_layers"] == "none" and tags["pool"] == "mean"
            assert file.descriptions[31] == "embedding_31"
            known = np.isfinite(file.read(1))
        with rasterio.open(out / "embeddings_clusters.tif") as file:
            classes = file.read(1)
            assert set(np.unique(classes[known])) == {1, 2, 3} and (classes[~known] == 0).all()
            assert file.tags(1)["class_3"] == "class 3" and len(set(file.colormap(1).values())) >= 4
        with rasterio.open(out / "embeddings_pca.tif") as file:
            assert file.count == 3 and file.dtypes[0] == "uint8" and ((file.read() > 0) == known).all()
        assert not known.all() and known.mean() > 0.9  # a corner is a hole of both layers

    def test_embeddings_by_group_finer_and_half(self, trained, tmp_path):
        more = ("--pool", "group", "--stride", "2", "--dtype", "float16", "--positions", "keep")
        out = infer(trained, tmp_path, "embeddings", *more)
        with rasterio.open(out / "embeddings.tif") as file:
            assert file.count == 64 and file.res == (800.0, 800.0) and file.transform.c == 500_000 - 400
            assert file.tags(1, ns="IMAGE_STRUCTURE")["NBITS"] == "16"
            by_group = file.read()
        # Every other result, from the first patch on, is that of the coarser stride.
        coarse = infer(trained, tmp_path / "coarse", "embeddings", "--positions", "keep", "--pool", "group")
        plain = pixels_of(coarse / "embeddings.tif")
        both = np.isfinite(by_group[:, 1::2, 1::2][:, :10, :10]) & np.isfinite(plain)
        difference = (by_group[:, 1::2, 1::2][:, :10, :10] - plain)[both]
        assert both.mean() > 0.8 and np.abs(difference).max() < 2e-3  # half precision of numbers about 1

    def test_reconstruction(self, trained, tmp_path):
        out = infer(trained, tmp_path, "reconstruction", pictures=True)
        names = {"gravity_1x", "gravity_2x", "magnetics_1x", "magnetics_2x", "magnetics_4x"}
        assert {path.name for path in out.iterdir()} == {
            *(f"reconstruction_{n}{e}" for n in names for e in (".tif", ".qml", ".png")),
            "maps.qgs",
            "report.html",
            "report.json",
        }
        with rasterio.open(out / "reconstruction_magnetics_4x.tif") as file:
            assert file.descriptions == ("magnetics reconstruction", "magnetics spread", "magnetics error")
            assert file.units == ("nT",) * 3 and file.res == (100.0, 100.0) and file.shape == (160, 160)
            rebuilt, spread, error = file.read()
        observed = pixels_of(trained.survey / "magnetics.tif")[0]
        known = observed != -99999
        assert np.array_equal(np.isfinite(rebuilt), known)
        np.testing.assert_allclose((rebuilt + error)[known], observed[known], atol=1e-3)
        assert (spread[known] >= 0).all() and spread[known].max() > 0
        assert abs(rebuilt[known].mean() - observed[known].mean()) < 3 * observed[known].std()

    def test_gapfill(self, trained, tmp_path, capsys):
        out = infer(trained, tmp_path, "gapfill", "--max_gap", "3500")
        with rasterio.open(out / "gapfill_magnetics.tif") as file:
            assert file.res == (100.0, 100.0) and file.descriptions == ("magnetics filled", "magnetics uncertainty")
            assert file.tags()["max_gap"] == "3500" and 0 <= float(file.tags()["share_of_model_detail"]) <= 1
            filled, sigma = file.read()
        observed = pixels_of(trained.survey / "magnetics.tif")[0]
        known = observed != -99999
        assert np.array_equal(filled[known], observed[known]) and (sigma[known] == 0).all()
        y, x = (np.mgrid[:160, :160] + 0.5) / 10
        lake = np.hypot(x - 11, y - 8) < 1.5
        assert np.isfinite(filled[lake]).all() and (sigma[lake] > 0).all()
        outside = filled[(y < 2) & (x < 3)]  # a corner of the survey, open to the outside, but for its own corner
        assert np.isnan(outside).mean() > 0.8
        assert np.abs(filled[lake]).max() < 300

    def test_superresolution(self, trained, tmp_path):
        """Magnetics given at 200 m are predicted at the 100 m that the model knows them at; gravity never is."""
        coarse = tmp_path / "coarse"
        coarse.mkdir()
        (coarse / "gravity.tif").write_bytes((trained.survey / "gravity.tif").read_bytes())
        fine = pixels_of(trained.survey / "magnetics.tif")[0]
        mean = fine.reshape(80, 2, 80, 2).mean(axis=(1, 3))
        write_grid(coarse / "magnetics.tif", np.where(mean < -1000, -99999, mean), resolution=200.0, nodata=-99999)
        out = infer(trained, tmp_path, "superresolution", "--data_dir", str(coarse))
        assert {path.name for path in out.glob("*.tif")} == {"superresolution_magnetics_4x.tif"}
        with rasterio.open(out / "superresolution_magnetics_4x.tif") as file:
            assert file.tags()["inferred"].startswith("yes") and file.res == (100.0, 100.0)
            assert file.descriptions == ("magnetics inferred", "magnetics interpolated")
            inferred, interpolated = file.read()
            share = float(file.tags()["share_of_model_detail"])
        known = np.isfinite(inferred) & (fine != -99999)
        assert known.mean() > 0.8 and 0 <= share <= 1
        error, baseline = (np.std((image - fine)[known]) for image in (inferred, interpolated))
        assert error < 1.1 * baseline and np.corrcoef(inferred[known], fine[known])[0, 1] > 0.95

    def test_superresolution_to_the_pixels_of_a_neighbour(self, trained, tmp_path):
        """Gravity of 200 m at the 100 m of magnetics, which the model learned only with base pixels twice as fine."""
        out = infer(trained, tmp_path / "a", "superresolution")
        assert {path.name for path in out.glob("*.tif")} == {"superresolution_gravity_4x.tif"}
        with rasterio.open(out / "superresolution_gravity_4x.tif") as file:
            tags = file.tags()
            assert tags["inferred"].startswith("yes: pixels of 100, finer than the layer's own; known at 2x (200)")
            assert tags["trained_scale"] == "2x"
            assert ("adds nothing" in tags.get("warning", "")) == (float(tags["share_of_model_detail"]) < 0.005)
            assert tags["method"].endswith("the model is run with base pixels of 200, and was trained with 400")
            assert file.res == (100.0, 100.0) and file.units == ("mGal",) * 2
            pixels = file.read()
        measured = pixels_of(trained.survey / "gravity.tif")[0]
        known = measured != -99999
        for image in pixels:
            assert np.array_equal(np.isfinite(image), known.repeat(2, 0).repeat(2, 1))
            means = image.reshape(80, 2, 80, 2).mean(axis=(1, 3))
            np.testing.assert_allclose(means[known], measured[known], atol=2e-3)
        other = infer(trained, tmp_path / "b", "superresolution", "--block_size", "16")
        again = pixels_of(other / "superresolution_gravity_4x.tif")
        np.testing.assert_allclose(again, pixels, atol=1e-4 * np.nanstd(pixels))  # no seams between blocks

    def test_superresolution_beyond_what_can_be_refined(self, trained, tmp_path, caplog):
        mean = pixels_of(trained.survey / "gravity.tif")[0].reshape(40, 2, 40, 2).mean(axis=(1, 3))
        write_grid(tmp_path / "gravity.tif", np.where(np.abs(mean) < 1e6, mean, np.nan), resolution=400.0)
        (tmp_path / "magnetics.tif").write_bytes((trained.survey / "magnetics.tif").read_bytes())
        out = infer(trained, tmp_path / "out", "superresolution", "--data_dir", str(tmp_path))
        assert {path.name for path in out.glob("*.tif")} == {"superresolution_gravity_2x.tif"}
        assert "not trained to refine these layers: 'gravity' at 100 (it learned 'gravity' down to 200" in caplog.text

    def test_superresolution_of_the_finest_layer(self, trained, tmp_path, capsys):
        (tmp_path / "magnetics.tif").write_bytes((trained.survey / "magnetics.tif").read_bytes())
        more = ("--data_dir", str(tmp_path), "--missing_layers", "allow")
        infer(trained, tmp_path / "out", "superresolution", *more, status=2)
        message = capsys.readouterr().err
        assert "no layer here is coarser than a neighbour or than in training" in message
        assert "'gravity' down to 200; 'magnetics' down to 100" in message

    def test_area_of_interest(self, trained, tmp_path):
        box = shapely.box(502_000, 5_990_000, 507_000, 5_994_000)
        geopandas.GeoDataFrame(geometry=[box], crs="EPSG:28354").to_file(tmp_path / "aoi.gpkg")
        whole = infer(trained, tmp_path / "whole", "reconstruction")
        part = infer(trained, tmp_path / "part", "reconstruction", "--aoi", str(tmp_path / "aoi.gpkg"))
        inside = np.zeros((160, 160), dtype=bool)
        inside[60:100, 20:70] = True
        name = "reconstruction_magnetics_4x.tif"
        expected = np.where(inside, pixels_of(whole / name), np.nan)
        np.testing.assert_array_equal(pixels_of(part / name), expected)

    def test_a_raster_without_valid_pixels_is_left_out(self, trained, tmp_path, caplog, capsys):
        """Gravity has no data in the area, so only magnetics are written; an older file of gravity is removed."""
        box = shapely.box(500_000, 5_984_000, 500_800, 5_984_800)
        geopandas.GeoDataFrame(geometry=[box], crs="EPSG:28354").to_file(tmp_path / "aoi.gpkg")
        (tmp_path / "gapfill_gravity.tif").write_text("old")
        more = ("--max_gap", "800", "--aoi", str(tmp_path / "aoi.gpkg"))
        out = infer(trained, tmp_path, "gapfill", *more, "--overwrite")
        assert [path.name for path in out.glob("*.tif")] == ["gapfill_magnetics.tif"]
        assert "gapfill_gravity.tif: no valid pixel in it, so it is not written" in caplog.text
        (record,) = json.loads((out / "report.json").read_text())["runs"]
        assert [raster["name"] for raster in record["facts"]["rasters"]] == ["gapfill_magnetics"]
        assert "gapfill_gravity" not in (out / "maps.qgs").read_text()
        (tmp_path / "gravity.tif").write_bytes((trained.survey / "gravity.tif").read_bytes())
        alone = ("--data_dir", str(tmp_path), "--missing_layers", "allow", "--output_dir", str(tmp_path / "none"))
        infer(trained, tmp_path, "gapfill", *more, *alone, status=1)
        assert "no valid pixel in gapfill_gravity: nothing is written" in capsys.readouterr().err

    @pytest.mark.parametrize("output", ["embeddings", "reconstruction", "gapfill"])
    def test_constant_layer(self, trained, tmp_path, caplog, output):
        """A layer without any variation, such as zeros to test with, is used and named."""
        (tmp_path / "gravity.tif").write_bytes((trained.survey / "gravity.tif").read_bytes())
        write_grid(tmp_path / "magnetics.tif", np.zeros((160, 160), np.float32))
        more = ("--data_dir", str(tmp_path), *(("--max_gap", "2000") if output == "gapfill" else ()))
        out = infer(trained, tmp_path / "out", output, *more)
        assert "layer 'magnetics': constant: every valid pixel is 0" in caplog.text
        name = {"embeddings": "embeddings", "reconstruction": "reconstruction_magnetics_4x"}
        pixels = pixels_of(out / f"{name.get(output, 'gapfill_magnetics')}.tif")
        assert np.isfinite(pixels[0]).any() and output != "gapfill" or (pixels == 0).all()

    def test_values_unlike_those_of_training(self, trained, tmp_path, caplog):
        (tmp_path / "gravity.tif").write_bytes((trained.survey / "gravity.tif").read_bytes())
        noise = np.random.default_rng(0).normal(5e5, 1, (160, 160)).astype(np.float32)
        write_grid(tmp_path / "magnetics.tif", noise)
        infer(trained, tmp_path / "out", "embeddings", "--data_dir", str(tmp_path))
        assert "layer 'magnetics': values here are about 500000, in training they were" in caplog.text
        assert "are the units the same?" in caplog.text and "layer 'gravity'" not in caplog.text

    @pytest.mark.parametrize(
        ("crs", "corner", "pixel", "said"),
        [
            ("EPSG:2225", (6_100_000.0, 2_100_000.0), 328.0, "is in US survey foot, expected m as in training"),
            ("EPSG:4326", (141.0, -36.0), 0.001, "is in degrees, expected m as in training"),
        ],
    )
    def test_layers_in_other_units(self, trained, tmp_path, capsys, crs, corner, pixel, said):
        """Base pixels of 400 m are none of 400 feet or degrees, unless they are asked for."""
        place = {"crs": crs, "left": corner[0], "top": corner[1]}
        rng = np.random.default_rng(0)
        for name, pixels, factor in (("gravity", 80, 2), ("magnetics", 160, 1)):
            values = rng.normal(size=(pixels, pixels)).astype(np.float32)
            write_grid(tmp_path / f"{name}.tif", values, resolution=factor * pixel, **place)
        more = ("--data_dir", str(tmp_path), "--clusters", "3")
        infer(trained, tmp_path / "out", "embeddings", *more, status=2)
        text = capsys.readouterr().err
        assert said in text and "or give --base_resolution in " in text
        state = load_checkpoint(trained.checkpoint, required=("ground",))
        save_checkpoint(tmp_path / "old.pth", {k: v for k, v in state.items() if k != "ground"})
        if pixel < 1:  # as versions wrote it that did not store the CRS
            old = ("--checkpoint", str(tmp_path / "old.pth"))
            infer(trained, tmp_path / "out", "embeddings", *more, *old, status=2)
            assert "0.16 x 0.16 degrees, less than one base pixel of 400 degrees" in capsys.readouterr().err
        out = infer(trained, tmp_path / "out", "embeddings", *more, "--base_resolution", str(4 * pixel))
        with rasterio.open(out / "embeddings.tif") as file:
            assert np.isfinite(file.read()).any() and file.crs == rasterio.crs.CRS.from_string(crs)

    def test_missing_layer(self, trained, tmp_path, capsys):
        alone = tmp_path / "alone"
        alone.mkdir()
        (alone / "magnetics.tif").write_bytes((trained.survey / "magnetics.tif").read_bytes())
        write_grid(alone / "other.tif", np.random.default_rng(0).normal(size=(50, 50)).astype(np.float32))
        infer(trained, tmp_path, "reconstruction", "--data_dir", str(alone), status=2)
        assert "lacks the layers 'gravity' of the checkpoint; it has 'other'" in capsys.readouterr().err
        more = ("--data_dir", str(alone), "--missing_layers", "allow")
        out = infer(trained, tmp_path, "reconstruction", *more)
        assert {path.stem for path in out.glob("*.tif")} == {f"reconstruction_magnetics_{s}x" for s in (1, 2, 4)}
        with rasterio.open(out / "reconstruction_magnetics_1x.tif") as file:
            assert file.tags()["missing_layers"] == "gravity" and np.isfinite(file.read()).any()
        assert "gravity" not in (out / "maps.qgs").read_text()

    def test_layers_in_the_project_have_the_limits_of_what_was_read(self, trained, tmp_path):
        """Nodata that only the table states, in a layer stored in tenths."""
        for name in ("gravity", "magnetics"):
            pixels = pixels_of(trained.survey / f"{name}.tif")[0]
            stored = np.where(pixels == -99999, -99999, 10 * pixels)
            write_grid(tmp_path / f"{name}.tif", stored, resolution=16_000 / len(stored))
            with rasterio.open(tmp_path / f"{name}.tif", "r+") as file:
                file.scales = (0.1,)
        rows = ["name,path,nodata", "gravity,gravity.tif,-99999", "magnetics,magnetics.tif,-99999"]
        (tmp_path / "layers.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        out = infer(trained, tmp_path / "out", "embeddings", "--train_path", str(tmp_path / "layers.csv"))
        layers = [
            x for x in ET.parse(out / "maps.qgs").iter("maplayer") if x.findtext("layername") in rows[1] + rows[2]
        ]
        assert len(layers) == 2
        for layer in layers:
            assert -100 < float(layer.find("pipe/rasterrenderer").get("classificationMin")) < -10
            assert float(layer.find("noData/noDataList/noDataRange").get("min")) == pytest.approx(-9999.9, rel=1e-5)


class TestSameResult:
    """Batches change the order of sums in matrix products only: 1e-5 of the spread; ranks change nothing at all."""

    @pytest.mark.parametrize("output", KINDS)
    def test_batch_sizes(self, trained, tmp_path, output):
        found = {}
        for size in (1, 7, 64):
            out = infer(trained, tmp_path / str(size), output, "--batch_size", str(size), "--block_size", "40")
            found[size] = {p.name: pixels_of(p) for p in out.glob("*.tif") if "pca" not in p.name}
        for size in (1, 7):
            for name, pixels in found[size].items():
                tolerance = 1e-5 * np.nanstd(found[64][name]) * (1 if output == "embeddings" else 10)
                np.testing.assert_allclose(pixels, found[64][name], rtol=1e-5, atol=tolerance)

    def test_ranks(self, trained, tmp_path):
        context = multiprocessing.get_context("forkserver")
        processes = []
        for rank in range(2):
            runs = []
            for output in KINDS:
                meeting = f"file://{tmp_path}/meet-{output}"
                more = ("--world_size", "2", "--local_rank", str(rank), "--dist_url", meeting)
                runs.append(arguments(trained, tmp_path / "two", output, *more))
            processes.append(context.Process(target=_infer_and_exit, args=(runs,)))
            processes[-1].start()
        for output in KINDS:
            infer(trained, tmp_path / "one", output)
        for process in processes:
            process.join(180)
            assert process.exitcode == 0
        files = sorted(path.name for path in (tmp_path / "one").glob("*.tif"))
        assert files == sorted(path.name for path in (tmp_path / "two").glob("*.tif")) and len(files) == 10
        for name in files:
            np.testing.assert_array_equal(pixels_of(tmp_path / "one" / name), pixels_of(tmp_path / "two" / name))

    def test_unreadable_window_of_one_rank_stops_both(self, trained, tmp_path):
        context = multiprocessing.get_context("forkserver")
        processes = []
        for rank in range(2):
            more = ("--world_size", "2", "--local_rank", str(rank), "--dist_url", f"file://{tmp_path}/meet")
            runs = [arguments(trained, tmp_path / "out", "embeddings", *more)]
            processes.append(context.Process(target=_infer_with_a_damaged_window, args=(runs, rank)))
            processes[-1].start()
        for process in processes:
            process.join(90)
        statuses = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        assert statuses == [1, 1]  # None: still waiting

    def test_what_lies_under_nodata_changes_nothing(self, trained, tmp_path):
        other = write_survey(tmp_path / "survey", under_nodata=float("nan"))
        first = infer(trained, tmp_path / "a")
        second = infer(trained, tmp_path / "b", "embeddings", "--data_dir", str(other))
        np.testing.assert_array_equal(pixels_of(first / "embeddings.tif"), pixels_of(second / "embeddings.tif"))


def _infer_and_exit(runs):
    for name in TORCHRUN_VARIABLES:
        os.environ.pop(name, None)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    sys.exit(max(small_maps.infer(argv) for argv in runs))


def _infer_with_a_damaged_window(runs, rank):
    def unreadable(*_):
        raise OSError("layer 'magnetics': cannot be read")

    prepare = main_inference.prepare

    def then_damaged(*args):
        job = prepare(*args)  # which reads, too
        if rank == 1:
            main_inference.read_block = unreadable
        return job

    main_inference.prepare = then_damaged
    _infer_and_exit(runs)


def test_finer_base_pixels_of_the_same_ground(trained):
    """A window looked at with finer base pixels gives the tiles of a survey that was opened with them."""
    fine, coarse = reopen(trained.survey, base=200.0), reopen(trained.survey)
    origins = np.array([[8, 4], [20, 30]])
    expected = fine.read(8, 4, 60, 60).sample(origins, CPU)
    found = coarse.read(4, 2, 30, 30).zoomed(2).sample(origins, CPU)
    assert coarse.zoomed(2).known == fine.known and coarse.zoomed(2) is coarse.zoomed(2)
    for a, b in zip(found[:2], expected[:2], strict=True):
        assert torch.equal(a, b)
    assert found.valid.any() and all(torch.equal(a, b) for a, b in zip(found.imgs_up, expected.imgs_up, strict=True))


def test_a_window_of_ground_is_let_go_at_once(trained):
    """Pixels must not wait for the garbage collector: memory would grow with the raster."""
    survey = reopen(trained.survey)
    window = survey.read(0, 0, SIZE, SIZE)
    window.sample(np.array([[0, 0]]), CPU)
    seen = weakref.ref(window)
    gc.disable()
    try:
        del window
        assert seen() is None
    finally:
        gc.enable()


class TestStopping:
    def test_interrupted_and_resumed(self, trained, tmp_path, monkeypatch):
        whole = infer(trained, tmp_path / "whole")
        out, write = tmp_path / "out", main_inference.Parts.write

        def interrupted(parts, row, col, arrays):
            write(parts, row, col, arrays)
            if (row, col) == (0, 1):
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(main_inference.Parts, "write", interrupted)
        infer(trained, out, status=1)
        assert {path.name for path in out.iterdir()} == {".embeddings.parts", *PAGE}  # nothing under a final name
        done = len(list((out / ".embeddings.parts").glob("block-*.json")))
        assert done == 2
        seen = []
        monkeypatch.setattr(main_inference.Parts, "write", lambda *a: (seen.append(a[1:3]), write(*a)))
        infer(trained, out, "embeddings", "--resume")
        assert (0, 0) not in [tuple(s) for s in seen[:2]] and (out / "embeddings.tif").exists()
        np.testing.assert_array_equal(pixels_of(out / "embeddings.tif"), pixels_of(whole / "embeddings.tif"))
        assert not (out / ".embeddings.parts").exists()

    def test_started_again_by_torchrun(self, trained, tmp_path, monkeypatch, caplog):
        """The blocks that were done are not made again; what was to be replaced is."""
        (tmp_path / "embeddings.tif").write_text("old")
        write = main_inference.Parts.write

        def interrupted(parts, row, col, arrays):
            write(parts, row, col, arrays)
            if (row, col) == (0, 1):
                os.kill(os.getpid(), signal.SIGINT)

        start_of_launch(monkeypatch, 0)
        with monkeypatch.context() as patches:
            patches.setattr(main_inference.Parts, "write", interrupted)
            infer(trained, tmp_path, "embeddings", "--overwrite", status=1)
        start_of_launch(monkeypatch, 1)
        infer(trained, tmp_path, "embeddings", "--overwrite")
        assert "2 of 4 blocks were done before" in caplog.text
        assert pixels_of(tmp_path / "embeddings.tif").shape == (32, 10, 10)
        infer(trained, tmp_path, "embeddings")  # killed once more when all was done
        start_of_launch(monkeypatch, 0)
        infer(trained, tmp_path, "embeddings", status=2)

    @pytest.mark.parametrize(
        ("where", "left"),
        [
            ("checkpoint_file.load_checkpoint", []),
            ("open_inference_survey", []),
            ("Meter", []),
            ("results.join", [".embeddings.parts", *PAGE]),
        ],
    )
    def test_interrupted_outside_the_loop(self, trained, tmp_path, monkeypatch, capsys, where, left):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(f"main_inference.{where}", interrupted)
        infer(trained, tmp_path, status=1)
        assert capsys.readouterr().err.rstrip().endswith("main_inference: stopped by Ctrl-C")
        assert sorted(path.name for path in tmp_path.iterdir()) == left

    def test_resumed_with_other_options(self, trained, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(main_inference, "compute", lambda *_: False)
        infer(trained, tmp_path, status=1)
        infer(trained, tmp_path, "embeddings", "--resume", "--overlap", "0.75", status=2)
        assert "parts of another job: overlap was 0.5, now 0.75" in capsys.readouterr().err

    def test_resumed_with_another_area_of_interest(self, trained, tmp_path, monkeypatch, capsys):
        """The file of polygons has the same name and holds others: blocks that are done lack what these add."""
        area, out = tmp_path / "area.gpkg", tmp_path / "out"
        small, large = (shapely.box(502_000, 5_990_000, right, 5_994_000) for right in (505_000, 512_000))

        def draw(box):
            geopandas.GeoDataFrame(geometry=[box], crs="EPSG:28354").to_file(area)

        draw(small)
        whole = infer(trained, tmp_path / "whole", "embeddings", "--aoi", str(area))
        with monkeypatch.context() as patches:
            patches.setattr(main_inference, "compute", lambda *_: False)
            infer(trained, out, "embeddings", "--aoi", str(area), status=1)
        draw(large)
        infer(trained, out, "embeddings", "--aoi", str(area), "--resume", status=2)
        assert "holds parts of another job: polygons of --aoi (sha256) was '" in capsys.readouterr().err
        draw(small)  # a new file with the same polygons
        infer(trained, out, "embeddings", "--aoi", str(area), "--resume")
        np.testing.assert_array_equal(pixels_of(out / "embeddings.tif"), pixels_of(whole / "embeddings.tif"))

    def test_resumed_with_another_file_of_a_layer(self, trained, tmp_path, monkeypatch, capsys):
        survey, out = write_survey(tmp_path / "survey"), tmp_path / "out"
        with monkeypatch.context() as patches:
            patches.setattr(main_inference, "compute", lambda *_: False)
            infer(trained, out, "embeddings", "--data_dir", str(survey), status=1)
        path = survey / "gravity.tif"
        size, time = path.stat().st_size, path.stat().st_mtime_ns
        os.utime(path, ns=(time, time + 10**9))
        infer(trained, out, "embeddings", "--data_dir", str(survey), "--resume", status=2)
        said = f"gravity.tif (bytes, modified in ns) was [{size}, {time}], now [{size}, {time + 10**9}]"
        assert said in capsys.readouterr().err
        os.utime(path, ns=(time, time))
        infer(trained, out, "embeddings", "--data_dir", str(survey), "--resume")

    def test_a_job_of_a_version_that_did_not_compare_files_is_not_continued(
        self, trained, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setattr(main_inference, "compute", lambda *_: False)
        infer(trained, tmp_path, status=1)
        record = tmp_path / ".embeddings.parts/job.json"
        job = json.loads(record.read_text())
        older = {key: value for key, value in job.items() if "(" not in key and "nodata" not in key}
        assert {"ground", "files", "aoi", "overlap"} <= older.keys() < job.keys()
        record.write_text(json.dumps(older))
        infer(trained, tmp_path, "embeddings", "--resume", status=2)
        assert "holds parts of another job" in (message := capsys.readouterr().err)
        assert "was None, now [" in message and "leave --resume out to begin again" in message

    def test_what_is_no_local_file_is_compared_by_its_path(self, tmp_path):
        """Stores, URLs and archives have no state; absent layers are not read; NaN equals itself."""
        (tmp_path / "a.tif").write_bytes(b"12345")
        (tmp_path / "b.zarr").mkdir()
        os.utime(tmp_path / "a.tif", ns=(7, 8))
        paths = [
            str(tmp_path / "a.tif"),
            str(tmp_path / "b.zarr"),
            "https://host/c.tif",
            "/vsizip/d.zip/d.tif",
            "e.tif",
        ]
        layers = [Layer(name, path) for name, path in zip("abcde", paths, strict=True)]
        bands = [SimpleNamespace(nodata=(np.float32("nan"), -1.0)) for _ in layers]
        survey = SimpleNamespace(
            shape=(3, 4),
            layers=layers,
            aoi=None,
            stack=SimpleNamespace(bands=bands),
            summaries=[object()] * 4 + [None],
        )
        found = results.sources_of(survey, lambda path: [path])
        assert found == {
            "ground": [3, 4],
            "files": [[layer.name, layer.path, 1] for layer in layers],
            "polygons of --aoi (sha256)": None,
            **{f"nodata of '{name}'": ["nan", "-1.0"] for name in "abcd"},
            f"{paths[0]} (bytes, modified in ns)": [5, 8],
        }

    def test_existing_results_are_kept(self, trained, tmp_path, capsys):
        (tmp_path / "embeddings.tif").write_text("precious")
        infer(trained, tmp_path, status=2)
        assert "embeddings.tif exists; give --overwrite" in capsys.readouterr().err
        assert (tmp_path / "embeddings.tif").read_text() == "precious"
        infer(trained, tmp_path, "embeddings", "--overwrite")
        assert pixels_of(tmp_path / "embeddings.tif").shape == (32, 10, 10)

    def test_unreadable_tile_stops_with_its_name(self, trained, tmp_path, monkeypatch, capsys):
        survey = write_survey(tmp_path / "survey")
        prepare = main_inference.prepare

        def damaged(*args):
            job = prepare(*args)
            close_datasets()
            path = survey / "magnetics.tif"
            path.write_bytes(path.read_bytes()[:50_000])
            return job

        monkeypatch.setattr(main_inference, "prepare", damaged)
        out = infer(trained, tmp_path / "out", "embeddings", "--data_dir", str(survey), status=1)
        assert "layer 'magnetics' (" in (message := capsys.readouterr().err) and "cannot be read" in message
        assert not list(out.glob("*.tif"))


class TestBadInput:
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (("--output", "prediction"), "is a checkpoint of pre-training, which learns no labels; fine-tune it first"),
            (("--stride", "3"), "--stride 3: expected a divisor of the patch's 4 base pixels"),
            (("--clusters", "1"), "--clusters 1: expected 2 to 255, or 0"),
            (("--block_size", "30"), "--block_size 30: expected a multiple of the patch, 4"),
            (("--output", "reconstruction", "--draws", "1"), "--draws 1: .* it takes 2 views to hide every pixel"),
            (("--output", "gapfill", "--max_gap", "9999"), "--max_gap 9999 is wider than a tile, 6400"),
            (("--draws", "2"), "--draws 2 does nothing for --output embeddings; it is for reconstruction"),
            (("--output", "gapfill", "--clusters", "3"), "--clusters 3 does nothing for --output gapfill"),
            (("--data_dir", "x", "--train_path", "y"), "give one of --data_dir and --train_path, or neither"),
            (("--checkpoint", "absent.pth"), "checkpoint absent.pth: no such file"),
            (("--aoi", "absent.gpkg"), "area of interest absent.gpkg: no such file"),
        ],
    )
    def test_refused(self, trained, tmp_path, capsys, more, message):
        infer(trained, tmp_path, "embeddings", *more, status=2)
        import re

        assert re.search(message, capsys.readouterr().err)

    def test_area_elsewhere(self, trained, tmp_path, capsys):
        geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)], crs="EPSG:28354").to_file(tmp_path / "far.gpkg")
        infer(trained, tmp_path, "embeddings", "--aoi", str(tmp_path / "far.gpkg"), status=2)
        assert "do not touch the layers' ground" in capsys.readouterr().err

    def test_normalised_pixels(self, trained, tmp_path, capsys):
        checkpoint = make_checkpoint(trained.survey, tmp_path / "c.pth", norm_pix_loss=True)
        for output in ("reconstruction", "gapfill", "superresolution"):
            infer(trained, tmp_path, output, "--checkpoint", str(checkpoint), status=2)
            assert "no physical units; train without it" in capsys.readouterr().err

    def test_checkpoint_that_does_not_know_its_base_resolution(self, trained, tmp_path, capsys):
        state = torch.load(trained.checkpoint, weights_only=True)
        del state["base_resolution"]
        save_checkpoint(tmp_path / "old.pth", state)
        more = ("--checkpoint", str(tmp_path / "old.pth"), "--data_dir", str(trained.survey))
        infer(trained, tmp_path, "embeddings", *more, status=2)
        assert "give that of training, --base_resolution" in capsys.readouterr().err
        infer(trained, tmp_path, "embeddings", *more, "--base_resolution", "800")
        with rasterio.open(tmp_path / "embeddings.tif") as file:
            assert file.res == (3200.0, 3200.0)

    def test_layers_as_a_checkpoint_lists_them(self):
        rows = json.loads('[{"name": "a", "path": "a.tif", "units": "nT", "of_later": 1}]')
        assert stored_layers(rows)[0].units == "nT" and stored_layers(rows)[0].band == 1


def test_measuring_gap_filling(trained, capsys):
    flags = ["--checkpoint", str(trained.checkpoint), "--holes", "2", "--count", "2"]
    assert measure_gapfill.main([*flags, "--inference", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert "next: python -m main_inference --checkpoint" in printed.err.splitlines()[-1]
    assert len(lines) == 4 and lines[3].startswith("| magnetics | 800 | 2 | ")
    assert all(float(cell) > 0 for line in lines[2:] for cell in line.split("|")[4:7])
    assert all(np.isfinite(float(line.split("|")[9])) for line in lines[2:])


@pytest.fixture(scope="module")
def oddly_named(tmp_path_factory):
    """The survey with layers whose names become one in names of files, and a model of it."""
    folder = tmp_path_factory.mktemp("odd")
    survey = write_survey(folder / "survey")
    table = "name,path\nU/Th,gravity.tif\nU Th,magnetics.tif\n"
    (survey / "layers.csv").write_text(table, encoding="utf-8")
    return SimpleNamespace(survey=survey, checkpoint=make_checkpoint(survey, folder / "checkpoint-last.pth"))


def test_layers_whose_names_become_one_have_files_of_their_own(oddly_named, tmp_path):
    names = ["Mag", "U/Th", "U Th", "U_Th", "mag", "U_Th_2"]
    assert file_names(names) == ["Mag", "U_Th_3", "U_Th_4", "U_Th", "mag_2", "U_Th_2"]
    out = infer(oddly_named, tmp_path, "gapfill", "--max_gap", "2000")
    found = {}
    for path in out.glob("*.tif"):
        with rasterio.open(path) as file:
            found[path.stem] = (file.tags()["layer"], file.res[0])
    assert found == {"gapfill_U_Th": ("U/Th", 200.0), "gapfill_U_Th_2": ("U Th", 100.0)}


def test_measuring_layers_of_any_name(oddly_named, capsys):
    flags = ["--checkpoint", str(oddly_named.checkpoint)]
    more = ["--inference", "--device", "cpu", "--block_size", "40"]
    assert measure_gapfill.main([*flags, "--holes", "2", "--count", "2", *more]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| U/Th", "| U Th"]
    assert all(float(cell) > 0 for line in lines for cell in line.split("|")[4:7])
    assert measure_superresolution.main([*flags, "--layer", "U Th", *more]) == 0
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["| 100"]


@pytest.mark.parametrize("program", [measure_gapfill, measure_superresolution])
def test_measuring_without_a_checkpoint(tmp_path, capsys, program):
    layer = ["--layer", "a"] if program is measure_superresolution else []
    assert program.main(["--checkpoint", str(tmp_path / "none.pth"), *layer]) == 2
    assert "none.pth: no such file" in capsys.readouterr().err


def test_measuring_superresolution(trained, tmp_path, capsys):
    flags = ["--checkpoint", str(trained.checkpoint), "--inference", "--device", "cpu", "--block_size", "40"]
    assert measure_superresolution.main([*flags[:2], "--layer", "magnetics", *flags[2:]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].startswith("| 100 | 200 | ")
    errors = [float(cell) for cell in lines[2].split("|")[3:7]]
    assert 0 < errors[1] < errors[2] < errors[3]  # keeping means is better than bicubic, and that than repeating
    fine = write_grid(tmp_path / "fine.tif", plane(160, 160, 100.0))
    assert measure_superresolution.main([*flags[:2], "--layer", "gravity", "--truth", str(fine), *flags[2:]]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("| 100 | 200 | ")
    moved = write_grid(tmp_path / "moved.tif", plane(160, 160, 100.0), left=500_100.0)
    assert measure_superresolution.main([*flags[:2], "--layer", "gravity", "--truth", str(moved), *flags[2:]]) == 2
    assert "begins at (500100.0, 6000000.0), expected the corner of layer 'gravity'" in capsys.readouterr().err
    assert measure_superresolution.main([*flags[:2], "--layer", "other"]) == 2
    assert "no layer 'other'; expected one of gravity, magnetics" in capsys.readouterr().err


def test_model_without_targets_agrees_with_training(trained):
    """`reconstruct` and `forward_tokens` are the forward pass of training, less what needs targets."""
    state = torch.load(trained.checkpoint, weights_only=True)
    network = models.MaskedAutoencoderGroupChannelViT(**state["model_config"])
    network.load_state_dict(state["model"])
    network.eval()
    generator = torch.Generator().manual_seed(0)
    imgs = torch.randn(3, 2, SIZE, SIZE, generator=generator)
    valid = torch.rand(3, 2, SIZE, SIZE, generator=generator) < 0.9
    noise = torch.rand(3, 32, generator=generator)
    ups = [imgs.repeat_interleave(s, 2).repeat_interleave(s, 3) for s in (2, 4)]
    with torch.no_grad():
        full = network(imgs, ups, 0.75, valid, noise=noise, details=True)
        images, hidden = network.reconstruct(imgs, valid, noise=noise, keep=8)
        features, known = network.forward_tokens(imgs, valid)
        changed, _ = network.forward_tokens(torch.where(valid, imgs, 1e6), valid)
    for s in (1, 2, 4):
        channels = list(network.scored[s])
        torch.testing.assert_close(images[s][:, channels], full.images[s][:, channels])
    assert torch.equal(hidden, full.mask[:, network.group_of_channel] > 0)
    assert features.shape == (3, 2, 16, 32) and known.shape == (3, 2, 16) and torch.equal(features, changed)
