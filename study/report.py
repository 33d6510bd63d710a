"""The report of a study: a verdict in plain words, one table, two pictures, and how it was all worked out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from study.bootstrap import DRAWS, HIGHER_IS_BETTER
from study.figures import cost_figure, differences_figure
from study.findings import Findings, gather_findings
from study.plan import FINETUNE_WINDOWS, PRETRAIN_TILES
from study.readouts import SAME_WORK
from study.summary import ArmFacts
from study.tables import (
    break_even_table,
    lengths_table,
    main_table,
    reach_table,
    write_differences,
    write_readouts,
    write_summary,
)
from study.verdict import MOST_SEEDS, Comparison, further_hours, most_seeds_needed, spread_from_blocks
from study.words import TRAINING_ALONE, finding, hours_words, in_short
from util.hardware.system import written_whole

REPORT = "report.md"
COST_FIGURE = "score-cost.png"
DIFFERENCES_FIGURE = "differences.png"

_DPI = 150

_AGREES = 0.005
"""Difference of two ways to work out a score that is taken for rounding, such as that of ranks in bins."""

_LEFT = {
    "seeds": "Further seeds would decide about {count} of these{cost}: `--seeds {most}` is the most that any of them "
    "needs, and runs all arms.",
    "ground": "{count} cannot be decided by further seeds, only by more labelled ground{folds}.",
    "beyond": f"{{count}} would take more than {MOST_SEEDS} seeds.",
    "more": "{count} have too few seeds or blocks to say what they need: three seeds and two blocks at least.",
    "nothing": "{count} show no difference at all.",
}
"""What undecided comparisons need, by the kind of advice."""


def build_report(
    results_path: Path, facts: Mapping[str, Any], out_dir: Path, *, draws: int = DRAWS, seed: int = 0
) -> Path:
    """Writes report.md, two pictures, summary.csv, differences.csv and readouts.csv from a table of results.

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
    study = gather_findings(results_path, facts, draws=draws, seed=seed)
    out_dir.mkdir(parents=True, exist_ok=True)
    figure = cost_figure(study.arms, study.groups, metric=study.unit, seconds=study.seconds)
    differences = differences_figure(study.comparisons, metric=study.unit)
    for picture, name in ((figure, COST_FIGURE), (differences, DIFFERENCES_FIGURE)):
        with written_whole(out_dir / name) as waiting:
            picture.savefig(waiting, dpi=_DPI)
    write_summary(out_dir / "summary.csv", study.arms, study.groups, facts=facts)
    write_readouts(
        out_dir / "readouts.csv",
        study.groups,
        lengths=study.lengths,
        times=study.reach_times,
        evens=study.break_evens,
    )
    write_differences(out_dir / "differences.csv", study.comparisons)
    path = out_dir / REPORT
    with written_whole(path) as waiting:
        waiting.write_text(report_text(study), encoding="utf-8")
    return path


