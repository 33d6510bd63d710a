"""The report of a study: words, table, controls and files follow from the results."""

import csv
import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from study.arms import read_arms as read_study_arms
from study.bootstrap import Difference
from study.figures import cost_figure, differences_figure
from study.findings import gather_findings
from study.regimes import Regime
from study.report import build_report, report_text
from study.results import write_results
from study.summary import group_runs, read_arms, read_facts
from study.verdict import advise, further_hours
from study.words import cost_words, decimals_for, hours_words, labels_words, signed
from tests.study_runs import errors_run, study_runs

ARMS = [
    {"name": "scratch"},
    {"name": "single", "against": "scratch", "question": "What does pre-training buy?"},
    {"name": "multi", "against": "single", "as_long_as": "single"},
]
LEVELS = {"scratch": 0.5, "single": 0.7, "multi": 0.701}
COSTS = {"pretrain_s": 60.0, "finetune_s": 20.0, "pretrain_flops": 3e12, "finetune_flops": 1e12}


def study_of(tmp_path, runs, *, draws=200, **facts):
    write_results(tmp_path / "results.csv", runs)
    return gather_findings(tmp_path / "results.csv", facts, draws=draws)


def text_of(tmp_path, runs, **facts):
    return report_text(study_of(tmp_path, runs, **facts))


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_verdict_says_what_is_better_and_what_is_undecided(tmp_path):
    text = text_of(tmp_path, study_runs(LEVELS, **COSTS), arms=ARMS)
    assert "**1 of 2 comparisons are decided, 1 are not.**" in text
    assert re.search(
        r"- What does pre-training buy\? \(`single` against `scratch`\): \*\*better \(one setting\); \+0\.2", text
    )
    assert "### What does pre-training buy?" in text and "### `multi` against `single`" in text
    assert re.search(r"- All labels, all weights fine-tuned: \*\*better\*\*: \+0\.2\d\d \(\+0\.\d+ to \+0\.\d+\)", text)
    assert re.search(
        r"\*\*undecided\*\*: -?\+?0\.00\d \(-0\.\d+ to \+0\.\d+\) mean IoU, at the same training time", text
    )
    assert "meant to be trained as long as `single`, and trained 1.00 times as long" in text
    assert "| multi | full | all |" in text and "| scratch | full | all |" in text
    assert "cut into 12 spatial blocks" in text and "Folds: 2; seeds: 3" in text
    assert "2 were made. At 95 %, about 0.1 of them" in text


def test_if_nothing_is_decided_the_first_line_says_so_and_what_it_would_take(tmp_path):
    # a difference of one seed's size in every block alike: seeds alone decide it
    one = [errors_run("a", np.full(8, 3 - seed), seed=seed, finetune_s=1800.0) for seed in range(3)]
    two = [errors_run("b", np.full(8, 3.0), seed=seed, finetune_s=1800.0) for seed in range(3)]
    text = text_of(tmp_path, one + two, arms=[{"name": "b"}, {"name": "a", "against": "b"}])
    first = text.split("\n")[2]
    assert first == (
        "**Nothing is decided: none of 1 comparisons.** Further seeds would decide about 1 of these, in 4.0 h of "
        "training, without start-up and scoring: `--seeds 7` is the most that any of them needs, and runs all arms."
    )
    said = "7.0 h of training in all, 4.0 h to come, without start-up and scoring."
    assert f"About 7 seeds instead of 3 would decide it: {said}" in text


def test_what_would_decide_on_paper():
    def advised(**numbers):
        found = {
            "estimate": 1.0,
            "low": -1.0,
            "high": 3.0,
            "seeds": 3,
            "blocks": 11,
            "var_blocks": 0.0,
            "var_seeds": 0.0,
        }
        return advise(Difference(**{**found, **numbers}), seed_s=3600)

    # t(6) / sqrt(7) = 0.92 < 1, but t(5) / sqrt(6) = 1.05
    by_seeds = advised(var_seeds=1.0)
    assert (by_seeds.by, by_seeds.seeds, by_seeds.total_hours, by_seeds.further_hours) == ("seeds", 7, 7.0, 4.0)
    # t(10) = 2.228: squared 4.96 times the 11 blocks
    ground = advised(var_blocks=1.0, var_seeds=1.0)
    assert ground.by == "ground" and ground.blocks == pytest.approx(54.6, abs=0.1)
    assert math.isinf(advised(var_blocks=1.0, estimate=0.2).blocks)
    assert advised(var_seeds=1.0, estimate=0.05).by == "beyond"  # (1.96 / 0.05) squared is 1537
    assert advised(var_seeds=1.0, estimate=0.0).by == "nothing"
    assert advised(low=0.5) is None


