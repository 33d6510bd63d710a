"""Sets of labelled images, and images as something to train on: which bands, which labels, which crops, which split."""

import argparse
import inspect
import json
import shutil
import warnings

import numpy as np
import pytest
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning

import models_mae_group_channels as models
from datasets.scenes.image_set import KINDS, open_scene_set
from datasets.scenes.images import to_size
from datasets.scenes.scenes import Scenes, hold_out, open_scenes, open_test_scenes
from datasets.scenes.statistics import scene_statistics
from tests import scene_files
from tests.scene_files import CATEGORIES, write_image, write_lines
from util.options import common as options

SIZE = {"input_size": 8, "scales": [1, 2]}


@pytest.fixture(scope="module")
def fmow(tmp_path_factory):
    """The table of a small fMoW-Sentinel: 3 categories, 4 locations of each, 2 images of each; and one to test on."""
    folder = tmp_path_factory.mktemp("fmow")
    scene_files.write_sentinel(folder, split="val", locations=1, first=1000)
    return scene_files.write_sentinel(folder)


@pytest.fixture(scope="module")
def scenes(fmow):
    """The same, opened."""
    return open_scenes(dataset_type="sentinel", train_path=str(fmow), val_fraction=0.3, **SIZE)


def numbered(folder, *, bands=13, name="a/a_0/a_0_0.tif"):
    """A table of one image whose bands hold their own numbers, from 0."""
    category = name.split("/")[0]
    values = np.arange(bands, dtype=np.float32)[:, None, None] + np.zeros((1, 6, 6), dtype=np.float32)
    write_image(folder / name, values)
    return write_lines(folder / "train.csv", ["category,image_path", f"{category},{name}"])


def first_pixels(scene_set):
    """The value of each channel in the middle of the first image."""
    return scene_set.read([0]).tiles.arrays[0][0, :, 2, 2].tolist()


class TestBands:
    def test_sentinel_has_the_published_ones(self, tmp_path, scenes):
        found = open_scene_set(numbered(tmp_path), dataset_type="sentinel", size=6)
        assert found.band_names == ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
        assert first_pixels(found) == [1, 2, 3, 4, 5, 6, 7, 8, 11, 12]
        assert scenes.groups == models.SENTINEL_GROUPS

    def test_euro_sat_has_the_same_in_another_order_of_file(self, tmp_path):
        table = numbered(tmp_path)
        found = open_scene_set(table, dataset_type="euro_sat", size=6)
        assert found.band_names == open_scene_set(table, dataset_type="sentinel", size=6).band_names
        assert first_pixels(found) == [1, 2, 3, 4, 5, 6, 7, 12, 10, 11]
        assert [layer.band for layer in as_source(found).layers] == [2, 3, 4, 5, 6, 7, 8, 13, 11, 12]

    def test_others_can_be_dropped(self, tmp_path):
        table = numbered(tmp_path)
        found = open_scene_set(table, dataset_type="sentinel", size=6, dropped_bands=[])
        assert first_pixels(found) == list(range(13))
        found = open_scene_set(table, dataset_type="sentinel", size=6, dropped_bands=[0, 1, 2, 3, 7], masked_bands=[1])
        assert found.band_names[:3] == ("B5", "B6", "B7")
        assert str(first_pixels(found)) == "[4.0, nan, 6.0, 8.0, 9.0, 10.0, 11.0, 12.0]"

    def test_groups(self, fmow):
        def groups(**chosen):
            return open_scenes(dataset_type="sentinel", train_path=str(fmow), **SIZE, **chosen).groups

        assert groups(dropped_bands=[]) == ((1, 2, 3, 7), (4, 5, 6, 8), (11, 12), (0, 9, 10))
        assert groups(dropped_bands=[0, 9, 10, 11, 12]) == ((0, 1, 2, 6), (3, 4, 5, 7))
        assert groups(one_group=True) == (tuple(range(10)),)
        halves = [[0, 1, 2, 3, 4], [9, 8, 7, 6, 5]]
        assert groups(grouped_bands=halves) == tuple(map(tuple, halves))
        with pytest.raises(
            ValueError, match=r"--grouped_bands \[\[0, 1\]\] is not a partition .*0 = B2.*missing \[2, 3"
        ):
            groups(grouped_bands=[[0, 1]])

    @pytest.mark.parametrize(
        ("chosen", "said"),
        [
            ({"dropped_bands": [13]}, r"--dropped_bands names layer 13, expected 0\.\.12"),
            ({"dropped_bands": range(13)}, "--dropped_bands leaves none of the 13 bands"),
            ({"masked_bands": [10]}, r"--masked_bands names layer 10, expected 0\.\.9"),
            ({"masked_bands": range(10)}, "--masked_bands hides every one of the 10 bands"),
        ],
    )
    def test_refused(self, tmp_path, chosen, said):
        with pytest.raises(ValueError, match=said):
            open_scene_set(numbered(tmp_path), dataset_type="sentinel", size=6, **chosen)


