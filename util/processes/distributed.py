"""Several processes as one run: start, who am I, agree on a flag, add up, stop. With util/processes/fsdp.py the
only user of torch.distributed.

In a single process every function here does nothing, or returns what it was given, so callers need no special
case.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from util.hardware.device import is_out_of_memory
from util.hardware.system import disk_full_message
from util.processes.rendezvous import rendezvous_prefix

logger = logging.getLogger(__name__)

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

# Long enough for one process to write a large checkpoint or the sample survey while the others wait.
TIMEOUT_S = 1800.0
WORK_TIMEOUT_S = 86400.0
"""Likewise where each works by itself and then waits for all, as for the maps of a large survey. A process that dies is
noticed at once all the same, by its closed connection."""

_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PEER_ERROR = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|timed? ?out|socket|"
    r"unhandled system error|remote process exited|communicator was aborted",
    re.IGNORECASE,
)

# gloo group for flags and objects: host memory only, so that no GPU is waited for
_control: dist.ProcessGroup | None = None


class PeerLost(RuntimeError):
    """Another process of the run has died or stopped answering."""


@dataclass(frozen=True)
class Ranks:
    """Which process this is: number among all, number of all, and the same on this machine alone."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """True for the one process that logs and writes files."""
        return self.rank == 0


def find_ranks(*, world_size: int = 1, local_rank: int = -1, dist_url: str = "env://") -> Ranks:
    """Returns this process's place, from torchrun's environment variables or else from the flags.

    Args:
        world_size: number of processes, when not started by torchrun; all on one machine.
        local_rank: number of this process then, 0 to world_size - 1.
        dist_url: where they meet then, `tcp://HOST:PORT` or `file:///PATH`.

    Raises:
        ValueError: torchrun's variables are incomplete or not numbers; flags that contradict each other.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _ranks_of_torchrun()
    if world_size < 1:
        raise ValueError(f"--world_size {world_size}: expected 1 or more")
    if world_size == 1:
        return Ranks()
    if not 0 <= local_rank < world_size:
        raise ValueError(
            f"--world_size {world_size} needs --local_rank 0 to {world_size - 1} in each process, got "
            f"{local_rank}; simpler: torchrun --nproc_per_node={world_size} main_pretrain.py ..."
        )
    if not re.match(r"(tcp|file)://.", dist_url):
        raise ValueError(
            f"--dist_url {dist_url}: without torchrun it must be tcp://HOST:PORT or file:///PATH, the same "
            f"for all {world_size} processes; simpler: torchrun --nproc_per_node={world_size} "
            "main_pretrain.py ..."
        )
    return Ranks(local_rank, world_size, local_rank, world_size)


def _ranks_of_torchrun() -> Ranks:
    missing = [name for name in _TORCHRUN_VARIABLES if name not in os.environ]
    world_size = _number("WORLD_SIZE")
    if missing and world_size > 1:
        raise ValueError(
            f"RANK and WORLD_SIZE are set in the environment but not {', '.join(missing)}; start with "
            "torchrun, or unset RANK"
        )
    ranks = Ranks(
        rank=_number("RANK"),
        world_size=world_size,
        local_rank=_number("LOCAL_RANK", default=0),
        local_world_size=_number("LOCAL_WORLD_SIZE", default=world_size),
    )
    if not 0 <= ranks.rank < ranks.world_size:
        raise ValueError(f"RANK={ranks.rank} with WORLD_SIZE={ranks.world_size}: expected 0 to {ranks.world_size - 1}")
    return ranks


def _number(name: str, default: int = 0) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(
            f"environment variable {name}={text!r}: expected a whole number; start with torchrun"
        ) from error


def is_started_again() -> bool:
    """True if torchrun has started any process of this run again: each machine counts for itself."""
    return any_rank(_number("TORCHELASTIC_RESTART_COUNT") > 0)


