"""Is multi-scale pre-training worth its cost? Runs a grid of small experiments within a budget and reports.

    python -m scripts.worth_it --budget 2h                                   on the sample survey
    python -m scripts.worth_it --data_dir DIR --labels FILE --budget 12h     on your own
    python -m scripts.worth_it --plan                                        what would be run, and what it would take
    python -m scripts.worth_it --report_only                                 the report again, from results.csv

Called again with the same options and --output_dir it goes on where it was stopped. docs/worth_it.md explains the
arms, their table, and the report.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from datasets.finetuning.layers import labels_path, layers_that_are
from datasets.layers.table import layers_from_directory, read_layers_table
from datasets.synthetic.sample_survey import default_survey
from study.arms import OF_TREES, check_fractions, read_arms, shared_flags
from study.commands import Settings
from study.conduct import FACTS, RESULTS, Study, StudyFailed, Wishes
from study.plan import LEAST_SEEDS
from study.report import build_report
from study.runner import Pool, hold
from study.summary import read_facts
from util.finetuning.tasks import OFFERED, TASKS
from util.hardware.device import describe_environment
from util.hardware.system import usable_cpus
from util.options import common as options
from util.processes.signals import Stop
from util.processes.terminal import setup_logging
from util.records.log import check_writable

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
V100 = {
    "tflops": 125.0,
    "share": 0.1,
    "why": "fp16 peak of the card, and a tenth of it as an assumption for small models; not measured",
}


def duration(text: str) -> float:
    """Seconds of a duration such as 90s, 30m, 2h or 1.5d."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip().lower())
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a duration such as 90s, 30m, 2h or 1.5d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser("worth_it", description=__doc__.split("\n\n")[0])
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", help="directory of rasters (the sample survey)")
    data.add_argument("--train_path", help="layers.csv that names them instead")
    data.add_argument("--labels", help="raster or vector file; needed with --data_dir or --train_path")
    data.add_argument("--task", default=OFFERED[0], choices=OFFERED)
    data.add_argument("--label_column", help="column of classes or values, where labels are vectors or a CSV")
    study = parser.add_argument_group("study")
    study.add_argument("--budget", type=duration, default=7200.0, metavar="TIME", help="such as 90m or 2h (2h)")
    study.add_argument("--arms", default=str(ROOT / "study/arms.csv"), help="table of arms (study/arms.csv)")
    study.add_argument("--only_arms", nargs="+", default=[], metavar="ARM", help="these arms alone (all)")
    study.add_argument(
        "--label_fractions", type=float, nargs="+", default=[0.01, 0.1, 1.0], help="shares of the labels (0.01 0.1 1)"
    )
    study.add_argument("--seeds", type=options.positive_int, help="seeds (3, more if the budget allows)")
    study.add_argument("--folds", type=options.positive_int, default=3, help="block folds (3)")
    study.add_argument(
        "--pretrain_epochs", type=options.positive_int, default=60, help="longest, epochs of 1,024 tiles (60)"
    )
    study.add_argument(
        "--finetune_epochs", type=options.positive_int, default=30, help="longest, epochs of 256 windows (30)"
    )
    study.add_argument("--model", default="tiny", help="tiny, small, base or large (tiny)")
    study.add_argument("--input_size", type=options.positive_int, default=48, help="tile edge, base pixels (48)")
    study.add_argument(
        "--base_resolution",
        type=options.positive,
        help="edge of a base pixel, CRS units (finest resolution x largest scale of any arm)",
    )
    study.add_argument("--patch_size", type=options.positive_int, default=8, help="base pixels (8)")
    study.add_argument("--pretrain_flags", default="", metavar="'FLAGS'", help="further flags of every pre-training")
    study.add_argument("--finetune_flags", default="", metavar="'FLAGS'", help="further flags of every fine-tuning")
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", default="./worth_it", help="everything goes there (./worth_it)")
    run.add_argument("--plan", action="store_true", help="print experiments and their cost after short trials; no more")
    run.add_argument("--report_only", action="store_true", help="write the report again, from results.csv")
    run.add_argument("--devices", nargs="+", help="such as cuda:0 cuda:1 (every GPU; without one, the CPU)")
    run.add_argument(
        "--jobs", type=options.positive_int, help="programs at a time on each GPU (1), or on the CPU (cores)"
    )
    run.add_argument("--amp", default="auto", choices=["auto", "fp16", "bf16", "off"], help="mixed precision (auto)")
    run.add_argument("--title", default="", help="heading of the report")
    run.add_argument("--no_progress", action="store_true", help="no progress bar")
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    """What all experiments share, with paths that hold from anywhere.

    Raises:
        ValueError: layers named twice or without labels, shares of the labels that cannot be, or flags that cannot be
            shared.
    """
    check_fractions(args.label_fractions, f"--label_fractions {' '.join(f'{part:g}' for part in args.label_fractions)}")
    pretrain, finetune = (
        shared_flags(f"--{name}", getattr(args, name)) for name in ("pretrain_flags", "finetune_flags")
    )
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
    return Settings(
        data=data,
        labels=tuple(labels),
        model=("--model", args.model, "--input_size", str(args.input_size), "--patch_size", str(args.patch_size)),
        pretrain=(*hidden_labels(data, args.labels, args.task), *pretrain),
        finetune=finetune,
        precision=args.amp,
        folds=args.folds,
        base_resolution=args.base_resolution,
    )


