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
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import models_vit_group_channels as models
from datasets.finetuning.batch import Batch, TargetStatistics
from datasets.finetuning.dense_targets import DenseFold
from datasets.finetuning.finetune_data import FinetuneData, LabelOptions, SplitOptions, open_scene_data, open_targets
from datasets.finetuning.layers import (
    LayerOptions,
    OpenedLayers,
    hide_labels,
    labels_path,
    open_layers,
    open_scene_layers,
)
from datasets.finetuning.pixel_features import pixel_features
from datasets.finetuning.scene_targets import SceneFold
from datasets.finetuning.window_targets import WindowFold, WindowTargets
from datasets.folds.make_folds import SPLITS
from datasets.loading.augment import rotated
from datasets.loading.batch_plan import MicroBatch, plan_epoch, updates_per_epoch
from datasets.loading.prefetch import prefetch, read_ahead
from datasets.synthetic.sample_survey import default_survey
from util.checkpoints import checkpoint_file, resume_state
from util.checkpoints import run_checkpoints as ckpt
from util.checkpoints.encoder_weights import EncoderWeights, load_encoder, read_encoder_weights
from util.checkpoints.same_step import require_same_step
from util.finetuning import evaluation
from util.finetuning.compared_methods import Method, choose_folds, compared_methods, constant_prediction
from util.finetuning.cost import baseline_costs, fit_costs
from util.finetuning.fit import Fit, fit_state, fit_step, make_updater, note_best, resume, trained_weights
from util.finetuning.objectives import DenseClasses, DenseValues, Objective, WindowClasses
from util.finetuning.predictors import ConstantPredictor, NetworkPredictor, Predictor, TreePredictor
from util.finetuning.report import Scored, collect, draw_map, draw_scores, table_lines
from util.finetuning.scoring import (
    BlockSums,
    FoldScores,
    ground_blocks,
    headline,
    new_scores,
    score_ground,
    score_windows,
    stopping_score,
)
from util.finetuning.trees import Trees
from util.hardware.device import amp_policy, describe_environment, peak_memory_bytes, select_device
from util.hardware.malloc import keep_freed_memory
from util.options import finetune as options
from util.processes import distributed as dist
from util.processes import torchrun_restarts as restarts
from util.processes.signals import Stop
from util.processes.terminal import progress_bar, setup_logging
from util.records.finetune_records import EVALUATION, METRICS, FinetuneFiles, flat_numbers
from util.records.log import check_writable, plain
from util.training.batch_size import choose_batch_size
from util.training.engine import seed_step
from util.training.memory import memory_trials
from util.training.setup import make_schedule
from util.training.step_meter import StepMeter
from util.training.timer import TrainingTimer

logger = logging.getLogger("main_finetune")

TREES = {"trees": "gradient_boosting", "forest": "random_forest"}


def get_args_parser() -> argparse.ArgumentParser:
    """The options, under the names that SatMAE users know where they exist there."""
    parser = argparse.ArgumentParser(
        "main_finetune", usage="main_finetune [options]", description=__doc__.split("\n\n")[0]
    )
    options.add_task_options(parser)
    options.add_data_options(parser, splits=SPLITS)
    options.add_network_options(parser)
    options.add_comparison_options(parser)
    options.add_run_options(parser)
    return parser


