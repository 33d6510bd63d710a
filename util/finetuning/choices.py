"""What the command line of fine-tuning offers, read off the tables of tasks, methods, heads and weightings."""

from __future__ import annotations

from util.finetuning.compared_methods import BASELINES, DEFAULT_BASELINES
from util.finetuning.objectives import CLASS_WEIGHTS
from util.finetuning.tasks import OFFERED, TASKS
from util.model.native_stem import STEMS
from util.model.task_heads import HEADS
from util.options.finetune import Choices


def finetune_choices(*, splits: tuple[str, ...]) -> Choices:
    """The choices of the parser; `splits` are the ways to divide labels into folds."""
    return Choices(
        tasks=OFFERED,
        window_tasks=tuple(name for name in OFFERED if not TASKS[name].per_pixel),
        baselines=tuple(BASELINES),
        default_baselines=DEFAULT_BASELINES,
        network_baselines=tuple(name for name, method in BASELINES.items() if method.is_network),
        pixel_baselines=tuple(name for name, method in BASELINES.items() if method.needs_pixels),
        class_weights=tuple(CLASS_WEIGHTS),
        splits=splits,
        heads=tuple(HEADS),
        stems=STEMS,
    )
