"""report.json: what a page needs and no other file of a run holds. Warnings, options, what was read, begin and end."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from util.hardware.system import written_whole

RECORD = "report.json"


@dataclass
class Session:
    """A start of a program, of which a run that was resumed has several.

    Attributes:
        begun: seconds since the epoch.
        command: the command line.
        environment: versions, device, processes.
        state: `running`, `finished`, `stopped` or `failed`.
        ended: when, None while it runs and if it was killed.
        message: why it failed.
    """

    begun: float
    command: str
    environment: dict[str, Any] = field(default_factory=dict)
    state: str = "running"
    ended: float | None = None
    message: str = ""


@dataclass
class RunRecord:
    """What is recorded of a run.

    Attributes:
        program: such as `main_pretrain`.
        part: what of its folder it wrote, where several runs share one: the product of main_inference.
        words: the command line without the program.
        options: all options by name, as they were used.
        overview: what was read, as `overview` of the data returns it.
        facts: what else the program states.
        progress: how far it is, in words.
        sessions: its starts.
        warnings: as `util.processes.heard_warnings` gives them.
    """

    program: str
    part: str = ""
    words: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    overview: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    progress: str = ""
    sessions: list[Session] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended, as far as the record says."""
        return bool(self.sessions) and self.sessions[-1].state == "running"


def read_records(folder: Path) -> list[RunRecord]:
    """The runs that are recorded in a folder; none if there is no record, or a damaged one, which is no loss."""
    try:
        stored = json.loads((folder / RECORD).read_text(encoding="utf-8"))["runs"]
        return [_run(values) for values in stored]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _run(values: Mapping[str, Any]) -> RunRecord:
    known = {item.name for item in fields(RunRecord)}
    sessions = [Session(**session) for session in values.get("sessions", [])]
    return RunRecord(**{key: value for key, value in values.items() if key in known} | {"sessions": sessions})


def write_records(folder: Path, runs: list[RunRecord]) -> None:
    """Writes the record as a whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps({"runs": [_plain(asdict(run)) for run in runs]}, allow_nan=False)
    with written_whole(folder / RECORD) as waiting:
        waiting.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """A value as strict JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