@dataclass(frozen=True)
class FinetuneRun:
    """The parts of a run of several fits; `examples` are the training windows of each fold, and of all labels."""

    args: argparse.Namespace
    ranks: dist.Ranks
    device: torch.device
    opened: OpenedLayers
    data: FinetuneData
    encoder: EncoderWeights | None
    held_out: list[list[float]] | None
    arms: list[Method]
    folds: list[int]
    examples: dict[int | None, DenseFold | WindowFold | SceneFold]
    files: FinetuneFiles


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
    ranks = dist.Ranks()
    try:
        ranks = dist.find_ranks(world_size=args.world_size, local_rank=args.local_rank, dist_url=args.dist_url)
        setup_logging(ranks.rank)
        keep_freed_memory()
        device = select_device(args.device, local_rank=ranks.local_rank)
        dist.start(ranks, device, dist_url=args.dist_url)
        job, work = prepare_evaluation(args, device, ranks) if args.eval else prepare(args, device, ranks)
    except (ValueError, OSError) as error:
        return dist.report_end(error, program="main_finetune", ranks=ranks, status=2)
    except (dist.PeerLost, KeyboardInterrupt) as error:
        return dist.report_end(error, program="main_finetune", ranks=ranks, status=1)
    try:
        with Stop() as stop:
            work(stop)
    except Stopped:
        logger.warning("stopped by a signal; everything is kept: go on with --resume auto")
    except (RunFailed, ValueError, OSError, dist.PeerLost, KeyboardInterrupt) as error:
        return dist.report_end(error, program="main_finetune", ranks=ranks, status=1)
    finally:
        job.files.close()
        dist.shutdown()
    return 0


# ---------------------------------------------------------------------------------------------------- before the loop


def prepare(
    args: argparse.Namespace, device: torch.device, ranks: dist.Ranks
) -> tuple[FinetuneRun, Callable[[Stop], None]]:
    """Opens weights, layers and labels, cuts the folds, builds everything once, and opens the records.

    Returns:
        The run, and what it is to do.

    Raises:
        ValueError, OSError: bad input.
    """
    options.check_resume(args)
    options.check(args)
    arms = compared_methods(
        has_weights=bool(args.finetune),
        freeze_encoder=args.freeze_encoder,
        baselines=options.baselines_of(args),
        no_network=args.no_network,
    )
    output_dir, environment = Path(args.output_dir), begin(args, device, ranks)
    if restarts.was_restarted(output_dir):
        args.resume = "auto"

    # weights, layers, labels, folds
    encoder = dist.on_all(lambda: read_encoder_weights(args.finetune)) if args.finetune else None
    stored = None
    if encoder is not None:
        options.settle(args, encoder.config, encoder.contents, again=False)
        stored = None if encoder.published else {**encoder.contents, "model_config": encoder.config}
    if stored is None and args.data_dir is None and args.train_path is None and args.dataset_type == "grid":
        args.train_path = str(dist.on_each_machine(default_survey, ranks) / "layers.csv")
        logger.info("no --data_dir or --train_path given: using the sample survey, %s", args.train_path)
    held_out = None if stored is None else stored.get("held_out")
    opened = dist.on_all(lambda: open_ground(args, stored, ranks))
    splitting = options.split_options(args, input_size=opened.survey.input_size, held_out=held_out)
    data = dist.on_all(lambda: open_labels_on(args, opened, splitting))
    args.tiles_per_epoch = args.tiles_per_epoch or data.epoch_windows
    tell(opened, data, ranks)

    # everything is tried before anything is trained
    folds = choose_folds(data.folds.count, args.only_folds)
    fits = [*folds, *([None] if is_last_fit_wanted(args, arms) else [])]
    examples = dist.on_all(lambda: {fold: data.targets.fold(fold) for fold in fits})
    files = FinetuneFiles(output_dir, Path(args.log_dir or output_dir), enabled=ranks.is_main)
    job = FinetuneRun(args, ranks, device, opened, data, encoder, held_out, arms, folds, examples, files)
    networks = []
    for arm in arms:
        if arm.kind == "network":
            network, lines = dist.on_all(partial(build_network, job, arm))
            networks.append(network)
            for text in lines if arm == arms[0] else ():
                logger.info("%s", text)

    if args.batch_size == "auto" or args.effective_batch is not None:
        choose_batches(job, max(networks, key=trained_weights))
    del networks

    # records
    aside = dist.on_main_rank(lambda: files.begin(run_facts(job), resume=bool(args.resume)))
    restarts.mark_started(output_dir)
    if aside is not None and ranks.is_main:
        logger.warning("%s held an earlier run: now in %s", output_dir, aside)
    files.describe({"options": vars(args), "environment": environment, "folds": data.folds.summary()})
    return job, partial(compare, job)