def test_hours_to_come_count_a_pretraining_once(tmp_path):
    # two shares of labels, each short of the same 4 seeds: pre-training of 4 seeds, fine-tuning of 4 seeds twice
    runs = []
    for fraction in (1.0, 0.1):
        for seed in range(3):
            shared = {"seed": seed, "fraction": fraction, "finetune_s": 900.0}
            runs.append(errors_run("a", np.full(8, 3.0 - seed), pretrain_s=3600.0, **shared))
            runs.append(errors_run("b", np.full(8, 3.0), **shared))
    study = study_of(tmp_path, runs, arms=[{"name": "b"}, {"name": "a", "against": "b"}])
    assert [of.advice.seeds for of in study.comparisons] == [7, 7]
    assert [of.advice.total_hours for of in study.comparisons] == [7 * 1.5, 7 * 1.5]
    assert further_hours(study.comparisons) == pytest.approx(4 * 1 + 2 * 4 * 2 * 0.25)


def test_a_control_that_comes_out_as_it_must_gives_no_warning(tmp_path):
    twin = {"name": "twin", "role": "null", "against": "single"}
    leak = {"name": "leak", "role": "leak", "against": "single"}
    runs = study_runs({**LEVELS, "twin": 0.7, "leak": 0.95}, shift={"twin": 1000})
    study = study_of(tmp_path, runs, arms=[*ARMS, twin, leak])
    assert [(of.arm, of.passed) for of in study.controls] == [("twin", True), ("leak", True)]
    text = report_text(study)
    assert (
        "WARNING" not in text and "It beats 4 of 4 others" in text and "- **passed**: twin is single once more" in text
    )
    assert {of.arm.name for of in study.asked} == {"single", "multi"}


def test_a_null_control_is_paired_by_seed(tmp_path):
    twin = {"name": "twin", "role": "null", "against": "single"}
    runs = [run for run in study_runs({**LEVELS, "twin": 0.7}, shift={"twin": 1000}) if run.seed != 1000]
    study = study_of(tmp_path, runs, arms=[*ARMS, twin])
    found = next(of for of in study.comparisons if of.arm.name == "twin")
    single, again = (study.groups[at].seeds for at in (1, 3))
    expected = [again[seed + 1000].score() - single[seed].score() for seed in (1, 2)]
    np.testing.assert_allclose(found.difference.per_seed, expected, rtol=1e-12)
    assert study.controls[0].passed is None and "that takes 3 seeds and 2 blocks" in study.controls[0].text


def test_identical_arms_that_differ_give_a_loud_warning(tmp_path):
    twin = {"name": "twin", "role": "null", "against": "single"}
    runs = study_runs({**LEVELS, "twin": 0.9}, shift={"twin": 1000})
    text = text_of(tmp_path, runs, arms=[*ARMS, twin])
    assert text.split("\n")[2].startswith(
        "> **WARNING: the control 'twin' failed.** Two arms that differ in their seeds alone came out different in 1 "
        "of 1 comparisons. Of 1, about one in twenty does so by chance. If it happens again with other seeds, the "
        "intervals are too narrow"
    )
    assert "- **FAILED**: twin" in text and "the interval includes zero in 0 of 1 comparisons. By chance alone" in text


def test_given_answers_that_do_not_win_give_a_loud_warning(tmp_path):
    leak = {"name": "leak", "role": "leak"}
    text = text_of(tmp_path, study_runs({**LEVELS, "leak": 0.6}), arms=[*ARMS, leak])
    assert "> **WARNING: the control 'leak' failed.** An arm that was given the answers does not win" in text
    assert "but not single (full, 1 of the labels), multi (full, 1 of the labels); it must beat all of its kind" in text


