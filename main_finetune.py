"""Fine-tunes a pre-trained encoder on labels, and scores it on ground that it has not seen.

Reads top to bottom: options, data and folds, arms, the loop of one fit, scores, end. `python -m main_finetune --help`
lists the options; docs/finetuning.md explains what a run leaves behind.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.optim import param_groups_layer_decay

import models_vit_group_channels as models
from datasets.augment import turned
from datasets.finetune_data import (
    FinetuneData,
    LabelOptions,
    OpenedLayers,
    SplitOptions,
    labels_path,
    layers_that_are,
    open_layers,
    open_targets,
)
from datasets.loader import prefetch
from datasets.pixel_features import pixel_features
from datasets.sample_survey import default_survey
from datasets.samplers import MicroBatch, plan_epoch, updates_per_epoch
from datasets.targets import Batch, DenseFold, DenseTargets, TrainingFacts
from datasets.window_targets import WindowFold, WindowTargets
from util import checkpoint as ckpt
from util import distributed as dist
from util import finetune_options as options
from util.dense_prediction import DensePrediction
from util.device import amp_policy, describe_environment, peak_memory_bytes, select_device
from util.encoder_weights import EncoderWeights, load_encoder, read_encoder_weights
from util.engine import StepMeter, Stop, Updater, make_adamw, seed_step
from util.finetune_arms import Arm, arms_of, choose_folds, constant_prediction
from util.finetune_files import FinetuneFiles, flat_numbers
from util.finetune_losses import DenseClasses, DenseValues, Objective, WindowClasses
from util.finetune_report import Scored, collect, draw_ground, draw_points, draw_scores, table_lines
from util.finetune_scores import (
    BlockSums,
    Outcome,
    SampledMap,
    headline,
    merged,
    new_scores,
    only_at,
    score_dense,
    stopping_score,
)
from util.log import plain, progress, setup_logging
from util.lr_sched import Schedule
from util.mosaic import Unit, units_of
from util.run_files import Clock, check_writable
from util.trees import Trees

logger = logging.getLogger("main_finetune")

VERSION = "0.1.0"
DEFAULT_LR = 1e-3
"""Peak rate when neither --lr nor --blr is given: right for the tiny model at 32 windows an update."""
TREES = {"trees": "gradient_boosting", "forest": "random_forest"}
SCORED_TILES = 4
"""Windows along the edge of the squares of ground that are predicted at a time."""
FINETUNED_KEYS = (
    "model",
    "model_config",
    "layers",
    "statistics",
    "options",
    "base_resolution",
    "task",
    "training",
    "fold",
    "version",
)
"""What a checkpoint of this program holds for those who use it."""


def get_args_parser() -> argparse.ArgumentParser:
    """The options, under the names that SatMAE users know where they exist there."""
    parser = argparse.ArgumentParser(
        "main_finetune", usage="main_finetune [options]", description=__doc__.split("\n\n")[0]
    )
    options.add_task_options(parser)
    options.add_data_options(parser)
    options.add_network_options(parser)
    options.add_comparison_options(parser)
    options.add_run_options(parser)
    return parser


@dataclass(frozen=True)
class Job:
    """The parts of a run of several fits."""

    args: argparse.Namespace
    ranks: dist.Ranks
    device: torch.device
    opened: OpenedLayers
    data: FinetuneData
    encoder: EncoderWeights | None
    arms: list[Arm]
    folds: list[int]
    files: FinetuneFiles


@dataclass
class Place:
    """Where a fit stands: next epoch, next update within it, updates done; and the best epoch for early stopping."""

    epoch: int = 0
    update: int = 0
    step: int = 0
    best_epoch: int = -1
    best_score: float = float("-inf")
    best_model: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """One network on one fold: the parts that its loop works with."""

    arm: Arm
    fold: int | None
    examples: DenseFold | WindowFold
    objective: Objective
    network: torch.nn.Module
    model: torch.nn.Module
    updater: Updater
    schedule: Schedule
    place: Place
    clock: Clock

    @property
    def name(self) -> str:
        """For messages and tags."""
        return f"{self.arm.name}/all" if self.fold is None else f"{self.arm.name}/fold{self.fold}"


class RunFailed(RuntimeError):
    """Ends a run that had begun, with one message."""


class Stopped(Exception):
    """A signal ended the run; everything is saved."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Returns:
        Exit status: 0 when done, or stopped by a signal after a checkpoint; 1 when the run failed; 2 for bad input.
    """
    args = get_args_parser().parse_args(argv)
    ranks, job = dist.Ranks(), None
    try:
        ranks = dist.find_ranks(world_size=args.world_size, local_rank=args.local_rank, dist_url=args.dist_url)
        setup_logging(ranks.rank)
        device = select_device(args.device, local_rank=ranks.local_rank)
        dist.start(ranks, device, dist_url=args.dist_url)
        job = prepare(args, device, ranks)
    except (ValueError, OSError) as error:
        return dist.report_end(error, program="main_finetune", ranks=ranks, status=2)
    except dist.PeerLost as error:
        return dist.report_end(error, program="main_finetune", ranks=ranks, status=1)
    try:
        with Stop() as stop:
            evaluate(job) if args.eval else compare(job, stop)
    except Stopped:
        logger.warning("stopped by a signal; everything is kept: go on with --resume auto")
    except (RunFailed, ValueError, OSError, dist.PeerLost) as error:
        return dist.report_end(error, program="main_finetune", ranks=ranks, status=1)
    finally:
        job.files.close()
        dist.shutdown()
    return 0


# ---------------------------------------------------------------------------------------------------- before the loop


def prepare(args: argparse.Namespace, device: torch.device, ranks: dist.Ranks) -> Job:
    """Opens layers and labels, cuts the folds, and opens the records.

    Raises:
        ValueError, OSError: bad input.
    """
    state = ckpt.load_checkpoint(args.resume, required=FINETUNED_KEYS) if args.eval else None
    if state is not None:
        args = options.with_stored(args, state["options"], get_args_parser())
    options.check(args)
    arms = arms_of(
        has_weights=bool(args.finetune), freeze_encoder=args.freeze_encoder, baselines=options.baselines_of(args)
    )
    output_dir = Path(args.output_dir)
    dist.on_main(lambda: check_writable(output_dir, flag="--output_dir"))
    amp_dtype, _ = amp_policy(device, args.amp)
    environment = describe_environment(device) | {"processes": ranks.world_size, "precision": str(amp_dtype or "fp32")}
    logger.info("%s", ", ".join(f"{key} {value}" for key, value in environment.items()))

    # data and folds
    encoder = read_encoder_weights(args.finetune) if args.finetune and state is None else None
    stored = state
    if encoder is not None and not encoder.published:
        stored = {**encoder.contents, "model_config": encoder.config}
    if stored is None and args.data_dir is None and args.train_path is None:
        args.train_path = str(dist.on_main(default_survey) / "layers.csv")
        logger.info("no --data_dir or --train_path given: using the sample survey, %s", args.train_path)
    opened, data = dist.together(lambda: open_data(args, stored, ranks))
    for text in (*opened.survey.lines(), *data.lines(), data.folds.describe()):
        logger.info("%s", text)
    for text in (*opened.survey.warnings, *data.notes):
        logger.log(logging.WARNING if ranks.is_main else logging.DEBUG, "%s", text)

    # what is compared, and records
    files = FinetuneFiles(output_dir, Path(args.log_dir or output_dir), enabled=ranks.is_main)
    folds = choose_folds(data.folds.count, args.only_folds)
    job = Job(args, ranks, device, opened, data, encoder, arms, folds, files)
    if state is None:
        aside = dist.on_main(lambda: files.begin(run_facts(job), resume=bool(args.resume)))
        if aside is not None:
            logger.warning("%s held an earlier run: now in %s", output_dir, aside)
        files.describe({"options": vars(args), "environment": environment, "folds": data.folds.numbers()})
    return job


def open_data(
    args: argparse.Namespace, stored: dict[str, Any] | None, ranks: dist.Ranks
) -> tuple[OpenedLayers, FinetuneData]:
    """Opens the layers, hides those that are the labels themselves, and reads the labels on the others.

    Raises:
        ValueError, OSError: bad input.
    """
    opened = open_layers(stored, **options.layer_options(args), local_ranks=ranks.local_world_size)
    stack = opened.survey.stack
    path = labels_path(args.labels, args.task, opened.survey.layers)
    themselves = layers_that_are(path, args.label_band, opened.survey.layers)
    stack.hide(themselves)
    for channel in themselves:
        logger.info("layer '%s' holds the labels: it is hidden from the network", stack.bands[channel].layer.name)
    held_out = None if stored is None else stored.get("held_out")
    patch = args.patch_size if stored is None else stored["model_config"]["patch_size"]
    data = open_targets(
        opened.survey,
        path,
        how=LabelOptions(**options.label_options(args)),
        split=SplitOptions(**options.split_options(args, input_size=opened.survey.input_size, held_out=held_out)),
        **options.target_options(args, patch_size=patch),
        class_codes=stored["task"]["codes"] if args.eval and stored else None,
    )
    return opened, data


def run_facts(job: Job) -> dict[str, Any]:
    """What must be the same for a run to be continued exactly, what a user decides first."""
    decisive = {key: value for key, value in vars(job.args).items() if key not in options.MAY_CHANGE}
    return plain(
        {
            "options": {key: value for key, value in decisive.items() if value is not None},
            "effective batch (batch_size x accum_iter x processes)": effective_batch(job),
            "layers": [{"name": layer.name, "units": layer.units} for layer in job.opened.survey.layers],
            "statistics": [f"{item['location']:.6g} {item['spread']:.6g}" for item in job.opened.statistics],
            "folds": job.data.folds.numbers(),
        }
    )


def effective_batch(job: Job) -> int:
    """Windows in an update, over all processes."""
    return job.args.batch_size * job.args.accum_iter * job.ranks.world_size


# ------------------------------------------------------------------------------------------------------- the comparison


def compare(job: Job, stop: Stop) -> None:
    """Fits and scores every arm on every fold, reports, and fits the first arm once more, on all labels.

    Raises:
        Stopped: by a signal; finished fits and the checkpoint of the present one are kept.
        RunFailed, ValueError, OSError: a fit failed; what was finished before is kept.
    """
    args, files = job.args, job.files
    for arm in job.arms:
        for fold in job.folds:
            if dist.on_main(lambda arm=arm, fold=fold: files.outcome(arm.name, fold)) is not None:
                logger.info("%s fold %d was done before", arm.name, fold)
                continue
            outcome = solve(job, arm, fold, stop)
            dist.on_main(partial(files.keep, arm.name, fold, outcome.scores, outcome.arrays))
            tags = {f"score/{arm.name}/{name}": value for name, value in flat_numbers(outcome.scores["test"])}
            files.log({"kind": "score", "arm": arm.name, "fold": fold, **outcome.scores}, tags=tags, step=fold)
            logger.info(
                "%s fold %d: %s", arm.name, fold, headline(job.data.kind, outcome.scores["test"], job.data.units)
            )
            if stop.signal is not None:
                raise Stopped
    summary = dist.on_main(partial(report, job))
    if args.no_final or args.label_fraction < 1 or args.split != "blocks" or job.arms[0].kind != "network":
        return
    fit_network(job, job.arms[0], None, stop, scores=summary)
    logger.info("checkpoint   %s (fitted on all labels, for main_inference)", files.output_dir / ckpt.LAST)


def solve(job: Job, arm: Arm, fold: int, stop: Stop) -> Outcome:
    """Fits one arm on one fold and scores it on the fold's test ground."""
    begin = time.monotonic()
    if arm.kind == "network":
        fit = fit_network(job, arm, fold, stop)
        outcome = score(job, partial(network_output, job, fit.network, fit.objective), fold)
        facts = {"updates": fit.place.step, "train_seconds": fit.clock.trained_s, "epochs": fit.place.epoch}
    else:
        predict, facts = fit_baseline(job, arm, fold)
        outcome = score(job, predict, fold)
    labels = job.data.targets.fold(fold).facts.labels
    seconds = time.monotonic() - begin
    return replace(outcome, scores={"test": outcome.scores, "train_labels": labels, "seconds": seconds, **facts})


