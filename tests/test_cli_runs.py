"""Runs of ``lexvla index`` that are refused or interrupted, and folders that move."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from ingest_fakes import new_index, pictures
from lexvla_indexer import open_index, pipeline
from lexvla_search import cli
from search_fakes import PICTURES, FakeEncoder, save_pictures

Capture = pytest.CaptureFixture[str]
FORK = multiprocessing.get_context("fork")


class Interrupted(FakeEncoder):
    """Have Ctrl-C pressed when a batch comes, once or several times."""

    def __init__(self, batch: int, presses: int) -> None:
        super().__init__()
        self.left, self.presses = batch, presses

    def encode_image(self, images: list[Any]) -> Any:
        self.left -= 1
        if self.left == 0:
            for _ in range(self.presses):
                # To the process, as from a terminal: its main thread is woken.
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)  # signals at one moment would be one
        return super().encode_image(images)


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeEncoder())


def use(monkeypatch: pytest.MonkeyPatch, encoder: FakeEncoder) -> None:
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: encoder)


def count(place: str) -> int:
    with open_index(place) as index:
        return index.count()


def test_a_moved_folder_is_relocated(tmp_path: Path, capsys: Capture) -> None:
    old, new, place = tmp_path / "old", tmp_path / "new", ["--index", str(tmp_path / "i.lex")]
    save_pictures(old)
    assert cli.main(["index", str(old), *place]) == 0
    old.rename(new)
    assert cli.main(["relocate", "--root", str(old), *place]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert cli.main(["relocate", "--root", str(new), *place]) == 0
    assert capsys.readouterr().out == f"{old} is {new} now; nothing was encoded\n"
    assert cli.main(["index", f"{new}/../new/", *place]) == 0
    assert capsys.readouterr().out == "0 added, 4 unchanged; 4 in the index\n"
    assert cli.main(["search", "red", *place, "--json", "-k", "1"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)["hits"]
    assert hit["document"]["uri"] == str(new / "apple.png")
    picture = tmp_path / "why.png"
    why = ["explain", "apple.png", "red", *place, "--picture", str(picture), "--json"]
    assert cli.main(why) == 0
    assert json.loads(capsys.readouterr().out)["hit"]["document"]["uri"] == str(new / "apple.png")
    assert Image.open(picture).width > 420  # the image is beside the bars


def test_pictures_of_an_index_of_files_are_served(tmp_path: Path) -> None:
    served = pytest.importorskip("api_fakes").served
    photos, place = save_pictures(tmp_path / "photos"), tmp_path / "pictures.lex"
    (tmp_path / "link").symlink_to(photos)
    assert cli.main(["index", str(tmp_path / "link"), "--index", str(place)]) == 0
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (8, 8), "blue").save(other / "apple.png")
    for folder, status in ((photos, 200), (tmp_path, 200), (other, 404)):
        with served(tmp_path, images=(folder,)) as client:
            assert client.get("/v1/documents/apple.png/image").status_code == status, folder
            assert client.get("/v1/documents/apple.png").json()["uri"] == "apple.png"
    # As in a container that has the photographs elsewhere.
    photos.rename(tmp_path / "mounted")
    with served(tmp_path, images=(tmp_path / "mounted",)) as client:
        assert client.get("/v1/documents/apple.png/image").status_code == 200
    assert len(PICTURES) == count(str(place))


def test_pictures_of_an_index_of_several_folders_are_served(tmp_path: Path) -> None:
    served = pytest.importorskip("api_fakes").served
    place = tmp_path / "pictures.lex"
    one, two = (save_pictures(tmp_path / name) for name in ("one", "two"))
    for folder in (one, two):
        assert cli.main(["index", str(folder), "--index", str(place)]) == 0
    documents = {"apple.png": one, "two/apple.png": two}
    for shown in ([], [one], [two], [one, two]):
        with served(tmp_path, images=tuple(shown)) as client:
            for name, folder in documents.items():
                status = client.get(f"/v1/documents/{quote(name, safe='')}/image").status_code
                assert status == (200 if folder in shown else 404), (name, shown)


def test_a_doubtful_prune_fails_until_it_is_confirmed(tmp_path: Path, capsys: Capture) -> None:
    photos, place = pictures(tmp_path / "p", range(12)), ["--index", str(tmp_path / "i.lex")]
    assert cli.main(["index", str(photos), *place]) == 0
    for number in range(11):
        (photos / f"{number:03}.png").unlink()
    capsys.readouterr()
    assert cli.main(["index", str(photos), *place, "--prune"]) == 1
    out, err = capsys.readouterr()
    assert out == "0 added, 1 unchanged; 12 in the index\n"
    assert err == (
        f"lexvla: error: pruned nothing: 11 of 12 documents are gone, all of them from '{photos}'"
        " (--prune-anyway deletes them)\n"
    )
    assert cli.main(["index", str(photos), *place, "--prune-anyway"]) == 0
    assert capsys.readouterr().out == "0 added, 1 unchanged, 11 pruned; 1 in the index\n"


def test_ctrl_c_commits_what_is_encoded(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, place = pictures(tmp_path / "p", range(20)), str(tmp_path / "i.lex")
    command = ["index", str(photos), "--index", place, "--batch-size", "2"]
    before = signal.getsignal(signal.SIGINT)
    use(monkeypatch, Interrupted(3, 1))
    assert cli.main([*command, "--prune"]) == 130
    out, err = capsys.readouterr()
    done = count(place)
    assert 4 <= done < 20
    assert out == f"{done} added; {done} in the index\n"
    assert "Ctrl-C again stops at once" in err
    assert f"interrupted after {done} items; what was done is in the index" in err
    assert signal.getsignal(signal.SIGINT) is before
    use(monkeypatch, FakeEncoder())
    assert cli.main(command) == 0
    left = f"{20 - done} added, {done} unchanged; 20 in the index\n"
    assert capsys.readouterr().out == left


def test_a_second_ctrl_c_stops_at_once_and_leaves_whole_commits(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, place = pictures(tmp_path / "p", range(20)), str(tmp_path / "i.lex")
    command = ["index", str(photos), "--index", place, "--batch-size", "2"]
    monkeypatch.setattr(pipeline, "_COMMIT_ITEMS", 4)
    use(monkeypatch, Interrupted(6, 200))
    process = FORK.Process(target=cli.main, args=(command,))
    process.start()
    process.join()
    assert process.exitcode == 130
    assert count(place) in (4, 8)
    use(monkeypatch, FakeEncoder())
    capsys.readouterr()
    assert cli.main(command) == 0
    assert count(place) == 20


def test_vectors_from_files_can_be_interrupted(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, vectors = pictures(tmp_path / "p", range(4)), str(tmp_path / "v.npz")
    assert cli.main(["encode", str(photos), "--out", vectors]) == 0
    again = shutil.copy(vectors, tmp_path / "w.npz")
    store = pipeline.IndexSink.store

    def pressed(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        store(*arguments)

    monkeypatch.setattr(pipeline.IndexSink, "store", pressed)
    place = str(tmp_path / "i.lex")
    assert cli.main(["index", "--from-encoded", vectors, str(again), "--index", place]) == 130
    assert "interrupted after 4 items" in capsys.readouterr().err
    assert count(place) == 4


def test_the_first_run_says_how_far_it_came_of_all(tmp_path: Path) -> None:
    from threading import Event

    from indexer_fakes import ColourEncoder

    stop = Event()

    class Stopping(ColourEncoder):
        def encode_image(self, images: Any) -> Any:
            stop.set()
            return super().encode_image(images)

    photos = pictures(tmp_path / "p", range(40))
    with new_index(tmp_path / "i.lex") as index:
        report = pipeline.index_source(
            photos, index, Stopping(), batch_size=2, show_progress_bar=True, stop=stop
        )
        assert report.interrupted == f"{report.added} of 40 items"
        assert index.count() == report.added < 40
