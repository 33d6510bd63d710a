"""Runs that torchrun restarts after a process died (`--max-restarts`): they resume from their last checkpoint.

torchrun repeats the same command line. Without `--resume` that would begin a new run and move the files of the first
to earlier-<n>; with the path of a checkpoint it would go back to that. So a run that has opened its records leaves a
marker file in its folder, and a start that finds the marker of its own launch resumes instead.
"""

from __future__ import annotations

import logging
from pathlib import Path

from util.processes import distributed as dist

logger = logging.getLogger(__name__)

MARKER = ".launch"
"""Hidden file in the folder of a run: the name of the torchrun launch that last opened its records."""


def was_restarted(output_dir: Path) -> bool:
    """Whether torchrun has restarted this run after it had opened its records; the same in every process.

    The first start of a launch removes the marker of an earlier one. Every process must call it.

    Args:
        output_dir: folder of the run, which exists.

    Raises:
        OSError: the marker cannot be read or removed.
    """
    marker, again = output_dir / MARKER, dist.is_started_again()

    def check() -> bool:
        if not again:
            marker.unlink(missing_ok=True)
            return False
        restarted = marker.exists() and marker.read_text(encoding="utf-8") == dist.launch_name()
        if restarted:
            logger.warning("restarted by torchrun: resuming the run in %s", output_dir)
        return restarted

    return dist.on_main_rank(check)


def mark_started(output_dir: Path) -> None:
    """Leaves the marker, under torchrun; every process must call it once the records are open.

    Raises:
        OSError: it cannot be written.
    """
    name = dist.launch_name()
    if name is not None:
        dist.on_main_rank(lambda: (output_dir / MARKER).write_text(name, encoding="utf-8"))


def resume_from(resume: str, output_dir: Path) -> str:
    """Returns `auto` if torchrun restarted a pre-training that has a checkpoint, otherwise `resume` as given.

    Raises:
        OSError: the folder cannot be read.
    """
    restarted = was_restarted(output_dir)
    return "auto" if dist.on_main_rank(lambda: restarted and any(output_dir.glob("checkpoint-*.pth"))) else resume
