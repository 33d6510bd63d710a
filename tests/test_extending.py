"""The worked examples of docs/extending.md, run as they stand there: each is declared in one table and then used."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import rasterio

import main_finetune
import models_vit_group_channels as models
from datasets.layers.kinds import KINDS
from datasets.survey.open_survey import SurveySettings, open_survey
from tests import labelled, small_maps, surveys
from tests.rasters import write_grid
from util.finetuning import choices
from util.finetuning.tasks import TASKS
from util.inference.products import PRODUCTS
from util.model.layer_losses import LOSSES
from util.model.task_heads import HEADS

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def example(title: str) -> dict[str, Any]:
    """What the Python code of a section defines."""
    section = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert section is not None
    code = "\n".join(re.findall(r"```python\n(.*?)```", section[1], re.DOTALL))
    assert len(code.splitlines()) < 66, "longer than a page"
    module = ModuleType("worked_example")
    with mock.patch.dict(sys.modules, {module.__name__: module}):  # dataclasses look their module up
        exec(compile(code, str(PAGE), "exec"), vars(module))
    return vars(module)


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def checkpoint(survey, tmp_path_factory) -> Path:
    """A checkpoint of a short pre-training."""
    output = tmp_path_factory.mktemp("pretrained")
    assert surveys.train(survey, output, "--epochs", "1") == 0
    return output / "checkpoint-last.pth"


def table_of(survey: Path, folder: Path, header: str, column: str) -> Path:
    """A table of the survey's layers with one more column, given for the magnetics alone."""
    rows = [f"{survey}/gravity.tif,gravity,", f"{survey}/magnetics.tif,magnetics,{column}"]
    path = folder / "layers.csv"
    path.write_text("\n".join([f"path,name,{header}", *rows]) + "\n")
    return path


def test_a_kind_of_layer(tmp_path):
    kind = example("A kind of layer")["Percent"]()
    values = np.random.default_rng(0).uniform(0, 100, size=(96, 96)).astype(np.float32)
    write_grid(tmp_path / "silica.tif", values)
    (tmp_path / "layers.csv").write_text("path,name,kind\nsilica.tif,silica,percent\n")
    with mock.patch.dict(KINDS, {kind.name: kind}):
        settings = SurveySettings(
            layers_table=str(tmp_path / "layers.csv"), input_size=8, scales=(1,), val_fraction=0.0
        )
        encoding = open_survey(settings).encodings[0]
        units, usable = encoding.encode(encoding.decode(surveys.torch.zeros(1, 1, 2, 2)))
        far_out = encoding.decode(surveys.torch.full((1, 2, 2), 50.0))
        assert encoding.unit("") == "%"
    assert usable.all() and units.abs().max() < 1e-4  # 0 in model units is the mean, which comes back
    assert far_out.tolist() == [[100.0, 100.0], [100.0, 100.0]]
    assert [*kind.suspicions(-3.0, 50.0)] == ["from -3 to 50, expected percentages from 0 to 100"]


def test_a_loss(survey, tmp_path):
    table = table_of(survey, tmp_path, "loss", "cauchy")
    with mock.patch.dict(LOSSES, {"cauchy": example("A loss")["CAUCHY"]}):
        flags = ["--data_dir", "", "--train_path", str(table), "--epochs", "1"]
        argv = surveys.arguments(survey, tmp_path / "out", *flags)
        argv = argv[argv.index("--output_dir") :]
        argv = [text for text in argv if text not in ("--data_dir", "")]
        assert surveys.small_main.main(argv) == 0
    lines = (tmp_path / "out" / "log.txt").read_text().splitlines()
    losses = [json.loads(line)["train_loss"] for line in lines if "train_loss" in line]
    assert losses and np.isfinite(losses).all()
    assert surveys.small_main.main([*argv[:1], str(tmp_path / "again"), *argv[2:]]) == 2  # unknown without the line


def test_a_head(survey, tmp_path):
    labels = labelled.write_classes(tmp_path)
    with mock.patch.dict(HEADS, {"shared_linear": example("A head")["SharedLinearHead"]}), offered():
        assert labelled.finetune(survey, tmp_path / "out", "--head", "shared_linear", labels=labels) == 0
        state = labelled.fit(tmp_path / "out", "scratch")
        assert state["model_config"]["head"] == "shared_linear"
        network = models.build_finetune_model(state["model_config"])
    assert [name for name, _ in network.head.named_parameters()] == ["linear.weight", "linear.bias"]


def test_a_task(survey, tmp_path):
    task = example("A task")["ROBUST_REGRESSION"]
    labels = labelled.write_values(tmp_path)
    with mock.patch.dict(TASKS, {task.name: task}), offered(task.name):
        assert labelled.finetune(survey, tmp_path / "out", "--task", task.name, labels=labels) == 0
        assert 0 < labelled.scores(tmp_path / "out", "scratch")["test"]["mae"] < 50
        where = ["--output_dir", str(tmp_path / "maps"), "--data_dir", str(survey), "--device", "cpu", "--no_progress"]
        checkpoint = str(tmp_path / "out" / "checkpoint-last.pth")
        assert small_maps.infer(["--checkpoint", checkpoint, "--output", "prediction", *where]) == 0
    with rasterio.open(next((tmp_path / "maps").glob("*.tif"))) as file:
        assert np.nanmin(file.read(1)) > 0  # labels of 92 to 108 mGal


def test_a_product(survey, checkpoint, tmp_path):
    product = example("A product")["BASE_VALUES"]
    where = ["--output_dir", str(tmp_path), "--data_dir", str(survey), "--device", "cpu", "--no_progress"]
    with mock.patch.dict(PRODUCTS, {product.name: product}):
        assert small_maps.infer(["--checkpoint", str(checkpoint), "--output", "base_values", *where]) == 0
    with rasterio.open(tmp_path / "base_values.tif") as file:
        gravity, magnetics = file.read()
        assert file.descriptions == ("gravity", "magnetics")
    with rasterio.open(survey / "magnetics.tif") as file:
        native = file.read(1, masked=True)
    means = native.reshape(40, 4, 40, 4).mean(axis=(1, 3))  # 400 m of 100 m
    full = ~np.ma.getmaskarray(native).reshape(40, 4, 40, 4).any(axis=(1, 3))
    assert full.sum() > 1000 and gravity.shape == (40, 40)
    np.testing.assert_allclose(magnetics[full], means[full], atol=1e-3)  # float32, values up to 100


def offered(task: str | None = None) -> Any:
    """Makes the parser of main_finetune read its choices off the tables as they are now."""
    tasks = choices.OFFERED if task is None else (*choices.OFFERED, task)
    with mock.patch.object(choices, "OFFERED", tasks):
        now = choices.finetune_choices(splits=main_finetune.CHOICES.splits)
    return mock.patch.object(main_finetune, "CHOICES", now)
