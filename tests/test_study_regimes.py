"""Regimes of labels, shares and whole blocks side by side: names, tables, figures and files."""

import csv
import dataclasses
import json

import pytest

from study.arms import StudyArm, read_arms
from study.commands import Settings
from study.conduct import Study, Wishes
from study.curves import Curve, read_curves, write_curves
from study.figures import cost_figure, differences_figure
from study.outcomes import read_json
from study.plan import Lengths, Rates, all_tasks
from study.regimes import Regime, check_blocks, regimes_of
from study.report import build_report
from study.results import read_results, write_results
from study.summary import group_runs
from study.summary import read_arms as arms_of
from study.words import labels_words
from tests.study_runs import classes_run, study_runs
from tests.test_study_report import study_of

REGIMES = regimes_of([0.1, 1.0], [2])
ARMS = [{"name": "scratch"}, {"name": "one", "against": "scratch"}]


def runs_of_three():
    levels = {Regime(): 0.8, Regime(0.1): 0.6, Regime(blocks=2): 0.4}
    return [
        dataclasses.replace(run, label_fraction=regime.fraction, label_blocks=regime.blocks)
        for regime, level in levels.items()
        for run in study_runs({"scratch": level, "one": level + 0.1}, pretrain_s=9.0, finetune_s=2.0)
    ]


def test_few_whole_blocks_come_before_shares():
    assert REGIMES == (Regime(blocks=2), Regime(0.1), Regime())
    mixed = [Regime(), Regime(blocks=4), Regime(0.01), Regime(blocks=2)]
    assert sorted(mixed, key=lambda of: of.order) == [Regime(blocks=2), Regime(blocks=4), Regime(0.01), Regime()]
    assert [labels_words(of) for of in (*REGIMES, Regime(blocks=1))] == [
        "2 blocks of labels",
        "10 % of the labels",
        "all labels",
        "1 block of labels",
    ]


def test_every_regime_has_programs_of_its_own():
    arms = [StudyArm("a"), StudyArm("b", label_blocks=(4,)), StudyArm("c", label_fractions=(1.0,))]
    tasks = {task.name: task.regime.flags for task in all_tasks(arms, seeds=1, regimes=REGIMES)}
    assert tasks == {
        "fit/a-seed0-blocks2": ["--label_blocks", "2"],
        "fit/a-seed0-labels0.1": ["--label_fraction", "0.1"],
        "fit/a-seed0-labels1": ["--label_fraction", "1"],
        "fit/b-seed0-blocks4": ["--label_blocks", "4"],
        "fit/c-seed0-labels1": ["--label_fraction", "1"],
    }


def test_results_with_blocks_are_read_again_and_others_have_no_such_column(tmp_path):
    path = tmp_path / "results.csv"
    same = {"seed": 0, "fold": 0}
    few = dataclasses.replace(classes_run("a", [0.5, 0.7], **same), label_blocks=2)
    write_results(path, [classes_run("a", [0.5, 0.7], **same), few])  # the same blocks, tested with other labels
    assert [run.regime for run in read_results(path)] == [Regime(), Regime(blocks=2)]
    assert few.title == "a, full, labels of 2 blocks, seed 0, fold 0"
    lines = path.read_text().splitlines()
    assert lines[0].endswith(",label_blocks") and lines[1].endswith(",") and lines[3].endswith(",2")
    path.write_text("\n".join([lines[0], lines[3][:-1] + "two"]) + "\n")
    with pytest.raises(ValueError, match="row 2, column 'label_blocks': 'two', expected a whole number of blocks"):
        read_results(path)
    write_results(path, [classes_run("a", [0.5])])
    assert "label_blocks" not in path.read_text()


def test_curves_with_blocks_are_read_again(tmp_path):
    path = tmp_path / "curves.csv"
    curves = [Curve("a", "full", 1.0, 0, 0, 2.0, (0.5, 0.6)), Curve("a", "full", 1.0, 0, 0, 2.0, (0.1,), 2)]
    write_curves(path, curves)
    assert read_curves(path) == curves and path.read_text().splitlines()[1:] == [
        "a,full,1,0,0,2,0.5 0.6,",
        "a,full,1,0,0,2,0.1,2",
    ]
    write_curves(path, curves[:1])
    assert "label_blocks" not in path.read_text()