def evaluate(job: Job) -> None:
    """Scores the fine-tuned checkpoint that --resume names: on its fold's test ground, or on all of other labels.

    Raises:
        ValueError: it was fitted on all of these labels.
    """
    state = ckpt.load_checkpoint(job.args.resume, required=FINETUNED_KEYS)
    elsewhere = options.looks_elsewhere(job.args, state["options"])
    if state["fold"] is None and not elsewhere:
        raise ValueError(
            f"--resume {job.args.resume} was fitted on all of these labels, so they cannot score it; name the "
            "checkpoint of a fold (in fits/), or other --labels or layers"
        )
    network = models.build_finetune_model(state["model_config"]).to(job.device)
    network.load_state_dict(state["model"])
    predict = partial(network_output, job, network, objective_of(job, TrainingFacts(**state["training"])))
    outcome = score(job, predict, 0 if elsewhere else state["fold"], everywhere=elsewhere)
    where = "all labels" if elsewhere else f"test ground of fold {state['fold']}"
    logger.info("%s: %s", where, headline(job.data.kind, outcome.scores))
    job.files.metrics(
        {"checkpoint": job.args.resume, "scored": where, "split": job.data.folds.numbers(), **outcome.scores}
    )


# ------------------------------------------------------------------------------------------------------------- one fit


