from __future__ import annotations

import json
from pathlib import Path

import pytest

from lexvla.training.run_log import RunLog


def lines(folder: Path) -> list[dict[str, float]]:
    text = (folder / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_a_step(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0, 2) as log:
        log.add(1, {"loss": 3.5, "words": 2.0})
        log.add(2, {"loss": 3.0})
    assert lines(tmp_path) == [{"step": 1, "loss": 3.5, "words": 2.0}, {"step": 2, "loss": 3.0}]


def test_later_lines_of_an_earlier_log_are_dropped(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0, 9) as log:
        for step in range(1, 6):
            log.add(step, {"loss": float(step)})
    with RunLog(tmp_path, 3, 9) as log:
        log.add(4, {"loss": 0.5})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert lines(tmp_path)[3]["loss"] == 0.5
    with RunLog(tmp_path, 0, 9):
        pass
    assert lines(tmp_path) == []


def test_flushed_lines_are_in_the_file(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0, 2) as log:
        log.add(1, {"loss": 1.0})
        log.flush()
        assert len(lines(tmp_path)) == 1


def test_silent_writes_and_shows_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.jsonl").write_text("of the first process\n")
    with RunLog(tmp_path, 0, 2, silent=True, tensorboard=True) as log:
        log.add(1, {"loss": 1.0})
        log.flush()
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    assert (tmp_path / "log.jsonl").read_text() == "of the first process\n"
    assert capsys.readouterr() == ("", "")


def test_an_error_closes_the_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunLog(tmp_path, 0, 2) as log:
        log.add(1, {"loss": 1.0})
        raise KeyError
    assert len(lines(tmp_path)) == 1


def test_tensorboard_gets_all_parts(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install 'lexvla[train]'")
    with RunLog(tmp_path, 0, 2, tensorboard=True) as log:
        log.add(1, {"loss": 1.0, "words": 2.0})
    events = [path for path in tmp_path.iterdir() if path.name.startswith("events")]
    assert len(events) == 1
    data = events[0].read_bytes()
    assert b"loss" in data
    assert b"words" in data