def choose_batches(job: FinetuneRun, network: Any) -> None:
    """Chooses `batch_size` and `accum_iter` by the network that trains most weights.

    Raises:
        ValueError: nothing fits, or the options contradict each other.
    """
    args, ranks, device = job.args, job.ranks, job.device
    network = network.to(device)
    step = fit_step(
        network,
        objective_of(args, job.data.task, next(iter(job.examples.values())).facts),
        weight_decay=args.weight_decay,
        clip_grad=args.clip_grad,
        amp_dtype=amp_policy(device, args.amp)[0],
    )
    trials = memory_trials(
        step,
        network,
        device=device,
        accumulates=True,
        shares_gradients=ranks.world_size > 1,
        batches_ahead=read_ahead(args.num_workers),
    )
    chosen = choose_batch_size(
        args.batch_size,
        accum_iter=args.accum_iter,
        effective_batch=args.effective_batch,
        ranks=ranks,
        device=device,
        trials=trials,
    )
    args.batch_size, args.accum_iter = chosen.batch_size, chosen.accum_iter


def begin(args: argparse.Namespace, device: torch.device, ranks: dist.Ranks) -> dict[str, Any]:
    """Tries the folders that will be written, and says what it runs on."""
    dist.on_main_rank(lambda: check_writable(Path(args.output_dir), flag="--output_dir"))
    if args.log_dir:
        dist.on_main_rank(lambda: check_writable(Path(args.log_dir), flag="--log_dir"))
    amp_dtype, _ = amp_policy(device, args.amp)
    environment = describe_environment(device) | {"processes": ranks.world_size, "precision": str(amp_dtype or "fp32")}
    logger.info("%s", ", ".join(f"{key} {value}" for key, value in environment.items()))
    return environment


def is_last_fit_wanted(args: argparse.Namespace, arms: Sequence[Method]) -> bool:
    """Whether the first arm is fitted once more, on all labels: not where a part of them, or a leak, was asked for."""
    return (
        args.dataset_type == "grid"
        and not args.no_final
        and args.label_fraction == 1
        and args.split == "blocks"
        and arms[0].kind == "network"
    )


def open_ground(args: argparse.Namespace, stored: dict[str, Any] | None, ranks: dist.Ranks) -> OpenedLayers:
    """Opens the images of a scene data set; or layers, and hides those that are the labels themselves.

    Raises:
        ValueError, OSError: bad input.
    """
    if args.dataset_type != "grid":
        return open_scene_layers(stored, **options.scene_options(args))
    layers = LayerOptions(**options.layer_options(args))
    opened = open_layers(stored, layers, local_ranks=ranks.local_world_size)
    args.labels = labels_path(args.labels, args.task, opened.survey.layers)
    hide_labels(opened, args.labels, args.label_band)
    return opened


def open_labels_on(
    args: argparse.Namespace,
    opened: OpenedLayers,
    splitting: dict[str, Any],
    class_codes: Sequence[Any] | None = None,
) -> FinetuneData:
    """Reads the labels on the layers' ground and cuts the folds; or finds the images to test.

    Raises:
        ValueError, OSError: bad input.
    """
    if args.dataset_type != "grid":
        share = {"label_fraction": args.label_fraction, "seed": args.seed}
        return open_scene_data(opened.scenes, args.test_path, **share)
    return open_targets(
        opened.grids,
        args.labels,
        how=LabelOptions(**options.label_options(args)),
        split=SplitOptions(**splitting),
        **options.target_options(args, patch_size=args.patch_size),
        class_codes=class_codes,
    )


def tell(opened: OpenedLayers, data: FinetuneData, ranks: dist.Ranks) -> None:
    """Says what was opened."""
    for text in (*opened.survey.summary_lines(), *data.summary_lines(), data.folds.describe()):
        logger.info("%s", text)
    for text in (*opened.survey.warnings, *data.notes):
        logger.log(logging.WARNING if ranks.is_main else logging.DEBUG, "%s", text)


