"""State of a training run that a checkpoint stores, so that a resumed run continues exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from util.checkpoints.resume_state import collect_rng_state, restore_rng_state
from util.processes import fsdp
from util.training.engine import Updater
from util.training.timer import TrainingTimer


@dataclass
class Progress:
    """How far a run is: next epoch, next update within it, optimiser steps done."""

    epoch: int = 0
    update: int = 0
    step: int = 0


@dataclass(frozen=True)
class TrainingState:
    """The parts of a run that change while it trains.

    Attributes:
        network: the network that is trained.
        updater: its optimiser and gradient scaler.
        timer: time spent.
        progress: how far the run is.
        device: where the network is.
    """

    network: nn.Module
    updater: Updater
    timer: TrainingTimer
    progress: Progress
    device: torch.device

    def collect(self) -> dict[str, Any]:
        """Returns the state for a checkpoint, complete in the main process; every process must call it."""
        model, optimizer = fsdp.whole_states(self.network, self.updater.optimizer)
        return {
            **collect_weights(self.network, self.updater, model),
            "optimizer": optimizer,
            "scaler": self.updater.scaler.state_dict(),
            "epoch": self.progress.epoch,
            "update": self.progress.update,
            "step": self.progress.step,
            "rng": collect_rng_state(self.device),
            **self.timer.state(),
        }

    @contextmanager
    def scored(self, rebuild: Callable[[], nn.Module]) -> Iterator[nn.Module]:
        """The network with the weights that are scored, averaged if they are averaged; every process must enter.

        Args:
            rebuild: builds an unsharded copy of the network on the device, into which a sharded one is gathered.
        """
        with self.updater.averaged(), fsdp.gathered(self.network, rebuild) as network:
            yield network

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the state of a checkpoint."""
        load = partial(fsdp.load_states, self.network, self.updater.optimizer, optimizer_state=state["optimizer"])
        restore_weights(state, self.updater, lambda model: load(model=model))
        self.updater.restore_scaler(state["scaler"])
        restore_rng_state(state["rng"], self.device)
        self.progress.epoch = state["epoch"]
        self.progress.update = state["update"]
        self.progress.step = state["step"]
        self.timer.resume(state)


def collect_weights(network: nn.Module, updater: Updater, model: dict[str, Any]) -> dict[str, Any]:
    """The entries of weights in a checkpoint: those that others use, and those to go on from if they differ.

    Args:
        network: the network.
        updater: its updates, with an average or without.
        model: the weights of the last update.

    Returns:
        `model`; if weights are averaged, that is the average, beside `raw_model` and `averaged_updates`.
    """
    if updater.average is None:
        return {"model": model}
    with updater.averaged():
        averaged = fsdp.whole_weights(network)
    return {"model": averaged, "raw_model": model, "averaged_updates": updater.average.updates}


def restore_weights(
    state: Mapping[str, Any], updater: Updater, load: Callable[[Mapping[str, torch.Tensor]], object]
) -> None:
    """Restores what `collect_weights` gave.

    Args:
        state: of the checkpoint.
        updater: the network's updates.
        load: puts weights into the network.
    """
    load(state["model"])
    if updater.average is not None:
        updater.average.restart(state["averaged_updates"])
        load(state["raw_model"])
