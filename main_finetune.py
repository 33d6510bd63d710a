"""Fine-tunes a pre-trained encoder on labels, and scores it on ground that it was not trained on.

Reads top to bottom: options, data and folds, methods, the loop of one fit, scores, end. `python -m main_finetune
--help` lists the options; docs/finetuning.md explains the output files.
"""

from __future__ import annotations

from util.options.early import before_imports, early_parser

if __name__ == "__main__":  # --help and wrong flags are answered at once: the imports below take seconds
    before_imports(early_parser("main_finetune", __doc__))
import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

import models_vit_group_channels as models
from datasets.finetuning.batch import training_batches
from datasets.finetuning.open_data import log_inputs, open_ground, open_labels
from datasets.folds.make_folds import SPLITS
from datasets.loading.batch_plan import updates_per_epoch
from datasets.loading.prefetch import read_ahead
from datasets.survey.memory import free_in_job
from datasets.survey.preview import layer_previews
from datasets.synthetic.sample_survey import default_survey
from util.checkpoints import checkpoint_file
from util.checkpoints import run_checkpoints as ckpt
from util.checkpoints.encoder_weights import load_encoder, read_encoder_weights
from util.finetuning import evaluation, label_source
from util.finetuning.choices import finetune_choices
from util.finetuning.compared_methods import Method, choose_folds, compared_methods, has_last_fit, trained_network
from util.finetuning.cost import fit_costs
from util.finetuning.early_stopping import keep_best, learning_rate_of
from util.finetuning.fit import Fit, choose_batches, log_epoch, new_meter, read_meter, save_fit
from util.finetuning.predictors import Predictor
from util.finetuning.report import log_checkpoint, report_run
from util.finetuning.run import (
    FinetuneInputs,
    FinetuneRun,
    begin_fit,
    fit_baseline,
    network_predictor,
    open_records,
    score,
    validate,
)
from util.finetuning.scoring import score_line
from util.finetuning.tasks import TASKS, task_of_labels
from util.finetuning.tree_maps import map_trees
from util.hardware.device import amp_policy, peak_memory_bytes
from util.options import common
from util.options import finetune_checks as checks
from util.options import finetune_values as values
from util.options.programs import finetune_parser
from util.processes import distributed as dist
from util.processes import torchrun_restarts as restarts
from util.processes.program import log_environment, run_program
from util.processes.signals import Stop, Stopped
from util.processes.terminal import progress_bar
from util.records.log import claim_output_folders
from util.training.engine import seed_step

logger = logging.getLogger("main_finetune")
CHOICES = finetune_choices(splits=tuple(SPLITS))


