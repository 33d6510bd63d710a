"""Pre-trains a grouped-channel multi-scale masked autoencoder on rasters as they lie on disk.

Reads top to bottom: options, data, model, optimiser, loop, end. `python -m main_pretrain --help` lists the options;
docs/pretraining.md explains what a run leaves behind.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.optim import param_groups_weight_decay

import models_mae_group_channels as models
from datasets.layers.layer_statistics import save_statistics
from datasets.loading.batch_plan import MicroBatch, plan_epoch, updates_per_epoch
from datasets.loading.prefetch import prefetch, read_ahead
from datasets.loading.token_masks import Masks, dropped_layers, mask_fractions
from datasets.scenes.scenes import Scenes, open_scenes, open_test_scenes
from datasets.survey.open_survey import SurveySettings, open_survey, open_test_survey
from datasets.survey.pyramid import Pyramid, Sample
from datasets.survey.pyramid_cache import choose_reader, to_sample
from datasets.survey.survey import Survey
from datasets.survey.tile_reader import Tiles
from datasets.survey.tile_source import Reader, TileSource
from datasets.synthetic.sample_survey import default_survey
from util.checkpoints import resume_state
from util.checkpoints import run_checkpoints as ckpt
from util.checkpoints.checkpoint_file import VERSION
from util.checkpoints.same_step import require_same_step
from util.hardware.device import amp_policy, busy_warning, describe_environment, peak_memory_bytes, wait_for
from util.metrics.skill import HeldOutEvaluator, ScoredBatch, ScoredLayer
from util.options import common as options
from util.processes import distributed as dist
from util.processes import fsdp
from util.processes import torchrun_restarts as restarts
from util.processes.program import RunFailed, run_program
from util.processes.signals import Stop
from util.processes.terminal import progress_bar
from util.records.clock import TrainingTimer
from util.records.log import check_writable
from util.records.pretrain_records import LAST_PICTURE, LayerReportInfo, RunFiles, reconstruction_rows, score_lines
from util.training.batch_size import choose_batch_size, predict_memory, report_measured
from util.training.engine import Updater, make_adamw
from util.training.lr_sched import Schedule
from util.training.memory import memory_trials
from util.training.setup import make_schedule
from util.training.step_meter import StepMeter, WindowOfSteps
from util.training.training_step import pretraining_step

logger = logging.getLogger("main_pretrain")

MASKED_VIEWS = 64
"""Least number of masked views of held-out tiles that are scored (unless --val_tiles is smaller)."""
VALIDATION_EPOCH = -1
"""Masks of held-out tiles are drawn as those of this epoch: always the same."""

MAY_CHANGE = set(
    "accum_iter batch_size cache compile crs data_dir data_path device dist_url dry_run effective_batch epochs "
    "figure_every fsdp grad_checkpointing keep_every local_rank log_dir log_every no_progress num_workers output_dir "
    "pin_mem resume save_minutes start_epoch test_path train_path val_tiles world_size".split()
)
"""Options that do not decide which numbers a run computes, or whose effect is checked elsewhere."""


def get_args_parser() -> argparse.ArgumentParser:
    """The options, under the names that SatMAE users know where they exist there."""
    parser = argparse.ArgumentParser(
        "main_pretrain", usage="main_pretrain [options]", description=__doc__.split("\n\n")[0]
    )
    options.add_data_options(parser)
    options.add_model_options(parser)
    options.add_training_options(parser)
    options.add_run_options(parser)
    parser.add_argument(
        "--fsdp", action="store_true", help="share weights and optimiser state out over the processes (large models)"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="open all, time one update, say what an epoch costs; train nothing"
    )
    return parser


Fetched = tuple[Tiles | Sample, torch.Tensor, torch.Tensor | None]
"""Tiles, the noise of their masks, and the channels that they go without, if any."""


@dataclass
class Progress:
    """Where a run stands: next epoch, next update within it, optimiser steps done."""

    epoch: int = 0
    update: int = 0
    step: int = 0


@dataclass(frozen=True)
class ScoredTiles:
    """What is scored: where it lies, how many tiles, and (m, k) rows of it, one for each masked view of a tile."""

    survey: TileSource
    tiles: int
    origins: np.ndarray


@dataclass(frozen=True)
class Run:
    """The parts of a run that its loop works with; none of them changes identity while it lasts."""

    args: argparse.Namespace
    ranks: dist.Ranks
    device: torch.device
    survey: TileSource
    reader: Reader
    scored: ScoredTiles
    network: models.MaskedAutoencoderGroupChannelViT
    masks: Masks
    model: torch.nn.Module
    updater: Updater
    schedule: Schedule
    files: RunFiles
    layers: list[LayerReportInfo]
    clock: TrainingTimer
    place: Progress
    predicted_memory: float | None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Returns:
        Exit status: 0 when done, or stopped by a signal after a checkpoint; 1 when the run failed, or was stopped at
        once by Ctrl-C; 2 for bad input.
    """
    args = get_args_parser().parse_args(argv)
    return run_program(
        "main_pretrain",
        prepare=partial(prepare, args),
        work=work,
        work_errors=(OSError,),
        **options.process_options(args),
    )