def as_source(scene_set):
    """A set as something to train on, with no statistics."""
    return Scenes(scene_set, np.arange(1), np.arange(0), (), ((0,),), 4, (1,))


class TestLabels:
    def test_are_numbers_of_sorted_names(self, scenes):
        assert scenes.categories == CATEGORIES and len(scenes.images) == 24
        batch = scenes.images.read([0, 23, 8])
        assert batch.labels.tolist() == [0, 2, 1] == scenes.images.labels[[0, 23, 8]].tolist()
        assert batch.tiles.arrays[0].shape == (3, 10, 16, 16) and batch.tiles.phases == [None]

    def test_of_a_trained_model(self, fmow):
        names = ("zoo", "pier", "dam", "airport")
        found = open_scene_set(fmow, dataset_type="sentinel", size=8, categories=names)
        assert set(found.labels.tolist()) == {0, 2, 3} and found.categories == names

    def test_unknown_to_the_model(self, fmow, scenes):
        said = r"train\.csv, row 18: image .*zoo_0_0\.tif is of category 'zoo', expected one of the 2 trained"
        with pytest.raises(ValueError, match=said):
            open_scene_set(fmow, dataset_type="sentinel", size=8, categories=("airport", "dam"))


class TestCrops:
    def test_are_a_function_of_seed_epoch_and_number(self, scenes):
        def read(numbers, **chosen):
            return scenes.images.read(numbers, **chosen).tiles.arrays[0]

        first = read([3, 4, 3], epoch=0, seed=5)
        assert torch.equal(first[0], first[2]) and torch.equal(first[1], read([4], epoch=0, seed=5)[0])
        for other in (read([3], epoch=1, seed=5), read([3], epoch=0, seed=6), read([3])):
            assert not torch.equal(first[0], other[0])

    def test_the_centre_in_evaluation(self, scenes):
        values = scenes.images.pixels(1, range(10))
        assert values.shape == (10, 20, 17)
        assert torch.equal(scenes.images.read([1]).tiles.arrays[0][0], torch.from_numpy(to_size(values[:, 1:18], 16)))

    def test_an_epoch_visits_every_training_image_once(self, scenes):
        tiles = scenes.epoch_tiles(seed=0, epoch=3)
        assert sorted(tiles[:, 0]) == scenes.train.tolist() and len(tiles) == scenes.training_tiles
        assert (tiles == scenes.epoch_tiles(seed=0, epoch=3)).all()
        assert (tiles[:, 0] != scenes.epoch_tiles(seed=0, epoch=4)[:, 0]).any()
        assert (scenes.reader().read(tiles[:1]).arrays[0][0].numpy() ==
                scenes.images.read(tiles[:1, 0], epoch=3).tiles.arrays[0][0].numpy()).all()  # fmt: skip

    def test_images_beyond_one_visit_get_other_crops(self, scenes):
        count = scenes.training_tiles
        tiles = scenes.epoch_tiles(seed=0, epoch=0, tiles=2 * count + 1)
        assert sorted(tiles[: 2 * count, 0]) == sorted([*scenes.train] * 2) and tiles[-1, 2] == 2
        same = [int(np.flatnonzero(part[:, 0] == tiles[0, 0])[0]) for part in (tiles[:count], tiles[count : 2 * count])]
        crops = scenes.reader().read(tiles[[same[0], count + same[1]]]).arrays[0]
        assert not torch.equal(crops[0], crops[1])


