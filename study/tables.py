"""The report's table, and the same as tidy CSV files."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from study.readouts import BreakEven, FitLengths, ReachTime
from study.regimes import BLOCKS, Regime
from study.results import COSTS
from study.summary import ArmFacts, Group, Key, v100_hours
from study.verdict import Comparison
from study.words import interval_words, labels_words
from util.hardware.system import written_whole

SUMMARY_COLUMNS = (
    *(
        "arm",
        "role",
        "mode",
        "label_fraction",
        BLOCKS,
        "runs",
        "seeds",
        "blocks",
        "metric",
        "score",
        "score_low",
        "score_high",
    ),
    *COSTS,
    "v100_hours",
)
READOUT_COLUMNS = (
    *("arm", "mode", "label_fraction", BLOCKS, "fits", "best_epoch", "epochs", "fits_at_bound"),
    *("reach_fits", "reached", "reach_s", "reach_finetune_s", "break_even", "models", "twin", "twin_s"),
)
DIFFERENCE_COLUMNS = (
    *(
        "arm",
        "role",
        "against",
        "mode",
        "against_mode",
        "label_fraction",
        BLOCKS,
        "metric",
        "difference",
        "low",
        "high",
    ),
    *("word", "seeds", "blocks", "var_blocks", "var_seeds", "share_from_blocks", "cost_ratio", "decided_by"),
    *("seeds_needed", "blocks_needed", "hours_needed", "hours_to_come", "notes"),
)


def main_table(
    arms: Sequence[ArmFacts],
    groups: Sequence[Group],
    comparisons: Sequence[Comparison],
    *,
    facts: Mapping[str, Any],
    decimals: int,
    not_converged: Collection[str] = (),
) -> list[str]:
    """Lines of the one Markdown table: every arm, mode and regime of labels."""
    name, size = _operations_unit([flops for group in groups if (flops := group.flops)])
    head = (
        *("arm", "mode", "labels", "score (lowest to highest seed)", "runs", "difference (95 % interval)"),
        *("training s, pre + fine", name, "V100 h", "memory MB", "tiles, pre + fine"),
    )
    found = {(of.first.arm, of.first.mode, of.first.regime): of for of in reversed(comparisons)}  # the first rival
    roles = {arm.name: arm.role for arm in arms}
    most = max((len(group.blocks) for group in groups), default=0)
    rows = []
    for group in groups:
        comparison = found.get((group.arm, group.mode, group.regime))
        flops = group.flops
        rows.append(
            (
                group.arm
                + (" [control]" if roles[group.arm] in ("null", "leak") else "")
                + (" [not converged]" if group.arm in not_converged else ""),
                group.mode,
                _labels(group.regime),
                _scores(group, decimals, blocks=most),
                str(len(group.runs)),
                _against(comparison, decimals),
                _sum_text(group, "s"),
                "-" if flops is None else f"{flops / size:.3g}",
                _short(v100_hours(flops, facts)),
                "-" if group.memory_mb is None else f"{group.memory_mb:.0f}",
                _sum_text(group, "tiles"),
            )
        )
    return _markdown(head, rows)


def _regime_cells(regime: Regime) -> dict[str, Any]:
    """The labels as cells of a file."""
    return {"label_fraction": regime.fraction, BLOCKS: regime.blocks or None}


def _labels(regime: Regime) -> str:
    """The labels in a cell of the report."""
    return labels_words(regime).replace(" of the labels", "").replace(" of labels", "").replace(" labels", "")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        for cells in (head, ["---"] * len(head), *rows)
    ]


def lengths_table(lengths: Sequence[FitLengths]) -> list[str]:
    """Lines of a Markdown table: where fits were best in validation, and whether they ended before their bound."""
    head = ("arm", "mode", "labels", "fits", "best epoch, median", "epochs trained, median", "fits of greatest length")
    rows = []
    for of in lengths:
        best = "-" if of.best_epoch is None else f"{of.best_epoch:g}"
        bound = "fixed length" if of.at_greatest is None else f"{of.at_greatest} of {of.fits}"
        rows.append((of.arm, of.mode, _labels(of.regime), str(of.fits), best, f"{of.epochs:g}", bound))
    return _markdown(head, rows)


def reach_table(times: Mapping[Key, ReachTime]) -> list[str]:
    """Lines of a Markdown table: how many fits reach the score of trees in validation, and after what time."""
    head = ("arm", "mode", "labels", "fits that reach it", "training s, median", "of fine-tuning alone")
    rows = [
        (arm, mode, _labels(regime), f"{of.reached} of {of.fits}", _seconds(of.seconds), _seconds(of.finetune_s))
        for (arm, mode, regime), of in times.items()
    ]
    return _markdown(head, rows)


def break_even_table(groups: Sequence[Group], evens: Mapping[Key, BreakEven]) -> list[str]:
    """Lines of a Markdown table: how many models must share a pre-training, and what that follows from."""
    head = ("arm", "labels", "training s, pre + fine", "compared with", "models that must share it")
    rows = []
    for group in groups:
        if even := evens.get((group.arm, group.mode, group.regime)):
            reaches = "" if even.word in ("from", "never") else ", which does not reach its score"
            twin = f"{even.twin}, {even.twin_s:,.0f} s{reaches}"
            rows.append((group.arm, _labels(group.regime), _sum_text(group, "s"), twin, even_words(even)))
    return _markdown(head, rows)


def even_words(even: BreakEven) -> str:
    """Such as `3 or more`."""
    if even.models is None:
        return {"never": "never, within the lengths tried", "unknown": "not known"}[even.word]
    return f"{even.models:,} or more" if even.word == "from" else f"{even.models:,} at most"


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "not reached"


def write_readouts(
    path: Path,
    groups: Sequence[Group],
    *,
    lengths: Sequence[FitLengths],
    times: Mapping[Key, ReachTime],
    evens: Mapping[Key, BreakEven],
) -> None:
    """Writes a row for each arm, mode and regime of labels of networks; cells of what is not known are empty."""
    by_key = {(of.arm, of.mode, of.regime): of for of in lengths}
    rows = []
    for group in (of for of in groups if of.mode != "trees"):
        key = (group.arm, group.mode, group.regime)
        row: dict[str, Any] = {"arm": group.arm, "mode": group.mode, **_regime_cells(group.regime)}
        if fits := by_key.get(key):
            row |= {"fits": fits.fits, "best_epoch": fits.best_epoch, "epochs": fits.epochs}
            row["fits_at_bound"] = fits.at_greatest
        if reach := times.get(key):
            row |= {"reach_fits": reach.fits, "reached": reach.reached}
            if math.isfinite(reach.seconds):
                row |= {"reach_s": reach.seconds, "reach_finetune_s": reach.finetune_s}
        if even := evens.get(key):
            row |= {"break_even": even.word, "models": even.models, "twin": even.twin, "twin_s": even.twin_s}
        rows.append(row)
    _write(path, READOUT_COLUMNS, [dict.fromkeys(READOUT_COLUMNS) | row for row in rows])


def write_summary(path: Path, arms: Sequence[ArmFacts], groups: Sequence[Group], *, facts: Mapping[str, Any]) -> None:
    """Writes a row for each arm, mode and regime of labels; costs are means over runs, memory the most of any."""
    roles = {arm.name: arm.role for arm in arms}
    rows = []
    for group in groups:
        costs = {name: group.cost(name) for name in COSTS} | {"peak_memory_mb": group.memory_mb}
        rows.append(
            {
                "arm": group.arm,
                "role": roles[group.arm],
                "mode": group.mode,
                **_regime_cells(group.regime),
                "runs": len(group.runs),
                "seeds": len(group.seeds),
                "blocks": len(group.blocks),
                "metric": group.runs[0].metric,
                "score": group.mean,
                "score_low": min(group.scores, default=None),
                "score_high": max(group.scores, default=None),
                **costs,
                "v100_hours": v100_hours(group.flops, facts),
            }
        )
    _write(path, SUMMARY_COLUMNS, rows)


def write_differences(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Writes a row for each comparison; `difference` is above zero where the first arm is better."""
    rows = []
    for comparison in comparisons:
        of, advice = comparison.difference, comparison.advice
        rows.append(
            {
                "arm": comparison.first.arm,
                "role": comparison.arm.role,
                "against": comparison.second.arm,
                "mode": comparison.first.mode,
                "against_mode": comparison.second.mode,
                **_regime_cells(comparison.first.regime),
                "metric": comparison.first.runs[0].metric,
                "difference": of.estimate,
                "low": of.low,
                "high": of.high,
                "word": of.word,
                "seeds": of.seeds,
                "blocks": of.blocks,
                "var_blocks": of.var_blocks,
                "var_seeds": of.var_seeds,
                "share_from_blocks": of.block_share,
                "cost_ratio": comparison.cost_ratio,
                "decided_by": advice.by if advice else "",
                "seeds_needed": advice.seeds or None if advice else None,
                "blocks_needed": advice.blocks or None if advice else None,
                "hours_needed": advice.total_hours if advice else None,
                "hours_to_come": advice.further_hours if advice else None,
                "notes": "; ".join(of.notes),
            }
        )
    _write(path, DIFFERENCE_COLUMNS, rows)


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    with written_whole(path) as waiting, open(waiting, "w", newline="", encoding="utf-8") as file:
        kept = [name for name in columns if name != BLOCKS or any(row[BLOCKS] for row in rows)]
        writer = csv.DictWriter(file, kept, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _scores(group: Group, decimals: int, *, blocks: int) -> str:
    """Mean and range of a group's scores, and on how many of the blocks they are if not on all."""
    if not group.scores:
        return "-"
    ends = f"{min(group.scores):.{decimals}f} to {max(group.scores):.{decimals}f}"
    notes = [ends if len(group.scores) > 1 else "one seed"]
    notes += [f"{len(group.blocks)} of {blocks} blocks"] if len(group.blocks) < blocks else []
    return f"{group.mean:.{decimals}f} ({'; '.join(notes)})"


def _against(comparison: Comparison | None, decimals: int) -> str:
    if comparison is None:
        return "-"
    text = f"{interval_words(comparison, decimals)} against {comparison.second.arm}"
    return f"{text}: {comparison.difference.word}"


def _sum_text(group: Group, of: str) -> str:
    parts = [group.cost(f"{stage}_{of}") for stage in ("pretrain", "finetune")]
    return "-" if parts == [None, None] else " + ".join("0" if part is None else f"{part:,.0f}" for part in parts)


def _short(value: float | None) -> str:
    """Two digits, without exponents; what is tiny as such."""
    if value is None or 0 < value < 1e-5:
        return "-" if value is None else "< 0.00001"
    return f"{value:.2g}" if value == 0 or 1e-4 <= value < 100 else f"{value:.6f}" if value < 1 else f"{value:,.0f}"


def _operations_unit(flops: Sequence[float]) -> tuple[str, float]:
    """The unit in which the largest number of operations has at most four digits before the point."""
    largest = max(flops, default=1e15)
    units = (("GFLOP", 1e9), ("TFLOP", 1e12), ("PFLOP", 1e15), ("EFLOP", 1e18))
    return next((unit for unit in units if largest < 1e4 * unit[1]), units[-1])
