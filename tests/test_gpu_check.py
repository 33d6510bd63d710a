"""The GPU check on a CPU: what it runs, that it goes on after a failure, and what it reports."""

import json
import subprocess
import sys

import pytest

from scripts import benchmark, gpu_check
from scripts.benchmarks import step


def small_parts(**_):
    def fails():
        raise gpu_check.PartFailed("no such card")

    rows = {"machine": {"device": "x"}, "rows": [{"model": "tiny", "tiles_per_s": 1.5, "ratio": None}]}
    return [gpu_check.Part("first", fails), gpu_check.Part("second", lambda: rows)]


def test_it_goes_on_after_a_failure_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "parts", small_parts)
    assert gpu_check.main(["--rehearse", "--output_dir", str(tmp_path)]) == 1
    assert "failed: first" in capsys.readouterr().err
    text = (tmp_path / "gpu_report.md").read_text()
    assert "nothing ran on a GPU" in text and "PartFailed: no such card" in text
    assert "| model | tiles_per_s | ratio |\n| --- | --- | --- |\n| tiny | 1.5 | - |" in text
    assert "pip download" in text
    found = json.loads((tmp_path / "gpu_report.json").read_text())["parts"]
    assert [bool(part["error"]) for part in found] == [True, False]


def test_a_check_that_is_stopped_leaves_what_it_found(tmp_path, monkeypatch):
    def stopped():
        raise KeyboardInterrupt

    listed = [small_parts()[1], gpu_check.Part("third", stopped), gpu_check.Part("fourth", dict)]
    monkeypatch.setattr(gpu_check, "parts", lambda **_: listed)
    with pytest.raises(KeyboardInterrupt):
        gpu_check.main(["--output_dir", str(tmp_path)])
    text = (tmp_path / "gpu_report.md").read_text()
    assert "**Stopped before the end.** Not reached: third, fourth." in text and "| tiny | 1.5 | - |" in text
    assert len(json.loads((tmp_path / "gpu_report.json").read_text())["parts"]) == 1


def test_a_gpu_is_not_called_a_rehearsal(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "parts", lambda **_: small_parts()[1:])
    assert gpu_check.main(["--output_dir", str(tmp_path)]) == 0
    text = (tmp_path / "gpu_report.md").read_text()
    assert "rehearsal" not in text and "Stopped" not in text


@pytest.mark.parametrize("options", [(True, False), (False, False), (False, True)], ids=["quick", "whole", "rehearsal"])
def test_the_benchmarks_have_all_flags(options):
    quick, rehearse = options
    listed = gpu_check.benchmarks(quick=quick, rehearse=rehearse)
    assert len({name for name, _ in listed}) == len(listed) >= 4
    for _, flags in listed:
        assert benchmark.parse_arguments(flags).command == flags[0]


def test_the_environment_on_a_cpu():
    found = gpu_check.environment("cpu")
    assert found["product in float32"] == found["product in float16"] == "right"
    assert found["attention in float32"] in ("FLASH_ATTENTION", "MATH")


def test_what_a_failing_program_said_is_reported():
    with pytest.raises(gpu_check.PartFailed, match="exit status 3: why"):
        gpu_check.run(["-c", "import sys; print('why'); sys.exit(3)"], 60)
    with pytest.raises(gpu_check.PartFailed, match="not done after 5 s: begun"):
        gpu_check.run(["-c", "import time; print('begun', flush=True); time.sleep(60)"], 5)


def test_no_part_begins_when_the_time_is_up(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu_check.LIMIT_S, "quick", -1.0)
    monkeypatch.setattr(gpu_check, "environment", lambda device: {"device": device})
    assert gpu_check.main(["--rehearse", "--quick", "--output_dir", str(tmp_path)]) == 1
    first, *others = json.loads((tmp_path / "gpu_report.json").read_text())["parts"]
    assert not first["error"] and len(others) == 6
    assert all("the time of the whole check is up" in part["error"] for part in others)


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path):
    command = [sys.executable, "-m", "scripts.gpu_check", "--rehearse", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=gpu_check.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Failed" not in (tmp_path / "gpu_report.md").read_text()


def test_what_does_not_fit_side_by_side_is_timed_apart(monkeypatch):
    """A card that holds two models at a time, and that of one step not even alone."""
    tried = []

    def side_by_side(name, pairs, args, device):
        tried.append(list(pairs))
        if len(pairs) > 2 or ("ours", "graphs") in pairs:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [{"model": name, "recipe": recipe, "way": way, "step_s": 1.0} for recipe, way in pairs]

    monkeypatch.setattr(step, "_side_by_side", side_by_side)
    pairs = [("ours", "eager"), ("ours", "graphs"), ("base_stem", "eager"), ("base_stem", "graphs")]
    found = step._rows_that_fit("base", pairs, None, None)
    assert tried == [pairs, pairs[:2], pairs[:1], pairs[1:2], pairs[2:]]
    assert [row["note"] for row in found] == ["apart", "does not fit into memory", "apart", "apart"]
    assert [(row["recipe"], row["way"]) for row in found] == pairs and "step_s" not in found[1]
    assert step._rows_that_fit("tiny", pairs[2:], None, None) == side_by_side("tiny", pairs[2:], None, None)
    text = gpu_check.as_markdown(
        {
            "rehearsal": False,
            "not reached": [],
            "parts": [part_of({"rows": found[1:]})],
        }  # the first row has fewer columns
    )
    assert "| model | recipe | way | note | step_s |" in text and "| base | ours | graphs | does not fit" in text


def part_of(result):
    """A part of the report."""
    return {"name": "step", "seconds": 1.0, "error": None, "result": result}


def test_other_errors_of_a_step_are_not_taken_for_a_full_card(monkeypatch):
    def fails(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(step, "_side_by_side", fails)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        step._rows_that_fit("tiny", [("ours", "eager")], None, None)