def test_tables_and_figures_have_a_place_for_each_regime(tmp_path):
    study = study_of(tmp_path, runs_of_three(), arms=ARMS)
    titles = ["2 blocks of labels", "10 % of the labels", "all labels"]
    figures = (
        cost_figure(study.arms, study.groups, metric="m", seconds="s"),
        differences_figure(study.comparisons, metric="m"),
    )
    for figure in figures:
        assert [axis.get_title() for axis in figure.axes] == titles
    assert [of.second.regime for of in study.comparisons] == [of.first.regime for of in study.comparisons]
    text = build_report(tmp_path / "results.csv", {"arms": ARMS}, tmp_path / "out", draws=100).read_text()
    rows = [line.split(" | ")[2] for line in text.splitlines() if line.startswith(("| scratch | full", "| one | full"))]
    assert rows == ["all", "10 %", "2 blocks"] * 2
    assert "- 2 blocks of labels, all weights fine-tuned: **better**" in text
    for name in ("summary.csv", "differences.csv", "readouts.csv"):
        with open(tmp_path / "out" / name, newline="") as file:
            found = [
                (row["label_fraction"], row["label_blocks"]) for row in csv.DictReader(file) if row["arm"] == "one"
            ]
        assert found == [("1", ""), ("0.1", ""), ("1", "2")]


def test_runs_with_other_blocks_are_other_groups():
    runs = runs_of_three()
    assert [(of.arm, of.regime) for of in group_runs(runs, arms_of({"arms": ARMS}, runs)).values()] == [
        (arm, regime) for arm in ("scratch", "one") for regime in reversed(REGIMES)
    ]


def test_rows_of_arms_may_name_blocks(tmp_path):
    path = tmp_path / "arms.csv"
    path.write_text("arm,label_blocks,label_fractions\nscratch,2 4,0.1\nmore,,\n")
    scratch, more = read_arms(path)
    assert (scratch.label_blocks, scratch.label_fractions) == ((2, 4), (0.1,)) and not more.label_blocks
    for text, match in (
        ("few", "arm scratch: label_blocks 'few', expected whole numbers with spaces between"),
        ("0", "arm scratch: label_blocks '0', expected whole numbers of blocks, 1 or more"),
        ("2 2", "arm scratch: label_blocks '2 2', expected each number of blocks once"),
    ):
        path.write_text(f"arm,label_blocks\nscratch,{text}\n")
        with pytest.raises(ValueError, match=match):
            read_arms(path)
    check_blocks([1, 3], "x")


def test_a_plan_from_before_there_were_blocks_and_patience_is_gone_on_with(tmp_path):
    def study(**choice):
        settings = Settings(("--data_dir", "a"), (), patience=choice.pop("patience", 0))
        wishes = {"label_fractions": [0.1], "label_blocks": [], "seeds": 3, "pretrain_epochs": 4} | choice
        wishes = Wishes([StudyArm("a")], settings, finetune_epochs=5, budget_s=1.0, **wishes)
        return Study(tmp_path, wishes, None, seconds="")

    first = study()
    first.lengths, first.rates = Lengths(3, 1.0, {}, {"a": 5}), Rates({}, 1.0, 0.4, 1.0, 1.0, 1.0)
    first.settings = dataclasses.replace(first.settings, base_resolution=200.0)
    first.keep_plan()
    plan = read_json(tmp_path / "plan.json")
    del plan["wishes"]["label_blocks"], plan["wishes"]["arms"][0]["label_blocks"], plan["rates"]["validation"]
    assert "patience" not in plan["wishes"]["settings"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    again = study()
    assert again.lengths.finetune == {"a": 5} and again.rates == first.rates
    with pytest.raises(ValueError, match=r"holds a study with other label_blocks: \[\], now \[2\]"):
        study(label_blocks=[2])
    with pytest.raises(ValueError, match="holds a study with other settings"):
        study(patience=3)
