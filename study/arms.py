"""The arms of a study: what is compared, read from a small table that a user may change."""

from __future__ import annotations

import csv
import logging
import os
import re
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from study.regimes import BLOCKS, check_blocks

logger = logging.getLogger(__name__)

T = TypeVar("T", int, float)

METHODS = ("network", "trees", "rcf", "trees+embeddings", "unet")
"""The encoder with a head, or the baseline of main_finetune of that name, alone."""
OF_TREES = ("trees", "rcf", "trees+embeddings")
"""Methods that have no epochs."""
NOT_PRETRAINED = ("trees", "rcf", "unet")
"""Methods that pre-training does nothing for."""
ROLES = ("", "null", "leak", "switch")
NO_PRETRAINING = "none"
COLUMNS = (
    "arm",
    "method",
    "pretrain",
    "finetune",
    "probe",
    "as_long_as",
    "against",
    "role",
    "label_fractions",
    "question",
    BLOCKS,
)
SET_BY_STUDY = (
    "--data_dir --train_path --labels --label_column --label_band --task --finetune --output_dir --log_dir --resume "
    "--seed --fold_seed --label_seed --epochs --tiles_per_epoch --folds --only_folds --label_fraction --no_final "
    "--no_network --baselines --device --freeze_encoder --patience"
).split()
"""Flags that the study gives itself."""
FOR_ALL = (
    "--data_dir --train_path --labels --label_column --label_band --task --model --input_size --patch_size --folds "
    "--amp --patience"
).split()
"""Flags that must be the same in every experiment, so that they are options of the study."""
PRETRAINED_ALONE = (
    "--dropped_bands --masked_bands --target_layers --transform --grouped_bands --model_type --aoi --extent".split()
)
"""Flags of main_pretrain that change the input of pre-trained networks alone: only rows of arms may have them."""


@dataclass(frozen=True)
class StudyArm:
    """One way to come to a map.

    Attributes:
        name: as it stands in tables.
        method: one of `METHODS`.
        pretrain: flags of main_pretrain; None without pre-training.
        finetune: flags of main_finetune.
        probe: also fits a probe of the frozen encoder.
        as_long_as: name of the arm whose time it gets: pre-training's, or, without pre-training, that of
            pre-training and fine-tuning together. Empty: its own.
        against: names of the arms it is compared with.
        role: `null`, another arm once more with other seeds, must come out level; `leak`, which sees the tested
            labels, must win; `switch` asks about one option; empty otherwise.
        label_fractions: shares of the labels it is fitted on.
        label_blocks: numbers of whole blocks of labels it is fitted on; both empty: all regimes of the study.
        question: what the comparison answers, in words.
    """

    name: str
    method: str = "network"
    pretrain: tuple[str, ...] | None = None
    finetune: tuple[str, ...] = ()
    probe: bool = False
    as_long_as: str = ""
    against: tuple[str, ...] = ()
    role: str = ""
    label_fractions: tuple[float, ...] = ()
    label_blocks: tuple[int, ...] = ()
    question: str = ""

    @property
    def seed_offset(self) -> int:
        """What is added to the study's seeds: a null control is the same arm with other seeds."""
        return 1000 if self.role == "null" else 0

    @property
    def is_timed_fit(self) -> bool:
        """Whether its fine-tuning gets the time of another arm's pre-training and fine-tuning together."""
        return bool(self.as_long_as) and self.pretrain is None


def read_arms(path: str | Path, *, only: Sequence[str] = ()) -> list[StudyArm]:
    """Reads a table of arms; docs/worth_it.md says what the columns mean.

    Args:
        path: CSV with the columns `COLUMNS`, of which only `arm` must be there.
        only: names of the arms to keep; empty: all. A comparison with an arm that is not kept is left out, which is
            logged.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row cannot be used; names file, row, value and what was expected.
    """
    rows = _read_rows(path)
    arms = []
    for number, row in enumerate(rows, start=2):
        try:
            arms.append(_arm_of({key: (value or "").strip() for key, value in row.items()}))
        except ValueError as error:
            raise ValueError(f"--arms {path}, row {number}: {error}") from error
    try:
        missing = sorted(set(only) - {arm.name for arm in arms})
        if missing:
            raise ValueError(f"--only_arms {' '.join(missing)}: no such arm; expected out of {_names(arms)}")
        chosen = _kept(arms, only) if only else arms
        check_arms(chosen)
    except ValueError as error:
        raise ValueError(f"--arms {path}: {error}") from error
    return chosen


