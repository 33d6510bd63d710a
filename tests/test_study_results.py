"""The table of results: what is written is read again, and what is damaged is refused with its place."""

import math

import numpy as np
import pytest

from study.results import COSTS, Run, read_results, write_results
from tests.study_runs import classes_run, errors_run

COST = {name: 10.5 + number for number, name in enumerate(COSTS)}


def points_run(metric="roc_auc", **key):
    truth = (np.array([1, 0, 0]), np.array([], dtype=np.int64))
    shares = (np.array([0.1 + 0.2, 1 / 3, 0.0]), np.array([]))
    return Run("points", "full", 0.1, 1, 0, metric, 0.5, np.array([7, 3]), truth=truth, shares=shares, **key)


def same(first: Run, second: Run):
    assert first.key == second.key and first.metric == second.metric
    assert first.score == second.score or (math.isnan(first.score) and math.isnan(second.score))
    assert [getattr(first, name) for name in COSTS] == [getattr(second, name) for name in COSTS]
    np.testing.assert_array_equal(first.blocks, second.blocks)
    for name in ("hits", "predicted", "labelled", "errors"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b)
    for name in ("truth", "shares"):
        pairs = list(zip(getattr(first, name), getattr(second, name), strict=True))
        assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "run",
    [
        classes_run("a, b", [0.5, 0.25], fold=1, **COST),
        errors_run("a", [1 / 3, 2.0, 1e-7], seed=4, blocks=[5, 9, 2]),
        points_run(finetune_s=1e-3),
        points_run("balanced_accuracy"),
        Run("a", "probe", 0.01, 0, 0, "rmse", math.nan, np.array([0]), errors=np.zeros((1, 5))),
    ],
)
def test_what_is_written_is_read_again(tmp_path, run):
    write_results(tmp_path / "results.csv", [run])
    (found,) = read_results(tmp_path / "results.csv")
    same(run, found)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_a_row_for_each_block(tmp_path):
    write_results(tmp_path / "results.csv", [classes_run("a", [0.5, 0.25], finetune_s=2.5, blocks=[4, 6])])
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[0].startswith("arm,mode,label_fraction,seed,fold,block,metric,score,hits,predicted,labelled,errors")
    assert lines[1:] == [
        "a,full,1,0,0,4,mean_iou,0.23076923076923078,50 50,100 100,100 100,,,,,2.5,,,,,,",
        "a,full,1,0,0,6,mean_iou,0.23076923076923078,25 25,100 100,100 100,,,,,2.5,,,,,,",
    ]


def test_runs_of_several_arms_and_a_run_is_not_written_twice(tmp_path):
    path = tmp_path / "results.csv"
    first, second = classes_run("a", [0.5]), classes_run("b", [0.5])
    write_results(path, [first, second])
    assert [run.arm for run in read_results(path)] == ["a", "b"]
    before = path.read_bytes()
    with pytest.raises(ValueError, match="block 0 is tested twice: by a, full, 1 of the labels, seed 0, fold 0"):
        write_results(path, [first, second, classes_run("a", [0.5])])
    assert path.read_bytes() == before


def test_a_block_in_two_folds_is_refused(tmp_path):
    runs = [classes_run("a", [0.5]), classes_run("a", [0.5], fold=1)]
    with pytest.raises(ValueError, match="block 0 is tested twice.*expected each block in one fold"):
        write_results(tmp_path / "results.csv", runs)


@pytest.mark.parametrize(
    ("column", "text", "match"),
    [
        ("arm", " ", "row 2, column 'arm': ' ', expected a name"),
        ("mode", "ful", "row 2, column 'mode': 'ful', expected one of full, probe, trees"),
        ("label_fraction", "1.5", "column 'label_fraction': '1.5', expected a share of the labels above 0 up to 1"),
        ("seed", "-1", "column 'seed': '-1', expected a whole number, 0 or more"),
        ("block", "x", "column 'block': 'x', expected a whole number"),
        ("metric", "iou", "column 'metric': 'iou', expected one of mean_iou"),
        ("score", "inf", "column 'score': 'inf', expected a finite number or nothing"),
        ("hits", "50", "column 'labelled': '100 100', expected 1 numbers as in 'hits'"),
        ("hits", "101 0", "column 'hits': '101 0', expected no more than 'predicted' and 'labelled'"),
        ("labelled", "", "column 'labelled': '', expected whole numbers, one for each class"),
        ("finetune_s", "-3", "column 'finetune_s': '-3', expected a number, 0 or more, or nothing"),
    ],
)
def test_damaged_cells_are_refused_with_their_place(tmp_path, column, text, match):
    path = damaged(tmp_path, classes_run("a", [0.5]), column, text)
    with pytest.raises(ValueError, match=match + ".*restore that row"):
        read_results(path)


