"""What a skill says, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ADVICE = "docs/choosing.md says what to do"


def skill_verdict(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Says in one sentence whether a model beats interpolation; empty if nothing was scored.

    Args:
        scores: layer -> scale -> scores, of which `skill` counts: 1 is perfect, 0 the better of interpolation and mean.
    """
    skills = {
        f"{layer} {scale}": float(values["skill"])
        for layer, by_scale in scores.items()
        for scale, values in by_scale.items()
        if values.get("skill") is not None and values["skill"] == values["skill"]
    }
    if not skills:
        return ""
    below = [name for name, skill in skills.items() if skill < 0]
    worst, best = min(skills, key=skills.__getitem__), max(skills, key=skills.__getitem__)
    span = f"{skills[worst]:+.2f} ({worst}) to {skills[best]:+.2f} ({best})"
    if len(skills) == 1:
        span = f"{skills[best]:+.2f} ({best})"
    if not below:
        return f"verdict: better than interpolation in all that is scored, skill {span}"
    if len(below) < len(skills):
        return (
            f"verdict: skill {span}, worse than interpolation or the mean in {len(below)} of {len(skills)}: "
            f"{', '.join(below)}; {ADVICE}"
        )
    return f"verdict: skill {span}, worse than interpolation or the mean in all that is scored; {ADVICE}"