class TestSplit:
    def test_no_location_is_on_both_sides(self, scenes):
        places = np.array(scenes.images.table.locations)
        train, held_out = set(places[scenes.train]), set(places[scenes.held_out])
        assert not train & held_out and len(train) == 8 and len(held_out) == 4  # 0.3 of 12
        assert len(scenes.held_out) == 8 and sorted([*scenes.train, *scenes.held_out]) == list(range(24))
        assert (scenes.held_out_tiles[:, 1] == -1).all()

    def test_counts(self):
        places = [str(k // 2) for k in range(20)]
        assert [len(hold_out(places, fraction=f, seed=0)[1]) for f in (0, 0.01, 0.1, 0.25, 0.99)] == [0, 2, 2, 4, 18]
        first, other = (hold_out(places, fraction=0.3, seed=seed)[1] for seed in (0, 1))
        assert (first == hold_out(places, fraction=0.3, seed=0)[1]).all() and list(first) != list(other)

    def test_one_location_cannot_be_split(self):
        with pytest.raises(ValueError, match=r"all 3 images are of one location, a: none .* --val_fraction 0"):
            hold_out(["a"] * 3, fraction=0.1, seed=0)
        assert len(hold_out(["a"] * 3, fraction=0, seed=0)[0]) == 3

    def test_another_table(self, fmow, scenes):
        test = open_test_scenes(scenes, str(fmow.parent / "val.csv"))
        assert len(test.held_out_tiles) == 6 and test.statistics == scenes.statistics and test.training_tiles == 0
        assert not test.training_warnings(8)
        again = open_test_scenes(scenes, str(fmow))
        assert "train.csv: 24 of 24 images are trained on too" in again.training_warnings(8)[0]


class TestStatistics:
    def test_are_those_of_training_pixels(self, scenes):
        values = [scenes.images.pixels(number, [4])[0].astype(np.float64).ravel() for number in scenes.train]
        values, found = np.concatenate(values), scenes.statistics[4]
        assert (found.name, found.normalize, found.count, found.sampled) == ("B6", "standard", len(values), False)
        assert (found.centre, found.scale) == (pytest.approx(values.mean()), pytest.approx(values.std()))
        assert found.median == np.median(values) and found.mean == found.centre

    def test_of_some_images_and_pixels(self, scenes, monkeypatch):
        monkeypatch.setattr("datasets.scenes.statistics.SAMPLED_IMAGES", 5)
        monkeypatch.setattr("datasets.scenes.statistics.SAMPLED_PIXELS", 100)
        found = scene_statistics(scenes.images, scenes.train, seed=0)
        assert found[0].sampled and found[0].count <= 500
        assert found == scene_statistics(scenes.images, scenes.train, seed=0)
        assert found != scene_statistics(scenes.images, scenes.train, seed=1)

    def test_of_all_images_but_some_pixels(self, scenes, monkeypatch):
        monkeypatch.setattr("datasets.scenes.statistics.SAMPLED_PIXELS", 100)
        assert scene_statistics(scenes.images, scenes.train, seed=0)[0].sampled

    def test_given_ones_are_kept(self, fmow, scenes):
        given = scenes.statistics[::-1]
        opened = open_scenes(dataset_type="sentinel", train_path=str(fmow), statistics=given, **SIZE)
        assert opened.statistics == given

    def test_hidden_bands_have_none(self, fmow):
        opened = open_scenes(dataset_type="sentinel", train_path=str(fmow), masked_bands=[2], **SIZE)
        assert opened.statistics[2].count == 0 and opened.statistics[3].count > 0
        assert opened.scored == {1: (0, 1, *range(3, 10)), 2: (0, 1, *range(3, 10))}

    @pytest.mark.parametrize(
        ("values", "said"), [(0, "band B2: only the value 0 in 2"), (np.nan, "band B2: no valid pixel in 2")]
    )
    def test_bands_that_do_not_vary(self, tmp_path, values, said):
        for k in range(2):
            pixels = scene_files.texture(k).astype(np.float32)
            pixels[1] = values
            write_image(tmp_path / "a" / f"a_{k}" / f"a_{k}_0.tif", pixels)
        table = write_lines(tmp_path / "train.csv", ["category,location_id,image_id", "a,0,0", "a,1,0"])
        with pytest.raises(
            ValueError, match=said + r" training images, expected values that vary.*\(--dropped_bands\)"
        ):
            open_scenes(dataset_type="sentinel", train_path=str(table), val_fraction=0, **SIZE)


class TestPyramid:
    def test_means_of_what_was_read(self, scenes):
        tiles = scenes.reader().read(scenes.held_out_tiles[:2])
        sample = scenes.pyramid()(*tiles.parts)
        assert [image.shape for image in (sample.imgs, *sample.imgs_up)] == [(2, 10, 8, 8), (2, 10, 16, 16)]
        item = scenes.statistics[3]
        finest = (tiles.arrays[0][:, 3] - item.centre) / item.scale
        assert torch.allclose(sample.imgs_up[0][:, 3], finest, atol=1e-5) and sample.valid.all()
        assert torch.allclose(
            sample.imgs[:, 3], finest.unflatten(2, (8, 2)).unflatten(1, (8, 2)).mean((2, 4)), atol=1e-5
        )
        network = models.build_model("tiny", img_size=8, patch_size=4, **scenes.channel_options())
        assert network.channel_groups == models.SENTINEL_GROUPS

    def test_nodata_stays_invalid(self, tmp_path):
        values = scene_files.texture(1, shape=(16, 16))
        values[:, :4] = 7
        write_image(tmp_path / "a" / "a_0" / "a_0_0.tif", values, nodata=7)
        table = write_lines(tmp_path / "train.csv", ["category,location_id,image_id", "a,0,0"])
        scenes = open_scenes(dataset_type="sentinel", train_path=str(table), val_fraction=0, **SIZE)
        sample = scenes.pyramid()(*scenes.images.read([0]).tiles.parts)
        assert not sample.valid[:, :, :2].any() and sample.valid[:, :, 2:].all() and not sample.imgs[:, :, :2].any()
        assert scenes.statistics[0].count == 12 * 16 and scenes.statistics[0].mean > 500


class TestRgb:
    def test_images_are_cut_to_their_boxes(self, tmp_path):
        found = open_scene_set(scene_files.write_rgb(tmp_path), dataset_type="rgb", size=8)
        assert found.band_names == ("red", "green", "blue") and len(found) == 9 and not found.warnings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(found.table.paths[2]) as file:
                pixels = file.read()
        assert (found.pixels(2, [2, 0]) == pixels[[2, 0], 6:22, 4:24]).all()

    def test_without_any_box_images_are_whole(self, tmp_path):
        table = scene_files.write_rgb(tmp_path)
        for path in tmp_path.rglob("*.json"):
            path.unlink()
        found = open_scene_set(table, dataset_type="rgb", size=8)
        assert found.pixels(0, [0]).shape == (1, 30, 32)
        assert found.warnings == (f"{table}: no image has a JSON file with its box beside it; images are taken whole",)

    def test_boxes_of_some_images(self, tmp_path):
        table = scene_files.write_rgb(tmp_path)
        (tmp_path / "train/dam/dam_1/dam_1_0_rgb.json").unlink()
        said = r"train\.csv, row 6: image .*dam_1_0_rgb\.jpg has no box: no .*dam_1_0_rgb\.json, as 8 other images have"
        with pytest.raises(FileNotFoundError, match=said):
            open_scene_set(table, dataset_type="rgb", size=8)

    def test_boxes_outside_their_images(self, tmp_path):
        table = scene_files.write_rgb(tmp_path, box=(20, 6, 20, 16))
        said = (
            r"row 2: image .*airport_0_0_rgb\.jpg: box \[20.*does not lie inside its 32 x 30 pixels.*fMoW-RGB; put this"
        )
        with pytest.raises(OSError, match=said):
            open_scene_set(table, dataset_type="rgb", size=8)


class TestImagesThatCannotBeUsed:
    def test_another_number_of_bands(self, tmp_path):
        said = r"train\.csv, row 2: image .*a_0_0\.tif: 12 bands, expected 13; --dataset_type sentinel takes"
        with pytest.raises(OSError, match=said):
            open_scene_set(numbered(tmp_path, bands=12), dataset_type="sentinel", size=8)

    def test_broken_later_on(self, fmow, tmp_path):
        """Neither opening the set nor reading others notices; reading it names it."""
        shutil.copytree(fmow.parent, tmp_path / "fmow")
        found = open_scene_set(tmp_path / "fmow" / "train.csv", dataset_type="sentinel", size=8)
        path = tmp_path / "fmow/train/dam/dam_2/dam_2_1.tif"
        path.write_bytes(path.read_bytes()[:300])
        found.read([12, 14])
        with pytest.raises(
            OSError, match=r"train\.csv, row 15: image .*dam_2_1\.tif cannot be read \(.+\); fetch it again"
        ):
            found.read([12, 13, 14])

    def test_repeated_rows_are_said(self, tmp_path):
        table = numbered(tmp_path)
        lines = table.read_text(encoding="utf-8").splitlines()
        found = open_scene_set(write_lines(table, [*lines, lines[1]]), dataset_type="sentinel", size=8)
        assert found.warnings == (f"{table}: 1 rows name an image that another row names too",)


class TestOptions:
    def parse(self, text):
        made = argparse.ArgumentParser()
        options.add_data_options(made)
        options.add_model_options(made)
        return made.parse_args(text.split())

    def test_types_are_those_there_are(self):
        assert set(options.SCENE_TYPES) == set(KINDS)

    def test_every_argument_of_open_scenes_can_be_given_by_flags(self):
        found = options.scene_options(self.parse("--dataset_type rgb --train_path a.csv --model_type vanilla"))
        assert {*found, "categories", "statistics"} == set(inspect.signature(open_scenes).parameters)
        assert found["dropped_bands"] is None and found["one_group"] and found["val_fraction"] == 0.1

    def test_a_test_table_leaves_all_images_to_train_on(self):
        args = self.parse("--dataset_type rgb --train_path a.csv --test_path b.csv --val_fraction 0.3 --dropped_bands")
        found = options.scene_options(args)
        assert found["val_fraction"] == 0.0 and found["dropped_bands"] == []

    @pytest.mark.parametrize(
        "flag",
        ["--aoi a", "--base_resolution 10", "--data_dir a", "--reproject", "--val_buffer 1", "--tile_overlap 0",
         "--min_valid 0", "--cache ram", "--extent intersection", "--val_block 2",
         "--transform B2=log"],
    )  # fmt: skip
    def test_what_needs_ground_is_refused(self, flag):
        with pytest.raises(
            ValueError, match=rf"{flag.split()[0]} does not go with --dataset_type sentinel.*leave it out"
        ):
            options.scene_options(self.parse(f"--dataset_type sentinel --train_path a.csv {flag}"))

    def test_others(self):
        with pytest.raises(ValueError, match="--dataset_type rgb needs --train_path, the table of its images"):
            options.scene_options(self.parse("--dataset_type rgb"))
        with pytest.raises(ValueError, match="--dataset_type rgb is no survey of layers; expected grid"):
            options.survey_options(self.parse("--dataset_type rgb"))
        with pytest.raises(ValueError, match="--input_size 10 is not a multiple"):
            options.scene_options(self.parse("--dataset_type rgb --train_path a.csv --input_size 10"))


def test_messages_name_images_by_row(scenes):
    named = scenes.name_tiles([[3, -1, 0], [3, 7, 1], [0, 7, 0]])
    paths = scenes.images.table.paths
    said = [f"{scenes.images.table.path}, row {number + 2}: image {paths[number]}" for number in (3, 0)]
    assert named == "by row and file: " + "; ".join(said)


def test_tables_of_a_run(scenes, tmp_path):
    scenes.write_tables(tmp_path)
    rows = [line.split(",") for line in (tmp_path / "categories.csv").read_text(encoding="utf-8").splitlines()]
    assert rows[0] == ["number", "category", "training_images", "held_out_images"]
    assert [row[1] for row in rows[1:]] == list(CATEGORIES)
    assert [sum(int(row[k]) for row in rows[1:]) for k in (2, 3)] == [16, 8]
    assert json.loads(json.dumps(scenes.record())) == {"categories": list(CATEGORIES), "base_resolution": None}
