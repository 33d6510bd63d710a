"""Conducts a study: short trials that show what things take, lengths that fit the budget, the runs, the report."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from study import outcomes
from study.arms import OF_TREES, StudyArm
from study.commands import Settings, command_of
from study.curves import CURVES, write_curves
from study.plan import (
    PROBE_SHARE,
    Lengths,
    Rates,
    Task,
    all_tasks,
    choose_lengths,
    equal_time_epochs,
    estimate,
    lengths_of,
    own_like,
    pretrain_name,
    regimes_of_arm,
)
from study.regimes import BLOCKS, Regime, regimes_of
from study.report import build_report
from study.results import write_results
from study.runner import Outcome, Pool, TaskRefused
from util.hardware.system import replace_file
from util.processes.signals import Stop
from util.run_page.page import RunPage

logger = logging.getLogger(__name__)

PLAN, RESULTS, FACTS = "plan.json", "results.csv", "study.json"
TRIALS = "trials"
TRIAL_FIT = Task(f"{TRIALS}/fit", "fit", StudyArm("trial"), 0)
DEFAULT_SCALES = (1, 2, 4)
ONLY_FOLDS = "only_folds"
OWN_BASE = "--base_resolution"
"""Flag of an arm whose base pixel is not that of all."""


NOT_IN_OLD_PLANS = {BLOCKS: list[int]()}
"""What plans from before there was a choice are taken to hold."""


class StudyFailed(RuntimeError):
    """Ends a study that cannot go on, with one message."""


@dataclass(frozen=True)
class Wishes:
    """What a user decides about a study.

    Attributes:
        arms: the arms.
        settings: what all experiments share.
        label_fractions: shares of the labels.
        label_blocks: numbers of whole blocks of labels.
        seeds: number of seeds; None: as many as the budget allows, three at least.
        pretrain_epochs: longest pre-training, epochs of `plan.PRETRAIN_TILES` tiles.
        finetune_epochs: longest fine-tuning, epochs of `plan.FINETUNE_WINDOWS` windows.
        budget_s: seconds for this call.
    """

    arms: Sequence[StudyArm]
    settings: Settings
    label_fractions: Sequence[float]
    label_blocks: Sequence[int]
    seeds: int | None
    pretrain_epochs: int
    finetune_epochs: int
    budget_s: float

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """Labels that arms without a choice of their own are fitted on."""
        return regimes_of(self.label_fractions, self.label_blocks)

    def facts(self) -> dict[str, Any]:
        """What must be the same for a study to be gone on with."""
        settings = {key: value for key, value in asdict(self.settings).items() if key != "base_resolution"}
        for later in ("patience", ONLY_FOLDS):  # plans from before there was a choice have no such entry
            if not settings[later]:
                del settings[later]
        facts = {
            "arms": [asdict(arm) for arm in self.arms],
            "settings": settings,
            "label_fractions": list(self.label_fractions),
            BLOCKS: list(self.label_blocks),
            "pretrain_epochs": self.pretrain_epochs,
            "finetune_epochs": self.finetune_epochs,
        }
        return json.loads(json.dumps(facts))


class Study:
    """A study in its folder.

    Args:
        folder: everything goes there.
        wishes: what is to be done.
        pool: runs the programs.
        seconds: `cpu_seconds` or `seconds`: what the cost of training is taken from.

    Raises:
        ValueError: the folder holds another study.
    """

    def __init__(self, folder: Path, wishes: Wishes, pool: Pool, *, seconds: str) -> None:
        self.folder, self.wishes, self.pool, self.seconds = folder, wishes, pool, seconds
        self.settings, self.arms = wishes.settings, list(wishes.arms)
        self.deadline = time.monotonic() + wishes.budget_s
        self.lengths: Lengths | None = None
        self.rates: Rates | None = None
        self._known_arms: dict[str, dict[str, Any]] = {}
        self.page = RunPage(folder, "scripts.worth_it")
        self._take_up()

    def _take_up(self) -> None:
        """Reads the plan that the folder holds; arms may be added to it, or left out for now, but not changed."""
        path = self.folder / PLAN
        if not path.exists():
            return
        plan = outcomes.read_json(path)
        now = self.wishes.facts()
        arms = {arm["name"]: arm for arm in plan["wishes"]["arms"]}
        changed = [
            (f"arm {arm['name']}", _what_it_runs(arms.get(arm["name"], arm)), _what_it_runs(arm))
            for arm in now.pop("arms")
        ]
        had = plan["wishes"]["settings"].pop(ONLY_FOLDS, None)
        now["settings"].pop(ONLY_FOLDS, None)
        changed += [(key, plan["wishes"].get(key, NOT_IN_OLD_PLANS.get(key)), value) for key, value in now.items()]
        for what, before, value in changed:
            if before != value:
                raise ValueError(
                    f"--output_dir {self.folder} holds a study with other {what}: {_shortly(before)}, now "
                    f"{_shortly(value)}; choose another --output_dir, or ask for the same"
                )
        self._check_folds(range(self.settings.folds) if had is None else had)
        self._known_arms = arms
        self.lengths, self.rates = Lengths(**plan["lengths"]), Rates(**plan["rates"])
        wanted, base = self.settings.base_resolution, plan["base_resolution"]
        if wanted is not None and wanted != base:
            raise ValueError(
                f"--output_dir {self.folder} holds a study with base pixels of {base:g}, now --base_resolution "
                f"{wanted:g}; choose another --output_dir, or ask for the same"
            )
        self.settings = replace(self.settings, base_resolution=base)
        self.lengths.seeds = max(self.lengths.seeds, self.wishes.seeds or 0)

    def _check_folds(self, had: Iterable[int]) -> None:
        """Refuses fewer folds than the study has; it may get more."""
        lacking = sorted(set(had) - set(self.settings.run_folds))
        if lacking:
            raise ValueError(
                f"--output_dir {self.folder} holds a study of fold {lacking[0]} too, now --only_folds "
                f"{' '.join(map(str, self.settings.run_folds))}; name all of its folds, and further ones to extend it, "
                "or choose another --output_dir"
            )

    # ------------------------------------------------------------------------------------------------------ the trials

    def measure(self, stop: Stop) -> None:
        """Runs an epoch of everything on the real data, so that flags, layers and labels are tried and timed.

        Raises:
            StudyFailed: one of them fails, or a signal came.
        """
        known = self.rates.pretrain if self.rates else {}
        timed = [arm for arm in self.arms if arm.pretrain is not None and own_like(arm, self.arms) == arm]
        timed = [arm for arm in timed if arm.name not in known]
        # The widest decides the base pixel of all, unless the user or a study before did.
        timed.sort(key=lambda arm: (OWN_BASE in (arm.pretrain or ()), -max(self._scales(arm))))
        tasks = [Task(f"{TRIALS}/{arm.name}", "pretrain", arm, 0) for arm in timed]
        if tasks or self.rates is None:
            count = len(tasks) + (self.rates is None)
            logger.info(
                "%d short trials, which show that arms run and what they take: an epoch each on this machine, so some "
                "minutes; they are kept and not repeated",
                count,
            )
        if self.rates is not None:
            self._try(tasks, stop)
            found = {task.arm.name: self._facts(task)["seconds"] for task in tasks}
            self.rates = replace(self.rates, pretrain={**known, **found})
            return
        if tasks:
            self._try(tasks[:1], stop)
            facts = self._facts(tasks[0])
            if self.settings.base_resolution is None and OWN_BASE not in (tasks[0].arm.pretrain or ()):
                self.settings = replace(self.settings, base_resolution=facts["base_resolution"])
        self._try([TRIAL_FIT, *tasks[1:]], stop)
        fit = self._facts(TRIAL_FIT)
        full, trees = fit["modes"]["full"], fit["modes"]["trees"]
        validation = full.get("validation_seconds", 0.0)
        inside = sum(mode["seconds"] for mode in fit["modes"].values())
        self.rates = Rates(
            pretrain={task.arm.name: self._facts(task)["seconds"] for task in tasks},
            finetune=full["train_seconds"],
            probe=full["train_seconds"] * PROBE_SHARE,
            score=full["seconds"] - full["train_seconds"] - validation,
            trees=trees["seconds"],
            start=max(fit["wall_seconds"] - inside, 0.0),
            validation=validation,
        )

    def _scales(self, arm: StudyArm) -> list[int]:
        """Scales that an arm reconstructs, by its flags."""
        flags = [*self.settings.pretrain, *(arm.pretrain or ())]
        if "--scales" not in flags:
            return list(DEFAULT_SCALES)
        found = []
        for value in flags[len(flags) - flags[::-1].index("--scales") :]:
            if not value.isdigit():
                break
            found.append(int(value))
        return found or list(DEFAULT_SCALES)

    def _try(self, tasks: Sequence[Task], stop: Stop) -> None:
        first = str(self.settings.run_folds[0])
        further = {"fit": ["--only_folds", first, "--baselines", "trees", "constant"], "pretrain": []}

        def command(task: Task, device: str) -> list[str]:
            return command_of(
                task, self.settings, folder=self.folder, epochs=1, device=device, further=further[task.stage]
            )

        for task in tasks:
            self._forget_other_trial(task, command(task, self.pool.devices[0]))
        outcome = self.pool.run(
            tasks,
            command=command,
            finish=lambda task, command, wall: self._finish(task, wall, epochs=1),
            estimate=lambda task: 0.0,
            deadline=float("inf"),
            stop=stop,
        )
        for name, said in outcome.failed.items():
            raise StudyFailed(f"{name}: {said}")
        if outcome.stopped:
            raise StudyFailed("stopped by a signal during the trials; the same command goes on")

    def _forget_other_trial(self, task: Task, command: Sequence[str]) -> None:
        """Removes a trial that did not end, or was of other data, flags or arms than it would be now."""
        done, place = outcomes.done_facts(self.folder, task), self.folder / task.name
        if place.exists() and (done is None or _numbers_of(done["command"]) != _numbers_of(command)):
            shutil.rmtree(place)

    # ------------------------------------------------------------------------------------------------------ the lengths

    def choose(self) -> Lengths:
        """Decides how long everything trains, once and for all.

        Raises:
            ValueError: the budget is too small.
        """
        assert self.rates is not None
        if self.lengths is None:
            self.lengths = choose_lengths(
                self.arms,
                self.rates,
                budget_s=self.deadline - time.monotonic(),
                jobs=len(self.pool.devices),
                seeds=self.wishes.seeds,
                folds=len(self.settings.run_folds),
                regimes=self.wishes.regimes,
                pretrain_epochs=self.wishes.pretrain_epochs,
                finetune_epochs=self.wishes.finetune_epochs,
            )
        added = lengths_of(
            self.arms,
            share=self.lengths.share,
            seeds=self.lengths.seeds,
            pretrain_epochs=self.wishes.pretrain_epochs,
            finetune_epochs=self.wishes.finetune_epochs,
        )
        self.lengths.pretrain = {**added.pretrain, **self.lengths.pretrain}
        self.lengths.finetune = {**added.finetune, **self.lengths.finetune}
        return self.lengths

    def keep_plan(self) -> None:
        """Writes the plan, by which a study that was stopped goes on."""
        assert self.lengths is not None and self.rates is not None
        wishes = self.wishes.facts()
        arms = self._known_arms | {arm["name"]: arm for arm in wishes["arms"]}
        plan = {
            "wishes": wishes | {"arms": list(arms.values())},
            "lengths": self.lengths.facts(),
            "rates": asdict(self.rates),
            "base_resolution": self.settings.base_resolution,
        }
        _write_json(self.folder / PLAN, plan)

    def tasks(self) -> list[Task]:
        """All tasks."""
        assert self.lengths is not None
        return all_tasks(self.arms, seeds=self.lengths.seeds, regimes=self.wishes.regimes)

    def estimate(self, task: Task) -> float:
        """Seconds that a task will still take; 0 if it is done."""
        assert self.lengths is not None and self.rates is not None
        if self._is_done(task):
            return 0.0
        return estimate(task, self.lengths, self.rates, arms=self.arms, folds=len(self._folds_left(task)))

    def _folds_left(self, task: Task) -> set[int]:
        return set(self.settings.run_folds) - outcomes.folds_done(self.folder, task)

    def _is_done(self, task: Task) -> bool:
        done = outcomes.done_facts(self.folder, task) is not None
        return done and (task.stage == "pretrain" or not self._folds_left(task))

    def epochs_of(self, task: Task) -> int:
        """Epochs of a task; those of equal cost are worked out from what was measured, and kept."""
        assert self.lengths is not None
        arm, lengths = task.arm, self.lengths
        if arm.method in OF_TREES:
            return 1
        known = lengths.pretrain if task.stage == "pretrain" else lengths.finetune
        if arm.name not in known:
            known[arm.name] = self._equal_time(task)
            self.keep_plan()
            logger.info("%s: %d epochs of %s for equal time", arm.name, known[arm.name], task.stage)
        return known[arm.name]

    def _equal_time(self, task: Task) -> int:
        assert self.lengths is not None
        arm, lengths = task.arm, self.lengths
        other = next(a for a in self.arms if a.name == arm.as_long_as)
        paid = outcomes.mean_cost(self._pretrainings(other), self.seconds)
        if task.stage == "pretrain":
            like = own_like(arm, self.arms)
            facts = self._pretrainings(like) if like != arm else []
            facts = facts or [self._facts(Task(f"{TRIALS}/{arm.name}", "pretrain", arm, 0))]
            return equal_time_epochs(facts[0]["epochs"], outcomes.mean_cost(facts, self.seconds), paid)
        fits = [self._facts(other_task) for other_task in self.tasks() if other_task.name in task.needs]
        fits = [facts["modes"]["full"] for facts in fits if "modes" in facts]
        own = outcomes.mean_cost(fits, f"train_{self.seconds}")
        epochs = [facts.get("epochs", lengths.finetune[other.name]) for facts in fits]
        return equal_time_epochs(float(np.mean(epochs)), own, paid + own)

    def _pretrainings(self, arm: StudyArm) -> list[dict[str, Any]]:
        assert self.lengths is not None
        tasks = [Task(pretrain_name(arm, seed), "pretrain", arm, seed) for seed in range(self.lengths.seeds)]
        found = [outcomes.done_facts(self.folder, task) for task in tasks]
        return [facts for facts in found if facts is not None]

    def _facts(self, task: Task) -> dict[str, Any]:
        facts = outcomes.done_facts(self.folder, task)
        assert facts is not None, f"{task.name} is not done"
        return facts

    # --------------------------------------------------------------------------------------------------------- the runs

    def run(self, stop: Stop) -> Outcome:
        """Runs what is not done yet, as far as the budget reaches."""
        tasks = self.tasks()
        return self.pool.run(
            tasks,
            command=lambda task, device: command_of(
                task, self.settings, folder=self.folder, epochs=self.epochs_of(task), device=device
            ),
            finish=lambda task, command, wall: self._finish(task, wall, epochs=self.epochs_of(task)),
            estimate=self.estimate,
            deadline=self.deadline,
            stop=stop,
            shown=lambda out: self.page.update(progress=f"{len(out.done)} of {len(tasks)} programs done"),
            is_done=self._is_done,
        )

    def _finish(self, task: Task, wall: float, *, epochs: int) -> dict[str, Any]:
        folds = self.settings.run_folds if task != TRIAL_FIT else self.settings.run_folds[:1]
        if not outcomes.is_finished(self.folder, task, epochs=epochs, folds=folds):
            raise StudyFailed(f"{task.name} ended before its end, as a signal makes it; the same command goes on")
        make = outcomes.pretrain_facts if task.stage == "pretrain" else outcomes.fit_facts
        before = outcomes.done_facts(self.folder, task) or {}  # of fewer folds
        facts = make(self.folder, task) | {"wall_seconds": wall + before.get("wall_seconds", 0.0)}
        if task.stage == "fit" and task != TRIAL_FIT:
            self._check_ground(facts)
        outcomes.tidy(self.folder, task)
        return facts

    def _check_ground(self, facts: Mapping[str, Any]) -> None:
        """Refuses a fit whose folds are not those of the trial, which every arm should share."""
        key = "tested_classes"
        if facts["split"][key] != self._facts(TRIAL_FIT)["split"][key]:
            raise TaskRefused(
                "it tested other ground than the other arms: expected the same blocks, labels and valid ground; flags "
                "such as --val_buffer, or --input_size without a --base_resolution that makes up for it, change them, "
                "and so do layers left out where they alone are valid"
            )

    # ------------------------------------------------------------------------------------------------------- the report

    def report(self, outcome: Outcome, facts: Mapping[str, Any]) -> Path | None:
        """Gathers results and writes the report.

        Args:
            outcome: of the runs.
            facts: of hardware, versions and commands.

        Returns:
            The report; None if nothing was scored yet.

        Raises:
            ValueError: a file is damaged.
        """
        assert self.lengths is not None
        tasks = self.tasks()
        fits = [task for task in tasks if task.stage == "fit"]
        done = [task for task in fits if outcomes.done_facts(self.folder, task) is not None]
        if not done:
            return None
        runs = [
            run
            for task in done
            for run in outcomes.runs_of(
                self.folder,
                task,
                pretraining=outcomes.done_facts(self.folder, replace(task, name=task.needs[0]))
                if task.arm.pretrain is not None
                else None,
                seconds=self.seconds,
            )
        ]
        write_results(self.folder / RESULTS, runs)
        if self.settings.patience:
            curves = [of for task in done for of in outcomes.curves_of(self.folder, task, seconds=self.seconds)]
            write_curves(self.folder / CURVES, curves)
        first = self._facts(done[0])
        modes = {task.name: 1 + task.arm.probe for task in fits}
        regimes = {regime for arm in self.arms for regime in regimes_of_arm(arm, self.wishes.regimes)}
        table = {
            "task": first["task"],
            "metric": outcomes.METRICS[first["task"]],
            "units": first["units"],
            "arms": [outcomes.arm_facts(arm) for arm in self.arms],
            "label_fractions": sorted({of.fraction for of in regimes if not of.blocks}),
            BLOCKS: sorted({of.blocks for of in regimes if of.blocks}),
            "seeds": self.lengths.seeds,
            "folds": len(self.settings.run_folds),
            "patience": self.settings.patience,
            "folds_in_all": self.settings.folds,
            "blocks": sum(first["split"]["blocks"][fold] for fold in self.settings.run_folds),
            "blocks_in_all": sum(first["split"]["blocks"]),
            "lengths": self.lengths.facts(),
            "spent_s": sum(
                found["wall_seconds"] for found in map(partial(outcomes.done_facts, self.folder), tasks) if found
            ),
            "planned": len(self.settings.run_folds) * sum(modes.values()),
            "done": len(runs),
            "failed": outcome.failed,
            **facts,
        }
        _write_json(self.folder / FACTS, table)
        return build_report(self.folder / RESULTS, table, self.folder)

    def begin_page(self, options: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Begins the page of the study, or goes on with it.

        Args:
            options: all options by name.
            facts: of hardware, versions and commands, as `report` takes them.
        """
        environment = {"device": facts["device"], "programs at a time": facts["jobs"], **facts["versions"]}
        named = {"title": facts["title"]}
        self.page.begin(resumed=True, resume_flags=(), options=options, environment=environment, facts=named)

    def end_page(self, outcome: Outcome) -> None:
        """Notes on the page what failed and what is left."""
        tasks = [{"name": name, "state": "failed", "said": said} for name, said in outcome.failed.items()]
        self.page.add({"tasks": tasks + [{"name": name, "state": "not done"} for name in outcome.left]})
        if not (outcome.failed or outcome.left):
            self.page.finish()


def _what_it_runs(arm: Mapping[str, Any]) -> dict[str, Any]:
    """What the programs of an arm depend on; what it is compared with may change."""
    return {key: value for key, value in arm.items() if key not in ("against", "question", "label_fractions", BLOCKS)}


def _numbers_of(command: Sequence[str]) -> list[str]:
    """What of a command decides what it does: not the interpreter, device or folder."""
    flags = list(command[1:])
    for flag in ("--device", "--output_dir"):
        at = flags.index(flag)
        del flags[at : at + 2]
    return flags


def _shortly(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_suffix(".tmp")
    waiting.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    replace_file(waiting, path)
