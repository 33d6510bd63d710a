"""Two real processes over gloo on the loopback: they agree, add up, share gradients, and notice each other's
death.
"""

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from util.processes import distributed as dist

CPU = torch.device("cpu")
LIMIT_S = 60.0


def _one_rank(
    function: Callable, rank: int, world_size: int, folder: Path, connection: Any, timeout_s: float = 30
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    url = f"file://{folder}/meet"
    try:
        ranks = dist.find_ranks(world_size=world_size, local_rank=rank, dist_url=url)
        dist.start(ranks, CPU, dist_url=url, timeout_s=timeout_s)
        result = function(ranks)
        dist.shutdown()
        connection.send(result)
    except Exception:
        connection.send(traceback.format_exc())


def run_ranks(
    function: Callable[[dist.Ranks], Any], folder: Path, world_size: int = 2, timeout_s: float = 30
) -> list[Any]:
    """Returns what `function(ranks)` returned in each process; "died" for one that ended without a result."""
    context = multiprocessing.get_context("forkserver")
    processes, connections = [], []
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_one_rank, args=(function, rank, world_size, folder, sender, timeout_s), daemon=True
        )
        process.start()
        sender.close()
        processes.append(process)
        connections.append(receiver)
    results = []
    deadline = time.monotonic() + LIMIT_S
    for receiver in connections:
        try:
            assert receiver.poll(max(deadline - time.monotonic(), 0)), "a process hangs"
            results.append(receiver.recv())
        except EOFError:
            results.append("died")
    for process in processes:
        process.join(10)
        process.kill()
    return results


def _use_everything(ranks: dist.Ranks) -> dict[str, Any]:
    return {
        "ranks": ranks,
        "each": dist.any_rank_each(ranks.rank == 1, False, ranks.rank == 0),
        "any": [dist.any_rank(ranks.rank == 1), dist.any_rank(False), dist.any_rank(True)],
        "gathered": dist.gather_objects({"rank": ranks.rank}),
        "broadcast": dist.broadcast_object(f"from {ranks.rank}"),
        "on_main": dist.on_main_rank(lambda: f"computed by {ranks.rank}"),
        "on_each_machine": dist.on_each_machine(lambda: ranks.rank, ranks),
        "sum": dist.sum_over_ranks(torch.tensor([1, 10]) * (ranks.rank + 1)).tolist(),
        "mean": dist.mean_over_ranks(torch.tensor([1.0, 10.0]) * (ranks.rank + 1)).tolist(),
    }


def test_two_processes_agree(tmp_path):
    first, second = run_ranks(_use_everything, tmp_path)
    assert first.pop("ranks") == dist.Ranks(0, 2, 0, 2)
    assert second.pop("ranks") == dist.Ranks(1, 2, 1, 2)
    assert (first.pop("on_each_machine"), second.pop("on_each_machine")) == (0, 1)
    assert first == second
    assert first == {
        "each": (True, False, True),
        "any": [True, False, True],
        "gathered": [{"rank": 0}, {"rank": 1}],
        "broadcast": "from 0",
        "on_main": "computed by 0",
        "sum": [3, 30],
        "mean": [1.5, 15.0],
    }


def test_a_single_process_needs_no_group():
    values = torch.tensor([1.0, 2.0])
    assert dist.find_ranks() == dist.Ranks(0, 1, 0, 1)
    dist.start(dist.Ranks(), CPU)
    dist.barrier()
    assert dist.any_rank(True) is True and dist.any_rank(False) is False
    assert dist.any_rank_each(False, True) == (False, True)
    assert dist.gather_objects("a") == ["a"] and dist.broadcast_object("a") == "a" and dist.on_main_rank(lambda: 3) == 3
    assert dist.sum_over_ranks(values) is values and dist.mean_over_ranks(values) is values
    model = nn.Linear(1, 1)
    assert dist.wrap(model, CPU) is model and dist.unwrap(model) is model
    with dist.gradients_shared(model, False):
        model(torch.ones(1, 1)).backward()
    dist.shutdown()


def _accumulate(ranks: dist.Ranks) -> dict[str, Any]:
    torch.manual_seed(ranks.rank)  # unequal at first: wrapping makes them equal
    model = nn.Linear(3, 1, bias=False)
    wrapped = dist.wrap(model, CPU)
    data = torch.arange(12.0).reshape(2, 2, 3)[ranks.rank]  # two micro-batches of one sample
    between = []
    for index, sample in enumerate(data):
        with dist.gradients_shared(wrapped, index == 1):
            wrapped(sample[None]).sum().backward()
        between.append(model.weight.grad.tolist())
    return {
        "unwrapped": dist.unwrap(wrapped) is model,
        "weights": model.weight.tolist(),
        "between": between[0],
        "gradient": between[1],
    }


