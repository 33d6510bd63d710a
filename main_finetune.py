"""Fine-tunes a pre-trained encoder on labels, and scores it on ground that it was not trained on.

Reads top to bottom: options, data and folds, methods, the loop of one fit, scores, end. `python -m main_finetune
--help` lists the options; docs/finetuning.md explains the output files.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import models_vit_group_channels as models
from datasets.finetuning import finetune_data, layers
from datasets.finetuning.batch import Batch
from datasets.finetuning.dense_targets import DenseFold
from datasets.finetuning.finetune_data import FinetuneData
from datasets.finetuning.layers import OpenedLayers
from datasets.finetuning.pixel_features import pixel_features
from datasets.finetuning.scene_targets import SceneFold
from datasets.finetuning.window_targets import WindowFold, WindowTargets
from datasets.folds.make_folds import SPLITS
from datasets.loading.augment import rotated
from datasets.loading.batch_plan import MicroBatch, plan_epoch, updates_per_epoch
from datasets.loading.prefetch import prefetch, read_ahead
from datasets.survey.inference_survey import InferenceSurvey
from datasets.synthetic.sample_survey import default_survey
from util.checkpoints import checkpoint_file, resume_state
from util.checkpoints import run_checkpoints as ckpt
from util.checkpoints.encoder_weights import EncoderWeights, load_encoder, read_encoder_weights
from util.finetuning import evaluation
from util.finetuning.compared_methods import BASELINES, DEFAULT_BASELINES, Method, choose_folds, compared_methods
from util.finetuning.cost import fit_costs
from util.finetuning.fit import (
    Fit,
    choose_batches,
    make_updater,
    new_meter,
    note_best,
    read_meter,
    resume_fit,
    save_fit,
)
from util.finetuning.objectives import CLASS_WEIGHTS, Objective
from util.finetuning.predictors import BaselineInputs, NetworkPredictor, Predictor
from util.finetuning.report import Comparison, report
from util.finetuning.scoring import FoldScores, score_fold, score_line, stopping_score
from util.finetuning.tasks import OFFERED, TASKS, Task, task_of_labels
from util.hardware.device import amp_policy, describe_environment, peak_memory_bytes
from util.model.task_heads import HEADS
from util.options import common
from util.options import finetune as options
from util.processes import distributed as dist
from util.processes import torchrun_restarts as restarts
from util.processes.program import run_program
from util.processes.signals import Stop
from util.processes.terminal import progress_bar
from util.records.finetune_records import EVALUATION, FinetuneFiles, flat_numbers
from util.records.log import check_writable, plain
from util.training.engine import seed_step
from util.training.setup import make_schedule

logger = logging.getLogger("main_finetune")

CHOICES = options.Choices(
    tasks=OFFERED,
    window_tasks=tuple(name for name in OFFERED if not TASKS[name].per_pixel),
    baselines=tuple(BASELINES),
    default_baselines=DEFAULT_BASELINES,
    network_baselines=tuple(name for name, method in BASELINES.items() if method.is_network),
    pixel_baselines=tuple(name for name, method in BASELINES.items() if method.needs_pixels),
    class_weights=tuple(CLASS_WEIGHTS),
    splits=tuple(SPLITS),
    heads=tuple(HEADS),
)


def get_args_parser() -> argparse.ArgumentParser:
    """The options, under the names that SatMAE users know where they exist there."""
    parser = argparse.ArgumentParser(
        "main_finetune", usage="main_finetune [options]", description=__doc__.split("\n\n")[0]
    )
    options.add_all_options(parser, CHOICES)
    return parser


@dataclass(frozen=True)
class FinetuneInputs:
    """What a run learns from: weights (None: from scratch), layers, labels in folds, the task, and ground that
    pre-training held out.
    """

    encoder: EncoderWeights | None
    opened: OpenedLayers
    data: FinetuneData
    task: Task
    held_out: list[list[float]] | None


@dataclass(frozen=True)
class FinetuneRun:
    """The parts of a run of several fits.

    Attributes:
        ranks: which process this is.
        device: where networks compute.
        amp_dtype: number format of autocast, None for full precision.
        inputs: weights, layers, labels and folds.
        prediction: how test ground is predicted.
        files: the output files.
        loss: how targets are weighted, smoothed and mixed.
        training: how networks are trained; None to score only.
        settings: how the run reads, saves and reports.
        methods: the compared methods, the main one first.
        folds: numbers of the folds.
        examples: training windows of each fold, and of all labels (None) for the last fit.
        build: builds the network of a method, and lists how the encoder's weights were loaded.
        stored: entries that all checkpoints of the run share.
    """

    ranks: dist.Ranks
    device: torch.device
    amp_dtype: torch.dtype | None
    inputs: FinetuneInputs
    prediction: options.PredictionSettings
    files: FinetuneFiles
    loss: options.LossSettings
    settings: options.RunSettings
    training: options.TrainingSettings
    methods: Sequence[Method] = ()
    folds: Sequence[int] = ()
    examples: Mapping[int | None, DenseFold | WindowFold | SceneFold] = field(default_factory=dict)
    build: Callable[[Method], tuple[Any, list[str]]] | None = None
    stored: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """A fine-tuned checkpoint at `path` with contents `state`, and the ground to score it on."""

    run: FinetuneRun
    path: str
    state: dict[str, Any]
    ground: evaluation.ScoredGround


class Stopped(Exception):
    """A signal ended the run; everything is saved."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Returns:
        Exit status: 0 when done, or stopped by a signal after a checkpoint; 1 when the run failed; 2 for bad input.
    """
    args = get_args_parser().parse_args(argv)
    processes = common.process_options(args)
    if args.eval:
        return run_program("main_finetune", prepare=partial(prepare_evaluation, args), work=evaluate, **processes)
    return run_program("main_finetune", prepare=partial(prepare, args), work=compare, **processes)


# ---------------------------------------------------------------------------------------------------- before the loop


def prepare(args: argparse.Namespace, device: torch.device, ranks: dist.Ranks) -> FinetuneRun:
    """Opens weights, layers and labels, builds every network once, and opens the output files.

    Raises:
        ValueError, OSError: bad input.
    """
    options.check_resume(args)
    options.check(args, CHOICES)
    methods = compared_methods(
        has_weights=bool(args.finetune),
        freeze_encoder=args.freeze_encoder,
        baselines=options.baselines_of(args, CHOICES),
        no_network=args.no_network,
    )
    environment = begin(args, device, ranks)
    if restarts.was_restarted(Path(args.output_dir)):
        args = options.with_values(args, resume="auto")
    inputs, args = open_inputs(args, ranks)
    data, amp_dtype = inputs.data, amp_policy(device, args.amp)[0]

    # everything is tried before anything is trained
    folds = choose_folds(data.folds.count, args.only_folds)
    fits = [*folds, *([None] if options.wants_final(args) and methods[0].is_network else [])]
    examples = dist.on_all(lambda: {fold: data.targets.fold(fold) for fold in fits})
    build = partial(build_network, inputs, options.network_settings(args), methods[0])
    networks = {method: dist.on_all(partial(build, method)) for method in methods if method.is_network}
    for text in networks[methods[0]][1] if methods[0] in networks else ():
        logger.info("%s", text)
    batch = choose_batches(
        [network for network, _ in networks.values()],
        inputs.task.objective(asdict(examples[folds[0]].statistics), options.loss_settings(args)),
        **options.batch_options(args),
        amp_dtype=amp_dtype,
        batches_ahead=read_ahead(args.num_workers),
        ranks=ranks,
        device=device,
    )
    args = options.with_values(args, batch_size=batch.batch_size, accum_iter=batch.accum_iter)
    run = replace(
        make_run(args, inputs, device=device, ranks=ranks),
        methods=methods,
        folds=folds,
        examples=examples,
        build=build,
        stored=shared_entries(inputs, vars(args)),
    )
    open_records(run, options.deciding_options(args))
    run.files.describe({"options": vars(args), "environment": environment, "folds": data.folds.summary()})
    return run


def begin(args: argparse.Namespace, device: torch.device, ranks: dist.Ranks) -> dict[str, Any]:
    """Checks that the output folders can be written; logs and returns what the program runs on."""
    for flag, folder in (("--output_dir", args.output_dir), ("--log_dir", args.log_dir)):
        if folder:
            dist.on_main_rank(partial(check_writable, Path(folder), flag=flag))
    precision = str(amp_policy(device, args.amp)[0] or "fp32")
    environment = describe_environment(device) | {"processes": ranks.world_size, "precision": precision}
    logger.info("%s", ", ".join(f"{key} {value}" for key, value in environment.items()))
    return environment


def open_inputs(args: argparse.Namespace, ranks: dist.Ranks) -> tuple[FinetuneInputs, argparse.Namespace]:
    """Opens weights, layers and labels, and divides the folds.

    Returns:
        The inputs, and the options with those filled in that the inputs decide.

    Raises:
        ValueError, OSError: bad input.
    """
    encoder = dist.on_all(lambda: read_encoder_weights(args.finetune)) if args.finetune else None
    stored = None
    if encoder is not None:
        args = options.with_checkpoint(args, encoder.config, encoder.contents, is_finetuned=False)
        stored = None if encoder.published else {**encoder.contents, "model_config": encoder.config}
    if stored is None and args.data_dir is None and args.train_path is None and args.dataset_type == "grid":
        table = str(dist.on_each_machine(default_survey, ranks) / "layers.csv")
        logger.info("no --data_dir or --train_path given: using the sample survey, %s", table)
        args = options.with_values(args, train_path=table)
    opened, labels = dist.on_all(lambda: open_ground(args, stored, ranks))
    args = options.with_values(args, labels=labels)
    held_out = None if stored is None else stored.get("held_out")
    data = dist.on_all(lambda: open_labels(args, opened, held_out=held_out))
    log_inputs(opened, data, ranks)
    args = options.with_values(args, tiles_per_epoch=args.tiles_per_epoch or data.epoch_windows)
    task = task_of_labels(args.task, presence_only=data.presence_only)
    return FinetuneInputs(encoder, opened, data, task, held_out), args


def open_ground(
    args: argparse.Namespace, stored: Mapping[str, Any] | None, ranks: dist.Ranks
) -> tuple[OpenedLayers, str | None]:
    """Opens the images of a scene data set; or layers, without those that hold the labels, and the labels' path.

    Raises:
        ValueError, OSError: bad input.
    """
    if args.dataset_type != "grid":
        return layers.open_scene_layers(stored, **options.scene_options(args)), args.labels
    chosen = layers.LayerOptions(**options.layer_options(args))
    opened = layers.open_layers(stored, chosen, local_ranks=ranks.local_world_size)
    labels = layers.labels_path(args.labels, TASKS[args.task].sample_labels, opened.survey.layers)
    layers.hide_labels(opened, labels, args.label_band)
    return opened, labels


def open_labels(
    args: argparse.Namespace,
    opened: OpenedLayers,
    *,
    held_out: list[list[float]] | None,
    tests_all: bool = False,
    class_codes: Sequence[Any] | None = None,
) -> FinetuneData:
    """Reads the labels on the layers' ground and divides them into folds; or finds the images to test.

    Raises:
        ValueError, OSError: bad input.
    """
    if args.dataset_type != "grid":
        chosen = {"label_fraction": args.label_fraction, "seed": args.seed}
        return finetune_data.open_scene_data(opened.scenes, args.test_path, **chosen)
    split = options.split_options(args, input_size=opened.survey.input_size, held_out=held_out)
    task = TASKS[args.task]
    return finetune_data.open_targets(
        opened.grids,
        args.labels,
        labels=finetune_data.LabelOptions(**options.label_options(args)),
        targets=finetune_data.TargetOptions(
            **options.target_options(args),
            per_pixel=task.per_pixel,
            has_classes=task.has_classes,
            class_codes=class_codes,
        ),
        split=finetune_data.SplitOptions(**(split | ({"split": "all"} if tests_all else {}))),
    )


def log_inputs(opened: OpenedLayers, data: FinetuneData, ranks: dist.Ranks) -> None:
    """Logs what was opened, and warnings."""
    for text in (*opened.survey.summary_lines(), *data.summary_lines(), data.folds.describe()):
        logger.info("%s", text)
    for text in (*opened.survey.warnings, *data.warnings):
        logger.log(logging.WARNING if ranks.is_main else logging.DEBUG, "%s", text)


def build_network(
    inputs: FinetuneInputs, settings: options.NetworkSettings, first: Method, method: Method
) -> tuple[Any, list[str]]:
    """Builds the network of a method before training, the same on every fold, and lists how weights were loaded.

    Raises:
        ValueError: sizes do not fit together, or the weights do not fit the layers.
    """
    encoder, opened = inputs.encoder, inputs.opened
    if encoder is not None:
        config = models.encoder_arguments(encoder.config)
        options.check_channels(str(encoder.path), config, opened.channels)
    else:
        config = {"size": settings.model, "patch_size": settings.patch_size, **opened.channels}
    config |= {"img_size": opened.survey.input_size, "drop_path": settings.drop_path}
    config |= {"grad_checkpointing": settings.grad_checkpointing}
    head = settings.head if settings.head and method == first else method.head
    config |= inputs.task.head_arguments(
        inputs.data.outputs, scale=settings.label_scale, head=head, global_pool=settings.global_pool
    )
    torch.manual_seed(settings.seed)
    network, lines = models.build_finetune_model(config), []
    if method.pretrained and encoder is not None:
        lines = load_encoder(network, encoder).summary_lines()
    if method.frozen:
        models.freeze_encoder(network)
    return network, lines


def make_run(
    args: argparse.Namespace, inputs: FinetuneInputs, *, device: torch.device, ranks: dist.Ranks
) -> FinetuneRun:
    """The run, as far as the options decide it."""
    output_dir = Path(args.output_dir)
    return FinetuneRun(
        ranks=ranks,
        device=device,
        amp_dtype=amp_policy(device, args.amp)[0],
        inputs=inputs,
        prediction=options.prediction_settings(args),
        files=FinetuneFiles(output_dir, Path(args.log_dir or output_dir), enabled=ranks.is_main),
        loss=options.loss_settings(args),
        settings=options.run_settings(args),
        training=options.training_settings(args),
    )


def shared_entries(inputs: FinetuneInputs, used_options: dict[str, Any]) -> dict[str, Any]:
    """The entries that all checkpoints of a run share."""
    opened, data, survey = inputs.opened, inputs.data, inputs.opened.survey
    return {
        "layers": opened.layers,
        "statistics": opened.statistics,
        "encodings": opened.encodings,
        "options": used_options,
        "version": checkpoint_file.VERSION,
        "base_resolution": survey.base_resolution,
        "held_out": inputs.held_out,
        "hidden": sorted(survey.hidden),
        "ground": survey.ground(),
        "folds": data.folds.summary(),
        "task": {"kind": inputs.task.name, **data.description()},
    }


def open_records(run: FinetuneRun, deciding_options: dict[str, Any]) -> None:
    """Opens the records, of which run.json holds what must be the same for a run to be continued."""
    inputs = run.inputs
    settings = {
        "options": deciding_options,
        "effective batch (batch_size x accum_iter x processes)": effective_batch(run),
        "layers": [{"name": layer.name, "units": layer.units} for layer in inputs.opened.survey.layers],
        "statistics": [f"{item['location']:.6g} {item['spread']:.6g}" for item in inputs.opened.statistics],
        "weights of --finetune": None if inputs.encoder is None else inputs.encoder.digest(),
        "folds": inputs.data.folds.summary(),
    }
    aside = dist.on_main_rank(lambda: run.files.begin(plain(settings), resume=run.settings.resume))
    restarts.mark_started(run.files.output_dir)
    if aside is not None and run.ranks.is_main:
        logger.warning("%s held an earlier run: now in %s", run.files.output_dir, aside)


def effective_batch(run: FinetuneRun) -> int:
    """Windows in an update, over all processes."""
    return run.training.batch_size * run.training.accum_iter * run.ranks.world_size


# ------------------------------------------------------------------------------------------------------- the comparison


def compare(run: FinetuneRun, stop: Stop) -> int:
    """Fits and scores every method on every fold, reports, and fits the main method once more, on all labels.

    Returns:
        Exit status 0, also when a signal stopped the run after a checkpoint.

    Raises:
        RunFailed, ValueError, OSError: a fit failed; fits that were finished before are stored.
    """
    with closing(run.files):
        try:
            for method in run.methods:
                for fold in run.folds:
                    compare_fold(run, method, fold, stop)
            data, survey = run.inputs.data, run.inputs.opened.survey
            comparison = Comparison(
                task=run.inputs.task,
                names=data.names,
                methods=[method.name for method in run.methods],
                folds=run.folds,
                split=data.folds.summary(),
                leak_warning=data.folds.leak_warning,
                units=data.units,
            )
            ground = survey if isinstance(survey, InferenceSurvey) else None
            metrics = dist.on_main_rank(lambda: report(comparison, run.files, data, ground))
            if None in run.examples:
                fit_network(run, run.methods[0], None, stop, scores=metrics)
                path = run.files.output_dir / ckpt.LAST
                logger.info("checkpoint   %s (fitted on all labels, for main_inference)", path)
        except Stopped:
            logger.warning("stopped by a signal; everything is saved: continue with --resume auto")
    return 0


def compare_fold(run: FinetuneRun, method: Method, fold: int, stop: Stop) -> None:
    """Fits a method on one fold and scores it on the fold's test ground, unless that was done before.

    Raises:
        Stopped: by a signal.
    """
    files, task = run.files, run.inputs.task
    if dist.on_main_rank(partial(files.fold_scores, method.name, fold)) is not None:
        logger.info("%s fold %d was done before", method.name, fold)
        return
    begin = time.monotonic()
    if method.fit is None:
        fit = fit_network(run, method, fold, stop)
        predictor: Predictor = network_predictor(run, fit.network, fit.objective)
        costs = fit_costs(fit, device=run.device, input_size=run.inputs.opened.survey.input_size)
    else:
        files.forget(method.name, fold, from_epoch=0)
        predictor, costs = method.fit(baseline_inputs(run, fold))
    fold_scores = score(run, predictor, fold)
    labels, seconds = run.examples[fold].statistics.labels, time.monotonic() - begin
    record = {"test": fold_scores.scores, "train_labels": labels, "seconds": seconds, **costs}
    tags = {f"score/{method.name}/{name}": value for name, value in flat_numbers(record["test"])}
    files.log({"kind": "score", "arm": method.name, "fold": fold, **record}, tags=tags, step=fold)
    dist.on_main_rank(partial(files.write_fold_scores, method.name, fold, record, fold_scores.arrays))
    line = score_line(task, fold_scores.scores, run.inputs.data.units)
    logger.info("%s fold %d: %s", method.name, fold, line)
    if dist.any_rank(stop.signal is not None):
        raise Stopped


# ------------------------------------------------------------------------------------------------------------- one fit


def fit_network(
    run: FinetuneRun, method: Method, fold: int | None, stop: Stop, *, scores: dict[str, Any] | None = None
) -> Fit:
    """Fits a network on a fold's training labels, or continues a fit that was stopped.

    Args:
        run: the run.
        method: how it is trained.
        fold: None to fit on all labels.
        stop: whether a signal arrived.
        scores: of the comparison, to be stored in the checkpoint.

    Raises:
        Stopped: by a signal, after a checkpoint.
        RunFailed: a loss was not finite.
        OSError: a window could not be read, or a checkpoint not written.
    """
    fit, training = begin_fit(run, method, fold), run.training
    folder = run.files.folder(method.name, fold)
    save = partial(save_fit, fit, folder, run.stored, scores=scores, device=run.device)
    progress, patience = fit.progress, training.patience if fit.is_validated else 0
    while progress.epoch < training.epochs and not progress.waits_too_long(patience):
        record = fit_epoch(run, fit, stop, save)
        with fit.timer.paused():
            if patience:
                record["validation"] = validate(run, fit)
            tags = {f"{fit.name}/{key}": value for key, value in record.items()}
            place = {"arm": method.name, "fold": fold, "epoch": progress.epoch - 1, "step": progress.step}
            run.files.log({"kind": "epoch"} | place | record, tags=tags, step=progress.step)
            save()
        if dist.any_rank(stop.signal is not None) and progress.epoch < training.epochs:
            raise Stopped
    if progress.best_model:
        logger.info("%s: the weights of epoch %d were best in validation", fit.name, progress.best_epoch)
        fit.network.load_state_dict(progress.best_model)
        save()
    return fit


def begin_fit(run: FinetuneRun, method: Method, fold: int | None) -> Fit:
    """Builds network, objective, schedule and optimiser of a fit, and resumes it where it stopped.

    Raises:
        ValueError: none of its checkpoints can be used.
    """
    training, device, examples = run.training, run.device, run.examples[fold]
    assert run.build is not None
    network = run.build(method)[0]
    model = dist.wrap(network.to(device), device)
    batches = {"batch_size": training.batch_size, "accum_iter": training.accum_iter}
    schedule = make_schedule(
        tiles=training.tiles_per_epoch,
        updates=updates_per_epoch(training.tiles_per_epoch, **batches, world_size=run.ranks.world_size),
        epochs=training.epochs,
        warmup_epochs=training.warmup_epochs,
        effective_batch=effective_batch(run),
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
    fit = Fit(method, fold, examples, objective, network, model, updater, schedule)
    if run.settings.resume:
        resume_fit(fit, run.files.folder(method.name, fold))
    dist.on_main_rank(lambda: run.files.forget(method.name, fold, from_epoch=fit.progress.epoch))
    return fit


def fit_epoch(run: FinetuneRun, fit: Fit, stop: Stop, save: Callable[[], None]) -> dict[str, Any]:
    """Trains the rest of the current epoch.

    Returns:
        Mean loss and gradient norm, learning rate, speed, and memory.

    Raises:
        Stopped: by a signal, after a checkpoint.
        RunFailed: a loss was not finite.
    """
    training, progress, updates = run.training, fit.progress, fit.schedule.updates
    folder, meter = run.files.folder(fit.method.name, fit.fold), new_meter(fit, run.device)
    zero, unused = torch.zeros((), device=run.device), torch.zeros(1, 1, device=run.device)
    bar = progress_bar(
        total=updates,
        initial=progress.update,
        desc=f"{fit.name} epoch {progress.epoch}",
        unit="update",
        enabled=run.ranks.is_main and run.settings.show_progress,
    )
    saved_at, part, lr = time.monotonic(), 0, 0.0
    fit.model.train()
    for micro, batch in fit.timer.timed(read_batches(run, fit)):
        seed_step(training.seed, step=progress.step * training.accum_iter + part, rank=run.ranks.rank)
        imgs, valid, target = on_device(run, batch)
        with dist.gradients_shared(fit.model, micro.is_last), dist.peer_errors_named():
            with fit.updater.autocast():
                loss = fit.objective.loss(fit.model, imgs, valid, target)
            fit.updater.backward(loss * micro.weight)
        meter.add(losses=(loss, loss, zero), weight=micro.weight, error_sums=unused, error_counts=unused)
        fit.timer.tiles += len(micro.positions) if micro.weight else 0
        part += 1
        if not micro.is_last:
            continue

        lr, part = fit.schedule.lr(progress.step), 0
        meter.end_update(fit.updater.step(lr))
        progress.step, progress.update = progress.step + 1, progress.update + 1
        bar.update(1)
        is_due = stop.signal is not None or time.monotonic() - saved_at > 60 * run.settings.save_minutes
        if progress.update < updates and dist.any_rank(is_due):
            read_meter(fit, meter, folder)
            save()
            saved_at = time.monotonic()
            if dist.any_rank(stop.signal is not None):
                raise Stopped
    bar.close()
    read_meter(fit, meter, folder)
    record = progress.end_epoch() | {"lr": lr, **fit.timer.read(run.ranks.world_size)}
    logger.info(
        "%s epoch %d: loss %.4f, %.0f windows/s, waited %.1f %%",
        *(fit.name, progress.epoch - 1, record["loss"], record["tiles_per_s"], 100 * record["wait_share"]),
    )
    return record | {"peak_memory_mb": peak_memory_bytes(run.device) / 2**20}


def read_batches(run: FinetuneRun, fit: Fit) -> Iterator[tuple[MicroBatch, Batch]]:
    """The micro-batches of this process in the rest of the current epoch, read ahead by threads."""
    training, progress = run.training, fit.progress
    windows = fit.examples.epoch(
        seed=training.seed, epoch=progress.epoch, tiles=training.tiles_per_epoch, augment=training.augment
    )
    plan = plan_epoch(
        training.tiles_per_epoch,
        batch_size=training.batch_size,
        accum_iter=training.accum_iter,
        rank=run.ranks.rank,
        world_size=run.ranks.world_size,
        start_update=progress.update,
    )

    def read(micro: MicroBatch) -> Batch:
        batch = fit.examples.read(windows[micro.positions])
        return batch.pin() if run.settings.pin_mem and run.device.type == "cuda" else batch

    return prefetch(plan, read, workers=run.settings.num_workers)


def on_device(run: FinetuneRun, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values, validity and target of a batch on the device, rotated alike."""
    sample = run.inputs.opened.survey.pyramid(*batch.tiles.to(run.device).parts)
    target = batch.target.to(run.device, non_blocking=True)
    imgs, valid = rotated(sample.imgs, batch.turns), rotated(sample.valid, batch.turns)
    return imgs, valid, rotated(target, batch.turns) if target.ndim > 1 else target


