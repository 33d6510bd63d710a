"""Pre-trains a grouped-channel multi-scale masked autoencoder on georeferenced rasters as they lie on disk.

Reads top to bottom: options, data, model, optimiser, loop, scores. `python -m main_pretrain --help` lists the options;
docs/pretraining.md explains the files that a run writes.
"""

from __future__ import annotations

from util.options.early import before_imports, early_parser

if __name__ == "__main__":  # --help and wrong flags are answered at once: the imports below take seconds
    before_imports(early_parser("main_pretrain", __doc__))

import argparse
import logging
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import models_mae_group_channels as models
from datasets.layers.layer_statistics import save_statistics
from datasets.loading.batch_plan import MicroBatch
from datasets.loading.prefetch import prefetch, read_ahead
from datasets.loading.token_masks import MASK_SHAPES, new_masks
from datasets.pretraining.pretrain_data import Batch, PretrainData, TrainingBatches, open_pretrain_data
from datasets.survey.memory import free_in_job
from datasets.survey.pyramid import Pyramid
from datasets.survey.suggestion import suggested_options
from datasets.synthetic.sample_survey import default_survey
from util.checkpoints import resume_state
from util.checkpoints import run_checkpoints as ckpt
from util.checkpoints.same_step import require_same_step
from util.hardware.device import amp_policy, peak_memory_bytes
from util.metrics.held_out import HeldOutScorer
from util.options import common as options
from util.options import pretrain as pretrain_options
from util.options.programs import pretrain_parser
from util.processes import distributed as dist
from util.processes import torchrun_restarts as restarts
from util.processes.program import log_environment, run_program
from util.processes.signals import Stop
from util.processes.terminal import progress_bar
from util.records.log import claim_output_folders
from util.records.pretrain_records import RunFiles
from util.training import setup
from util.training.dry_run import time_update
from util.training.lr_sched import Schedule
from util.training.setup import RunSettings, TrainingSettings
from util.training.state import Progress, TrainingState
from util.training.step_meter import LossTerms, StepMeter, WindowOfSteps, require_finite
from util.training.timer import TrainingTimer

logger = logging.getLogger("main_pretrain")

Network = models.MaskedAutoencoderGroupChannelViT


def get_args_parser() -> argparse.ArgumentParser:
    """Returns the parser of the options; names are those of SatMAE where it has the same option."""
    names = {"mask_shapes": tuple(MASK_SHAPES), "scale_heads": tuple(models.SCALE_HEADS), "stems": tuple(models.STEMS)}
    return pretrain_parser(__doc__, **names)


