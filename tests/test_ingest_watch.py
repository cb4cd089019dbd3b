"""A folder whose changes are followed."""

from __future__ import annotations

import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("watchfiles", reason="needs watchfiles: pip install 'lexvla[watch]'")

from indexer_fakes import ColourEncoder
from ingest_fakes import new_index, picture, pictures
from lexvla.errors import InputError, OptionalDependencyError
from lexvla_indexer import EmbeddedIndex, Report, index_source
from lexvla_indexer.watching import watch_folder
from lexvla_search import cli
from search_fakes import FakeEncoder

QUIET = 0.05
PATIENCE = 60.0  # seconds


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def watching(photos: Path, place: Path, **options: Any) -> Iterator[list[Report]]:
    """Watch in a thread, once all there is was indexed."""
    stop, reports, failures = threading.Event(), list[Report](), list[BaseException]()

    def follow() -> None:
        try:
            watched = watch_folder(
                photos,
                lambda: new_index(place),
                ColourEncoder(),
                stop,
                quiet_seconds=QUIET,
                **options,
            )
            for report in watched:
                reports.append(report)
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        until(lambda: bool(reports))
        yield reports
    finally:
        stop.set()
        thread.join()
    assert not failures


def state(place: Path) -> dict[str, Any]:
    """Return all documents with their vectors, of one commit."""
    with EmbeddedIndex(place) as index:
        names = index.search(ColourEncoder().encode_text(["red green blue"]), k=1000)[0].ids
        documents, rows = index.fetch(sorted(names))
        return {
            document.id: (document, row.lexical.toarray().tolist())
            for document, row in zip(documents, rows, strict=True)
        }


def change(photos: Path, rng: random.Random) -> None:
    """Add, change, copy, move or delete a picture or a folder."""
    files = sorted(photos.rglob("*.png"))
    folders = sorted({path.parent for path in files} | {photos})
    new = photos / rng.choice(["", "a", "b", "b/c", "d"]) / f"{rng.randrange(60):03}.png"
    colour = tuple(rng.randrange(1, 256) for _ in range(3))
    kind = rng.choice(["add", "add", "add", "change", "copy", "move", "move", "delete", "folder"])
    new.parent.mkdir(parents=True, exist_ok=True)
    if kind == "add" or not files:
        picture(new, colour)
    elif kind == "change":
        picture(rng.choice(files), colour)
    elif kind == "copy":
        with suppress(shutil.SameFileError):
            shutil.copy(rng.choice(files), new)
    elif kind == "move":
        rng.choice(files).replace(new)
    elif kind == "delete":
        rng.choice(files).unlink()
    elif (folder := rng.choice(folders)) != photos:
        if rng.random() < 0.7:
            with suppress(OSError):  # the other is not empty, or in it
                folder.rename(photos / rng.choice(["e", "f", "b/g"]))
        else:
            shutil.rmtree(folder)


@pytest.mark.parametrize("seed", [1])
def test_a_thousand_changes_end_as_a_new_index(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    photos, place = pictures(tmp_path / "p", range(30)), tmp_path / "i.lex"
    with watching(photos, place, prune_anyway=True) as reports:
        for burst in range(20):
            for _ in range(50):
                change(photos, rng)
            time.sleep(rng.choice([0, 0.05, 0.3]))
            assert burst < 20
        with new_index(tmp_path / "fresh.lex") as fresh:
            index_source(photos, fresh, ColourEncoder())
        wanted = state(tmp_path / "fresh.lex")
        assert wanted
        until(lambda: state(place) == wanted)
    assert len(reports) > 2
    assert sum(report.moved for report in reports) > 0


def test_only_what_changed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lexvla_indexer import pipeline

    read: list[str] = []
    load = pipeline.load

    def noted(item: Any, *rest: Any) -> Any:
        read.append(item.document.id)
        return load(item, *rest)

    monkeypatch.setattr(pipeline, "load", noted)
    photos, place = pictures(tmp_path / "p", range(5)), tmp_path / "i.lex"
    with watching(photos, place):
        assert sorted(read) == [f"{n:03}.png" for n in range(5)]
        read.clear()
        picture(photos / "002.png", "red")
        picture(photos / "sub" / "new.png", "blue")
        until(lambda: {"002.png", "sub/new.png"} <= state(place).keys())
        until(lambda: state(place)["002.png"][1] == [[1, 0, 0]])
        assert set(read) == {"002.png", "sub/new.png"}


def test_a_disk_that_goes_away_is_not_pruned(tmp_path: Path) -> None:
    photos, place = pictures(tmp_path / "p", range(3)), tmp_path / "i.lex"
    pictures(photos / "disk", range(10, 14))
    with watching(photos, place) as reports:
        (photos / "disk").rename(tmp_path / "aside")
        (photos / "disk").mkdir()
        until(lambda: any(report.prune_refused for report in reports))
        (photos / "000.png").unlink()
        done = len(reports)
        until(lambda: len(reports) > done)
        assert len(state(place)) == 7
        (photos / "disk").rmdir()
        (tmp_path / "aside").rename(photos / "disk")
        until(lambda: len(state(place)) == 6)


def test_another_writer_has_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexvla_indexer.watching._TURN_SECONDS", 0.02)
    photos, place = pictures(tmp_path / "p", range(3)), tmp_path / "i.lex"
    with watching(photos, place):
        with new_index(place):
            pictures(photos, [7])
            time.sleep(0.3)
        until(lambda: "007.png" in state(place))


def test_no_model_is_loaded_for_what_is_not_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: 1 / 0)
    assert cli.main(["watch", str(tmp_path / "a"), "--index", str(tmp_path / "i.lex")]) == 1
    assert capsys.readouterr().err == f"lexvla: error: {str(tmp_path / 'a')!r}: is not a folder\n"