def validate(run: FinetuneRun, fit: Fit) -> float:
    """Scores the fold's validation ground, and stores the weights if they are the best so far."""
    assert fit.fold is not None
    predictor = network_predictor(run, fit.network, fit.objective)
    value = stopping_score(run.inputs.task, score(run, predictor, fit.fold, validation=True).scores)
    note_best(fit, value)
    return value


# -------------------------------------------------------------------------------------------------------------- scores


def score(run: FinetuneRun, predictor: Predictor, fold: int, *, validation: bool = False) -> FoldScores:
    """Scores a fold's test ground, or its validation ground, over all processes."""
    inputs, where = run.inputs, {"validation": validation, "ranks": run.ranks, "device": run.device}
    return score_fold(predictor, inputs.task, inputs.data, inputs.opened.survey, fold, **where)


def network_predictor(run: FinetuneRun, network: Any, objective: Objective) -> NetworkPredictor:
    """The predictor of a network."""
    data, windows = run.inputs.data, run.inputs.data.windows
    return NetworkPredictor(
        network,
        objective,
        survey=run.inputs.opened.survey,
        windows=None if windows is None else lambda numbers: on_device(run, windows.read(numbers))[:2],
        count=data.outputs,
        scale=data.scale,
        overlap=run.prediction.overlap,
        batch_size=run.prediction.batch_size,
        device=run.device,
        amp_dtype=run.amp_dtype,
    )