def fit_network(job: Job, arm: Arm, fold: int | None, stop: Stop, *, scores: dict[str, Any] | None = None) -> Fit:
    """Fits a network on a fold's training labels, or goes on with one that was stopped.

    Args:
        fold: None to fit on all labels.
        scores: of the comparison, to go into the checkpoint.

    Raises:
        Stopped: by a signal, after a checkpoint.
        RunFailed: a loss was not finite.
        OSError: a window could not be read, or a checkpoint not written.
    """
    args, files = job.args, job.files
    fit = begin_fit(job, arm, fold)
    place = fit.place
    while place.epoch < args.epochs:
        window = fit_epoch(job, fit, stop)
        epoch = place.epoch
        place.epoch, place.update = epoch + 1, 0
        line = {"kind": "epoch", "arm": arm.name, "fold": fold, "epoch": epoch, "step": place.step, **window}
        tags = {f"{fit.name}/{key}": value for key, value in window.items()}
        with fit.clock.paused():
            if args.patience and fold is not None:
                line["validation"] = validate(job, fit, epoch)
                tags[f"{fit.name}/validation"] = line["validation"]
            files.log(line, tags=tags, step=place.step)
            save(job, fit, scores)
        if args.patience and epoch - place.best_epoch >= args.patience and fold is not None:
            logger.info("%s: no better for %d epochs, stopped after %d", fit.name, args.patience, place.epoch)
            break
    if place.best_model:
        fit.network.load_state_dict(place.best_model)
    return fit