def work(run: Run, stop: Stop) -> int:
    """Trains, or does a dry run; returns exit status 0."""
    with closing(run.files):
        if run.args.dry_run:
            dry_run(run)
        else:
            train(run, stop)
    return 0


# ---------------------------------------------------------------------------------------------------- before the loop


def prepare(args: argparse.Namespace, device: torch.device, ranks: dist.Ranks) -> Run:
    """Opens the data, builds model and optimiser, and finds where to go on.

    Raises:
        ValueError, OSError: bad input.
    """
    if not args.base_loss_weight + args.scale_loss_weight:
        raise ValueError("--base_loss_weight 0 and --scale_loss_weight 0 leave nothing to learn; raise one of them")
    if args.fsdp:
        dist.on_all(lambda: fsdp.refuse_unfit(world_size=ranks.world_size, compiled=args.compile, device=device))
    amp_dtype, needs_scaler = amp_policy(device, args.amp)
    output_dir = Path(args.output_dir)
    dist.on_main_rank(lambda: check_writable(output_dir, flag="--output_dir"))
    if args.log_dir:
        dist.on_main_rank(lambda: check_writable(Path(args.log_dir), flag="--log_dir"))
    if not args.dry_run:
        args.resume = restarts.resume_from(args.resume, output_dir)
    environment = describe_environment(device) | {
        "processes": ranks.world_size,
        "precision": str(amp_dtype or "fp32"),
    }
    logger.info("%s", ", ".join(f"{key} {value}" for key, value in environment.items()))
    if busy := busy_warning() if device.type == "cpu" else "":
        logger.log(logging.WARNING if ranks.is_main else logging.DEBUG, "%s", busy)

    # data
    if args.dataset_type == "grid" and not (args.data_dir or args.train_path or args.data_path):
        args.train_path = str(dist.on_each_machine(default_survey, ranks) / "layers.csv")
        logger.info("no --data_dir or --train_path given: using the sample survey, %s", args.train_path)
    survey = dist.on_all(lambda: open_data(args, ranks))
    scored = dist.on_all(lambda: scored_tiles(args, survey))
    for text in survey.summary_lines():
        logger.info("%s", text)
    reader = dist.on_all(lambda: choose_reader(survey, device, cache=args.cache, local_ranks=ranks.local_world_size))
    for text in dict.fromkeys(
        text for source in (survey, scored.survey) for text in source.training_warnings(args.patch_size)
    ):
        logger.log(logging.WARNING if ranks.is_main else logging.DEBUG, "%s", text)

    # model
    torch.manual_seed(args.seed)
    network = models.build_model(args.model, **options.model_options(args), **survey.channel_options()).to(device)
    masks = Masks(
        shares=mask_fractions(args.mask_shape or [("random", None)]),
        groups=network.num_groups,
        side=args.input_size // args.patch_size,
        spatial=args.spatial_mask,
        mask_ratio=args.mask_ratio,
    )

    # optimiser and schedule
    trials = memory_trials(
        pretraining_step(network, mask_ratio=args.mask_ratio, amp_dtype=amp_dtype, clip_grad=args.clip_grad),
        network,
        device=device,
        accumulates=args.batch_size == "auto" or args.accum_iter > 1,
        shares_gradients=ranks.world_size > 1 and not args.fsdp,
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
    predicted_memory = None
    if args.dry_run and not args.fsdp:
        predicted_memory = predict_memory(trials, chosen.batch_size, device=device, ranks=ranks)
    if args.fsdp:
        model = fsdp.shard(network, [*network.blocks, *network.decoder_blocks], device)
    else:
        model = dist.wrap(torch.compile(network) if args.compile else network, device)
    batches = {"batch_size": args.batch_size, "accum_iter": args.accum_iter, "world_size": ranks.world_size}
    tiles = args.tiles_per_epoch or survey.training_tiles
    updates = updates_per_epoch(tiles, **batches)
    effective_batch = args.batch_size * args.accum_iter * ranks.world_size
    schedule = make_schedule(
        tiles=tiles,
        updates=updates,
        epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        effective_batch=effective_batch,
        lr=args.lr,
        blr=args.blr,
        min_lr=args.min_lr,
    )
    updater = Updater(
        model,
        make_adamw(param_groups_weight_decay(network, args.weight_decay), lr=schedule.peak_lr),
        amp_dtype=amp_dtype,
        scaler=torch.amp.GradScaler(device.type, enabled=needs_scaler),
        device_type=device.type,
        clip_grad=args.clip_grad,
    )
    layers = [
        LayerReportInfo(layer.name, encoding.unit(layer.units), channels, encoding.decode)
        for layer, encoding, channels in zip(survey.layers, survey.encodings, network.layers, strict=True)
    ]
    files = RunFiles(
        output_dir,
        Path(args.log_dir or output_dir),
        layers=layers,
        scales=survey.scales,
        scored=survey.scored,
        enabled=ranks.is_main,
    )
    run = Run(
        args=args,
        ranks=ranks,
        device=device,
        survey=survey,
        reader=reader,
        scored=scored,
        network=network,
        masks=masks,
        model=model,
        updater=updater,
        schedule=schedule,
        files=files,
        layers=layers,
        clock=TrainingTimer(),
        place=Progress(args.start_epoch),
        predicted_memory=predicted_memory,
    )
    logger.info(
        "%s: %.2f M parameters; %d tiles and %d updates an epoch, effective batch %d, peak rate %.3g",
        args.model,
        sum(p.numel() for p in network.parameters() if p.requires_grad) / 1e6,
        schedule.tiles,
        schedule.updates,
        schedule.effective_batch,
        schedule.peak_lr,
    )
    if not args.dry_run:
        begin_or_resume(run, environment)
    return run


def open_data(args: argparse.Namespace, ranks: dist.Ranks) -> TileSource:
    """What is trained on: rasters on disk, or a scene data set.

    Raises:
        ValueError, OSError: it cannot be trained on.
    """
    if args.dataset_type in options.SCENE_TYPES:
        return open_scenes(**options.scene_options(args))
    return open_survey(SurveySettings(**options.survey_options(args), local_ranks=ranks.local_world_size))


def open_test_data(args: argparse.Namespace, survey: TileSource) -> TileSource:
    """What --test_path names, to be scored with the statistics of what is trained on.

    Raises:
        ValueError, OSError: it cannot be used, or has other layers or categories.
    """
    if isinstance(survey, Scenes):
        return open_test_scenes(survey, args.test_path)
    assert isinstance(survey, Survey)
    return open_test_survey(survey, args.test_path, settings=SurveySettings(**options.survey_options(args)))


def begin_or_resume(run: Run, environment: dict[str, Any]) -> None:
    """Takes up an earlier run where it stopped, or opens the records of a new one.

    Raises:
        ValueError: the checkpoint is of another configuration, or none can be used.
    """
    args, files, place = run.args, run.files, run.place
    state = dist.on_all(lambda: ckpt.find_checkpoint(args.resume, files.output_dir))
    require_same_step(state, f"--resume {args.resume}")
    elsewhere = args.resume not in ("", "auto") and Path(args.resume).resolve().parent != files.output_dir.resolve()
    place.step = place.epoch * run.schedule.updates
    if state is not None:
        for what, value in run_facts(run).items():
            resume_state.check_same_configuration({what: state.get("facts", {}).get(what)}, {what: value}, what)
        fsdp.load_states(run.network, run.updater.optimizer, model=state["model"], optimizer_state=state["optimizer"])
        run.updater.scaler.load_state_dict(state["scaler"])
        resume_state.restore_rng_state(state["rng"], run.device)
        place.epoch, place.update, place.step = state["epoch"], state["update"], state["step"]
        run.clock.resume(state)
        logger.info("resumed at epoch %d, update %d (step %d)", place.epoch, place.update, place.step)
    aside = files.open(resume_step=None if state is None or elsewhere else place.step)
    restarts.mark_started(files.output_dir)
    if aside is not None:
        what = "an earlier run" if state is None or elsewhere else "newer checkpoints"
        logger.warning("%s held %s: now in %s", files.output_dir, what, aside)
    if run.ranks.is_main:
        run.survey.write_tables(files.output_dir)
        save_statistics(files.output_dir / "statistics.json", list(run.survey.statistics))
    files.describe({"options": vars(args), "environment": environment})
    if state is not None and not place.update and is_kept(args, place.epoch):
        dist.on_main_rank(lambda: files.restore_epoch_file(epoch=place.epoch, step=place.step))


def is_kept(args: argparse.Namespace, epochs_done: int) -> bool:
    """Whether the checkpoint after so many epochs is kept under its number."""
    return epochs_done == args.epochs or epochs_done % args.keep_every == 0


def run_facts(run: Run) -> dict[str, Any]:
    """What must be the same for a run to be continued exactly, what a user decides first."""
    decisive = {key: value for key, value in vars(run.args).items() if key not in MAY_CHANGE and value is not None}
    values = [
        {"name": item.name, "location": f"{item.centre:.6g}", "spread": f"{item.scale:.6g}"}
        for item in run.survey.statistics
    ]
    return {
        "options": decisive,
        "effective batch (batch_size x accum_iter x processes)": run.schedule.effective_batch,
        "layers": [
            {"name": layer.name, "kind": layer.kind, "units": layer.units}
            | ({} if layer.transform == "none" else {"transform": layer.transform})
            | ({"classes": list(encoding.codes)} if encoding.codes else {})
            for layer, encoding in zip(run.survey.layers, run.survey.encodings, strict=True)
        ],
        "model": {key: value for key, value in run.network.config.items() if key != "grad_checkpointing"},
        "tiles an epoch": run.schedule.tiles,
        "statistics": values,
    }


def checkpoint_state(run: Run) -> dict[str, Any]:
    """Everything that a checkpoint holds, in the main process; every process must call it."""
    model, optimizer = fsdp.whole_states(run.network, run.updater.optimizer)
    return {
        "model": model,
        "optimizer": optimizer,
        "scaler": run.updater.scaler.state_dict(),
        "epoch": run.place.epoch,
        "update": run.place.update,
        "step": run.place.step,
        "rng": resume_state.collect_rng_state(run.device),
        "model_config": run.network.config,
        "layers": [asdict(layer) for layer in run.survey.layers],
        "statistics": [item.as_dict() for item in run.survey.statistics],
        "encodings": [encoding.plain() for encoding in run.survey.encodings],
        "options": {key: value for key, value in vars(run.args).items()},
        "version": VERSION,
        **run.survey.record(),
        "facts": run_facts(run),
        **run.clock.state(),
    }


# ------------------------------------------------------------------------------------------------------------ the loop


def train(run: Run, stop: Stop) -> None:
    """Trains from where the run stands to its last epoch, scoring held-out ground after each.

    Raises:
        RunFailed: a loss was not finite.
        OSError: a tile could not be read or a checkpoint not written; earlier checkpoints are intact.
    """
    args, files, place = run.args, run.files, run.place
    evaluator, example = prepare_scoring(run)
    if place.epoch >= args.epochs:
        logger.info("all %d epochs are done; a larger --epochs would go on", args.epochs)
    while place.epoch < args.epochs:
        if not train_epoch(run, stop):
            return
        epoch = place.epoch
        place.epoch, place.update = epoch + 1, 0
        is_end = place.epoch == args.epochs
        with run.clock.paused():
            scores = score(run, evaluator)
            line = files.log_epoch(
                scores, step=place.step, epoch=epoch, seconds=run.clock.trained_s, tiles=run.scored.tiles
            )
            logger.info(
                "epoch %d: loss %.4f, held-out loss %s, %.0f tiles/s, waited %.1f %%, %.0f s",
                epoch,
                line["train_loss"],
                f"{line['val_loss']:.4f}" if scores else "-",
                line["tiles_per_s"],
                100 * line["wait_share"],
                line["seconds"],
            )
            for row in score_lines(line, {layer.name: layer.unit for layer in run.layers}):
                logger.info("%s", row)
            if example is not None and (is_end or (args.figure_every and place.epoch % args.figure_every == 0)):
                draw(run, evaluator, example)
            save(run, keep=is_kept(args, place.epoch))
        if dist.any_rank(stop.signal is not None) and not is_end:
            logger.warning("stopped by signal %s after epoch %d; continue with --resume auto", stop.signal, epoch)
            return
    logger.info("checkpoint   %s", files.output_dir / ckpt.LAST)
    if (files.output_dir / LAST_PICTURE).exists():
        logger.info("picture      %s", files.output_dir / LAST_PICTURE)
    logger.info("tensorboard  tensorboard --logdir %s", files.log_dir)


def train_epoch(run: Run, stop: Stop) -> bool:
    """Trains the rest of the current epoch.

    Returns:
        False if a signal stopped it part way, after a checkpoint.
    """
    args, place, schedule, ranks, device = run.args, run.place, run.schedule, run.ranks, run.device
    pyramid, updater, survey = run.survey.pyramid(), run.updater, run.survey
    origins = survey.epoch_tiles(seed=args.seed, epoch=place.epoch, tiles=schedule.tiles)
    fetch = partial(fetch_tiles, run.reader, origins, run=run, epoch=place.epoch)
    plan = plan_epoch(
        schedule.tiles,
        batch_size=args.batch_size,
        accum_iter=args.accum_iter,
        rank=ranks.rank,
        world_size=ranks.world_size,
        start_update=place.update,
    )
    meter = StepMeter(
        updates=args.log_every,
        scales=len(survey.scales),
        channels=len(survey.layers),
        device=device,
        check_gradients=not updater.scaler.is_enabled(),
    )
    bar = progress_bar(
        total=schedule.updates,
        initial=place.update,
        desc=f"epoch {place.epoch}",
        unit="update",
        enabled=ranks.is_main and not args.no_progress,
    )
    seen_tiles: deque[list[np.ndarray]] = deque([[]], maxlen=args.log_every)
    saved_at = time.monotonic()
    run.model.train()
    for micro, fetched in run.clock.timed(prefetch(plan, fetch, workers=args.num_workers)):
        seen_tiles[-1].append(origins[micro.positions])
        loss, out = add_gradients(run, pyramid, micro, fetched)
        meter.add(
            losses=(loss, out.loss, out.ms_loss),
            weight=micro.weight,
            error_sums=out.error_sums,
            error_counts=out.error_counts,
        )
        run.clock.tiles += len(micro.positions) if micro.weight else 0
        if not micro.is_last:
            continue

        lr = schedule.lr(place.step)
        meter.end_update(updater.step(lr))
        place.step, place.update = place.step + 1, place.update + 1
        bar.update(1)
        stopping, due = dist.any_rank_each(
            stop.signal is not None, time.monotonic() - saved_at > 60 * args.save_minutes
        )
        is_end = place.update == schedule.updates
        if meter.is_full or is_end or stopping or due:
            window = meter.read(dist.mean_over_ranks, dist.sum_over_ranks)
            refuse_non_finite(window, seen_tiles, run)
            log_window(run, window, lr)
            bar.set_postfix(loss=f"{window.loss:.4f}", refresh=False)
            seen_tiles.clear()
        seen_tiles.append([])
        if (stopping or due) and not is_end:
            save(run, keep=False)
            saved_at = time.monotonic()
        if stopping and not is_end:
            bar.close()
            where = f"in epoch {place.epoch} after update {place.update}"
            logger.warning("stopped by signal %s %s; continue with --resume auto", stop.signal, where)
            return False
    bar.close()
    return True


def add_gradients(
    run: Run, pyramid: Pyramid, micro: MicroBatch, fetched: Fetched
) -> tuple[torch.Tensor, models.Reconstruction]:
    """Masks the tiles of a micro-batch, rebuilds them, and adds the gradient of the weighted loss to the update's."""
    args, (tiles, noise, dropped) = run.args, fetched
    sample = to_sample(tiles, pyramid, run.device)
    if dropped is not None:
        sample = sample.without(dropped.to(run.device, non_blocking=True))
    with dist.gradients_shared(run.model, micro.is_last), dist.peer_errors_named():
        out = reconstruct(run, run.model, sample, noise.to(run.device, non_blocking=True))
        loss = args.base_loss_weight * out.loss + args.scale_loss_weight * out.ms_loss
        run.updater.backward(loss * micro.weight)
    return loss, out


def reconstruct(
    run: Run, model: torch.nn.Module, sample: Sample | ScoredBatch, noise: torch.Tensor
) -> models.Reconstruction:
    """A forward pass in the run's precision: masks a batch as the noise says, rebuilds and scores it."""
    with run.updater.autocast():
        return model(
            sample.imgs,
            sample.imgs_up,
            mask_ratio=run.args.mask_ratio,
            valid=sample.valid,
            valid_up=sample.valid_up,
            noise=noise,
            details=True,
        )


def fetch_tiles(reader: Reader, origins: np.ndarray, micro: MicroBatch, *, run: Run, epoch: int) -> Fetched:
    """Reads the tiles of a micro-batch, draws their masks' noise and the channels that they go without, if any.

    Runs in the reading threads.
    """
    args, numbers = run.args, micro.positions
    tiles = reader.read(origins[numbers])
    noise = torch.from_numpy(run.masks.noise(numbers, seed=args.seed, epoch=epoch))
    dropped = None
    if args.layer_dropout:
        layers = run.network.layers
        gone = dropped_layers(numbers, layers=len(layers), share=args.layer_dropout, seed=args.seed, epoch=epoch)
        dropped = torch.from_numpy(gone.repeat([layer.count for layer in layers], axis=1))
    if args.pin_mem and run.device.type == "cuda":
        return tiles.pin(), noise.pin_memory(), dropped
    return tiles, noise, dropped


def dry_run(run: Run) -> None:
    """Does the first update of the first epoch twice, the first time to warm up, and says what an epoch would cost.

    Before it as many batches are read as wait while a run trains. Nothing is written.
    Scoring, pictures and checkpoints are not part of it.

    Raises:
        OSError: a tile could not be read.
    """
    args, schedule, pyramid = run.args, run.schedule, run.survey.pyramid()
    origins = run.survey.epoch_tiles(seed=args.seed, epoch=0, tiles=schedule.tiles)
    plan = plan_epoch(
        schedule.tiles,
        batch_size=args.batch_size,
        accum_iter=args.accum_iter,
        rank=run.ranks.rank,
        world_size=run.ranks.world_size,
        start_update=0,
    )
    update = list(islice(plan, args.accum_iter))
    fetch = partial(fetch_tiles, run.reader, origins, run=run, epoch=0)
    waiting = [fetch(update[0]) for _ in range(read_ahead(args.num_workers))]
    seconds = reading = 0.0
    run.model.train()
    for _ in range(2):
        begin, reading = time.monotonic(), 0.0
        for micro in update:
            at = time.monotonic()
            fetched = fetch(micro)
            reading += time.monotonic() - at
            loss, _ = add_gradients(run, pyramid, micro, fetched)
        run.updater.step(schedule.lr(0))
        wait_for(run.device)
        seconds = time.monotonic() - begin
    logger.info(
        "dry run: an update takes %.3g s, %.3g s of it reading, which --num_workers threads do ahead; peak memory "
        "%.0f MiB; an epoch of %d updates takes about %.3g s, all %d about %.3g h, without scoring; loss %.4f; nothing "
        "was trained or written",
        seconds,
        reading,
        peak_memory_bytes(run.device) / 2**20,
        schedule.updates,
        seconds * schedule.updates,
        args.epochs,
        seconds * schedule.updates * args.epochs / 3600,
        float(loss.detach()),
    )
    if run.predicted_memory is not None:
        report_measured(run.predicted_memory, run.device)
    del waiting


def log_window(run: Run, window: WindowOfSteps, lr: float) -> None:
    """Records what was seen since the last reading."""
    run.files.log_training(
        window,
        step=run.place.step,
        epoch=run.place.epoch,
        lr=lr,
        speed=run.clock.read(run.ranks.world_size),
        memory_bytes=peak_memory_bytes(run.device),
    )


def refuse_non_finite(window: WindowOfSteps, seen_tiles: Sequence[list[np.ndarray]], run: Run) -> None:
    """Stops all ranks together when a loss was not finite; the weights were not touched by it.

    Raises:
        RunFailed: naming step and tiles.
    """
    if window.first_bad is None:
        return
    here = np.concatenate(seen_tiles[window.first_bad]).tolist() if window.bad_here else []
    tiles = [tile for part in dist.gather_objects(here) for tile in part]
    step = run.place.step - len(seen_tiles) + window.first_bad
    error = RunFailed(
        f"loss not finite at step {step} (epoch {run.place.epoch}); that step did not touch the weights, and the last "
        f"checkpoint in {run.files.output_dir} is good. Tiles of that step, "
        f"{run.survey.name_tiles(tiles) if tiles else 'unknown (the gradient overflowed)'}. Mend the layers there or "
        "lower --lr, and start afresh: --resume auto repeats the same steps"
    )
    raise dist.mark_shared(error)


def save(run: Run, *, keep: bool) -> None:
    """Writes a checkpoint from the main process; all ranks fail together if it cannot be written."""
    state = checkpoint_state(run)
    dist.on_main_rank(lambda: run.files.save(state, keep=keep))


# ------------------------------------------------------------------------------------------------------------- scoring


def prepare_scoring(run: Run) -> tuple[HeldOutEvaluator, int | None]:
    """Makes the evaluator of held-out tiles, and chooses the tile that is drawn.

    Returns:
        The evaluator, and the number of the held-out tile with most valid ground (None if nothing is held out).
    """
    args, survey, ranks = run.args, run.survey, run.ranks
    source, origins = run.scored.survey, run.scored.origins
    if not len(origins):
        logger.warning("no held-out tiles: nothing will be scored (see --val_fraction)")
    reader, pyramid = source.reader(), survey.pyramid(source)

    def fetch(numbers: np.ndarray) -> ScoredBatch:
        sample = to_sample(reader.read(origins[numbers]), pyramid, run.device)
        noise = run.masks.noise(numbers, seed=args.seed, epoch=VALIDATION_EPOCH)
        return ScoredBatch(*sample, noise=torch.from_numpy(noise).to(run.device))

    mine = np.arange(len(origins))[ranks.rank :: ranks.world_size]
    evaluator = HeldOutEvaluator(
        fetch=fetch,
        batches=[mine[k : k + args.batch_size] for k in range(0, len(mine), args.batch_size)],
        scales=survey.scales,
        scored_at_base=[c in survey.scored[1] for c in range(len(survey.layers))],
        layers=[
            ScoredLayer(channels, encoding.decode, encoding.physical_per_model_unit, encoding.means)
            for channels, encoding in zip(run.network.layers, survey.encodings, strict=True)
        ],
        groups=run.network.channel_groups,
        patch_size=args.patch_size,
        base_in_units=not args.norm_pix_loss,
        sum_over_ranks=lambda tensor: dist.sum_over_ranks(tensor.to(run.device)).cpu(),
    )
    if not len(origins):
        return evaluator, None
    return evaluator, int(source.valid_share(origins).argmax())


def scored_tiles(args: argparse.Namespace, survey: TileSource) -> ScoredTiles:
    """The tiles to score: those held out, or all of what --test_path names; at most --val_tiles of them.

    Where there are fewer than `MASKED_VIEWS`, each is scored under several masks, so that the scores of a small survey
    do not hang on which tokens happened to be hidden.

    Raises:
        ValueError, OSError: what --test_path names cannot be used, or is of other layers than what is trained on.
    """
    source = open_test_data(args, survey) if args.test_path else survey
    origins = source.held_out_tiles
    if len(origins) > args.val_tiles:
        origins = origins[np.linspace(0, len(origins) - 1, args.val_tiles).round().astype(int)]
    views = -(-min(MASKED_VIEWS, args.val_tiles) // len(origins)) if len(origins) else 1
    return ScoredTiles(source, len(origins), np.tile(origins, (views, 1)))


def whole_network(run: Run) -> AbstractContextManager[torch.nn.Module]:
    """The network as each process can use it alone; every process must ask for it."""
    return fsdp.gathered(
        run.network, lambda: models.MaskedAutoencoderGroupChannelViT(**run.network.config).to(run.device)
    )


@torch.no_grad()
def predict(run: Run, network: torch.nn.Module, batch: ScoredBatch) -> models.Reconstruction:
    """The model's reconstruction of a held-out batch, under its fixed masks."""
    network.eval()
    return reconstruct(run, network, batch, batch.noise)


def score(run: Run, evaluator: HeldOutEvaluator):
    """Scores held-out ground on all ranks; None if nothing is held out."""
    if not dist.any_rank(bool(evaluator.batches)):
        return None
    show = partial(progress_bar, desc="held-out", unit="batch", enabled=run.ranks.is_main and not run.args.no_progress)
    weights = (run.args.base_loss_weight, run.args.scale_loss_weight)
    with whole_network(run) as network:
        return evaluator(partial(predict, run, network), loss_weights=weights, show=show)


def draw(run: Run, evaluator: HeldOutEvaluator, example: int) -> None:
    """Draws one held-out tile as it is reconstructed now."""
    with whole_network(run) as network:
        if not run.ranks.is_main:
            return
        batch = evaluator.fetch(np.array([example]))
        out = predict(run, network, batch)
    hidden = evaluator.hidden_pixels(out.mask, batch.imgs.shape)
    survey = run.survey
    rows = reconstruction_rows(
        layers=run.layers,
        scales=survey.scales,
        scored=survey.scored,
        base_pixel=run.scored.survey.base_pixel(run.scored.origins[example]),
        targets=[t[0].cpu() for t in (batch.imgs, *batch.imgs_up)],
        valid=[v[0].cpu() for v in (batch.valid, *batch.valid_up)],
        images={scale: image[0].cpu() for scale, image in out.images.items()},
        hidden=hidden[0].cpu(),
    )
    run.files.draw(
        rows,
        title=f"held-out tile after epoch {run.place.epoch}",
        epoch=run.place.epoch,
        step=run.place.step,
        length_unit=survey.length_unit,
    )


if __name__ == "__main__":
    sys.exit(main())
