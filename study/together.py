"""Several studies in one picture: score against total cost, a column for each survey and a row for each regime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from study.conduct import FACTS, RESULTS
from study.figures import Survey, surveys_figure
from study.findings import headline_words, seconds_words
from study.results import read_results
from study.summary import group_runs, read_arms, read_facts
from util.hardware.system import written_whole

PICTURE = "score-cost-of-surveys.png"


def read_survey(folder: Path) -> Survey:
    """The arms and runs of a study.

    Args:
        folder: its --output_dir.

    Raises:
        FileNotFoundError: it holds no results.
        ValueError: damaged or empty results, or arms that make no sense.
    """
    facts = read_facts(folder / FACTS) if (folder / FACTS).exists() else {}
    runs = read_results(folder / RESULTS)
    if not runs:
        raise ValueError(f"{folder / RESULTS}: no run in it, expected one at least; let the study finish a run first")
    arms = read_arms(facts, runs)
    groups = list(group_runs(runs, arms).values())
    title = str(facts.get("title") or folder.resolve().name)
    return Survey(title, arms, groups, headline_words(runs[0].metric, facts), seconds_words(facts))


def draw_together(folders: Sequence[Path], out_dir: Path) -> Path:
    """Draws the picture of several studies; returns its path.

    Args:
        folders: their --output_dir, in the order of columns.
        out_dir: gets the picture; made if it is not there.

    Raises:
        FileNotFoundError: a folder holds no results.
        ValueError: those of one are damaged or empty, or times of some are of a processor, of others of a clock.
    """
    surveys = [read_survey(folder) for folder in folders]
    kinds = sorted({of.seconds for of in surveys})
    if len(kinds) > 1:
        raise ValueError(
            f"--together: costs of these studies are {' and '.join(kinds)}, which do not compare; draw them apart"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    with written_whole(out_dir / PICTURE) as waiting:
        surveys_figure(surveys).savefig(waiting, dpi=150)
    return out_dir / PICTURE
