"""Running a study: order, failures, time, signals; and a whole small study from trials to report."""

import errno
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import main_pretrain
from scripts import worth_it
from scripts.parsers import duration
from study import commands, plan, runner
from study.arms import StudyArm
from study.curves import read_curves
from study.outcomes import read_json
from study.plan import Task
from study.results import read_results
from study.runner import LOG, PATIENCE_S, Pool, Running, hold
from tests import labelled, small_main, surveys
from util.processes.signals import Stop
from util.run_page.record import read_records

ARM = StudyArm("a")
SAYS = "import sys, pathlib; pathlib.Path('{0}').open('a').write('{1} '); "


def task(name, *needs):
    return Task(name, "fit", ARM, 0, needs=needs)


class Quick:
    """A pool that runs lines of Python, and what it was asked."""

    def __init__(self, folder: Path, slots: int = 1, *, show: bool = False) -> None:
        self.folder, self.file = folder, folder / "order.txt"
        self.pool = Pool(folder, devices=[f"slot{i}" for i in range(slots)], environment=dict(os.environ), show=show)
        self.devices: dict[str, str] = {}

    def run(self, tasks, code=None, *, deadline=float("inf"), seconds=0.0, stop=None):
        def command(one, device):
            self.devices[one.name] = device
            body = (code or {}).get(one.name, "")
            return [sys.executable, "-S", "-c", SAYS.format(self.file, one.name) + body]

        return self.pool.run(
            tasks,
            command=command,
            finish=lambda one, _, wall: {"wall": wall},
            estimate=lambda one: seconds,
            deadline=deadline,
            stop=stop or Stop(),
        )

    def order(self):
        return self.file.read_text().split() if self.file.exists() else []


def test_tasks_run_in_order_but_wait_for_what_they_need(tmp_path):
    quick = Quick(tmp_path)
    out = quick.run([task("c", "b"), task("a"), task("b", "a"), task("d")])
    assert quick.order() == ["a", "b", "c", "d"] and out.done == {"a", "b", "c", "d"} and not out.left
    assert read_json(tmp_path / "a/done.json")["wall"] > 0
    again = quick.run([task("a"), task("b", "a"), task("e")])
    assert quick.order()[4:] == ["e"] and again.done == {"a", "b", "e"}  # what is done is not done again


def test_every_slot_has_its_device(tmp_path):
    quick = Quick(tmp_path, slots=2)
    wait = "import time; time.sleep(0.3)"
    out = quick.run([task("a"), task("b"), task("c")], {"a": wait, "b": wait, "c": wait})
    assert len(out.done) == 3 and {quick.devices["a"], quick.devices["b"]} == {"slot0", "slot1"}


def test_a_failure_is_told_and_the_rest_goes_on(tmp_path):
    quick = Quick(tmp_path)
    broken = "print('x: error: no such layer', file=sys.stderr); sys.exit(2)"
    out = quick.run([task("a"), task("b", "a"), task("c")], {"a": broken})
    assert quick.order() == ["a", "c"] and out.left == ["b"]
    assert out.failed["a"].startswith("x: error: no such layer (status 2") and LOG in out.failed["a"]


def test_only_what_the_last_attempt_said_is_repeated(tmp_path):
    quick = Quick(tmp_path)
    quick.run([task("a")], {"a": "print('x: error: old', file=sys.stderr); sys.exit(2)"})
    out = quick.run([task("a")], {"a": "print('new', file=sys.stderr); sys.exit(3)"})
    assert out.failed["a"].startswith("new (status 3")
    out = quick.run([task("a")], {"a": "sys.exit(3)"})
    assert out.failed["a"].startswith("it said nothing (status 3")
    assert "error: old" in (tmp_path / "a" / LOG).read_text()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "killed by signal 9 (SIGKILL), perhaps for lack of memory (all it said is in "),
        (signal.SIGTERM, "killed by signal 15 (SIGTERM) (all it said is in "),
    ],
)
def test_a_program_that_is_killed_is_told_by_its_signal(tmp_path, number, said):
    kill = f"import os; print('epoch 1', flush=True); os.kill(os.getpid(), {int(number)})"
    out = Quick(tmp_path).run([task("a")], {"a": kill})
    assert out.failed["a"].startswith(said)


