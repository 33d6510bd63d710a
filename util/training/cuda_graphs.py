"""Updates as CUDA graphs: their kernels are recorded once, and then started together instead of one by one.

A small model spends its time starting kernels. Two graphs make an update: one computes the forward and backward pass of
a micro-batch and adds its gradients; the other unscales and clips them, steps the optimiser and clears them. What
changes from update to update is copied into tensors whose addresses stay: the batch, its weight and the learning rate.

References: "CUDA Graphs" in torch's CUDA semantics (docs.pytorch.org/docs/stable/notes/cuda.html), on whole-network
capture; the optimiser is recorded as well, because fused AdamW skips an update without waiting for the device.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.utils._pytree import tree_leaves, tree_map

from util.hardware.device import wait_for
from util.processes.program import RunFailed
from util.training.engine import Updater

logger = logging.getLogger(__name__)

T = TypeVar("T")

WARM_UP = 3
"""Updates that are never recorded: they make the optimiser's moments, and libraries choose their kernels."""
TIMED = 10
"""Updates of each way that `auto` compares."""


def why_not(*, device: torch.device, processes: int, checkpointing: bool) -> str:
    """Why updates cannot be recorded, with what to do; empty if they can.

    Args:
        device: where the model computes.
        processes: processes of the run.
        checkpointing: blocks are computed again in the backward pass.
    """
    if device.type != "cuda":
        return f"CUDA graphs need a CUDA GPU, but this run computes on {device.type}; use --cuda_graphs off"
    if processes > 1:
        return f"not supported with {processes} processes, which exchange gradients; use --cuda_graphs off"
    if checkpointing:
        return "not supported with --grad_checkpointing, which reads random states; leave one of them out"
    return ""


class Recorded(Generic[T]):
    """Work on the GPU, recorded and not yet done.

    Args:
        work: starts kernels on fixed addresses; never waits for the device.
        stream: the stream on which it was tried before.

    Attributes:
        result: what `work` returned; its tensors are overwritten by each replay.
        replay: does the work.
    """

    def __init__(self, work: Callable[[], T], stream: Any) -> None:
        graph = torch.cuda.CUDAGraph()
        # Threads that read ahead may pin memory meanwhile, which would end a recording in any other mode.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self.result = work()
        self.replay: Callable[[], None] = graph.replay


@dataclass(frozen=True)
class RecordedUpdate:
    """The two graphs of an update, and the tensors that they read.

    Attributes:
        inputs: tensors of a micro-batch.
        weight: scalar, of the micro-batch.
        lr: scalar, learning rate.
        micro: adds the gradients of a micro-batch.
        finish: steps the optimiser and clears the gradients; its result is their norm.
    """

    inputs: Sequence[torch.Tensor]
    weight: torch.Tensor
    lr: torch.Tensor
    micro: Recorded[Any]
    finish: Recorded[torch.Tensor]


class Comparison:
    """Times updates of both ways, to keep the faster. The host waits for the device around each part of an update.

    Args:
        device: where the model computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._elapsed_s = device, 0.0
        self._seconds: dict[bool, list[float]] = {False: [], True: []}

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the time inside the context to that of the update."""
        wait_for(self._device)
        begin = time.perf_counter()
        yield
        wait_for(self._device)
        self._elapsed_s += time.perf_counter() - begin

    def end_update(self, *, is_replayed: bool, counts: bool) -> None:
        """Closes an update; `counts` is False if it is not like the others."""
        if counts:
            self._seconds[is_replayed].append(self._elapsed_s)
        self._elapsed_s = 0.0

    def is_done(self, *, is_replayed: bool) -> bool:
        """Whether enough updates of one way were timed."""
        return len(self._seconds[is_replayed]) >= TIMED

    def graphs_are_faster(self) -> bool:
        """Compares the medians, and logs them."""
        plain, replayed = (1e3 * statistics.median(self._seconds[way]) for way in (False, True))
        logger.info(
            "--cuda_graphs auto: an update takes %.3g ms kernel by kernel and %.3g ms as CUDA graphs, %.2f times as "
            "fast; going on %s",
            plain,
            replayed,
            plain / replayed,
            "with CUDA graphs" if replayed < plain else "without",
        )
        return replayed < plain