def from_anywhere(path: str) -> str:
    """A path that holds from any folder, if there is such a file; URLs and variables of stores stay as given."""
    local = Path(os.path.expanduser(path))  # leaves a ~ that is no user's, unlike Path.expanduser
    return str(local.resolve()) if local.exists() else path


def hidden_labels(data: tuple[str, str], labels: str | None, task: str) -> tuple[str, ...]:
    """Flags that hide layers from pre-training which are the labels themselves, as fine-tuning hides them.

    Raises:
        ValueError, FileNotFoundError: the layers cannot be listed.
    """
    layers = layers_from_directory(data[1]) if data[0] == "--data_dir" else read_layers_table(data[1])
    themselves = layers_that_are(labels_path(labels, TASKS[task].sample_labels, layers), 1, layers)
    if themselves:
        names = ", ".join(layers[number].name for number in themselves)
        logger.info("hidden from pre-training too, as it is the labels: %s", names)
    return ("--masked_bands", *map(str, themselves)) if themselves else ()


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
    return [
        *rows,
        f"{lengths.seeds} seeds, {study.settings.folds} folds, labels {list(study.wishes.label_fractions)}; training "
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
            facts = read_facts(folder / FACTS) if (folder / FACTS).exists() else {}
            logger.info("report  %s", build_report(folder / RESULTS, facts, folder))
            return 0
        check_writable(folder, flag="--output_dir")
        arms, settings = read_arms(args.arms, only=args.only_arms), settings_of(args)
        pool = make_pool(args, folder)
        wishes = Wishes(
            arms, settings, args.label_fractions, args.seeds, args.pretrain_epochs, args.finetune_epochs, args.budget
        )
        on_cpu = pool.devices[0] == "cpu"
        study = Study(folder, wishes, pool, seconds="cpu_seconds" if on_cpu else "seconds")
        warn_of_few_seeds(study.lengths.seeds if study.lengths else args.seeds)
        with Stop("ending: what runs is saved first") as stop:
            study.measure(stop)
            for line in plan_lines(study):
                logger.info("%s", line)
            if args.plan:
                return 0
            study.keep_plan()
            outcome = study.run(stop)
        report = study.report(outcome, hardware(args, study, argv))
    except (ValueError, OSError) as error:
        logger.error("worth_it: error: %s", error)
        return 2
    except StudyFailed as error:
        logger.error("worth_it: error: %s", error)
        return 1
    if report is not None:
        logger.info("report  %s", report)
    if outcome.left:
        logger.warning("%d programs are left; the same command goes on with them", len(outcome.left))
    return 1 if outcome.failed or outcome.stopped else 0


if __name__ == "__main__":
    raise SystemExit(main())
