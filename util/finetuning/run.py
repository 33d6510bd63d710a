"""A run of several fits: what all of them share, its records, and the parts of one fit that its loop works with."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from util.checkpoints.encoder_weights import EncoderWeights
from util.finetuning.compared_methods import PROBE, Method
from util.finetuning.early_stopping import begin_decay_if_due, decay_epochs, describe_length, median_epochs
from util.finetuning.embedding_features import PixelEmbeddings, principal_features
from util.finetuning.fit import Fit, as_seen_by, make_updater, note_best, resume_fit, share_batch_statistics
from util.finetuning.label_source import LABELS_FILE, absolute_source
from util.finetuning.objectives import Objective
from util.finetuning.predictors import BaselineInputs, Features, NetworkPredictor, Predictor
from util.finetuning.scoring import FoldScores, score_fold, stopping_score
from util.finetuning.tasks import Task
from util.hardware.device import amp_policy
from util.options.finetune_values import LossSettings, PredictionSettings, RunSettings, TrainingSettings
from util.options.version import VERSION
from util.processes import distributed as dist
from util.processes import torchrun_restarts as restarts
from util.records.finetune_records import FinetuneFiles
from util.records.log import plain
from util.training.setup import make_schedule, warn_of_long_warmup
from util.training.timer import TimeLeft

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneInputs:
    """What a run learns from.

    Attributes:
        encoder: pre-trained weights; None for training from scratch.
        opened: the opened layers, a `datasets.finetuning.layers.OpenedLayers`.
        data: labels in folds, a `datasets.finetuning.finetune_data.FinetuneData`.
        task: what is predicted.
        held_out: ground that pre-training held out, (left, bottom, right, top) each.
    """

    encoder: EncoderWeights | None
    opened: Any
    data: Any
    task: Task
    held_out: list[list[float]] | None

    def overview(self) -> dict[str, Any]:
        """What is read, as plain values for the page of the run.

        Raises:
            OSError: a layer cannot be read.
        """
        survey = self.opened.survey
        return {**survey.overview(), **self.data.overview(survey)}

    def shared_entries(self, used_options: dict[str, Any]) -> dict[str, Any]:
        """The entries that all checkpoints of a run share, among them the options."""
        opened, data, survey = self.opened, self.data, self.opened.survey
        return {
            "layers": opened.layers,
            "options": used_options,
            **({LABELS_FILE: absolute_source(used_options["labels"])} if used_options["labels"] else {}),
            "version": VERSION,
            "base_resolution": survey.base_resolution,
            "held_out": self.held_out,
            "aoi": opened.aoi,
            "hidden": sorted(survey.hidden),
            "turns_directions": True,
            "ground": survey.ground(),
            "presences": data.presences(survey),
            "folds": data.folds.summary(),
            "task": {"kind": self.task.name, **data.description()},
            **({"targets": list(opened.targets)} if opened.targets else {}),  # the encoder may know labels by them
        }


@dataclass(frozen=True)
class FinetuneRun:
    """The parts of a run of several fits.

    Attributes:
        ranks: which process this is.
        device: where networks compute.
        inputs: weights, layers, labels and folds.
        amp: choice of --amp.
        output_dir: where results go.
        log_dir: where TensorBoard events go.
        prediction: how test ground is predicted.
        loss: how targets are weighted, smoothed and mixed.
        training: how networks are trained; None to score only.
        settings: how the run reads, saves and reports.
        methods: the compared methods, the main one first.
        folds: numbers of the folds.
        examples: training windows of each fold, and of all labels (None) for the last fit.
        layers: likewise the opened layers with the statistics that the networks of a fold use.
        updates: optimiser steps in an epoch.
        build: builds the network of a method, and lists how the encoder's weights were loaded.
        stored: entries that all checkpoints of the run share.
    """

    ranks: dist.Ranks
    device: torch.device
    inputs: FinetuneInputs
    amp: str
    output_dir: Path
    log_dir: Path
    prediction: PredictionSettings
    loss: LossSettings
    settings: RunSettings
    training: TrainingSettings
    methods: Sequence[Method] = ()
    folds: Sequence[int] = ()
    examples: Mapping[int | None, Any] = field(default_factory=dict)
    layers: Mapping[int | None, Any] = field(default_factory=dict)
    updates: int = 0
    build: Callable[..., tuple[Any, list[str]]] | None = None
    stored: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def files(self) -> FinetuneFiles:
        """The output files."""
        return FinetuneFiles(self.output_dir, self.log_dir, enabled=self.ranks.is_main)

    @property
    def facts(self) -> dict[str, Any]:
        """Task, methods and folds, for the page of the run."""
        task = self.inputs.task
        return {
            "task": task.name,
            "headline": task.headline,
            "columns": list(task.columns),
            "methods": [method.name for method in self.methods],
            "has_final": None in self.examples and self.methods[0].is_network,
        }

    @cached_property
    def time_left(self) -> TimeLeft:
        """Estimates when all fits of networks end."""
        folds = len(self.folds) * sum(method.is_network for method in self.methods)
        return TimeLeft(folds + (None in self.examples and self.methods[0].is_network))

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """Number format of autocast; None for full precision."""
        return amp_policy(self.device, self.amp)[0]

    @property
    def batch_settings(self) -> dict[str, Any]:
        """Keyword arguments of `training_batches` that are the same in every epoch of every fit."""
        training, settings = self.training, self.settings
        return {
            "seed": training.seed,
            "windows": training.tiles_per_epoch,
            "augment": training.augment,
            "batch_size": training.batch_size,
            "accum_iter": training.accum_iter,
            "rank": self.ranks.rank,
            "world_size": self.ranks.world_size,
            "pin": settings.pin_mem and self.device.type == "cuda",
            "workers": settings.num_workers,
        }

    @property
    def effective_batch(self) -> int:
        """Windows in an update, over all processes."""
        return self.training.batch_size * self.training.accum_iter * self.ranks.world_size


def open_records(run: FinetuneRun, deciding_options: dict[str, Any]) -> None:
    """Opens the records, of which run.json holds what must be the same for a run to be continued."""
    inputs = run.inputs
    settings = {
        "options": deciding_options,
        "effective batch (batch_size x accum_iter x processes)": run.effective_batch,
        "layers": [{"name": layer.name, "units": layer.units} for layer in inputs.opened.survey.layers],
        "statistics": [f"{item['location']:.6g} {item['spread']:.6g}" for item in inputs.opened.statistics],
        "weights of --finetune": None if inputs.encoder is None else inputs.encoder.digest(),
        "folds": inputs.data.folds.summary(),
    }
    warn_of_long_warmup(run.training.warmup_epochs, run.training.epochs)
    logger.info("%s", describe_length(run.training.epochs, run.training.patience))
    aside = dist.on_main_rank(
        lambda: run.files.begin(plain(settings), resume=run.settings.resume, overview=inputs.overview, facts=run.facts)
    )
    restarts.mark_started(run.files.output_dir)
    if aside is not None and run.ranks.is_main:
        logger.warning("%s held an earlier run: now in %s", run.files.output_dir, aside)


def begin_fit(run: FinetuneRun, method: Method, fold: int | None) -> Fit:
    """Builds network, objective, schedule and optimiser of a fit, and resumes it where it stopped.

    Raises:
        ValueError: none of its checkpoints can be used.
    """
    training, device, examples, layers = run.training, run.device, run.examples[fold], run.layers[fold]
    epochs = epochs_of_fit(run, method, fold)
    assert run.build is not None
    network = run.build(method, layers)[0]
    model = dist.wrap(network.to(device), device)
    schedule = make_schedule(
        tiles=training.tiles_per_epoch,
        updates=run.updates,
        epochs=epochs,
        warmup_epochs=training.warmup_epochs,
        effective_batch=run.effective_batch,
        lr=training.lr,
        blr=training.blr,
        min_lr=training.min_lr,
    )
    updater = make_updater(
        network,
        model,
        training,
        peak_lr=schedule.peak_lr,
        is_pretrained=method.pretrained,
        device=device,
        amp_dtype=run.amp_dtype,
    )
    objective = run.inputs.task.objective(asdict(examples.statistics), run.loss)
    fit = Fit(method, fold, examples, layers, objective, network, model, updater, schedule, training.patience)
    fit.progress.last_epoch = epochs
    if fit.patience and not fit.is_validated:
        fit.progress.decay_epoch = epochs - decay_epochs(epochs)
    if run.settings.resume:
        resume_fit(fit, run.files.folder(method.name, fold))
        if fold is None and run.training.patience and fit.progress.last_epoch != epochs:
            logger.warning(
                "%s: goes on with the %d epochs that it was begun with; to fit it anew, remove checkpoint-*.pth in %s",
                fit.name,
                fit.progress.last_epoch,
                run.files.folder(method.name, fold),
            )
    done = {"epochs_done": fit.progress.epoch, "step": fit.progress.step}
    dist.on_main_rank(lambda: run.files.forget(method.name, fold, **done))
    return fit


def epochs_of_fit(run: FinetuneRun, method: Method, fold: int | None) -> int:
    """Epochs of a fit, or the most of them; on all labels as many as the folds kept, if early stopping chose those."""
    if fold is not None or not run.training.patience:
        return run.training.epochs

    def kept() -> list[int]:
        found = [run.files.fold_scores(method.name, fold) for fold in run.folds]
        return [scores[0]["kept_epochs"] for scores in found if scores is not None]

    epochs = median_epochs(dist.on_main_rank(kept))
    logger.info("%s/all: %d epochs, the median of the folds", method.name, epochs)
    return epochs


def validate(run: FinetuneRun, fit: Fit) -> float:
    """Scores a fit on its fold's validation ground, stores its weights if they are the best so far, decides its end.

    Every process gets the main one's score, so that all end together.
    """
    assert fit.fold is not None
    begin = time.monotonic()
    with fit.updater.averaged():
        predictor = network_predictor(run, fit.network, fit.objective, fit.layers.survey)
        scores = score(run, predictor, fit.fold, validation=True).scores
        value = dist.on_main_rank(lambda: stopping_score(run.inputs.task, scores))
        note_best(fit, value)
    begin_decay_if_due(fit)
    fit.progress.validation_s += time.monotonic() - begin
    return value


def score(run: FinetuneRun, predictor: Predictor, fold: int, *, validation: bool = False) -> FoldScores:
    """Scores a fold's test ground, or its validation ground, over all processes.

    Validation of large ground is limited to a part, the same in every epoch, that takes no longer than the epoch did.
    """
    inputs, where = run.inputs, {"ranks": run.ranks, "device": run.device}
    most = run.training.tiles_per_epoch if validation else None
    return score_fold(predictor, inputs.task, inputs.data, inputs.opened.survey, fold, validated=most, **where)


def network_predictor(run: FinetuneRun, network: Any, objective: Objective, survey: Any) -> NetworkPredictor:
    """The predictor of a network, from layers with the statistics of its training; every process must call it."""
    data, survey = run.inputs.data, as_seen_by(network, survey)
    windows = data.windows
    share_batch_statistics(network)

    def read(numbers: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]]:
        imgs, valid, _, native = windows.read(numbers).to(run.device, survey.pyramid)
        return imgs, valid, native

    return NetworkPredictor(
        network,
        objective,
        survey=survey,
        windows=None if windows is None else read,
        count=data.outputs,
        scale=data.scale,
        overlap=run.prediction.overlap,
        batch_size=run.prediction.batch_size,
        device=run.device,
        amp_dtype=run.amp_dtype,
    )


def fit_baseline(
    run: FinetuneRun, name: str, fit: Callable[[BaselineInputs], tuple[Predictor, dict[str, Any]]], fold: int
) -> tuple[Predictor, dict[str, Any]]:
    """Fits a method that is no network on a fold; every process must call it.

    Returns:
        Its predictor and its costs. Where networks are validated, `validation` among them is its score on the same
        ground as theirs, with which their epochs can be compared; nothing is chosen by it.
    """
    run.files.forget(name, fold, epochs_done=0)
    predictor, costs = fit(baseline_inputs(run, fold))
    if run.training.patience:
        scores = score(run, predictor, fold, validation=True).scores
        costs = costs | {"validation": dist.on_main_rank(lambda: stopping_score(run.inputs.task, scores))}
    return predictor, costs


def baseline_inputs(run: FinetuneRun, fold: int | None) -> BaselineInputs:
    """Training labels of a fold, or all for None, and features of pixels, for methods that are no network."""
    data, examples, layers = run.inputs.data, run.examples[fold], run.layers[fold]
    seed, scale = run.training.seed, data.scale
    return BaselineInputs(
        class_counts=examples.statistics.class_counts,
        mean=examples.statistics.mean,
        samples=examples.sampled_pixels if data.has_ground else None,
        features=lambda pixels: layers.pixel_features(pixels, scale=scale),
        random_features=lambda pixels: layers.random_features(pixels, scale=scale, seed=seed),
        embeddings=None if run.inputs.encoder is None else partial(encoder_features, run, layers),
        pixels=data.window_centres,
        scale=scale,
        seed=seed,
        tree_samples=run.prediction.tree_samples,
        balanced=run.loss.class_weights == "balanced",
        device=run.device,
    )


def encoder_features(run: FinetuneRun, layers: Any, pixels: np.ndarray) -> Features:
    """Principal components of the pre-trained encoder's embeddings, fitted on training pixels."""
    assert run.build is not None
    embeddings = PixelEmbeddings(
        run.build(PROBE, layers)[0],
        layers.survey,
        scale=run.inputs.data.scale,
        overlap=run.prediction.overlap,
        batch_size=run.prediction.batch_size,
        device=run.device,
        amp_dtype=run.amp_dtype,
    )
    return principal_features(embeddings, pixels)
