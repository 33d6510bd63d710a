"""Weights split over two processes: the numbers and the checkpoints of an unsharded run."""

import signal
from functools import partial

import pytest
import torch
from torch import nn

from tests import small_main, surveys
from tests.test_distributed import CPU, run_ranks
from tests.test_multirank import PAIR, at_step, messages, signal_at_step_9
from util.processes import distributed as dist
from util.processes import fsdp
from util.training.engine import Updater, make_adamw

FSDP = [*PAIR, "--fsdp"]

averaging = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8),
    reason="torch 2.7 sums over gloo where it should average: refused, see the last test",
)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def pair(survey, tmp_path_factory):
    """The output of a run of two processes, each with all weights."""
    output = tmp_path_factory.mktemp("pair") / "output"
    run(survey, output, *PAIR)
    return output


def run(survey, output, *flags, **rest):
    """Trains with two processes, which must end well."""
    results = surveys.run_ranks(surveys.arguments(survey, output, *flags), output.parent, **rest)
    assert [status for status, _ in results] == [0, 0], results


def assert_agree(first, second) -> None:
    """Losses to 1e-6 of their value, weights as of runs that differ in the order of sums, and the same scores."""
    assert surveys.largest_loss_difference(first, second) < 1e-6
    ours, theirs = surveys.checkpoint(first), surveys.checkpoint(second)
    surveys.assert_weights_agree(ours["model"], theirs["model"])
    assert ours["optimizer"]["state"].keys() == theirs["optimizer"]["state"].keys()
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
    for one, two in zip(surveys.log(first), surveys.log(second), strict=True):
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    for one, two in zip(surveys.log(first, "epoch"), surveys.log(second, "epoch"), strict=True):
        assert two.get("val_loss", 0) == pytest.approx(one.get("val_loss", 0), rel=1e-6)


@averaging
def test_the_same_numbers(survey, tmp_path):
    """Accumulated, with blocks computed again; only one process has a tile to score, only the first draws a picture."""
    flags = [*surveys.HELD_OUT, "--batch_size", "2", "--accum_iter", "2"]
    run(survey, tmp_path / "pair", *flags)
    more = ["--fsdp", "--grad_checkpointing"]
    run(survey, tmp_path / "shared", *flags, *more, program=partial(small_main.main, pictures=True))
    assert_agree(tmp_path / "pair", tmp_path / "shared")
    assert (tmp_path / "shared/reconstruction-2.png").exists()


@averaging
@pytest.mark.parametrize(("before", "after"), [(FSDP, PAIR), (PAIR, FSDP)])
def test_checkpoints_are_those_of_a_run_without(survey, pair, tmp_path, before, after):
    """Begun with weights shared out and continued without, and the other way round."""
    run(survey, tmp_path / "output", *before, before=(signal_at_step_9, None))
    state = surveys.checkpoint(tmp_path / "output")
    assert state["step"] == 10
    theirs = surveys.checkpoint(pair)
    assert {k: v.shape for k, v in state["model"].items()} == {k: v.shape for k, v in theirs["model"].items()}
    for index, entry in theirs["optimizer"]["state"].items():
        assert {k: v.shape for k, v in state["optimizer"]["state"][index].items()} == {
            k: v.shape for k, v in entry.items()
        }
    run(survey, tmp_path / "output", *after, "--resume", "auto")
    assert_agree(pair, tmp_path / "output")


def signal_at_step_5() -> None:
    """Sends itself a SIGTERM."""
    at_step(5, lambda: signal.raise_signal(signal.SIGTERM))


@averaging
def test_averaged_weights(survey, tmp_path):
    """Each process averages its part; scores, and both kinds of weights in the checkpoint, are those without."""
    flags = [*PAIR, *surveys.HELD_OUT, "--ema_decay", "0.9"]
    run(survey, tmp_path / "pair", *flags)
    run(survey, tmp_path / "shared", *flags, "--fsdp", before=(signal_at_step_5, None))
    run(survey, tmp_path / "shared", *flags, "--fsdp", "--resume", "auto")
    assert_agree(tmp_path / "pair", tmp_path / "shared")
    ours, theirs = (surveys.checkpoint(tmp_path / name) for name in ("shared", "pair"))
    surveys.assert_weights_agree(ours["raw_model"], theirs["raw_model"])
    assert ours["averaged_updates"] == theirs["averaged_updates"] == ours["step"]


@averaging
def test_half_precision_with_a_scaler(survey, tmp_path):
    for name, flags in (("pair", PAIR), ("shared", FSDP)):
        run(survey, tmp_path / name, *flags, "--amp", "fp16")
    scales = [surveys.checkpoint(tmp_path / name)["scaler"] for name in ("pair", "shared")]
    assert scales[0] == scales[1]
    assert surveys.largest_loss_difference(tmp_path / "pair", tmp_path / "shared") < 1e-3


def _meet_infinity(ranks: dist.Ranks) -> list[bool]:
    """Whether the weights stay as they are, with a scaler and without, when a part of one process is infinite."""
    kept = []
    for enabled in (False, True):
        torch.manual_seed(0)
        network = fsdp.shard(nn.Linear(3, 4, bias=False), [], CPU)
        updater = Updater(
            network,
            make_adamw([{"params": list(network.parameters())}], lr=0.1),
            amp_dtype=None,
            scaler=torch.amp.GradScaler("cpu", enabled=enabled),
            device_type="cpu",
            clip_grad=1.0,
        )
        before = fsdp.whole(network.weight).clone()
        factors = torch.tensor([1.0, 1.0, 1.0, torch.inf])  # the last row is held by the second process
        updater.backward((network(torch.ones(1, 3)) * factors).sum())
        norm = updater.step(0.1)
        kept.append(bool((fsdp.whole(network.weight) == before).all()) and not torch.isfinite(norm))
    return kept


def test_an_infinite_gradient_leaves_all_weights_alone(tmp_path):
    assert run_ranks(_meet_infinity, tmp_path) == [[True, True], [True, True]]


def test_one_process_is_refused(survey, tmp_path, capsys):
    assert surveys.train(survey, tmp_path / "output", "--fsdp") == 2
    assert "--fsdp splits the weights over processes, but there is only one" in capsys.readouterr().err


def test_a_compiled_model_is_refused(survey, tmp_path):
    arguments = surveys.arguments(survey, tmp_path / "output", *FSDP, "--compile")
    results = surveys.run_ranks(arguments, tmp_path, limit_s=60)
    assert [status for status, _ in results] == [2, 2], results
    assert "--fsdp cannot be combined with --compile" in messages(results)[0]


def add_up() -> None:
    """Adds up where a mean is asked for, as torch 2.7 does over gloo."""
    reduce = fsdp.reduce_scatter_tensor
    fsdp.reduce_scatter_tensor = lambda out, values, op: reduce(out, values)  # type: ignore[assignment]


def test_sums_instead_of_means_are_refused(survey, tmp_path):
    arguments = surveys.arguments(survey, tmp_path / "output", *FSDP)
    results = surveys.run_ranks(arguments, tmp_path, limit_s=60, before=(add_up, add_up))
    assert [status for status, _ in results] == [2, 2], results
    (message,) = messages(results)
    assert "sums gradients on cpu where it should average them; use a newer torch or GPUs" in message
