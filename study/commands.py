"""The command of each experiment of a study."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from study.arms import StudyArm
from study.plan import FINETUNE_WINDOWS, PRETRAIN_TILES, Task

CHECKPOINT = "checkpoint-last.pth"
NEVER = "1000000"
WARMUP = 0.1
"""Share of its epochs in which the rate of a training rises, long or short; of the patience where fits end early."""


@dataclass(frozen=True)
class Settings:
    """What all experiments of a study share.

    Attributes:
        data: flags that name the layers.
        labels: flags that name labels and task.
        model: flags of the model, which a checkpoint decides where there is one.
        label_layers: numbers of the layers that are the labels, which pre-training must not see.
        pretrain: further flags of main_pretrain.
        finetune: further flags of main_finetune.
        precision: value of --amp.
        folds: number of folds.
        only_folds: numbers of the folds that are fitted and tested; empty: all.
        patience: epochs without a better validation score after which a fit ends; 0: fits have fixed lengths.
        base_resolution: edge of a base pixel, CRS units; None until it is known.
    """

    data: tuple[str, ...]
    labels: tuple[str, ...]
    model: tuple[str, ...] = ()
    label_layers: tuple[int, ...] = ()
    pretrain: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()
    precision: str = "auto"
    folds: int = 3
    only_folds: tuple[int, ...] = ()
    patience: int = 0
    base_resolution: float | None = None

    @property
    def run_folds(self) -> tuple[int, ...]:
        """Numbers of the folds that are fitted and tested."""
        return self.only_folds or tuple(range(self.folds))


def command_of(
    task: Task, settings: Settings, *, folder: Path, epochs: int, device: str, further: Sequence[str] = ()
) -> list[str]:
    """The command of a task.

    Args:
        task: the task.
        settings: what all share.
        folder: of the study.
        epochs: of pre-training, or of fine-tuning.
        device: for --device.
        further: flags that go last, so before all others.
    """
    make = pretrain_command if task.stage == "pretrain" else fit_command
    where = ["--output_dir", str(folder / task.name), "--resume", "auto", "--device", device, "--no_progress"]
    return [sys.executable, "-m", *make(task, settings, folder=folder, epochs=epochs), *where, *further]


def pretrain_command(task: Task, settings: Settings, *, folder: Path, epochs: int) -> list[str]:
    """Pre-training on all ground: nothing is held out, as scores are those of fine-tuning."""
    command = ["main_pretrain", *settings.data, *settings.model, "--amp", settings.precision]
    command += ["--val_fraction", "0", "--figure_every", "0", "--keep_every", NEVER, "--num_workers", "1"]
    own = task.arm.pretrain or ()
    command += [*_base(settings), *_warmup(epochs), *_hidden(settings, own), *settings.pretrain, *own]
    command += ["--tiles_per_epoch", str(PRETRAIN_TILES), "--epochs", str(epochs)]
    return [*command, "--seed", str(task.seed + task.arm.seed_offset)]


def fit_command(task: Task, settings: Settings, *, folder: Path, epochs: int) -> list[str]:
    """Fine-tuning on every fold; the same folds and kept labels for all arms of a seed."""
    arm = task.arm
    command = ["main_finetune", *settings.data, *settings.labels, "--amp", settings.precision, "--num_workers", "1"]
    if arm.pretrain is None:
        command += [*settings.model, *_base(settings)]
    else:
        command += ["--finetune", str(folder / task.needs[0] / CHECKPOINT)]
    command += ["--folds", str(settings.folds), "--fold_seed", "0", "--label_seed", str(task.seed)]
    command += ["--only_folds", *map(str, settings.only_folds)] if settings.only_folds else []
    command += ["--tiles_per_epoch", str(FINETUNE_WINDOWS), *_length(arm, settings.patience, epochs)]
    command += [*settings.finetune, *arm.finetune]
    command += [*task.regime.flags, "--epochs", str(epochs), "--no_final"]
    command += ["--baselines", *_baselines(arm), *(["--no_network"] if arm.method != "network" else [])]
    return [*command, "--seed", str(task.seed + arm.seed_offset)]


def _baselines(arm: StudyArm) -> list[str]:
    if arm.method != "network":
        return [arm.method]
    return ["probe"] if arm.probe else ["constant"]


def _length(arm: StudyArm, patience: int, epochs: int) -> list[str]:
    """Flags that end a fit.

    A fit that gets another arm's time validates like the others, on the same training ground, but its patience is its
    whole length, so that it never ends early.
    """
    if not patience:
        return [*_warmup(epochs), "--patience", "0"]
    return [*_warmup(min(patience, epochs)), "--patience", str(epochs if arm.is_timed_fit else patience)]


def _warmup(epochs: int) -> list[str]:
    return ["--warmup_epochs", f"{WARMUP * epochs:g}"]


def _hidden(settings: Settings, own: Sequence[str]) -> list[str]:
    """Flags that hide the labels' layers from an arm's pre-training, numbered as after its own --dropped_bands."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--dropped_bands", type=int, nargs="*", default=[])
    dropped = set(parser.parse_known_args(own)[0].dropped_bands)
    left = [layer for layer in settings.label_layers if layer not in dropped]
    numbers = [layer - sum(other < layer for other in dropped) for layer in left]
    return ["--masked_bands", *map(str, numbers)] if numbers else []


def _base(settings: Settings) -> list[str]:
    return [] if settings.base_resolution is None else ["--base_resolution", f"{settings.base_resolution:.12g}"]