def run_facts(job: FinetuneRun) -> dict[str, Any]:
    """What must be the same for a run to be continued exactly, what a user decides first."""
    decisive = {key: value for key, value in vars(job.args).items() if key not in options.MAY_CHANGE}
    return plain(
        {
            "options": {key: value for key, value in decisive.items() if value is not None},
            "effective batch (batch_size x accum_iter x processes)": effective_batch(job),
            "layers": [{"name": layer.name, "units": layer.units} for layer in job.opened.survey.layers],
            "statistics": [f"{item['location']:.6g} {item['spread']:.6g}" for item in job.opened.statistics],
            "weights of --finetune": None if job.encoder is None else job.encoder.digest(),
            "folds": job.data.folds.summary(),
        }
    )


def effective_batch(job: FinetuneRun) -> int:
    """Windows in an update, over all processes."""
    return job.args.batch_size * job.args.accum_iter * job.ranks.world_size


# ------------------------------------------------------------------------------------------------------- the comparison


def compare(job: FinetuneRun, stop: Stop) -> None:
    """Fits and scores every arm on every fold, reports, and fits the first arm once more, on all labels.

    Raises:
        Stopped: by a signal; finished fits and the checkpoint of the present one are kept.
        RunFailed, ValueError, OSError: a fit failed; what was finished before is kept.
    """
    files = job.files
    for arm in job.arms:
        for fold in job.folds:
            if dist.on_main_rank(partial(files.outcome, arm.name, fold)) is not None:
                logger.info("%s fold %d was done before", arm.name, fold)
                continue
            outcome = solve(job, arm, fold, stop)
            tags = {f"score/{arm.name}/{name}": value for name, value in flat_numbers(outcome.scores["test"])}
            files.log({"kind": "score", "arm": arm.name, "fold": fold, **outcome.scores}, tags=tags, step=fold)
            dist.on_main_rank(partial(files.keep, arm.name, fold, outcome.scores, outcome.arrays))
            logger.info(
                "%s fold %d: %s", arm.name, fold, headline(job.data.kind, outcome.scores["test"], job.data.units)
            )
            if dist.any_rank(stop.signal is not None):
                raise Stopped
    summary = dist.on_main_rank(partial(report, job))
    if None in job.examples:
        fit_network(job, job.arms[0], None, stop, scores=summary)
        logger.info("checkpoint   %s (fitted on all labels, for main_inference)", files.output_dir / ckpt.LAST)


def solve(job: FinetuneRun, arm: Method, fold: int, stop: Stop) -> FoldScores:
    """Fits one arm on one fold and scores it on the fold's test ground."""
    begin = time.monotonic()
    facts: dict[str, Any]
    if arm.kind == "network":
        fit = fit_network(job, arm, fold, stop)
        outputs: Predictor = network_outputs(job, fit.network, fit.objective)
        facts = fit_costs(fit, device=job.device, input_size=job.opened.survey.input_size)
    else:
        job.files.forget(arm.name, fold, from_epoch=0)
        outputs, facts = fit_baseline(job, arm, fold)
    outcome = score(job, outputs, fold)
    labels = job.examples[fold].facts.labels
    seconds = time.monotonic() - begin
    return replace(outcome, scores={"test": outcome.scores, "train_labels": labels, "seconds": seconds, **facts})


# ------------------------------------------------------------------------------------------------------------- one fit