def baseline_inputs(run: FinetuneRun, fold: int) -> BaselineInputs:
    """Training labels of a fold, and features of pixels, for methods that are no network."""
    data, examples = run.inputs.data, run.examples[fold]
    targets = data.targets if isinstance(data.targets, WindowTargets) else None
    return BaselineInputs(
        class_counts=examples.statistics.class_counts,
        mean=examples.statistics.mean,
        samples=None if isinstance(examples, SceneFold) else examples.sampled_pixels,
        features=lambda pixels: pixel_features(run.inputs.opened.grids, pixels, scale=data.scale),
        pixels=None if targets is None else targets.examples.centres.astype(np.int64),
        scale=data.scale,
        seed=run.training.seed,
        tree_samples=run.prediction.tree_samples,
        balanced=run.loss.class_weights == "balanced",
        device=run.device,
    )


# ----------------------------------------------------------------------------------------------------- scoring alone


def prepare_evaluation(args: argparse.Namespace, device: torch.device, ranks: dist.Ranks) -> Evaluation:
    """Opens a fine-tuned checkpoint and the ground to score it on: its fold's test ground, or all of other labels.

    Raises:
        ValueError, OSError: bad input; the checkpoint was fitted on all of these labels.
    """
    options.check_resume(args)
    state = dist.on_all(lambda: checkpoint_file.load_checkpoint(args.resume, required=evaluation.FINETUNED_KEYS))
    args = options.with_stored(args, state["options"], get_args_parser())
    options.check(args, CHOICES)
    args = options.with_checkpoint(args, state["model_config"], state, is_finetuned=True)
    begin(args, device, ranks)
    opened, labels = dist.on_all(lambda: open_ground(args, state, ranks))
    args = options.with_values(args, labels=labels)
    is_grid, ground = args.dataset_type == "grid", evaluation.IMAGES
    if is_grid:
        assert labels is not None
        source = evaluation.LabelSource(labels, args.label_band, args.label_column)
        ground = evaluation.scored_ground(source, state, opened.survey.ground(), checkpoint=args.resume)
    how = {"held_out": state["held_out"], "tests_all": not ground.is_fold, "class_codes": state["task"]["codes"]}
    data = dist.on_all(lambda: open_labels(args, opened, **how))
    log_inputs(opened, data, ranks)
    if ground.is_fold and is_grid:
        resume_state.check_same_configuration(
            state["folds"], plain(data.folds.summary()), "folds (labels or layers changed)"
        )
    task = task_of_labels(args.task, presence_only=data.presence_only)
    inputs = FinetuneInputs(None, opened, data, task, state["held_out"])
    return Evaluation(make_run(args, inputs, device=device, ranks=ranks), args.resume, state, ground)


def evaluate(chosen: Evaluation, _: Stop) -> int:
    """Scores a fine-tuned checkpoint; returns exit status 0."""
    run, state, ground = chosen.run, chosen.state, chosen.ground
    task, data = run.inputs.task, run.inputs.data
    with closing(run.files):
        network = models.build_finetune_model(state["model_config"]).to(run.device)
        network.load_state_dict(state["model"])
        predictor = network_predictor(run, network, task.objective(state["training"], run.loss))
        scores = score(run, predictor, state["fold"] if ground.is_fold else 0).scores
        logger.info("%s: %s", ground.description, score_line(task, scores, data.units))
        warnings = [text for text in (ground.warning, data.folds.leak_warning) if text]
        for text in warnings if run.ranks.is_main else ():
            logger.warning("%s", text)
        record: dict[str, Any] = {
            "checkpoint": chosen.path,
            "scored": ground.description,
            "warning": "; ".join(warnings) or None,
        }
        record |= {"task": task.name, "split": data.folds.summary(), "test": scores}
        logger.info("scores       %s", run.files.write(EVALUATION, record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