def test_only_what_is_done_is_called_done(tmp_path, caplog):
    with caplog.at_level("INFO", logger="study.runner"):
        Quick(tmp_path).run([task("a"), task("b")], {"a": "sys.exit(2)"})
    assert [record.message for record in caplog.records if record.levelname == "INFO"] == ["1 of 2 done: b"]
    assert [record.message[:10] for record in caplog.records if record.levelname == "ERROR"] == ["a failed: "]


def test_the_bar_moves_while_programs_run(tmp_path, monkeypatch):
    class Bar:
        n, mininterval = 0, 0.0
        seen: list[int] = []

        def refresh(self):
            self.seen.append(self.n)

        def close(self):
            pass

    monkeypatch.setattr(runner, "progress_bar", lambda **_: Bar())
    monkeypatch.setattr(runner, "REDRAW_S", 0.05)
    quick = Quick(tmp_path, slots=2, show=True)
    now = time.monotonic()
    running = [Running(task(name), Ended([], None), 0, now - 30.0) for name in ("a", "b")]
    monkeypatch.setattr(quick.pool, "_running", running)
    assert quick.pool._under_way(lambda one: {"a": 100.0, "b": 20.0}[one.name]) == pytest.approx(50, abs=1)
    monkeypatch.setattr(quick.pool, "_running", [])
    wait = "import time; time.sleep(0.8)"
    quick.run([task("a"), task("b", "a")], {"a": wait, "b": wait}, seconds=0.6)
    assert Bar.seen == sorted(Bar.seen) and Bar.seen[0] == 0 and Bar.seen[-1] == 1  # 1.2 s of work
    assert len(Bar.seen) > 10
    Bar.seen, Bar.mininterval = [], 60.0  # in a file
    quick.run([task("c")], {"c": wait}, seconds=0.6)
    assert not Bar.seen


def test_nothing_begins_that_would_end_too_late(tmp_path):
    quick = Quick(tmp_path)
    out = quick.run([task("a"), task("b")], deadline=time.monotonic() + 5, seconds=60.0)
    assert quick.order() == [] and out.left == ["a", "b"] and not out.failed


def test_a_signal_lets_programs_save_first(tmp_path):
    quick = Quick(tmp_path)
    saved = tmp_path / "saved"
    code = (
        f"import signal, time; signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('{saved}').touch(), "
        f"sys.exit(0)));"
        f"pathlib.Path('{tmp_path}/ready').touch(); time.sleep({PATIENCE_S / 2})"
    )
    stop = Stop()

    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        stop.signal = signal.SIGINT

    threading.Thread(target=interrupt).start()
    begin = time.monotonic()
    out = quick.run([task("a"), task("b")], {"a": code}, stop=stop)
    assert out.stopped and out.left == ["a", "b"] and saved.exists()
    assert time.monotonic() - begin < PATIENCE_S / 2 and not (tmp_path / "a/done.json").exists()


def test_a_folder_is_held_until_the_last_program_ends(tmp_path):
    lock = hold(tmp_path)
    with pytest.raises(ValueError, match="another worth_it, or programs that it left behind, are at work there"):
        hold(tmp_path)
    pool = Pool(tmp_path, devices=["cpu"], environment=dict(os.environ), show=False, lock=lock)
    running = pool._start(task("a"), [sys.executable, "-S", "-c", "import time; time.sleep(60)"], 0)
    lock.close()  # as when worth_it is killed
    with pytest.raises(ValueError, match="choose another --output_dir"):
        hold(tmp_path)
    running.process.kill()
    running.process.wait()
    hold(tmp_path).close()


# A whole study


class Ended:
    """What a program that has ended looks like."""

    def __init__(self, args, status):
        self.args, self.returncode, self.pid = args, status, 0

    def poll(self):
        return self.returncode


class InProcess(Pool):
    """Runs the programs with small networks, one after another in this process: starting Python for each takes long."""

    def _start(self, one, command, slot):
        main = {"main_pretrain": small_main.main, "main_finetune": labelled.run}[command[2]]
        (self.folder / one.name).mkdir(parents=True, exist_ok=True)
        (self.folder / one.name / LOG).touch()
        return Running(one, Ended(command, main(command[3:])), slot, time.monotonic() - 1.0)