@pytest.mark.parametrize(
    ("run", "column", "text", "match"),
    [
        (errors_run("a", [1.0]), "errors", "1 2 3", "column 'errors': '1 2 3', expected 5 finite numbers"),
        (errors_run("a", [1.0]), "errors", "1 2 3 4 nan", "expected 5 finite numbers"),
        (points_run(), "shares", "0.5", "column 'shares': '0.5', expected 3 numbers as in 'truth'"),
        (points_run(), "truth", "1 a 0", "column 'truth': '1 a 0', expected a class for each window"),
    ],
)
def test_damaged_sums_are_refused(tmp_path, run, column, text, match):
    with pytest.raises(ValueError, match=match):
        read_results(damaged(tmp_path, run, column, text))


@pytest.mark.parametrize(
    ("column", "text", "match"),
    [
        ("block", "0", "row 3, column 'block': '0', expected another than in row 2"),
        ("score", "0.5", "row 3, column 'score': '0.5', expected 0.2.* as in row 2, same run"),
        ("metric", "rmse", "row 3, column 'errors'"),
    ],
)
def test_rows_of_a_run_must_agree(tmp_path, column, text, match):
    with pytest.raises(ValueError, match=match):
        read_results(damaged(tmp_path, classes_run("a", [0.5, 0.25]), column, text, line=2))


def test_classes_of_a_run_must_agree(tmp_path):
    path = tmp_path / "results.csv"
    write_results(path, [classes_run("a", [0.5, 0.25])])
    path.write_text(path.read_text().replace("25 25,100 100,100 100", "25 25 0,100 100 0,100 100 0"))
    with pytest.raises(ValueError, match="row 3, column 'hits': .*expected 2 classes, same run"):
        read_results(path)


def test_a_table_that_broke_off_is_refused(tmp_path):
    path = tmp_path / "results.csv"
    write_results(path, [classes_run("a", [0.5, 0.25])])
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match="row 3.*expected a full row"):
        read_results(path)
    path.write_text("arm,mode\n")
    with pytest.raises(ValueError, match="row 1 has no column 'label_fraction'"):
        read_results(path)
    with pytest.raises(FileNotFoundError, match="no such table of results"):
        read_results(tmp_path / "none.csv")


def test_runs_that_cannot_be_scored_are_refused():
    whole = {"arm": "a", "mode": "full", "label_fraction": 1.0, "seed": 0, "fold": 0, "metric": "rmse", "score": 1.0}
    with pytest.raises(ValueError, match="errors do not fit 1 blocks"):
        Run(**whole, blocks=np.array([0]))
    with pytest.raises(ValueError, match="no block was tested"):
        Run(**whole, blocks=np.array([], dtype=np.int64))
    with pytest.raises(ValueError, match="mode 'none', metric 'rmse': expected one of full"):
        Run(**{**whole, "mode": "none"}, blocks=np.array([0]))
    with pytest.raises(ValueError, match="truth and shares do not fit 2 blocks"):
        Run(**{**whole, "metric": "roc_auc"}, blocks=np.array([0, 1]), truth=(np.zeros(1),), shares=(np.zeros(1),))
    with pytest.raises(ValueError, match="hits and predicted and labelled do not fit 1 blocks"):
        Run(**{**whole, "metric": "mean_iou"}, blocks=np.array([0]), hits=np.zeros((1, 2), dtype=np.int64))


def damaged(folder, run, column, text, line=1):
    """A table of a run with one cell replaced."""
    path = folder / "results.csv"
    write_results(path, [run])
    rows = [row.split(",") for row in path.read_text().splitlines()]
    rows[line][rows[0].index(column)] = text
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    return path
