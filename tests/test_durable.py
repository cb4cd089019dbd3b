"""Files that reach the disk whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lexvla_indexer.durable import naming, replacing


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with (
        pytest.raises(ConnectionResetError, match=r"^\[Errno 104\] reset$"),
        replacing(path) as new,
    ):
        new.write_text("half")
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_an_error_that_names_a_file_keeps_that_name(tmp_path: Path) -> None:
    other = tmp_path / "other"
    with pytest.raises(FileNotFoundError) as caught, naming(tmp_path / "file"):
        other.read_text()
    assert caught.value.filename == str(other)
    with pytest.raises(OSError, match="No space left") as caught, naming(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "file")