def fit_network(
    job: FinetuneRun, arm: Method, fold: int | None, stop: Stop, *, scores: dict[str, Any] | None = None
) -> Fit:
    """Fits a network on a fold's training labels, or goes on with one that was stopped.

    Args:
        job: the run.
        arm: how it is trained.
        fold: None to fit on all labels.
        stop: tells of signals.
        scores: of the comparison, to go into the checkpoint.

    Raises:
        Stopped: by a signal, after a checkpoint.
        RunFailed: a loss was not finite.
        OSError: a window could not be read, or a checkpoint not written.
    """
    args, files = job.args, job.files
    fit = begin_fit(job, arm, fold)
    place, patience = fit.place, args.patience if fit.is_validated else 0
    while place.epoch < args.epochs and not place.waits_too_long(patience):
        line = fit_epoch(job, fit, stop)
        with fit.clock.paused():
            if patience:
                line["validation"] = validate(job, fit)
            tags = {f"{fit.name}/{key}": value for key, value in line.items()}
            line = {"kind": "epoch", "arm": arm.name, "fold": fold, "epoch": place.epoch - 1, "step": place.step} | line
            files.log(line, tags=tags, step=place.step)
            save(job, fit, scores)
        if dist.any_rank(stop.signal is not None) and place.epoch < args.epochs:
            raise Stopped
    if place.best_model:
        logger.info("%s: the weights of epoch %d were best in validation", fit.name, place.best_epoch)
        fit.network.load_state_dict(place.best_model)
        save(job, fit, scores)
    return fit


def begin_fit(job: FinetuneRun, arm: Method, fold: int | None) -> Fit:
    """Builds network, optimiser and schedule of a fit, and takes up where it stopped.

    Raises:
        ValueError: none of its checkpoints can be used.
    """
    args, device = job.args, job.device
    network = build_network(job, arm)[0]
    model = dist.wrap(network.to(device), device)
    batches = {"batch_size": args.batch_size, "accum_iter": args.accum_iter, "world_size": job.ranks.world_size}
    updates = updates_per_epoch(args.tiles_per_epoch, **batches)
    schedule = make_schedule(
        tiles=args.tiles_per_epoch,
        updates=updates,
        epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        effective_batch=effective_batch(job),
        lr=args.lr,
        blr=args.blr,
        min_lr=args.min_lr,
    )
    amp_dtype, needs_scaler = amp_policy(device, args.amp)
    updater = make_updater(
        network,
        model,
        device=device,
        peak_lr=schedule.peak_lr,
        weight_decay=args.weight_decay,
        # Rates that decay towards the input keep what pre-training learned; from scratch there is nothing to keep.
        layer_decay=args.layer_decay if arm.pretrained else 1.0,
        head_lr_scale=args.head_lr_scale,
        clip_grad=args.clip_grad,
        amp_dtype=amp_dtype,
        needs_scaler=needs_scaler,
    )
    objective = objective_of(args, job.data.task, job.examples[fold].facts)
    fit = Fit(arm, fold, job.examples[fold], objective, network, model, updater, schedule)
    resume_fit(job, fit)
    return fit


def build_network(job: FinetuneRun, arm: Method) -> tuple[Any, list[str]]:
    """The network of an arm as it begins, the same on every fold, and what became of the encoder's weights.

    Raises:
        ValueError: sizes do not fit together, or the weights not the layers.
    """
    args, data = job.args, job.data
    if job.encoder is not None:
        config = models.encoder_arguments(job.encoder.config)
        options.check_channels(args.finetune, config, job.opened.channels)
    else:
        config = {"size": args.model, "patch_size": args.patch_size, **job.opened.channels}
    config |= {"img_size": job.opened.survey.input_size, "drop_path": args.drop_path}
    config |= {"grad_checkpointing": args.grad_checkpointing}
    if data.task == "classification":
        config |= {"kind": "classification", "num_classes": data.outputs, "global_pool": args.global_pool}
    else:
        # A probe asks what the features hold, so nothing but a linear map stands between them and the labels.
        head = args.head if args.head and arm == job.arms[0] else "linear" if arm.frozen else "upsample"
        config |= {"kind": "dense", "num_outputs": data.outputs, "scale": args.label_scale, "head": head}
    torch.manual_seed(args.seed)
    network, lines = models.build_finetune_model(config), []
    if arm.pretrained and job.encoder is not None:
        lines = load_encoder(network, job.encoder).summary_lines()
    if arm.frozen:
        models.freeze_encoder(network)
    return network, lines


