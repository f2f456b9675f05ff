"""Estimates of time: learnt from finished work, kept in a file that is never trusted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from napari_arssr.timing import (
    Measured,
    Speeds,
    Stopwatch,
    Work,
    clock_words,
    in_words,
    key_of,
)

KEY = key_of("default", "cpu", "float32")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "timing.json"


def test_nothing_is_estimated_before_anything_was_measured(file: Path) -> None:
    assert Speeds(file)[KEY].seconds(Work(1000, 1000)) is None
    assert not file.exists()


def test_time_grows_with_the_work_of_each_stage(file: Path) -> None:
    Speeds(file).learn(KEY, Work(1000, 50_000), {"encode": 2.0, "decode": 5.0}, halo=28)
    known = Speeds(file)[KEY]
    assert known.halo == 28
    assert known.seconds(Work(1000, 50_000)) == pytest.approx(7.0)
    assert known.seconds(Work(3000, 50_000)) == pytest.approx(11.0)
    assert known.seconds(Work(0, 100_000)) == pytest.approx(10.0)
    assert known.seconds(Work(0, 0)) == 0.0


def test_a_stage_that_was_never_measured_leaves_the_time_unknown(file: Path) -> None:
    speeds = Speeds(file)
    speeds.learn(KEY, Work(0, 50_000), {"decode": 5.0}, halo=28)
    assert speeds[KEY].seconds(Work(0, 10_000)) == pytest.approx(1.0)
    assert speeds[KEY].seconds(Work(1, 10_000)) is None


def test_weights_devices_and_precisions_are_told_apart(file: Path) -> None:
    speeds = Speeds(file)
    speeds.learn(KEY, Work(0, 100), {"decode": 1.0}, halo=0)
    for other in (("other", "cpu", "float32"), ("default", "mps", "float32")):
        assert speeds[key_of(*other)].seconds(Work(0, 100)) is None
    assert speeds[key_of("default", "cpu", "bfloat16")].seconds(Work(0, 100)) is None


def test_later_runs_count_more_and_large_ones_too(file: Path) -> None:
    speeds = Speeds(file)
    for _ in range(8):
        speeds.learn(KEY, Work(0, 1000), {"decode": 10.0}, halo=0)
    for _ in range(8):
        speeds.learn(KEY, Work(0, 1000), {"decode": 1.0}, halo=0)
    assert speeds[KEY].seconds(Work(0, 1000)) == pytest.approx(1.0, rel=0.1)
    speeds.learn(KEY, Work(0, 1), {"decode": 1.0}, halo=0)  # all of it overhead
    assert speeds[KEY].seconds(Work(0, 1000)) < 3


def test_work_too_short_to_be_measured_teaches_nothing(file: Path) -> None:
    speeds = Speeds(file)
    speeds.learn(KEY, Work(10, 10), {"encode": 1e-6, "decode": 0.001}, halo=1)
    assert speeds[KEY].seconds(Work(0, 10)) is None


def test_two_processes_learn_together(file: Path) -> None:
    one, other = Speeds(file), Speeds(file)
    assert one["a"] == other["b"] == Measured()
    one.learn("a", Work(0, 10), {"decode": 1.0}, halo=0)
    other.learn("b", Work(0, 10), {"decode": 2.0}, halo=0)
    both = Speeds(file)
    assert both["a"].seconds(Work(0, 10)) == 1.0
    assert both["b"].seconds(Work(0, 10)) == 2.0


@pytest.mark.parametrize(
    "content",
    [
        "",
        "nonsense",
        "[" * 100_000,
        "[]",
        "null",
        '{"version": 1}',
        '{"version": 2, "speeds": {"KEY": {"halo": 0, "decode": [1, 1]}}}',
        '{"version": 1, "speeds": []}',
        '{"version": 1, "speeds": {"KEY": 3}}',
        '{"version": 1, "speeds": {"KEY": {"halo": 0, "decode": 3}}}',
        '{"version": 1, "speeds": {"KEY": {"halo": 0, "decode": [1, "1"]}}}',
        '{"version": 1, "speeds": {"KEY": {"halo": 0, "decode": [0, 1]}}}',
        '{"version": 1, "speeds": {"KEY": {"halo": 0, "decode": [1, -1]}}}',
        '{"version": 1, "speeds": {"KEY": {"halo": 0, "decode": [1, NaN]}}}',
        '{"version": 1, "speeds": {"KEY": {"halo": 0, "decode": [Infinity, 1]}}}',
        '{"version": 1, "speeds": {"KEY": {"halo": 0, "decode": [true, 1]}}}',
        '{"version": 1, "speeds": {"KEY": {"halo": 1.5, "decode": [1, 1]}}}',
        '{"version": 1, "speeds": {"KEY": {"halo": 1' + "0" * 400 + ', "decode": [1, 1]}}}',
        '{"version": 1, "speeds": {"KEY": {"decode": [1, 1]}}}',
    ],
)
def test_a_broken_file_is_as_good_as_none_and_is_mended(file: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content.replace("KEY", KEY))
    speeds = Speeds(file)
    assert speeds[KEY] == Measured()
    speeds.learn(KEY, Work(0, 10), {"decode": 1.0}, halo=3)
    assert Speeds(file)[KEY] == Measured(3, {"decode": (10.0, 1.0)})


def test_bytes_that_are_no_text_are_not_trusted_either(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"\xff\xfe\x00{")
    assert Speeds(file)[KEY] == Measured()


def test_a_folder_that_cannot_be_written_costs_the_memory_only(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    speeds = Speeds(blocked / "timing.json")
    speeds.learn(KEY, Work(0, 10), {"decode": 1.0}, halo=0)
    speeds.learn("other", Work(0, 10), {"decode": 1.0}, halo=0)
    assert speeds[KEY].seconds(Work(0, 20)) == 2.0
    assert blocked.read_text() == "in the way"


def test_the_file_does_not_grow_for_ever_and_nothing_is_left_beside_it(file: Path) -> None:
    speeds = Speeds(file)
    for number in range(230):
        speeds.learn(str(number), Work(0, 10), {"decode": 1.0}, halo=0)
    kept = json.loads(file.read_text())["speeds"]
    assert len(kept) == 200
    assert "229" in kept
    assert "0" not in kept
    assert list(file.parent.iterdir()) == [file]


def test_a_stopwatch_gives_time_to_the_stage_that_was_reported() -> None:
    times = iter([10.0, 11.0, 14.0, 14.5, 20.0])
    heard: list[tuple[float, str]] = []
    watch = Stopwatch(lambda share, stage: heard.append((share, stage)), lambda: next(times))
    for report in [(0.1, "encode"), (0.2, "encode"), (0.5, "decode"), (1.0, "encode")]:
        watch(*report)
    assert watch.seconds == {"encode": 9.5, "decode": 0.5}
    assert heard == [(0.1, "encode"), (0.2, "encode"), (0.5, "decode"), (1.0, "encode")]


@pytest.mark.parametrize(
    ("seconds", "words", "clock"),
    [
        (0.01, "1 s", "0:00"),
        (4.4, "4 s", "0:04"),
        (9.6, "10 s", "0:10"),
        (41, "40 s", "0:41"),
        (88, "2 min", "1:28"),
        (300, "5 min", "5:00"),
        (5369, "89 min", "1:29:29"),
        (9000, "2.5 h", "2:30:00"),
        (360_000, "100 h", "4 d 4 h"),
    ],
)
def test_times_in_words(seconds: float, words: str, clock: str) -> None:
    assert in_words(seconds) == words
    assert clock_words(seconds) == clock


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e10])
def test_a_time_left_that_is_not_known_is_said_so(seconds: float) -> None:
    assert clock_words(seconds) == "unknown"


def test_it_needs_neither_napari_nor_torch() -> None:
    code = "import sys, napari_arssr.timing; print({'napari', 'torch', 'qtpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "set()"
