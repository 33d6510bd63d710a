"""Whole runs on a GPU: resumed, over several cards, maps, memory; the same bodies run on the CPU."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed
from torch.distributed.tensor import DTensor

from scripts.benchmarks import memory as bench_memory
from scripts.benchmarks.step import OURS, make_batch, make_model, total_loss
from tests import small_maps, surveys
from tests.test_gpu_lane import DEVICES
from tests.test_gpu_lane import SHAPE as STEP_SHAPE
from tests.test_inference import KINDS, make_checkpoint, pixels_of
from tests.test_resume import assert_same_end, stop_at
from util.hardware.device import memory_limit_bytes, used_memory_bytes
from util.processes import fsdp
from util.processes.distributed import Ranks
from util.training import batch_size, memory
from util.training.engine import Updater, make_adamw

RESUMED = 1e-3
"""Relative, of any loss: sums of a GPU are not repeated bit for bit; how far they part is a guess yet to be tried."""
MAPS = {"cpu": 1e-4, "cuda": 1e-3}
"""Of the spread of a map, in float32; that of a GPU is a guess yet to be tried."""
WAITING = {"cpu": 0.5, "cuda": 0.02}
"""Largest share of the time that a run may wait for data."""
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
        assert small_maps.infer([*flags, "--no_progress", "--block_size", "24", *more]) == 0
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


@pytest.mark.slow
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


@contextmanager
def room_left(device, room, monkeypatch):
    """A context in which a process can take only `room` bytes more: a fraction of a card, or less of the host."""
    if device.type == "cpu":
        limit = used_memory_bytes(device) + room
        monkeypatch.setattr(batch_size, "memory_for_training", lambda *_: limit)
        yield
        return
    torch.cuda.empty_cache()
    taken = torch.cuda.memory_reserved(device) + room
    torch.cuda.set_per_process_memory_fraction(taken / torch.cuda.mem_get_info(device)[1], device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_batch_size_auto_against_a_fraction_of_the_memory(device, monkeypatch):
    """200 MiB: the largest batch that does not run out of memory, which an update then fits."""
    there = torch.device(device)
    torch.zeros(1, device=there)
    torch.manual_seed(0)
    case = CASE | SHAPE
    model = bench_memory.make_model(case).to(there).train()
    step = bench_memory.make_step(case | {"amp": "off"}, model)
    with room_left(there, 200 << 20, monkeypatch):
        trials = memory.memory_trials(
            step, model, device=there, accumulates=False, shares_gradients=False, batches_ahead=0
        )
        found = batch_size.choose_batch_size(
            "auto", accum_iter=1, effective_batch=8192, ranks=Ranks(), device=there, trials=trials
        )
        assert 1 <= found.batch_size < 8192 and found.batch_size * found.accum_iter == 8192
        updater = step.updater(model, device)
        loss, _ = step.loss(model, step.make_batch(found.batch_size, there))
        updater.backward(loss)
        assert torch.isfinite(updater.step(1e-3))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cache", ["none", "device"])
def test_the_device_is_not_kept_waiting_for_data(survey, tmp_path, device, cache):
    """A base model and tiles of 16 pixels on a GPU: even then reading must keep up. The first epoch warms up."""
    flags = f"--device {device} --cache {cache} --num_workers 4 --batch_size 32 --epochs 3 --log_every 5".split()
    flags += ["--tiles_per_epoch", "320", "--model", "base", "--amp", "auto"] if device == "cuda" else []
    assert surveys.train(survey, tmp_path, *flags) == 0
    shares = [line["wait_share"] for line in surveys.log(tmp_path) if line["epoch"] > 1]
    assert len(shares) >= 2 and float(np.median(shares)) < WAITING[device]


@pytest.mark.parametrize("device", DEVICES)
def test_weights_split_over_the_one_process_of_a_card(device):
    """--fsdp refuses a single process, where it saves nothing; the code that it uses runs on one card all the same."""
    there = torch.device(device)

    def losses(sharded):
        torch.manual_seed(0)
        model = make_model("tiny", OURS, **STEP_SHAPE).to(there)
        if sharded:
            model = fsdp.shard(model, [*model.blocks, *model.decoder_blocks], there)
        updater = Updater(
            model,
            make_adamw([{"params": [p for p in model.parameters() if p.requires_grad]}], lr=1e-3),
            amp_dtype=None,
            scaler=torch.amp.GradScaler(device, enabled=False),
            device_type=device,
            clip_grad=1.0,
        )
        batch, found = make_batch(model, batch_size=2, device=there), []
        for _ in range(5):
            loss = total_loss(model, batch, finetunes=False)
            updater.backward(loss)
            found += [loss.detach(), updater.step(1e-3)]
        assert all(isinstance(parameter, DTensor) == sharded for parameter in model.parameters())
        return torch.stack(found).cpu(), fsdp.whole_states(model, updater.optimizer)

    expected, states = losses(False)
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        found, split = losses(True)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(split, states, strict=True):
        assert ours.keys() == theirs.keys()


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