def begin_fit(job: Job, arm: Arm, fold: int | None) -> Fit:
    """Builds network, optimiser and schedule of a fit, and takes up where it stopped.

    Raises:
        ValueError: weights do not fit the layers, or nothing is left to train on.
    """
    args, ranks, device = job.args, job.ranks, job.device
    examples = job.data.targets.fold(fold)
    torch.manual_seed(args.seed)
    network = models.build_finetune_model(network_config(job, arm))
    if arm.pretrained and job.encoder is not None:
        for text in load_encoder(network, job.encoder).lines():
            logger.log(logging.INFO if fold == job.folds[0] else logging.DEBUG, "%s", text)
    if arm.frozen:
        models.freeze_encoder(network)
    network.to(device)
    model = dist.wrap(network, device)

    updates = updates_per_epoch(
        args.tiles_per_epoch, batch_size=args.batch_size, accum_iter=args.accum_iter, world_size=ranks.world_size
    )
    schedule = Schedule(
        tiles=args.tiles_per_epoch,
        updates=updates,
        epochs=args.epochs,
        warmup_steps=round(args.warmup_epochs * updates),
        peak_lr=args.lr or (args.blr * effective_batch(job) / 256 if args.blr else DEFAULT_LR),
        min_lr=args.min_lr,
        effective_batch=effective_batch(job),
    )
    # Rates that decay towards the input keep what pre-training learned; a network from scratch has nothing to keep.
    groups = param_groups_layer_decay(
        network,
        weight_decay=args.weight_decay,
        no_weight_decay_list=network.no_weight_decay(),
        layer_decay=args.layer_decay if arm.pretrained else 1.0,
    )
    amp_dtype, needs_scaler = amp_policy(device, args.amp)
    updater = Updater(
        model,
        make_adamw(groups, lr=schedule.peak_lr),
        amp_dtype=amp_dtype,
        scaler=torch.amp.GradScaler(device.type, enabled=needs_scaler),
        device_type=device.type,
        clip_grad=args.clip_grad,
    )
    fit = Fit(
        arm, fold, examples, objective_of(job, examples.facts), network, model, updater, schedule, Place(), Clock()
    )
    resume_fit(job, fit)
    return fit


