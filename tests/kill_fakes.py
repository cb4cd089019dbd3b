"""Writers that are killed at random moments, and what must hold after each kill."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from indexer_fakes import (
    LEGS,
    QUERY,
    VOCABULARY,
    ColourEncoder,
    brute_force,
    encode,
    found,
    random_rows,
)
from ingest_fakes import contents, new_index, pictures
from lexvla.errors import LexVLAError
from lexvla_indexer import Document, EmbeddedIndex, index_source, open_index, pipeline
from lexvla_indexer.embedded import merging
from lexvla_indexer.embedded.writer import Writer

FORK = multiprocessing.get_context("fork")
PHASES = ("opening", "adding", "committing", "merging", "compacting", "ingesting")
COMMITS = 45
SECONDS = 0.2  # the longest life of a writer
FAN_IN = 4  # so that one commit in four merges
MARK = "commit"  # the id of the document that tells which commit it is

LOST = (AssertionError, KeyError, LexVLAError, OSError, ValueError)  # what a loss shows as

Rows = dict[str, dict[int, float]]


@dataclass
class Kills:
    """Count kills by what the writer was doing, and what was lost by them."""

    phases: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    losses: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(self.phases.values())


class History:
    """Say what each of many commits changes, and what the index then holds.

    A commit adds, replaces and deletes, and replaces one document that names the commit: an index
    that holds that one must hold all of the commit, and nothing of the next.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.changes: list[tuple[Rows, list[str]]] = []
        self.states: list[Rows] = [{}]
        for number in range(1, COMMITS + 1):
            state = dict(self.states[-1])
            names = [f"d{i:03}" for i in rng.choice(200, int(rng.integers(1, 30)), replace=False)]
            rows = dict(zip(names, random_rows(rng, len(names)), strict=True))
            rows[MARK] = {0: number / 64}
            there = sorted(state.keys() - rows.keys() - {MARK})
            gone = [name for name in there if rng.random() < 0.1]
            state = {name: row for name, row in state.items() if name not in gone} | rows
            self.changes.append((rows, gone))
            self.states.append(state)

    def play(self, index: EmbeddedIndex, done: int) -> None:
        """Make all commits after this one."""
        for number in range(done + 1, COMMITS + 1):
            rows, gone = self.changes[number - 1]
            index.delete(gone)
            names = list(rows)
            for some in (names[::2], names[1::2]):
                index.add(self.documents(some, number), encode([rows[name] for name in some]))
            index.commit()
            if number % 7 == 0:
                index.compact()

    @staticmethod
    def documents(names: list[str], number: int) -> list[Document]:
        return [Document(name, text=f"of commit {number}") for name in names]


def check(index: EmbeddedIndex, history: History) -> int:
    """Demand that the index holds one whole commit. Return which."""
    if not index.count():
        return 0
    number = int(index.fetch([MARK]).documents[0].text.split()[-1])
    state = history.states[number]
    names = list(state)
    stored = encode(list(state.values()))
    assert index.count() == len(state)
    for leg in LEGS:
        assert found(index, leg=leg, k=1000) == brute_force(leg, names, stored, QUERY, 1000)
    back = index.fetch(names).encoding
    assert (back.lexical != stored.lexical).nnz == 0
    assert back.patches.tolist() == stored.patches.tolist()
    assert (back.codes != stored.codes).nnz == 0
    assert np.array_equal(back.dense, stored.dense)
    assert index.verify() == []
    return number


def files_of(path: Path) -> dict[str, bytes]:
    """Return the files of all segments, by name."""
    folders = sorted((path / "segments").iterdir())
    return {
        f"{number}/{file.name}": file.read_bytes()
        for number, folder in enumerate(folders)
        for file in folder.iterdir()
    }


def killed(work: Callable[[Any], None], seconds: float) -> str | None:
    """Run in a process of its own, and kill it after a time. Return what it was doing.

    ``None`` where it had ended before. The work gets what it sets to the number of its phase.
    """
    phase = FORK.RawValue("i", 0)

    def child() -> None:
        os.fsync = lambda _: None  # what a killed process has written is not lost
        work(phase)

    process = FORK.Process(target=child)
    process.start()
    process.join(seconds)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return None if process.exitcode == 0 else PHASES[phase.value]