def objective_of(args: argparse.Namespace, task: str, facts: TargetStatistics) -> Objective:
    """What is learned: classes or values, of pixels or of windows."""
    weighting = {"weighting": args.class_weights, "smoothing": args.smoothing}
    if task == "regression":
        return DenseValues(mean=facts.mean, std=facts.std, per_window=facts.per_window)
    if task == "segmentation":
        return DenseClasses(facts.class_counts, per_window=facts.per_window, **weighting)
    mixing = {"mixup": args.mixup, "cutmix": args.cutmix, "erasing": args.reprob}
    return WindowClasses(facts.class_counts, **weighting, **mixing)


def resume_fit(job: FinetuneRun, fit: Fit) -> None:
    """Takes up a fit where its newest good checkpoint left it.

    Raises:
        ValueError: all are damaged, or processes found different ones.
    """
    folder = job.files.folder(fit.arm.name, fit.fold)
    found = dist.on_all(lambda: ckpt.find_resumable(folder) if job.args.resume else None)
    require_same_step(None if found is None else found.state, f"{fit.name} in {folder}")
    if found is not None:
        for path, reason in found.skipped:
            logger.warning("skipped %s: %s", path, reason)
        resume(fit, found.state)
        logger.info("%s: going on at epoch %d, update %d", fit.name, fit.place.epoch, fit.place.update)
    dist.on_main_rank(lambda: job.files.forget(fit.arm.name, fit.fold, from_epoch=fit.place.epoch))


def fit_epoch(job: FinetuneRun, fit: Fit, stop: Stop) -> dict[str, Any]:
    """Trains the rest of the current epoch.

    Returns:
        Mean loss, gradient norm, rate, speed, and memory.

    Raises:
        Stopped: by a signal, after a checkpoint.
        RunFailed: a loss was not finite.
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
    bar = progress_bar(
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
            read_meter(job, fit, meter)
            save(job, fit, None)
            saved_at = time.monotonic()
            if dist.any_rank(stop.signal is not None):
                raise Stopped
    bar.close()
    read_meter(job, fit, meter)
    record = place.end_epoch() | {"lr": lr, **fit.clock.read(ranks.world_size)}
    logger.info(
        "%s epoch %d: loss %.4f, %.0f windows/s, waited %.1f %%",
        fit.name,
        place.epoch - 1,
        record["loss"],
        record["tiles_per_s"],
        100 * record["wait_share"],
    )
    return record | {"peak_memory_mb": peak_memory_bytes(device) / 2**20}


def read_meter(job: FinetuneRun, fit: Fit, meter: StepMeter) -> None:
    """Takes over what the last updates were like.

    Raises:
        RunFailed: a loss was not finite.
    """
    place = fit.place
    seen = meter.read(dist.mean_over_ranks, dist.sum_over_ranks)
    if seen.first_bad is not None:
        where = f"epoch {place.epoch}, update {place.update - seen.updates + seen.first_bad}"
        error = RunFailed(
            f"{fit.name}: loss not finite in {where}; the last checkpoint in "
            f"{job.files.folder(fit.arm.name, fit.fold)} is good. Lower --lr, or look at the layers and labels"
        )
        raise dist.mark_shared(error)
    place.seen.append([seen.updates, seen.loss, seen.grad_norm])


def fetch_batch(job: FinetuneRun, fit: Fit, jobs: np.ndarray, micro: MicroBatch) -> Batch:
    """Reads a micro-batch; runs in the reading threads."""
    batch = fit.examples.read(jobs[micro.positions])
    return batch.pin() if job.args.pin_mem and job.device.type == "cuda" else batch


def on_device(job: FinetuneRun, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch as the network takes it: values, validity and target, turned alike."""
    sample = job.opened.survey.pyramid(*batch.tiles.to(job.device).parts)
    target = batch.target.to(job.device, non_blocking=True)
    imgs, valid = rotated(sample.imgs, batch.turns), rotated(sample.valid, batch.turns)
    return imgs, valid, rotated(target, batch.turns) if target.ndim > 1 else target


