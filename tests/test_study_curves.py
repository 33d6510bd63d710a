"""Validation curves of a study's fits, and what is read from them, with answers on paper."""

import math

import pytest

from study.curves import Curve, read_curves, write_curves
from study.readouts import fit_lengths, not_converged
from study.report import report_text
from tests.test_study_report import study_of, study_runs


def curve(*scores, arm="a", seconds=None, **key):
    key = {"mode": "full", "label_fraction": 1.0, "seed": 0, "fold": 0} | key
    return Curve(arm, **key, train_s=float(len(scores)) if seconds is None else seconds, scores=scores)


def test_curves_are_read_as_they_were_written(tmp_path):
    written = [curve(0.1 + 0.2, math.nan, -3.5, fold=2, arm="a, b"), curve(0.0, seed=1002, mode="probe")]
    write_curves(tmp_path / "curves.csv", written)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.csv"]
    assert (tmp_path / "curves.csv").read_text().splitlines()[1] == '"a, b",full,1,0,2,3,0.30000000000000004 - -3.5'
    first, second = read_curves(tmp_path / "curves.csv")
    assert second == written[1] and math.isnan(first.scores[1])
    assert (first.scores[0], first.scores[2], first.train_s) == (0.1 + 0.2, -3.5, 3.0)
    assert read_curves(tmp_path / "none.csv") == []


@pytest.mark.parametrize(
    "row",
    [
        "a,full,1,0,0,3,",
        "a,full,1,0,0,,0.5",
        "a,full,1,0,0,3,inf",
        "a,whole,1,0,0,3,0.5",
        "a,full,1,0,0",
        "a,full,2,0,0,3,1",
    ],
)
def test_damaged_curves_are_refused_with_their_row(tmp_path, row):
    path = tmp_path / "curves.csv"
    write_curves(path, [curve(0.5)])
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(ValueError, match="curves.csv: row 3 cannot be read.*a score for each epoch; remove the file"):
        read_curves(path)
    path.write_text("arm,mode\n")
    with pytest.raises(ValueError, match="curves.csv: row 1 has no column 'label_fraction'"):
        read_curves(path)


def test_the_best_epoch_is_the_first_of_the_best():
    assert curve(0.1, 0.4, math.nan, 0.4, 0.3).best_epoch == 2
    assert curve(math.nan, math.nan).best_epoch is None


def test_fits_that_trained_to_the_bound_are_counted():
    fits = [curve(0.1, 0.2, 0.3, 0.4), curve(0.3, 0.2), curve(math.nan, math.nan, math.nan, math.nan)]
    found = fit_lengths(fits, greatest=4)
    assert (found.fits, found.best_epoch, found.epochs, found.at_greatest) == (3, 2.5, 4, 2)
    assert fit_lengths(fits[1:2], greatest=None).at_greatest is None
    assert fit_lengths(fits[2:], greatest=5).best_epoch is None


def test_the_report_tells_fixed_lengths_from_those_that_did_not_converge(tmp_path):
    arms = [{"name": "one"}, {"name": "long", "as_long_as": "one"}, {"name": "again", "as_long_as": "one"}]
    facts = {"arms": arms, "patience": 2, "lengths": {"pretrain": {"one": 5, "again": 7}}}
    facts["lengths"]["finetune"] = {"one": 4, "long": 4, "again": 4}
    runs = study_runs({arm["name"]: 0.5 for arm in arms})
    bound, early = curve(0.1, 0.2, 0.3, 0.4), curve(0.3, 0.2)
    curves = [curve(*of.scores, arm=arm["name"], fold=fold) for arm in arms for fold, of in enumerate([bound, early])]
    write_curves(tmp_path / "curves.csv", curves)
    text = report_text(study_of(tmp_path, runs, **facts))
    assert "**2 of 4 fits trained up to the greatest length without converging**" in text
    for row in ("| one | full | all | 2 | 2.5 | 3 | 1 of 2 |", "| long | full | all | 2 | 2.5 | 3 | fixed length |"):
        assert row in text
    assert "| again | full | all | 2 | 2.5 | 3 | 1 of 2 |" in text  # it has pre-training, so its fits may end early
    write_curves(tmp_path / "curves.csv", [curve(0.3, 0.2, arm="one")])
    assert "All fits that could end early did" in report_text(study_of(tmp_path, runs, **facts))
    (tmp_path / "curves.csv").unlink()
    assert "Length of the fits" not in report_text(study_of(tmp_path, runs, **facts))


def lengths(arm, *trained, greatest=4):
    return fit_lengths([curve(*[0.1] * epochs, arm=arm) for epochs in trained], greatest=greatest)


def test_an_arm_of_which_more_than_a_quarter_trained_to_the_bound_did_not_converge():
    quarter = [lengths("quarter", 4, 3), lengths("quarter", 2, 2)]
    more = [lengths("more", 4, 3), lengths("more", 4, 2, 2)]
    fixed = [lengths("fixed", 4, 4, greatest=None)]
    assert not_converged([*quarter, *more, *fixed]) == {"more"}


def test_every_sentence_names_an_arm_that_did_not_converge(tmp_path):
    arms = [{"name": "scratch"}, {"name": "one", "against": "scratch"}, {"name": "trees"}]
    runs = study_runs({"scratch": 0.5, "one": 0.7}) + study_runs({"trees": 0.6}, mode="trees")
    facts = {"arms": arms, "patience": 2, "lengths": {"finetune": {"one": 4, "scratch": 4}}}
    write_curves(tmp_path / "curves.csv", [curve(0.1, 0.2, arm="scratch"), curve(0.1, 0.1, 0.1, 0.2, arm="one")])
    text = report_text(study_of(tmp_path, runs, **facts))
    for said in ("`one` (not converged) against `scratch`", "than one, not converged (the network that", "| one [not"):
        assert said in text
    assert "scratch (not" not in text and "scratch [not" not in text
