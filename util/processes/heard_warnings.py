"""The warnings and errors that a program logs, kept for its page; how they are shown does not change."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from typing import Any

MOST = 200
"""Different texts that are kept."""


@dataclass
class Heard:
    """A warning.

    Attributes:
        text: what it says.
        level: `warning` or `error`.
        time: seconds since the epoch, of the first time.
        times: how often it was said.
    """

    text: str
    level: str
    time: float
    times: int = 1


class WarningCollector(logging.Handler):
    """A log handler that keeps warnings and errors, each text once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: dict[str, Heard] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a message."""
        text = record.getMessage().strip()
        if text in self.heard:
            self.heard[text].times += 1
        elif len(self.heard) < MOST:
            level = "error" if record.levelno >= logging.ERROR else "warning"
            self.heard[text] = Heard(text, level, time.time())


def collect_warnings() -> None:
    """From here on, keeps the warnings that this process logs; those kept before are forgotten."""
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, WarningCollector)]:
        root.removeHandler(old)
    root.addHandler(WarningCollector())


def heard_warnings() -> list[dict[str, Any]]:
    """The warnings kept since `collect_warnings`, as plain values, in the order in which they came."""
    collectors = (handler for handler in logging.getLogger().handlers if isinstance(handler, WarningCollector))
    return [asdict(heard) for collector in collectors for heard in collector.heard.values()]