def network_config(job: Job, arm: Arm) -> dict[str, Any]:
    """What `build_finetune_model` builds: the checkpoint's encoder, or one from scratch, with the task's head."""
    args, data = job.args, job.data
    if job.encoder is not None:
        encoder = models.encoder_arguments(job.encoder.config)
    else:
        encoder = {"size": args.model, "patch_size": args.patch_size, **job.opened.channels}
    encoder |= {"img_size": job.opened.survey.input_size, "drop_path": args.drop_path}
    encoder |= {"grad_checkpointing": args.grad_checkpointing}
    if data.task == "classification":
        return {"kind": "classification", "num_classes": data.outputs, "global_pool": args.global_pool, **encoder}
    # A probe asks what the features hold, so nothing but a linear map stands between them and the labels.
    head = args.head if args.head and arm == job.arms[0] else "linear" if arm.frozen else "upsample"
    return {"kind": "dense", "num_outputs": data.outputs, "scale": args.label_scale, "head": head, **encoder}


def objective_of(job: Job, facts: TrainingFacts) -> Objective:
    """What is learned: classes or values, of pixels or of windows."""
    args = job.args
    weighting = {"weighting": args.class_weights, "smoothing": args.smoothing}
    if job.data.task == "regression":
        return DenseValues(mean=facts.mean, std=facts.std, per_window=facts.per_window)
    if job.data.task == "segmentation":
        return DenseClasses(facts.class_counts, per_window=facts.per_window, **weighting)
    mixing = {"mixup": args.mixup, "cutmix": args.cutmix, "erasing": args.reprob}
    return WindowClasses(facts.class_counts, **weighting, **mixing)


def resume_fit(job: Job, fit: Fit) -> None:
    """Takes up a fit where its newest good checkpoint left it."""
    folder = job.files.folder(fit.arm.name, fit.fold)
    found = dist.together(lambda: ckpt.find_resumable(folder) if job.args.resume else None)
    if found is not None:
        state, place = found.state, fit.place
        fit.network.load_state_dict(state["model"])
        fit.updater.optimizer.load_state_dict(state["optimizer"])
        fit.updater.scaler.load_state_dict(state["scaler"])
        place.epoch, place.update, place.step = state["epoch"], state["update"], state["step"]
        place.best_epoch, place.best_score, place.best_model = (
            state["best"][key] for key in ("epoch", "score", "model")
        )
        fit.clock.trained_s = state["trained_s"]
        logger.info("%s: going on at epoch %d, update %d", fit.name, place.epoch, place.update)
    dist.on_main(lambda: job.files.forget(fit.arm.name, fit.fold, from_epoch=fit.place.epoch))


