"""JSON lines and TensorBoard events."""

import json

import numpy as np
import torch
from matplotlib.figure import Figure

from util.records import log

# log.txt


def read_lines(path) -> list:
    """What strict JSON finds on each line."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_lines_are_strict_json_with_null_for_what_is_not_finite(tmp_path):
    lines = log.JsonLines(tmp_path / "deep" / "log.txt")
    lines.write({"step": 1, "loss": float("nan"), "skill": {"gravity": {1: float("-inf"), 2: 0.5}}, "note": None})
    lines.write(
        {"a": torch.tensor(2.5), "b": np.float32(0.5), "c": (np.int64(3), True), "d": torch.tensor([1.0, np.inf])}
    )
    lines.close()
    assert read_lines(tmp_path / "deep" / "log.txt") == [
        {"step": 1, "loss": None, "skill": {"gravity": {"1": None, "2": 0.5}}, "note": None},
        {"a": 2.5, "b": 0.5, "c": [3, True], "d": [1.0, None]},
    ]


def test_each_line_is_on_disk_at_once_and_later_runs_append(tmp_path):
    path = tmp_path / "log.txt"
    first = log.JsonLines(path)
    first.write({"step": 1})
    assert read_lines(path) == [{"step": 1}]
    first.close()
    second = log.JsonLines(path)
    second.write({"step": 2})
    second.close()
    assert read_lines(path) == [{"step": 1}, {"step": 2}]


def test_resuming_drops_what_will_be_done_again_and_a_torn_line(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text('{"step": 1}\n{"options": {}}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    log.JsonLines(path, purge_step=3).close()
    assert read_lines(path) == [{"step": 1}, {"options": {}}, {"step": 2}]
    assert [file.name for file in tmp_path.iterdir()] == ["log.txt"]


def test_a_torn_line_goes_without_resuming_too(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    lines = log.JsonLines(path)
    lines.write({"step": 2})
    lines.close()
    assert read_lines(path) == [{"step": 1}, {"step": 2}]


def test_a_disabled_log_writes_nothing(tmp_path):
    lines = log.JsonLines(tmp_path / "log.txt", enabled=False)
    lines.write({"step": 1})
    lines.close()
    assert list(tmp_path.iterdir()) == []


# TensorBoard


def events_of(folder):
    """The events in a folder as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_tensorboard_finds_curves_pictures_and_texts(tmp_path):
    writer = log.make_writer(tmp_path)
    writer.scalar("loss/train", torch.tensor(0.5), 10)
    writer.scalar("loss/train", 0.25, 20)
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    writer.figure("tile", figure, 20)
    writer.text("options", "| lr | 0.1 |", 0)
    writer.flush()
    writer.close()
    events = events_of(tmp_path)
    assert [(point.step, point.value) for point in events.Scalars("loss/train")] == [(10, 0.5), (20, 0.25)]
    assert [(image.step, image.width, image.height) for image in events.Images("tile")] == [(20, 100, 100)]
    assert events.Tensors("options/text_summary")[0].tensor_proto.string_val == [b"| lr | 0.1 |"]


def test_resuming_hides_the_points_that_come_again(tmp_path):
    first = log.make_writer(tmp_path)
    for step in (1, 2, 3):
        first.scalar("loss", 1.0, step)
    first.close()
    second = log.make_writer(tmp_path, purge_step=3)
    for step in (3, 4):
        second.scalar("loss", 2.0, step)
    second.close()
    assert [(point.step, point.value) for point in events_of(tmp_path).Scalars("loss")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
        (4, 2.0),
    ]


def test_the_null_log_takes_the_same_calls_and_writes_nothing(tmp_path):
    public = {name for name in dir(log.TensorBoardLog) if not name.startswith("_")}
    assert public == {name for name in dir(log.NullLog) if not name.startswith("_")}
    for writer in (log.make_writer(None), log.make_writer(tmp_path / "events", enabled=False)):
        writer.scalar("a", 1.0, 0)
        writer.figure("b", Figure(), 0)
        writer.text("c", "d")
        writer.flush()
        writer.close()
    assert list(tmp_path.iterdir()) == []
