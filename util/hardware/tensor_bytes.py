"""Counts the bytes that tensors hold while code runs, also of fake tensors that have shapes but no memory."""

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
    """Within its context, adds the storages that operations create, and subtracts each when it is freed.

    Temporary memory inside an operation is not counted: a few per cent.

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
        """Runs an operation and counts the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
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
    """A context of fake tensors: nothing is computed or drawn; yields the count of the bytes they would hold.

    Autocast, attention kernels and checkpointing choose as they would on a CPU.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        yield live