@dataclass(frozen=True)
class Run:
    """Everything that the training loop works with; only `state` changes."""

    training: TrainingSettings
    settings: RunSettings
    ranks: dist.Ranks
    device: torch.device
    data: PretrainData
    batches: TrainingBatches
    model: torch.nn.Module
    schedule: Schedule
    predicted_memory: float | None
    description: dict[str, Any]
    state: TrainingState
    files: RunFiles


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Returns:
        Exit status: 0 when done, or stopped by a signal after a checkpoint; 1 when the run failed, or was stopped at
        once by Ctrl-C; 2 for bad input.
    """
    args, given = options.parsed(get_args_parser(), argv)
    return run_program(
        "main_pretrain",
        prepare=partial(prepare, args, given=given),
        work=dry_run if args.dry_run else train,
        close=lambda run, error: run.files.close(error),
        work_errors=(OSError,),
        **options.process_options(args),
    )


# ---------------------------------------------------------------------------------------------------- before the loop


def prepare(
    args: argparse.Namespace, device: torch.device, ranks: dist.Ranks, *, given: frozenset[str] = frozenset()
) -> Run:
    """Opens the data, builds model and optimiser, and resumes an earlier run if asked to.

    Raises:
        ValueError, OSError: bad input.
    """
    settings = options.fill(RunSettings, args)
    pretrain_options.check(args)
    graphs = setup.check_start(settings, ranks, device)
    claim_output_folders(args.output_dir, args.log_dir, alone=not args.dry_run)
    amp_dtype, _ = amp_policy(device, args.amp)
    environment = log_environment(device, ranks, precision=str(amp_dtype or "fp32"))
    args = with_suggestion(with_defaults(args, ranks), given, ranks)

    # data
    training, chosen = options.fill(TrainingSettings, args), options.data_options(args)
    more = {"test_path": args.test_path, "val_tiles": args.val_tiles, "cache": args.cache, "device": device}
    data = dist.on_all(lambda: open_pretrain_data(chosen, **more, local_ranks=ranks.local_world_size))
    data.log_summary(args.patch_size, warn=ranks.is_main)

    # model
    torch.manual_seed(args.seed)
    sizes = {**options.model_options(args), **data.training.channel_options(), "texture": args.texture_weight > 0}
    network = models.build_model(args.model, **sizes).to(device)
    masks = new_masks(**pretrain_options.mask_options(args), groups=network.encoded_groups)
    limits: dict[str, Any] = {"batches_ahead": read_ahead(settings.num_workers), "job_free": free_in_job()}
    batch, memory = setup.fit_batch(network, training, settings, ranks, amp_dtype=amp_dtype, **limits)
    args = options.replaced(args, batch_size=batch.batch_size, accum_iter=batch.accum_iter)
    model = setup.parallel_model(network, settings, device)

    # batches, learning rate, optimiser
    batches = data.batches(
        masks,
        **pretrain_options.batch_options(args),
        channel_counts=[layer.count for layer in network.layers],
        rank=ranks.rank,
        world_size=ranks.world_size,
        pin=args.pin_mem and device.type == "cuda",
    )
    schedule = setup.pretraining_schedule(training, batches)
    updater = setup.pretraining_updater(network, model, training, graphs, lr=schedule.peak_lr, amp_dtype=amp_dtype)
    setup.log_size(args.model, network, schedule)
    data.warn_if_short(schedule.steps, scores=args.val_fraction > 0, auto=args.auto, warn=ranks.is_main)
    used = {"options": vars(args), "decisive": pretrain_options.decisive(vars(args))}
    description = resume_state.describe_run(data.training, batches, network.config, **used)
    run = Run(
        training=training,
        settings=settings,
        ranks=ranks,
        device=device,
        data=data,
        batches=batches,
        model=model,
        schedule=schedule,
        predicted_memory=memory,
        description=description,
        state=TrainingState(network, updater, TrainingTimer(), Progress(args.start_epoch), device),
        files=RunFiles(
            args.output_dir, args.log_dir, data.training, network.layers, epochs=args.epochs, enabled=ranks.is_main
        ),
    )
    begin_or_resume(run, args.resume, environment)
    return run


def with_defaults(args: argparse.Namespace, ranks: dist.Ranks) -> argparse.Namespace:
    """Returns the options, with --resume auto if torchrun restarted the run and the sample survey if no data are given.

    Raises:
        OSError: the output folder cannot be read, or the sample survey not be written.
    """
    resume, train_path = args.resume, args.train_path
    if not args.dry_run:
        resume = restarts.resume_from(resume, Path(args.output_dir))
    if args.dataset_type == "grid" and not (args.data_dir or train_path or args.data_path):
        train_path = str(dist.on_each_machine(default_survey, ranks) / "layers.csv")
        logger.info("no --data_dir or --train_path given: using the sample survey, %s", train_path)
    return options.replaced(args, resume=resume, train_path=train_path)


def with_suggestion(args: argparse.Namespace, given: frozenset[str], ranks: dist.Ranks) -> argparse.Namespace:
    """Returns the options, with --auto those that suit the survey in place of the ones that are not `given`.

    Raises:
        ValueError, OSError: the data cannot be used.
    """
    if not args.auto:
        return args
    survey, kept = options.survey_options(args, given), options.chosen(args, given)
    per_update = options.tiles_per_update(args, world_size=ranks.world_size)
    return options.replaced(args, **dist.on_all(lambda: suggested_options(survey, kept, tiles_per_update=per_update)))


def begin_or_resume(run: Run, resume: str, environment: dict[str, Any]) -> None:
    """Resumes an earlier run where it stopped, or opens the records of a new one; a dry run does neither.

    Raises:
        ValueError: the checkpoint is of another configuration, or none can be used.
    """
    if run.settings.dry_run:
        return
    files, progress, training = run.files, run.state.progress, run.data.training
    found = dist.on_all(lambda: ckpt.find_checkpoint(resume, files.output_dir))
    require_same_step(found, f"--resume {resume}")
    progress.step = progress.epoch * run.schedule.updates
    if found is not None:
        resume_state.check_same_run(found, run.description)
        run.state.restore(found)
        logger.info("resumed at epoch %d, update %d (step %d)", progress.epoch + 1, progress.update, progress.step)
    in_place = found is not None and ckpt.continues_in(resume, files.output_dir)
    files.open(resume_step=progress.step if in_place else None)
    restarts.mark_started(files.output_dir)
    if run.ranks.is_main:
        training.write_tables(files.output_dir)
        save_statistics(files.output_dir / "statistics.json", list(training.statistics))
    files.describe({"options": run.description["options"], "environment": environment})
    is_kept = progress.epoch == run.training.epochs or run.settings.keeps(progress.epoch)
    if found is not None and not progress.update and is_kept:
        dist.on_main_rank(lambda: files.restore_epoch_file(epoch=progress.epoch, step=progress.step))


# ------------------------------------------------------------------------------------------------------------ the loop


def train(run: Run, stop: Stop) -> None:
    """Trains from the current progress to the last epoch, scoring held-out tiles after each epoch.

    Raises:
        RunFailed: a loss was not finite.
        OSError: a tile could not be read or a checkpoint not written; earlier checkpoints are intact.
    """
    progress, timer, epochs, settings = run.state.progress, run.state.timer, run.training.epochs, run.settings
    scorer, example = held_out_scorer(run), run.data.held_out.best()
    if progress.epoch >= epochs:
        logger.info("all %d epochs are done; a larger --epochs would go on", epochs)
    while progress.epoch < epochs:
        if not train_epoch(run, stop):
            return
        epoch = progress.epoch + 1
        progress.epoch, progress.update, is_end = epoch, 0, epoch == epochs
        with timer.paused():
            scores, tiles = scorer.score(), run.data.held_out.tiles
            run.files.log_epoch(scores, step=progress.step, epoch=epoch, seconds=timer.trained_s, tiles=tiles)
            if example is not None and (is_end or settings.draws(progress.epoch)):
                draw(run, scorer, example)
            save(run, keep=is_end or settings.keeps(progress.epoch))
        if dist.any_rank(stop.signal is not None) and not is_end:
            logger.warning("stopped by signal %s after epoch %d; continue with --resume auto", stop.signal, epoch)
            return
    run.files.log_paths()


def train_epoch(run: Run, stop: Stop) -> bool:
    """Trains the rest of the current epoch.

    Returns:
        False if a signal stopped it part way, after a checkpoint.
    """
    state, schedule, settings, training = run.state, run.schedule, run.settings, run.data.training
    progress, updater, pyramid = state.progress, state.updater, training.pyramid()
    tiles, plan, read = run.batches.epoch(progress.epoch, start_update=progress.update)
    meter = StepMeter(
        updates=settings.log_every,
        scales=len(training.scales),
        channels=len(training.layers),
        device=run.device,
        check_gradients=not updater.scaler.is_enabled(),
    )
    done, shown = progress.update, settings.shows_progress(run.ranks)
    name = run.files.epoch_name(progress.epoch)
    bar = progress_bar(total=schedule.updates, initial=done, desc=name, unit="update", enabled=shown)
    tiles_of_steps: deque[list[np.ndarray]] = deque([[]], maxlen=settings.log_every)
    saved_at = time.monotonic()
    run.model.train()
    for micro, batch in state.timer.timed(prefetch(plan, read, workers=settings.num_workers)):
        tiles_of_steps[-1].append(tiles[micro.positions])
        meter.add(**add_gradients(run, pyramid, micro, batch)._asdict(), weight=micro.weight)
        state.timer.tiles += len(micro.positions) if micro.weight else 0
        if not micro.is_last:
            continue

        lr = schedule.lr(progress.step)
        meter.end_update(updater.step(lr))
        progress.step, progress.update = progress.step + 1, progress.update + 1
        bar.update(1)
        is_due = time.monotonic() - saved_at > 60 * settings.save_minutes
        stopping, is_due = dist.any_rank_each(stop.signal is not None, is_due)
        is_end = progress.update == schedule.updates
        if meter.is_full or is_end or stopping or is_due:
            window = meter.read(dist.mean_over_ranks, dist.sum_over_ranks)
            require_finite(window, tiles_of_steps, progress, run.files.output_dir, name_tiles=training.name_tiles)
            log_window(run, window, lr)
            bar.set_postfix(window.shown, refresh=False)
            tiles_of_steps.clear()
        tiles_of_steps.append([])
        if (stopping or is_due) and not is_end:
            save(run, keep=False)
            saved_at = time.monotonic()
        if stopping and not is_end:
            bar.close()
            where = f"in epoch {progress.epoch + 1} after update {progress.update}"
            logger.warning("stopped by signal %s %s; continue with --resume auto", stop.signal, where)
            return False
    bar.close()
    return True


def add_gradients(run: Run, pyramid: Pyramid, micro: MicroBatch, batch: Batch) -> LossTerms:
    """Reconstructs the masked tiles of a micro-batch and adds the gradients of the weighted loss to the update's."""
    sample, noise = batch.to(run.device, pyramid)
    with dist.gradients_shared(run.model, micro.is_last), dist.peer_errors_named():
        inputs = {**sample._asdict(), "noise": noise}
        return run.state.updater.accumulate(partial(backward, run), inputs, micro.weight)


