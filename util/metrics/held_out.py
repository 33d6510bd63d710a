"""Scores of a network on held-out tiles during training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from util.metrics.skill import HeldOutEvaluator, ScoredBatch, Scores, scored_layers
from util.processes import distributed as dist
from util.processes.terminal import progress_bar
from util.training.setup import TrainingSettings
from util.training.state import TrainingState


class TrainingData(Protocol):
    """The parts of training data, or of other data that is scored, that scoring needs."""

    @property
    def layers(self) -> Sequence[Any]:
        """The layers in order."""

    @property
    def encodings(self) -> Sequence[Any]:
        """Encoding of each layer."""

    @property
    def scales(self) -> tuple[int, ...]:
        """Scales, 1 first."""

    @property
    def scored(self) -> Mapping[int, Sequence[int]]:
        """For each scale, the numbers of the layers scored at it."""

    def overview(self) -> dict[str, Any]:
        """What was read, as plain values for the page of the run."""


def _scored_batch(sample: Any, noise: torch.Tensor) -> ScoredBatch:
    return ScoredBatch(**sample._asdict(), noise=noise)


class HeldOutScorer:
    """Scores a network on held-out tiles, and reconstructs one of them for a figure; all processes must call it.

    Args:
        state: the network being trained, sharded or not, and its averaged weights, if any, which are scored.
        settings: masking and loss weights.
        data: the data that is scored.
        rebuild: builds an unsharded copy of the network on the device, into which a sharded one is gathered.
        fetch: tile numbers -> their `Sample` on the device and the noise of its masks.
        batches: numbers of the tiles that this process scores, batch by batch.
        show_progress: show a progress bar.
    """

    def __init__(
        self,
        state: TrainingState,
        settings: TrainingSettings,
        data: TrainingData,
        *,
        rebuild: Callable[[], torch.nn.Module],
        fetch: Callable[[np.ndarray], tuple[Any, torch.Tensor]],
        batches: Sequence[np.ndarray],
        show_progress: bool,
    ) -> None:
        network: Any = state.network
        self._hidden_alone = bool(network.embeds_native)
        self._is_scored = [number in data.scored[1] for number in range(len(data.layers))]
        self._state, self._settings, self._rebuild = state, settings, rebuild
        self._show = partial(progress_bar, desc="held-out", unit="batch", enabled=show_progress)
        self._evaluator = HeldOutEvaluator(
            fetch=lambda numbers: _scored_batch(*fetch(numbers)),
            batches=batches,
            scales=data.scales,
            scored_at_base=self._is_scored,
            layers=scored_layers(network.layers, data.encodings),
            groups=network.channel_groups,
            patch_size=network.patch_size,
            base_in_units=not network.norm_pix_loss,
            hidden_alone=self._hidden_alone,
            sum_over_ranks=lambda tensor: dist.sum_over_ranks(tensor.to(state.device)).cpu(),
        )

    def score(self) -> Scores | None:
        """The scores over all processes, or None if no tile is held out."""
        if not dist.any_rank(bool(self._evaluator.batches)):
            return None
        with self._state.scored(self._rebuild) as network, _weighing_alone(network, self._is_scored):
            predict = partial(self._predict, network)
            return self._evaluator(predict, loss_weights=self._settings.loss_weights, show=self._show)

    def reconstruct(
        self, number: int, *, enabled: bool
    ) -> tuple[ScoredBatch, dict[int, torch.Tensor], torch.Tensor, bool] | None:
        """Reconstructs one tile in the processes where `enabled` is True.

        Returns:
            A batch of that tile; its reconstruction by scale (1, C, sH, sW); (1, C, H, W) bool, True inside masked
            tokens; and whether finer scales, too, are scored inside masked tokens alone. None in other processes.
        """
        with self._state.scored(self._rebuild) as network:
            if not enabled:
                return None
            batch = self._evaluator.fetch(np.array([number]))
            out = self._predict(network, batch)
        hidden = self._evaluator.hidden_pixels(out.mask, batch.imgs.shape)
        return batch, out.images, hidden, self._hidden_alone

    @torch.no_grad()
    def _predict(self, network: torch.nn.Module, batch: ScoredBatch) -> Any:
        """The network's `Reconstruction` of a batch with its fixed masks."""
        network.eval()
        with self._state.updater.autocast():
            return network(**vars(batch), mask_ratio=self._settings.mask_ratio, details=True)


@contextmanager
def _weighing_alone(network: Any, is_scored: Sequence[bool]) -> Iterator[None]:
    """Gives other layers no weight in the losses of base pixels while it lasts: they are coarser in what is scored."""
    weights = network.weights_1
    network.weights_1 = torch.where(torch.tensor(is_scored, device=weights.device), weights, 0.0)
    try:
        yield
    finally:
        network.weights_1 = weights