def test_trees_given_answers_must_beat_other_trees_but_not_networks(tmp_path):
    told, runs = {"name": "told", "role": "leak"}, study_runs({"whole": 0.9})
    for level, passed in ((0.5, False), (0.7, True)):
        trees = study_runs({"trees": 0.55, "random": 0.6, "told": level}, mode="trees")
        study = study_of(tmp_path, [*runs, *trees], arms=[told])
        assert [of.passed for of in study.controls] == [passed]
    assert "It beats 2 of 2 others" in study.controls[0].text


def test_a_probe_given_answers_need_not_beat_whole_networks(tmp_path):
    runs = study_runs({"whole": 0.9}) + study_runs({"probe": 0.5, "told": 0.7}, mode="probe")
    study = study_of(tmp_path, runs, arms=[{"name": "told", "role": "leak"}])
    assert study.controls[0].passed and "It beats 1 of 1 others" in study.controls[0].text


def test_controls_that_cannot_be_judged_say_so(tmp_path):
    arms = [*ARMS, {"name": "twin", "role": "null", "against": "gone"}, {"name": "leak", "role": "leak"}]
    study = study_of(tmp_path, study_runs({"twin": 0.5}), arms=arms)
    assert [of.passed for of in study.controls] == [None, None]
    text = report_text(study)
    assert "**not judged**: twin could not be compared" in text and "Nothing can be said yet" in text
    assert "No control was run" in text_of(tmp_path, study_runs(LEVELS), arms=ARMS)


def test_trees_meet_the_best_network_of_each_share_of_labels(tmp_path):
    runs = study_runs({"trees": 0.6}, mode="trees")
    runs += study_runs({"trees": 0.6}, mode="trees", fraction=0.1)
    runs += study_runs({"one": 0.8, "two": 0.5}) + study_runs({"one": 0.3, "two": 0.4}, fraction=0.1)
    study = study_of(tmp_path, runs, arms=[{"name": "trees"}, {"name": "one"}, {"name": "two"}])
    met = [(of.first.regime.fraction, of.second.arm, of.difference.word) for of in study.comparisons]
    assert met == [(1.0, "one", "worse"), (0.1, "two", "better")]
    text = report_text(study)
    assert "All labels: **worse** than one (the network that scored best here, which favours it)" in text
    assert "What do trees reach without any network?" in text


def test_the_best_of_rmse_is_the_lowest(tmp_path):
    runs = []
    for seed in range(3):
        runs += [
            errors_run(name, np.linspace(low, low + 1, 6), seed=seed) for name, low in (("high", 2.0), ("low", 1.0))
        ]
        runs.append(errors_run("trees", np.linspace(3, 4, 6), mode="trees", seed=seed))
    study = study_of(tmp_path, runs, arms=[{"name": name} for name in ("trees", "high", "low")], units="nT")
    assert [(of.second.arm, of.difference.word) for of in study.comparisons] == [("low", "worse")]
    assert "RMSE, nT, lower is better" in report_text(study) and study.decimals == 2


def test_pairs_that_reach_much_further_have_a_panel_of_their_own(tmp_path):
    levels = {"scratch": 0.5, "a": 0.505, "b": 0.51, "c": 0.495, "trees": 0.9}
    arms = [{"name": name, "against": "scratch" if name != "scratch" else ""} for name in levels]
    study = study_of(tmp_path, study_runs(levels), arms=arms)
    near, far = differences_figure(study.comparisons, metric="mean IoU").axes
    assert [of.get_text() for of in near.get_yticklabels()] == [f"{name} against scratch" for name in "abc"]
    assert [of.get_text() for of in far.get_yticklabels()] == ["trees against scratch"]
    assert near.get_xlim()[1] < 0.1 < far.get_xlim()[1]
    alike = [of for of in study.comparisons if of.arm.name != "trees"]
    assert len(differences_figure(alike, metric="mean IoU").axes) == 1
    assert len(differences_figure([], metric="mean IoU").axes) == 1


