"""Makes the environment, then checks format, lint and types and runs the tests: the one command before handing work in.

Takes a few minutes on two CPU cores, after the first run's download; safe to run again, from any folder.

  python scripts/test.py [pytest arguments]          for example: python scripts/test.py -m slow

GRIDMAE_PYTHON and GRIDMAE_LANE choose another environment (scripts/environment.py), GRIDMAE_TEST_PROCESSES how many
tests run at once (2), GRIDMAE_REFERENCE_DIR a folder with the larger reference data, whose tests are else skipped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.environment import NoEnvironment, call, environment_python, say


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the checks in turn; returns the exit status of the first that fails, else 0."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        python = environment_python(os.environ)
    except NoEnvironment as error:
        say(str(error))
        return 2
    # The tests run side by side, and their tensors are tiny.
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or "1"
    processes = os.environ.get("GRIDMAE_TEST_PROCESSES") or "2"
    for check in (
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        ["mypy", "."],
        ["pytest", "-q", "-n", processes, "--dist", "loadfile", *arguments],
    ):
        status = call([python, "-m", *check])
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