def tell(phase: Any) -> None:
    """Tell which phase a writer is in, from now on. For a process that ends afterwards."""

    def within(owner: type, name: str, number: int) -> None:
        method = getattr(owner, name)

        def told(*args: Any, **kwargs: Any) -> Any:
            before = phase.value
            phase.value = max(before, number)  # a compaction merges, too
            try:
                return method(*args, **kwargs)
            finally:
                phase.value = before

        setattr(owner, name, told)

    within(Writer, "commit", PHASES.index("committing"))
    within(Writer, "_merge", PHASES.index("merging"))
    within(Writer, "compact", PHASES.index("compacting"))


def kill_writers(home: Path, seed: int, kills: Kills, wanted: int) -> None:
    """Kill writers of one index until it is complete, and a few times more if that is too few.

    Args:
        home: An empty directory.
        seed: Says what is written, and when the writers are killed.
        kills: Counts.
        wanted: Stop killing when this many are counted.
    """
    history, rng, path, done = History(seed), random.Random(seed), home / "i.lex", 0

    def write(phase: Any) -> None:
        merging.FAN_IN = FAN_IN
        tell(phase)
        with EmbeddedIndex(path, create=True, vocabulary=VOCABULARY) as index:
            phase.value = PHASES.index("adding")
            history.play(index, done)

    while kills.count < wanted:
        phase = killed(write, rng.uniform(0.005, SECONDS))
        if phase is None:
            break
        kills.phases[phase] += 1
        if not (path / "manifest.sqlite").exists():
            continue
        try:
            with open_index(path) as reader:
                number = check(reader, history)
            assert number >= done  # what was committed stays
            with EmbeddedIndex(path, create=True) as writer:
                writer.delete([])
                assert check(writer, history) == number
                live = writer.info()["segments"]
                assert len(list((path / "segments").iterdir())) == live
                assert not list(path.glob("*.new"))
        except LOST as error:
            kills.losses.append(f"seed {seed}, kill {kills.count} while {phase}: {error!r}")
            return
        done = number
    with EmbeddedIndex(path, create=True, vocabulary=VOCABULARY) as index:
        history.play(index, done)
        assert check(index, history) == COMMITS
        index.compact()
        assert check(index, history) == COMMITS
        state = history.states[-1]
        kept = index.fetch(list(state)).documents
    with EmbeddedIndex(home / "new.lex", create=True, vocabulary=VOCABULARY) as rebuilt:
        rebuilt.add(kept, encode(list(state.values())))
        rebuilt.commit()
    if files_of(path) != files_of(home / "new.lex"):
        kills.losses.append(f"seed {seed}: not what a new index is")
    kills.runs += 1


def kill_ingests(home: Path, seed: int, kills: Kills, wanted: int) -> None:
    """Kill ingests of one folder until one ends; then compare with one that was never killed.

    Args:
        home: An empty directory.
        seed: Says when they are killed.
        kills: Counts.
        wanted: Stop killing when this many are counted.
    """
    rng, photos, path = random.Random(seed), pictures(home / "photos", range(150)), home / "i.lex"
    names = sorted(file.name for file in photos.iterdir())

    def ingest(phase: Any) -> None:
        pipeline._COMMIT_ITEMS = 10
        merging.FAN_IN = FAN_IN
        with new_index(path) as index:
            phase.value = PHASES.index("ingesting")
            index_source(photos, index, ColourEncoder(), batch_size=4)

    with new_index(home / "whole.lex") as whole:
        index_source(photos, whole, ColourEncoder(), batch_size=4)
        expected = contents(whole, names)
    rows = {row[0].id: row for row in expected}
    while kills.count < wanted:
        phase = killed(ingest, rng.uniform(0.005, SECONDS))
        if phase is None:
            break
        kills.phases[phase] += 1
        if not (path / "manifest.sqlite").exists():
            continue
        with EmbeddedIndex(path) as reader:
            there = sorted(reader.fingerprints(names))
            if contents(reader, there) != [rows[name] for name in there] or reader.verify():
                kills.losses.append(f"seed {seed}, kill {kills.count} while {phase}")
                return
    with new_index(path) as index:
        index_source(photos, index, ColourEncoder(), batch_size=4)
        index.compact()
        if contents(index, names) != expected:
            kills.losses.append(f"seed {seed}: an ingest differs from an unbroken one")
    kills.runs += 1


def kill(home: Path, seed: int, wanted: int, work: Callable[..., None]) -> Kills:
    """Kill so often, over as many indexes as it takes."""
    kills = Kills()
    while kills.count < wanted and not kills.losses:
        folder = home / f"{work.__name__}-{seed}"
        folder.mkdir(parents=True)
        work(folder, seed, kills, wanted)
        shutil.rmtree(folder)
        seed += 1
    return kills