def test_trees_are_not_compared_twice_with_a_network_that_meets_them_itself(tmp_path):
    arms = [{"name": "trees"}, {"name": "one", "against": "trees"}, {"name": "two"}]
    runs = study_runs({"trees": 0.6}, mode="trees")
    study = study_of(tmp_path, runs + study_runs({"one": 0.8, "two": 0.5}), arms=arms)
    assert [(of.arm.name, of.second.arm) for of in study.comparisons] == [("one", "trees")]
    study = study_of(tmp_path, runs + study_runs({"one": 0.5, "two": 0.8}), arms=arms)
    assert [(of.arm.name, of.second.arm) for of in study.comparisons] == [("trees", "two"), ("one", "trees")]


def test_the_table_says_where_blocks_are_missing_and_they_choose_no_rival(tmp_path):
    # fold 1 of the networks is done for one of them alone
    runs = study_runs({"trees": 0.6}, mode="trees") + study_runs({"one": 0.4, "two": 0.5})
    runs = [of for of in runs if (of.arm, of.fold) != ("two", 1)]
    study = study_of(tmp_path, runs, arms=[{"name": "trees"}, {"name": "one"}, {"name": "two"}])
    assert [of.second.arm for of in study.comparisons] == ["one"]
    table = report_text(study).split("## All arms")[1]
    row = next(line for line in table.split("\n") if line.startswith("| two |"))
    assert "; 6 of 12 blocks)" in row and "12 blocks" not in table.split("| two |")[0]


def test_folds_that_were_left_out_are_named(tmp_path):
    arms = [{"name": "scratch"}, {"name": "near", "against": "scratch"}, {"name": "same", "against": "scratch"}]
    runs = study_runs({"scratch": 0.5, "near": 0.512, "same": 0.5}, blocks=4, folds=1, spread=0.03)
    advice = {of.arm.name: of.advice for of in study_of(tmp_path, runs, arms=arms).comparisons}
    assert {of.by for of in advice.values()} == {"ground"}
    every = int(min(of.blocks for of in advice.values())) + 1
    known = {"blocks": 4, "blocks_in_all": every, "folds": 1, "folds_in_all": 3}
    text = text_of(tmp_path, runs, arms=arms, **known)
    assert (
        "2 cannot be decided by further seeds, only by more labelled ground, 1 of them by about as much as the folds"
        in text
    )
    assert f"cut into {every} spatial blocks" in text and "4 of them, those of 1 of 3 folds, were tested." in text
    assert "folds that were not run" not in text_of(tmp_path, runs, arms=arms, **(known | {"blocks_in_all": 4}))


def test_an_arm_may_be_compared_with_several(tmp_path):
    arms = [{"name": "scratch"}, {"name": "woods"}]
    arms += [{"name": "multi", "against": "scratch woods nothing", "question": "What does it buy?"}]
    study = study_of(tmp_path, study_runs({"scratch": 0.5, "woods": 0.9, "multi": 0.7}), arms=arms)
    found = {of.second.arm: of.difference.word for of in study.comparisons}
    assert found == {"scratch": "better", "woods": "worse"}
    text = report_text(study)
    assert "- What does it buy? (`multi` against `scratch`): **better (one setting)" in text
    assert "- What does it buy? (`multi` against `woods`): **worse (one setting)" in text
    row = next(line for line in text.split("\n") if line.startswith("| multi |"))
    assert "against scratch: better" in row  # the first of them
    assert text.count("### What does it buy?") == 1
    assert "- multi could not be compared: nothing has no runs alike." in text


def test_runs_are_drawn_over_means_which_are_open(tmp_path):
    study = study_of(tmp_path, study_runs({"single": 0.7}, **COSTS), arms=[{"name": "single"}])
    axis = cost_figure(study.arms, study.groups, metric="mean IoU", seconds="s").axes[0]
    drawn = [of for of in axis.collections if len(of.get_offsets())]
    runs, mean = sorted(drawn, key=lambda of: -len(of.get_offsets()))
    assert (len(runs.get_offsets()), len(mean.get_offsets())) == (6, 1)
    assert runs.get_zorder() > mean.get_zorder() and runs.get_sizes()[0] < mean.get_sizes()[0]
    assert len(mean.get_facecolors()) == 0


def test_scores_that_the_blocks_do_not_give_are_warned_of(tmp_path):
    runs = study_runs(LEVELS)
    assert "WARNING" not in text_of(tmp_path, runs, arms=ARMS)
    wrong = [dataclasses.replace(run, score=run.score + 0.01) for run in runs]
    text = text_of(tmp_path, wrong, arms=ARMS)
    assert "> **WARNING: scores worked out from the blocks differ from the program's own by 0.01.**" in text


