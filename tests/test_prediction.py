"""Maps of a fine-tuned network: what is in them, and that they are what main_finetune scored."""

import importlib.util
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch

import main_inference
from datasets.labels.label_map import seen_ground
from datasets.survey.inference_survey import open_inference_survey, stored_encodings, stored_layers
from tests import labelled, scene_files, small_maps
from tests.labelled import CODES, finetune, write_classes, write_points, write_values
from tests.rasters import write_grid
from tests.surveys import TORCHRUN_VARIABLES, train, write_survey
from util.checkpoints.checkpoint_file import load_checkpoint, save_checkpoint
from util.finetuning.tasks import TASKS
from util.inference.finetuned_task import Task, provenance, stored_classes, task_of
from util.inference.prediction import entropy

FITS = {
    "segmentation": ("classes", "--task", "segmentation"),
    "segmentation_2x": ("classes", "--task", "segmentation", "--label_scale", "2", "--no_final", "--only_folds", "1"),
    "segmentation_random": ("classes", "--task", "segmentation", "--split", "random", "--only_folds", "0"),
    "regression": ("values", "--task", "regression"),
    "regression_of_a_layer": ("survey/gravity", "--task", "regression", "--no_final", "--only_folds", "0"),
    "classification": ("classes", "--task", "classification"),
    "prospectivity": ("points", "--task", "classification", "--background_ratio", "2", "--background_distance", "2"),
}
RASTERS = {
    "segmentation": ("classes", "entropy", "probabilities"),
    "regression": ("values",),
    "classification": ("classes", "entropy", "probabilities"),
    "prospectivity": ("probability",),
}


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    """Fine-tunes, once each, what tests ask for by name: folder of the run."""
    folder, done = tmp_path_factory.mktemp("fits"), {}
    survey = write_survey(folder / "survey")
    write_classes(folder), write_values(folder), write_points(folder)

    def fit(name):
        if name not in done:
            labels, *flags = FITS[name]
            path = next(folder.glob(f"{labels}.*"))
            assert finetune(survey, folder / name, "--epochs", "1", *flags, labels=path) == 0
            done[name] = folder / name
        return done[name]

    return SimpleNamespace(survey=survey, of=fit)


def of_fold(run, fold):
    return next(run.glob(f"fits/*-fold{fold}"))


def arguments(checkpoint, output_dir, *more):
    return [
        *("--checkpoint", str(checkpoint), "--output", "prediction", "--output_dir", str(output_dir)),
        *("--device", "cpu", "--no_progress", "--block_size", "24", *more),
    ]


def predict(checkpoint, output_dir, *more, status=0, pictures=False):
    path = checkpoint if checkpoint.suffix else checkpoint / "checkpoint-last.pth"
    assert small_maps.infer(arguments(path, output_dir, *more), pictures=pictures) == status
    return Path(output_dir)


def pixels_of(folder, name):
    with rasterio.open(folder / f"prediction_{name}.tif") as file:
        return file.read()


def footprint(run):
    """Base-scale pixels with a value of some layer that the network saw."""
    state = load_checkpoint(run / "checkpoint-last.pth", required=("layers",))
    survey = open_inference_survey(
        stored_layers(state["layers"]),
        encodings=stored_encodings(state),
        input_size=8,
        scales=(1,),
        base_resolution=state["base_resolution"],
        finest_scale=1,
        hidden=state["hidden"],
    )
    return seen_ground(survey)


