"""Several studies in one picture: what it shows, and what is refused."""

import json

import pytest

from scripts import worth_it
from study.figures import surveys_figure
from study.results import write_results
from study.together import PICTURE, draw_together, read_survey
from tests.study_runs import study_runs


def write_study(folder, levels, *, fractions=(1.0,), arms=(), finetune_s=20.0, **facts):
    folder.mkdir()
    runs = [run for part in fractions for run in study_runs(levels, fraction=part, finetune_s=finetune_s)]
    write_results(folder / "results.csv", runs)
    (folder / "study.json").write_text(json.dumps({"arms": [{"name": name} for name in levels] + list(arms), **facts}))
    return folder


def drawn(axis):
    """Colours of the rings of means, by score."""
    rings = [of for of in axis.collections if len(of.get_offsets()) == 1]
    return {round(float(of.get_offsets()[0][1]), 2): tuple(of.get_edgecolors()[0]) for of in rings}


def test_a_column_for_each_study_and_a_row_for_each_regime(tmp_path):
    first = write_study(tmp_path / "first", {"scratch": 0.5, "one": 0.8}, title="Mars")
    second = write_study(tmp_path / "second", {"one": 0.8, "trees": 0.5}, fractions=(1.0, 0.1))
    figure = surveys_figure([read_survey(first), read_survey(second)])
    few, few_second, every, every_second = figure.axes
    assert not few.get_visible() and few_second.get_visible()  # the first has no run with a tenth of the labels
    assert every.get_title() == "Mars\nall labels" and every_second.get_title() == "second\nall labels"
    assert few_second.get_title() == "second\n10 % of the labels"
    one = [max(drawn(axis).items())[1] for axis in (every, every_second, few_second)]
    assert one[0] == one[1] == one[2]  # the same arm, the same colour
    assert min(drawn(every).items())[1] != min(drawn(every_second).items())[1]  # scratch and trees
    assert [of.get_text() for of in figure.legends[0].get_texts()] == ["scratch", "one", "trees"]


def test_arms_that_were_given_the_answers_and_studies_without_costs_are_not_drawn(tmp_path):
    told = {"name": "told", "role": "leak"}
    folder = write_study(tmp_path / "a", {"one": 0.5}, finetune_s=None)
    assert not surveys_figure([read_survey(folder)]).axes[0].get_visible()
    folder = write_study(tmp_path / "b", {"one": 0.5})
    write_results(folder / "results.csv", study_runs({"one": 0.5, "told": 0.9}, finetune_s=20.0))
    (folder / "study.json").write_text(json.dumps({"arms": [{"name": "one"}, told]}))
    assert len(drawn(surveys_figure([read_survey(folder)]).axes[0])) == 1


def test_the_program_draws_it_and_refuses_what_does_not_compare(tmp_path, capsys):
    cpu = write_study(tmp_path / "cpu", {"one": 0.5}, device="cpu", seconds="cpu_seconds")
    gpu = write_study(tmp_path / "gpu", {"one": 0.5}, device="cuda:0", seconds="seconds")
    assert worth_it.main(["--together", str(cpu), str(cpu), "--output_dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / PICTURE).stat().st_size > 5000
    assert worth_it.main(["--together", str(cpu), str(gpu), "--output_dir", str(tmp_path / "out")]) == 2
    assert "costs of these studies are seconds of the processor and seconds on cuda:0" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="no such table of results; run the study first"):
        draw_together([tmp_path / "nowhere"], tmp_path)
    write_results(cpu / "results.csv", [])
    with pytest.raises(ValueError, match="no run in it, expected one at least"):
        draw_together([cpu], tmp_path)
