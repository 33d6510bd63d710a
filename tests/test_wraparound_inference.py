"""A global grid through training and inference: nothing begins or ends at the date line."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch

import models_mae_group_channels as models
from datasets.layers.encoding import Encoding
from datasets.layers.table import layers_from_directory
from datasets.survey.inference_survey import open_inference_survey
from tests import labelled, small_maps
from tests.rasters import write_grid
from tests.spheres import global_grid, write_global
from tests.surveys import train
from util.finetuning.predictors import NetworkPredictor
from util.finetuning.scoring import ground_blocks
from util.inference.embeddings import EmbeddingProduct
from util.inference.engine import Engine, Ground, Meter
from util.inference.finetuned_task import Task
from util.inference.gap_calibration import GapModel
from util.inference.gap_filling import GapFillingProduct
from util.inference.layers import LayerValues, NativeLayer
from util.inference.masked_views import MaskedViews
from util.inference.prediction import PixelPredictionProduct, WindowPredictionProduct
from util.inference.reconstruction import ReconstructionProduct
from util.mosaics.mosaic import Block, blocks_of

CPU = torch.device("cpu")
SIZE, PATCH = 16, 4


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return models.MaskedAutoencoderGroupChannelViT(
        img_size=SIZE,
        patch_size=PATCH,
        in_chans=1,
        channel_groups=((0,),),
        scales=(1,),
        scored={1: (0,)},
        embed_dim=32,
        depth=1,
        num_heads=2,
        channel_embed=8,
        decoder_embed_dim=32,
        decoder_depth=1,
        decoder_num_heads=2,
        decoder_channel_embed=8,
    ).eval()


def reopened(folder, values, resolution, **options):
    folder.mkdir()
    write_grid(folder / "a.tif", values, resolution=resolution, left=-180.0, top=90.0, crs="EPSG:4326", **options)
    return open_inference_survey(
        layers_from_directory(folder),
        encodings=[Encoding(scales=(2.0,))],
        input_size=SIZE,
        scales=(1,),
        base_resolution=resolution,
        finest_scale=1,
    )


def engine(model, survey):
    autocast = {"autocast": lambda: torch.autocast("cpu", enabled=False)}
    return Engine(
        model=model,
        device=CPU,
        batch_size=64,
        overlap=0.5,
        meter=Meter(CPU),
        wrap_columns=survey.wrap_columns,
        **autocast,
    )


def ground(survey):
    grid, (rows, cols) = survey.stack.reference, survey.shape
    return Ground(grid.crs.to_wkt(), grid.left, grid.top, survey.base_resolution, rows, cols)


def make(product, survey, block):
    around = block.grown(product.reach)
    return product.make(block, survey.read(around.top, around.left, around.bottom, around.right))


def run(product, survey, edge=48):
    """(B, rows, cols) of a product's only raster."""
    (info,) = product.rasters.values()
    found = np.full((len(info.names), info.rows, info.cols), np.nan, np.float32)
    for block in blocks_of(*product.extent(), edge=edge):
        for _, pixels, row, col in make(product, survey, block).values():
            found[:, row : row + pixels.shape[1], col : col + pixels.shape[2]] = pixels
    return found


def whole(product, survey, name, edge=48):
    """(rows, cols): the first band of one raster of a product."""
    info = product.rasters[name]
    found = np.full((info.rows, info.cols), np.nan, np.float32)
    for block in blocks_of(*product.extent(), edge=edge):
        _, pixels, row, col = make(product, survey, block)[name]
        found[row : row + pixels.shape[1], col : col + pixels.shape[2]] = pixels[0]
    return found


def reconstruction(model, survey):
    layers = [LayerValues("a", "", "a", Encoding())]
    views = MaskedViews(0.75, 2, 0)
    return ReconstructionProduct(
        engine(model, survey), ground(survey), layers=layers, wanted={1: [0]}, views=views, tags={}
    )