def _read_rows(path: str | Path) -> list[dict[str, str]]:
    """The table's rows as they stand, with its columns checked."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            rows: list[dict[str, str]] = list(reader)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--arms {path}: no such file; expected a CSV with a row for each arm") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"--arms {path}: not a CSV text file ({error}); save it as CSV, UTF-8") from error
    columns = reader.fieldnames or ()
    if not rows or "arm" not in columns:
        raise ValueError(f"--arms {path}: expected a header with the column 'arm' and a row for each arm")
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise ValueError(f"--arms {path}: unknown column {', '.join(unknown)}; expected out of {', '.join(COLUMNS)}")
    for number, row in enumerate(rows, start=2):
        if reader.restkey in row:
            raise ValueError(
                f"--arms {path}, row {number} has more cells than the header, which has {len(columns)}; quote texts "
                "with commas"
            )
    return rows


def _kept(arms: Sequence[StudyArm], only: Collection[str]) -> list[StudyArm]:
    """The arms of these names, without comparisons with others of the table; a null control needs its twin."""
    others = {arm.name for arm in arms} - set(only)
    chosen = []
    for arm in (arm for arm in arms if arm.name in only):
        dropped = [name for name in arm.against if name in others and arm.role != "null"]
        if dropped:
            logger.info("%s is not compared with %s: not among --only_arms", arm.name, ", ".join(dropped))
            left = tuple(name for name in arm.against if name not in dropped)
            arm = replace(arm, against=left, question=arm.question if left else "")
        chosen.append(arm)
    return chosen


def _arm_of(row: dict[str, str]) -> StudyArm:
    name = row["arm"]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
        raise ValueError(f"arm {name!r}: expected letters, digits, _ . + -, as it becomes the name of a folder")
    method, role = row.get("method") or "network", row.get("role", "")
    if method not in METHODS:
        raise ValueError(f"arm {name}: method {method!r}, expected one of {', '.join(METHODS)}")
    if role not in ROLES:
        raise ValueError(f"arm {name}: role {role!r}, expected one of {', '.join(ROLES[1:])}, or nothing")
    probe = row.get("probe", "").lower()
    if probe not in ("", "yes", "no"):
        raise ValueError(f"arm {name}: probe {probe!r}, expected yes or no")
    pretrain = row.get("pretrain", NO_PRETRAINING)
    arm = StudyArm(
        name=name,
        method=method,
        pretrain=None if method in NOT_PRETRAINED or pretrain == NO_PRETRAINING else _flags(name, "pretrain", pretrain),
        finetune=_flags(name, "finetune", row.get("finetune", "")),
        probe=probe == "yes",
        as_long_as=row.get("as_long_as", ""),
        against=tuple(row.get("against", "").split()),
        role=role,
        label_fractions=_numbers(name, "label_fractions", row.get("label_fractions", ""), float, check_fractions),
        label_blocks=_numbers(name, BLOCKS, row.get(BLOCKS, ""), int, check_blocks),
        question=row.get("question", ""),
    )
    if method == "trees+embeddings" and arm.pretrain is None:
        raise ValueError(
            f"arm {name}: trees+embeddings takes the embeddings of a pre-trained encoder; give it pre-training"
        )
    if arm.probe and method != "network":
        raise ValueError(f"arm {name}: a probe is one of the encoder; leave probe empty for method {method}")
    if arm.probe and arm.pretrain is None:
        raise ValueError(f"arm {name}: a probe needs pre-training; leave probe empty, or give the arm pre-training")
    return arm


def _flags(name: str, column: str, text: str) -> tuple[str, ...]:
    where = f"arm {name}: {column}"
    return _allowed(_split(text, where), where)


def shared_flags(option: str, text: str) -> tuple[str, ...]:
    """Flags that every pre-training, or every fine-tuning, is given.

    Args:
        option: the option of the study that they were given by.
        text: the flags, quoted as a shell would.

    Raises:
        ValueError: a flag that the study sets itself, or that networks from scratch and trees must be given too; or
            quotes without an end.
    """
    flags = _split(text, option)
    wrong = _refused(flags, FOR_ALL)
    if wrong:
        raise ValueError(
            f"{option} has {wrong}, which must be the same for all arms; give it as an option of the study itself"
        )
    wrong = _refused(flags, PRETRAINED_ALONE) if option == "--pretrain_flags" else ""
    if wrong:
        raise ValueError(
            f"{option} has {wrong}, which networks from scratch and trees would not get, so that they would see other "
            "input; put it into the rows of the arms table instead"
        )
    return _allowed(flags, option)


def _split(text: str, where: str) -> list[str]:
    try:
        return shlex.split(text.replace("\\", "\\\\") if os.sep == "\\" else text)  # paths of Windows stay whole
    except ValueError as error:
        raise ValueError(f"{where} {text!r}: {error}; expected flags quoted as for a shell") from error


def _allowed(flags: Sequence[str], where: str) -> tuple[str, ...]:
    wrong = _refused(flags, SET_BY_STUDY)
    if wrong:
        raise ValueError(f"{where} has {wrong}, which the study sets itself; leave it out")
    return tuple(flags)


def _refused(flags: Sequence[str], names: Sequence[str]) -> str:
    """The first flag that is one of these names, also shortened as argparse allows; empty if none is.

    No other flag of the programs is the beginning of such a name, but for `--model`, which begins `--model_type` and is
    refused wherever that is.
    """
    for flag in flags:
        name = flag.split("=")[0]
        if name in names:
            return flag
        full = [of for of in names if of.startswith(name)] if name.startswith("--") and name != "--" else []
        if full:
            return f"{flag}, short for {full[0]}"
    return ""


def _numbers(
    arm: str, column: str, text: str, kind: type[T], check: Callable[[Sequence[T], str], None]
) -> tuple[T, ...]:
    """The numbers of a cell."""
    try:
        values = tuple(kind(part) for part in text.split())
    except ValueError as error:
        expected = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"arm {arm}: {column} {text!r}, expected {expected} with spaces between") from error
    check(values, f"arm {arm}: {column} {text!r}")
    return values


def check_fractions(values: Sequence[float], where: str) -> None:
    """Refuses shares of the labels that cannot be, or that stand twice.

    Args:
        values: the shares.
        where: what begins the message.

    Raises:
        ValueError: one is not above 0 and at most 1, or two are the same to six digits, as programs are given them.
    """
    if any(not 0 < value <= 1 for value in values):
        raise ValueError(f"{where}, expected shares above 0 and at most 1")
    if len({f"{value:g}" for value in values}) < len(values):
        raise ValueError(f"{where}, expected each share once")


def check_arms(arms: Sequence[StudyArm]) -> None:
    """Refuses arms that do not go together.

    Raises:
        ValueError: naming the arm, and what was expected.
    """
    by_name = {arm.name: arm for arm in arms}
    if len(by_name) < len(arms):
        raise ValueError(f"arms of the same name among {_names(arms)}; names must differ")
    for arm in arms:
        if len(set(arm.against)) < len(arm.against):
            raise ValueError(f"arm {arm.name}: against names an arm twice; expected each once")
        asked = [("against", name) for name in arm.against] + [("as_long_as", arm.as_long_as)] * bool(arm.as_long_as)
        for column, named in asked:
            if named not in by_name or named == arm.name:
                raise ValueError(
                    f"arm {arm.name}: {column} {named!r} is no other arm here; expected out of {_names(arms)}"
                )
        other = by_name.get(arm.as_long_as)
        if other is not None and (other.as_long_as or other.pretrain is None or other.method != "network"):
            raise ValueError(
                f"arm {arm.name}: as_long_as {other.name!r} must be a network with pre-training and a time of its own"
            )
        if arm.as_long_as and arm.method != "network":
            raise ValueError(f"arm {arm.name}: as_long_as does nothing for {arm.method}; leave it empty")
        if arm.role == "null" and len(arm.against) != 1:
            raise ValueError(f"arm {arm.name}: role null needs in `against` the one arm that it repeats")
        if arm.role == "null" and _what_it_does(arm) != _what_it_does(by_name[arm.against[0]]):
            raise ValueError(
                f"arm {arm.name}: role null, but method, flags or as_long_as differ from those of {arm.against[0]}"
            )


def _what_it_does(arm: StudyArm) -> tuple[object, ...]:
    return arm.method, arm.pretrain, arm.finetune, arm.as_long_as


def _names(arms: Sequence[StudyArm]) -> str:
    return ", ".join(arm.name for arm in arms)
