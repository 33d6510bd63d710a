"""A disk that fills up during maps, fine-tuning or a study: one message, status 1, nothing under a final name; going on
when there is room ends as an undisturbed run does.
"""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests import labelled, small_maps, surveys
from tests.test_cog_writer import classes, write
from util.inference.qgis import write_style

pytestmark = pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs limits of file sizes")


def limit_files(limit: int) -> None:
    """Lets no file of this process grow beyond a number of bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def pretrained(survey, tmp_path_factory):
    """The checkpoint of a short pre-training."""
    output = tmp_path_factory.mktemp("pretrained")
    assert surveys.train(survey, output, "--epochs", "1", *surveys.HELD_OUT) == 0
    return output / "checkpoint-last.pth"


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path in it, but for the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def one_message(text: str, program: str) -> str:
    """The only error message of a program, without its name."""
    assert text.count(f"{program}: error: ") == 1 and "Traceback" not in text, text
    return text.split(f"{program}: error: ")[1]


@pytest.mark.parametrize("product", ["embeddings", "reconstruction"])
@pytest.mark.parametrize("limit", [2_000, 12_000, None])
def test_maps(pretrained, tmp_path, product, limit):
    output, whole = tmp_path / "maps", tmp_path / "whole"
    arguments = ["--checkpoint", str(pretrained), "--output", product, "--device", "cpu", "--no_progress"]
    assert small_maps.infer([*arguments, "--output_dir", str(whole)]) == 0
    largest = max(len(data) for name, data in files_of(whole).items() if name.endswith(".tif"))
    limit = limit or largest - 1  # all parts are written, the map itself is not
    assert largest > limit
    full = surveys.Started(
        [*arguments, "--output_dir", str(output)],
        tmp_path / "messages.txt",
        before=partial(limit_files, limit),
        program=small_maps.infer,
    )
    status, text = full.wait()
    assert status == 1, text
    message = one_message(text, "main_inference")
    assert "ree some space" in message and "with --resume" in message
    left, expected = files_of(output), files_of(whole)
    parts = [name for name in left if name not in expected]  # of the resumed run
    assert all(name.startswith(f".{product}.parts/") and not name.endswith(".tmp") for name in parts), parts
    for name in left.keys() & expected.keys():
        if name.endswith(".tif"):
            with rasterio.open(output / name) as found, rasterio.open(whole / name) as wanted:
                np.testing.assert_array_equal(found.read(), wanted.read())
    assert small_maps.infer([*arguments, "--output_dir", str(output), "--resume"]) == 0
    again = files_of(output)
    assert again.keys() == expected.keys()
    for name in (name for name in expected if name.endswith(".tif")):
        with rasterio.open(output / name) as found, rasterio.open(whole / name) as wanted:
            np.testing.assert_array_equal(found.read(), wanted.read())


def test_styles_say_what_to_do(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    raster = classes(6, 8)
    path = write(tmp_path, raster, np.ones((1, 6, 8), np.uint8))
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"r\.qml: cannot be written .*No space left.*Free some space.*--resume"):
        write_style(path, raster)
    assert not list(tmp_path.glob("*.qml*")) and not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("limit", [8_000, 300_000])
def test_fine_tuning(survey, pretrained, tmp_path, limit):
    """The first checkpoint cannot be written: none is there, and the run begins again."""
    labels, output, whole = labelled.write_classes(tmp_path), tmp_path / "output", tmp_path / "whole"
    flags = ["--finetune", str(pretrained), "--only_folds", "0"]
    assert labelled.finetune(survey, whole, *flags, labels=labels) == 0
    assert (whole / "checkpoint-last.pth").stat().st_size > limit
    full = surveys.Started(
        labelled.arguments(survey, output, *flags, labels=labels),
        tmp_path / "messages.txt",
        before=partial(limit_files, limit),
        program=labelled.run,
    )
    status, text = full.wait()
    assert status == 1, text
    assert "File too large" in one_message(text, "main_finetune") and "--resume auto" in text
    assert not [name for name in files_of(output) if name.endswith((".pth", ".tmp"))], files_of(output).keys()
    assert labelled.finetune(survey, output, *flags, "--resume", "auto", labels=labels) == 0
    assert surveys.same_bits(surveys.checkpoint(output)["model"], surveys.checkpoint(whole)["model"])
