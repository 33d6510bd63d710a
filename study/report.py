"""The report of a study: a verdict in plain words, one table, two pictures, and how it was all worked out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.bootstrap import DRAWS, HIGHER_IS_BETTER
from study.figures import cost_figure, differences_figure
from study.results import Run, read_results
from study.summary import ArmFacts, Group, group_runs, read_arms
from study.tables import main_table, write_differences, write_summary
from study.verdict import (
    Comparison,
    Control,
    compare_arms,
    further_hours,
    judge_controls,
    spread_from_blocks,
)
from study.words import METRIC_WORDS, decimals_for, finding, hours_words

REPORT = "report.md"
COST_FIGURE = "score-cost.png"
DIFFERENCES_FIGURE = "differences.png"

_DPI = 150


@dataclass(frozen=True, eq=False)
class Study:
    """All that a report is made of.

    Attributes:
        facts: of the plan, as the study wrote them.
        runs: what was run.
        arms: the arms.
        groups: their runs by arm, mode and share of labels.
        comparisons: differences of arms.
        controls: how the controls came out.
        draws: of each interval.
    """

    facts: Mapping[str, Any]
    runs: Sequence[Run]
    arms: Sequence[ArmFacts]
    groups: Sequence[Group]
    comparisons: Sequence[Comparison]
    controls: Sequence[Control]
    draws: int

    @property
    def metric(self) -> str:
        """Name of the headline number."""
        return self.runs[0].metric

    @property
    def unit(self) -> str:
        """The headline number in words."""
        units = self.facts.get("units")
        return METRIC_WORDS[self.metric] + (f", {units}" if units and self.metric == "rmse" else "")

    @property
    def decimals(self) -> int:
        """Decimals of scores."""
        return decimals_for(self.metric, [group.mean for group in self.groups])

    @property
    def asked(self) -> list[Comparison]:
        """Comparisons that answer a question: not those of controls."""
        return [of for of in self.comparisons if of.arm.role != "null"]

    @property
    def seconds(self) -> str:
        """What seconds of training are."""
        on_cpu = str(self.facts.get("device") or "cpu").startswith("cpu")
        return "CPU seconds" if on_cpu else f"seconds on {self.facts['device']}"


def build_report(
    results_path: Path, facts: Mapping[str, Any], out_dir: Path, *, draws: int = DRAWS, seed: int = 0
) -> Path:
    """Writes report.md, two pictures, summary.csv and differences.csv from a table of results.

    Args:
        results_path: the table, as `results.write_results` writes it.
        facts: of the plan; all of them may be missing.
        out_dir: gets the files; made if it is not there.
        draws: of each interval.
        seed: of the draws.

    Returns:
        The report.

    Raises:
        FileNotFoundError: no such table.
        ValueError: a damaged or empty table, or arms that make no sense.
    """
    study = open_study(results_path, facts, draws=draws, seed=seed)
    out_dir.mkdir(parents=True, exist_ok=True)
    figure = cost_figure(study.arms, study.groups, metric=study.unit, seconds=study.seconds)
    figure.savefig(out_dir / COST_FIGURE, dpi=_DPI)
    differences_figure(study.comparisons, metric=study.unit).savefig(out_dir / DIFFERENCES_FIGURE, dpi=_DPI)
    write_summary(out_dir / "summary.csv", study.arms, study.groups, facts=facts)
    write_differences(out_dir / "differences.csv", study.comparisons)
    path = out_dir / REPORT
    path.write_text(report_text(study))
    return path


def open_study(results_path: Path, facts: Mapping[str, Any], *, draws: int = DRAWS, seed: int = 0) -> Study:
    """Reads and compares everything; see `build_report`."""
    runs = read_results(results_path)
    if not runs:
        raise ValueError(f"{results_path}: no run in it, expected one at least; let the study finish a run first")
    arms = read_arms(facts, runs)
    groups = group_runs(runs, arms)
    comparisons = compare_arms(arms, groups, draws=draws, seed=seed)
    controls = judge_controls(arms, groups, comparisons, draws=draws, seed=seed)
    return Study(facts, runs, arms, list(groups.values()), comparisons, controls, draws)


def report_text(study: Study) -> str:
    """The report as Markdown."""
    title = study.facts.get("title")
    heading = "# Is multi-scale pre-training worth its cost?" + (f" {title}" if title else "")
    table = main_table(study.arms, study.groups, study.comparisons, facts=study.facts, decimals=study.decimals)
    parts = [
        [heading, "", *_warnings(study), _first_line(study)],
        ["## Verdict", "", *_verdict(study)],
        ["## All arms", "", *table, "", *_table_notes(study)],
        ["## Pictures", "", *_pictures(study)],
        ["## Controls", "", *_controls(study)],
        ["## How it was worked out", "", *_method(study)],
        ["## What was not finished", "", *_unfinished(study)],
        ["## Hardware and commands", "", *_hardware(study)],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _warnings(study: Study) -> list[str]:
    lines = []
    for control in (of for of in study.controls if of.passed is False):
        meaning = {
            "null": "Two identical arms came out different: the intervals are too narrow. Trust no verdict below.",
            "leak": "An arm that was given the answers does not win: something in training or scoring is wrong. Trust "
            "no verdict below.",
        }[control.role]
        lines += [f"> **WARNING: the control '{control.arm}' failed.** {meaning} {control.text}", ""]
    return lines


def _first_line(study: Study) -> str:
    asked = study.asked
    decided = [of for of in asked if of.difference.word != "undecided"]
    if not asked:
        return "**Nothing can be said yet: no two arms that are to be compared have been run.**"
    by_seeds = [of for of in asked if of.advice is not None and of.advice.by == "seeds"]
    hours = further_hours(asked)
    if decided:
        first = f"**{len(decided)} of {len(asked)} comparisons are decided, {len(asked) - len(decided)} are not.**"
    else:
        first = f"**Nothing is decided: the interval of every one of {len(asked)} comparisons includes zero.**"
    if by_seeds:
        cost = f", {hours_words(hours)} of training" if hours else ""
        first += f" Further seeds would decide about {len(by_seeds)} more{cost}."
        nearest = min(by_seeds, key=lambda of: of.advice.further_hours or math.inf if of.advice else math.inf)
        if nearest.advice and nearest.advice.further_hours is not None and len(by_seeds) > 1:
            first += f" The nearest needs {hours_words(nearest.advice.further_hours)}."
    elif len(decided) < len(asked):
        first += " No number of further hours on the same ground is expected to decide the rest."
    return first


def _verdict(study: Study) -> list[str]:
    lines = []
    for of in study.arms:
        found = [comparison for comparison in study.asked if comparison.arm is of]
        if not found:
            continue
        rival = "the best network" if found[0].chosen else f"`{of.against}`"
        pair = f"`{of.name}` against {rival}"
        lines += [f"### {of.question or 'What does ' + of.name + ' change?'}", "", _what_for(study, of, pair), ""]
        lines += [f"- {finding(comparison, study.decimals, study.unit)}" for comparison in found] + [""]
    lines.append(
        "A difference whose interval includes zero is called undecided: it may be either way, or nothing. What would "
        "decide it is extrapolated from the spread observed, as if the difference stayed as it is; take it as an order "
        "of magnitude."
    )
    return lines


def _what_for(study: Study, arm: ArmFacts, pair: str) -> str:
    if not arm.as_long_as:
        return f"{pair}."
    ratios = []
    for group in (of for of in study.groups if of.arm == arm.name):
        twin = next(
            (
                of
                for of in study.groups
                if (of.arm, of.mode, of.fraction) == (arm.as_long_as, group.mode, group.fraction)
            ),
            None,
        )
        if twin is not None and twin.seconds and group.seconds is not None:
            ratios.append(group.seconds / twin.seconds)
    if not ratios:
        return f"{pair}; trained as long as `{arm.as_long_as}`, which cannot be checked: its costs are not there."
    span = f"{min(ratios):.2f}" if max(ratios) - min(ratios) < 0.01 else f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"{pair}; meant to be trained as long as `{arm.as_long_as}`, and trained {span} times as long."


def _table_notes(study: Study) -> list[str]:
    better = "higher is better" if HIGHER_IS_BETTER[study.metric] else "lower is better"
    stated = study.facts.get("v100") or {}
    v100 = "V100 hours are not given: no conversion was stated."
    if stated.get("tflops") and stated.get("share"):
        why = f" ({stated['why']})" if stated.get("why") else ""
        v100 = (
            f"V100 hours are operations over {stated['tflops']:g} TFLOP/s times a share of {stated['share']:g} that a "
            f"real run reaches{why}; no V100 was timed."
        )
    return [
        f"Score: {study.unit}, {better}, of all test blocks pooled over folds, mean over seeds. Difference: above zero "
        "the arm is better than the one named, whatever the score. Costs are those of one model: pre-training and "
        f"fine-tuning in one fold, {study.seconds}, means over runs; memory is the most of any run. A PFLOP is 10^15 "
        f"operations of the network, as counted. {v100}"
    ]


def _pictures(study: Study) -> list[str]:
    left_out = [arm.name for arm in study.arms if arm.role == "leak"]
    unpriced = sum(not group.seconds for group in study.groups)
    notes = f" Left out, for what it reaches would flatten all else: {', '.join(left_out)}." if left_out else ""
    notes += f" Rows of the table without a training time, not drawn: {unpriced}." if unpriced else ""
    return [
        f"![score against cost]({COST_FIGURE})",
        "",
        "Score against training cost. Every run is a small mark, a fold of one seed; large marks are the means of the "
        f"table.{notes}",
        "",
        f"![differences]({DIFFERENCES_FIGURE})",
        "",
        "Differences with their 95 % intervals; ticks are single seeds. The same numbers are in `differences.csv`, "
        "those of the table in `summary.csv`.",
    ]


def _controls(study: Study) -> list[str]:
    if not study.controls:
        return ["No control was run: nothing here tells whether the intervals are wide enough."]
    words = {True: "passed", False: "FAILED", None: "not judged"}
    return [f"- **{words[of.passed]}**: {of.text}" for of in study.controls]


def _method(study: Study) -> list[str]:
    blocks = study.facts.get("blocks") or len({block for run in study.runs for block in run.blocks.tolist()})
    seeds = _number(study.facts.get("seeds")) or max(len(group.seeds) for group in study.groups)
    folds = _number(study.facts.get("folds")) or len({run.fold for run in study.runs})
    compared = len(study.asked)
    share = spread_from_blocks(study.comparisons)
    lines = [
        f"- **Blocks, not pixels.** Labelled ground is cut into {blocks} spatial blocks, and these are what counts as "
        "independent: neighbouring pixels repeat each other. Each block is tested in one fold only.",
        f"- **Runs.** {folds} folds and {seeds} seeds. A score pools the blocks of all folds of a seed.",
        f"- **Differences are paired.** Both arms are scored on the same blocks and with the same seeds. {study.draws} "
        "times, blocks are drawn with replacement and seeds are drawn with replacement, one fewer than there are; the "
        "interval holds the middle 95 % of the differences, widened by Student's t for the small number of both.",
        f"- **Many comparisons.** {compared} were made. At 95 %, about {0.05 * compared:.1f} of them would come out "
        "decided by chance alone if no arm differed from any other.",
        "- **Pre-training saw all ground**, that of the test blocks too, but no labels. The folds share training "
        "ground, so that their scores are not independent of each other; a new area would be a harder test.",
        "- **Few seeds.** Intervals from few seeds are rough, even widened.",
    ]
    if math.isfinite(share):
        lines.append(
            f"- **Where the spread comes from.** Of the variance of a difference, {100 * share:.0f} % (median) is from "
            "which blocks there are, the rest from seeds. Seeds can be added at will, ground cannot."
        )
    if study.metric == "roc_auc":
        lines.append("- ROC-AUC ranks windows of all folds together, though each fold has a model of its own.")
    return lines + [f"- {note}" for note in study.facts.get("notes") or []]


def _unfinished(study: Study) -> list[str]:
    planned, done = study.facts.get("planned"), study.facts.get("done")
    done = len(study.runs) if done is None else done
    lines = [] if planned is None else [f"- {done} of {planned} planned runs are done."]
    spent, budget = study.facts.get("spent_s"), study.facts.get("budget_s")
    if spent is not None and budget is not None:
        lines.append(f"- {hours_words(spent / 3600)} of a budget of {hours_words(budget / 3600)} is spent.")
    run = {group.arm for group in study.groups}
    missing = [arm.name for arm in study.arms if arm.name not in run]
    if missing:
        lines.append(f"- Without any run: {', '.join(missing)}.")
    compared = {comparison.arm.name for comparison in study.comparisons}
    alone = [arm for arm in study.arms if arm.against and arm.name in run and arm.name not in compared]
    lines += [
        f"- {of.name} could not be compared: {of.against} has no runs alike." for of in alone if of.role != "leak"
    ]
    return lines or ["Nothing is known to be missing."]


def _hardware(study: Study) -> list[str]:
    facts = study.facts
    shown = [
        f"- {name}: {facts[name]}" for name in ("task", "device", "threads", "precision") if facts.get(name) is not None
    ]
    versions = facts.get("versions")
    if versions:
        listed = (
            ", ".join(f"{name} {of}" for name, of in versions.items()) if isinstance(versions, Mapping) else versions
        )
        shown.append(f"- versions: {listed}")
    flags = []
    for arm in study.arms:
        stages = {"pre-training": arm.pretrain, "fine-tuning": arm.finetune}
        given = "; ".join(f"{stage} `{of}`" for stage, of in stages.items() if of)
        flags += [f"- `{arm.name}`: {given}"] if given else []
    if flags:
        shown += ["", "Flags of the arms:", "", *flags]
    if facts.get("commands"):
        shown += ["", "```", *facts["commands"], "```"]
    return shown or ["Not recorded."]


def _number(value: Any) -> int:
    """A count that is given as such or as a list."""
    return len(value) if isinstance(value, Sequence) and not isinstance(value, str) else int(value or 0)
