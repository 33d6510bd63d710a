"""Is multi-scale pre-training worth its cost? Runs a grid of small experiments within a budget and reports.

    python -m scripts.worth_it --budget 2h                                   on the sample survey
    python -m scripts.worth_it --data_dir DIR --labels FILE --budget 12h     on your own
    python -m scripts.worth_it --plan                                        what would be run, and what it would take
    python -m scripts.worth_it --report_only                                 the report again, from results.csv
    python -m scripts.worth_it --together DIR DIR --output_dir OUT           several studies in one picture

Called again with the same options and --output_dir it goes on where it was stopped. docs/worth_it.md explains the
arms, their table, and the report.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.parsers import worth_it_parser
from util.options import table_names
from util.options.early import before_imports

if __name__ == "__main__":  # --help and wrong flags are answered at once: the imports below take seconds
    before_imports(worth_it_parser(__doc__, tasks=table_names.FINETUNE["tasks"]))

import argparse
import json
import logging
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from datasets.finetuning.layers import labels_path, layers_that_are
from datasets.layers.table import layers_from_directory, read_layers_table
from datasets.synthetic.sample_survey import default_survey
from study.arms import OF_TREES, check_fractions, read_arms, shared_flags
from study.commands import Settings
from study.conduct import FACTS, RESULTS, Study, StudyFailed, Wishes
from study.plan import LEAST_SEEDS, regimes_of_arm
from study.regimes import check_blocks
from study.report import build_report
from study.runner import Pool, hold
from study.summary import read_facts
from study.together import draw_together
from util.finetuning.compared_methods import choose_folds
from util.finetuning.tasks import OFFERED, TASKS
from util.hardware.device import describe_environment
from util.hardware.system import disk_full_message, usable_cpus, written_whole
from util.options.commands import command, without_flags
from util.options.finetune_checks import LEAST_VALIDATED_FOLDS
from util.processes.signals import Stop
from util.processes.terminal import setup_logging
from util.records.log import check_writable
from util.run_page.page import RunPage
from util.training.timer import duration_text

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
V100 = {
    "tflops": 125.0,
    "share": 0.1,
    "why": "fp16 peak of the card, and a tenth of it as an assumption for small models; not measured",
}


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    return worth_it_parser(__doc__, tasks=OFFERED)


def settings_of(args: argparse.Namespace) -> Settings:
    """What all experiments share, with paths that hold from anywhere.

    Raises:
        ValueError: layers named twice or without labels, shares or blocks of labels or folds that cannot be, or flags
            that cannot be shared.
    """
    check_fractions(args.label_fractions, f"--label_fractions {' '.join(f'{part:g}' for part in args.label_fractions)}")
    check_blocks(args.label_blocks, f"--label_blocks {' '.join(map(str, args.label_blocks))}")
    pretrain, finetune = (
        shared_flags(f"--{name}", getattr(args, name)) for name in ("pretrain_flags", "finetune_flags")
    )
    check_patience(args.patience, folds=args.folds, epochs=args.finetune_epochs)
    only_folds = tuple(choose_folds(args.folds, args.only_folds))
    if args.data_dir and args.train_path:
        raise ValueError("--data_dir and --train_path both name the layers; give one of them")
    if args.data_dir or args.train_path:
        if not args.labels:
            raise ValueError("--labels is missing: expected the labels of --data_dir (the sample survey has its own)")
        flag = "--data_dir" if args.data_dir else "--train_path"
        data = (flag, from_anywhere(args.data_dir or args.train_path))
    else:
        data = ("--train_path", str((default_survey() / "layers.csv").resolve()))
    labels = ["--task", args.task]
    labels += ["--labels", from_anywhere(args.labels)] if args.labels else []
    labels += ["--label_column", args.label_column] if args.label_column else []
    labels += ["--label_band", str(args.label_band)] if args.label_band != 1 else []
    return Settings(
        data=data,
        labels=tuple(labels),
        model=("--model", args.model, "--input_size", str(args.input_size), "--patch_size", str(args.patch_size)),
        label_layers=label_layers(data, args.labels, args.label_band, args.task),
        pretrain=pretrain,
        finetune=finetune,
        precision=args.amp,
        folds=args.folds,
        only_folds=() if len(only_folds) == args.folds else only_folds,
        patience=args.patience,
        base_resolution=args.base_resolution,
    )


def check_patience(patience: int, *, folds: int, epochs: int) -> None:
    """Refuses fits that cannot end early.

    Raises:
        ValueError: too few folds to set validation blocks aside, or patience as long as the longest fit.
    """
    if patience and folds < LEAST_VALIDATED_FOLDS:
        raise ValueError(
            f"--patience {patience} with --folds {folds}: fits are validated on half the test blocks of the next fold; "
            f"expected at least {LEAST_VALIDATED_FOLDS} folds, or --patience 0 for fits of fixed length"
        )
    if patience >= epochs:
        raise ValueError(
            f"--patience {patience} with --finetune_epochs {epochs}: no fit could end early; expected a longer "
            "--finetune_epochs, several times the patience"
        )


def from_anywhere(path: str) -> str:
    """A path that holds from any folder, if there is such a file; URLs and variables of stores stay as given."""
    local = Path(os.path.expanduser(path))  # leaves a ~ that is no user's, unlike Path.expanduser
    return str(local.resolve()) if local.exists() else path


def label_layers(data: tuple[str, str], labels: str | None, band: int, task: str) -> tuple[int, ...]:
    """Numbers of the layers that are the labels themselves, which are hidden from pre-training as from fine-tuning.

    Raises:
        ValueError, FileNotFoundError: the layers cannot be listed.
    """
    layers = layers_from_directory(data[1]) if data[0] == "--data_dir" else read_layers_table(data[1])
    themselves = layers_that_are(labels_path(labels, TASKS[task].sample_labels, layers), band, layers)
    if themselves:
        names = ", ".join(layers[number].name for number in themselves)
        logger.info("hidden from pre-training too, as it is the labels: %s", names)
    return tuple(themselves)


def make_pool(args: argparse.Namespace, folder: Path) -> Pool:
    """Slots for programs: each GPU, or the cores of the CPU."""
    devices = args.devices or [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    cores = usable_cpus()
    jobs = args.jobs or (cores if devices == ["cpu"] else 1)
    slots = [device for device in devices for _ in range(jobs)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = str(max(1, cores // len(slots)))
    # Threads that wait must sleep: spinning, they would count as seconds of the processor.
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
    environment |= {"PYTHONIOENCODING": "utf-8"}  # what the logs are read as
    return Pool(folder, devices=slots, environment=environment, show=not args.no_progress, lock=hold(folder))


def warn_of_few_seeds(seeds: int | None) -> None:
    """Says that fewer seeds than `plan.LEAST_SEEDS` are no ground for a decision; None: as many as needed."""
    if seeds is not None and seeds < LEAST_SEEDS:
        logger.warning(
            "--seeds %d: fewer than %d are no ground for a decision, as they do not show what chance does; such a "
            "study only tries whether everything runs",
            seeds,
            LEAST_SEEDS,
        )


def plan_lines(study: Study) -> list[str]:
    """The experiments and what they are estimated to take, by arm."""
    lengths, rows = study.choose(), []
    for arm in study.arms:
        tasks = [task for task in study.tasks() if task.arm == arm]
        hours = sum(study.estimate(task) for task in tasks) / 3600
        epochs = f"{lengths.pretrain.get(arm.name, '-')} / {lengths.finetune.get(arm.name, '-')}"
        epochs = f"as {arm.as_long_as}" if arm.as_long_as else "-" if arm.method in OF_TREES else epochs
        rows.append(f"{arm.name:<20} {len(tasks):>4} programs  epochs {epochs:<16} {hours:8.2f} h")
    total = sum(study.estimate(task) for task in study.tasks()) / 3600
    slots = len(study.pool.devices)
    base = study.settings.base_resolution or "as without pre-training"
    fitted = {regime for arm in study.arms for regime in regimes_of_arm(arm, study.wishes.regimes)}
    return [
        *rows,
        f"{lengths.seeds} seeds, {len(study.settings.run_folds)} of {study.settings.folds} folds; "
        f"{', '.join(map(str, sorted(fitted, key=lambda of: of.order)))}; training "
        f"{100 * lengths.share:.0f} % as long as the longest asked for; base pixel {base}",
        f"{total:.2f} h of work, {total / slots:.2f} h with {slots} at a time",
    ]


def hardware(args: argparse.Namespace, study: Study, argv: Sequence[str]) -> dict[str, Any]:
    """Facts of machine, versions and command for the report."""
    device = torch.device(study.pool.devices[0])
    about = describe_environment(device)
    return {
        "title": args.title,
        "device": str(about.get("device", device)),
        "jobs": len(study.pool.devices),
        "versions": {key: str(value) for key, value in about.items() if key != "device"},
        "precision": args.amp,
        "seconds": study.seconds,
        "v100": V100,
        "budget_s": args.budget,
        "commands": [shlex.join(["python", "-m", "scripts.worth_it", *argv])],
    }


def report_again(folder: Path, options: Mapping[str, Any]) -> None:
    """Writes the report of a study and its page from the results in its folder; a `title` given is stored first.

    Raises:
        ValueError, OSError: there are none, or they are damaged; the title cannot be stored.
    """
    facts = read_facts(folder / FACTS) if (folder / FACTS).exists() else {}
    if options["title"] and (folder / RESULTS).exists():  # without results there is no study to name
        facts["title"] = options["title"]
        with written_whole(folder / FACTS) as waiting:
            waiting.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    logger.info("report  %s", build_report(folder / RESULTS, facts, folder))
    with RunPage(folder, "scripts.worth_it") as page:
        named = {"title": facts.get("title")}
        page.begin(resumed=True, resume_flags=(), options=options, environment={}, facts=named)
        page.finish()


def training_command(settings: Settings) -> str:
    """The command that pre-trains in full the model that the study tried."""
    words = (*settings.data, *settings.model, *settings.pretrain, "--output_dir", "output_dir")
    return command("main_pretrain", *words)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Returns:
        Exit status: 0 when the study, or what the budget allowed of it, is done; 1 when something failed or a signal
        stopped it; 2 for bad input.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    args = get_args_parser().parse_args(argv)
    setup_logging()
    folder = Path(args.output_dir)
    try:
        if args.report_only:
            report_again(folder, vars(args))
            return 0
        check_writable(folder, flag="--output_dir")
        if args.together:
            logger.info("picture  %s", draw_together([Path(name) for name in args.together], folder))
            return 0
        arms, settings = read_arms(args.arms, only=args.only_arms), settings_of(args)
        pool = make_pool(args, folder)
        wishes = Wishes(
            arms,
            settings,
            args.label_fractions,
            args.label_blocks,
            args.seeds,
            args.pretrain_epochs,
            args.finetune_epochs,
            args.budget,
        )
        on_cpu = pool.devices[0] == "cpu"
        study = Study(folder, wishes, pool, seconds="cpu_seconds" if on_cpu else "seconds")
        warn_of_few_seeds(study.lengths.seeds if study.lengths else args.seeds)
        with Stop("ending: what runs is saved first") as stop, study.page:
            begin = time.monotonic()
            study.measure(stop)
            logger.info("the trials took %s", duration_text(time.monotonic() - begin))
            for line in plan_lines(study):
                logger.info("%s", line)
            if args.plan:
                logger.info("next: %s", command("scripts.worth_it", *without_flags(argv, "--plan")))
                return 0
            study.keep_plan()
            facts = hardware(args, study, argv)
            study.begin_page(vars(args), facts)
            outcome = study.run(stop)
            report = study.report(outcome, facts)
            study.end_page(outcome)
    except (ValueError, OSError) as error:
        is_full = disk_full_message(error, then="give the same command again")
        logger.error("worth_it: error: %s", is_full or error)
        return 1 if is_full else 2
    except StudyFailed as error:
        logger.error("worth_it: error: %s", error)
        return 1
    if report is not None:
        logger.info("report  %s", report)
    again, longer = command("scripts.worth_it", *argv), training_command(settings)
    if outcome.left:
        logger.warning("%d programs are left; the same command goes on with them", len(outcome.left))
    logger.info("next: %s", again if outcome.left else f"read {report}; if pre-training is worth it: {longer}")
    return 1 if outcome.failed or outcome.stopped else 0


if __name__ == "__main__":
    raise SystemExit(main())