def backward(run: Run, inputs: dict[str, Any], weight: float | torch.Tensor) -> LossTerms:
    """Computes the losses of a micro-batch, and the gradients of their weighted sum."""
    with run.state.updater.autocast():
        out = run.model(**inputs, mask_ratio=run.training.mask_ratio, details=True)
    loss = run.training.total_loss(out.losses)
    run.state.updater.backward(loss * weight)
    return LossTerms(tuple(term.detach() for term in (loss, *out.losses)), out.error_sums, out.error_counts)


def log_window(run: Run, window: WindowOfSteps, lr: float) -> None:
    """Records the updates since the last reading."""
    is_end = run.state.progress.step == run.schedule.steps
    scaling = run.state.updater.require_updates(run.files.output_dir, is_end=is_end)
    speed, memory = run.state.timer.read(run.ranks.world_size), peak_memory_bytes(run.device)
    run.files.log_training(window, run.state.progress, lr=lr, speed=speed, memory_bytes=memory, scaling=scaling)


def save(run: Run, *, keep: bool) -> None:
    """Writes a checkpoint from the main process; all ranks fail together if it cannot be written."""
    state = run.state.collect() | run.description
    dist.on_main_rank(lambda: run.files.save(state, keep=keep))


def dry_run(run: Run, _: Stop) -> None:
    """Times the first update of the first epoch and reports what an epoch would cost.

    Raises:
        OSError: a tile could not be read.
    """
    pyramid, epoch = run.data.training.pyramid(), run.batches.epoch(0)
    run.model.train()
    time_update(
        list(islice(epoch.plan, run.batches.accum_iter)),
        fetch=epoch.read,
        add_gradients=lambda micro, batch: add_gradients(run, pyramid, micro, batch).losses[0],
        updater=run.state.updater,
        schedule=run.schedule,
        device=run.device,
        predicted_memory=run.predicted_memory,
        batches_ahead=read_ahead(run.settings.num_workers),
    )


