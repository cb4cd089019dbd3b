"""Writers and ingests that are killed at random moments, not only between two steps."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path

import pytest

from indexer_fakes import VOCABULARY, fill
from kill_fakes import COMMITS, PHASES, History, Kills, check, kill, kill_ingests, kill_writers
from lexvla_indexer import EmbeddedIndex

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_killed_writers_lose_nothing(tmp_path):
    kills = kill(tmp_path, seed=1, wanted=24, work=kill_writers)
    assert kills.losses == []
    assert kills.count >= 24
    assert kills.phases["committing"] > 0
    assert kills.phases["merging"] + kills.phases["compacting"] > 0


def test_killed_ingests_lose_nothing(tmp_path):
    kills = kill(tmp_path, seed=1, wanted=8, work=kill_ingests)
    assert kills.losses == []
    assert kills.phases["ingesting"] > 0


@pytest.mark.slow
def test_many_killed_writers_and_ingests_lose_nothing(tmp_path):
    writers = kill(tmp_path, seed=1000, wanted=250, work=kill_writers)
    ingests = kill(tmp_path, seed=1000, wanted=50, work=kill_ingests)
    assert (writers.losses, ingests.losses) == ([], [])
    assert set(writers.phases) >= {"adding", "committing"}
    assert writers.phases["merging"] + writers.phases["compacting"] > 0


def test_a_loss_is_seen(tmp_path):
    history, path = History(1), tmp_path / "i.lex"
    with EmbeddedIndex(path, create=True, vocabulary=VOCABULARY) as index:
        assert check(index, history) == 0
        history.play(index, 0)
        assert check(index, history) == COMMITS
        index.delete([next(name for name in history.states[-1] if name != "commit")])
        index.commit()
        with pytest.raises(AssertionError):
            check(index, history)
        fill(index, *history.states[-1])  # no commit of the history
        with pytest.raises((AssertionError, ValueError)):
            check(index, history)


def test_the_command_prints_kills_and_losses(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    command = importlib.import_module("kills")
    monkeypatch.setattr(command, "kill", lambda *_, **__: Kills(Counter(committing=3), 2))
    command.main(["--kills", "10", "--seed", "4"])
    table = capsys.readouterr().out
    assert [line.split()[1] for line in table.splitlines() if line.startswith("| ")][1:] == [
        *PHASES,
        "all",
    ]
    assert "| committing | 6 |" in table
    assert "losses: 0" in table
    monkeypatch.setattr(command, "kill", lambda *_, **__: Kills(Counter(), 1, ["seed 4: gone"]))
    with pytest.raises(SystemExit) as ended:
        command.main([])
    assert ended.value.code == 1
    assert "seed 4: gone" in capsys.readouterr().out
