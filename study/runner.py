"""Runs the programs of a study, several at a time, until all are done or the time is up."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from study.outcomes import DONE
from study.plan import Task
from util.hardware.system import SIGKILL, end_group, in_a_group, replace_file
from util.processes.signals import Stop
from util.processes.terminal import progress_bar

logger = logging.getLogger(__name__)

LOG, LOCK = "run.log", "study.lock"
PATIENCE_S = 60.0
"""How long a program may take to save what it has when the study is stopped."""
REDRAW_S = 1.0
"""How often the bar is drawn anew."""


class TaskRefused(RuntimeError):
    """A program ended well, but what it did is of no use to the study."""


@dataclass
class Running:
    """A program under way.

    Attributes:
        task: what it does.
        process: the program.
        slot: number of its slot.
        began: `time.monotonic()` at its start.
        log_begin: bytes that its log held before, from earlier attempts.
    """

    task: Task
    process: subprocess.Popen[bytes]
    slot: int
    began: float
    log_begin: int = 0


@dataclass
class Outcome:
    """How running went.

    Attributes:
        done: names of the tasks that are done, earlier ones too.
        failed: what went wrong, by the task's name.
        left: names of tasks that were not begun, or stopped part way.
        stopped: a signal ended it.
    """

    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    stopped: bool = False


def hold(folder: Path) -> IO[bytes]:
    """Takes the folder of a study for this process and the programs that it starts, until the last of them ends.

    Args:
        folder: of the study.

    Returns:
        An open file; give it to `Pool`, and keep it open.

    Raises:
        ValueError: another study, or programs that one left running, work there.
    """
    lock = open(folder / LOCK, "ab")  # noqa: SIM115  it outlives this function
    try:
        if lock_descriptor(lock.fileno(), blocking=False):
            return lock
    except OSError as error:
        logger.warning(
            "%s: its file system has no locks (%s); make sure that no second study works there", folder, error
        )
        return lock
    lock.close()
    raise ValueError(
        f"--output_dir {folder}: another worth_it, or programs that it left behind, are at work there; wait for them, "
        "stop them, or choose another --output_dir"
    )


class Pool:
    """Runs commands, at most one in each slot.

    Args:
        folder: of the study.
        devices: --device of each slot.
        environment: variables of the programs.
        show: a bar with the time left.
        lock: of the folder, from `hold`; programs keep it too.
    """

    def __init__(
        self,
        folder: Path,
        *,
        devices: Sequence[str],
        environment: Mapping[str, str],
        show: bool,
        lock: IO[bytes] | None = None,
    ) -> None:
        self.folder, self.devices = folder, list(devices)
        self._environment, self._show, self._lock = dict(environment), show, lock
        self._running: list[Running] = []

    def run(
        self,
        tasks: Sequence[Task],
        *,
        command: Callable[[Task, str], list[str]],
        finish: Callable[[Task, list[str], float], dict[str, Any]],
        estimate: Callable[[Task], float],
        deadline: float,
        stop: Stop,
        shown: Callable[[Outcome], None] | None = None,
        is_done: Callable[[Task], bool] | None = None,
    ) -> Outcome:
        """Runs tasks in their order as far as what they need is done.

        Args:
            tasks: all tasks, also those that are done.
            command: the command of a task on a device.
            finish: called when a program ended well, with task, command and seconds; gives the facts to be kept, or
                raises TaskRefused.
            estimate: seconds that a task will take.
            deadline: `time.monotonic()` after which nothing is begun that would end later.
            stop: tells of signals.
            shown: called with what is done whenever a program has ended.
            is_done: whether a task was done earlier; None: whether it left its facts.
        """
        is_done = is_done or (lambda task: (self.folder / task.name / DONE).exists())
        out = Outcome(done={task.name for task in tasks if is_done(task)})
        waiting = [task for task in tasks if task.name not in out.done]
        expected = {task.name: estimate(task) for task in waiting}
        total = sum(expected.values())
        passed, drawn = 0.0, time.monotonic()
        bar = progress_bar(total=round(total) or None, desc="study", unit="s of work", enabled=self._show)
        try:
            while waiting or self._running:
                if stop.signal is not None:
                    out.stopped = True
                    break
                for running in [r for r in self._running if r.process.poll() is not None]:
                    self._running.remove(running)
                    self._take(running, out, finish)
                    passed += expected[running.task.name]
                    if running.task.name in out.done:
                        logger.info("%d of %d done: %s", len(out.done), len(tasks), running.task.name)
                    if shown is not None:
                        shown(out)
                waiting = self._begin(waiting, out, command, estimate, deadline)
                if waiting and not self._running:
                    break  # nothing can begin: no time, or what is needed has failed
                if self._show and time.monotonic() - drawn >= max(REDRAW_S, bar.mininterval):  # in a file, a minute
                    drawn = time.monotonic()
                    # Set, not updated: the rate is then the mean since the start, without the jumps of single steps.
                    bar.n = round(min(passed + self._under_way(estimate), total))
                    bar.refresh()
                time.sleep(0.1)
        finally:
            self._end_all()
            bar.close()
        out.left = [task.name for task in tasks if task.name not in out.done and task.name not in out.failed]
        return out

    def _under_way(self, estimate: Callable[[Task], float]) -> float:
        """Seconds of work done by programs that still run, each at most what it was estimated to take."""
        now = time.monotonic()
        return sum(min(now - running.began, estimate(running.task)) for running in self._running)

    def _begin(
        self,
        waiting: list[Task],
        out: Outcome,
        command: Callable[[Task, str], list[str]],
        estimate: Callable[[Task], float],
        deadline: float,
    ) -> list[Task]:
        """Fills free slots; returns the tasks that still wait."""
        for slot in sorted(set(range(len(self.devices))) - {running.slot for running in self._running}):
            ready = (task for task in waiting if set(task.needs) <= out.done)
            task = next((task for task in ready if time.monotonic() + estimate(task) <= deadline), None)
            if task is None:
                break
            waiting = [other for other in waiting if other is not task]
            self._running.append(self._start(task, command(task, self.devices[slot]), slot))
        return waiting

    def _start(self, task: Task, command: list[str], slot: int) -> Running:
        place = self.folder / task.name
        place.mkdir(parents=True, exist_ok=True)
        with open(place / LOG, "ab") as log:
            log_begin = os.fstat(log.fileno()).st_size
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                **in_a_group(keeps=() if self._lock is None else (self._lock.fileno(),)),
            )
        return Running(task, process, slot, time.monotonic(), log_begin)

    def _take(self, running: Running, out: Outcome, finish: Callable[[Task, list[str], float], dict[str, Any]]) -> None:
        """Notes how a program ended."""
        task, command = running.task, list(map(str, running.process.args))  # type: ignore[arg-type]
        if running.process.returncode == 0:
            try:
                facts = finish(task, command, time.monotonic() - running.began)
            except TaskRefused as error:
                self._fail(task, str(error), out)
                return
            path = self.folder / task.name / DONE
            waiting = path.with_suffix(".tmp")
            waiting.write_text(json.dumps({"command": command, **facts}, indent=1) + "\n", encoding="utf-8")
            replace_file(waiting, path)
            out.done.add(task.name)
        else:
            log = self.folder / task.name / LOG
            self._fail(task, _last_words(log, running.process.returncode, begin=running.log_begin), out)

    def _fail(self, task: Task, why: str, out: Outcome) -> None:
        out.failed[task.name] = why
        logger.error("%s failed: %s", task.name, why)

    def _end_all(self) -> None:
        """Asks what still runs to save and end, and waits for it."""
        for running in self._running:
            end_group(running.process, at_once=False)
        for running in self._running:
            try:
                running.process.wait(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                end_group(running.process, at_once=True)
                running.process.wait()
        self._running = []


def _last_words(path: Path, status: int, *, begin: int) -> str:
    """Why a program failed: its error, or its last line, from byte `begin` of its log on; or the signal."""
    if status < 0:
        why = ", perhaps for lack of memory" if -status == SIGKILL else ""
        return f"killed by signal {_signal_name(-status)}{why} (all it said is in {path})"
    with open(path, "rb") as log:
        log.seek(begin)
        text = log.read().decode("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "error:" in line), lines[-1] if lines else "it said nothing")
    return f"{said} (status {status}; all it said is in {path})"


def _signal_name(number: int) -> str:
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:  # real-time signals have no name
        return str(number)