# ------------------------------------------------------------------------------------------------------------- scoring


def held_out_scorer(run: Run) -> HeldOutScorer:
    """Returns the scorer of the held-out tiles; this process scores every n-th of them."""
    held_out, batches, network = run.data.held_out, run.batches, run.state.network
    if not held_out.tiles:
        logger.warning("no held-out tiles: nothing will be scored (see --val_fraction)")
    return HeldOutScorer(
        run.state,
        run.training,
        held_out.source,
        rebuild=lambda: Network(**network.config).to(run.device),
        fetch=held_out.fetcher(run.data.training, batches.masks, seed=batches.seed, device=run.device),
        batches=held_out.batches(batches.batch_size, rank=run.ranks.rank, world_size=run.ranks.world_size),
        show_progress=run.settings.shows_progress(run.ranks),
    )


def draw(run: Run, scorer: HeldOutScorer, example: int) -> None:
    """Draws one held-out tile as it is reconstructed now."""
    found = scorer.reconstruct(example, enabled=run.ranks.is_main)
    if found is not None:
        base_pixel = run.data.held_out.source.base_pixel(run.data.held_out.views[example])
        run.files.draw(*found, run.state.progress, base_pixel=base_pixel, length_unit=run.data.training.length_unit)


if __name__ == "__main__":
    sys.exit(main())