class TestFiles:
    @pytest.mark.parametrize("kind", RASTERS)
    def test_every_file_reads_back(self, fits, tmp_path, kind):
        out = predict(fits.of(kind), tmp_path, pictures=True)
        assert sorted(path.stem for path in out.glob("*.tif")) == [f"prediction_{name}" for name in RASTERS[kind]]
        seen = footprint(fits.of(kind))
        for path in out.glob("*.tif"):
            with rasterio.open(path) as file:
                assert file.crs.to_epsg() == 28354 and file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                assert (file.transform.c, file.transform.f) == (500_000, 6_000_000)
                tags, known = file.tags(), file.read_masks(1) > 0
                cell = file.shape[0] // 40 if kind in ("segmentation", "regression") else 40 // file.shape[0]
                assert file.res == (400 * cell,) * 2 and all(file.descriptions)
            assert np.array_equal(known, seen.reshape(known.shape[0], cell, -1, cell).any(axis=(1, 3)))
            assert tags["task"] == kind and tags["arm"] == "scratch" and tags["fitted_on"] == "all labels"
            assert tags["split"] == "blocks" and tags["hidden_layers"] == "none" and "warning" not in tags
            metrics = json.loads((fits.of(kind) / "metrics.json").read_text(encoding="utf-8"))
            mean = metrics["arms"]["scratch"]["summary"][metrics["headline"]]["mean"]
            assert tags["score"].startswith(f"{metrics['headline']} {mean:.4g} +- ")
            assert tags["score"].endswith(" on held-out blocks, 2 fold(s)") and "score_count" not in tags
            assert path.with_suffix(".png").exists()
            if importlib.util.find_spec("rio_cogeo") is not None:
                from rio_cogeo.cogeo import cog_validate

                valid, errors, warnings = cog_validate(path)
                assert valid and not errors and not warnings

    @pytest.mark.parametrize(("name", "scale"), [("segmentation", 1), ("segmentation_2x", 2)])
    def test_classes(self, fits, tmp_path, name, scale):
        run = fits.of(name)
        checkpoint = of_fold(run, 1)
        out = predict(checkpoint, tmp_path)
        with rasterio.open(out / "prediction_classes.tif") as file:
            codes, colours, tags = file.read(1), file.colormap(1), file.tags(1)
            assert (file.dtypes, file.nodata, file.shape) == (("uint8",), 0, (40 * scale,) * 2)
            assert file.res == (400 / scale,) * 2 and (file.transform.c, file.transform.f) == (500_000, 6_000_000)
            assert file.tags()["fitted_on"] == "the training labels of fold 1" and file.tags()["fold"] == "1"
            assert file.tags()["score"].startswith("not in this checkpoint")
        table = load_checkpoint(checkpoint / "checkpoint-last.pth", required=("task",))["task"]
        for code, label, colour in zip(table["codes"], table["names"], table["colours"], strict=True):
            assert tags[f"class_{code}"] == label
            assert colours[code] == (*(int(colour[k : k + 2], 16) for k in (1, 3, 5)), 255)
        beside = ElementTree.parse(out / "prediction_classes.tif.aux.xml")
        named = [entry.text or "" for entry in beside.iter("Category")]
        assert len(named) == 13 and [named[code] for code in CODES] == table["names"]
        assert not (out / "prediction_probabilities.tif.aux.xml").exists()
        seen = footprint(checkpoint).repeat(scale, 0).repeat(scale, 1)
        assert np.array_equal(codes > 0, seen) and 0 < (~seen).sum() and set(np.unique(codes)) <= {0, *CODES}

        with rasterio.open(out / "prediction_probabilities.tif") as file:
            shares = file.read()
            assert file.descriptions == tuple(table["names"]) and np.isnan(file.nodata)
        assert np.array_equal(np.isfinite(shares).all(axis=0), seen) and np.isnan(shares[:, ~seen]).all()
        np.testing.assert_allclose(shares[:, seen].sum(axis=0), 1, atol=1e-5)
        assert np.array_equal(np.array(CODES)[shares[:, seen].argmax(axis=0)], codes[seen])
        uncertainty = pixels_of(out, "entropy")[0]
        assert np.array_equal(np.isfinite(uncertainty), seen)
        p = shares[:, seen].astype(float)
        np.testing.assert_allclose(uncertainty[seen], -(p * np.log(p)).sum(axis=0) / np.log(3), atol=1e-5)

    def test_values(self, fits, tmp_path):
        run = fits.of("regression")
        with rasterio.open(predict(run, tmp_path / "8") / "prediction_values.tif") as file:
            assert file.descriptions == ("prediction", "prediction spread") and file.tags()["views"] == "8"
            values, spread = file.read()
        state, known = load_checkpoint(run / "checkpoint-last.pth", required=("training",)), np.isfinite(values)
        assert np.array_equal(known, footprint(run)) and np.array_equal(np.isfinite(spread), known)
        assert (spread[known] > 0).all() and abs(values[known].mean() - state["training"]["mean"]) < 10
        once, between_tiles = pixels_of(predict(run, tmp_path / "1", "--views", "1"), "values")
        assert between_tiles[39, 39] == 0 < spread[39, 39]  # one tile alone
        state["task"]["units"], state["options"]["no_augment"] = "mGal", True
        save_checkpoint(tmp_path / "other.pth", state)
        with rasterio.open(predict(tmp_path / "other.pth", tmp_path / "other") / "prediction_values.tif") as file:
            assert file.units == ("mGal", "mGal") and file.tags()["views"] == "1"  # nothing was turned in training
            np.testing.assert_array_equal(file.read(1), once)
        assert np.abs(once - values)[known].max() > 0

    def test_windows_at_a_stride(self, fits, tmp_path):
        """Cells of a finer lattice are the same windows where centres coincide: those of three, of one."""
        run = fits.of("classification")
        for stride in (1, 3):
            out = predict(run, tmp_path / str(stride), "--stride", str(stride))
            with rasterio.open(out / "prediction_probabilities.tif") as file:
                assert file.res == (400.0 * stride,) * 2 and file.shape == (-(-40 // stride),) * 2
                assert file.tags()["stride_base_pixels"] == str(stride) and file.tags()["window_base_pixels"] == "8"
        fine, coarse = (pixels_of(tmp_path / s, "probabilities") for s in ("1", "3"))
        middles = fine[:, 1::3, 1::3]
        both = np.isfinite(middles[:, :13, :13]) & np.isfinite(coarse[:, :13, :13])
        assert both.mean() > 0.9
        np.testing.assert_allclose(middles[:, :13, :13][both], coarse[:, :13, :13][both], atol=1e-5)

    def test_area_of_interest(self, fits, tmp_path):
        box = shapely.box(504_000, 5_990_000, 508_000, 5_994_000)
        geopandas.GeoDataFrame(geometry=[box], crs="EPSG:28354").to_file(tmp_path / "aoi.gpkg")
        run = fits.of("segmentation")
        whole = predict(run, tmp_path / "whole")
        part = predict(run, tmp_path / "part", "--aoi", str(tmp_path / "aoi.gpkg"))
        inside = np.zeros((40, 40), dtype=bool)
        inside[15:25, 10:20] = True
        for name, nodata in (("classes", 0), ("probabilities", np.nan)):
            expected = np.where(inside, pixels_of(whole, name), nodata)
            np.testing.assert_array_equal(pixels_of(part, name), expected)

    def test_random_split_is_said(self, fits, tmp_path, caplog):
        out = predict(of_fold(fits.of("segmentation_random"), 0), tmp_path)
        with rasterio.open(out / "prediction_classes.tif") as file:
            assert "scores are inflated" in file.tags()["warning"] and file.tags()["split"] == "random"
        assert "scores are inflated" in caplog.text

    @pytest.mark.parametrize("name", ["segmentation", "classification"])
    def test_embeddings_of_a_fine_tuned_encoder(self, fits, tmp_path, name):
        out = predict(fits.of(name), tmp_path, "--output", "embeddings")
        with rasterio.open(out / "embeddings.tif") as file:
            assert (file.count, file.shape) == (32, (10, 10)) and file.tags()["task"] == name
            assert np.isfinite(file.read()).mean() > 0.9


class TestSameAsScored:
    """What main_finetune keeps of its test ground is in the map made of the same weights."""

    def test_classes(self, fits, tmp_path):
        run = of_fold(fits.of("segmentation_2x"), 1)
        with np.load(run / "scores.npz") as arrays:
            scored = arrays["map"]
        tested = np.isfinite(scored)
        codes = pixels_of(predict(run, tmp_path), "classes")[0]
        assert tested.sum() > 500
        np.testing.assert_array_equal(codes[tested], np.array(CODES)[scored[tested].astype(int)])

    def test_values(self, fits, tmp_path):
        run = of_fold(fits.of("regression"), 0)
        with np.load(run / "scores.npz") as arrays:
            scored = arrays["map"]
        tested = np.isfinite(scored)
        values = pixels_of(predict(run, tmp_path, "--views", "1"), "values")[0]
        np.testing.assert_allclose(values[tested], scored[tested], rtol=1e-5)

    def test_windows(self, fits, tmp_path):
        """Tiles side by side were scored: a lattice of whole tiles."""
        run = of_fold(fits.of("classification"), 0)
        with np.load(run / "scores.npz") as arrays:
            scored = arrays["shares"]
        shares = pixels_of(predict(run, tmp_path, "--stride", "8"), "probabilities")
        cells = shares[:, np.isfinite(shares).all(axis=0)].T
        distance = np.abs(cells[None] - scored[:, None]).max(axis=2).min(axis=1)
        assert len(scored) > 5 and distance.max() < 1e-5 < 1e-3 < cells.std(axis=0).max()


class TestSameResult:
    @pytest.mark.parametrize("name", ["segmentation", "regression", "prospectivity"])
    def test_batch_sizes(self, fits, tmp_path, name):
        found = {}
        for size in (1, 7, 64):
            out = predict(fits.of(name), tmp_path / str(size), "--batch_size", str(size), "--block_size", "40")
            found[size] = {kind: pixels_of(out, kind) for kind in RASTERS[name]}
        for size in (1, 7):
            for kind, pixels in found[size].items():
                np.testing.assert_allclose(pixels, found[64][kind], rtol=1e-4, atol=1e-5)

    def test_ranks(self, fits, tmp_path):
        names = ("segmentation", "regression", "prospectivity")
        paths = {name: fits.of(name) / "checkpoint-last.pth" for name in names}
        context, processes = multiprocessing.get_context("forkserver"), []
        for rank in range(2):
            runs = []
            for name in names:
                more = ("--world_size", "2", "--local_rank", str(rank), "--dist_url", f"file://{tmp_path}/meet-{name}")
                runs.append(arguments(paths[name], tmp_path / f"two-{name}", *more))
            processes.append(context.Process(target=_predict_and_exit, args=(runs,)))
            processes[-1].start()
        for name in names:
            predict(paths[name], tmp_path / f"one-{name}")
        for process in processes:
            process.join(180)
            assert process.exitcode == 0
        for name in names:
            for kind in RASTERS[name]:
                one, two = (pixels_of(tmp_path / f"{count}-{name}", kind) for count in ("one", "two"))
                np.testing.assert_array_equal(one, two)

    def test_interrupted_and_resumed(self, fits, tmp_path, monkeypatch, capsys):
        run = fits.of("segmentation")
        whole, out, write = predict(run, tmp_path / "whole"), tmp_path / "out", main_inference.Parts.write

        def interrupted(parts, row, col, arrays):
            write(parts, row, col, arrays)
            if (row, col) == (0, 1):
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(main_inference.Parts, "write", interrupted)
        predict(run, out, status=1)
        assert {path.name for path in out.iterdir()} == {".prediction.parts", "report.html", "report.json"}
        monkeypatch.setattr(main_inference.Parts, "write", write)
        predict(run, out, "--resume", "--views", "8", status=2)
        assert "views was None, now 8" in capsys.readouterr().err
        predict(run, out, "--resume")
        for kind in RASTERS["segmentation"]:
            np.testing.assert_array_equal(pixels_of(out, kind), pixels_of(whole, kind))


def _predict_and_exit(runs):
    for name in TORCHRUN_VARIABLES:
        os.environ.pop(name, None)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    sys.exit(max(small_maps.infer(argv) for argv in runs))


class TestLayers:
    def test_missing_layer(self, fits, tmp_path, capsys):
        alone = tmp_path / "alone"
        alone.mkdir()
        (alone / "magnetics.tif").write_bytes((fits.survey / "magnetics.tif").read_bytes())
        run = fits.of("segmentation")
        predict(run, tmp_path / "out", "--data_dir", str(alone), status=2)
        assert "lacks the layers 'gravity' of the checkpoint" in capsys.readouterr().err
        out = predict(run, tmp_path / "out", "--data_dir", str(alone), "--missing_layers", "allow")
        with rasterio.open(out / "prediction_classes.tif") as file:
            assert file.tags()["missing_layers"] == "gravity" and file.read(1).any()

    def test_the_layer_that_is_predicted_need_not_be_there(self, fits, tmp_path):
        """Gravity out of magnetics, on ground where nobody has measured gravity."""
        alone = tmp_path / "alone"
        alone.mkdir()
        (alone / "magnetics.tif").write_bytes((fits.survey / "magnetics.tif").read_bytes())
        run = of_fold(fits.of("regression_of_a_layer"), 0)
        with_it = predict(run, tmp_path / "with")
        without = predict(run, tmp_path / "without", "--data_dir", str(alone))
        with rasterio.open(without / "prediction_values.tif") as file:
            assert file.tags()["hidden_layers"] == "gravity" and file.tags()["missing_layers"] == "none"
        np.testing.assert_array_equal(pixels_of(without, "values"), pixels_of(with_it, "values"))


def test_classes_of_images_on_rasters(tmp_path, capsys):
    """A network that learned from images is applied to rasters named as its bands, at a resolution that is given."""
    table = scene_files.write_sentinel(tmp_path / "scenes")
    flags = "--task classification --input_size 8 --patch_size 4 --scales 1 2 --epochs 1 --warmup_epochs 0 --no_final"
    more = ["--dataset_type", "sentinel", "--train_path", str(table), "--output_dir", str(tmp_path / "run")]
    assert labelled.run([*flags.split(), *more, "--num_workers", "0", "--device", "cpu", "--no_progress"]) == 0
    run = of_fold(tmp_path / "run", 0)
    predict(run, tmp_path / "out", status=2)
    assert "trained on images (--dataset_type sentinel), not on ground" in capsys.readouterr().err
    state = load_checkpoint(run / "checkpoint-last.pth", required=("layers",))
    rng = np.random.default_rng(0)
    (tmp_path / "bands").mkdir()
    for layer in state["layers"]:
        values = 1000 + 500 * rng.normal(size=(48, 48))
        write_grid(tmp_path / "bands" / f"{layer['name']}.tif", values.astype(np.float32), resolution=10.0)
    rasters = ["--data_dir", str(tmp_path / "bands"), "--base_resolution"]
    predict(run, tmp_path / "out", *rasters, "10", status=2)
    assert "pixels of 10, expected at most 5: the model's stem reads 2 x 2 of them" in capsys.readouterr().err
    out = predict(run, tmp_path / "out", *rasters, "20")
    with rasterio.open(out / "prediction_classes.tif") as file:
        assert file.shape == (6, 6) and file.res == (80.0, 80.0) and file.tags()["split"] == "locations"
        assert set(np.unique(file.read(1))) <= set(range(1, len(scene_files.CATEGORIES) + 1))
        named = {key: name for key, name in file.tags(1).items() if key.startswith("class_")}
        assert sorted(named.values()) == sorted(scene_files.CATEGORIES)


class TestRefused:
    def test_checkpoint_of_pretraining(self, fits, tmp_path, capsys):
        assert train(fits.survey, tmp_path / "pre", "--epochs", "1") == 0
        predict(tmp_path / "pre", tmp_path / "out", status=2)
        message = capsys.readouterr().err
        assert (
            "is a checkpoint of pre-training, which learns no labels" in message
            and "main_finetune --finetune" in message
        )

    @pytest.mark.parametrize("output", ["reconstruction", "gapfill", "superresolution"])
    def test_layers_of_a_fine_tuned_network(self, fits, tmp_path, capsys, output):
        predict(fits.of("segmentation"), tmp_path, "--output", output, status=2)
        message = capsys.readouterr().err
        assert f"--output {output}: " in message and "was fine-tuned for segmentation and has no decoder" in message

    @pytest.mark.parametrize(
        ("name", "more", "message"),
        [
            ("segmentation", ("--stride", "2"), "--stride 2 does nothing for --output prediction of segmentation"),
            ("classification", ("--stride", "9"), "--stride 9: expected 1 to 8 base pixels"),
        ],
    )
    def test_options(self, fits, tmp_path, capsys, name, more, message):
        predict(fits.of(name), tmp_path, *more, status=2)
        assert message in capsys.readouterr().err

    def test_existing_results_are_kept(self, fits, tmp_path, capsys):
        (tmp_path / "prediction_entropy.tif").write_text("precious")
        predict(fits.of("segmentation"), tmp_path, status=2)
        assert "prediction_entropy.tif exists; give --overwrite" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- on paper


def test_a_map_of_presences_shows_the_known_ones_and_the_layers(fits, tmp_path, monkeypatch):
    """The checkpoint holds their coordinates; on ground in another CRS they are left out."""
    seen = []
    monkeypatch.setattr(
        "util.inference.results.draw_raster", lambda path, spec, **how: seen.append((spec, how)) or path
    )
    run = fits.of("prospectivity")
    predict(run, tmp_path, pictures=True)
    ((spec, how),) = seen
    rows = np.loadtxt(run.parent / "points.csv", delimiter=",", skiprows=1)
    found = sorted(spec.points)
    assert spec.point_name == "known presences" and len(found) >= 0.8 * len(rows)
    assert all(np.abs(rows - point).max(axis=1).min() <= 200 for point in found)  # half a base pixel
    assert [panel.title for panel in how["beside"]] == ["gravity", "magnetics"]
    gravity = how["beside"][0].image
    with rasterio.open(fits.survey / "gravity.tif") as file:
        stored = file.read(1)
    assert gravity.shape == (300, 300) and gravity[0, 299] == stored[0, 79] and gravity[150, 150] == stored[40, 40]
    assert np.isnan(gravity[0, 0]) and stored[0, 0] == -99999
    state = load_checkpoint(run / "checkpoint-last.pth")
    assert task_of(state, TASKS).presences_in("EPSG:3857") == ()


def test_entropy():
    shares = np.array([[0.25, 1.0, 0.5, np.nan]] + [[0.25, 0.0, 0.5, np.nan]] + [[0.25, 0.0, 0.0, np.nan]] * 2)
    np.testing.assert_allclose(entropy(shares), [1, 0, 0.5, np.nan], atol=1e-6)
    for kinds in (2, 3, 7):
        assert entropy(np.full((kinds, 1), 1 / kinds, np.float32))[0] == pytest.approx(1, abs=1e-6)


def task(codes):
    names, colours = tuple(f"name {code}" for code in codes), ("#0a141e",) * len(codes)
    return Task(
        kind="segmentation",
        per_pixel=True,
        has_classes=True,
        is_ranking=False,
        scale=1,
        units="",
        codes=tuple(codes),
        names=names,
        colours=colours,
    )


@pytest.mark.parametrize(
    ("codes", "expected", "dtype", "nodata"),
    [
        ((3, 7, 12), (3, 7, 12), "uint8", 0),
        ((0, 1, 255), (0, 1, 255), "uint8", 254),
        ((0, 1, 300), (0, 1, 300), "uint16", 65535),
        ((300, 1), (300, 1), "uint16", 0),
        ((-1, 4), (1, 2), "uint8", 0),
        ((1, 70_000), (1, 2), "uint8", 0),
        (("granite", "schist"), (1, 2), "uint8", 0),
    ],
)
def test_codes_in_a_raster(codes, expected, dtype, nodata):
    stored = stored_classes(task(codes))
    assert (stored.codes, stored.dtype, stored.nodata) == (expected, dtype, nodata)
    assert stored.classes[expected[0]] == (f"name {codes[0]}", (10, 20, 30)) and nodata not in stored.classes
    assert stored.renumbered == (codes != expected)


def test_what_a_map_says_of_its_fit():
    summary = {
        "r2": {"mean": 0.51234, "std": 0.0123, "n": 5},
        "rmse": {"mean": 2.0, "std": None, "n": 1},
        "count": {"mean": 10, "std": 0, "n": 5},
        "iou": {"granite": {"mean": 0.3, "std": None, "n": 1}},
    }
    state = {
        "task": {"kind": "regression"},
        "arm": "pretrained",
        "fold": None,
        "folds": {"split": "blocks", "warning": None},
        "scores": {"headline": "r2", "arms": {"pretrained": {"summary": summary}}},
    }
    tags = provenance(state)
    assert tags["score"] == "r2 0.5123 +- 0.012 on held-out blocks, 5 fold(s)" and tags["score_rmse"] == "2"
    assert {name for name in tags if name.startswith("score_")} == {"score_r2", "score_rmse"} and "warning" not in tags
    summary["r2"] = {"mean": None, "std": None, "n": 0}
    assert provenance(state)["score"].startswith("r2 not defined on held-out blocks")
    state["folds"] = {"split": "test table", "warning": "it leaks"}
    tags = provenance(state)
    assert tags["score"].endswith(" on test images, 0 fold(s)") and tags["warning"] == "it leaks"
