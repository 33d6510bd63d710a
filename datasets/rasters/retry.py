"""Retries failed reads over a network."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from datasets.layers.paths import is_remote

logger = logging.getLogger(__name__)

RETRY_WAITS_S = (1.0, 4.0, 15.0)
"""Seconds to wait before each new attempt: three after the first, within which a short outage passes."""

Result = TypeVar("Result")


def with_retries(
    read: Callable[[], Result], *, path: str, what: str, again: Callable[[], None] | None = None
) -> Result:
    """The result of `read`, retried after each of `RETRY_WAITS_S` if it fails and the path is on a network.

    Args:
        read: raises when it fails.
        path: of the layer.
        what: layer and window, for the log.
        again: called before each new attempt, to drop a broken connection or handle.

    Raises:
        Exception: whatever the last attempt raised; the first one's for local files and missing packages.
    """
    waits = RETRY_WAITS_S if is_remote(path) else ()
    for number, wait in enumerate((*waits, None), start=1):
        try:
            return read()
        except Exception as error:  # every driver and codec has its own
            if wait is None or isinstance(error, ImportError):  # waiting installs no package
                raise
            logger.warning("%s: attempt %d of %d failed (%s); next in %g s", what, number, len(waits) + 1, error, wait)
            time.sleep(wait)
            if again is not None:
                again()
    raise AssertionError("unreachable")