def fit_epoch(job: Job, fit: Fit, stop: Stop) -> dict[str, float]:
    """Trains the rest of the current epoch.

    Returns:
        Mean loss, gradient norm, rate, speed, and memory.

    Raises:
        Stopped: by a signal, after a checkpoint.
    """
    args, place, ranks, device = job.args, fit.place, job.ranks, job.device
    jobs = fit.examples.epoch(
        seed=args.seed, epoch=place.epoch, tiles=args.tiles_per_epoch, augment=not args.no_augment
    )
    plan = plan_epoch(
        args.tiles_per_epoch,
        batch_size=args.batch_size,
        accum_iter=args.accum_iter,
        rank=ranks.rank,
        world_size=ranks.world_size,
        start_update=place.update,
    )
    meter = StepMeter(
        updates=fit.schedule.updates,
        scales=1,
        channels=1,
        device=device,
        check_gradients=not fit.updater.scaler.is_enabled(),
    )
    zero, unused = torch.zeros((), device=device), torch.zeros(1, 1, device=device)
    bar = progress(
        total=fit.schedule.updates,
        initial=place.update,
        desc=f"{fit.name} epoch {place.epoch}",
        unit="update",
        enabled=ranks.is_main and not args.no_progress,
    )
    saved_at, part, lr = time.monotonic(), 0, 0.0
    fit.model.train()
    fetch = partial(fetch_batch, job, fit, jobs)
    for micro, batch in fit.clock.timed(prefetch(plan, fetch, workers=args.num_workers)):
        seed_step(args.seed, step=place.step * args.accum_iter + part, rank=ranks.rank)
        imgs, valid, target = on_device(job, batch)
        with dist.gradients_shared(fit.model, micro.is_last), dist.peer_errors_named():
            with fit.updater.autocast():
                loss = fit.objective.loss(fit.model, imgs, valid, target)
            fit.updater.backward(loss * micro.weight)
        meter.add(losses=(loss, loss, zero), weight=micro.weight, error_sums=unused, error_counts=unused)
        fit.clock.tiles += len(micro.positions) if micro.weight else 0
        part += 1
        if not micro.is_last:
            continue

        lr, part = fit.schedule.lr(place.step), 0
        meter.end_update(fit.updater.step(lr))
        place.step, place.update = place.step + 1, place.update + 1
        bar.update(1)
        due = stop.signal is not None or time.monotonic() - saved_at > 60 * args.save_minutes
        if place.update < fit.schedule.updates and dist.any_rank(due):
            save(job, fit, None)
            saved_at = time.monotonic()
            if dist.any_rank(stop.signal is not None):
                raise Stopped
    bar.close()
    seen = meter.read(dist.mean_over_ranks, dist.sum_over_ranks)
    if seen.first_bad is not None:
        where = f"epoch {place.epoch}, update {place.update - seen.updates + seen.first_bad}"
        error = RunFailed(
            f"{fit.name}: loss not finite in {where}; the last checkpoint in "
            f"{job.files.folder(fit.arm.name, fit.fold)} is good. Lower --lr, or look at the layers and labels"
        )
        raise dist.mark_shared(error)
    record = {"loss": seen.loss, "grad_norm": seen.grad_norm, "lr": lr, **fit.clock.read(ranks.world_size)}
    logger.info(
        "%s epoch %d: loss %.4f, %.0f windows/s, waited %.1f %%",
        fit.name,
        place.epoch,
        seen.loss,
        record["tiles_per_s"],
        100 * record["wait_share"],
    )
    return record | {"peak_memory_mb": peak_memory_bytes(device) / 2**20}


def fetch_batch(job: Job, fit: Fit, jobs: np.ndarray, micro: MicroBatch) -> Batch:
    """Reads a micro-batch; runs in the reading threads."""
    batch = fit.examples.read(jobs[micro.positions])
    return batch.pin() if job.args.pin_mem and job.device.type == "cuda" else batch


