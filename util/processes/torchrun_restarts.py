"""Runs that torchrun starts again after a process died (`--max-restarts`): they go on where they were.

torchrun repeats the command line as it was given. Without `--resume` that would begin a new run and move what was done
aside; with the path of a checkpoint it would go back to that. So a run that has opened its records leaves a mark in its
folder, and a start that finds the mark of its own launch goes on instead.
"""

from __future__ import annotations

import logging
from pathlib import Path

from util.processes import distributed as dist

logger = logging.getLogger(__name__)

MARK = ".launch"
"""Hidden file in the folder of a run, with the name of the torchrun launch that opened its records last."""


def begun_before(output_dir: Path) -> bool:
    """Whether torchrun has started this run again after it had opened its records; the same in every process.

    At the first start of a launch it forgets the mark of an earlier one; every process must call it.

    Args:
        output_dir: folder of the run, which exists.

    Raises:
        OSError: the mark cannot be read or removed.
    """
    mark, again = output_dir / MARK, dist.is_started_again()

    def look() -> bool:
        if not again:
            mark.unlink(missing_ok=True)
            return False
        begun = mark.exists() and mark.read_text(encoding="utf-8") == dist.launch_name()
        if begun:
            logger.warning("started again by torchrun: going on with what %s holds", output_dir)
        return begun

    return dist.on_main_rank(look)


def note_begun(output_dir: Path) -> None:
    """Leaves the mark, under torchrun; every process must call it once the records are open.

    Raises:
        OSError: it cannot be written.
    """
    name = dist.launch_name()
    if name is not None:
        dist.on_main_rank(lambda: (output_dir / MARK).write_text(name, encoding="utf-8"))


def resume_from(resume: str, output_dir: Path) -> str:
    """What a pre-training goes on from: `--resume` as given, or `auto` if torchrun started it again.

    As given too if the run was killed before its first checkpoint.

    Raises:
        OSError: the folder cannot be read.
    """
    begun = begun_before(output_dir)
    return "auto" if dist.on_main_rank(lambda: begun and any(output_dir.glob("checkpoint-*.pth"))) else resume
