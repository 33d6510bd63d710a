"""Updates as CUDA graphs, recorded and replayed by a stand-in on the CPU; on a GPU the same bodies use real graphs."""

import math
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from scripts.benchmarks.recorded_graph import RecordedGraph, recorded_graphs
from tests import surveys
from tests.test_gpu_lane import DEVICES
from tests.test_resume import stop_at
from util.processes.program import RunFailed
from util.training import cuda_graphs
from util.training.cuda_graphs import TIMED, WARM_UP, GraphedUpdater
from util.training.engine import Updater, make_adamw

ON = ["--cuda_graphs", "on"]
FULL, LAST = 4, 2
"""Samples of a micro-batch, and of the last one of an epoch."""


@contextmanager
def graphs_of(device):
    """Real graphs on a GPU, else the stand-in."""
    with nullcontext() if device == "cuda" else recorded_graphs() as made:
        yield made


def make_updater(device, choice="off", *, scaler=False, ema_decay=0.0):
    torch.manual_seed(0)
    first, last = nn.Linear(3, 8), nn.Linear(8, 1)
    model = nn.Sequential(first, nn.Tanh(), last, nn.Linear(1, 1)).to(device)
    groups = [
        {"params": list(first.parameters()), "lr_scale": 0.5},
        {"params": [*last.parameters(), *model[3].parameters()], "weight_decay": 0.1},
    ]
    make = Updater if choice == "off" else partial(GraphedUpdater, choice=choice)
    return make(
        model,
        make_adamw(groups, lr=0.1),
        amp_dtype=None,
        scaler=torch.amp.GradScaler(device, enabled=scaler, init_scale=1024.0, growth_interval=4),
        device_type=device,
        clip_grad=0.5,
        ema_decay=ema_decay,
    )


def train(updater, device, updates, *, spoiled=(), rows=(FULL, FULL)):
    """Losses and gradient norms of updates of several micro-batches at falling rates; the last weights follow."""

    def backward(inputs, weight):
        loss = (updater.model[:3](inputs["x"]) - inputs["y"][0]).square().mean()  # model[3] gets no gradient
        updater.backward(loss * weight)
        return loss.detach()

    generator, found = torch.Generator().manual_seed(1), []
    for number in range(updates):
        for part, count in enumerate(rows):
            x = torch.randn(count, 3, generator=generator)
            x[0, 0] = math.inf if number in spoiled and part == 0 else x[0, 0]
            inputs = {"x": x.to(device), "y": [x.sum(dim=1, keepdim=True).to(device)]}
            found.append(updater.accumulate(backward, inputs, count / sum(rows)).clone())
        found.append(updater.step(0.1 / (1 + number)).clone())
    return torch.stack(found).cpu(), torch.cat([p.detach().flatten().cpu() for p in updater.model.parameters()])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scaler", [False, True], ids=["plain", "scaler"])
@pytest.mark.parametrize("rows", [(FULL, FULL), (FULL,), (FULL, LAST)], ids=str)
def test_replayed_updates_are_those_without_graphs(device, scaler, rows):
    """Rates, batches and weights differ from update to update; rounding alone differs: a rate is float32 in a graph.

    Update 5 overflows: nothing changes in it. One layer gets no gradient: it must not decay either.
    """
    expected, weights = train(make_updater(device, scaler=scaler), device, 12, spoiled=[5], rows=rows)
    updater = make_updater(device, "on", scaler=scaler)
    with graphs_of(device) as made:
        found, ours = train(updater, device, 12, spoiled=[5], rows=rows)
    assert updater.uses_graphs
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(ours, weights, rtol=1e-4, atol=1e-6)
    if made is not None:
        full = sum(count == FULL for count in rows)
        assert [graph.replays for graph in made] == [(12 - WARM_UP) * full, 12 - WARM_UP]


