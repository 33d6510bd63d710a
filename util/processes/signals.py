"""Stop signals: finish the current step, save, and end."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from util.hardware.system import STOP_SIGNALS


class Stopped(Exception):
    """A signal ended the run; everything is saved."""


class Stop:
    """Within its context, remembers that a signal asked the run to end; a second Ctrl-C ends it at once.

    Args:
        note: said on standard error when a signal comes, if the end may take a while.

    Attributes:
        signal: number of the signal, None until there is one.
    """

    def __init__(self, note: str = "") -> None:
        self.signal: int | None = None
        self._note = note
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        """Starts listening."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        """Puts back what handled the signals before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: object) -> None:
        if number == signal.SIGINT == self.signal:
            raise KeyboardInterrupt
        if self._note and self.signal is None:
            os.write(2, f"\n{self._note}\n".encode())
        self.signal = number