def get_args_parser() -> argparse.ArgumentParser:
    """The options, under the names that SatMAE users know where they exist there."""
    return finetune_parser(__doc__, CHOICES)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Returns:
        Exit status: 0 when done, or stopped by a signal after a checkpoint; 1 when the run failed; 2 for bad input.
    """
    args, given = common.parsed(get_args_parser(), argv)
    job: dict[str, Any] = {"prepare": partial(prepare, args), "work": compare}
    job["close"] = lambda run, error: run.files.close(error)
    if args.eval:
        job = {"prepare": partial(prepare_evaluation, args, given), "work": evaluation.evaluate}
    return run_program("main_finetune", **job, **common.process_options(args))


# ---------------------------------------------------------------------------------------------------- before the loop


def prepare(args: argparse.Namespace, device: torch.device, ranks: dist.Ranks) -> FinetuneRun:
    """Opens weights, layers and labels, builds every network once, and opens the output files.

    Raises:
        ValueError, OSError: bad input.
    """
    checks.check(args, CHOICES)
    methods = compared_methods(
        has_weights=bool(args.finetune),
        freeze_encoder=args.freeze_encoder,
        baselines=checks.baselines_of(args, CHOICES),
        no_network=args.no_network,
    )
    claim_output_folders(args.output_dir, args.log_dir)
    amp_dtype, _ = amp_policy(device, args.amp)
    environment = log_environment(device, ranks, precision=str(amp_dtype or "fp32"))
    if restarts.was_restarted(Path(args.output_dir)):
        args = checks.with_values(args, resume="auto")
    inputs, args = open_inputs(checks.with_length(args), ranks)

    # everything is tried before anything is trained
    folds = choose_folds(inputs.data.folds.count, args.only_folds)
    fits = [*folds, *([None] if checks.wants_final(args) and has_last_fit(methods) else [])]
    examples = dist.on_all(lambda: {fold: inputs.data.targets.fold(fold) for fold in fits})
    build = partial(build_network, inputs, values.network_settings(args), methods[0])
    networks = {method: dist.on_all(partial(build, method)) for method in methods if method.is_network}
    for text in networks[methods[0]][1] if methods[0] in networks else ():
        logger.info("%s", text)
    batch = choose_batches(
        [network for network, _ in networks.values()],
        inputs.task.objective(asdict(examples[folds[0]].statistics), values.loss_settings(args)),
        **values.batch_options(args) | {"job_free": free_in_job()},
        amp_dtype=amp_dtype,
        batches_ahead=read_ahead(args.num_workers),
        ranks=ranks,
        device=device,
    )
    args = checks.with_values(args, **asdict(batch))
    run = FinetuneRun(
        ranks,
        device,
        inputs,
        **values.settings_of(args),
        methods=methods,
        folds=folds,
        examples=examples,
        layers=dist.on_all(lambda: {fold: inputs.opened.on_fold(inputs.data.folds, fold) for fold in fits}),
        updates=updates_per_epoch(args.tiles_per_epoch, **asdict(batch), world_size=ranks.world_size),
        build=build,
        stored=inputs.shared_entries(vars(args)),
    )
    open_records(run, checks.deciding_options(args))
    run.files.describe({"options": vars(args), "environment": environment, "folds": inputs.data.folds.summary()})
    return run


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
        args = checks.with_checkpoint(args, encoder.config, encoder.contents, is_finetuned=False)
        stored = None if encoder.published else {**encoder.contents, "model_config": encoder.config}
    if stored is None and args.data_dir is None and args.train_path is None and args.dataset_type == "grid":
        table = str(dist.on_each_machine(default_survey, ranks) / "layers.csv")
        logger.info("no --data_dir or --train_path given: using the sample survey, %s", table)
        args = checks.with_values(args, train_path=table)
    task, held_out = TASKS[args.task], (stored or {}).get("held_out")
    ground = values.ground_options(args, sample_labels=task.sample_labels, local_ranks=ranks.local_world_size)
    opened, labels = dist.on_all(lambda: open_ground(stored, **ground))
    chosen = values.labels_on_ground(args, task, input_size=opened.survey.input_size, held_out=held_out)
    data = dist.on_all(lambda: open_labels(opened, labels, **chosen))
    log_inputs(opened, data, warn=ranks.is_main)
    args = checks.with_patience(args, validates=data.validates)
    args = checks.with_values(args, labels=labels, tiles_per_epoch=args.tiles_per_epoch or data.epoch_windows)
    task = task_of_labels(args.task, presence_only=data.presence_only)
    label_source.warn_of_known_labels(encoder, vars(args), opened.survey.ground())
    return FinetuneInputs(encoder, opened, data, task, held_out), args


def build_network(
    inputs: FinetuneInputs, settings: values.NetworkSettings, first: Method, method: Method, layers: Any = None
) -> tuple[Any, list[str]]:
    """Builds the network of a method before training, for the layers of a fold, and lists how weights were loaded.

    Raises:
        ValueError: sizes do not fit together, or the weights do not fit the layers.
    """
    encoder, opened = inputs.encoder, layers or inputs.opened
    if encoder is not None:
        config = models.encoder_arguments(encoder.config)
        checks.check_channels(str(encoder.path), config, opened.channels)
    else:
        config = {"size": settings.model, "patch_size": settings.patch_size}
    config |= {**opened.channels, "stem": settings.stem, "grad_checkpointing": settings.grad_checkpointing}
    config |= {"img_size": opened.survey.input_size, "drop_path": settings.drop_path}
    head = settings.head if settings.head and method == first else method.head
    config |= inputs.task.head_arguments(
        inputs.data.outputs, scale=settings.label_scale, head=head, global_pool=settings.global_pool
    )
    torch.manual_seed(settings.seed)
    network, lines = method.new_network(config, opened.survey, models.build_finetune_model), []
    if method.pretrained and encoder is not None:
        lines = load_encoder(network, encoder).summary_lines()
    if method.frozen:
        models.freeze_encoder(network)
    return network, lines


# ------------------------------------------------------------------------------------------------------- the comparison


def compare(run: FinetuneRun, stop: Stop) -> int:
    """Fits and scores every method on every fold, reports, and fits the main method, or all trees, on all labels.

    Returns:
        Exit status 0, also when a signal stopped the run after a checkpoint.

    Raises:
        RunFailed, ValueError, OSError: a fit failed; fits that were finished before are stored.
    """
    try:
        for method in run.methods:
            for fold in run.folds:
                compare_fold(run, method, fold, stop)
        metrics = dist.on_main_rank(partial(report_run, run, layer_previews))
        if None in run.examples and run.methods[0].is_encoder:
            fit_network(run, run.methods[0], None, stop, scores=metrics)
            log_checkpoint(run.files.output_dir / ckpt.LAST)
        elif None in run.examples:
            map_trees(run, metrics, layer_previews, stop)
        run.files.finish()
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
        run.time_left.skip(method.is_network)
        return
    begin = time.monotonic()
    if method.fit is None:
        fit = fit_network(run, method, fold, stop)
        predictor: Predictor = network_predictor(run, fit.network, fit.objective, fit.layers.survey)
        costs = fit_costs(fit, device=run.device)
    else:
        predictor, costs = fit_baseline(run, method.name, method.fit, fold)
    fold_scores = score(run, predictor, fold)
    labels, seconds = run.examples[fold].statistics.labels, time.monotonic() - begin
    record = {"test": fold_scores.scores, "train_labels": labels, "seconds": seconds, **costs}
    files.log_scores(method.name, fold, record)
    dist.on_main_rank(partial(files.write_fold_scores, method.name, fold, record, fold_scores.arrays))
    logger.info("%s fold %d: %s", method.name, fold, score_line(task, fold_scores.scores, run.inputs.data.units))
    if dist.any_rank(stop.signal is not None):
        raise Stopped


# ------------------------------------------------------------------------------------------------------------- one fit


def fit_network(
    run: FinetuneRun, method: Method, fold: int | None, stop: Stop, *, scores: dict[str, Any] | None = None
) -> Fit:
    """Fits a network on a fold's training labels, or continues a fit that was stopped.

    Args:
        fold: None to fit on all labels.
        scores: of the comparison, to be stored in the checkpoint.

    Raises:
        Stopped: by a signal, after a checkpoint.
        RunFailed: a loss was not finite.
        OSError: a window could not be read, or a checkpoint not written.
    """
    fit = begin_fit(run, method, fold)
    save = partial(save_fit, fit, run.files.folder(method.name, fold), run.stored, scores=scores, device=run.device)
    progress = fit.progress
    while progress.epoch < progress.last_epoch:
        record = fit_epoch(run, fit, stop, save)
        with fit.timer.paused():
            if fit.is_validated:
                record["validation"] = validate(run, fit)
            place = {"arm": method.name, "fold": fold, "epoch": progress.epoch, "step": progress.step}
            run.files.log_epoch({"kind": "epoch"} | place | record)
            save()
        if dist.any_rank(stop.signal is not None) and progress.epoch < progress.last_epoch:
            raise Stopped
    if keep_best(fit) or progress.stored_scores not in (None, scores):  # of fewer folds, or other methods
        save()
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
        desc=f"{fit.name} epoch {progress.epoch + 1} of {progress.last_epoch}{run.time_left.note}",
        unit="update",
        enabled=run.ranks.is_main and run.settings.show_progress,
    )
    batches = training_batches(fit.examples, epoch=progress.epoch, start_update=progress.update, **run.batch_settings)
    saved_at, part, lr, pyramid = time.monotonic(), 0, 0.0, fit.pyramid
    fit.model.train()
    for micro, batch in fit.timer.timed(batches):
        seed_step(training.seed, step=progress.step * training.accum_iter + part, rank=run.ranks.rank)
        examples = batch.to(run.device, pyramid)
        with dist.gradients_shared(fit.model, micro.is_last), dist.peer_errors_named():
            with fit.updater.autocast():
                loss = fit.objective.loss(fit.model, *examples)
            fit.updater.backward(loss * micro.weight)
        meter.add(losses=(loss, loss, zero), weight=micro.weight, error_sums=unused, error_counts=unused)
        fit.timer.tiles += len(micro.positions) if micro.weight else 0
        part += 1
        if not micro.is_last:
            continue

        lr, part = learning_rate_of(fit), 0
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
    log_epoch(fit, record, run.time_left)
    return record | {"peak_memory_mb": peak_memory_bytes(run.device) / 2**20}


# ----------------------------------------------------------------------------------------------------- scoring alone


def prepare_evaluation(
    args: argparse.Namespace, given: frozenset[str], device: torch.device, ranks: dist.Ranks
) -> evaluation.Evaluation:
    """Opens a fine-tuned checkpoint and the ground to score it on: its fold's test ground, or all of other labels.

    Raises:
        ValueError, OSError: bad input; the checkpoint was fitted on all of these labels.
    """
    checks.check_resume(args)
    state = dist.on_all(lambda: checkpoint_file.load_checkpoint(args.resume, required=evaluation.FINETUNED_KEYS))
    args = checks.with_stored(args, state["options"], given)
    checks.check(args, CHOICES)
    args = checks.with_checkpoint(args, state["model_config"], state, is_finetuned=True)
    claim_output_folders(args.output_dir, args.log_dir)
    log_environment(device, ranks, precision=str(amp_policy(device, args.amp)[0] or "fp32"))
    task = TASKS[args.task]
    chosen = values.ground_options(args, sample_labels=task.sample_labels, local_ranks=ranks.local_world_size)
    opened, labels = dist.on_all(lambda: open_ground(state, **chosen))
    args = checks.with_values(args, labels=labels)
    is_grid, ground = args.dataset_type == "grid", evaluation.IMAGES
    if is_grid:
        source = label_source.LabelSource(args.labels, args.label_band, args.label_column)
        ground = evaluation.scored_ground(source, state, opened.survey.ground(), checkpoint=args.resume)
    chosen = values.labels_on_ground(
        args, task, input_size=opened.survey.input_size, held_out=state["held_out"], tests_all=not ground.is_fold
    )
    data = dist.on_all(lambda: open_labels(opened, labels, **chosen, class_codes=state["task"]["codes"]))
    log_inputs(opened, data, warn=ranks.is_main)
    task = task_of_labels(args.task, presence_only=data.presence_only)
    if ground.is_fold and is_grid:
        evaluation.require_same_folds(state, data)
    inputs = FinetuneInputs(None, opened, data, task, state["held_out"])
    network = trained_network(state["model_config"], models.build_finetune_model).to(device)
    network.load_state_dict(state["model"])
    run = FinetuneRun(ranks, device, inputs, **values.settings_of(args))
    return evaluation.Evaluation(run, network, args.resume, state, ground)


if __name__ == "__main__":
    sys.exit(main())