def test_gradients_are_shared_only_in_the_last_micro_batch(tmp_path):
    first, second = run_ranks(_accumulate, tmp_path)
    assert first["unwrapped"] and second["unwrapped"]
    assert first["weights"] == second["weights"]
    # The gradient of sum(w x) is x: before sharing, each process has that of its own first sample.
    assert first["between"] == [[0, 1, 2]]
    assert second["between"] == [[6, 7, 8]]
    # After: the mean over processes of the sum over micro-batches, ((0+3) + (6+9)) / 2 = 9.
    assert first["gradient"] == second["gradient"] == [[9, 11, 13]]


def _make_once(ranks: dist.Ranks, *, folder: Path, machines: int) -> str:
    """Makes a file where none is, as the sample survey is made: two processes, on one machine or on two."""
    path = folder / (str(ranks.rank) if machines == 2 else "both")

    def make() -> str:
        if not path.exists():
            path.write_text(f"by {ranks.rank}")
        return path.read_text()

    return dist.on_each_machine(make, dist.Ranks(ranks.rank, 2, ranks.rank // machines, 2 // machines))


@pytest.mark.parametrize(("machines", "made"), [(1, ["by 0", "by 0"]), (2, ["by 0", "by 1"])])
def test_made_once_a_machine(tmp_path, machines, made):
    assert run_ranks(partial(_make_once, folder=tmp_path, machines=machines), tmp_path) == made


def _fail_on_main(ranks: dist.Ranks) -> str:
    class Peculiar(ValueError):  # defined here, so the other process could not unpickle it
        pass

    def refuse() -> None:
        raise Peculiar("layer 'gravity' is constant")

    try:
        dist.on_main_rank(refuse)
    except ValueError as error:
        return f"{type(error).__name__}: {error}, {dist.any_rank(False)}"
    return "nothing raised"


def test_an_error_on_main_reaches_all_and_leaves_them_in_step(tmp_path):
    assert run_ranks(_fail_on_main, tmp_path) == [
        "Peculiar: layer 'gravity' is constant, False",
        "ValueError: layer 'gravity' is constant, False",
    ]


def _die_before_flag(ranks: dist.Ranks) -> str:
    dist.barrier()
    if ranks.rank == 1:
        os._exit(3)
    try:
        dist.any_rank(False)
    except dist.PeerLost as error:
        return str(error)
    return "noticed nothing"


def test_a_dead_process_is_noticed_and_named(tmp_path):
    begin = time.monotonic()
    survivor, dead = run_ranks(_die_before_flag, tmp_path)
    assert dead == "died"
    assert survivor.startswith("process 0 of 2 lost the others: one of them died or stopped answering (")
    assert "--resume auto" in survivor
    assert time.monotonic() - begin < 25  # at once, not after the time limit


def _die_before_backward(ranks: dist.Ranks) -> str:
    model = dist.wrap(nn.Linear(1, 1), CPU)
    loss = model(torch.ones(1, 1)).sum()
    dist.barrier()
    if ranks.rank == 1:
        os._exit(3)
    try:
        with dist.peer_errors_named():
            loss.backward()
    except dist.PeerLost as error:
        return str(error)
    return "noticed nothing"


def test_a_process_that_dies_before_its_gradients_is_noticed(tmp_path):
    survivor, dead = run_ranks(_die_before_backward, tmp_path)
    assert dead == "died"
    assert "lost the others" in survivor


def _other_error(ranks: dist.Ranks) -> str:
    try:
        with dist.peer_errors_named():
            torch.ones(2, 3) @ torch.ones(2, 3)
    except RuntimeError as error:
        return type(error).__name__
    return "nothing raised"


def test_other_errors_pass_unchanged(tmp_path):
    assert run_ranks(_other_error, tmp_path) == ["RuntimeError", "RuntimeError"]


def test_a_process_that_never_comes_is_noticed(tmp_path):
    url = f"file://{tmp_path}/meet"
    ranks = dist.find_ranks(world_size=2, local_rank=0, dist_url=url)
    with pytest.raises(dist.PeerLost, match=r"process 0 of 2 could not join the others at file:.* within 1 s"):
        dist.start(ranks, CPU, dist_url=url, timeout_s=1)
    dist.shutdown()


def test_messages_are_shortened_to_where_and_what():
    error = RuntimeError(
        "NCCL error in: ProcessGroupNCCL.cpp:77, invalid usage\n\nLast error:\nDuplicate GPU detected\n"
    )
    assert dist._shortly(error) == "NCCL error in: ProcessGroupNCCL.cpp:77, invalid usage; Duplicate GPU detected"
    assert dist._shortly(RuntimeError("alone")) == "alone" and dist._shortly(RuntimeError()) == "RuntimeError"


def test_two_processes_on_one_gpu_are_refused(tmp_path, monkeypatch):
    def refuse(**_):
        raise torch.distributed.DistBackendError("NCCL error\nLast error:\nDuplicate GPU detected : rank 1 and rank 0")

    monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
    with pytest.raises(
        ValueError, match="process 1 of 2 uses the same GPU as another one .*Duplicate GPU.*no more proc"
    ):
        dist.start(dist.Ranks(1, 2, 1, 2), CPU, dist_url=f"file://{tmp_path}/meet")


@pytest.mark.parametrize(("kinds", "other"), [(("cuda", "cuda"), None), (("cuda", "cpu"), 1)])
def test_processes_on_cards_and_others_without_are_refused(kinds, other):
    store = torch.distributed.HashStore()
    store.set("device/1", kinds[1])
    with pytest.raises(ValueError, match="process 0 computes on cuda, process 1 on cpu") if other else nullcontext():
        dist._require_same_kind(store, dist.Ranks(0, 2, 0, 2), torch.device(kinds[0]))


def _works_longer_than_the_start_may_take(ranks: dist.Ranks) -> list[int]:
    if ranks.rank == 1:
        time.sleep(7)
    return dist.gather_objects(ranks.rank)


def test_a_process_may_work_longer_than_the_others_may_take_to_come(tmp_path):
    assert run_ranks(_works_longer_than_the_start_may_take, tmp_path, timeout_s=5) == [[0, 1], [0, 1]]


def _started_by_torchrun(rank: int, port: int, connection: Any) -> None:
    os.environ.update(
        GLOO_SOCKET_IFNAME="lo",
        RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    ranks = dist.find_ranks()
    dist.start(ranks, CPU, timeout_s=30)
    connection.send((ranks, dist.gather_objects(ranks.rank)))
    dist.barrier()
    dist.shutdown()


def test_torchruns_environment_is_enough():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    processes = [context.Process(target=_started_by_torchrun, args=(rank, port, sender)) for rank in (0, 1)]
    for process in processes:
        process.start()
    results = []
    for _ in processes:
        assert receiver.poll(LIMIT_S), "no answer"
        results.append(receiver.recv())
    for process in processes:
        process.join(10)
        process.kill()
    assert sorted(results, key=lambda result: result[0].rank) == [
        (dist.Ranks(0, 2, 0, 2), [0, 1]),
        (dist.Ranks(1, 2, 1, 2), [0, 1]),
    ]


# Which process this is


@pytest.fixture
def no_torchrun(monkeypatch):
    """An environment without torchrun's variables."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_ranks_on_several_machines(no_torchrun):
    for name, value in dict(
        RANK=11, WORLD_SIZE=16, LOCAL_RANK=3, LOCAL_WORLD_SIZE=8, MASTER_ADDR="n0", MASTER_PORT=29500
    ).items():
        no_torchrun.setenv(name, str(value))
    ranks = dist.find_ranks()
    assert ranks == dist.Ranks(rank=11, world_size=16, local_rank=3, local_world_size=8)
    assert not ranks.is_main and dist.Ranks(0, 16, 0, 8).is_main


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"world_size": 0}, "--world_size 0: expected 1 or more"),
        (
            {"world_size": 2},
            "--world_size 2 needs --local_rank 0 to 1 in each process, got -1; simpler: torchrun",
        ),
        ({"world_size": 2, "local_rank": 2, "dist_url": "tcp://h:1"}, "got 2"),
        (
            {"world_size": 2, "local_rank": 0},
            "--dist_url env://: without torchrun it must be tcp://HOST:PORT",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(no_torchrun, flags, message):
    with pytest.raises(ValueError, match=message):
        dist.find_ranks(**flags)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "not LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start with torchrun"),
        ({"RANK": "one", "WORLD_SIZE": "1"}, "RANK='one': expected a whole number"),
        ({"RANK": "3", "WORLD_SIZE": "1"}, "RANK=3 with WORLD_SIZE=1: expected 0 to 0"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused(no_torchrun, variables, message):
    for name, value in variables.items():
        no_torchrun.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        dist.find_ranks()
