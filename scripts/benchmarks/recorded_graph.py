"""A stand-in for CUDA graphs on a CPU, so that tests and rehearsals run what a GPU would run.

As a CUDA graph, it records operations on fixed addresses, does none of them while it records, and repeats them all at
each replay, whatever Python has done in between. It says nothing about speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import models_mae_group_channels as models


class RecordedGraph:
    """Takes the place of `torch.cuda.CUDAGraph`.

    Attributes:
        calls: operation, arguments and results, in order.
        replays: how often it was replayed.
    """

    made: ClassVar[list[RecordedGraph]] = []

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.replays = 0
        self.made.append(self)

    def replay(self) -> None:
        """Repeats all operations, each into the memory of its first results."""
        self.replays += 1
        with torch._C._AutoDispatchBelowAutograd():
            for operation, args, kwargs, before in self.calls:
                found = operation(*args, **kwargs)
                for old, new in zip(_tensors(before), _tensors(found), strict=True):
                    if _storage(old) != _storage(new):  # neither in place nor a view
                        old.copy_(new)


class _Recording(TorchDispatchMode):
    """Records into a graph; at the end, puts back what the operations have overwritten."""

    def __init__(self, graph: RecordedGraph, **_: Any) -> None:
        super().__init__()
        self._graph = graph
        self._made: set[int] = set()
        self._overwritten: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Does an operation and records it."""
        kwargs = kwargs or {}
        read = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        for tensor in _written(func, args, kwargs):
            if _storage(tensor) not in self._made | self._overwritten.keys():
                whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                self._overwritten[_storage(tensor)] = whole, whole.clone()
        result = func(*args, **kwargs)
        self._made |= {_storage(tensor) for tensor in _tensors(result)} - read
        self._graph.calls.append((func, args, kwargs, result))
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for whole, before in self._overwritten.values():
            whole.copy_(before)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that an operation overwrites."""
    by_name = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    names = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return _tensors([by_name.get(name) for name in names])


@contextmanager
def recorded_graphs() -> Iterator[list[RecordedGraph]]:
    """A context in which updates on the CPU are recorded as on a GPU; yields the graphs that were made in it."""
    stream, made = SimpleNamespace(wait_stream=lambda other: None), list[RecordedGraph]()
    with (
        mock.patch.multiple(
            torch.cuda,
            CUDAGraph=RecordedGraph,
            graph=_Recording,
            Stream=lambda: stream,
            current_stream=lambda: stream,
            stream=lambda _: nullcontext(),
        ),
        mock.patch.object(RecordedGraph, "made", made),
        mock.patch.object(models, "_shapes_may_depend_on_data", lambda _: False),
    ):
        yield made
