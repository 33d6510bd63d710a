"""Tables of images: which columns, which paths, where the files are found, and what is refused."""

import pytest

from datasets.scenes.tables import Directories, location_of, path_parts, read_euro_sat, read_fmow_table
from tests.scene_files import write_lines


def touch(folder, *names):
    """Makes empty files; nothing here is decoded."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def sentinel(folder, lines, *, name="train.csv"):
    """Reads a table of fMoW-Sentinel."""
    return read_fmow_table(write_lines(folder / name, lines), has_ids=True)


IDS = ["category,location_id,image_id,timestamp,polygon", 'dam,3,0,2016-01-01T00:00:00Z,"POLYGON ((0 0, 1 1))"']
PUBLISHED = "train/dam/dam_3/dam_3_0.tif"


class TestPaths:
    @pytest.mark.parametrize(
        "text",
        [
            "train/dam/dam_3/dam_3_0.tif",
            r"train\dam\dam_3\dam_3_0.tif",
            r"D:\data\fmow\train\dam\dam_3\dam_3_0.tif",
            r"\\server\share\fmow\train\dam\dam_3\dam_3_0.tif",
            "/data/fmow/train/dam/dam_3/dam_3_0.tif",
            "./train//dam/dam_3/dam_3_0.tif",
            r" fmow-sentinel/train\dam/dam_3/dam_3_0.tif ",
        ],
    )
    def test_any_slashes_and_any_prefix(self, tmp_path, text):
        touch(tmp_path, PUBLISHED)
        table = sentinel(tmp_path, ["category,image_path", f"dam,{text}"])
        assert table.paths == (str(tmp_path / PUBLISHED),)
        assert (table.categories, table.locations, table.rows) == (("dam",), ("dam_3",), (2,))

    def test_most_of_the_path_counts(self, tmp_path):
        touch(tmp_path, "train/dam/x.tif", "dam/x.tif", "x.tif")
        found = Directories().find(str(tmp_path), path_parts("C:/fmow/train/dam/x.tif"))
        assert found == str(tmp_path / "train/dam/x.tif")

    def test_components(self):
        assert path_parts(r"C:\a\b.tif") == ["a", "b.tif"] == path_parts("/a//./b.tif")
        assert path_parts("C:") == ["C:"] and path_parts("b.tif") == ["b.tif"]

    def test_locations(self):
        assert location_of(["train", "dam", "dam_3", "dam_3_12_rgb.jpg"], "dam") == "dam_3"
        assert location_of(["images", "dam_3_12_rgb.jpg"], "dam") == "dam_3"
        assert location_of(["other", "scan_3_1.jpg"], "dam") == "other/scan_3_1.jpg"
        assert location_of(["dam", "dam.jpg"], "dam") == "dam/dam.jpg"


class TestPublishedLayout:
    def test_numbers_stand_for_paths(self, tmp_path):
        touch(tmp_path, PUBLISHED, "train/zoo/zoo_0/zoo_0_11.tif", "val/dam/dam_3/dam_3_0.tif")
        table = sentinel(tmp_path, [*IDS, "zoo,0.0,11.0,,"])
        assert table.paths == (str(tmp_path / PUBLISHED), str(tmp_path / "train/zoo/zoo_0/zoo_0_11.tif"))
        assert table.locations == ("dam_3", "zoo_0")

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("val.csv", "val"),
            ("train_62classes.csv", "train"),
            ("test_gt.csv", "test_gt"),
            ("test.csv", "test"),
            ("trained.csv", None),
        ],
    )
    def test_the_folder_is_that_of_the_split(self, tmp_path, name, found):
        for split in ("train", "val", "test", "test_gt"):
            touch(tmp_path, f"{split}/dam/dam_3/dam_3_0.tif")
        if found is None:
            with pytest.raises(ValueError, match=r"trained.csv: its images may lie in test, test_gt, train, val"):
                sentinel(tmp_path, IDS, name=name)
        else:
            assert sentinel(tmp_path, IDS, name=name).paths == (str(tmp_path / found / "dam/dam_3/dam_3_0.tif"),)

    @pytest.mark.parametrize("place", ["dam/dam_3/dam_3_0.tif", "images/dam/dam_3/dam_3_0.tif"])
    def test_or_the_only_one(self, tmp_path, place):
        touch(tmp_path, place, "other/readme.txt")
        assert sentinel(tmp_path, IDS).paths == (str(tmp_path / place),)

    def test_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"train\.csv: no folder .*train/dam nor .*put the table beside"):
            sentinel(tmp_path, IDS)


class TestRefused:
    @pytest.mark.parametrize(
        ("lines", "said"),
        [
            ([], "empty; expected one row an image"),
            (["category,image_path"], "no rows below its header; expected one row an image"),
            (
                ["class,file", "a,b"],
                r"no column category, location_id, image_id among class, file; expected the columns",
            ),
            (["image_path", "a.tif"], r"no column category among image_path"),
            (["category,image_path", "dam,"], r"train\.csv, row 2: nothing in column image_path; fill it in"),
            (["category,location_id,image_id", "dam,1,0", "dam,,0"], r"row 3: nothing in column location_id"),
        ],
    )
    def test_tables(self, tmp_path, lines, said):
        with pytest.raises(ValueError, match=said):
            sentinel(tmp_path, lines)

    def test_rgb_has_no_numbers(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"no column image_path among .*expected the columns category, and image_pa"
        ):
            read_fmow_table(write_lines(tmp_path / "train.csv", IDS), has_ids=False)

    def test_a_table_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: no such file; expected a CSV that lists images"):
            read_fmow_table(tmp_path / "nowhere.csv", has_ids=True)

    def test_a_table_that_is_no_table(self, tmp_path):
        (tmp_path / "train.csv").write_bytes(b"\xff\xfe\x00\x81")
        with pytest.raises(ValueError, match="not a CSV"):
            read_fmow_table(tmp_path / "train.csv", has_ids=True)

    def test_images_that_are_not_there(self, tmp_path):
        touch(tmp_path, PUBLISHED)
        rows = [f"dam,train/dam/dam_{k}/dam_{k}_0.tif" for k in (3, 4, 5, 6)]
        said = (
            rf"train\.csv, row 3: image not there, looked for {tmp_path}/train/dam/dam_4/dam_4_0\.tif \(so are those "
            r"of 2 other rows: 4, 5\); put it there, or take its row out"
        )
        with pytest.raises(FileNotFoundError, match=said):
            sentinel(tmp_path, ["category,image_path", *rows])


class TestEuroSat:
    FILES = ("Forest/Forest_1.tif", "River/River_2.tif", "River/River_10.TIF")

    def test_folder(self, tmp_path):
        touch(tmp_path, *self.FILES, "River/notes.txt", "readme.txt")
        table = read_euro_sat(tmp_path)
        assert table.categories == ("Forest", "River", "River")
        assert table.paths == tuple(str(tmp_path / n) for n in (self.FILES[0], self.FILES[2], self.FILES[1]))
        assert len(set(table.locations)) == 3 and table.where(0) == f"{tmp_path}: image {tmp_path / self.FILES[0]}"

    @pytest.mark.parametrize(
        ("name", "lines"),
        [
            ("list.txt", ["Forest/Forest_1.tif", r"C:\EuroSAT\River\River_2.tif", "", "River/River_10.TIF"]),
            ("list.txt", ["Forest/Forest_1.tif 0", "River/River_2.tif\t1", "River/River_10.TIF 1"]),
            ("list.csv", ["image_path", *FILES]),
            ("list.csv", [",Filename,Label,ClassName", *(f"7,{n},3,{n[: n.index('/')]}" for n in FILES)]),
        ],
    )
    def test_lists(self, tmp_path, name, lines):
        touch(tmp_path, *self.FILES)
        table = read_euro_sat(write_lines(tmp_path / name, lines))
        assert table.paths == tuple(str(tmp_path / n) for n in self.FILES)
        assert table.categories == ("Forest", "River", "River")

    @pytest.mark.parametrize(
        ("name", "lines", "said"),
        [
            ("list.txt", ["", " "], r"list\.txt: empty; expected a path a line"),
            ("list.txt", ["Forest_1.tif"], r"list\.txt, row 1: Forest_1.tif lies in no class folder"),
            ("list.csv", ["file", "a"], r"no column image_path \(or Filename\) among file"),
            (
                "list.txt",
                ["Forest/Forest_1.tif 0", "River/River_2.tif 1", "River/River_10.TIF 0"],
                r"row 3: class number 0 for an image in the folder 'River', expected another than that of Forest",
            ),
            (
                "list.txt",
                ["River/River_2.tif 1", "River/River_10.TIF 2"],
                r"row 2: class number 2 .* expected 1 as in the rows before; each class folder has one number",
            ),
        ],
    )
    def test_lists_that_are_refused(self, tmp_path, name, lines, said):
        touch(tmp_path, *self.FILES)
        with pytest.raises(ValueError, match=said):
            read_euro_sat(write_lines(tmp_path / name, lines))

    def test_folders_that_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"no GeoTIFFs in folders of it \(there are none\); expected a folder of"):
            read_euro_sat(tmp_path)
        with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
            read_euro_sat(tmp_path / "nowhere")
        (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00\x81")
        with pytest.raises(ValueError, match="not text"):
            read_euro_sat(tmp_path / "list.txt")