class TestSeam:
    @pytest.mark.parametrize("stride", [4, 2])
    def test_embeddings_turn_with_the_globe(self, tmp_path, network, stride):
        """Numbers moved by 24 columns of 144 under the same coordinates: the embeddings move along, line or not."""
        values = global_grid(2.5)
        maps = []
        for name, moved in (("a", values), ("b", np.roll(values, 24, axis=1))):
            survey = reopened(tmp_path / name, moved, 2.5)
            product = EmbeddingProduct(
                engine(network, survey), ground(survey), pool="mean", stride=stride, dtype="float32", tags={}
            )
            maps.append(run(product, survey))
        assert maps[0].shape[2] == 144 // stride and np.isfinite(maps[0]).all()
        np.testing.assert_allclose(np.roll(maps[0], 24 // stride, axis=2), maps[1], atol=1e-4)

    @pytest.mark.parametrize("resolution", [2.5, 2.0, 7.5])  # 144 columns; 180, no multiple of a tile's step; 48: few
    def test_ground_beyond_the_last_column_is_the_first(self, tmp_path, network, resolution):
        """The square east of the last one is the westernmost, to the bit: the same tiles behind the same masks."""
        survey = reopened(tmp_path / "a", global_grid(resolution), resolution)
        product, turn = reconstruction(network, survey), survey.wrap_columns
        assert turn == round(360 / resolution)
        first = make(product, survey, Block(0, 0, 8, 0, 20, 20))
        beyond = make(product, survey, Block(0, 9, 8, turn, 20, turn + 20))
        assert np.isfinite(first["reconstruction_a_1x"][1]).all()
        np.testing.assert_array_equal(first["reconstruction_a_1x"][1], beyond["reconstruction_a_1x"][1])

    def test_a_gap_across_the_line_is_filled_as_elsewhere(self, tmp_path, network):
        values = global_grid(2.5)
        values[30:33, :2] = values[30:33, -2:] = np.nan
        filled = []
        for name, moved in (("a", values), ("b", np.roll(values, 48, axis=1))):
            survey = reopened(tmp_path / name, moved, 2.5)
            place = survey.stack.bands[0].grid
            layer = NativeLayer(
                channel=0,
                values=LayerValues("a", "", "a", Encoding()),
                scale=1,
                left=place.left,
                top=place.top,
                resolution_x=2.5,
                resolution_y=2.5,
                rows=72,
                cols=144,
                ratio_yx=(1.0, 1.0),
                offset_yx=(0.0, 0.0),
            )
            product = GapFillingProduct(
                engine(network, survey),
                ground(survey),
                layers=[layer],
                views=MaskedViews(0.75, 2, 0),
                max_gap=20.0,
                tags={},
            )
            # The spline alone: masks differ with the place.
            product.gap_models = {0: GapModel(0.0, (1.0, 9.0), (0.1, 0.9))}
            filled.append(run(product, survey))
        assert np.isfinite(filled[0]).all()
        np.testing.assert_allclose(np.roll(filled[0], 48, axis=2), filled[1], atol=1e-4)

    def test_a_turn_of_no_whole_number_of_base_pixels_ends(self, tmp_path, network):
        survey = reopened(tmp_path / "a", global_grid(2.5), 2.5)
        assert survey.wrap_columns == 144 and survey.shape == (72, 144)
        other = open_inference_survey(
            layers_from_directory(tmp_path / "a"),
            encodings=[Encoding(scales=(2.0,))],
            input_size=SIZE,
            scales=(1,),
            base_resolution=12.5,
            finest_scale=1,
        )
        assert other.wrap_columns == 0 and other.shape == (15, 29)
        assert any("12.5 does not divide" in text for text in other.warnings)
        assert np.isfinite(run(reconstruction(network, other), other)[0]).all()


VALUES_OF_PIXELS = Task("regression", True, False, False, 1, "mGal", (), (), ())
CLASSES_OF_WINDOWS = Task("classification", False, True, False, 1, "", (1, 2), ("a", "b"), ("#000000", "#ffffff"))
RAMP = 1 + torch.arange(SIZE) / SIZE
"""What is predicted depends on the place within the tile, so that another lattice gives another map."""


def pixel_values(imgs, valid, native):
    return imgs[:, :1] * RAMP


def window_classes(imgs, valid, native):
    high = torch.sigmoid((imgs[:, 0] * RAMP).mean(dim=(1, 2)))
    return torch.stack([1 - high, high], dim=1)


class TestFineTunedSeam:
    """Maps and scores of fine-tuned networks use the lattice of tiles that goes round, as embeddings do."""

    @pytest.fixture(params=["pixels", "windows"])
    def mapped(self, request, network):
        """Maps a survey as `main_inference --output prediction` does; the first band of its first raster."""

        def mapped(survey, *, wraps=True):
            own = engine(network, survey)
            own = own if wraps else replace(own, wrap_columns=0)
            if request.param == "pixels":
                product = PixelPredictionProduct(
                    own, ground(survey), task=VALUES_OF_PIXELS, views=[pixel_values], tags={}
                )
                return whole(product, survey, "prediction_values")
            product = WindowPredictionProduct(
                own, ground(survey), task=CLASSES_OF_WINDOWS, views=[window_classes], stride=4, tags={}
            )
            return whole(product, survey, "prediction_probabilities")

        return mapped

    def test_maps_turn_with_the_globe(self, tmp_path, mapped):
        values = global_grid(2.5)
        one = mapped(reopened(tmp_path / "a", values, 2.5))
        other = mapped(reopened(tmp_path / "b", np.roll(values, 24, axis=1), 2.5))
        step = 24 * one.shape[1] // 144
        assert np.isfinite(one).all()
        np.testing.assert_allclose(np.roll(one, step, axis=1), other, atol=1e-5)

    @pytest.mark.parametrize("mapped", ["pixels"], indirect=True)  # windows of cells lie on no lattice of tiles
    def test_without_the_lattice_that_goes_round_the_seam_would_show(self, tmp_path, mapped):
        survey = reopened(tmp_path / "a", global_grid(2.5), 2.5)
        ends, around = mapped(survey, wraps=False), mapped(survey)
        inside = np.s_[:, SIZE:-SIZE]
        np.testing.assert_allclose(ends[inside], around[inside], atol=1e-5)
        assert np.abs(ends - around).max() > 0.01

    def test_scores_are_those_of_the_map(self, tmp_path, network):
        """Test ground is predicted square by square, those at the date line with tiles across it."""
        survey = reopened(tmp_path / "a", global_grid(2.5), 2.5)
        product = PixelPredictionProduct(
            engine(network, survey), ground(survey), task=VALUES_OF_PIXELS, views=[pixel_values], tags={}
        )
        wanted = whole(product, survey, "prediction_values")
        objective = SimpleNamespace(predict=lambda _, *inputs: pixel_values(*inputs))
        how = {"windows": None, "count": 1, "scale": 1, "overlap": 0.5, "batch_size": 64}
        predictor = NetworkPredictor(network, objective, survey=survey, device=CPU, amp_dtype=None, **how)
        for unit in ground_blocks(survey.shape, SIZE):
            part = np.s_[unit.top : unit.bottom, unit.left : unit.right]
            found = predictor.of_ground(unit, np.ones(wanted[part].shape, dtype=bool))
            np.testing.assert_allclose(found[0], wanted[part], atol=1e-5)


FLAGS = "--scales 1 2 --val_fraction 0.1 --val_buffer 0 --epochs 1".split()


def test_files_that_begin_elsewhere_give_the_same_run_and_results(tmp_path, capsys):
    """From -180 and from 0 degrees: losses and weights, and what is made of them, to the bit."""
    outputs = []
    for name, left in (("a", -180.0), ("b", 0.0)):
        (tmp_path / name).mkdir()
        write_global(tmp_path / name / "g.tif", 4.0, left=left, noise=0.2)
        assert train(tmp_path / name, tmp_path / f"run_{name}", *FLAGS) == 0
        state = torch.load(tmp_path / f"run_{name}" / "checkpoint-last.pth", weights_only=True)
        outputs.append((state["model"], tmp_path / f"made_{name}"))
        arguments = f"--output reconstruction --device cpu --no_progress --output_dir {tmp_path}/made_{name}".split()
        assert small_maps.infer([*arguments, "--checkpoint", f"{tmp_path}/run_{name}/checkpoint-last.pth"]) == 0
    assert all(torch.equal(outputs[0][0][key], outputs[1][0][key]) for key in outputs[0][0])
    rasters = []
    for _, folder in outputs:
        with rasterio.open(folder / "reconstruction_g_2x.tif") as file:
            assert (file.bounds.left, file.bounds.right) == (-180.0, 180.0)
            rasters.append(file.read())
    np.testing.assert_array_equal(*rasters)
    log = capsys.readouterr().err
    assert "the grid wraps around the planet: tiles cross -180" in log and "km wide and" in log


@pytest.mark.slow
def test_error_across_the_line_is_no_worse_than_elsewhere(tmp_path):
    """A trained model on harmonics of degree 16: root mean square errors in strips of 24 degrees, the line in one."""
    folder = tmp_path / "survey"
    folder.mkdir()
    write_global(folder / "g.tif", 1.0, noise=0.05, degree=16, terms=60)
    flags = "--epochs 30 --scales 1 2 --base_resolution 2 --val_fraction 0.1".split()
    assert train(folder, tmp_path / "run", *flags) == 0
    arguments = f"--output reconstruction --device cpu --no_progress --output_dir {tmp_path}/made".split()
    assert small_maps.infer([*arguments, "--checkpoint", f"{tmp_path}/run/checkpoint-last.pth"]) == 0
    with rasterio.open(tmp_path / "made" / "reconstruction_g_2x.tif") as file:
        error = file.read(3)[10:-10].astype(np.float64)  # 80 degrees south to north, 1 degree a pixel
    strips = np.sqrt(np.square(np.roll(error, 12, axis=1)).reshape(160, 15, 24).mean(axis=(0, 2)))
    line, others = strips[0], strips[1:]
    print(f"across the date line {line:.4f}, elsewhere {others.mean():.4f} ({others.min():.4f} to {others.max():.4f})")
    assert line <= others.max()
    narrow = np.sqrt(np.square(np.roll(error, 4, axis=1)).reshape(160, 45, 8).mean(axis=(0, 2)))
    assert narrow[0] <= np.quantile(narrow[1:], 0.95)


def test_fine_tuning_does_not_see_where_labels_begin(tmp_path):
    """The same labels from -180 and from 0 degrees on give the same folds, scores and map."""
    (tmp_path / "layers").mkdir()
    write_global(tmp_path / "layers" / "a.tif", 5.0)
    codes = (global_grid(5.0, seed=7) > 0).astype(np.uint8) + 1
    flags = "--input_size 8 --patch_size 4 --base_resolution 5 --scales 1 --batch_size 4 --epochs 1 --tiles_per_epoch 8"
    more = ["--folds", "2", "--baselines", "trees", "--num_workers", "0", "--device", "cpu", "--no_progress"]
    scores, maps = [], []
    for left in (-180.0, 0.0):
        rolled = np.roll(codes, -round((left + 180) / 5), axis=1)
        labels = write_grid(tmp_path / f"{left:g}.tif", rolled, resolution=5.0, left=left, top=90.0, crs="EPSG:4326")
        out = tmp_path / f"run{left:g}"
        chosen = ["--data_dir", str(tmp_path / "layers"), "--labels", str(labels), "--output_dir", str(out)]
        assert labelled.run([*chosen, *flags.split(), *more]) == 0
        scores.append(labelled.read_strict(out / "metrics.json")["arms"])
        predict = ["--checkpoint", str(out / "checkpoint-last.pth"), "--output", "prediction", "--device", "cpu"]
        assert small_maps.infer([*predict, "--output_dir", str(out), "--no_progress"]) == 0
        with rasterio.open(out / "prediction_classes.tif") as file:
            maps.append(file.read(1))
    assert [arm["summary"] for arm in scores[0].values()] == [arm["summary"] for arm in scores[1].values()]
    np.testing.assert_array_equal(*maps)
