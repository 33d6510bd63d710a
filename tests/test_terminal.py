"""Log messages and the progress bar."""

import io
import logging
import subprocess
import sys
import warnings

import pytest

from tests.surveys import ROOT
from util.processes import terminal


@pytest.fixture
def logging_restored():
    """Puts Python's logging back as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    hooks = sys.unraisablehook, sys.excepthook
    levels = {name: logging.getLogger(name).level for name in terminal._OUR_LOGGERS}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)
    logging.captureWarnings(False)
    sys.unraisablehook, sys.excepthook = hooks


def speak() -> None:
    """Says one thing on each level, as us and as another package."""
    for name in ("util.checkpoints.run_checkpoints", "someone.else"):
        logging.getLogger(name).info("info of %s", name)
        logging.getLogger(name).warning("warning of %s", name)


def test_rank_0_says_what_we_say_and_what_others_warn_of(logging_restored, capsys):
    terminal.setup_logging(0)
    terminal.setup_logging(0)  # the second call replaces the first: nothing is said twice
    speak()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        "I info of util.checkpoints.run_checkpoints",
        "W warning of util.checkpoints.run_checkpoints",
        "W warning of someone.else",
    ]


def test_other_ranks_only_warn_and_say_who_they_are(logging_restored, capsys):
    terminal.setup_logging(3)
    speak()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        "W [rank 3] warning of util.checkpoints.run_checkpoints",
        "W [rank 3] warning of someone.else",
    ]


def test_pythons_warnings_are_logged(logging_restored, capsys):
    terminal.setup_logging(0)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old function", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    assert "W " in (said := capsys.readouterr().err) and "old function" in said


class Terminal(io.StringIO):
    """Text in memory that passes for a terminal."""

    def isatty(self) -> bool:
        """As a terminal answers."""
        return True


def test_the_bar_is_drawn_on_a_terminal_only(monkeypatch):
    for stream, enabled, drawn in ((Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)):
        monkeypatch.setattr(terminal.sys, "stderr", stream)
        assert list(terminal.progress_bar([1, 2, 3], desc="epoch 1", enabled=enabled)) == [1, 2, 3]
        assert ("epoch 1" in stream.getvalue()) == drawn


def test_a_message_stands_on_a_line_of_its_own_above_the_bar(monkeypatch, logging_restored):
    monkeypatch.setattr(terminal.sys, "stderr", Terminal())
    terminal.setup_logging(0)
    with terminal.progress_bar(total=10, initial=4, desc="epoch 1", unit="tile") as bar:
        bar.update(1)
        logging.getLogger("util").info("checkpoint written")
        assert bar.n == 5
    message = next(line for line in terminal.sys.stderr.getvalue().split("\n") if "checkpoint written" in line)
    assert message.split("\r")[-1].endswith("I checkpoint written")


def test_a_file_gets_a_line_a_minute_instead_of_a_bar(monkeypatch, logging_restored):
    monkeypatch.setattr(terminal.sys, "stderr", io.StringIO())
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)  # a minute has passed at every update
    terminal.setup_logging(0)
    with terminal.progress_bar(total=4, desc="epoch 2 of 9", unit="update") as bar:
        for _ in range(4):
            bar.update(1)
    lines = terminal.sys.stderr.getvalue().splitlines()
    assert any("I epoch 2 of 9: 3 of 4 updates, 75 %" in line and line.endswith("left") for line in lines)
    assert "\r" not in terminal.sys.stderr.getvalue()


def test_a_short_job_writes_no_line_to_a_file(monkeypatch, logging_restored):
    monkeypatch.setattr(terminal.sys, "stderr", io.StringIO())
    terminal.setup_logging(0)
    assert list(terminal.progress_bar(range(5), desc="epoch 1")) == list(range(5))
    assert terminal.sys.stderr.getvalue() == ""


def test_a_message_of_gdal_that_is_no_text_brings_no_traceback(logging_restored, tmp_path):
    """rasterio fails to decode GDAL's message about a damaged file; the error itself is raised all the same."""
    code = (
        "import rasterio, sys\nfrom util.processes.terminal import setup_logging\nsetup_logging()\n"
        "try:\n    with rasterio.Env(), rasterio.open(sys.argv[1]): pass\n"
        "except rasterio.errors.RasterioIOError: pass\n"
    )
    header = b"#POINTS\n1\n#ROWS\n1\n#PTSEPARATION\n1\n#RWSEPARATION\n1\n#XORIGIN\n5\n#YORIGIN\n5\n#SENSE\n1\n"
    system = b'#MAP_PROJECTION\n"zone\xc1"\n"WGS 84",6378137,0.08,0\n"Transverse Mercator",0,141,0.9\x99,5,1\n#GRID\n'
    (tmp_path / "a.gxf").write_bytes(header + system + b"1\n")
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.gxf"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