def report_text(study: Findings) -> str:
    """The report as Markdown."""
    title = study.facts.get("title")
    heading = "# Is multi-scale pre-training worth its cost?" + (f" {title}" if title else "")
    table = main_table(
        study.arms,
        study.groups,
        study.comparisons,
        facts=study.facts,
        decimals=study.decimals,
        not_converged=study.not_converged,
    )
    parts = [
        [heading, "", *_warnings(study), *_disagrees(study), _first_line(study)],
        ["## Verdict", "", *_verdict(study)],
        ["## All arms", "", *table, "", *_table_notes(study)],
        *([["## Length of the fits", "", *_lengths(study)]] if study.curves else []),
        ["## When pre-training pays", "", *_pays(study)],
        ["## Pictures", "", *_pictures(study)],
        ["## Controls", "", *_controls(study)],
        ["## How it was worked out", "", *_method(study)],
        ["## What was not finished", "", *_unfinished(study)],
        ["## Hardware and commands", "", *_hardware(study)],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _warnings(study: Findings) -> list[str]:
    lines = []
    for control in (of for of in study.controls if of.passed is False):
        meaning = {
            "null": f"Two arms that differ in their seeds alone came out different in {control.failed} of "
            f"{control.compared} comparisons. Of {control.compared}, about one in twenty does so by chance. If it "
            "happens again with other seeds, the intervals are too narrow, and the verdicts below say too much.",
            "leak": "An arm that was given the answers does not win: something in training or scoring is wrong. Trust "
            "no verdict below.",
        }[control.role]
        lines += [f"> **WARNING: the control '{control.arm}' failed.** {meaning} {control.text}", ""]
    return lines


def _disagrees(study: Findings) -> list[str]:
    """A warning if the blocks do not give the program's own scores."""
    largest = max((abs(group.mean) for group in study.groups if group.scores), default=1.0)
    if study.disagreement <= _AGREES * (largest if study.metric == "rmse" else 1.0):
        return []
    return [
        f"> **WARNING: scores worked out from the blocks differ from the program's own by {study.disagreement:.2g}.** "
        "The blocks do not hold all that was tested, or are counted twice.",
        "",
    ]


def _first_line(study: Findings) -> str:
    """How much is decided, and what the rest would take."""
    asked = study.asked
    if not asked:
        return "**Nothing can be said yet: no two arms that are to be compared have been run.**"
    decided = [of for of in asked if of.difference.word != "undecided"]
    if len(decided) == len(asked):
        return f"**All comparisons are decided: {len(asked)} of {len(asked)}.**"
    if decided:
        first = f"**{len(decided)} of {len(asked)} comparisons are decided, {len(asked) - len(decided)} are not.**"
    else:
        first = f"**Nothing is decided: none of {len(asked)} comparisons.**"
    left = {by: sum(of.advice is not None and of.advice.by == by for of in asked) for by in _LEFT}
    hours = further_hours(asked)
    cost = f", in {hours_words(hours)} of training, {TRAINING_ALONE}" if hours else ""
    words = {"cost": cost, "most": most_seeds_needed(asked), "folds": _folds_words(study)}
    return " ".join([first, *(_LEFT[by].format(count=count, **words) for by, count in left.items() if count)])


def _folds_words(study: Findings) -> str:
    """How many comparisons may be decided by the folds that were left out, with a comma before; empty without any."""
    every, run = (study.facts.get(name) or 0 for name in ("blocks_in_all", "blocks"))
    if every <= run:
        return ""
    within = sum(of.advice is not None and of.advice.by == "ground" and of.advice.blocks <= every for of in study.asked)
    return f", {within} of them by about as much as the folds that were not run hold (`--only_folds`)"


def _verdict(study: Findings) -> list[str]:
    found = {arm.name: _by_rival(study, arm) for arm in study.arms}
    asked = [arm for arm in study.arms if found[arm.name]]
    lines = (
        ["In short (a setting is a choice of labels with a way of fine-tuning):", ""]
        if asked
        else ["There is nothing to compare yet.", ""]
    )
    for arm in asked:
        for rival, comparisons in found[arm.name].items():
            said = in_short(comparisons, study.decimals, study.unit)
            pair, question = f"{_named(study, arm.name)} against {rival}", _heading(arm, comparisons)
            lines.append(f"- {f'{question} ({pair})' if question else pair}: **{said}**.")
    for role, title in (("", ""), ("switch", "### Further switches, each against the default")):
        arms = [arm for arm in asked if arm.role == role]
        lines += ["", title] if title and arms else []
        for arm in arms:
            level = "####" if title else "###"
            for number, (rival, comparisons) in enumerate(found[arm.name].items()):
                pair = f"{_named(study, arm.name)} against {rival}"
                if not number:
                    lines += ["", f"{level} {_heading(arm, comparisons) or pair}"]
                lines += ["", f"{pair}{_equal_time(study, arm)}.", ""]
                for of in comparisons:
                    lines.append(f"- {finding(of, study.decimals, study.unit, study.not_converged)}")
    return [
        *lines,
        "",
        "A difference whose interval includes zero is called undecided: it may be either way, or nothing; so is one "
        "from fewer than three seeds or two blocks. What would decide it is extrapolated from the spread observed, as "
        "if the difference stayed as it is; take it as an order of magnitude. Hours are those of training the arms "
        f"compared, {TRAINING_ALONE}.",
    ]


def _by_rival(study: Findings, arm: ArmFacts) -> dict[str, list[Comparison]]:
    """The comparisons of an arm by the name of the other one."""
    found: dict[str, list[Comparison]] = {}
    for of in study.asked:
        if of.arm is arm:
            rival = "the best network" if of.chosen else _named(study, of.second.arm)
            found.setdefault(rival, []).append(of)
    return found


def _heading(arm: ArmFacts, comparisons: Sequence[Comparison]) -> str:
    if arm.question:
        return arm.question
    return "What do trees reach without any network?" if comparisons[0].chosen else ""


def _named(study: Findings, arm: str) -> str:
    """An arm, and that it did not converge if so."""
    return f"`{arm}` (not converged)" if arm in study.not_converged else f"`{arm}`"


def _equal_time(study: Findings, arm: ArmFacts) -> str:
    """How an arm's training time compares with the one it is meant to have; empty if none."""
    if not arm.as_long_as:
        return ""
    seconds = {(of.arm, of.mode, of.regime): of.seconds for of in study.groups}
    ratios = [
        of.seconds / twin
        for of in study.groups
        if of.arm == arm.name and of.seconds and (twin := seconds.get((arm.as_long_as, of.mode, of.regime)))
    ]
    if not ratios:
        return f"; meant to be trained as long as `{arm.as_long_as}`, which cannot be checked: its costs are not there"
    span = f"{min(ratios):.2f}" if max(ratios) - min(ratios) < 0.01 else f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"; meant to be trained as long as `{arm.as_long_as}`, and trained {span} times as long"


def _table_notes(study: Findings) -> list[str]:
    better = "higher is better" if HIGHER_IS_BETTER[study.metric] else "lower is better"
    stated = study.facts.get("v100") or {}
    v100 = "V100 hours are not given: no conversion was stated."
    if stated.get("tflops") and stated.get("share"):
        why = f" ({stated['why']})" if stated.get("why") else ""
        v100 = (
            f"V100 hours are operations over {stated['tflops']:g} TFLOP/s times a share of {stated['share']:g} that a "
            f"real run reaches{why}; no V100 was timed."
        )
    memory = "memory is the most of any run"
    if study.on_cpu:
        memory += " (on a CPU, the peak of its process: later folds and the probe inherit that of earlier ones)"
    return [
        f"Score: {study.unit}, {better}, of all test blocks pooled over folds, mean over seeds. Mode: `full` "
        "trains all weights, `probe` a linear layer on a frozen encoder. Difference: above zero "
        "the arm is better than the one named, whatever the score. Costs are those of one model: pre-training and "
        f"fine-tuning in one fold, {study.seconds}, means over runs; {memory}. Operations are "
        f"those of the network, as counted, in units of 10^9 (G), 10^12 (T) or 10^15 (P). {v100}"
    ]


def _lengths(study: Findings) -> list[str]:
    """Whether fits stopped improving within the greatest length."""
    lengths = study.lengths
    open_ended = sum(of.at_greatest or 0 for of in lengths)
    fits = sum(of.fits for of in lengths if of.at_greatest is not None)
    said = "All fits that could end early did: they stopped improving in validation."
    if open_ended:
        said = (
            f"**{open_ended} of {fits} fits trained up to the greatest length without converging**, and longer "
            "training may still change their scores. A longer `--finetune_epochs` would show it."
        )
    return [
        *([said, ""] if fits else []),
        *lengths_table(lengths),
        "",
        f"A fit ends when its score on validation blocks has not improved for {study.facts.get('patience', 'some')} "
        "epochs and its rate has fallen since; it keeps its best weights. Validation blocks are half the test blocks "
        "of the next fold. Times and operations count all epochs, those after the best one too, without validation. "
        "Fits of fixed length get the time of another arm: they are validated alike and keep their best weights, but "
        "train all their epochs.",
    ]


def _pays(study: Findings) -> list[str]:
    """Time to the score of trees, and how many models must share a pre-training."""
    times, evens = study.reach_times, study.break_evens
    lines = ["### Time to the score of trees", ""]
    if times:
        trees = next(iter(times.values())).trees
        lines += [
            *reach_table(times),
            "",
            f"Training, pre-training included, up to the first epoch whose score on validation blocks is at least that "
            f"of `{trees}` of the same seed and fold there: the median over fits, of which those that never reach it "
            "count as infinitely slow. The rate is still constant at most of these epochs, so that fits planned for "
            "that time would score a little higher.",
        ]
    elif study.curves:
        lines.append("Not available: no trees with the same labels, seeds and folds were scored on validation blocks.")
    else:
        lines.append(
            "Not available: fits were not validated, so that nothing is known of their scores before their ends. "
            "`--patience` validates them, and scores trees on the same blocks."
        )
    lines += ["", "### How many models must share a pre-training", ""]
    if not evens:
        return [*lines, "Not available: it takes the costs and scores of an arm with pre-training and of one without."]
    return [
        *lines,
        *break_even_table(study.groups, evens),
        "",
        "From so many models on, pre-training divided by their number plus fine-tuning takes less time for each than "
        "the shortest training from scratch that scores at least as well; it may do so in less time than was tried, "
        "so that more models may be needed. Never: training from scratch reaches the score in no more time than "
        f"fine-tuning takes, give or take {100 * (SAME_WORK - 1):.0f} %, as times of the same work vary. At most: no "
        "training from scratch that was tried reaches the score, so that fewer models may do. Scores are means, "
        "whatever their intervals; models share a pre-training if they differ in labels, not in layers and area.",
    ]


def _pictures(study: Findings) -> list[str]:
    left_out = [arm.name for arm in study.arms if arm.role == "leak"]
    unpriced = sum(not group.seconds for group in study.groups)
    notes = f" Left out, for what it reaches would flatten all else: {', '.join(left_out)}." if left_out else ""
    notes += f" Rows of the table without a training time, not drawn: {unpriced}." if unpriced else ""
    return [
        f"![score against cost]({COST_FIGURE})",
        "",
        "Score against training cost. Every run is a small mark, a fold of one seed; rings are the means of the "
        f"table. Of switches and of the twin of the control, small marks are hollow and rings dashed.{notes}",
        "",
        f"![differences]({DIFFERENCES_FIGURE})",
        "",
        "Differences with their 95 % intervals; ticks are single seeds. Every panel has an axis of its own; what "
        "reaches much further than the rest is below, apart. The same numbers are in `differences.csv`, "
        "those of the table in `summary.csv`.",
    ]


def _controls(study: Findings) -> list[str]:
    if not study.controls:
        return ["No control was run: nothing here tells whether the intervals are wide enough."]
    words = {True: "passed", False: "FAILED", None: "not judged"}
    return [f"- **{words[of.passed]}**: {of.text}" for of in study.controls]


def _method(study: Findings) -> list[str]:
    blocks = study.facts.get("blocks") or len({block for run in study.runs for block in run.blocks.tolist()})
    seeds = _number(study.facts.get("seeds")) or max(len(group.seeds) for group in study.groups)
    folds = _number(study.facts.get("folds")) or len({run.fold for run in study.runs})
    every = study.facts.get("blocks_in_all") or blocks
    tested = f" {blocks} of them, those of {folds} of {study.facts.get('folds_in_all')} folds, were tested."
    compared = len(study.asked)
    share = spread_from_blocks(study.comparisons)
    lines = [
        f"- **Blocks, not pixels.** Labelled ground is cut into {every} spatial blocks, and these are what counts as "
        "independent: neighbouring pixels repeat each other. Each block is tested in one fold only."
        f"{tested if every > blocks else ''}",
        f"- **Runs.** Folds: {folds}; seeds: {seeds}. A score pools the blocks of all folds of a seed.",
        f"- **Differences are paired.** Both arms are scored on the same blocks and with the same seeds. {study.draws} "
        "times, blocks are drawn with replacement and seeds are drawn with replacement, one fewer than there are; the "
        "interval holds the middle 95 % of the differences, widened by Student's t for the small number of both.",
        f"- **Many comparisons.** {compared} were made. At 95 %, about {0.05 * compared:.1f} of them would come out "
        "decided by chance alone if no arm differed from any other.",
        "- **Pre-training saw all ground**, that of the test blocks too, but no labels. The folds share training "
        "ground, so that their scores are not independent of each other; a new area would be a harder test.",
        "- **Few seeds.** Intervals from few seeds are rough, even widened; fewer than three seeds decide nothing.",
        *_epochs(study),
    ]
    if math.isfinite(share):
        lines.append(
            f"- **Where the spread comes from.** Of the variance of a difference, {100 * share:.0f} % (median) is from "
            "which blocks there are, the rest from seeds. Seeds can be added at will, ground cannot."
        )
    lines.append(
        f"- **Checked.** Scores of folds, worked out again from the blocks, differ from those that the program gave by "
        f"{study.disagreement:.2g} at most."
    )
    if study.metric == "roc_auc":
        lines.append("- ROC-AUC ranks windows of all folds together, though each fold has a model of its own.")
    notes = study.facts.get("notes") or []
    return lines + [f"- {note}" for note in ([notes] if isinstance(notes, str) else notes)]


def _epochs(study: Findings) -> list[str]:
    """How long each arm was trained, to repeat any of them; nothing if it is not known."""
    known = [(study.facts.get("lengths") or {}).get(stage) or {} for stage in ("pretrain", "finetune")]
    if not any(known):
        return []
    lines = []
    for arm in study.arms:
        words = [
            f"{of[arm.name]} of {stage}"
            for stage, of in zip(("pre-training", "fine-tuning"), known, strict=True)
            if arm.name in of
        ]
        lines += [f"`{arm.name}` {' and '.join(words)}"] if words else []
    return [
        f"- **Epochs**, of {PRETRAIN_TILES:,} tiles in pre-training and of {FINETUNE_WINDOWS:,} windows in "
        f"fine-tuning: {'; '.join(lines)}."
    ]


def _unfinished(study: Findings) -> list[str]:
    planned, done = study.facts.get("planned"), study.facts.get("done")
    done = len(study.runs) if done is None else done
    lines = [] if planned is None else [f"- {done} of {planned} planned runs are done."]
    spent = study.facts.get("spent_s")
    if spent is not None:
        side = "" if study.facts.get("jobs") == 1 else " (several at a time)"
        lines.append(f"- Programs ran {hours_words(spent / 3600)} in all{side}.")
    failed = study.facts.get("failed") or {}
    lines += [f"- Failed: {name}: {said}" for name, said in failed.items()]
    run = {group.arm for group in study.groups}
    missing = [arm.name for arm in study.arms if arm.name not in run]
    if missing:
        lines.append(f"- Without any run: {', '.join(missing)}.")
    compared = {(of.arm.name, of.second.arm) for of in study.comparisons}
    asked = [(arm.name, rival) for arm in study.arms if arm.role != "leak" for rival in arm.against]
    alone = [pair for pair in asked if pair[0] in run and pair not in compared]
    lines += [f"- {name} could not be compared: {rival} has no runs alike." for name, rival in alone]
    return lines or ["Nothing is known to be missing."]


def _hardware(study: Findings) -> list[str]:
    facts = study.facts
    shown = [
        f"- {name}: {facts[name]}"
        for name in ("task", "device", "jobs", "threads", "precision")
        if facts.get(name) is not None
    ]
    if facts.get("classes"):
        shown.append(f"- classes: {', '.join(str(name) for name in facts['classes'])}")
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
