"""The benchmark's subcommands on small work: what they print, and recipes that differ only in how they compute."""

import json

import numpy as np
import pytest
import torch

from scripts import benchmark
from scripts.benchmarks import common as bench_common
from scripts.benchmarks import step as bench_step
from scripts.benchmarks.step import OURS, RECIPES, make_batch, make_model, make_step

SHAPE = {"img_size": 16, "patch_size": 8, "in_chans": 2, "channel_groups": [[0], [1]]}


def run(capsys, *arguments):
    assert benchmark.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_heads(capsys):
    rows = run(capsys, "heads", "--models", "tiny", "--layers", "2", "--input_size", "32")["rows"]
    assert [row["groups"] for row in rows] == [1, 2] and all(row["subpixel"] < row["shared"] for row in rows)


def test_step(capsys):
    found = run(capsys, *"step --input_size 16 --batch_size 1 --repeats 1 --warmup 0 --matmul_edge 64".split())
    assert [row["recipe"] for row in found["rows"]] == ["ours", "published"]
    assert found["machine"]["torch"] == torch.__version__ and found["arguments"]["batch_size"] == 1
    row = found["rows"][0]
    assert row["tiles_per_s"] == pytest.approx(1 / row["step_s"])
    assert row["times_published"] == pytest.approx(found["rows"][1]["step_s"] / row["step_s"])


def test_use_of_a_device():
    assert bench_step.covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4 and bench_step.covered([]) == 0
    x = torch.ones(8)
    found = bench_step.device_use(lambda: x + 1, torch.device("cpu"), step_s=1.0)
    assert found["launches"] >= 1 and 0 < found["device_busy"] < 1


def test_stems_side_by_side(capsys):
    recipes = ["ours", "base_stem", "finetune", "finetune_base_stem"]
    shape = "step --input_size 16 --batch_size 1 --repeats 1 --warmup 0 --matmul_edge 64 --layers 3 --recipes"
    rows = run(capsys, *shape.split(), *recipes)["rows"]
    assert [row["recipe"] for row in rows] == recipes
    flops = {row["recipe"]: row["gflop"] for row in rows}
    assert flops["ours"] > flops["base_stem"] and flops["finetune"] > flops["finetune_base_stem"]


def test_numerics(capsys):
    rows = run(capsys, *"numerics --input_size 16 --batch_size 2 --steps 2".split())["rows"]
    assert {row["recipe"] for row in rows} == {*RECIPES, "checkpointing", "bf16"}
    by_recipe = {row["recipe"]: row["largest_difference"] for row in rows}
    assert 0 < by_recipe.pop("bf16") < 0.02
    assert max(by_recipe.values()) < 1e-5  # the order of float32 sums


def test_loader(capsys):
    arguments = "loader --size 256 --input_size 16 --tiles 8 --batch_size 4 --workers 1 --repeats 1"
    found = run(capsys, *arguments.split())
    ways = {row["way"]: row for row in found["rows"]}
    assert len(ways) == 7 and all(row["tiles_per_s"] > 0 for row in ways.values())
    there = run(capsys, *arguments.split(), "--device", "cpu")["rows"][len(ways) :]
    assert [row["way"] for row in there] == ["on cpu, --cache device", "on cpu, native pixels, 1 threads"]
    assert found["facts"]["pooled_mib"] > 0 and found["facts"]["decoding"]["of_bare"] > 0


def test_a_step_in_every_way_and_its_kernels(capsys):
    """What is published is not computed in other ways. Compiling takes long: the rehearsal of the GPU check does it."""
    flags = "step --input_size 16 --batch_size 1 --repeats 2 --warmup 0 --matmul_edge 64 --profile --ways eager graphs"
    rows = run(capsys, *flags.split())["rows"]
    assert [(row["recipe"], row["way"]) for row in rows] == [
        ("ours", "eager"),
        ("ours", "graphs"),
        ("published", "eager"),
    ]
    for row in rows:
        assert row["launches"] > 0 and row["device_busy"] > 0 and 0 < row["of_matmul"] and row["times_published"] > 0
    assert rows[1]["times_eager"] == pytest.approx(rows[0]["step_s"] / rows[1]["step_s"])


def test_scale(capsys):
    rows = run(capsys, *"scale --sizes 1024 --repeats 1".split())["rows"]
    assert [row["size"] for row in rows] == [1024] and all(row["peak_mib"] > 0 for row in rows)


