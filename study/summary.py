"""What was run and what it cost: arms, their runs gathered by mode and share of labels, scores and costs of each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from study.bootstrap import BlockSums, pool
from study.regimes import Regime
from study.results import MODES, Run

Key = tuple[str, str, Regime]
"""Arm, mode and labels of runs that belong together."""
ROLES = ("", "null", "leak", "switch")
"""An arm of the question; the control that must show nothing; the one that must win; a switch against the default."""


@dataclass(frozen=True)
class ArmFacts:
    """What the plan says of an arm.

    Attributes:
        name: its name.
        role: one of ROLES.
        against: names of the arms it is compared with.
        question: what the comparison answers, or empty.
        as_long_as: name of the arm whose training time it is given, or empty.
        pretrain: flags of pre-training.
        finetune: flags of fine-tuning.
    """

    name: str
    role: str = ""
    against: tuple[str, ...] = ()
    question: str = ""
    as_long_as: str = ""
    pretrain: str = ""
    finetune: str = ""


@dataclass(frozen=True, eq=False)
class Group:
    """The runs of one arm, mode and regime of labels.

    Attributes:
        arm: its name.
        mode: one of `results.MODES`.
        regime: the labels.
        runs: its runs.
        seeds: sums over folds, by seed.
    """

    arm: str
    mode: str
    regime: Regime
    runs: tuple[Run, ...]
    seeds: Mapping[int, BlockSums]

    @property
    def blocks(self) -> frozenset[int]:
        """Blocks that `scores` are of: those of the seed that was tested on most."""
        return frozenset(max(self.seeds.values(), key=lambda sums: len(sums.blocks)).blocks.tolist())

    @property
    def scores(self) -> list[float]:
        """Pooled score of each seed that was tested on as many blocks as any."""
        most = len(self.blocks)
        scores = [sums.score() for sums in self.seeds.values() if len(sums.blocks) == most]
        return [score for score in scores if math.isfinite(score)]

    @property
    def mean(self) -> float:
        """Mean of `scores`, NaN without any."""
        return float(np.mean(self.scores)) if self.scores else math.nan

    def cost(self, name: str) -> float | None:
        """Mean of a cost over runs, one of `results.COSTS`; None if no run has it."""
        values = [value for run in self.runs if (value := getattr(run, name)) is not None]
        return float(np.mean(values)) if values else None

    @property
    def seconds(self) -> float | None:
        """Seconds of training of one run: pre-training and fine-tuning; None if the latter is not known."""
        return _with_pretraining(self.cost("pretrain_s"), self.cost("finetune_s"))

    @property
    def flops(self) -> float | None:
        """Operations of one run: pre-training and fine-tuning; None if the latter are not known, as of trees."""
        return _with_pretraining(self.cost("pretrain_flops"), self.cost("finetune_flops"))

    @property
    def memory_mb(self) -> float | None:
        """Most memory that any run held."""
        return max((run.peak_memory_mb for run in self.runs if run.peak_memory_mb is not None), default=None)

    @property
    def pretrain_per_seed_s(self) -> float:
        """Seconds of pre-training that a further seed takes, whatever the number of folds; 0 if not known."""
        return self.cost("pretrain_s") or 0.0

    @property
    def finetune_per_seed_s(self) -> float:
        """Seconds of fine-tuning in all folds of a further seed; 0 if not known."""
        return sum(run.finetune_s or 0.0 for run in self.runs) / len(self.seeds)


def read_facts(path: Path) -> dict[str, Any]:
    """Facts of a study from its JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not JSON, or no object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of a study's facts; run the study first")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); restore it, or run the study again") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path}: holds a {type(facts).__name__}, expected an object of facts; restore it")
    return facts


def read_arms(facts: Mapping[str, Any], runs: Iterable[Run]) -> list[ArmFacts]:
    """The arms of the plan, then those that only the results know.

    Raises:
        ValueError: an arm without a name, twice, or with an unknown role.
    """
    arms: dict[str, ArmFacts] = {}
    for entry in facts.get("arms") or []:
        name, role = str(entry.get("name") or ""), str(entry.get("role") or "")
        if not name or name in arms or role not in ROLES:
            raise ValueError(
                f"arm '{name}' with role '{role}': expected a name of its own, and a role out of "
                f"{', '.join(repr(known) for known in ROLES)}; correct the table of arms"
            )
        against = tuple(str(entry.get("against") or "").split())
        texts = {key: str(entry.get(key) or "") for key in ("question", "as_long_as")}
        flags = {key: _flags(entry, key) for key in ("pretrain", "finetune")}
        arms[name] = ArmFacts(name, role, against, **texts, **flags)
    for run in runs:
        arms.setdefault(run.arm, ArmFacts(run.arm))
    return list(arms.values())


def group_runs(runs: Sequence[Run], arms: Sequence[ArmFacts]) -> dict[Key, Group]:
    """Groups by arm, mode and labels: arms in their order, most labels first.

    Raises:
        ValueError: runs of different metrics.
    """
    metrics = sorted({run.metric for run in runs})
    if len(metrics) > 1:
        raise ValueError(f"results of different metrics, {', '.join(metrics)}: expected one; keep studies apart")
    found: dict[Key, dict[int, list[Run]]] = {}
    order = {arm.name: number for number, arm in enumerate(arms)}
    regimes = sorted({run.regime for run in runs}, key=lambda regime: regime.order, reverse=True)
    for run in sorted(
        runs, key=lambda run: (order[run.arm], MODES.index(run.mode), regimes.index(run.regime), run.seed)
    ):
        found.setdefault((run.arm, run.mode, run.regime), {}).setdefault(run.seed, []).append(run)
    return {
        key: Group(*key, tuple(run for of in seeds.values() for run in of), {s: pool(of) for s, of in seeds.items()})
        for key, seeds in found.items()
    }


def v100_hours(flops: float | None, facts: Mapping[str, Any]) -> float | None:
    """Hours on a V100 by the stated conversion, None without operations or conversion."""
    stated = facts.get("v100") or {}
    if flops is None or not stated.get("tflops") or not stated.get("share"):
        return None
    return flops / (float(stated["tflops"]) * 1e12 * float(stated["share"])) / 3600


def _with_pretraining(before: float | None, after: float | None) -> float | None:
    return None if after is None else (before or 0.0) + after


def _flags(entry: Mapping[str, Any], key: str) -> str:
    flags = entry.get(key) or ""
    return flags if isinstance(flags, str) else " ".join(str(flag) for flag in flags)