def launch_name() -> str | None:
    """Name of the torchrun launch that this process belongs to, the same after restarts; None without torchrun."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def start(ranks: Ranks, device: torch.device, *, dist_url: str = "env://", timeout_s: float = TIMEOUT_S) -> None:
    """Joins the processes of a run: NCCL for tensors on GPUs where torch has it, else gloo, also for flags and objects.

    Args:
        ranks: from `find_ranks`.
        device: from `select_device`; decides what carries tensors.
        dist_url: as given to `find_ranks`; not used under torchrun.
        timeout_s: seconds that a process waits for the others before it takes them for lost.

    Raises:
        PeerLost: the others did not come within the time.
        ValueError: two processes have the same GPU; under torchrun also: some compute on GPUs and some do not.
    """
    global _control
    if ranks.world_size == 1 or dist.is_initialized():
        return
    timeout = timedelta(seconds=timeout_s)
    under_torchrun = "MASTER_ADDR" in os.environ and "RANK" in os.environ
    try:
        store = _store_of_this_start(ranks, timeout) if under_torchrun and launch_name() is not None else None
        if store is not None:
            _require_same_kind(store, ranks, device)
        uses_nccl = device.type == "cuda" and dist.is_nccl_available()  # there is none on Windows
        dist.init_process_group(
            backend="nccl" if uses_nccl else "gloo",
            init_method=None if store is not None else "env://" if under_torchrun else dist_url,
            store=store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=timeout,
            device_id=device if uses_nccl else None,
        )
        _control = dist.new_group(backend="gloo", timeout=timedelta(seconds=max(timeout_s, WORK_TIMEOUT_S)))
    except RuntimeError as error:
        if "Duplicate GPU" in str(error):
            raise ValueError(
                f"process {ranks.rank} of {ranks.world_size} uses the same GPU as another one ({_shortly(error)}); "
                "start no more processes on a machine than it has GPUs, and leave out --device cuda:K"
            ) from error
        meeting = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT')}" if under_torchrun else dist_url
        raise PeerLost(
            f"process {ranks.rank} of {ranks.world_size} could not join the others at {meeting} within "
            f"{timeout_s:.0f} s ({_shortly(error)}); check that all were started with the same address, "
            "and that its port is free and can be reached"
        ) from error


def _store_of_this_start(ranks: Ranks, timeout: timedelta) -> dist.Store:
    """The store of torchrun without what processes that it started before have left there."""
    shared, _, _ = next(dist.rendezvous("env://", ranks.rank, ranks.world_size, timeout=timeout))
    place = {"rank": ranks.rank, "world_size": ranks.world_size}
    return dist.PrefixStore(rendezvous_prefix(shared, **place, timeout_s=timeout.total_seconds()), shared)


def _require_same_kind(store: dist.Store, ranks: Ranks, device: torch.device) -> None:
    """Refuses a run of which some processes compute on GPUs and others do not: they could not exchange anything."""
    store.set(f"device/{ranks.rank}", device.type)
    kinds = [store.get(f"device/{rank}").decode() for rank in range(ranks.world_size)]
    other = next((rank for rank, kind in enumerate(kinds) if kind != kinds[0]), None)
    if other is not None:
        raise mark_shared(
            ValueError(
                f"process 0 computes on {kinds[0]}, process {other} on {kinds[other]}, expected one kind of device; "
                "check nvidia-smi on each machine, or use --device cpu for all"
            )
        )


def shutdown(*, peers_lost: bool = False) -> None:
    """Leaves the group; safe to call at any time and more than once.

    Args:
        peers_lost: others are gone; what NCCL still waits for is given up, as leaving would wait for it.
    """
    global _control
    _control = None
    if dist.is_initialized():
        abort = getattr(dist.distributed_c10d, "_abort_process_group", None)  # not yet public
        if peers_lost and abort is not None and dist.get_backend() == "nccl":
            with contextlib.suppress(RuntimeError):
                abort()
            return
        # torch 2.7 takes the group apart while holding the interpreter's lock, and waits for ever if a thread
        # of
        # gloo needs that lock to free its last tensor (pytorch pull request 154976): let it do so first.
        time.sleep(0.2)
        with contextlib.suppress(RuntimeError):  # a group whose peer died cannot be left politely
            dist.destroy_process_group()


@contextlib.contextmanager
def peer_errors_named() -> Iterator[None]:
    """Turns what gloo, NCCL and the store raise when another process is gone into `PeerLost`, which says so.

    The functions of this file do so themselves; wrap the training loop in it for what DDP raises in
    backward().
    """
    try:
        yield
    except PeerLost:
        raise
    except RuntimeError as error:
        of_peers = isinstance(error, dist.DistError) or _PEER_ERROR.search(str(error)) is not None
        if not (dist.is_initialized() and of_peers) or is_out_of_memory(error):  # of this process's own card
            raise
        place = f"process {dist.get_rank()} of {dist.get_world_size()}"
        raise PeerLost(
            f"{place} lost the others: one of them died or stopped answering ({_shortly(error)}). Its "
            "own message, above or in its log, says why; then go on from the last checkpoint with --resume "
            "auto"
        ) from error


def _shortly(error: Exception) -> str:
    """First and last line of a message: NCCL says where first, and what last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return "; ".join(line[:200] for line in dict.fromkeys((lines[0], lines[-1])))