def test_inference(capsys):
    arguments = "inference --size 256 --input_size 16 --batch_size 4 --repeats 1"
    (row,) = run(capsys, *arguments.split())["rows"]
    assert row["tiles"] == 49  # 64 x 64 base pixels, tiles of 16 every 8
    assert row["of_bare"] == pytest.approx(row["map_tiles_per_s"] / row["bare_tiles_per_s"])


def test_refused_with_status_2(capsys):
    assert benchmark.main(["heads", "--models", "huge"]) == 2
    assert "expected one of tiny, small, base, large" in capsys.readouterr().err


def test_tables_for_people(capsys):
    assert benchmark.main("heads --models tiny --layers 2 --input_size 32".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("command heads") and lines[1].split() == [
        "model",
        "layers",
        "groups",
        "subpixel",
        "shared",
    ]
    assert len(lines) == 4
    assert bench_common.table([{"a": None, "b": 123456.0}]).splitlines()[1].split() == ["-", "123456"]
    assert bench_common.table([]) == ""


@pytest.mark.parametrize("name", ["published", "no_fused_attention", "no_fused_adamw", "shared_no_fused_norms"])
def test_recipes_compute_the_same_numbers(name):
    recipe = RECIPES[name]
    losses = []
    for each in (recipe, bench_step.replace(OURS, stem=recipe.stem, heads=recipe.heads)):
        torch.manual_seed(0)
        model = make_model("tiny", each, **SHAPE)
        step = make_step(model, each, batches=[make_batch(model, batch_size=2, device=torch.device("cpu"))], amp="off")
        losses.append([float(step()) for _ in range(3)])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0][0] != losses[0][2]


def test_published_attention_and_norms_are_written_out():
    model = make_model("tiny", RECIPES["published"], **SHAPE)
    bench_step.total_loss(model, make_batch(model, batch_size=1, device=torch.device("cpu")), finetunes=False)
    assert not any(block.attn.fused_attn for block in [*model.blocks, *model.decoder_blocks])
    norms = [type(module).__name__ for module in model.modules() if "Norm2d" in type(module).__name__]
    assert norms and set(norms) == {"WrittenOutNorm2d"}
    x = torch.randn(2, 8, 4, 4)
    norm = make_model("tiny", RECIPES["shared_heads"], **SHAPE).proj_up_norm
    torch.testing.assert_close(bench_step.WrittenOutNorm2d(norm)(x), norm(x))


@pytest.mark.gpu
def test_ours_is_several_times_as_fast_as_the_published_recipe_on_a_gpu(capsys):
    command = "step --device cuda --models tiny base --batch_size 32 --repeats 10 --warmup 5 --amp fp16"
    rows = {(row["model"], row["recipe"]): row for row in run(capsys, *command.split())["rows"]}
    assert rows["tiny", "ours"]["times_published"] > 1 and rows["base", "ours"]["times_published"] > 1


def test_memory_is_predicted_and_measured(capsys):
    flags = "memory --models tiny=1 --layers 2 --input_size 16 --checkpointing no".split()
    (row,) = run(capsys, *flags)["rows"]
    assert row["model"] == "tiny" and row["batch"] == 1
    assert row["ratio"] == pytest.approx(row["predicted_mib"] / row["measured_mib"]) == pytest.approx(1, abs=0.15)
    assert row["predicted_mib"] > row["base_mib"] and row["tensors_mib"] > 0
    (row,) = run(capsys, *flags, "--device", "cuda", "--amp", "fp16", "--predict_only")["rows"]
    assert "measured_mib" not in row and row["tensors_mib"] > 0


def test_scenes(capsys):
    """Reduced decoding differs little, and refuses what full decoding does."""
    rows = run(capsys, *"scenes --jpeg 600 --chip 20 --sizes 150 --repeats 1".split())["rows"]
    by_way = {(row["file"], row["way"]): row for row in rows}
    full, reduced = by_way["image.jpg", "full"], by_way["image.jpg", "reduced (used)"]
    assert full["rms_difference"] == 0 < reduced["rms_difference"] < 0.05
    assert full["damaged_refused"] == reduced["damaged_refused"] and full["damaged_refused"].startswith("8 of 8 cut")
    assert by_way["chip.tif", "full (used)"]["ms"] > 0