def on_device(job: Job, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch as the network takes it: values, validity and target, turned alike."""
    sample = job.opened.survey.pyramid(*batch.tiles.to(job.device).parts)
    target = batch.target.to(job.device, non_blocking=True)
    imgs, valid = turned(sample.imgs, batch.turns), turned(sample.valid, batch.turns)
    return imgs, valid, turned(target, batch.turns) if target.ndim > 1 else target


def validate(job: Job, fit: Fit, epoch: int) -> float:
    """Scores the fold's validation ground, and keeps the weights of the best epoch."""
    predict = partial(network_output, job, fit.network, fit.objective)
    assert fit.fold is not None
    scores = score(job, predict, fit.fold, validation=True).scores
    value = stopping_score(job.data.kind, scores)
    if value > fit.place.best_score:
        fit.place.best_score, fit.place.best_epoch = value, epoch
        fit.place.best_model = {key: tensor.detach().cpu().clone() for key, tensor in fit.network.state_dict().items()}
    return value


def save(job: Job, fit: Fit, scores: dict[str, Any] | None) -> None:
    """Writes the fit's checkpoint from the main process; all processes fail together if it cannot be written."""
    place = fit.place
    state = {
        "model": fit.network.state_dict(),
        "optimizer": fit.updater.optimizer.state_dict(),
        "scaler": fit.updater.scaler.state_dict(),
        "epoch": place.epoch,
        "update": place.update,
        "step": place.step,
        "rng": ckpt.collect_rng_state(job.device),
        "model_config": fit.network.config,
        "layers": job.opened.layers,
        "statistics": job.opened.statistics,
        "options": vars(job.args),
        "version": VERSION,
        "base_resolution": job.opened.survey.base_resolution,
        "hidden": sorted(job.opened.survey.stack.hidden),
        "task": job.data.description(),
        "training": asdict(fit.examples.facts),
        "arm": fit.arm.name,
        "fold": fit.fold,
        "scores": scores,
        "best": {"epoch": place.best_epoch, "score": place.best_score, "model": place.best_model},
        "trained_s": fit.clock.trained_s,
    }
    folder = job.files.folder(fit.arm.name, fit.fold)
    dist.on_main(lambda: ckpt.save_run_checkpoint(folder, state, epoch_file=False))


# -------------------------------------------------------------------------------------------------------------- scores


def score(
    job: Job, predict: Callable[..., np.ndarray], fold: int, *, validation: bool = False, everywhere: bool = False
) -> Outcome:
    """Scores predictions on a fold's test ground, on its validation ground, or everywhere.

    Args:
        job: the run.
        predict: of pixels, (unit, tested) -> (K, h, w); of windows, (numbers) -> (n, K).
        fold: its number.
        validation: the fold's validation ground instead of its test ground.
        everywhere: all labels.

    Returns:
        Scores over all processes, and in the main one arrays for pictures.
    """
    data, ranks = job.data, job.ranks
    part = {"validation": validation, "everywhere": everywhere}
    scores = new_scores(data.kind, data.names, job.device)
    if isinstance(data.targets, WindowTargets):
        numbers = data.targets.numbers(fold, **part)[ranks.rank :: ranks.world_size]
        shares, truth = predict(numbers), data.targets.examples.classes[numbers]
        scores.update(torch.from_numpy(shares[:, 1] if data.presence_only else shares), torch.from_numpy(truth))
        parts = dist.gather_objects((numbers, shares))
        arrays = {name: np.concatenate([p[k] for p in parts]) for k, name in enumerate(("numbers", "shares"))}
        return Outcome(scores.compute(), arrays)
    labels, shape = data.targets.labels, job.opened.survey.shape
    picture = SampledMap(labels.values.shape)
    sums = BlockSums(int(data.folds.block_grid.max()) + 1, data.outputs)
    units = units_of(*shape, edge=SCORED_TILES * job.opened.survey.input_size)
    score_dense(
        units[ranks.rank :: ranks.world_size],
        scale=labels.scale,
        truth_of=partial(data.targets.truth, fold=fold, **part),
        predict=predict,
        scores=scores,
        picture=picture,
        blocks_of=data.folds.blocks_of,
        sums=sums,
    )
    arrays = {"map": merged(dist.gather_objects(picture.values)), "blocks": sum(dist.gather_objects(sums.values))}
    return Outcome(scores.compute(), arrays)


@torch.inference_mode()
def network_output(job: Job, network: torch.nn.Module, objective: Objective, where: Any, *_: Any) -> np.ndarray:
    """A network's class shares or values: (K, h, w) of a unit of ground, or (n, K) of numbered windows."""
    network.eval()
    survey, size = job.opened.survey, job.opened.survey.input_size
    amp_dtype, _ = amp_policy(job.device, job.args.amp)

    def forward(imgs: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        with torch.autocast(job.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            return objective.predict(network, imgs, valid)

    if isinstance(job.data.targets, WindowTargets):
        shares = [np.zeros((0, job.data.outputs), dtype=np.float32)]
        for first in range(0, len(where), job.args.batch_size):
            imgs, valid, _ = on_device(job, job.data.targets.read(where[first : first + job.args.batch_size]))
            shares.append(forward(imgs, valid).cpu().numpy())
        return np.concatenate(shares)
    prediction = DensePrediction(
        forward,
        bands=job.data.outputs,
        size=size,
        patch=network.patch_size,
        overlap=job.args.overlap,
        scale=job.data.targets.labels.scale,
        batch_size=job.args.batch_size,
        device=job.device,
    )
    window = survey.read(where.top - size, where.left - size, where.bottom + size, where.right + size)
    return prediction.of(where, survey.shape, lambda origins: window.sample(origins, job.device))


def fit_baseline(job: Job, arm: Arm, fold: int) -> tuple[Callable[..., np.ndarray], dict[str, Any]]:
    """Fits what is no network on a fold's training labels.

    Returns:
        What predicts as `score` wants it, and facts for the record.
    """
    args, data, survey = job.args, job.data, job.opened.survey
    is_dense = isinstance(data.targets, DenseTargets)
    examples = data.targets.fold(fold)
    if arm.kind == "constant":
        constant = constant_prediction(examples.facts.class_counts, examples.facts.mean)
        if is_dense:
            return lambda unit, tested: np.broadcast_to(constant[:, None, None], (len(constant), *tested.shape)), {}
        return lambda numbers: np.broadcast_to(constant, (len(numbers), len(constant))).copy(), {}
    scale = data.targets.labels.scale if isinstance(data.targets, DenseTargets) else 1
    classes = None if data.task == "regression" else data.outputs
    trees = Trees(TREES[arm.kind], classes=classes, seed=args.seed, balanced=args.class_weights == "balanced")
    pixels, targets = examples.sampled_pixels(args.tree_samples, seed=args.seed)
    trees.fit(pixel_features(survey, pixels, scale=scale), targets)
    facts = {"tree_samples": trees.samples}
    if isinstance(data.targets, WindowTargets):
        positions = data.targets.examples.centres.astype(np.int64)
        return lambda numbers: trees.predict(pixel_features(survey, positions[numbers])), facts

    def predict(unit: Unit, tested: np.ndarray) -> np.ndarray:
        found = np.argwhere(tested)
        predicted = trees.predict(pixel_features(survey, found + [unit.top * scale, unit.left * scale], scale=scale))
        return only_at(found, predicted.reshape(len(found), -1), tested.shape)

    return predict, facts


# ----------------------------------------------------------------------------------------------------------------- end


def report(job: Job) -> dict[str, Any]:
    """Says what all arms were scored, and writes metrics.json and pictures; in the main process.

    Returns:
        The scores, as in metrics.json.
    """
    data, files = job.data, job.files
    scored = Scored(
        kind=data.kind,
        names=data.names,
        arms=[arm.name for arm in job.arms],
        folds=job.folds,
        facts=data.folds.numbers(),
        leak=data.folds.leak,
        units=data.units,
    )
    metrics = collect(scored, files)
    files.metrics(metrics)
    for text in table_lines(scored, metrics):
        logger.info("%s", text)
    for path in (*draw_scores(scored, metrics, files), draw_maps(job, scored)):
        logger.info("picture      %s", path)
    logger.info("scores       %s", files.output_dir / "metrics.json")
    logger.info("tensorboard  tensorboard --logdir %s", files.log_dir)
    return metrics


def draw_maps(job: Job, scored: Scored) -> Path:
    """Draws what the main arm predicted on test ground beside the truth; returns the picture's path."""
    targets, survey, files = job.data.targets, job.opened.survey, job.files
    crs = survey.stack.reference.crs
    common = {
        "colours": () if job.data.classes is None else job.data.classes.colours,
        "length_unit": "degree"
        if crs.is_geographic
        else "m"
        if crs.linear_units.startswith("met")
        else crs.linear_units,
    }
    if isinstance(targets, WindowTargets):
        centres = targets.examples.centres
        return draw_points(
            scored,
            files,
            centres=centres,
            truth=targets.examples.classes,
            folds=job.data.folds.fold_at(centres[:, 0], centres[:, 1]),
            shape=survey.shape,
            pixel_size=survey.base_resolution,
            **common,
        )
    labels = targets.labels
    truth, folds = SampledMap(labels.values.shape), SampledMap(labels.values.shape)
    for unit in units_of(*survey.shape, edge=SCORED_TILES * survey.input_size):
        window = [edge * labels.scale for edge in (unit.top, unit.left, unit.bottom - unit.top, unit.right - unit.left)]
        here = labels.labelled(*window)
        truth.paint(window[0], window[1], np.where(here, labels.read(*window), np.nan))
        tested = np.full(here.shape, np.nan)
        for fold in range(job.data.folds.count):
            tested[here & job.data.folds.testing(fold, *window, scale=labels.scale)] = fold
        folds.paint(window[0], window[1], tested)
    pixel_size = labels.grid.resolution * truth.step
    return draw_ground(scored, files, truth=truth.values, folds=folds.values, pixel_size=pixel_size, **common)


if __name__ == "__main__":
    sys.exit(main())
