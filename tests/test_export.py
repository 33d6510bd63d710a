"""Exported models give what the trained ones give: in onnxruntime, from safetensors, and as checkpoints."""

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.survey.inference_survey import open_inference_survey, stored_encodings, stored_layers, stored_native
from main_inference import load_network
from scripts import export
from tests import labelled, scene_files, small_main, small_maps, surveys
from tests.rasters import write_grid
from util.checkpoints import checkpoint_file
from util.checkpoints.encoder_weights import read_encoder_weights
from util.export import onnx_file
from util.export.weights import shared_entries
from util.finetuning.tasks import trained_objective

FACTOR = 4
"""Pixels of 100 m, the finest, along the edge of a base pixel."""
SIZE, TILE = 160, 8 * FACTOR


def write_every_kind(folder):
    """The small survey with classes, directions and every transform besides; 200 m and 100 m, one area without data."""
    surveys.write_survey(folder)
    rng = np.random.default_rng(0)
    row, col = np.mgrid[:80, :80]
    write_grid(folder / "rock.tif", (1 + (col // 20 + row // 20) % 3).astype(np.uint8), resolution=200.0, nodata=0)
    write_grid(folder / "strike.tif", (7.0 * col + 3 * row).astype(np.float32) % 180, resolution=200.0, nodata=-1)
    values = rng.lognormal(size=(SIZE, SIZE)).astype(np.float32)
    write_grid(folder / "potassium.tif", values, resolution=100.0, nodata=-1)
    write_grid(folder / "susceptibility.tif", values[::-1] ** 2, resolution=100.0, nodata=-1)
    rows = [
        "name,path,kind,transform,group",
        "gravity,gravity.tif,,,a",
        "magnetics,magnetics.tif,,asinh,b",
        "rock,rock.tif,categorical,,a",
        "strike,strike.tif,axial,,a",
        "potassium,potassium.tif,,quantile,b",
        "susceptibility,susceptibility.tif,,log,b",
    ]
    (folder / "layers.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return ["--train_path", str(folder / "layers.csv")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the survey and checkpoints of a pre-training and of fits to classes and values."""
    folder = tmp_path_factory.mktemp("export")
    layers = write_every_kind(folder / "survey")
    flags = [*labelled.FLAGS, "--epochs", "1", "--only_folds", "0"]
    assert small_main.main([*layers, "--output_dir", str(folder / "pre"), *surveys.FLAGS, "--epochs", "1"]) == 0
    classes, values = labelled.write_classes(folder), labelled.write_values(folder)
    for name, labels, more in (
        ("classes", classes, ["--finetune", str(folder / "pre"), "--input_size", "8"]),
        ("values", values, ["--task", "regression", "--stem", "base", "--label_scale", "2"]),
    ):
        given = [*layers, "--output_dir", str(folder / name), *flags, "--labels", str(labels), *more]
        assert labelled.run(given) == 0
    return folder


def run_export(trained, name, path, *flags):
    """Exports a checkpoint of the fixture; returns the exit status."""
    return export.main(["--checkpoint", str(trained / name), "--output", str(path), *flags])


@pytest.mark.parametrize(("fine_tuned", "program"), [(False, "main_finetune --finetune"), (True, "main_inference")])
def test_what_an_exported_file_is_for(tmp_path, fine_tuned, program):
    path, card = tmp_path / "model.pth", tmp_path / "model.pth.md"
    lines = export.next_steps(path, card, "torch", is_finetuned=fine_tuned)
    assert any(program in line and str(path) in line for line in lines)
    assert str(card) in export.next_steps(path, card, "onnx", is_finetuned=fine_tuned)[0]


def stacked_tile(trained, row, col):
    """One tile of all layers at 100 m, NaN = no data, from base pixel (row, col): (1, 6, 32, 32)."""
    import rasterio

    bands = []
    with open(trained / "survey/layers.csv", newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            with rasterio.open(trained / "survey" / line["path"]) as raster:
                values = raster.read(1, masked=True).astype(np.float32).filled(np.nan)
            bands.append(np.kron(values, np.ones((SIZE // len(values),) * 2, np.float32)))
    top, left = FACTOR * row, FACTOR * col
    return np.stack(bands)[None, :, top : top + TILE, left : left + TILE]


def predicted_by_main_path(trained, name, row, col):
    """What the fine-tuned network predicts of a tile that inference reads, in the orientation of the ground."""
    state = checkpoint_file.load_checkpoint(trained / name / "checkpoint-last.pth", required=export.NEEDED)
    network, encodings = load_network(state), stored_encodings(state)
    survey = open_inference_survey(
        stored_layers(state["layers"]),
        input_size=8,
        scales=(1,),
        base_resolution=state["base_resolution"],
        finest_scale=4,
        encodings=encodings,
        native=stored_native(state, encodings),
    )
    sample = survey.read(row, col, row + 8, col + 8).sample(np.array([[row, col]]), torch.device("cpu"))
    objective = trained_objective(state["task"]["kind"], state["training"])
    with torch.no_grad():
        found = objective.predict(network, sample.imgs, sample.valid, sample.native)
    return found.numpy(), sample.valid.any(dim=1).numpy()


def test_onnx_of_an_encoder_has_a_free_batch_and_native_pixels(trained, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert run_export(trained, "pre", tmp_path / "encoder.onnx", "--format", "onnx") == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "encoder.onnx"))
    shapes = {entry.name: entry.shape for entry in session.get_inputs()}
    assert list(shapes) == ["imgs", "valid", "native_0", "native_1"]
    assert all(isinstance(shape[0], str) for shape in shapes.values()) and shapes["native_1"][1:] == [3, 64, 64]
    network = load_network(checkpoint_file.load_checkpoint(trained / "pre/checkpoint-last.pth", required=export.NEEDED))
    generator = torch.Generator().manual_seed(5)
    imgs = 3 * torch.randn(5, *shapes["imgs"][1:], generator=generator)
    valid = torch.rand(imgs.shape, generator=generator) > 0.5
    valid[0] = False
    native = [torch.randn(5, *shapes[name][1:], generator=generator) for name in ("native_0", "native_1")]
    native[1][1] = torch.nan
    fed = dict(zip(shapes, (x.numpy() for x in (imgs, valid, *native)), strict=True))
    tokens, token_valid = session.run(None, fed)
    with torch.no_grad():
        expected, expected_valid = network.forward_tokens(imgs, valid, native)
    np.testing.assert_allclose(tokens, expected, atol=1e-4)
    assert (token_valid == expected_valid.numpy()).all() and 0 < token_valid.mean() < 1


@pytest.mark.parametrize("name", ["classes", pytest.param("values", marks=pytest.mark.slow)])
def test_one_raster_of_all_layers_gives_what_inference_gives(trained, tmp_path, name):
    """The raster as Deepness would feed it: divided by 255, and standardised as the file's metadata say."""
    onnxruntime = pytest.importorskip("onnxruntime")
    flags = ("--format", "onnx", "--inputs", "raster", "--nodata", "-9999")
    assert run_export(trained, name, tmp_path / "all.onnx", *flags) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "all.onnx"))
    stated = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert stated["tile_size"] == TILE and stated["resolution"] == 100 * 100.0 and stated["tiles_overlap"] == 50
    row, col = 3, 1  # over the corner where magnetics has no data
    raster = stacked_tile(trained, row, col)
    assert np.isnan(raster[0, 1]).any()
    raster[0, 1][np.isnan(raster[0, 1])] = -9999.0
    mean, std = (np.array(stated[f"standardization_{x}"])[None, :, None, None] for x in ("mean", "std"))
    fed = ((np.float32(raster / 255.0) - mean) / std).astype(np.float32)
    (found,) = session.run(None, {"raster": fed})
    expected, seen = predicted_by_main_path(trained, name, row, col)
    edge = found.shape[-1] // expected.shape[-1]
    expected = np.kron(expected, np.ones((edge, edge)))
    seen = np.kron(seen, np.ones((FACTOR, FACTOR), bool))
    assert found.shape == (1, 3 if name == "classes" else 1, TILE, TILE)
    np.testing.assert_allclose(found, np.where(seen[:, None], expected, np.nan), atol=1e-4)
    fed[..., : 2 * FACTOR] = np.nan
    (found,) = session.run(None, {"raster": fed})
    assert np.isnan(found[..., : 2 * FACTOR]).all() and np.isfinite(found[..., -2 * FACTOR :]).all()
    if name == "classes":
        assert stated["model_type"] == "Segmentor" and stated["class_names"] == {"0": "3", "1": "7", "2": "12"}
    else:
        assert stated["model_type"] == "Regressor" and stated["reg_output_scaling"] == 1.0


@pytest.mark.parametrize(("name", "form"), [("pre", "torch"), ("classes", "torch"), ("classes", "safetensors")])
def test_the_lines_of_the_card_load_the_weights(trained, tmp_path, monkeypatch, name, form):
    path = tmp_path / f"m.{form}"
    assert run_export(trained, name, path, "--format", form, "--licence", "CC-BY-4.0") == 0
    card = (tmp_path / f"m.{form}.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    expected = surveys.checkpoint(trained / name)["model"]
    assert surveys.same_bits(dict(names["network"].state_dict()), dict(expected))
    assert "CC-BY-4.0" in card and "| 0 | gravity |" in card and "- base pixel: 400 CRS units" in card
    assert ("mean_iou" in card) == (name == "classes")


def test_formats_of_one_model_have_their_own_cards_in_one_folder(trained, tmp_path):
    """As docs/export.md gives the commands, beside a page that is none of theirs."""
    (tmp_path / "model.md").write_text("mine", encoding="utf-8")
    forms = ["torch", "safetensors", *(["onnx"] if importlib.util.find_spec("onnxruntime") else [])]
    names = [f"model{export.SUFFIXES[form]}" for form in forms]
    for flags in ((), ("--overwrite",)):
        for form, name in zip(forms, names, strict=True):
            assert run_export(trained, "pre", tmp_path / name, "--format", form, *flags) == 0
    cards = [f"{name}.md" for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["model.md", *names, *cards])
    heads = [(tmp_path / card).read_text(encoding="utf-8").splitlines()[0] for card in cards]
    assert heads == [f"# {name}" for name in names]
    assert (tmp_path / "model.md").read_text(encoding="utf-8") == "mine"


def test_a_torch_file_is_a_checkpoint_for_our_programs_without_anybodys_folders(trained, tmp_path):
    path = tmp_path / "shared.pth"
    assert run_export(trained, "classes", path) == 0
    state = torch.load(path, weights_only=True)
    rest = {key: value for key, value in state.items() if key != "model"}
    assert "optimizer" not in state and str(trained) not in repr(rest) and "gravity.tif" in repr(rest["layers"])
    original = read_encoder_weights(trained / "classes/checkpoint-last.pth")
    assert read_encoder_weights(path).digest() == original.digest()
    maps = ["--train_path", str(trained / "survey/layers.csv"), "--device", "cpu", "--no_progress"]
    for source in (path, trained / "classes"):
        given = ["--checkpoint", str(source), "--output_dir", str(tmp_path / f"maps-{source.stem}"), *maps]
        assert small_maps.infer([*given, "--output", "prediction"]) == 0
    one, other = (sorted((tmp_path / f"maps-{n}").glob("prediction*.tif")) for n in ("shared", "classes"))
    import rasterio

    assert one and [path.name for path in one] == [path.name for path in other]
    for first, second in zip(one, other, strict=True):
        with rasterio.open(first) as a, rasterio.open(second) as b:
            np.testing.assert_array_equal(a.read(), b.read())


@pytest.fixture(scope="module")
def of_images(tmp_path_factory):
    """A folder with a fit to the classes of images."""
    folder = tmp_path_factory.mktemp("images")
    images = scene_files.write_euro_sat(folder / "secret/images")
    given = ["--dataset_type", "euro_sat", "--train_path", str(images), "--output_dir", str(folder / "fits")]
    flags = "--task classification --input_size 8 --patch_size 4 --scales 1 2 --batch_size 8 --epochs 1 --device cpu"
    more = "--warmup_epochs 0 --num_workers 0 --val_fraction 0.3 --no_progress"
    assert labelled.run([*given, *flags.split(), *more.split()]) == 0
    return folder


@pytest.mark.parametrize("form", ["torch", "safetensors", "onnx"])
def test_models_of_images_have_a_card_without_ground_and_name_no_folder(of_images, tmp_path, form):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    path = tmp_path / "m.out"
    assert run_export(of_images, "fits/fits/scratch-fold0", path, "--format", form) == 0
    card = (tmp_path / "m.out.md").read_text(encoding="utf-8")
    assert "- base pixel: that of the images" in card and "ground of training" not in card
    contents = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"secret" not in contents and str(Path(export.__file__).parents[1]).encode() not in contents


def test_a_card_that_cannot_be_made_leaves_no_model(trained, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ValueError("no card")

    monkeypatch.setattr(export, "card_text", fails)
    for form in ("torch", "onnx") if importlib.util.find_spec("onnxruntime") else ("torch",):
        assert run_export(trained, "pre", tmp_path / "m.x", "--format", form) == 2
    assert not list(tmp_path.iterdir())


def test_paths_lose_their_folders_and_other_text_stays():
    state = {"a": "/x/y/z.tif", "b": "C:\\x\\z.tif", "c": ("mGal/km", 'PROJCS["a/b"]'), "d": "/x/a.tif|/x/b.tif"}
    state |= {"url": "https://host/x/z.zarr", "rng": 1, "e": {"f": ["./p/q", "z.tif"]}}
    assert shared_entries(state) == {
        "a": "z.tif",
        "b": "z.tif",
        "c": ("mGal/km", 'PROJCS["a/b"]'),
        "d": "a.tif|b.tif",
        "url": "z.zarr",
        "e": {"f": ["q", "z.tif"]},
    }


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("xarray:/surveys/mine/s.zarr#fine/grav", "xarray:s.zarr#fine/grav"),
        ("xarray:https://me:key@host/s.zarr?token=1#grav;crs=EPSG:4326", "xarray:s.zarr#grav;crs=EPSG:4326"),
        ('NETCDF:"/surveys/mine/a.nc":v', 'NETCDF:"a.nc":v'),
        ('NETCDF:"C:\\me\\a.nc":v', 'NETCDF:"a.nc":v'),
        ("HDF5:/surveys/mine/a.h5://group/v", "HDF5:a.h5://group/v"),
        ("GTIFF_DIR:1:/surveys/mine/x.tif", "GTIFF_DIR:1:x.tif"),
        ("GTIFF_DIR:1:C:/me/x.tif", "GTIFF_DIR:1:x.tif"),
        ("/surveys/mine/data[1]/x.tif", "x.tif"),
        ("/vsizip//surveys/mine/a.zip/x.tif", "x.tif"),
        ("https://host/me/x.tif?token=1", "x.tif"),
        ("clients/acme/x.tif", "x.tif"),
        ("clients\\acme\\x.tif|clients\\acme\\y.tif", "x.tif|y.tif"),
    ],
)
def test_no_form_of_a_layers_path_keeps_folders(path, name):
    assert shared_entries({"layers": [{"name": "a/b", "path": path}]}) == {"layers": [{"name": "a/b", "path": name}]}
    if not path.startswith("clients"):  # nothing says of a relative one that it is a path
        assert shared_entries({"note": path}) == {"note": name}


def test_options_that_are_paths_lose_their_folders():
    options = {
        "data_dir": "clients/acme",
        "labels": "acme/x.shp",
        "finetune": "",
        "resume": "auto",
        "data_path": ["a/b"],
    }
    assert shared_entries({"options": {**options, "label_column": "U/Th", "log_dir": None}}) == {
        "options": {"data_dir": "acme", "labels": "x.shp", "finetune": "", "resume": "auto", "data_path": ["b"]}
        | {"label_column": "U/Th", "log_dir": None}
    }


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("pre", "--format onnx --part predictions", "a pre-trained model without a head for a task; fine-tune it"),
        ("pre", "--part encoder", "--part with --format torch: the file holds all weights"),
        ("classes", "--format onnx --nodata 0", "--nodata with --inputs model: expected --inputs raster"),
        ("classes", "--format onnx --inputs raster --raster_scale 6", "--raster_scale 6: expected a multiple of 4"),
    ],
)
def test_bad_input_is_refused(trained, tmp_path, capsys, name, flags, message):
    pytest.importorskip("onnxruntime")
    assert run_export(trained, name, tmp_path / "m.x", *flags.split()) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_checkpoint_itself_is_never_replaced(trained, tmp_path, capsys):
    copy = Path(shutil.copy(trained / "pre/checkpoint-last.pth", tmp_path))
    before = copy.read_bytes()
    assert export.main(["--checkpoint", str(tmp_path), "--output", str(copy), "--overwrite"]) == 2
    assert "is the checkpoint that is exported" in capsys.readouterr().err and copy.read_bytes() == before


def test_nothing_is_replaced_unless_asked_for(trained, tmp_path, capsys):
    (tmp_path / "m.pth.md").write_text("mine", encoding="utf-8")
    assert run_export(trained, "pre", tmp_path / "m.pth") == 2
    assert "m.pth.md exists; give another path, or --overwrite" in capsys.readouterr().err
    assert run_export(trained, "pre", tmp_path) == 2
    assert "is a folder; give the path of a file" in capsys.readouterr().err
    assert run_export(trained, "pre", tmp_path / "m.pth", "--overwrite") == 0
    assert (tmp_path / "m.pth.md").read_text(encoding="utf-8") != "mine"


def test_missing_packages_are_named(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_file, "PACKAGES", ("json", "no_such_package"))
    assert run_export(trained, "pre", tmp_path / "m.onnx", "--format", "onnx") == 2
    assert "needs the package(s) no_such_package, not installed; pip install -r" in capsys.readouterr().err


class Multiplied(torch.nn.Module):
    """A graph to export at once."""

    outputs = ("found",)

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, values):
        return self.factor * values


def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    exported, path = onnx_file._exported, tmp_path / "m.onnx"
    monkeypatch.setattr(onnx_file, "_exported", lambda graph, *given: exported(Multiplied(2.0), *given))

    def write(factor):
        graph, metadata = Multiplied(factor), {"key": "text"}
        return onnx_file.write_onnx(path, graph, lambda n: (torch.ones(n, 3),), names=["values"], metadata=metadata)

    with pytest.raises(ValueError, match=r"onnxruntime differs from torch by 0\.048.*nothing was written"):
        write(2.1)
    assert not list(tmp_path.iterdir())
    assert 1e-6 < write(2.0001) <= onnx_file.TOLERANCE and path.is_file()
