"""Embeddings of the pre-trained encoder at pixels, and their principal components."""

import numpy as np
import pytest
import torch

from datasets.finetuning.layers import LayerOptions, open_layers
from models_vit_group_channels import build_finetune_model
from tests import labelled, surveys
from util.finetuning.embedding_features import PixelEmbeddings, interpolated, principal_features

NAN = np.nan


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def embeddings(survey):
    """Embeddings of an encoder as it starts, on ground of 40 x 40 base pixels, in patches of 4."""
    opened = open_layers(None, LayerOptions(data_dir=str(survey), input_size=16, scales=(1, 2, 4)), local_ranks=1)
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "channel_embed": 8}
    sizes |= {"img_size": 16, "patch_size": 4, "num_outputs": 3, "scale": 1, "head": "linear"}
    network = build_finetune_model({"kind": "dense", **opened.channels, **sizes})
    options = {"batch_size": 4, "device": torch.device("cpu"), "amp_dtype": None}
    return lambda **more: PixelEmbeddings(network, opened.survey, **options, **{"overlap": 0.5, "scale": 1, **more})


def test_bilinear_interpolation_written_out():
    image = np.array([[[1.0, 3.0], [5.0, NAN]]])
    places = np.array([[0, 0], [0, 0.5], [0.5, 0], [-0.4, 1.4], [0.5, 0.5], [1, 1]])
    # in the middle of all the mean of the three that are known; on the unknown one itself nothing
    assert interpolated(image, places)[:, 0] == pytest.approx([1, 2, 3, 3, 3, NAN], nan_ok=True)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_pixels_lie_where_they_should_between_patches(embeddings, monkeypatch, scale):
    """Embeddings that are the place of their patch become the place of the pixel, up to the outer patches."""

    def places(self, first, last):
        row, col = 4 * np.mgrid[first[0] : last[0], first[1] : last[1]] + 2.0
        return np.stack([row, *[col] * 63])

    monkeypatch.setattr(PixelEmbeddings, "_tokens", places)
    pixels = np.random.default_rng(1).integers(0, 40 * scale, (40, 2))
    found = embeddings(scale=scale)(pixels)[:, :2]
    assert np.allclose(found, np.clip((pixels + 0.5) / scale, 2, 38), atol=1e-5)


def test_they_are_the_tokens_of_the_network(embeddings):
    """Tiles side by side: those of the first one are the tokens of its window."""
    made = embeddings(overlap=0.0)
    window = made._survey.read(0, 0, 16, 16)
    sample = window.sample(np.array([[0, 0]]), torch.device("cpu"))
    with torch.inference_mode():
        tokens, known = made._product.engine.model.forward_tokens(sample.imgs, sample.valid)
    expected = torch.where(known[..., None], tokens, NAN)[0].unflatten(1, (4, 4)).permute(0, 3, 1, 2).flatten(0, 1)
    found = made._tokens(np.array([0, 0]), np.array([4, 4]))
    assert np.isfinite(found).any() and np.allclose(found, expected, atol=1e-5, equal_nan=True)


def test_neither_order_nor_company_of_pixels_matters(embeddings):
    pixels = np.random.default_rng(0).integers(0, 40, (50, 2))
    at_once = embeddings()(pixels)
    some = embeddings()(pixels[40:][::-1])[::-1]
    assert np.allclose(some, at_once[40:], atol=1e-5, equal_nan=True)
    assert np.isnan(embeddings()(np.array([[1, 1]]))).all()  # a hole of both layers
    assert embeddings()(np.empty((0, 2), int)).shape == (0, 64)


def test_principal_components_are_those_of_the_training_pixels():
    """Along (1, 1) lies all the variance; a missing band counts as its mean."""
    table = np.array([[0.0, 0.0], [2.0, 2.0], [4.0, 4.0], [NAN, 2.0], [NAN, NAN]], dtype=np.float32)
    components = principal_features(lambda pixels: table[pixels[:, 0]], np.array([[0, 0], [1, 0], [2, 0]]), count=1)
    found = components(np.array([[k, 0] for k in range(5)]))
    expected = np.sqrt(2) * np.array([-2, 0, 2, 0, NAN])
    assert found.shape == (5, 1) and found[:, 0] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    with pytest.raises(ValueError, match="principal components of 1 complete places: expected at least 2"):
        principal_features(lambda pixels: table[pixels[:, 0]], np.array([[0, 0], [4, 0]]))


def test_trees_with_embeddings_know_both(survey, tmp_path):
    """Whole runs from a checkpoint, on pixels and on windows."""
    output, classes = tmp_path / "out", labelled.write_classes(tmp_path)
    assert surveys.train(survey, tmp_path / "pretrained", "--epochs", "1") == 0
    weights = ["--finetune", str(tmp_path / "pretrained/checkpoint-last.pth")]
    flags = "--no_network --tree_samples 100 --only_folds 0 --baselines trees+embeddings".split()
    assert labelled.finetune(survey, output / "pixels", *weights, *flags, "--label_scale", "2", labels=classes) == 0
    found = labelled.scores(output / "pixels", "trees+embeddings")
    assert found["train_cpu_seconds"] > 0 and found["peak_memory_mb"] > 0 and found["tree_samples"] <= 100
    points = labelled.write_points(tmp_path)
    task = ["--task", "classification", "--background_distance", "2"]
    assert labelled.finetune(survey, output / "points", *weights, *flags, *task, labels=points) == 0
