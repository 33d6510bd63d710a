"""Start and end that the main programs share: ranks, logging, device, processes, signals, exit status."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from util.hardware.device import describe_environment, is_out_of_memory, select_device
from util.hardware.malloc import keep_freed_memory
from util.processes import distributed as dist
from util.processes.output_lock import output_folder_given_back
from util.processes.signals import Stop
from util.processes.terminal import setup_logging

logger = logging.getLogger(__name__)

T = TypeVar("T")


class RunFailed(RuntimeError):
    """Ends a program part way with one message and exit status 1."""


def log_environment(device: torch.device, ranks: dist.Ranks, **settings: Any) -> dict[str, Any]:
    """Logs versions, device, number of processes and the given settings, and returns them."""
    environment = describe_environment(device) | {"processes": ranks.world_size, **settings}
    logger.info("%s", ", ".join(f"{key} {value}" for key, value in environment.items()))
    return environment


@output_folder_given_back()
def run_program(
    program: str,
    *,
    prepare: Callable[[torch.device, dist.Ranks], T],
    work: Callable[[T, Stop], int | None],
    close: Callable[[T, BaseException | None], None] | None = None,
    device: str,
    world_size: int,
    local_rank: int,
    dist_url: str,
    stop_message: str = "",
    work_errors: tuple[type[Exception], ...] = (ValueError, OSError),
) -> int:
    """Starts the processes of a program, prepares and does its work, and turns errors into an exit status.

    A main parses its options and calls `run_program("main_x", prepare=partial(prepare, args), work=work,
    **options.process_options(args))`. Every process of the run does so.

    Args:
        program: name of the program, for error messages.
        prepare: checks the options, opens all inputs and builds the run, given the device and the ranks.
        work: does the work of the run that `prepare` returned; polls `Stop.signal` to end early after a signal. Returns
            the exit status, None for 0.
        close: closes the files of the run, however its work ends; gets the error that ended it, None for none.
        device: value of --device.
        world_size: value of --world_size.
        local_rank: value of --local_rank.
        dist_url: value of --dist_url.
        stop_message: written to standard error when a signal arrives, if the end may take a while.
        work_errors: errors of `work` that end the program with a message instead of a traceback, besides `RunFailed`.

    Returns:
        Exit status: what `work` returned; 1 if the work failed, another process died or Ctrl-C ended it at once; 2 for
        bad input, which is a ValueError or OSError before `work`.
    """
    failures: tuple[type[BaseException], ...] = (RunFailed, dist.PeerLost, KeyboardInterrupt, *work_errors)
    ranks = dist.Ranks()
    try:
        ranks = dist.find_ranks(world_size=world_size, local_rank=local_rank, dist_url=dist_url)
        setup_logging(ranks.rank)
        keep_freed_memory()
        torch_device = select_device(device, local_rank=ranks.local_rank, processes=ranks.world_size)
        dist.start(ranks, torch_device, dist_url=dist_url)
        run = prepare(torch_device, ranks)
    except (ValueError, OSError) as error:
        return dist.report_end(error, program=program, ranks=ranks, status=2)
    except (RuntimeError, KeyboardInterrupt) as error:
        if not isinstance(named := _with_remedy(error), failures):
            raise
        return dist.report_end(named, program=program, ranks=ranks, status=1)
    ended_by: BaseException | None = None
    try:
        with Stop(stop_message) as stop:
            return work(run, stop) or 0
    except BaseException as error:
        ended_by = _with_remedy(error)
        if isinstance(ended_by, failures):
            return dist.report_end(ended_by, program=program, ranks=ranks, status=1)
        raise
    finally:
        if close is not None:
            close(run, ended_by)
        dist.shutdown()


def _with_remedy(error: BaseException) -> BaseException:
    """The error itself; of a GPU whose memory is not enough, one that says what to do."""
    if isinstance(error, RunFailed) or not is_out_of_memory(error):
        return error
    said = (str(error).splitlines() or [""])[0][:200]
    return RunFailed(
        f"the memory of the GPU is not enough ({said}); use a smaller --batch_size, in training with a larger "
        "--accum_iter (--batch_size auto finds both) or --grad_checkpointing, and see in nvidia-smi whether other "
        "programs use the card"
    )