def validate(job: FinetuneRun, fit: Fit) -> float:
    """Scores the fold's validation ground, and keeps the weights if they are the best so far."""
    assert fit.fold is not None
    outputs = network_outputs(job, fit.network, fit.objective)
    value = stopping_score(job.data.kind, score(job, outputs, fit.fold, validation=True).scores)
    note_best(fit, value)
    return value


def save(job: FinetuneRun, fit: Fit, scores: dict[str, Any] | None) -> None:
    """Writes the fit's checkpoint from the main process; all processes fail together if it cannot be written."""
    survey = job.opened.survey
    state = fit_state(fit, job.device) | {
        "layers": job.opened.layers,
        "statistics": job.opened.statistics,
        "encodings": job.opened.encodings,
        "options": vars(job.args),
        "version": checkpoint_file.VERSION,
        "base_resolution": survey.base_resolution,
        "held_out": job.held_out,
        "hidden": sorted(survey.hidden),
        "ground": survey.ground(),
        "folds": job.data.folds.summary(),
        "task": job.data.description(),
        "training": asdict(fit.examples.facts),
        "arm": fit.arm.name,
        "fold": fit.fold,
        "scores": scores,
    }
    folder = job.files.folder(fit.arm.name, fit.fold)
    dist.on_main_rank(lambda: ckpt.save_run_checkpoint(folder, state, epoch_file=False))


# -------------------------------------------------------------------------------------------------------------- scores


def score(job: FinetuneRun, outputs: Predictor, fold: int, *, validation: bool = False) -> FoldScores:
    """Scores a fold's test ground, or its validation ground, over all processes."""
    data, ranks = job.data, job.ranks
    scores = new_scores(data.kind, data.names, job.device)
    if data.windows is not None:
        return score_windows(
            outputs,
            scores,
            numbers=data.windows.numbers(fold, validation=validation)[ranks.rank :: ranks.world_size],
            classes=data.windows.examples.classes,
            presence_only=data.presence_only,
            blocks=data.window_blocks(),
        )
    assert data.ground is not None
    survey, folds = job.opened.grids, data.ground.folds
    return score_ground(
        outputs,
        scores,
        units=ground_blocks(survey.shape, survey.input_size)[ranks.rank :: ranks.world_size],
        scale=data.scale,
        truth_of=partial(data.ground.truth, fold=fold, validation=validation),
        shape=data.ground.labels.values.shape,
        blocks_of=folds.blocks_of,
        sums=BlockSums(int(folds.block_numbers.max()) + 1, data.outputs),
    )


def network_outputs(job: FinetuneRun, network: Any, objective: Objective) -> NetworkPredictor:
    """A network's class shares or values, as `score` takes them."""
    args, windows = job.args, job.data.windows
    return NetworkPredictor(
        network,
        objective,
        survey=job.opened.survey,
        windows=None if windows is None else lambda numbers: on_device(job, windows.read(numbers))[:2],
        count=job.data.outputs,
        scale=job.data.scale,
        overlap=args.overlap,
        batch_size=args.batch_size,
        device=job.device,
        amp_dtype=amp_policy(job.device, args.amp)[0],
    )


def fit_baseline(job: FinetuneRun, arm: Method, fold: int) -> tuple[Predictor, dict[str, Any]]:
    """Fits what is no network on a fold's training labels; returns what it predicts, and facts for the record."""
    args, data, examples = job.args, job.data, job.examples[fold]
    if arm.kind == "constant":
        return ConstantPredictor(constant_prediction(examples.facts.class_counts, examples.facts.mean)), {}
    assert not isinstance(examples, SceneFold), "trees look at pixels of ground"
    features = partial(pixel_features, job.opened.grids, scale=data.scale)
    trees = Trees(
        TREES[arm.kind],
        classes=None if data.task == "regression" else data.outputs,
        seed=args.seed,
        balanced=args.class_weights == "balanced",
    )
    pixels, targets = examples.sampled_pixels(args.tree_samples, seed=args.seed)
    clock = TrainingTimer()
    trees.fit(features(pixels), targets)
    costs = baseline_costs(clock, device=job.device)
    points = data.targets if isinstance(data.targets, WindowTargets) else None
    centres = None if points is None else points.examples.centres.astype(np.int64)
    return TreePredictor(trees, features, scale=data.scale, pixels=centres), costs | {"tree_samples": trees.samples}