ARMS = """arm,pretrain,finetune,probe,as_long_as,against,role,method,label_fractions,question
scratch,none,,,,,,,,
one,--scales 1,,yes,,scratch,,,,What it buys
multi,--scales 1 2,,,,one,,,,What 2x buys
one_long,--scales 1,,,multi,multi,,,,The same at equal time
scratch_long,none,,,multi,multi,,,,From scratch at equal time
multi_again,--scales 1 2,,,,multi,null,,,Control
trees,none,,,,multi,,trees,,Trees
told,none,--split leaking,,,trees,leak,trees,1,Control
"""
FLAGS = (
    "--budget 10d --seeds 2 --folds 2 --only_folds 0 --pretrain_epochs 3 --finetune_epochs 2 --label_fractions 1 "
    "--input_size 16 --patch_size 4 --devices cpu --jobs 1 --no_progress --title Small"
).split()
QUIET = ["--pretrain_flags", "--batch_size 8 --num_workers 0", "--finetune_flags", "--batch_size 8 --tree_samples 400"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with the small survey and its labels, and a command line, while epochs are short."""
    folder = tmp_path_factory.mktemp("study")
    survey = surveys.write_survey(folder / "survey")
    labelled.write_classes(folder)
    argv = ["--data_dir", str(survey), "--labels", str(folder / "classes.tif"), *FLAGS, *QUIET]
    with pytest.MonkeyPatch.context() as patch:
        for module in (plan, commands):
            patch.setattr(module, "PRETRAIN_TILES", 16)
            patch.setattr(module, "FINETUNE_WINDOWS", 16)
        patch.setattr("study.outcomes.PRETRAIN_TILES", 16)
        patch.setattr(worth_it, "Pool", InProcess)
        yield folder, argv


@pytest.fixture(scope="module")
def ended(small):
    """The folder of a whole study on the small survey, and its command line."""
    folder, argv = small
    (folder / "arms.csv").write_text(ARMS)
    argv = [*argv, "--arms", str(folder / "arms.csv"), "--output_dir", str(folder / "out")]
    assert worth_it.main(argv) == 0
    return folder / "out", argv


def test_every_run_of_the_plan_is_in_the_results(ended):
    out, _ = ended
    runs = read_results(out / "results.csv")
    keys = {(run.arm, run.mode, run.label_fraction) for run in runs}
    full = ("scratch", "one", "multi", "one_long", "scratch_long", "multi_again")
    assert keys == {(arm, "full", 1.0) for arm in full} | {
        ("one", "probe", 1.0),
        ("trees", "trees", 1.0),
        ("told", "trees", 1.0),
    }
    assert len(runs) == len(keys) * 2  # seeds
    facts = read_json(out / "study.json")
    assert facts["done"] == facts["planned"] == len(runs) and facts["metric"] == "mean_iou"
    assert {run.seed for run in runs if run.arm == "multi_again"} == {1000, 1001}
    for run in runs:
        network = run.mode != "trees"
        assert (
            (run.pretrain_flops > 0)
            == (run.pretrain_tiles > 0)
            == (run.arm in ("one", "multi", "one_long", "multi_again"))
        )
        assert run.finetune_s > 0 and (run.finetune_flops is not None) == network
        if network and run.arm != "scratch_long":
            assert run.finetune_tiles == 2 * 16
    assert {run.pretrain_tiles for run in runs if run.arm == "multi"} == {3 * 16.0}


def test_all_arms_are_tested_on_the_same_blocks(ended):
    blocks: dict[tuple[int, int], set[tuple[int, ...]]] = {}
    truth: dict[tuple[int, ...], set[bytes]] = {}
    for run in read_results(ended[0] / "results.csv"):
        blocks.setdefault((0, run.fold), set()).add(tuple(run.blocks))
        truth.setdefault(tuple(run.blocks), set()).add(np.asarray(run.labelled).tobytes())
    assert all(len(found) == 1 for found in (*blocks.values(), *truth.values()))


def test_equal_time_is_what_was_measured(ended):
    out, _ = ended
    lengths = read_json(out / "plan.json")["lengths"]
    pretraining = {
        arm: [read_json(out / f"pretrain/{arm}-seed{seed}/done.json") for seed in (0, 1)] for arm in ("one", "multi")
    }
    cost = {arm: np.mean([facts["cpu_seconds"] for facts in of]) for arm, of in pretraining.items()}
    assert lengths["pretrain"]["one_long"] == max(1, round(3 * cost["multi"] / cost["one"]))
    own = read_json(out / "fit/multi-seed0-labels1/done.json")["modes"]["full"]["train_cpu_seconds"]
    assert lengths["finetune"]["scratch_long"] == max(1, round(2 * (cost["multi"] + own) / own))


def test_the_control_wins_and_the_report_is_there(ended):
    out, _ = ended
    text = (out / "report.md").read_text()
    assert "Small" in text and "What 2x buys" in text
    page, record = (out / "report.html").read_text(), read_records(out)[0]
    assert "What 2x buys" in page and page.count("<img ") == 2 and record.sessions[0].state == "finished"
    assert re.fullmatch(r"(\d+) of \1 programs done", record.progress)
    assert (out / "score-cost.png").stat().st_size > 10_000 and (out / "differences.png").stat().st_size > 5_000
    scores = {
        (run.arm, run.fold, run.seed): run.score for run in read_results(out / "results.csv") if run.label_fraction == 1
    }
    assert min(v for k, v in scores.items() if k[0] == "told") > max(v for k, v in scores.items() if k[0] != "told")


def test_nothing_is_done_twice_and_the_report_is_rebuilt_the_same(ended, capsys):
    out, argv = ended
    before = {path: path.stat().st_mtime_ns for path in out.rglob("done.json")}
    report, csv = (out / "report.md").read_text(), (out / "results.csv").read_bytes()
    assert worth_it.main(argv) == 0
    assert f"next: read {out / 'report.md'}; if pre-training is worth it: python -m main_pretrain --data_dir" in (
        capsys.readouterr().err
    )
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("done.json")}
    assert (out / "results.csv").read_bytes() == csv
    (out / "report.md").unlink()
    assert worth_it.main(["--report_only", "--output_dir", str(out)]) == 0
    assert (out / "report.md").read_text() == report


def test_the_report_is_written_again_under_another_title(ended, tmp_path, capsys):
    """The new title is stored, in `study.json` as elsewhere; a later call without one keeps it."""
    out = tmp_path / "copy"
    out.mkdir()
    for name in ("results.csv", "study.json"):
        (out / name).write_bytes((ended[0] / name).read_bytes())
    assert "Small</h1>" in (ended[0] / "report.html").read_text(encoding="utf-8")
    before, again = read_json(out / "study.json"), ["--report_only", "--output_dir", str(out)]
    for title in (["--title", "Rocks & <ores>"], []):
        assert worth_it.main([*again, *title]) == 0
        assert read_json(out / "study.json") == {**before, "title": "Rocks & <ores>"}
        heading = (out / "report.md").read_text(encoding="utf-8").splitlines()[0]
        assert heading == "# Is multi-scale pre-training worth its cost? Rocks & <ores>"
        assert "Rocks &amp; &lt;ores&gt;</h1>" in (out / "report.html").read_text(encoding="utf-8")
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    (out / "results.csv").unlink()
    assert worth_it.main([*again, "--title", "Other"]) == 2
    assert "no such table of results" in capsys.readouterr().err
    assert read_json(out / "study.json")["title"] == "Rocks & <ores>"


def test_checkpoints_that_nothing_needs_are_gone(ended):
    names = {str(path.relative_to(ended[0]).parts[0]) for path in ended[0].rglob("checkpoint-*.pth")}
    assert names == {"pretrain", "trials"}
    assert {path.name for path in ended[0].rglob("checkpoint-*.pth")} == {"checkpoint-last.pth"}


EARLY_ARMS = """arm,method,pretrain,probe,as_long_as,against,label_fractions
scratch,network,none,,,,
one,network,--scales 1,yes,,scratch,
scratch_long,network,none,,one,one,
trees,trees,none,,,one,
"""


@pytest.fixture(scope="module")
def early(small):
    """A study of two folds of three whose fits end early, on the small survey."""
    folder, argv = small
    (folder / "early.csv").write_text(EARLY_ARMS)
    argv = [*argv, "--arms", str(folder / "early.csv"), "--output_dir", str(folder / "early"), "--seeds", "1"]
    argv += "--folds 3 --only_folds 0 2 --patience 2 --finetune_epochs 8".split()
    assert worth_it.main(argv) == 0
    return folder / "early", argv


def test_fits_end_early_and_those_of_equal_time_do_not(early):
    out, _ = early
    plan_, curves = read_json(out / "plan.json"), read_curves(out / "curves.csv")
    assert plan_["wishes"]["settings"]["patience"] == 2 and plan_["rates"]["validation"] > 0
    lengths = plan_["lengths"]["finetune"]
    assert {(of.arm, of.mode) for of in curves} == {
        *((arm, "full") for arm in ("scratch", "one", "scratch_long")),
        ("one", "probe"),
        ("trees", "trees"),
    }
    runs = {run.key: run for run in read_results(out / "results.csv")}
    assert {run.fold for run in runs.values()} == {0, 2}
    for of in (of for of in curves if of.arm != "trees"):
        run, epochs = runs[(of.arm, of.mode, of.regime, of.seed, of.fold)], len(of.scores)
        assert run.finetune_tiles == 16 * epochs  # all epochs are charged, those after the best one too
        assert run.finetune_s == of.train_s and of.best_epoch <= epochs <= lengths[of.arm]
        if of.arm == "scratch_long":
            assert epochs == lengths[of.arm]
    own = read_json(out / "fit/one-seed0-labels1/done.json")["modes"]["full"]
    mean = np.mean([len(of.scores) for of in curves if (of.arm, of.mode) == ("one", "full")])
    assert own["epochs"] == mean and own["validation_seconds"] > 0
    paid = read_json(out / "pretrain/one-seed0/done.json")["cpu_seconds"]
    cost = own["train_cpu_seconds"]
    assert lengths["scratch_long"] == max(1, round(mean * (paid + cost) / cost))


def test_a_study_is_extended_by_folds(small, capsys):
    folder, argv = small
    (folder / "folds.csv").write_text("arm,method,pretrain\none,network,--scales 1\ntrees,trees,none\n")
    argv = [*argv, "--arms", str(folder / "folds.csv"), "--seeds", "1"]
    whole, grown = folder / "whole", folder / "grown"
    argv += ["--only_folds", "0", "1"]
    assert worth_it.main([*argv, "--output_dir", str(whole)]) == 0
    assert worth_it.main([*argv, "--output_dir", str(grown), "--only_folds", "1"]) == 0
    fit = grown / "fit/one-seed0-labels1"
    first, scores = read_json(fit / "done.json"), fit / "fits/pretrained-fold1/scores.npz"
    written = scores.stat().st_mtime_ns
    assert worth_it.main([*argv, "--output_dir", str(grown)]) == 0
    assert scores.stat().st_mtime_ns == written  # the fold that was there is not fitted again
    assert read_json(fit / "done.json")["wall_seconds"] > first["wall_seconds"]
    runs = [read_results(out / "results.csv") for out in (whole, grown)]
    assert [run.key for run in runs[0]] == [run.key for run in runs[1]] and {run.fold for run in runs[0]} == {0, 1}
    assert [run.score for run in runs[0]] == [run.score for run in runs[1]]
    assert read_json(grown / "study.json")["folds"] == 2
    capsys.readouterr()
    assert worth_it.main([*argv, "--output_dir", str(grown), "--only_folds", "0"]) == 2
    assert "holds a study of fold 1 too, now --only_folds 0; name all of its folds" in capsys.readouterr().err


def test_the_report_says_which_fits_did_not_converge(early, capsys):
    out, argv = early
    text, record = (out / "report.md").read_text(), read_json(out / "study.json")
    stuck = sum(len(of.scores) == 8 for of in read_curves(out / "curves.csv") if of.arm != "scratch_long")
    said = (
        f"**{stuck} of 6 fits trained up to the greatest length without converging**"
        if stuck
        else "All fits that could end early did"
    )
    assert record["patience"] == 2 and "## Length of the fits" in text and said in text
    assert re.search(r"\| scratch_long \| full \| all \| 2 \| [\d.]+ \| [\d.]+ \| fixed length \|", text)
    assert re.search(r"\| scratch \| full \| all \| \d of 2 \|", text)  # that reach the score of trees
    assert re.search(r"\| one \| all \| [\d,]+ \+ \d+ \| scratch(_long)?, ", text)
    assert worth_it.main(["--report_only", "--output_dir", str(out)]) == 0
    assert (out / "report.md").read_text() == text
    assert worth_it.main([*argv, "--patience", "3"]) == 2
    assert "holds a study with other settings" in capsys.readouterr().err


def test_another_study_in_the_same_folder_is_refused(ended, capsys):
    out, argv = ended
    assert worth_it.main([*argv, "--finetune_epochs", "3"]) == 2
    assert "holds a study with other finetune_epochs: 2, now 3; choose another --output_dir" in capsys.readouterr().err


def test_the_plan_is_printed(ended, capsys):
    assert worth_it.main([*ended[1], "--plan"]) == 0
    said = capsys.readouterr().err
    assert "one_long" in said and "as multi" in said and "h of work" in said
    again = said.splitlines()[-1]
    assert "next: python -m scripts.worth_it --data_dir" in again and "--plan" not in again


BAD = [
    ("--budget soon", "soon: expected a duration such as 90s, 30m, 2h or 1.5d"),
    ("--data_dir .", "--labels is missing: expected the labels of --data_dir"),
    ("--arms nowhere.csv", "nowhere.csv: no such file; expected a CSV with a row for each arm"),
    ("--pretrain_flags '--input_size 24'", "--pretrain_flags has --input_size, which must be the same for all arms"),
    ("--finetune_flags '--seed 3'", "--finetune_flags has --seed, which the study sets itself"),
    ("--label_fractions 0 1", "--label_fractions 0 1, expected shares above 0 and at most 1"),
    ("--label_fractions 2", "--label_fractions 2, expected shares above 0 and at most 1"),
    ("--label_fractions 0.1 1 0.1", "--label_fractions 0.1 1 0.1, expected each share once"),
    ("--data_dir . --train_path a.csv --labels b.tif", "--data_dir and --train_path both name the layers; give one"),
    ('--finetune_flags "--head \'x"', '--finetune_flags "--head \'x": No closing quotation'),
    ("--pretrain_flags '--aoi a.gpkg'", "--pretrain_flags has --aoi, which networks from scratch and trees would not"),
    ("--patience 5 --folds 2", "--patience 5 with --folds 2: fits are validated on half .* expected at least 3 folds"),
    ("--only_folds 1 3", "--only_folds 3: there are 3 folds, expected 0 to 2"),
    ("--patience 30", "--patience 30 with --finetune_epochs 30: no fit could end early; expected a longer"),
    ("--finetune_flags '--patience 3'", "--finetune_flags has --patience, which must be the same for all arms"),
    ("--report_only", "results.csv: no such table of results; run the study first"),
]


@pytest.mark.parametrize(("flags", "said"), BAD)
def test_bad_input_ends_at_once(tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worth_it, "default_survey", lambda: tmp_path)
    try:
        assert worth_it.main([*shlex.split(flags), "--output_dir", str(tmp_path / "out")]) == 2
    except SystemExit as end:
        assert end.code == 2
    assert re.search(said, capsys.readouterr().err)


def test_arms_may_be_added_but_not_changed(ended, tmp_path, monkeypatch, capsys):
    out, arms = tmp_path / "out", tmp_path / "arms.csv"
    shutil.copytree(ended[0], out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("done.json")}
    arms.write_text("arm,pretrain,finetune\nscratch,none,\nmore,none,--drop_path 0.2\n")
    argv = [*ended[1], "--arms", str(arms), "--output_dir", str(out)]
    assert worth_it.main(argv) == 0
    done = {path: path.stat().st_mtime_ns for path in out.rglob("done.json")}
    assert before.items() <= done.items()
    assert {path.parent.name for path in done.keys() - before.keys()} == {"more-seed0-labels1", "more-seed1-labels1"}
    assert {run.arm for run in read_results(out / "results.csv")} == {"scratch", "more"}
    assert {arm["name"] for arm in read_json(out / "plan.json")["wishes"]["arms"]} >= {"multi", "trees", "more"}
    arms.write_text("arm,pretrain,finetune\nmulti,--scales 1 4,\n")
    assert worth_it.main(argv) == 2
    assert "holds a study with other arm multi" in capsys.readouterr().err


def test_an_arm_that_is_tested_on_other_ground_is_left_out(ended, tmp_path, monkeypatch, capsys):
    arms = tmp_path / "arms.csv"
    arms.write_text("arm,pretrain,finetune\none,--scales 1 2,\nscratch,none,\nodd,none,--val_buffer 8\n")
    monkeypatch.setattr(worth_it, "Pool", InProcess)
    out = tmp_path / "out"
    argv = [*ended[1], "--arms", str(arms), "--seeds", "1", "--pretrain_epochs", "1", "--output_dir", str(out)]
    assert worth_it.main(argv) == 1
    said = capsys.readouterr().err
    assert "odd-seed0-labels1 failed: it tested other ground than the other arms" in said
    assert "such as --val_buffer, or --input_size without a --base_resolution" in said
    assert {run.arm for run in read_results(out / "results.csv")} == {"one", "scratch"}
    assert "other ground" in (out / "report.md").read_text()


def test_a_trial_of_other_flags_is_done_again(ended, tmp_path, monkeypatch):
    """A plan that was never begun, then the same folder with other labels: nothing of the old trials is used."""
    argv, out = ended[1], tmp_path / "out"
    shutil.copytree(ended[0] / "trials", out / "trials")
    monkeypatch.setattr(worth_it, "Pool", InProcess)
    arms = tmp_path / "arms.csv"
    arms.write_text("arm,pretrain\none,--scales 1 2\nwide,--scales 1\n")
    before = read_json(out / "trials/one/done.json")["command"]
    assert worth_it.main([*argv, "--arms", str(arms), "--output_dir", str(out), "--plan"]) == 0
    after = read_json(out / "trials/one/done.json")["command"]
    assert before[before.index("--scales") + 2] != "2" and after[after.index("--scales") + 2] == "2"


def test_the_base_pixel_is_asked_for_or_that_of_the_widest_arm_without_one_of_its_own(ended, tmp_path, monkeypatch):
    monkeypatch.setattr(worth_it, "Pool", InProcess)
    arms = tmp_path / "arms.csv"
    arms.write_text("arm,pretrain\nown,--scales 1 2 --base_resolution 400\ntwo,--scales 1 2\none,--scales 1\n")
    for flags, base in (([], "200"), (["--base_resolution", "100"], "100")):
        out = tmp_path / f"out{base}"
        assert worth_it.main([*ended[1], "--arms", str(arms), "--output_dir", str(out), *flags, "--plan"]) == 0
        for arm, expected in (("own", "400"), ("one", base)):
            assert read_json(out / f"trials/{arm}/done.json")["base_resolution"] == float(expected)


def test_layers_that_are_the_labels_are_hidden_from_pretraining(tmp_path):
    survey = surveys.write_survey(tmp_path / "survey")
    layers = sorted(path.name for path in survey.glob("*.tif"))
    for number, name in enumerate(layers):
        data = ("--data_dir", str(survey))
        assert worth_it.label_layers(data, str(survey / name), 1, "regression") == (number,)
        assert worth_it.label_layers(data, str(survey / name), 2, "regression") == ()
    assert worth_it.label_layers(data, str(tmp_path / "other.tif"), 1, "segmentation") == ()


@pytest.mark.parametrize(
    ("own", "hidden"),
    [
        ((), [2, 3]),
        (("--dropped_bands", "0"), [1, 2]),
        (("--scales", "1", "--dropped_bands", "1", "4"), [1, 2]),
        (("--dropped_bands=2",), [2]),
        (("--dropped_bands", "2", "3"), []),
        (("--masked_bands", "0"), [0]),
    ],
)
def test_hidden_labels_are_numbered_as_after_an_arms_dropped_layers(own, hidden, tmp_path):
    settings = commands.Settings(("--data_dir", "d"), ("--labels", "l"), label_layers=(2, 3))
    one = Task("pretrain/a", "pretrain", StudyArm("a", pretrain=own), 0)
    command = commands.pretrain_command(one, settings, folder=tmp_path, epochs=2)
    parser = main_pretrain.get_args_parser()
    assert parser.parse_args(command[1:]).masked_bands == hidden


def test_labels_that_do_not_fit_end_the_trials_with_the_programs_words(ended, tmp_path, monkeypatch, capsys):
    class WithWords(InProcess):
        def _start(self, one, command, slot):
            running = super()._start(one, command, slot)
            (self.folder / one.name / LOG).write_text(capsys.readouterr().err)
            return running

    monkeypatch.setattr(worth_it, "Pool", WithWords)
    argv = [*ended[1], "--labels", str(tmp_path / "none.tif"), "--only_arms", "trees", "--output_dir", str(tmp_path)]
    arms = tmp_path / "arms.csv"
    arms.write_text("arm,method\ntrees,trees\n")
    assert worth_it.main([*argv, "--arms", str(arms)]) == 1
    assert "trials/fit: main_finetune: error: " in capsys.readouterr().err


@pytest.mark.parametrize(("text", "said"), [("{", "not JSON"), ("[]", "holds a list, expected an object of facts")])
def test_damaged_facts_end_a_report_with_one_line(tmp_path, capsys, text, said):
    (tmp_path / "study.json").write_text(text)
    assert worth_it.main(["--report_only", "--output_dir", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "worth_it: error: " in lines[0] and f"study.json: {said}" in lines[0]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("done.json", "remove its folder, and the study does that part again"),
        ("plan.json", "restore it, or begin the study anew in another --output_dir"),
        ("study.json", "restore it, or run the study's command again, which writes it anew"),
    ],
)
def test_a_damaged_file_is_told_with_what_to_do(tmp_path, name, advice):
    path = tmp_path / name
    for text, said in (("{", "no JSON"), ("[]", "holds a list, expected an object")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{name}: {said}.*; {advice}"):
            read_json(path)


def test_only_what_lies_here_gets_a_path_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("labels.tif").touch()
    assert worth_it.from_anywhere("labels.tif") == str(Path("labels.tif").resolve())
    for path in ("xarray:a.zarr#g", "https://host/a.tif", "/vsicurl/https://host/a.tif", "~nobody-of-that-name/a.tif"):
        assert worth_it.from_anywhere(path) == path


def test_few_seeds_are_warned_of_once(caplog):
    for seeds in (None, 3, 10):
        worth_it.warn_of_few_seeds(seeds)
    assert not caplog.records
    worth_it.warn_of_few_seeds(2)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "--seeds 2: fewer than 3 are no ground for a decision" in caplog.text


def test_durations():
    assert [duration(text) for text in ("90s", "30m", "2h", "1.5d")] == [90, 1800, 7200, 129600]


def small_study(argv):
    """A study as a program whose parts run in this process; returns the exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worth_it, "Pool", InProcess)
        return worth_it.main(list(argv))


