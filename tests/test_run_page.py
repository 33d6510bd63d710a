"""The page of a run: what it says, that nothing in it can do harm, and that it never costs a run."""

import json
import logging
import math
import re
import signal
import time
from html.parser import HTMLParser

import numpy as np
import pytest

import main_inference
import main_pretrain
from datasets.layers.encoding import Encoding
from datasets.survey.overview import _coarser, histogram
from study.report import build_report
from study.results import write_results
from tests import labelled, surveys
from tests.study_runs import study_runs
from util.options.parser import Parser
from util.processes.heard_warnings import heard_warnings
from util.processes.terminal import setup_logging
from util.run_page import charts, page
from util.run_page.content import Chart, GroundMap, Histogram, Line
from util.run_page.page import RunPage, page_of
from util.run_page.record import RunRecord, Session, read_records
from util.run_page.studies import document
from util.run_page.used_options import differing_options

NASTY = '<b>&"'
VOID = {"meta", "img", "link", "br", "hr", "input", "path", "rect", "line", "circle", "image"}


class Page(HTMLParser):
    """A page taken apart: text, addresses, headings; elements that are not closed in order are errors."""

    def __init__(self, html):
        super().__init__()
        self.open, self.addresses, self.text, self.tags, self.attributes = [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attributes)))
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def read(folder):
    """The page of a folder, of which nothing is fetched from anywhere."""
    html = (folder / "report.html").read_text(encoding="utf-8")
    found = Page(html)
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in found.addresses)
    assert "url(" not in html and "@import" not in html and "script" not in found.tags
    names = {attributes.get("id") for _, attributes in found.attributes}
    assert all(address[1:] in names for address in found.addresses if address[0] == "#")
    return found


def record_of(program, **values):
    session = Session(time.time(), f"python -m {program}", {"device": "cpu"}, "finished", time.time())
    return RunRecord(program, **{"sessions": [session], **values})


# ------------------------------------------------------------------------------------------------------ what it says


def test_names_from_files_stay_text(tmp_path):
    layer = {"name": NASTY, "file": NASTY, "kind": "continuous", "unit": NASTY, "transform": "", "group": 0}
    layer |= {"histogram": {"low": 0.0, "high": 1.0, "counts": [1, 2], "values": 3}}
    ground = {"bounds": [0, 0, 9, 9], "unit": NASTY, "crs": NASTY, "points": []}
    ground |= {"rectangles": [{"bounds": [0, 0, 3, 3], "name": NASTY}]}
    overview = {"layers": [layer], "counts": [[NASTY, NASTY]], "map": ground}
    warning = {"text": NASTY, "level": "warning", "time": 0.0, "times": 2}
    run = record_of("main_pretrain", overview=overview, warnings=[warning], progress=NASTY)
    html = page_of(tmp_path, [run])
    assert NASTY not in html and "<b>" not in html
    assert Page(html).words.count(NASTY) >= 9


def test_options_that_differ_are_listed_and_only_those():
    args = main_pretrain.get_args_parser().parse_args(["--epochs", "7", "--scales", "1", "2", "--norm_pix_loss"])
    rows = differing_options("main_pretrain", {**vars(args), "batch_size": 12}, ["--epochs=7", "--scales", "1", "2"])
    assert sorted(rows) == sorted(
        [
            ("--epochs", "7", "50", "given"),
            ("--scales", "1 2", "1 2 4", "given"),
            ("--norm_pix_loss", "on", "off", "chosen by the program"),
            ("--batch_size", "12", "32", "chosen by the program"),
        ]
    )


def test_pairs_groups_and_switches_are_written_as_one_gives_them():
    words = "--transform mag=asinh grav=log --grouped_bands 0 1 --grouped_bands 2 --mask_shape block=0.5 --no-pin_mem"
    args = main_pretrain.get_args_parser().parse_args(words.split())
    found = {flag: value for flag, value, *_ in differing_options("main_pretrain", vars(args), words.split())}
    assert found["--transform"] == "mag=asinh grav=log" and found["--grouped_bands"] == "[0 1] [2]"
    assert found["--mask_shape"] == "block=0.5" and found["--no-pin_mem"] == "off"


def test_a_curve_of_three_points():
    drawn = charts.draw_chart(Chart("c", "x", "y", [Line("a", [(0, 0.0), (1, math.nan), (2, 1.0)])], level=0.5))
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    height = charts.HEIGHT - charts.BOTTOM - charts.TOP
    low, high = charts.TOP + height * 1.05 / 1.1, charts.TOP + height * 0.05 / 1.1  # a margin of 5 % on either side
    assert drawn.strokes[0].path == f"M{left:g} {low:.1f}L{right:g} {high:.1f}"
    assert drawn.level == pytest.approx((low + high) / 2, abs=0.06)
    assert [tick.label for tick in drawn.x_ticks] == ["0", "1", "2"]


