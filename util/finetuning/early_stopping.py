"""When a fit ends: where its score on validation ground stops rising; and its learning rate on the way there.

The rate stays constant after warm-up. Once validation has not improved for `patience` epochs, the fit returns to its
best weights, and from there the rate falls to its floor over `DECAY` of the whole length, which improves a network
more than as many epochs at the constant rate. The weights with the best score of all epochs are kept.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence

from util.finetuning.fit import Fit
from util.training.lr_sched import constant_then_decay

logger = logging.getLogger(__name__)

DECAY = 0.2
"""Share of the epochs behind the final weights in which the rate falls; as in the work that
`util.training.lr_sched.constant_then_decay` cites, where longer gained little."""


def describe_length(epochs: int, patience: int) -> str:
    """How long networks are trained, as a line for the log."""
    if not patience:
        return f"networks are trained for {epochs} epochs, without validation"
    return (
        f"networks are trained for at most {epochs} epochs: {patience} epochs without a better score on validation "
        "ground, half the test blocks of the next fold, end a fit"
    )


def decay_epochs(epochs: int) -> int:
    """Epochs of falling rate at the end of a fit of that many epochs in all, at least one."""
    return max(1, round(DECAY * epochs))


def begin_decay_if_due(fit: Fit) -> None:
    """After an epoch and its validation: lets the rate fall from now on if validation has stopped rising.

    It also falls where as many epochs are left as the decay takes, so that a fit never exceeds its bound.
    """
    progress = fit.progress
    if progress.decay_epoch is not None or progress.epoch >= progress.last_epoch:
        return
    bound = progress.last_epoch
    if progress.waits_too_long(fit.patience):
        _return_to_best(fit)
        progress.trained = progress.best_trained
        progress.last_epoch = min(bound, progress.epoch + decay_epochs(round(progress.trained / (1 - DECAY))))
        logger.info(
            "%s: no better validation for %d epochs: the rate falls over %d epochs, from the weights of epoch %d on",
            fit.name,
            fit.patience,
            progress.last_epoch - progress.epoch,
            progress.best_epoch + 1,
        )
    elif progress.epoch < bound - decay_epochs(bound):
        return
    progress.decay_epoch = progress.epoch


def learning_rate_of(fit: Fit) -> float:
    """Rate of a fit's next step: a cosine over a fixed length, or constant until the end is decided."""
    schedule, progress = fit.schedule, fit.progress
    if not fit.patience:
        return schedule.lr(progress.step)
    return constant_then_decay(
        progress.step,
        peak=schedule.peak_lr,
        floor=schedule.min_lr,
        warmup_steps=schedule.warmup_steps,
        decay_begin=None if progress.decay_epoch is None else progress.decay_epoch * schedule.updates,
        total_steps=progress.last_epoch * schedule.updates,
    )


def keep_best(fit: Fit) -> bool:
    """Puts the weights with the best validation score into a fit that has ended, or without validation their average.

    Returns:
        Whether a checkpoint must be written once more; not for the average of a fit that had ended before.
    """
    progress, average = fit.progress, fit.updater.average
    if progress.best_model:
        logger.info("%s: the weights of epoch %d were best in validation", fit.name, progress.best_epoch + 1)
        _return_to_best(fit)
        return True
    if fit.is_validated:
        logger.warning(
            "%s: its validation ground allowed no score in any epoch (labels of one class, or equal values): it "
            "trained all %d epochs and keeps the last weights; choose fewer --folds or a larger --fold_block",
            fit.name,
            progress.epoch,
        )
    return average is not None and average.keep()


def _return_to_best(fit: Fit) -> None:
    fit.network.load_state_dict(fit.progress.best_model)
    if (average := fit.updater.average) is not None:
        average.restart(average.updates)


def median_epochs(epochs: Sequence[int]) -> int:
    """Length of the fit on all labels: the median of the epochs behind the weights that the folds kept."""
    return max(1, round(statistics.median(epochs)))