def small_files():
    """Lets no file of this process grow beyond 100 kB: less than a checkpoint."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.skipif(os.name == "nt", reason="needs limits of file sizes")
def test_a_full_disk_ends_a_study_that_the_same_command_continues(ended, tmp_path):
    arms, out = tmp_path / "arms.csv", tmp_path / "out"
    arms.write_text("arm,pretrain,against\nscratch,none,\none,--scales 1,scratch\n")
    argv = [*ended[1], "--arms", str(arms), "--seeds", "1", "--pretrain_epochs", "1", "--output_dir", str(out)]
    full = surveys.Started(argv, tmp_path / "messages.txt", before=small_files, program=small_study)
    status, text = full.wait()
    assert status == 1 and "Traceback" not in text, text
    assert "free some space" in text.lower() and text.count("worth_it: error: ") == 1, text
    assert not list(out.rglob("*.pth")) and not list(out.rglob("done.json"))
    assert small_study(argv) == 0
    assert len(read_results(out / "results.csv")) == 2


@pytest.mark.skipif(os.name == "nt", reason="needs limits of file sizes")
def test_a_full_disk_while_a_study_writes_its_own_files(ended, tmp_path, monkeypatch, capsys):
    """Its tables and reports are whole or not there; the same command writes them."""
    out = tmp_path / "out"
    shutil.copytree(ended[0], out)
    argv = [*ended[1], "--output_dir", str(out)]
    for name in ("results.csv", "report.md"):
        (out / name).unlink()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        assert small_study(argv) == 1
    message = capsys.readouterr().err
    assert message.count("worth_it: error: ") == 1 and "No space left on device; free some space" in message
    assert not (out / "results.csv").exists() and not (out / "report.md").exists()
    assert small_study(argv) == 0
    assert (out / "report.md").stat().st_size > 5000 and not list(out.glob(".*.md"))
