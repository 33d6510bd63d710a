"""Numbers and findings as the words of a report."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from study.regimes import Regime
from study.verdict import MOST_SEEDS, Advice, Comparison

METRIC_WORDS = {
    "mean_iou": "mean IoU",
    "rmse": "RMSE",
    "roc_auc": "ROC-AUC",
    "balanced_accuracy": "balanced accuracy",
}
SAME_TIME = 1.05
"""Times that differ by a factor of up to that are called the same: so much the same training varies."""
TRAINING_ALONE = "without start-up and scoring"
"""What hours of training leave out."""
MODE_WORDS = {"full": "all weights fine-tuned", "probe": "linear probe", "trees": "trees"}


def decimals_for(metric: str, values: Iterable[float]) -> int:
    """Decimals that show scores: three, but of an RMSE as many as give its largest value three digits."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if metric != "rmse" or not largest:
        return 3
    return max(0, 2 - math.floor(math.log10(largest)))


def labels_words(regime: Regime) -> str:
    """Such as `10 % of the labels` or `2 blocks of labels`."""
    if regime.blocks:
        return f"{regime.blocks} block{'s' * (regime.blocks > 1)} of labels"
    return "all labels" if regime.fraction == 1 else f"{100 * regime.fraction:.3g} % of the labels"


def hours_words(hours: float | None) -> str:
    """Such as `40 min` or `3.2 h`."""
    if hours is None:
        return "an unknown time"
    if hours < 1:
        return f"{60 * hours:.0f} min" if hours >= 1.5 / 60 else f"{3600 * hours:.0f} s"
    return f"{hours:.1f} h" if hours < 10 else f"{hours:,.0f} h"


def signed(value: float, decimals: int) -> str:
    """A number with its sign; none on a zero."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text


def interval_words(comparison: Comparison, decimals: int) -> str:
    """Such as `+0.012 (-0.010 to +0.034)`."""
    of = comparison.difference
    if math.isnan(of.estimate):
        return "no score"
    if math.isnan(of.low):
        return f"{signed(of.estimate, decimals)} (interval not known)"
    return f"{signed(of.estimate, decimals)} ({signed(of.low, decimals)} to {signed(of.high, decimals)})"


def cost_words(ratio: float | None) -> str:
    """How many times the training of the other arm a training takes."""
    if ratio is None:
        return "costs not recorded"
    if 0.95 <= ratio <= SAME_TIME:
        return "at the same training time"
    return f"at {ratio_words(ratio)} times the training time"


def ratio_words(ratio: float) -> str:
    """Such as `2.1`, `0.31`, `140`."""
    if ratio < 0.01:
        return "less than 0.01"
    decimals = 0 if ratio >= 9.95 else 1 if ratio >= 0.95 else 2
    return f"{ratio:,.{decimals}f}"


def advice_words(advice: Advice | None, comparison: Comparison) -> str:
    """What would decide it, with a leading space; empty if it is decided."""
    of = comparison.difference
    if advice is None:
        return ""
    if advice.by == "more":
        return " Too little was run to say what would decide it: three seeds and two blocks at least."
    if advice.by == "nothing":
        return " No difference was seen, so nothing can be extrapolated."
    if advice.by == "beyond":
        return f" More than {MOST_SEEDS} seeds would be needed to decide it."
    if advice.by == "seeds":
        to_come = f"{hours_words(advice.total_hours)} of training in all, {hours_words(advice.further_hours)} to come"
        cost = "" if advice.total_hours is None else f": {to_come}, {TRAINING_ALONE}"
        return f" About {advice.seeds} seeds instead of {of.seeds} would decide it{cost}."
    if math.isinf(advice.blocks):
        return f" Further seeds cannot decide it: it takes more than 100 times the {of.blocks} blocks."
    more = max(math.ceil(advice.blocks), of.blocks + 1)
    return f" Further seeds cannot decide it: it takes about {more:,} independent blocks instead of {of.blocks}."


def finding(comparison: Comparison, decimals: int, unit: str, not_converged: Collection[str] = ()) -> str:
    """One comparison as a sentence or two, which names the rival where the report chose it."""
    of = comparison.difference
    where = labels_words(comparison.first.regime).capitalize()
    modes = [MODE_WORDS[group.mode] for group in (comparison.first, comparison.second)]
    where += "" if comparison.first.mode == "trees" else f", {modes[0]}"
    rival = f" than {comparison.second.arm}" if comparison.chosen else ""
    if comparison.chosen:
        rival += ", not converged" if comparison.second.arm in not_converged else ""
        rival += " (the network that scored best here, which favours it)"
    size = f"{interval_words(comparison, decimals)} {unit}"
    notes = f" ({'; '.join(of.notes)})" if of.notes else ""
    if of.word == "undecided":
        said = f"**undecided**{rival.replace(' than ', ' against ')}: {size}"
    else:
        said = f"**{of.word}**{rival}: {size}"
    return f"{where}: {said}, {cost_words(comparison.cost_ratio)}{notes}.{advice_words(comparison.advice, comparison)}"


def in_short(comparisons: Sequence[Comparison], decimals: int, unit: str) -> str:
    """How often an arm came out how, and by how much, in one or two sentences."""
    words = [of.difference.word for of in comparisons]
    counted = [f"{word} in {words.count(word)}" for word in ("better", "worse", "undecided") if word in words]
    said = f"{words[0]} in all {len(words)}" if len(counted) == 1 else ", ".join(counted) + f" of {len(words)}"
    said = f"{words[0]} (one setting)" if len(words) == 1 else f"{said} settings"
    sizes = [of.difference.estimate for of in comparisons if math.isfinite(of.difference.estimate)]
    ratios = [of.cost_ratio for of in comparisons if of.cost_ratio is not None]
    if not sizes:
        return said
    low, high = signed(min(sizes), decimals), signed(max(sizes), decimals)
    spread = f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
    cheap, dear = (ratio_words(end(ratios)) if ratios else "" for end in (min, max))
    if ratios and min(ratios) >= 0.95 and max(ratios) <= SAME_TIME:
        return f"{said}; {spread}, at the same training time"
    cost = f", at {cheap if cheap == dear else f'{cheap} to {dear}'} times the training time" if ratios else ""
    return f"{said}; {spread}{cost}"