# ------------------------------------------------------------------------------------------------------------
# Flags and objects, in host memory
# ------------------------------------------------------------------------------------------------------------


def any_rank(flag: bool) -> bool:
    """True if `flag` is true in any process; every process must call it. No GPU is waited for."""
    return any_rank_each(flag)[0]


def any_rank_each(*flags: bool) -> tuple[bool, ...]:
    """The same for several flags at once, in one exchange."""
    if _control is None:
        return tuple(bool(flag) for flag in flags)
    with peer_errors_named():
        values = torch.tensor([int(flag) for flag in flags], dtype=torch.int32)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=_control)
        return tuple(bool(value) for value in values.tolist())


def gather_objects(value: T) -> list[T]:
    """Returns the `value` of every process, in order of rank, to every process."""
    if _control is None:
        return [value]
    with peer_errors_named():
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=_control)
        return values


def broadcast_object(value: T) -> T:
    """Returns the `value` of rank 0 to every process."""
    if _control is None:
        return value
    with peer_errors_named():
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, group=_control, device=torch.device("cpu"))
        return values[0]


def on_main_rank(function: Callable[[], T]) -> T:
    """Calls `function` in rank 0 alone and returns its result to every process.

    Raises:
        Exception: what `function` raised, in rank 0 as it was and in the others as a copy, so that all stop
            together.
    """
    if _control is None:
        return function()
    outcome: tuple[Any, Exception | None] = (None, None)
    if dist.get_rank() == 0:
        try:
            outcome = (function(), None)
        except Exception as error:
            broadcast_object((None, _portable(error)))
            raise
    result, failure = broadcast_object(outcome)
    if failure is not None:
        raise failure
    return result


def on_each_machine(function: Callable[[], T], ranks: Ranks) -> T:
    """Calls `function` in the first process of each machine, then in the others, and returns its result there.

    For what makes a file where none is: made once a machine, and found by the others, on a shared disk or not.

    Raises:
        Exception: as `on_all`.
    """
    first = on_all(lambda: function() if ranks.local_rank == 0 else None)
    others = on_all(lambda: function() if ranks.local_rank else None)
    result = first if ranks.local_rank == 0 else others
    return cast(T, result)