@pytest.mark.parametrize("device", DEVICES)
def test_weights_are_averaged_in_the_graph(device):
    """Updates 1 and 5 are skipped, before and after recording: 10 of 12 are averaged."""
    plain, graphed = make_updater(device, ema_decay=0.8), make_updater(device, "on", ema_decay=0.8)
    train(plain, device, 12, spoiled=[1, 5])
    with graphs_of(device):
        train(graphed, device, 12, spoiled=[1, 5])
    assert graphed.uses_graphs and graphed.average.updates == plain.average.updates == 10
    with plain.averaged(), graphed.averaged():
        for ours, theirs in zip(graphed.model.parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_skipped_updates_are_counted(device, tmp_path):
    updater = make_updater(device, "on", scaler=True)
    with graphs_of(device):
        train(updater, device, 10, spoiled=[1, 5, 6, 9])
    assert updater.uses_graphs
    assert updater.require_updates(tmp_path) == {"skipped": 4, "loss_scale": 64.0}


def test_the_optimisers_state_has_the_form_of_a_run_without():
    """So that a run goes on from a checkpoint of either kind."""
    plain, graphed = make_updater("cpu"), make_updater("cpu", "on")
    train(plain, "cpu", 8)
    with recorded_graphs():
        train(graphed, "cpu", 8)
    ours, theirs = graphed.optimizer.state_dict(), plain.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]  # plain numbers, the last rate among them
    for number, entry in theirs["state"].items():
        for key, value in entry.items():
            torch.testing.assert_close(ours["state"][number][key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("graphs_ms", "faster"), [(1.0, True), (5.0, False)])
def test_auto_keeps_the_faster_way(graphs_ms, faster, monkeypatch, caplog):
    """By a clock that goes 1.5 ms for each part of an update without graphs: 3 parts."""
    caplog.set_level("INFO")
    updater, now = make_updater("cpu", "auto"), [0.0]

    def clock():
        now[0] += 1e-3 * (graphs_ms if updater.uses_graphs else 1.5)
        return now[0]

    monkeypatch.setattr(cuda_graphs.time, "perf_counter", clock)
    count = WARM_UP + 2 * TIMED
    with recorded_graphs() as made:
        found, ours = train(updater, "cpu", count + 4)
    expected, weights = train(make_updater("cpu"), "cpu", count + 4)
    assert updater.uses_graphs == faster
    assert made[1].replays == TIMED + 4 * faster
    ratio = 1.5 / graphs_ms
    assert f"takes 4.5 ms kernel by kernel and {3 * graphs_ms:.3g} ms as CUDA graphs, {ratio:.2f} times" in caplog.text
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours, weights, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_recorded_ends_the_run(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing")

    with recorded_graphs(), pytest.raises(RunFailed, match=r"\(operation not permitted.*use --cuda_graphs off"):
        monkeypatch.setattr(torch.cuda, "graph", refuse)
        train(make_updater("cpu", "on"), "cpu", WARM_UP + 1)


def test_auto_goes_on_without_what_cannot_be_recorded(monkeypatch, caplog):
    def refuse(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    updates = WARM_UP + TIMED + 3
    expected = train(make_updater("cpu"), "cpu", updates)
    with recorded_graphs():
        monkeypatch.setattr(torch.cuda, "graph", refuse)
        updater = make_updater("cpu", "auto")
        found = train(updater, "cpu", updates)
        with pytest.raises(torch.OutOfMemoryError):  # its remedy is that of all programs
            train(make_updater("cpu", "on"), "cpu", WARM_UP + 1)
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)
    assert not updater.uses_graphs and "cannot be recorded (CUDA out of memory); going on without" in caplog.text
    assert not any(group["capturable"] for group in updater.optimizer.param_groups)


# Whole runs


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture
def recorded(monkeypatch):
    """The stand-in, and a program that takes the CPU for a GPU; the graphs that were made."""
    monkeypatch.setattr(cuda_graphs, "why_not", lambda **_: "")
    with recorded_graphs() as made:
        yield made


@pytest.mark.parametrize(
    "flags",
    [
        [],
        pytest.param("--amp fp16 --batch_size 4 --accum_iter 2 --layer_dropout 0.5".split(), marks=pytest.mark.slow),
    ],
    ids=["plain", "accumulated"],
)
def test_a_run_with_graphs_trains_the_same(survey, tmp_path, recorded, flags):
    """Resumed from either kind of checkpoint in mid-epoch, too. The last update of an epoch has a single tile.

    To the rounding of rates, 1e-4 of the loss; fp16 rounds more (1e-4 was seen).
    """
    assert surveys.train(survey, tmp_path / "plain", *flags) == 0
    assert not recorded
    assert surveys.train(survey, tmp_path / "graphs", *flags, *ON) == 0
    per_update = 2 if flags else 1
    assert [graph.replays for graph in recorded] == [(6 - WARM_UP + 6) * per_update, 14 - WARM_UP]
    for name, before, after in (("to", [], ON), ("from", ON, [])):
        with stop_at(5):
            assert surveys.train(survey, tmp_path / name, *flags, *before) == 0
        assert surveys.checkpoint(tmp_path / name)["step"] == 6
        assert surveys.train(survey, tmp_path / name, *flags, *after, "--resume", "auto") == 0
    assert len(recorded) == 6
    for name in ("graphs", "to", "from"):
        assert surveys.largest_loss_difference(tmp_path / "plain", tmp_path / name) < (1e-3 if flags else 1e-4)
    ours, theirs = surveys.checkpoint(tmp_path / "graphs"), surveys.checkpoint(tmp_path / "plain")
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
    assert ours["scaler"] == theirs["scaler"]


def test_without_a_gpu_it_is_refused(survey, tmp_path, capsys):
    assert surveys.train(survey, tmp_path / "out", *ON) == 2
    message = capsys.readouterr().err
    assert (
        "--cuda_graphs on: CUDA graphs need a CUDA GPU, but this run computes on cpu; use --cuda_graphs off" in message
    )
    assert not (tmp_path / "out").exists()


def test_auto_without_a_gpu_is_off(survey, tmp_path):
    assert surveys.train(survey, tmp_path, "--cuda_graphs", "auto", "--epochs", "1") == 0


def test_what_is_not_supported():
    gpu = torch.device("cuda")
    assert "with 8 processes" in cuda_graphs.why_not(device=gpu, processes=8, checkpointing=False)
    assert "with --grad_checkpointing" in cuda_graphs.why_not(device=gpu, processes=1, checkpointing=True)
    assert cuda_graphs.why_not(device=gpu, processes=1, checkpointing=False) == ""


# The stand-in


def test_recorded_work_is_not_done_and_numbers_of_python_are_burnt_in():
    x, rate = torch.ones(2), 2.0
    with recorded_graphs():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=None, capture_error_mode="thread_local"):
            x += 1
            y = (x * rate)[:1]
    assert isinstance(graph, RecordedGraph) and x.tolist() == [1, 1]
    rate = 5.0
    for expected in (2.0, 3.0):
        graph.replay()
        assert x.tolist() == [expected] * 2 and y.tolist() == [2 * expected]
    x.fill_(10.0)
    graph.replay()
    assert y.tolist() == [22.0]
