"""Counts the bytes that tensors hold at any time while code runs, also where the tensors hold no memory at all."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Within its context, adds up the storages that operations make, and takes each off again when it is freed.

    What an operation needs only while it runs is not seen: a few per cent.

    Attributes:
        now: bytes held.
        peak: most bytes held so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation and notes what it made."""
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._note(value.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()  # an address: unique as long as the storage lives
        if key in self._known:
            return

        def freed(_: object) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


@contextmanager
def counted() -> Iterator[LiveBytes]:
    """A context in which nothing is computed or drawn, and tensors on the CPU have shapes but no memory; yields the
    count of the bytes they would hold.

    Autocast, attention kernels and checkpointing choose as they would on a CPU.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        yield live
