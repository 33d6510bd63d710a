"""Writes the page of a run while it goes on: report.html beside its other files, always whole.

A page must never cost a run: it takes at most a hundredth of its time, and if it cannot be written, on a full disk for
example, a warning says so once and the run goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from util.hardware.system import written_whole
from util.options.commands import command
from util.options.parser import Parser
from util.processes.heard_warnings import heard_warnings
from util.run_page.content import View
from util.run_page.finetuning import finetuning_view
from util.run_page.maps import maps_view
from util.run_page.pretraining import pretraining_view
from util.run_page.record import RECORD, RunRecord, Session, read_records, write_records
from util.run_page.render import render
from util.run_page.studies import study_view

logger = logging.getLogger(__name__)

PAGE = "report.html"
PAGE_FILES = (PAGE, RECORD)
"""Files that belong to a run and are moved aside with it."""
SHARE = 0.01
"""Fraction of a run's time that its page may take."""

VIEWS: dict[str, Callable[[Path, RunRecord], View]] = {
    "main_pretrain": pretraining_view,
    "main_finetune": finetuning_view,
    "main_inference": maps_view,
    "scripts.worth_it": study_view,
}
"""Program -> what its page shows."""


class RunPage:
    """The page of a run. Nothing happens before `begin`, nor in ranks other than the main one.

    Args:
        folder: of the run.
        program: a key of `VIEWS`.
        part: what of the folder the run writes, where several share one page.
        enabled: False in ranks other than the main one.
    """

    def __init__(self, folder: Path, program: str, *, part: str = "", enabled: bool = True) -> None:
        self._folder, self._enabled = folder, enabled
        self._record = RunRecord(program, part)
        self._others: list[RunRecord] = []
        self._begun = self._is_done = self._has_warned = False
        self._warnings_before: list[dict[str, Any]] = []
        self._written = self._not_before = 0.0

    def begin(
        self,
        *,
        resumed: bool,
        resume_flags: tuple[str, ...] = ("--resume", "auto"),
        options: Mapping[str, Any],
        environment: Mapping[str, Any],
        overview: Callable[[], dict[str, Any]] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Begins the page, or goes on with that of the run that is resumed.

        Args:
            resumed: the run that the folder holds is continued.
            resume_flags: what continues the run, added to its command line.
            options: all options by name.
            environment: versions, device, processes.
            overview: gives what was read, see `datasets.survey.overview`.
            facts: what else the page needs, by name.
        """
        if not self._enabled:
            return
        self._begun = True
        self._guarded(lambda: self._begin(resumed, resume_flags, options, environment, facts or {}))
        if overview is not None:
            self._guarded(lambda: self._record.overview.update(overview()))
        self._write()

    def _begin(
        self,
        resumed: bool,
        resume_flags: tuple[str, ...],
        options: Mapping[str, Any],
        environment: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> None:
        """Reads the record of the folder and begins a session in it."""
        record = self._record
        for other in read_records(self._folder):
            if (other.program, other.part) != (record.program, record.part):
                self._others.append(other)
            elif resumed:
                record.sessions, record.warnings = other.sessions, other.warnings
        if record.is_running:  # it was killed
            record.sessions[-1].state = "stopped"
        record.words = list(Parser.command_line)
        again = command(record.program, *_without_resume(record.words), *resume_flags)
        record.facts = {"resume_command": again, **facts}
        record.options = dict(options)
        record.sessions.append(Session(time.time(), command(record.program, *record.words), dict(environment)))
        self._warnings_before = list(record.warnings)

    def update(self, *, progress: str, wait_s: float = 0.0) -> None:
        """Writes the page anew, unless that would take more than its share of the run's time.

        Args:
            progress: how far the run is, in words.
            wait_s: least time since it was written last.
        """
        if not self._begun:
            return
        self._record.progress = progress
        now = time.monotonic()
        if now < max(self._not_before, self._written + wait_s):
            return
        self._write()
        self._not_before = time.monotonic() + (time.monotonic() - now) / SHARE

    def add(self, facts: Mapping[str, Any]) -> None:
        """Adds facts by name, for the next writing."""
        self._record.facts.update(facts)

    def finish(self) -> None:
        """Notes that the run has done all it should, for `end`."""
        self._is_done = True

    def __enter__(self) -> RunPage:
        """Gives the page, which ends with the block."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Writes the page for the last time."""
        self.end(error)

    def end(self, error: BaseException | None = None) -> None:
        """Writes the page for the last time.

        Args:
            error: what ended the run; without one it is finished (`finish`), or was stopped by a signal.
        """
        if not self._begun or not self._record.sessions:
            return
        session = self._record.sessions[-1]
        session.ended = time.time()
        if error is None or isinstance(error, KeyboardInterrupt):
            session.state = "finished" if self._is_done and error is None else "stopped"
        else:
            session.state = "failed"
            session.message = f"{error}" or type(error).__name__
        self._write()
        self._begun = False

    def _write(self) -> None:
        """Writes record and page, each as a whole; an error is a warning."""
        self._guarded(self._write_files)
        self._written = time.monotonic()

    def _write_files(self) -> None:
        record = self._record
        record.warnings = self._together(heard_warnings())
        runs = [record, *self._others]
        write_records(self._folder, runs)
        html = page_of(self._folder, runs)
        with written_whole(self._folder / PAGE) as waiting:
            waiting.write_text(html, encoding="utf-8")

    def _together(self, heard: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Warnings of earlier sessions and of this one, each text once."""
        by_text = {of["text"]: of for of in self._warnings_before}
        return list((by_text | {of["text"]: of for of in heard}).values())

    def _guarded(self, action: Callable[[], Any]) -> None:
        """Does something for the page; whatever goes wrong is said once and ends nothing."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a page is no reason to lose a run
            level = logging.DEBUG if self._has_warned else logging.WARNING
            self._has_warned = True
            text = f"{type(error).__name__}: {error}"
            logger.log(level, "%s not written (%s); the run goes on without it", self._folder / PAGE, text)


def page_of(folder: Path, runs: list[RunRecord]) -> str:
    """The page of the runs of a folder as HTML, the latest first."""
    runs = sorted((run for run in runs if run.sessions), key=lambda run: -run.sessions[-1].begun)
    views = [VIEWS[run.program](folder, run) for run in runs]
    same = {run.program for run in runs} == {"main_inference"}
    title = views[0].title if len(views) == 1 else f"{'Maps' if same else 'Runs'} in {folder.resolve().name}"
    return render(views, title=title, written=time.time())


def _without_resume(words: Sequence[str]) -> list[str]:
    """A command line without --resume and its value."""
    kept, is_value = [], False
    for word in words:
        is_value = is_value and not word.startswith("--")
        if not (is_value or word == "--resume" or word.startswith("--resume=")):
            kept.append(word)
        is_value = word == "--resume"
    return kept
