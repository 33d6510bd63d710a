"""A study as a report needs it: its results read, gathered, compared and judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.bootstrap import DRAWS, pool
from study.curves import CURVES, Curve, read_curves
from study.readouts import BreakEven, FitLengths, ReachTime, break_evens, fit_lengths, not_converged, reach_times
from study.results import Run, read_results
from study.summary import ArmFacts, Group, Key, group_runs, read_arms
from study.verdict import Comparison, Control, compare_arms, judge_controls
from study.words import METRIC_WORDS, decimals_for


@dataclass(frozen=True, eq=False)
class Findings:
    """All that a report is made of.

    Attributes:
        facts: of the plan, as the study wrote them.
        runs: what was run.
        arms: the arms.
        groups: their runs by arm, mode and regime of labels.
        comparisons: differences of arms.
        controls: how the controls came out.
        draws: of each interval.
        curves: of the fits that were validated.
    """

    facts: Mapping[str, Any]
    runs: Sequence[Run]
    arms: Sequence[ArmFacts]
    groups: Sequence[Group]
    comparisons: Sequence[Comparison]
    controls: Sequence[Control]
    draws: int
    curves: Sequence[Curve] = ()

    @property
    def reach_times(self) -> dict[Key, ReachTime]:
        """Time to the score of trees, by arm, mode and regime of labels; empty if fits were not validated."""
        return reach_times(self.arms, self.groups, self.curves)

    @property
    def break_evens(self) -> dict[Key, BreakEven]:
        """How many models must share a pre-training, likewise."""
        return break_evens(self.arms, self.groups)

    @property
    def lengths(self) -> list[FitLengths]:
        """Lengths of the fits that were validated, in the order of `groups`."""
        planned = self.facts.get("lengths") or {}
        # An arm that gets another one's time for its fine-tuning has no pre-training; its length is fixed.
        fixed = {arm.name for arm in self.arms if arm.as_long_as and arm.name not in (planned.get("pretrain") or {})}
        found: dict[Key, list[Curve]] = {}
        for of in self.curves:
            found.setdefault((of.arm, of.mode, of.regime), []).append(of)
        return [
            fit_lengths(
                found[key],
                greatest=None if group.arm in fixed else (planned.get("finetune") or {}).get(group.arm),
            )
            for group in self.groups
            if group.mode != "trees" and (key := (group.arm, group.mode, group.regime)) in found
        ]

    @property
    def not_converged(self) -> frozenset[str]:
        """Names of arms too many of whose fits trained up to the greatest length."""
        return not_converged(self.lengths)

    @property
    def metric(self) -> str:
        """Name of the headline number."""
        return self.runs[0].metric

    @property
    def unit(self) -> str:
        """The headline number in words."""
        return headline_words(self.metric, self.facts)

    @property
    def decimals(self) -> int:
        """Decimals of scores."""
        return decimals_for(self.metric, [group.mean for group in self.groups])

    @property
    def asked(self) -> list[Comparison]:
        """Comparisons that answer a question: not those of controls."""
        return [of for of in self.comparisons if of.arm.role != "null"]

    @property
    def disagreement(self) -> float:
        """Largest difference between a fold's score as the program gave it and as its blocks give it."""
        pairs = [(run.score, pool([run]).score()) for run in self.runs]
        return max((abs(a - b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)), default=0.0)

    @property
    def on_cpu(self) -> bool:
        """Time is the processor's, or no other device is named."""
        return is_on_cpu(self.facts)

    @property
    def seconds(self) -> str:
        """What seconds of training are."""
        return seconds_words(self.facts)


def headline_words(metric: str, facts: Mapping[str, Any]) -> str:
    """A headline number in words, with its units."""
    units = facts.get("units")
    return METRIC_WORDS[metric] + (f", {units}" if units and metric == "rmse" else "")


def is_on_cpu(facts: Mapping[str, Any]) -> bool:
    """Whether a study's time is the processor's, or no other device is named."""
    return facts.get("seconds") == "cpu_seconds" or str(facts.get("device") or "cpu").startswith("cpu")


def seconds_words(facts: Mapping[str, Any]) -> str:
    """What the seconds of a study are."""
    if is_on_cpu(facts):
        return "seconds of the processor"
    return f"seconds on {facts['device']}" if facts.get("device") else "seconds"


def gather_findings(results_path: Path, facts: Mapping[str, Any], *, draws: int = DRAWS, seed: int = 0) -> Findings:
    """Reads a table of results, with the curves beside it if there are any, and compares all that its arms ask for.

    Args:
        results_path: the table, as `results.write_results` writes it.
        facts: of the plan; all of them may be missing.
        draws: of each interval.
        seed: of the draws.

    Raises:
        FileNotFoundError: no such table.
        ValueError: a damaged or empty table, damaged curves, or arms that make no sense.
    """
    runs = read_results(results_path)
    if not runs:
        raise ValueError(f"{results_path}: no run in it, expected one at least; let the study finish a run first")
    curves = read_curves(results_path.with_name(CURVES))
    arms = read_arms(facts, runs)
    groups = group_runs(runs, arms)
    comparisons = compare_arms(arms, groups, draws=draws, seed=seed)
    controls = judge_controls(arms, groups, comparisons, draws=draws, seed=seed)
    return Findings(facts, runs, arms, list(groups.values()), comparisons, controls, draws, curves)