def test_charts_without_a_finite_point_are_left_out_and_one_point_is_a_dot():
    assert charts.draw_chart(Chart("c", "x", "y", [Line("a", [(0, None), (1, math.inf)])])) is None
    assert charts.draw_chart(Chart("c", "x", "y", [Line("a", [(3, 2.0)])])).strokes[0].dot is not None


def test_long_curves_keep_their_means_and_their_end():
    points = [(i, i % 7) for i in range(10_000)]
    thin = charts.thinned(points)
    assert len(thin) == charts.MOST_POINTS and thin[-1] == points[-1]
    assert np.mean([y for _, y in thin]) == pytest.approx(3, abs=0.05)


def test_bars_are_as_high_as_their_counts():
    drawn = charts.draw_histogram(Histogram([1, 0, 4], "0", "1", "h"))
    assert [bar[3] for bar in drawn.bars] == [charts.SMALL_HEIGHT / 4, 0, charts.SMALL_HEIGHT]


def test_a_map_keeps_its_proportions_and_north_is_up():
    ground = {"bounds": [100, 0, 300, 100], "unit": "m", "crs": "EPSG:32633"}
    ground |= {"rectangles": [{"bounds": [100, 50, 150, 100], "name": "held-out block"}]}
    drawn = charts.draw_map(GroundMap("m", ground, "valid"))
    edge, rim = charts.MAP_EDGE, charts.MAP_RIM
    assert drawn.frame == (rim, rim, edge, edge / 2)
    assert drawn.shapes[0].box == (rim, rim, edge / 4, edge / 4)


def test_histograms_of_values_and_classes():
    values = np.repeat(np.arange(4, dtype=np.float32), [1, 2, 3, 4])
    found = histogram(values, Encoding())
    assert sum(found["counts"]) <= 10 and found["values"] == 10 and found["counts"][-1] == 4
    classes = Encoding("categorical", codes=(0.0, 1.0, 3.0), names=("sand", "clay", "till"))
    assert histogram(values, classes) == {"names": ["till", "clay", "sand"], "counts": [4, 2, 1], "values": 10}
    assert histogram(values[:0], classes) is None


def test_coarser_maps_keep_the_mean_of_each_cell():
    image = np.arange(35.0).reshape(5, 7)
    found = _coarser(image, 3)
    assert found.shape == (2, 3)
    assert found[0, 0] == image[:3, :3].mean() and found[1, 2] == image[3:, 6:].mean()


def test_warnings_are_kept_and_still_shown(capsys):
    setup_logging()
    for _ in range(3):
        logging.getLogger("util").warning("mind the %s", "gap")
    logging.getLogger("util").info("nothing")
    assert [(of["text"], of["times"], of["level"]) for of in heard_warnings()] == [("mind the gap", 3, "warning")]
    assert capsys.readouterr().err.count("mind the gap") == 3
    setup_logging()
    assert heard_warnings() == []


def test_markup_in_a_report_stays_text(tmp_path):
    parts = ["# Title", "## Verdict", "> **WARNING** it", "<script>alert(1)</script> `<b>`", "![curve](no.png)"]
    (tmp_path / "report.md").write_text("\n\n".join([*parts, "| a | b |\n|---|---|\n| 1 | 2 |"]) + "\n")
    html = document(tmp_path / "report.md")
    assert "<script" not in html and "&lt;script&gt;" in html and "&lt;b&gt;" in html
    assert "<h3>Verdict</h3>" in html and "<blockquote>" in html and "<td>2</td>" in html
    assert "Title" not in html and "<img" not in html and "curve" in html


# ------------------------------------------------------------------------------------------ it never costs a run


def begun(tmp_path, **values):
    found = RunPage(tmp_path, "main_pretrain")
    found.begin(**{"resumed": False, "options": {}, "environment": {"device": "cpu"}, **values})
    return found


def test_a_page_that_cannot_be_written_is_said_once(tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "write_records", full)
    run = begun(tmp_path, overview=lambda: 1 / 0)
    run.update(progress="1 of 2")
    run.end()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1 and "report.html not written (ZeroDivisionError" in said[0], said
    assert not list(tmp_path.iterdir())


def test_what_was_read_may_be_unknown(tmp_path):
    def broken():
        raise OSError("tile lost")

    begun(tmp_path, overview=broken).end()
    assert "tile lost" in read(tmp_path).words