class GraphedUpdater(Updater):
    """Updates that are recorded as CUDA graphs after the first few.

    A micro-batch of another size, such as the last of an epoch, is computed kernel by kernel and adds to the same
    gradients. The optimiser's state has the same form as without graphs, so that checkpoints serve both.

    Args:
        choice: `on`, or `auto`: both ways are timed on the first updates, and the faster is kept.
        **updates: arguments of `Updater`.
    """

    def __init__(self, *args: Any, choice: str, **updates: Any) -> None:
        super().__init__(*args, **updates)
        self._device = self._parameters[0].device
        self._comparison = Comparison(self._device) if choice == "auto" else None
        self._recorded: RecordedUpdate | None = None
        self._is_chosen = True  # False once the other way was faster
        self._updates, self._largest = 0, [torch.Size([0])]  # shapes of a full micro-batch
        self._is_begun, self._is_full = False, True  # of the current update

    @property
    def uses_graphs(self) -> bool:
        """Whether updates are replayed now."""
        return self._recorded is not None

    def accumulate(self, backward: Callable[[Any, Any], T], inputs: Any, weight: float) -> T:
        """Adds the gradients of a micro-batch; see `Updater.accumulate`.

        Returns:
            What `backward` returned. Replayed, it is overwritten by the next micro-batch.

        Raises:
            RunFailed: the update cannot be recorded, with choice `on`.
        """
        tensors = tree_leaves(inputs)
        shapes = [tensor.shape for tensor in tensors]
        if shapes[0][0] > self._largest[0][0]:
            self._largest = shapes
        is_full = shapes == self._largest
        if is_full and not self._is_begun and self._is_due():
            self._recorded = self._record(backward, inputs)
        self._is_begun, self._is_full = True, self._is_full and is_full
        with self._timed():
            if self._recorded is None or not is_full:
                return backward(inputs, weight)
            for own, tensor in zip(self._recorded.inputs, tensors, strict=True):
                own.copy_(tensor, non_blocking=True)
            self._recorded.weight.fill_(weight)
            self._recorded.micro.replay()
            return self._recorded.micro.result  # type: ignore[no-any-return]

    def step(self, lr: float | torch.Tensor) -> torch.Tensor:
        """Steps the optimiser; see `Updater.step`. Replayed, the norm is overwritten by the next update."""
        with self._timed():
            if self._recorded is None:
                norm = super().step(lr)
            else:
                self.set_rate(lr)  # for checkpoints: the graph reads the tensor
                self._recorded.lr.fill_(lr)
                self._recorded.finish.replay()
                norm = self._recorded.finish.result
        if self._comparison is not None:
            counts = self._is_full and self._updates >= WARM_UP
            self._comparison.end_update(is_replayed=self.uses_graphs, counts=counts)
            if self._comparison.is_done(is_replayed=True):
                self._choose(self._comparison.graphs_are_faster())
        self._updates += 1
        self._is_begun, self._is_full = False, True
        return norm

    def _is_due(self) -> bool:
        """Whether the update that begins is to be recorded."""
        if self._recorded is not None or not self._is_chosen or self._updates < WARM_UP:
            return False
        return self._comparison is None or self._comparison.is_done(is_replayed=False)

    def _choose(self, graphs: bool) -> None:
        """Ends the comparison."""
        self._comparison, self._is_chosen = None, graphs
        if not graphs:
            self._recorded, self._keeps_gradients = None, False
            self.optimizer.zero_grad(set_to_none=True)

    def _timed(self) -> AbstractContextManager[None]:
        return nullcontext() if self._comparison is None else self._comparison.timed()

    def _record(self, backward: Callable[[Any, Any], Any], inputs: Any) -> RecordedUpdate | None:
        """Records an update of micro-batches like this one; weights and optimiser stay as they are.

        Returns:
            The update; None if it cannot be recorded where both ways may be used, which go on without graphs.

        Raises:
            RunFailed: torch refuses it.
            torch.OutOfMemoryError: the GPU has too little memory for it.
        """
        inputs = tree_map(torch.clone, inputs)
        weight, lr = (torch.zeros((), device=self._device) for _ in range(2))
        stream = torch.cuda.Stream()
        try:
            self._try(backward, inputs, weight, stream)
            micro = Recorded(lambda: backward(inputs, weight), stream)
            finish = self._record_step(lr, stream)
        except RuntimeError as error:
            if self._comparison is not None:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                logger.warning("--cuda_graphs auto: updates cannot be recorded (%s); going on without", reason)
                self._choose(False)
                return None
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise RunFailed(f"updates cannot be recorded as CUDA graphs ({error}); use --cuda_graphs off") from error
        logger.info("updates are recorded as CUDA graphs, after %d updates without", self._updates)
        return RecordedUpdate(tree_leaves(inputs), weight, lr, micro, finish)

    def _try(self, backward: Callable[[Any, Any], Any], inputs: Any, weight: torch.Tensor, stream: Any) -> None:
        """Does the work of a micro-batch on the stream; leaves gradients of zero at the addresses that they will keep.

        A weight that gets no gradient is left without, as the optimiser would otherwise decay it.
        """
        for _ in range(WARM_UP):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                backward(inputs, weight)
            torch.cuda.current_stream().wait_stream(stream)
            for parameter in self._parameters:
                parameter.grad = None if parameter.grad is None else torch.zeros_like(parameter)
        self._keeps_gradients = True

    def _record_step(self, lr: torch.Tensor, stream: Any) -> Recorded[torch.Tensor]:
        """Records the optimiser's step at a rate that is a tensor; its groups have plain values again afterwards."""
        groups = self.optimizer.param_groups
        plain = [(group["lr"], group["capturable"]) for group in groups]
        for group in groups:
            group["capturable"] = True
        try:
            return Recorded(lambda: super(GraphedUpdater, self).step(lr), stream)
        finally:
            for group, (rate, capturable) in zip(groups, plain, strict=True):
                group["lr"], group["capturable"] = rate, capturable