def test_switches_stand_apart(tmp_path):
    switch = {"name": "overlap", "role": "switch", "against": "single", "question": "Does overlap help?"}
    text = text_of(tmp_path, study_runs({**LEVELS, "overlap": 0.7}), arms=[*ARMS, switch])
    assert text.index("### Further switches") < text.index("#### Does overlap help?") < text.index("## All arms")


def test_the_report_is_built_again_from_its_files(tmp_path):
    write_results(tmp_path / "results.csv", study_runs(LEVELS, **COSTS) + study_runs(LEVELS, mode="probe", **COSTS))
    facts = {"arms": ARMS, "v100": {"tflops": 100, "share": 0.5, "why": "by the book"}, "title": "Small"}
    (tmp_path / "study.json").write_text(json.dumps(facts))
    names = ["report.md", "summary.csv", "differences.csv", "readouts.csv", "score-cost.png", "differences.png"]
    found = []
    for folder in ("first", "second"):
        facts = read_facts(tmp_path / "study.json")
        path = build_report(tmp_path / "results.csv", facts, tmp_path / folder, draws=100)
        assert path == tmp_path / folder / "report.md"
        found.append([(tmp_path / folder / name).read_bytes() for name in names])
    assert found[0] == found[1]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == sorted(names)
    summary = rows_of(tmp_path / "first" / "summary.csv")
    assert [(row["arm"], row["mode"], row["runs"]) for row in summary[:2]] == [
        ("scratch", "full", "6"),
        ("scratch", "probe", "6"),
    ]
    assert float(summary[0]["v100_hours"]) == pytest.approx(4e12 / 50e12 / 3600, rel=1e-5)
    differences = rows_of(tmp_path / "first" / "differences.csv")
    assert [(row["arm"], row["mode"]) for row in differences] == [
        ("single", "full"),
        ("single", "probe"),
        ("multi", "full"),
        ("multi", "probe"),
    ]
    assert differences[0]["word"] == "better" and float(differences[0]["low"]) > 0


def test_an_unfinished_study_says_what_is_missing(tmp_path):
    runs = [
        run for run in study_runs(LEVELS) if run.arm != "multi" and (run.arm, run.seed, run.fold) != ("single", 2, 1)
    ]
    facts = {
        "arms": ARMS,
        "planned": 18,
        "budget_s": 7200,
        "spent_s": 600,
        "seeds": [0, 1, 2],
        "folds": 2,
        "blocks": 12,
    }
    text = text_of(tmp_path, runs, **facts)
    assert "- 11 of 18 planned runs are done." in text and "- Programs ran 10 min in all (several at a time)." in text
    assert "- Programs ran 10 min in all.\n" in text_of(tmp_path, runs, **facts, jobs=1) and "2.0 h" not in text
    assert "- Without any run: multi." in text
    assert "on 3 of 3 seeds and 6 of 12 blocks" in text
    probe = text_of(tmp_path, study_runs({"single": 0.5}, mode="probe"), arms=ARMS)
    assert "single could not be compared: scratch has no runs alike" in probe


def test_results_without_any_facts_make_a_report(tmp_path):
    write_results(tmp_path / "results.csv", [errors_run("a", [1.0, 2.0])])
    text = build_report(tmp_path / "results.csv", {}, tmp_path / "out").read_text()
    assert (
        "Nothing can be said yet" in text and "| a | full | all | 1.58 (one seed) | 1 | - | - | - | - | - | - |" in text
    )
    assert (tmp_path / "out" / "score-cost.png").stat().st_size > 0
    assert "Not recorded." in text and "Nothing is known to be missing." in text