# ----------------------------------------------------------------------------------------------------- scoring alone


def prepare_evaluation(
    args: argparse.Namespace, device: torch.device, ranks: dist.Ranks
) -> tuple[FinetuneRun, Callable[[Stop], None]]:
    """Opens a fine-tuned checkpoint and the ground to score it on: its fold's test ground, or all of other labels.

    Returns:
        The run, and what it is to do.

    Raises:
        ValueError, OSError: bad input; the checkpoint was fitted on all of these labels.
    """
    options.check_resume(args)
    state = dist.on_all(lambda: checkpoint_file.load_checkpoint(args.resume, required=evaluation.FINETUNED_KEYS))
    args = evaluation.with_stored(args, state["options"], get_args_parser())
    options.check(args)
    options.settle(args, state["model_config"], state, again=True)
    begin(args, device, ranks)
    opened = dist.on_all(lambda: open_ground(args, state, ranks))
    where = evaluation.IMAGES
    if args.dataset_type == "grid":
        where = evaluation.where_to_score(args, state, opened.survey.ground())
    splitting = options.split_options(args, input_size=opened.survey.input_size, held_out=state["held_out"])
    splitting |= {} if where.is_fold else {"split": "all"}
    data = dist.on_all(lambda: open_labels_on(args, opened, splitting, class_codes=state["task"]["codes"]))
    tell(opened, data, ranks)
    if where.is_fold and args.dataset_type == "grid":
        resume_state.check_same_configuration(
            state["folds"], plain(data.folds.summary()), "folds (labels or layers changed)"
        )
    output_dir = Path(args.output_dir)
    files = FinetuneFiles(output_dir, Path(args.log_dir or output_dir), enabled=ranks.is_main)
    job = FinetuneRun(args, ranks, device, opened, data, None, state["held_out"], [], [], {}, files)
    return job, partial(evaluate, job, state, where)


def evaluate(job: FinetuneRun, state: dict[str, Any], where: evaluation.Where, _: Stop) -> None:
    """Scores a fine-tuned checkpoint."""
    network = models.build_finetune_model(state["model_config"]).to(job.device)
    network.load_state_dict(state["model"])
    objective = objective_of(job.args, job.data.task, TargetStatistics(**state["training"]))
    outcome = score(job, network_outputs(job, network, objective), state["fold"] if where.is_fold else 0)
    logger.info("%s: %s", where.what, headline(job.data.kind, outcome.scores, job.data.units))
    warnings = [text for text in (where.warning, job.data.folds.leak_warning) if text]
    for text in warnings if job.ranks.is_main else ():
        logger.warning("%s", text)
    facts = {"checkpoint": job.args.resume, "scored": where.what, "warning": "; ".join(warnings) or None}
    path = job.files.write(
        EVALUATION, {**facts, "task": job.data.kind, "split": job.data.folds.summary(), "test": outcome.scores}
    )
    logger.info("scores       %s", path)


# ----------------------------------------------------------------------------------------------------------------- end


def report(job: FinetuneRun) -> dict[str, Any]:
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
        facts=data.folds.summary(),
        leak=data.folds.leak_warning,
        units=data.units,
    )
    metrics = collect(scored, files)
    path = files.write(METRICS, metrics)
    for text in table_lines(scored, metrics):
        logger.info("%s", text)
    pictures = draw_scores(scored, metrics, files)
    if job.args.dataset_type == "grid":
        pictures.append(draw_map(scored, files, data, job.opened.survey))
    for picture in pictures:
        logger.info("picture      %s", picture)
    logger.info("scores       %s", path)
    logger.info("tensorboard  tensorboard --logdir %s", files.log_dir)
    return metrics


if __name__ == "__main__":
    sys.exit(main())