def test_what_cannot_be_watched_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def watch(path: Path) -> None:
        next(watch_folder(path, lambda: new_index(tmp_path / "i"), ColourEncoder(), stop))

    stop = threading.Event()
    with pytest.raises(InputError, match="is not a folder"):
        watch(picture(tmp_path / "a.png"))
    monkeypatch.setitem(__import__("sys").modules, "watchfiles", None)
    with pytest.raises(OptionalDependencyError, match=r"lexvla\[watch\]"):
        watch(tmp_path)


def test_the_command_follows_a_folder_until_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: FakeEncoder())
    photos, place = pictures(tmp_path / "p", range(3)), tmp_path / "i.lex"

    def count() -> int:
        with EmbeddedIndex(place) as index:
            return index.count()

    def use() -> None:
        until(lambda: place.exists() and (place / "roots.json").exists() and count() == 3)
        pictures(photos, [9])
        until(lambda: count() == 4)
        signal.raise_signal(signal.SIGINT)

    user = threading.Thread(target=use)
    user.start()
    code = cli.main(["watch", str(photos), "--index", str(place), "--quiet", "0.05"])
    user.join()
    assert code == 130
    out, err = capsys.readouterr()
    assert out == "3 added\n1 added\n"
    assert "is not watched any more" in err


@pytest.mark.parametrize("seconds", ["-1", "61", "nan"])
def test_the_quiet_time_is_at_most_a_minute(
    seconds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["watch", str(tmp_path), "--index", str(tmp_path / "i.lex"), "--quiet", seconds]
    assert cli.main(arguments) == 2
    assert f"not {seconds!r}" in capsys.readouterr().err
    assert not (tmp_path / "i.lex").exists()


def test_an_index_in_its_own_folder_is_no_change_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = pictures(tmp_path / "p", range(3))
    place = photos / "i.lex"

    def watch(*_: Any, **options: Any) -> Iterator[set[tuple[int, str]]]:
        yield set()
        yield {(1, str(place)), (1, str(place / "roots.json"))}
        pictures(photos, [10])
        yield {(1, str(place / "roots.json")), (1, str(photos / "010.png"))}

    monkeypatch.setattr("watchfiles.watch", watch)
    stop = threading.Event()
    reports = watch_folder(photos, lambda: new_index(place), ColourEncoder(), stop)
    assert [report.added for report in reports] == [3, 1]


def test_a_folder_that_is_moved_is_followed_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = pictures(tmp_path / "p", range(3))
    moved = tmp_path / "moved"

    def watch(*_: Any, **options: Any) -> Iterator[set[tuple[int, str]]]:
        yield set()
        photos.rename(moved)
        moved.rename(photos)  # and back
        yield {(3, str(photos))}
        photos.rename(moved)
        pictures(photos, [10])
        yield {(3, str(photos))}

    monkeypatch.setattr("watchfiles.watch", watch)
    stop, place = threading.Event(), tmp_path / "i.lex"
    reports = watch_folder(photos, lambda: new_index(place), ColourEncoder(), stop)
    assert next(reports).added == 3
    with pytest.raises(InputError, match="the folder was moved or deleted"):
        next(reports)