def test_facts_are_shown(tmp_path):
    facts = {
        "arms": [{"name": "a", "pretrain": ["--scales", "1"], "finetune": "--epochs 3"}],
        "classes": ["basalt", "shale"],
        "device": "cuda:0",
        "versions": {"torch": "2.7.1"},
        "commands": ["python -m scripts.worth_it"],
        "notes": ["Synthetic ground."],
        "failed": {"fit/a-seed0": "out of memory"},
        "lengths": {"share": 1.0, "seeds": 3, "pretrain": {"a": 60}, "finetune": {"a": 30, "gone": 4}},
    }
    text = text_of(tmp_path, [errors_run("a", [1.0, 2.0])], **facts)
    for shown in (
        "- `a`: pre-training `--scales 1`; fine-tuning `--epochs 3`",
        "- classes: basalt, shale",
        "- versions: torch 2.7.1",
        "seconds on cuda:0",
        "```\npython -m scripts.worth_it\n```",
        "- Synthetic ground.",
        "- Failed: fit/a-seed0: out of memory",
        "- **Epochs**, of 1,024 tiles in pre-training and of 256 windows in fine-tuning: `a` 60 of pre-training and "
        "30 of fine-tuning.\n",
    ):
        assert shown in text
    assert "- One.\n" in text_of(tmp_path, [errors_run("a", [1.0, 2.0])], notes="One.")


def test_memory_on_a_cpu_is_that_of_a_process(tmp_path):
    runs = [errors_run("a", [1.0, 2.0])]
    assert "on a CPU, the peak of its process" in text_of(tmp_path, runs)
    assert "on a CPU, the peak of its process" in text_of(
        tmp_path, runs, device="some processor", seconds="cpu_seconds"
    )
    assert "the peak of its process" not in text_of(tmp_path, runs, device="cuda:0", seconds="seconds")


def test_probes_of_the_standard_table_are_compared(tmp_path):
    arms = read_study_arms(Path(__file__).parents[1] / "study" / "arms.csv")
    runs = study_runs({arm.name: 0.5 for arm in arms if arm.probe}, mode="probe")
    facts = [{"name": arm.name, "role": arm.role, "against": " ".join(arm.against)} for arm in arms]
    study = study_of(tmp_path, runs, arms=facts)
    assert {(of.first.arm, of.second.arm) for of in study.comparisons} == {
        ("scale12", "scale1"),
        ("scale124", "scale12"),
        ("scale1_as_long", "scale124"),
    }


def test_user_errors(tmp_path):
    path = tmp_path / "results.csv"
    write_results(path, [])
    with pytest.raises(ValueError, match="no run in it, expected one at least"):
        build_report(path, {}, tmp_path)
    runs = [errors_run("a", [1.0]), *study_runs({"b": 0.5})]
    with pytest.raises(ValueError, match="results of different metrics, mean_iou, rmse"):
        group_runs(runs, read_arms({}, runs))
    for arms in ([{"name": "a"}, {"name": "a"}], [{"name": ""}], [{"name": "a", "role": "twin"}]):
        with pytest.raises(
            ValueError, match=r"arm '\w*' with role '\w*': expected a name of its own, and a role out of"
        ):
            read_arms({"arms": arms}, [])
    with pytest.raises(FileNotFoundError, match="no such file of a study's facts"):
        read_facts(tmp_path / "study.json")
    for text, match in (("{", "not JSON"), ("[]", "holds a list, expected an object")):
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(ValueError, match=match):
            read_facts(tmp_path / "study.json")


def test_numbers_in_words():
    assert [hours_words(hours) for hours in (0.01, 0.5, 2.04, 140.4, None)] == [
        "36 s",
        "30 min",
        "2.0 h",
        "140 h",
        "an unknown time",
    ]
    assert [labels_words(Regime(of)) for of in (1, 0.1, 0.025)] == [
        "all labels",
        "10 % of the labels",
        "2.5 % of the labels",
    ]
    assert [cost_words(of) for of in (None, 1.02, 0.001, 0.3, 2.04, 1400.0)] == [
        "costs not recorded",
        "at the same training time",
        "at less than 0.01 times the training time",
        "at 0.30 times the training time",
        "at 2.0 times the training time",
        "at 1,400 times the training time",
    ]
    assert [signed(of, 3) for of in (0.0121, -0.0001, -0.5)] == ["+0.012", "0.000", "-0.500"]
    assert [decimals_for("rmse", [of]) for of in (1234.0, 12.0, 0.012, math.nan)] == [0, 1, 4, 3]
    assert decimals_for("mean_iou", [0.2]) == 3
