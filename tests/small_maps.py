"""main_inference in this process; pictures take longer than the rest, so they are optional."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from unittest import mock

import main_inference


def infer(argv: Sequence[str], *, pictures: bool = False) -> int:
    """Runs the program; returns the exit status."""
    with ExitStack() as patches:
        if not pictures:
            patches.enter_context(mock.patch("util.inference.results.draw_raster", lambda path, *_, **__: path))
        return main_inference.main(list(argv))
