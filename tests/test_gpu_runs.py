"""Whole runs on a GPU: resumed, over several cards, maps, memory; the same bodies run on the CPU."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import main_inference
from scripts.benchmarks import memory as bench_memory
from tests import surveys
from tests.test_gpu_lane import DEVICES
from tests.test_inference import KINDS, make_checkpoint, pixels_of
from tests.test_resume import assert_same_end, stop_at
from util.hardware.device import memory_limit_bytes, used_memory_bytes
from util.training import memory

RESUMED = 1e-3
"""Relative, of any loss: sums of a GPU are not repeated bit for bit; how far they part is a guess yet to be tried."""
MAPS = {"cpu": 1e-4, "cuda": 1e-3}
"""Of the spread of a map, in float32; that of a GPU is a guess yet to be tried."""
CASE = {"model": "tiny", "layers": 2, "heads": "subpixel", "checkpointing": False, "stem": "native"}
SHAPE = {"input_size": 16, "patch_size": 8}


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.mark.parametrize("device", DEVICES)
def test_resumed_in_mid_epoch(survey, tmp_path, device):
    flags = ["--device", device]
    assert surveys.train(survey, tmp_path / "straight", *flags) == 0
    with stop_at(3):
        assert surveys.train(survey, tmp_path / "stopped", *flags) == 0
    assert surveys.checkpoint(tmp_path / "stopped")["step"] == 4
    assert surveys.train(survey, tmp_path / "stopped", *flags, "--resume", "auto") == 0
    assert surveys.checkpoint(tmp_path / "stopped")["step"] == 14
    if device == "cpu":
        assert_same_end(tmp_path / "stopped", tmp_path / "straight")
    assert surveys.largest_loss_difference(tmp_path / "straight", tmp_path / "stopped") < RESUMED


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A survey and a model of it."""
    folder = tmp_path_factory.mktemp("trained")
    data = surveys.write_survey(folder / "survey")
    return SimpleNamespace(survey=data, checkpoint=make_checkpoint(data, folder / "checkpoint-last.pth"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_those_of_the_cpu(trained, tmp_path, kind, device):
    """On the CPU, those of another batch size."""
    found = []
    for name, more in (("reference", ["--device", "cpu"]), ("there", ["--device", device, "--batch_size", "5"])):
        out = tmp_path / name
        flags = ["--checkpoint", str(trained.checkpoint), "--output", kind, "--output_dir", str(out), "--amp", "off"]
        assert main_inference.main([*flags, "--no_progress", "--block_size", "24", *more]) == 0
        found.append({path.name: pixels_of(path) for path in out.glob("*.tif") if "pca" not in path.name})
    assert found[0] and found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        tolerance = MAPS[device] * float(np.nanstd(expected))
        np.testing.assert_allclose(found[1][name], expected, rtol=1e-4, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
def test_peak_memory_of_a_gpu_is_as_predicted(checkpointing):
    """On a CPU: tests/test_benchmark.py."""
    case = CASE | {"model": "base", "input_size": 96, "patch_size": 8, "batch": 16, "checkpointing": checkpointing}
    found = bench_memory.measure(case | {"device": "cuda", "amp": "fp16"})
    assert found["predicted"] / found["peak"] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("device", DEVICES)
def test_the_largest_batch_that_fits_is_found(device):
    """Within 100 MiB more than weights, gradients and moments take."""
    there, room = torch.device(device), 100 << 20
    torch.zeros(1, device=there)
    torch.manual_seed(0)
    case = CASE | SHAPE
    model = bench_memory.make_model(case).to(there).train()
    step = bench_memory.make_step(case | {"amp": "off"}, model)
    trials = memory.memory_trials(step, model, device=there, accumulates=False, shares_gradients=False, batches_ahead=0)
    limit = used_memory_bytes(there) + 3 * sum(p.nbytes for p in model.parameters()) + room
    assert limit < memory_limit_bytes(there)
    sizes = [2**k for k in range(13)]
    found = trials.largest_fitting(sizes, limit)
    assert 8 <= found < sizes[-1]
    assert trials.peaks[found] <= limit or trials.expected(found) <= limit
    assert trials.expected(4 * found) > limit


@pytest.mark.parametrize("device", DEVICES)
def test_as_many_processes_as_cards(survey, tmp_path, device):
    """Over NCCL on GPUs, over gloo on the CPU; with weights split over them, too."""
    count = torch.cuda.device_count() if device == "cuda" else 2
    if count < 2:
        pytest.skip("a single card: one process needs no NCCL, and --fsdp refuses it")
    flags = ["--device", device, "--tiles_per_epoch", str(8 * count), "--batch_size", "2", "--epochs", "1"]
    runs = {"whole": [], "split": ["--fsdp"]} if device == "cuda" else {"whole": []}
    assert surveys.train(survey, tmp_path / "one", *flags, "--accum_iter", str(count)) == 0
    for name, more in runs.items():
        results = surveys.run_ranks(
            surveys.arguments(survey, tmp_path / name, *flags, *more), tmp_path, world_size=count
        )
        assert [status for status, _ in results] == [0] * count, results
        assert surveys.largest_loss_difference(tmp_path / "one", tmp_path / name) < 1e-3
