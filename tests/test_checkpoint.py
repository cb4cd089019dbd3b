from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lexvla.errors import ModelError
from lexvla.training.checkpoint import differences, load_checkpoint, save_checkpoint


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"recipe": {}, "rows": torch.arange(9.0)})
    data = path.read_bytes()
    for length in (0, 10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"checkpoint\.pt: the checkpoint cannot be read"):
            load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="not a checkpoint of a training run"):
        load_checkpoint(path)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"recipe": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelError, match="the checkpoint cannot be read") as caught:
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert "weights_only" not in str(caught.value)  # torch's advice is to run it
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        save_checkpoint(path, {"recipe": {}, "step": step})
        assert load_checkpoint(path)["step"] == step
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_settings_that_differ_are_told_with_both_values() -> None:
    old = {"output": "a", "loss": {"dense": 0.0, "gone": 1}, "model": {"width": 8}}
    new = {"output": "a", "loss": {"dense": 0.5, "new": True}, "model": {"width": 8}}
    assert list(differences(old, new)) == [
        "loss.dense was 0.0 and is 0.5",
        "loss.gone was 1 and is None",
        "loss.new was None and is True",
    ]
    assert list(differences(old, old)) == []