def on_all(function: Callable[[], T]) -> T:
    """Calls `function` in every process and returns its result there, unless it failed in any of them.

    Raises:
        Exception: what `function` raised in the process of lowest rank that failed (a copy in the others), so that
            all stop together instead of waiting for one another.
    """
    if _control is None:
        return function()
    result: Any = None
    failure: Exception | None = None
    try:
        result = function()
    except Exception as error:
        failure = error
    failures = gather_objects(None if failure is None else _portable(failure))
    first = next((error for error in failures if error is not None), None)
    if first is not None:
        raise first from failure
    return result


def is_shared(error: BaseException) -> bool:
    """True if every process has this error, from `on_main_rank` or `on_all`: one of them saying so is enough."""
    return bool(getattr(error, "shared_by_all", False))


def mark_shared(error: E) -> E:
    """Returns the error, which the caller knows to be raised in every process, marked for `is_shared`."""
    error.shared_by_all = True  # type: ignore[attr-defined]
    return error


def _portable(error: Exception) -> Exception:
    """Returns an exception that survives pickling: of a plain class, with the same message."""
    for kind in type(error).__mro__:
        if kind in (ValueError, FileNotFoundError, OSError, TypeError, KeyError):
            return mark_shared(kind(str(error)))
    return mark_shared(RuntimeError(str(error)))


def barrier() -> None:
    """Waits until every process has come here."""
    if _control is not None:
        with peer_errors_named():
            dist.barrier(group=_control)


# ------------------------------------------------------------------------------------------------------------
# Tensors
# ------------------------------------------------------------------------------------------------------------


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the sum of `tensor` over all processes, a new tensor on its device; does not wait for a GPU."""
    if not dist.is_initialized():
        return tensor
    with peer_errors_named():
        total = tensor.detach().clone()
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total


def mean_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the mean of a floating-point `tensor` over all processes, a new tensor on its device."""
    if not dist.is_initialized():
        return tensor
    return sum_over_ranks(tensor) / dist.get_world_size()


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Returns the model in DistributedDataParallel, or as it is in a single process.

    Every parameter that requires a gradient must take part in every loss (multiplied by zero if need be). The
    graph is not declared static: with accumulation under no_sync() that fails or leaves gradients unreduced
    (pytorch issue 143580).
    """
    if not dist.is_initialized():
        return model
    # Buffers are constants here and need no broadcast in each forward pass; torch 2.15 has a new name for
    # that.
    names = inspect.signature(DistributedDataParallel).parameters
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        **{sync_buffers: False},
        gradient_as_bucket_view=True,
        find_unused_parameters=False,
        static_graph=False,
    )


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the model itself, out of DistributedDataParallel and torch.compile."""
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, DistributedDataParallel):
        model = model.module
    return getattr(model, "_orig_mod", model)


def gradients_shared(model: nn.Module, shared: bool) -> contextlib.AbstractContextManager[Any]:
    """Returns a context for forward and backward; gradients are reduced over processes only if `shared`."""
    wrapped = getattr(model, "_orig_mod", model)
    if isinstance(wrapped, DistributedDataParallel) and not shared:
        return wrapped.no_sync()
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(shared)
    return contextlib.nullcontext()


def report_end(error: BaseException, *, program: str, ranks: Ranks, status: int) -> int:
    """Says on standard error why a program ends, leaves the group and returns the exit status.

    What all processes have met is said once, by the main one; what one has met alone, by itself. Ctrl-C is no error.

    Args:
        error: what ended it.
        program: its name, to begin the message.
        ranks: which process this is.
        status: exit status to return.
    """
    message = disk_full_message(error, then="go on with --resume") or str(error)
    if isinstance(error, KeyboardInterrupt):
        if ranks.is_main:
            sys.stderr.write(f"\n{program}: stopped by Ctrl-C\n")
    elif ranks.is_main:
        sys.stderr.write(f"{program}: error: {message}\n")
    elif not is_shared(error):
        sys.stderr.write(f"{program}: error in process {ranks.rank} of {ranks.world_size}: {message}\n")
    shutdown(peers_lost=isinstance(error, PeerLost))
    return status