def test_a_page_takes_a_hundredth_of_the_time(tmp_path, monkeypatch):
    clock = [0.0]
    written = []

    def slow(self):
        written.append(clock[0])
        clock[0] += 2.0

    run = begun(tmp_path)
    monkeypatch.setattr(page.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(RunPage, "_write_files", slow)
    run._written = 0.0
    for _ in range(1000):
        clock[0] += 1.0
        run.update(progress="on")
    assert len(written) in (5, 6) and written[0] == 1.0  # 2 s each, one in 200 s, and the first at once


def test_a_damaged_record_is_no_obstacle(tmp_path):
    for text in ("{", "[]", '{"runs": [3]}', '{"runs": [{"sessions": [{"a": 1}]}]}'):
        (tmp_path / "report.json").write_text(text)
        assert read_records(tmp_path) == []
    begun(tmp_path).end()
    assert "stopped" in read(tmp_path).words


def test_other_ranks_and_dry_runs_write_nothing(tmp_path):
    run = RunPage(tmp_path, "main_pretrain", enabled=False)
    run.begin(resumed=False, options={}, environment={})
    run.update(progress="x")
    run.end()
    survey = surveys.write_survey(tmp_path / "survey")
    assert surveys.train(survey, tmp_path / "out", "--dry_run") == 0
    assert not list(tmp_path.rglob("report.*"))


def test_a_killed_run_is_not_running_for_ever(tmp_path):
    begun(tmp_path)
    run = begun(tmp_path, resumed=True)
    run.finish()
    run.end()
    assert [session.state for session in read_records(tmp_path)[0].sessions] == ["stopped", "finished"]


# --------------------------------------------------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def pretrained(survey, tmp_path_factory):
    """A finished pre-training of two epochs and a picture, and its page as it was after the first epoch."""
    output = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        save = main_pretrain.save

        def keep(run, *, keep):
            copy = output / f"after-{run.state.progress.epoch}.html"
            copy.write_text((output / "report.html").read_text(encoding="utf-8"), encoding="utf-8")
            save(run, keep=keep)

        patch.setattr(main_pretrain, "save", keep)
        assert surveys.train(survey, output, "--figure_every", "1", *surveys.HELD_OUT, pictures=True) == 0
    return output


def test_a_page_stands_after_the_first_epoch(pretrained):
    text = (pretrained / "after-1.html").read_text(encoding="utf-8")
    found = Page(text)
    assert "running 1 of 2 epochs done" in found.words and "Scores after epoch 1" in found.words
    assert 'http-equiv="refresh"' in text


def test_the_page_of_a_pretraining(pretrained):
    found = read(pretrained)
    words = found.words
    assert words.startswith("Pre-training") and "finished 2 of 2 epochs done" in words
    assert "Scores after epoch 2" in words and "gravity" in words and "RMSE, units of the layer" in words
    assert "main_inference --checkpoint" in words and "main_finetune --finetune" in words
    assert "only 12 updates" in words or "updates in the whole run" in words  # a warning from before the page began
    assert "held-out block" in words and "centre of a training tile" in words
    assert "--epochs 2 50 given" in words and "--mask_ratio" not in words
    assert found.tags.count("img") == 1 and "refresh" not in str(found.attributes)
    assert all(attributes.get("alt") for tag, attributes in found.attributes if tag == "img")
    assert all(a.get("aria-label") or a.get("aria-hidden") for tag, a in found.attributes if tag == "svg")
    assert ("html", {"lang": "en"}) in found.attributes
    command = read_records(pretrained)[0].sessions[0].command
    assert command.startswith("python -m main_pretrain --data_dir ") and command in words


def test_the_page_is_small_beside_its_pictures(pretrained):
    html = (pretrained / "report.html").read_text(encoding="utf-8")
    assert len(re.sub(r"data:image/png;base64,[^\"]*", "", html)) < 100_000


def test_a_run_that_is_stopped_goes_on_in_the_same_page(survey, tmp_path, monkeypatch):
    save = main_pretrain.save

    def stop(run, *, keep):
        save(run, keep=keep)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(main_pretrain, "save", stop)
        assert surveys.train(survey, tmp_path) == 0
    words = read(tmp_path).words
    assert "stopped 1 of 2 epochs done" in words and "stopped by signal 15 after epoch 1" in words
    assert words.count("--resume auto") >= 1 and Parser.command_line[0] == "--data_dir"
    assert surveys.train(survey, tmp_path, "--resume", "auto") == 0
    words = read(tmp_path).words
    assert "finished 2 of 2 epochs done" in words and "in 2 starts" in words
    assert "stopped by signal 15 after epoch 1" in words  # warnings of the first start are still there
    assert [session.state for session in read_records(tmp_path)[0].sessions] == ["stopped", "finished"]


@pytest.mark.parametrize(
    "given, again",
    [
        ("--batch_size auto --lr 1", "--batch_size auto --lr 1 --resume auto"),
        ("--resume out/checkpoint-3.pth --amp auto", "--amp auto --resume auto"),
        ("--resume=x --cache auto", "--cache auto --resume auto"),
        ("--lr 1 --resume", "--lr 1 --resume auto"),
    ],
)
def test_the_command_that_goes_on_is_the_given_one_with_one_resume(tmp_path, monkeypatch, given, again):
    monkeypatch.setattr(Parser, "command_line", given.split())
    page = RunPage(tmp_path, "main_pretrain")
    page.begin(resumed=False, options={}, environment={})
    assert read_records(tmp_path)[0].facts["resume_command"] == f"python -m main_pretrain {again}"


def test_a_run_that_fails_says_why_and_another_one_begins_its_own_page(survey, tmp_path, monkeypatch):
    def fail(run, *, keep):
        raise OSError(f"cannot write {NASTY}")

    with monkeypatch.context() as patch:
        patch.setattr(main_pretrain, "save", fail)
        assert surveys.train(survey, tmp_path) == 1
    words = read(tmp_path).words
    assert f"cannot write {NASTY}" in words and "failed" in words and "Remove what made it fail" in words
    assert surveys.train(survey, tmp_path) == 0
    assert len(read_records(tmp_path)[0].sessions) == 1 and "cannot write" not in read(tmp_path).words
    assert "cannot write" in read(tmp_path / "earlier-1").words


def test_a_bug_is_a_failure_too(survey, tmp_path, monkeypatch):
    monkeypatch.setattr(main_pretrain, "save", lambda run, keep: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        surveys.train(survey, tmp_path)
    assert "failed: division by zero" in read(tmp_path).words


@pytest.fixture(scope="module")
def finetuned(survey, pretrained, tmp_path_factory):
    """A fine-tuning on classes with a baseline."""
    output = tmp_path_factory.mktemp("finetuned")
    labels = labelled.write_classes(output)
    flags = ["--finetune", str(pretrained / "checkpoint-last.pth"), "--baselines", "constant"]
    assert labelled.finetune(survey, output, *flags, labels=labels) == 0
    return output


def test_the_page_of_a_fine_tuning(finetuned):
    words = read(finetuned).words
    metrics = json.loads((finetuned / "metrics.json").read_text())["arms"]
    assert "Fine-tuning: segmentation" in words and "finished" in words
    for method in ("pretrained", "constant"):
        score = metrics[method]["summary"]["mean_iou"]
        assert f"{method} {score['mean']:.4g} ± {score['std']:.2g}" in words
    assert "mean_iou of each fold" in words and "Labels by fold" in words and "Tested labels by class" in words
    assert "pretrained: training loss" in words and "trained weights" in words
    assert "main_inference --checkpoint" in words and "--output prediction" in words


def test_two_products_share_a_page(pretrained, finetuned, tmp_path):
    for checkpoint, product in ((pretrained, "embeddings"), (finetuned, "prediction")):
        arguments = ["--checkpoint", str(checkpoint / "checkpoint-last.pth"), "--output", product, "--device", "cpu"]
        assert main_inference.main([*arguments, "--output_dir", str(tmp_path), "--no_progress"]) == 0
    found = read(tmp_path)
    words = found.words
    assert words.startswith(f"Maps in {tmp_path.name}")
    assert words.index("Maps: prediction") < words.index("Maps: embeddings")  # the latest first
    assert "prediction_classes.tif" in words and "embeddings_pca.tif" in words and "maps.qgs in QGIS" in words
    assert found.tags.count("img") == len(list(tmp_path.glob("*.png"))) > 1


def test_the_page_of_a_study_shows_its_report(tmp_path):
    arms = [{"name": "scratch"}, {"name": "multi", "against": "scratch", "question": f"What {NASTY}?"}]
    write_results(tmp_path / "results.csv", study_runs({"scratch": 0.5, "multi": 0.7}))
    build_report(tmp_path / "results.csv", {"arms": arms}, tmp_path, draws=100)
    html = page_of(tmp_path, [record_of("scripts.worth_it")])
    found = Page(html)
    assert "All comparisons are decided: 1 of 1" in found.words and NASTY in found.words and "<b>" not in html
    assert found.tags.count("img") == 2 and found.tags.count("table") >= 2
    rebuilt = record_of("scripts.worth_it")
    rebuilt.sessions[-1].environment.clear()  # --report_only knows of no device
    assert ">Cost<" in html and ">Cost<" not in page_of(tmp_path, [rebuilt])
